//! What an operator does when machines are lost: seeing it, taking one out, going on with what is left, beginning again from a
//! file. Real processes and the command line.

use std::process::Command;
use std::time::{Duration, Instant};

use muster_tests::api::Api;
use muster_tests::fleet::{Home, Node, Outcome, PATIENCE, outcome};
use muster_tests::mesh::{Mesh, free_address};
use muster_tests::process::{Signal, wait_for};
use muster_tests::upstream::Upstream;
use serde_json::{Value, json};

/// A preset token, and obviously one of a test.
const ADMIN: &str = "token-of-the-tests-administrator";

/// Gossip takes a dead node for dead in 10 to 15 seconds; far more is a defect.
const HEARD: Duration = Duration::from_secs(40);

fn model(name: &str) -> Value {
    json!({"name": name, "provider": "openai-compatible", "modelId": "x", "baseUrl": "http://10.0.0.1:9/v1",
        "apiKey": "key-of-a-test"})
}

fn names(api: &Api, path: &str) -> Vec<String> {
    let body = api.get(path).expect(200).body;
    let mut names: Vec<_> =
        body["models"].as_array().expect("a list").iter().map(|model| model["name"].to_string()).collect();
    names.sort();
    names
}

fn statuses(api: &Api) -> Vec<String> {
    let nodes = api.get("/api/nodes?consistency=local").expect(200).body;
    nodes.as_array().expect("a list").iter().map(|node| node["status"].as_str().unwrap_or("").to_owned()).collect()
}

/// A node of its own, not one of [`Mesh`]: it begins from a file or from what is left.
fn serve(home: &Home, name: &str, arguments: &[&str]) -> Node {
    let (api, mesh) = (free_address(), free_address());
    let mut command = home.command(["serve", "--name", name, "--api", &api, "--mesh", &mesh]);
    let mut node = Node::start_command(home, command.args(arguments));
    node.ready();
    node
}

#[test]
fn every_node_hears_that_one_has_died_and_that_it_is_back() {
    let mut mesh = Mesh::of_three();
    let all = |mesh: &Mesh, index: usize, expected: [&str; 3]| {
        wait_for(HEARD, "the nodes to be heard so", || (statuses(&mesh.api(index)) == expected).then_some(()));
    };
    (0..3).for_each(|index| all(&mesh, index, ["online"; 3]));
    mesh.machines[1].kill();
    let begun = Instant::now();
    for index in [0, 2] {
        all(&mesh, index, ["online", "critical", "online"]);
    }
    println!("a killed node was missed by all after {:?}", begun.elapsed());
    mesh.restart(1);
    mesh.ready();
    (0..3).for_each(|index| all(&mesh, index, ["online"; 3]));
    // One that is told to stop says so itself.
    mesh.machines[2].signal(Signal::TERM);
    let begun = Instant::now();
    all(&mesh, 0, ["online", "online", "critical"]);
    assert!(begun.elapsed() < Duration::from_secs(8), "it was waited for: {:?}", begun.elapsed());
}

