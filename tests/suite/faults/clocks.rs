//! Clocks that are wrong, and certificates that all of them take for expired.

use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use muster_tests::api::{Api, try_send};
use muster_tests::clock::WallClock;
use muster_tests::fleet::PATIENCE;
use muster_tests::groups::Need;
use muster_tests::mesh::{Machine, Mesh};
use muster_tests::process::wait_for;
use muster_tests::registers::{Registers, model};
use serde_json::{Value, json};

use super::{GROUP, Stop, go_on, is_whole, others};

const OFF: Duration = Duration::from_secs(120);
const DAY: Duration = Duration::from_secs(24 * 3600);

/// Three nodes that each go by a clock of their own.
fn with_clocks() -> (Mesh, Vec<WallClock>) {
    let mut machines: Vec<_> = (0..3).map(|_| Machine::on_loopback()).collect();
    let clocks = machines.iter_mut().map(Machine::with_clock).collect();
    (Mesh::of(machines), clocks)
}

fn now() -> Duration {
    SystemTime::now().duration_since(UNIX_EPOCH).expect("after 1970")
}

/// Until when the certificate that a node keeps is valid, as `YYMMDD`: the second time in it, behind its beginning.
fn valid_until(machine: &Machine) -> String {
    let kept = std::fs::read(machine.home.data().join("node.json")).expect("who the node is");
    let kept: Value = serde_json::from_slice(&kept).expect("JSON");
    let text = kept["certificate"].as_str().expect("a certificate");
    let bytes: Vec<_> =
        (0..text.len()).step_by(2).map(|at| u8::from_str_radix(&text[at..at + 2], 16).expect("hex")).collect();
    // UTCTime of 13 characters.
    let times = bytes.windows(15).filter(|part| part[..2] == [0x17, 13] && part[2..14].iter().all(u8::is_ascii_digit));
    let end = times.map(|part| String::from_utf8_lossy(&part[2..8]).into_owned()).nth(1);
    end.expect("the end of its validity")
}

/// The day that it is so long from now, as `YYMMDD`.
fn day_in(time: Duration) -> String {
    let seconds = format!("@{}", (now() + time).as_secs());
    let output = muster_tests::process::run(std::process::Command::new("date").args(["-u", "-d", &seconds, "+%y%m%d"]));
    String::from_utf8_lossy(&output.stdout).trim().to_owned()
}

fn log_time(mesh: &Mesh, node: usize) -> String {
    let cluster = mesh.cluster(node).expect("an answer");
    cluster["clocks"]["logTime"].as_str().expect("a time").to_owned()
}

/// Each node writes, and each reads what the others have written.
fn all_write(mesh: &Mesh, what: &str) {
    for writer in 0..3 {
        let written = mesh.api(writer).post("/api/models", &model(&format!("{what} {writer}"))).expect(201);
        let path = format!("/api/models/{}", written.body["id"].as_str().expect("an id"));
        for reader in 0..3 {
            assert_eq!(mesh.api(reader).get(&path).expect(200).body, written.body);
        }
    }
}

#[test]
fn a_fleet_that_was_switched_off_until_all_certificates_had_expired_comes_back_by_itself() {
    if !Need::Compiler.is_met(GROUP) {
        return;
    }
    let (mut mesh, clocks) = with_clocks();
    all_write(&mesh, "first");

    // While it runs, a node still shows the certificate that it has renewed when it started; one that has died does not.
    let month = 40 * DAY;
    clocks.iter().for_each(|clock| clock.ahead(month));
    let back = (mesh.leader() + 1) % 3;
    mesh.machines[back].kill();
    mesh.restart(back);
    mesh.ready();
    all_write(&mesh, "a month later");
    // One that has just joined may have got the key to sign its own only by now.
    let ends = others(back).map(|other| valid_until(&mesh.machines[other]));
    assert!(ends.iter().any(|end| *end < day_in(month)), "no expired certificate is shown: {ends:?}");

    // Everybody's has expired, and nobody is there.
    mesh.machines.iter_mut().for_each(Machine::stop);
    let months = month + 75 * DAY;
    clocks.iter().for_each(|clock| clock.ahead(months));
    let ends: Vec<_> = mesh.machines.iter().map(valid_until).collect();
    assert!(ends.iter().all(|end| *end < day_in(months)), "{ends:?}");
    let begun = Instant::now();
    (0..3).for_each(|index| mesh.restart(index));
    mesh.ready();
    println!("certificates until {ends:?}, switched on on {}: ready after {:?}", day_in(months), begun.elapsed());
    all_write(&mesh, "months later");
    for index in 0..3 {
        assert_eq!(mesh.api(index).get("/api/models").expect(200).body["models"].as_array().map(Vec::len), Some(9));
        // What it shows from now on is new.
        wait_for(PATIENCE, "a new certificate", || (valid_until(&mesh.machines[index]) > day_in(months)).then_some(()));
    }
    let day = log_time(&mesh, 0)[2..10].replace('-', "");
    assert!(day_in(months - DAY) <= day && day <= day_in(months + DAY), "{day}");

    // Another machine, whose clock is as theirs, can join.
    let mut joiner = Machine::on_loopback();
    joiner.with_clock().ahead(months);
    mesh.new_token();
    let _ = mesh.add(joiner, 0);
    mesh.ready();
    assert_eq!(mesh.hashes().len(), 1, "equal states at an equal index");
}

