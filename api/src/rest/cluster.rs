//! `/api/cluster`: who leads, who votes, and how far this node is.

use std::collections::BTreeSet;
use std::time::Duration;

use axum::Json;
use axum::body::Body;
use axum::extract::State;
use axum::response::{IntoResponse, Response};
use data_encoding::HEXLOWER;
use http::header;
use muster_cluster::clocks::{Agreement, Clocks, Standing};
use muster_cluster::consensus::{PASS_ON_LIMIT, Role, Timing};
use muster_cluster::ids::NodeId;
use muster_cluster::state::{FEATURE_LEVELS, View};
use serde::Serialize;
use tokio_util::io::ReaderStream;
use utoipa::ToSchema;
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

use crate::auth::{self, Principal};
use crate::error::{ApiError, ErrorBody};
use crate::fields::{Fields, MAX_INTEGER};
use crate::request::{self, Read, time};
use crate::state::{ApiState, Member};

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
    clocks: ClocksBody,
    versions: Versions,
    /// How patient this node's Raft is: `lan`, `mesh` or `far`.
    timing: &'static str,
    timings: Timings,
    #[serde(skip_serializing_if = "Option::is_none")]
    stopped: Option<String>,
}

/// How patient Raft should be.
#[derive(Debug, Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
struct Timings {
    /// What the fleet has set (`timing` in the settings). The nodes take it over one after the other, the leader last.
    #[schema(example = "mesh")]
    setting: String,
    /// What fits the round trips that were measured; null while too few are known.
    #[schema(example = "lan")]
    suggested: Option<&'static str>,
    /// The longest round trip from the node that answers to a voter, in the median.
    round_trip_ms: Option<f64>,
    /// The same, for nearly all.
    round_trip_p99_ms: Option<f64>,
}

/// So many round trips are too few to suggest anything.
const FEW: usize = 8;

impl Timings {
    fn of(member: &Member, view: &View) -> Result<Self, ApiError> {
        let trips = member.clocks.sheet().between_voters();
        let suggested = trips.filter(|trips| trips.count >= FEW).map(|trips| Timing::for_round_trip(trips.p99).name());
        Ok(Self {
            setting: view.settings()?.0.timing.unwrap_or_else(|| Timing::default().name().to_owned()),
            suggested,
            round_trip_ms: trips.map(|trips| millis(trips.median)),
            round_trip_p99_ms: trips.map(|trips| millis(trips.p99)),
        })
    }
}

fn millis(duration: Duration) -> f64 {
    (duration.as_secs_f64() * 1e6).round() / 1e3
}

/// The times that matter.
#[derive(Debug, Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
struct ClocksBody {
    /// The time of the log: what everything that expires is judged by.
    log_time: String,
    /// This node's own clock.
    node_time: String,
    /// `agreed`: a majority of the voters are within 2 s of their median. `undecided`: they are not, or too few answer.
    /// `unknown`: nobody has been asked yet.
    #[schema(example = "agreed")]
    agreement: &'static str,
    /// Whether this node, when it leads, moves the time of the log. Not while its clock is off.
    stamps_forward: bool,
    /// The clock of each node that this one knows of.
    nodes: Vec<ClockBody>,
}

/// The clock of a node, as the one that answers sees it.
#[derive(Debug, Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
struct ClockBody {
    node: NodeRef,
    /// `good`, `off` (more than 2 s from the median of the voters) or `unknown`.
    #[schema(example = "good")]
    standing: &'static str,
    /// How far it is from the median of the voters: positive, it is ahead.
    offset_ms: Option<i64>,
    /// By how much that may be wrong: half of the way there and back.
    uncertainty_ms: Option<i64>,
    /// How long it takes to ask it and have its answer, in the median. Not of the node that answers.
    round_trip_ms: Option<f64>,
    /// The same, for nearly all.
    round_trip_p99_ms: Option<f64>,
    /// How patient its Raft is: `lan`, `mesh` or `far`. Null if it has not said so of late.
    timing: Option<&'static str>,
}

