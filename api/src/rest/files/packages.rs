//! Packages that engines of the node install or load.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use axum::Json;
use axum::extract::State;
use bytes::Bytes;
use futures_util::{Stream, StreamExt};
use http::{HeaderMap, header};
use multer::{Field, Multipart};
use muster_agent::host::files::wire;
use serde::Serialize;
use utoipa::ToSchema;
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

use super::source::{Cut, OneByOne, Source};
use super::{Target, target};
use crate::auth::Principal;
use crate::error::{ApiError, ErrorBody};
use crate::request::Path;
use crate::state::ApiState;

/// How much of a form may come before the file that it is about.
const BEFORE: u64 = 256 << 10;

/// The form with a package.
#[derive(Debug, ToSchema)]
#[expect(dead_code, reason = "the description of the body")]
struct PackageForm {
    /// A `.whl`, `.py`, `.tar.gz`, `.tgz` or `.zip` file.
    #[schema(value_type = String, format = Binary)]
    file: Vec<u8>,
}

/// A package on the node.
#[derive(Debug, Serialize, ToSchema)]
struct Package {
    /// The first 16 hexadecimal digits of the file's SHA-256.
    package_id: String,
    /// What the file was called.
    filename: String,
    /// What an engine on this node installs or loads.
    install_path: String,
    /// `package`: installed with pip; `plugin`: a single Python file.
    #[serde(rename = "type")]
    #[schema(example = "package")]
    kind: String,
}

impl From<wire::Package> for Package {
    fn from(package: wire::Package) -> Self {
        Self {
            package_id: package.id,
            filename: package.file_name,
            install_path: package.install_path,
            kind: package.kind,
        }
    }
}

/// A package that was uploaded.
#[derive(Debug, Serialize, ToSchema)]
struct Uploaded {
    /// `ok`.
    status: &'static str,
    #[serde(flatten)]
    package: Package,
}

/// The packages of the node, by id.
#[utoipa::path(get, path = "/nodes/{node_id}/packages", tag = "files",
    params(("node_id" = u64, Path, description = "number")),
    responses((status = 200, body = Vec<Package>), (status = 401, body = ErrorBody), (status = 404, body = ErrorBody),
        (status = 502, body = ErrorBody), (status = 503, body = ErrorBody)))]
async fn list(State(state): State<ApiState>, Path(node): Path<String>) -> Result<Json<Vec<Package>>, ApiError> {
    let listed = target(&state, &node).await?.files.list_packages().await?;
    Ok(Json(listed.packages.into_iter().map(Into::into).collect()))
}

/// Content of which only so much may come until the limit is lifted.
fn limited(
    source: Source,
    left: Arc<AtomicU64>,
) -> impl Stream<Item = Result<Bytes, TooMuch>> + Send + Unpin + 'static {
    source.map(move |piece| {
        let piece = piece.map_err(TooMuch::Cut)?;
        let length = piece.len() as u64;
        let taken = left.fetch_update(Ordering::SeqCst, Ordering::SeqCst, |left| match left {
            u64::MAX => Some(u64::MAX),
            left => left.checked_sub(length),
        });
        taken.map(|_| piece).map_err(|_| TooMuch::BeforeTheFile)
    })
}

#[derive(Debug, thiserror::Error)]
enum TooMuch {
    #[error(transparent)]
    Cut(Cut),
    #[error("too much comes before the file")]
    BeforeTheFile,
}

fn no_form() -> ApiError {
    ApiError::field("file", "is required; send it as multipart/form-data")
}

/// The file of a form, as it comes.
async fn file_of(source: &Source, headers: &HeaderMap) -> Result<(String, Field<'static>), ApiError> {
    let content_type = headers.get(header::CONTENT_TYPE).and_then(|value| value.to_str().ok());
    let boundary = content_type.and_then(|kind| multer::parse_boundary(kind).ok()).ok_or_else(no_form)?;
    let left = Arc::new(AtomicU64::new(BEFORE));
    // The reader of forms takes all that is ready before it hands anything on.
    let content = OneByOne::new(limited(source.clone(), Arc::clone(&left)));
    let mut form = Multipart::new(content, boundary);
    loop {
        let broken = |error: multer::Error| ApiError::Senseless(format!("the form can not be read: {error}"));
        let field = form.next_field().await.map_err(broken)?.ok_or_else(no_form)?;
        if field.name() == Some("file") {
            let file_name = field.file_name().unwrap_or_default().to_owned();
            left.store(u64::MAX, Ordering::SeqCst);
            return Ok((file_name, field));
        }
    }
}

/// What is looked at before the file is taken.
async fn beginning(
    state: &ApiState,
    node: &str,
    source: &Source,
    headers: &HeaderMap,
) -> Result<(Target, (String, Field<'static>)), ApiError> {
    Ok((target(state, node).await?, file_of(source, headers).await?))
}

/// Uploads a package. The same file again is the same package.
#[utoipa::path(post, path = "/nodes/{node_id}/packages/upload", tag = "files",
    request_body(content = PackageForm, content_type = "multipart/form-data"),
    params(("node_id" = u64, Path, description = "number")),
    responses((status = 200, body = Uploaded), (status = 400, body = ErrorBody), (status = 401, body = ErrorBody),
        (status = 403, body = ErrorBody), (status = 404, body = ErrorBody), (status = 408, body = ErrorBody),
        (status = 413, body = ErrorBody), (status = 422, body = ErrorBody), (status = 502, body = ErrorBody),
        (status = 503, body = ErrorBody), (status = 507, body = ErrorBody)))]
async fn upload(
    State(state): State<ApiState>,
    Path(node): Path<String>,
    who: Principal,
    headers: HeaderMap,
    source: Source,
) -> Result<Json<Uploaded>, ApiError> {
    let made = beginning(&state, &node, &source, &headers).await;
    let (target, (file_name, field)) = source.unless_wrong(made).await?;
    // The form around it is a little longer than the file.
    let head = wire::PackageHead { file_name, declared: source.declared() };
    let outcome = target.files.upload_package(head, field).await;
    let package = source.settle(outcome).await?;
    tracing::info!(by = who.name, node = %target.id, package = package.file_name, "a package was uploaded");
    Ok(Json(Uploaded { status: "ok", package: package.into() }))
}

/// What has become of a package.
#[derive(Debug, Serialize, ToSchema)]
struct Removed {
    /// `deleted`.
    status: &'static str,
    package_id: String,
}

/// Deletes a package.
#[utoipa::path(delete, path = "/nodes/{node_id}/packages/{package_id}", tag = "files",
    params(("node_id" = u64, Path, description = "number"), ("package_id" = String, Path, description = "id")),
    responses((status = 200, body = Removed), (status = 401, body = ErrorBody), (status = 403, body = ErrorBody),
        (status = 404, body = ErrorBody), (status = 502, body = ErrorBody), (status = 503, body = ErrorBody)))]
async fn delete(
    State(state): State<ApiState>,
    Path((node, package_id)): Path<(String, String)>,
    who: Principal,
) -> Result<Json<Removed>, ApiError> {
    let target = target(&state, &node).await?;
    target.files.delete_package(&package_id).await?;
    tracing::info!(by = who.name, node = %target.id, package = package_id, "a package was deleted");
    Ok(Json(Removed { status: "deleted", package_id }))
}

/// The routes.
pub(super) fn router() -> OpenApiRouter<ApiState> {
    OpenApiRouter::new().routes(routes!(list)).routes(routes!(upload)).routes(routes!(delete))
}
