//! `/ws`: who may listen, what is told and when, going on elsewhere, and how a socket ends.

#[path = "events/listener.rs"]
mod listener;

use std::collections::BTreeSet;
use std::process::Command;
use std::time::Duration;

use listener::Listener;
use muster_tests::api::{Api, send};
use muster_tests::fleet::{Fleet, Home, Node, PATIENCE};
use muster_tests::mesh::{Machine, Mesh, free_address};
use muster_tests::process::wait_for;
use serde_json::{Value, json};

/// A preset token, and obviously one of a test.
const ADMIN: &str = "token-of-the-tests-administrator";

/// Gossip takes a dead node for dead in 10 to 15 seconds; far more is a defect.
const HEARD: Duration = Duration::from_secs(40);

/// What is written on one node is told on every other within this.
const TOLD: Duration = Duration::from_secs(1);

fn deployment(name: &str) -> Value {
    json!({"model_name": name, "gpu_memory_fraction": 0.5})
}

fn deploy(admin: &Api, name: &str) -> u64 {
    let made = admin.post("/api/deployments", &deployment(name)).expect(201);
    made.body["id"].as_u64().expect("a number")
}

fn seq(event: &Value) -> u64 {
    event["seq"].as_u64().unwrap_or_else(|| panic!("no seq: {event}"))
}

/// E-272 E-273 E-274 E-276 E-277
#[test]
fn what_is_changed_through_one_node_is_told_on_every_other() {
    let fleet = Fleet::start_nodes(3, &[]);
    let admin = fleet.admin();
    let mut listeners: Vec<_> =
        fleet.nodes().iter().map(|node| Listener::open(&node.api, &fleet.admin_token, None)).collect();
    let mut last = listeners.iter().map(Listener::begins_after).max().expect("three");
    // Each listener is told the same, in the same order.
    let mut told = |what: &str| {
        let events: Vec<_> = listeners
            .iter_mut()
            .map(|listener| listener.until(TOLD, |event| event["seq"].is_u64() && event["type"] == what))
            .collect();
        assert!(events.iter().all(|event| event == &events[0]), "{events:?}");
        assert!(seq(&events[0]) > last, "{last}: {events:?}");
        last = seq(&events[0]);
        events[0].clone()
    };
    let id = deploy(&admin, "org/m");
    assert_eq!(told("deployments_changed")["ids"], json!([id]));
    let _ = admin.put("/api/settings", &json!({"expiry_warning_minutes": 7})).expect(200);
    assert_eq!(told("settings_changed")["ids"], Value::Null);
    let made = admin.post("/api/api-keys", &json!({"label": "heard of", "deployment_ids": [id]})).expect(201).body;
    let (number, key) = (made["id"].to_string(), made["key"].as_str().expect("a key").to_owned());
    assert!(!told("api_keys_changed").to_string().contains(&key[..8]));
    let _ = send(admin.request("PATCH", &format!("/api/api-keys/{number}")).json(&json!({"label": "other"})));
    let _ = told("api_keys_changed");
    // The key loses its only deployment with it.
    let _ = admin.delete(&format!("/api/deployments/{id}")).expect(200);
    let _ = told("deployments_changed");
    let _ = admin.delete(&format!("/api/api-keys/{number}")).expect(204);
    let _ = told("api_keys_changed");
    let _ = admin.post("/api/nodes/2/prefer-voter", &json!({})).expect(200);
    let _ = told("nodes_changed");
    // What nobody keeps a picture of is not told.
    let _ = admin.post("/api/configs", &json!({"name": "c", "payload": {}})).expect(201);
    let _ = admin.put("/api/settings", &json!({"expiry_warning_minutes": 8})).expect(200);
    let _ = told("settings_changed");
}

/// E-278
#[test]
fn whoever_goes_on_at_another_node_misses_nothing_and_hears_nothing_twice() {
    let fleet = Fleet::start_nodes(3, &[]);
    let admin = fleet.admin();
    let mut told = Vec::new();
    let mut from =
        admin.get("/api/deployments").expect(200).header("x-muster-applied-index").parse().expect("a number");
    let made: Vec<u64> = (0..60)
        .map(|number| {
            let id = deploy(&admin, &format!("org/m{number}"));
            // It hears a little on each node, and is away in between.
            if number % 4 == 3 {
                let node = &fleet.nodes()[number / 4 % 3].api;
                let mut listener = Listener::open(node, &fleet.admin_token, Some(from));
                let event = listener.until(TOLD, |event| event["type"] == "deployments_changed");
                assert!(seq(&event) > from, "{event}");
                from = seq(&event);
                told.push(event);
            }
            id
        })
        .collect();
    let mut listener = Listener::open(&fleet.nodes()[1].api, &fleet.admin_token, Some(from));
    let last = deploy(&admin, "org/last");
    while told.last().is_none_or(|event| !event["ids"].as_array().is_some_and(|ids| ids.contains(&json!(last)))) {
        told.push(listener.until(TOLD, |event| event["type"] == "deployments_changed"));
    }
    let ids: Vec<u64> = told
        .iter()
        .flat_map(|event| event["ids"].as_array().expect("ids").iter().map(|id| id.as_u64().expect("a number")))
        .collect();
    let expected: Vec<u64> = made.into_iter().chain([last]).collect();
    assert_eq!(ids, expected, "each once, in order");
    assert!(told.is_sorted_by_key(seq), "{told:?}");
}

