//! What happens to the node does not concern whoever calls the model.

use std::io::Read;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

use muster_tests::fleet::PATIENCE;
use muster_tests::process::wait_for;
use muster_tests::upstream::Wire;
use reqwest::blocking::Client;
use serde_json::{Value, json};

use super::place::{Door, Place};
use super::{CHAT, chat, streamed};

/// Clients that call the model without a pause, each on connections that it keeps.
struct Load {
    stop: Arc<AtomicBool>,
    answered: Arc<AtomicUsize>,
    clients: Vec<JoinHandle<Vec<String>>>,
}

impl Load {
    fn start(door: &Door, body: &Value) -> Self {
        let (stop, answered) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicUsize::new(0)));
        let clients = (0..4).map(|_| {
            let (stop, answered) = (Arc::clone(&stop), Arc::clone(&answered));
            let (url, body, key) = (format!("http://{}{CHAT}", door.address()), body.to_string(), door.key());
            let key = key.trim_start_matches("authorization: ").to_owned();
            std::thread::spawn(move || {
                let client = Client::builder().timeout(Duration::from_secs(30)).no_proxy().build().expect("a client");
                let mut failed = Vec::new();
                while !stop.load(Ordering::Relaxed) {
                    let asked = client.post(&url).header("authorization", &key).body(body.clone()).send();
                    let whole = asked.map_err(|error| format!("{error:?}")).and_then(|mut response| {
                        let mut text = String::new();
                        response.read_to_string(&mut text).map_err(|error| format!("{error:?}"))?;
                        if response.status().is_success() {
                            Ok(())
                        } else {
                            Err(format!("{} {text}", response.status()))
                        }
                    });
                    failed.extend(whole.err());
                    answered.fetch_add(1, Ordering::Relaxed);
                }
                failed
            })
        });
        let clients = clients.collect();
        Self { stop, answered, clients }
    }

    fn await_progress(&self) {
        let before = self.answered.load(Ordering::Relaxed);
        wait_for(PATIENCE, "progress of the clients", || {
            (self.answered.load(Ordering::Relaxed) >= before + 20).then_some(())
        });
    }

    #[track_caller]
    fn nothing_failed(self) {
        self.stop.store(true, Ordering::Relaxed);
        let failed: Vec<_> = self.clients.into_iter().flat_map(|client| client.join().expect("ends")).collect();
        assert!(failed.is_empty(), "{} of {:?}: {failed:#?}", failed.len(), self.answered);
    }
}

#[test]
fn a_take_over_fails_no_request_and_cuts_no_stream() {
    let mut place = Place::new();
    let door = place.serve(&json!({"extra_args": ["--tokens-per-second", "50"]}));
    let short = json!({"model": "ours", "max_tokens": 2, "messages": [{"role": "user", "content": "hi"}]});
    let load = Load::start(&door, &short);
    load.await_progress();
    for _ in 0..2 {
        let mut wire = Wire::connect(&door.address());
        wire.post(CHAT, &[&door.key()], streamed("ours", 150).to_string().as_bytes());
        let head = wire.head();
        let mut text = wire.at_least(1);
        let mut old = place.hand_over();
        load.await_progress();
        text.extend_from_slice(&wire.body(&head).expect("the stream comes whole"));
        assert!(String::from_utf8_lossy(&text).trim_end().ends_with("data: [DONE]"));
        assert!(old.wait(PATIENCE).success());
        place.ready();
    }
    load.nothing_failed();
    assert_eq!(door.record()["status"], json!("running"));
    // The sockets are the new process's alone: what it closes is closed.
    door.stop();
    door.await_status("stopped");
    wait_for(Duration::from_secs(10), "the port to be closed", || (!door.is_open()).then_some(()));
}

#[test]
fn the_port_of_a_placement_that_ends_after_a_take_over_is_closed_although_the_old_process_is_at_a_stream() {
    let mut place = Place::new();
    let serve = |name: &str| {
        place.serve(&json!({"engine_args": {"served_model_name": name}, "extra_args": ["--tokens-per-second", "20"]}))
    };
    let (streams, stops) = (serve("streams"), serve("stops"));
    let mut wire = Wire::connect(&streams.address());
    wire.post(CHAT, &[&streams.key()], streamed("streams", 400).to_string().as_bytes());
    let _ = wire.head();
    let _ = wire.at_least(1);
    let mut old = place.hand_over();
    place.ready();
    stops.stop();
    stops.await_status("stopped");
    wait_for(Duration::from_secs(10), "the port to be closed", || (!stops.is_open()).then_some(()));
    assert!(old.ended().is_none(), "it is still at the stream");
}

#[test]
fn another_timing_keeps_the_port_open() {
    let mut place = Place::new();
    let door = place.serve(&json!({}));
    let load = Load::start(&door, &chat("ours"));
    load.await_progress();
    let before = place.home.log().len();
    let _ = place.admin().put("/api/settings", &json!({"timing": "far"})).expect(200);
    place.await_log(before, "taking over another timing");
    place.ready();
    place.await_log(before, "serving node");
    load.await_progress();
    load.nothing_failed();
}

#[test]
fn a_process_that_was_killed_is_followed_by_one_that_serves_the_same_engine_at_the_same_port() {
    let mut place = Place::new();
    let door = place.serve(&json!({}));
    let _ = door.user().post(CHAT, &chat("ours")).expect(200);
    let (epoch, asked) = (door.record()["placements"][0]["epoch"].clone(), door.asked());
    place.process.kill();
    assert!(!door.is_open());
    assert_eq!(door.asked(), asked, "the engine goes on");
    let before = place.home.log().len();
    place.start_again();
    wait_for(PATIENCE, "the unit to take requests", || {
        (door.is_open() && door.anybody().get("/health").status == 200).then_some(())
    });
    let _ = door.user().post(CHAT, &chat("ours")).expect(200);
    assert!(place.home.log()[before..].contains("found its engine running"));
    assert_eq!(door.record()["placements"][0]["epoch"], epoch);
    assert!(door.asked()[0].ends_with(" 2.0"), "it is the same engine: {:?}", door.asked());
}
