//! Starts that are refused, each with its reason, and nothing is left of them.

use muster_tests::mesh::{Machine, Mesh};
use serde_json::{Value, json};

use super::{Park, answers, ask, is, running, start, wanted, with};

/// E-027
#[test]
fn what_can_not_be_is_refused_with_a_reason_and_leaves_nothing() {
    let park = Park::new(1);
    let admin = park.admin();
    let first = running(&admin, &json!({"port": 8600, "gpu_memory_fraction": 0.6}));
    let other = json!({"model_name": "org/other"});
    for (changes, status, code, reason) in [
        (json!({"node_id": 9}), 404, "NOT_FOUND", "node 9"),
        (json!({"gpu_ids": [7]}), 400, "BAD_REQUEST", "no GPU 7; it has 0, 1"),
        (json!({"gpu_ids": [1], "port": 8600}), 409, "CONFLICT", "port 8600 of node 1 is held by deployment 1 (org/m)"),
        (json!({"gpu_memory_fraction": 0.5}), 409, "CONFLICT", "on node 1: GPU 0"),
        (json!({"gpu_ids": [1], "model_name": "org/m"}), 409, "CONFLICT", "\"org/m\" is served by deployment 1"),
        (json!({"gpu_ids": null, "tensor_parallel_size": 3, "gpu_memory_fraction": 0.1}), 409, "CONFLICT", "3 GPUs"),
        (json!({"engine": "vllm", "gpu_ids": [1]}), 409, "CONFLICT", "engine_vllm"),
    ] {
        let refused = ask(&admin, &with(&other, &changes));
        refused.is_error(status, code);
        assert!(refused.body["detail"].as_str().expect("a reason").contains(reason), "{reason}: {refused}");
    }
    // GPUs may be full to the brim, and no further.
    running(&admin, &with(&other, &json!({"gpu_memory_fraction": 0.4})));
    let brim = ask(&admin, &json!({"model_name": "org/third", "gpu_memory_fraction": 0.01}));
    assert!(
        brim.is_error(409, "CONFLICT").body["detail"]
            .as_str()
            .expect("a reason")
            .contains("deployment 1; deployment 2"),
        "{brim}"
    );
    let list = admin.get("/api/deployments").expect(200).body;
    assert_eq!(list.as_array().map(Vec::len), Some(2), "{list}");
    assert_eq!(park.engines().len(), 2);
    let _ = admin.post(&format!("/api/deployments/stop/{first}"), &json!({})).expect(200);
    is(&admin, first, "stopped");
    running(&admin, &json!({"port": 8600, "model_name": "org/m", "gpu_memory_fraction": 0.6}));
    answers(&park.user(), "org/m");
}

/// E-058
#[test]
fn every_field_that_is_missing_or_wrong_is_named() {
    let park = Park::new(1);
    let admin = park.admin();
    for (changes, fields) in [
        (json!({"owner": null}), &["owner"][..]),
        (json!({"owner": ""}), &["owner"]),
        (json!({"node_id": "one"}), &["node_id"]),
        (json!({"model_name": null, "gpu_memory_fraction": null}), &["model_name", "gpu_memory_fraction"]),
        (json!({"gpu_memory_fraction": 1.01}), &["gpu_memory_fraction"]),
        (json!({"gpu_ids": [0, 0]}), &["gpu_ids"]),
        (json!({"gpu_ids": [0], "tensor_parallel_size": 2}), &["tensor_parallel_size"]),
        (json!({"port": 0}), &["port"]),
        (json!({"duration_seconds": 0}), &["duration_seconds"]),
        (json!({"max_failed_restarts": 0}), &["max_failed_restarts"]),
        (json!({"max_failed_restarts": 21}), &["max_failed_restarts"]),
        (json!({"extra_args": ["--uds", "/tmp/x"]}), &["extra_args[0]"]),
        (json!({"engine": "shell"}), &["engine"]),
        (json!({"replicas": 2}), &["replicas"]),
    ] {
        admin.post("/api/deployments/start", &wanted(&changes)).names(fields);
    }
    // What a form sends back unchanged does not matter.
    running(&admin, &json!({"status": "stopped", "id": 9, "last_error": null}));
    assert_eq!(admin.get("/api/deployments").expect(200).body.as_array().map(Vec::len), Some(1));
}

