//! Streams: their chunks, their ends, and clients that leave.

use serde_json::{Value, json};

use crate::client::Next;
use crate::sim::{Sim, until};

const CHAT: &str = "/v1/chat/completions";
const ABORTED: &str = r#"vllm:request_success_total{engine="0",model_name="tiny",finished_reason="abort"}"#;

fn chat(more: &Value) -> Value {
    let mut body = json!({"messages": [{"role": "user", "content": "one two"}], "stream": true, "max_tokens": 3});
    body.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
    body
}

#[test]
fn a_stream_opens_with_the_role_and_ends_with_done() {
    let sim = Sim::start("");
    let mut stream = sim.stream(CHAT, &chat(&json!({})));
    assert_eq!(stream.header("content-type"), Some("text/event-stream; charset=utf-8"));
    assert_eq!(stream.header("transfer-encoding"), Some("chunked"));
    let (events, end) = stream.events();
    assert_eq!((end, stream.next()), (Next::Done, Next::End));
    assert_eq!(events[0]["choices"][0]["delta"], json!({"role": "assistant", "content": ""}));
    assert!(events.iter().all(|event| event.get("usage").is_none()));
    let finishes: Vec<_> = events.iter().map(|event| event["choices"][0]["finish_reason"].as_str()).collect();
    assert_eq!(finishes, [None, None, None, Some("length")]);
    let text: String = events.iter().map(|event| event["choices"][0]["delta"]["content"].as_str().unwrap()).collect();
    let whole = sim.post(CHAT, &chat(&json!({"stream": false})));
    assert_eq!(whole.body["choices"][0]["message"]["content"], text);
}

#[test]
fn usage_comes_last_and_alone_when_it_is_asked_for() {
    let sim = Sim::start("");
    let (events, end) = sim.stream(CHAT, &chat(&json!({"stream_options": {"include_usage": true}}))).events();
    let (last, others) = events.split_last().unwrap();
    assert_eq!((end, &last["choices"]), (Next::Done, &json!([])));
    assert_eq!((&last["usage"]["prompt_tokens"], &last["usage"]["completion_tokens"]), (&json!(2), &json!(3)));
    assert!(others.iter().all(|event| event.get("usage").is_none()));
}

#[test]
fn continuous_usage_grows_chunk_by_chunk() {
    let sim = Sim::start("");
    let options = json!({"stream_options": {"include_usage": true, "continuous_usage_stats": true}});
    let (events, _) = sim.stream(CHAT, &chat(&options)).events();
    let counts: Vec<_> = events.iter().map(|event| event["usage"]["completion_tokens"].as_u64().unwrap()).collect();
    assert_eq!(counts, [0, 1, 2, 3, 3]);
}

#[test]
fn all_choices_are_streamed_with_their_index() {
    let sim = Sim::start("");
    let (events, _) =
        sim.stream("/v1/completions", &json!({"prompt": "a", "n": 2, "max_tokens": 2, "stream": true})).events();
    let indices: Vec<_> = events.iter().map(|event| event["choices"][0]["index"].as_u64().unwrap()).collect();
    assert_eq!(indices, [0, 1, 0, 1]);
}

#[test]
fn tokens_come_at_their_pace_and_the_head_at_once() {
    let sim = Sim::start("--tokens-per-second 50 --ttft-ms 200");
    let started = std::time::Instant::now();
    let mut stream = sim.stream(CHAT, &chat(&json!({"max_tokens": 11})));
    let head = started.elapsed().as_millis();
    stream.event();
    let first = started.elapsed().as_millis();
    let (events, _) = stream.events();
    let all = started.elapsed().as_millis();
    assert_eq!(events.len(), 11);
    assert!(head < 200 && first >= 200 && all >= 400, "{head} {first} {all} ms");
}

#[test]
fn a_long_stream_at_full_speed_is_complete() {
    let sim = Sim::start("");
    let (events, end) = sim.stream(CHAT, &chat(&json!({"max_tokens": 4000}))).events();
    assert_eq!((events.len(), end), (4001, Next::Done));
}

#[test]
fn a_client_that_leaves_a_stream_aborts_its_request() {
    let sim = Sim::start("--tokens-per-second 20 --enable-server-load-tracking");
    let mut stream = sim.stream(CHAT, &chat(&json!({"max_tokens": 4000})));
    stream.event();
    assert_eq!(sim.get("/load").body["server_load"], 1);
    assert_eq!((sim.metric(ABORTED), sim.metric("vllm:num_requests_running")), (0.0, 1.0));
    drop(stream);
    until("the abort is counted", || sim.metric(ABORTED) == 1.0);
    assert_eq!(sim.get("/load").body["server_load"], 0);
    assert_eq!((sim.metric("vllm:num_requests_running"), sim.metric("vllm:kv_cache_usage_perc")), (0.0, 0.0));
}

#[test]
fn a_client_that_leaves_before_its_answer_aborts_its_request_too() {
    let sim = Sim::start("--tokens-per-second 1");
    let socket = sim.send(CHAT, &chat(&json!({"stream": false, "max_tokens": 100})));
    until("it runs", || sim.metric("vllm:num_requests_running") == 1.0);
    drop(socket);
    until("the abort is counted", || sim.metric(ABORTED) == 1.0);
}

#[test]
fn load_is_not_counted_unless_asked_for() {
    let sim = Sim::start("--tokens-per-second 1");
    let mut stream = sim.stream(CHAT, &chat(&json!({})));
    stream.event();
    assert_eq!(sim.get("/load").body["server_load"], 0);
}