impl ClocksBody {
    fn of(clocks: &Clocks, view: &View) -> Result<Self, ApiError> {
        let sheet = clocks.sheet();
        let nodes = sheet.nodes.iter().map(|(id, clock)| {
            Ok(ClockBody {
                node: reference(view, *id)?,
                standing: match clock.standing {
                    Standing::Good => "good",
                    Standing::Off => "off",
                    Standing::Unknown => "unknown",
                },
                offset_ms: clock.offset.map(|offset| offset.offset_ms),
                uncertainty_ms: clock.offset.map(|offset| offset.error_ms),
                round_trip_ms: clock.round_trips.map(|trips| millis(trips.median)),
                round_trip_p99_ms: clock.round_trips.map(|trips| millis(trips.p99)),
                timing: clock.timing.map(Timing::name),
            })
        });
        Ok(Self {
            log_time: time(view.time()?.0),
            node_time: time(clocks.own_ms()),
            agreement: match sheet.agreement {
                Agreement::Agreed(_) => "agreed",
                Agreement::Undecided => "undecided",
                Agreement::Unknown => "unknown",
            },
            stamps_forward: clocks.stamps_forward(),
            nodes: nodes.collect::<Result<_, ApiError>>()?,
        })
    }
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
        clocks: ClocksBody::of(&member.clocks, view)?,
        versions: Versions {
            version: env!("CARGO_PKG_VERSION"),
            feature_level: fleet.feature_level,
            max_feature_level: *FEATURE_LEVELS.end(),
        },
        timing: member.consensus.timing().name(),
        timings: Timings::of(&member, view)?,
        stopped: status.stopped,
    };
    Ok(read.answer(Json(body)))
}

/// Who shall lead.
#[derive(Debug, ToSchema)]
#[schema(rename_all = "camelCase")]
#[expect(dead_code, reason = "the description of the body; it is read field by field")]
struct TransferInput {
    /// The number of a node that votes; null or left out: whichever is furthest.
    node_id: Option<u64>,
}

/// Who leads now.
#[derive(Debug, Serialize, ToSchema)]
struct Transferred {
    leader: NodeRef,
}

/// Has another node lead.
#[utoipa::path(post, path = "/cluster/transfer-leader", tag = "cluster", request_body = TransferInput,
    responses((status = 200, body = Transferred), (status = 403, body = ErrorBody), (status = 409, body = ErrorBody),
        (status = 422, body = ErrorBody)))]
async fn transfer(
    State(state): State<ApiState>,
    who: Principal,
    request::Body(body): request::Body,
) -> Result<Response, ApiError> {
    who.must_be(auth::Role::Admin)?;
    let mut fields = Fields::parse(&body)?;
    let wish = fields.integer("nodeId", 1, MAX_INTEGER).value().map(NodeId);
    fields.finish()?;
    let member = state.member()?;
    let leader = member.consensus.pass_on(wish, PASS_ON_LIMIT).await.map_err(ApiError::Conflict)?;
    let leader = reference(&member.consensus.local(), leader)?;
    Ok(Json(Transferred { leader }).into_response())
}

/// The whole state of the fleet as this node has it, as a file for `muster snapshot restore`. Secrets in it are sealed.
#[utoipa::path(get, path = "/cluster/snapshot", tag = "cluster",
    responses((status = 200, content_type = "application/octet-stream"), (status = 403, body = ErrorBody),
        (status = 503, body = ErrorBody)))]
async fn snapshot(State(state): State<ApiState>, who: Principal) -> Result<Response, ApiError> {
    who.must_be(auth::Role::Admin)?;
    let file = state.member()?.consensus.snapshot().await.map_err(ApiError::NotReady)?;
    // Once it is open it may be removed.
    let open = tokio::fs::File::open(&file.path).await.map_err(|error| ApiError::Internal(error.to_string()))?;
    let name = format!("attachment; filename=\"muster-{}.snap\"", file.applied.index());
    let headers = [
        (header::CONTENT_TYPE, "application/octet-stream".to_owned()),
        (header::CONTENT_LENGTH, file.bytes.to_string()),
        (header::CONTENT_DISPOSITION, name),
    ];
    Ok((headers, Body::from_stream(ReaderStream::with_capacity(open, 64 * 1024))).into_response())
}

/// The routes.
pub(super) fn router() -> OpenApiRouter<ApiState> {
    OpenApiRouter::new().routes(routes!(get)).routes(routes!(snapshot)).routes(routes!(transfer))
}
