//! `/api/models`: the model registry of seed 000, with the fields of seed 002.

use axum::Json;
use axum::extract::State;
use axum::response::Response;
use http::StatusCode;
use muster_cluster::ids::{ModelId, NodeId};
use muster_cluster::rows::{
    CreateModel, DeleteModel, Model, ModelAnswer, ModelField, ModelFields, UpdateModel, answer::Outcome, command,
};
use muster_cluster::sealing::SecretText;
use muster_cluster::state::{Stored, View, api_key_name, is_id, litellm_base, name_key};
use serde::Serialize;
use serde_json::{Map, Value};
use unicode_normalization::UnicodeNormalization;
use url::{Host, Url};
use utoipa::ToSchema;
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;
use uuid::Uuid;

use crate::error::{ApiError, ErrorBody};
use crate::fields::{Fields, Given, MAX_INTEGER};
use crate::request::{Body, Page, Paged, Path, Read, Write, tagged, time, unexpected};
use crate::state::{ApiState, Member};
use crate::upstream::check_url;

/// Providers whose address is known; every other needs a `baseUrl`.
const KNOWN_ADDRESS: [&str; 17] = [
    "openai",
    "anthropic",
    "google",
    "gemini",
    "openrouter",
    "grok",
    "xai",
    "deepseek",
    "mistral",
    "voyage",
    "ollama",
    "litellm",
    "claude-code",
    "gemini-cli",
    "codex-cli",
    "claude-agent-sdk",
    "openai-agent-sdk",
];

/// Words that stand in the place of a model's name in paths.
const RESERVED: [&str; 14] = [
    "test",
    "health",
    "routing",
    "usage",
    "cli",
    "providers",
    "custom",
    "presets",
    "litellm",
    "install",
    "recommend",
    "discover",
    "default",
    "realms",
];

/// Fields that only this side sets. A caller may send them back as it got them.
const OURS: [&str; 11] = [
    "id",
    "litellmModelName",
    "hasApiKey",
    "apiKeySet",
    "createdAt",
    "updatedAt",
    "createdBy",
    "createdIndex",
    "modIndex",
    "model",
    "warnings",
];

const NAME_LIMIT: usize = 200;
const PROVIDER_LIMIT: usize = 64;
const TEXT_LIMIT: usize = 2048;
const DESCRIPTION_LIMIT: usize = 8192;

/// A model of the registry.
#[derive(Clone, Debug, Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct ModelEntry {
    /// UUID.
    id: String,
    /// What people call it. Unique without regard to case.
    name: String,
    description: Option<String>,
    #[schema(example = "openai-compatible")]
    provider: String,
    /// What the provider calls it.
    model_id: String,
    /// Where it is reached; null for providers with a known address.
    base_url: Option<String>,
    /// The same as `baseUrl`.
    endpoint: Option<String>,
    /// `active` or `inactive`.
    #[schema(example = "active")]
    status: &'static str,
    /// The same as `status == "active"`.
    is_enabled: bool,
    /// `{provider}/{slug}`, made once and never changed.
    litellm_model_name: String,
    /// Whether a key is kept for it. The key itself is never shown.
    has_api_key: bool,
    /// The name of a secret, or `env:NAME`.
    api_key_ref: Option<String>,
    max_tokens: u64,
    context_window: u64,
    supports_vision: bool,
    supports_tools: bool,
    supports_streaming: bool,
    default_temperature: f64,
    default_top_p: f64,
    default_max_tokens: u64,
    priority: i64,
    /// USD per million tokens; null when it is not known.
    price_per_million_input_tokens: Option<f64>,
    price_per_million_output_tokens: Option<f64>,
    price_per_million_cached_input_tokens: Option<f64>,
    /// The same as `pricePerMillionInputTokens`.
    cost_per_input_token: Option<f64>,
    /// The same as `pricePerMillionOutputTokens`.
    cost_per_output_token: Option<f64>,
    #[schema(value_type = Object)]
    metadata: Map<String, Value>,
    /// The node whose loopback the `baseUrl` means.
    node_id: Option<u64>,
    created_at: String,
    updated_at: String,
    created_by: String,
    created_index: u64,
    /// The version: what `ETag` says, for `If-Match`.
    mod_index: u64,
}

