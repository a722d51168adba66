//! `/api/settings`: the settings of the fleet (seed 004), with their ranges and defaults. This table is the one place for both.

use axum::Json;
use axum::extract::{RawQuery, State};
use axum::response::Response;
use muster_cluster::consensus::Timing;
use muster_cluster::rows::{Settings, SettingsAnswer, UpdateSettings, answer::Outcome, command};
use muster_cluster::state::changed_settings;
use serde::Serialize;
use utoipa::ToSchema;
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

use crate::auth::{Principal, Role};
use crate::error::{ApiError, ErrorBody};
use crate::fields::Fields;
use crate::request::{Body, Read, Write, tagged, unexpected};
use crate::state::ApiState;
use crate::upstream::check_url;

const TEXT_LIMIT: usize = 2048;

/// After so many missed samples a node is critical, if nobody has set it.
pub(super) const NODE_FAILURE_THRESHOLD: u64 = 3;

/// What stands in the place of the webhook's address for those who may not see it.
const MASK: &str = "***";

/// The settings in force.
#[derive(Debug, Serialize, ToSchema)]
pub struct SettingsBody {
    /// Whether the gateway serves.
    gateway_enabled: bool,
    /// How long a request that is not streamed may take. 10 to 86400 seconds.
    gateway_timeout_seconds: u64,
    /// How long a deployment may take to start. 60 to 86400 seconds.
    start_timeout_seconds: u64,
    /// `docker` or `podman`, on nodes that have both.
    #[schema(example = "docker")]
    preferred_container_runtime: String,
    /// The port that a form is filled with. 1024 to 65535.
    default_port: u64,
    /// The share of a GPU's memory that a form is filled with. 0.05 to 1.0.
    default_gpu_fraction: f64,
    /// The duration that a form is filled with: seconds, or `inf`.
    #[schema(example = "43200")]
    default_duration_choice: String,
    /// The version that a form is filled with; empty: the latest.
    default_vllm_version: String,
    /// After so many failed restarts a deployment is given up. 1 to 20; null: the caller's default.
    default_max_failed_restarts: Option<u64>,
    /// Where events of deployments are sent; empty: nowhere. Shown to administrators only.
    webhook_url: String,
    /// How long before its end a deployment's expiry is announced. 1 to 1440 minutes.
    expiry_warning_minutes: u64,
    /// How long a node's metrics are kept. 1 to 8760 hours.
    node_metrics_retention_hours: u64,
    /// How long a temporary key lives. 0 to 3600 seconds.
    temp_api_key_ttl_seconds: u64,
    /// Whether new nodes have a warm cache.
    default_warm_offload_enabled: bool,
    /// How long after its last request a model is not evicted. 0 to 300 seconds.
    busy_guard_seconds: u64,
    /// The period of full samples of nodes. 1 to 300 seconds.
    nodes_sync_interval_seconds: u64,
    /// The period of samples of deployments. 1 to 300 seconds.
    deployments_sync_interval_seconds: u64,
    /// How often expiry is looked at. 5 to 600 seconds.
    expiry_check_interval_seconds: u64,
    /// After so many missed samples a node is critical. 1 to 20.
    node_failure_threshold: u64,
    /// After so many missed samples a deployment is unreachable. 1 to 20.
    deployment_failure_threshold: u64,
    /// How patient Raft is: `lan`, `mesh` or `far`. The nodes take it over one after the other;
    /// `/api/cluster` suggests one.
    #[schema(example = "mesh")]
    timing: String,
}

