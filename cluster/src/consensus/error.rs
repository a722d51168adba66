//! Why a write or a read did not happen.

use std::time::Duration;

use crate::ids::NodeId;
use crate::state::Damaged;

/// Why a write has no answer.
#[derive(Clone, Debug, thiserror::Error)]
pub enum ProposeError {
    /// The command is too long. The caller's side; trying again does not help.
    #[error("the command takes {bytes} bytes; the limit is {limit}")]
    TooLarge {
        /// Its length.
        bytes: usize,
        /// The limit.
        limit: usize,
    },
    /// Too many writes are under way on this node. Nothing was done; it may help to try again.
    #[error("too many writes are under way on this node")]
    Overloaded,
    /// There is no leader that a quorum follows. Nothing was done; it may help to try again.
    #[error("there is no leader: too few voters are up, or an election is under way")]
    NoLeader,
    /// Another node leads. Nothing was done.
    #[error("node {0} leads")]
    NotLeader(NodeId),
    /// Nobody knows whether it was done. A repetition with the same identity is safe.
    #[error("no answer within {waited:?}; it may have been done")]
    Unknown {
        /// How long it was waited for; zero when the leader changed on the way.
        waited: Duration,
        /// The identity of the write as text, if it has one (see [`crate::consensus::retry_key`]).
        retry_key: Option<String>,
    },
    /// The node has stopped.
    #[error("this node has stopped: {0}")]
    Stopped(String),
    /// The answer can not be read.
    #[error("the answer can not be read: {0}")]
    Answer(String),
}

/// Why a read has no answer.
#[derive(Clone, Debug, thiserror::Error)]
pub enum ReadError {
    /// Another node leads, and this one is to be asked.
    #[error("node {0} leads")]
    NotLeader(NodeId),
    /// No quorum confirmed in time that this node's state is the newest. It may help to try again.
    #[error("no quorum confirms that this is the newest state")]
    NoQuorum,
    /// The node has stopped.
    #[error("this node has stopped: {0}")]
    Stopped(String),
    /// The state is damaged.
    #[error(transparent)]
    Damaged(#[from] Damaged),
}
