//! What operators say of a node: maintenance and drain, the warm cache, the runtime; and deleting its record.

use muster_tests::api::{Api, send};
use muster_tests::fleet::{Fleet, PATIENCE};
use muster_tests::process::wait_for;
use muster_tests::simulated::{Simulated, simulator, until};
use serde_json::{Value, json};

const GPUS: [(&str, &str); 1] = [("MUSTER_GPUS", "sim:2x80GiB")];

fn node(api: &Api) -> Value {
    api.get("/api/nodes/1").expect(200).body
}

fn maintain(api: &Api, body: &Value) -> Value {
    api.post("/api/nodes/1/maintenance", body).expect(200).body
}

/// E-117 E-154 E-158 E-159 E-160 E-169 E-170
#[test]
fn gpus_are_cordoned_one_by_one_until_the_node_is_under_maintenance() {
    let fleet = Fleet::start_with(&GPUS);
    let admin = fleet.admin();
    let says = |node: &Value, full: bool, partial: bool, gpus: Value, status: &str| {
        assert_eq!((&node["maintenance"], &node["partial_maintenance"]), (&json!(full), &json!(partial)), "{node}");
        assert_eq!((&node["maintenance_gpus"], &node["status"]), (&gpus, &json!(status)), "{node}");
    };
    says(&node(&admin), false, false, json!([]), "online");
    says(&maintain(&admin, &json!({"gpu_ids": [0], "enabled": true})), false, true, json!([0]), "online");
    let full = maintain(&admin, &json!({"gpu_ids": [1], "enabled": true}));
    says(&full, true, false, json!([0, 1]), "maintenance");
    assert_eq!(full["gpu_usage"][0]["maintenance"], json!(true));
    says(&node(&admin), true, false, json!([0, 1]), "maintenance");
    says(&maintain(&admin, &json!({"gpu_ids": [1], "enabled": false})), false, true, json!([0]), "online");
    says(&maintain(&admin, &json!({"gpu_ids": [], "enabled": true})), true, false, json!([0, 1]), "maintenance");
    says(&maintain(&admin, &json!({"enabled": false})), false, false, json!([]), "online");

    let unknown = admin.post("/api/nodes/1/maintenance", &json!({"gpu_ids": [7], "enabled": true}));
    unknown.is_error(400, "BAD_REQUEST");
    assert!(unknown.body["detail"].as_str().is_some_and(|text| text.contains("it has 0, 1")), "{unknown}");
    admin.post("/api/nodes/9/maintenance", &json!({"enabled": true})).is_error(404, "NOT_FOUND");
    admin.post("/api/nodes/1/maintenance", &json!({"gpu_ids": ["0"]})).names(&["enabled", "gpu_ids"]);
    let stale = admin.request("POST", "/api/nodes/1/maintenance").header("if-match", "\"1\"");
    send(stale.json(&json!({"enabled": true}))).is_error(412, "PRECONDITION_FAILED");
    says(&node(&admin), false, false, json!([]), "online");
    let trail = admin.get("/api/audit").expect(200).text;
    assert!(trail.contains("node.cordon") && trail.contains("node.uncordon"), "{trail}");
}

#[test]
fn a_node_without_gpus_is_cordoned_whole_and_stays_so() {
    let mut fleet = Fleet::start_with(&[("MUSTER_GPUS", "none")]);
    let cordoned = maintain(&fleet.admin(), &json!({"enabled": true}));
    assert_eq!((&cordoned["status"], &cordoned["maintenance_gpus"]), (&json!("maintenance"), &json!([])));
    fleet.kill();
    fleet.restart();
    let admin = fleet.admin();
    assert_eq!(node(&admin)["status"], "maintenance");
    assert_eq!(maintain(&admin, &json!({"enabled": false}))["status"], "online");
}

/// E-049 E-118 E-171
#[test]
fn what_is_cordoned_gets_nothing_new_and_draining_stops_what_is_there_alone() {
    let simulated = Simulated::start();
    let admin = simulated.fleet.admin();
    let start = |name: &str, gpus: &[u32]| admin.post("/api/deployments/start", &simulator(1, name, gpus));
    for (name, gpus) in [("zero", [0]), ("one", [1])] {
        let _ = start(name, &gpus).expect(200);
    }
    until(&admin, 1, "running");
    until(&admin, 2, "running");
    maintain(&admin, &json!({"gpu_ids": [0], "enabled": true}));
    start("cordoned", &[0]).is_error(409, "CONFLICT");
    start("cordoned", &[0, 1]).is_error(409, "CONFLICT");
    start("unknown", &[7]).is_error(400, "BAD_REQUEST");
    start("twice", &[1, 1]).names(&["gpu_ids"]);
    let chosen = start("chosen", &[]).expect(200);
    assert_eq!(chosen.body["gpu_ids"], json!([1]), "{chosen}");
    until(&admin, 3, "running");
    assert_eq!(admin.get("/api/deployments/1").expect(200).body["status"], "running", "it was not drained");

    maintain(&admin, &json!({"gpu_ids": [0], "enabled": true, "drain": true}));
    until(&admin, 1, "stopped");
    for other in [2, 3] {
        assert_eq!(admin.get(&format!("/api/deployments/{other}")).expect(200).body["status"], "running");
    }
    let restart = admin.post("/api/deployments/1/restart", &json!({"owner": "a test"}));
    restart.is_error(409, "CONFLICT");
    assert!(restart.body["detail"].as_str().is_some_and(|text| text.contains("under maintenance")), "{restart}");

    maintain(&admin, &json!({"enabled": true, "drain": true}));
    until(&admin, 2, "stopped");
    until(&admin, 3, "stopped");
    assert_eq!(simulated.engines.running(), [0; 0]);
    start("nowhere", &[]).is_error(409, "CONFLICT");
    maintain(&admin, &json!({"enabled": false}));
    let _ = admin.post("/api/deployments/1/restart", &json!({"owner": "a test"})).expect(200);
    until(&admin, 1, "running");
    assert_eq!(admin.get("/api/deployments/2").expect(200).body["status"], "stopped", "nothing is started by itself");
}