impl ModelEntry {
    fn of(stored: Stored<Model>) -> Self {
        let Stored { row, mod_index } = stored;
        let fields = row.fields.unwrap_or_default();
        let active = fields.active.unwrap_or(true);
        let metadata = fields.metadata.as_deref().and_then(|text| serde_json::from_str(text).ok());
        Self {
            id: ModelId::from_slice(&row.id).map(|id| id.to_string()).unwrap_or_default(),
            name: fields.name.unwrap_or_default(),
            description: fields.description,
            provider: fields.provider.unwrap_or_default(),
            model_id: fields.model_id.unwrap_or_default(),
            base_url: fields.base_url.clone(),
            endpoint: fields.base_url,
            status: if active { "active" } else { "inactive" },
            is_enabled: active,
            litellm_model_name: row.litellm_name,
            has_api_key: row.has_api_key,
            api_key_ref: fields.api_key_ref,
            max_tokens: fields.max_tokens.unwrap_or(4096),
            context_window: fields.context_window.unwrap_or(128_000),
            supports_vision: fields.supports_vision.unwrap_or(false),
            supports_tools: fields.supports_tools.unwrap_or(true),
            supports_streaming: fields.supports_streaming.unwrap_or(true),
            default_temperature: fields.default_temperature.unwrap_or(0.7),
            default_top_p: fields.default_top_p.unwrap_or(1.0),
            default_max_tokens: fields.default_max_tokens.unwrap_or(4096),
            priority: fields.priority.unwrap_or(0),
            price_per_million_input_tokens: fields.price_input,
            price_per_million_output_tokens: fields.price_output,
            price_per_million_cached_input_tokens: fields.price_cached_input,
            cost_per_input_token: fields.price_input,
            cost_per_output_token: fields.price_output,
            metadata: metadata.unwrap_or_default(),
            node_id: fields.node_id,
            created_at: time(row.created_ms),
            updated_at: time(row.updated_ms),
            created_by: row.created_by,
            created_index: row.created_index,
            mod_index,
        }
    }
}

/// What a caller may say of a model. For a change every field is optional. `null` takes back the key and what may be null in
/// the answer; `defaultTemperature` and `defaultTopP` go back to their defaults. No other field may be null.
#[derive(Debug, ToSchema)]
#[schema(rename_all = "camelCase")]
#[expect(dead_code, reason = "the description of the body; it is read field by field")]
pub struct ModelInput {
    /// Required for a new model. At most 200 characters.
    #[schema(example = "Llama 3 (local)")]
    name: String,
    /// Required for a new model.
    #[schema(example = "openai-compatible")]
    provider: String,
    /// Required for a new model: what the provider calls it.
    #[schema(example = "llama3-8b")]
    model_id: String,
    /// Required for providers without a known address. Include `/v1` if the backend needs it.
    #[schema(example = "http://ollama:11434/v1")]
    base_url: Option<String>,
    /// Another name of `baseUrl`.
    endpoint: Option<String>,
    description: Option<String>,
    /// `active` or `inactive`.
    #[schema(nullable = false)]
    status: Option<String>,
    /// Another view of `status`.
    #[schema(nullable = false)]
    is_enabled: Option<bool>,
    /// The provider's key. It is sealed, and never shown again.
    api_key: Option<String>,
    /// The name of a secret, or `env:NAME`.
    api_key_ref: Option<String>,
    #[schema(nullable = false)]
    max_tokens: Option<u64>,
    #[schema(nullable = false)]
    context_window: Option<u64>,
    #[schema(nullable = false)]
    supports_vision: Option<bool>,
    #[schema(nullable = false)]
    supports_tools: Option<bool>,
    #[schema(nullable = false)]
    supports_streaming: Option<bool>,
    default_temperature: Option<f64>,
    default_top_p: Option<f64>,
    #[schema(nullable = false)]
    default_max_tokens: Option<u64>,
    #[schema(nullable = false)]
    priority: Option<i64>,
    /// USD per million tokens. `costPerInputToken` is another name.
    price_per_million_input_tokens: Option<f64>,
    /// USD per million tokens. `costPerOutputToken` is another name.
    price_per_million_output_tokens: Option<f64>,
    price_per_million_cached_input_tokens: Option<f64>,
    #[schema(value_type = Option<Object>)]
    metadata: Option<Value>,
    /// The node whose loopback the `baseUrl` means.
    node_id: Option<u64>,
}

/// What a request says of a model.
struct Draft {
    fields: ModelFields,
    clear: Vec<ModelField>,
    api_key: Given<String>,
}

