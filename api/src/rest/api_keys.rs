//! `/api/api-keys`: the keys that call models, as seed 004 shows them. They are credentials like all others; what is made here
//! is seen at `/api/credentials` too. For administrators.

use axum::Json;
use axum::extract::State;
use axum::response::{IntoResponse, Response};
use http::StatusCode;
use muster_cluster::ids::CredentialId;
use muster_cluster::rows::{
    Credential, CredentialFields, DeleteCredential, DeploymentScope, GatewayKey, ScopeChange, TemporaryKey,
    UpdateCredential, command, credential_fields::Kind,
};
use muster_cluster::state::{Damaged, Stored, has_expired, scope};
use serde::Serialize;
use utoipa::ToSchema;
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

use super::credentials::{answered, label, make, number};
use crate::auth::{Principal, Role};
use crate::error::{ApiError, ErrorBody};
use crate::fields::{Fields, Given, MAX_INTEGER};
use crate::request::{Body, Page, Paged, Path, Read, Write, tagged, time};
use crate::state::{ApiState, Member};

/// The longest life of a temporary key, in seconds: a day.
const TTL_LIMIT: u64 = 86_400;

/// How many deployments a key can name: a record has 16 KiB.
const SCOPE_LIMIT: usize = 1000;

/// A key that calls models, without its value.
#[derive(Debug, Serialize, ToSchema)]
struct ApiKeyRead {
    id: u64,
    label: String,
    /// The first characters of the key.
    prefix: String,
    created_at: String,
    /// As far as the nodes have told: within a minute, and to the second. Null: never.
    last_used_at: Option<String>,
    /// Null: it does not expire.
    expires_at: Option<String>,
    /// The deployments that it may use, and nothing else; null: everything.
    allowed_deployment_ids: Option<Vec<u64>>,
    #[serde(rename = "createdIndex")]
    created_index: u64,
    /// The version: what `ETag` says, for `If-Match`.
    #[serde(rename = "modIndex")]
    mod_index: u64,
}

impl ApiKeyRead {
    /// `None` if it is a credential of another kind.
    fn of(id: u64, Stored { row, mod_index }: Stored<Credential>, last_use: Option<u64>) -> Option<Self> {
        let allowed = scope(&row)?.map(|scope| scope.deployments.clone());
        let fields = row.fields.unwrap_or_default();
        Some(Self {
            id,
            label: fields.label,
            prefix: fields.prefix,
            created_at: time(row.created_ms),
            last_used_at: last_use.map(time),
            expires_at: row.expires_ms.map(time),
            allowed_deployment_ids: allowed,
            created_index: row.created_index,
            mod_index,
        })
    }
}

/// A new key; its value is shown this once.
#[derive(Debug, Serialize, ToSchema)]
struct NewApiKey {
    #[serde(flatten)]
    entry: ApiKeyRead,
    key: String,
}

/// A new key.
#[derive(Debug, ToSchema)]
#[expect(dead_code, reason = "the description of the body; it is read field by field")]
struct ApiKeyInput {
    /// What it is for. 1 to 128 characters.
    #[schema(example = "a notebook")]
    label: String,
    /// How long it lives, 1 to 86400 seconds; left out: until it is deleted.
    ttl_seconds: Option<u64>,
    /// The deployments that it may use, and nothing else; an empty list allows nothing, null everything. Required with
    /// `ttl_seconds`. Whether they exist is not looked at.
    deployment_ids: Option<Vec<u64>>,
}

/// A change of a key. What is left out stays as it is.
#[derive(Debug, ToSchema)]
#[expect(dead_code, reason = "the description of the body; it is read field by field")]
struct ApiKeyPatch {
    #[schema(nullable = false)]
    label: Option<String>,
    /// The deployments that it may use from now on; null: everything.
    deployment_ids: Option<Vec<u64>>,
}

/// The deployments that a key may use, each once. Null means everything.
fn deployments(fields: &mut Fields) -> Given<DeploymentScope> {
    fields.numbers("deployment_ids", 1, MAX_INTEGER, SCOPE_LIMIT).map(|mut given| {
        let mut seen = std::collections::HashSet::new();
        given.retain(|id| seen.insert(*id));
        DeploymentScope { deployments: given }
    })
}

/// Reads a new key, but for its value.
fn read(fields: &mut Fields) -> CredentialFields {
    let label = label(fields);
    if label.is_none() {
        fields.required("label");
    }
    let ttl = fields.integer("ttl_seconds", 1, TTL_LIMIT).value();
    let scope = deployments(fields).value();
    if ttl.is_some() && scope.is_none() {
        fields.required("deployment_ids");
    }
    let kind = match ttl {
        Some(_) => Kind::Temporary(TemporaryKey { scope }),
        None => Kind::Gateway(GatewayKey { scope }),
    };
    CredentialFields {
        label: label.unwrap_or_default(),
        ttl_ms: ttl.map(|seconds| seconds * 1000),
        kind: Some(kind),
        ..CredentialFields::default()
    }
}

fn missing(id: CredentialId) -> ApiError {
    ApiError::NotFound(format!("there is no API key {id}"))
}

