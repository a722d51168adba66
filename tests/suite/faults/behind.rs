//! Signal 9 while snapshots are built, received and installed and the log is purged, and nodes that were away for longer than
//! the log reaches back.

use std::collections::BTreeSet;
use std::os::unix::process::ExitStatusExt;
use std::path::PathBuf;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Instant;

use muster_tests::api::try_send;
use muster_tests::fleet::PATIENCE;
use muster_tests::groups::Need;
use muster_tests::mesh::{Machine, Mesh};
use muster_tests::process::{number, wait_for};
use muster_tests::registers::{Registers, model};
use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};
use serde_json::json;

use super::{GROUP, go_on, is_whole, large_model, others};

/// So many entries are kept behind a snapshot, and so many more are forgotten at once.
const KEPT: u64 = 5000 + 256;

/// A snapshot on its way to the disk, and one that is there.
const HALF_WRITTEN: &str = "*/snap/*.tmp";
const WRITTEN: &str = "*/snap/*.snap";

/// How many write at once while the log is made long.
const WRITERS: u64 = 24;

fn field(mesh: &Mesh, node: usize, name: &str) -> u64 {
    mesh.cluster(node).expect("an answer")[name].as_u64().expect("a number")
}

/// Writes through these nodes until the log reaches so far.
fn write_until(mesh: &Mesh, nodes: &[usize], index: u64) {
    let (begun, from) = (Instant::now(), field(mesh, nodes[0], "appliedIndex"));
    let count = AtomicU64::new(0);
    let wanted = index.saturating_sub(from);
    std::thread::scope(|scope| {
        for writer in 0..WRITERS {
            let (api, count) = (mesh.api(nodes[writer as usize % nodes.len()]), &count);
            let _ = scope.spawn(move || {
                while count.fetch_add(1, Ordering::Relaxed) < wanted {
                    let body = json!({"description": count.load(Ordering::Relaxed).to_string()});
                    let _ = try_send(api.request("PUT", "/api/models/written").json(&body));
                }
            });
        }
    });
    println!("{wanted} writes in {} ms", begun.elapsed().as_millis());
}

/// What lies in a node's directory while something is being written.
fn half_done(machine: &Machine) -> BTreeSet<String> {
    let names = |path: PathBuf| {
        let entries = std::fs::read_dir(path).expect("lists").map(|entry| entry.expect("an entry").path());
        entries.filter_map(|path| Some(path.extension()?.to_str()?.to_owned())).collect::<BTreeSet<_>>()
    };
    let data = machine.home.data();
    let parts = names(data.join("snap")).into_iter().chain(names(data));
    parts.filter(|end| ["tmp", "received", "replacement", "new", "replaced"].contains(&end.as_str())).collect()
}

/// The newest snapshot of a node: its name, and what is in it.
fn newest(machine: &Machine) -> (PathBuf, Vec<u8>) {
    let entries = std::fs::read_dir(machine.home.data().join("snap")).expect("lists");
    let entries = entries.map(|entry| entry.expect("an entry").path());
    let path = entries.filter(|path| path.extension().is_some_and(|end| end == "snap")).max().expect("a snapshot");
    let content = std::fs::read(&path).expect("readable");
    (path.file_name().expect("a name").into(), content)
}

/// Starts a node that was away and kills it while it takes in a snapshot, again and again; then lets it come back.
fn comes_back(mesh: &mut Mesh, node: usize, kills: u64, random: &mut StdRng) {
    let sent = newest(&mesh.machines[mesh.leader()]);
    let mut hit = 0;
    for turn in 0..kills {
        let step = random.random_range(1..=30);
        mesh.machines[node].kills_itself(step, HALF_WRITTEN);
        mesh.restart(node);
        let killed = wait_for(PATIENCE, "the node to be killed, or to have caught up", || {
            let caught_up = mesh.cluster(node).is_some_and(|cluster| cluster["purgedIndex"] != 0);
            let ended = mesh.machines[node].process().ended();
            ended.map(|status| status.signal() == Some(9)).or_else(|| caught_up.then_some(false))
        });
        if !killed {
            mesh.machines[node].kill();
            println!("node {node} came back before step {step}");
            break;
        }
        hit += 1;
        mesh.machines[node].node = None;
        println!(
            "node {node}, kill {turn}: at step {step} of taking in a snapshot: {:?}",
            half_done(&mesh.machines[node])
        );
    }
    assert!(hit > 0, "it was never killed");
    mesh.machines[node].variables.clear();
    mesh.restart(node);
    mesh.ready();
    wait_for(PATIENCE, "the leader's snapshot", || (newest(&mesh.machines[node]) == sent).then_some(()));
}