/// Reads the fields that a new model and a change have in common.
fn read(fields: &mut Fields) -> Result<Draft, ApiError> {
    fields.ignore(&OURS);
    let mut clear = Vec::new();
    let active = active(fields)?;
    let base_url = fields.synonym(("baseUrl", "endpoint"), |fields, field| fields.text(field))?;
    if let Given::Value(url) = &base_url
        && let Err(why) = check_url(url)
    {
        fields.wrong("baseUrl", why);
    }
    let price = |fields: &mut Fields, field: &str| fields.number(field, 0.0, 1e9);
    let price_input = fields.synonym(("pricePerMillionInputTokens", "costPerInputToken"), price)?;
    let price_output = fields.synonym(("pricePerMillionOutputTokens", "costPerOutputToken"), price)?;
    let price_cached = price(fields, "pricePerMillionCachedInputTokens");
    let mut optional = |given: bool, field| {
        if given {
            clear.push(field);
        }
    };
    optional(base_url.is_null(), ModelField::BaseUrl);
    optional(price_input.is_null(), ModelField::PriceInput);
    optional(price_output.is_null(), ModelField::PriceOutput);
    optional(price_cached.is_null(), ModelField::PriceCachedInput);
    let description = fields.text("description");
    let description = checked(fields, "description", DESCRIPTION_LIMIT, Lines::Many, description);
    // As in the product that the seed describes, a blank description is none.
    optional(description.is_null() || description == Given::Value(String::new()), ModelField::Description);
    let api_key_ref = text(fields, "apiKeyRef", TEXT_LIMIT);
    optional(api_key_ref.is_null() || api_key_ref == Given::Value(String::new()), ModelField::ApiKeyRef);
    let temperature = fields.number("defaultTemperature", 0.0, 2.0);
    optional(temperature.is_null(), ModelField::DefaultTemperature);
    let top_p = fields.number("defaultTopP", 0.0, 1.0);
    optional(top_p.is_null(), ModelField::DefaultTopP);
    let metadata = fields.object("metadata");
    optional(metadata.is_null(), ModelField::Metadata);
    let node_id = fields.integer("nodeId", 1, MAX_INTEGER);
    optional(node_id.is_null(), ModelField::NodeId);
    let not_blank = |text: Option<String>| text.filter(|text| !text.is_empty());
    Ok(Draft {
        fields: ModelFields {
            name: name(fields),
            description: not_blank(description.value()),
            provider: provider(fields),
            model_id: required_text(fields, "modelId", TEXT_LIMIT),
            base_url: base_url.value(),
            active,
            api_key_ref: not_blank(api_key_ref.value()),
            max_tokens: count(fields, "maxTokens"),
            context_window: count(fields, "contextWindow"),
            supports_vision: boolean(fields, "supportsVision"),
            supports_tools: boolean(fields, "supportsTools"),
            supports_streaming: boolean(fields, "supportsStreaming"),
            default_temperature: temperature.value(),
            default_top_p: top_p.value(),
            default_max_tokens: count(fields, "defaultMaxTokens"),
            priority: priority(fields),
            price_input: price_input.value(),
            price_output: price_output.value(),
            price_cached_input: price_cached.value(),
            metadata: metadata.value().map(|map| Value::Object(map).to_string()),
            node_id: node_id.value(),
        },
        clear,
        api_key: text(fields, "apiKey", TEXT_LIMIT),
    })
}

