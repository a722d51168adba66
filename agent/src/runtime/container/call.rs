//! Calls to a daemon: each has a limit, and an error that says what may be done about it.

use std::future::Future;
use std::time::Duration;

use bollard::errors::Error;

use super::flavour::Flavour;
use crate::runtime::RuntimeError;

/// How much of a daemon's message is passed on.
const MESSAGE_LIMIT: usize = 600;

/// Why a call did not do what it should.
#[derive(Debug, thiserror::Error)]
pub(super) enum CallError {
    /// Nobody is at the socket, or the connection broke.
    #[error("{0}")]
    Unreachable(String),
    /// No answer in time.
    #[error("it did not answer in time")]
    Silent,
    /// The daemon refused.
    #[error("{message}")]
    Refused {
        /// The status of its answer.
        status: u16,
        /// What it says.
        message: String,
    },
    /// It answered what can not be understood, or reported an error in the middle of an answer.
    #[error("{0}")]
    Odd(String),
}

impl CallError {
    /// Whether the daemon says that there is no such thing.
    pub(super) fn is_missing(&self) -> bool {
        match self {
            // Podman says it like this of a container that goes while it is asked about.
            Self::Refused { message, .. } if message.contains("no such container") => true,
            Self::Refused { status, .. } => *status == 404,
            _ => false,
        }
    }

    /// Whether the daemon says that something is in the way.
    pub(super) fn is_conflict(&self) -> bool {
        match self {
            // Podman says it like this.
            Self::Refused { message, .. }
                if message.contains("already exists") || message.contains("already in use") =>
            {
                true
            }
            Self::Refused { status, .. } => *status == 409,
            _ => false,
        }
    }

    /// Whether no answer came in time.
    pub(super) fn is_silence(&self) -> bool {
        matches!(self, Self::Silent)
    }

    /// The same for whoever asked the runtime.
    pub(super) fn of(self, flavour: Flavour) -> RuntimeError {
        let runtime = flavour.kind();
        match self {
            Self::Unreachable(_) | Self::Silent => RuntimeError::Unavailable { runtime, why: self.to_string() },
            Self::Refused { .. } | Self::Odd(_) => RuntimeError::Failed { runtime, why: self.to_string() },
        }
    }
}

impl From<Error> for CallError {
    fn from(error: Error) -> Self {
        match error {
            Error::DockerResponseServerError { status_code, message } => {
                Self::Refused { status: status_code, message: shortened(&message) }
            }
            Error::RequestTimeoutError => Self::Silent,
            Error::DockerStreamError { error } => Self::Odd(shortened(&error)),
            Error::SocketNotFoundError(path) => Self::Unreachable(format!("there is no socket {path}")),
            Error::IOError { .. } | Error::HyperResponseError { .. } | Error::HyperLegacyError { .. } => {
                Self::Unreachable(shortened(&with_causes(&error)))
            }
            other => Self::Odd(shortened(&other.to_string())),
        }
    }
}

/// An error and what it came from, in one line.
fn with_causes(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(inner) = cause {
        let said = inner.to_string();
        if !text.contains(&said) {
            text.push_str(": ");
            text.push_str(&said);
        }
        cause = inner.source();
    }
    text
}

/// One line of bounded length.
pub(super) fn shortened(message: &str) -> String {
    let line = message.trim().replace(['\n', '\r'], " ");
    match line.char_indices().nth(MESSAGE_LIMIT) {
        Some((end, _)) => format!("{}...", &line[..end]),
        None => line,
    }
}

/// The outcome of a call that may take so long and no longer.
pub(super) async fn within<T>(limit: Duration, call: impl Future<Output = Result<T, Error>>) -> Result<T, CallError> {
    match tokio::time::timeout(limit, call).await {
        Ok(outcome) => outcome.map_err(CallError::from),
        Err(_) => Err(CallError::Silent),
    }
}
