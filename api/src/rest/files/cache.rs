//! The cache of the Hugging Face hub.

use axum::Json;
use axum::extract::State;
use muster_agent::host::files::wire;
use serde::Serialize;
use utoipa::ToSchema;
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

use super::{Deleted, mb, seconds, target};
use crate::auth::Principal;
use crate::error::{ApiError, ErrorBody};
use crate::request::Path;
use crate::state::ApiState;

/// A model in the cache.
#[derive(Debug, Serialize, ToSchema)]
struct CachedModel {
    /// As the hub names it.
    #[schema(example = "meta-llama/Llama-3")]
    name: String,
    /// What it takes on the disk, in units of 1,048,576 bytes.
    size_mb: f64,
    /// The same in bytes.
    size_bytes: u64,
    /// When its directory was last changed, in seconds since 1970.
    last_used_at: f64,
    /// Whether a deployment of this node runs from it.
    in_use: bool,
}

impl From<wire::CachedModel> for CachedModel {
    fn from(model: wire::CachedModel) -> Self {
        Self {
            name: model.name,
            size_mb: mb(model.bytes),
            size_bytes: model.bytes,
            last_used_at: seconds(model.last_used_ms),
            in_use: model.in_use,
        }
    }
}

/// The models in the node's cache of the hub, by name.
#[utoipa::path(get, path = "/nodes/{node_id}/models/cache", tag = "files",
    params(("node_id" = u64, Path, description = "number")),
    responses((status = 200, body = Vec<CachedModel>), (status = 401, body = ErrorBody), (status = 404, body = ErrorBody),
        (status = 502, body = ErrorBody), (status = 503, body = ErrorBody)))]
async fn list(State(state): State<ApiState>, Path(node): Path<String>) -> Result<Json<Vec<CachedModel>>, ApiError> {
    let listed = target(&state, &node).await?.files.list_cached().await?;
    Ok(Json(listed.models.into_iter().map(Into::into).collect()))
}

/// Deletes a model of the node's cache. The slash in its name may be encoded or not.
#[utoipa::path(delete, path = "/nodes/{node_id}/models/cache/{*name}", tag = "files",
    params(("node_id" = u64, Path, description = "number"), ("name" = String, Path, description = "like org/model")),
    responses((status = 200, body = Deleted), (status = 400, body = ErrorBody), (status = 401, body = ErrorBody),
        (status = 403, body = ErrorBody), (status = 404, body = ErrorBody), (status = 409, body = ErrorBody),
        (status = 502, body = ErrorBody), (status = 503, body = ErrorBody)))]
async fn delete(
    State(state): State<ApiState>,
    Path((node, name)): Path<(String, String)>,
    who: Principal,
) -> Result<Json<Deleted>, ApiError> {
    let target = target(&state, &node).await?;
    target.files.delete_cached(&name).await?;
    tracing::info!(by = who.name, node = %target.id, model = name, "a cached model was deleted");
    Ok(Json(Deleted::of(name)))
}

/// The routes.
pub(super) fn router() -> OpenApiRouter<ApiState> {
    OpenApiRouter::new().routes(routes!(list)).routes(routes!(delete))
}
