//! Three nodes with a network between them that fails: cut in two, cut in one direction, cut altogether, and lossy. Their
//! APIs are asked over another network, which does not.

use std::io::Read;
use std::time::{Duration, Instant};

use muster_tests::api::{Answer, try_send};
use muster_tests::engines;
use muster_tests::groups::Need;
use muster_tests::history::{Outcome, What};
use muster_tests::mesh::Mesh;
use muster_tests::net::Network;
use muster_tests::process::{number, wait_for};
use muster_tests::registers::{Asked, FAILOVER, Registers, model};
use rand::SeedableRng;
use rand::rngs::StdRng;
use rand::seq::SliceRandom;
use serde_json::json;

/// How long a node without a quorum may take to say so: a read two seconds, a write ten; and time to say it.
const READ_LIMIT: Duration = Duration::from_secs(4);
const WRITE_LIMIT: Duration = Duration::from_secs(15);

/// How long gossip may take to give a node up (two rounds of probes, the suspicion, and the rumour of it), and to hear of
/// it again.
const GIVEN_UP: Duration = Duration::from_secs(20);
const HEARD_AGAIN: Duration = Duration::from_secs(25);

/// How long a caller may wait for a machine that says nothing any more: 20 s, and room for a busy machine.
const SILENCE: Duration = Duration::from_secs(30);

fn writes(what: What) -> bool {
    what.writes().is_some()
}

fn reads(what: What) -> bool {
    what == What::Read
}

fn others(node: usize) -> [usize; 2] {
    [(node + 1) % 3, (node + 2) % 3]
}

/// Uses registers through all nodes while the network fails, and checks what must hold whatever the fault was.
fn survives(mesh: &mut Mesh, name: &str, seed: u64, fault: fn(&Mesh, &Registers)) {
    println!("-- {name}, seed {seed}");
    let begun = Instant::now();
    let registers = Registers::new(mesh.apis(), &format!("{name} {seed}"), 4);
    for (node, api) in mesh.apis().iter().enumerate() {
        // A node of which no write is remembered can not take one up again: see `mesh`.
        let _ = api.post("/api/models", &model(&format!("{} first of {node}", registers.prefix))).expect(201);
    }
    registers.used_while(seed, || {
        registers.wait_for_each(FAILOVER, Instant::now(), &[0, 1, 2], writes);
        fault(mesh, &registers);
        // Healed: everybody writes again, through whoever leads now.
        let healed = registers.wait_for_each(2 * FAILOVER, Instant::now(), &[0, 1, 2], writes);
        registers.wait_for_each(FAILOVER, Instant::now(), &[0, 1, 2], reads);
        println!("writes again {} ms after healing", healed.as_millis());
    });
    mesh.ready();
    let figures = registers.check();
    assert_eq!(mesh.hashes().len(), 1, "{name}: equal states at an equal index");
    println!("{name}: {figures:?} in {} ms", begun.elapsed().as_millis());
}

/// Callers of a node without a quorum are told so, in time.
fn are_refused(registers: &Registers, node: usize, since: Instant) {
    let refused = |asked: &Asked| matches!(asked.outcome, Outcome::Refused | Outcome::Unknown);
    let asked = wait_for(WRITE_LIMIT, "callers that are refused", || {
        let asked = registers.answered_since(node, since);
        asked.iter().any(refused).then_some(asked)
    });
    let longest = asked.iter().map(|asked| asked.took).max().unwrap_or_default();
    let count = asked.iter().filter(|asked| refused(asked)).count();
    println!("node {node} without a quorum: {count} callers refused, the longest waited {} ms", longest.as_millis());
    assert!(longest < WRITE_LIMIT, "{longest:?}");
}

fn ask(node: usize, request: reqwest::blocking::RequestBuilder, limit: Duration) -> Answer {
    let begun = Instant::now();
    let answer = try_send(request).expect("an answer");
    let took = begun.elapsed();
    println!("node {node} without a quorum: {} after {} ms", answer.status, took.as_millis());
    assert!(took < limit, "{took:?}: {answer}");
    answer
}

/// A node without a quorum says so in time, and answers from its own state only who wants that.
fn reads_in_vain(mesh: &Mesh, node: usize) {
    let api = mesh.api(node);
    ask(node, api.request("GET", "/api/models"), READ_LIMIT).is_error(503, "NO_QUORUM");
    let _ = ask(node, api.request("GET", "/api/models?consistency=local"), READ_LIMIT).expect(200);
}