/// Sees to it that this number belongs to a key that calls models and still lives. A number never comes to mean another
/// credential, and the kind of a credential never changes.
async fn check(member: &Member, id: CredentialId) -> Result<(), ApiError> {
    let view = member.consensus.linearizable().await?;
    let now = member.consensus.published().time()?;
    let found = view.credential(id)?.filter(|stored| scope(&stored.row).is_some() && !has_expired(&stored.row, now));
    found.map(|_| ()).ok_or_else(|| missing(id))
}

/// Every key that has not expired, newest first.
#[utoipa::path(get, path = "/api-keys", tag = "api-keys", params(super::ListParams, super::ReadParams),
    responses((status = 200, body = Vec<ApiKeyRead>), (status = 401, body = ErrorBody), (status = 403, body = ErrorBody)))]
async fn list(State(state): State<ApiState>, who: Principal, read: Read, page: Page) -> Result<Response, ApiError> {
    who.must_be(Role::Admin)?;
    let now = state.member()?.consensus.published().time()?;
    let mut all: Vec<_> = read.view.credentials(CredentialId(0)).collect::<Result<_, _>>()?;
    all.reverse();
    let before = page.after().unwrap_or(u64::MAX);
    let is_shown = |stored: &Stored<Credential>| scope(&stored.row).is_some() && !has_expired(&stored.row, now);
    let valid = all.into_iter().filter(|(id, stored)| id.0 < before && is_shown(stored));
    let (keys, link) = page.of(valid.map(|(id, stored)| (id.0, (id, stored)))).into_parts();
    let entry = |(id, stored): (CredentialId, _)| Ok(ApiKeyRead::of(id.0, stored, read.view.last_use(id)?));
    let keys: Vec<_> = keys.into_iter().filter_map(|key| entry(key).transpose()).collect::<Result<_, Damaged>>()?;
    Ok(Paged::<ApiKeyRead>::answer(link, read.answer(Json(keys))))
}

/// Makes a key: a permanent one, or with `ttl_seconds` a temporary one. Its value is shown this once.
#[utoipa::path(post, path = "/api-keys", tag = "api-keys", request_body = ApiKeyInput, params(super::WriteParams),
    responses((status = 201, body = NewApiKey), (status = 400, body = ErrorBody), (status = 403, body = ErrorBody),
        (status = 409, body = ErrorBody), (status = 422, body = ErrorBody), (status = 504, body = ErrorBody)))]
async fn create(State(state): State<ApiState>, write: Write, Body(body): Body) -> Result<Response, ApiError> {
    let mut fields = Fields::parse(&body)?;
    let new = read(&mut fields);
    fields.finish()?;
    let (id, stored, key) = make(&state.member()?, &write, &body, new).await?;
    let entry = ApiKeyRead::of(id, stored, None).ok_or_else(crate::request::unexpected)?;
    let (mod_index, key) = (entry.mod_index, key.reveal().to_owned());
    Ok(tagged(mod_index, (StatusCode::CREATED, Json(NewApiKey { entry, key }))))
}

/// Changes the label or the scope of a permanent key, at once and everywhere.
#[utoipa::path(patch, path = "/api-keys/{key_id}", tag = "api-keys", request_body = ApiKeyPatch,
    params(("key_id" = u64, Path, description = "number"), super::WriteParams),
    responses((status = 200, body = ApiKeyRead), (status = 400, body = ErrorBody), (status = 404, body = ErrorBody),
        (status = 409, body = ErrorBody), (status = 412, body = ErrorBody), (status = 422, body = ErrorBody),
        (status = 504, body = ErrorBody)))]
async fn patch(
    State(state): State<ApiState>,
    Path(id): Path<String>,
    write: Write,
    Body(body): Body,
) -> Result<Response, ApiError> {
    let id = number(&id)?;
    let mut fields = Fields::parse(&body)?;
    if fields.is_empty() {
        return Err(ApiError::Senseless("nothing is to be changed".to_owned()));
    }
    let label = label(&mut fields);
    // Whoever changes the label alone must not widen what the key may use: null does that, nothing else.
    let scope = match deployments(&mut fields) {
        Given::Absent => None,
        Given::Null => Some(ScopeChange { to: None }),
        Given::Value(scope) => Some(ScopeChange { to: Some(scope) }),
    };
    fields.finish()?;
    let member = state.member()?;
    let outcome = match write.first_answer(&member, &body).await? {
        Some(first) => first.outcome,
        None => {
            check(&member, id).await?;
            let command =
                UpdateCredential { id: id.0, precondition: write.precondition.clone(), label, role: None, scope };
            write.propose(&member, &body, command::Body::UpdateCredential(command)).await?
        }
    };
    let (id, stored) = answered(outcome)?;
    let last_use = member.consensus.local().last_use(CredentialId(id))?;
    let entry = ApiKeyRead::of(id, stored, last_use).ok_or_else(crate::request::unexpected)?;
    Ok(tagged(entry.mod_index, Json(entry)))
}

