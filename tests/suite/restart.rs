//! One process of a node takes the place of another while clients go on: `muster serve --take-over`.

#[path = "restart/load.rs"]
mod load;
#[path = "restart/upstream.rs"]
mod upstream;

use std::io::{Read, Write};
use std::net::TcpListener;
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use load::{Load, Stream};
use muster_tests::api::{Api, try_send};
use muster_tests::fleet::{Home, Outcome, PATIENCE, outcome};
use muster_tests::process::{Process, Signal, wait_for};
use serde_json::{Value, json};
use upstream::Upstream;

/// A preset token, and obviously one of a test.
const ADMIN: &str = "token-of-the-tests-administrator";

/// A port that was free a moment ago.
fn free_address() -> String {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
    listener.local_addr().expect("an address").to_string()
}

/// One machine: its home, its addresses, the process that serves it.
struct Machine {
    home: Home,
    name: String,
    api: String,
    mesh: String,
    process: Process,
}

impl Machine {
    fn start(name: &str, arguments: &[&str]) -> Self {
        let (home, api, mesh) = (Home::new(), free_address(), free_address());
        let mut command = home.command(["serve", "--name", name, "--api", &api, "--mesh", &mesh]);
        let process = home.start(command.args(arguments).env("MUSTER_ADMIN_TOKEN", ADMIN));
        let mut machine = Self { home, name: name.to_owned(), api, mesh, process };
        machine.ready();
        machine
    }

    /// Waits until it serves, as the third of three only does when it votes.
    fn ready(&mut self) {
        let api = self.api();
        wait_for(PATIENCE, "the node to be ready", || {
            assert!(self.process.ended().is_none(), "it ended instead of serving");
            matches!(try_send(api.request("GET", "/ready")), Ok(answer) if answer.status == 200).then_some(())
        });
    }

    fn api(&self) -> Api {
        Api::new(&format!("http://{}", self.api)).with_key(ADMIN)
    }

    fn successor(&self, variables: &[(&str, &str)]) -> Process {
        let arguments = ["serve", "--name", &self.name, "--api", &self.api, "--mesh", &self.mesh, "--take-over"];
        self.home.start(self.home.command(arguments).envs(variables.iter().copied()))
    }

    /// Has another process take over, and returns the old one as soon as the new one serves.
    fn hand_over(&mut self) -> Process {
        let before = self.home.log().len();
        let successor = self.successor(&[]);
        let old = std::mem::replace(&mut self.process, successor);
        assert_ne!(old.id(), self.process.id());
        wait_for(PATIENCE, "the successor to serve", || {
            assert!(self.process.ended().is_none(), "the successor has ended");
            self.said(before, "the successor serves").then_some(())
        });
        old
    }

    /// Whether this has been said since its log had this length.
    fn said(&self, before: usize, what: &str) -> bool {
        self.home.log().get(before..).is_some_and(|log| log.contains(what))
    }

    fn await_log(&self, before: usize, what: &str) {
        wait_for(PATIENCE, what, || self.said(before, what).then_some(()));
    }

    fn socket(&self) -> PathBuf {
        self.home.data().join("handover.sock")
    }

    /// A successor that is only this test.
    fn greet(&self, hello: &Value) -> UnixStream {
        let mut stream = UnixStream::connect(self.socket()).expect("somebody listens");
        stream.set_read_timeout(Some(PATIENCE)).expect("takes it");
        say(&mut stream, hello);
        stream
    }

    fn hello(&self) -> Value {
        json!({
            "protocol": 1, "version": "0.0.0-test", "levels": [0, 1000],
            "addresses": { "api": self.api, "proxy": "127.0.0.1:0", "mesh": self.mesh }
        })
    }

    /// A connection that has had an answer and waits: with one, clients are waited for.
    fn idle_connection(&self) -> std::net::TcpStream {
        let mut stream = std::net::TcpStream::connect(&self.api).expect("connects");
        stream.set_read_timeout(Some(PATIENCE)).expect("takes it");
        assert!(!ask(&mut stream).contains("connection: close"));
        stream
    }
}