#[test]
fn a_node_without_programs_and_containers_runs_nothing() {
    let mesh = Mesh::of(vec![Machine::on_loopback()]);
    let refused = ask(&mesh.api(0), &json!({"gpu_ids": null}));
    refused.is_error(409, "CONFLICT");
    assert!(refused.body["detail"].as_str().expect("a reason").contains("engine_sim"), "{refused}");
    assert_eq!(mesh.api(0).get("/api/deployments").expect(200).body, json!([]));
}

#[test]
fn viewers_only_look() {
    let park = Park::new(1);
    let admin = park.admin();
    let made = admin.post("/api/credentials", &json!({"kind": "console", "label": "v", "role": "viewer"})).expect(201);
    let viewer = admin.with_key(made.body["key"].as_str().expect("a key"));
    let id = start(&admin, &json!({}));
    for (path, body) in [
        ("start".to_owned(), wanted(&json!({"model_name": "other"}))),
        (format!("stop/{id}"), json!({})),
        (format!("{id}/restart"), json!({"owner": "v"})),
        (format!("{id}/extend"), json!({"infinite": true})),
        (format!("{id}/pin"), json!({"pinned": true})),
        ("from-manifest".to_owned(), json!({})),
    ] {
        viewer.post(&format!("/api/deployments/{path}"), &body).is_error(403, "FORBIDDEN");
        park.fleet.anybody().post(&format!("/api/deployments/{path}"), &body).is_error(401, "UNAUTHORIZED");
    }
    is(&viewer, id, "running");
}

/// E-017 E-018 E-019: fleet.md, B1 and B2.
#[test]
fn a_served_name_is_one_deployments_alone_and_another_is_suggested() {
    let park = Park::new(1);
    let admin = park.admin();
    let check = |query: &str| admin.get(&format!("/api/deployments/served-name/check?{query}")).expect(200).body;
    let free = json!({"available": true});
    assert_eq!(check("name=m"), free);
    let small = |changes: Value| with(&json!({"gpu_memory_fraction": 0.05, "model_name": "m"}), &changes);
    let first = running(&admin, &small(json!({})));
    let taken = |suggestion: &str| json!({"available": false, "conflict_id": first, "conflict_model": "m", "suggestion": suggestion});
    assert_eq!(check("name=m"), taken("m-2"));
    assert_eq!(
        check("name=%20M%20"),
        json!({"available": false, "conflict_id": first, "conflict_model": "m", "suggestion": "M-2"})
    );
    ask(&admin, &small(json!({}))).is_error(409, "CONFLICT");
    let second = running(&admin, &small(json!({"engine_args": {"served_model_name": "m-2"}})));
    assert_eq!(check("name=m"), taken("m-3"));
    assert_eq!(check(&format!("name=m&exclude_id={first}")), free);
    for blank in ["name=", "name=%20", ""] {
        assert_eq!(check(blank), free, "{blank:?}");
    }
    let adapters = json!([{"name": "a1", "path": "org/a1"}, {"name": "a2", "path": "org/a2"}]);
    running(&admin, &small(json!({"engine_args": {"served_model_name": "alias"}, "lora_modules": adapters})));
    for name in ["alias", "a1", "a2"] {
        assert_eq!(check(&format!("name={name}"))["conflict_id"], json!(3), "{name}");
        let refused = ask(&admin, &small(json!({"engine_args": {"served_model_name": name}})));
        assert!(
            refused.is_error(409, "CONFLICT").body["detail"].as_str().expect("a reason").contains(name),
            "{refused}"
        );
    }
    let _ = admin.post("/api/models", &json!({"name": "registered", "provider": "openai", "modelId": "x"})).expect(201);
    assert_eq!(check("name=registered")["available"], json!(false));
    ask(&admin, &small(json!({"model_name": "registered"}))).is_error(409, "CONFLICT");
    // A model of the registry gets no name that is served either.
    admin.post("/api/models", &json!({"name": "A1", "provider": "openai", "modelId": "x"})).is_error(409, "CONFLICT");
    let _ = admin.post(&format!("/api/deployments/stop/{second}"), &json!({})).expect(200);
    is(&admin, second, "stopped");
    assert_eq!(check("name=m-2"), free);
}
