//! Signal 9 while the members of a fleet change.

use std::time::Duration;

use muster_tests::fleet::PATIENCE;
use muster_tests::groups::Need;
use muster_tests::mesh::{Machine, Mesh};
use muster_tests::process::{number, wait_for};
use muster_tests::registers::Registers;
use rand::rngs::StdRng;
use rand::seq::IndexedRandom;
use rand::{RngExt, SeedableRng};

use super::{GROUP, go_on, is_whole};

/// What the leader says when it changes who votes.
const CHANGES: &str = "these nodes vote from now on";

/// The number of the node that runs on a machine.
fn id(mesh: &Mesh, machine: usize) -> u64 {
    mesh.cluster(machine).expect("an answer")["node"]["id"].as_u64().expect("a number")
}

/// Who votes, as far as this machine knows, and whether that is changing.
fn voters(mesh: &Mesh, machine: usize) -> Option<(Vec<u64>, bool)> {
    let cluster = mesh.cluster(machine)?;
    let voters = cluster["voters"].as_array()?.iter().filter_map(|voter| voter["id"].as_u64()).collect();
    Some((voters, cluster["joint"] == true))
}

/// Lets a machine join that kills itself on the way, at another step each time.
fn joins(mesh: &mut Mesh, machine: usize, through: usize, kills: u64, random: &mut StdRng) {
    for _ in 0..kills {
        let step = random.random_range(5..=80);
        mesh.machines[machine].kills_itself(step, "*/data/*");
        mesh.start_joining(machine, through);
        mesh.machines[machine].killed();
        let known =
            ["joining.json", "node.json", "raft"].map(|name| mesh.machines[machine].home.data().join(name).exists());
        println!("machine {machine}: killed at step {step} of joining: asked, member, log: {known:?}");
    }
    mesh.machines[machine].variables.clear();
    mesh.join(machine, through);
    mesh.ready();
}

/// Takes a voter out, kills one of those that must agree while the standby takes its place, and lets the machine that was
/// taken out join again.
fn change(mesh: &mut Mesh, registers: &Registers, turn: u64, random: &mut StdRng) -> bool {
    let leader = mesh.leader();
    let number = |machine: &usize| id(mesh, *machine);
    let (now, _) = voters(mesh, leader).expect("an answer");
    let (voting, rest): (Vec<usize>, Vec<usize>) = (0..4).partition(|machine| now.contains(&number(machine)));
    let standby = rest[0];
    let followers: Vec<_> = voting.into_iter().filter(|machine| *machine != leader).collect();
    let (gone, stays) = (followers[0], followers[1]);
    let gone_id = id(mesh, gone);
    let victim = *[leader, standby, stays].choose(random).expect("three");

    let before = mesh.machines[leader].home.log().len();
    let _ = mesh.machines[leader].home.muster(&["operator", "raft", "remove-peer", &gone_id.to_string()]).ended_with(0);
    wait_for(PATIENCE, "the change to begin", || {
        mesh.machines[leader].home.log()[before..].contains(CHANGES).then_some(())
    });
    // Not to wait for anything, but to kill at another moment each time.
    let late = Duration::from_millis(random.random_range(0..20));
    std::thread::sleep(late);
    mesh.machines[victim].kill();
    let witness = if victim == stays { leader } else { stays };
    // What is seen now stays so while the leader is dead; else it may end at any moment.
    let seen = voters(mesh, witness);
    println!("turn {turn}: {gone} goes, {standby} comes, {victim} killed {late:?} after {leader} has begun: {seen:?}");
    mesh.restart(victim);
    mesh.ready();
    let ids: Vec<_> = [leader, stays, standby].iter().map(|machine| id(mesh, *machine)).collect();
    wait_for(PATIENCE, "the change to end", || {
        let (now, joint) = voters(mesh, leader)?;
        (!joint && now.len() == 3 && ids.iter().all(|id| now.contains(id))).then_some(())
    });
    go_on(registers, &[leader, stays, standby]);

    // The one that is out begins anew.
    mesh.machines[gone].kill();
    std::fs::remove_dir_all(mesh.machines[gone].home.data()).expect("removes");
    mesh.machines[gone].name = format!("again-{turn}");
    joins(mesh, gone, leader, 1, random);
    go_on(registers, &[0, 1, 2, 3]);
    seen.is_some_and(|(_, joint)| joint)
}

#[test]
fn signal_9_while_nodes_join_and_voters_are_replaced_loses_nothing_and_the_change_is_finished() {
    if !Need::Compiler.is_met(GROUP) {
        return;
    }
    let runs = number("RUNS_MEMBERS", 1);
    let mut random = StdRng::seed_from_u64(number("SEED_MEMBERS", 1));
    let mut mesh = Mesh::of_three();
    let standby = mesh.place(Machine::on_loopback());
    joins(&mut mesh, standby, 0, 2, &mut random);
    let registers = Registers::new(mesh.apis(), "register", 5);
    let mut joint = 0;
    registers.used_while(1, || {
        for turn in 0..2 * runs {
            joint += u64::from(change(&mut mesh, &registers, turn, &mut random));
        }
    });
    println!("{:?}, {joint} times seen between two sets of voters", is_whole(&mut mesh, &registers));
}
