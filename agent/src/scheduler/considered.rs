//! The nodes as the planner sees them, from the state and from what is heard.

use std::collections::BTreeMap;

use muster_cluster::ids::{DeploymentId, NodeId, PlacementId};
use muster_cluster::membership::{Liveness, Roster};
use muster_cluster::planner::claim::{Claim, Wanted};
use muster_cluster::planner::place::{Choice, Explained, Node, Request, Runtime, place};
use muster_cluster::planner::{Gpu, Share};
use muster_cluster::rows::{self, Deployment, Placement, Seat};
use muster_cluster::state::{Damaged, Held, Maintenance, NodePolicy, View};

use crate::engine;
use crate::runtime::{EngineKind, RuntimeKind};

/// What is known of the fleet when a place is looked for.
#[derive(Clone, Copy)]
pub struct Considering<'a> {
    /// What has been committed.
    pub view: &'a View,
    /// Who answers.
    pub roster: &'a Roster,
    /// The node that looks, which answers itself.
    pub own: NodeId,
}

/// What there is of one node.
struct Known {
    id: NodeId,
    facts: rows::NodeFacts,
    alive: bool,
    runtimes: Vec<Runtime>,
    gpus: Vec<Gpu>,
    held: Vec<Held>,
    ports: Vec<u16>,
    admin: NodePolicy,
}

fn runtimes(facts: &rows::NodeFacts) -> Vec<Runtime> {
    let process = RuntimeKind::Process.name();
    let all = || [EngineKind::Vllm, EngineKind::Sim].map(|engine| engine.name().to_owned()).to_vec();
    // A program that the node's configuration names for an engine is what its operator wants.
    let mut runtimes = vec![Runtime { name: process.to_owned(), engines: facts.process_engines.clone() }];
    let containers = facts.runtimes.iter().filter(|name| *name != process);
    runtimes.extend(containers.map(|name| Runtime { name: name.clone(), engines: all() }));
    runtimes
}

impl Known {
    fn of(considering: &Considering<'_>, node: &rows::Node) -> Result<Self, Damaged> {
        let id = NodeId(node.id);
        let facts = node.facts.clone().unwrap_or_default();
        let heard = considering.roster.node(id).map(|heard| heard.liveness);
        let admin = NodePolicy::of(node);
        let gpu = |gpu: &rows::GpuFact| Gpu {
            index: gpu.index,
            total: gpu.memory_bytes,
            cordoned: !admin.is_open(gpu.index),
            ..Gpu::default()
        };
        let held = considering.view.held_on(id)?;
        Ok(Self {
            id,
            alive: id == considering.own || heard == Some(Liveness::Alive),
            runtimes: runtimes(&facts),
            gpus: facts.gpus.iter().map(gpu).collect(),
            ports: held.iter().filter_map(|held| u16::try_from(held.reservation.port).ok()).collect(),
            held,
            facts,
            admin,
        })
    }

    fn claims(&self) -> Vec<Claim<'_>> {
        let claim = |held: &'_ Held| -> Claim<'_> {
            Claim {
                placement: held.placement,
                gpus: &[],
                share: Share(held.reservation.gpu_share_ppm),
                evictable: held.reservation.evictable,
                awake: true,
            }
        };
        self.held.iter().map(|held| Claim { gpus: &held.reservation.gpu_ids, ..claim(held) }).collect()
    }

    fn siblings(&self, of: PlacementId) -> u32 {
        let sibling = |held: &&Held| held.placement.deployment == of.deployment && held.placement.ordinal != of.ordinal;
        u32::try_from(self.held.iter().filter(sibling).count()).unwrap_or(u32::MAX)
    }
}

