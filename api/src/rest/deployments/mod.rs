//! `/api/deployments`: what shall run on the fleet (seed 004).

mod entry;
mod explain;
mod input;
mod lifecycle;
mod logs;
mod seats;
mod seen;

use axum::Json;
use axum::extract::State;
use axum::response::{IntoResponse, Response};
use http::StatusCode;
use muster_cluster::ids::DeploymentId;
use muster_cluster::rows::{
    CreateDeployment, DeleteDeployment, Deployment, DeploymentAnswer, Environment, answer::Outcome, command,
};
use muster_cluster::sealing::SecretText;
use muster_cluster::state::{Stored, View, environment_name};
use serde::Serialize;
use utoipa::ToSchema;
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;
use uuid::Uuid;

use crate::error::{ApiError, ErrorBody};
use crate::fields::Fields;
use crate::request::{Body, Page, Paged, Path, Read, Write, number, tagged, unexpected};
use crate::state::{ApiState, Member};

use entry::{DeploymentEntry, Manifest};
use input::{DeploymentInput, read};
use seen::Live;

fn find(view: &View, id: &str) -> Result<Stored<Deployment>, ApiError> {
    let id = number("id", id).map(DeploymentId)?;
    view.deployment(id)?.ok_or_else(|| ApiError::NotFound(format!("there is no deployment {id}")))
}

fn seal(member: &Member, variables: Vec<(String, String)>) -> Result<Option<Environment>, ApiError> {
    if variables.is_empty() {
        return Ok(None);
    }
    let id = Uuid::new_v4();
    let keys = variables.iter().map(|(key, _)| key.clone()).collect();
    let values: serde_json::Map<_, _> = variables.into_iter().map(|(key, value)| (key, value.into())).collect();
    let text = SecretText::new(serde_json::Value::Object(values).to_string());
    let values = Some(member.replica.keyring.seal(&environment_name(id), &text)?);
    Ok(Some(Environment { id: id.as_bytes().to_vec().into(), keys, values }))
}

/// It was done.
#[derive(Debug, Serialize, ToSchema)]
struct Deleted {
    /// `deleted`.
    status: &'static str,
    id: u64,
}

/// Every deployment, newest first.
#[utoipa::path(get, path = "/deployments", tag = "deployments", params(super::ListParams, super::ReadParams),
    responses((status = 200, body = Vec<DeploymentEntry>), (status = 401, body = ErrorBody), (status = 503, body = ErrorBody)))]
async fn list(State(state): State<ApiState>, read: Read, page: Page) -> Result<Response, ApiError> {
    let mut deployments = read.view.deployments()?;
    deployments.reverse();
    let before = page.after().unwrap_or(u64::MAX);
    let rest = deployments.into_iter().filter(|deployment| deployment.row.id < before);
    let (deployments, link) = page.of(rest.map(|deployment| (deployment.row.id, deployment))).into_parts();
    let placed = |deployment: Stored<Deployment>| -> Result<_, ApiError> {
        let placements = read.view.placements(DeploymentId(deployment.row.id))?;
        Ok((deployment, placements))
    };
    let placed = deployments.into_iter().map(placed).collect::<Result<Vec<_>, _>>()?;
    let sight = seen::look(&state.member()?, placed.iter().flat_map(|(_, placements)| placements)).await;
    let entry = |(deployment, placements): (Stored<Deployment>, Vec<_>)| -> Result<_, ApiError> {
        let done = read.view.done(DeploymentId(deployment.row.id))?;
        Ok(DeploymentEntry::of(deployment, &placements, &done, sight.of(&placements)))
    };
    let deployments = placed.into_iter().map(entry).collect::<Result<Vec<_>, _>>()?;
    Ok(Paged::<DeploymentEntry>::answer(link, read.answer(Json(deployments))))
}

/// Makes a record. Nothing is launched.
#[utoipa::path(post, path = "/deployments", tag = "deployments", request_body = DeploymentInput, params(super::WriteParams),
    responses((status = 201, body = DeploymentEntry), (status = 400, body = ErrorBody), (status = 401, body = ErrorBody),
        (status = 403, body = ErrorBody), (status = 404, body = ErrorBody), (status = 413, body = ErrorBody),
        (status = 422, body = ErrorBody), (status = 503, body = ErrorBody), (status = 504, body = ErrorBody)))]
