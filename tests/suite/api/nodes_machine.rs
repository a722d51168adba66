//! What a node says of its machine: what it does, what it did, which ports are free.

use std::net::TcpListener;

use muster_tests::api::Api;
use muster_tests::fleet::{Fleet, PATIENCE};
use muster_tests::mesh::free_address;
use muster_tests::process::wait_for;
use muster_tests::simulated::{Simulated, simulator, until};
use serde_json::{Value, json};

fn node(api: &Api) -> Value {
    api.get("/api/nodes/1").expect(200).body
}

/// E-110 E-156
#[test]
fn a_node_says_what_its_machine_does() {
    let fleet = Fleet::start_with(&[("MUSTER_GPUS", "sim:2x80GiB")]);
    let list = fleet.admin().get("/api/nodes").expect(200).body;
    let node = &list[0];
    let gpus = node["gpu_usage"].as_array().expect("a list");
    assert_eq!(gpus.iter().map(|gpu| gpu["index"].as_u64()).collect::<Vec<_>>(), [Some(0), Some(1)]);
    for gpu in gpus {
        for (field, value) in [
            ("name", json!("Simulated GPU")),
            ("source", json!("sim")),
            ("health", json!("ok")),
            ("memory_used_mb", json!(0)),
            ("memory_total_mb", json!(81_920)),
            ("maintenance", json!(false)),
        ] {
            assert_eq!(gpu[field], value, "{field}");
        }
        assert!(gpu.get("utilization").is_some(), "{gpu}");
    }
    let disk = &node["disk_usage"];
    let (total, free) = (disk["total_gb"].as_f64().expect("a size"), disk["free_gb"].as_f64().expect("a size"));
    assert!(total > 0.0 && (0.0..=total).contains(&free), "{disk}");
    assert_eq!(disk["hf_cache_gb"], Value::Null, "nobody has counted it");
    assert!(node["memory_total_mb"].as_u64() > node["memory_used_mb"].as_u64(), "{node}");
    assert!(node["sampleAgeMs"].as_u64().is_some_and(|age| age < 10_000), "{node}");
    for field in ["last_heartbeat_at", "created_at"] {
        assert!(node[field].as_str().is_some_and(|text| text.ends_with('Z')), "{field}");
    }
    for field in ["rogue_container_count", "rogue_artifact_count"] {
        assert_eq!(node[field], Value::Null, "nobody has counted them: {field}");
    }
    assert_eq!(node["available_runtimes"], json!(["process"]), "what runs the simulator");
}

/// What a deployment leaves behind that is deleted while it runs is left alone, and counted.
#[test]
fn a_process_that_no_record_knows_is_counted() {
    let simulated = Simulated::start();
    let admin = simulated.fleet.admin();
    assert_eq!(node(&admin)["available_runtimes"], json!(["process"]));
    let _ = admin.post("/api/deployments/start", &simulator(1, "x", &[0])).expect(200);
    until(&admin, 1, "running");
    let count = |wanted: u64| {
        wait_for(PATIENCE, "the count", || (node(&admin)["rogue_process_count"] == json!(wanted)).then_some(()));
    };
    count(0);
    let _ = admin.delete("/api/deployments/1").expect(200);
    count(1);
    assert_eq!(simulated.engines.running().len(), 1, "it is left alone");
}

/// E-119 E-120 E-121 E-225
#[test]
fn a_node_keeps_what_its_machine_did() {
    let fleet = Fleet::start_with(&[("MUSTER_GPUS", "sim:1x80GiB")]);
    let admin = fleet.admin();
    let history = |query: &str| admin.get(&format!("/api/nodes/1/metrics/history{query}")).expect(200).body;
    let points = |query: &str| history(query)["points"].as_array().expect("a list").clone();
    // One is taken at once, and the next after ten seconds if nobody says otherwise.
    let _ = admin.put("/api/settings", &json!({"nodes_sync_interval_seconds": 1})).expect(200);
    wait_for(PATIENCE, "some samples", || (points("").len() >= 4).then_some(()));
    let _ = admin.put("/api/settings", &json!({"nodes_sync_interval_seconds": 300})).expect(200);
    let body = history("");
    let all = points("?minutes=60&step=1");
    assert_eq!((&body["node_id"], &body["step"], &body["points"]), (&json!(1), &json!(1), &json!(all)));
    let every_second: Vec<_> = all.iter().step_by(2).cloned().collect();
    assert_eq!(points("?step=2"), every_second);
    assert_eq!(points("?minutes=99999&step=-3"), all, "what is out of range is the nearest that is in range");
    let times: Vec<_> = all.iter().map(|point| point["recorded_at"].as_str().expect("a time")).collect();
    assert!(times.is_sorted(), "{times:?}");
    let last = all.last().expect("some");
    let [gpu] = last["gpus"].as_array().expect("a list").as_slice() else { panic!("{last}") };
    assert_eq!((&gpu["memory_used_mb"], &gpu["memory_total_mb"]), (&json!(0), &json!(81_920)), "{gpu}");
    for field in ["cpu_percent", "memory_percent"] {
        assert!(last[field].as_f64().is_some_and(|percent| (0.0..=100.0).contains(&percent)), "{last}");
    }
    admin.get("/api/nodes/9/metrics/history").is_error(404, "NOT_FOUND");
    admin.get("/api/nodes/1/metrics/history?minutes=soon").names(&["minutes"]);
    admin.get("/api/nodes/1/metrics/history?step=x").names(&["step"]);
}

/// E-122
#[test]
fn a_port_is_free_if_nobody_listens_and_no_deployment_has_it() {
    let simulated = Simulated::start();
    let admin = simulated.fleet.admin();
    let check = |port: u16| admin.get(&format!("/api/nodes/1/ports/check?port={port}")).expect(200).body;
    let address = free_address();
    let port: u16 = address.rsplit_once(':').and_then(|(_, port)| port.parse().ok()).expect("a port");
    assert_eq!(check(port), json!({"available": true, "reason": null}));
    let listener = TcpListener::bind(&address).expect("it is free");
    assert_eq!(check(port)["available"], json!(false));
    drop(listener);
    assert_eq!(check(port)["available"], json!(true));

    let mut body = simulator(1, "x", &[0]);
    body["port"] = json!(port);
    let _ = admin.post("/api/deployments/start", &body).expect(200);
    let held = check(port);
    assert_eq!(held["available"], json!(false));
    assert!(held["reason"].as_str().is_some_and(|text| text.contains("deployment 1")), "{held}");
    let _ = admin.post("/api/deployments/stop/1", &json!({})).expect(200);
    until(&admin, 1, "stopped");
    assert_eq!(check(port)["available"], json!(true));
    let own = simulated.fleet.address().rsplit_once(':').and_then(|(_, port)| port.parse().ok()).expect("a port");
    assert_eq!(check(own)["available"], json!(false), "the API listens there");
    for query in ["", "?port=", "?port=0", "?port=65536", "?port=http", "?port=-1"] {
        admin.get(&format!("/api/nodes/1/ports/check{query}")).names(&["port"]);
    }
    admin.get("/api/nodes/9/ports/check?port=8001").is_error(404, "NOT_FOUND");
}