/// The same as PATCH.
#[utoipa::path(put, path = "/api-keys/{key_id}", tag = "api-keys", request_body = ApiKeyPatch,
    params(("key_id" = u64, Path, description = "number"), super::WriteParams),
    responses((status = 200, body = ApiKeyRead), (status = 404, body = ErrorBody), (status = 409, body = ErrorBody),
        (status = 422, body = ErrorBody)))]
async fn put(state: State<ApiState>, id: Path<String>, write: Write, body: Body) -> Result<Response, ApiError> {
    patch(state, id, write, body).await
}

/// Revokes a key, at once and everywhere.
#[utoipa::path(delete, path = "/api-keys/{key_id}", tag = "api-keys",
    params(("key_id" = u64, Path, description = "number"), super::WriteParams),
    responses((status = 204, description = "revoked"), (status = 404, body = ErrorBody), (status = 412, body = ErrorBody),
        (status = 504, body = ErrorBody)))]
async fn delete(State(state): State<ApiState>, Path(id): Path<String>, write: Write) -> Result<Response, ApiError> {
    let id = number(&id)?;
    let member = state.member()?;
    if write.first_answer(&member, &[]).await?.is_none() {
        check(&member, id).await?;
        let command = DeleteCredential { id: id.0, precondition: write.precondition.clone() };
        write.propose(&member, &[], command::Body::DeleteCredential(command)).await?;
    }
    Ok(StatusCode::NO_CONTENT.into_response())
}

/// The routes.
pub(super) fn router() -> OpenApiRouter<ApiState> {
    OpenApiRouter::new().routes(routes!(list, create)).routes(routes!(patch, put, delete))
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn read_all(body: &Value) -> Result<CredentialFields, Vec<String>> {
        let mut fields = Fields::parse(body.to_string().as_bytes()).expect("an object");
        let read = read(&mut fields);
        match fields.finish() {
            Ok(()) => Ok(read),
            Err(ApiError::Invalid(errors)) => Err(errors.into_iter().map(|error| error.field).collect()),
            Err(other) => panic!("{other}"),
        }
    }

    #[test]
    fn every_range_ends_where_the_seed_says() {
        let with =
            |label: &str, ttl: Value, ids: Value| json!({"label": label, "ttl_seconds": ttl, "deployment_ids": ids});
        let longest = "\u{1f600}".repeat(128);
        let many = |count: u64| json!((1..=count).collect::<Vec<_>>());
        for (body, expected) in [
            (json!({"label": "a"}), &[][..]),
            (with("a", Value::Null, Value::Null), &[]),
            (with(&longest, json!(1), json!([])), &[]),
            (with("a", json!(86_400), many(1000)), &[]),
            (with("a", Value::Null, json!([MAX_INTEGER])), &[]),
            (json!({}), &["label"]),
            (json!({"label": null}), &["label"]),
            (with("", json!(1), json!([1])), &["label"]),
            (with(&format!("{longest}x"), json!(1), json!([1])), &["label"]),
            (with("a", json!(0), json!([1])), &["ttl_seconds"]),
            (with("a", json!(86_401), json!([1])), &["ttl_seconds"]),
            (with("a", json!("60"), json!([1])), &["ttl_seconds"]),
            (with("a", json!(60), Value::Null), &["deployment_ids"]),
            (json!({"label": "a", "ttl_seconds": 60}), &["deployment_ids"]),
            (with("a", json!(60), json!("1")), &["deployment_ids"]),
            (with("a", json!(60), json!([1, "2"])), &["deployment_ids"]),
            (with("a", Value::Null, json!([-1])), &["deployment_ids"]),
            (with("a", Value::Null, json!([0])), &["deployment_ids"]),
            (with("a", Value::Null, json!([1.5])), &["deployment_ids"]),
            (with("a", Value::Null, json!([MAX_INTEGER + 1])), &["deployment_ids"]),
            (with("a", Value::Null, many(1001)), &["deployment_ids"]),
            (json!({"label": "a", "key": "sk-mine"}), &["key"]),
        ] {
            assert_eq!(read_all(&body).err().unwrap_or_default(), expected, "{body}");
        }
    }

    #[test]
    fn a_key_with_a_time_is_temporary_and_names_each_deployment_once() {
        let scope = Some(DeploymentScope { deployments: vec![3, 1] });
        let read = read_all(&json!({"label": "a", "ttl_seconds": 60, "deployment_ids": [3, 1, 3]})).expect("valid");
        assert_eq!((read.ttl_ms, read.kind), (Some(60_000), Some(Kind::Temporary(TemporaryKey { scope }))));
        let read = read_all(&json!({"label": "a", "deployment_ids": []})).expect("valid");
        let nothing = Some(DeploymentScope::default());
        assert_eq!((read.ttl_ms, read.kind), (None, Some(Kind::Gateway(GatewayKey { scope: nothing }))));
        let read = read_all(&json!({"label": "a", "deployment_ids": null})).expect("valid");
        assert_eq!(read.kind, Some(Kind::Gateway(GatewayKey { scope: None })), "everything");
    }
}
