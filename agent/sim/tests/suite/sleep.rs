//! Sleep and pause: what hangs, what goes on, what memory is given back.

use std::time::Duration;

use serde_json::{Value, json};

use crate::client::{Next, Open};
use crate::sim::{Sim, until};

const CHAT: &str = "/v1/chat/completions";

fn chat(stream: bool, tokens: u32) -> Value {
    json!({"messages": [{"role": "user", "content": "hi"}], "stream": stream, "max_tokens": tokens})
}

fn post(sim: &Sim, path: &str) -> Value {
    let answer = sim.post(path, &json!({}));
    assert_eq!(answer.status, 200, "{}", answer.text);
    answer.body
}

fn state(sim: &Sim, state: &str) -> f64 {
    sim.metric(&format!(r#"vllm:engine_sleep_state{{engine="0",model_name="tiny",sleep_state="{state}"}}"#))
}

#[test]
fn a_request_to_a_sleeping_engine_hangs_until_it_wakes() {
    let sim = Sim::dev("--enable-sleep-mode --gpu-memory-mib 100 --enable-server-load-tracking");
    assert_eq!(sim.metric("muster_sim:memory_bytes"), 104_857_600.0);
    assert_eq!(post(&sim, "/sleep?level=1"), json!({"status": "sleeping", "level": 1}));
    assert_eq!(sim.get("/is_sleeping").body, json!({"is_sleeping": true}));
    assert_eq!((sim.metric("muster_sim:memory_bytes"), state(&sim, "weights_offloaded")), (0.0, 1.0));
    let socket = sim.send(CHAT, &chat(false, 2));
    until("the request is in", || sim.get("/load").body["server_load"] == 1);
    assert_eq!((sim.get("/health").status, sim.metric("vllm:num_requests_waiting")), (200, 0.0));
    socket.patience(Duration::from_millis(200));
    let mut byte = [0];
    assert!(std::io::Read::read(&mut { socket }, &mut byte).is_err(), "an answer while asleep");

    let socket = sim.send(CHAT, &chat(false, 2));
    assert_eq!(post(&sim, "/wake_up?tags=weights"), json!({"status": "sleeping", "tags": ["weights"]}));
    assert_eq!(sim.get("/is_sleeping").body, json!({"is_sleeping": true}));
    assert_eq!(sim.metric("muster_sim:memory_bytes"), 52_428_800.0);
    assert_eq!(post(&sim, "/wake_up?tags=kv_cache")["status"], "awake");
    assert_eq!((sim.get("/is_sleeping").body, state(&sim, "awake")), (json!({"is_sleeping": false}), 1.0));
    assert_eq!(Open::read(socket).whole().status, 200);
    assert_eq!(post(&sim, "/wake_up"), json!({"status": "awake", "tags": null}));
}

#[test]
fn a_client_that_leaves_a_sleeping_engine_is_forgotten() {
    let sim = Sim::dev("--enable-server-load-tracking");
    post(&sim, "/sleep");
    let stream = sim.stream(CHAT, &chat(true, 2));
    assert_eq!(sim.get("/load").body["server_load"], 1);
    drop(stream);
    until("nobody is left", || sim.get("/load").body["server_load"] == 0);
}

#[test]
fn sleep_aborts_what_is_under_way_with_a_whole_answer() {
    let sim = Sim::dev("--tokens-per-second 20");
    let mut body = chat(true, 4000);
    body["stream_options"] = json!({"include_usage": true});
    let mut stream = sim.stream(CHAT, &body);
    stream.event();
    let socket = sim.send(CHAT, &chat(false, 4000));
    until("both run", || sim.metric("vllm:num_requests_running") == 2.0);
    post(&sim, "/sleep");
    let (events, end) = stream.events();
    let finishes: Vec<_> = events.iter().filter_map(|event| event["choices"][0]["finish_reason"].as_str()).collect();
    assert_eq!((finishes, end), (vec!["abort"], Next::Done));
    assert!(events.last().unwrap()["usage"]["completion_tokens"].as_u64().unwrap() > 0);
    let answer = Open::read(socket).whole();
    assert_eq!((answer.status, &answer.body["choices"][0]["finish_reason"]), (200, &json!("abort")));
}

#[test]
fn sleep_can_wait_for_what_is_under_way() {
    let sim = Sim::dev("--tokens-per-second 20");
    let mut stream = sim.stream(CHAT, &chat(true, 5));
    stream.event();
    assert_eq!(post(&sim, "/sleep?mode=wait")["status"], "sleeping");
    assert_eq!(sim.metric("vllm:num_requests_running"), 0.0);
    let (events, end) = stream.events();
    assert_eq!((events.last().unwrap()["choices"][0]["finish_reason"].as_str(), end), (Some("length"), Next::Done));
}

#[test]
fn a_pause_can_keep_what_is_under_way() {
    let sim = Sim::dev("--tokens-per-second 50");
    let mut stream = sim.stream(CHAT, &chat(true, 20));
    stream.event();
    assert_eq!(post(&sim, "/pause?mode=keep"), json!({"status": "paused"}));
    assert_eq!(sim.get("/is_paused").body, json!({"is_paused": true}));
    assert_eq!(sim.get("/is_sleeping").body, json!({"is_sleeping": false}));
    stream.patience(Duration::from_millis(300));
    let (before, end) = stream.events();
    assert_eq!(end, Next::Silence);
    assert!(before.len() < 20);
    assert_eq!(post(&sim, "/resume"), json!({"status": "resumed"}));
    stream.patience(crate::client::LIMIT);
    let (after, end) = stream.events();
    assert_eq!((before.len() + after.len(), end), (20, Next::Done));
    assert_eq!(sim.get("/is_paused").body, json!({"is_paused": false}));
}

#[test]
fn without_sleep_mode_the_answers_are_the_same_and_no_memory_is_freed() {
    let sim = Sim::dev("--gpu-memory-mib 1");
    assert_eq!(post(&sim, "/sleep?level=2"), json!({"status": "sleeping", "level": 2}));
    assert_eq!((sim.metric("muster_sim:memory_bytes"), state(&sim, "discard_all")), (1_048_576.0, 1.0));
    for path in ["/sleep?level=7", "/sleep?level=x", "/sleep?mode=never", "/pause?mode=never"] {
        assert_eq!(sim.post(path, &json!({})).status, 400, "{path}");
    }
    assert_eq!(post(&sim, "/reset_prefix_cache"), json!({"success": true}));
    assert!(sim.get("/server_info").body["vllm_config"].is_string());
}
