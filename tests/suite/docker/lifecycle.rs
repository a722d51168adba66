//! A deployment in a container, from its start to its end.

use muster_tests::containers::{DOCKER, Daemon};
use muster_tests::fleet::PATIENCE;
use muster_tests::groups::Need;
use muster_tests::mesh::{Machine, Mesh};
use muster_tests::process::wait_for;
use serde_json::{Value, json};

use super::{VERSION, Yard, answers, is, order, start};

/// What a caller has put into the environment, and nobody else is to see.
const CANARY: &str = "hf_canary_of_the_tests";

/// E-032 E-052 E-075
#[test]
fn a_deployment_starts_in_a_container_is_called_through_another_node_and_leaves_nothing() {
    if !Need::Docker.is_met("docker") {
        return;
    }
    let daemon = Daemon::named_by(DOCKER);
    let image = format!("vllm/vllm-openai:v{VERSION}");
    daemon.make_image(&image, "vllm/vllm-openai");
    let machine = || {
        let mut machine = Machine::on_loopback();
        machine.variables = vec![("MUSTER_DOCKER", daemon.socket().into()), ("MUSTER_GPUS", "none".into())];
        machine
    };
    let mut mesh = Mesh::of((0..2).map(|_| machine()).collect());
    let fleet = mesh.api(0).get("/api/cluster").expect(200).body["fleetId"].as_str().expect("an id").to_owned();
    let key = mesh.api(0).post("/api/credentials", &json!({"kind": "gateway", "label": "a test"})).expect(201);
    let user = mesh.api(1).with_key(key.body["key"].as_str().expect("a key"));

    let changes = json!({
        "env_vars": [{"key": "HF_TOKEN", "value": CANARY}],
        "engine_args": {"max_model_len": 1024, "served_model_name": "ours"},
    });
    let id = mesh.api(1).post("/api/deployments/start", &order(1, &changes)).expect(200).body;
    assert_eq!((&id["status"], &id["container_runtime"]), (&json!("starting"), &json!("docker")), "{id}");
    let id = id["id"].as_u64().expect("a number");
    let running = is(&mesh.api(0), id, "running");
    answers(&user, "ours");

    let containers = daemon.containers(&fleet);
    assert_eq!(containers.len(), 1, "{containers:?}");
    let details = &containers[0].details;
    assert_eq!(
        details["Name"].as_str(),
        Some(&*format!("/muster-{}-{id}-0-{}", &fleet[..8], running["placements"][0]["epoch"]))
    );
    let environment = details["Config"]["Env"].as_array().expect("an environment");
    assert!(environment.contains(&json!(format!("HF_TOKEN={CANARY}"))), "{environment:?}");
    let labels = details["Config"]["Labels"].to_string();
    assert!(labels.contains(&fleet) && !labels.contains(CANARY), "{labels}");
    let arguments = details["Args"].to_string();
    assert!(arguments.contains("--max-model-len") && !arguments.contains(CANARY), "{arguments}");
    // Built here, it has no digest of a registry: its identity stands for it.
    assert_eq!(running["image_digest"], details["Image"], "{running}");
    assert_eq!(running["vllm_version"], VERSION);
    // Nobody but this machine's root reaches it: no port is published.
    assert_eq!(details["HostConfig"]["PortBindings"].as_object().map_or(0, serde_json::Map::len), 0, "{details}");

    for node in 0..2 {
        let said = mesh.api(node).get(&format!("/api/deployments/{id}")).expect(200);
        let manifest = mesh.api(node).get(&format!("/api/deployments/{id}/manifest")).expect(200);
        assert!(!said.text.contains(CANARY) && !manifest.text.contains(CANARY), "{said} {manifest}");
        assert!(!mesh.machines[node].home.log().contains(CANARY));
    }
    // What it has said is kept on its node.
    let logs = mesh.machines[0].home.data().join("engine-logs");
    wait_for(PATIENCE, "the engine's log", || {
        let files = std::fs::read_dir(&logs).ok()?.filter_map(Result::ok);
        let texts: Vec<_> = files.filter_map(|file| std::fs::read_to_string(file.path()).ok()).collect();
        texts.iter().any(|text| text.contains("Application startup complete")).then_some(())
    });

    let stopped = mesh.api(1).post(&format!("/api/deployments/stop/{id}"), &json!({})).expect(200).body;
    assert_eq!(stopped["status"], "stopping");
    is(&mesh.api(1), id, "stopped");
    assert_eq!(daemon.containers(&fleet), [], "it is stopped when nothing of it is left");
    daemon.clean(&fleet);

    mesh.machines[0].kill();
    for path in ["containers", "images"] {
        let path = format!("/api/nodes/1/{path}?consistency=local");
        mesh.api(1).get(&path).is_error(502, "NODE_UNREACHABLE");
    }
}

#[test]
fn a_deployment_that_is_stopped_in_its_container_is_started_again_in_another() {
    let Some(yard) = Yard::new() else { return };
    let admin = yard.admin();
    let id = start(&admin, &json!({"extra_args": ["--load-seconds", "1"]}));
    let mut seen = vec!["starting".to_owned()];
    wait_for(PATIENCE, "it to run", || {
        let status = admin.get(&format!("/api/deployments/{id}")).expect(200).body["status"].as_str()?.to_owned();
        if seen.last() != Some(&status) {
            seen.push(status.clone());
        }
        (status == "running").then_some(())
    });
    assert_eq!(seen, ["starting", "loading", "running"]);
    let first = yard.container();
    let _ = admin.post(&format!("/api/deployments/stop/{id}"), &json!({})).expect(200);
    is(&admin, id, "stopped");
    let again = admin.post(&format!("/api/deployments/{id}/restart"), &json!({"owner": "a test"})).expect(200).body;
    assert_eq!((&again["container_runtime"], &again["last_error"]), (&json!("docker"), &Value::Null));
    is(&admin, id, "running");
    assert_ne!(yard.container().id, first.id);
    answers(&yard.fleet.user(), "org/m");
}
