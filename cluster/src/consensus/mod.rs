//! Raft. This is the only module that knows openraft; the rest of the program sees Muster's own types.

mod config;
#[cfg(test)]
mod conformance;
mod log_store;
mod state_machine;

pub use config::{Answer, Proposal, TypeConfig};
pub use log_store::LogStore;
pub use state_machine::{SnapshotBuilder, StateMachine};
