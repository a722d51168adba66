//! What a request says of a model, and whether it makes sense.

use muster_cluster::rows::{ModelField, ModelFields};
use muster_cluster::state::{is_id, name_key};
use serde_json::Value;
use unicode_normalization::UnicodeNormalization;
use url::{Host, Url};
use utoipa::ToSchema;

use crate::error::ApiError;
use crate::fields::{Fields, Given, MAX_INTEGER};
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
pub(super) struct Draft {
    pub fields: ModelFields,
    pub clear: Vec<ModelField>,
    pub api_key: Given<String>,
}

/// Reads the fields that a new model and a change have in common.
pub(super) fn read(fields: &mut Fields) -> Result<Draft, ApiError> {
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

pub(super) fn normal(text: &str) -> String {
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

pub(super) fn is_loopback(text: &str) -> bool {
    match Url::parse(text).ok().as_ref().and_then(Url::host) {
        Some(Host::Ipv4(address)) => address.is_loopback(),
        Some(Host::Ipv6(address)) => address.is_loopback(),
        Some(Host::Domain(domain)) => domain == "localhost" || domain.ends_with(".localhost"),
        None => false,
    }
}

pub(super) fn needs_base_url(provider: &str) -> bool {
    !KNOWN_ADDRESS.contains(&provider)
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