#[test]
fn an_operator_passes_the_lead_on_and_takes_a_node_out() {
    let mesh = Mesh::of_three();
    let run = |index: usize, arguments: &[&str]| mesh.machines[index].home.muster(arguments);
    let leader = mesh.leader();
    // Asked of one that does not lead.
    let other = (leader + 1) % 3;
    let wish = format!("node-{}", other + 1);
    let passed = run(other, &["operator", "raft", "transfer-leader", &wish, "-o", "json"]).json();
    assert_eq!(passed["leader"]["name"], wish.as_str());
    assert_eq!(mesh.leader(), other);
    let again = run(leader, &["operator", "raft", "transfer-leader", "-o", "json"]).json();
    assert_ne!(again["leader"]["name"], wish.as_str(), "the one that led gave it up");
    let missing = run(leader, &["operator", "raft", "transfer-leader", "node-9"]);
    let _ = missing.ended_with(3);

    let leader = mesh.leader();
    let refused = run(leader, &["operator", "raft", "remove-peer", &format!("node-{}", leader + 1)]);
    assert!(refused.ended_with(1).stderr.contains("leads the fleet"), "{refused:?}");
    let gone = (leader + 1) % 3;
    let stays = (leader + 2) % 3;
    // Its gateway has connections to that of a node that stays, and goes on using them while it may.
    let upstream = Upstream::new();
    let theirs = json!({"name": "theirs", "provider": "openai-compatible", "modelId": "x",
        "baseUrl": upstream.url("/v1"), "nodeId": stays + 1});
    let _ = mesh.api(gone).post("/api/models", &theirs).expect(201);
    let key = json!({"kind": "gateway", "label": "caller"});
    let key = mesh.api(gone).post("/api/credentials", &key).expect(201).body["key"].as_str().map(ToOwned::to_owned);
    let caller = mesh.api(gone).with_key(&key.expect("a key"));
    let call = || caller.post("/v1/chat/completions", &json!({"model": "theirs", "messages": []})).status;
    (0..16).for_each(|_| assert_eq!(call(), 200));
    // Until the new leader has taken office, the one before is still the leader in the state.
    wait_for(PATIENCE, "the node to be removed", || {
        (run(stays, &["operator", "raft", "remove-peer", &(gone + 1).to_string()]).code == Some(0)).then_some(())
    });
    // The nodes learn of it a moment after it is answered.
    wait_for(PATIENCE, "the first refusal", || (call() != 200).then_some(()));
    (0..16).for_each(|_| assert_ne!(call(), 200, "an evicted node still has models called"));
    let voters = || mesh.api(stays).get("/api/cluster").expect(200).body["voters"].as_array().map(Vec::len);
    wait_for(PATIENCE, "two nodes with one voter", || (voters() == Some(1)).then_some(()));
    let listed = run(stays, &["operator", "raft", "list-peers", "-o", "json"]).json();
    assert_eq!(listed.as_array().map(Vec::len), Some(2), "{listed}");
    let _ = mesh.api(stays).post("/api/models", &model("written by the rest")).expect(201);
    // Nobody speaks to it any more: it neither reads what is new nor writes.
    wait_for(PATIENCE, "the evicted node to be alone", || {
        (mesh.api(gone).get("/api/models").status == 503).then_some(())
    });
    assert_eq!(names(&mesh.api(gone), "/api/models?consistency=local"), ["\"theirs\""]);
}

fn founded(home: &Home) -> Value {
    outcome(home.command(["init", "--name", "node-1", "-o", "json"]).env("MUSTER_ADMIN_TOKEN", ADMIN)).json()
}

fn restore(home: &Home, file: &str, key: &str) -> Outcome {
    let mut command: Command = home.command(["snapshot", "restore", file, "--name", "again", "-o", "json"]);
    outcome(command.env("MUSTER_RECOVERY_KEY", key))
}

#[test]
fn a_fleet_begins_again_from_a_file() {
    let (old, new) = (Home::new(), Home::new());
    let keys = founded(&old);
    let recovery = keys["recoveryKey"].as_str().expect("a key");
    let mut node = serve(&old, "node-1", &[]);
    let _ = node.caller(ADMIN).post("/api/models", &model("saved")).expect(201);
    let file = old.path().join("fleet.snap");
    let file = file.to_str().expect("text");
    let saved = old.muster(&["snapshot", "save", file, "-o", "json"]).json();
    assert_eq!((&saved["models"], &saved["nodes"], &saved["generation"]), (&json!(1), &json!(1), &json!(1)));
    assert_eq!(old.muster(&["snapshot", "inspect", file, "-o", "json"]).json(), saved);
    assert!(old.muster(&["snapshot", "save", file]).ended_with(1).stderr.contains("exists"), "nothing is written over");
    let content = std::fs::read(file).expect("readable");
    assert!(!content.windows(13).any(|part| part == b"key-of-a-test"), "secrets are sealed");
    let _ = node.caller(ADMIN).post("/api/models", &model("later")).expect(201);
    // Only administrators may take it.
    let body = json!({"kind": "console", "label": "reader", "role": "viewer"});
    let viewer = node.caller(ADMIN).post("/api/credentials", &body).expect(201).body["key"].clone();
    assert_eq!(node.caller(viewer.as_str().expect("a key")).get("/api/cluster/snapshot").status, 403);

    let wrong = restore(&new, file, "muster-recovery-nonsense");
    let _ = wrong.ended_with(1);
    assert!(!new.data().join("node.json").exists(), "nothing was begun");
    let begun = restore(&new, file, recovery).json();
    assert_eq!((&begun["generation"], &begun["node"]), (&json!(2), &json!(2)));
    let occupied = restore(&new, file, recovery);
    assert!(occupied.ended_with(1).stderr.contains("belongs to the fleet"), "{occupied:?}");
    let restored = serve(&new, "again", &[]);
    assert_eq!(names(&restored.caller(ADMIN), "/api/models"), ["\"saved\""]);
    let gateway = restored.caller(keys["gatewayKey"].as_str().expect("a key"));
    assert_eq!(gateway.get("/v1/models").expect(200).body["data"][0]["id"], "saved");
    node.process().kill();
}