async fn create(State(state): State<ApiState>, write: Write, Body(body): Body) -> Result<Response, ApiError> {
    let mut fields = Fields::parse(&body)?;
    let draft = read(&mut fields);
    fields.finish()?;
    let member = state.member()?;
    let command = CreateDeployment {
        spec: Some(draft.spec),
        wish: Some(draft.wish),
        owner: draft.owner,
        duration_s: draft.duration_s,
        pinned: draft.pinned,
        environment: seal(&member, draft.environment)?,
        names: draft.names,
    };
    let outcome = write.propose(&member, &body, command::Body::CreateDeployment(command)).await?;
    let entry = entry(&member.consensus.local(), outcome)?;
    Ok(tagged(entry.mod_index, (StatusCode::CREATED, Json(entry))))
}

/// The deployment that a command has answered with.
fn entry(view: &View, outcome: Outcome) -> Result<DeploymentEntry, ApiError> {
    match outcome {
        Outcome::Deployment(DeploymentAnswer { mod_index, deployment: Some(row), placements }) => {
            let done = view.done(DeploymentId(row.id))?;
            Ok(DeploymentEntry::of(Stored { row, mod_index }, &placements, &done, Live::default()))
        }
        _ => Err(unexpected()),
    }
}

/// One deployment.
#[utoipa::path(get, path = "/deployments/{deployment_id}", tag = "deployments",
    params(("deployment_id" = u64, Path, description = "number"), super::ReadParams),
    responses((status = 200, body = DeploymentEntry), (status = 401, body = ErrorBody), (status = 404, body = ErrorBody)))]
async fn get(State(state): State<ApiState>, Path(id): Path<String>, read: Read) -> Result<Response, ApiError> {
    let deployment = find(&read.view, &id)?;
    let placements = read.view.placements(DeploymentId(deployment.row.id))?;
    let live = seen::look(&state.member()?, placements.iter()).await.of(&placements);
    let done = read.view.done(DeploymentId(deployment.row.id))?;
    let entry = DeploymentEntry::of(deployment, &placements, &done, live);
    Ok(read.answer(tagged(entry.mod_index, Json(entry))))
}

/// What a deployment is, to launch it again elsewhere.
#[utoipa::path(get, path = "/deployments/{deployment_id}/manifest", tag = "deployments",
    params(("deployment_id" = u64, Path, description = "number"), super::ReadParams),
    responses((status = 200, body = Manifest), (status = 401, body = ErrorBody), (status = 404, body = ErrorBody)))]
async fn manifest(Path(id): Path<String>, read: Read) -> Result<Response, ApiError> {
    let manifest = Manifest::of(find(&read.view, &id)?.row, &read.view)?;
    Ok(read.answer(Json(manifest)))
}

/// Removes a record.
#[utoipa::path(delete, path = "/deployments/{deployment_id}", tag = "deployments",
    params(("deployment_id" = u64, Path, description = "number"), super::WriteParams),
    responses((status = 200, body = Deleted), (status = 401, body = ErrorBody), (status = 403, body = ErrorBody),
        (status = 404, body = ErrorBody), (status = 412, body = ErrorBody), (status = 504, body = ErrorBody)))]
async fn delete(State(state): State<ApiState>, Path(id): Path<String>, write: Write) -> Result<Response, ApiError> {
    let id = number("id", &id)?;
    let command = DeleteDeployment { id, precondition: write.precondition.clone() };
    write.propose(&state.member()?, &[], command::Body::DeleteDeployment(command)).await?;
    Ok(Json(Deleted { status: "deleted", id }).into_response())
}

/// The routes.
pub(super) fn router() -> OpenApiRouter<ApiState> {
    OpenApiRouter::new()
        .routes(routes!(list, create))
        .routes(routes!(get, delete))
        .routes(routes!(manifest))
        .merge(lifecycle::router())
        .merge(logs::router())
        .merge(explain::router())
}
