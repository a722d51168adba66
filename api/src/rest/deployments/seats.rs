//! Where a deployment is started: what its caller wants, and what is left open chosen from what the state says is free.
//!
//! What is chosen here may be taken by the time it is committed; then it is chosen again from what is free then.

use muster_cluster::ids::NodeId;
use muster_cluster::rows::{DeploymentSpec, Engine, NodeFacts, Seat, Wish};
use muster_cluster::state::{Maintenance, NodePolicy, View};

use crate::error::ApiError;

const PROCESS: &str = "process";

/// The name of an engine in what nodes tell of themselves.
fn engine_name(engine: Engine) -> &'static str {
    match engine {
        Engine::Sim => "sim",
        Engine::Vllm | Engine::Unspecified => "vllm",
    }
}

/// What runs the engine on a node: the container runtime that an operator has chosen for it, if it is there; else a program
/// that its configuration names for the engine, else a container.
fn runtime(
    preferred: Option<String>,
    policy: &NodePolicy,
    facts: &NodeFacts,
    node: NodeId,
    engine: Engine,
) -> Result<String, ApiError> {
    let containers = || facts.runtimes.iter().filter(|runtime| *runtime != PROCESS);
    if let Some(chosen) = policy.container_runtime().and_then(|wanted| containers().find(|runtime| *runtime == wanted))
    {
        return Ok(chosen.clone());
    }
    if facts.process_engines.iter().any(|name| name == engine_name(engine)) {
        return Ok(PROCESS.to_owned());
    }
    let preferred = preferred.unwrap_or_else(|| "docker".to_owned());
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

/// As many GPUs as there are ranks, those with the most room first, and none that are under maintenance.
fn gpus(
    facts: &NodeFacts,
    policy: &NodePolicy,
    claimed: impl Fn(u32) -> u64,
    ranks: usize,
) -> Result<Vec<u32>, ApiError> {
    let open = facts.gpus.iter().filter(|gpu| policy.is_open(gpu.index));
    let mut free: Vec<_> = open.map(|gpu| (claimed(gpu.index), gpu.index)).collect();
    free.sort_unstable();
    if free.len() < ranks && !facts.gpus.is_empty() {
        let cordoned = facts.gpus.len() - free.len();
        let mut why = format!("it needs {ranks} GPUs, and the node has {}", facts.gpus.len());
        if cordoned > 0 {
            why.push_str(&format!(", {cordoned} of which are under maintenance"));
        }
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
    let policy = NodePolicy::of(&stored.row);
    if policy.is_forgotten() {
        return Err(ApiError::NotFound(format!("there is no node {node}")));
    }
    if policy.maintenance() == Maintenance::Full {
        return Err(ApiError::Conflict(format!("node {node} is under maintenance")));
    }
    let facts = stored.row.facts.unwrap_or_default();
    let held: Vec<_> = view.held_on(node)?.into_iter().map(|held| held.reservation).collect();
    let ports: Vec<_> = held.iter().map(|held| held.port).collect();
    let claimed = |gpu| {
        let on_it = held.iter().filter(|held| held.gpu_ids.contains(&gpu));
        on_it.map(|held| u64::from(held.gpu_share_ppm)).sum()
    };
    let gpu_ids = match wish.gpu_ids.as_slice() {
        [] => gpus(&facts, &policy, claimed, spec.tensor_parallel_size.unwrap_or(1) as usize)?,
        wanted => wanted.to_vec(),
    };
    Ok(Seat {
        node_id: node.0,
        gpu_ids,
        port: match wish.port {
            Some(port) => port,
            None => port(&facts, node, &ports)?,
        },
        runtime: runtime(view.settings()?.0.preferred_container_runtime, &policy, &facts, node, spec.engine())?,
        warm: false,
    })
}

#[cfg(test)]
mod tests {
    use muster_cluster::rows::{GpuFact, Node, NodeAdmin};

    use super::*;

    fn facts(runtimes: &[&str], gpus: u32) -> NodeFacts {
        NodeFacts {
            runtimes: runtimes.iter().map(|runtime| (*runtime).to_owned()).collect(),
            gpus: (0..gpus).map(|index| GpuFact { index, ..GpuFact::default() }).collect(),
            ..NodeFacts::default()
        }
    }

    fn policy(facts: &NodeFacts, admin: NodeAdmin) -> NodePolicy {
        NodePolicy::of(&Node { facts: Some(facts.clone()), admin: Some(admin), ..Node::default() })
    }

    /// B7 of the specification.
    #[test]
    fn the_override_of_a_node_counts_where_that_runtime_is() {
        let pick = |wanted: &str, there: &[&str], engines: &[&str], preferred: Option<&str>| {
            let facts = NodeFacts {
                process_engines: engines.iter().map(|engine| (*engine).to_owned()).collect(),
                ..facts(there, 0)
            };
            let policy = policy(&facts, NodeAdmin { container_runtime: wanted.to_owned(), ..NodeAdmin::default() });
            runtime(preferred.map(ToOwned::to_owned), &policy, &facts, NodeId(1), Engine::Vllm).ok()
        };
        for (wanted, there, engines, preferred, expected) in [
            ("podman", &["docker", "podman"][..], &[][..], None, Some("podman")),
            ("podman", &["docker"], &[], None, Some("docker")),
            ("", &["docker", "podman"], &[], None, Some("docker")),
            ("", &["docker", "podman"], &[], Some("podman"), Some("podman")),
            ("", &["podman"], &[], Some("docker"), Some("podman")),
            ("podman", &[], &[], None, None),
            ("", &["process", "docker"], &["vllm"], None, Some("process")),
            ("docker", &["process", "docker"], &["vllm"], None, Some("docker")),
            ("docker", &["process"], &["vllm"], None, Some("process")),
            ("", &["process"], &["sim"], None, None),
        ] {
            assert_eq!(pick(wanted, there, engines, preferred).as_deref(), expected, "{wanted} {there:?} {engines:?}");
        }
    }

    #[test]
    fn gpus_under_maintenance_are_not_chosen() {
        let facts = facts(&[], 3);
        let policy = policy(&facts, NodeAdmin { cordoned_gpus: vec![0], ..NodeAdmin::default() });
        let chosen = |ranks| gpus(&facts, &policy, |gpu| u64::from(3 - gpu), ranks);
        assert_eq!(chosen(1).ok(), Some(vec![2]));
        assert_eq!(chosen(2).ok(), Some(vec![1, 2]));
        let Err(ApiError::Conflict(why)) = chosen(3) else { panic!("it is given one under maintenance") };
        assert_eq!(why, "it needs 3 GPUs, and the node has 3, 1 of which are under maintenance");
    }
}
