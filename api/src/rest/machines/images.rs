//! The images of engines on a node.

use axum::Json;
use axum::extract::State;
use axum::response::{IntoResponse, Response};
use muster_agent::wire::NodeImage;
use serde::Serialize;
use utoipa::ToSchema;
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

use super::super::ReadParams;
use super::{mebibytes, node};
use crate::error::{ApiError, ErrorBody};
use crate::request::{Path, Read};
use crate::state::ApiState;

/// An image of an engine.
#[derive(Debug, Serialize, ToSchema)]
struct ImageEntry {
    /// Its identity in the first runtime.
    #[schema(example = "sha256:4f1c...")]
    id: String,
    tags: Vec<String>,
    /// In MiB.
    size_mb: f64,
    /// The first of `runtimes`.
    runtime: Option<String>,
    /// Every runtime that has it: an image with the same layers is the same one.
    runtimes: Vec<String>,
    /// Whether a container is made from it.
    in_use: bool,
}

impl From<NodeImage> for ImageEntry {
    fn from(image: NodeImage) -> Self {
        let NodeImage { id, tags, size, runtimes, containers } = image;
        let runtime = runtimes.first().cloned();
        Self { id, tags, size_mb: mebibytes(size), runtime, runtimes, in_use: containers > 0 }
    }
}

/// The images of engines on a node, also those that were built there for extra packages.
#[utoipa::path(get, path = "/nodes/{node_id}/images", tag = "nodes",
    params(("node_id" = u64, Path, description = "number"), ReadParams),
    responses((status = 200, body = Vec<ImageEntry>), (status = 401, body = ErrorBody), (status = 404, body = ErrorBody),
        (status = 502, body = ErrorBody), (status = 503, body = ErrorBody)))]
async fn list(State(state): State<ApiState>, Path(id): Path<String>, read: Read) -> Result<Response, ApiError> {
    let images = state.member()?.hosts.images(node(&read.view, &id)?).await?;
    Ok(read.answer(Json(images.into_iter().map(ImageEntry::from).collect::<Vec<_>>())))
}

/// It was done.
#[derive(Debug, Serialize, ToSchema)]
struct Deleted {
    /// `deleted`.
    status: &'static str,
    id: String,
    /// Where it was deleted.
    runtimes: Vec<String>,
    /// What was left, and why.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    skipped: Vec<String>,
}

/// Deletes an image, but neither what a container is made from nor names that are not an engine's.
#[utoipa::path(delete, path = "/nodes/{node_id}/images/{image_id}", tag = "nodes",
    params(("node_id" = u64, Path, description = "number"),
        ("image_id" = String, Path, description = "identity, with or without sha256:")),
    responses((status = 200, body = Deleted), (status = 401, body = ErrorBody), (status = 403, body = ErrorBody),
        (status = 404, body = ErrorBody), (status = 409, body = ErrorBody), (status = 502, body = ErrorBody),
        (status = 503, body = ErrorBody)))]
async fn delete(
    State(state): State<ApiState>,
    Path((id, image)): Path<(String, String)>,
) -> Result<Response, ApiError> {
    let member = state.member()?;
    let node = node(&member.consensus.linearizable().await?, &id)?;
    let done = member.hosts.delete_image(node, &image).await?;
    Ok(Json(Deleted { status: "deleted", id: image, runtimes: done.runtimes, skipped: done.skipped }).into_response())
}

/// It was done.
#[derive(Debug, Serialize, ToSchema)]
struct Pruned {
    /// The identities of images that are gone, and the names that were taken off images that have others.
    removed: Vec<String>,
    /// In MiB, as far as the sizes tell: images share layers.
    freed_mb: f64,
    /// What was left, and why.
    skipped: Vec<String>,
}

/// Deletes the images of engines that no container is made from, running or not. Other images are not looked at.
#[utoipa::path(post, path = "/nodes/{node_id}/images/prune", tag = "nodes",
    params(("node_id" = u64, Path, description = "number")),
    responses((status = 200, body = Pruned), (status = 401, body = ErrorBody), (status = 403, body = ErrorBody),
        (status = 404, body = ErrorBody), (status = 502, body = ErrorBody), (status = 503, body = ErrorBody)))]
async fn prune(State(state): State<ApiState>, Path(id): Path<String>) -> Result<Response, ApiError> {
    let member = state.member()?;
    let node = node(&member.consensus.linearizable().await?, &id)?;
    let done = member.hosts.prune_images(node).await?;
    let (removed, freed_mb, skipped) = (done.removed, mebibytes(done.freed), done.skipped);
    Ok(Json(Pruned { removed, freed_mb, skipped }).into_response())
}

/// The routes.
pub(super) fn router() -> OpenApiRouter<ApiState> {
    OpenApiRouter::new().routes(routes!(list)).routes(routes!(delete)).routes(routes!(prune))
}
