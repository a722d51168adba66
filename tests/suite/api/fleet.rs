//! The nodes, the fleet as a node sees it, its health and its figures.

use muster_tests::api::Api;
use muster_tests::fleet::Fleet;
use serde_json::{Value, json};

use super::model;

/// E-110 E-147 E-148 E-149 E-150 E-151
#[test]
fn the_nodes_are_listed_with_where_they_are_reached() {
    let fleet = Fleet::start();
    let admin = fleet.admin();
    let nodes = admin.get("/api/nodes").expect(200).body;
    assert_eq!(admin.get("/api/nodes/").expect(200).body[0]["hostname"], nodes[0]["hostname"]);
    let [node] = nodes.as_array().expect("an array").as_slice() else { panic!("not one node: {nodes}") };
    let address = format!("{}:{}", node["ip_address"].as_str().expect("an address"), node["port"]);
    assert_eq!(address, fleet.address());
    for (field, expected) in [
        ("id", json!(1)),
        ("hostname", json!("node-1")),
        ("name", json!("node-1")),
        ("ip_address", json!("127.0.0.1")),
        ("status", json!("online")),
        ("role", json!("leader")),
        ("version", json!(env!("CARGO_PKG_VERSION"))),
    ] {
        assert_eq!(node[field], expected, "{field}");
    }
    let health = Api::new(&format!("http://{address}")).get("/health").expect(200);
    assert_eq!(health.body, json!({"status": "ok"}));
    let one = admin.get("/api/nodes/1").expect(200);
    assert_eq!(one.header("etag"), format!("\"{}\"", node["modIndex"]));
    for field in ["id", "hostname", "port", "status", "role", "created_at", "createdIndex", "modIndex"] {
        assert_eq!(one.body[field], node[field], "{field}");
    }
    admin.get("/api/nodes/2").is_error(404, "NOT_FOUND");
    admin.get("/api/nodes/x").names(&["id"]);
}

/// What a node says of itself changes with it: here, its port.
#[test]
fn the_fleet_knows_where_a_node_is_after_it_has_moved() {
    let mut fleet = Fleet::start();
    for _ in 0..2 {
        let _ = fleet.stop();
        fleet.restart();
        let admin = fleet.admin();
        let port = || admin.get("/api/nodes/1").expect(200).body["port"].to_string();
        muster_tests::process::wait_for(muster_tests::fleet::PATIENCE, "the new port to be known", || {
            fleet.address().ends_with(&format!(":{}", port())).then_some(())
        });
    }
}

/// E-010
#[test]
fn health_and_readiness_need_no_key() {
    let fleet = Fleet::start();
    let anybody = fleet.anybody();
    for path in ["/health", "/api/health"] {
        assert_eq!(anybody.get(path).expect(200).text, "{\"status\":\"ok\"}", "{path}");
    }
    let ready = anybody.get("/ready").expect(200).body;
    assert_eq!(ready["status"], "ready");
    assert!(ready["appliedIndex"].as_u64() > Some(0), "{ready}");
    // A key that is wrong changes nothing where none is needed.
    let _ = anybody.with_key("wrong").get("/health").expect(200);
}

fn cluster(api: &Api) -> Value {
    api.get("/api/cluster").expect(200).body
}

#[test]
fn the_fleet_of_one_leads_itself() {
    let mut fleet = Fleet::start();
    let admin = fleet.admin();
    let (me, before) = (json!({"id": 1, "name": "node-1"}), cluster(&admin));
    assert_eq!((&before["node"], &before["leader"], &before["voters"]), (&me, &me, &json!([me])));
    assert_eq!((&before["role"], &before["standbys"], &before["joint"]), (&json!("leader"), &json!([]), &json!(false)));
    assert_eq!(before["versions"]["version"], env!("CARGO_PKG_VERSION"));
    assert_eq!(before["stateHash"].as_str().map(str::len), Some(64));

    let _ = admin.post("/api/models", &model("a")).expect(201);
    let after = cluster(&admin);
    assert!(after["appliedIndex"].as_u64() > before["appliedIndex"].as_u64());
    assert!(after["clocks"]["logTime"].as_str() > before["clocks"]["logTime"].as_str());
    assert_ne!(after["stateHash"], before["stateHash"]);

    fleet.kill();
    fleet.restart();
    let restarted = cluster(&fleet.admin());
    assert_eq!(restarted["fleetId"], before["fleetId"]);
    assert!(restarted["term"].as_u64() >= before["term"].as_u64());
    assert!(restarted["office"].as_u64() > before["office"].as_u64());
}

