//! Why a deployment is where it is, and where it could be.

use axum::Json;
use axum::extract::State;
use axum::response::Response;
use muster_agent::scheduler::{Considering, consider};
use muster_cluster::ids::DeploymentId;
use muster_cluster::planner::place::Verdict;
use muster_cluster::rows::Placement;
use serde::Serialize;
use utoipa::ToSchema;
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

use super::super::ReadParams;
use super::find;
use crate::error::{ApiError, ErrorBody};
use crate::request::{Path, Read};
use crate::state::ApiState;

/// How a replica came to its place.
#[derive(Debug, Serialize, ToSchema)]
struct PlacedWhy {
    ordinal: u32,
    /// Null: there is no place for it yet.
    node_id: Option<u64>,
    /// What was made of each node when it was given its place. Empty where the caller named the node.
    considered: Vec<String>,
}

/// What would be made of a node now.
#[derive(Debug, Serialize, ToSchema)]
struct NodeWhy {
    node_id: u64,
    name: String,
    /// `chosen`, `possible` or `refused`.
    verdict: &'static str,
    /// In words.
    why: String,
}

/// Why a deployment is where it is.
#[derive(Debug, Serialize, ToSchema)]
struct Explanation {
    deployment_id: u64,
    placements: Vec<PlacedWhy>,
    /// Where one more replica would go now, as this node sees the fleet.
    now: Vec<NodeWhy>,
}

/// Says which node was taken for each replica, which were refused, and why; and what would be made of them now.
#[utoipa::path(get, path = "/deployments/{deployment_id}/explain", tag = "deployments",
    params(("deployment_id" = u64, Path, description = "number"), ReadParams),
    responses((status = 200, body = Explanation), (status = 401, body = ErrorBody), (status = 404, body = ErrorBody)))]
async fn explain(State(state): State<ApiState>, Path(id): Path<String>, read: Read) -> Result<Response, ApiError> {
    let deployment = find(&read.view, &id)?.row;
    let member = state.member()?;
    let roster = member.replica.gossip.roster();
    let considering = Considering { view: &read.view, roster: &roster, own: member.replica.identity.node };
    let placements = read.view.placements(DeploymentId(deployment.id))?;
    // A replica that there is not: its own claims are nobody's to give up.
    let more = u32::try_from(placements.len()).unwrap_or(u32::MAX);
    let another = Placement { deployment: deployment.id, ordinal: more, ..Placement::default() };
    let looked_for = placements.iter().find(|placement| placement.seat.is_none()).unwrap_or(&another);
    let explained = consider(&considering, &deployment, looked_for, &[])?;
    let now = explained.nodes.iter().map(|node| NodeWhy {
        node_id: node.node.0,
        name: node.name.clone(),
        verdict: match node.verdict {
            Verdict::Chosen(_) => "chosen",
            Verdict::Possible(_) => "possible",
            Verdict::Refused(_) => "refused",
        },
        why: node.verdict.to_string(),
    });
    let placed = |placement: &Placement| PlacedWhy {
        ordinal: placement.ordinal,
        node_id: placement.seat.as_ref().map(|seat| seat.node_id),
        considered: placement.explained.lines().map(str::to_owned).collect(),
    };
    let placements = placements.iter().map(placed).collect();
    let explanation = Explanation { deployment_id: deployment.id, placements, now: now.collect() };
    Ok(read.answer(Json(explanation)))
}

/// The routes.
pub(super) fn router() -> OpenApiRouter<ApiState> {
    OpenApiRouter::new().routes(routes!(explain))
}
