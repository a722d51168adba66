//! Clocks that are wrong: real processes, each with a time of day of its own.

use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use muster_tests::api::{Api, try_send};
use muster_tests::clock::WallClock;
use muster_tests::groups::Need;
use muster_tests::mesh::{Machine, Mesh};
use muster_tests::process::wait_for;
use serde_json::{Value, json};

/// A clock is read every two seconds and judged by two readings; far more is a defect.
const NOTICED: Duration = Duration::from_secs(15);

/// By how much clocks are wrong here.
const WRONG: Duration = Duration::from_secs(120);

fn mesh() -> (Mesh, Vec<WallClock>) {
    let mut machines: Vec<_> = (0..3).map(|_| Machine::on_loopback()).collect();
    let clocks = machines.iter_mut().map(Machine::with_clock).collect();
    let mesh = Mesh::of(machines);
    // Everybody has read everybody.
    for api in mesh.apis() {
        wait_for(NOTICED, "all clocks to be read", || {
            let cluster = cluster(&api);
            let good = |clock: &Value| clock["standing"] == "good";
            let clocks = cluster["clocks"]["nodes"].as_array().expect("a list");
            (clocks.len() == 3 && clocks.iter().all(good)).then_some(())
        });
    }
    (mesh, clocks)
}

fn cluster(api: &Api) -> Value {
    api.get("/api/cluster?consistency=local").expect(200).body
}

fn nodes(api: &Api) -> Vec<Value> {
    api.get("/api/nodes?consistency=local").expect(200).body.as_array().expect("a list").clone()
}

/// How far the time of the log is ahead of the machine's.
fn log_is_ahead(api: &Api) -> f64 {
    let text = cluster(api)["clocks"]["logTime"].as_str().expect("a time").to_owned();
    let log = humantime(&text);
    let now = SystemTime::now().duration_since(UNIX_EPOCH).expect("after 1970").as_secs_f64();
    log - now
}

/// Seconds since 1970 of a time as the API writes it.
fn humantime(text: &str) -> f64 {
    let output = std::process::Command::new("date").args(["-u", "-d", text, "+%s.%N"]).output().expect("date runs");
    String::from_utf8_lossy(&output.stdout).trim().parse().expect("seconds")
}

/// A key of the gateway that lives for less than clocks are wrong by.
fn short_key(api: &Api) -> (u64, String) {
    let body = json!({"kind": "gateway", "label": "ends soon", "ttlSeconds": 90});
    let made = api.post("/api/credentials", &body).expect(201).body;
    (made["credential"]["id"].as_u64().expect("a number"), made["key"].as_str().expect("a key").to_owned())
}

fn write(api: &Api, port: u64) -> u16 {
    try_send(api.request("PUT", "/api/settings").json(&json!({ "default_port": port })))
        .map_or(0, |answer| answer.status)
}

#[test]
fn a_follower_whose_clock_is_wrong_shows_as_degraded_until_it_is_put_right() {
    if !Need::Compiler.is_met("clocks") {
        return;
    }
    let (mesh, clocks) = mesh();
    let leader = mesh.leader();
    let follower = (leader + 1) % 3;
    let term = cluster(&mesh.api(leader))["term"].clone();
    for (put, side) in [(WallClock::ahead as fn(&WallClock, Duration), "ahead of"), (WallClock::behind, "behind")] {
        put(&clocks[follower], WRONG);
        for api in mesh.apis() {
            wait_for(NOTICED, "it to be seen", || {
                let node = nodes(&api)[follower].clone();
                let reason = node["statusReason"].as_str().unwrap_or_default();
                (node["status"] == "degraded" && reason.contains(side) && reason.contains(" s ")).then_some(())
            });
            let others = nodes(&api).into_iter().enumerate().filter(|(index, _)| *index != follower);
            assert!(others.map(|(_, node)| node["status"].clone()).all(|status| status == "online"));
            let clock = cluster(&api)["clocks"]["nodes"][follower].clone();
            assert_eq!(clock["standing"], "off", "{clock}");
            let offset = clock["offsetMs"].as_i64().expect("is known").unsigned_abs();
            assert!(offset.abs_diff(120_000) < 2000, "{clock}");
            assert!(api.get("/metrics").text.contains("muster_clocks_off 1"));
        }
        // Written through the one whose clock is wrong.
        assert_eq!(write(&mesh.api(follower), 4001), 200);
        assert!(log_is_ahead(&mesh.api(leader)).abs() < 5.0, "the leader's clock is right");
    }
    clocks[follower].ahead(Duration::ZERO);
    for api in mesh.apis() {
        wait_for(NOTICED, "it to be right", || nodes(&api).iter().all(|node| node["status"] == "online").then_some(()));
    }
    assert_eq!((mesh.leader(), &cluster(&mesh.api(leader))["term"]), (leader, &term), "nobody else has led meanwhile");
    let log = mesh.machines[leader].home.log();
    assert_eq!(log.matches("the clock of a node is off").count(), 1, "said once for as long as it was off");
}

