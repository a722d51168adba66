//! `/api/nodes`: the nodes of the fleet (seed 004).

mod admin;
mod entry;
mod health;
mod monitor;

use axum::Json;
use axum::extract::State;
use axum::response::{IntoResponse, Response};
use futures_util::future::join_all;
use muster_cluster::ids::NodeId;
use muster_cluster::rows::{Node, PreferVoter, RemoveNode, command};
use muster_cluster::state::{NodePolicy, RECOVERY, Stored, View};
use serde::Serialize;
use utoipa::ToSchema;
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

use super::settings::NODE_FAILURE_THRESHOLD;
use crate::error::{ApiError, ErrorBody};
use crate::request::{Page, Paged, Path, Read, Write, number, tagged};
use crate::state::{ApiState, Member};

use entry::NodeRead;

fn missing(id: NodeId) -> ApiError {
    ApiError::NotFound(format!("there is no node {id}"))
}

/// A node that is there. One that was deleted is not, until it reports itself.
fn find(view: &View, id: &str) -> Result<Stored<Node>, ApiError> {
    let id = number("id", id).map(NodeId)?;
    let node = view.node(id)?.filter(|node| !NodePolicy::of(&node.row).is_forgotten());
    node.ok_or_else(|| missing(id))
}

/// Says of a node what is known of it now.
async fn answer(member: &Member, view: &View, node: Stored<Node>) -> Result<Response, ApiError> {
    let threshold = threshold(view)?;
    let entry = NodeRead::ask(member, threshold, node).await;
    Ok(tagged(entry.mod_index, Json(entry)))
}

fn threshold(view: &View) -> Result<u64, ApiError> {
    Ok(view.settings()?.0.node_failure_threshold.unwrap_or(NODE_FAILURE_THRESHOLD))
}

/// Every node of the fleet.
#[utoipa::path(get, path = "/nodes", tag = "nodes", params(super::ListParams, super::ReadParams),
    responses((status = 200, body = Vec<NodeRead>), (status = 401, body = ErrorBody), (status = 503, body = ErrorBody)))]
async fn list(State(state): State<ApiState>, read: Read, page: Page) -> Result<Response, ApiError> {
    let member = state.member()?;
    let after = page.after().unwrap_or(0);
    let there = |node: &Stored<Node>| node.row.id > after && !NodePolicy::of(&node.row).is_forgotten();
    let rest = read.view.nodes()?.into_iter().filter(there);
    let (nodes, link) = page.of(rest.map(|node| (node.row.id, node))).into_parts();
    // All at once: the slowest one says how long it takes, and none takes longer than a second.
    let threshold = threshold(&read.view)?;
    let nodes = join_all(nodes.into_iter().map(|node| NodeRead::ask(&member, threshold, node))).await;
    Ok(Paged::<NodeRead>::answer(link, read.answer(Json(nodes))))
}

/// One node.
#[utoipa::path(get, path = "/nodes/{id}", tag = "nodes", params(("id" = u64, Path, description = "number"), super::ReadParams),
    responses((status = 200, body = NodeRead), (status = 401, body = ErrorBody), (status = 404, body = ErrorBody)))]
async fn get(State(state): State<ApiState>, Path(id): Path<String>, read: Read) -> Result<Response, ApiError> {
    let member = state.member()?;
    let node = find(&read.view, &id)?;
    Ok(read.answer(answer(&member, &read.view, node).await?))
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
    OpenApiRouter::new()
        .routes(routes!(list))
        .routes(routes!(get, admin::delete))
        .routes(routes!(evict))
        .routes(routes!(prefer_voter))
        .merge(admin::router())
        .merge(monitor::router())
}