/// Asks something on a raw connection and returns the head of the answer, in lower case.
fn ask(stream: &mut std::net::TcpStream) -> String {
    stream.write_all(b"GET /health HTTP/1.1\r\nhost: 127.0.0.1\r\n\r\n").expect("is sent");
    let mut seen = Vec::new();
    while !seen.ends_with(b"{\"status\":\"ok\"}") {
        let mut byte = [0];
        stream.read_exact(&mut byte).expect("an answer");
        seen.push(byte[0]);
    }
    String::from_utf8(seen).expect("text").to_lowercase()
}

fn say(stream: &mut UnixStream, message: &Value) {
    let content = message.to_string();
    let length = u32::try_from(content.len()).expect("short");
    stream.write_all(&[&length.to_be_bytes(), content.as_bytes()].concat()).expect("is said");
}

fn hear(stream: &mut UnixStream) -> Option<Value> {
    let mut length = [0; 4];
    stream.read_exact(&mut length).ok()?;
    let mut content = vec![0; usize::try_from(u32::from_be_bytes(length)).expect("short")];
    stream.read_exact(&mut content).ok()?;
    serde_json::from_slice(&content).ok()
}

/// Three machines that vote.
fn fleet_of_three() -> Vec<Machine> {
    let mut machines = vec![Machine::start("node-1", &["--bootstrap"])];
    let created = machines[0].home.muster(&["token", "create", "-o", "json"]);
    let token = created.json()["token"].as_str().expect("a token").to_owned();
    for (index, name) in ["node-2", "node-3"].into_iter().enumerate() {
        let through = machines[index].mesh.clone();
        machines.push(Machine::start(name, &["--join", &through, "--join-token", &token]));
    }
    machines.iter_mut().for_each(Machine::ready);
    machines
}

fn leader(machines: &[Machine]) -> usize {
    wait_for(PATIENCE, "a leader", || {
        machines.iter().position(|machine| {
            let answer = try_send(machine.api().request("GET", "/api/cluster?consistency=local"));
            matches!(answer, Ok(answer) if answer.body["role"] == "leader")
        })
    })
}

/// The model that the gateway of this node calls, whichever is asked.
fn told_by(node: usize) -> String {
    format!("told by {node}")
}

/// Models behind this upstream and a key with which they can be called, once all machines know them.
fn offer(machines: &[Machine], upstream: &Upstream) -> String {
    let machine = &machines[0];
    let mut model = json!({
        "name": "told", "provider": "openai-compatible", "modelId": "told", "baseUrl": upstream.base_url()
    });
    let _ = machine.api().post("/api/models", &model).expect(201);
    for node in 1..=machines.len() {
        (model["name"], model["nodeId"]) = (json!(told_by(node)), json!(node));
        let _ = machine.api().post("/api/models", &model).expect(201);
    }
    let key = machine.api().post("/api/credentials", &json!({"kind": "gateway", "label": "load"})).expect(201);
    let key = key.body["key"].as_str().expect("a key").to_owned();
    for machine in machines {
        let api = machine.api().with_key(&key);
        wait_for(PATIENCE, "the model to be known", || {
            (api.get(&format!("/v1/models/told%20by%20{}", machines.len())).status == 200).then_some(())
        });
    }
    key
}

fn ended_well(process: &mut Process) {
    let status = process.wait(PATIENCE);
    assert!(status.success(), "it ended with {status}");
}

fn names(machine: &Machine) -> Vec<String> {
    let (mut names, mut path) = (Vec::new(), "/api/models?limit=500".to_owned());
    loop {
        let page = machine.api().get(&path).expect(200);
        let models = page.body["models"].as_array().expect("a list");
        names.extend(models.iter().map(|model| model["name"].as_str().expect("a name").to_owned()));
        let Some(next) = page.header("link").split(['<', '>']).nth(1) else { return names };
        path = next.to_owned();
    }
}

/// What was acknowledged is there once, and nothing else is.
fn assert_written_once(machine: &Machine, mut acknowledged: Vec<String>) {
    let mut found = names(machine);
    found.retain(|name| !name.starts_with("told"));
    found.sort();
    acknowledged.sort();
    assert!(found == acknowledged, "{} found, {} acknowledged", found.len(), acknowledged.len());
}

