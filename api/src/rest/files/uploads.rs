//! Models that are uploaded: file by file in a session that can be interrupted, or as one archive.

use axum::Json;
use axum::extract::State;
use axum::response::{IntoResponse, Response};
use http::{HeaderMap, HeaderName, HeaderValue, header};
use muster_agent::host::files::wire;
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;
use uuid::Uuid;

use super::source::Source;
use super::{Asked, Target, mb, required, target};
use crate::auth::Principal;
use crate::error::{ApiError, ErrorBody};
use crate::fields::{Fields, MAX_INTEGER};
use crate::request::{Body, Path};
use crate::state::ApiState;

/// Where a file goes on, in requests and answers.
const UPLOAD_OFFSET: HeaderName = HeaderName::from_static("upload-offset");

fn session(text: &str) -> Result<bytes::Bytes, ApiError> {
    let missing = |_| ApiError::NotFound("there is no such upload on this node".to_owned());
    Ok(Uuid::try_parse(text).map_err(missing)?.as_bytes().to_vec().into())
}

/// A model that is going to be uploaded.
#[derive(Debug, ToSchema)]
#[expect(dead_code, reason = "the description of the body; it is read field by field")]
struct BeginInput {
    /// What it is called: a letter or a digit, then up to 63 letters, digits, `.`, `_` and `-`.
    name: String,
    /// How large all its files are together; 0: nobody knows.
    #[schema(default = 0)]
    total_bytes: u64,
    /// How many files it has; 0: nobody knows.
    #[schema(default = 0)]
    file_count: u64,
}

/// An upload that has begun.
#[derive(Debug, Serialize, ToSchema)]
struct Begun {
    session_id: String,
}

/// Begins an upload. Nothing of it is seen until it is finished.
#[utoipa::path(post, path = "/nodes/{node_id}/local-models/upload/begin", tag = "files", request_body = BeginInput,
    params(("node_id" = u64, Path, description = "number")),
    responses((status = 200, body = Begun), (status = 400, body = ErrorBody), (status = 401, body = ErrorBody),
        (status = 403, body = ErrorBody), (status = 404, body = ErrorBody), (status = 409, body = ErrorBody),
        (status = 413, body = ErrorBody), (status = 422, body = ErrorBody), (status = 502, body = ErrorBody),
        (status = 503, body = ErrorBody), (status = 507, body = ErrorBody)))]
async fn begin(
    State(state): State<ApiState>,
    Path(node): Path<String>,
    who: Principal,
    Body(body): Body,
) -> Result<Json<Begun>, ApiError> {
    let mut fields = Fields::parse(&body)?;
    let name = fields.text("name");
    let name = fields.not_null("name", name);
    if name.is_none() {
        fields.required("name");
    }
    let mut count = |field: &str| {
        let given = fields.integer(field, 0, MAX_INTEGER);
        fields.not_null(field, given).unwrap_or(0)
    };
    let (total_bytes, file_count) = (count("total_bytes"), count("file_count"));
    fields.finish()?;
    let target = target(&state, &node).await?;
    let name = name.unwrap_or_default();
    let begun = target.files.begin_upload(wire::BeginRequest { name: name.clone(), total_bytes, file_count }).await?;
    let wrong = |_| ApiError::Internal("a node has sent no number".to_owned());
    let session_id = Uuid::from_slice(&begun.id).map_err(wrong)?.to_string();
    tracing::info!(by = who.name, node = %target.id, model = name, upload = session_id, "an upload begins");
    Ok(Json(Begun { session_id }))
}

/// Which file of an upload.
#[derive(Debug, Deserialize, utoipa::IntoParams)]
#[into_params(parameter_in = Query)]
struct FileQuery {
    /// Where it lies in the model, as `sub/file.bin`.
    #[param(required = true)]
    path: Option<String>,
    /// Where this content goes on in the file; left out, the file begins anew. The headers `Upload-Offset` and `Content-Range`
    /// say the same.
    offset: Option<String>,
}

fn whole_number(name: &'static str, text: &str) -> Result<u64, ApiError> {
    let number = text.trim().parse().ok().filter(|number| *number <= MAX_INTEGER);
    number.ok_or_else(|| ApiError::field(name, format!("must be an integer from 0 to {MAX_INTEGER}")))
}

