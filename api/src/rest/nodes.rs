//! `/api/nodes`: the nodes of the fleet (seed 004).

use axum::Json;
use axum::extract::State;
use axum::response::{IntoResponse, Response};
use muster_cluster::clocks::{NodeClock, Standing};
use muster_cluster::ids::NodeId;
use muster_cluster::membership::Liveness;
use muster_cluster::rows::{Node, PreferVoter, RemoveNode, command};
use muster_cluster::state::{RECOVERY, Stored};
use serde::Serialize;
use utoipa::ToSchema;
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

use crate::error::{ApiError, ErrorBody};
use crate::request::{Page, Paged, Path, Read, Write, number, tagged, time};
use crate::state::{ApiState, Member};

/// A node of the fleet.
#[derive(Debug, Serialize, ToSchema)]
pub struct NodeRead {
    /// Its number; never given to another.
    id: u64,
    /// Its name.
    hostname: String,
    /// The same as `hostname`.
    name: String,
    /// Where others reach it.
    ip_address: String,
    /// The port of its API.
    port: u16,
    /// `online`, `degraded` (it has not answered of late, or its clock is off), `critical` (it does not answer), or `unknown`
    /// for a node that this one has never heard.
    #[schema(example = "online")]
    status: &'static str,
    /// Why it is not `online`; null if it is.
    #[serde(rename = "statusReason")]
    status_reason: Option<String>,
    /// What it does in the fleet: `leader`, `voter` or `standby`.
    #[schema(example = "voter")]
    role: &'static str,
    /// The running version.
    version: String,
    /// When it joined.
    created_at: String,
    #[serde(rename = "createdIndex")]
    created_index: u64,
    /// The version of this record: what `ETag` says.
    #[serde(rename = "modIndex")]
    mod_index: u64,
}

/// How this node sees another, or itself, and why if something is wrong.
fn status_of(member: &Member, id: NodeId) -> (&'static str, Option<String>) {
    let own = id == member.replica.identity.node;
    let heard = member.replica.gossip.roster().node(id).map(|heard| heard.liveness);
    match heard {
        _ if own => {}
        Some(Liveness::Alive) => {}
        Some(Liveness::Suspect) => return ("degraded", Some("it has not answered of late".to_owned())),
        Some(Liveness::Down) => return ("critical", Some("it does not answer".to_owned())),
        None => return ("unknown", Some("this node has never heard it".to_owned())),
    }
    match member.clocks.node(id).and_then(|clock| why_off(&clock)) {
        Some(why) => ("degraded", Some(why)),
        None => ("online", None),
    }
}

/// What is wrong with a clock.
fn why_off(clock: &NodeClock) -> Option<String> {
    let offset_ms = clock.offset.filter(|_| clock.standing == Standing::Off)?.offset_ms;
    let (seconds, side) = (offset_ms.unsigned_abs() as f64 / 1000.0, if offset_ms > 0 { "ahead of" } else { "behind" });
    Some(format!("its clock is {seconds:.1} s {side} the median of the voters"))
}

/// Host and port of an address as a node reports it.
pub(super) fn split_address(address: &str) -> (String, u16) {
    let (host, port) = address.rsplit_once(':').unwrap_or((address, ""));
    (host.trim_matches(['[', ']']).to_owned(), port.parse().unwrap_or(0))
}

impl NodeRead {
    fn of(member: &Member, stored: Stored<Node>) -> Self {
        let Stored { row, mod_index } = stored;
        let (node_status, status_reason) = status_of(member, NodeId(row.id));
        let (facts, status) = (row.facts.unwrap_or_default(), member.consensus.status());
        let (ip_address, port) = split_address(&facts.api);
        let id = NodeId(row.id);
        let votes = status.voters.iter().any(|voters| voters.contains(&id));
        let role = match () {
            () if status.leader == Some(id) => "leader",
            () if votes => "voter",
            () => "standby",
        };
        Self {
            id: row.id,
            hostname: facts.name.clone(),
            name: facts.name,
            ip_address,
            port,
            status: node_status,
            status_reason,
            role,
            version: facts.version,
            created_at: time(row.created_ms),
            created_index: row.created_index,
            mod_index,
        }
    }
}

/// Every node of the fleet.
#[utoipa::path(get, path = "/nodes", tag = "nodes", params(super::ListParams, super::ReadParams),
    responses((status = 200, body = Vec<NodeRead>), (status = 401, body = ErrorBody), (status = 503, body = ErrorBody)))]
async fn list(State(state): State<ApiState>, read: Read, page: Page) -> Result<Response, ApiError> {
    let member = state.member()?;
    let after = page.after().unwrap_or(0);
    let rest = read.view.nodes()?.into_iter().filter(|node| node.row.id > after);
    let (nodes, link) = page.of(rest.map(|node| (node.row.id, NodeRead::of(&member, node)))).into_parts();
    Ok(Paged::<NodeRead>::answer(link, read.answer(Json(nodes))))
}