#[test]
fn only_who_may_read_may_listen_and_no_page_from_elsewhere() {
    let fleet = Fleet::start();
    let node = &fleet.nodes()[0].api;
    let host = node.trim_start_matches("http://");
    let (_, viewer) = fleet.credential("viewer");
    let bearer = |key: &str| ("authorization", format!("Bearer {key}"));
    let basic = ("authorization", format!("Basic {}", listener::base64(&format!("me:{viewer}"))));
    let origin = |origin: &str| ("origin", origin.to_owned());
    for headers in [
        vec![bearer(&viewer)],
        vec![("x-api-key", viewer.clone())],
        vec![basic.clone()],
        vec![bearer(&viewer), origin(&format!("http://{host}"))],
    ] {
        assert!(Listener::ask(node, "/ws", &headers).is_ok(), "{headers:?}");
    }
    for (headers, status) in [
        (vec![], 401),
        (vec![bearer("sk-of-nobody-at-all-in-this-fleet")], 401),
        (vec![bearer(&fleet.gateway_key)], 403),
        (vec![bearer(&viewer), origin("http://evil.example")], 403),
        (vec![basic, origin("http://evil.example")], 403),
        (vec![bearer(&viewer), origin("null")], 403),
    ] {
        assert_eq!(Listener::ask(node, "/ws", &headers).err(), Some(status), "{headers:?}");
    }
    assert_eq!(Listener::ask(node, "/ws?from=x", &[bearer(&viewer)]).err(), Some(422));
    let api = fleet.caller("viewer");
    api.get("/ws").is_error(400, "BAD_REQUEST");
    api.post("/ws", &json!({})).is_error(405, "METHOD_NOT_ALLOWED");
    fleet.anybody().get("/ws").is_error(401, "UNAUTHORIZED");
    let mut local = Listener::on_socket(&fleet.socket());
    let id = deploy(&fleet.admin(), "org/m");
    assert_eq!(local.until(TOLD, |event| event["type"] == "deployments_changed")["ids"], json!([id]));
}

#[test]
fn without_keys_everybody_may_listen_but_no_page_from_elsewhere() {
    let fleet = Fleet::start_with(&[("MUSTER_AUTH_MODE", "none")]);
    let node = &fleet.nodes()[0].api;
    assert!(Listener::ask(node, "/ws", &[]).is_ok());
    let origin = ("origin", "http://evil.example".to_owned());
    assert_eq!(Listener::ask(node, "/ws", &[origin]).err(), Some(403));
    assert_eq!(Listener::ask(node, "/ws", &[("host", "evil.example".to_owned())]).err(), Some(403));
}

#[test]
fn a_socket_ends_with_the_credential_that_has_opened_it() {
    let fleet = Fleet::start();
    let (id, viewer) = fleet.credential("viewer");
    let mut listener = Listener::open(&fleet.nodes()[0].api, &viewer, None);
    let mut other = Listener::open(&fleet.nodes()[0].api, &fleet.admin_token, None);
    let _ = fleet.admin().delete(&format!("/api/credentials/{id}"));
    assert_eq!(listener.closed(), Some(1008));
    deploy(&fleet.admin(), "org/m");
    let _ = other.until(TOLD, |event| event["type"] == "deployments_changed");
}

#[test]
fn what_a_client_says_is_ignored_unless_it_is_too_long() {
    let fleet = Fleet::start();
    let mut listener = Listener::open(&fleet.nodes()[0].api, &fleet.admin_token, None);
    (0..200).for_each(|_| listener.say("{\"type\": \"settings_changed\"}"));
    let id = deploy(&fleet.admin(), "org/m");
    assert_eq!(listener.until(TOLD, |_| true)["ids"], json!([id]));
    listener.say(&"x".repeat(1024 * 1024));
    assert_eq!(listener.closed(), Some(1009));
}

#[test]
fn a_client_that_reads_nothing_costs_nobody_anything() {
    let fleet = Fleet::start();
    let admin = fleet.admin();
    let mut slow = Listener::open(&fleet.nodes()[0].api, &fleet.admin_token, None);
    let begins_after = slow.begins_after();
    let ids: BTreeSet<_> = (0..100).map(|number| deploy(&admin, &format!("org/m{number}"))).collect();
    let mut quick = Listener::open(&fleet.nodes()[0].api, &fleet.admin_token, None);
    let last = deploy(&admin, "org/last");
    assert_eq!(quick.until(TOLD, |_| true)["ids"], json!([last]));
    // It was told at its own pace, and nothing was lost.
    let (mut seen, mut at) = (BTreeSet::new(), begins_after);
    while !seen.contains(&last) {
        let event = slow.until(TOLD, |_| true);
        assert!(seq(&event) > at, "{event}");
        at = seq(&event);
        seen.extend(event["ids"].as_array().expect("ids").iter().filter_map(Value::as_u64));
    }
    seen.remove(&last);
    assert_eq!(seen, ids);
}

