//! All machines lose their power at once.

use std::collections::BTreeSet;
use std::path::Path;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Instant;

use muster_tests::api::{Api, try_send};
use muster_tests::disk::{Disk, Survives, read_trace};
use muster_tests::fleet::{Home, PATIENCE};
use muster_tests::groups::Need;
use muster_tests::mesh::{Machine, Mesh};
use muster_tests::process::{number, wait_for};
use muster_tests::registers::{Registers, model};
use rand::rngs::StdRng;
use rand::seq::IndexedRandom;
use rand::{RngExt, SeedableRng};
use serde_json::Value;

use super::{GROUP, Stop, go_on, is_whole, others, set_aside};

/// What was written and acknowledged, by its key.
type Acknowledged = Mutex<Vec<(String, Value)>>;

/// Writes models through one node, each with a key of its own.
fn write(api: &Api, node: usize, stop: &AtomicBool, count: &AtomicUsize, acknowledged: &Acknowledged) {
    while !stop.load(Ordering::Relaxed) {
        let name = format!("model {} through {node}", count.fetch_add(1, Ordering::Relaxed));
        let request = api.request("POST", "/api/models").header("idempotency-key", &name).json(&model(&name));
        if let Ok(answer) = try_send(request)
            && answer.status == 201
        {
            acknowledged.lock().expect("not poisoned").push((name, answer.body));
        }
    }
}

/// A node's disk as it is now.
fn disk(home: &Home, trace: &Path) -> Disk {
    let mut disk = Disk::new(home.path());
    for step in &read_trace(trace).expect("the recording") {
        disk.advance(step);
    }
    disk
}

/// Puts what the loss of power has left in the place of a node's directory, and returns how much had not been safe.
fn lose(home: &Home, trace: &Path, survives: Survives, seed: u64) -> usize {
    let disk = disk(home, trace);
    let left = home.path().join("left");
    std::fs::create_dir(&left).expect("a directory");
    disk.lose_power(survives, seed, &left).expect("the image is written");
    std::fs::remove_dir_all(home.data()).expect("removes");
    std::fs::rename(left.join("data"), home.data()).expect("its data directory");
    std::fs::remove_dir_all(&left).expect("removes");
    disk.not_safe()
}

fn run(seed: u64) {
    let mut random = StdRng::seed_from_u64(seed);
    let mut machines: Vec<_> = (0..3).map(|_| Machine::on_loopback()).collect();
    let place = tempfile::tempdir().expect("a directory");
    let hold = place.path().join("hold");
    let traces: Vec<_> = machines.iter_mut().map(|machine| machine.recorded(&hold)).collect();
    let mut mesh = Mesh::of(machines);
    let registers = Registers::new(mesh.apis(), "register", 5);
    let (stop, count, acknowledged) = (AtomicBool::new(false), AtomicUsize::new(0), Acknowledged::default());
    let apis = mesh.apis();
    registers.used_while(seed, || {
        go_on(&registers, &[0, 1, 2]);
        std::thread::scope(|scope| {
            let _stop = Stop(&stop);
            for (node, api) in apis.iter().enumerate() {
                let (stop, count, acknowledged) = (&stop, &count, &acknowledged);
                let _ = scope.spawn(move || write(api, node, stop, count, acknowledged));
            }
            let enough = random.random_range(20..60);
            wait_for(PATIENCE, "some writes", || {
                (acknowledged.lock().expect("not poisoned").len() >= enough).then_some(())
            });
            // The moment: what is written from here on is lost or not, and nothing of it is acknowledged.
            std::fs::write(&hold, "").expect("a file");
            wait_for(PATIENCE, "every node to have something to lose", || {
                let mut nodes = mesh.machines.iter().zip(&traces);
                nodes.all(|(machine, trace)| disk(&machine.home, trace).not_safe() > 0).then_some(())
            });
            mesh.kill_all();
        });
    });
    std::fs::remove_file(&hold).expect("removes");
    let acknowledged = acknowledged.into_inner().expect("not poisoned");
    let calls = registers.calls().len();
    for machine in &mut mesh.machines {
        machine.variables.clear();
    }
    for image in 0..number("IMAGES", 2) {
        let chosen: Vec<_> = traces
            .iter()
            .enumerate()
            .map(|(node, trace)| {
                let kinds = [Survives::Nothing, Survives::Prefix, Survives::RandomHalf];
                let (survives, image) = (*kinds.choose(&mut random).expect("three"), random.random());
                (survives, lose(&mesh.machines[node].home, trace, survives, image))
            })
            .collect();
        println!("seed {seed}, image {image}: {chosen:?}, {} acknowledged", acknowledged.len());
        assert!(chosen.iter().all(|(_, not_safe)| *not_safe > 0), "there was nothing to lose");
        // What another image has shown of calls without an answer says nothing of this one.
        registers.forget_after(calls);
        (0..3).for_each(|index| mesh.restart(index));
        let figures = is_whole(&mut mesh, &registers);
        println!("{figures:?}");
        for (turn, (name, first)) in acknowledged.iter().enumerate() {
            let again = mesh.api(turn % 3).post_once("/api/models", &model(name), name).expect(201);
            assert_eq!(again.body, *first, "acknowledged before the power failed");
        }
        go_on_and_whole(&mut mesh, &registers, seed);
        for machine in &mesh.machines {
            assert_eq!(set_aside(machine), 0, "nothing was wrong with it");
        }
        mesh.kill_all();
    }
}

