//! What the nodes see of deployments now: asked of all at once, in bounds of time. Who does not answer is not waited for.

use std::collections::{BTreeSet, HashMap};
use std::sync::Arc;

use futures_util::future::join_all;
use muster_agent::wire::{Seen, SeenUnit};
use muster_cluster::ids::NodeId;
use muster_cluster::rows::Placement;
use muster_cluster::state::holds;

use crate::state::Member;

/// A million bytes.
const MB: f64 = 1e6;

/// What is seen of a deployment's first replica, as seed 004 tells of deployments.
#[derive(Clone, Debug, Default)]
pub(super) struct Live {
    pub detail: Option<String>,
    pub observed: Option<&'static str>,
    pub prompt_tps: Option<f64>,
    pub generation_tps: Option<f64>,
    pub prompt_throughput: Option<f64>,
    pub generation_throughput: Option<f64>,
    pub requests_running: Option<u64>,
    pub requests_waiting: Option<u64>,
    pub pull_percent: Option<f64>,
    pub pull_downloaded_mb: Option<f64>,
    pub pull_total_mb: Option<f64>,
}

/// What the nodes of some placements see. A node that did not answer has no entry.
pub(super) struct Sight(HashMap<NodeId, Arc<Seen>>);

fn node(placement: &Placement) -> NodeId {
    NodeId(placement.seat.as_ref().map_or(0, |seat| seat.node_id))
}

/// Asks the nodes that have something of these placements.
pub(super) async fn look<'a>(member: &Member, placements: impl Iterator<Item = &'a Placement>) -> Sight {
    let nodes: BTreeSet<_> = placements.filter(|placement| holds(placement.status())).map(node).collect();
    let asked = nodes.into_iter().map(|node| async move { (node, member.hosts.look(node).await) });
    let answers = join_all(asked).await;
    Sight(answers.into_iter().filter_map(|(node, answer)| Some((node, answer.ok()?))).collect())
}

impl Sight {
    /// What is seen of the first replica.
    pub fn of(&self, placements: &[Placement]) -> Live {
        let Some(first) = placements.first().filter(|placement| holds(placement.status())) else {
            return Live::default();
        };
        let Some(seen) = self.0.get(&node(first)) else {
            return Live { observed: Some("unreachable"), ..Live::default() };
        };
        let own = |unit: &&SeenUnit| {
            (unit.deployment, unit.ordinal, unit.epoch) == (first.deployment, first.ordinal, first.epoch)
        };
        let Some(unit) = seen.units.iter().find(own) else { return Live::default() };
        let pulling = unit.pulled_bytes.zip(unit.pull_bytes);
        Live {
            detail: Some(unit.detail.clone()).filter(|detail| !detail.is_empty()),
            observed: None,
            prompt_tps: unit.prompt_tps,
            generation_tps: unit.generation_tps,
            prompt_throughput: unit.prompt_throughput,
            generation_throughput: unit.generation_throughput,
            requests_running: unit.requests_running,
            requests_waiting: unit.requests_waiting,
            pull_percent: pulling.filter(|(_, all)| *all > 0).map(|(pulled, all)| percent(pulled, all)),
            pull_downloaded_mb: pulling.map(|(pulled, _)| pulled as f64 / MB),
            pull_total_mb: pulling.map(|(_, all)| all as f64 / MB),
        }
    }
}

/// With one decimal.
fn percent(part: u64, all: u64) -> f64 {
    (part as f64 / all as f64 * 1000.0).round() / 10.0
}
