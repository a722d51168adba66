//! Models that lie in the node's directories, and those that it pulls.

use axum::Json;
use axum::extract::State;
use axum::routing::{self, MethodRouter};
use muster_agent::host::files::wire;
use serde::Serialize;
use utoipa::ToSchema;
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;
use uuid::Uuid;

use super::{Deleted, mb, seconds, target};
use crate::auth::Principal;
use crate::error::{ApiError, ErrorBody};
use crate::fields::Fields;
use crate::request::{Body, Path};
use crate::state::ApiState;

/// A model in a directory of the node.
#[derive(Debug, Serialize, ToSchema)]
struct LocalModel {
    /// Its name in its directory.
    name: String,
    /// What a deployment on this node names as its `model_name` to serve it.
    path: String,
    /// `managed`, or the directory of the machine that it lies in.
    #[schema(example = "managed")]
    source: String,
    /// Its size in units of 1,048,576 bytes.
    size_mb: f64,
    /// The same in bytes.
    size_bytes: u64,
    /// Whether a deployment of this node runs from it.
    in_use: bool,
    /// Whether it can be deleted here: only managed ones can.
    deletable: bool,
    /// When it was last changed, in seconds since 1970.
    last_modified_at: f64,
}

impl From<wire::LocalModel> for LocalModel {
    fn from(model: wire::LocalModel) -> Self {
        Self {
            name: model.name,
            path: model.path,
            source: model.directory.unwrap_or_else(|| "managed".to_owned()),
            size_mb: mb(model.bytes),
            size_bytes: model.bytes,
            in_use: model.in_use,
            deletable: model.deletable,
            last_modified_at: seconds(model.last_modified_ms),
        }
    }
}

/// The models in the node's directories: the managed ones first, each directory by name.
#[utoipa::path(get, path = "/nodes/{node_id}/local-models", tag = "files",
    params(("node_id" = u64, Path, description = "number")),
    responses((status = 200, body = Vec<LocalModel>), (status = 401, body = ErrorBody), (status = 404, body = ErrorBody),
        (status = 502, body = ErrorBody), (status = 503, body = ErrorBody)))]
async fn list(State(state): State<ApiState>, Path(node): Path<String>) -> Result<Json<Vec<LocalModel>>, ApiError> {
    let listed = target(&state, &node).await?.files.list_local().await?;
    Ok(Json(listed.models.into_iter().map(Into::into).collect()))
}

async fn delete_named(state: &ApiState, node: &str, name: String, who: &Principal) -> Result<Json<Deleted>, ApiError> {
    let target = target(state, node).await?;
    target.files.delete_local(&name).await?;
    tracing::info!(by = who.name, node = %target.id, model = name, "a local model was deleted");
    Ok(Json(Deleted::of(name)))
}

/// Deletes a managed model.
#[utoipa::path(delete, path = "/nodes/{node_id}/local-models/{name}", tag = "files",
    params(("node_id" = u64, Path, description = "number"), ("name" = String, Path, description = "name")),
    responses((status = 200, body = Deleted), (status = 400, body = ErrorBody), (status = 401, body = ErrorBody),
        (status = 403, body = ErrorBody), (status = 404, body = ErrorBody), (status = 409, body = ErrorBody),
        (status = 502, body = ErrorBody), (status = 503, body = ErrorBody)))]
async fn delete(
    State(state): State<ApiState>,
    Path((node, name)): Path<(String, String)>,
    who: Principal,
) -> Result<Json<Deleted>, ApiError> {
    delete_named(&state, &node, name, &who).await
}

/// What a model is pulled from.
#[derive(Debug, ToSchema)]
#[expect(dead_code, reason = "the description of the body; it is read field by field")]
struct PullInput {
    /// An `http` or `https` URL of a file, or of a `.tar`, `.tar.gz`, `.tgz` or `.zip` archive, which is unpacked.
    url: String,
    /// What the model is called; left out, the last part of the URL says so.
    name: Option<String>,
}

/// A pull that has begun.
#[derive(Debug, Serialize, ToSchema)]
struct PullBegun {
    /// Under this number it stands among the transfers.
    transfer_id: String,
    name: String,
}

fn id_of(bytes: &[u8]) -> Result<String, ApiError> {
    let id = Uuid::from_slice(bytes).map_err(|_| ApiError::Internal("a node has sent no number".to_owned()))?;
    Ok(id.to_string())
}

/// Has the node pull a model from a URL. The answer does not wait until it has come.
#[utoipa::path(post, path = "/nodes/{node_id}/local-models/pull", tag = "files", request_body = PullInput,
    params(("node_id" = u64, Path, description = "number")),
    responses((status = 200, body = PullBegun), (status = 400, body = ErrorBody), (status = 401, body = ErrorBody),
        (status = 403, body = ErrorBody), (status = 404, body = ErrorBody), (status = 409, body = ErrorBody),
        (status = 422, body = ErrorBody), (status = 502, body = ErrorBody), (status = 503, body = ErrorBody),
        (status = 507, body = ErrorBody)))]
