//! A deployment as it is answered.

use muster_cluster::ids::{DeploymentId, NodeId};
use muster_cluster::rows::{Deployment, DeploymentSpec, DeploymentStatus, Engine, LoraModule, OnNodeLoss, Placement};
use muster_cluster::state::{Done, Stored, View, on_node_loss};
use serde::Serialize;
use serde_json::{Map, Value};
use utoipa::ToSchema;

use crate::error::ApiError;
use crate::request::time;

use super::input::warnings;
use super::seen::Live;

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
    /// `stopped`, `starting`, `loading`, `running`, `stopping`, `error` or `expired`.
    #[schema(example = "running")]
    status: &'static str,
    status_changed_at: String,
    /// Null: it does not end by itself, or its time has not begun.
    expires_at: Option<String>,
    last_error: Option<String>,
    /// The class of the last error: `gpu_oom`, `bad_args`, `hf_auth` ...
    error_code: Option<String>,
    /// `docker`, `podman` or `process`; null until it has been started.
    container_runtime: Option<String>,
    /// What its image is exactly.
    image_digest: Option<String>,
    /// How many of it there shall be.
    replicas: u32,
    /// What becomes of a replica whose node is lost: `wait` or `reschedule`.
    on_node_loss: &'static str,
    /// Where its replicas are, or were last.
    placements: Vec<PlacementEntry>,
    /// What is being done while it starts: `pulling image`, `loading_weights` ...
    detail: Option<String>,
    /// What its node shows, where that is not what is committed: `unreachable`.
    observed: Option<&'static str>,
    /// What it has done in all its lives, as far as its nodes have told; they do so every half a minute.
    total_prompt_tokens: u64,
    total_completion_tokens: u64,
    total_requests: u64,
    /// Tokens per second of the time that requests spend in their prompts; what it was last, once it has stopped.
    prompt_tps: Option<f64>,
    /// Tokens per second of the time that requests spend in their answers; what it was last, once it has stopped.
    generation_tps: Option<f64>,
    /// Tokens of prompts per second of the clock, for all requests together.
    prompt_throughput: Option<f64>,
    /// Generated tokens per second of the clock, for all requests together.
    generation_throughput: Option<f64>,
    requests_running: Option<u64>,
    requests_waiting: Option<u64>,
    /// How much of its image has come, while it is pulled.
    pull_percent: Option<f64>,
    pull_downloaded_mb: Option<f64>,
    pull_total_mb: Option<f64>,
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

/// A replica of a deployment.
#[derive(Clone, Debug, Serialize, ToSchema)]
pub struct PlacementEntry {
    ordinal: u32,
    /// Null: the leader has not found a place yet.
    node_id: Option<u64>,
    port: Option<u32>,
    gpu_ids: Vec<u32>,
    /// As for the deployment.
    status: &'static str,
    status_changed_at: String,
    last_error: Option<String>,
    /// The index of the commit that gave it to its node.
    epoch: u64,
}

impl PlacementEntry {
    fn of(placement: &Placement) -> Self {
        let seat = placement.seat.as_ref();
        Self {
            ordinal: placement.ordinal,
            node_id: seat.map(|seat| seat.node_id),
            port: seat.map(|seat| seat.port),
            gpu_ids: seat.map(|seat| seat.gpu_ids.clone()).unwrap_or_default(),
            status: status(placement.status()),
            status_changed_at: time(placement.status_changed_ms),
            last_error: placement.failure.as_ref().map(|failure| failure.message.clone()),
            epoch: placement.epoch,
        }
    }
}

/// Tokens per second.
fn rate(thousandths: Option<u64>) -> Option<f64> {
    thousandths.map(|rate| rate as f64 / 1000.0)
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
        DeploymentStatus::Starting => "starting",
        DeploymentStatus::Loading => "loading",
        DeploymentStatus::Running => "running",
        DeploymentStatus::Stopping => "stopping",
        DeploymentStatus::Error => "error",
        DeploymentStatus::Expired => "expired",
    }
}