/// One node.
#[utoipa::path(get, path = "/nodes/{id}", tag = "nodes", params(("id" = u64, Path, description = "number"), super::ReadParams),
    responses((status = 200, body = NodeRead), (status = 401, body = ErrorBody), (status = 404, body = ErrorBody)))]
async fn get(State(state): State<ApiState>, Path(id): Path<String>, read: Read) -> Result<Response, ApiError> {
    let member = state.member()?;
    let number = number("id", &id).map(NodeId)?;
    let missing = || ApiError::NotFound(format!("there is no node {number}"));
    let node = read.view.node(number)?.ok_or_else(missing)?;
    Ok(read.answer(tagged(node.mod_index, Json(NodeRead::of(&member, node)))))
}

/// What has become of a node.
#[derive(Debug, Serialize, ToSchema)]
struct Evicted {
    /// The number of the node, which is never given to another.
    evicted: u64,
}

/// Takes a node out of the fleet for good: nobody speaks to it any more, and the fleet's keys for gossip and data are replaced.
/// It can join again with an empty data directory.
#[utoipa::path(post, path = "/nodes/{id}/evict", tag = "nodes", params(("id" = u64, Path, description = "number"), super::WriteParams),
    responses((status = 200, body = Evicted), (status = 404, body = ErrorBody), (status = 409, body = ErrorBody),
        (status = 504, body = ErrorBody)))]
async fn evict(State(state): State<ApiState>, Path(id): Path<String>, write: Write) -> Result<Response, ApiError> {
    let member = state.member()?;
    let id = number("id", &id)?;
    // The state knows who leads a moment after the nodes do.
    if member.consensus.status().leader == Some(NodeId(id)) {
        return Err(ApiError::Conflict(format!("node {id} leads the fleet; let another one lead first")));
    }
    let view = member.consensus.linearizable().await?;
    let fleet = view.fleet()?.unwrap_or_default();
    let left: Vec<_> = view.nodes()?.into_iter().map(|node| node.row).filter(|node| node.id != id).collect();
    let holders: Vec<_> = left.iter().map(|node| (NodeId(node.id), node.sealing_key.clone())).collect();
    let recovery = [(RECOVERY, fleet.recovery_key)];
    let keys = member.replica.keyring.rotated(&[&holders[..], &recovery[..]].concat())?;
    let command = RemoveNode { id, holders: left.iter().map(|node| node.id).collect(), keys };
    write.propose(&member, &[], command::Body::RemoveNode(command)).await?;
    Ok(Json(Evicted { evicted: id }).into_response())
}

/// What has been asked for.
#[derive(Debug, Serialize, ToSchema)]
struct Preferred {
    /// The number of the node.
    preferred: u64,
}

/// Has a node vote as soon as it can, in the place of one of which nobody said so.
#[utoipa::path(post, path = "/nodes/{id}/prefer-voter", tag = "nodes", params(("id" = u64, Path, description = "number"), super::WriteParams),
    responses((status = 200, body = Preferred), (status = 404, body = ErrorBody), (status = 504, body = ErrorBody)))]
async fn prefer_voter(
    State(state): State<ApiState>,
    Path(id): Path<String>,
    write: Write,
) -> Result<Response, ApiError> {
    let id = number("id", &id)?;
    write.propose(&state.member()?, &[], command::Body::PreferVoter(PreferVoter { id })).await?;
    Ok(Json(Preferred { preferred: id }).into_response())
}

/// The routes.
pub(super) fn router() -> OpenApiRouter<ApiState> {
    OpenApiRouter::new().routes(routes!(list)).routes(routes!(get)).routes(routes!(evict)).routes(routes!(prefer_voter))
}

#[cfg(test)]
mod tests {
    use muster_cluster::clocks::{NodeClock, Offset, Standing};

    use super::{split_address, why_off};

    #[test]
    fn a_clock_that_is_off_says_by_how_much() {
        let clock = |standing, offset_ms| {
            let offset = Some(Offset { offset_ms, error_ms: 3 });
            why_off(&NodeClock { standing, offset, round_trips: None, timing: None })
        };
        assert_eq!(clock(Standing::Good, 120_000), None);
        let ahead = clock(Standing::Off, 120_049).expect("off");
        assert_eq!(ahead, "its clock is 120.0 s ahead of the median of the voters");
        assert!(clock(Standing::Off, -2500).expect("off").contains("2.5 s behind"));
    }

    #[test]
    fn addresses_are_taken_apart() {
        assert_eq!(split_address("127.0.0.1:8000"), ("127.0.0.1".to_owned(), 8000));
        assert_eq!(split_address("[::1]:80"), ("::1".to_owned(), 80));
        assert_eq!(split_address("host"), ("host".to_owned(), 0));
    }
}
