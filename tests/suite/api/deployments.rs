//! Deployments as records (seed 004): what is said of one is checked, kept and shown; nothing runs.

use muster_tests::api::send;
use muster_tests::fleet::Fleet;
use serde_json::{Value, json};

use super::with;

fn deployment() -> Value {
    json!({"model_name": "org/m", "gpu_memory_fraction": 0.5})
}

/// Everything that can be said of a deployment.
fn every_field() -> Value {
    json!({
        "node_id": 1,
        "model_name": "meta-llama/Meta-Llama-3-8B",
        "port": 8001,
        "gpu_memory_fraction": 0.35,
        "gpu_ids": [0, 2],
        "tensor_parallel_size": 2,
        "extra_args": ["--enable-auto-tool-choice", "--tool-call-parser=hermes"],
        "env_vars": [{"key": "HF_TOKEN", "value": "hf_of_a_test"}, {"key": "LEVEL", "value": "3"}],
        "vllm_version": "0.11.0",
        "extra_packages": ["einops==0.8"],
        "engine_args": {"max_model_len": 4096, "enforce_eager": true, "served_model_name": "llama", "revision": "main", "seed": 7},
        "lora_modules": [{"name": "sql", "path": "org/sql-lora"}],
        "max_failed_restarts": 5,
        "owner": "team a",
        "duration_seconds": 3600,
        "pinned": true,
        "engine": "vllm",
        "status": "stopped",
    })
}

/// E-025 E-062 E-063 E-064
#[test]
fn what_is_said_of_a_deployment_is_kept_and_shown_but_for_its_secrets() {
    let mut fleet = Fleet::start();
    let admin = fleet.admin();
    let sent = every_field();
    let created = admin.post("/api/deployments/", &sent).expect(201).body;
    for (field, value) in sent.as_object().expect("an object").iter().filter(|(field, _)| *field != "env_vars") {
        assert_eq!(created[field], *value, "{field}");
    }
    assert_eq!(created["env_vars"], json!([{"key": "HF_TOKEN", "value": null}, {"key": "LEVEL", "value": null}]));
    assert_eq!(
        (&created["id"], &created["expires_at"], &created["last_error"]),
        (&json!(1), &Value::Null, &Value::Null)
    );
    let sparse = admin.post("/api/deployments", &deployment()).expect(201).body;
    for (field, value) in [
        ("id", json!(2)),
        ("node_id", Value::Null),
        ("port", Value::Null),
        ("gpu_ids", json!([])),
        ("tensor_parallel_size", Value::Null),
        ("extra_args", json!([])),
        ("env_vars", json!([])),
        ("engine_args", json!({})),
        ("owner", Value::Null),
        ("duration_seconds", Value::Null),
        ("pinned", json!(false)),
        ("engine", json!("vllm")),
        ("status", json!("stopped")),
    ] {
        assert_eq!(sparse[field], value, "{field}");
    }
    // What was answered can be sent back, without its values.
    let again = with(&created, &json!({"env_vars": [], "status": "stopped"}));
    let _ = admin.post("/api/deployments", &again).expect(201);
    fleet.kill();
    fleet.restart();
    assert_eq!(fleet.admin().get("/api/deployments/1").expect(200).body, created);
}

/// E-013 E-014 E-036
#[test]
fn deployments_are_listed_newest_first_until_they_are_deleted() {
    let fleet = Fleet::start();
    let admin = fleet.admin();
    assert_eq!(admin.get("/api/deployments/").expect(200).body, json!([]));
    for name in ["a", "b", "c", "d"] {
        let _ = admin.post("/api/deployments", &with(&deployment(), &json!({"model_name": name}))).expect(201);
    }
    let ids = |path: &str| {
        let list = admin.get(path).expect(200).body;
        let ids: Vec<_> =
            list.as_array().expect("an array").iter().map(|one| one["id"].as_u64().expect("a number")).collect();
        ids
    };
    assert_eq!(ids("/api/deployments"), [4, 3, 2, 1]);
    assert_eq!(ids("/api/deployments?limit=2&after=4"), [3, 2]);
    let stale = admin.request("DELETE", "/api/deployments/3").header("if-match", "\"1\"");
    send(stale).is_error(412, "PRECONDITION_FAILED");
    let deleted = admin.delete("/api/deployments/3").expect(200);
    assert_eq!(deleted.body, json!({"status": "deleted", "id": 3}));
    admin.delete("/api/deployments/3").is_error(404, "NOT_FOUND");
    admin.get("/api/deployments/3").is_error(404, "NOT_FOUND");
    assert_eq!(ids("/api/deployments"), [4, 2, 1]);
    // A number is never given twice.
    assert_eq!(admin.post("/api/deployments", &deployment()).expect(201).body["id"], json!(5));
    let trail = admin.get("/api/audit").expect(200).to_string();
    assert!(trail.contains("deployment.create") && trail.contains("deployment.delete"), "{trail}");
}

/// E-020 E-021
#[test]
fn a_manifest_holds_what_a_deployment_is_and_no_values_of_its_environment() {
    let fleet = Fleet::start_with(&[("MUSTER_GPUS", "none")]);
    let admin = fleet.admin();
    let created = admin.post("/api/deployments", &every_field()).expect(201).body;
    let hostname = admin.get("/api/nodes").expect(200).body[0]["hostname"].clone();
    assert!(hostname.is_string(), "{hostname}");
    let manifest = admin.get("/api/deployments/1/manifest").expect(200).body;
    let sent = every_field();
    assert_eq!(
        manifest,
        json!({
            "manifest_version": 1,
            "deployment_id": 1,
            "model": sent["model_name"],
            "engine": "vllm",
            "served_model_name": "llama",
            "revision": "main",
            "seed": 7,
            "vllm_version": "0.11.0",
            "image_digest": null,
            "container_runtime": null,
            "engine_args": sent["engine_args"],
            "extra_args": sent["extra_args"],
            "extra_packages": sent["extra_packages"],
            "lora_modules": sent["lora_modules"],
            "env_var_keys": ["HF_TOKEN", "LEVEL"],
            "gpu": {"ids": [0, 2], "memory_fraction": 0.35, "tensor_parallel_size": 2, "names": []},
            "node": {"hostname": hostname},
            "owner": "team a",
            "created_at": created["created_at"],
            "duration_seconds": 3600,
            "status": "stopped",
        })
    );
    admin.get("/api/deployments/9/manifest").is_error(404, "NOT_FOUND");
}

