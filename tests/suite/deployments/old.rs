//! Nodes that come back and know less than the others, or can do less than before.

use muster_tests::fleet::PATIENCE;
use muster_tests::process::wait_for;
use serde_json::{Value, json};

use super::{Yard, answers, is, only, running, with};

/// A node that does not lead.
fn follower(yard: &Yard) -> usize {
    (yard.mesh.leader() + 1) % 3
}

#[test]
fn a_frozen_owner_stops_what_was_stopped_as_soon_as_it_wakes() {
    let mut yard = Yard::new();
    let owner = follower(&yard);
    let other = (owner + 1) % 3;
    let id = yard.running(owner, &json!({}));
    let engine = only(yard.engines(owner));
    yard.mesh.machines[owner].process().freeze();
    let api = yard.api(other);
    assert_eq!(api.post(&format!("/api/deployments/stop/{id}"), &json!({})).expect(200).body["status"], "stopping");
    api.post(&format!("/api/deployments/{id}/restart"), &json!({"owner": "a test"})).is_error(409, "CONFLICT");
    super::call(&yard.user(other), "org/m").is_openai_error(404, "model_not_found");
    assert!(engine.runs());
    yard.mesh.machines[owner].process().thaw();
    is(&api, id, "stopped");
    assert!(!engine.runs());
}

#[test]
fn a_name_that_went_to_another_node_stays_there_when_the_first_owner_wakes() {
    let mut yard = Yard::new();
    let owner = follower(&yard);
    let other = (owner + 1) % 3;
    let id = yard.running(owner, &json!({"extra_args": ["--tokens", "3"]}));
    yard.answers_everywhere("org/m");
    let first = only(yard.engines(owner));
    yard.mesh.machines[owner].process().freeze();
    let api = yard.api(other);
    // An operator who can not wait deletes the record, and starts the model elsewhere.
    let _ = api.delete(&format!("/api/deployments/{id}")).expect(200);
    let second = running(&api, &json!({"node_id": other + 1, "extra_args": ["--tokens", "5"]}));
    yard.mesh.machines[owner].process().thaw();
    yard.mesh.ready();
    for node in 0..3 {
        let user = yard.user(node);
        wait_for(PATIENCE, "the node to know the new one", || {
            let answer = super::call(&user, "org/m");
            (answer.body["usage"]["completion_tokens"] == 5).then_some(())
        });
        for _ in 0..5 {
            assert_eq!(super::call(&user, "org/m").expect(200).body["usage"]["completion_tokens"], 5);
        }
    }
    assert!(first.runs(), "nobody knows whether somebody still needs it");
    is(&api, second, "running");
    assert_eq!(only(yard.engines(owner)), first);
}

/// The machine was set up anew meanwhile, its driver does not answer, or somebody has removed the program.
#[test]
fn an_engine_that_runs_is_kept_though_its_node_could_not_start_it_any_more() {
    let mut yard = Yard::new();
    let owner = follower(&yard);
    let other = (owner + 1) % 3;
    let id = yard.running(owner, &json!({"env_vars": [{"key": "A", "value": "b"}]}));
    let engine = only(yard.engines(owner));
    let all = yard.mesh.machines[owner].variables.clone();
    for missing in ["MUSTER_GPUS", "MUSTER_ENGINE_SIM"] {
        yard.mesh.machines[owner].kill();
        let machine = &mut yard.mesh.machines[owner];
        machine.variables.retain(|(name, _)| *name != missing);
        machine.variables.extend((missing == "MUSTER_GPUS").then(|| ("MUSTER_GPUS", "none".into())));
        yard.mesh.restart(owner);
        for node in 0..3 {
            answers(&yard.user(node), "org/m");
        }
        let seen = is(&yard.api(other), id, "running");
        assert_eq!(seen["last_error"], Value::Null, "{missing}");
        assert_eq!(only(yard.engines(owner)), engine, "{missing}");
    }
    // It ends when it is told to, and what it held is free only then.
    let _ = yard.api(other).post(&format!("/api/deployments/stop/{id}"), &json!({})).expect(200);
    is(&yard.api(other), id, "stopped");
    assert!(!engine.runs());
    // Without a program nothing new is started there, and with one it is.
    super::ask(&yard.api(other), &json!({"node_id": owner + 1})).is_error(409, "CONFLICT");
    yard.mesh.machines[owner].kill();
    yard.mesh.machines[owner].variables = all;
    yard.mesh.restart(owner);
    let again = json!({"owner": "a test"});
    wait_for(PATIENCE, "the node to tell what it has", || {
        let answer = yard.api(other).post(&format!("/api/deployments/{id}/restart"), &again);
        (answer.status == 200).then_some(())
    });
    is(&yard.api(other), id, "running");
}

/// Its deployment has been given another epoch while its engine of the first ran on.
#[test]
fn an_engine_of_an_old_epoch_is_ended_and_the_new_one_starts() {
    let yard = Yard::new();
    let owner = follower(&yard);
    let other = (owner + 1) % 3;
    let id = yard.running(owner, &json!({"gpu_memory_fraction": 0.9}));
    let first = only(yard.engines(owner));
    let api = yard.api(other);
    // It is stopped and started again before the supervisor's next look, again and again.
    for round in 0..5 {
        let _ = api.post(&format!("/api/deployments/stop/{id}"), &json!({})).expect(200);
        wait_for(PATIENCE, "the restart", || {
            let again = with(&json!({"owner": "a test"}), &json!({"duration_seconds": 3600 + round}));
            (api.post(&format!("/api/deployments/{id}/restart"), &again).status == 200).then_some(())
        });
    }
    is(&api, id, "running");
    assert!(!first.runs());
    only(yard.engines(owner));
    yard.answers_everywhere("org/m");
}

/// It lost its power, and its disk with it.
#[test]
fn what_an_evicted_node_held_is_free_and_its_models_start_elsewhere() {
    let mut yard = Yard::new();
    let owner = follower(&yard);
    let other = (owner + 1) % 3;
    let id = yard.running(owner, &json!({}));
    yard.mesh.machines[owner].kill();
    let api = yard.api(other);
    let _ = api.post(&format!("/api/nodes/{}/evict", owner + 1), &json!({})).expect(200);
    let lost = is(&api, id, "error");
    assert_eq!(lost["error_code"], json!("node_removed"), "{lost}");
    super::call(&yard.user(other), "org/m").is_openai_error(404, "model_not_found");
    api.post(&format!("/api/deployments/{id}/restart"), &json!({"owner": "a test"})).is_error(404, "NOT_FOUND");
    running(&api, &json!({"node_id": other + 1}));
    answers(&yard.user(other), "org/m");
}
