//! What the engines of deployments have said, read from the nodes that have it.

use axum::Json;
use axum::body::Body;
use axum::extract::{Query, State};
use axum::response::{IntoResponse, Response};
use http::{HeaderValue, header};
use muster_agent::logs::download_name;
use muster_cluster::ids::{DeploymentId, NodeId, PlacementId};
use muster_cluster::rows::Placement;
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

use super::super::ReadParams;
use super::find;
use crate::error::{ApiError, ErrorBody};
use crate::request::{Path, Read, number};
use crate::state::ApiState;

/// How many lines there are where nobody says how many, and at most.
const LINES: u64 = 200;
const LINES_LIMIT: u64 = 2000;

/// Which lines.
#[derive(Debug, Default, Deserialize, utoipa::IntoParams)]
#[into_params(parameter_in = Query)]
struct LogQuery {
    /// How many of the last lines: 1 to 2000, 200 if it is left out.
    tail: Option<String>,
    /// Which replica; the first if it is left out.
    ordinal: Option<String>,
}

/// The last lines of a log.
#[derive(Debug, Serialize, ToSchema)]
struct Lines {
    /// The model and the port.
    #[schema(example = "org/model:8001")]
    key: String,
    lines: Vec<String>,
}

/// Where a replica's log is, and what it is called.
struct Place {
    node: NodeId,
    placement: PlacementId,
    model: String,
    port: u16,
}

/// The replica whose log is wanted. `None`: it has never been started.
fn place(read: &Read, id: &str, query: &LogQuery) -> Result<Option<Place>, ApiError> {
    let deployment = find(&read.view, id)?.row;
    let ordinal = query.ordinal.as_deref().map_or(Ok(0), |text| number("ordinal", text))?;
    let placements = read.view.placements(DeploymentId(deployment.id))?;
    let found = placements.into_iter().find(|placement| u64::from(placement.ordinal) == ordinal);
    let Some(Placement { ordinal, seat: Some(seat), .. }) = found else { return Ok(None) };
    Ok(Some(Place {
        node: NodeId(seat.node_id),
        placement: PlacementId { deployment: DeploymentId(deployment.id), ordinal },
        model: deployment.spec.unwrap_or_default().model_name,
        port: u16::try_from(seat.port).unwrap_or_default(),
    }))
}

/// The last lines of a deployment's log.
#[utoipa::path(get, path = "/deployments/{deployment_id}/logs", tag = "deployments",
    params(("deployment_id" = u64, Path, description = "number"), LogQuery, ReadParams),
    responses((status = 200, body = Lines), (status = 401, body = ErrorBody), (status = 404, body = ErrorBody),
        (status = 422, body = ErrorBody), (status = 502, body = ErrorBody)))]
async fn tail(
    State(state): State<ApiState>,
    Path(id): Path<String>,
    Query(query): Query<LogQuery>,
    read: Read,
) -> Result<Response, ApiError> {
    let count = query.tail.as_deref().map_or(Ok(LINES), |text| number("tail", text))?.clamp(1, LINES_LIMIT);
    let Some(place) = place(&read, &id, &query)? else {
        let model = find(&read.view, &id)?.row.spec.unwrap_or_default().model_name;
        return Ok(Json(Lines { key: model, lines: Vec::new() }).into_response());
    };
    let hosts = state.member()?.hosts;
    let lines = hosts.tail(place.node, place.placement, usize::try_from(count).unwrap_or(usize::MAX)).await;
    let lines = lines.map_err(|silent| ApiError::Unreachable(silent.to_string()))?;
    Ok(Json(Lines { key: format!("{}:{}", place.model, place.port), lines }).into_response())
}

/// The whole log of a deployment's last run, as a file.
#[utoipa::path(get, path = "/deployments/{deployment_id}/logs/download", tag = "deployments",
    params(("deployment_id" = u64, Path, description = "number"), LogQuery, ReadParams),
    responses((status = 200, content_type = "text/plain", body = String), (status = 401, body = ErrorBody),
        (status = 404, body = ErrorBody), (status = 502, body = ErrorBody)))]
async fn download(
    State(state): State<ApiState>,
    Path(id): Path<String>,
    Query(query): Query<LogQuery>,
    read: Read,
) -> Result<Response, ApiError> {
    let none = || ApiError::NotFound(format!("deployment {id} has no log"));
    let place = place(&read, &id, &query)?.ok_or_else(none)?;
    let parts = state.member()?.hosts.read_log(place.node, place.placement).await;
    let parts = parts.map_err(|silent| ApiError::Unreachable(silent.to_string()))?.ok_or_else(none)?;
    let mut response = Body::from_stream(parts).into_response();
    let headers = response.headers_mut();
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("text/plain; charset=utf-8"));
    let name = format!("attachment; filename=\"{}\"", download_name(&place.model, place.port));
    if let Ok(name) = HeaderValue::from_str(&name) {
        headers.insert(header::CONTENT_DISPOSITION, name);
    }
    Ok(response)
}

/// The routes.
pub(super) fn router() -> OpenApiRouter<ApiState> {
    OpenApiRouter::new().routes(routes!(tail)).routes(routes!(download))
}