fn go_on_and_whole(mesh: &mut Mesh, registers: &Registers, seed: u64) {
    registers.used_while(seed + 1, || go_on(registers, &[0, 1, 2]));
    let _ = is_whole(mesh, registers);
}

#[test]
fn nothing_acknowledged_is_lost_when_all_machines_lose_their_power_at_once() {
    if !Need::Compiler.is_met(GROUP) {
        return;
    }
    let seed = number("SEED_BLACKOUT", 1);
    (seed..seed + number("RUNS_BLACKOUT", 1)).for_each(run);
}

#[test]
fn a_leader_that_loses_its_power_and_returns_at_once_does_not_lead_on_with_what_it_has_left() {
    if !Need::Compiler.is_met(GROUP) {
        return;
    }
    let mut machines: Vec<_> = (0..3).map(|_| Machine::on_loopback()).collect();
    let holds: Vec<_> = machines.iter().map(|machine| machine.home.path().join("hold")).collect();
    let traces: Vec<_> = machines.iter_mut().zip(&holds).map(|(machine, hold)| machine.recorded(hold)).collect();
    let mut mesh = Mesh::of(machines);
    let (stop, count, acknowledged) = (AtomicBool::new(false), AtomicUsize::new(0), Acknowledged::default());
    let (leader, apis) = (mesh.leader(), mesh.apis());
    let term = mesh.cluster(leader).expect("an answer")["term"].clone();
    let acknowledged_so_far = || acknowledged.lock().expect("not poisoned").len();
    std::thread::scope(|scope| {
        let _stop = Stop(&stop);
        let stop = &stop;
        for node in others(leader) {
            let (api, count, acknowledged) = (&apis[node], &count, &acknowledged);
            let _ = scope.spawn(move || write(api, node, stop, count, acknowledged));
        }
        wait_for(PATIENCE, "some writes", || (acknowledged_so_far() > 10).then_some(()));
        // The others are a majority: what they have made durable is acknowledged, and the leader's disk owes it.
        std::fs::write(&holds[leader], "").expect("a file");
        let before = acknowledged_so_far();
        wait_for(PATIENCE, "writes without its disk", || (acknowledged_so_far() >= before + 20).then_some(()));
        mesh.machines[leader].kill();
        let lost = lose(&mesh.machines[leader].home, &traces[leader], Survives::Nothing, 1);
        mesh.machines[leader].variables.clear();
        let begun = Instant::now();
        mesh.restart(leader);
        assert!(lost > 0, "there was nothing to lose");
        mesh.ready();
        println!("{lost} changes lost, back and ready after {:?}; the term was {term}", begun.elapsed());
        let before = acknowledged_so_far();
        wait_for(PATIENCE, "more writes", || (acknowledged_so_far() >= before + 20).then_some(()));
    });
    let acknowledged = acknowledged.into_inner().expect("not poisoned");
    assert_eq!(mesh.hashes().len(), 1, "equal states at an equal index");
    for node in 0..3 {
        let models = mesh.api(node).get("/api/models?limit=1000").expect(200).body;
        let found: BTreeSet<_> = models["models"]
            .as_array()
            .expect("a list")
            .iter()
            .map(|model| &model["name"])
            .map(Value::to_string)
            .collect();
        let lost: Vec<_> =
            acknowledged.iter().filter(|(name, _)| !found.contains(&Value::from(name.as_str()).to_string())).collect();
        assert!(lost.is_empty(), "node {node} has lost {lost:?}");
    }
    println!("{} acknowledged", acknowledged.len());
}
