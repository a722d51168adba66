//! Three nodes as three processes: joining over the network, writing and reading through any of them, and signal 9.

#[path = "mesh/nodes.rs"]
mod nodes;
#[path = "mesh/roles.rs"]
mod roles;

use std::collections::BTreeSet;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use muster_tests::api::{Api, try_send};
use muster_tests::fleet::{Home, PATIENCE, outcome};
use muster_tests::mesh::{Mesh, free_address};
use muster_tests::process::{number, wait_for};
use muster_tests::registers::model;
use serde_json::Value;

fn names(answer: &Value) -> Vec<String> {
    let models = answer["models"].as_array().expect("a list").iter();
    models.map(|model| model["name"].as_str().expect("a name").to_owned()).collect()
}

///
#[test]
fn what_is_written_through_one_node_is_read_through_every_other() {
    let mesh = Mesh::of_three();
    for writer in 0..3 {
        let written = mesh.api(writer).post("/api/models", &model(&format!("written through {writer}"))).expect(201);
        let id = written.body["id"].as_str().expect("an id");
        for reader in 0..3 {
            let read = mesh.api(reader).get(&format!("/api/models/{id}")).expect(200);
            assert_eq!(read.body, written.body, "written through {writer}, read through {reader}");
            assert_eq!(mesh.api(reader).with_key("wrong").get("/api/models").status, 401);
        }
    }
    // One of two that want the same name at the same time gets it, whichever nodes they ask.
    let outcomes: Vec<_> = std::thread::scope(|scope| {
        let ask = |index: usize| {
            let api = mesh.api(index);
            scope.spawn(move || api.post("/api/models", &model("wanted by all")).status)
        };
        let asked = [ask(0), ask(1), ask(2)];
        asked.into_iter().map(|thread| thread.join().expect("ends")).collect()
    });
    assert_eq!(outcomes.iter().filter(|status| **status == 201).count(), 1, "{outcomes:?}");
    assert_eq!(outcomes.iter().filter(|status| **status == 409).count(), 2, "{outcomes:?}");
    assert_eq!(mesh.hashes().len(), 1, "equal states at an equal index");
    let nodes = mesh.api(2).get("/api/nodes").expect(200).body;
    let ids: Vec<_> = nodes.as_array().expect("a list").iter().map(|node| node["id"].as_u64()).collect();
    assert_eq!(ids, [Some(1), Some(2), Some(3)]);
}

///
#[test]
fn signal_9_of_the_leader_again_and_again_loses_nothing_and_repeats_nothing() {
    let mut mesh = Mesh::of_three();
    let (written, stop, acknowledged) = (AtomicUsize::new(0), AtomicBool::new(false), Mutex::new(BTreeSet::new()));
    let apis: Vec<_> = (0..3).map(|index| mesh.api(index)).collect();
    let kills = number("RUNS_LEADER", 3);
    std::thread::scope(|scope| {
        for (writer, api) in apis.iter().enumerate() {
            let (written, stop, acknowledged) = (&written, &stop, &acknowledged);
            scope.spawn(move || {
                for count in 0.. {
                    if stop.load(Ordering::Relaxed) {
                        return;
                    }
                    let name = format!("model {writer} {count}");
                    write_until_answered(api, &name, stop);
                    if !stop.load(Ordering::Relaxed) {
                        acknowledged.lock().expect("not poisoned").insert(name);
                        written.fetch_add(1, Ordering::Relaxed);
                    }
                }
            });
        }
        for kill in 0..kills {
            let before = written.load(Ordering::Relaxed);
            wait_for(PATIENCE, "some writes", || (written.load(Ordering::Relaxed) >= before + 10).then_some(()));
            let leader = mesh.leader();
            mesh.machines[leader].kill();
            let begun = Instant::now();
            // Nobody waits for the one that is gone: the other two elect a leader and go on.
            let during = written.load(Ordering::Relaxed);
            wait_for(PATIENCE, "writes without it", || (written.load(Ordering::Relaxed) >= during + 5).then_some(()));
            println!("kill {kill}: {} ms until five more writes", begun.elapsed().as_millis());
            mesh.restart(leader);
            mesh.ready();
        }
        stop.store(true, Ordering::Relaxed);
    });
    let acknowledged = acknowledged.into_inner().expect("not poisoned");
    assert!(acknowledged.len() >= 15 * usize::try_from(kills).expect("few"), "{} writes", acknowledged.len());
    for index in 0..3 {
        let found = names(&mesh.api(index).get("/api/models").expect(200).body);
        let once: BTreeSet<_> = found.iter().cloned().collect();
        assert_eq!(once.len(), found.len(), "nothing is there twice");
        let lost: Vec<_> = acknowledged.difference(&once).collect();
        assert!(lost.is_empty(), "node {index} lost {lost:?}");
    }
    assert_eq!(mesh.hashes().len(), 1, "equal states at an equal index");
}

