//! [`RaftLog`] as openraft's log storage.

use std::fmt::Debug;
use std::io;
use std::ops::{Bound, RangeBounds};
use std::sync::Arc;

use openraft::alias::{EntryOf, LogIdOf, VoteOf};
use openraft::storage::{IOFlushed, LogState, RaftLogStorage};
use openraft::{OptionalSend, RaftLogReader};

use super::config::{TypeConfig, from_entry, from_log_id, from_vote, to_entry, to_log_id, to_vote};
use crate::storage::{RaftLog, StateStore};

/// How many bytes of entries one AppendEntries carries at most. openraft has no other limit: a payload that does not
/// cross the link within a heartbeat interval would be sent again for ever.
const REPLICATION_BYTES: usize = 256 * 1024;

/// The log of this node, as openraft sees it. Clones share it.
#[derive(Clone)]
pub struct LogStore {
    log: Arc<RaftLog>,
    state: Arc<StateStore>,
}

impl LogStore {
    /// Puts openraft's interface over an open log. The state is needed because nothing may be purged from the log before
    /// its effect is durable.
    #[must_use]
    pub fn new(log: Arc<RaftLog>, state: Arc<StateStore>) -> Self {
        Self { log, state }
    }

    async fn read(&self, from: u64, to: u64, bytes: usize) -> io::Result<Vec<EntryOf<TypeConfig>>> {
        let log = Arc::clone(&self.log);
        // Almost always answered from memory; when the disk is needed, it must not be waited for on the Raft runtime.
        let entries = match log.read_in_memory(from, to, bytes) {
            Some(entries) => entries,
            None => tokio::task::spawn_blocking(move || log.read_up_to(from, to, bytes)).await??,
        };
        Ok(entries.into_iter().map(from_entry).collect())
    }
}

impl RaftLogReader<TypeConfig> for LogStore {
    async fn try_get_log_entries<RB: RangeBounds<u64> + Clone + Debug + OptionalSend>(
        &mut self,
        range: RB,
    ) -> io::Result<Vec<EntryOf<TypeConfig>>> {
        let from = match range.start_bound() {
            Bound::Included(from) => *from,
            Bound::Excluded(before) => before.saturating_add(1),
            Bound::Unbounded => 0,
        };
        let to = match range.end_bound() {
            Bound::Included(last) => last.saturating_add(1),
            Bound::Excluded(to) => *to,
            Bound::Unbounded => u64::MAX,
        };
        self.read(from, to, usize::MAX).await
    }

    async fn limited_get_log_entries(&mut self, start: u64, end: u64) -> io::Result<Vec<EntryOf<TypeConfig>>> {
        self.read(start, end, REPLICATION_BYTES).await
    }

    async fn read_vote(&mut self) -> io::Result<Option<VoteOf<TypeConfig>>> {
        Ok(self.log.vote().map(from_vote))
    }
}

impl RaftLogStorage<TypeConfig> for LogStore {
    type LogReader = Self;

    async fn get_log_state(&mut self) -> io::Result<LogState<TypeConfig>> {
        // Asked when Raft starts, which takes everything it is told for durable.
        self.log.flush().await?;
        let position = self.log.position();
        Ok(LogState {
            last_purged_log_id: position.purged.map(from_log_id),
            last_log_id: position.last.map(from_log_id),
        })
    }

    async fn get_log_reader(&mut self) -> Self::LogReader {
        self.clone()
    }

    async fn save_vote(&mut self, vote: &VoteOf<TypeConfig>) -> io::Result<()> {
        Ok(self.log.save_vote(to_vote(vote)).await?)
    }

    async fn save_committed(&mut self, committed: Option<LogIdOf<TypeConfig>>) -> io::Result<()> {
        self.log.save_committed(committed.as_ref().map(to_log_id));
        Ok(())
    }

    async fn read_committed(&mut self) -> io::Result<Option<LogIdOf<TypeConfig>>> {
        Ok(self.log.committed().map(from_log_id))
    }

    async fn append<I>(&mut self, entries: I, callback: IOFlushed<TypeConfig>) -> io::Result<()>
    where
        I: IntoIterator<Item = EntryOf<TypeConfig>> + OptionalSend,
        I::IntoIter: OptionalSend,
    {
        let entries = entries.into_iter().map(to_entry).collect();
        let done = Box::new(move |outcome: Result<(), _>| callback.io_completed(outcome.map_err(io::Error::from)));
        Ok(self.log.append(entries, done).await?)
    }

    async fn truncate_after(&mut self, last_log_id: Option<LogIdOf<TypeConfig>>) -> io::Result<()> {
        Ok(self.log.truncate_after(last_log_id.as_ref().map(to_log_id)).await?)
    }

    async fn purge(&mut self, log_id: LogIdOf<TypeConfig>) -> io::Result<()> {
        // What the log forgets must be in the durable state first (INV-5).
        self.state.sync().await?;
        Ok(self.log.purge(to_log_id(&log_id)).await?)
    }
}
