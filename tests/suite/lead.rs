//! The lead is given up on purpose: by a leader that is told to stop, and when an operator wants another one. Callers elsewhere
//! hardly notice, and nobody is asked to lead who could not.

use std::time::{Duration, Instant};

use muster_tests::api::try_send;
use muster_tests::fleet::PATIENCE;
use muster_tests::history::What;
use muster_tests::mesh::{Machine, Mesh};
use muster_tests::process::{Signal, wait_for};
use muster_tests::registers::{FAILOVER, Registers};

/// How long callers may wait for a write when the lead passes on. An election that nobody has asked for takes about four
/// seconds.
const PASSED: Duration = Duration::from_secs(2);

/// How long a leader may take to stop: three seconds for the lead, two for its data, and room for a busy machine.
const STOPPED: Duration = Duration::from_secs(8);

fn writes(what: What) -> bool {
    what.writes().is_some()
}

fn others(node: usize) -> [usize; 2] {
    [(node + 1) % 3, (node + 2) % 3]
}

/// Callers write through each of these nodes.
fn go_on(registers: &Registers, nodes: &[usize]) {
    registers.wait_for_each(2 * FAILOVER, Instant::now(), nodes, writes);
}

fn is_whole(mesh: &mut Mesh, registers: &Registers) {
    mesh.ready();
    println!("{:?}", registers.check());
    assert_eq!(mesh.hashes().len(), 1, "equal states at an equal index");
}

/// Waits for the end of a process that was told to stop, and says how long that took.
fn stopped(machine: &mut Machine) -> Duration {
    let begun = Instant::now();
    let status = machine.node.take().expect("is running").process().wait(PATIENCE);
    assert!(status.success(), "{status}");
    begun.elapsed()
}

/// Waits until a node answers this well.
fn answers(mesh: &Mesh, node: usize, path: &str) {
    let api = mesh.api(node);
    wait_for(PATIENCE, path, || {
        matches!(try_send(api.request("GET", path)), Ok(answer) if answer.status == 200).then_some(())
    });
}

#[test]
fn a_leader_that_is_told_to_stop_passes_its_lead_on_first_and_callers_elsewhere_hardly_wait() {
    let mut mesh = Mesh::of_three();
    let registers = Registers::new(mesh.apis(), "register", 5);
    let gaps = registers.used_while(1, || {
        [Signal::TERM, Signal::INT, Signal::TERM].map(|signal| {
            go_on(&registers, &[0, 1, 2]);
            let leader = mesh.leader();
            let rest = others(leader);
            let begun = Instant::now();
            mesh.machines[leader].signal(signal);
            let took = stopped(&mut mesh.machines[leader]);
            go_on(&registers, &rest);
            let gap = registers.longest_gap(&rest, begun);
            println!("{signal:?}: node {leader} has ended after {took:?}, no write elsewhere for {gap:?}");
            mesh.restart(leader);
            mesh.ready();
            gap
        })
    });
    is_whole(&mut mesh, &registers);
    assert!(gaps.iter().all(|gap| *gap < PASSED), "{gaps:?}");
}

#[test]
fn a_leader_stops_also_when_nobody_can_take_its_lead() {
    let mut mesh = Mesh::of_three();
    let leader = mesh.leader();
    let rest = others(leader);
    rest.iter().for_each(|node| mesh.machines[*node].process().freeze());
    mesh.machines[leader].signal(Signal::TERM);
    let took = stopped(&mut mesh.machines[leader]);
    println!("without a quorum: ended after {took:?}");
    assert!(took < STOPPED, "{took:?}");

    rest.iter().for_each(|node| mesh.machines[*node].process().thaw());
    mesh.restart(leader);
    mesh.ready();
    let leader = mesh.leader();
    others(leader).iter().for_each(|node| mesh.machines[*node].kill());
    let before = mesh.machines[leader].home.log().len();
    mesh.machines[leader].signal(Signal::TERM);
    wait_for(PATIENCE, "it to begin", || mesh.machines[leader].home.log()[before..].contains("stopping").then_some(()));
    mesh.machines[leader].signal(Signal::TERM);
    let begun = Instant::now();
    let status = mesh.machines[leader].node.take().expect("is running").process().wait(PATIENCE);
    println!("told twice: {status} after {:?}", begun.elapsed());
    assert_eq!(status.code(), Some(1), "{status}");
    assert!(begun.elapsed() < Duration::from_secs(1), "{:?}", begun.elapsed());

    let mut alone = Mesh::of(vec![Machine::on_loopback()]);
    alone.machines[0].signal(Signal::TERM);
    let took = stopped(&mut alone.machines[0]);
    println!("the only voter: ended after {took:?}");
    assert!(took < STOPPED, "{took:?}");
}