#[test]
fn a_leader_and_then_a_follower_are_replaced_and_no_request_fails() {
    let upstream = Upstream::start();
    let mut machines = fleet_of_three();
    let key = offer(&machines, &upstream);
    let nodes: Vec<_> = machines.iter().map(|machine| format!("http://{}", machine.api)).collect();
    for (turn, what) in ["the leader", "a follower"].into_iter().enumerate() {
        let load = Load::start(&nodes, ADMIN, &key, turn);
        load.await_progress();
        let leader_before = leader(&machines);
        let replaced = if turn == 0 { leader_before } else { (leader_before + 1) % 3 };
        let streams = [
            Stream::open(&nodes[replaced], &key, "told"),
            // Two that pass through two gateways, one of which is replaced.
            Stream::open(&nodes[replaced], &key, &told_by((replaced + 1) % 3 + 1)),
            Stream::open(&nodes[(replaced + 1) % 3], &key, &told_by(replaced + 1)),
        ];
        let logs: Vec<_> = machines.iter().map(|machine| machine.home.log().len()).collect();
        let before = logs[replaced];
        let begun = Instant::now();
        let mut old = machines[replaced].hand_over();
        let took = begun.elapsed();
        let led = machines[replaced].said(before, "another node leads");
        assert_eq!(led, turn == 0, "a leader hands the lead over before it goes");
        load.await_progress();
        assert!(old.ended().is_none(), "it is still at the stream");
        upstream.finish();
        streams.into_iter().for_each(Stream::ends_whole);
        ended_well(&mut old);
        let report = load.stop();
        println!("{what} was replaced in {took:?}; {report}");
        report.nothing_failed();
        for machine in &mut machines {
            machine.ready();
        }
        upstream.again();
        for (machine, before) in machines.iter().zip(logs) {
            assert!(!machine.said(before, "a node is no longer heard"), "it was taken for dead in between");
        }
        for machine in &machines {
            let written: Vec<_> = report.written().iter().map(|name| format!("model {name}")).collect();
            let found = names(machine);
            assert!(written.iter().all(|name| found.iter().filter(|found| *found == name).count() == 1));
        }
    }
}

#[test]
fn another_timing_is_taken_over_node_by_node_and_no_request_fails() {
    let upstream = Upstream::start();
    let mut machines = fleet_of_three();
    let key = offer(&machines, &upstream);
    let nodes: Vec<_> = machines.iter().map(|machine| format!("http://{}", machine.api)).collect();
    let cluster = |machine: &Machine| machine.api().get("/api/cluster?consistency=local").body;
    let logs: Vec<_> = machines.iter().map(|machine| machine.home.log().len()).collect();
    let term = |machines: &[Machine]| cluster(&machines[leader(machines)])["term"].as_u64().expect("a term");
    let load = Load::start(&nodes, ADMIN, &key, 7);
    load.await_progress();
    // From one end to the other, through what is between.
    for (timing, rounds) in [("far", 1), ("lan", 2)] {
        let before = term(&machines);
        let _ = machines[0].api().put("/api/settings", &serde_json::json!({ "timing": timing })).expect(200);
        for machine in &machines {
            wait_for(PATIENCE, "the other timing", || (cluster(machine)["timing"] == timing).then_some(()));
        }
        for machine in &mut machines {
            machine.ready();
        }
        assert_eq!(term(&machines), before + rounds, "each leader passes the lead on once, and nobody else is elected");
        load.await_progress();
    }
    let report = load.stop();
    println!("the timing was changed twice; {report}");
    report.nothing_failed();
    for (machine, before) in machines.iter().zip(logs) {
        assert!(!machine.said(before, "a node is no longer heard"), "it was taken for dead in between");
    }
}

