//! Where a deployment is started: what its caller wants, and what is left open chosen from what the state says is free.
//!
//! What is chosen here may be taken by the time it is committed; then it is chosen again from what is free then.

use muster_cluster::ids::NodeId;
use muster_cluster::rows::{DeploymentSpec, Engine, NodeFacts, Seat, Wish};
use muster_cluster::state::View;

use crate::error::ApiError;

const PROCESS: &str = "process";

/// The name of an engine in what nodes tell of themselves.
fn engine_name(engine: Engine) -> &'static str {
    match engine {
        Engine::Sim => "sim",
        Engine::Vllm | Engine::Unspecified => "vllm",
    }
}

/// What runs the engine on a node: a program that its configuration names for it, else a container.
fn runtime(view: &View, facts: &NodeFacts, node: NodeId, engine: Engine) -> Result<String, ApiError> {
    if facts.process_engines.iter().any(|name| name == engine_name(engine)) {
        return Ok(PROCESS.to_owned());
    }
    let preferred = view.settings()?.0.preferred_container_runtime.unwrap_or_else(|| "docker".to_owned());
    let containers = || facts.runtimes.iter().filter(|runtime| *runtime != PROCESS);
    let chosen = containers().find(|runtime| **runtime == preferred).or_else(|| containers().next());
    chosen.cloned().ok_or_else(|| {
        let name = engine_name(engine);
        ApiError::Conflict(format!(
            "node {node} has no container runtime, and its configuration names no program for {name} (engine_{name})"
        ))
    })
}

/// A port of the node's range that nobody holds.
fn port(facts: &NodeFacts, node: NodeId, held: &[u32]) -> Result<u32, ApiError> {
    let free = (facts.first_port.max(1)..=facts.last_port).find(|port| !held.contains(port));
    free.ok_or_else(|| ApiError::Conflict(format!("every port that node {node} gives out is held")))
}

/// As many GPUs as there are ranks, those with the most room first.
fn gpus(facts: &NodeFacts, claimed: impl Fn(u32) -> u64, ranks: usize) -> Result<Vec<u32>, ApiError> {
    let mut free: Vec<_> = facts.gpus.iter().map(|gpu| (claimed(gpu.index), gpu.index)).collect();
    free.sort_unstable();
    if free.len() < ranks && !free.is_empty() {
        let why = format!("it needs {ranks} GPUs, and the node has {}", free.len());
        return Err(ApiError::Conflict(why));
    }
    let mut chosen: Vec<_> = free.into_iter().take(ranks).map(|(_, index)| index).collect();
    chosen.sort_unstable();
    Ok(chosen)
}

/// Where a deployment goes that is started now.
///
/// # Errors
/// When there is no such node, or nothing is free there.
pub(super) fn find(view: &View, spec: &DeploymentSpec, wish: &Wish) -> Result<Seat, ApiError> {
    let node = wish.node_id.map(NodeId).ok_or_else(|| ApiError::field("node_id", "is required"))?;
    let stored = view.node(node)?.ok_or_else(|| ApiError::NotFound(format!("there is no node {node}")))?;
    let facts = stored.row.facts.unwrap_or_default();
    let held: Vec<_> = view.held_on(node)?.into_iter().map(|held| held.reservation).collect();
    let ports: Vec<_> = held.iter().map(|held| held.port).collect();
    let claimed = |gpu| {
        let on_it = held.iter().filter(|held| held.gpu_ids.contains(&gpu));
        on_it.map(|held| u64::from(held.gpu_share_ppm)).sum()
    };
    let gpu_ids = match wish.gpu_ids.as_slice() {
        [] => gpus(&facts, claimed, spec.tensor_parallel_size.unwrap_or(1) as usize)?,
        wanted => wanted.to_vec(),
    };
    Ok(Seat {
        node_id: node.0,
        gpu_ids,
        port: match wish.port {
            Some(port) => port,
            None => port(&facts, node, &ports)?,
        },
        runtime: runtime(view, &facts, node, spec.engine())?,
        warm: false,
    })
}
