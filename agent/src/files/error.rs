//! What can go wrong with files, in words for the person who asked, and whose side it is.

use std::io;

/// Whose side a failure is, and what answer it deserves.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ErrorKind {
    /// The request names something invalid, or sends something unusable (400).
    Invalid,
    /// What is asked for is not there (404).
    NotFound,
    /// It exists already, is in use, or is being worked on (409).
    Conflict,
    /// It is larger than this node accepts (413).
    TooLarge,
    /// The machine that files are pulled from does not deliver (502).
    Upstream,
    /// As much is going on as this node does at once; later it may work (503).
    Busy,
    /// The disk has no room for it (507).
    NoRoom,
    /// This node failed (500).
    Own,
}

/// Why something was not done with files. Nothing half-done is left behind.
#[derive(Debug, thiserror::Error)]
pub enum FilesError {
    /// The caller named or sent something invalid.
    #[error("{0}")]
    Invalid(String),
    /// What was asked for is not there.
    #[error("{0}")]
    NotFound(String),
    /// It exists already, is in use, or is being worked on.
    #[error("{0}")]
    Conflict(String),
    /// It is larger than this node accepts.
    #[error("{0}")]
    TooLarge(String),
    /// As much is going on as this node does at once.
    #[error("{0}")]
    Busy(String),
    /// The disk has no room.
    #[error("{0}")]
    NoRoom(String),
    /// A pull did not succeed because of the other side.
    #[error("{0}")]
    Upstream(String),
    /// The caller's stream ended before it was complete.
    #[error("the transfer broke off before it was complete")]
    BrokenOff,
    /// It was cancelled by somebody.
    #[error("it was cancelled")]
    Cancelled,
    /// The node's disk failed.
    #[error("{what}: {source}")]
    Io {
        /// What was tried.
        what: &'static str,
        /// What the system says.
        source: io::Error,
    },
    /// The work was given up because this node shuts down or its code failed.
    #[error("this node gave the work up")]
    GivenUp,
}

impl FilesError {
    /// Whose side it is.
    #[must_use]
    pub fn kind(&self) -> ErrorKind {
        match self {
            Self::Invalid(_) | Self::BrokenOff => ErrorKind::Invalid,
            Self::NotFound(_) => ErrorKind::NotFound,
            Self::Conflict(_) | Self::Cancelled => ErrorKind::Conflict,
            Self::TooLarge(_) => ErrorKind::TooLarge,
            Self::Busy(_) => ErrorKind::Busy,
            Self::NoRoom(_) => ErrorKind::NoRoom,
            Self::Upstream(_) => ErrorKind::Upstream,
            Self::Io { .. } | Self::GivenUp => ErrorKind::Own,
        }
    }

    /// What the system says, told apart by whose side it is.
    pub(super) fn io(what: &'static str, source: io::Error) -> Self {
        match source.kind() {
            io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => {
                Self::NoRoom(format!("{what}: the disk of this node is full"))
            }
            io::ErrorKind::InvalidFilename => Self::Invalid(format!("{what}: a name is too long for this node's disk")),
            _ => Self::Io { what, source },
        }
    }
}

/// Runs blocking work on the threads that are there for it.
pub(super) async fn blocking<T, F>(work: F) -> Result<T, FilesError>
where
    T: Send + 'static,
    F: FnOnce() -> Result<T, FilesError> + Send + 'static,
{
    tokio::task::spawn_blocking(work).await.unwrap_or(Err(FilesError::GivenUp))
}
