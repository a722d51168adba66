//! A deployment from its start to its end, as whoever runs it sees it.

use muster_tests::api::{Api, send};
use muster_tests::fleet::PATIENCE;
use muster_tests::process::wait_for;
use serde_json::{Value, json};

use super::{Park, answers, ask, call, gone, is, look, only, running, start, with};

fn stop(api: &Api, id: u64) -> Value {
    api.post(&format!("/api/deployments/stop/{id}"), &json!({})).expect(200).body
}

/// E-026 E-032 E-046 E-047 E-051 E-054 E-065 E-066 E-067 E-069 E-073
#[test]
fn a_deployment_starts_loads_runs_and_stops_and_nothing_of_it_is_left() {
    let park = Park::with(1, &[("MUSTER_PORTS", "8200-8201")]);
    let admin = park.admin();
    let changes = json!({
        "gpu_ids": [1], "gpu_memory_fraction": 0.35, "extra_args": ["--load-seconds", "1"],
        "engine_args": {"max_model_len": 1024, "served_model_name": "ours"}
    });
    let started = ask(&admin, &changes).expect(200);
    assert_eq!(started.header("etag"), format!("\"{}\"", started.body["modIndex"]));
    for (field, value) in [
        ("id", json!(1)),
        ("status", json!("starting")),
        ("node_id", json!(1)),
        ("port", json!(8200)),
        ("gpu_ids", json!([1])),
        ("container_runtime", json!("process")),
        ("expires_at", Value::Null),
        ("last_error", Value::Null),
        ("owner", json!("a test")),
    ] {
        assert_eq!(started.body[field], value, "{field}");
    }
    let mut seen = vec!["starting".to_owned()];
    wait_for(PATIENCE, "the deployment to run", || {
        let status = look(&admin, 1)?["status"].as_str()?.to_owned();
        if seen.last() != Some(&status) {
            seen.push(status.clone());
        }
        (status == "running").then_some(())
    });
    assert_eq!(seen, ["starting", "loading", "running"]);
    let engine = only(park.engines());
    assert_eq!(engine.after("--served-model-name"), Some("ours"));
    assert_eq!(engine.after("--max-model-len"), Some("1024"));
    assert_eq!(engine.after("--gpu-memory-utilization"), Some("0.35"));
    assert_eq!(engine.arguments.last().map(String::as_str), Some("1"), "{engine:?}");
    let second_gpu = engine.variable("CUDA_VISIBLE_DEVICES").expect("a variable");
    assert!(!second_gpu.is_empty() && !second_gpu.contains(','), "{second_gpu}");
    let answer = call(&park.user(), "ours").expect(200);
    assert_eq!(answer.body["model"], "ours");

    let stopping = stop(&admin, 1);
    assert_eq!((&stopping["status"], &stopping["placements"][0]["status"]), (&json!("stopping"), &json!("stopping")));
    // Whoever stops it twice is told the same, and nothing else happens.
    assert!(["stopping", "stopped"].map(Value::from).contains(&stop(&admin, 1)["status"]));
    let stopped = is(&admin, 1, "stopped");
    assert!(!engine.runs(), "it is stopped when nothing of it is left");
    assert_eq!((&stopped["last_error"], &stopped["expires_at"]), (&Value::Null, &Value::Null));
    let units = std::fs::read_dir(park.fleet.node_data().join("units")).expect("the directory of units");
    let left: Vec<_> = units.map(|entry| entry.expect("an entry").file_name()).filter(|name| name != ".lock").collect();
    assert!(left.is_empty(), "{left:?}");
    call(&park.user(), "ours").is_openai_error(404, "model_not_found");
    let trail = admin.get("/api/audit").expect(200).to_string();
    assert!(trail.contains("deployment.start") && trail.contains("deployment.stop"), "{trail}");
    admin.post("/api/deployments/stop/9", &json!({})).is_error(404, "NOT_FOUND");
}

/// E-033 E-034 E-088 E-089
#[test]
fn what_is_over_is_started_again_where_it_was() {
    let park = Park::new(1);
    let admin = park.admin();
    let id = running(&admin, &json!({"gpu_ids": [1], "port": 8555, "duration_seconds": 3600}));
    let first = only(park.engines());
    let path = format!("/api/deployments/{id}/restart");
    let again = json!({"owner": "another"});
    admin.post(&path, &again).is_error(409, "CONFLICT");
    let _ = stop(&admin, id);
    let before = is(&admin, id, "stopped");
    admin.post(&path, &json!({})).names(&["owner"]);
    admin.post(&path, &json!({"owner": "another", "duration_seconds": 0})).names(&["duration_seconds"]);
    admin.post("/api/deployments/9/restart", &again).is_error(404, "NOT_FOUND");
    let stale = admin.request("POST", &path).header("if-match", "\"1\"").json(&again);
    send(stale).is_error(412, "PRECONDITION_FAILED");
    let started = admin.post(&path, &again).expect(200).body;
    for (field, value) in [("status", "starting"), ("owner", "another")] {
        assert_eq!(started[field], value, "{field}");
    }
    for field in ["node_id", "port", "gpu_ids", "model_name", "created_at"] {
        assert_eq!(started[field], before[field], "{field}");
    }
    assert_eq!(started["duration_seconds"], Value::Null, "left out, it has no end");
    let epoch = |entry: &Value| entry["placements"][0]["epoch"].as_u64();
    assert!(epoch(&started) > epoch(&before));
    let second = is(&admin, id, "running");
    assert_eq!(second["expires_at"], Value::Null);
    assert_ne!(only(park.engines()).id, first.id);
    answers(&park.user(), "org/m");

    // A record that has never run is started where its author wanted it, or where the leader finds a place.
    let kept = json!({"model_name": "org/kept", "engine": "sim", "gpu_memory_fraction": 0.2});
    let anywhere = admin.post("/api/deployments", &with(&kept, &json!({"model_name": "org/any"}))).expect(201);
    let anywhere = anywhere.body["id"].as_u64().expect("a number");
    let _ = admin.post(&format!("/api/deployments/{anywhere}/restart"), &again).expect(200);
    is(&admin, anywhere, "running");
    let kept = with(&kept, &json!({"node_id": 1, "gpu_ids": [0]}));
    let kept = admin.post("/api/deployments", &kept).expect(201).body["id"].as_u64().expect("a number");
    let _ = admin.post(&format!("/api/deployments/{kept}/restart"), &again).expect(200);
    assert_eq!(is(&admin, kept, "running")["gpu_ids"], json!([0]));
}