/// A node without a quorum says of a write in time that it was not done, or may have been.
fn writes_in_vain(mesh: &Mesh, node: usize, name: &str) -> Answer {
    let answer = ask(node, mesh.api(node).request("POST", "/api/models").json(&model(name)), WRITE_LIMIT);
    assert!(matches!(answer.status, 503 | 504), "{answer}");
    answer
}

/// Repeats a write of unknown outcome: it is done then, and once.
fn is_done_once(mesh: &Mesh, node: usize, name: &str, before: &Answer) {
    let Some(key) = before.body["idempotencyKey"].as_str() else { return };
    for through in others(node) {
        let made = mesh.api(through).post_once("/api/models", &model(name), key).expect(201);
        let found = mesh.api(node).get(&format!("/api/models/{}", name.replace(' ', "%20"))).expect(200);
        assert_eq!(found.body["id"], made.body["id"]);
    }
}

/// Local reads through this node go on.
fn reads_locally(registers: &Registers, node: usize) {
    registers.wait_for_each(READ_LIMIT, Instant::now(), &[node], |what| what == What::ReadLocal);
}

fn term(mesh: &Mesh, node: usize) -> u64 {
    mesh.cluster(node).expect("an answer")["term"].as_u64().expect("a term")
}

/// The others lead themselves, and the old leader answers nothing that it can not know, until the network heals.
fn without_the_leader(mesh: &Mesh, registers: &Registers, leader: usize) {
    let others = others(leader);
    let begun = Instant::now();
    std::thread::scope(|scope| {
        // Asked of the old leader while it may still take itself for one.
        let told = scope.spawn(|| reads_in_vain(mesh, leader));
        let first = registers.wait_for_each(FAILOVER, begun, &others, writes);
        println!("first write of the majority {} ms after the cut", first.as_millis());
        told.join().expect("is refused in time");
    });
    let _ = mesh.leader_among(&others);
    reads_locally(registers, leader);
    // By now there is something that it does not know.
    reads_in_vain(mesh, leader);
    are_refused(registers, leader, begun);
}

fn heal(mesh: &Mesh, cut_off: usize) {
    mesh.network().heal();
    let begun = Instant::now();
    wait_for(2 * FAILOVER, "a quorum", || (mesh.api(cut_off).get("/api/models").status == 200).then_some(()));
    println!("node {cut_off} reads {} ms after healing", begun.elapsed().as_millis());
}

/// In both directions.
fn leader_cut_off(mesh: &Mesh, registers: &Registers) {
    let (leader, name) = (mesh.leader(), format!("{} through the old leader", registers.prefix));
    mesh.network().isolate(leader);
    let begun = Instant::now();
    let answer = std::thread::scope(|scope| {
        let answer = scope.spawn(|| writes_in_vain(mesh, leader, &name));
        without_the_leader(mesh, registers, leader);
        answer.join().expect("is refused in time")
    });
    are_refused(registers, leader, begun);
    heal(mesh, leader);
    is_done_once(mesh, leader, &name, &answer);
}

/// It sends, but what the others send does not arrive.
fn leader_that_hears_nobody(mesh: &Mesh, registers: &Registers) {
    let leader = mesh.leader();
    mesh.network().cut(&others(leader).map(|other| (other, leader)));
    without_the_leader(mesh, registers, leader);
    heal(mesh, leader);
}

/// It hears the others, but what it sends does not arrive.
fn leader_that_nobody_hears(mesh: &Mesh, registers: &Registers) {
    let leader = mesh.leader();
    mesh.network().cut(&others(leader).map(|other| (leader, other)));
    without_the_leader(mesh, registers, leader);
    heal(mesh, leader);
}

/// How this node sees another.
fn status_of(mesh: &Mesh, by: usize, node: usize) -> String {
    let nodes = mesh.api(by).get("/api/nodes?consistency=local").body;
    nodes[node]["status"].as_str().unwrap_or_default().to_owned()
}

/// Waits until these nodes see each other like that.
fn see(mesh: &Mesh, pairs: &[(usize, usize)], status: &str, limit: Duration) -> Duration {
    let begun = Instant::now();
    for (by, node) in pairs {
        let left = limit.saturating_sub(begun.elapsed());
        wait_for(left, &format!("node {by} to see node {node} {status}"), || {
            (status_of(mesh, *by, *node) == status).then_some(())
        });
    }
    begun.elapsed()
}

