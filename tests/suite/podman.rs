//! A deployment that really runs in a container of Podman.

use muster_tests::containers::{DOCKER, Daemon, PODMAN};
use muster_tests::fleet::{Fleet, PATIENCE};
use muster_tests::groups::Need;
use muster_tests::process::wait_for;
use serde_json::{Value, json};

/// E-193
#[test]
fn a_deployment_runs_in_podman_where_the_fleet_prefers_it_is_called_and_leaves_nothing() {
    if !Need::Podman.is_met("podman") {
        return;
    }
    let daemon = Daemon::named_by(PODMAN);
    daemon.make_image("vllm/vllm-openai:v0.11.0", "vllm/vllm-openai");
    let docker = std::env::var(DOCKER).unwrap_or_default();
    let both = [("MUSTER_PODMAN", daemon.socket()), ("MUSTER_DOCKER", docker.as_str())];
    // Without Docker there is no choice.
    let fleet = Fleet::start_with(if docker.is_empty() { &both[..1] } else { &both });
    let admin = fleet.admin();
    let _ = admin.put("/api/settings", &json!({"preferred_container_runtime": "podman"})).expect(200);
    let id = admin.get("/api/cluster").expect(200).body["fleetId"].as_str().expect("an id").to_owned();
    let order = json!({
        "node_id": 1, "model_name": "org/m", "gpu_memory_fraction": 0.5, "owner": "a test", "engine": "vllm",
        "vllm_version": "0.11.0",
    });
    let started = admin.post("/api/deployments/start", &order).expect(200).body;
    assert_eq!(started["container_runtime"], "podman", "{started}");
    let status = |status: &str| {
        wait_for(PATIENCE, status, || {
            let seen = admin.get("/api/deployments/1").expect(200).body;
            assert_ne!(seen["status"], "error", "{seen}");
            (seen["status"] == status).then_some(seen)
        })
    };
    status("running");
    let chat = json!({"model": "org/m", "messages": [{"role": "user", "content": "hello"}]});
    wait_for(PATIENCE, "an answer of the model", || {
        (fleet.user().post("/v1/chat/completions", &chat).status == 200).then_some(())
    });
    let listed = admin.get("/api/nodes/1/containers").expect(200).body;
    assert_eq!((&listed[0]["runtime"], &listed[0]["tracked"]), (&json!("podman"), &json!(true)), "{listed}");
    assert_eq!(daemon.containers(&id).len(), 1);
    let _ = admin.post("/api/deployments/stop/1", &Value::Null).expect(200);
    status("stopped");
    assert_eq!(daemon.containers(&id), []);
    daemon.clean(&id);
}
