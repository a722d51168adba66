//! Raft. This is the only module that knows openraft; the rest of the program sees Muster's own types.

mod config;
mod log_store;
mod state_machine;

#[cfg(test)]
mod conformance;
#[cfg(test)]
mod restart;

pub use config::{Answer, Proposal, TypeConfig};
pub use log_store::LogStore;
pub use state_machine::{SnapshotBuilder, StateMachine};
