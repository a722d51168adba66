//! What a request for generation may say, and the checks that vLLM makes before its first token.

use serde::Deserialize;
use serde::de::{DeserializeOwned, IgnoredAny};

use super::bounded::{Stops, ToolChoice};
use super::error::ApiError;
use super::generate::Plan;
use super::prompt::{MOST, Messages, Prompts};
use crate::settings::Settings;
use crate::words::Digest;

/// A request for a chat or a completion. Fields that it does not name are ignored, as by vLLM.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub struct Request {
    /// The model's name; none is the base model.
    pub model: Option<String>,
    messages: Option<Messages>,
    prompt: Option<Prompts>,
    max_tokens: Option<i64>,
    max_completion_tokens: Option<i64>,
    temperature: Option<f64>,
    n: Option<i64>,
    stop: Option<Stops>,
    include_stop_str_in_output: Option<bool>,
    stream: Option<bool>,
    stream_options: Option<StreamOptions>,
    tools: Option<Vec<IgnoredAny>>,
    tool_choice: Option<ToolChoice>,
}

/// What a stream says besides text.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(default)]
pub struct StreamOptions {
    /// A last chunk with the usage.
    pub include_usage: Option<bool>,
    /// The usage on each chunk.
    pub continuous_usage_stats: Option<bool>,
}

/// Which of the two routes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// `/v1/chat/completions`
    Chat,
    /// `/v1/completions`
    Text,
}

/// A body as JSON. That it is no JSON comes before that it is the wrong one.
///
/// # Errors
/// In the words of a validation error.
pub fn read<T: DeserializeOwned>(body: &[u8]) -> Result<T, ApiError> {
    if body.is_empty() {
        return Err(ApiError::missing(""));
    }
    serde_json::from_slice(body).map_err(|error| match serde_json::from_slice::<IgnoredAny>(body) {
        Err(broken) => ApiError::unreadable(body, &broken),
        Ok(_) => ApiError::unreadable(body, &error),
    })
}

/// The name that the answer carries.
///
/// # Errors
/// When there is no such model.
pub fn model<'a>(settings: &'a Settings, name: Option<&str>) -> Result<&'a str, ApiError> {
    settings.answering(name).ok_or_else(|| {
        let aliases: Vec<_> = settings.names().collect();
        ApiError::no_model(name.unwrap_or_default(), &aliases)
    })
}

/// Whether a prompt leaves room for an answer.
///
/// # Errors
/// When it does not.
pub fn fits(prompt: Digest, settings: &Settings, answer: u64) -> Result<(), ApiError> {
    let limit = u64::from(settings.arguments.max_model_len);
    if prompt.tokens() + answer <= limit {
        return Ok(());
    }
    // vLLM stops counting one past the limit.
    let seen = prompt.tokens().min(limit + 1);
    Err(ApiError::invalid(
        "input_tokens",
        format!(
            "This model's maximum context length is {limit} tokens. However, your prompt contains at least {seen} input \
             tokens. Please reduce the length of the input prompt. (parameter=input_tokens, value={seen})"
        ),
    ))
}

impl Request {
    /// Whether it wants a stream.
    #[must_use]
    pub fn streams(&self) -> bool {
        self.stream == Some(true)
    }

    /// What it wants of a stream.
    #[must_use]
    pub fn stream_options(&self) -> StreamOptions {
        self.stream_options.unwrap_or_default()
    }

    /// What is to be generated.
    ///
    /// # Errors
    /// As vLLM refuses a request before its first token.
    pub fn plan(self, kind: Kind, settings: &Settings) -> Result<Plan, ApiError> {
        if self.stream_options.is_some() && !self.streams() {
            return Err(ApiError::invalid("stream_options", "Stream options can only be defined when `stream=True`."));
        }
        let prompts = self.prompts(kind)?;
        model(settings, self.model.as_deref())?;
        if kind == Kind::Chat {
            self.checked_tools(settings)?;
        }
        prompts.iter().try_for_each(|prompt| fits(*prompt, settings, 1))?;
        let most = self.max_tokens(kind, &prompts, settings)?;
        if let Some(temperature) = self.temperature.filter(|temperature| *temperature < 0.0) {
            let message = format!("temperature must be non-negative, got {temperature:?}.");
            return Err(ApiError::invalid("temperature", message));
        }
        let n = self.n.unwrap_or(1);
        if n < 1 {
            return Err(ApiError::invalid("n", format!("n must be at least 1, got {n}.")));
        }
        let most_n = MOST / prompts.len().max(1);
        let Some(n) = u32::try_from(n).ok().filter(|n| *n as usize <= most_n) else {
            return Err(ApiError::invalid("n", format!("n must be at most {most_n}, got {n}.")));
        };
        let include_stop = self.include_stop_str_in_output.unwrap_or(false);
        Ok(Plan::new(prompts, n, most, self.stops()?, include_stop, settings))
    }