#[test]
fn a_fleet_of_one_is_replaced_again_and_again_and_requests_only_wait() {
    let upstream = Upstream::start();
    let mut machine = Machine::start("node-1", &["--bootstrap"]);
    let key = offer(std::slice::from_ref(&machine), &upstream);
    let load = Load::start(&[format!("http://{}", machine.api)], ADMIN, &key, 0);
    for turn in 0..3 {
        load.await_progress();
        let begun = Instant::now();
        let mut old = machine.hand_over();
        println!("turn {turn}: replaced in {:?}", begun.elapsed());
        ended_well(&mut old);
    }
    load.await_progress();
    let report = load.stop();
    println!("{report}");
    report.nothing_failed();
    let written: Vec<_> = report.written().iter().map(|name| format!("model {name}")).collect();
    assert_written_once(&machine, written);
    assert_eq!(machine.home.muster(&["models", "list", "-o", "json"]).code, Some(0), "the socket is the successor's");
    machine.process.terminate();
    ended_well(&mut machine.process);
    assert!(!machine.socket().exists() && !machine.home.data().join("muster.sock").exists());
}

#[test]
fn a_successor_that_dies_with_the_sockets_leaves_a_node_that_serves() {
    let upstream = Upstream::start();
    let mut machine = Machine::start("node-1", &["--bootstrap"]);
    let key = offer(std::slice::from_ref(&machine), &upstream);
    let node = format!("http://{}", machine.api);
    let load = Load::start(std::slice::from_ref(&node), ADMIN, &key, 0);
    load.await_progress();
    let stream = Stream::open(&node, &key, "told");
    for word in [None, Some(json!({"failed": {"why": "only a test"}})), Some(json!("nonsense"))] {
        let before = machine.home.log().len();
        let mut successor = machine.greet(&machine.hello());
        assert!(hear(&mut successor).expect("an answer")["accepted"].is_object());
        let table = hear(&mut successor).expect("a table");
        assert_eq!(table["sockets"]["sockets"].as_array().map(Vec::len), Some(6), "{table}");
        let mut byte = [0];
        successor.read_exact(&mut byte).expect("the sockets come with a byte");
        if let Some(word) = &word {
            say(&mut successor, word);
        }
        drop(successor);
        machine.await_log(before, "takes the node up again");
        load.await_progress();
    }
    assert!(machine.process.ended().is_none());
    // It can still be replaced, and what began before all this is finished.
    let mut old = machine.hand_over();
    load.await_progress();
    upstream.finish();
    stream.ends_whole();
    ended_well(&mut old);
    let report = load.stop();
    println!("{report}");
    report.nothing_failed();
}

#[test]
fn strangers_and_wrong_successors_change_nothing() {
    let mut machine = Machine::start("node-1", &["--bootstrap"]);
    let mut idle = machine.idle_connection();
    for garbage in [&b"GET / HTTP/1.1\r\n\r\n"[..], &[0; 64], &[255; 64], &[0, 0, 0, 2, b'{', b'}'], b""] {
        let mut stranger = UnixStream::connect(machine.socket()).expect("somebody listens");
        stranger.write_all(garbage).expect("is said");
        stranger.shutdown(std::net::Shutdown::Write).expect("ends");
        assert_eq!(hear(&mut stranger), None);
    }
    let mut changed = machine.hello();
    for (field, value, said) in [
        ("/protocol", json!(7), "protocol"),
        ("/levels", json!([900, 1000]), "feature level"),
        ("/addresses/api", json!("127.0.0.1:9"), "127.0.0.1:9"),
        ("/addresses/mesh", json!("127.0.0.2:0"), "127.0.0.2:0"),
    ] {
        let right = std::mem::replace(changed.pointer_mut(field).expect("a field"), value);
        let answer = hear(&mut machine.greet(&changed)).expect("an answer");
        *changed.pointer_mut(field).expect("a field") = right;
        let why = answer["refused"]["why"].as_str().expect("a refusal");
        assert!(why.contains(said), "{why}");
    }
    let attempt = |arguments: &[&str]| -> Outcome {
        outcome(machine.home.command(["serve", "--name", "node-1", "--mesh", &machine.mesh]).args(arguments))
    };
    let other = free_address();
    let refused = attempt(&["--api", &other, "--take-over"]);
    let refused = refused.ended_with(1);
    assert!(refused.stderr.contains(&machine.api) && refused.stderr.contains(&other), "{refused:?}");
    let refused = attempt(&["--api", &machine.api]);
    let refused = refused.ended_with(1);
    assert!(refused.stderr.contains("--take-over"), "{refused:?}");
    let _ = attempt(&["--api", &machine.api, "--take-over", "--bootstrap"]).ended_with(2);
    assert!(!ask(&mut idle).contains("connection: close"), "nothing has changed");
    assert!(machine.process.ended().is_none());
    machine.ready();
}