#[test]
fn a_leader_whose_clock_is_wrong_hands_over_and_nothing_expires_early() {
    if !Need::Compiler.is_met("clocks") {
        return;
    }
    let (mesh, clocks) = mesh();
    let before = mesh.leader();
    let others: Vec<_> = (0..3).filter(|index| *index != before).collect();
    let (id, key) = short_key(&mesh.api(before));
    clocks[before].ahead(WRONG);
    let begun = Instant::now();
    let mut written = 0;
    let after = loop {
        for api in mesh.apis() {
            assert_eq!(write(&api, 5000 + written), 200, "writes go on");
            assert_eq!(api.with_key(&key).get("/v1/models").status, 200, "the key has not ended yet");
            written += 1;
        }
        assert!(log_is_ahead(&mesh.api(others[0])) < 3.0, "the time of the log has run ahead");
        let leads = |index: &usize| mesh.cluster(*index).is_some_and(|cluster| cluster["role"] == "leader");
        if let Some(after) = others.iter().copied().find(leads) {
            break after;
        }
        assert!(begun.elapsed() < NOTICED, "nobody else leads");
    };
    println!("another node led after {:?} and {written} writes", begun.elapsed());
    assert_eq!(write(&mesh.api(after), 6000), 200);
    let drift = log_is_ahead(&mesh.api(after));
    assert!(drift.abs() < 5.0, "the time of the log goes on: {drift}");
    let credentials = mesh.api(after).get("/api/credentials").expect(200).body;
    let credentials = credentials["credentials"].as_array().expect("a list");
    assert!(credentials.iter().any(|credential| credential["id"] == id), "it is not swept away");
    assert_eq!(mesh.api(after).with_key(&key).get("/v1/models").status, 200);
    // It does not come back while the clock is wrong.
    let node = wait_for(NOTICED, "it to be seen", || {
        Some(nodes(&mesh.api(after))[before].clone()).filter(|node| node["status"] == "degraded")
    });
    assert_eq!(node["role"], "voter", "{node}");
    assert_eq!(mesh.hashes().len(), 1);
}

#[test]
fn where_no_majority_says_what_time_it_is_the_log_goes_no_further_than_a_second_voter() {
    if !Need::Compiler.is_met("clocks") {
        return;
    }
    let (mut mesh, clocks) = mesh();
    let leader = mesh.leader();
    let (dead, other) = ((leader + 1) % 3, (leader + 2) % 3);
    let (_, key) = short_key(&mesh.api(leader));
    mesh.machines[dead].kill();
    // What it said last counts for a while.
    let forgotten = || cluster(&mesh.api(leader))["clocks"]["nodes"][dead]["standing"] == "unknown";
    wait_for(2 * NOTICED, "the dead one to be forgotten", || forgotten().then_some(()));
    clocks[leader].ahead(WRONG);
    let undecided = || cluster(&mesh.api(leader))["clocks"]["agreement"] == "undecided";
    wait_for(NOTICED, "nobody to know what time it is", || undecided().then_some(()));
    for port in 7000..7005 {
        assert_eq!(write(&mesh.api(other), port), 200, "writes go on");
    }
    assert!(log_is_ahead(&mesh.api(other)) < 5.0, "the time of the log has run ahead");
    assert_eq!(mesh.api(other).with_key(&key).get("/v1/models").status, 200, "the key has not ended yet");
    assert_eq!(mesh.leader_among(&[leader, other]), leader, "nobody can say that its clock is wrong");
}