impl SettingsBody {
    fn of(settings: Settings, show_webhook: bool) -> Self {
        let webhook_url = settings.webhook_url.unwrap_or_default();
        let masked = !show_webhook && !webhook_url.is_empty();
        Self {
            gateway_enabled: settings.gateway_enabled.unwrap_or(true),
            gateway_timeout_seconds: settings.gateway_timeout_seconds.unwrap_or(600),
            start_timeout_seconds: settings.start_timeout_seconds.unwrap_or(1800),
            preferred_container_runtime: settings.preferred_container_runtime.unwrap_or_else(|| "docker".to_owned()),
            default_port: settings.default_port.unwrap_or(8001),
            default_gpu_fraction: settings.default_gpu_fraction.unwrap_or(0.5),
            default_duration_choice: settings.default_duration_choice.unwrap_or_else(|| "43200".to_owned()),
            default_vllm_version: settings.default_vllm_version.unwrap_or_default(),
            default_max_failed_restarts: settings.default_max_failed_restarts,
            webhook_url: if masked { MASK.to_owned() } else { webhook_url },
            expiry_warning_minutes: settings.expiry_warning_minutes.unwrap_or(30),
            node_metrics_retention_hours: settings.node_metrics_retention_hours.unwrap_or(48),
            temp_api_key_ttl_seconds: settings.temp_api_key_ttl_seconds.unwrap_or(300),
            default_warm_offload_enabled: settings.default_warm_offload_enabled.unwrap_or(true),
            busy_guard_seconds: settings.busy_guard_seconds.unwrap_or(0),
            nodes_sync_interval_seconds: settings.nodes_sync_interval_seconds.unwrap_or(10),
            deployments_sync_interval_seconds: settings.deployments_sync_interval_seconds.unwrap_or(5),
            expiry_check_interval_seconds: settings.expiry_check_interval_seconds.unwrap_or(30),
            node_failure_threshold: settings.node_failure_threshold.unwrap_or(NODE_FAILURE_THRESHOLD),
            deployment_failure_threshold: settings.deployment_failure_threshold.unwrap_or(3),
            timing: settings.timing.unwrap_or_else(|| Timing::default().name().to_owned()),
        }
    }
}

/// Reads a partial change. Only `default_max_failed_restarts` may be null.
fn read(fields: &mut Fields) -> (Settings, Vec<String>) {
    let restarts = fields.integer("default_max_failed_restarts", 1, 20);
    let reset = if restarts.is_null() { vec!["default_max_failed_restarts".to_owned()] } else { Vec::new() };
    let settings = Settings {
        gateway_enabled: boolean(fields, "gateway_enabled"),
        gateway_timeout_seconds: integer(fields, "gateway_timeout_seconds", 10, 86_400),
        start_timeout_seconds: integer(fields, "start_timeout_seconds", 60, 86_400),
        preferred_container_runtime: {
            let given = fields.word("preferred_container_runtime", &["docker", "podman"]);
            fields.not_null("preferred_container_runtime", given).map(ToOwned::to_owned)
        },
        default_port: integer(fields, "default_port", 1024, 65_535),
        default_gpu_fraction: {
            let given = fields.number("default_gpu_fraction", 0.05, 1.0);
            fields.not_null("default_gpu_fraction", given)
        },
        default_duration_choice: duration_choice(fields),
        default_vllm_version: text(fields, "default_vllm_version"),
        default_max_failed_restarts: restarts.value(),
        webhook_url: webhook_url(fields),
        expiry_warning_minutes: integer(fields, "expiry_warning_minutes", 1, 1440),
        node_metrics_retention_hours: integer(fields, "node_metrics_retention_hours", 1, 8760),
        temp_api_key_ttl_seconds: integer(fields, "temp_api_key_ttl_seconds", 0, 3600),
        default_warm_offload_enabled: boolean(fields, "default_warm_offload_enabled"),
        busy_guard_seconds: integer(fields, "busy_guard_seconds", 0, 300),
        nodes_sync_interval_seconds: integer(fields, "nodes_sync_interval_seconds", 1, 300),
        deployments_sync_interval_seconds: integer(fields, "deployments_sync_interval_seconds", 1, 300),
        expiry_check_interval_seconds: integer(fields, "expiry_check_interval_seconds", 5, 600),
        node_failure_threshold: integer(fields, "node_failure_threshold", 1, 20),
        deployment_failure_threshold: integer(fields, "deployment_failure_threshold", 1, 20),
        timing: {
            let given = fields.word("timing", &Timing::ALL.map(Timing::name));
            fields.not_null("timing", given).map(ToOwned::to_owned)
        },
    };
    (settings, reset)
}

