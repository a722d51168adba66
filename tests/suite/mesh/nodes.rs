//! What one node says of the machines of the others, and what it says when one of them is dead.

use muster_tests::api::Api;
use muster_tests::fleet::PATIENCE;
use muster_tests::mesh::{Machine, Mesh};
use muster_tests::process::{binary, wait_for};
use muster_tests::simulated::{Engines, simulator, until};
use serde_json::{Value, json};

/// Three nodes with so many simulated GPUs each as their number says.
fn mesh() -> Mesh {
    let machine = |number: usize| {
        let mut machine = Machine::on_loopback();
        machine.variables.push(("MUSTER_GPUS", format!("sim:{number}x80GiB").into()));
        machine.variables.push(("MUSTER_ENGINE_SIM", binary("muster-sim")));
        machine
    };
    Mesh::of((1..=3).map(machine).collect())
}

fn node(api: &Api, number: usize) -> Value {
    api.get(&format!("/api/nodes/{number}")).expect(200).body
}

fn reason(node: &Value) -> &str {
    node["statusReason"].as_str().unwrap_or_default()
}

#[test]
fn every_node_tells_of_the_machine_of_every_other() {
    let mesh = mesh();
    for api in mesh.apis() {
        wait_for(PATIENCE, "every node to be online", || {
            let list = api.get("/api/nodes").expect(200).body;
            list.as_array()?.iter().all(|node| node["status"] == "online").then_some(())
        });
        let list = api.get("/api/nodes").expect(200).body;
        for (place, node) in list.as_array().expect("a list").iter().enumerate() {
            let gpus = node["gpu_usage"].as_array().expect("a list");
            assert_eq!(gpus.len(), place + 1, "{node}");
            assert!(gpus.iter().all(|gpu| gpu["memory_used_mb"] == 0), "{node}");
            assert!(node["disk_usage"]["total_gb"].as_f64() > Some(0.0) && node["sampleAgeMs"].is_u64(), "{node}");
            let number = place + 1;
            let history = wait_for(PATIENCE, "a sample", || {
                let body = api.get(&format!("/api/nodes/{number}/metrics/history")).expect(200).body;
                body["points"].as_array()?.last().cloned()
            });
            assert_eq!(history["gpus"].as_array().map(Vec::len), Some(number), "{history}");
            // The API of that node listens there, and on no port that is nobody's.
            let check = |port: &str| {
                api.get(&format!("/api/nodes/{number}/ports/check?port={port}")).expect(200).body["available"].clone()
            };
            assert_eq!(check(&node["port"].to_string()), json!(false));
            assert!(check("1").is_boolean());
        }
    }
    // What is said through one node holds for all of them.
    let maintained = mesh.api(2).post("/api/nodes/1/maintenance", &json!({"enabled": true})).expect(200).body;
    assert_eq!(maintained["status"], "maintenance");
    assert_eq!(node(&mesh.api(1), 1)["status"], "maintenance");
}

/// E-118
#[test]
fn draining_through_another_node_leaves_the_others_alone() {
    // Ended after the nodes.
    let _engines: Vec<Engines>;
    let mesh = mesh();
    _engines = mesh.machines.iter().map(|machine| Engines::of(machine.home.path())).collect();
    let api = mesh.api(0);
    for (deployment, node) in [(1, 2), (2, 3)] {
        let body = simulator(node, &format!("node-{node}"), &[0]);
        let _ = api.post("/api/deployments/start", &body).expect(200);
        until(&api, deployment, "running");
    }
    let _ = api.post("/api/nodes/2/maintenance", &json!({"enabled": true, "drain": true})).expect(200);
    until(&api, 1, "stopped");
    assert_eq!(api.get("/api/deployments/2").expect(200).body["status"], "running");
    let _ = api.post("/api/nodes/3/maintenance", &json!({"gpu_ids": [0], "enabled": true, "drain": true})).expect(200);
    until(&api, 2, "stopped");
    assert_eq!(node(&api, 3)["partial_maintenance"], json!(true));
}

/// E-152 E-153 E-234
#[test]
fn a_node_that_does_not_answer_is_degraded_and_then_critical_and_its_last_figures_are_kept() {
    let mut mesh = mesh();
    let api = mesh.api(0);
    let online = || wait_for(PATIENCE, "it to be online", || (node(&api, 3)["status"] == "online").then_some(()));
    // (how many misses make a node critical, what is seen first)
    for (threshold, first) in [(20, "degraded"), (1, "critical")] {
        let _ = api.put("/api/settings", &json!({"node_failure_threshold": threshold})).expect(200);
        online();
        mesh.machines[2].process().freeze();
        let seen = wait_for(PATIENCE, "it to be missed", || {
            Some(node(&api, 3)).filter(|node| !node["statusReason"].is_null())
        });
        assert_eq!(seen["status"], first, "{seen}");
        assert!(reason(&seen).contains("1 times in a row"), "{seen}");
        let silent =
            wait_for(PATIENCE, "it to be critical", || Some(node(&api, 3)).filter(|node| node["status"] == "critical"));
        assert_eq!(silent["gpu_usage"].as_array().map(Vec::len), Some(3), "{silent}");
        assert_eq!(silent["gpu_usage"][0]["health"], "ok", "as it was: {silent}");
        assert!(silent["sampleAgeMs"].as_u64() > seen["sampleAgeMs"].as_u64(), "{silent}");
        mesh.machines[2].process().thaw();
        online();
    }

    mesh.machines[2].kill();
    wait_for(PATIENCE, "it to be critical", || (node(&api, 3)["status"] == "critical").then_some(()));
    for path in ["ports/check?port=8001", "metrics/history"] {
        let answer = api.get(&format!("/api/nodes/3/{path}"));
        answer.is_error(502, "NODE_UNREACHABLE");
        assert!(answer.body["detail"].as_str().is_some_and(|text| text.contains("node 3")), "{answer}");
        api.get(&format!("/api/nodes/9/{path}")).is_error(404, "NOT_FOUND");
    }
    // What needs no answer of it works.
    let drained = api.post("/api/nodes/3/maintenance", &json!({"enabled": true, "drain": true})).expect(200).body;
    assert_eq!(drained["status"], "maintenance");
    let deleted = api.delete("/api/nodes/3").expect(200).body;
    assert_eq!(deleted["hostname"], "node-3");
    api.get("/api/nodes/3").is_error(404, "NOT_FOUND");
    assert_eq!(api.get("/api/nodes").expect(200).body.as_array().map(Vec::len), Some(2));
    mesh.restart(2);
    mesh.ready();
    wait_for(PATIENCE, "it to be back", || {
        let answer = api.get("/api/nodes/3");
        (answer.status == 200 && answer.body["status"] == "online").then_some(())
    });
    assert_eq!(node(&api, 3)["maintenance_gpus"], json!([]));
}

/// E-219
#[test]
fn a_node_that_joins_has_a_warm_cache_if_the_fleet_says_so() {
    let mut mesh = Mesh::of(vec![Machine::on_loopback()]);
    let api = mesh.api(0);
    let _ = api.put("/api/settings", &json!({"default_warm_offload_enabled": false})).expect(200);
    let joined = mesh.add(Machine::on_loopback(), 0);
    mesh.ready();
    assert_eq!(node(&api, joined + 1)["warm_offload_enabled"], json!(false));
    assert_eq!(node(&api, 1)["warm_offload_enabled"], json!(true), "it was there before");
}
