//! The one place where an error becomes a status and a body (DECISIONS, "Errors").

use axum::response::{IntoResponse, Response};
use http::{HeaderValue, StatusCode, header};
use muster_agent::host::NoSight;
use muster_cluster::consensus::{ProposeError, ReadError};
use muster_cluster::rows::{Refusal, RefusalKind};
use muster_cluster::sealing::SealingError;
use muster_cluster::state::Damaged;
use serde::Serialize;
use utoipa::ToSchema;

/// What is wrong with one field of a request.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FieldError {
    /// The field as the caller wrote it.
    pub field: String,
    /// What it must be.
    pub why: String,
}

/// Why a request to `/api/*` was not carried out. Nothing is stored on any of them, but for [`ApiError::Unknown`].
#[derive(Clone, Debug, thiserror::Error)]
pub enum ApiError {
    /// The body is not JSON.
    #[error("the body is not JSON")]
    NotJson(String),
    /// Well formed, but naming something invalid, or contradicting itself.
    #[error("the request makes no sense")]
    Senseless(String),
    /// Fields of the wrong type or out of range.
    #[error("the request has invalid fields")]
    Invalid(Vec<FieldError>),
    /// No credential, or one that is not valid.
    #[error("this needs a valid credential")]
    Unauthorized(&'static str),
    /// A valid credential that may not do this.
    #[error("this credential may not do that")]
    Forbidden(&'static str),
    /// There is no such thing.
    #[error("not found")]
    NotFound(String),
    /// There is such a path, but not for this method.
    #[error("this method is not allowed here")]
    MethodNotAllowed,
    /// It contradicts what is there.
    #[error("it conflicts with what is there")]
    Conflict(String),
    /// The caller has seen an older version.
    #[error("it has changed in the meantime")]
    PreconditionFailed(String),
    /// An Idempotency-Key that was used with another request.
    #[error("this Idempotency-Key belongs to another request")]
    KeyReused(String),
    /// A repeated request whose answer is no longer kept.
    #[error("the answer is no longer kept")]
    AnswerGone(String),
    /// The body is too large.
    #[error("the request is too large")]
    TooLarge(String),
    /// The body did not arrive in time.
    #[error("the request did not arrive in time")]
    TooSlow,
    /// No quorum. It may help to try again.
    #[error("the fleet has no quorum")]
    NoQuorum(String),
    /// Too much at once. It may help to try again.
    #[error("this node is overloaded")]
    Overloaded(String),
    /// This node is not ready. It may help to try again.
    #[error("this node is not ready")]
    NotReady(String),
    /// Another node, which this is about, does not answer.
    #[error("the node does not answer")]
    Unreachable(String),
    /// Somebody else's machine does not deliver what was asked for.
    #[error("what it comes from does not deliver")]
    Upstream(String),
    /// The node's disk has no room for it.
    #[error("there is no room for it")]
    NoRoom(String),
    /// No container runtime can be used on the node that has to do it. It may help to try again.
    #[error("no container runtime can be used there")]
    NoRuntime(String),
    /// The outcome is unknown. A repetition with this key is safe.
    #[error("the outcome is unknown")]
    Unknown {
        /// The Idempotency-Key to repeat the request with.
        retry_key: Option<String>,
    },
    /// A later version will do this.
    #[error("this is not available yet")]
    NotImplemented(&'static str),
    /// Our fault.
    #[error("something is wrong on this node")]
    Internal(String),
}

/// The body of every error of `/api/*`.
#[derive(Debug, Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct ErrorBody {
    /// What happened, in words.
    #[schema(example = "not found")]
    pub error: String,
    /// What happened, for programs.
    #[schema(example = "NOT_FOUND")]
    pub code: String,
    /// What exactly, naming every field that is wrong.
    pub detail: String,
    /// The request, as it stands in the logs and the audit trail.
    pub request_id: String,
    /// The Idempotency-Key with which the request can be repeated, when its outcome is unknown.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub idempotency_key: Option<String>,
}

/// How long a caller shall wait before trying again, in seconds.
const RETRY_AFTER: HeaderValue = HeaderValue::from_static("1");

impl ApiError {
    /// One field is wrong.
    pub fn field(field: impl Into<String>, why: impl Into<String>) -> Self {
        Self::Invalid(vec![FieldError { field: field.into(), why: why.into() }])
    }

    fn kind(&self) -> (StatusCode, &'static str) {
        match self {
            Self::NotJson(_) => (StatusCode::BAD_REQUEST, "MALFORMED"),
            Self::Senseless(_) => (StatusCode::BAD_REQUEST, "BAD_REQUEST"),
            Self::Invalid(_) => (StatusCode::UNPROCESSABLE_ENTITY, "UNPROCESSABLE_ENTITY"),
            Self::Unauthorized(_) => (StatusCode::UNAUTHORIZED, "UNAUTHORIZED"),
            Self::Forbidden(_) => (StatusCode::FORBIDDEN, "FORBIDDEN"),
            Self::NotFound(_) => (StatusCode::NOT_FOUND, "NOT_FOUND"),
            Self::MethodNotAllowed => (StatusCode::METHOD_NOT_ALLOWED, "METHOD_NOT_ALLOWED"),
            Self::Conflict(_) => (StatusCode::CONFLICT, "CONFLICT"),
            Self::PreconditionFailed(_) => (StatusCode::PRECONDITION_FAILED, "PRECONDITION_FAILED"),
            Self::KeyReused(_) => (StatusCode::UNPROCESSABLE_ENTITY, "IDEMPOTENCY_KEY_REUSED"),
            Self::AnswerGone(_) => (StatusCode::CONFLICT, "ANSWER_GONE"),
            Self::TooLarge(_) => (StatusCode::PAYLOAD_TOO_LARGE, "CONTENT_TOO_LARGE"),
            Self::TooSlow => (StatusCode::REQUEST_TIMEOUT, "REQUEST_TIMEOUT"),
            Self::NoQuorum(_) => (StatusCode::SERVICE_UNAVAILABLE, "NO_QUORUM"),
            Self::Overloaded(_) => (StatusCode::SERVICE_UNAVAILABLE, "OVERLOADED"),
            Self::NotReady(_) => (StatusCode::SERVICE_UNAVAILABLE, "UNAVAILABLE"),
            Self::Unreachable(_) => (StatusCode::BAD_GATEWAY, "NODE_UNREACHABLE"),
            Self::Upstream(_) => (StatusCode::BAD_GATEWAY, "UPSTREAM_FAILED"),
            Self::NoRoom(_) => (StatusCode::INSUFFICIENT_STORAGE, "INSUFFICIENT_STORAGE"),
            Self::NoRuntime(_) => (StatusCode::SERVICE_UNAVAILABLE, "NO_RUNTIME"),
            Self::Unknown { .. } => (StatusCode::GATEWAY_TIMEOUT, "OUTCOME_UNKNOWN"),
            Self::NotImplemented(_) => (StatusCode::NOT_IMPLEMENTED, "NOT_IMPLEMENTED"),
            Self::Internal(_) => (StatusCode::INTERNAL_SERVER_ERROR, "INTERNAL_ERROR"),
        }
    }

    fn detail(&self) -> String {
        match self {
            Self::Invalid(fields) => {
                let list: Vec<_> = fields.iter().map(|field| format!("{}: {}", field.field, field.why)).collect();
                list.join("; ")
            }
            Self::NotJson(text)
            | Self::Senseless(text)
            | Self::NotFound(text)
            | Self::Conflict(text)
            | Self::PreconditionFailed(text)
            | Self::KeyReused(text)
            | Self::AnswerGone(text)
            | Self::TooLarge(text)
            | Self::NoQuorum(text)
            | Self::Overloaded(text)
            | Self::NotReady(text)
            | Self::Unreachable(text)
            | Self::NoRuntime(text)
            | Self::Upstream(text)
            | Self::NoRoom(text) => text.clone(),
            Self::Unauthorized(text) | Self::Forbidden(text) | Self::NotImplemented(text) => (*text).to_owned(),
            Self::MethodNotAllowed => "see the header Allow".to_owned(),
            Self::TooSlow => "the body stopped coming".to_owned(),
            Self::Unknown { .. } => {
                "it may have been done; repeat it with this Idempotency-Key to learn the outcome".to_owned()
            }
            // What exactly is for the operator's log.
            Self::Internal(_) => "the log of this node says more under this request id".to_owned(),
        }
    }

    /// The body and the headers, for this request.
    pub(crate) fn render(&self, request_id: &str) -> Response {
        let (status, code) = self.kind();
        if let Self::Internal(why) = self {
            tracing::error!(request_id, why, "a request failed on our side");
        }
        let retry_key = match self {
            Self::Unknown { retry_key } => retry_key.clone(),
            _ => None,
        };
        let body = ErrorBody {
            error: self.to_string(),
            code: code.to_owned(),
            detail: self.detail(),
            request_id: request_id.to_owned(),
            idempotency_key: retry_key,
        };
        let mut response = (status, axum::Json(body)).into_response();
        if status == StatusCode::SERVICE_UNAVAILABLE {
            response.headers_mut().insert(header::RETRY_AFTER, RETRY_AFTER);
        }
        if status == StatusCode::UNAUTHORIZED {
            let challenge = HeaderValue::from_static("Bearer realm=\"muster\"");
            response.headers_mut().insert(header::WWW_AUTHENTICATE, challenge);
        }
        response
    }
}

impl IntoResponse for ApiError {
    /// The status only; the body needs the request's id, which the middleware knows (see `context`).
    fn into_response(self) -> Response {
        let mut response = self.kind().0.into_response();
        response.extensions_mut().insert(self);
        response
    }
}

impl From<ProposeError> for ApiError {
    fn from(error: ProposeError) -> Self {
        let text = error.to_string();
        match error {
            ProposeError::TooLarge { .. } => Self::TooLarge(text),
            ProposeError::Overloaded => Self::Overloaded(text),
            ProposeError::NoLeader | ProposeError::NotLeader(_) => Self::NoQuorum(text),
            ProposeError::Unknown { retry_key, .. } => Self::Unknown { retry_key },
            ProposeError::Stopped(_) => Self::NotReady(text),
            ProposeError::Answer(_) => Self::Internal(text),
        }
    }
}

impl From<ReadError> for ApiError {
    fn from(error: ReadError) -> Self {
        let text = error.to_string();
        match error {
            ReadError::NoQuorum | ReadError::NotLeader(_) => Self::NoQuorum(text),
            ReadError::Stopped(_) => Self::NotReady(text),
            ReadError::Damaged(_) => Self::Internal(text),
        }
    }
}

impl From<Refusal> for ApiError {
    fn from(refusal: Refusal) -> Self {
        let kind = refusal.kind();
        let text = refusal.message;
        match kind {
            RefusalKind::NotFound => Self::NotFound(text),
            RefusalKind::Conflict | RefusalKind::FeatureLevel => Self::Conflict(text),
            RefusalKind::PreconditionFailed => Self::PreconditionFailed(text),
            RefusalKind::KeyReused => Self::KeyReused(text),
            RefusalKind::AnswerGone => Self::AnswerGone(text),
            RefusalKind::TooLarge => Self::TooLarge(text),
            RefusalKind::Invalid => Self::Senseless(text),
            RefusalKind::OldOffice | RefusalKind::OldEpoch | RefusalKind::Denied | RefusalKind::Unspecified => {
                Self::Internal(text)
            }
        }
    }
}

impl From<NoSight> for ApiError {
    fn from(error: NoSight) -> Self {
        Self::Unreachable(error.to_string())
    }
}

impl From<Damaged> for ApiError {
    fn from(damaged: Damaged) -> Self {
        Self::Internal(damaged.to_string())
    }
}

impl From<SealingError> for ApiError {
    fn from(error: SealingError) -> Self {
        Self::Internal(error.to_string())
    }
}
