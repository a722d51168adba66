//! Starting and ending deployments, and moving their end.

use axum::Json;
use axum::extract::{Query, State};
use axum::response::{IntoResponse, Response};
use muster_cluster::ids::DeploymentId;
use muster_cluster::rows::start_deployment::What;
use muster_cluster::rows::{
    CreateDeployment, DeploymentSpec, ExtendDeployment, PinDeployment, RestartDeployment, StartDeployment,
    StopDeployment, Wish, command, name_claim,
};
use muster_cluster::state::{View, name_key};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, json};
use utoipa::ToSchema;
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

use super::super::{ReadParams, WriteParams};
use super::entry::DeploymentEntry;
use super::input::{DeploymentInput, line, read_start};
use super::{entry, find, seal, seats};
use crate::error::{ApiError, ErrorBody};
use crate::fields::{Fields, MAX_INTEGER};
use crate::request::{Body, Path, Read, Write, number, tagged};
use crate::state::{ApiState, Member};

/// How often a place is looked for when others are faster.
const ATTEMPTS: usize = 5;

/// The longest that an end can be moved at once, in hours: two weeks.
const HOURS_LIMIT: f64 = 336.0;

/// How many names are tried for a suggestion.
const SUGGESTIONS: u32 = 1000;

/// Starts what has been described: looks for a place, and commits it there. If somebody else has taken what was chosen, it is
/// chosen again; what the caller has chosen is not.
async fn start_there(
    member: &Member,
    write: &Write,
    body: &[u8],
    what: What,
    spec: &DeploymentSpec,
    wish: &Wish,
) -> Result<DeploymentEntry, ApiError> {
    let mut tried = None;
    if wish.node_id.is_none() {
        let command = StartDeployment { what: Some(what), seats: Vec::new() };
        let outcome = write.propose(member, body, command::Body::StartDeployment(command)).await?;
        return entry(&member.consensus.local(), outcome);
    }
    for _ in 0..ATTEMPTS {
        let view = member.consensus.linearizable().await?;
        let seat = match (seats::find(&view, spec, wish), tried.take()) {
            (Ok(seat), Some((before, refused))) if seat == before => return Err(refused),
            (Ok(seat), _) => seat,
            // There was something, and somebody has taken it.
            (Err(why), _) => return Err(why),
        };
        let command = StartDeployment { what: Some(what.clone()), seats: vec![seat.clone()] };
        match write.propose(member, body, command::Body::StartDeployment(command)).await {
            Err(refused @ ApiError::Conflict(_)) => tried = Some((seat, refused)),
            outcome => return entry(&member.consensus.local(), outcome?),
        }
    }
    Err(ApiError::Overloaded("others were faster every time; try again".to_owned()))
}

async fn start_draft(
    state: &ApiState,
    write: &Write,
    body: &[u8],
    mut fields: Fields,
) -> Result<DeploymentEntry, ApiError> {
    let draft = read_start(&mut fields);
    fields.finish()?;
    let member = state.member()?;
    if let Some(done) = write.first_answer(&member, body).await? {
        return entry(&member.consensus.local(), done.outcome);
    }
    let create = CreateDeployment {
        spec: Some(draft.spec.clone()),
        wish: Some(draft.wish.clone()),
        owner: draft.owner,
        duration_s: draft.duration_s,
        pinned: draft.pinned,
        environment: seal(&member, draft.environment)?,
        names: draft.names,
    };
    start_there(&member, write, body, What::Create(create), &draft.spec, &draft.wish).await
}

/// Makes a deployment and starts it. The answer does not wait until it runs: `status` and `last_error` say how it goes.
#[utoipa::path(post, path = "/deployments/start", tag = "deployments", request_body = DeploymentInput,
    params(WriteParams),
    responses((status = 200, body = DeploymentEntry), (status = 400, body = ErrorBody), (status = 401, body = ErrorBody),
        (status = 403, body = ErrorBody), (status = 404, body = ErrorBody), (status = 409, body = ErrorBody),
        (status = 422, body = ErrorBody), (status = 503, body = ErrorBody), (status = 504, body = ErrorBody)))]
async fn start(State(state): State<ApiState>, write: Write, Body(body): Body) -> Result<Response, ApiError> {
    let started = start_draft(&state, &write, &body, Fields::parse(&body)?).await?;
    Ok(tagged(started.mod_index, Json(started)))
}