/// A key that ends so many seconds from now.
fn key(api: &Api, seconds: u64) -> (Api, Instant) {
    let begun = Instant::now();
    let wish = json!({"kind": "console", "label": "short", "role": "viewer", "ttlSeconds": seconds});
    let made = wait_for(PATIENCE, "a key", || {
        try_send(api.request("POST", "/api/credentials").json(&wish)).ok().filter(|answer| answer.status == 201)
    });
    (api.with_key(made.body["key"].as_str().expect("a key")), begun)
}

/// Collects the log's time by index from every node until it is told to stop.
fn watch(apis: &[Api], stop: &AtomicBool, seen: &Mutex<Vec<(u64, String)>>) {
    while !stop.load(Ordering::Relaxed) {
        for api in apis {
            let Ok(answer) = try_send(api.request("GET", "/api/cluster?consistency=local")) else { continue };
            let (index, time) = (answer.body["appliedIndex"].as_u64(), answer.body["clocks"]["logTime"].as_str());
            if let (Some(index), Some(time)) = (index, time) {
                seen.lock().expect("not poisoned").push((index, time.to_owned()));
            }
        }
        std::thread::sleep(Duration::from_millis(10));
    }
}

/// One clock is put wrong and right again, and meanwhile everything goes on.
fn one_is_off(mesh: &Mesh, registers: &Registers, clocks: &[WallClock], node: usize, forward: bool, lifetime: u64) {
    let (valid, begun) = key(&mesh.api((node + 1) % 3), lifetime);
    let asked = valid.at(mesh.api(node).endpoint());
    let was = log_time(mesh, node);
    let told = clocks[node].told();
    if forward {
        clocks[node].ahead(OFF);
    } else {
        clocks[node].behind(OFF);
    }
    // Time that the node in question has for whatever it does about it.
    for _ in 0..3 {
        go_on(registers, &[0, 1, 2]);
    }
    // Two seconds are what a clock may be off without anybody minding.
    let end = Duration::from_secs(lifetime) - Duration::from_secs(2);
    for api in [&valid, &asked] {
        let status = api.get("/api/models").status;
        assert!(status == 200 || begun.elapsed() > end, "{status} after {:?} of {lifetime} s", begun.elapsed());
    }
    let told = clocks[node].told() - told;
    let now = log_time(mesh, node);
    println!("node {node}, forward: {forward}: told a wrong time {told} times, log time {was} to {now}");
    assert!(told > 10, "nobody has noticed: {told}");
    clocks[node].right();
    go_on(registers, &[0, 1, 2]);
}

#[test]
fn with_a_clock_two_minutes_off_writes_go_on_log_time_does_not_go_back_and_no_key_ends_early() {
    if !Need::Compiler.is_met(GROUP) {
        return;
    }
    let (mut mesh, clocks) = with_clocks();
    let registers = Registers::new(mesh.apis(), "register", 5);
    let (stop, seen) = (AtomicBool::new(false), Mutex::default());
    let apis = mesh.apis();
    std::thread::scope(|scope| {
        let _stop = Stop(&stop);
        let _ = scope.spawn(|| watch(&apis, &stop, &seen));
        registers.used_while(1, || {
            for forward in [true, false] {
                let follower = (mesh.leader() + 1) % 3;
                one_is_off(&mesh, &registers, &clocks, follower, forward, 15);
            }
            for forward in [true, false] {
                // The log may take over as much of it as the clock is off, until the others mind.
                one_is_off(&mesh, &registers, &clocks, mesh.leader(), forward, 180);
            }
        });
    });
    let mut seen = seen.into_inner().expect("not poisoned");
    seen.sort();
    seen.dedup();
    println!("{} positions of the log seen", seen.len());
    assert!(seen.len() > 100, "{}", seen.len());
    for pair in seen.windows(2) {
        assert!(pair[0].0 < pair[1].0, "two times at one index: {pair:?}");
        assert!(pair[0].1 <= pair[1].1, "the log's time goes back: {pair:?}");
    }
    // A node lets others in, and is let in, whatever its clock shows.
    for forward in [true, false] {
        let mut joiner = Machine::on_loopback();
        let clock = joiner.with_clock();
        if forward {
            clock.ahead(OFF)
        } else {
            clock.behind(OFF)
        };
        let index = mesh.add(joiner, 0);
        mesh.ready();
        assert!(clock.told() > 10, "it went by another clock");
        let _ = mesh.api(index).post("/api/models", &model(&format!("through the joiner {forward}"))).expect(201);
    }
    let figures = is_whole(&mut mesh, &registers);
    println!("{figures:?}");
    assert!(figures.answered > 500, "{figures:?}");
}