/// Where `Content-Range: bytes 5-9/10` begins.
fn range_start(text: &str) -> Result<u64, ApiError> {
    let wrong = || ApiError::field("Content-Range", "must be like bytes 5-9/10");
    let (range, _) = text.trim().strip_prefix("bytes ").and_then(|rest| rest.split_once('/')).ok_or_else(wrong)?;
    let (start, end) = range.trim().split_once('-').ok_or_else(wrong)?;
    let (start, end) = (start.parse().map_err(|_| wrong())?, end.parse::<u64>().map_err(|_| wrong())?);
    if start <= end && end <= MAX_INTEGER { Ok(start) } else { Err(wrong()) }
}

/// Where the content of a request goes on in its file, if it says so.
fn offset(asked: Option<&str>, headers: &HeaderMap) -> Result<Option<u64>, ApiError> {
    let text = |name: &HeaderName| headers.get(name).map(|value| value.to_str().unwrap_or_default());
    let said = [
        asked.map(|text| whole_number("offset", text)).transpose()?,
        text(&UPLOAD_OFFSET).map(|text| whole_number("Upload-Offset", text)).transpose()?,
        text(&header::CONTENT_RANGE).map(range_start).transpose()?,
    ];
    let mut said = said.into_iter().flatten();
    let first = said.next();
    if said.all(|other| Some(other) == first) {
        return Ok(first);
    }
    Err(ApiError::Senseless("offset, Upload-Offset and Content-Range say different things".to_owned()))
}

/// What has come of a file.
#[derive(Debug, Serialize, ToSchema)]
struct Received {
    /// `ok`.
    status: &'static str,
    /// How many bytes have come with this request.
    received_bytes: u64,
    /// How long the file is now.
    length: u64,
}

/// Uploads one file, or the rest of it. What has come before a connection breaks is kept; `GET` says how much that is.
#[utoipa::path(put, path = "/nodes/{node_id}/local-models/upload/{session_id}/file", tag = "files",
    request_body(content = Vec<u8>, content_type = "application/octet-stream"),
    params(("node_id" = u64, Path, description = "number"), ("session_id" = String, Path, description = "upload"), FileQuery),
    responses((status = 200, body = Received), (status = 400, body = ErrorBody), (status = 401, body = ErrorBody),
        (status = 403, body = ErrorBody), (status = 404, body = ErrorBody), (status = 408, body = ErrorBody),
        (status = 409, body = ErrorBody), (status = 413, body = ErrorBody), (status = 422, body = ErrorBody),
        (status = 502, body = ErrorBody), (status = 503, body = ErrorBody), (status = 507, body = ErrorBody)))]
async fn write(
    State(state): State<ApiState>,
    Path((node, upload)): Path<(String, String)>,
    Asked(file): Asked<FileQuery>,
    headers: HeaderMap,
    source: Source,
) -> Result<Json<Received>, ApiError> {
    let made = beginning_of_file(&state, &node, &upload, file, &headers).await;
    let (target, head) = source.unless_wrong(made).await?;
    let outcome = target.files.write(head, source.clone()).await;
    let received = source.settle(outcome).await?;
    Ok(Json(Received { status: "ok", received_bytes: received.bytes, length: received.length }))
}

/// What is looked at before content is taken.
async fn beginning_of_file(
    state: &ApiState,
    node: &str,
    upload: &str,
    file: FileQuery,
    headers: &HeaderMap,
) -> Result<(Target, wire::WriteHead), ApiError> {
    let offset = offset(file.offset.as_deref(), headers)?;
    let (path, target) = (required("path", file.path)?, target(state, node).await?);
    Ok((target, wire::WriteHead { id: session(upload)?, path, offset }))
}

/// How much of a file has come.
#[derive(Debug, Serialize, ToSchema)]
struct FileLength {
    path: String,
    /// Where to go on; the header `Upload-Offset` says the same.
    length: u64,
}

/// How much of a file has come: where to go on after a break. `HEAD` answers the same in the header `Upload-Offset`.
#[utoipa::path(get, path = "/nodes/{node_id}/local-models/upload/{session_id}/file", tag = "files",
    params(("node_id" = u64, Path, description = "number"), ("session_id" = String, Path, description = "upload"),
        ("path" = String, Query, description = "where it lies in the model")),
    responses((status = 200, body = FileLength), (status = 400, body = ErrorBody), (status = 401, body = ErrorBody),
        (status = 404, body = ErrorBody), (status = 409, body = ErrorBody), (status = 422, body = ErrorBody),
        (status = 502, body = ErrorBody), (status = 503, body = ErrorBody)))]
