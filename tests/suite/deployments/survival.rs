//! Nodes that are killed and come back while their engines go on.

use muster_tests::api::try_send;
use muster_tests::fleet::PATIENCE;
use muster_tests::process::wait_for;
use serde_json::{Value, json};

use super::{Yard, answers, gone, is, only, start, with};

/// A node that does not lead.
fn follower(yard: &Yard) -> usize {
    (yard.mesh.leader() + 1) % 3
}

/// E-094 E-279
#[test]
fn engines_outlive_their_node_and_are_taken_up_again_whatever_they_were_doing() {
    let mut yard = Yard::new();
    let owner = follower(&yard);
    let other = (owner + 1) % 3;
    let there = |changes: Value| with(&changes, &json!({"node_id": owner + 1, "gpu_memory_fraction": 0.2}));
    let runs = yard.running(owner, &there(json!({"model_name": "runs", "duration_seconds": 3600})));
    yard.answers_everywhere("runs");
    let loads = start(&yard.api(other), &there(json!({"model_name": "loads", "extra_args": ["--load-seconds", "4"]})));
    is(&yard.api(other), loads, "loading");
    let before = yard.engines(owner);
    assert_eq!(before.len(), 2, "{before:?}");
    let entries = [runs, loads].map(|id| super::look(&yard.api(other), id).expect("an entry"));
    // What was just begun may or may not have an engine by now.
    let begins =
        start(&yard.api(other), &there(json!({"model_name": "begins", "extra_args": ["--load-seconds", "1"]})));
    yard.mesh.machines[owner].kill();
    assert!(before.iter().all(super::Engine::runs), "they outlive their node");
    yard.mesh.restart(owner);
    for id in [runs, loads, begins] {
        is(&yard.api(other), id, "running");
    }
    let after = yard.engines(owner);
    assert_eq!(after.len(), 3, "none was started twice: {after:?}");
    assert!(before.iter().all(|engine| after.contains(engine)), "{before:?} {after:?}");
    for (id, before) in [runs, loads].into_iter().zip(entries) {
        let now = super::look(&yard.api(other), id).expect("an entry");
        assert_eq!(now["placements"][0]["epoch"], before["placements"][0]["epoch"], "{now}");
        assert_eq!(now["last_error"], Value::Null);
        if id == runs {
            assert_eq!(now["expires_at"], before["expires_at"], "its time goes on");
        }
    }
    for model in ["runs", "loads", "begins"] {
        yard.answers_everywhere(model);
    }
    // All of them still do as they are told.
    let _ = yard.api(other).post(&format!("/api/deployments/stop/{runs}"), &json!({})).expect(200);
    is(&yard.api(other), runs, "stopped");
    assert_eq!(yard.engines(owner).len(), 2);
}

#[test]
fn an_engine_that_ends_while_its_node_is_away_is_started_again() {
    let mut yard = Yard::new();
    let owner = follower(&yard);
    let id = yard.running(owner, &json!({}));
    let engine = only(yard.engines(owner));
    yard.mesh.machines[owner].kill();
    engine.signal(muster_tests::process::Signal::KILL);
    gone(&engine);
    yard.mesh.restart(owner);
    yard.answers_everywhere("org/m");
    assert_ne!(only(yard.engines(owner)).id, engine.id);
    is(&yard.api(owner), id, "running");
}

/// E-279
#[test]
fn a_leader_that_is_killed_while_an_engine_loads_changes_nothing() {
    let mut yard = Yard::new();
    let leader = yard.mesh.leader();
    let (owner, other) = ((leader + 1) % 3, (leader + 2) % 3);
    let changes = json!({"node_id": owner + 1, "extra_args": ["--load-seconds", "1"], "duration_seconds": 3600});
    let id = start(&yard.api(leader), &changes);
    yard.mesh.machines[leader].kill();
    // The engine is ready long before the next leader is.
    let runs = wait_for(PATIENCE, "the deployment to run", || {
        let answer = try_send(yard.api(other).request("GET", &format!("/api/deployments/{id}"))).ok()?;
        (answer.body["status"] == "running").then_some(answer.body)
    });
    assert!(runs["expires_at"].is_string(), "{runs}");
    for node in [owner, other] {
        answers(&yard.user(node), "org/m");
    }
    yard.mesh.restart(leader);
    yard.answers_everywhere("org/m");
    only(yard.engines(owner));
}

/// The owner leads, and both roles end at once.
#[test]
fn an_owner_that_leads_is_killed_and_stops_what_was_stopped_meanwhile() {
    let mut yard = Yard::new();
    let owner = yard.mesh.leader();
    let other = (owner + 1) % 3;
    let id = yard.running(owner, &json!({}));
    let engine = only(yard.engines(owner));
    yard.mesh.machines[owner].kill();
    let stopping = wait_for(PATIENCE, "another leader", || {
        let answer = try_send(yard.api(other).request("POST", &format!("/api/deployments/stop/{id}"))).ok()?;
        (answer.status == 200).then_some(answer.body)
    });
    assert_eq!(stopping["status"], "stopping", "nobody knows what is left of it");
    // What it holds is held until its node says that nothing is left.
    let again = yard.api(other).post(&format!("/api/deployments/{id}/restart"), &json!({"owner": "a test"}));
    again.is_error(409, "CONFLICT");
    let taken =
        super::ask(&yard.api(other), &json!({"node_id": owner + 1, "model_name": "x", "gpu_memory_fraction": 0.8}));
    taken.is_error(409, "CONFLICT");
    assert!(engine.runs());
    yard.mesh.restart(owner);
    is(&yard.api(other), id, "stopped");
    assert!(!engine.runs());
    let _ = yard.api(other).post(&format!("/api/deployments/{id}/restart"), &json!({"owner": "a test"})).expect(200);
    is(&yard.api(other), id, "running");
    yard.answers_everywhere("org/m");
}

#[test]
fn engines_outlive_a_node_that_is_stopped_and_a_fleet_that_is_killed() {
    let mut yard = Yard::new();
    let owner = follower(&yard);
    yard.running(owner, &json!({}));
    let engine = only(yard.engines(owner));
    yard.mesh.machines[owner].stop();
    assert!(engine.runs());
    yard.mesh.restart(owner);
    yard.answers_everywhere("org/m");
    yard.mesh.kill_all();
    assert!(engine.runs());
    for node in 0..3 {
        yard.mesh.restart(node);
    }
    yard.mesh.ready();
    yard.answers_everywhere("org/m");
    assert_eq!(only(yard.engines(owner)), engine);
}

#[test]
fn what_is_started_on_a_node_that_is_away_starts_when_it_comes_back() {
    let mut yard = Yard::new();
    let owner = follower(&yard);
    let other = (owner + 1) % 3;
    yard.mesh.machines[owner].kill();
    let api = yard.api(other);
    let there = |changes: Value| with(&changes, &json!({"node_id": owner + 1, "gpu_memory_fraction": 0.4}));
    let kept = start(&api, &there(json!({})));
    let dropped = start(&api, &there(json!({"model_name": "dropped"})));
    super::call(&yard.user(other), "org/m").is_openai_error(503, "model_loading");
    let _ = api.post(&format!("/api/deployments/stop/{dropped}"), &json!({})).expect(200);
    yard.mesh.restart(owner);
    is(&api, kept, "running");
    is(&api, dropped, "stopped");
    yard.answers_everywhere("org/m");
    only(yard.engines(owner));
}
