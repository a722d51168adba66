//! What a caller of a model is told when it does not get an answer: the error object of OpenAI, for every status.

use bytes::Bytes;
use http::{HeaderValue, Response, StatusCode, header};
use muster_cluster::state::Damaged;
use serde::Serialize;

use super::body::GatewayBody;
use super::target::NOT_SERVED;

/// Why a request to a model was not answered by the model.
#[derive(Clone, Debug, thiserror::Error)]
pub(crate) enum GatewayError {
    /// No key, or one that is worth nothing. The caller's fault.
    #[error("{0}")]
    InvalidKey(&'static str),
    /// The body is not a JSON object. The caller's fault.
    #[error("the request body is not valid JSON: {0}")]
    InvalidJson(&'static str),
    /// The body names no model. The caller's fault.
    #[error("the request must name a model: `model` must be a string")]
    MissingModel,
    /// No model has this name.
    #[error("the model `{0}` does not exist, or this key may not use it")]
    ModelNotFound(String),
    /// No deployment has this name either. The caller is told what it may use.
    #[error("the model `{name}` does not exist, or this key may not use it; it may use: {others}")]
    UnknownName {
        /// The name.
        name: String,
        /// What there is.
        others: String,
    },
    /// Several deployments run a model of this name.
    #[error("the model `{name}` is served by several deployments; use one of their names: {names}")]
    Ambiguous {
        /// The name.
        name: String,
        /// What they are served as.
        names: String,
    },
    /// It is being started. It will help to try again.
    #[error("the model `{name}` is still being loaded (deployment {deployment}); try again shortly")]
    Loading {
        /// The name.
        name: String,
        /// The deployment.
        deployment: u64,
    },
    /// No replica of a deployment answers. It may help to try again.
    #[error("deployment {deployment}, which serves `{name}`, does not respond: {why}")]
    NoReplica {
        /// The name.
        name: String,
        /// The deployment.
        deployment: u64,
        /// What happened, without addresses.
        why: String,
    },
    /// The node that was asked does not serve this replica now.
    #[error("this node does not serve this replica now")]
    NotServed,
    /// There is such a model, and the key may not use it. It is told of no other.
    #[error("this key may not use the model `{0}`")]
    AccessDenied(String),
    /// The key may not use what this listener serves. It is not told what that is.
    #[error("this key may not use the model that is served here")]
    DoorDenied,
    /// The body is longer than this many bytes.
    #[error("the request body is longer than {0} bytes")]
    TooLarge(usize),
    /// The body came too slowly, or not whole.
    #[error("{0}")]
    BadBody(&'static str),
    /// There is no such path.
    #[error("there is nothing at this path")]
    NoRoute,
    /// There is, but not for this method.
    #[error("this path answers {0} only")]
    WrongMethod(&'static str),
    /// The model's address leads back here.
    #[error("the address of this model leads back to this fleet's own gateway")]
    Loop,
    /// The gateway is switched off. It may help to try again.
    #[error("the gateway of this fleet is switched off")]
    Disabled,
    /// This node is not ready. It may help to try again.
    #[error("this node is not ready: {0}")]
    NotReady(&'static str),
    /// Too much at once. It may help to try again.
    #[error("this node holds too many requests; try again later")]
    Overloaded,
    /// The model's provider can not be called by this version.
    #[error("the provider of the model `{model}` can not be called: {why}")]
    Unsupported {
        /// The model.
        model: String,
        /// What is missing.
        why: &'static str,
    },
    /// The provider did not answer. It may help to try again.
    #[error("the provider of the model `{model}` can not be reached: {why}")]
    Unreachable {
        /// The model.
        model: String,
        /// What happened, without addresses.
        why: String,
    },
    /// The provider took too long.
    #[error("the provider of the model `{0}` did not answer in time")]
    TimedOut(String),
    /// The provider answered with an error of its own, put in our form.
    #[error("{message}")]
    Upstream {
        /// Its status, or the one that is ours for it.
        status: StatusCode,
        /// The code for programs.
        code: &'static str,
        /// What the provider said.
        message: String,
        /// The field that is wrong, if the provider names one.
        param: Option<String>,
        /// When to try again, if the provider says so.
        retry_after: Option<HeaderValue>,
    },
    /// Our fault.
    #[error("something is wrong on this node")]
    Internal(String),
}

#[derive(Serialize)]
struct Outer<'a> {
    error: Inner<'a>,
}

#[derive(Serialize)]
struct Inner<'a> {
    message: &'a str,
    r#type: &'a str,
    param: Option<&'a str>,
    code: &'a str,
}

/// How long a caller shall wait before trying again, in seconds.
const RETRY_AFTER: HeaderValue = HeaderValue::from_static("1");

const JSON: HeaderValue = HeaderValue::from_static("application/json");

impl GatewayError {
    fn kind(&self) -> (StatusCode, &'static str) {
        match self {
            Self::InvalidKey(_) => (StatusCode::UNAUTHORIZED, "invalid_api_key"),
            Self::InvalidJson(_) => (StatusCode::BAD_REQUEST, "invalid_json"),
            Self::MissingModel => (StatusCode::BAD_REQUEST, "missing_model"),
            Self::ModelNotFound(_) => (StatusCode::NOT_FOUND, "model_not_found"),
            Self::UnknownName { .. } => (StatusCode::NOT_FOUND, "model_not_found"),
            Self::Ambiguous { .. } => (StatusCode::BAD_REQUEST, "model_ambiguous"),
            Self::Loading { .. } | Self::NotServed => (StatusCode::SERVICE_UNAVAILABLE, "model_loading"),
            Self::NoReplica { .. } => (StatusCode::BAD_GATEWAY, "deployment_unreachable"),
            Self::AccessDenied(_) | Self::DoorDenied => (StatusCode::FORBIDDEN, "model_access_denied"),
            Self::TooLarge(_) => (StatusCode::PAYLOAD_TOO_LARGE, "request_too_large"),
            Self::BadBody(_) => (StatusCode::REQUEST_TIMEOUT, "incomplete_body"),
            Self::NoRoute => (StatusCode::NOT_FOUND, "not_found"),
            Self::WrongMethod(_) => (StatusCode::METHOD_NOT_ALLOWED, "method_not_allowed"),
            Self::Loop => (StatusCode::LOOP_DETECTED, "loop_detected"),
            Self::Disabled => (StatusCode::SERVICE_UNAVAILABLE, "gateway_disabled"),
            Self::NotReady(_) => (StatusCode::SERVICE_UNAVAILABLE, "not_ready"),
            Self::Overloaded => (StatusCode::SERVICE_UNAVAILABLE, "overloaded"),
            Self::Unsupported { .. } => (StatusCode::NOT_IMPLEMENTED, "provider_not_supported"),
            Self::Unreachable { .. } => (StatusCode::BAD_GATEWAY, "provider_unreachable"),
            Self::TimedOut(_) => (StatusCode::GATEWAY_TIMEOUT, "provider_timeout"),
            Self::Upstream { status, code, .. } => (*status, code),
            Self::Internal(_) => (StatusCode::INTERNAL_SERVER_ERROR, "internal_error"),
        }
    }

    /// The answer.
    pub(crate) fn respond(&self) -> Response<GatewayBody> {
        let (status, code) = self.kind();
        if let Self::Internal(why) = self {
            tracing::error!(why, "the gateway has failed");
        }
        let r#type = match status {
            StatusCode::UNAUTHORIZED => "authentication_error",
            StatusCode::FORBIDDEN => "permission_error",
            StatusCode::TOO_MANY_REQUESTS => "rate_limit_error",
            StatusCode::BAD_GATEWAY | StatusCode::GATEWAY_TIMEOUT => "upstream_error",
            _ if code == "model_loading" => "upstream_error",
            _ if matches!(self, Self::Upstream { .. }) && status.is_server_error() => "upstream_error",
            _ if status.is_client_error() => "invalid_request_error",
            _ => "server_error",
        };
        // Our own errors name none, as in seed 004.
        let param = if let Self::Upstream { param, .. } = self { param.as_deref() } else { None };
        let message = self.to_string();
        let body = Outer { error: Inner { message: &message, r#type, param, code } };
        // Texts and numbers always have a JSON form.
        let body = serde_json::to_vec(&body).unwrap_or_default();
        let mut response = Response::new(GatewayBody::full(Bytes::from(body)));
        *response.status_mut() = status;
        let headers = response.headers_mut();
        headers.insert(header::CONTENT_TYPE, JSON);
        let retry = match self {
            Self::Upstream { retry_after: Some(after), .. } => Some(after.clone()),
            _ if matches!(status, StatusCode::TOO_MANY_REQUESTS | StatusCode::SERVICE_UNAVAILABLE) => Some(RETRY_AFTER),
            _ => None,
        };
        if let Some(after) = retry {
            headers.insert(header::RETRY_AFTER, after);
        }
        match self {
            Self::NotServed => drop(headers.insert(NOT_SERVED, HeaderValue::from_static("1"))),
            Self::InvalidKey(_) => drop(headers.insert(header::WWW_AUTHENTICATE, HeaderValue::from_static("Bearer"))),
            Self::WrongMethod(allowed) => drop(headers.insert(header::ALLOW, HeaderValue::from_static(allowed))),
            _ => {}
        }
        response
    }
}

impl From<Damaged> for GatewayError {
    fn from(damaged: Damaged) -> Self {
        Self::Internal(damaged.to_string())
    }
}