async fn length(
    State(state): State<ApiState>,
    Path((node, upload)): Path<(String, String)>,
    Asked(file): Asked<FileQuery>,
) -> Result<Response, ApiError> {
    let target = target(&state, &node).await?;
    let path = required("path", file.path)?;
    let asked = wire::FileRequest { id: session(&upload)?, path: path.clone() };
    let length = target.files.upload_length(asked).await?.length;
    let mut response = Json(FileLength { path, length }).into_response();
    response.headers_mut().insert(UPLOAD_OFFSET, HeaderValue::from(length));
    // A moment later it may be more.
    response.headers_mut().insert(header::CACHE_CONTROL, HeaderValue::from_static("no-store"));
    Ok(response)
}

/// How an upload is finished.
#[derive(Debug, ToSchema)]
#[expect(dead_code, reason = "the description of the body; it is read field by field")]
struct FinishInput {
    /// Whether a single directory at the root is left out.
    #[schema(default = false)]
    flatten: bool,
}

/// A model that has come.
#[derive(Debug, Serialize, ToSchema)]
struct Arrived {
    name: String,
    /// What a deployment on this node names as its `model_name` to serve it.
    path: String,
    /// Its size in units of 1,048,576 bytes.
    size_mb: f64,
    /// The same in bytes.
    size_bytes: u64,
    /// What a person should know about it.
    warnings: Vec<String>,
}

impl From<wire::Arrived> for Arrived {
    fn from(arrived: wire::Arrived) -> Self {
        Self {
            name: arrived.name,
            path: arrived.path,
            size_mb: mb(arrived.bytes),
            size_bytes: arrived.bytes,
            warnings: arrived.warnings,
        }
    }
}

/// Makes what was uploaded a model, in one step. If that fails, the upload is still open.
#[utoipa::path(post, path = "/nodes/{node_id}/local-models/upload/{session_id}/finish", tag = "files",
    request_body = Option<FinishInput>,
    params(("node_id" = u64, Path, description = "number"), ("session_id" = String, Path, description = "upload")),
    responses((status = 200, body = Arrived), (status = 400, body = ErrorBody), (status = 401, body = ErrorBody),
        (status = 403, body = ErrorBody), (status = 404, body = ErrorBody), (status = 409, body = ErrorBody),
        (status = 422, body = ErrorBody), (status = 502, body = ErrorBody), (status = 503, body = ErrorBody)))]
async fn finish(
    State(state): State<ApiState>,
    Path((node, upload)): Path<(String, String)>,
    who: Principal,
    Body(body): Body,
) -> Result<Json<Arrived>, ApiError> {
    let mut fields = Fields::parse(if body.is_empty() { b"{}" } else { &body })?;
    let flatten = fields.boolean("flatten");
    let flatten = fields.not_null("flatten", flatten).unwrap_or(false);
    fields.finish()?;
    let target = target(&state, &node).await?;
    let arrived = target.files.finish_upload(wire::FinishRequest { id: session(&upload)?, flatten }).await?;
    tracing::info!(by = who.name, node = %target.id, model = arrived.name, bytes = arrived.bytes, "a model was uploaded");
    Ok(Json(arrived.into()))
}

/// What has become of an upload.
#[derive(Debug, Serialize, ToSchema)]
struct Aborted {
    /// `aborted`.
    status: &'static str,
}

/// Ends an upload and removes everything that has come. One that is not there has been aborted.
#[utoipa::path(post, path = "/nodes/{node_id}/local-models/upload/{session_id}/abort", tag = "files",
    params(("node_id" = u64, Path, description = "number"), ("session_id" = String, Path, description = "upload")),
    responses((status = 200, body = Aborted), (status = 401, body = ErrorBody), (status = 403, body = ErrorBody),
        (status = 404, body = ErrorBody), (status = 409, body = ErrorBody), (status = 502, body = ErrorBody),
        (status = 503, body = ErrorBody)))]
async fn abort(
    State(state): State<ApiState>,
    Path((node, upload)): Path<(String, String)>,
    who: Principal,
) -> Result<Json<Aborted>, ApiError> {
    let target = target(&state, &node).await?;
    if let Ok(id) = session(&upload) {
        target.files.abort_upload(wire::IdRequest { id }).await?;
        tracing::info!(by = who.name, node = %target.id, upload, "an upload was aborted");
    }
    Ok(Json(Aborted { status: "aborted" }))
}

