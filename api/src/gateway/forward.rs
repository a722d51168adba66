//! A request to a model, from its body to the head of the answer.

use std::error::Error;
use std::future::poll_fn;
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use http::{HeaderMap, HeaderValue, Request, Response, StatusCode, header};
use hyper::body::Body;
use muster_agent::serving::Flight as Busy;
use serde_json::Value;

use super::body::{Collected, GatewayBody, Pieces};
use super::error::GatewayError;
use super::origin::OriginError;
use super::relay::{ProviderStalled, Relay};
use super::rewrite::{Events, Object, Rewriter};
use super::target::{Endpoint, NOT_SERVED, Target};

/// An answer of at most this length whose name is replaced keeps a length; a longer one is sent in chunks.
const WHOLE_LIMIT: u64 = 1024 * 1024;

/// How much of a provider's error is read, and for how long.
const ERROR_LIMIT: usize = 64 * 1024;
const ERROR_TIME: Duration = Duration::from_secs(10);

/// What of a provider's answer reaches the client, besides status and body.
const PASSED: [header::HeaderName; 4] =
    [header::CONTENT_TYPE, header::CONTENT_ENCODING, header::CACHE_CONTROL, header::RETRY_AFTER];

/// A request that knows its model.
pub(super) struct Call {
    pub endpoint: Endpoint,
    pub body: Collected,
    /// The model as the client wrote it, quotes included, and as it is meant.
    pub written: Bytes,
    pub name: String,
    /// Goes along as `x-request-id`.
    pub request_id: HeaderValue,
    /// Goes along unchanged.
    pub traceparent: Option<HeaderValue>,
    pub timeout: Duration,
}

impl Call {
    fn request(&self, target: &Target, renamed: bool) -> Request<Pieces> {
        let mut request = Request::new(self.body.pieces(renamed.then_some(&target.written_id)));
        *request.method_mut() = http::Method::POST;
        *request.uri_mut() = target.uri(self.endpoint);
        let headers = request.headers_mut();
        headers.clone_from(&target.headers);
        headers.insert("x-request-id", self.request_id.clone());
        if let Some(traceparent) = &self.traceparent {
            headers.insert("traceparent", traceparent.clone());
        }
        request
    }

    /// Asks the provider. An engine of this machine is busy for as long as the answer is read.
    pub async fn run(&self, target: &Target, busy: Option<Busy>) -> Result<Response<GatewayBody>, GatewayError> {
        let renamed = self.name != target.model_id;
        let flight = target.tally.depart();
        let asking = target.origin.ask(|| self.request(target, renamed));
        let asked = tokio::time::timeout(self.timeout, asking).await;
        let model = || target.name.clone();
        let (response, lease) = match asked {
            Ok(Ok(answered)) => answered,
            Ok(Err(error)) => return Err(unreachable(target, &error)),
            Err(_) => return Err(GatewayError::TimedOut(model())),
        };
        let (head, body) = response.into_parts();
        if !head.status.is_success() {
            if target.is_node && head.headers.contains_key(NOT_SERVED) {
                return Err(GatewayError::NotServed);
            }
            let relay = Relay::new(body, lease, None, ERROR_TIME, flight).keeping(busy);
            if target.is_node {
                // Another gateway has put it into our form.
                return Ok(passed(head.status, &head.headers, GatewayBody::relay(relay)));
            }
            return Err(refused(head.status, &head.headers, relay, &target.name).await);
        }
        let rewriter = if renamed { rewriter(&head.headers, self.written.clone()) } else { None };
        let length = body.size_hint().exact();
        // The server does not even begin with a body of no length.
        let short = length == Some(0)
            || length.is_some_and(|length| length <= WHOLE_LIMIT) && matches!(rewriter, Some(Rewriter::Object(_)));
        let mut relay = Relay::new(body, lease, rewriter, self.timeout, flight).keeping(busy);
        let body = if short {
            let whole = collect(&mut relay, &target.name).await?;
            relay.answered();
            GatewayBody::full(whole)
        } else {
            relay.answered();
            GatewayBody::relay(relay)
        };
        Ok(passed(head.status, &head.headers, body))
    }
}