fn boolean(fields: &mut Fields, field: &str) -> Option<bool> {
    let given = fields.boolean(field);
    fields.not_null(field, given)
}

fn integer(fields: &mut Fields, field: &str, min: u64, max: u64) -> Option<u64> {
    let given = fields.integer(field, min, max);
    fields.not_null(field, given)
}

fn text(fields: &mut Fields, field: &str) -> Option<String> {
    let given = fields.text(field);
    let text = fields.not_null(field, given)?;
    if text.len() > TEXT_LIMIT || text.chars().any(char::is_control) {
        fields.wrong(field, format!("must have at most {TEXT_LIMIT} bytes and no control characters"));
    }
    Some(text)
}

fn duration_choice(fields: &mut Fields) -> Option<String> {
    let choice = text(fields, "default_duration_choice")?;
    let seconds = choice.parse::<u64>().is_ok_and(|seconds| seconds > 0) && choice.bytes().all(|b| b.is_ascii_digit());
    if !seconds && choice != "inf" {
        fields.wrong("default_duration_choice", "must be a number of seconds as a string, or inf");
    }
    Some(choice)
}

fn webhook_url(fields: &mut Fields) -> Option<String> {
    let address = text(fields, "webhook_url")?;
    if !address.is_empty()
        && let Err(why) = check_url(&address)
    {
        fields.wrong("webhook_url", format!("must be empty or the address of a server: it {why}"));
    }
    Some(address)
}

/// The settings in force.
#[utoipa::path(get, path = "/settings", tag = "settings", params(super::ReadParams),
    responses((status = 200, body = SettingsBody), (status = 401, body = ErrorBody), (status = 503, body = ErrorBody)))]
async fn get(read: Read, who: Principal) -> Result<Response, ApiError> {
    let (settings, mod_index) = read.view.settings()?;
    let body = SettingsBody::of(settings, who.role == Role::Admin);
    Ok(read.answer(tagged(mod_index, Json(body))))
}

/// Whether the change is only to be checked.
fn is_dry_run(query: Option<&str>) -> Result<bool, ApiError> {
    let given = query.unwrap_or_default().split('&').find_map(|pair| pair.strip_prefix("dryRun="));
    match given {
        None | Some("false") => Ok(false),
        Some("true") => Ok(true),
        Some(_) => Err(ApiError::Senseless("dryRun is true or false".to_owned())),
    }
}

/// Changes the settings that are given, all or none.
#[utoipa::path(put, path = "/settings", tag = "settings", request_body = SettingsBody,
    params(super::ChangeParams, super::WriteParams),
    responses((status = 200, body = SettingsBody), (status = 400, body = ErrorBody), (status = 403, body = ErrorBody),
        (status = 412, body = ErrorBody), (status = 422, body = ErrorBody), (status = 504, body = ErrorBody)))]
async fn put(
    State(state): State<ApiState>,
    write: Write,
    RawQuery(query): RawQuery,
    Body(body): Body,
) -> Result<Response, ApiError> {
    let mut fields = Fields::parse(&body)?;
    if fields.is_empty() {
        return Err(ApiError::Senseless("no setting is given".to_owned()));
    }
    let (changes, reset) = read(&mut fields);
    fields.finish()?;
    if is_dry_run(query.as_deref())? {
        let (settings, mod_index) = state.member()?.consensus.linearizable().await?.settings()?;
        let settings = changed_settings(&settings, &changes, &reset)?;
        return Ok(tagged(mod_index, Json(SettingsBody::of(settings, true))));
    }
    let command = UpdateSettings { precondition: write.precondition.clone(), changes: Some(changes), reset };
    let outcome = write.propose(&state.member()?, &body, command::Body::UpdateSettings(command)).await?;
    match outcome {
        Outcome::Settings(SettingsAnswer { mod_index, settings: Some(settings) }) => {
            Ok(tagged(mod_index, Json(SettingsBody::of(settings, true))))
        }
        _ => Err(unexpected()),
    }
}

