//! Raft. This is the only module that knows openraft; the rest of the program sees Muster's own types.

mod alone;
mod config;
mod convert;
mod error;
mod forward;
mod in_flight;
mod log_store;
mod network;
mod propose;
mod raft;
mod service;
mod snapshots;
mod state_machine;
mod timing;
mod transfer;

#[cfg(test)]
mod conformance;
#[cfg(test)]
mod restart;

pub use config::{Answer, Proposal, TypeConfig};
pub use error::{ProposeError, ReadError};
pub use forward::answer_reads;
pub use log_store::LogStore;
pub use raft::{Consensus, MAX_COMMAND, Options, Role, Status, parse_retry_key, retry_key};
pub use state_machine::{SnapshotBuilder, StateMachine};
pub use timing::Timing;
pub use transfer::{PASS_ON_LIMIT, Transferred, Unable};
