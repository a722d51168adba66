//! `/v1/embeddings`.

use std::sync::Arc;
use std::time::Duration;

use serde::Deserialize;
use serde_json::{Value, json};
use tokio::time::Instant;

use super::answer::{Usage, now};
use super::error::ApiError;
use super::prompt::Prompts;
use super::request::{fits, model, read};
use crate::engine::{Engine, Stop, Ticket};
use crate::http::{Answer, Arrived, json};
use crate::metrics::Finish;
use crate::words::Digest;

/// Coordinates of an embedding.
const DIMENSIONS: u32 = 16;

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct Request {
    model: Option<String>,
    input: Option<Prompts>,
    encoding_format: Option<Format>,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
enum Format {
    #[default]
    Float,
    Base64,
}

/// Answers with a vector for each input, which follows from the input alone.
///
/// # Errors
/// When the request is not valid, or the engine dies.
pub async fn embeddings(engine: Arc<Engine>, arrived: Arrived) -> Result<Answer, ApiError> {
    let request: Request = read(&arrived.body)?;
    let Arrived { id, .. } = arrived;
    let settings = engine.settings();
    let Some(Prompts(inputs)) = request.input else { return Err(ApiError::missing("input")) };
    let name = model(settings, request.model.as_deref())?;
    inputs.iter().try_for_each(|input| fits(*input, settings, 0))?;
    let tokens = inputs.iter().map(|input| input.tokens()).sum();
    let mut ticket = engine.admit(tokens)?;
    match compute(&mut ticket, Duration::from_millis(settings.arguments.ttft_ms)).await {
        Ok(()) => ticket.finish(Finish::Stop),
        Err(Stop::Aborted) => {
            drop(ticket);
            return Err(ApiError::invalid(None, "The request was aborted."));
        }
        Err(Stop::Dead) => {
            ticket.finish(Finish::Error);
            return Err(ApiError::dead());
        }
    }
    let format = request.encoding_format.unwrap_or_default();
    let data = inputs
        .iter()
        .enumerate()
        .map(|(index, input)| json!({"index": index, "object": "embedding", "embedding": embedding(*input, format)}));
    Ok(json(&json!({
        "id": format!("embd-{id}"),
        "object": "list",
        "created": now(),
        "model": name,
        "data": data.collect::<Vec<_>>(),
        "usage": Usage::new(tokens, 0),
    })))
}

async fn compute(ticket: &mut Ticket, first: Duration) -> Result<(), Stop> {
    ticket.start().await?;
    ticket.until(Instant::now() + first).await?;
    Ok(())
}

fn embedding(input: Digest, format: Format) -> Value {
    let coordinates = (0..DIMENSIONS).map(|position| input.coordinate(position));
    match format {
        Format::Float => coordinates.collect(),
        Format::Base64 => Value::String(base64(&coordinates.flat_map(f32::to_le_bytes).collect::<Vec<_>>())),
    }
}

fn base64(bytes: &[u8]) -> String {
    const ALPHABET: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let mut text = String::with_capacity(bytes.len().div_ceil(3) * 4);
    for group in bytes.chunks(3) {
        let bits = group.iter().fold(0_usize, |bits, byte| (bits << 8) | usize::from(*byte)) << (8 * (3 - group.len()));
        for digit in 0..4 {
            let known = digit <= group.len();
            text.push(if known { char::from(ALPHABET[(bits >> (18 - 6 * digit)) & 63]) } else { '=' });
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn base64_is_that_of_the_rfc() {
        for (plain, text) in [("", ""), ("f", "Zg=="), ("fo", "Zm8="), ("foo", "Zm9v"), ("foobar", "Zm9vYmFy")] {
            assert_eq!(base64(plain.as_bytes()), text);
        }
    }

    #[test]
    fn both_formats_hold_the_same_numbers() {
        let input = Digest::of("a b");
        let floats = embedding(input, Format::Float);
        assert_eq!(floats.as_array().unwrap().len(), 16);
        assert_eq!(embedding(input, Format::Base64).as_str().unwrap().len(), 88);
        assert_ne!(floats, embedding(Digest::of("b a"), Format::Float));
    }
}
