//! `/api/models`: the model registry of seed 000, with the fields of seed 002.

mod entry;
mod input;

use axum::Json;
use axum::extract::State;
use axum::response::Response;
use http::StatusCode;
use muster_cluster::ids::{ModelId, NodeId};
use muster_cluster::rows::{
    CreateModel, DeleteModel, Model, ModelAnswer, ModelField, ModelFields, UpdateModel, answer::Outcome, command,
};
use muster_cluster::sealing::SecretText;
use muster_cluster::state::{Stored, View, api_key_name, litellm_base, name_key};
use serde::Serialize;
use utoipa::ToSchema;
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;
use uuid::Uuid;

use crate::error::{ApiError, ErrorBody};
use crate::fields::{Fields, Given};
use crate::request::{Body, Page, Paged, Path, Read, Write, tagged, unexpected};
use crate::state::{ApiState, Member};

use entry::ModelEntry;
use input::{Draft, ModelInput, is_loopback, needs_base_url, normal, read};

/// A node that a model names must be there.
fn check_node(view: &View, fields: &ModelFields) -> Result<(), ApiError> {
    match fields.node_id {
        Some(id) if view.node(NodeId(id))?.is_none() => {
            Err(ApiError::field("nodeId", format!("there is no node {id}")))
        }
        _ => Ok(()),
    }
}

fn find(view: &View, reference: &str) -> Result<Stored<Model>, ApiError> {
    view.find_model(&normal(reference))?
        .ok_or_else(|| ApiError::NotFound("there is no model of this id or name".to_owned()))
}

fn seal(member: &Member, id: ModelId, key: Given<String>) -> Result<Option<muster_cluster::rows::Sealed>, ApiError> {
    match key.value().filter(|key| !key.is_empty()) {
        Some(key) => Ok(Some(member.replica.keyring.seal(&api_key_name(id), &SecretText::new(key))?)),
        None => Ok(None),
    }
}

fn entry(outcome: Outcome) -> Result<ModelEntry, ApiError> {
    match outcome {
        Outcome::Model(ModelAnswer { mod_index, model: Some(row) }) => Ok(ModelEntry::of(Stored { row, mod_index })),
        _ => Err(unexpected()),
    }
}

/// The list of all models, newest first.
#[derive(Debug, Serialize, ToSchema)]
struct ModelList {
    models: Vec<ModelEntry>,
}

/// A model, at top level and under `model`.
#[derive(Debug, Serialize, ToSchema)]
struct ModelBody {
    #[serde(flatten)]
    entry: ModelEntry,
    model: ModelEntry,
    /// What may not be what the caller wants.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    warnings: Vec<String>,
}

impl ModelBody {
    fn of(entry: ModelEntry) -> Self {
        let loopback = entry.base_url.as_deref().is_some_and(is_loopback) && entry.node_id.is_none();
        let warning = "baseUrl is a loopback address: each node will dial its own; name the node with nodeId";
        let warnings = if loopback { vec![warning.to_owned()] } else { Vec::new() };
        Self { model: entry.clone(), entry, warnings }
    }
}

/// It was done; the model as it is now, or was.
#[derive(Debug, Serialize, ToSchema)]
struct ModelDone {
    ok: bool,
    #[serde(skip_serializing_if = "Option::is_none")]
    deleted: Option<bool>,
    #[serde(flatten)]
    body: ModelBody,
}

fn done(outcome: Outcome, deleted: Option<bool>) -> Result<Response, ApiError> {
    let entry = entry(outcome)?;
    Ok(tagged(entry.mod_index, Json(ModelDone { ok: true, deleted, body: ModelBody::of(entry) })))
}

/// Every model of the registry, inactive ones included.
#[utoipa::path(get, path = "/models", tag = "models", params(super::ListParams, super::ReadParams),
    responses((status = 200, body = ModelList), (status = 401, body = ErrorBody), (status = 503, body = ErrorBody)))]
