//! What goes with a request: its id, its trace, and how it ended.

use std::time::Instant;

use axum::extract::{MatchedPath, Request, State};
use axum::middleware::Next;
use axum::response::Response;
use http::{HeaderMap, HeaderValue, header};
use uuid::Uuid;

use crate::auth::AskForPassword;
use crate::error::ApiError;
use crate::state::ApiState;

pub(crate) const REQUEST_ID: &str = "x-request-id";
pub(crate) const TRACEPARENT: &str = "traceparent";

/// The longest request id that is taken over from a caller.
const ID_LIMIT: usize = 128;

/// The id and the trace of a request.
#[derive(Clone, Debug)]
pub struct Context {
    /// The caller's `x-request-id`, or one that was made here.
    pub request_id: String,
    /// The caller's trace (W3C `traceparent`), or one that was begun here: 32 hexadecimal digits.
    pub trace_id: String,
}

impl Context {
    fn of(headers: &HeaderMap) -> Self {
        let text = |name: &str| headers.get(name).and_then(|value| value.to_str().ok());
        let request_id = text(REQUEST_ID).filter(|id| is_plain(id)).map(ToOwned::to_owned);
        let trace_id = text(TRACEPARENT).and_then(trace_id).map(ToOwned::to_owned);
        Self {
            request_id: request_id.unwrap_or_else(|| Uuid::new_v4().to_string()),
            trace_id: trace_id.unwrap_or_else(|| Uuid::new_v4().simple().to_string()),
        }
    }
}

/// An id goes into logs, headers and the audit trail, so it must not bring anything along.
pub(crate) fn is_plain(id: &str) -> bool {
    !id.is_empty() && id.len() <= ID_LIMIT && id.bytes().all(|byte| byte.is_ascii_graphic())
}

/// The trace id of a `traceparent`: version, trace id, parent id and flags in lower-case hexadecimal.
fn trace_id(traceparent: &str) -> Option<&str> {
    let mut parts = traceparent.split('-');
    let (version, trace, parent, flags) = (parts.next()?, parts.next()?, parts.next()?, parts.next()?);
    let hexadecimal =
        |part: &str, digits| part.len() == digits && part.bytes().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f'));
    let zero = |part: &str| part.bytes().all(|byte| byte == b'0');
    let sound = hexadecimal(version, 2)
        && version != "ff"
        && hexadecimal(trace, 32)
        && !zero(trace)
        && hexadecimal(parent, 16)
        && !zero(parent)
        && hexadecimal(flags, 2)
        // Later versions may append something; this one may not.
        && (version != "00" || parts.next().is_none());
    sound.then_some(trace)
}

/// Gives every request its id, every error its body, and counts how requests end.
pub(crate) async fn with_context(State(state): State<ApiState>, mut request: Request, next: Next) -> Response {
    let begun = Instant::now();
    let context = Context::of(request.headers());
    let method = request.method().clone();
    let route = request.extensions().get::<MatchedPath>().map(|path| path.as_str().to_owned());
    request.extensions_mut().insert(context.clone());
    let mut response = next.run(request).await;
    if let Some(error) = response.extensions_mut().remove::<ApiError>() {
        // The router names the methods whatever the answer is; a caller that was not let in learns nothing.
        let allow = response.headers_mut().remove(header::ALLOW);
        let allow = allow.filter(|_| matches!(error, ApiError::MethodNotAllowed));
        let ask = response.extensions().get::<AskForPassword>().is_some();
        response = error.render(&context.request_id);
        if ask {
            let challenge = HeaderValue::from_static("Basic realm=\"muster: any name, and the key as password\"");
            response.headers_mut().append(header::WWW_AUTHENTICATE, challenge);
        }
        if let Some(allow) = allow {
            response.headers_mut().insert(header::ALLOW, allow);
        }
    }
    if let Ok(id) = HeaderValue::from_str(&context.request_id) {
        response.headers_mut().insert(REQUEST_ID, id);
    }
    let (status, took) = (response.status().as_u16(), begun.elapsed());
    let route = route.as_deref().unwrap_or("(none)");
    state.metrics.request(&method, route, status, took);
    tracing::debug!(%method, route, status, ?took, request_id = context.request_id, trace_id = context.trace_id, "request");
    response
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_trace_is_taken_over_only_when_it_is_sound() {
        let trace = "0af7651916cd43dd8448eb211c80319c";
        assert_eq!(trace_id(&format!("00-{trace}-b7ad6b7169203331-01")), Some(trace));
        assert_eq!(trace_id(&format!("01-{trace}-b7ad6b7169203331-01-more")), Some(trace));
        for wrong in [
            String::new(),
            format!("00-{trace}-b7ad6b7169203331"),
            format!("00-{trace}-b7ad6b7169203331-01-more"),
            format!("ff-{trace}-b7ad6b7169203331-01"),
            format!("00-{}-b7ad6b7169203331-01", "0".repeat(32)),
            format!("00-{trace}-0000000000000000-01"),
            format!("00-{}-b7ad6b7169203331-01", trace.to_uppercase()),
        ] {
            assert_eq!(trace_id(&wrong), None, "{wrong}");
        }
    }

    #[test]
    fn a_request_id_brings_nothing_along() {
        assert!(is_plain("abc-123"));
        for wrong in ["", "a b", "a\nb", "\u{e9}", &"x".repeat(ID_LIMIT + 1)] {
            assert!(!is_plain(wrong), "{wrong:?}");
        }
    }
}