/// The leader goes on without noticing much; gossip says on both sides who is missing.
fn follower_cut_off(mesh: &Mesh, registers: &Registers) {
    let (leader, name) = (mesh.leader(), format!("{} through the follower", registers.prefix));
    let [follower, other] = others(leader);
    let pairs = [(leader, follower), (other, follower), (follower, leader), (follower, other)];
    see(mesh, &pairs, "online", HEARD_AGAIN);
    let before = term(mesh, leader);
    mesh.network().isolate(follower);
    let begun = Instant::now();
    let answer = std::thread::scope(|scope| {
        let answer = scope.spawn(|| writes_in_vain(mesh, follower, &name));
        let first = registers.wait_for_each(READ_LIMIT, begun, &[leader, other], writes);
        println!("first write of the majority {} ms after the cut", first.as_millis());
        reads_locally(registers, follower);
        reads_in_vain(mesh, follower);
        answer.join().expect("is refused in time")
    });
    see(mesh, &pairs, "critical", GIVEN_UP.saturating_sub(begun.elapsed()));
    println!("given up by all {} ms after the cut", begun.elapsed().as_millis());
    assert_eq!(status_of(mesh, leader, other), "online");
    are_refused(registers, follower, begun);
    heal(mesh, follower);
    // It did not stand for election behind the others' backs: nobody has to give way when it returns.
    assert_eq!((mesh.leader(), term(mesh, leader)), (leader, before), "the same leader in the same term");
    let heard = see(mesh, &pairs, "online", HEARD_AGAIN);
    println!("heard by all {} ms later", heard.as_millis());
    is_done_once(mesh, follower, &name, &answer);
}

/// One packet of five is lost everywhere: slower, but it goes on.
fn loss(mesh: &Mesh, registers: &Registers) {
    mesh.network().lose(20);
    let begun = Instant::now();
    for _ in 0..3 {
        registers.wait_for_each(2 * FAILOVER, Instant::now(), &[0, 1, 2], writes);
    }
    let asked = (0..3).flat_map(|node| registers.answered_since(node, begun));
    let done = asked.filter(|asked| writes(asked.what) && matches!(asked.outcome, Outcome::Ok(..))).count();
    println!("{done} writes in {} ms with loss", begun.elapsed().as_millis());
    mesh.network().heal();
}

/// Nobody has a quorum, everybody says so.
fn all_apart(mesh: &Mesh, registers: &Registers) {
    mesh.network().split();
    let begun = Instant::now();
    let name = |node: usize| format!("{} through {node}", registers.prefix);
    let answers: Vec<_> = std::thread::scope(|scope| {
        let asked: Vec<_> = (0..3)
            .map(|node| {
                scope.spawn(move || {
                    reads_in_vain(mesh, node);
                    reads_locally(registers, node);
                    writes_in_vain(mesh, node, &name(node))
                })
            })
            .collect();
        asked.into_iter().map(|thread| thread.join().expect("is refused in time")).collect()
    });
    for node in 0..3 {
        are_refused(registers, node, begun);
        let from_then = |asked: &Asked| asked.begun >= registers.time(begun) && asked.what != What::ReadLocal;
        let asked = registers.answered_since(node, begun).into_iter().filter(from_then);
        let done: Vec<_> = asked.filter(|asked| matches!(asked.outcome, Outcome::Ok(..))).collect();
        assert!(done.is_empty(), "nobody can know: {done:?}");
    }
    heal(mesh, 0);
    for (node, answer) in answers.iter().enumerate() {
        is_done_once(mesh, node, &name(node), answer);
    }
}

#[test]
fn links_are_cut_one_by_one_and_heal() {
    if !Need::Networks.is_met("netns") {
        return;
    }
    let network = Network::new(3);
    assert!(network.links().into_iter().all(|link| network.arrives(link)));
    network.cut(&[(0, 1)]);
    for link in network.links() {
        assert_eq!(network.arrives(link), link != (0, 1), "{link:?}");
    }
    assert_eq!(network.heal(), 1);
    network.isolate(2);
    for (from, to) in network.links() {
        assert_eq!(network.arrives((from, to)), from != 2 && to != 2, "{from} to {to}");
    }
    assert_eq!(network.heal(), 4);
    network.lose(50);
    let arrived = (0..40).filter(|_| network.arrives((0, 1))).count();
    assert!((5..35).contains(&arrived), "{arrived} of 40 arrived");
    assert_eq!(usize::try_from(network.dropped((0, 1))), Ok(40 - arrived));
}