/// Writes a model, repeating the request with its key until somebody says what became of it.
fn write_until_answered(api: &Api, name: &str, stop: &AtomicBool) {
    let body = model(name);
    let deadline = Instant::now() + PATIENCE;
    while !stop.load(Ordering::Relaxed) {
        let request = api.request("POST", "/api/models").header("idempotency-key", name).json(&body);
        match try_send(request).map(|answer| answer.status) {
            Ok(201) => return,
            Ok(503 | 504) | Err(_) => assert!(Instant::now() < deadline, "{name}: no answer"),
            // It was repeated with its key: a conflict would mean that it was done twice.
            Ok(status) => panic!("{name}: {status}"),
        }
        std::thread::yield_now();
    }
}

///
#[test]
fn all_nodes_killed_at_once_come_back_with_everything() {
    let mut mesh = Mesh::of_three();
    for count in 0..6 {
        let _ = mesh.api(count % 3).post("/api/models", &model(&format!("model {count}"))).expect(201);
    }
    let before = names(&mesh.api(0).get("/api/models").expect(200).body);
    for machine in &mut mesh.machines {
        machine.kill();
    }
    for index in 0..3 {
        mesh.restart(index);
    }
    mesh.ready();
    for index in 0..3 {
        assert_eq!(names(&mesh.api(index).get("/api/models").expect(200).body), before, "node {index}");
    }
    assert_eq!(mesh.hashes().len(), 1);
}

#[test]
fn without_a_quorum_writes_and_fresh_reads_are_refused_in_time_and_local_reads_go_on() {
    let mut mesh = Mesh::of_three();
    let _ = mesh.api(0).post("/api/models", &model("kept")).expect(201);
    let survivor = mesh.leader();
    for index in (0..3).filter(|index| *index != survivor) {
        mesh.machines[index].kill();
    }
    let api = mesh.api(survivor);
    let limit = Duration::from_secs(15);
    let timed = |request| {
        let begun = Instant::now();
        let answer = try_send(request).expect("an answer");
        assert!(begun.elapsed() < limit, "{:?}", begun.elapsed());
        answer
    };
    // The leader has it in its log, and nobody to agree with: it may be done or not.
    let write = timed(api.request("POST", "/api/models").json(&model("done once")));
    assert_eq!((write.status, write.body["code"].as_str()), (504, Some("OUTCOME_UNKNOWN")), "{write}");
    let key = write.body["idempotencyKey"].as_str().expect("the key to repeat it with").to_owned();
    let read = timed(api.request("GET", "/api/models"));
    assert_eq!((read.status, read.body["code"].as_str()), (503, Some("NO_QUORUM")), "{read}");
    let local = api.get("/api/models?consistency=local").expect(200);
    assert_eq!(names(&local.body), ["kept"]);
    assert!(!local.header("x-muster-applied-index").is_empty() && !local.header("x-muster-state-age-ms").is_empty());
    let home = &mesh.machines[survivor].home;
    let _ = home.muster(&["models", "list"]).ended_with(5);
    // One more makes a quorum again.
    let returning = (survivor + 1) % 3;
    mesh.restart(returning);
    wait_for(PATIENCE, "a quorum", || (mesh.api(survivor).get("/api/models").status == 200).then_some(()));
    mesh.ready();
    // Repeated with its key, through the other node: done now or done before, but not twice.
    let repeated = mesh.api(returning).post_once("/api/models", &model("done once"), &key).expect(201);
    let again = mesh.api(survivor).post_once("/api/models", &model("done once"), &key).expect(201);
    assert_eq!(repeated.body["id"], again.body["id"]);
    assert_eq!(names(&mesh.api(returning).get("/api/models").expect(200).body), ["done once", "kept"]);
    mesh.api(survivor).post_once("/api/models", &model("another"), &key).is_error(422, "IDEMPOTENCY_KEY_REUSED");
    let middle = key.len() / 2;
    let other = if &key[middle..=middle] == "A" { "B" } else { "A" };
    let made_up = format!("{}{other}{}", &key[..middle], &key[middle + 1..]);
    mesh.api(survivor).post_once("/api/models", &model("another"), &made_up).is_error(400, "BAD_REQUEST");
}

