//! The duty that gives replicas their places, and other ones when their nodes are lost.

mod considered;

use std::collections::HashSet;
use std::sync::Arc;
use std::time::{Duration, Instant};

use futures_util::future::BoxFuture;
use muster_cluster::consensus::ProposeError;
use muster_cluster::ids::{NodeId, PlacementEpoch, PlacementId};
use muster_cluster::leader::{Duty, Leader};
use muster_cluster::planner::place::Explained;
use muster_cluster::rows::{
    Deployment, DeploymentStatus, Failure, OnNodeLoss, PlaceReplica, Placement, answer::Outcome, command::Body,
};
use muster_cluster::state::{Changes, Damaged, Row, View, holds, on_node_loss};

pub use considered::{Considering, consider};

use crate::host::{Belonging, Host};
use crate::runtime::UnitId;

/// How often it looks, whatever has changed.
const PERIOD: Duration = Duration::from_secs(1);

/// A replica that has lost its node and was given to another one is not moved again for so long, so that a link that comes and goes
/// moves nothing twice.
const SETTLED: Duration = Duration::from_secs(60);

/// How long a node that has never been heard is waited for, after it has joined or the office has begun.
const HEARD_LIMIT: Duration = Duration::from_secs(10);

/// The longest text that is kept of how a place was found, in bytes.
const TOLD: usize = 2000;

/// Gives replicas their places.
pub struct Scheduler {
    host: Arc<Host>,
}

impl Scheduler {
    /// That of this machine's node.
    #[must_use]
    pub fn new(host: Arc<Host>) -> Self {
        Self { host }
    }
}

impl Duty for Scheduler {
    fn name(&self) -> &'static str {
        "scheduler"
    }

    fn run(&self, leader: Leader) -> BoxFuture<'static, ()> {
        let host = Arc::clone(&self.host);
        Box::pin(async move {
            let _answering = host.granted().begin(leader.office(), Instant::now());
            let published = Arc::clone(leader.consensus().published());
            let mut changes = published.changes(published.view().index());
            let mut told = HashSet::new();
            let begun = Instant::now();
            loop {
                if let Err(error) = pass(&host, &leader, begun, &mut told).await {
                    tracing::warn!(error, "replicas wait for their places");
                }
                let _ = tokio::time::timeout(PERIOD, concerned(&mut changes)).await;
            }
        })
    }
}

/// Waits for a change of what shall run, or of the nodes.
async fn concerned(changes: &mut Changes) {
    let tables = [Deployment::TABLE, Placement::TABLE, muster_cluster::rows::Node::TABLE];
    while let Ok(batches) = changes.next().await {
        if batches.iter().flat_map(|batch| batch.changes.iter()).any(|change| tables.contains(&change.key.table)) {
            return;
        }
    }
}

/// Why a replica needs a place.
enum Need {
    /// It has none.
    First,
    /// Its node is lost.
    Lost(NodeId),
}

/// What needs a place, as far as is known.
fn needs(host: &Host, view: &View, now: Instant) -> Result<Vec<(Deployment, Placement, Need)>, Damaged> {
    let (mut needs, mut units) = (Vec::new(), HashSet::new());
    for stored in view.deployments()? {
        let deployment = stored.row;
        if deployment.desired() != DeploymentStatus::Running {
            continue;
        }
        let moves = on_node_loss(&deployment) == OnNodeLoss::Reschedule;
        for placement in view.placements(muster_cluster::ids::DeploymentId(deployment.id))? {
            let status = placement.status();
            if !holds(status) || status == DeploymentStatus::Stopping {
                continue;
            }
            let Some(seat) = &placement.seat else {
                needs.push((deployment.clone(), placement, Need::First));
                continue;
            };
            let unit = unit(&placement);
            units.insert(unit);
            if moves && host.granted().is_lost(unit, now) {
                let node = NodeId(seat.node_id);
                needs.push((deployment.clone(), placement, Need::Lost(node)));
            }
        }
    }
    host.granted().retain(&units);
    Ok(needs)
}

fn unit(placement: &Placement) -> UnitId {
    let deployment = muster_cluster::ids::DeploymentId(placement.deployment);
    let epoch = PlacementEpoch(placement.epoch);
    UnitId { placement: PlacementId { deployment, ordinal: placement.ordinal }, epoch }
}

