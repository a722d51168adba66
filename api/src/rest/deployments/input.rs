//! What a request says of a deployment, and whether it makes sense.

use std::collections::BTreeSet;

use muster_cluster::rows::{DeploymentSpec, Engine, LoraModule, OnNodeLoss, ServedName, Wish};
use muster_cluster::state::{is_id, name_key};
use serde_json::{Map, Value};
use unicode_normalization::UnicodeNormalization;
use utoipa::ToSchema;

use crate::fields::{Fields, Given, MAX_INTEGER};

pub(super) const NAME_LIMIT: usize = 255;
const TEXT_LIMIT: usize = 1024;
const LIST_LIMIT: usize = 64;

/// How often a deployment can run at once.
const REPLICAS: u64 = 64;

/// GPUs of a node are numbered below this.
const GPU_LIMIT: u64 = 1024;

/// A hundred years: what is longer has no end.
pub(super) const DURATION_LIMIT: u64 = 100 * 365 * 24 * 3600;

/// The longest values of an environment together, in bytes: they are sealed into one command.
const ENVIRONMENT_LIMIT: usize = 8 * 1024;

/// Flags that Muster sets itself. With them an engine could listen elsewhere, or go by a name that nobody has checked.
const RESERVED_FLAGS: [&str; 12] = [
    "--model",
    "--served-model-name",
    "--host",
    "--port",
    "--uds",
    "--api-key",
    "--root-path",
    "--config",
    "--ssl-keyfile",
    "--ssl-certfile",
    "--ssl-ca-certs",
    "--ssl-cert-reqs",
];

/// The engine's flags that can be given by name.
const ENGINE_ARGS: [&str; 12] = [
    "max_model_len",
    "dtype",
    "quantization",
    "served_model_name",
    "max_num_seqs",
    "enforce_eager",
    "trust_remote_code",
    "kv_cache_dtype",
    "swap_space",
    "revision",
    "seed",
    "disable_sleep_mode",
];

/// Fields that only this side sets. A caller may send them back as it got them.
const OURS: [&str; 27] = [
    "id",
    "container_runtime",
    "image_digest",
    "error_code",
    "observed",
    "placements",
    "detail",
    "total_prompt_tokens",
    "total_completion_tokens",
    "total_requests",
    "prompt_tps",
    "generation_tps",
    "prompt_throughput",
    "generation_throughput",
    "requests_running",
    "requests_waiting",
    "pull_percent",
    "pull_downloaded_mb",
    "pull_total_mb",
    "created_at",
    "createdBy",
    "createdIndex",
    "modIndex",
    "status_changed_at",
    "expires_at",
    "last_error",
    "warnings",
];

/// What a caller may say of a deployment.
#[derive(Debug, ToSchema)]
#[expect(dead_code, reason = "the description of the body; it is read field by field")]
pub struct DeploymentInput {
    /// The node that it shall run on. Left out: the leader looks for one, by free memory, by what is there already, and away from
    /// other replicas.
    node_id: Option<u64>,
    /// How often it shall run, 1 to 64, on different nodes as far as there are some. Requests go to whichever has least to do.
    replicas: Option<u32>,
    /// What becomes of a replica whose node is lost: `wait` for the node, or `reschedule` to another one. Left out: `wait` where
    /// `node_id` was given, else `reschedule`.
    on_node_loss: Option<String>,
    /// What the engine loads: a name at the hub, or a path.
    #[schema(example = "meta-llama/Meta-Llama-3-8B")]
    model_name: String,
    /// The port of the node at which it can be called.
    port: Option<u16>,
    /// The share of each GPU's memory: more than 0, at most 1.
    #[schema(example = 0.5)]
    gpu_memory_fraction: f64,
    /// The numbers of its GPUs.
    gpu_ids: Option<Vec<u32>>,
    tensor_parallel_size: Option<u32>,
    /// Added to the engine's command line, last. Where it listens and what it is called can not be said here.
    extra_args: Option<Vec<String>>,
    /// `[{"key": ..., "value": ...}]`. The values are sealed, and never shown again.
    #[schema(value_type = Option<Vec<Object>>)]
    env_vars: Option<Vec<Value>>,
    vllm_version: Option<String>,
    /// Python packages that the image does not have.
    extra_packages: Option<Vec<String>>,
    /// The engine's flags by name: `max_model_len`, `dtype`, `quantization`, `served_model_name` ...
    #[schema(value_type = Option<Object>)]
    engine_args: Option<Value>,
    /// `[{"name": ..., "path": ...}]`.
    #[schema(value_type = Option<Vec<Object>>)]
    lora_modules: Option<Vec<Value>>,
    /// 1 to 20. Left out: the fleet's setting.
    max_failed_restarts: Option<u32>,
    /// The user or team that it is for.
    owner: Option<String>,
    /// How long it shall serve; left out: without end.
    duration_seconds: Option<u64>,
    /// Whether nothing may take its place on the GPU.
    pinned: Option<bool>,
    /// `vllm`, or `sim` for the simulator.
    #[schema(example = "vllm")]
    engine: Option<String>,
    /// `stopped`: nothing else can be said of a record.
    status: Option<String>,
}

