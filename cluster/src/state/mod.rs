//! The replicated state: what every node holds alike, and the deterministic step that changes it.

mod audit;
mod configs;
mod credentials;
mod deployments;
mod fleet;
mod keys;
mod machine;
mod models;
mod names;
mod node_admin;
mod once;
mod placements;
mod published;
mod purge;
mod retention;
mod settings;
mod step;
mod tables;
mod totals;
mod view;

#[cfg(test)]
mod tests;

use bytes::Bytes;

pub use credentials::{USES_AT_ONCE, has_expired, key_hash, scope};
pub use deployments::environment_name;
pub use fleet::{FEATURE_LEVELS, NODE_LIMIT};
pub use keys::RECOVERY;
pub use machine::Fleet;
pub use models::{api_key_name, is_id, litellm_base};
pub use names::name_key;
pub use node_admin::{Maintenance, NodePolicy};
pub use once::{CLIENT_RETENTION_MS, CLIENT_WINDOW, KEY_RETENTION_MS, key_digest};
pub use placements::{Held, holds, on_node_loss};
pub use published::{Batch, Changes, Lagged, Published};
pub use purge::PURGE_LIMIT;
pub use retention::SWEEP_LIMIT;
pub use settings::changed as changed_settings;
pub use step::{Damaged, Row, Stored};
pub use tables::{Change, Fingerprint, Mark, Record, RecordKey, TableId, Tables};
pub use totals::{Done, TOTALS_AT_ONCE};
pub use view::View;

use crate::storage::LogId;

/// The meaning of commands: turns one command into writes.
///
/// It must be deterministic: no clock, no randomness, no I/O, nothing but the tables and the arguments.
pub trait Machine: Send + 'static {
    /// Applies the command at this position of the log and returns the encoded answer.
    ///
    /// # Errors
    /// When this node can not carry the command out although the fleet has agreed on it: it is of a kind that this version
    /// does not know, or it is damaged. The node stops then; skipping it would let the replicas drift apart. A command
    /// that is merely refused by the domain's rules is an answer, not an error.
    fn apply(&mut self, tables: &mut Tables, at: LogId, command: &[u8]) -> Result<Bytes, ApplyError>;
}

/// This node can not apply a committed command.
#[derive(Clone, Debug, thiserror::Error)]
#[error("entry {index} can not be applied by this version: {why}")]
pub struct ApplyError {
    /// The entry.
    pub index: u64,
    /// What is wrong with it.
    pub why: String,
}
