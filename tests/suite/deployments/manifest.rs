//! What one deployment is, launched again by its manifest.

use serde_json::{Value, json};

use super::{Park, is, only, running, with};

/// E-028 E-029 E-103 E-104 E-105 E-107 E-108
#[test]
fn a_manifest_is_launched_where_the_request_says_and_with_the_values_that_it_brings() {
    let park = Park::new(2);
    let admin = park.admin();
    let changes = json!({
        "gpu_ids": [1], "gpu_memory_fraction": 0.25, "extra_args": ["--tokens", "7"], "max_failed_restarts": 2,
        "env_vars": [{"key": "TOKEN", "value": "first"}], "lora_modules": [{"name": "sql", "path": "org/sql"}],
        "engine_args": {"max_model_len": 512}, "duration_seconds": 3600
    });
    let first = running(&admin, &changes);
    let manifest = admin.get(&format!("/api/deployments/{first}/manifest")).expect(200).body;
    assert_eq!(manifest["env_var_keys"], json!(["TOKEN"]));
    assert_eq!(manifest["container_runtime"], json!("process"));
    assert_eq!(manifest["gpu"]["names"].as_array().map(Vec::len), Some(1), "{manifest}");
    let launch = |changes: &Value| {
        let plain = json!({"manifest": manifest, "node_id": 2, "port": 8700, "owner": "another"});
        admin.post("/api/deployments/from-manifest", &with(&plain, changes))
    };
    // Its names are the first one's for as long as that runs.
    launch(&json!({})).is_error(409, "CONFLICT");
    let _ = admin.post(&format!("/api/deployments/stop/{first}"), &json!({})).expect(200);
    is(&admin, first, "stopped");
    let values = json!({"env_vars": [{"key": "TOKEN", "value": "second"}]});
    let second = launch(&values).expect(200).body;
    for (field, value) in [
        ("node_id", json!(2)),
        ("port", json!(8700)),
        ("owner", json!("another")),
        ("duration_seconds", Value::Null),
        ("model_name", json!("org/m")),
        ("engine", json!("sim")),
        ("gpu_ids", json!([1])),
        ("gpu_memory_fraction", json!(0.25)),
        ("extra_args", json!(["--tokens", "7"])),
        ("lora_modules", json!([{"name": "sql", "path": "org/sql"}])),
        ("engine_args", json!({"max_model_len": 512})),
    ] {
        assert_eq!(second[field], value, "{field}");
    }
    is(&admin, second["id"].as_u64().expect("a number"), "running");
    let engine = only(park.engines());
    assert_eq!(engine.variable("TOKEN").as_deref(), Some("second"));
    assert_eq!(engine.after("--tokens"), Some("7"));
    assert!(engine.after("--uds").expect("a socket").contains("/node-2/"), "{engine:?}");
}

/// E-103 E-106
#[test]
fn a_manifest_that_is_none_is_refused() {
    let park = Park::new(1);
    let admin = park.admin();
    let good = json!({
        "manifest_version": 1, "model": "org/m", "engine": "sim", "gpu": {"ids": [0], "memory_fraction": 0.2}
    });
    let launch = |manifest: Value, changes: &Value| {
        let plain = json!({"manifest": manifest, "node_id": 1, "owner": "a test"});
        admin.post("/api/deployments/from-manifest", &with(&plain, changes))
    };
    for (changes, reason) in [
        (json!({"manifest_version": 2}), "manifest_version"),
        (json!({"manifest_version": "1"}), "manifest_version"),
        (json!({"manifest_version": null}), "manifest_version"),
        (json!({"model": null}), "model"),
        (json!({"model": 5}), "model"),
        (json!({"gpu": null}), "gpu.memory_fraction"),
        (json!({"gpu": {"ids": [0]}}), "gpu.memory_fraction"),
        (json!({"gpu": {"memory_fraction": "0.5"}}), "gpu.memory_fraction"),
    ] {
        let refused = launch(with(&good, &changes), &json!({}));
        refused.is_error(400, "BAD_REQUEST");
        assert!(refused.body["detail"].as_str().expect("a reason").contains(reason), "{refused}");
    }
    launch(good.clone(), &json!({"owner": null})).names(&["owner"]);
    launch(good.clone(), &json!({"node_id": "one"})).names(&["node_id"]);
    launch(good.clone(), &json!({"model_name": "other"})).names(&["model_name"]);
    launch(good.clone(), &json!({"node_id": 9})).is_error(404, "NOT_FOUND");
    launch(json!([]), &json!({})).names(&["manifest"]);
    launch(Value::Null, &json!({})).names(&["manifest"]);
    launch(with(&good, &json!({"gpu": {"memory_fraction": 2}})), &json!({})).names(&["gpu_memory_fraction"]);
    assert_eq!(admin.get("/api/deployments").expect(200).body, json!([]));
    let launched = launch(good, &json!({"port": null})).expect(200).body;
    is(&admin, launched["id"].as_u64().expect("a number"), "running");
}