/// What a request says of a deployment.
pub(super) struct Draft {
    pub spec: DeploymentSpec,
    pub wish: Wish,
    pub owner: String,
    pub duration_s: Option<u64>,
    pub pinned: bool,
    pub environment: Vec<(String, String)>,
    /// What clients call it, its adapters after it.
    pub names: Vec<ServedName>,
}

/// Reads what shall be kept and not started.
pub(super) fn read(fields: &mut Fields) -> Draft {
    let _ = fields.word("status", &["stopped"]);
    draft(fields)
}

/// Reads what shall be started.
pub(super) fn read_start(fields: &mut Fields) -> Draft {
    fields.ignore(&["status"]);
    let draft = draft(fields);
    if draft.owner.is_empty() {
        fields.required("owner");
    }
    draft
}

fn draft(fields: &mut Fields) -> Draft {
    fields.ignore(&OURS);
    let gpu_ids = gpu_ids(fields);
    let ranks = count(fields, "tensor_parallel_size", 1, LIST_LIMIT as u64);
    if let Some(ranks) = ranks
        && !gpu_ids.is_empty()
        && ranks as usize > gpu_ids.len()
    {
        fields.wrong("tensor_parallel_size", format!("needs {ranks} GPUs, and gpu_ids names {}", gpu_ids.len()));
    }
    let spec = DeploymentSpec {
        model_name: model_name(fields),
        engine: engine(fields).into(),
        gpu_share_ppm: share(fields),
        tensor_parallel_size: ranks,
        extra_args: extra_args(fields),
        engine_args: engine_args(fields),
        lora_modules: lora_modules(fields),
        vllm_version: version(fields),
        extra_packages: packages(fields),
        max_failed_restarts: count(fields, "max_failed_restarts", 1, 20),
    };
    let wish = Wish {
        node_id: fields.integer("node_id", 1, MAX_INTEGER).value(),
        gpu_ids,
        port: count(fields, "port", 1, u64::from(u16::MAX)),
        replicas: count(fields, "replicas", 1, REPLICAS).unwrap_or_default(),
        on_node_loss: match fields.word("on_node_loss", &["wait", "reschedule"]).value() {
            Some("wait") => OnNodeLoss::Wait,
            Some(_) => OnNodeLoss::Reschedule,
            None => OnNodeLoss::Unspecified,
        }
        .into(),
    };
    if wish.replicas > 1 && wish.node_id.is_some() {
        fields.wrong("replicas", "must be 1 where node_id names the node; leave that out for more");
    }
    Draft {
        names: names(fields, &spec),
        spec,
        wish,
        owner: line(fields, "owner", NAME_LIMIT).unwrap_or_default(),
        duration_s: fields.integer("duration_seconds", 1, DURATION_LIMIT).value(),
        pinned: fields.boolean("pinned").value().unwrap_or(false),
        environment: environment(fields),
    }
}

/// What the engine calls its model: what clients call it first of all.
pub(super) fn served_name(spec: &DeploymentSpec) -> String {
    let given: Map<String, Value> = serde_json::from_str(&spec.engine_args).unwrap_or_default();
    let name = given.get("served_model_name").and_then(Value::as_str).map(str::trim).unwrap_or_default();
    if name.is_empty() { spec.model_name.clone() } else { name.to_owned() }
}

/// The names that clients may use.
fn names(fields: &mut Fields, spec: &DeploymentSpec) -> Vec<ServedName> {
    let own = served_name(spec);
    if is_id(&own) {
        fields.wrong("engine_args.served_model_name", "must not look like a UUID");
    }
    for (index, module) in spec.lora_modules.iter().enumerate() {
        if name_key(&module.name) == name_key(&own) {
            fields.wrong(&format!("lora_modules[{index}]"), "name is the model's own");
        }
    }
    let all = std::iter::once(own).chain(spec.lora_modules.iter().map(|module| module.name.clone()));
    all.map(|name| ServedName { key: name_key(&name), name }).collect()
}