/// A text of at most so many characters. In one of a single line there are no control characters.
fn checked(fields: &mut Fields, field: &str, limit: usize, lines: Lines, given: Given<String>) -> Given<String> {
    if let Given::Value(text) = &given {
        if text.chars().count() > limit {
            fields.wrong(field, format!("must have at most {limit} characters"));
        } else if lines == Lines::One && text.chars().any(char::is_control) {
            fields.wrong(field, "must not contain control characters");
        }
    }
    given
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Lines {
    One,
    Many,
}

/// An optional text of one line.
fn text(fields: &mut Fields, field: &str, limit: usize) -> Given<String> {
    let given = fields.text(field);
    checked(fields, field, limit, Lines::One, given)
}

/// A text of one line that may be left out of a change, but not be empty. It is kept in the normal form, in which equal texts
/// have equal bytes.
fn required_text(fields: &mut Fields, field: &str, limit: usize) -> Option<String> {
    let given = fields.text(field).map(|text| normal(&text));
    let given = checked(fields, field, limit, Lines::One, given);
    let text = fields.not_null(field, given)?;
    if text.is_empty() {
        fields.wrong(field, "must not be blank");
    }
    Some(text)
}

fn normal(text: &str) -> String {
    text.nfc().collect()
}

fn boolean(fields: &mut Fields, field: &str) -> Option<bool> {
    let given = fields.boolean(field);
    fields.not_null(field, given)
}

fn count(fields: &mut Fields, field: &str) -> Option<u64> {
    let given = fields.integer(field, 1, MAX_INTEGER);
    fields.not_null(field, given)
}

fn priority(fields: &mut Fields) -> Option<i64> {
    let given = fields.signed("priority", -1_000_000, 1_000_000);
    fields.not_null("priority", given)
}

/// Whether it is in use, from its two views.
fn active(fields: &mut Fields) -> Result<Option<bool>, ApiError> {
    let status = fields.word("status", &["active", "inactive"]).map(|word| word == "active");
    let status = fields.not_null("status", status);
    match (status, boolean(fields, "isEnabled")) {
        (Some(status), Some(enabled)) if status != enabled => {
            Err(ApiError::Senseless("status and isEnabled say different things".to_owned()))
        }
        (status, enabled) => Ok(status.or(enabled)),
    }
}

fn name(fields: &mut Fields) -> Option<String> {
    let name = required_text(fields, "name", NAME_LIMIT)?;
    if is_id(&name) {
        fields.wrong("name", "must not look like an id");
    } else if RESERVED.contains(&name_key(&name).as_str()) {
        fields.wrong("name", "is a word of this API");
    }
    Some(name)
}

fn provider(fields: &mut Fields) -> Option<String> {
    let provider = required_text(fields, "provider", PROVIDER_LIMIT)?;
    if provider.contains('/') {
        fields.wrong("provider", "must not contain a slash");
    }
    Some(provider)
}

fn is_loopback(text: &str) -> bool {
    match Url::parse(text).ok().as_ref().and_then(Url::host) {
        Some(Host::Ipv4(address)) => address.is_loopback(),
        Some(Host::Ipv6(address)) => address.is_loopback(),
        Some(Host::Domain(domain)) => domain == "localhost" || domain.ends_with(".localhost"),
        None => false,
    }
}

fn needs_base_url(provider: &str) -> bool {
    !KNOWN_ADDRESS.contains(&provider)
}

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
        Some(key) => Ok(Some(member.keyring.seal(&api_key_name(id), &SecretText::new(key))?)),
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

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn loopback_is_recognised() {
        for (url, expected) in [
            ("http://127.0.0.1:1/", true),
            ("http://127.8.8.8/", true),
            ("http://localhost:1/v1", true),
            ("http://[::1]/", true),
            ("http://10.0.0.1/", false),
            ("http://localhost.example.com/", false),
        ] {
            assert_eq!(is_loopback(url), expected, "{url}");
        }
    }

    #[test]
    fn two_views_of_one_field_may_not_disagree() {
        let parse =
            |text: &str| read(&mut Fields::parse(text.as_bytes()).expect("an object")).map(|draft| draft.fields);
        let fields = parse(r#"{"status": "inactive", "isEnabled": false, "endpoint": "http://u/v1"}"#).expect("agrees");
        assert_eq!((fields.active, fields.base_url.as_deref()), (Some(false), Some("http://u/v1")));
        assert!(matches!(parse(r#"{"status": "active", "isEnabled": false}"#), Err(ApiError::Senseless(_))));
        assert!(matches!(parse(r#"{"baseUrl": "http://a", "endpoint": "http://b"}"#), Err(ApiError::Senseless(_))));
        assert!(matches!(
            parse(r#"{"pricePerMillionInputTokens": 1, "costPerInputToken": 2}"#),
            Err(ApiError::Senseless(_))
        ));
    }

    fn wrong(body: &Value) -> Vec<(String, String)> {
        let mut fields = Fields::parse(body.to_string().as_bytes()).expect("an object");
        let _ = read(&mut fields).map_err(|error| panic!("{error}"));
        match fields.finish() {
            Ok(()) => Vec::new(),
            Err(ApiError::Invalid(errors)) => errors.into_iter().map(|error| (error.field, error.why)).collect(),
            Err(other) => panic!("{other}"),
        }
    }

    #[test]
    fn null_is_refused_where_it_means_nothing() {
        for field in [
            "name",
            "provider",
            "modelId",
            "status",
            "isEnabled",
            "maxTokens",
            "contextWindow",
            "supportsVision",
            "supportsTools",
            "supportsStreaming",
            "defaultMaxTokens",
            "priority",
        ] {
            let expected = (field.to_owned(), "must not be null".to_owned());
            assert_eq!(wrong(&json!({ field: null })), [expected], "{field}");
        }
        for field in ["description", "baseUrl", "apiKey", "apiKeyRef", "defaultTemperature", "metadata", "nodeId"] {
            assert_eq!(wrong(&json!({ field: null })), [], "{field}");
        }
    }

    #[test]
    fn what_goes_into_headers_has_one_line() {
        for field in ["name", "provider", "modelId", "apiKey", "apiKeyRef"] {
            assert_eq!(wrong(&json!({ field: "a\r\nb" })).len(), 1, "{field}");
        }
        assert_eq!(wrong(&json!({ "baseUrl": "http://a/\nb" })).len(), 1);
        assert_eq!(wrong(&json!({ "description": "a\nb" })), []);
    }

    #[test]
    fn equal_names_have_equal_bytes() {
        let mut fields =
            Fields::parse("{\"name\": \"Cafe\u{301}\", \"provider\": \"e\u{301}\"}".as_bytes()).expect("parses");
        let draft = read(&mut fields).expect("a draft");
        assert_eq!(draft.fields.name(), "Caf\u{e9}");
        assert_eq!(draft.fields.provider(), "\u{e9}");
    }
}