#[test]
fn a_node_has_a_bounded_number_of_sockets() {
    let fleet = Fleet::start();
    let node = &fleet.nodes()[0].api;
    let mut open = Vec::new();
    let refused = loop {
        match Listener::ask(node, "/ws", &[("authorization", format!("Bearer {}", fleet.admin_token))]) {
            Ok(listener) => open.push(listener),
            Err(status) => break status,
        }
        assert!(open.len() <= 1000);
    };
    assert_eq!((open.len(), refused), (1000, 503));
    // Whoever calls otherwise does not notice.
    let id = deploy(&fleet.admin(), "org/m");
    assert_eq!(open[999].until(PATIENCE, |_| true)["ids"], json!([id]));
    open.truncate(999);
    wait_for(PATIENCE, "a place", || {
        Listener::ask(node, "/ws", &[("authorization", format!("Bearer {}", fleet.admin_token))]).ok()
    });
}

/// E-275
#[test]
fn a_node_that_dies_and_one_that_comes_are_told_on_the_others() {
    let mut mesh = Mesh::of_three();
    let status = |mesh: &Mesh, index: usize, of: usize| {
        let nodes = mesh.api(index).get("/api/nodes?consistency=local").expect(200).body;
        nodes[of]["status"].as_str().unwrap_or_default().to_owned()
    };
    let others = [0, 2];
    for index in others {
        wait_for(HEARD, "all to be heard", || (0..3).all(|of| status(&mesh, index, of) == "online").then_some(()));
    }
    let mut listeners = others.map(|index| Listener::open(mesh.api(index).endpoint(), ADMIN, None));
    let is_seen = |event: &Value| event["type"] == "nodes_changed" && event["seq"].is_null();
    mesh.machines[1].kill();
    for (index, listener) in others.into_iter().zip(&mut listeners) {
        // It is suspected first.
        let _ = listener.until(HEARD, |event| is_seen(event) && status(&mesh, index, 1) == "critical");
    }
    mesh.restart(1);
    mesh.ready();
    for (index, listener) in others.into_iter().zip(&mut listeners) {
        let _ = listener.until(HEARD, |event| is_seen(event) && status(&mesh, index, 1) != "critical");
    }
    // One that appears is in the log.
    mesh.add(Machine::on_loopback(), 0);
    for listener in &mut listeners {
        let _ = listener.until(HEARD, |event| event["type"] == "nodes_changed" && event["seq"].is_u64());
    }
}

fn serve(home: &Home, addresses: &[String; 2], more: &[&str]) -> Command {
    let [api, mesh] = addresses;
    let mut command = home.command(["serve", "--name", "node-1", "--api", api, "--mesh", mesh]);
    command.args(more).env("MUSTER_ADMIN_TOKEN", ADMIN);
    command
}

#[test]
fn a_successor_goes_on_where_the_one_before_has_stopped() {
    let (home, addresses) = (Home::new(), [free_address(), free_address()]);
    let endpoint = format!("http://{}", addresses[0]);
    let mut node = Node::start_command(&home, &mut serve(&home, &addresses, &["--bootstrap"]));
    node.ready();
    let admin = Api::new(&endpoint).with_key(ADMIN);
    let mut listener = Listener::open(&endpoint, ADMIN, None);
    let first = deploy(&admin, "org/m");
    let event = listener.until(TOLD, |event| event["type"] == "deployments_changed");
    assert_eq!(event["ids"], json!([first]));
    let successor = home.start(&mut serve(&home, &addresses, &["--take-over"]));
    assert_eq!(listener.closed(), Some(1012), "service restart");
    drop(listener);
    // The one before ends although a client has had a socket there.
    assert!(node.process().wait(PATIENCE).success());
    let mut listener = wait_for(PATIENCE, "the successor to answer", || {
        let ask = format!("/ws?from={}", seq(&event));
        Listener::ask(&endpoint, &ask, &[("authorization", format!("Bearer {ADMIN}"))]).ok()
    });
    let second = deploy(&admin, "org/n");
    // It knows only its own changes, and says so if there were others.
    let told =
        listener.until(PATIENCE, |event| matches!(event["type"].as_str(), Some("resync" | "deployments_changed")));
    assert!(told["type"] == "resync" || told["ids"] == json!([second]), "{told}");
    let last = deploy(&admin, "org/o");
    let is_last = |event: &Value| event["ids"].as_array().is_some_and(|ids| ids.contains(&json!(last)));
    let event = listener.until(PATIENCE, is_last);
    assert!(seq(&event) > seq(&told), "{event} after {told}");
    let mut successor = successor;
    successor.terminate();
    assert_eq!(listener.closed(), Some(1001), "going away");
    assert!(successor.wait(PATIENCE).success());
}