/// What is odd about a draft and yet no error.
pub(super) fn warnings(spec: &DeploymentSpec) -> Vec<String> {
    let given: Map<String, Value> = serde_json::from_str(&spec.engine_args).unwrap_or_default();
    let unknown = given.keys().filter(|name| !ENGINE_ARGS.contains(&name.as_str()));
    unknown
        .map(|name| format!("engine_args.{name} is not known and will not reach the engine; extra_args do"))
        .collect()
}

fn count(fields: &mut Fields, field: &str, min: u64, max: u64) -> Option<u32> {
    fields.integer(field, min, max).value().and_then(|number| u32::try_from(number).ok())
}

/// A text of one line, or nothing.
pub(super) fn line(fields: &mut Fields, field: &str, limit: usize) -> Option<String> {
    let text = fields.text(field).value()?;
    if let Err(why) = check_line(&text, limit) {
        fields.wrong(field, why);
    }
    Some(text).filter(|text| !text.is_empty())
}

fn check_line(text: &str, limit: usize) -> Result<(), String> {
    if text.chars().count() > limit {
        return Err(format!("must have at most {limit} characters"));
    }
    if text.chars().any(char::is_control) {
        return Err("must not contain control characters".to_owned());
    }
    Ok(())
}

fn text_item(value: &Value, limit: usize) -> Result<String, String> {
    let text = value.as_str().ok_or("must be a string")?;
    check_line(text, limit)?;
    if text.is_empty() { Err("must not be empty".to_owned()) } else { Ok(text.to_owned()) }
}

fn model_name(fields: &mut Fields) -> String {
    match line(fields, "model_name", NAME_LIMIT) {
        Some(name) => {
            // It would be read as a flag.
            if name.starts_with('-') {
                fields.wrong("model_name", "must not begin with a dash");
            }
            name.nfc().collect()
        }
        None => {
            fields.required("model_name");
            String::new()
        }
    }
}

fn engine(fields: &mut Fields) -> Engine {
    match fields.word("engine", &["vllm", "sim"]).value() {
        Some("sim") => Engine::Sim,
        _ => Engine::Vllm,
    }
}

fn share(fields: &mut Fields) -> u32 {
    match fields.number("gpu_memory_fraction", 0.0, 1.0) {
        Given::Value(fraction) => {
            let millionths = (fraction * 1e6).round() as u32;
            if millionths == 0 {
                fields.wrong("gpu_memory_fraction", "must be more than 0");
            }
            millionths
        }
        Given::Absent | Given::Null => {
            fields.required("gpu_memory_fraction");
            0
        }
    }
}

fn gpu_ids(fields: &mut Fields) -> Vec<u32> {
    let ids = fields.list("gpu_ids", LIST_LIMIT, |value| {
        let number = value.as_u64().filter(|number| *number < GPU_LIMIT);
        let number = number.and_then(|number| u32::try_from(number).ok());
        number.ok_or_else(|| format!("must be an integer from 0 to {}", GPU_LIMIT - 1))
    });
    let ids = ids.value().unwrap_or_default();
    if ids.iter().collect::<BTreeSet<_>>().len() < ids.len() {
        fields.wrong("gpu_ids", "names a GPU twice");
    }
    ids
}

/// Whether the engine would take an argument for one of the reserved flags: in full, with a value behind `=`, with
/// underscores, or cut short.
fn reserved(argument: &str) -> Option<&'static str> {
    let flag = argument.split_once('=').map_or(argument, |(flag, _)| flag).replace('_', "-");
    if flag.len() < 3 || !flag.starts_with("--") {
        return None;
    }
    RESERVED_FLAGS.into_iter().find(|reserved| reserved.starts_with(flag.as_str()))
}

fn extra_args(fields: &mut Fields) -> Vec<String> {
    let mut first = true;
    let arguments = fields.list("extra_args", LIST_LIMIT, |value| {
        let argument = text_item(&value, TEXT_LIMIT)?;
        // What comes first and is no flag would be taken for the model.
        if std::mem::take(&mut first) && !argument.starts_with('-') {
            return Err("must begin with a dash: it would be taken for the model".to_owned());
        }
        match reserved(&argument) {
            Some(flag) => Err(format!("{flag} is set by Muster")),
            None => Ok(argument),
        }
    });
    arguments.value().unwrap_or_default()
}

