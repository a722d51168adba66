//! `/v1/chat/completions` and `/v1/completions`.

use std::sync::Arc;

use http::StatusCode;

use super::answer::{Head, Usage, now};
use super::error::ApiError;
use super::generate::Generation;
use super::request::{Kind, Request, model, read};
use super::stream::stream;
use crate::engine::Engine;
use crate::http::{Answer, Arrived, json_bytes};

/// Answers a chat.
///
/// # Errors
/// Before the first token; later ones are in the answer.
pub async fn chat(engine: Arc<Engine>, arrived: Arrived) -> Result<Answer, ApiError> {
    generate(engine, arrived, Kind::Chat).await
}

/// Answers a completion.
///
/// # Errors
/// As [`chat`].
pub async fn completions(engine: Arc<Engine>, arrived: Arrived) -> Result<Answer, ApiError> {
    generate(engine, arrived, Kind::Text).await
}

async fn generate(engine: Arc<Engine>, arrived: Arrived, kind: Kind) -> Result<Answer, ApiError> {
    let request: Request = read(&arrived.body)?;
    let Arrived { id, .. } = arrived;
    let settings = engine.settings();
    let prefix = if kind == Kind::Chat { "chatcmpl" } else { "cmpl" };
    let name = model(settings, request.model.as_deref()).unwrap_or_default().to_owned();
    let (streams, mut options) = (request.streams(), request.stream_options());
    if settings.arguments.enable_force_include_usage {
        options.include_usage = Some(true);
        options.continuous_usage_stats = Some(true);
    }
    let plan = request.plan(kind, settings)?;
    let ticket = engine.admit(plan.prompt_tokens())?;
    let head = Head { kind, id: format!("{prefix}-{id}"), created: now(), model: name };
    let mut generation = Generation::new(plan, ticket);
    if streams {
        return Ok(stream(generation, head, options, engine.settings().arguments.cut_stream_after));
    }
    loop {
        match generation.step().await {
            Ok(true) => {}
            Ok(false) => break,
            Err(_) => {
                let _ = generation.end();
                return Err(ApiError::dead());
            }
        }
    }
    let usage = Usage::of(&generation);
    let (plan, choices) = generation.end();
    let body = head.full(&plan, &choices, usage);
    body.map(json_bytes).map_err(|error| ApiError::plain(StatusCode::INTERNAL_SERVER_ERROR, error.to_string()))
}
