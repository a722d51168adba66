//! A machine without time to spare.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::available_parallelism;
use std::time::{Duration, Instant};

use muster_tests::api::try_send;
use muster_tests::fleet::PATIENCE;
use muster_tests::mesh::Mesh;
use muster_tests::process::{number, wait_for};
use muster_tests::registers::model;
use serde_json::json;

use super::Stop;

/// How long one round takes.
const ROUND: Duration = Duration::from_secs(10);

const WRITERS: usize = 16;

/// Of each node: the term, who leads, and by which timing it goes.
fn terms(mesh: &Mesh) -> Vec<serde_json::Value> {
    let of = |index| mesh.cluster(index).map(|c| json!([c["term"], c["leader"]["id"], c["timing"]]));
    (0..3).filter_map(of).collect()
}

/// `make soak FAULT=load RUNS=180` is half an hour of it.
#[test]
fn a_machine_at_full_load_elects_nobody_at_the_shortest_timing() {
    let rounds = number("RUNS_LOAD", 1);
    let mut mesh = Mesh::of_three();
    let _ = mesh.api(0).put("/api/settings", &json!({"timing": "lan"})).expect(200);
    let quick = || {
        let terms = terms(&mesh);
        (terms.len() == 3 && terms.iter().all(|node| node[2] == "lan" && node == &terms[0])).then_some(terms)
    };
    let before = wait_for(PATIENCE, "the shortest timing everywhere", quick);
    let objects: Vec<_> = (0..WRITERS)
        .map(|writer| {
            mesh.api(0).post("/api/models", &model(&format!("object-{writer}"))).expect(201).body["id"].clone()
        })
        .collect();

    let (stop, [written, refused, slowest]) = (AtomicBool::new(false), [const { AtomicU64::new(0) }; 3]);
    let cores = available_parallelism().map_or(2, usize::from);
    std::thread::scope(|scope| {
        let _stop = Stop(&stop);
        for _ in 0..cores {
            scope.spawn(|| {
                while !stop.load(Ordering::Relaxed) {
                    std::hint::black_box((0..10_000_u64).fold(0, u64::wrapping_add));
                }
            });
        }
        for (writer, object) in objects.iter().enumerate() {
            let (api, stop) = (mesh.api(writer % 3), &stop);
            let (written, refused, slowest) = (&written, &refused, &slowest);
            let path = format!("/api/models/{}", object.as_str().expect("an id"));
            scope.spawn(move || {
                let mut count = 0_u64;
                while !stop.load(Ordering::Relaxed) {
                    count += 1;
                    let begun = Instant::now();
                    let request = api.request("PATCH", &path).json(&json!({"description": format!("{count}")}));
                    // Where nothing else has a turn either, a caller may be told to come again.
                    let answer = try_send(request).expect("an answer");
                    assert!([200, 503, 504].contains(&answer.status), "{answer}");
                    let counter = if answer.status == 200 { written } else { refused };
                    counter.fetch_add(1, Ordering::Relaxed);
                    slowest.fetch_max(begun.elapsed().as_millis() as u64, Ordering::Relaxed);
                }
            });
        }
        for round in 0..rounds {
            std::thread::sleep(ROUND);
            assert_eq!(terms(&mesh), before, "in round {round}");
        }
    });
    let (written, slowest) = (written.into_inner(), slowest.into_inner());
    println!(
        "{rounds} rounds of {ROUND:?} beside {cores} busy threads: {written} writes, the slowest took {slowest} ms, no election"
    );
    assert!(written > 10 * rounds, "only {written} writes");
    mesh.ready();
    assert_eq!(mesh.hashes().len(), 1);
}
