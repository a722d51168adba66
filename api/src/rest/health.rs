//! Whether this node lives and is ready, and what it has counted.

use axum::Json;
use axum::extract::State;
use axum::response::{IntoResponse, Response};
use http::header;
use muster_cluster::consensus::Role;
use muster_cluster::leader::target_voters;
use serde::Serialize;
use utoipa::ToSchema;
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

use crate::error::{ApiError, ErrorBody};
use crate::state::{ApiState, Phase, STOPPED};

#[derive(Debug, Serialize, ToSchema)]
struct Health {
    /// `ok`.
    #[schema(example = "ok")]
    status: &'static str,
}

#[derive(Debug, Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
struct Readiness {
    /// `ready`.
    #[schema(example = "ready")]
    status: &'static str,
    applied_index: u64,
}

/// The process lives. No credential is needed.
#[utoipa::path(get, path = "/health", tag = "health", security(()), responses((status = 200, body = Health)))]
async fn health() -> Json<Health> {
    Json(Health { status: "ok" })
}

/// The node serves: it belongs to a fleet, knows a leader, and votes if it is needed for that. No credential is needed.
#[utoipa::path(get, path = "/ready", tag = "health", security(()),
    responses((status = 200, body = Readiness), (status = 503, body = ErrorBody)))]
async fn ready(State(state): State<ApiState>) -> Result<Json<Readiness>, ApiError> {
    let member = state.member()?;
    let status = member.consensus.status();
    if status.stopped.is_some() {
        return Err(ApiError::NotReady(STOPPED.to_owned()));
    }
    if status.leader.is_none() || status.role == Role::Stopped {
        return Err(ApiError::NoQuorum("it knows no leader".to_owned()));
    }
    let nodes = member.consensus.local().nodes()?.len();
    let votes = status.voters.iter().any(|voters| voters.contains(&status.node));
    if !votes && status.voters.iter().flatten().count() < target_voters(nodes) {
        return Err(ApiError::NotReady("it is to vote, and does not yet".to_owned()));
    }
    Ok(Json(Readiness { status: "ready", applied_index: member.consensus.local().index() }))
}

/// What this node has counted, in the form that Prometheus reads.
#[utoipa::path(get, path = "/metrics", tag = "health",
    responses((status = 200, body = String, content_type = "text/plain"), (status = 401, body = ErrorBody)))]
async fn metrics(State(state): State<ApiState>) -> Result<Response, ApiError> {
    let member = match state.phase() {
        Phase::Member(member) => Some(member),
        Phase::Starting | Phase::Unconfigured | Phase::HandedOver(_) | Phase::Stopped(_) => None,
    };
    let text =
        state.metrics.render(member.as_ref(), &state.tally).map_err(|error| ApiError::Internal(error.to_string()))?;
    let form = "application/openmetrics-text; version=1.0.0; charset=utf-8";
    Ok(([(header::CONTENT_TYPE, form)], text).into_response())
}

/// The routes that need no credential.
pub(super) fn open() -> OpenApiRouter<ApiState> {
    OpenApiRouter::new().routes(routes!(health)).routes(routes!(ready))
}

/// The route that needs a viewer.
pub(super) fn guarded() -> OpenApiRouter<ApiState> {
    OpenApiRouter::new().routes(routes!(metrics))
}