/// A manifest and where it shall run.
#[derive(Debug, ToSchema)]
#[expect(dead_code, reason = "the description of the body; it is read field by field")]
struct FromManifest {
    /// What `GET /api/deployments/{deployment_id}/manifest` answers.
    #[schema(value_type = Object)]
    manifest: Value,
    /// Left out: the leader looks for a place.
    node_id: Option<u64>,
    port: Option<u16>,
    owner: String,
    duration_seconds: Option<u64>,
    /// Values do not travel with manifests: all that it needs is given here.
    #[schema(value_type = Option<Vec<Object>>)]
    env_vars: Option<Vec<Value>>,
}

/// What a manifest says, as the body of a start.
fn described(manifest: &Map<String, Value>) -> Result<Map<String, Value>, ApiError> {
    let senseless = |why: &str| ApiError::Senseless(format!("manifest.{why}"));
    if manifest.get("manifest_version") != Some(&json!(1)) {
        return Err(senseless("manifest_version must be 1"));
    }
    let model = manifest.get("model").filter(|model| model.is_string());
    let model = model.ok_or_else(|| senseless("model must be a string"))?;
    let gpu = manifest.get("gpu").and_then(Value::as_object);
    let fraction = gpu.and_then(|gpu| gpu.get("memory_fraction")).filter(|fraction| fraction.is_number());
    let fraction = fraction.ok_or_else(|| senseless("gpu.memory_fraction must be a number"))?;
    let mut body = Map::new();
    body.insert("model_name".to_owned(), model.clone());
    body.insert("gpu_memory_fraction".to_owned(), fraction.clone());
    let of_gpu = |field: &str| gpu.and_then(|gpu| gpu.get(field)).cloned();
    for (field, value) in [("gpu_ids", of_gpu("ids")), ("tensor_parallel_size", of_gpu("tensor_parallel_size"))] {
        body.insert(field.to_owned(), value.unwrap_or_default());
    }
    for field in ["engine", "engine_args", "extra_args", "extra_packages", "lora_modules", "vllm_version"] {
        body.insert(field.to_owned(), manifest.get(field).cloned().unwrap_or_default());
    }
    Ok(body)
}

/// Starts what a manifest describes.
#[utoipa::path(post, path = "/deployments/from-manifest", tag = "deployments", request_body = FromManifest,
    params(WriteParams),
    responses((status = 200, body = DeploymentEntry), (status = 400, body = ErrorBody), (status = 401, body = ErrorBody),
        (status = 403, body = ErrorBody), (status = 404, body = ErrorBody), (status = 409, body = ErrorBody),
        (status = 422, body = ErrorBody), (status = 503, body = ErrorBody), (status = 504, body = ErrorBody)))]
async fn from_manifest(State(state): State<ApiState>, write: Write, Body(body): Body) -> Result<Response, ApiError> {
    let mut given: Map<String, Value> = match serde_json::from_slice(&body) {
        Ok(Value::Object(given)) => given,
        Ok(_) => return Err(ApiError::Senseless("the body must be a JSON object".to_owned())),
        Err(error) => return Err(ApiError::NotJson(error.to_string())),
    };
    let manifest = match given.remove("manifest") {
        Some(Value::Object(manifest)) => manifest,
        Some(_) => return Err(ApiError::field("manifest", "must be an object")),
        None => return Err(ApiError::field("manifest", "is required")),
    };
    let mut start = described(&manifest)?;
    for (field, value) in given {
        let ours = ["node_id", "port", "owner", "duration_seconds", "env_vars"];
        if !ours.contains(&field.as_str()) {
            return Err(ApiError::field(field, "is not a field of this request"));
        }
        start.insert(field, value);
    }
    let start = Value::Object(start).to_string();
    let started = start_draft(&state, &write, &body, Fields::parse(start.as_bytes())?).await?;
    Ok(tagged(started.mod_index, Json(started)))
}

/// Stops a deployment: its engine gets time to finish, and what it holds is free once nothing of it is left.
#[utoipa::path(post, path = "/deployments/stop/{deployment_id}", tag = "deployments",
    params(("deployment_id" = u64, Path, description = "number"), WriteParams),
    responses((status = 200, body = DeploymentEntry), (status = 401, body = ErrorBody), (status = 403, body = ErrorBody),
        (status = 404, body = ErrorBody), (status = 412, body = ErrorBody), (status = 504, body = ErrorBody)))]
async fn stop(State(state): State<ApiState>, Path(id): Path<String>, write: Write) -> Result<Response, ApiError> {
    let command = StopDeployment { id: number("id", &id)?, precondition: write.precondition.clone() };
    let member = state.member()?;
    let outcome = write.propose(&member, &[], command::Body::StopDeployment(command)).await?;
    let stopped = entry(&member.consensus.local(), outcome)?;
    Ok(tagged(stopped.mod_index, Json(stopped)))
}

