//! `/api/credentials`: keys for people and programs. A key is shown once; only its hash is kept. For administrators.

use axum::Json;
use axum::extract::State;
use axum::response::Response;
use data_encoding::HEXLOWER;
use http::StatusCode;
use muster_cluster::ids::CredentialId;
use muster_cluster::node::{JoinToken, prefix};
use muster_cluster::rows::{
    ConsoleKey, CreateCredential, Credential, CredentialAnswer, CredentialFields, DeleteCredential, GatewayKey,
    JoinKey, Role as StoredRole, UpdateCredential, answer::Outcome, command, credential_fields::Kind,
};
use muster_cluster::sealing::{SecretText, generate_key};
use muster_cluster::state::{Stored, has_expired, key_hash, scope};
use serde::Serialize;
use utoipa::ToSchema;
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

use crate::auth::{Principal, Role};
use crate::error::{ApiError, ErrorBody};
use crate::fields::{Fields, Given};
use crate::request::{Body, Page, Paged, Path, Read, Write, tagged, time, unexpected};
use crate::state::{ApiState, Member};

pub(super) const LABEL_LIMIT: usize = 128;

/// How long a join token lives unless somebody says otherwise, in seconds.
const JOIN_TTL: u64 = 24 * 3600;

/// The longest life of a key that has an end: ten years, in seconds.
const TTL_LIMIT: u64 = 10 * 365 * 24 * 3600;

/// A credential, without its key.
#[derive(Debug, Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
struct CredentialEntry {
    id: u64,
    /// `console`, `gateway`, `temporary` or `join`.
    kind: &'static str,
    label: String,
    /// Of a console credential: `admin`, `operator` or `viewer`.
    role: Option<&'static str>,
    /// The first characters of the key.
    prefix: String,
    created_at: String,
    created_by: String,
    /// Null: it does not expire.
    expires_at: Option<String>,
    /// Of a key of the gateway: the deployments that it may use, and nothing else; null: everything.
    deployment_ids: Option<Vec<u64>>,
    /// Of a join token: how often it can still be used; null: as often as one likes.
    uses_left: Option<u32>,
    created_index: u64,
    /// The version: what `ETag` says, for `If-Match`.
    mod_index: u64,
}

fn stored_role(role: StoredRole) -> Option<&'static str> {
    match role {
        StoredRole::Admin => Some(Role::Admin.name()),
        StoredRole::Operator => Some(Role::Operator.name()),
        StoredRole::Viewer => Some(Role::Viewer.name()),
        StoredRole::Unspecified => None,
    }
}

impl CredentialEntry {
    fn of(id: u64, mod_index: u64, credential: Credential) -> Self {
        let deployment_ids = scope(&credential).flatten().map(|scope| scope.deployments.clone());
        let fields = credential.fields.unwrap_or_default();
        let (kind, role) = match &fields.kind {
            Some(Kind::Console(console)) => ("console", stored_role(console.role())),
            Some(Kind::Gateway(_)) => ("gateway", None),
            Some(Kind::Temporary(_)) => ("temporary", None),
            Some(Kind::Join(_)) => ("join", None),
            None => ("unknown", None),
        };
        let uses_left = match &fields.kind {
            Some(Kind::Join(join)) => join.uses_left,
            _ => None,
        };
        Self {
            id,
            kind,
            deployment_ids,
            uses_left,
            label: fields.label,
            role,
            prefix: fields.prefix,
            created_at: time(credential.created_ms),
            created_by: credential.created_by,
            expires_at: credential.expires_ms.map(time),
            created_index: credential.created_index,
            mod_index,
        }
    }

    fn answered(outcome: Outcome) -> Result<Self, ApiError> {
        let (id, stored) = answered(outcome)?;
        Ok(Self::of(id, stored.mod_index, stored.row))
    }
}

/// The credential that a command has made, changed or removed.
pub(super) fn answered(outcome: Outcome) -> Result<(u64, Stored<Credential>), ApiError> {
    match outcome {
        Outcome::Credential(CredentialAnswer { mod_index, id, credential: Some(row) }) => {
            Ok((id, Stored { row, mod_index }))
        }
        _ => Err(unexpected()),
    }
}

#[derive(Debug, Serialize, ToSchema)]
struct CredentialList {
    credentials: Vec<CredentialEntry>,
}

#[derive(Debug, Serialize, ToSchema)]
struct CredentialBody {
    credential: CredentialEntry,
}

/// A new credential and its key, which is shown this once.
#[derive(Debug, Serialize, ToSchema)]
struct NewCredential {
    credential: CredentialEntry,
    key: String,
}

#[derive(Debug, Serialize, ToSchema)]
struct Ok200 {
    ok: bool,
}

