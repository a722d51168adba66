//! The model files of a node, for itself and for other nodes: the library of `files` behind one set of calls, which are carried
//! out here or asked of the node that they are about.

mod ask;
mod occupied;
mod own;
mod parts;
mod service;
mod told;

/// The protobuf messages and services of `proto/files.proto`.
#[allow(missing_docs, clippy::pedantic, clippy::unwrap_used, unused_qualifications)]
pub mod wire {
    include!(concat!(env!("OUT_DIR"), "/muster.files.v1.rs"));
}

use muster_cluster::ids::NodeId;

pub use ask::{FilesOf, Sending};
use occupied::Occupied;
pub(crate) use occupied::{is_local, models};
pub use own::OwnFiles;
pub(super) use service::add;

use super::NoSight;
use crate::files::{ErrorKind, FilesError};

/// A node has refused something, and this is why.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{message}")]
pub struct Refused {
    /// Whose side it is.
    pub kind: ErrorKind,
    /// Why, for the person who asked.
    pub message: String,
}

impl From<FilesError> for Refused {
    fn from(error: FilesError) -> Self {
        Self { kind: error.kind(), message: error.to_string() }
    }
}

/// Why something was not done with the files of a node.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum FilesProblem {
    /// The node has refused it.
    #[error(transparent)]
    Refused(#[from] Refused),
    /// The node does not answer. What was asked for may have been done.
    #[error(transparent)]
    Unreachable(#[from] NoSight),
}

impl FilesProblem {
    fn unreachable(node: NodeId, why: impl Into<String>) -> Self {
        Self::Unreachable(NoSight { node, why: why.into() })
    }
}