/// Who starts it again, and for how long.
#[derive(Debug, ToSchema)]
#[expect(dead_code, reason = "the description of the body; it is read field by field")]
struct Restart {
    owner: String,
    /// Left out: without end.
    duration_seconds: Option<u64>,
}

/// Starts a deployment again that has been stopped, has expired or has failed, where it was.
#[utoipa::path(post, path = "/deployments/{deployment_id}/restart", tag = "deployments", request_body = Restart,
    params(("deployment_id" = u64, Path, description = "number"), WriteParams),
    responses((status = 200, body = DeploymentEntry), (status = 401, body = ErrorBody), (status = 403, body = ErrorBody),
        (status = 404, body = ErrorBody), (status = 409, body = ErrorBody), (status = 412, body = ErrorBody),
        (status = 422, body = ErrorBody), (status = 503, body = ErrorBody), (status = 504, body = ErrorBody)))]
async fn restart(
    State(state): State<ApiState>,
    Path(id): Path<String>,
    write: Write,
    Body(body): Body,
) -> Result<Response, ApiError> {
    let id = number("id", &id)?;
    let mut fields = Fields::parse(&body)?;
    let owner = line(&mut fields, "owner", super::input::NAME_LIMIT).unwrap_or_default();
    if owner.is_empty() {
        fields.required("owner");
    }
    let duration_s = fields.integer("duration_seconds", 1, super::input::DURATION_LIMIT).value();
    fields.finish()?;
    let member = state.member()?;
    if let Some(done) = write.first_answer(&member, &body).await? {
        let restarted = entry(&member.consensus.local(), done.outcome)?;
        return Ok(tagged(restarted.mod_index, Json(restarted)));
    }
    let view = member.consensus.linearizable().await?;
    let deployment = find(&view, &id.to_string())?.row;
    let mut wish = deployment.wish.unwrap_or_default();
    // Where the leader has found the place, it finds one again.
    if wish.node_id.is_some()
        && let Some(seat) = view.placements(DeploymentId(id))?.into_iter().next().and_then(|placement| placement.seat)
    {
        wish = Wish { gpu_ids: seat.gpu_ids, port: Some(seat.port), ..wish };
    }
    let restart = RestartDeployment { id, precondition: write.precondition.clone(), owner, duration_s };
    let spec = deployment.spec.unwrap_or_default();
    let restarted = start_there(&member, &write, &body, What::Restart(restart), &spec, &wish).await?;
    Ok(tagged(restarted.mod_index, Json(restarted)))
}

/// Exactly one of the two.
#[derive(Debug, ToSchema)]
#[expect(dead_code, reason = "the description of the body; it is read field by field")]
struct Extend {
    /// More than 0, at most 336.
    hours: Option<f64>,
    /// True: it has no end any more.
    infinite: Option<bool>,
}

/// Moves the end of a deployment that runs or is starting.
#[utoipa::path(post, path = "/deployments/{deployment_id}/extend", tag = "deployments", request_body = Extend,
    params(("deployment_id" = u64, Path, description = "number"), WriteParams),
    responses((status = 200, body = DeploymentEntry), (status = 401, body = ErrorBody), (status = 403, body = ErrorBody),
        (status = 404, body = ErrorBody), (status = 409, body = ErrorBody), (status = 412, body = ErrorBody),
        (status = 422, body = ErrorBody), (status = 504, body = ErrorBody)))]
async fn extend(
    State(state): State<ApiState>,
    Path(id): Path<String>,
    write: Write,
    Body(body): Body,
) -> Result<Response, ApiError> {
    let id = number("id", &id)?;
    let mut fields = Fields::parse(&body)?;
    let hours = fields.number("hours", 0.0, HOURS_LIMIT).value();
    let infinite = fields.boolean("infinite").value().unwrap_or(false);
    let seconds = hours.map(|hours| (hours * 3600.0).round() as u64);
    if seconds == Some(0) {
        fields.wrong("hours", "must be more than 0");
    }
    if infinite == hours.is_some() {
        fields.wrong("hours", "either hours or infinite must be given, and not both");
    }
    fields.finish()?;
    let command = ExtendDeployment { id, precondition: write.precondition.clone(), by_s: seconds };
    let member = state.member()?;
    let outcome = write.propose(&member, &body, command::Body::ExtendDeployment(command)).await?;
    let extended = entry(&member.consensus.local(), outcome)?;
    Ok(tagged(extended.mod_index, Json(extended)))
}

/// Whether nothing may take its place on the GPU.
#[derive(Debug, ToSchema)]
#[expect(dead_code, reason = "the description of the body; it is read field by field")]
struct Pin {
    pinned: bool,
}