fn engine_args(fields: &mut Fields) -> String {
    let Some(map) = fields.object("engine_args").value() else { return String::new() };
    for (name, value) in &map {
        let field = format!("engine_args.{name}");
        match value {
            Value::Array(_) | Value::Object(_) => {
                fields.wrong(&field, "must be a string, a number, true, false or null")
            }
            Value::String(text) => {
                if let Err(why) = check_line(text, NAME_LIMIT) {
                    fields.wrong(&field, why);
                } else if name == "served_model_name" && text.trim().contains(char::is_whitespace) {
                    fields.wrong(&field, "must be one name");
                }
            }
            Value::Null | Value::Bool(_) | Value::Number(_) => {}
        }
    }
    let text = Value::Object(map).to_string();
    if text.len() > 2 * TEXT_LIMIT {
        fields.wrong("engine_args", format!("must take at most {} bytes", 2 * TEXT_LIMIT));
    }
    text
}

fn lora_modules(fields: &mut Fields) -> Vec<LoraModule> {
    let mut names = BTreeSet::new();
    let modules = fields.list("lora_modules", LIST_LIMIT, |value| {
        let Value::Object(module) = value else { return Err("must be an object".to_owned()) };
        let part = |key: &str| {
            let text = module.get(key).ok_or_else(|| format!("{key} is required"))?;
            text_item(text, NAME_LIMIT).map_err(|why| format!("{key} {why}"))
        };
        let module = LoraModule { name: part("name")?, path: part("path")? };
        if module.name.contains(['=', ' ']) {
            return Err("name must not contain = or blanks".to_owned());
        }
        if !names.insert(module.name.clone()) {
            return Err(format!("{} is named twice", module.name));
        }
        Ok(module)
    });
    modules.value().unwrap_or_default()
}

fn version(fields: &mut Fields) -> Option<String> {
    let version = line(fields, "vllm_version", 128)?;
    let allowed = |character: char| character.is_ascii_alphanumeric() || "._-".contains(character);
    if !version.chars().all(allowed) || version.starts_with(['.', '-']) {
        fields.wrong("vllm_version", "is no image tag");
    }
    Some(version)
}

fn packages(fields: &mut Fields) -> Vec<String> {
    let packages = fields.list("extra_packages", LIST_LIMIT, |value| {
        let package = text_item(&value, NAME_LIMIT)?;
        if package.starts_with('-') { Err("must not begin with a dash".to_owned()) } else { Ok(package) }
    });
    packages.value().unwrap_or_default()
}