type Fault = (&'static str, fn(&Mesh, &Registers));

/// All of them, one after the other in an order of the seed's own, in one fleet; nothing but the soak asks for that.
#[test]
fn one_fault_of_the_network_after_the_other() {
    let faults: [Fault; 6] = [
        ("leader cut off", leader_cut_off),
        ("leader that hears nobody", leader_that_hears_nobody),
        ("leader that nobody hears", leader_that_nobody_hears),
        ("follower cut off", follower_cut_off),
        ("loss", loss),
        ("all apart", all_apart),
    ];
    let runs = number("RUNS_PARTITION", 0);
    if runs == 0 || !Need::Networks.is_met("netns") {
        return;
    }
    let mut mesh = Mesh::in_networks();
    for run in 0..runs {
        let seed = number("SEED_PARTITION", 1) + run;
        let mut faults = faults;
        faults.shuffle(&mut StdRng::seed_from_u64(seed));
        for (name, fault) in faults {
            survives(&mut mesh, name, seed, fault);
        }
    }
}

fn once(name: &str, fault: fn(&Mesh, &Registers)) {
    if Need::Networks.is_met("netns") {
        survives(&mut Mesh::in_networks(), name, 1, fault);
    }
}

#[test]
fn a_leader_that_is_cut_off_answers_nothing_that_it_can_not_know_and_the_others_go_on() {
    once("leader cut off", leader_cut_off);
}

#[test]
fn a_leader_that_hears_nobody_is_replaced() {
    once("leader that hears nobody", leader_that_hears_nobody);
}

#[test]
fn a_leader_that_nobody_hears_is_replaced() {
    once("leader that nobody hears", leader_that_nobody_hears);
}

#[test]
fn a_follower_that_is_cut_off_says_so_is_missed_and_returns_without_an_election() {
    once("follower cut off", follower_cut_off);
}

#[test]
fn writes_go_on_while_one_packet_of_five_is_lost() {
    once("loss", loss);
}

#[test]
fn without_any_quorum_everybody_says_so_in_time_and_it_heals() {
    once("all apart", all_apart);
}

/// Ends the engines of a mesh, also when the test fails.
struct Engines<'a>(&'a mut Mesh);

impl Drop for Engines<'_> {
    fn drop(&mut self) {
        for machine in &mut self.0.machines {
            machine.node = None;
            engines::end_below(machine.home.path());
        }
    }
}

/// As one does that has lost its power: nobody closes the connections to it.
#[test]
fn a_request_to_a_model_whose_machine_falls_silent_ends_long_before_its_own_limit() {
    if !Need::Networks.is_met("netns") {
        return;
    }
    let mut mesh = Mesh::in_networks_with(&engines::variables());
    let owner = (mesh.leader() + 1) % 3;
    let asked = (owner + 1) % 3;
    let engines = Engines(&mut mesh);
    let mesh = &engines.0;
    let key = mesh.api(asked).post("/api/credentials", &json!({"kind": "gateway", "label": "a test"})).expect(201);
    let user = mesh.api(asked).with_key(key.body["key"].as_str().expect("a key"));
    let slow = json!({
        "node_id": owner + 1, "model_name": "slow", "engine": "sim", "gpu_memory_fraction": 0.5, "owner": "a test",
        "extra_args": ["--tokens", "1000", "--tokens-per-second", "10"]
    });
    let _ = mesh.api(asked).post("/api/deployments/start", &slow).expect(200);
    let path = "/v1/chat/completions";
    let chat = |more: serde_json::Value| {
        let mut chat = json!({"model": "slow", "messages": [{"role": "user", "content": "hi"}]});
        more.as_object().expect("an object").iter().for_each(|(field, value)| chat[field] = value.clone());
        chat
    };
    let short = chat(json!({"max_tokens": 1}));
    wait_for(SILENCE, "the model to answer", || (user.post(path, &short).status == 200).then_some(()));
    let request = user.request("POST", path).json(&chat(json!({"stream": true}))).timeout(3 * SILENCE);
    let mut stream = request.send().expect("an answer");
    let mut first = [0; 16];
    stream.read_exact(&mut first).expect("a piece");
    mesh.network().isolate(owner);
    let begun = Instant::now();
    let mut rest = Vec::new();
    let whole = stream.read_to_end(&mut rest).is_ok() && String::from_utf8_lossy(&rest).contains("[DONE]");
    println!("it ended {} ms after the silence began", begun.elapsed().as_millis());
    assert!(!whole && begun.elapsed() < SILENCE, "{:?}", begun.elapsed());
    // Whoever asks now is told so.
    let begun = Instant::now();
    user.post(path, &short).is_openai_error(502, "deployment_unreachable");
    assert!(begun.elapsed() < Duration::from_secs(10), "{:?}", begun.elapsed());
}
