//! The routes for development: sleep, pause and what belongs to them.

use std::sync::Arc;

use http::StatusCode;
use serde_json::json;

use super::{Answer, json, whole, with_status};
use crate::engine::{Engine, Mode};
use crate::openai::ApiError;
use crate::settings::VLLM_VERSION;

/// The values of a query's key, as they stand there. None of the values that are understood has anything to decode.
fn values<'a>(query: &'a str, key: &'a str) -> impl Iterator<Item = &'a str> {
    let pairs = query.split('&').filter_map(|pair| pair.split_once('='));
    pairs.filter(move |(name, _)| *name == key).map(|(_, value)| value)
}

fn mode(query: &str) -> Result<Mode, ApiError> {
    let text = values(query, "mode").last().unwrap_or("abort");
    Mode::parse(text).ok_or_else(|| ApiError::invalid("mode", format!("Invalid pause mode: {text}")))
}

/// `POST /sleep`
///
/// # Errors
/// When the level or the mode is unknown.
pub async fn sleep(engine: Arc<Engine>, query: &str) -> Result<Answer, ApiError> {
    let text = values(query, "level").last().unwrap_or("1");
    let Some(level) = text.parse().ok().filter(|level| *level <= 2) else {
        return Err(ApiError::invalid("level", format!("Invalid sleep level: {text}")));
    };
    engine.fall_asleep(level, mode(query)?).await;
    Ok(json(&json!({"status": "sleeping", "level": level})))
}

/// `POST /wake_up`
pub fn wake_up(engine: &Engine, query: &str) -> Answer {
    let tags: Vec<_> = values(query, "tags").collect();
    let woken = engine.wake_up(&tags);
    let tags = (!tags.is_empty()).then_some(tags);
    json(&json!({"status": woken, "tags": tags}))
}

/// `POST /pause`
///
/// # Errors
/// When the mode is unknown.
pub async fn pause(engine: Arc<Engine>, query: &str) -> Result<Answer, ApiError> {
    engine.pause(mode(query)?).await;
    Ok(json(&json!({"status": "paused"})))
}

/// `POST /resume`
pub fn resume(engine: &Engine) -> Answer {
    engine.resume();
    json(&json!({"status": "resumed"}))
}

/// `POST /reset_prefix_cache`. There is none, so it has always worked.
pub fn reset_prefix_cache() -> Answer {
    json(&json!({"success": true}))
}

/// `GET /server_info`
pub fn server_info(engine: &Engine) -> Answer {
    let settings = engine.settings();
    let arguments = &settings.arguments;
    json(&json!({
        "vllm_config": format!(
            "model='{}', served_model_name={}, max_seq_len={}, max_num_seqs={}, enable_sleep_mode={}",
            settings.root(), settings.name(), arguments.max_model_len, arguments.max_num_seqs, arguments.enable_sleep_mode
        ),
        "vllm_env": {"VLLM_SERVER_DEV_MODE": settings.dev_mode},
        "system_env": {"vllm_version": VLLM_VERSION, "simulator": crate::openai::FINGERPRINT},
    }))
}

/// An empty success.
pub fn nothing() -> Answer {
    whole(StatusCode::OK, "", "")
}

/// An answer in FastAPI's own error shape.
pub fn detail(status: StatusCode, detail: &str) -> Answer {
    with_status(status, &json!({ "detail": detail }))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_may_come_several_times() {
        assert_eq!(values("tags=weights&x&tags=kv_cache", "tags").collect::<Vec<_>>(), ["weights", "kv_cache"]);
        assert_eq!(mode("level=1"), Ok(Mode::Abort));
        assert_eq!(mode("mode=keep"), Ok(Mode::Keep));
        assert!(mode("mode=never").is_err());
    }
}
