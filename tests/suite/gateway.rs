//! Requests to models, from a client's bytes to a provider's and back. The ids in front of a test are the rows of the
//! requirements that it shows.

#[path = "gateway/bodies.rs"]
mod bodies;
#[path = "gateway/calls.rs"]
mod calls;
#[path = "gateway/changes.rs"]
mod changes;
#[path = "gateway/crowds.rs"]
mod crowds;
#[path = "gateway/errors.rs"]
mod errors;
#[path = "gateway/http.rs"]
mod http;
#[path = "gateway/keys.rs"]
mod keys;
#[path = "gateway/providers.rs"]
mod providers;
#[path = "gateway/streams.rs"]
mod streams;

use std::time::Duration;

use muster_tests::api::{Answer, Api};
use muster_tests::fleet::Fleet;
use muster_tests::upstream::{Upstream, Wire};
use serde_json::{Value, json};

const CHAT: &str = "/v1/chat/completions";

/// How long the other nodes may take to learn of a change.
const SOON: Duration = Duration::from_secs(10);

/// A fleet of one node, and a provider that serves its model `ours` as `theirs`.
struct Place {
    fleet: Fleet,
    upstream: Upstream,
}

impl Place {
    fn new() -> Self {
        Self::with(&[])
    }

    fn with(variables: &[(&'static str, &str)]) -> Self {
        let (fleet, upstream) = (Fleet::start_with(variables), Upstream::new());
        let _ = register(&fleet.admin(), "ours", &json!({"modelId": "theirs", "baseUrl": upstream.url("/v1")}));
        Self { fleet, upstream }
    }

    /// A connection on which [`Self::post`] sends.
    fn wire(&self) -> Wire {
        Wire::connect(self.fleet.address())
    }

    /// The line that lets the fleet's user in.
    fn key(&self) -> String {
        format!("authorization: Bearer {}", self.fleet.gateway_key)
    }

    /// Sends these bytes as a request for chat.
    fn post(&self, wire: &mut Wire, body: &[u8]) {
        wire.post(CHAT, &[&self.key()], body);
    }

    /// Asks the model `ours` as a client that does not stream.
    fn ask(&self) -> Answer {
        self.fleet.user().post(CHAT, &chat("ours"))
    }
}

/// Registers a model; `changes` has at least its `baseUrl`.
#[track_caller]
fn register(admin: &Api, name: &str, changes: &Value) -> Value {
    let mut model = json!({"name": name, "provider": "openai-compatible", "modelId": name});
    for (field, value) in changes.as_object().expect("an object") {
        model[field] = value.clone();
    }
    admin.post("/api/models", &model).expect(201).body
}

fn chat(model: &str) -> Value {
    json!({"model": model, "messages": [{"role": "user", "content": "hi"}]})
}

fn streamed(model: &str) -> Value {
    json!({"model": model, "messages": [{"role": "user", "content": "hi"}], "stream": true})
}

/// The ids in a list of models.
fn ids(list: &Value) -> Vec<&str> {
    let models = list["data"].as_array().expect("a list of models");
    models.iter().map(|model| model["id"].as_str().expect("an id")).collect()
}
