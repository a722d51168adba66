//! Two who want the same thing at the same moment, through two nodes.

use std::sync::Barrier;

use muster_tests::api::{Answer, Api};
use serde_json::{Value, json};

use super::{Park, is, wanted, with};

const ROUNDS: usize = 6;

/// What both are told who start these at once.
fn both(nodes: [&Api; 2], changes: [&Value; 2]) -> [Answer; 2] {
    let barrier = Barrier::new(2);
    std::thread::scope(|scope| {
        let start = |which: usize| {
            let (barrier, api, body) = (&barrier, nodes[which].clone(), wanted(changes[which]));
            scope.spawn(move || {
                barrier.wait();
                api.post("/api/deployments/start", &body)
            })
        };
        [start(0), start(1)].map(|thread| thread.join().expect("ends"))
    })
}

/// E-280
#[test]
fn of_two_starts_for_one_gpu_one_port_or_one_name_exactly_one_wins() {
    let park = Park::new(3);
    let apis = [0, 1, 2].map(|node| park.at(node));
    for round in 0..ROUNDS {
        let (a, b) = (format!("a{round}"), format!("b{round}"));
        for (what, first, second, reason) in [
            (
                "a GPU",
                json!({"model_name": a, "gpu_memory_fraction": 0.6}),
                json!({"model_name": b, "gpu_memory_fraction": 0.6}),
                "on node 2: GPU 0: 1.2 of 1 claimed",
            ),
            (
                "a port",
                json!({"model_name": a, "port": 8900}),
                json!({"model_name": b, "port": 8900}),
                "port 8900 of node 2 is held by deployment",
            ),
            (
                "a name",
                json!({"model_name": "same", "gpu_ids": [0]}),
                json!({"model_name": "same", "gpu_ids": [1]}),
                "the name \"same\" is served by deployment",
            ),
        ] {
            let there = json!({"node_id": 2});
            let (first, second) = (with(&first, &there), with(&second, &there));
            let asked = [&apis[round % 3], &apis[(round + 1) % 3]];
            let told = both(asked, [&first, &second]);
            let (won, lost): (Vec<_>, Vec<_>) = told.iter().partition(|answer| answer.status == 200);
            assert_eq!((won.len(), lost.len()), (1, 1), "{what}: {told:?}");
            lost[0].is_error(409, "CONFLICT");
            let why = lost[0].body["detail"].as_str().expect("a reason");
            assert!(why.contains(reason), "{what}: {why}");
            let id = won[0].body["id"].as_u64().expect("a number");
            let _ = apis[0].post(&format!("/api/deployments/stop/{id}"), &json!({})).expect(200);
            is(&apis[0], id, "stopped");
        }
    }
}

/// Where nobody says which, both find a place.
#[test]
fn two_starts_that_leave_port_and_gpu_open_do_not_stand_in_each_others_way() {
    let park = Park::new(3);
    let apis = [0, 1].map(|node| park.at(node));
    let open = |name: &str| json!({"model_name": name, "node_id": 3, "gpu_ids": null, "gpu_memory_fraction": 0.6});
    let told = both([&apis[0], &apis[1]], [&open("a"), &open("b")]);
    let places = told.map(|answer| {
        let body = answer.expect(200).body;
        is(&apis[0], body["id"].as_u64().expect("a number"), "running");
        (body["port"].clone(), body["gpu_ids"].clone())
    });
    assert!(places[0].0 != places[1].0 && places[0].1 != places[1].1, "{places:?}");
}