/// E-038
#[test]
fn a_deleted_record_leaves_the_engine_alone_and_frees_its_names() {
    let mut park = Park::new(1);
    let admin = park.admin();
    let id = running(&admin, &json!({"gpu_memory_fraction": 0.8}));
    let left = only(park.engines());
    let _ = admin.delete(&format!("/api/deployments/{id}")).expect(200);
    admin.get(&format!("/api/deployments/{id}")).is_error(404, "NOT_FOUND");
    call(&park.user(), "org/m").is_openai_error(404, "model_not_found");
    // Its name, its port and its share can be another's, which is what its owner wanted.
    let other = running(&admin, &json!({"gpu_memory_fraction": 0.8}));
    answers(&park.user(), "org/m");
    park.fleet.kill();
    park.fleet.restart();
    let admin = park.admin();
    answers(&park.user(), "org/m");
    let _ = stop(&admin, other);
    is(&admin, other, "stopped");
    assert_eq!(only(park.engines()), left);
}

/// E-048 E-050
#[test]
fn where_nothing_is_said_the_port_and_the_gpus_are_chosen() {
    let park = Park::with(1, &[("MUSTER_PORTS", "8200-8202")]);
    let admin = park.admin();
    let place = |changes: Value| {
        let started = ask(&admin, &with(&changes, &json!({"gpu_ids": null, "gpu_memory_fraction": 0.4}))).expect(200);
        json!([started.body["port"], started.body["gpu_ids"]])
    };
    assert_eq!(place(json!({"model_name": "a"})), json!([8200, [0]]));
    assert_eq!(place(json!({"model_name": "b"})), json!([8201, [1]]), "the one with more room");
    assert_eq!(place(json!({"model_name": "c", "tensor_parallel_size": 2})), json!([8202, [0, 1]]));
    let full = ask(&admin, &json!({"model_name": "d", "gpu_ids": null, "gpu_memory_fraction": 0.1}));
    full.is_error(409, "CONFLICT");
    assert!(full.body["detail"].as_str().expect("a text").contains("port"), "{full}");
    for id in 1..=3 {
        is(&admin, id, "running");
    }
    let ranks = park.engines().into_iter().find(|engine| engine.after("--served-model-name") == Some("c"));
    let ranks = ranks.expect("the third");
    assert_eq!(ranks.after("--tensor-parallel-size"), Some("2"));
    assert_eq!(ranks.variable("CUDA_VISIBLE_DEVICES").expect("a variable").split(',').count(), 2);
}

/// E-060 E-095
#[test]
fn a_pin_is_set_at_the_start_and_by_a_body_that_says_which() {
    let park = Park::new(1);
    let admin = park.admin();
    let id = start(&admin, &json!({"pinned": true}));
    let path = format!("/api/deployments/{id}/pin");
    assert_eq!(is(&admin, id, "running")["pinned"], json!(true));
    for pinned in [false, false, true] {
        assert_eq!(admin.post(&path, &json!({"pinned": pinned})).expect(200).body["pinned"], json!(pinned));
    }
    admin.post(&path, &json!({})).names(&["pinned"]);
    admin.post(&path, &json!({"pinned": "yes"})).names(&["pinned"]);
    admin.post("/api/deployments/9/pin", &json!({"pinned": true})).is_error(404, "NOT_FOUND");
    assert_eq!(is(&admin, id, "running")["pinned"], json!(true));
}

#[test]
fn a_repeated_start_starts_once() {
    let park = Park::new(1);
    let admin = park.admin();
    let body = super::wanted(&json!({"env_vars": [{"key": "A", "value": "b"}]}));
    let first = admin.post_once("/api/deployments/start", &body, "once").expect(200);
    let second = admin.post_once("/api/deployments/start", &body, "once").expect(200);
    assert_eq!(first.body, second.body);
    is(&admin, 1, "running");
    let engine = only(park.engines());
    let _ = stop(&admin, 1);
    gone(&engine);
    let third = admin.post_once("/api/deployments/start", &body, "once").expect(200);
    assert_eq!(first.body, third.body, "what it was told then");
    is(&admin, 1, "stopped");
    assert_eq!(admin.get("/api/deployments").expect(200).body.as_array().map(Vec::len), Some(1));
}