/// Protects a deployment from making room for others, or no longer.
#[utoipa::path(post, path = "/deployments/{deployment_id}/pin", tag = "deployments", request_body = Pin,
    params(("deployment_id" = u64, Path, description = "number"), WriteParams),
    responses((status = 200, body = DeploymentEntry), (status = 401, body = ErrorBody), (status = 403, body = ErrorBody),
        (status = 404, body = ErrorBody), (status = 409, body = ErrorBody), (status = 412, body = ErrorBody),
        (status = 422, body = ErrorBody), (status = 504, body = ErrorBody)))]
async fn pin(
    State(state): State<ApiState>,
    Path(id): Path<String>,
    write: Write,
    Body(body): Body,
) -> Result<Response, ApiError> {
    let id = number("id", &id)?;
    let mut fields = Fields::parse(&body)?;
    let pinned = fields.boolean("pinned").value();
    if pinned.is_none() {
        fields.required("pinned");
    }
    fields.finish()?;
    let pinned = pinned.unwrap_or_default();
    let command = PinDeployment { id, precondition: write.precondition.clone(), pinned };
    let member = state.member()?;
    let outcome = write.propose(&member, &body, command::Body::PinDeployment(command)).await?;
    let changed = entry(&member.consensus.local(), outcome)?;
    Ok(tagged(changed.mod_index, Json(changed)))
}

/// Which name is meant.
#[derive(Debug, Default, Deserialize, utoipa::IntoParams)]
#[into_params(parameter_in = Query)]
struct NameQuery {
    /// The name.
    #[serde(default)]
    name: String,
    /// A deployment whose own names do not count.
    exclude_id: Option<String>,
}

/// Whether a name can be taken.
#[derive(Debug, Serialize, ToSchema)]
struct NameCheck {
    available: bool,
    /// The deployment that has it.
    #[serde(skip_serializing_if = "Option::is_none")]
    conflict_id: Option<u64>,
    /// The model of that deployment, or of the registry.
    #[serde(skip_serializing_if = "Option::is_none")]
    conflict_model: Option<String>,
    /// A name like it that is free.
    #[serde(skip_serializing_if = "Option::is_none")]
    suggestion: Option<String>,
}

const AVAILABLE: NameCheck = NameCheck { available: true, conflict_id: None, conflict_model: None, suggestion: None };

fn check_name(view: &View, name: &str, exclude: Option<u64>) -> Result<NameCheck, ApiError> {
    let holder = |name: &str| -> Result<_, ApiError> {
        let holder = view.name_holder(name)?;
        Ok(holder.filter(|holder| !matches!(holder, name_claim::Holder::Deployment(id) if Some(*id) == exclude)))
    };
    let (conflict_id, conflict_model) = match holder(name)? {
        None => return Ok(AVAILABLE),
        Some(name_claim::Holder::Deployment(id)) => {
            let model = view.deployment(DeploymentId(id))?.and_then(|stored| stored.row.spec);
            (Some(id), model.map(|spec| spec.model_name))
        }
        Some(name_claim::Holder::Model(_)) => {
            (None, view.find_model(name)?.and_then(|stored| stored.row.fields).and_then(|fields| fields.name))
        }
    };
    let mut suggestion = None;
    for number in 2..SUGGESTIONS {
        let other = format!("{name}-{number}");
        if holder(&name_key(&other))?.is_none() {
            suggestion = Some(other);
            break;
        }
    }
    Ok(NameCheck { available: false, conflict_id, conflict_model, suggestion })
}

/// Whether a name can be served, and one like it if not. It may be taken by the time it is used.
#[utoipa::path(get, path = "/deployments/served-name/check", tag = "deployments", params(NameQuery, ReadParams),
    responses((status = 200, body = NameCheck), (status = 401, body = ErrorBody), (status = 422, body = ErrorBody)))]
async fn served_name(Query(query): Query<NameQuery>, read: Read) -> Result<Response, ApiError> {
    let exclude = query.exclude_id.as_deref().map(|id| number("exclude_id", id)).transpose()?;
    let name = query.name.trim();
    if name.is_empty() {
        return Ok(read.answer(Json(AVAILABLE)).into_response());
    }
    let found = check_name(&read.view, name, exclude.filter(|id| *id <= MAX_INTEGER))?;
    Ok(read.answer(Json(found)))
}

/// The routes.
pub(super) fn router() -> OpenApiRouter<ApiState> {
    OpenApiRouter::new()
        .routes(routes!(start))
        .routes(routes!(from_manifest))
        .routes(routes!(served_name))
        .routes(routes!(stop))
        .routes(routes!(restart))
        .routes(routes!(extend))
        .routes(routes!(pin))
}
