//! What operators say of nodes: which GPUs get nothing new, the warm cache, the container runtime (seed 004).

use std::collections::BTreeSet;

use super::step::{Damaged, Row, Step, Stop, Stored, check, decode, refused};
use super::{deployments, placements};
use crate::rows::{
    self, DeleteDeployment, Deployment, Node, NodeAdmin, NodeAdminAnswer, NodeFacts, RefusalKind, Settings,
};

/// How much of a node gets nothing new.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Maintenance {
    /// Nothing of it.
    None,
    /// Some of its GPUs.
    Partial,
    /// All of it.
    Full,
}

/// What holds for a node, by what operators have said and by what it has.
#[derive(Clone, Debug)]
pub struct NodePolicy {
    admin: NodeAdmin,
    gpus: BTreeSet<u32>,
}

impl NodePolicy {
    /// That of this node.
    #[must_use]
    pub fn of(node: &Node) -> Self {
        Self { admin: node.admin.clone().unwrap_or_default(), gpus: known(node.facts.as_ref()) }
    }

    /// How much of it gets nothing new. Of a node whose GPUs nobody knows, any is all.
    #[must_use]
    pub fn maintenance(&self) -> Maintenance {
        let all = self.gpus.iter().all(|gpu| self.admin.cordoned_gpus.contains(gpu));
        match (self.admin.cordoned, self.admin.cordoned_gpus.is_empty()) {
            (true, _) => Maintenance::Full,
            (false, true) => Maintenance::None,
            (false, false) if all => Maintenance::Full,
            (false, false) => Maintenance::Partial,
        }
    }

    /// The GPUs that get nothing new, by index.
    #[must_use]
    pub fn cordoned(&self) -> &[u32] {
        &self.admin.cordoned_gpus
    }

    /// Whether a GPU may be given away.
    #[must_use]
    pub fn is_open(&self, gpu: u32) -> bool {
        !self.admin.cordoned && !self.admin.cordoned_gpus.contains(&gpu)
    }

    /// Whether models there make room for others by going to sleep.
    #[must_use]
    pub fn warm_offload(&self) -> bool {
        self.admin.warm_offload_enabled.unwrap_or(true)
    }

    /// How much memory sleeping models may take, in MiB; `None`: as much as they like.
    #[must_use]
    pub fn ram_cache_limit_mb(&self) -> Option<u64> {
        self.admin.ram_cache_limit_mb
    }

    /// The container runtime that an operator wants.
    #[must_use]
    pub fn container_runtime(&self) -> Option<&str> {
        Some(self.admin.container_runtime.as_str()).filter(|runtime| !runtime.is_empty())
    }

    /// Whether it has been forgotten, and has not reported itself since.
    #[must_use]
    pub fn is_forgotten(&self) -> bool {
        self.admin.forgotten
    }

    /// When it was forgotten last, in milliseconds since 1970; 0: never.
    #[must_use]
    pub fn forgotten_ms(&self) -> u64 {
        self.admin.forgotten_ms
    }

    /// Refuses to give these GPUs of the node, or the node, to anybody while they are cordoned.
    pub(super) fn check_open(&self, node: u64, gpus: &[u32]) -> Result<(), Stop> {
        if self.is_forgotten() {
            return Err(missing(node));
        }
        if self.maintenance() == Maintenance::Full {
            return Err(refused(RefusalKind::Conflict, format!("node {node} is under maintenance")));
        }
        match gpus.iter().find(|gpu| !self.is_open(**gpu)) {
            Some(gpu) => {
                let why = format!("GPU {gpu} of node {node} is under maintenance");
                Err(refused(RefusalKind::Conflict, why))
            }
            None => Ok(()),
        }
    }
}

fn known(facts: Option<&NodeFacts>) -> BTreeSet<u32> {
    facts.into_iter().flat_map(|facts| facts.gpus.iter().map(|gpu| gpu.index)).collect()
}

fn missing(node: u64) -> Stop {
    refused(RefusalKind::NotFound, format!("there is no node {node}"))
}

/// A node, what has been said of it, and whether the caller has seen it as it is.
fn existing(step: &Step<'_>, id: u64, seen: Option<&rows::Precondition>) -> Result<(Node, NodeAdmin), Stop> {
    let Stored { row, mod_index } = step.get::<Node>(&id.to_be_bytes())?.ok_or_else(|| missing(id))?;
    let admin = row.admin.clone().unwrap_or_default();
    if admin.forgotten {
        return Err(missing(id));
    }
    check(seen, mod_index)?;
    Ok((row, admin))
}

fn put(step: &mut Step<'_>, node: Node, admin: NodeAdmin, touched: u64) -> Result<NodeAdminAnswer, Stop> {
    let node = Node { admin: Some(admin), ..node };
    step.put(node.id.to_be_bytes().to_vec(), &node)?;
    Ok(NodeAdminAnswer { mod_index: step.index, id: node.id, deployments: touched })
}

