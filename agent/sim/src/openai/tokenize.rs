//! `/tokenize` and `/detokenize`. A token is a word; the ids of words that no answer uses can not be turned back.

use std::sync::Arc;

use serde::Deserialize;
use serde_json::json;

use super::bounded::Short;
use super::error::ApiError;
use super::request::{model, read};
use crate::engine::Engine;
use crate::http::{Answer, Arrived, json};
use crate::words;

/// The longest text that is taken apart or put together.
const MOST: usize = 1 << 20;

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct Text {
    model: Option<String>,
    prompt: Option<String>,
    messages: Option<Short<Message, 4096>>,
    return_token_strs: Option<bool>,
}

#[derive(Debug, Deserialize)]
struct Message {
    content: String,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct Tokens {
    model: Option<String>,
    tokens: Option<Short<u64, MOST>>,
}

/// Takes a text apart.
///
/// # Errors
/// When the request is not valid.
pub async fn tokenize(engine: Arc<Engine>, arrived: Arrived) -> Result<Answer, ApiError> {
    let request: Text = read(&arrived.body)?;
    model(engine.settings(), request.model.as_deref())?;
    let contents = request.messages.map(|messages| messages.0.into_iter().map(|message| message.content).collect());
    let texts: Vec<String> =
        request.prompt.map(|prompt| vec![prompt]).or(contents).ok_or_else(|| ApiError::missing("prompt"))?;
    let found = || texts.iter().flat_map(|text| text.split_whitespace());
    let count = found().count();
    if count > MOST {
        return Err(ApiError::invalid(None, format!("at most {MOST} tokens are simulated here.")));
    }
    let strings = request.return_token_strs == Some(true);
    Ok(json(&json!({
        "count": count,
        "max_model_len": engine.settings().arguments.max_model_len,
        "tokens": found().map(words::id).collect::<Vec<_>>(),
        "token_strs": strings.then(|| found().collect::<Vec<_>>()),
    })))
}

/// Puts one together.
///
/// # Errors
/// As [`tokenize`].
pub async fn detokenize(engine: Arc<Engine>, arrived: Arrived) -> Result<Answer, ApiError> {
    let request: Tokens = read(&arrived.body)?;
    model(engine.settings(), request.model.as_deref())?;
    let Short(tokens) = request.tokens.ok_or_else(|| ApiError::missing("tokens"))?;
    let prompt = tokens.into_iter().map(words::word).collect::<Vec<_>>().join(" ");
    Ok(json(&json!({ "prompt": prompt })))
}