/// E-115 E-116 E-161 E-162 E-165
#[test]
fn the_runtime_and_the_warm_cache_of_a_node_are_what_an_operator_says() {
    let mut fleet = Fleet::start();
    let (admin, operator) = (fleet.admin(), fleet.caller("operator"));
    let fresh = node(&admin);
    for (field, value) in [
        ("container_runtime", Value::Null),
        ("warm_offload_enabled", json!(true)),
        ("ram_cache_limit_mb", Value::Null),
        ("ram_cache_used_mb", Value::Null),
    ] {
        assert_eq!(fresh[field], value, "{field}");
    }
    let runtime = |value: Value| operator.post("/api/nodes/1/runtime", &json!({ "runtime": value }));
    assert_eq!(runtime(json!("podman")).expect(200).body["container_runtime"], "podman");
    runtime(json!("containerd")).is_error(400, "BAD_REQUEST");
    runtime(json!(7)).names(&["runtime"]);
    let warm = |body: &Value| operator.post("/api/nodes/1/warm-cache", body);
    let limited = warm(&json!({"enabled": false, "ram_cache_limit_mb": 4096})).expect(200).body;
    assert_eq!((&limited["warm_offload_enabled"], &limited["ram_cache_limit_mb"]), (&json!(false), &json!(4096)));
    for limit in [0, -1] {
        warm(&json!({"enabled": true, "ram_cache_limit_mb": limit})).is_error(400, "BAD_REQUEST");
    }
    warm(&json!({"ram_cache_limit_mb": 1})).names(&["enabled"]);
    for path in ["runtime", "warm-cache", "maintenance"] {
        fleet.caller("viewer").post(&format!("/api/nodes/1/{path}"), &json!({})).is_error(403, "FORBIDDEN");
    }
    operator.post("/api/nodes/9/runtime", &json!({"runtime": null})).is_error(404, "NOT_FOUND");

    fleet.kill();
    fleet.restart();
    let admin = fleet.admin();
    let kept = node(&admin);
    assert_eq!((&kept["container_runtime"], &kept["ram_cache_limit_mb"]), (&json!("podman"), &json!(4096)));
    let reset = admin.post("/api/nodes/1/runtime", &json!({"runtime": null})).expect(200).body;
    assert_eq!(reset["container_runtime"], Value::Null);
    let unlimited = admin.post("/api/nodes/1/warm-cache", &json!({"enabled": true})).expect(200).body;
    assert_eq!((&unlimited["warm_offload_enabled"], &unlimited["ram_cache_limit_mb"]), (&json!(true), &Value::Null));
}

/// E-112 E-113
#[test]
fn a_deleted_node_takes_its_deployments_along_and_is_back_in_seconds() {
    let fleet = Fleet::start_with(&GPUS);
    let admin = fleet.admin();
    let record = |node: Value| json!({"model_name": "org/m", "gpu_memory_fraction": 0.5, "node_id": node});
    let there = admin.post("/api/deployments", &record(json!(1))).expect(201).body["id"].clone();
    let anywhere = admin.post("/api/deployments", &record(Value::Null)).expect(201).body["id"].clone();
    let before = maintain(&admin, &json!({"gpu_ids": [0], "enabled": true}));
    let sampled = || admin.get("/api/nodes/1/metrics/history").expect(200).body["points"].clone();
    let first = wait_for(PATIENCE, "a sample", || sampled().as_array().and_then(|all| all.first().cloned()));

    let deleted = admin.delete("/api/nodes/1").expect(200).body;
    assert_eq!(deleted, json!({"status": "deleted", "hostname": "node-1", "deployments_deleted": 1}));
    let back = wait_for(PATIENCE, "the node to be back", || {
        let answer = admin.get("/api/nodes/1");
        (answer.status == 200).then_some(answer.body)
    });
    assert_eq!((&back["id"], &back["hostname"]), (&before["id"], &before["hostname"]));
    assert_eq!((&back["maintenance_gpus"], &back["status"]), (&json!([]), &json!("online")));
    admin.get(&format!("/api/deployments/{there}")).is_error(404, "NOT_FOUND");
    let _ = admin.get(&format!("/api/deployments/{anywhere}")).expect(200);
    let points = sampled();
    assert!(points.as_array().is_some_and(|points| !points.contains(&first)), "its past is gone: {points}");
    admin.delete("/api/nodes/9").is_error(404, "NOT_FOUND");
}