#[test]
fn a_node_joins_while_the_leader_stops_and_one_that_waits_to_join_stops_at_once() {
    let mut mesh = Mesh::of_three();
    let leader = mesh.leader();
    let [through, _] = others(leader);
    let joining = mesh.place(Machine::on_loopback());
    mesh.start_joining(joining, through);
    // It is a node of the fleet, and does not know it yet.
    let said = || mesh.machines[through].home.log().contains("a node joins node=4").then_some(());
    wait_for(PATIENCE, "it to ask", said);
    mesh.machines[leader].signal(Signal::TERM);
    let took = stopped(&mut mesh.machines[leader]);
    println!("while a node joins: ended after {took:?}");
    assert!(took < STOPPED, "{took:?}");
    answers(&mesh, joining, "/ready");
    mesh.restart(leader);
    (0..4).for_each(|index| answers(&mesh, index, "/ready"));

    // Nobody answers it.
    let waits = mesh.place(Machine::on_loopback());
    mesh.machines[through].process().freeze();
    mesh.start_joining(waits, through);
    answers(&mesh, waits, "/health");
    mesh.machines[waits].signal(Signal::TERM);
    let took = stopped(&mut mesh.machines[waits]);
    println!("while it waits to join: ended after {took:?}");
    assert!(took < STOPPED, "{took:?}");
    mesh.machines[through].process().thaw();
    (0..4).for_each(|index| answers(&mesh, index, "/ready"));
}

#[test]
fn a_lead_is_offered_to_nobody_who_does_not_answer_and_writes_go_on() {
    let mut mesh = Mesh::of_three();
    let leader = mesh.leader();
    let [wished, other] = others(leader);
    // Callers ask only those that are not going to be frozen: the others would wait for an answer.
    let registers = Registers::new(vec![mesh.api(leader), mesh.api(other)], "register", 5);
    registers.used_while(1, || {
        go_on(&registers, &[0, 1]);
        let name = format!("node-{}", wished + 1);
        mesh.machines[wished].process().freeze();
        let begun = Instant::now();
        let passed = mesh.machines[other].home.muster(&["operator", "raft", "transfer-leader", &name]);
        let took = begun.elapsed();
        go_on(&registers, &[0, 1]);
        let gap = registers.longest_gap(&[0, 1], begun);
        println!("refused after {took:?}, no write for {gap:?}: {}", passed.stderr);
        assert!(gap < PASSED, "{gap:?}");
        assert!(passed.ended_with(1).stderr.contains("no such voter answers"), "{passed:?}");
        assert!(passed.stderr.contains("leads on"), "{passed:?}");
        assert_eq!(mesh.leader_among(&[leader, other]), leader);

        // Whoever is furthest, and answers.
        let begun = Instant::now();
        let passed = mesh.machines[leader].home.muster(&["operator", "raft", "transfer-leader", "-o", "json"]).json();
        assert_eq!(passed["leader"]["id"], other + 1, "{passed}");
        go_on(&registers, &[0, 1]);
        let gap = registers.longest_gap(&[0, 1], begun);
        println!("passed on, no write for {gap:?}");
        assert!(gap < PASSED, "{gap:?}");
        mesh.machines[wished].process().thaw();
    });
    is_whole(&mut mesh, &registers);
}
