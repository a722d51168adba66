//! A deployment as it is answered.

use muster_cluster::rows::{Deployment, DeploymentSpec, DeploymentStatus, Engine, LoraModule};
use muster_cluster::state::{Stored, View};
use serde::Serialize;
use serde_json::{Map, Value};
use utoipa::ToSchema;

use crate::error::ApiError;
use crate::request::time;

use super::input::warnings;

/// A variable of an engine's environment. Its value is never shown.
#[derive(Clone, Debug, Serialize, ToSchema)]
pub struct Variable {
    key: String,
    /// Null always.
    #[schema(value_type = Option<String>)]
    value: Option<()>,
}

/// An adapter that is served beside the model.
#[derive(Clone, Debug, Serialize, ToSchema)]
pub struct Lora {
    name: String,
    path: String,
}

impl From<LoraModule> for Lora {
    fn from(LoraModule { name, path }: LoraModule) -> Self {
        Self { name, path }
    }
}

/// A deployment.
#[derive(Clone, Debug, Serialize, ToSchema)]
pub struct DeploymentEntry {
    pub(super) id: u64,
    node_id: Option<u64>,
    model_name: String,
    port: Option<u32>,
    gpu_memory_fraction: f64,
    gpu_ids: Vec<u32>,
    tensor_parallel_size: Option<u32>,
    extra_args: Vec<String>,
    env_vars: Vec<Variable>,
    vllm_version: Option<String>,
    extra_packages: Vec<String>,
    #[schema(value_type = Object)]
    engine_args: Map<String, Value>,
    lora_modules: Vec<Lora>,
    max_failed_restarts: Option<u32>,
    owner: Option<String>,
    duration_seconds: Option<u64>,
    pinned: bool,
    /// `vllm` or `sim`.
    engine: &'static str,
    /// `stopped`: nobody has started it.
    #[schema(example = "stopped")]
    status: &'static str,
    status_changed_at: String,
    /// Null: it does not end by itself, or does not run.
    expires_at: Option<String>,
    last_error: Option<String>,
    created_at: String,
    #[serde(rename = "createdBy")]
    created_by: String,
    #[serde(rename = "createdIndex")]
    pub(super) created_index: u64,
    /// The version: what `ETag` says, for `If-Match`.
    #[serde(rename = "modIndex")]
    pub(super) mod_index: u64,
    /// What may not be what the caller wants.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    warnings: Vec<String>,
}

fn engine(engine: Engine) -> &'static str {
    match engine {
        Engine::Sim => "sim",
        Engine::Vllm | Engine::Unspecified => "vllm",
    }
}

fn status(status: DeploymentStatus) -> &'static str {
    match status {
        DeploymentStatus::Stopped | DeploymentStatus::Unspecified => "stopped",
    }
}

fn fraction(spec: &DeploymentSpec) -> f64 {
    f64::from(spec.gpu_share_ppm) / 1e6
}

fn engine_args(spec: &DeploymentSpec) -> Map<String, Value> {
    serde_json::from_str(&spec.engine_args).unwrap_or_default()
}

impl DeploymentEntry {
    pub(super) fn of(Stored { row, mod_index }: Stored<Deployment>) -> Self {
        let state = status(row.status());
        let (spec, wish) = (row.spec.unwrap_or_default(), row.wish.unwrap_or_default());
        let keys = row.environment.unwrap_or_default().keys;
        Self {
            id: row.id,
            node_id: wish.node_id,
            port: wish.port,
            gpu_memory_fraction: fraction(&spec),
            gpu_ids: wish.gpu_ids,
            env_vars: keys.into_iter().map(|key| Variable { key, value: None }).collect(),
            engine_args: engine_args(&spec),
            engine: engine(spec.engine()),
            warnings: warnings(&spec),
            model_name: spec.model_name,
            tensor_parallel_size: spec.tensor_parallel_size,
            extra_args: spec.extra_args,
            vllm_version: spec.vllm_version,
            extra_packages: spec.extra_packages,
            lora_modules: spec.lora_modules.into_iter().map(Lora::from).collect(),
            max_failed_restarts: spec.max_failed_restarts,
            owner: Some(row.owner).filter(|owner| !owner.is_empty()),
            duration_seconds: row.duration_s,
            pinned: row.pinned,
            status: state,
            status_changed_at: time(row.status_changed_ms),
            expires_at: None,
            last_error: None,
            created_at: time(row.created_ms),
            created_by: row.created_by,
            created_index: row.created_index,
            mod_index,
        }
    }
}

/// The GPUs of a manifest.
#[derive(Debug, Serialize, ToSchema)]
struct ManifestGpu {
    ids: Vec<u32>,
    memory_fraction: f64,
    tensor_parallel_size: Option<u32>,
    /// As the node calls them; empty while it has not said.
    names: Vec<String>,
}

#[derive(Debug, Serialize, ToSchema)]
struct ManifestNode {
    hostname: String,
}

/// What a deployment is, to launch it again elsewhere. Values of its environment do not travel.
#[derive(Debug, Serialize, ToSchema)]
pub struct Manifest {
    manifest_version: u32,
    deployment_id: u64,
    model: String,
    engine: &'static str,
    served_model_name: Option<String>,
    revision: Option<String>,
    #[schema(value_type = Option<Object>)]
    seed: Option<Value>,
    vllm_version: Option<String>,
    /// Null until an image has been used.
    image_digest: Option<String>,
    /// Null until one has been used.
    container_runtime: Option<String>,
    #[schema(value_type = Object)]
    engine_args: Map<String, Value>,
    extra_args: Vec<String>,
    extra_packages: Vec<String>,
    lora_modules: Vec<Lora>,
    env_var_keys: Vec<String>,
    gpu: ManifestGpu,
    node: Option<ManifestNode>,
    owner: Option<String>,
    created_at: String,
    duration_seconds: Option<u64>,
    status: &'static str,
}

impl Manifest {
    pub(super) fn of(row: Deployment, view: &View) -> Result<Self, ApiError> {
        let state = status(row.status());
        let (spec, wish) = (row.spec.unwrap_or_default(), row.wish.unwrap_or_default());
        let node = match wish.node_id {
            Some(id) => view.node(muster_cluster::ids::NodeId(id))?,
            None => None,
        };
        let args = engine_args(&spec);
        let text =
            |name: &str| args.get(name).and_then(Value::as_str).filter(|text| !text.is_empty()).map(str::to_owned);
        Ok(Self {
            manifest_version: 1,
            deployment_id: row.id,
            engine: engine(spec.engine()),
            served_model_name: text("served_model_name"),
            revision: text("revision"),
            seed: args.get("seed").cloned().filter(|seed| !seed.is_null()),
            image_digest: None,
            container_runtime: None,
            env_var_keys: row.environment.unwrap_or_default().keys,
            gpu: ManifestGpu {
                ids: wish.gpu_ids,
                memory_fraction: fraction(&spec),
                tensor_parallel_size: spec.tensor_parallel_size,
                names: Vec::new(),
            },
            node: node.map(|node| ManifestNode { hostname: node.row.facts.unwrap_or_default().name }),
            owner: Some(row.owner).filter(|owner| !owner.is_empty()),
            created_at: time(row.created_ms),
            duration_seconds: row.duration_s,
            status: state,
            engine_args: args,
            model: spec.model_name,
            vllm_version: spec.vllm_version,
            extra_args: spec.extra_args,
            extra_packages: spec.extra_packages,
            lora_modules: spec.lora_modules.into_iter().map(Lora::from).collect(),
        })
    }
}