#[test]
fn a_leader_that_was_frozen_serves_no_stale_read_when_it_wakes() {
    let mut mesh = Mesh::of_three();
    let _ = mesh.api(0).post("/api/models", &model("before")).expect(201);
    let frozen = mesh.leader();
    mesh.machines[frozen].process().freeze();
    let other = (frozen + 1) % 3;
    // Asked before anybody knows that the leader is gone; nobody may have to wait behind it once there is another.
    let fresh = mesh.api(other);
    let early = std::thread::spawn(move || fresh.get("/api/models").status);
    // For longer than an election takes: the others have a leader of their own by then.
    wait_for(PATIENCE, "a write without it", || {
        let request =
            mesh.api(other).request("POST", "/api/models").header("idempotency-key", "k").json(&model("during"));
        matches!(try_send(request), Ok(answer) if answer.status == 201).then_some(())
    });
    assert!(matches!(early.join(), Ok(200 | 503)), "an answer, while nobody led or after");
    wait_for(Duration::from_secs(5), "a fresh read without it", || {
        let answer = mesh.api(other).get("/api/models");
        (answer.status == 200 && names(&answer.body).contains(&"during".to_owned())).then_some(())
    });
    let api = mesh.api(frozen);
    std::thread::scope(|scope| {
        // They wait in its socket, and are the first that it sees when it wakes, still taking itself for the leader.
        let early: Vec<_> =
            (0..8).map(|_| scope.spawn(|| try_send(api.request("GET", "/api/models")).expect("an answer"))).collect();
        mesh.machines[frozen].process().thaw();
        for answer in early.into_iter().map(|thread| thread.join().expect("ends")) {
            match answer.status {
                200 => assert!(names(&answer.body).contains(&"during".to_owned()), "stale: {answer}"),
                status => assert_eq!(status, 503, "{answer}"),
            }
        }
    });
    mesh.ready();
    assert_eq!(names(&mesh.api(frozen).get("/api/models").expect(200).body), ["during", "before"]);
    assert_eq!(mesh.hashes().len(), 1, "equal states at an equal index");
}

/// A write of unknown outcome names the key that tells: done now, or done before.
#[test]
fn the_first_write_of_a_process_can_be_repeated_when_its_outcome_was_unknown() {
    let mut mesh = Mesh::of_three();
    let leader = mesh.leader();
    // Nobody joined through the last, so it has written nothing yet.
    let (asked, other) = (2, 1 - leader);
    mesh.machines[leader].process().freeze();
    mesh.machines[other].process().freeze();
    let write = mesh.api(asked).post("/api/models", &model("first"));
    // It never learns what it was sent.
    mesh.machines[leader].kill();
    mesh.machines[other].process().thaw();
    mesh.restart(leader);
    assert_eq!((write.status, write.body["code"].as_str()), (504, Some("OUTCOME_UNKNOWN")), "{write}");
    let key = write.body["idempotencyKey"].as_str().expect("the key to repeat it with");
    wait_for(PATIENCE, "a quorum", || (mesh.api(asked).get("/api/models").status == 200).then_some(()));
    let made = mesh.api(other).post_once("/api/models", &model("first"), key).expect(201);
    let again = mesh.api(asked).post_once("/api/models", &model("first"), key).expect(201);
    assert_eq!(made.body["id"], again.body["id"]);
}

#[test]
fn a_node_with_a_wrong_token_or_a_taken_name_does_not_join() {
    let mesh = Mesh::of_three();
    let attempt = |name: &str, token: &str| {
        let home = Home::new();
        let through = mesh.machines[1].mesh.clone();
        let (api, own) = (free_address(), free_address());
        let arguments =
            ["serve", "--name", name, "--api", &api, "--mesh", &own, "--join", &through, "--join-token", token];
        let ended = outcome(&mut home.command(arguments));
        (ended.code, ended.stderr)
    };
    let (known, _) = mesh.token.rsplit_once('.').expect("a token");
    let (code, why) = attempt("node-4", &format!("{known}.guess"));
    assert_eq!(code, Some(1), "{why}");
    assert!(why.contains("unknown, expired or used up"), "{why}");
    let (code, why) = attempt("node-1", &mesh.token);
    assert_eq!(code, Some(1), "{why}");
    assert!(why.contains("named"), "{why}");
    let (code, _) = attempt("node-4", "no token");
    assert_eq!(code, Some(2));
    let nodes = mesh.api(0).get("/api/nodes").expect(200).body;
    assert_eq!(nodes.as_array().map(Vec::len), Some(3));
    for machine in &mesh.machines {
        let secret = mesh.token.rsplit('.').next().expect("a secret");
        assert!(!machine.home.log().contains(secret), "the token stands in a log");
    }
}
