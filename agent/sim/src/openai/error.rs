//! The error shape of OpenAI's API, as vLLM fills it.

use http::StatusCode;
use serde::Serialize;
use serde_json::error::Category;

use crate::engine::Refused;

/// An error answer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ApiError {
    /// The answer's status. The body repeats it.
    pub status: StatusCode,
    kind: &'static str,
    message: String,
    param: Option<String>,
}

#[derive(Serialize)]
struct Body<'a> {
    error: Inner<'a>,
}

#[derive(Serialize)]
struct Inner<'a> {
    message: &'a str,
    #[serde(rename = "type")]
    kind: &'static str,
    param: Option<&'a str>,
    code: u16,
}

impl Serialize for ApiError {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let param = self.param.as_deref();
        let inner = Inner { message: &self.message, kind: self.kind, param, code: self.status.as_u16() };
        Body { error: inner }.serialize(serializer)
    }
}

impl ApiError {
    /// A value that vLLM's own checks refuse.
    pub fn invalid(param: impl Into<Option<&'static str>>, message: impl Into<String>) -> Self {
        let param = param.into().map(str::to_owned);
        Self { status: StatusCode::BAD_REQUEST, kind: "BadRequestError", message: message.into(), param }
    }

    /// A body that does not fit the route's model. Its type is spelled unlike that of [`invalid`](Self::invalid).
    fn body(param: Option<String>, detail: &str) -> Self {
        let message = format!("1 validation error:\n  {detail}");
        Self { status: StatusCode::BAD_REQUEST, kind: "Bad Request", message, param }
    }

    /// A field of the body is missing, the body itself if it has no name.
    pub fn missing(field: &str) -> Self {
        let (param, path) = match field {
            "" => ("body".to_owned(), "'body',".to_owned()),
            _ => (format!("body.{field}"), format!("'body', '{field}'")),
        };
        Self::body(Some(param), &format!("{{'type': 'missing', 'loc': ({path}), 'msg': 'Field required'}}"))
    }

    /// The body is not said to be JSON.
    pub fn not_json() -> Self {
        Self::body(None, "Unsupported Media Type: Only 'application/json' is allowed")
    }

    /// The body is no JSON, or not the right one.
    pub fn unreadable(body: &[u8], error: &serde_json::Error) -> Self {
        if error.classify() == Category::Data {
            let detail = format!("{{'type': 'value_error', 'loc': ('body',), 'msg': '{error}'}}");
            return Self::body(Some("body".to_owned()), &detail);
        }
        let at = offset(body, error);
        let context = format!("'ctx': {{'error': '{error}'}}");
        let detail =
            format!("{{'type': 'json_invalid', 'loc': ('body', {at}), 'msg': 'JSON decode error', {context}}}");
        Self::body(Some(format!("body.{at}")), &detail)
    }

    /// A status without more to say than its name.
    pub fn plain(status: StatusCode, message: impl Into<String>) -> Self {
        let kind = match status {
            StatusCode::BAD_REQUEST => "BadRequestError",
            StatusCode::NOT_FOUND => "NotFoundError",
            StatusCode::INTERNAL_SERVER_ERROR => "InternalServerError",
            other => other.canonical_reason().unwrap_or("Error"),
        };
        Self { status, kind, message: message.into(), param: None }
    }

    /// There is no such model.
    pub fn no_model(name: &str, aliases: &[&str]) -> Self {
        let message = format!("The model `{name}` does not exist. Valid aliases: {}.", aliases.join(", "));
        Self { param: Some("model".to_owned()), ..Self::plain(StatusCode::NOT_FOUND, message) }
    }

    /// The engine has died.
    pub fn dead() -> Self {
        let message = "EngineCore encountered an issue. See stack trace (above) for the root cause.";
        Self::plain(StatusCode::INTERNAL_SERVER_ERROR, message)
    }
}

impl From<Refused> for ApiError {
    fn from(refused: Refused) -> Self {
        match refused {
            Refused::Dead => Self::dead(),
            Refused::Draining => {
                Self::plain(StatusCode::INTERNAL_SERVER_ERROR, "cannot schedule new futures after shutdown")
            }
            Refused::Busy => Self::plain(
                StatusCode::SERVICE_UNAVAILABLE,
                "The engine is currently busy and cannot accept new requests. \
                 Please try again later or on a different instance.",
            ),
        }
    }
}

/// Where in the body the error is: Python counts from the body's start, up to the character that it did not expect.
fn offset(body: &[u8], error: &serde_json::Error) -> usize {
    let lines = body.split_inclusive(|byte| *byte == b'\n').take(error.line().saturating_sub(1));
    let column = if error.is_eof() { error.column() } else { error.column().saturating_sub(1) };
    (lines.map(<[u8]>::len).sum::<usize>() + column).min(body.len())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn unreadable(body: &str) -> ApiError {
        ApiError::unreadable(body.as_bytes(), &serde_json::from_str::<serde_json::Value>(body).unwrap_err())
    }

    #[test]
    fn broken_json_says_where() {
        assert_eq!(unreadable(r#"{"model": "x", oops}"#).param.as_deref(), Some("body.15"));
        assert_eq!(unreadable("{\"a\": 1,\n oops}").param.as_deref(), Some("body.10"));
        assert_eq!(unreadable(r#"{"a": "#).param.as_deref(), Some("body.6"));
    }

    #[test]
    fn the_shape_is_that_of_vllm() {
        let error = serde_json::to_string(&ApiError::no_model("x", &["a", "b"])).unwrap();
        assert_eq!(
            error,
            r#"{"error":{"message":"The model `x` does not exist. Valid aliases: a, b.","type":"NotFoundError","param":"model","code":404}}"#
        );
        assert_eq!(ApiError::from(Refused::Busy).kind, "Service Unavailable");
    }
}