/// What an archive becomes.
#[derive(Debug, Deserialize, utoipa::IntoParams)]
#[into_params(parameter_in = Query)]
struct ArchiveQuery {
    /// What the model is called.
    #[param(required = true)]
    name: Option<String>,
    /// What the archive is called: its end says how it is packed (`.tar`, `.tar.gz`, `.tgz`, `.zip`).
    #[param(required = true)]
    filename: Option<String>,
}

/// Uploads an archive, whose content becomes the model, without a single directory at its root. If anything fails, nothing is
/// left.
#[utoipa::path(post, path = "/nodes/{node_id}/local-models/archive", tag = "files",
    request_body(content = Vec<u8>, content_type = "application/octet-stream"),
    params(("node_id" = u64, Path, description = "number"), ArchiveQuery),
    responses((status = 200, body = Arrived), (status = 400, body = ErrorBody), (status = 401, body = ErrorBody),
        (status = 403, body = ErrorBody), (status = 404, body = ErrorBody), (status = 408, body = ErrorBody),
        (status = 409, body = ErrorBody), (status = 413, body = ErrorBody), (status = 422, body = ErrorBody),
        (status = 502, body = ErrorBody), (status = 503, body = ErrorBody), (status = 507, body = ErrorBody)))]
async fn archive(
    State(state): State<ApiState>,
    Path(node): Path<String>,
    Asked(query): Asked<ArchiveQuery>,
    who: Principal,
    source: Source,
) -> Result<Json<Arrived>, ApiError> {
    let made = beginning_of_archive(&state, &node, query, source.declared()).await;
    let (target, head) = source.unless_wrong(made).await?;
    let outcome = target.files.archive(head, source.clone()).await;
    let arrived = source.settle(outcome).await?;
    tracing::info!(by = who.name, node = %target.id, model = arrived.name, bytes = arrived.bytes, "a model was uploaded");
    Ok(Json(arrived.into()))
}

async fn beginning_of_archive(
    state: &ApiState,
    node: &str,
    query: ArchiveQuery,
    declared: Option<u64>,
) -> Result<(Target, wire::ArchiveHead), ApiError> {
    let (name, file_name) = (required("name", query.name)?, required("filename", query.filename)?);
    Ok((target(state, node).await?, wire::ArchiveHead { name, file_name, declared }))
}

/// The routes.
pub(super) fn router() -> OpenApiRouter<ApiState> {
    OpenApiRouter::new()
        .routes(routes!(begin))
        .routes(routes!(write, length))
        .routes(routes!(finish))
        .routes(routes!(abort))
        .routes(routes!(archive))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn headers(pairs: &[(&'static str, &'static str)]) -> HeaderMap {
        pairs.iter().map(|(name, value)| (HeaderName::from_static(name), HeaderValue::from_static(value))).collect()
    }

    #[test]
    fn where_a_file_goes_on_can_be_said_in_three_ways() {
        let said = |asked, pairs: &[(&'static str, &'static str)]| offset(asked, &headers(pairs)).ok();
        assert_eq!(said(None, &[]), Some(None));
        assert_eq!(said(Some("5"), &[]), Some(Some(5)));
        assert_eq!(said(None, &[("upload-offset", "5")]), Some(Some(5)));
        assert_eq!(said(None, &[("content-range", "bytes 5-9/10")]), Some(Some(5)));
        assert_eq!(said(None, &[("content-range", "bytes 5-9/*")]), Some(Some(5)));
        assert_eq!(said(Some("5"), &[("upload-offset", "5"), ("content-range", "bytes 5-9/10")]), Some(Some(5)));
        assert_eq!(said(Some("5"), &[("upload-offset", "6")]), None, "they contradict each other");
        for wrong in ["", "-1", "x", "5.0", "9007199254740992"] {
            assert_eq!(said(Some(wrong), &[]), None, "{wrong}");
        }
        for wrong in ["5-9/10", "bytes 5/10", "bytes 9-5/10", "bytes x-9/10", "bytes */10", "bytes=5-9"] {
            assert_eq!(offset(None, &headers(&[("content-range", wrong)])).ok(), None, "{wrong}");
        }
    }

    #[test]
    fn what_is_no_number_is_no_upload() {
        assert!(matches!(session("../x"), Err(ApiError::NotFound(_))));
        assert!(session("67e55044-10b1-426f-9247-bb680e5fe0c8").is_ok());
    }
}