    fn prompts(&self, kind: Kind) -> Result<Vec<Digest>, ApiError> {
        if kind == Kind::Text {
            return match &self.prompt {
                Some(prompts) if !prompts.0.is_empty() => Ok(prompts.0.clone()),
                Some(_) => Err(ApiError::invalid("prompt", "Please provide at least one prompt.")),
                None => Err(ApiError::missing("prompt")),
            };
        }
        match self.messages {
            None => Err(ApiError::missing("messages")),
            Some(Messages { count: 0, .. }) => {
                Err(ApiError::invalid("messages", "Please provide at least one message."))
            }
            Some(Messages { media: true, .. }) => {
                Err(ApiError::invalid(None, "This model is not a multimodal model: it takes text only."))
            }
            Some(messages) => Ok(vec![messages.digest]),
        }
    }

    fn checked_tools(&self, settings: &Settings) -> Result<(), ApiError> {
        let named = match self.tool_choice {
            Some(ToolChoice::None) => return Ok(()),
            Some(ToolChoice::Named) => true,
            _ => self.tools.as_ref().is_some_and(|tools| !tools.is_empty()),
        };
        if named && !settings.arguments.enable_auto_tool_choice {
            let message = "\"auto\" tool choice requires --enable-auto-tool-choice and --tool-call-parser to be set";
            return Err(ApiError::invalid(None, message));
        }
        Ok(())
    }

    fn max_tokens(&self, kind: Kind, prompts: &[Digest], settings: &Settings) -> Result<Option<u32>, ApiError> {
        let newer = self.max_completion_tokens.filter(|_| kind == Kind::Chat);
        let Some(most) = newer.or(self.max_tokens) else { return Ok(None) };
        if most < 1 {
            return Err(ApiError::invalid("max_tokens", format!("max_tokens must be at least 1, got {most}.")));
        }
        let limit = settings.arguments.max_model_len;
        let input = prompts.iter().map(|prompt| prompt.tokens()).max().unwrap_or(1);
        u32::try_from(most).ok().filter(|most| u64::from(*most) + input <= u64::from(limit)).map(Some).ok_or_else(|| {
            ApiError::invalid(
                "max_tokens",
                format!(
                    "'max_tokens' or 'max_completion_tokens' is too large: {most}. This model's maximum context length is \
                     {limit} tokens and your request has {input} input tokens ({most} > {limit} - {input}). \
                     (parameter=max_tokens, value={most})"
                ),
            )
        })
    }

    fn stops(self) -> Result<Vec<String>, ApiError> {
        let Stops(stops) = self.stop.unwrap_or_default();
        if stops.iter().any(String::is_empty) {
            return Err(ApiError::invalid("stop", "stop cannot contain an empty string."));
        }
        Ok(stops)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::arguments;

    fn settings() -> Settings {
        let words = ["--model", "tiny", "--max-model-len", "20"].map(Into::into);
        Settings { arguments: arguments::parse(words).unwrap(), dev_mode: false }
    }

    fn refused(kind: Kind, body: &str) -> String {
        let error = read::<Request>(body.as_bytes()).and_then(|request| request.plan(kind, &settings()).map(|_| ()));
        serde_json::to_string(&error.expect_err(body)).unwrap()
    }

    #[test]
    fn each_check_names_its_parameter() {
        let chat = |more: &str| refused(Kind::Chat, &format!(r#"{{"messages":[{{"content":"a b c"}}]{more}}}"#));
        for (more, param) in [
            (r#","model":"x""#, "model"),
            (r#","max_tokens":0"#, "max_tokens"),
            (r#","max_tokens":18"#, "max_tokens"),
            (r#","max_completion_tokens":99999999999"#, "max_tokens"),
            (r#","temperature":-0.5"#, "temperature"),
            (r#","n":0"#, "n"),
            (r#","n":257"#, "n"),
            (r#","stop":["a",""]"#, "stop"),
            (r#","stream_options":{}"#, "stream_options"),
        ] {
            assert!(chat(more).contains(&format!("\"param\":\"{param}\"")), "{more}: {}", chat(more));
        }
        assert!(chat(r#","tools":[{}]"#).contains("tool choice"));
        assert!(chat(r#","max_tokens":"x""#).contains("Bad Request"));
    }

    #[test]
    fn limits_are_reached_not_passed() {
        let plan = |body: &str| read::<Request>(body.as_bytes()).unwrap().plan(Kind::Text, &settings());
        assert!(plan(r#"{"prompt":"a b c","max_tokens":17,"n":256}"#).is_ok());
        let words = vec!["w"; 19].join(" ");
        assert!(plan(&format!(r#"{{"prompt":"{words}"}}"#)).is_ok());
        assert!(
            refused(Kind::Text, &format!(r#"{{"prompt":"{words} w w w w"}}"#)).contains("at least 21 input tokens")
        );
    }

    #[test]
    fn nulls_are_as_good_as_nothing() {
        let body =
            br#"{"prompt":"a","max_tokens":null,"n":null,"stop":null,"stream":null,"temperature":null,"tools":null}"#;
        assert!(read::<Request>(body).unwrap().plan(Kind::Text, &settings()).is_ok());
    }

    #[test]
    fn broken_json_comes_before_wrong_json() {
        assert!(refused(Kind::Text, r#"{"prompt": {}, oops"#).contains("json_invalid"));
        assert!(refused(Kind::Text, "").contains("'missing'"));
        assert!(refused(Kind::Chat, r#"{"prompt":"a"}"#).contains("body.messages"));
        assert!(refused(Kind::Text, &"[".repeat(100_000)).contains("Bad Request"));
    }
}