#[test]
fn only_one_takes_over_and_an_idle_connection_learns_of_it_with_its_next_answer() {
    let mut machine = Machine::start("node-1", &["--bootstrap"]);
    let (mut busy, mut idle) = (machine.idle_connection(), machine.idle_connection());
    let before = machine.home.log().len();
    let mut first = machine.greet(&machine.hello());
    assert!(hear(&mut first).expect("an answer")["accepted"].is_object());
    let answer = hear(&mut machine.greet(&machine.hello())).expect("an answer");
    assert!(answer["refused"]["why"].as_str().expect("a refusal").contains("under way"), "{answer}");
    let closed = wait_for(PATIENCE, "an answer that closes", || {
        let head = ask(&mut busy);
        head.contains("connection: close").then_some(head)
    });
    assert!(closed.starts_with("http/1.1 200"), "{closed}");
    // This one is closed as an idle timeout would close it.
    assert_eq!(idle.read(&mut [0; 64]).expect("an end"), 0);
    assert!(hear(&mut first).expect("a table")["sockets"].is_object());
    drop(first);
    machine.await_log(before, "takes the node up again");
    machine.ready();
    let mut old = machine.hand_over();
    ended_well(&mut old);
}

#[test]
fn a_process_that_ends_in_mid_handover_leaves_a_node_that_starts() {
    for signal in [Signal::KILL, Signal::TERM] {
        let mut machine = Machine::start("node-1", &["--bootstrap"]);
        let _ = machine.api().post("/api/credentials", &json!({"kind": "gateway", "label": "kept"})).expect(201);
        // Closing it takes a while, in which the signal arrives.
        let _idle = machine.idle_connection();
        let before = machine.home.log().len();
        let successor = machine.successor(&[]);
        machine.await_log(before, "a successor takes over");
        machine.process.signal(signal);
        let mut old = std::mem::replace(&mut machine.process, successor);
        let status = old.wait(PATIENCE);
        assert_eq!(status.success(), signal == Signal::TERM, "{status}");
        machine.ready();
        assert!(machine.api().get("/api/credentials").expect(200).text.contains("kept"));
        assert_eq!(machine.home.muster(&["models", "list"]).code, Some(0), "its socket is there");
    }
}

#[test]
fn streams_outlive_several_handovers_and_end_with_their_time() {
    let upstream = Upstream::start();
    let mut machine = Machine::start("node-1", &["--bootstrap"]);
    let key = offer(std::slice::from_ref(&machine), &upstream);
    let node = format!("http://{}", machine.api);
    let first = Stream::open(&node, &key, "told");
    let mut oldest = machine.hand_over();
    let second = Stream::open(&node, &key, "told");
    let mut older = machine.hand_over();
    assert!(oldest.ended().is_none() && older.ended().is_none(), "both are at their streams");
    machine.ready();
    // Told to stop, it still has its grace.
    let before = machine.home.log().len();
    oldest.terminate();
    machine.await_log(before, "stopping");
    upstream.finish();
    first.ends_whole();
    second.ends_whole();
    ended_well(&mut oldest);
    ended_well(&mut older);
    upstream.again();
    // One that takes longer than it may is cut.
    let impatient = machine.successor(&[("MUSTER_DRAIN_SECONDS", "1")]);
    let mut old = std::mem::replace(&mut machine.process, impatient);
    ended_well(&mut old);
    machine.ready();
    let cut = Stream::open(&node, &key, "told");
    let begun = Instant::now();
    let mut old = machine.hand_over();
    ended_well(&mut old);
    assert!(begun.elapsed() < Duration::from_secs(9), "{:?}", begun.elapsed());
    cut.ends_cut();
    upstream.finish();
    // With nobody to take over from, it starts as usual.
    machine.process.kill();
    machine.process = machine.successor(&[]);
    machine.ready();
}