fn environment(fields: &mut Fields) -> Vec<(String, String)> {
    let mut keys = BTreeSet::new();
    let mut bytes = 0;
    let variables = fields.list("env_vars", LIST_LIMIT, |value| {
        let Value::Object(variable) = value else { return Err("must be an object".to_owned()) };
        let key = variable.get("key").and_then(Value::as_str).ok_or("key must be a string")?;
        let value = variable.get("value").and_then(Value::as_str).ok_or("value must be a string")?;
        let letter = |character: char| character.is_ascii_alphabetic() || character == '_';
        if !key.starts_with(letter) || !key.chars().all(|character| letter(character) || character.is_ascii_digit()) {
            return Err("key must consist of letters, digits and underscores, and not begin with a digit".to_owned());
        }
        if key.len() > NAME_LIMIT {
            return Err(format!("key must have at most {NAME_LIMIT} characters"));
        }
        if value.contains('\0') {
            return Err("value must not contain NUL".to_owned());
        }
        if !keys.insert(key.to_owned()) {
            return Err(format!("{key} is set twice"));
        }
        bytes += key.len() + value.len();
        Ok((key.to_owned(), value.to_owned()))
    });
    if bytes > ENVIRONMENT_LIMIT {
        fields.wrong("env_vars", format!("must take at most {ENVIRONMENT_LIMIT} bytes together"));
    }
    variables.value().unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::fields::wrong_fields;

    fn wrong(change: Value) -> Vec<String> {
        let mut body = json!({ "model_name": "org/m", "gpu_memory_fraction": 0.5 });
        for (field, value) in change.as_object().expect("an object") {
            body[field] = value.clone();
        }
        wrong_fields(&body, read)
    }

    #[test]
    fn flags_that_muster_sets_are_refused_in_every_spelling() {
        for argument in [
            "--model",
            "--port",
            "--port=1",
            "--por",
            "--ho",
            "--host=0.0.0.0",
            "--served-model-name",
            "--served_model_name=x",
            "--served",
            "--api-key",
            "--api_key",
            "--uds",
            "--ssl-keyfile",
            "--ssl",
            "--root-path=/",
            "--mod",
            "--config",
        ] {
            assert_eq!(wrong(json!({ "extra_args": [argument, "x"] })), ["extra_args[0]"], "{argument}");
            assert_eq!(wrong(json!({ "extra_args": ["--seed", "1", argument] })), ["extra_args[2]"], "{argument}");
        }
        let fine =
            json!({ "extra_args": ["--max-model-len", "4096", "-tp", "2", "--enable-lora", "--seed=1", "--", "x"] });
        assert!(wrong(fine).is_empty());
        assert_eq!(wrong(json!({ "extra_args": ["other/model"] })), ["extra_args[0]"]);
    }

    #[test]
    fn every_range_has_its_ends() {
        for (good, bad) in [
            (json!({ "gpu_memory_fraction": 0.000_001 }), json!({ "gpu_memory_fraction": 0 })),
            (json!({ "gpu_memory_fraction": 1 }), json!({ "gpu_memory_fraction": 1.000_001 })),
            (json!({ "gpu_memory_fraction": 0.05 }), json!({ "gpu_memory_fraction": -0.05 })),
            (json!({ "gpu_memory_fraction": 0.9 }), json!({ "gpu_memory_fraction": "NaN" })),
            (json!({ "port": 65535 }), json!({ "port": 65536 })),
            (json!({ "port": 1 }), json!({ "port": 0 })),
            (json!({ "gpu_ids": [0, 1] }), json!({ "gpu_ids": [1, 1] })),
            (json!({ "max_failed_restarts": 20 }), json!({ "max_failed_restarts": 21 })),
            (json!({ "max_failed_restarts": 1 }), json!({ "max_failed_restarts": 0 })),
            (json!({ "tensor_parallel_size": 2, "gpu_ids": [0, 3] }), json!({ "tensor_parallel_size": 0 })),
            (json!({ "duration_seconds": 1 }), json!({ "duration_seconds": 0 })),
            (json!({ "engine": "sim" }), json!({ "engine": "sglang" })),
            (json!({ "status": "stopped" }), json!({ "status": "running" })),
            (json!({ "vllm_version": "nightly-0f3e" }), json!({ "vllm_version": "a/b" })),
            (json!({ "node_id": 1 }), json!({ "node_id": "one" })),
            (json!({ "pinned": true }), json!({ "pinned": "yes" })),
            (json!({ "engine_args": { "seed": "", "foo": 1 } }), json!({ "engine_args": [] })),
            (json!({ "model_name": "x" }), json!({ "model_name": "-x" })),
            (json!({ "model_name": "x".repeat(255) }), json!({ "model_name": "x".repeat(256) })),
        ] {
            assert!(wrong(good.clone()).is_empty(), "{good}: {:?}", wrong(good.clone()));
            let fields: Vec<_> = bad.as_object().expect("an object").keys().cloned().collect();
            assert_eq!(wrong(bad.clone()), fields, "{bad}");
        }
        assert_eq!(wrong(json!({ "tensor_parallel_size": 3, "gpu_ids": [0, 3] })), ["tensor_parallel_size"]);
        assert_eq!(wrong(json!({ "gpu_ids": [0, -1, 1024] })), ["gpu_ids[1]", "gpu_ids[2]"]);
        assert_eq!(wrong(json!({ "engine_args": { "dtype": {}, "served_model_name": "a b" } })).len(), 2);
        assert_eq!(
            wrong(json!({ "lora_modules": [{ "name": "a", "path": "p" }, { "name": "a", "path": "q" }, {}] })).len(),
            2
        );
        let long = json!({ "env_vars": [{ "key": "A", "value": "x".repeat(9000) }] });
        assert_eq!(wrong(long), ["env_vars"]);
        let odd =
            json!({ "env_vars": [{ "key": "1A", "value": "" }, { "key": "A=B", "value": "" }, { "key": "A" }, "A=B"] });
        assert_eq!(wrong(odd).len(), 4);
    }

    #[test]
    fn names_that_the_engine_does_not_know_are_told() {
        let spec = DeploymentSpec { engine_args: r#"{"seed": 1, "foo": 1}"#.to_owned(), ..DeploymentSpec::default() };
        let warnings = warnings(&spec);
        assert!(warnings.len() == 1 && warnings[0].contains("engine_args.foo"), "{warnings:?}");
    }
}
