//! Each row of the table of requests and errors in what is known of vLLM.

use std::io::Write;

use serde_json::{Value, json};

use crate::client::{Answer, Open};
use crate::sim::{Sim, until};

const CHAT: &str = "/v1/chat/completions";

fn with(field: &str, value: Value) -> Value {
    let mut body = json!({"messages": [{"role": "user", "content": "one two three"}]});
    body[field] = value;
    body
}

fn raw(sim: &Sim, kind: &str, body: &str) -> Answer {
    sim.open("POST", CHAT, &[("content-type", kind)], body).whole()
}

#[test]
fn an_unknown_model_is_not_found_and_the_others_are_named() {
    let sim = Sim::start("--served-model-name a b");
    let answer = sim.post(CHAT, &with("model", json!("x")));
    assert_eq!(answer.error(), (404, "NotFoundError", Some("model")));
    assert_eq!(answer.message(), "The model `x` does not exist. Valid aliases: a, b.");
}

#[test]
fn every_served_name_is_answered_under_the_first() {
    let sim = Sim::start("--served-model-name a b");
    for body in [with("model", json!("a")), with("model", json!("b")), with("model", Value::Null), with("x", json!(1))]
    {
        let answer = sim.post(CHAT, &body);
        assert_eq!((answer.status, &answer.body["model"]), (200, &json!("a")));
    }
    let models = sim.get("/v1/models").body;
    let listed: Vec<_> =
        models["data"].as_array().unwrap().iter().map(|model| (&model["id"], &model["root"])).collect();
    assert_eq!(listed, [(&json!("a"), &json!("tiny")), (&json!("b"), &json!("tiny"))]);
    assert_eq!((&models["data"][0]["parent"], &models["data"][0]["max_model_len"]), (&Value::Null, &json!(4096)));
}

#[test]
fn bodies_that_are_no_request_are_bad_requests() {
    let sim = Sim::start("");
    let broken = raw(&sim, "application/json", r#"{"model": "x", oops}"#);
    assert_eq!(broken.error(), (400, "Bad Request", Some("body.15")));
    assert!(broken.message().starts_with("1 validation error:\n  {'type': 'json_invalid'"));
    assert_eq!(raw(&sim, "application/json", "{}").error(), (400, "Bad Request", Some("body.messages")));
    assert_eq!(raw(&sim, "application/json", "").error(), (400, "Bad Request", Some("body")));
    assert_eq!(raw(&sim, "text/plain", &with("n", json!(1)).to_string()).error(), (400, "Bad Request", None));
    assert_eq!(raw(&sim, "application/json", "[]").error().0, 400);
}

#[test]
fn a_prompt_over_the_context_is_refused_before_any_event() {
    let sim = Sim::start("--max-model-len 8");
    let long = vec!["word"; 30].join(" ");
    for stream in [false, true] {
        let mut body = with("stream", json!(stream));
        body["messages"][0]["content"] = json!(long);
        let answer = sim.post(CHAT, &body);
        assert_eq!(answer.error(), (400, "BadRequestError", Some("input_tokens")));
        let text =
            "This model's maximum context length is 8 tokens. However, your prompt contains at least 9 input tokens";
        assert!(answer.message().starts_with(text), "{}", answer.text);
    }
}

#[test]
fn values_out_of_range_are_refused() {
    let sim = Sim::start("");
    for (field, value, param) in [
        ("max_tokens", json!(4097), "max_tokens"),
        ("max_tokens", json!(0), "max_tokens"),
        ("temperature", json!(-1), "temperature"),
        ("n", json!(100_000), "n"),
        ("stream_options", json!({"include_usage": true}), "stream_options"),
    ] {
        let answer = sim.post(CHAT, &with(field, value));
        assert_eq!(answer.error(), (400, "BadRequestError", Some(param)));
    }
}

#[test]
fn an_image_is_refused_and_so_are_tools() {
    let sim = Sim::start("");
    let image =
        json!({"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "data:,"}}]}]});
    assert_eq!(sim.post(CHAT, &image).error().1, "BadRequestError");
    let tools = json!([{"type": "function", "function": {"name": "f"}}]);
    assert_eq!(sim.post(CHAT, &with("tools", tools.clone())).error().1, "BadRequestError");
    let calling = Sim::start("--enable-auto-tool-choice --tool-call-parser hermes");
    assert_eq!(calling.post(CHAT, &with("tools", tools)).status, 200);
}

#[test]
fn what_is_unknown_is_ignored() {
    let sim = Sim::start("");
    let body = json!({"messages": [{"role": "odd", "content": "hi", "x": {}}], "unheard_of": [1, 2], "seed": 7});
    assert_eq!(sim.post(CHAT, &body).status, 200);
}

#[test]
fn beyond_the_queue_limit_requests_are_refused_and_counted() {
    let sim = Sim::start("--max-num-queued-reqs 2 --max-num-seqs 1 --tokens-per-second 1");
    let streams = [(); 2].map(|()| sim.stream(CHAT, &with("stream", json!(true))));
    until("one runs and one waits", || {
        (sim.metric("vllm:num_requests_running"), sim.metric("vllm:num_requests_waiting")) == (1.0, 1.0)
    });
    let reason = r#"vllm:num_requests_waiting_by_reason{engine="0",model_name="tiny",reason="capacity"}"#;
    assert_eq!(sim.metric(reason), 1.0);
    for stream in [false, true] {
        let answer = sim.post(CHAT, &with("stream", json!(stream)));
        assert_eq!(answer.error(), (503, "Service Unavailable", None));
        assert!(answer.message().starts_with("The engine is currently busy and cannot accept new requests."));
        assert_eq!(answer.header("retry-after"), None);
    }
    assert_eq!(sim.metric("vllm:admission_rejections_total"), 2.0);
    drop(streams);
    until("there is room again", || sim.post(CHAT, &with("max_tokens", json!(1))).status == 200);
}

#[test]
fn only_paths_under_v1_ask_for_a_key() {
    let sim = Sim::start("--api-key k1 k2");
    let refused = sim.get("/v1/models");
    assert_eq!((refused.status, refused.text.as_str()), (401, r#"{"error":"Unauthorized"}"#));
    for key in ["Bearer k1", "Bearer k2"] {
        assert_eq!(sim.open("GET", "/v1/models", &[("authorization", key)], "").whole().status, 200);
    }
    assert_eq!(sim.open("GET", "/v1/models", &[("authorization", "Bearer k3")], "").whole().status, 401);
    for path in ["/health", "/metrics", "/version", "/load"] {
        assert_eq!(sim.get(path).status, 200, "{path}");
    }
    assert_eq!(sim.post("/tokenize", &json!({"prompt": "a b"})).status, 200);
}

#[test]
fn a_body_that_will_be_too_long_is_refused_before_it_comes() {
    let sim = Sim::start("");
    let mut socket = sim.connect().unwrap();
    let head = format!("POST {CHAT} HTTP/1.1\r\nhost: sim\r\nconnection: close\r\ncontent-type: application/json\r\n");
    socket.write_all(format!("{head}content-length: {}\r\n\r\n", (64 << 20) + 1).as_bytes()).unwrap();
    assert_eq!(Open::read(socket).whole().error().0, 413);
}