/// Which GPUs a replica wants on a node: as many as it has ranks, or none where it can do without.
fn wanted(deployment: &Deployment, known: &Known) -> Wanted {
    let spec = deployment.spec.as_ref();
    let ids = deployment.wish.as_ref().map(|wish| wish.gpu_ids.clone()).unwrap_or_default();
    let ranks = spec.and_then(|spec| spec.tensor_parallel_size).unwrap_or(1);
    let simulated = spec.is_some_and(|spec| engine::kind_of(spec) == EngineKind::Sim);
    match ids.as_slice() {
        // The simulator runs on machines without GPUs too.
        [] if simulated && known.gpus.is_empty() => Wanted::Count(0),
        [] => Wanted::Count(ranks),
        _ => Wanted::These(ids),
    }
}

/// Looks for a place for a replica among all nodes but these.
///
/// # Errors
/// When the state is damaged.
pub fn consider(
    considering: &Considering<'_>,
    deployment: &Deployment,
    placement: &Placement,
    exclude: &[NodeId],
) -> Result<Explained, Damaged> {
    let nodes = considering.view.nodes()?;
    let known = nodes.iter().map(|node| Known::of(considering, &node.row)).collect::<Result<Vec<_>, _>>()?;
    let id = PlacementId { deployment: DeploymentId(placement.deployment), ordinal: placement.ordinal };
    let spec = deployment.spec.clone().unwrap_or_default();
    let wish = deployment.wish.clone().unwrap_or_default();
    let preferred = considering.view.settings()?.0.preferred_container_runtime;
    // What is wanted differs between nodes with GPUs and without, so each kind is asked for itself.
    let mut by_wanted: BTreeMap<String, (Wanted, Vec<&Known>)> = BTreeMap::new();
    for one in &known {
        let wanted = wanted(deployment, one);
        by_wanted.entry(format!("{wanted:?}")).or_insert_with(|| (wanted, Vec::new())).1.push(one);
    }
    let mut all: Option<Explained> = None;
    // Those with GPUs come first: a simulator without one is better than none, and worse than one with.
    for (wanted, some) in by_wanted.values().rev() {
        let claims: Vec<_> = some.iter().map(|one| one.claims()).collect();
        let nodes: Vec<_> = some
            .iter()
            .zip(&claims)
            .map(|(one, claims)| Node {
                id: one.id,
                name: &one.facts.name,
                alive: one.alive,
                cordoned: one.admin.maintenance() == Maintenance::Full,
                warm: false,
                runtimes: &one.runtimes,
                runtime: one.admin.container_runtime(),
                gpus: &one.gpus,
                claims,
                has_model: false,
                has_image: false,
                siblings: one.siblings(id),
                ports: &one.ports,
            })
            .collect();
        let request = Request {
            placement: Some(id),
            engine: engine::kind_of(&spec).name(),
            share: Share(spec.gpu_share_ppm),
            gpus: wanted,
            may_sleep: false,
            runtime: preferred.as_deref(),
            port: wish.port.and_then(|port| u16::try_from(port).ok()),
            exclude,
        };
        let explained = place(&nodes, &request);
        match &mut all {
            None => all = Some(explained),
            Some(all) => {
                all.nodes.extend(explained.nodes);
                all.nodes.sort_by_key(|node| node.node);
                all.chosen = all.chosen.take().or(explained.chosen);
            }
        }
    }
    Ok(all.unwrap_or(Explained { chosen: None, nodes: Vec::new() }))
}

/// The seat at a chosen place, with a port that nobody holds there. `None`: there is no such port.
pub(super) fn seat(
    considering: &Considering<'_>,
    deployment: &Deployment,
    choice: &Choice,
) -> Result<Option<Seat>, Damaged> {
    let facts = considering.view.node(choice.node)?.and_then(|node| node.row.facts).unwrap_or_default();
    let held: Vec<_> = considering.view.held_on(choice.node)?.iter().map(|held| held.reservation.port).collect();
    let wished = deployment.wish.as_ref().and_then(|wish| wish.port);
    let free = || (facts.first_port.max(1)..=facts.last_port).find(|port| !held.contains(port));
    let Some(port) = wished.or_else(free) else { return Ok(None) };
    let (gpu_ids, runtime) = (choice.gpus.clone(), choice.runtime.clone());
    Ok(Some(Seat { node_id: choice.node.0, gpu_ids, port, runtime, warm: false }))
}
