//! The shapes of answers and of the chunks of streams.

use std::time::SystemTime;

use serde::Serialize;

use super::FINGERPRINT;
use super::generate::{Choice, Generation, Plan};
use super::request::Kind;
use crate::metrics::Finish;

/// What all answers to one request begin with.
#[derive(Clone, Debug)]
pub struct Head {
    /// Which route asked.
    pub kind: Kind,
    /// With the request's own id in it, if it had one.
    pub id: String,
    /// Seconds since the epoch.
    pub created: u64,
    /// The name of the model that answers.
    pub model: String,
}

/// Tokens.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct Usage {
    prompt_tokens: u64,
    total_tokens: u64,
    completion_tokens: u64,
    prompt_tokens_details: Option<()>,
    completion_tokens_details: Option<()>,
}

impl Usage {
    /// Of prompts and answers.
    #[must_use]
    pub fn new(prompt_tokens: u64, completion_tokens: u64) -> Self {
        let total_tokens = prompt_tokens.saturating_add(completion_tokens);
        Self {
            prompt_tokens,
            total_tokens,
            completion_tokens,
            prompt_tokens_details: None,
            completion_tokens_details: None,
        }
    }

    /// Of a generation so far.
    #[must_use]
    pub fn of(generation: &Generation) -> Self {
        Self::new(generation.plan.prompt_tokens(), generation.generated())
    }
}

/// Seconds since the epoch.
#[must_use]
pub fn now() -> u64 {
    SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default().as_secs()
}

#[derive(Serialize)]
struct Full<'a> {
    id: &'a str,
    object: &'static str,
    created: u64,
    model: &'a str,
    choices: Vec<FullChoice<'a>>,
    service_tier: Option<()>,
    system_fingerprint: &'static str,
    usage: Usage,
    prompt_logprobs: Option<()>,
    kv_transfer_params: Option<()>,
}

#[derive(Serialize)]
struct FullChoice<'a> {
    index: usize,
    #[serde(skip_serializing_if = "Option::is_none")]
    message: Option<Message<'a>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    text: Option<&'a str>,
    logprobs: Option<()>,
    finish_reason: Option<&'static str>,
    stop_reason: Option<&'a str>,
    token_ids: Option<()>,
}

#[derive(Serialize)]
struct Message<'a> {
    role: &'static str,
    content: &'a str,
    refusal: Option<()>,
    annotations: Option<()>,
    audio: Option<()>,
    function_call: Option<()>,
    tool_calls: [(); 0],
    reasoning: Option<()>,
}

#[derive(Serialize)]
struct Chunk<'a> {
    id: &'a str,
    object: &'static str,
    created: u64,
    model: &'a str,
    choices: &'a [ChunkChoice<'a>],
    system_fingerprint: &'static str,
    #[serde(skip_serializing_if = "Option::is_none")]
    usage: Option<Usage>,
}

#[derive(Serialize)]
struct ChunkChoice<'a> {
    index: usize,
    #[serde(skip_serializing_if = "Option::is_none")]
    delta: Option<Delta<'a>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    text: Option<&'a str>,
    logprobs: Option<()>,
    finish_reason: Option<&'static str>,
    stop_reason: Option<&'a str>,
}

#[derive(Serialize)]
struct Delta<'a> {
    #[serde(skip_serializing_if = "Option::is_none")]
    role: Option<&'static str>,
    content: &'a str,
}

impl Head {
    /// The answer as a whole.
    ///
    /// # Errors
    /// Never in practice; the serializer's signature has one.
    pub fn full(&self, plan: &Plan, choices: &[Choice], usage: Usage) -> serde_json::Result<Vec<u8>> {
        let choices = choices.iter().enumerate().map(|(index, choice)| self.full_choice(plan, index, choice));
        serde_json::to_vec(&Full {
            id: &self.id,
            object: match self.kind {
                Kind::Chat => "chat.completion",
                Kind::Text => "text_completion",
            },
            created: self.created,
            model: &self.model,
            choices: choices.collect(),
            service_tier: None,
            system_fingerprint: FINGERPRINT,
            usage,
            prompt_logprobs: None,
            kv_transfer_params: None,
        })
    }

