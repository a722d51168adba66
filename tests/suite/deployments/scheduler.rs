//! Replicas whose places the leader finds, and what becomes of them when a node is lost.

use std::time::{Duration, Instant};

use serde_json::{Value, json};

use super::{Yard, answers, call, is, look, start, wait_for, with};

/// How long it may take until a replica of a lost node runs elsewhere: 15 s until it is lost, and the start.
const MOVED: Duration = Duration::from_secs(60);

/// What is started anywhere, twice.
fn anywhere(changes: &Value) -> Value {
    with(&json!({"node_id": null, "gpu_ids": [], "replicas": 2}), changes)
}

/// The nodes of a deployment's replicas, counted from 0.
fn nodes(deployment: &Value) -> Vec<usize> {
    let placements = deployment["placements"].as_array().expect("placements");
    let node =
        |placement: &Value| usize::try_from(placement["node_id"].as_u64().expect("a node")).expect("a number") - 1;
    placements.iter().map(node).collect()
}

/// Waits until all replicas run, and says where.
#[track_caller]
fn all_run(yard: &Yard, through: usize, id: u64, limit: Duration) -> Value {
    wait_for(limit, "all replicas to run", || {
        let deployment = look(&yard.api(through), id)?;
        let placements = deployment["placements"].as_array()?.clone();
        placements.iter().all(|placement| placement["status"] == "running").then_some(deployment)
    })
}

#[test]
fn replicas_of_a_dead_node_are_answered_for_at_once_and_given_to_another_node() {
    let mut yard = Yard::new();
    let id = start(&yard.api(0), &anywhere(&json!({})));
    is(&yard.api(0), id, "running");
    let deployment = all_run(&yard, 0, id, MOVED);
    assert_eq!(deployment["on_node_loss"], "reschedule");
    let before = nodes(&deployment);
    assert_ne!(before[0], before[1], "they are kept apart");
    let (lost, left) = (before[0], before[1]);
    let third = (0..3).find(|node| !before.contains(node)).expect("a third one");
    yard.answers_everywhere("org/m");
    let killed = Instant::now();
    yard.mesh.machines[lost].kill();
    // Not one request may fail, through whichever node is left.
    while killed.elapsed() < Duration::from_secs(5) {
        for node in [left, third] {
            let answer = call(&yard.user(node), "org/m");
            assert_eq!(answer.status, 200, "{} after {:?}", answer.text, killed.elapsed());
        }
    }
    let moved = wait_for(MOVED, "the replica to run on the third node", || {
        let deployment = look(&yard.api(left), id)?;
        let placements = deployment["placements"].as_array()?.clone();
        let run = placements.iter().all(|placement| placement["status"] == "running");
        (run && nodes(&deployment).contains(&third)).then_some(deployment)
    });
    assert!(killed.elapsed() > Duration::from_secs(12), "its node may have served it until then");
    assert!(!nodes(&moved).contains(&lost));
    let why = yard.api(left).get(&format!("/api/deployments/{id}/explain")).expect(200).body;
    let considered: Vec<_> = why["placements"]
        .as_array()
        .expect("placements")
        .iter()
        .flat_map(|placement| {
            placement["considered"]
                .as_array()
                .expect("lines")
                .iter()
                .filter_map(Value::as_str)
                .map(str::to_owned)
                .collect::<Vec<_>>()
        })
        .collect();
    assert!(considered.iter().any(|line| line.contains("chosen")), "{why}");
    // Its engine lived on without it. The node that comes back ends it, and answers through the others.
    assert_eq!(yard.engines(lost).len(), 1);
    yard.mesh.restart(lost);
    answers(&yard.user(lost), "org/m");
    wait_for(MOVED, "the old engine to end", || yard.engines(lost).is_empty().then_some(()));
    assert_eq!(yard.engines(third).len(), 1);
}

#[test]
fn a_frozen_node_serves_nothing_that_was_given_to_another_one() {
    let mut yard = Yard::new();
    let id = start(&yard.api(0), &anywhere(&json!({"replicas": 1})));
    let before = nodes(&is(&yard.api(0), id, "running"))[0];
    let through = (before + 1) % 3;
    let epoch = look(&yard.api(through), id).expect("there")["placements"][0]["epoch"].clone();
    yard.mesh.machines[before].process().freeze();
    let moved = wait_for(MOVED, "the replica to run elsewhere", || {
        let deployment = look(&yard.api(through), id)?;
        (deployment["status"] == "running" && nodes(&deployment)[0] != before).then_some(deployment)
    });
    assert_ne!(moved["placements"][0]["epoch"], epoch);
    answers(&yard.user(through), "org/m");
    yard.mesh.machines[before].process().thaw();
    answers(&yard.user(before), "org/m");
    wait_for(MOVED, "the old engine to end", || yard.engines(before).is_empty().then_some(()));
    let after = look(&yard.api(before), id).expect("there");
    assert_eq!(
        (&after["placements"], &after["status"]),
        (&moved["placements"], &json!("running")),
        "it has not moved again"
    );
}

#[test]
fn what_shall_wait_for_its_node_waits() {
    let mut yard = Yard::new();
    let id = start(&yard.api(0), &anywhere(&json!({"replicas": 1, "on_node_loss": "wait"})));
    let before = is(&yard.api(0), id, "running");
    let node = nodes(&before)[0];
    let through = (node + 1) % 3;
    yard.mesh.machines[node].kill();
    let killed = Instant::now();
    let waits = wait_for(MOVED, "the leader to have had time", || {
        let deployment = look(&yard.api(through), id)?;
        (killed.elapsed() > Duration::from_secs(25)).then_some(deployment)
    });
    assert_eq!((&waits["placements"], &waits["observed"]), (&before["placements"], &json!("unreachable")));
    yard.mesh.restart(node);
    yard.answers_everywhere("org/m");
    assert_eq!(
        look(&yard.api(through), id).expect("there")["placements"][0]["epoch"],
        before["placements"][0]["epoch"]
    );
}

#[test]
fn where_there_is_no_place_it_is_said_why_and_one_that_becomes_free_is_taken() {
    let yard = Yard::new();
    let api = yard.api(0);
    let full: Vec<_> = (0..3)
        .map(|node| {
            yard.running(
                node,
                &json!({"model_name": format!("org/{node}"), "gpu_ids": [0, 1],
        "tensor_parallel_size": 2, "gpu_memory_fraction": 0.9}),
            )
        })
        .collect();
    let id = start(&api, &anywhere(&json!({"replicas": 1})));
    let why = wait_for(MOVED, "an explanation", || {
        let why = api.get(&format!("/api/deployments/{id}/explain")).expect(200).body;
        let now = why["now"].as_array()?.clone();
        // A node may not have heard of all others yet.
        (now.len() == 3 && now.iter().all(|node| node["why"].to_string().contains("GPU"))).then_some(why)
    });
    assert_eq!(why["placements"][0]["node_id"], Value::Null);
    for node in why["now"].as_array().expect("nodes") {
        assert_eq!(node["verdict"], "refused", "{why}");
    }
    assert_eq!(look(&api, id).expect("there")["status"], "starting");
    assert_eq!(call(&yard.user(1), "org/m").status, 503);
    let _ = api.post(&format!("/api/deployments/stop/{}", full[1]), &json!({})).expect(200);
    assert_eq!(nodes(&is(&api, id, "running")), [1]);
    let both = api.post("/api/deployments/start", &with(&super::wanted(&json!({})), &json!({"replicas": 2})));
    both.is_error(422, "UNPROCESSABLE_ENTITY");
}
