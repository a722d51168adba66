//! The faults that can be ordered.

use std::time::Instant;

use serde_json::{Value, json};

use crate::client::Next;
use crate::sim::{Sim, run, until};

fn chat(stream: bool) -> Value {
    json!({"messages": [{"role": "user", "content": "hi"}], "stream": stream, "max_tokens": 4000})
}

const CHAT: &str = "/v1/chat/completions";

#[test]
fn a_failing_start_says_so_last() {
    let (code, words) = run("--fail-start");
    let last = "RuntimeError: Engine core initialization failed. See root cause above. Failed core proc(s): {}";
    assert_eq!((code, words.lines().last()), (1, Some(last)));
}

#[test]
fn when_the_engine_dies_everybody_learns_it_and_the_process_follows() {
    let mut sim = Sim::start("--fail-after 3 --tokens-per-second 20");
    let mut stream = sim.stream(CHAT, &chat(true));
    stream.event();
    let socket = sim.send(CHAT, &chat(false));
    until("both run", || sim.metric("vllm:num_requests_running") == 2.0);
    assert_eq!(sim.get("/health").status, 200);

    let died = Instant::now();
    let third = sim.post(CHAT, &chat(true));
    assert_eq!(third.error(), (500, "InternalServerError", None));
    let (events, end) = stream.events();
    assert_eq!((events.last().unwrap()["error"]["code"].as_u64(), end), (Some(500), Next::Done));
    assert!(
        events.last().unwrap()["error"]["message"].as_str().unwrap().starts_with("EngineCore encountered an issue.")
    );
    assert_eq!(crate::client::Open::read(socket).whole().error().0, 500);
    let health = sim.get("/health");
    assert_eq!((health.status, health.text.as_str()), (503, ""));
    let errors = r#"vllm:request_success_total{engine="0",model_name="tiny",finished_reason="error"}"#;
    assert_eq!(sim.metric(errors), 2.0);
    assert_eq!(sim.exit_code(), 1);
    assert!(died.elapsed().as_secs() >= 3, "{:?}", died.elapsed());
}

#[test]
fn a_cut_stream_has_its_chunks_and_no_end() {
    for chunks in [0, 1, 5] {
        let sim = Sim::start(&format!("--cut-stream-after {chunks}"));
        let (events, end) = sim.stream(CHAT, &chat(true)).events();
        assert_eq!((events.len(), end), (chunks, Next::Cut));
    }
}

#[test]
fn an_ordered_status_comes_in_the_usual_shape() {
    for (code, kind) in
        [(400, "BadRequestError"), (429, "Too Many Requests"), (500, "InternalServerError"), (599, "Error")]
    {
        let sim = Sim::start(&format!("--error-status {code}"));
        assert_eq!(sim.post(CHAT, &chat(true)).error(), (code, kind, None));
        assert_eq!(sim.get("/health").status, 200);
    }
}