async fn list(read: Read, page: Page) -> Result<Response, ApiError> {
    let mut models = read.view.models()?;
    models.sort_unstable_by_key(|model| std::cmp::Reverse(model.row.created_index));
    let before = page.after().unwrap_or(u64::MAX);
    let rest = models.into_iter().filter(|model| model.row.created_index < before);
    let (models, link) = page.of(rest.map(|model| (model.row.created_index, ModelEntry::of(model)))).into_parts();
    Ok(Paged::<ModelEntry>::answer(link, read.answer(Json(ModelList { models }))))
}

/// Registers a model.
#[utoipa::path(post, path = "/models", tag = "models", request_body = ModelInput, params(super::WriteParams),
    responses((status = 201, body = ModelBody), (status = 400, body = ErrorBody), (status = 401, body = ErrorBody),
        (status = 403, body = ErrorBody), (status = 409, body = ErrorBody), (status = 413, body = ErrorBody),
        (status = 422, body = ErrorBody), (status = 503, body = ErrorBody), (status = 504, body = ErrorBody)))]
async fn create(State(state): State<ApiState>, write: Write, Body(body): Body) -> Result<Response, ApiError> {
    let mut fields = Fields::parse(&body)?;
    let Draft { fields: model, api_key, .. } = read(&mut fields)?;
    for (field, given) in [("name", &model.name), ("provider", &model.provider), ("modelId", &model.model_id)] {
        if given.is_none() {
            fields.required(field);
        }
    }
    if let Some(provider) = model.provider.as_deref()
        && needs_base_url(provider)
        && model.base_url.is_none()
    {
        fields.required("baseUrl");
    }
    fields.finish()?;
    let member = state.member()?;
    check_node(&member.consensus.local(), &model)?;
    let id = ModelId(Uuid::new_v4());
    let command = CreateModel {
        id: id.as_bytes().to_vec().into(),
        name_key: name_key(model.name()),
        litellm_base: litellm_base(model.provider(), model.name()),
        api_key: seal(&member, id, api_key)?,
        fields: Some(model),
    };
    let outcome = write.propose(&member, &body, command::Body::CreateModel(command)).await?;
    let entry = entry(outcome)?;
    Ok(tagged(entry.mod_index, (StatusCode::CREATED, Json(ModelBody::of(entry)))))
}

/// One model, by id or exact name.
#[utoipa::path(get, path = "/models/{ref}", tag = "models", params(("ref" = String, Path, description = "id or name"), super::ReadParams),
    responses((status = 200, body = ModelBody), (status = 401, body = ErrorBody), (status = 404, body = ErrorBody)))]
async fn get(Path(reference): Path<String>, read: Read) -> Result<Response, ApiError> {
    let entry = ModelEntry::of(find(&read.view, &reference)?);
    Ok(read.answer(tagged(entry.mod_index, Json(ModelBody::of(entry)))))
}

/// Changes the fields that are given.
#[utoipa::path(put, path = "/models/{ref}", tag = "models", request_body = ModelInput,
    params(("ref" = String, Path, description = "id or name"), super::WriteParams),
    responses((status = 200, body = ModelDone), (status = 400, body = ErrorBody), (status = 401, body = ErrorBody),
        (status = 404, body = ErrorBody), (status = 409, body = ErrorBody), (status = 412, body = ErrorBody),
        (status = 422, body = ErrorBody), (status = 504, body = ErrorBody)))]
