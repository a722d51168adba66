//! What a node keeps on its disk: the Raft log with its vote, the replicated state, and snapshots.
//!
//! Two sled databases and plain files, each with guards that sled itself lacks. Everything acknowledged here has been
//! `fdatasync`ed; whatever can not be trusted is set aside and named, never repaired in silence and never deleted.
//! This module knows neither openraft nor what the replicated values mean.

mod error;
mod files;
mod floor;
mod frame;
mod journal;
mod log;
mod node;
mod record;
mod sled_store;
mod snapshot;
mod state;
mod store;
#[cfg(test)]
pub(crate) mod testing;
#[cfg(test)]
mod tests;
mod watcher;

pub use error::{OpenError, StoreError, Unusable};
pub use files::{make_directory, read_small, sync_directory, write_private};
pub use floor::Floor;
pub use log::{Completion, LogPosition, LogStats, RaftLog, TailLimits};
pub use node::{DirectoryLock, NodeStorage, OpenOptions, OpenReport, quarantine, set_directory_aside};
pub use record::{Applied, Entry, LogId, Membership, Payload, StoredMembership, Vote};
pub use snapshot::{IncomingSnapshot, SnapshotFile, SnapshotStore};
pub use state::{StateStats, StateStore};
pub use store::{Batch, Database, Opener, Store, Tree};

/// The longest value that may stand in a sled database, in bytes, frame included. Longer ones would spill into sled's blob
/// files, which it never syncs.
pub const MAX_VALUE: usize = 16 * 1024 + 64;

/// The longest key, in bytes.
pub const MAX_KEY: usize = 1024;

/// The longest log entry, in bytes as encoded. A command is at most 16 KiB; the rest is room for its stamps and for
/// memberships of many nodes.
pub const MAX_ENTRY: usize = 256 * 1024;