fn fraction(spec: &DeploymentSpec) -> f64 {
    f64::from(spec.gpu_share_ppm) / 1e6
}

fn engine_args(spec: &DeploymentSpec) -> Map<String, Value> {
    serde_json::from_str(&spec.engine_args).unwrap_or_default()
}

impl DeploymentEntry {
    /// What is said of a deployment and its placements. What stands of its first replica is told as its own, as the seed does.
    pub(super) fn of(
        Stored { row, mod_index }: Stored<Deployment>,
        placements: &[Placement],
        done: &Done,
        live: Live,
    ) -> Self {
        let state = status(row.status());
        let seat = placements.first().and_then(|placement| placement.seat.clone());
        let digest = placements.first().map(|placement| placement.image_digest.clone()).unwrap_or_default();
        let loss = match on_node_loss(&row) {
            OnNodeLoss::Reschedule => "reschedule",
            OnNodeLoss::Wait | OnNodeLoss::Unspecified => "wait",
        };
        let failure = row.failure.unwrap_or_default();
        let (spec, wish) = (row.spec.unwrap_or_default(), row.wish.unwrap_or_default());
        let keys = row.environment.unwrap_or_default().keys;
        Self {
            id: row.id,
            node_id: seat.as_ref().map_or(wish.node_id, |seat| Some(seat.node_id)),
            port: seat.as_ref().map_or(wish.port, |seat| Some(seat.port)),
            gpu_memory_fraction: fraction(&spec),
            gpu_ids: seat.as_ref().map_or(wish.gpu_ids, |seat| seat.gpu_ids.clone()),
            container_runtime: seat.map(|seat| seat.runtime),
            image_digest: Some(digest).filter(|digest| !digest.is_empty()),
            replicas: wish.replicas.max(1),
            on_node_loss: loss,
            placements: placements.iter().map(PlacementEntry::of).collect(),
            detail: live.detail,
            observed: live.observed,
            total_prompt_tokens: done.totals.prompt_tokens,
            total_completion_tokens: done.totals.completion_tokens,
            total_requests: done.totals.requests,
            prompt_tps: live.prompt_tps.or_else(|| rate(done.prompt_mtps)),
            generation_tps: live.generation_tps.or_else(|| rate(done.generation_mtps)),
            prompt_throughput: live.prompt_throughput,
            generation_throughput: live.generation_throughput,
            requests_running: live.requests_running,
            requests_waiting: live.requests_waiting,
            pull_percent: live.pull_percent,
            pull_downloaded_mb: live.pull_downloaded_mb,
            pull_total_mb: live.pull_total_mb,
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
            expires_at: row.expires_ms.map(time),
            last_error: Some(failure.message).filter(|message| !message.is_empty()),
            error_code: Some(failure.code).filter(|code| !code.is_empty()),
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
        let first = view.placements(DeploymentId(row.id))?.into_iter().next().unwrap_or_default();
        let (spec, wish) = (row.spec.unwrap_or_default(), row.wish.unwrap_or_default());
        let (node_id, gpu_ids, runtime) = match first.seat {
            Some(seat) => (Some(seat.node_id), seat.gpu_ids, Some(seat.runtime)),
            None => (wish.node_id, wish.gpu_ids, None),
        };
        let node = match node_id {
            Some(id) => view.node(NodeId(id))?,
            None => None,
        };
        let facts = node.and_then(|node| node.row.facts);
        let names = facts.iter().flat_map(|facts| &facts.gpus).filter(|gpu| gpu_ids.contains(&gpu.index));
        let names = names.map(|gpu| gpu.name.clone()).collect();
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
            image_digest: Some(first.image_digest).filter(|digest| !digest.is_empty()),
            container_runtime: runtime,
            env_var_keys: row.environment.unwrap_or_default().keys,
            gpu: ManifestGpu {
                ids: gpu_ids,
                memory_fraction: fraction(&spec),
                tensor_parallel_size: spec.tensor_parallel_size,
                names,
            },
            node: facts.map(|facts| ManifestNode { hostname: facts.name }),
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