async fn update(
    State(state): State<ApiState>,
    Path(reference): Path<String>,
    write: Write,
    Body(body): Body,
) -> Result<Response, ApiError> {
    let mut fields = Fields::parse(&body)?;
    let Draft { fields: changes, clear, api_key } = read(&mut fields)?;
    let member = state.member()?;
    if let Some(first) = write.first_answer(&member, &body).await? {
        return done(first.outcome, None);
    }
    // Found in the newest state: a model that was just made through another node is there.
    let view = member.consensus.linearizable().await?;
    let stored = find(&view, &reference)?;
    let current = stored.row.fields.clone().unwrap_or_default();
    let provider = changes.provider.as_deref().unwrap_or(current.provider());
    let keeps_url = current.base_url.is_some() && !clear.contains(&ModelField::BaseUrl);
    if needs_base_url(provider) && changes.base_url.is_none() && !keeps_url {
        fields.required("baseUrl");
    }
    fields.finish()?;
    check_node(&view, &changes)?;
    let id = ModelId::from_slice(&stored.row.id).ok_or_else(unexpected)?;
    let name_key = changes.name.as_deref().map(name_key).unwrap_or_default();
    let clear_api_key = api_key.is_null() || api_key == Given::Value(String::new());
    let api_key = seal(&member, id, api_key)?;
    let command = UpdateModel {
        id: stored.row.id,
        precondition: write.precondition.clone(),
        changes: Some(changes),
        clear: clear.into_iter().map(i32::from).collect(),
        name_key,
        api_key,
        clear_api_key,
    };
    let outcome = write.propose(&member, &body, command::Body::UpdateModel(command)).await?;
    done(outcome, None)
}

/// The same as PUT.
#[utoipa::path(patch, path = "/models/{ref}", tag = "models", request_body = ModelInput,
    params(("ref" = String, Path, description = "id or name"), super::WriteParams),
    responses((status = 200, body = ModelDone), (status = 404, body = ErrorBody), (status = 422, body = ErrorBody)))]
async fn patch(
    state: State<ApiState>,
    reference: Path<String>,
    write: Write,
    body: Body,
) -> Result<Response, ApiError> {
    update(state, reference, write, body).await
}

/// Removes a model.
#[utoipa::path(delete, path = "/models/{ref}", tag = "models",
    params(("ref" = String, Path, description = "id or name"), super::WriteParams),
    responses((status = 200, body = ModelDone), (status = 401, body = ErrorBody), (status = 404, body = ErrorBody),
        (status = 412, body = ErrorBody), (status = 504, body = ErrorBody)))]
async fn delete(
    State(state): State<ApiState>,
    Path(reference): Path<String>,
    write: Write,
) -> Result<Response, ApiError> {
    let member = state.member()?;
    if let Some(first) = write.first_answer(&member, &[]).await? {
        return done(first.outcome, Some(true));
    }
    let id = find(&member.consensus.linearizable().await?, &reference)?.row.id;
    let command = DeleteModel { id, precondition: write.precondition.clone() };
    let outcome = write.propose(&member, &[], command::Body::DeleteModel(command)).await?;
    done(outcome, Some(true))
}

const NO_REALMS: ApiError = ApiError::NotImplemented("realms are not built yet; a model can be granted once they are");

/// Grants a model to a realm: not available yet.
#[utoipa::path(post, path = "/models/{ref}/realms", tag = "models", params(("ref" = String, Path, description = "id or name")),
    responses((status = 501, body = ErrorBody)))]
async fn grant(Path(_reference): Path<String>) -> Result<Response, ApiError> {
    Err(NO_REALMS)
}

/// Takes a grant back: not available yet.
#[utoipa::path(delete, path = "/models/{ref}/realms/{realm}", tag = "models",
    params(("ref" = String, Path, description = "id or name"), ("realm" = String, Path, description = "realm")),
    responses((status = 501, body = ErrorBody)))]
async fn revoke(Path(_references): Path<(String, String)>) -> Result<Response, ApiError> {
    Err(NO_REALMS)
}

/// The routes.
pub(super) fn router() -> OpenApiRouter<ApiState> {
    OpenApiRouter::new()
        .routes(routes!(list, create))
        .routes(routes!(get, update, patch, delete))
        .routes(routes!(grant))
        .routes(routes!(revoke))
}