async fn pull(
    State(state): State<ApiState>,
    Path(node): Path<String>,
    who: Principal,
    Body(body): Body,
) -> Result<Json<PullBegun>, ApiError> {
    let mut fields = Fields::parse(&body)?;
    let url = fields.text("url");
    let url = fields.not_null("url", url);
    if url.is_none() {
        fields.required("url");
    }
    let name = fields.text("name").value();
    fields.finish()?;
    let target = target(&state, &node).await?;
    let begun = target.files.pull(wire::PullRequest { url: url.unwrap_or_default(), name }).await?;
    tracing::info!(by = who.name, node = %target.id, model = begun.name, "a model is pulled");
    Ok(Json(PullBegun { transfer_id: id_of(&begun.id)?, name: begun.name }))
}

/// Something on its way to the node, or that has lately arrived or failed.
#[derive(Debug, Serialize, ToSchema)]
struct Transfer {
    /// Its number; that of an upload is the session's.
    id: String,
    /// `pull`, `upload` or `archive`.
    #[schema(example = "pull")]
    kind: String,
    /// What the model is called.
    name: String,
    /// `downloading`, `extracting`, `done` or `error`.
    #[schema(example = "downloading")]
    status: String,
    /// How many bytes there are in all; null if nobody knows.
    total_bytes: Option<u64>,
    /// How many have come.
    received_bytes: u64,
    /// Why it failed.
    error: Option<String>,
    /// Where the model lies, once it is there.
    path: Option<String>,
}

/// What is on its way to the node, and what has ended within the last hour; oldest first.
#[utoipa::path(get, path = "/nodes/{node_id}/local-models/transfers", tag = "files",
    params(("node_id" = u64, Path, description = "number")),
    responses((status = 200, body = Vec<Transfer>), (status = 401, body = ErrorBody), (status = 404, body = ErrorBody),
        (status = 502, body = ErrorBody), (status = 503, body = ErrorBody)))]
async fn transfers(State(state): State<ApiState>, Path(node): Path<String>) -> Result<Json<Vec<Transfer>>, ApiError> {
    let listed = target(&state, &node).await?.files.list_transfers().await?;
    let read = |transfer: wire::Transfer| {
        Ok(Transfer {
            id: id_of(&transfer.id)?,
            kind: transfer.kind,
            name: transfer.name,
            status: transfer.status,
            total_bytes: transfer.total_bytes,
            received_bytes: transfer.received_bytes,
            error: transfer.error,
            path: transfer.path,
        })
    };
    Ok(Json(listed.transfers.into_iter().map(read).collect::<Result<_, ApiError>>()?))
}

/// What has become of a pull.
#[derive(Debug, Serialize, ToSchema)]
struct Cancelled {
    /// `cancelled`.
    status: &'static str,
    id: String,
}

/// Cancels a pull, which then leaves nothing behind.
#[utoipa::path(delete, path = "/nodes/{node_id}/local-models/transfers/{transfer_id}", tag = "files",
    params(("node_id" = u64, Path, description = "number"), ("transfer_id" = String, Path, description = "number of the pull")),
    responses((status = 200, body = Cancelled), (status = 401, body = ErrorBody), (status = 403, body = ErrorBody),
        (status = 404, body = ErrorBody), (status = 502, body = ErrorBody), (status = 503, body = ErrorBody)))]
async fn cancel(
    State(state): State<ApiState>,
    Path((node, id)): Path<(String, String)>,
    who: Principal,
) -> Result<Json<Cancelled>, ApiError> {
    let target = target(&state, &node).await?;
    let missing = |_| ApiError::NotFound("no such pull runs on this node".to_owned());
    let number = Uuid::try_parse(&id).map_err(missing)?;
    target.files.cancel_pull(wire::IdRequest { id: number.as_bytes().to_vec().into() }).await?;
    tracing::info!(by = who.name, node = %target.id, transfer = id, "a pull was cancelled");
    Ok(Json(Cancelled { status: "cancelled", id }))
}

/// Deletes a model whose name is also that of another route.
fn delete_as(name: &'static str) -> MethodRouter<ApiState> {
    routing::delete(move |State(state): State<ApiState>, Path(node): Path<String>, who: Principal| async move {
        delete_named(&state, &node, name.to_owned(), &who).await
    })
}

/// The routes.
pub(super) fn router() -> OpenApiRouter<ApiState> {
    let mut router = OpenApiRouter::new()
        .routes(routes!(list))
        .routes(routes!(delete))
        .routes(routes!(pull))
        .routes(routes!(transfers))
        .routes(routes!(cancel));
    for (path, name) in [
        ("/nodes/{node_id}/local-models/pull", "pull"),
        ("/nodes/{node_id}/local-models/transfers", "transfers"),
        ("/nodes/{node_id}/local-models/archive", "archive"),
    ] {
        router = router.route(path, delete_as(name));
    }
    router
}