/// The same as PUT.
#[utoipa::path(patch, path = "/settings", tag = "settings", request_body = SettingsBody,
    params(super::ChangeParams, super::WriteParams),
    responses((status = 200, body = SettingsBody), (status = 422, body = ErrorBody)))]
async fn patch(state: State<ApiState>, write: Write, query: RawQuery, body: Body) -> Result<Response, ApiError> {
    put(state, write, query, body).await
}

/// The routes.
pub(super) fn router() -> OpenApiRouter<ApiState> {
    OpenApiRouter::new().routes(routes!(get, put, patch))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::fields::wrong_fields;

    fn wrong(body: &serde_json::Value) -> Vec<String> {
        wrong_fields(body, read)
    }

    #[test]
    fn every_range_ends_where_the_seed_says() {
        for (field, min, max) in [
            ("gateway_timeout_seconds", 10, 86_400),
            ("start_timeout_seconds", 60, 86_400),
            ("default_port", 1024, 65_535),
            ("default_max_failed_restarts", 1, 20),
            ("expiry_warning_minutes", 1, 1440),
            ("node_metrics_retention_hours", 1, 8760),
            ("temp_api_key_ttl_seconds", 0, 3600),
            ("busy_guard_seconds", 0, 300),
            ("nodes_sync_interval_seconds", 1, 300),
            ("deployments_sync_interval_seconds", 1, 300),
            ("expiry_check_interval_seconds", 5, 600),
            ("node_failure_threshold", 1, 20),
            ("deployment_failure_threshold", 1, 20),
        ] {
            for (value, ok) in [(min, true), (max, true), (min - 1, false), (max + 1, false)] {
                let named = wrong(&json!({ field: value }));
                assert_eq!(named.is_empty(), ok, "{field} = {value}");
            }
        }
        for (body, ok) in [
            (json!({"default_gpu_fraction": 0.05}), true),
            (json!({"default_gpu_fraction": 1}), true),
            (json!({"default_gpu_fraction": 0.04}), false),
            (json!({"default_gpu_fraction": 1.01}), false),
            (json!({"preferred_container_runtime": "podman"}), true),
            (json!({"preferred_container_runtime": "rkt"}), false),
            (json!({"default_duration_choice": "inf"}), true),
            (json!({"default_duration_choice": "abc"}), false),
            (json!({"default_duration_choice": "+5"}), false),
            (json!({"default_duration_choice": 5}), false),
            (json!({"webhook_url": ""}), true),
            (json!({"webhook_url": "https://hooks.example.com/x"}), true),
            (json!({"webhook_url": "ftp://x"}), false),
            (json!({"webhook_url": "http://169.254.169.254/latest"}), false),
            (json!({"webhook_url": "https://user:password@hooks.example.com/"}), false),
            (json!({"default_max_failed_restarts": null}), true),
            (json!({"default_port": null}), false),
            (json!({"gateway_enabled": "true"}), false),
            (json!({"timing": "far"}), true),
            (json!({"timing": "wan"}), false),
            (json!({"timing": null}), false),
            (json!({"nope": 1}), false),
        ] {
            assert_eq!(wrong(&body).is_empty(), ok, "{body}");
        }
    }

    #[test]
    fn the_webhook_is_for_administrators() {
        let settings = Settings { webhook_url: Some("https://hooks.example.com/x".to_owned()), ..Settings::default() };
        assert_eq!(SettingsBody::of(settings.clone(), false).webhook_url, MASK);
        assert_eq!(SettingsBody::of(settings, true).webhook_url, "https://hooks.example.com/x");
        assert_eq!(SettingsBody::of(Settings::default(), false).webhook_url, "", "nothing to hide");
    }
}