/// E-043 E-045
#[test]
fn what_makes_no_sense_is_refused_and_nothing_is_stored() {
    let fleet = Fleet::start();
    let admin = fleet.admin();
    for (changes, fields) in [
        (json!({"model_name": ""}), &["model_name"][..]),
        (json!({"model_name": null, "gpu_memory_fraction": null}), &["model_name", "gpu_memory_fraction"]),
        (json!({"gpu_memory_fraction": 0}), &["gpu_memory_fraction"]),
        (json!({"gpu_memory_fraction": 1.5}), &["gpu_memory_fraction"]),
        (json!({"gpu_memory_fraction": "NaN"}), &["gpu_memory_fraction"]),
        (json!({"port": 70_000, "gpu_ids": [1, 1]}), &["port", "gpu_ids"]),
        (json!({"extra_args": ["--port=1"]}), &["extra_args[0]"]),
        (json!({"env_vars": [{"key": "A B", "value": ""}]}), &["env_vars[0]"]),
        (json!({"status": "running"}), &["status"]),
        (json!({"replicas": 65}), &["replicas"]),
        (json!({"replicas": 2, "node_id": 1}), &["replicas"]),
        (json!({"on_node_loss": "panic"}), &["on_node_loss"]),
    ] {
        let answer = admin.post("/api/deployments", &with(&deployment(), &changes));
        answer.is_error(422, "UNPROCESSABLE_ENTITY");
        for field in fields {
            assert!(answer.body["detail"].to_string().contains(field), "{changes}: {answer}");
        }
    }
    admin.post("/api/deployments", &with(&deployment(), &json!({"node_id": 9}))).is_error(404, "NOT_FOUND");
    admin.get("/api/deployments/x").is_error(422, "UNPROCESSABLE_ENTITY");
    assert_eq!(admin.get("/api/deployments").expect(200).body, json!([]));
    // One that was tried in vain has no number.
    assert_eq!(admin.post("/api/deployments", &deployment()).expect(201).body["id"], json!(1));
    let odd = admin.post("/api/deployments", &with(&deployment(), &json!({"engine_args": {"foo": 1}}))).expect(201);
    assert!(odd.body["warnings"][0].as_str().expect("a warning").contains("foo"), "{odd}");
}

#[test]
fn operators_make_and_delete_deployments_and_viewers_only_look() {
    let fleet = Fleet::start();
    let admin = fleet.admin();
    let with_role = |role: &str| {
        let made = admin.post("/api/credentials", &json!({"kind": "console", "label": role, "role": role})).expect(201);
        admin.with_key(made.body["key"].as_str().expect("a key"))
    };
    let (operator, viewer) = (with_role("operator"), with_role("viewer"));
    let _ = operator.post("/api/deployments", &deployment()).expect(201);
    viewer.post("/api/deployments", &deployment()).is_error(403, "FORBIDDEN");
    viewer.delete("/api/deployments/1").is_error(403, "FORBIDDEN");
    assert_eq!(viewer.get("/api/deployments").expect(200).body.as_array().map(Vec::len), Some(1));
    fleet.anybody().get("/api/deployments").is_error(401, "UNAUTHORIZED");
    let _ = operator.delete("/api/deployments/1").expect(200);
}

#[test]
fn a_repeated_request_makes_one_deployment() {
    let fleet = Fleet::start();
    let admin = fleet.admin();
    let first = admin.post_once("/api/deployments", &every_field(), "once").expect(201);
    let second = admin.post_once("/api/deployments", &every_field(), "once").expect(201);
    assert_eq!(first.body, second.body);
    assert_eq!(admin.get("/api/deployments").expect(200).body.as_array().map(Vec::len), Some(1));
}

/// E-037
#[test]
fn a_key_that_named_a_deleted_deployment_only_may_use_nothing() {
    let fleet = Fleet::start();
    let admin = fleet.admin();
    for _ in 0..2 {
        let _ = admin.post("/api/deployments", &deployment()).expect(201);
    }
    let key = |ids: Value| {
        let made = admin.post("/api/api-keys", &json!({"label": "scoped", "deployment_ids": ids})).expect(201);
        made.body["key"].as_str().expect("a key").to_owned()
    };
    let (one, both, all) = (key(json!([1])), key(json!([1, 2])), key(Value::Null));
    let _ = admin.post("/api/models", &super::model("registered")).expect(201);
    let _ = admin.delete("/api/deployments/1").expect(200);
    let keys = admin.get("/api/api-keys").expect(200).body;
    let scopes: Vec<_> =
        keys.as_array().expect("an array").iter().map(|key| key["allowed_deployment_ids"].clone()).collect();
    // Newest first; the last is the one that the fleet was founded with.
    assert_eq!(scopes, [Value::Null, json!([2]), json!([]), Value::Null]);
    let listed = |key: &str| {
        let models = fleet.anybody().with_key(key).get("/v1/models").expect(200).body;
        models["data"].as_array().expect("an array").len()
    };
    assert_eq!([listed(&one), listed(&both), listed(&all)], [0, 0, 1]);
}