/// What holds for a node that nobody has said anything of yet.
pub(super) fn of_newcomer(step: &Step<'_>, forgotten_ms: u64) -> Result<NodeAdmin, Stop> {
    let set = step.only::<Settings>()?.default_warm_offload_enabled;
    Ok(NodeAdmin { warm_offload_enabled: Some(set.unwrap_or(true)), forgotten_ms, ..NodeAdmin::default() })
}

/// A node that was forgotten reports itself: it is a new one. The caller writes it.
pub(super) fn come_back(step: &Step<'_>, node: &mut Node) -> Result<(), Stop> {
    if let Some(admin) = node.admin.as_ref().filter(|admin| admin.forgotten) {
        node.admin = Some(of_newcomer(step, admin.forgotten_ms)?);
    }
    Ok(())
}

pub(super) fn set_runtime(step: &mut Step<'_>, command: &rows::SetNodeRuntime) -> Result<NodeAdminAnswer, Stop> {
    let (node, admin) = existing(step, command.id, command.precondition.as_ref())?;
    put(step, node, NodeAdmin { container_runtime: command.runtime.clone(), ..admin }, 0)
}

pub(super) fn set_warm_cache(step: &mut Step<'_>, command: &rows::SetNodeWarmCache) -> Result<NodeAdminAnswer, Stop> {
    let (node, admin) = existing(step, command.id, command.precondition.as_ref())?;
    let (enabled, limit) = (Some(command.enabled), command.ram_limit_mb);
    put(step, node, NodeAdmin { warm_offload_enabled: enabled, ram_cache_limit_mb: limit, ..admin }, 0)
}

pub(super) fn cordon(step: &mut Step<'_>, command: &rows::CordonNode) -> Result<NodeAdminAnswer, Stop> {
    let (node, mut admin) = existing(step, command.id, command.precondition.as_ref())?;
    let gpus = known(node.facts.as_ref());
    let named: BTreeSet<_> = command.gpu_ids.iter().copied().collect();
    if let Some(unknown) = named.iter().find(|gpu| !gpus.is_empty() && !gpus.contains(gpu)) {
        let there: Vec<_> = gpus.iter().map(ToString::to_string).collect();
        let why = format!("node {} has no GPU {unknown}; it has {}", command.id, there.join(", "));
        return Err(refused(RefusalKind::Invalid, why));
    }
    let mut cordoned: BTreeSet<_> = admin.cordoned_gpus.iter().copied().collect();
    match (command.enabled, named.is_empty()) {
        (true, true) => {
            admin.cordoned |= gpus.is_empty();
            cordoned.extend(&gpus);
        }
        (true, false) => cordoned.extend(&named),
        (false, true) => {
            admin.cordoned = false;
            cordoned.clear();
        }
        (false, false) => {
            // It had no GPUs when all of it was cordoned, and has some by now.
            if std::mem::take(&mut admin.cordoned) {
                cordoned.extend(&gpus);
            }
            cordoned.retain(|gpu| !named.contains(gpu));
        }
    }
    admin.cordoned_gpus = cordoned.into_iter().collect();
    let drained = if command.enabled && command.drain {
        placements::drain(step, command.id, |held| {
            named.is_empty() || held.gpu_ids.is_empty() || held.gpu_ids.iter().any(|gpu| named.contains(gpu))
        })?
    } else {
        0
    };
    put(step, node, admin, drained)
}

/// Forgets what was said of a node, and the deployments that are nowhere else. Nothing that runs there is ended by that.
pub(super) fn forget(step: &mut Step<'_>, command: &rows::ForgetNode) -> Result<NodeAdminAnswer, Stop> {
    let id = command.id;
    let (node, _) = existing(step, id, command.precondition.as_ref())?;
    let rows = step.tables.range(<Deployment as Row>::TABLE, &[]);
    let rows: Vec<Deployment> = rows.map(|(_, record)| Ok(decode(record)?.row)).collect::<Result<_, Damaged>>()?;
    let mut deleted = 0;
    for deployment in rows {
        let seats: Vec<_> = placements::of(step, deployment.id)?.into_iter().filter_map(|one| one.seat).collect();
        let only_there = match seats.as_slice() {
            [] => deployment.wish.is_some_and(|wish| wish.node_id == Some(id)),
            seats => seats.iter().all(|seat| seat.node_id == id),
        };
        if only_there {
            deployments::delete(step, &DeleteDeployment { id: deployment.id, precondition: None })?;
            deleted += 1;
        }
    }
    placements::lose(step, id, "was deleted")?;
    let admin = NodeAdmin { forgotten: true, forgotten_ms: step.now.0, ..NodeAdmin::default() };
    put(step, node, admin, deleted)
}
