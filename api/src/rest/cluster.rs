//! `/api/cluster`: who leads, who votes, and how far this node is.

use std::collections::BTreeSet;

use axum::Json;
use axum::extract::State;
use axum::response::Response;
use data_encoding::HEXLOWER;
use muster_cluster::consensus::Role;
use muster_cluster::ids::NodeId;
use muster_cluster::state::{FEATURE_LEVELS, View};
use serde::Serialize;
use utoipa::ToSchema;
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

use crate::error::{ApiError, ErrorBody};
use crate::request::{Read, time};
use crate::state::ApiState;

/// A node by number and name.
#[derive(Debug, Serialize, ToSchema)]
struct NodeRef {
    id: u64,
    name: String,
}

/// The fleet as this node sees it.
#[derive(Debug, Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
struct ClusterBody {
    /// UUID of the fleet.
    fleet_id: String,
    /// The node that answers.
    node: NodeRef,
    /// `leader`, `voter`, `standby` or `stopped`.
    role: &'static str,
    /// Null while there is none.
    leader: Option<NodeRef>,
    term: u64,
    /// The log index of the leader's `TakeOffice`; null before the first.
    office: Option<u64>,
    voters: Vec<NodeRef>,
    standbys: Vec<NodeRef>,
    /// Whether the voters are changing just now.
    joint: bool,
    last_log_index: u64,
    committed_index: u64,
    /// What the state hash and everything else in the state is of.
    applied_index: u64,
    snapshot_index: u64,
    purged_index: u64,
    /// The running hash of everything that was ever written, at `appliedIndex`: equal on all nodes at an equal index.
    state_hash: String,
    records: usize,
    clocks: Clocks,
    versions: Versions,
    /// `lan`, `mesh` or `far`.
    timing: &'static str,
    #[serde(skip_serializing_if = "Option::is_none")]
    stopped: Option<String>,
}

/// The times that matter.
#[derive(Debug, Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
struct Clocks {
    /// The time of the log: what everything that expires is judged by.
    log_time: String,
}

/// What runs, and what the fleet has agreed on.
#[derive(Debug, Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
struct Versions {
    /// This node's.
    version: &'static str,
    /// The feature level of the fleet.
    feature_level: u32,
    /// The highest that this node supports.
    max_feature_level: u32,
}

fn reference(view: &View, id: NodeId) -> Result<NodeRef, ApiError> {
    let name = view.node(id)?.and_then(|node| node.row.facts).map(|facts| facts.name);
    Ok(NodeRef { id: id.0, name: name.unwrap_or_default() })
}

fn references(view: &View, ids: &BTreeSet<NodeId>) -> Result<Vec<NodeRef>, ApiError> {
    ids.iter().map(|id| reference(view, *id)).collect()
}

/// The fleet as this node sees it.
#[utoipa::path(get, path = "/cluster", tag = "cluster", params(super::ReadParams),
    responses((status = 200, body = ClusterBody), (status = 401, body = ErrorBody), (status = 503, body = ErrorBody)))]
async fn get(State(state): State<ApiState>, read: Read) -> Result<Response, ApiError> {
    let member = state.member()?;
    let (status, view) = (member.consensus.status(), &read.view);
    let fleet = view.fleet()?.unwrap_or_default();
    let voters: BTreeSet<_> = status.voters.iter().flatten().copied().collect();
    let body = ClusterBody {
        fleet_id: member.replica.identity.fleet.to_string(),
        node: reference(view, member.replica.identity.node)?,
        role: match status.role {
            Role::Leader { .. } => "leader",
            Role::Voter => "voter",
            Role::Standby => "standby",
            Role::Stopped => "stopped",
        },
        leader: status.leader.map(|leader| reference(view, leader)).transpose()?,
        term: status.term,
        office: view.office()?.map(|(office, _)| office.0),
        voters: references(view, &voters)?,
        standbys: references(view, &status.standbys)?,
        joint: status.voters.len() > 1,
        last_log_index: status.last_log,
        committed_index: status.committed,
        applied_index: view.index(),
        snapshot_index: status.snapshot,
        purged_index: status.purged,
        state_hash: HEXLOWER.encode(&view.fingerprint().history),
        records: view.len(),
        clocks: Clocks { log_time: time(view.time()?.0) },
        versions: Versions {
            version: env!("CARGO_PKG_VERSION"),
            feature_level: fleet.feature_level,
            max_feature_level: *FEATURE_LEVELS.end(),
        },
        timing: member.consensus.timing().name(),
        stopped: status.stopped,
    };
    Ok(read.answer(Json(body)))
}

/// The routes.
pub(super) fn router() -> OpenApiRouter<ApiState> {
    OpenApiRouter::new().routes(routes!(get))
}