fn unreachable(target: &Target, error: &OriginError) -> GatewayError {
    tracing::debug!(model = target.name, address = ?target.origin.address(), ?error, "a provider was not reached");
    let (name, why) = (target.name.clone(), error.to_string());
    match target.deployment {
        // An engine of this machine that does not listen has ended, and is started again.
        Some(_) if !target.is_node && matches!(error, OriginError::Connect(_)) => GatewayError::NotServed,
        Some(deployment) => GatewayError::NoReplica { name, deployment: deployment.0, why },
        None => GatewayError::Unreachable { model: name, why },
    }
}

/// The answer with what of the provider's head concerns the client.
fn passed(status: StatusCode, headers: &HeaderMap, body: GatewayBody) -> Response<GatewayBody> {
    let mut response = Response::new(body);
    *response.status_mut() = status;
    for name in PASSED {
        if let Some(value) = headers.get(&name) {
            response.headers_mut().insert(name, value.clone());
        }
    }
    response
}

/// What puts the client's name into the answer, if that has a form in which it can be found.
fn rewriter(headers: &HeaderMap, written: Bytes) -> Option<Rewriter> {
    if headers.contains_key(header::CONTENT_ENCODING) {
        return None;
    }
    let kind = headers.get(header::CONTENT_TYPE)?.to_str().ok()?.split(';').next()?.trim();
    if kind.eq_ignore_ascii_case("text/event-stream") {
        Some(Rewriter::Events(Events::new(written)))
    } else if kind.eq_ignore_ascii_case("application/json") {
        Some(Rewriter::Object(Object::new(written)))
    } else {
        None
    }
}

/// A short answer as a whole.
async fn collect(relay: &mut Relay, model: &str) -> Result<Bytes, GatewayError> {
    let mut whole = BytesMut::new();
    while let Some(piece) = poll_fn(|cx| relay.poll_piece(cx)).await {
        whole.extend_from_slice(&piece.map_err(|error| broken(error.as_ref(), model))?);
    }
    Ok(whole.freeze())
}