    fn full_choice<'a>(&self, plan: &'a Plan, index: usize, choice: &'a Choice) -> FullChoice<'a> {
        let message = || Message {
            role: "assistant",
            content: choice.text(),
            refusal: None,
            annotations: None,
            audio: None,
            function_call: None,
            tool_calls: [],
            reasoning: None,
        };
        let chat = self.kind == Kind::Chat;
        FullChoice {
            index,
            message: chat.then(message),
            text: (!chat).then(|| choice.text()),
            logprobs: None,
            finish_reason: choice.finish().map(Finish::name),
            stop_reason: choice.stop_reason(plan),
            token_ids: None,
        }
    }

    /// A chunk that opens a choice of a chat.
    ///
    /// # Errors
    /// As [`full`](Self::full).
    pub fn opening(&self, index: usize, usage: Option<Usage>) -> serde_json::Result<Vec<u8>> {
        let delta = Some(Delta { role: Some("assistant"), content: "" });
        let choice = ChunkChoice { index, delta, text: None, logprobs: None, finish_reason: None, stop_reason: None };
        self.chunk(&[choice], usage)
    }

    /// A chunk with text.
    ///
    /// # Errors
    /// As [`full`](Self::full).
    pub fn piece(
        &self,
        index: usize,
        text: &str,
        finish: Option<Finish>,
        stop_reason: Option<&str>,
        usage: Option<Usage>,
    ) -> serde_json::Result<Vec<u8>> {
        let chat = self.kind == Kind::Chat;
        let choice = ChunkChoice {
            index,
            delta: chat.then_some(Delta { role: None, content: text }),
            text: (!chat).then_some(text),
            logprobs: None,
            finish_reason: finish.map(Finish::name),
            stop_reason,
        };
        self.chunk(&[choice], usage)
    }

    /// The last chunk, with nothing but the usage.
    ///
    /// # Errors
    /// As [`full`](Self::full).
    pub fn closing(&self, usage: Usage) -> serde_json::Result<Vec<u8>> {
        self.chunk(&[], Some(usage))
    }

    fn chunk(&self, choices: &[ChunkChoice<'_>], usage: Option<Usage>) -> serde_json::Result<Vec<u8>> {
        serde_json::to_vec(&Chunk {
            id: &self.id,
            object: match self.kind {
                Kind::Chat => "chat.completion.chunk",
                Kind::Text => "text_completion",
            },
            created: self.created,
            model: &self.model,
            choices,
            system_fingerprint: FINGERPRINT,
            usage,
        })
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn head(kind: Kind) -> Head {
        Head { kind, id: "chatcmpl-1".to_owned(), created: 7, model: "tiny".to_owned() }
    }

    fn value(json: serde_json::Result<Vec<u8>>) -> Value {
        serde_json::from_slice(&json.unwrap()).unwrap()
    }

    #[test]
    fn the_first_chunk_has_the_role_and_no_usage_key() {
        let chunk = value(head(Kind::Chat).opening(0, None));
        assert_eq!(chunk["object"], "chat.completion.chunk");
        assert_eq!(chunk["choices"][0]["delta"], json!({"role": "assistant", "content": ""}));
        assert_eq!(chunk["choices"][0]["finish_reason"], Value::Null);
        assert_eq!(chunk.get("usage"), None);
        assert_eq!(chunk["system_fingerprint"], FINGERPRINT);
    }

    #[test]
    fn a_piece_has_a_delta_in_a_chat_and_text_in_a_completion() {
        let piece = |kind| value(head(kind).piece(1, " oak", Some(Finish::Length), None, None))["choices"][0].clone();
        assert_eq!(piece(Kind::Chat)["delta"], json!({"content": " oak"}));
        assert_eq!(piece(Kind::Chat).get("text"), None);
        assert_eq!(piece(Kind::Text)["text"], " oak");
        assert_eq!(piece(Kind::Text)["finish_reason"], "length");
        assert_eq!(piece(Kind::Text)["index"], 1);
    }

    #[test]
    fn the_last_chunk_has_usage_alone() {
        let chunk = value(head(Kind::Chat).closing(Usage::new(3, 4)));
        assert_eq!(chunk["choices"], json!([]));
        assert_eq!(chunk["usage"]["total_tokens"], 7);
    }
}
