//! `/api/configs`: parameters of deployments that were saved under a name, to be used again (seed 004).

use axum::Json;
use axum::extract::State;
use axum::response::Response;
use http::StatusCode;
use muster_cluster::rows::{Config, ConfigAnswer, CreateConfig, DeleteConfig, answer::Outcome, command};
use muster_cluster::state::{Stored, name_key};
use serde::Serialize;
use serde_json::Value;
use unicode_normalization::UnicodeNormalization;
use utoipa::ToSchema;
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

use crate::error::{ApiError, ErrorBody};
use crate::fields::Fields;
use crate::request::{Body, Page, Paged, Path, Read, Write, number, tagged, time, unexpected};
use crate::state::ApiState;

const NAME_LIMIT: usize = 255;

/// A saved configuration.
#[derive(Debug, Serialize, ToSchema)]
struct ConfigRead {
    /// Its number; never given to another.
    id: u64,
    name: String,
    /// What was saved, as it was given.
    #[schema(value_type = Object)]
    payload: Value,
    created_at: String,
    #[serde(rename = "createdBy")]
    created_by: String,
    #[serde(rename = "createdIndex")]
    created_index: u64,
    /// The version: what `ETag` says, for `If-Match`.
    #[serde(rename = "modIndex")]
    mod_index: u64,
}

impl ConfigRead {
    fn of(Stored { row, mod_index }: Stored<Config>) -> Result<Self, ApiError> {
        let payload = serde_json::from_str(&row.payload);
        Ok(Self {
            id: row.id,
            name: row.name,
            payload: payload.map_err(|error| ApiError::Internal(format!("configuration {}: {error}", row.id)))?,
            created_at: time(row.created_ms),
            created_by: row.created_by,
            created_index: row.created_index,
            mod_index,
        })
    }
}

/// A configuration to be saved.
#[derive(Debug, ToSchema)]
#[expect(dead_code, reason = "the description of the body; it is read field by field")]
struct ConfigInput {
    /// 1 to 255 characters. No two configurations have the same, and case makes no difference.
    #[schema(example = "llama on one GPU")]
    name: String,
    /// Any object that fits into a record of 16 KiB. It is shown to everybody who may read: no place for a secret.
    #[schema(value_type = Object)]
    payload: Value,
}

#[derive(Debug, Serialize, ToSchema)]
struct Deleted {
    /// `deleted`.
    status: &'static str,
}

/// The name and the payload, as JSON.
fn read(fields: &mut Fields) -> (Option<String>, Option<String>) {
    let name = fields.text("name");
    let name = fields.not_null("name", name).map(|name| name.nfc().collect::<String>());
    match &name {
        Some(name) => {
            let length = name.chars().count();
            if length == 0 || length > NAME_LIMIT || name.chars().any(char::is_control) {
                let why = format!("must have 1 to {NAME_LIMIT} characters, none of them control characters");
                fields.wrong("name", why);
            }
        }
        None => fields.required("name"),
    }
    let payload = fields.object("payload");
    let payload = fields.not_null("payload", payload);
    if payload.is_none() {
        fields.required("payload");
    }
    (name, payload.map(|payload| Value::Object(payload).to_string()))
}

/// Every saved configuration, by name.
#[utoipa::path(get, path = "/configs", tag = "configs", params(super::NamedListParams, super::ReadParams),
    responses((status = 200, body = Vec<ConfigRead>), (status = 401, body = ErrorBody), (status = 503, body = ErrorBody)))]
async fn list(read: Read, page: Page<String>) -> Result<Response, ApiError> {
    let mut configs = read.view.configs()?;
    configs.sort_unstable_by(|a, b| a.row.name_key.cmp(&b.row.name_key));
    let after = page.after();
    let rest = configs.into_iter().filter(|config| after.as_ref().is_none_or(|after| config.row.name_key > *after));
    let (configs, link) = page.of(rest.map(|config| (config.row.name_key.clone(), config))).into_parts();
    let configs: Vec<_> = configs.into_iter().map(ConfigRead::of).collect::<Result<_, _>>()?;
    Ok(Paged::<ConfigRead>::answer(link, read.answer(Json(configs))))
}

/// Saves a configuration.
#[utoipa::path(post, path = "/configs", tag = "configs", request_body = ConfigInput, params(super::WriteParams),
    responses((status = 201, body = ConfigRead), (status = 400, body = ErrorBody), (status = 403, body = ErrorBody),
        (status = 409, body = ErrorBody), (status = 413, body = ErrorBody), (status = 422, body = ErrorBody),
        (status = 504, body = ErrorBody)))]
async fn create(State(state): State<ApiState>, write: Write, Body(body): Body) -> Result<Response, ApiError> {
    let mut fields = Fields::parse(&body)?;
    let (name, payload) = read(&mut fields);
    fields.finish()?;
    let (name, payload) = (name.unwrap_or_default(), payload.unwrap_or_default());
    let command = CreateConfig { name_key: name_key(&name), name, payload };
    let outcome = write.propose(&state.member()?, &body, command::Body::CreateConfig(command)).await?;
    match outcome {
        Outcome::Config(ConfigAnswer { mod_index, config: Some(row) }) => {
            let saved = ConfigRead::of(Stored { row, mod_index })?;
            Ok(tagged(mod_index, (StatusCode::CREATED, Json(saved))))
        }
        _ => Err(unexpected()),
    }
}

/// Removes a saved configuration.
#[utoipa::path(delete, path = "/configs/{config_id}", tag = "configs",
    params(("config_id" = u64, Path, description = "number"), super::WriteParams),
    responses((status = 200, body = Deleted), (status = 403, body = ErrorBody), (status = 404, body = ErrorBody),
        (status = 412, body = ErrorBody), (status = 504, body = ErrorBody)))]
async fn delete(State(state): State<ApiState>, Path(id): Path<String>, write: Write) -> Result<Response, ApiError> {
    let id = number("config_id", &id)?;
    let command = DeleteConfig { id, precondition: write.precondition.clone() };
    write.propose(&state.member()?, &[], command::Body::DeleteConfig(command)).await?;
    Ok(axum::response::IntoResponse::into_response(Json(Deleted { status: "deleted" })))
}

/// The routes.
pub(super) fn router() -> OpenApiRouter<ApiState> {
    OpenApiRouter::new().routes(routes!(list, create)).routes(routes!(delete))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::fields::wrong_fields;

    fn wrong(body: &Value) -> Vec<String> {
        wrong_fields(body, read)
    }

    #[test]
    fn a_configuration_has_a_name_and_any_object() {
        let named = |name: &str| json!({"name": name, "payload": {}});
        let longest = "\u{1f600}".repeat(NAME_LIMIT);
        for (body, expected) in [
            (named("a"), &[][..]),
            (named(&longest), &[]),
            (json!({"name": "a", "payload": {"port": 8001, "env": {"A": [1, null]}}}), &[]),
            (named(" "), &["name"]),
            (named(&format!("{longest}x")), &["name"]),
            (named("a\nb"), &["name"]),
            (json!({}), &["name", "payload"]),
            (json!({"name": null, "payload": null}), &["name", "payload"]),
            (json!({"name": 7, "payload": []}), &["name", "payload"]),
            (json!({"name": "a", "payload": "{}", "id": 7}), &["payload", "id"]),
        ] {
            assert_eq!(wrong(&body), expected, "{body}");
        }
    }
}
