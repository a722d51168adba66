//! How a node begins, waits, ends, and comes back.

use std::collections::BTreeMap;
use std::net::{TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use muster_tests::api::{Api, try_send};
use muster_tests::fleet::{Fleet, Home, Node, PATIENCE, outcome};
use muster_tests::groups::Need;
use muster_tests::process::{disk_library, wait_for};
use serde_json::{Value, json};

use super::{model, names};

/// Every file below a directory with its content.
fn content(directory: &Path) -> BTreeMap<PathBuf, Vec<u8>> {
    let mut found = BTreeMap::new();
    for entry in std::fs::read_dir(directory).expect("a directory") {
        let path = entry.expect("an entry").path();
        if path.is_dir() {
            found.extend(content(&path));
        } else if path.is_file() {
            found.insert(path.clone(), std::fs::read(&path).expect("a file"));
        }
    }
    found
}

#[test]
fn a_fleet_is_founded_once_and_its_secrets_are_printed_once() {
    let home = Home::new();
    let founded = home.muster(&["init", "--name", "node-1", "-o", "json"]);
    let secrets = founded.json();
    let text = |field: &str| secrets[field].as_str().expect("a text").to_owned();
    let (token, file) = (text("adminToken"), text("adminTokenFile"));
    assert_eq!(std::fs::read_to_string(&file).expect("the token's file").trim(), token);
    assert!(founded.stderr.contains("only now") && founded.stderr.contains(&file), "{founded:?}");
    for secret in [&token, &text("gatewayKey"), &text("recoveryKey")] {
        assert!(secret.len() > 40 && !founded.stderr.contains(secret.as_str()), "standard error may end up in a log");
    }

    let before = content(&home.data());
    for again in [&["init"][..], &["serve", "--bootstrap", "--api", "127.0.0.1:0"]] {
        let refused = home.muster(again);
        refused.ended_with(1);
        assert!(refused.stderr.contains(&text("fleetId")), "it says which fleet: {refused:?}");
        assert!(content(&home.data()) == before, "{again:?} changed something");
    }
    let mut node = Node::start(&home, &[]);
    node.ready();
    let _ = node.caller(&token).post("/api/models", &model("a")).expect(201);
    node.caller(&text("gatewayKey")).get("/api/models").is_error(403, "FORBIDDEN");
    home.muster(&["init"]).ended_with(1);
    let _ = node.caller(&token).post("/api/models", &model("b")).expect(201);
}

#[test]
fn a_fleet_can_be_founded_and_served_in_one_step() {
    let home = Home::new();
    let mut node = Node::start(&home, &["--bootstrap"]);
    node.ready();
    let token = std::fs::read_to_string(home.data().join("admin-token")).expect("the token's file");
    let _ = node.caller(token.trim()).get("/api/models").expect(200);
    let printed = std::fs::read_to_string(home.path().join("stdout")).expect("its standard output");
    assert!(printed.contains(token.trim()) && !home.log().contains(token.trim()));
}

#[test]
fn a_token_can_be_preset_and_must_be_long_enough() {
    let home = Home::new();
    let found = |token: &str| outcome(home.command(["init", "-o", "json"]).env("MUSTER_ADMIN_TOKEN", token));
    for short in ["", "x", "nineteen-characters"] {
        let refused = found(short);
        refused.ended_with(2);
        assert!(refused.stderr.contains("MUSTER_ADMIN_TOKEN"), "{refused:?}");
        assert!(short.len() < 5 || !refused.stderr.contains(short), "it is not repeated: {refused:?}");
        assert!(!home.data().exists(), "nothing was begun");
    }
    let token = "twenty-characters-ok";
    let secrets = found(token).json();
    assert_eq!((&secrets["adminToken"], &secrets["adminTokenFile"]), (&json!(token), &Value::Null));
    assert!(!home.data().join("admin-token").exists());
    let mut node = Node::start(&home, &[]);
    node.ready();
    let _ = node.caller(token).post("/api/models", &model("a")).expect(201);
    let files = content(&home.data());
    let holds = |content: &[u8]| String::from_utf8_lossy(content).contains(token);
    assert!(!files.values().any(|content| holds(content)), "the token is in no file");
    assert!(!home.log().contains(token));
}

#[test]
fn a_node_without_a_fleet_waits_and_serves_once_one_is_founded_beside_it() {
    let home = Home::new();
    let mut node = Node::start(&home, &[]);
    let anybody = node.anybody();
    wait_for(PATIENCE, "the node to say that it waits", || home.log().contains("this node waits").then_some(()));
    let _ = anybody.get("/health").expect(200);
    anybody.get("/api/models").is_error(401, "UNAUTHORIZED");
    let local = Api::on_socket(&home.data().join("muster.sock"));
    for answer in [anybody.get("/ready"), node.caller("sk-any").get("/api/models"), local.get("/api/models")] {
        answer.is_error(503, "UNAVAILABLE");
        assert!(answer.body["detail"].as_str().is_some_and(|text| text.contains("muster init")), "{answer}");
    }
    local.post("/api/models", &model("a")).is_error(503, "UNAVAILABLE");
    let asked = home.muster(&["models", "list"]);
    asked.ended_with(1);
    assert!(asked.stderr.contains("belongs to no fleet"), "{asked:?}");

    let secrets = home.muster(&["init", "--name", "node-1", "-o", "json"]).json();
    node.ready();
    let admin = node.caller(secrets["adminToken"].as_str().expect("a token"));
    let _ = admin.post("/api/models", &model("a")).expect(201);
    assert!(node.process().ended().is_none());
}

#[test]
fn a_node_that_is_told_to_stop_ends_well_and_takes_its_socket_along() {
    let mut fleet = Fleet::start();
    let _ = fleet.admin().post("/api/models", &model("a")).expect(201);
    // Whoever holds a connection open and asks for nothing does not keep it.
    let idle: Vec<_> = (0..3).map(|_| TcpStream::connect(fleet.address()).expect("a connection")).collect();
    let begun = Instant::now();
    let status = fleet.stop();
    assert!(status.success(), "{status}");
    assert!(begun.elapsed() < Duration::from_secs(8), "{:?}", begun.elapsed());
    assert!(!fleet.socket().exists());
    assert!(TcpStream::connect(fleet.address()).is_err());
    drop(idle);
    let log = fleet.home.log();
    assert!(!log.contains("ERROR") && !log.contains("panicked"), "{log}");
    fleet.restart();
    assert_eq!(names(&fleet.admin().get("/api/models").expect(200).body), ["a"]);

    // One that waits for a fleet ends as well.
    let home = Home::new();
    let mut node = Node::start(&home, &[]);
    node.process().terminate();
    assert!(node.process().wait(PATIENCE).success());
    assert!(!home.data().join("muster.sock").exists());
}

#[test]
fn a_data_directory_belongs_to_one_process() {
    let mut fleet = Fleet::start();
    let admin = fleet.admin();
    let data = fleet.node_data();
    let data = data.to_str().expect("a path");
    let intrude = |arguments: &[&str], says: &str| {
        let refused = fleet.home.muster(&[arguments, &["--data-dir", data]].concat());
        refused.ended_with(1);
        assert!(refused.stderr.contains(says), "{says} in {refused:?}");
    };
    let serve = ["serve", "--api", "127.0.0.1:0"];
    intrude(&serve, "another process");
    intrude(&["init"], "belongs to the fleet");
    intrude(&["operator", "check-storage"], "");
    let _ = admin.post("/api/models", &model("a")).expect(201);
    // Nor is the socket's file all that keeps them apart.
    std::fs::remove_file(fleet.socket()).expect("the socket's file");
    intrude(&serve, "");
    let _ = admin.post("/api/models", &model("b")).expect(201);
    assert!(fleet.process().ended().is_none());
    fleet.kill();
    fleet.restart();
    assert_eq!(names(&fleet.admin().get("/api/models").expect(200).body), ["b", "a"]);
}

#[test]
fn a_port_that_is_taken_is_named() {
    let taken = TcpListener::bind("127.0.0.1:0").expect("a port");
    let address = taken.local_addr().expect("an address").to_string();
    let home = Home::new();
    let refused = home.muster(&["serve", "--api", &address]);
    refused.ended_with(1);
    assert!(refused.stderr.contains(&address), "{refused:?}");
}

/// What several writers were told.
#[derive(Default)]
struct Told {
    next: AtomicUsize,
    /// By number, what was answered; nothing for a write whose answer never came.
    models: Mutex<BTreeMap<usize, Option<Value>>>,
    credentials: Mutex<BTreeMap<usize, Option<Value>>>,
}

fn write(api: &Api, number: usize) -> Result<(u16, Value), String> {
    let key = format!("write {number}");
    let (path, body) = if number.is_multiple_of(4) {
        ("/api/credentials", json!({"kind": "console", "label": format!("c{number}"), "role": "viewer"}))
    } else {
        ("/api/models", model(&format!("m{number}")))
    };
    let request = api.request("POST", path).header("idempotency-key", key).json(&body);
    try_send(request).map(|answer| (answer.status, answer.body)).map_err(|error| error.why)
}

impl Told {
    fn kept(&self, number: usize) -> &Mutex<BTreeMap<usize, Option<Value>>> {
        if number.is_multiple_of(4) { &self.credentials } else { &self.models }
    }

    /// Writes until there is no answer any more.
    fn write(&self, api: &Api) {
        loop {
            let number = self.next.fetch_add(1, Ordering::Relaxed);
            let answer = write(api, number);
            let answer = answer.ok().filter(|(status, _)| *status == 201).map(|(_, body)| body);
            let ended = answer.is_none();
            self.kept(number).lock().expect("no writer has failed").insert(number, answer);
            if ended {
                return;
            }
        }
    }

    fn acknowledged(&self) -> usize {
        let count = |told: &Mutex<BTreeMap<usize, Option<Value>>>| {
            told.lock().expect("no writer has failed").values().flatten().count()
        };
        count(&self.models) + count(&self.credentials)
    }
}

fn labels(api: &Api) -> Vec<String> {
    let list = api.get("/api/credentials").expect(200).body;
    let all = list["credentials"].as_array().expect("a list").iter();
    all.map(|credential| credential["label"].as_str().expect("a label").to_owned()).collect()
}

///
#[test]
fn what_was_acknowledged_survives_a_kill_and_what_was_not_is_there_once_or_not_at_all() {
    let mut fleet = Fleet::start();
    let told = Told::default();
    for round in 1..=3 {
        let admin = fleet.admin();
        let enough = told.acknowledged() + 40;
        std::thread::scope(|scope| {
            for _ in 0..4 {
                scope.spawn(|| told.write(&admin));
            }
            wait_for(PATIENCE, "some writes", || (told.acknowledged() >= enough).then_some(()));
            fleet.kill();
        });
        fleet.restart();
        let admin = fleet.admin();
        let mut models = told.models.lock().expect("no writer has failed");
        for (number, answer) in models.iter_mut() {
            match answer {
                Some(answer) => {
                    let found = admin.get(&format!("/api/models/m{number}")).expect(200);
                    assert_eq!(found.body["model"], answer["model"], "round {round}");
                }
                None => {
                    // Whether it was done or not, its repetition says that it is.
                    let (status, body) = write(&admin, *number).expect("an answer");
                    assert_eq!(status, 201, "round {round}: {body}");
                    *answer = Some(body);
                }
            }
        }
        let list = admin.get("/api/models").expect(200).body;
        let mut found: Vec<_> = names(&list).iter().map(|name| name[1..].parse::<usize>().expect("a number")).collect();
        found.sort_unstable();
        assert!(found.iter().eq(models.keys()), "round {round}: each once, and no other");

        let mut credentials = told.credentials.lock().expect("no writer has failed");
        for (number, answer) in credentials.iter_mut().filter(|(_, answer)| answer.is_none()) {
            let (status, body) = write(&admin, *number).expect("an answer");
            assert!(status == 201 || (status == 409 && body["code"] == "ANSWER_GONE"), "round {round}: {body}");
            *answer = Some(body);
        }
        for (number, answer) in credentials.iter() {
            let made = labels(&admin).iter().filter(|label| **label == format!("c{number}")).count();
            assert_eq!(made, 1, "round {round}");
            if let Some(key) = answer.as_ref().and_then(|answer| answer["key"].as_str()) {
                let _ = fleet.anybody().with_key(key).get("/api/nodes").expect(200);
            }
        }
    }
    println!("{} writes", told.acknowledged());
}

#[test]
fn what_was_acknowledged_before_a_stop_is_there_afterwards() {
    let mut fleet = Fleet::start();
    let told = Told::default();
    let admin = fleet.admin();
    std::thread::scope(|scope| {
        for _ in 0..4 {
            scope.spawn(|| told.write(&admin));
        }
        wait_for(PATIENCE, "some writes", || (told.acknowledged() >= 30).then_some(()));
        let status = fleet.stop();
        assert!(status.success(), "{status}");
    });
    fleet.restart();
    let list = fleet.admin().get("/api/models").expect(200).body;
    let found = names(&list);
    for number in
        told.models.lock().expect("no writer has failed").iter().filter_map(|(n, told)| told.as_ref().map(|_| n))
    {
        assert!(found.contains(&format!("m{number}").as_str()), "m{number}");
    }
}

#[test]
fn a_node_whose_log_is_gone_says_so_in_one_line_and_ends() {
    let home = Home::new();
    home.muster(&["init"]).ended_with(0);
    for part in ["raft", "floor"] {
        let path = home.data().join(part);
        let removed = if path.is_dir() { std::fs::remove_dir_all(&path) } else { std::fs::remove_file(&path) };
        removed.expect("it was there");
    }
    let ended = home.muster(&["serve", "--api", "127.0.0.1:0"]);
    ended.ended_with(1);
    let told: Vec<_> = ended.stderr.lines().filter(|line| line.starts_with("muster: ")).collect();
    assert_eq!(told.len(), 1, "{ended:?}");
    assert!(told[0].contains("must join anew") && !ended.stderr.contains("panicked"), "{ended:?}");
    assert!(!home.data().join("muster.sock").exists());
}

#[test]
fn a_node_whose_disk_fails_acknowledges_nothing_more_says_why_and_ends() {
    if !Need::Compiler.is_met("api") {
        return;
    }
    let home = Home::new();
    let secrets = home.muster(&["init", "-o", "json"]).json();
    let token = secrets["adminToken"].as_str().expect("a token");
    let mut command = home.command(["serve", "--api", "127.0.0.1:0"]);
    command.env("DISK_ROOT", home.data()).env("DISK_FAIL_SYNC", "60").env("LD_PRELOAD", disk_library());
    let mut node = Node::start_command(&home, &mut command);
    node.ready();
    let admin = node.caller(token);
    let mut acknowledged = Vec::new();
    for number in 0.. {
        let name = format!("model {number}");
        match try_send(admin.request("POST", "/api/models").json(&model(&name))) {
            Ok(answer) if answer.status == 201 => acknowledged.push(name),
            Ok(answer) => {
                assert!(answer.status >= 500, "{answer}");
                break;
            }
            Err(_) => break,
        }
        assert!(number < 1000, "the disk did not fail");
    }
    assert_eq!(node.process().wait(PATIENCE).code(), Some(1));
    let log = home.log();
    let told: Vec<_> = log.lines().filter(|line| line.starts_with("muster: ")).collect();
    assert_eq!(told.len(), 1, "one line says why");
    assert!(told[0].contains("can not go on"), "{}", told[0]);

    let mut node = Node::start(&home, &[]);
    node.ready();
    let list = node.caller(token).get("/api/models").expect(200).body;
    let found = names(&list);
    for name in &acknowledged {
        assert!(found.contains(&name.as_str()), "{name} was acknowledged and is lost");
    }
    assert!(found.len() <= acknowledged.len() + 1);
}