#[test]
fn a_read_says_how_new_it_is() {
    let fleet = Fleet::start();
    let admin = fleet.admin();
    let index = |answer: &muster_tests::api::Answer| answer.header("x-muster-applied-index").parse::<u64>();
    for path in [
        "/api/models",
        "/api/nodes",
        "/api/settings",
        "/api/cluster",
        "/api/audit",
        "/api/credentials",
        "/api/api-keys",
        "/api/configs",
    ] {
        let created = admin.post("/api/models", &model(path)).expect(201).body["createdIndex"].as_u64();
        for consistency in ["", "?consistency=linearizable", "?consistency=local"] {
            let answer = admin.get(&format!("{path}{consistency}")).expect(200);
            assert!(index(&answer).ok() >= created, "{answer}");
            let age = answer.header("x-muster-state-age-ms").parse::<u64>().expect("an age");
            assert!(consistency.ends_with("local") || age == 0, "{answer}");
        }
        admin.get(&format!("{path}?consistency=bogus")).names(&["consistency"]);
    }
}

/// The value of a metric.
fn metric(text: &str, name: &str) -> u64 {
    let line = text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' '));
    let line = line.unwrap_or_else(|| panic!("no {name} in {text}"));
    line.parse().expect("a number")
}

#[test]
fn the_metrics_count_requests_and_show_the_state() {
    let fleet = Fleet::start();
    let admin = fleet.admin();
    let _ = admin.post("/api/models", &model("a")).expect(201);
    for _ in 0..3 {
        let _ = admin.get("/api/models/a").expect(200);
    }
    for nobody in ["/api/models/CANARY-1", "/api/models/CANARY-2"] {
        admin.get(nobody).is_error(404, "NOT_FOUND");
    }
    let cluster = cluster(&admin);
    let metrics = admin.get("/metrics").expect(200);
    assert!(metrics.header("content-type").starts_with("application/openmetrics-text"));
    let text = &metrics.text;
    assert!(text.ends_with("# EOF\n"));
    let requests = |method, status| {
        let labels = format!("{{method=\"{method}\",route=\"/api/models/{{ref}}\",status=\"{status}\"}}");
        metric(text, &format!("muster_http_requests_total{labels}"))
    };
    assert_eq!((requests("GET", 200), requests("GET", 404)), (3, 2));
    assert!(!text.contains("CANARY"), "what callers write is no label");
    let hash =
        cluster["stateHash"].as_str().and_then(|hash| u64::from_str_radix(&hash[..16], 16).ok()).expect("a hash");
    assert_eq!(metric(text, "muster_state_hash"), hash >> 11);
    assert_eq!(json!(metric(text, "muster_raft_applied_index")), cluster["appliedIndex"]);
    assert_eq!((metric(text, "muster_raft_is_leader"), metric(text, "muster_raft_running")), (1, 1));
}

/// E-001 E-003
#[test]
fn the_description_names_every_route_that_there_is() {
    let fleet = Fleet::start();
    let admin = fleet.admin();
    let description = admin.get("/openapi.json").expect(200).body;
    let paths = description["paths"].as_object().expect("paths");
    for path in ["/api/models", "/api/models/{ref}", "/api/nodes", "/api/settings", "/health", "/metrics"] {
        assert!(paths.contains_key(path), "{path}");
    }
    // Nothing that is described is unknown. A path that is there answers anything but "no such path".
    for (path, methods) in paths {
        let real = path.replace("{ref}", "x").replace("{realm}", "x").replace("{id}", "9");
        for method in methods.as_object().expect("methods").keys().filter(|method| *method != "parameters") {
            let answer = muster_tests::api::send(admin.request(&method.to_uppercase(), &real));
            assert!(![405, 500].contains(&answer.status), "{method} {path}: {answer}");
            assert!(!answer.text.contains("no such path"), "{method} {path}: {answer}");
        }
    }
    let page = admin.get("/docs").expect(200).text;
    assert!(page.contains("swagger"), "{page}");
    for page in ["/docs", "/redoc", "/api/docs"] {
        let html = admin.get(page).expect(200).text;
        for asset in html.split('"').filter(|text| text.ends_with(".js") || text.ends_with(".css")) {
            let base = page.rsplit_once('/').map_or("", |(base, _)| base);
            let _ = admin.get(&format!("{base}/{}", asset.trim_start_matches("./"))).expect(200);
        }
    }
}
