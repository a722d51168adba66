//! The containers of engines on a node: those that the fleet keeps, and those that nobody does.

use axum::Json;
use axum::extract::State;
use axum::response::{IntoResponse, Response};
use muster_agent::wire::Container;
use muster_cluster::ids::{DeploymentId, NodeId, PlacementEpoch, PlacementId};
use muster_cluster::state::View;
use serde::Serialize;
use utoipa::ToSchema;
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

use super::super::ReadParams;
use super::node;
use crate::error::{ApiError, ErrorBody};
use crate::request::{Path, Read};
use crate::state::ApiState;

/// The shortest beginning of an identity that names a container.
const SHORTEST: usize = 12;

/// A container with an engine.
#[derive(Debug, Serialize, ToSchema)]
struct ContainerEntry {
    /// The first twelve digits of its identity.
    #[schema(example = "4f1c2d3e5a6b")]
    id: String,
    name: String,
    /// As it was asked for.
    image: String,
    /// As the runtime has it: `running`, `exited` ...
    #[schema(example = "running")]
    status: String,
    /// Whether this fleet has made it, for this node.
    managed: bool,
    /// Model and port of its deployment, as `model:port`; null if it is none, or one that nobody knows any more.
    key: Option<String>,
    /// Its deployment, if it is managed.
    deployment_id: Option<u64>,
    /// Whether a deployment needs it.
    tracked: bool,
    /// `docker` or `podman`.
    #[schema(example = "docker")]
    runtime: String,
}

/// Which placement in which epoch a container says it is.
fn unit(container: &Container) -> Option<(PlacementId, PlacementEpoch)> {
    let unit = container.unit.as_ref()?;
    let placement = PlacementId { deployment: DeploymentId(unit.deployment), ordinal: unit.ordinal };
    Some((placement, PlacementEpoch(unit.epoch)))
}

/// Whether the fleet has given the node what this container is.
fn is_tracked(view: &View, node: NodeId, container: &Container) -> Result<bool, ApiError> {
    let Some((placement, epoch)) = unit(container) else { return Ok(false) };
    Ok(view.held_on(node)?.iter().any(|held| held.placement == placement && held.epoch == epoch))
}

fn short(id: &str) -> String {
    id.chars().take(SHORTEST).collect()
}

fn entry(view: &View, node: NodeId, container: Container) -> Result<ContainerEntry, ApiError> {
    let placement = unit(&container).map(|(placement, _)| placement);
    let mut key = None;
    if let Some(placement) = placement
        && let Some(deployment) = view.deployment(placement.deployment)?
        && let Some(seat) = view.placement(placement)?.and_then(|placement| placement.row.seat)
    {
        let model = deployment.row.spec.unwrap_or_default().model_name;
        key = Some(format!("{model}:{}", seat.port));
    }
    Ok(ContainerEntry {
        tracked: is_tracked(view, node, &container)?,
        id: short(&container.id),
        name: container.name,
        image: container.image,
        status: container.status,
        managed: placement.is_some(),
        key,
        deployment_id: placement.map(|placement| placement.deployment.0),
        runtime: container.runtime,
    })
}

/// The containers of a node that this fleet has made there, and those that run an engine's image and are of no fleet.
#[utoipa::path(get, path = "/nodes/{node_id}/containers", tag = "nodes",
    params(("node_id" = u64, Path, description = "number"), ReadParams),
    responses((status = 200, body = Vec<ContainerEntry>), (status = 401, body = ErrorBody), (status = 404, body = ErrorBody),
        (status = 502, body = ErrorBody), (status = 503, body = ErrorBody)))]
async fn list(State(state): State<ApiState>, Path(id): Path<String>, read: Read) -> Result<Response, ApiError> {
    let node = node(&read.view, &id)?;
    let containers = state.member()?.hosts.containers(node).await?;
    let entries = containers.into_iter().map(|container| entry(&read.view, node, container));
    let entries = entries.collect::<Result<Vec<_>, _>>()?;
    Ok(read.answer(Json(entries)))
}

/// It was done.
#[derive(Debug, Serialize, ToSchema)]
struct Removed {
    /// `removed`.
    status: &'static str,
    id: String,
}

/// Whether a path names this container: by its identity, the beginning of it, or its name.
fn is_called(container: &Container, id: &str) -> bool {
    container.name == id || (id.len() >= SHORTEST && container.id.starts_with(id))
}

/// Ends a container that no deployment needs, and removes it.
#[utoipa::path(post, path = "/nodes/{node_id}/containers/{container_id}/stop", tag = "nodes",
    params(("node_id" = u64, Path, description = "number"),
        ("container_id" = String, Path, description = "identity, at least its first twelve digits, or name")),
    responses((status = 200, body = Removed), (status = 401, body = ErrorBody), (status = 403, body = ErrorBody),
        (status = 404, body = ErrorBody), (status = 409, body = ErrorBody), (status = 502, body = ErrorBody),
        (status = 503, body = ErrorBody)))]
async fn stop(
    State(state): State<ApiState>,
    Path((id, container)): Path<(String, String)>,
) -> Result<Response, ApiError> {
    let member = state.member()?;
    let node = node(&member.consensus.linearizable().await?, &id)?;
    let found = member.hosts.containers(node).await?.into_iter().find(|found| is_called(found, &container));
    let missing = || ApiError::NotFound(format!("node {node} has no container {container} of an engine"));
    let found = found.ok_or_else(missing)?;
    // What was given to the node since is in this state. What it does not hold in an epoch it is never given in that one.
    if is_tracked(&member.consensus.linearizable().await?, node, &found)? {
        let deployment = found.unit.map(|unit| unit.deployment).unwrap_or_default();
        let why = format!("deployment {deployment} needs the container {}; stop the deployment", found.name);
        return Err(ApiError::Conflict(why));
    }
    member.hosts.stop_container(node, &found.id).await?;
    Ok(Json(Removed { status: "removed", id: short(&found.id) }).into_response())
}

/// The routes.
pub(super) fn router() -> OpenApiRouter<ApiState> {
    OpenApiRouter::new().routes(routes!(list)).routes(routes!(stop))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_container_is_named_by_its_name_or_enough_of_its_identity() {
        let container = Container { id: "0123456789abcdef".to_owned(), name: "n".to_owned(), ..Container::default() };
        for id in ["n", "0123456789ab", "0123456789abcdef"] {
            assert!(is_called(&container, id), "{id}");
        }
        for id in ["", "0", "0123456789a", "123456789abc", "0123456789abcdef0"] {
            assert!(!is_called(&container, id), "{id}");
        }
    }
}