#[test]
fn the_machine_that_is_left_goes_on_and_others_join_it() {
    let mut mesh = Mesh::of_three();
    for index in 0..3 {
        let _ = mesh.api(index).post("/api/models", &model(&format!("written through {index}"))).expect(201);
    }
    let left = (mesh.leader() + 1) % 3;
    (0..3).for_each(|index| mesh.machines[index].kill());
    let home = &mesh.machines[left].home;
    let careless = home.muster(&["operator", "recover"]);
    assert!(careless.ended_with(2).stderr.contains("--the-others-are-lost"), "{careless:?}");
    let recovered =
        home.muster(&["operator", "recover", "--the-others-are-lost", "--name", "survivor", "-o", "json"]).json();
    assert_eq!((&recovered["generation"], &recovered["node"]), (&json!(2), &json!(4)));
    // Where the others know it.
    let mesh_address = mesh.machines[left].mesh.clone();
    let api = free_address();
    let mut command = home.command(["serve", "--name", "survivor", "--api", &api, "--mesh", &mesh_address]);
    let mut survivor = Node::start_command(home, &mut command);
    survivor.ready();
    let expected: Vec<_> = (0..3).map(|index| format!("\"written through {index}\"")).collect();
    assert_eq!(names(&survivor.caller(ADMIN), "/api/models"), expected, "everything that was acknowledged");

    // An old machine that comes back is of another generation: it changes nothing here, says what has become of the fleet,
    // and ends.
    let old = (left + 1) % 3;
    let before = std::fs::read(mesh.machines[old].home.data().join("node.json")).expect("readable");
    let (status, said) = mesh.start_in_vain(old);
    assert_eq!(status.code(), Some(1), "{said}");
    assert!(said.contains("the fleet has gone on without this node") && said.contains("join anew"), "{said}");
    assert!(said.contains("generation 2") && said.contains("generation 1"), "{said}");
    let after = std::fs::read(mesh.machines[old].home.data().join("node.json")).expect("readable");
    assert_eq!(after, before, "its data are left where they are");
    let nodes = survivor.caller(ADMIN).get("/api/nodes").expect(200).body;
    assert_eq!(nodes.as_array().map(Vec::len), Some(1), "{nodes}");

    let token = mesh.machines[left].home.muster(&["token", "create", "-o", "json"]).json();
    let joining = Home::new();
    let token = token["token"].as_str().expect("a token");
    let joined = serve(&joining, "new", &["--join", &mesh_address, "--join-token", token]);
    assert_eq!(names(&joined.caller(ADMIN), "/api/models"), expected);
    let written = joined.caller(ADMIN).post("/api/models", &model("after")).expect(201);
    assert_eq!(written.body["name"], "after");
}

/// Somebody runs the command for a lost fleet on one machine of a fleet that lives.
#[test]
fn a_node_that_says_that_the_fleet_has_gone_on_stops_nobody_while_a_quorum_lives() {
    let mut mesh = Mesh::of_three();
    let mistaken = (mesh.leader() + 1) % 3;
    mesh.machines[mistaken].kill();
    let home = &mesh.machines[mistaken].home;
    let _ = home.muster(&["operator", "recover", "--the-others-are-lost", "--name", "mistaken", "-o", "json"]).json();
    let (api, at) = (free_address(), mesh.machines[mistaken].mesh.clone());
    let mut command = home.command(["serve", "--name", "mistaken", "--api", &api, "--mesh", &at]);
    let mut alone = Node::start_command(home, &mut command);
    alone.ready();
    let others: Vec<_> = (0..3).filter(|index| *index != mistaken).collect();
    for index in &others {
        let home = &mesh.machines[*index].home;
        wait_for(PATIENCE, "it to be said", || home.log().contains("a quorum of this one lives").then_some(()));
    }
    // For longer than it takes to believe it.
    let begun = Instant::now();
    while begun.elapsed() < Duration::from_secs(26) {
        for index in &others {
            assert_eq!(mesh.api(*index).get("/api/models").status, 200);
        }
        std::thread::sleep(Duration::from_millis(200));
    }
    let _ = mesh.api(others[0]).post("/api/models", &model("goes on")).expect(201);
}