/// Kills a node while it builds a snapshot, or just after, when it forgets the log before it.
fn killed_at_snapshot(mesh: &mut Mesh, registers: &Registers, node: usize, from: &str, random: &mut StdRng) {
    let step = random.random_range(1..=30);
    mesh.machines[node].kill();
    mesh.machines[node].kills_itself(step, from);
    mesh.restart(node);
    mesh.ready();
    go_on(registers, &ALL);
    let purged = field(mesh, node, "purgedIndex");
    let _ = try_send(mesh.api(node).request("GET", "/api/cluster/snapshot"));
    mesh.machines[node].killed();
    let left = half_done(&mesh.machines[node]);
    let others: Vec<_> = ALL.into_iter().filter(|other| *other != node).collect();
    go_on(registers, &others);
    mesh.machines[node].variables.clear();
    mesh.restart(node);
    mesh.ready();
    go_on(registers, &ALL);
    let now = field(mesh, node, "purgedIndex");
    println!(
        "node {node}: killed at step {step} from {from}: left {left:?}, the log begins behind {purged}, then {now}"
    );
}

const ALL: [usize; 4] = [0, 1, 2, 3];

#[test]
fn a_voter_and_a_standby_come_back_by_snapshot_and_signal_9_at_any_step_of_it_or_of_the_purge_loses_nothing() {
    if !Need::Compiler.is_met(GROUP) {
        return;
    }
    let kills = 2 * number("RUNS_SNAPSHOT", 1);
    let mut random = StdRng::seed_from_u64(number("SEED_SNAPSHOT", 1));
    let mut mesh = Mesh::of(ALL.map(|_| Machine::on_loopback()).into());
    let _ = mesh.api(0).post("/api/models", &model("written")).expect(201);
    let registers = Registers::new(mesh.apis(), "register", 5);
    let leader = mesh.leader();
    let standby = 3;
    let [voter, stays] = others(leader);
    let left_at = field(&mesh, leader, "lastLogIndex");
    for node in [voter, standby] {
        mesh.machines[node].kill();
    }
    // A snapshot of some size.
    for count in 0..100 {
        let _ = mesh.api(leader).post("/api/models", &large_model(&format!("large {count}"))).expect(201);
    }
    write_until(&mesh, &[leader, stays], left_at + KEPT + 100);
    for node in [leader, stays] {
        let _ = mesh.api(node).get("/api/cluster/snapshot").expect(200);
        let begun = Instant::now();
        let purged = wait_for(PATIENCE, "the log to be forgotten", || {
            Some(field(&mesh, node, "purgedIndex")).filter(|purged| *purged > left_at)
        });
        println!("they left at {left_at}; the log of node {node} begins behind {purged}, after {:?}", begun.elapsed());
    }
    registers.used_while(1, || {
        for node in [standby, voter] {
            comes_back(&mut mesh, node, kills, &mut random);
        }
        go_on(&registers, &ALL);
        // These two have a log that reaches far back, and forget a part of it with every snapshot.
        for turn in 0..kills {
            let node = [stays, leader][turn as usize % 2];
            let from = [HALF_WRITTEN, WRITTEN][(turn + turn / 2) as usize % 2];
            let leads = mesh.leader();
            write_until(&mesh, &[leads], field(&mesh, leads, "appliedIndex") + 300);
            killed_at_snapshot(&mut mesh, &registers, node, from, &mut random);
        }
    });
    let figures = is_whole(&mut mesh, &registers);
    println!("{figures:?}");
    let large = mesh.api(standby).get("/api/models").expect(200).body["models"].as_array().map(Vec::len);
    assert_eq!(large, Some(100 + 1 + 5));
}
