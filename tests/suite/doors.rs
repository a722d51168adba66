//! The listener of each placement: who is let in, what reaches the engine, and how it outlives what happens to the node.

#[path = "doors/engines.rs"]
mod engines;
#[path = "doors/keys.rs"]
mod keys;
#[path = "doors/life.rs"]
mod life;
#[path = "doors/place.rs"]
mod place;
#[path = "doors/restarts.rs"]
mod restarts;
#[path = "doors/routes.rs"]
mod routes;

use serde_json::{Value, json};

const CHAT: &str = "/v1/chat/completions";

fn chat(model: &str) -> Value {
    json!({"model": model, "messages": [{"role": "user", "content": "hi"}]})
}

fn streamed(model: &str, tokens: u32) -> Value {
    let message = json!({"role": "user", "content": "hi"});
    json!({"model": model, "messages": [message], "stream": true, "max_tokens": tokens, "ignore_eos": true})
}