/// Whether a replica has stood where it is for long enough to be moved.
fn is_settled(placement: &Placement, view: &View) -> bool {
    let settled = u64::try_from(SETTLED.as_millis()).unwrap_or(u64::MAX);
    view.time().is_ok_and(|now| now.0.saturating_sub(placement.placed_ms) >= settled)
}

/// Whether it is known of every node whether it answers. One that has just joined, or that a new leader has not heard of yet, is
/// waited for: otherwise everything would go to the leader's own node.
fn all_known(view: &View, node: &Belonging, leader: &Leader, begun: Instant) -> Result<bool, Damaged> {
    let (roster, own, now) = (node.gossip.roster(), leader.consensus().status().node, view.time()?);
    let patience = u64::try_from(HEARD_LIMIT.as_millis()).unwrap_or(u64::MAX);
    let unknown = |one: &muster_cluster::rows::Node| {
        let id = NodeId(one.id);
        let young = begun.elapsed() < HEARD_LIMIT || now.0.saturating_sub(one.created_ms) < patience;
        id != own && young && roster.node(id).is_none()
    };
    Ok(!view.nodes()?.iter().any(|stored| unknown(&stored.row)))
}

/// Looks once at everything. What has been said of a replica is not said again until something changes.
async fn pass(host: &Host, leader: &Leader, begun: Instant, told: &mut HashSet<UnitId>) -> Result<(), String> {
    let Some(node) = host.node() else { return Ok(()) };
    let (view, now) = (leader.consensus().local(), Instant::now());
    let needs = needs(host, &view, now).map_err(|damaged| damaged.to_string())?;
    let waiting: HashSet<_> = needs.iter().map(|(_, placement, _)| unit(placement)).collect();
    told.retain(|unit| waiting.contains(unit));
    let known = all_known(&view, &node, leader, begun).map_err(|damaged| damaged.to_string())?;
    for (deployment, placement, need) in needs {
        if !known && matches!(need, Need::First) {
            continue;
        }
        let (id, lost) = (unit(&placement), matches!(need, Need::Lost(_)));
        if lost && placement.moved && !is_settled(&placement, &view) {
            continue;
        }
        let exclude: Vec<_> = match need {
            Need::First => Vec::new(),
            Need::Lost(node) => vec![node],
        };
        // Each sees what the one before has taken.
        let view = leader.consensus().local();
        let roster = node.gossip.roster();
        let considering = Considering { view: &view, roster: &roster, own: leader.consensus().status().node };
        let explained = consider(&considering, &deployment, &placement, &exclude).map_err(|why| why.to_string())?;
        let Some(choice) = &explained.chosen else {
            if told.insert(id) {
                tracing::warn!(placement = %id.placement, why = %explained, "there is no place for a replica");
            }
            continue;
        };
        let seat = considered::seat(&considering, &deployment, choice).map_err(|why| why.to_string())?;
        let Some(seat) = seat else { continue };
        if lost && !host.granted().give_up(id, Instant::now()) {
            continue;
        }
        let failure = match need {
            Need::First => None,
            Need::Lost(node) => {
                let message = format!("node {node} does not answer; it was given to node {}", seat.node_id);
                Some(Failure { code: "node_lost".to_owned(), message })
            }
        };
        let command = PlaceReplica {
            office: leader.office().0,
            deployment: deployment.id,
            ordinal: placement.ordinal,
            epoch: placement.epoch,
            explained: told_of(&explained),
            failure,
            seat: Some(seat),
        };
        let to = command.seat.as_ref().map_or(0, |seat| seat.node_id);
        match leader.propose("scheduler", Body::PlaceReplica(command)).await {
            Ok(answer) => match answer.outcome {
                Some(Outcome::Refusal(refusal)) => {
                    host.granted().keep(id);
                    tracing::debug!(placement = %id.placement, why = refusal.message, "a place was not given");
                }
                _ => {
                    told.remove(&id);
                    tracing::info!(placement = %id.placement, node = to, lost, "a replica has a place");
                }
            },
            // It may have been done. Until that is known, the unit is renewed no more.
            Err(error @ ProposeError::Unknown { .. }) => return Err(error.to_string()),
            Err(error) => {
                host.granted().keep(id);
                return Err(error.to_string());
            }
        }
    }
    Ok(())
}

/// How a place was found, as text, one node in each line.
fn told_of(explained: &Explained) -> String {
    let mut text = String::new();
    for node in &explained.nodes {
        let line = format!("{}: {}\n", node.name, node.verdict);
        if text.len() + line.len() > TOLD {
            break;
        }
        text.push_str(&line);
    }
    text
}
