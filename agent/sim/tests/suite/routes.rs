//! The routes that are there, and the answers that are not streams.

use serde_json::{Value, json};

use crate::client::Place;
use crate::sim::{Sim, command};

fn prompt(text: &str) -> Value {
    json!({"prompt": text, "max_tokens": 4})
}

#[test]
fn the_plain_routes_answer_as_those_of_vllm() {
    let sim = Sim::start("");
    let health = sim.get("/health");
    assert_eq!((health.status, health.text.as_str(), health.header("server")), (200, "", Some("muster-sim")));
    assert_eq!(sim.get("/ping").status, 200);
    assert_eq!(sim.post("/ping", &json!({})).status, 200);
    assert_eq!(sim.get("/version").text, r#"{"version":"0.32.0"}"#);
    assert_eq!(sim.get("/load").text, r#"{"server_load":0}"#);
    for path in ["/", "/v1/models/tiny", "/v1/embeddings", "/sleep", "/is_sleeping", "/server_info"] {
        let missing = sim.get(path);
        assert_eq!((missing.status, missing.text.as_str()), (404, r#"{"detail":"Not Found"}"#), "{path}");
    }
    let head = sim.open("HEAD", "/health", &[], "");
    assert_eq!((head.status, head.header("allow")), (405, Some("GET")));
    assert_eq!(sim.get("/v1/completions").text, r#"{"detail":"Method Not Allowed"}"#);
}

#[test]
fn the_same_request_gets_the_same_answer_from_every_process() {
    let ask = |sim: &Sim| sim.post("/v1/completions", &prompt("a b c")).body;
    let (one, other) = (ask(&Sim::start("")), ask(&Sim::start("")));
    assert_eq!(one["choices"], other["choices"]);
    assert_eq!(one["choices"][0]["text"].as_str().unwrap().split(' ').count(), 4);
    assert_eq!(one["choices"][0]["finish_reason"], "length");
    assert_eq!(one["usage"]["prompt_tokens"], 3);
    assert_eq!(one["usage"]["completion_tokens"], 4);
    assert!(one["system_fingerprint"].as_str().unwrap().starts_with("muster-sim-"));
}

#[test]
fn an_answer_without_a_limit_ends_by_itself() {
    let sim = Sim::start("--tokens 3");
    let body = json!({"messages": [{"role": "user", "content": "hi"}]});
    let answer = sim.post("/v1/chat/completions", &body).body;
    assert_eq!(answer["usage"]["completion_tokens"], 3);
    assert_eq!(answer["choices"][0]["finish_reason"], "stop");
    assert_eq!(answer["choices"][0]["message"]["role"], "assistant");
}

#[test]
fn there_are_n_different_choices_for_each_prompt() {
    let sim = Sim::start("");
    let answer = sim.post("/v1/completions", &json!({"prompt": ["a", "b"], "n": 2, "max_tokens": 8})).body;
    let choices = answer["choices"].as_array().unwrap();
    let texts: std::collections::BTreeSet<_> = choices.iter().map(|choice| choice["text"].as_str().unwrap()).collect();
    assert_eq!((choices.len(), texts.len()), (4, 4));
    assert_eq!(answer["usage"]["completion_tokens"], 32);
}

#[test]
fn a_stop_string_ends_the_answer_before_it() {
    let sim = Sim::start("");
    let whole = sim.post("/v1/completions", &prompt("a")).body["choices"][0]["text"].as_str().unwrap().to_owned();
    let third = whole.split(' ').nth(2).unwrap();
    let choice = &sim.post("/v1/completions", &json!({"prompt": "a", "stop": third})).body["choices"][0];
    assert_eq!((&choice["finish_reason"], &choice["stop_reason"]), (&json!("stop"), &json!(third)));
    assert!(whole.starts_with(choice["text"].as_str().unwrap()) && !choice["text"].as_str().unwrap().contains(third));
}

#[test]
fn the_requests_own_id_becomes_part_of_the_answers() {
    let sim = Sim::start("");
    let headers = [("content-type", "application/json"), ("x-request-id", "lab-42")];
    let answer = sim.open("POST", "/v1/completions", &headers, &prompt("a").to_string()).whole();
    assert_eq!((&answer.body["id"], answer.header("x-request-id")), (&json!("cmpl-lab-42"), None));
    let sim = Sim::start("--enable-request-id-headers");
    let answer = sim.open("POST", "/v1/completions", &headers, &prompt("a").to_string()).whole();
    assert_eq!(answer.header("x-request-id"), Some("lab-42"));
}

#[test]
fn a_pooling_model_embeds_and_does_not_generate() {
    let sim = Sim::start("--pooling");
    let answer = sim.post("/v1/embeddings", &json!({"input": ["a b", "c"], "model": "tiny"}));
    assert_eq!(answer.status, 200);
    let data = answer.body["data"].as_array().unwrap();
    assert_eq!((data.len(), data[1]["embedding"].as_array().unwrap().len()), (2, 16));
    assert_ne!(data[0]["embedding"], data[1]["embedding"]);
    assert_eq!(answer.body["usage"]["prompt_tokens"], 3);
    let base64 = sim.post("/v1/embeddings", &json!({"input": "a", "encoding_format": "base64"}));
    assert!(base64.body["data"][0]["embedding"].is_string());
    assert_eq!(sim.post("/v1/chat/completions", &json!({})).text, r#"{"detail":"Not Found"}"#);
    assert_eq!(sim.post("/v1/embeddings", &json!({"input": "a", "model": "x"})).error().0, 404);
}

#[test]
fn adapters_are_models_of_their_own() {
    let sim = Sim::start("--enable-lora --lora-modules sql=/adapters/sql");
    let adapter = &sim.get("/v1/models").body["data"][1];
    assert_eq!((&adapter["id"], &adapter["parent"]), (&json!("sql"), &json!("tiny")));
    assert_eq!((&adapter["root"], &adapter["max_model_len"]), (&json!("/adapters/sql"), &Value::Null));
    let answer = sim.post("/v1/completions", &json!({"prompt": "a", "model": "sql"}));
    assert_eq!(answer.body["model"], "sql");
    assert_eq!(sim.metric(r#"vllm:prompt_tokens_total{engine="0",model_name="tiny"}"#), 1.0);
}

#[test]
fn words_become_tokens_and_come_back() {
    let sim = Sim::start("");
    let text = sim.post("/v1/completions", &prompt("a")).body["choices"][0]["text"].clone();
    let tokens = sim.post("/tokenize", &json!({"prompt": text})).body;
    assert_eq!((&tokens["count"], &tokens["max_model_len"]), (&json!(4), &json!(4096)));
    assert_eq!(sim.post("/detokenize", &json!({"tokens": tokens["tokens"]})).body["prompt"], text);
}

#[test]
fn a_unix_socket_serves_the_same() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("sim.sock");
    let sim = Sim::with(command(&format!("--uds {} --model tiny", path.display())));
    assert!(matches!(&*sim, Place::Unix(_)));
    assert_eq!(sim.get("/health").status, 200);
    let (events, end) = sim.stream("/v1/completions", &json!({"prompt": "a", "stream": true})).events();
    assert_eq!((events.len(), end), (16, crate::client::Next::Done));
}

#[test]
fn metrics_count_what_was_done() {
    let sim = Sim::start("--served-model-name shown hidden");
    sim.post("/v1/completions", &json!({"prompt": "a b c", "max_tokens": 5}));
    sim.get("/nowhere");
    let labels = r#"{engine="0",model_name="shown"}"#;
    assert_eq!(sim.metric(&format!("vllm:prompt_tokens_total{labels}")), 3.0);
    assert_eq!(sim.metric(&format!("vllm:generation_tokens_total{labels}")), 5.0);
    let finished = r#"vllm:request_success_total{engine="0",model_name="shown",finished_reason="length"}"#;
    assert_eq!(sim.metric(finished), 1.0);
    assert_eq!(sim.metric(&format!("vllm:e2e_request_latency_seconds_count{labels}")), 1.0);
    assert!(sim.metric(&format!("vllm:prompt_tokens_created{labels}")) > 1e9);
    let of = |handler: &str, method: &str, class: &str| {
        sim.metric(&format!(r#"http_requests_total{{handler="{handler}",method="{method}",status="{class}"}}"#))
    };
    assert_eq!((of("/v1/completions", "POST", "2xx"), of("none", "GET", "4xx")), (1.0, 1.0));
    assert!(!sim.get("/metrics").text.contains("handler=\"/metrics\""));
}