/// A new credential.
#[derive(Debug, ToSchema)]
#[schema(rename_all = "camelCase")]
#[expect(dead_code, reason = "the description of the body; it is read field by field")]
struct CredentialInput {
    /// `console`, `gateway`, or `join` for letting nodes in.
    #[schema(example = "console")]
    kind: String,
    /// What it is for. 1 to 128 characters.
    label: String,
    /// Required for `console`: `admin`, `operator` or `viewer`.
    role: Option<String>,
    /// How long it lives; left out: until it is deleted, and a join token for a day.
    ttl_seconds: Option<u64>,
    /// Of a join token: how many nodes can use it; left out: any number.
    uses: Option<u32>,
}

/// A change of a credential.
#[derive(Debug, ToSchema)]
#[expect(dead_code, reason = "the description of the body; it is read field by field")]
struct CredentialPatch {
    label: Option<String>,
    role: Option<String>,
}

pub(super) fn label(fields: &mut Fields) -> Option<String> {
    let given = fields.text("label");
    if given.is_null() {
        fields.wrong("label", "must be a string");
    }
    let label = given.value()?;
    let length = label.chars().count();
    if length == 0 || length > LABEL_LIMIT || label.chars().any(char::is_control) {
        fields.wrong("label", format!("must have 1 to {LABEL_LIMIT} characters, none of them control characters"));
    }
    Some(label)
}

fn role(fields: &mut Fields) -> Given<StoredRole> {
    fields.word("role", &["admin", "operator", "viewer"]).map(|word| match word {
        "admin" => StoredRole::Admin,
        "operator" => StoredRole::Operator,
        _ => StoredRole::Viewer,
    })
}

/// The name under which a new key is sealed for a repetition of the request.
fn answer_name(hash: &[u8]) -> String {
    format!("credential/{}/key", HEXLOWER.encode(hash))
}

pub(super) fn number(id: &str) -> Result<CredentialId, ApiError> {
    crate::request::number("id", id).map(CredentialId)
}

/// Every credential that has not expired.
#[utoipa::path(get, path = "/credentials", tag = "credentials", params(super::ListParams, super::ReadParams),
    responses((status = 200, body = CredentialList), (status = 401, body = ErrorBody), (status = 403, body = ErrorBody)))]
async fn list(State(state): State<ApiState>, who: Principal, read: Read, page: Page) -> Result<Response, ApiError> {
    who.must_be(Role::Admin)?;
    let now = state.member()?.consensus.published().time()?;
    let rest: Vec<_> = read.view.credentials(CredentialId(page.after().unwrap_or(0))).collect::<Result<_, _>>()?;
    let valid = rest.into_iter().filter(|(_, stored)| !has_expired(&stored.row, now));
    let entries = valid.map(|(id, stored)| (id.0, CredentialEntry::of(id.0, stored.mod_index, stored.row)));
    let (credentials, link) = page.of(entries).into_parts();
    Ok(Paged::<CredentialEntry>::answer(link, read.answer(Json(CredentialList { credentials }))))
}

/// Makes a credential. Its key is shown this once.
#[utoipa::path(post, path = "/credentials", tag = "credentials", request_body = CredentialInput, params(super::WriteParams),
    responses((status = 201, body = NewCredential), (status = 400, body = ErrorBody), (status = 403, body = ErrorBody),
        (status = 409, body = ErrorBody), (status = 422, body = ErrorBody), (status = 504, body = ErrorBody)))]
async fn create(State(state): State<ApiState>, write: Write, Body(body): Body) -> Result<Response, ApiError> {
    let mut fields = Fields::parse(&body)?;
    let kind = fields.word("kind", &["console", "gateway", "join"]).value();
    let (label, role) = (label(&mut fields), role(&mut fields).value());
    let ttl = fields.integer("ttlSeconds", 1, TTL_LIMIT).value();
    let uses = fields.integer("uses", 1, 1000).value().and_then(|uses| u32::try_from(uses).ok());
    if uses.is_some() && kind.is_some_and(|kind| kind != "join") {
        fields.wrong("uses", "is for join tokens");
    }
    if kind.is_none() {
        fields.required("kind");
    }
    if label.is_none() {
        fields.required("label");
    }
    let kind = match (kind, role) {
        (Some("gateway"), None) => Some(Kind::Gateway(GatewayKey::default())),
        (Some("join"), None) => Some(Kind::Join(JoinKey { uses_left: uses })),
        (Some("gateway" | "join"), Some(_)) => {
            fields.wrong("role", "is for console credentials");
            None
        }
        (_, Some(role)) => Some(Kind::Console(ConsoleKey { role: role.into() })),
        (Some(_), None) => {
            fields.required("role");
            None
        }
        (None, None) => None,
    };
    fields.finish()?;
    let joins = matches!(kind, Some(Kind::Join(_)));
    let member = state.member()?;
    let fields = CredentialFields {
        label: label.unwrap_or_default(),
        ttl_ms: ttl.or_else(|| joins.then_some(JOIN_TTL)).map(|seconds| seconds * 1000),
        kind,
        ..CredentialFields::default()
    };
    let (id, stored, key) = make(&member, &write, &body, fields).await?;
    let key = if joins { JoinToken::new(&member.replica.identity.ca_certificate, key).to_text() } else { key };
    let key = key.reveal().to_owned();
    let mod_index = stored.mod_index;
    let credential = CredentialEntry::of(id, mod_index, stored.row);
    Ok(tagged(mod_index, (StatusCode::CREATED, Json(NewCredential { credential, key }))))
}