/// An answer that did not come whole.
fn broken(error: &(dyn Error + 'static), model: &str) -> GatewayError {
    let model = model.to_owned();
    if error.is::<ProviderStalled>() {
        return GatewayError::TimedOut(model);
    }
    GatewayError::Unreachable { model, why: "its answer ended too early".to_owned() }
}

/// What a provider says that does not answer the question.
async fn refused(status: StatusCode, headers: &HeaderMap, mut relay: Relay, model: &str) -> GatewayError {
    let mut text = Vec::new();
    let reading = async {
        while text.len() < ERROR_LIMIT
            && let Some(Ok(piece)) = poll_fn(|cx| relay.poll_piece(cx)).await
        {
            text.extend_from_slice(&piece);
        }
    };
    if tokio::time::timeout(ERROR_TIME, reading).await.is_err() {
        tracing::debug!(model, "the error of a provider did not come whole");
    }
    translate(status, headers.get(header::RETRY_AFTER), &text, model)
}

/// Puts a provider's error into our form (vllm.md, sections 4 and 7; OpenAI's own).
fn translate(status: StatusCode, retry_after: Option<&HeaderValue>, text: &[u8], model: &str) -> GatewayError {
    let body: Value = serde_json::from_slice(text).unwrap_or_default();
    let error = body.get("error").unwrap_or(&body);
    let said =
        |value: &Value| value.as_str().filter(|text| !text.is_empty()).map(|text| text.chars().take(4000).collect());
    let message: Option<String> =
        error.get("message").and_then(said).or_else(|| said(error)).or_else(|| body.get("detail").and_then(said));
    let field = |name: &str| error.get(name).and_then(Value::as_str).unwrap_or_default();
    let param = error.get("param").and_then(Value::as_str).map(ToOwned::to_owned);
    let too_long = param.as_deref() == Some("input_tokens")
        || field("type") == "exceed_context_size_error"
        || field("code") == "context_length_exceeded";
    let generic = |what: &str| format!("the provider of the model `{model}` {what}");
    let (status, code, message) = match status.as_u16() {
        // What the provider thinks of our key is not what we think of the client's.
        401 | 403 => {
            (StatusCode::BAD_GATEWAY, "provider_rejected_key", generic("does not accept the key that is kept for it"))
        }
        // The provider may name other models that it serves.
        404 => (StatusCode::NOT_FOUND, "model_not_found", generic("does not know it, or not for this kind of request")),
        400 | 413 | 422 if too_long => {
            let message = message.unwrap_or_else(|| generic("finds the request too long"));
            (StatusCode::BAD_REQUEST, "context_length_exceeded", message)
        }
        429 => (
            StatusCode::TOO_MANY_REQUESTS,
            "rate_limit_exceeded",
            message.unwrap_or_else(|| generic("asks for patience")),
        ),
        503 => (StatusCode::SERVICE_UNAVAILABLE, "overloaded", message.unwrap_or_else(|| generic("is overloaded"))),
        // The gateway itself, at the other end of an address that leads here.
        508 if field("code") == "loop_detected" => {
            (status, "loop_detected", message.unwrap_or_else(|| generic("leads back to where it was asked")))
        }
        400..=499 => (status, "invalid_request", message.unwrap_or_else(|| generic("does not accept the request"))),
        500..=599 => (status, "upstream_error", message.unwrap_or_else(|| generic("has failed"))),
        other => (StatusCode::BAD_GATEWAY, "upstream_error", generic(&format!("answered with status {other}"))),
    };
    GatewayError::Upstream { status, code, message, param, retry_after: retry_after.cloned() }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn translated(status: u16, text: &str) -> (u16, &'static str, String, Option<String>) {
        let status = StatusCode::from_u16(status).expect("a status");
        match translate(status, None, text.as_bytes(), "ours") {
            GatewayError::Upstream { status, code, message, param, .. } => (status.as_u16(), code, message, param),
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn errors_of_providers_get_our_form() {
        let vllm = r#"{"error":{"message":"This model's maximum context length is 512 tokens.","type":"BadRequestError","param":"input_tokens","code":400}}"#;
        let (status, code, message, param) = translated(400, vllm);
        assert_eq!((status, code, param.as_deref()), (400, "context_length_exceeded", Some("input_tokens")));
        assert!(message.starts_with("This model's maximum"));
        let llama = r#"{"error":{"code":400,"message":"too long","type":"exceed_context_size_error","n_ctx":512}}"#;
        assert_eq!(translated(400, llama).1, "context_length_exceeded");
        let openai = r#"{"error":{"message":"too long","type":"invalid_request_error","param":"messages","code":"context_length_exceeded"}}"#;
        assert_eq!(translated(400, openai).1, "context_length_exceeded");
        assert_eq!(translated(400, r#"{"error":{"message":"bad","code":400}}"#).1, "invalid_request");
        assert_eq!(translated(401, r#"{"error":"Unauthorized"}"#).0, 502);
        assert_eq!(translated(503, r#"{"error":{"message":"busy","type":"Service Unavailable"}}"#).1, "overloaded");
        assert_eq!(translated(500, "plain text").2, "the provider of the model `ours` has failed");
        assert_eq!(translated(404, r#"{"detail":"Not Found"}"#).1, "model_not_found");
        assert_eq!(translated(302, "").0, 502);
    }

    #[test]
    fn other_models_of_a_provider_are_not_named() {
        let leak = r#"{"error":{"message":"The model `x` does not exist. Valid aliases: secret-model.","param":"model","code":404}}"#;
        assert!(!translated(404, leak).2.contains("secret-model"));
    }
}
