//! One node as its callers see it: the API over a real socket, the command line, the life of the process. The ids in front
//! of a test are the rows of the requirements that it shows.

#[path = "api/api_keys.rs"]
mod api_keys;
#[path = "api/auth.rs"]
mod auth;
#[path = "api/cli.rs"]
mod cli;
#[path = "api/configs.rs"]
mod configs;
#[path = "api/deployments.rs"]
mod deployments;
#[path = "api/errors.rs"]
mod errors;
#[path = "api/fleet.rs"]
mod fleet;
#[path = "api/lifecycle.rs"]
mod lifecycle;
#[path = "api/lists.rs"]
mod lists;
#[path = "api/models.rs"]
mod models;
#[path = "api/nodes_admin.rs"]
mod nodes_admin;
#[path = "api/nodes_machine.rs"]
mod nodes_machine;
#[path = "api/purge.rs"]
mod purge;
#[path = "api/repeats.rs"]
mod repeats;
#[path = "api/secrets.rs"]
mod secrets;
#[path = "api/settings.rs"]
mod settings;

use serde_json::{Value, json};

/// A model of a provider whose address is known.
fn model(name: &str) -> Value {
    json!({"name": name, "provider": "openai", "modelId": "gpt-4o"})
}

/// A model behind an address that no name has to be resolved for.
fn local_model(name: &str) -> Value {
    json!({"name": name, "provider": "openai-compatible", "modelId": "llama3", "baseUrl": "http://192.0.2.1:11434/v1"})
}

/// The names in a list of models.
fn names(list: &Value) -> Vec<&str> {
    let models = list["models"].as_array().expect("a list of models");
    models.iter().map(|model| model["name"].as_str().expect("a name")).collect()
}

/// The object with these fields changed.
fn with(object: &Value, changes: &Value) -> Value {
    let (mut object, changes) = (object.clone(), changes.as_object().expect("an object"));
    for (field, value) in changes {
        object[field] = value.clone();
    }
    object
}
