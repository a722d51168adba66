//! `/v1/models`.

use serde_json::{Value, json};

use super::answer::now;
use crate::settings::Settings;

/// The base model once for each of its names, then the adapters.
#[must_use]
pub fn models(settings: &Settings) -> Value {
    let model = |id: &str, root: &str, parent: Option<&str>, length: Option<u32>| {
        json!({
            "id": id,
            "object": "model",
            "created": now(),
            "owned_by": "vllm",
            "root": root,
            "parent": parent,
            "max_model_len": length,
            "permission": [],
        })
    };
    let length = Some(settings.arguments.max_model_len);
    let bases = settings.names().map(|name| model(name, settings.root(), None, length));
    let adapters = settings.adapters().iter();
    let adapters = adapters.map(|adapter| model(&adapter.name, &adapter.path, Some(settings.name()), None));
    json!({"object": "list", "data": bases.chain(adapters).collect::<Vec<_>>()})
}
