//! Everything that callers see of three nodes can be explained by registers that are used by one after the other, whatever
//! is done to the processes meanwhile.

use std::time::Instant;

use muster_tests::history::What;
use muster_tests::mesh::Mesh;
use muster_tests::process::number;
use muster_tests::registers::{FAILOVER, Registers};
use rand::rngs::StdRng;
use rand::seq::SliceRandom;
use rand::{RngExt, SeedableRng};

/// What is done to a node.
#[derive(Clone, Copy, Debug)]
enum Fault {
    /// Signal 9, and started again once the others write.
    KillLeader,
    /// Stopped until the others write, which is longer than an election.
    FreezeLeader,
    /// Signal 9 to one of the others, while all go on.
    KillFollower,
}

fn writes(what: What) -> bool {
    what.writes().is_some()
}

fn cause(mesh: &mut Mesh, registers: &Registers, fault: Fault, random: &mut StdRng) {
    registers.wait_for_each(FAILOVER, Instant::now(), &[0, 1, 2], writes);
    let leader = mesh.leader();
    let victim = match fault {
        Fault::KillLeader | Fault::FreezeLeader => leader,
        Fault::KillFollower => (leader + random.random_range(1..3)) % 3,
    };
    let others = [(victim + 1) % 3, (victim + 2) % 3];
    match fault {
        Fault::FreezeLeader => mesh.machines[victim].process().freeze(),
        Fault::KillLeader | Fault::KillFollower => mesh.machines[victim].kill(),
    }
    let begun = Instant::now();
    let first = registers.wait_for_each(FAILOVER, begun, &others, writes);
    let led_by = mesh.leader_among(&others);
    match fault {
        Fault::FreezeLeader => std::thread::scope(|scope| {
            // Asked for once the others have written, and among the first that it sees when it wakes.
            for register in registers.numbers() {
                let _ = scope.spawn(move || registers.read(victim, register));
            }
            mesh.machines[victim].process().thaw();
        }),
        Fault::KillLeader | Fault::KillFollower => mesh.restart(victim),
    }
    println!("{fault:?} (node {victim}): first write after {} ms, node {led_by} leads", first.as_millis());
    mesh.ready();
    registers.wait_for_each(FAILOVER, Instant::now(), &[victim], |what| what == What::Read);
}

#[test]
fn all_that_callers_see_has_an_explanation_while_nodes_are_killed_and_frozen() {
    let mut mesh = Mesh::of_three();
    for run in 0..number("RUNS_HISTORY", 1) {
        let seed = number("SEED_HISTORY", 1) + run;
        let mut random = StdRng::seed_from_u64(seed);
        let registers = Registers::new(mesh.apis(), &format!("register-{seed}"), 5);
        let mut faults = [Fault::KillLeader, Fault::FreezeLeader, Fault::KillFollower];
        faults.shuffle(&mut random);
        registers.used_while(seed, || {
            for fault in faults {
                cause(&mut mesh, &registers, fault, &mut random);
            }
        });
        let figures = registers.check();
        println!("seed {seed}: {figures:?}");
        assert!(figures.answered > 300, "{figures:?}");
        assert_eq!(mesh.hashes().len(), 1, "equal states at an equal index");
    }
}
