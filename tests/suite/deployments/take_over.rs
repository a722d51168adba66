//! One process of a node takes the place of another while clients use the engines of that node.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use muster_tests::fleet::PATIENCE;
use muster_tests::process::wait_for;
use muster_tests::upstream::Wire;
use reqwest::blocking::Client;
use serde_json::json;

use super::{CHAT, Yard, chat, with};

/// How it went for one caller.
#[derive(Debug, Default)]
struct Told {
    answers: usize,
    failed: BTreeMap<String, usize>,
    slowest: Duration,
}

/// E-279
#[test]
fn no_request_to_a_running_model_fails_while_its_node_is_taken_over() {
    let mut yard = Yard::new();
    let owner = (yard.mesh.leader() + 1) % 3;
    yard.running(owner, &json!({"model_name": "quick"}));
    let slow = json!({"model_name": "slow", "extra_args": ["--tokens", "60", "--tokens-per-second", "20"]});
    yard.running(owner, &slow);
    yard.answers_everywhere("quick");
    yard.answers_everywhere("slow");
    let engines = yard.engines(owner);
    let urls: Vec<_> = (0..3).map(|node| yard.api(node).endpoint().to_owned()).collect();
    let key = yard.key.clone();
    let streams: Vec<_> = urls
        .iter()
        .map(|url| {
            let mut wire = Wire::connect(url.trim_start_matches("http://"));
            let key = format!("authorization: Bearer {key}");
            wire.post(CHAT, &[&key], with(&chat("slow"), &json!({"stream": true})).to_string().as_bytes());
            assert_eq!(wire.head().status, 200);
            wire
        })
        .collect();
    let (stop, progress) = (AtomicBool::new(false), [const { AtomicUsize::new(0) }; 3]);
    let told: Vec<Told> = std::thread::scope(|scope| {
        let callers: Vec<_> = urls
            .iter()
            .zip(&progress)
            .map(|(url, progress)| {
                let (stop, key) = (&stop, &key);
                scope.spawn(move || {
                    let http = Client::builder().timeout(Duration::from_secs(30)).no_proxy().build().expect("a client");
                    let mut told = Told::default();
                    while !stop.load(Ordering::Relaxed) {
                        let begun = Instant::now();
                        let request = http.post(format!("{url}{CHAT}")).bearer_auth(key).json(&chat("quick"));
                        let failed = match request.send().and_then(|answer| Ok((answer.status(), answer.text()?))) {
                            Ok((status, text)) if !status.is_success() => Some(format!("{status} {text}")),
                            Ok(_) => None,
                            Err(error) => Some(format!("{error:?}")),
                        };
                        told.answers += 1;
                        told.slowest = told.slowest.max(begun.elapsed());
                        if let Some(failed) = failed {
                            *told.failed.entry(failed).or_default() += 1;
                        }
                        progress.fetch_add(1, Ordering::Relaxed);
                    }
                    told
                })
            })
            .collect();
        let go_on = || {
            for progress in &progress {
                let before = progress.load(Ordering::Relaxed);
                wait_for(PATIENCE, "answers", || (progress.load(Ordering::Relaxed) > before + 10).then_some(()));
            }
        };
        go_on();
        let mut old = yard.mesh.take_over(owner);
        go_on();
        for (node, mut wire) in streams.into_iter().enumerate() {
            let mut text = String::new();
            while let Some(piece) = wire.chunk().unwrap_or_else(|error| panic!("through node {node}: {error}")) {
                text.push_str(&String::from_utf8_lossy(&piece));
            }
            assert!(text.contains("[DONE]"), "through node {node}");
        }
        assert!(old.process().wait(PATIENCE).success());
        let mut old = yard.mesh.take_over(owner);
        go_on();
        assert!(old.process().wait(PATIENCE).success());
        stop.store(true, Ordering::Relaxed);
        callers.into_iter().map(|caller| caller.join().expect("ends")).collect()
    });
    println!("owner {owner}: {told:?}");
    assert!(told.iter().all(|told| told.failed.is_empty()), "owner {owner}: {told:#?}");
    assert_eq!(yard.engines(owner), engines, "the same engines");
}