/// Makes a credential with a new key, and returns both. Of a repetition it is the first one's key.
pub(super) async fn make(
    member: &Member,
    write: &Write,
    body: &[u8],
    fields: CredentialFields,
) -> Result<(u64, Stored<Credential>, SecretText), ApiError> {
    let key = generate_key()?;
    let hash = key_hash(key.reveal());
    let sealed = member.replica.keyring.seal(&answer_name(&hash), &key)?;
    let fields = CredentialFields { sha256: hash.to_vec().into(), prefix: prefix(key.reveal()), ..fields };
    let command = command::Body::CreateCredential(CreateCredential { fields: Some(fields) });
    let done = write.propose_with_secret(member, body, command, Some(sealed)).await?;
    let (id, stored) = answered(done.outcome)?;
    let made = stored.row.fields.as_ref().map(|fields| fields.sha256.clone()).unwrap_or_default();
    let key = match done.first_secret {
        Some(sealed) => member.replica.keyring.open(&answer_name(&made), &sealed)?,
        None if made == hash.as_slice() => key,
        None => return Err(ApiError::AnswerGone("the credential was made; its key is no longer kept".to_owned())),
    };
    Ok((id, stored, key))
}

/// One credential.
#[utoipa::path(get, path = "/credentials/{id}", tag = "credentials",
    params(("id" = u64, Path, description = "number"), super::ReadParams),
    responses((status = 200, body = CredentialBody), (status = 403, body = ErrorBody), (status = 404, body = ErrorBody)))]
async fn get(Path(id): Path<String>, who: Principal, read: Read) -> Result<Response, ApiError> {
    who.must_be(Role::Admin)?;
    let id = number(&id)?;
    let missing = || ApiError::NotFound(format!("there is no credential {id}"));
    let stored = read.view.credential(id)?.ok_or_else(missing)?;
    let credential = CredentialEntry::of(id.0, stored.mod_index, stored.row);
    Ok(read.answer(tagged(credential.mod_index, Json(CredentialBody { credential }))))
}

/// Changes label or role, at once and everywhere.
#[utoipa::path(patch, path = "/credentials/{id}", tag = "credentials", request_body = CredentialPatch,
    params(("id" = u64, Path, description = "number"), super::WriteParams),
    responses((status = 200, body = CredentialBody), (status = 404, body = ErrorBody), (status = 409, body = ErrorBody),
        (status = 412, body = ErrorBody), (status = 422, body = ErrorBody)))]
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
    let (label, role) = (label(&mut fields), role(&mut fields));
    if role.is_null() {
        fields.wrong("role", "must not be null");
    }
    fields.finish()?;
    let command = UpdateCredential {
        id: id.0,
        precondition: write.precondition.clone(),
        label,
        role: role.value().map(i32::from),
        scope: None,
    };
    let outcome = write.propose(&state.member()?, &body, command::Body::UpdateCredential(command)).await?;
    let credential = CredentialEntry::answered(outcome)?;
    Ok(tagged(credential.mod_index, Json(CredentialBody { credential })))
}

/// The same as PATCH.
#[utoipa::path(put, path = "/credentials/{id}", tag = "credentials", request_body = CredentialPatch,
    params(("id" = u64, Path, description = "number"), super::WriteParams),
    responses((status = 200, body = CredentialBody), (status = 404, body = ErrorBody)))]
async fn put(state: State<ApiState>, id: Path<String>, write: Write, body: Body) -> Result<Response, ApiError> {
    patch(state, id, write, body).await
}

/// Revokes a credential, at once and everywhere.
#[utoipa::path(delete, path = "/credentials/{id}", tag = "credentials",
    params(("id" = u64, Path, description = "number"), super::WriteParams),
    responses((status = 200, body = Ok200), (status = 404, body = ErrorBody), (status = 412, body = ErrorBody)))]
async fn delete(State(state): State<ApiState>, Path(id): Path<String>, write: Write) -> Result<Response, ApiError> {
    let id = number(&id)?;
    let command = DeleteCredential { id: id.0, precondition: write.precondition.clone() };
    write.propose(&state.member()?, &[], command::Body::DeleteCredential(command)).await?;
    Ok(axum::response::IntoResponse::into_response(Json(Ok200 { ok: true })))
}

/// The routes.
pub(super) fn router() -> OpenApiRouter<ApiState> {
    OpenApiRouter::new().routes(routes!(list, create)).routes(routes!(get, patch, put, delete))
}
