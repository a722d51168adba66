//! A model as it is answered.

use muster_cluster::ids::ModelId;
use muster_cluster::rows::Model;
use muster_cluster::state::Stored;
use serde::Serialize;
use serde_json::{Map, Value};
use utoipa::ToSchema;

use crate::request::time;

/// A model of the registry.
#[derive(Clone, Debug, Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct ModelEntry {
    /// UUID.
    pub(super) id: String,
    /// What people call it. Unique without regard to case.
    pub(super) name: String,
    pub(super) description: Option<String>,
    #[schema(example = "openai-compatible")]
    pub(super) provider: String,
    /// What the provider calls it.
    pub(super) model_id: String,
    /// Where it is reached; null for providers with a known address.
    pub(super) base_url: Option<String>,
    /// The same as `baseUrl`.
    pub(super) endpoint: Option<String>,
    /// `active` or `inactive`.
    #[schema(example = "active")]
    pub(super) status: &'static str,
    /// The same as `status == "active"`.
    pub(super) is_enabled: bool,
    /// `{provider}/{slug}`, made once and never changed.
    pub(super) litellm_model_name: String,
    /// Whether a key is kept for it. The key itself is never shown.
    pub(super) has_api_key: bool,
    /// The name of a secret, or `env:NAME`.
    pub(super) api_key_ref: Option<String>,
    pub(super) max_tokens: u64,
    pub(super) context_window: u64,
    pub(super) supports_vision: bool,
    pub(super) supports_tools: bool,
    pub(super) supports_streaming: bool,
    pub(super) default_temperature: f64,
    pub(super) default_top_p: f64,
    pub(super) default_max_tokens: u64,
    pub(super) priority: i64,
    /// USD per million tokens; null when it is not known.
    pub(super) price_per_million_input_tokens: Option<f64>,
    pub(super) price_per_million_output_tokens: Option<f64>,
    pub(super) price_per_million_cached_input_tokens: Option<f64>,
    /// The same as `pricePerMillionInputTokens`.
    pub(super) cost_per_input_token: Option<f64>,
    /// The same as `pricePerMillionOutputTokens`.
    pub(super) cost_per_output_token: Option<f64>,
    #[schema(value_type = Object)]
    pub(super) metadata: Map<String, Value>,
    /// The node whose loopback the `baseUrl` means.
    pub(super) node_id: Option<u64>,
    pub(super) created_at: String,
    pub(super) updated_at: String,
    pub(super) created_by: String,
    pub(super) created_index: u64,
    /// The version: what `ETag` says, for `If-Match`.
    pub(super) mod_index: u64,
}

impl ModelEntry {
    pub(super) fn of(stored: Stored<Model>) -> Self {
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
