//! Full disks.

use std::time::Instant;

use muster_tests::api::try_send;
use muster_tests::fleet::PATIENCE;
use muster_tests::groups::Need;
use muster_tests::mesh::{Machine, Mesh};
use muster_tests::process::wait_for;
use muster_tests::registers::Registers;
use muster_tests::small_disk::SmallDisk;

use super::{GROUP, go_on, is_whole, large_model, others, set_aside};

/// What the operating system says of it.
const FULL: &str = "No space left on device";

fn fill(mesh: &mut Mesh, registers: &Registers, disks: &[SmallDisk], victim: usize) {
    go_on(registers, &[0, 1, 2]);
    let begun = Instant::now();
    let filled = disks[victim].fill();
    let mut count = 0;
    let writer = mesh.api(others(victim)[0]);
    let status = wait_for(PATIENCE, "the node to end", || {
        // What the database has taken in advance is used up sooner.
        count += 1;
        let body = large_model(&format!("large {count} while {victim} is full"));
        let answer = try_send(writer.request("POST", "/api/models").json(&body)).expect("an answer");
        assert!(matches!(answer.status, 201 | 503 | 504), "{answer}");
        mesh.machines[victim].process().ended()
    });
    let took = begun.elapsed();
    mesh.machines[victim].node = None;
    assert_eq!(status.code(), Some(1), "{status}");
    let log = mesh.machines[victim].home.log();
    let last = log.lines().rev().find(|line| line.contains("can not go on")).expect("the reason");
    assert!(last.contains(FULL), "{last}");
    go_on(registers, &others(victim));
    println!("node {victim}: {filled} bytes filled, ended after {took:?} and {count} large writes: {last}");

    // It does not pretend to be well, and gives nothing up.
    let (status, said) = mesh.try_restart(victim).expect_err("it is refused while there is no room");
    assert_eq!(status.code(), Some(1), "{status}: {said}");
    assert!(said.contains(FULL), "{said}");
    disks[victim].make_room();
    mesh.restart(victim);
    mesh.ready();
    go_on(registers, &[0, 1, 2]);
    assert_eq!(set_aside(&mesh.machines[victim]), 0);
}

#[test]
fn a_node_whose_disk_is_full_says_so_the_others_go_on_and_it_returns_when_there_is_room() {
    if !Need::Mounts.is_met(GROUP) {
        return;
    }
    let disks: Vec<_> = (0..3).map(|_| SmallDisk::new(64)).collect();
    let mut mesh = Mesh::of(disks.iter().map(|disk| Machine::with_data(disk.path().join("data"))).collect());
    let registers = Registers::new(mesh.apis(), "register", 5);
    registers.used_while(1, || {
        let follower = (mesh.leader() + 1) % 3;
        fill(&mut mesh, &registers, &disks, follower);
        let leader = mesh.leader();
        fill(&mut mesh, &registers, &disks, leader);
    });
    let figures = is_whole(&mut mesh, &registers);
    println!("{figures:?}");
    assert!(figures.answered > 500, "{figures:?}");
}
