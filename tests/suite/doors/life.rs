//! From the first start to the last answer.

use std::net::TcpListener;
use std::time::Duration;

use muster_tests::api::try_send;
use muster_tests::process::wait_for;
use muster_tests::upstream::Wire;
use serde_json::json;

use super::place::{Place, SOON, free_port};
use super::{CHAT, chat, streamed};

#[test]
fn while_it_is_loaded_the_port_is_open_and_says_so() {
    let place = Place::new();
    let fields = json!({"port": free_port(), "extra_args": ["--load-seconds", "3"]});
    let door = place.begin(&fields);
    door.await_open();
    let loading = door.user().post(CHAT, &chat("org/model"));
    loading.is_openai_error(503, "model_loading");
    assert!(!loading.header("retry-after").is_empty(), "{loading}");
    door.user().get("/v1/models").is_openai_error(503, "model_loading");
    door.anybody().post(CHAT, &chat("org/model")).is_openai_error(401, "invalid_api_key");
    let health = door.anybody().get("/health");
    health.is_openai_error(503, "not_ready");
    assert!(!health.text.contains("org/model"), "it is said to anybody");
    wait_for(SOON, "the unit to take requests", || (door.anybody().get("/health").status == 200).then_some(()));
    let _ = door.user().post(CHAT, &chat("org/model")).expect(200);
}

#[test]
fn a_port_that_somebody_else_has_ends_the_placement_and_says_so() {
    let place = Place::new();
    let taken = TcpListener::bind(("127.0.0.1", free_port())).expect("a port");
    let port = taken.local_addr().expect("an address").port();
    let door = place.begin(&json!({"port": port}));
    let record = door.await_status("error");
    assert_eq!(record["error_code"], json!("port_conflict"), "{record}");
    let why = record["last_error"].as_str().expect("a reason");
    assert!(why.contains(&port.to_string()) && why.contains("another program"), "{why}");
    // It is not tried for ever, and nothing is left behind: once the port is free it can be started.
    drop(taken);
    let again = place.serve(&json!({"port": port}));
    let _ = again.user().post(CHAT, &chat("ours")).expect(200);
}

#[test]
fn a_stop_lets_a_stream_finish_and_then_closes_the_port() {
    let place = Place::new();
    let door = place.serve(&json!({"extra_args": ["--tokens-per-second", "20"]}));
    let mut wire = Wire::connect(&door.address());
    wire.post(CHAT, &[&door.key()], streamed("ours", 60).to_string().as_bytes());
    let head = wire.head();
    assert_eq!(head.status, 200);
    let mut text = wire.at_least(1);
    door.stop();
    door.await_status("stopping");
    // Nobody else is let in while the last one is answered.
    let late = try_send(door.user().request("POST", CHAT).json(&chat("ours")));
    let late = late.expect("the port is open until the placement has ended");
    late.is_openai_error(404, "model_not_found");
    text.extend_from_slice(&wire.body(&head).expect("the stream comes whole"));
    assert!(String::from_utf8_lossy(&text).trim_end().ends_with("data: [DONE]"));
    door.await_status("stopped");
    wait_for(Duration::from_secs(10), "the port to be closed", || (!door.is_open()).then_some(()));
    // The next one has it.
    let next = place.serve(&json!({"port": door.port}));
    let _ = next.user().post(CHAT, &chat("ours")).expect(200);
}
