//! What readers of the log see: its bounds, vote and newest entries, in memory.
//!
//! An entry is readable from the moment `append` returns, before it is durable, so everything that is not yet written
//! stays here; of what is written, the newest is kept so that replication rarely touches the disk.

use std::collections::VecDeque;
use std::sync::Arc;

use crate::storage::error::StoreError;
use crate::storage::record::{Entry, LogId, Vote};

/// How much of what is written stays in memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TailLimits {
    /// Entries.
    pub entries: usize,
    /// Bytes.
    pub bytes: usize,
}

impl Default for TailLimits {
    fn default() -> Self {
        Self { entries: 65_536, bytes: 32 * 1024 * 1024 }
    }
}

/// Where the log begins and ends.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct LogPosition {
    /// The last entry that was purged.
    pub purged: Option<LogId>,
    /// The last entry; the purge point if there is none after it.
    pub last: Option<LogId>,
}

/// The in-memory state of the log. Every change is made here first and then handed to the writer.
#[derive(Debug, Default)]
pub(super) struct View {
    position: LogPosition,
    /// Where a log that was never purged begins.
    origin: u64,
    vote: Option<Vote>,
    committed: Option<LogId>,
    /// Entries `tail_first()..=last`, without gaps.
    tail: VecDeque<Arc<Entry>>,
    tail_bytes: usize,
    limits: TailLimits,
    /// Entries before this index are written to the database and may leave the tail.
    written_end: u64,
    /// How often the end of the log has been cut off: a reader that used the disk meanwhile looks again.
    truncations: u64,
}

/// What a read has to fetch from the database before it can add what was found in memory.
pub(super) struct ReadPlan {
    /// The entries to take from the database, `from..to`.
    pub(super) stored: std::ops::Range<u64>,
    /// What follows them.
    pub(super) tail: Vec<Arc<Entry>>,
    pub(super) truncations: u64,
}

impl View {
    pub(super) fn opened(
        position: LogPosition,
        vote: Option<Vote>,
        committed: Option<LogId>,
        newest: VecDeque<Arc<Entry>>,
        limits: TailLimits,
    ) -> Self {
        let tail_bytes = newest.iter().map(|entry| entry.weight()).sum();
        let written_end = position.last.map_or(0, |id| id.index + 1);
        let origin = newest.front().map_or(0, |entry| entry.log_id.index);
        let mut view =
            Self { position, origin, vote, committed, tail: newest, tail_bytes, limits, written_end, truncations: 0 };
        view.shed();
        view
    }

    pub(super) fn position(&self) -> LogPosition {
        self.position
    }

    pub(super) fn vote(&self) -> Option<Vote> {
        self.vote
    }

    pub(super) fn committed(&self) -> Option<LogId> {
        self.committed
    }

    pub(super) fn truncations(&self) -> u64 {
        self.truncations
    }

    pub(super) fn set_vote(&mut self, vote: Vote) {
        self.vote = Some(vote);
    }

    pub(super) fn set_committed(&mut self, committed: Option<LogId>) {
        self.committed = committed;
    }

    /// The first index of the log, whether or not there is an entry.
    pub(super) fn first(&self) -> u64 {
        self.position.purged.map_or(self.origin, |id| id.index + 1)
    }

    /// The index after the last entry.
    pub(super) fn end(&self) -> u64 {
        self.position.last.map_or(0, |id| id.index + 1)
    }

    fn tail_first(&self) -> u64 {
        self.tail.front().map_or(self.end(), |entry| entry.log_id.index)
    }

    /// Adds entries to the end. The log has no holes: the first of them follows the last entry, except that an empty log
    /// may begin anywhere.
    pub(super) fn append(&mut self, entries: &[Arc<Entry>]) -> Result<(), StoreError> {
        let mut expected = self.position.last.map(|id| id.index + 1);
        for entry in entries {
            let index = entry.log_id.index;
            if expected.is_some_and(|expected| expected != index) {
                let why = format!("entry {index} does not follow the last one, {}", self.end().saturating_sub(1));
                return Err(StoreError::OutOfOrder { what: "an append", why });
            }
            expected = Some(index + 1);
        }
        if self.position.last.is_none() {
            self.origin = entries.first().map_or(0, |entry| entry.log_id.index);
        }
        for entry in entries {
            self.tail_bytes += entry.weight();
            self.tail.push_back(Arc::clone(entry));
            self.position.last = Some(entry.log_id);
        }
        Ok(())
    }

    /// The writer has written everything before index `end`, as the log was after this many truncations. What it wrote
    /// before a truncation that it has not seen yet says nothing about the entries that now stand there.
    pub(super) fn set_written(&mut self, end: u64, truncations: u64) {
        if truncations == self.truncations {
            self.written_end = self.written_end.max(end);
            self.shed();
        }
    }

    /// Cuts off everything after `keep`.
    pub(super) fn truncate_after(&mut self, keep: Option<LogId>) -> Result<(), StoreError> {
        let end = keep.map_or(0, |id| id.index + 1);
        if self.position.purged.is_some_and(|purged| end <= purged.index) {
            let why = format!("entries before {} are purged already", self.first());
            return Err(StoreError::OutOfOrder { what: "a truncation", why });
        }
        while self.tail.back().is_some_and(|entry| entry.log_id.index >= end) {
            if let Some(entry) = self.tail.pop_back() {
                self.tail_bytes -= entry.weight();
            }
        }
        self.position.last = keep.or(self.position.purged);
        self.written_end = self.written_end.min(end);
        self.truncations += 1;
        Ok(())
    }

    /// Forgets everything up to `upto`, which may lie beyond the end when a snapshot replaced the log.
    pub(super) fn purge(&mut self, upto: LogId) {
        if self.position.purged >= Some(upto) {
            return;
        }
        while self.tail.front().is_some_and(|entry| entry.log_id.index <= upto.index) {
            if let Some(entry) = self.tail.pop_front() {
                self.tail_bytes -= entry.weight();
            }
        }
        self.position.purged = Some(upto);
        if self.end() <= upto.index + 1 {
            self.position.last = Some(upto);
            self.tail.clear();
            self.tail_bytes = 0;
            self.written_end = self.written_end.max(upto.index + 1);
        }
    }

    /// What of `from..to` lies in memory, and what has to be read.
    pub(super) fn plan_read(&self, from: u64, to: u64) -> ReadPlan {
        let from = from.max(self.first());
        let to = to.min(self.end());
        let tail_first = self.tail_first();
        let in_tail = self.tail.iter().skip(usize::try_from(from.saturating_sub(tail_first)).unwrap_or(usize::MAX));
        let wanted = usize::try_from(to.saturating_sub(from.max(tail_first))).unwrap_or(usize::MAX);
        ReadPlan {
            stored: from..to.min(tail_first).max(from),
            tail: in_tail.take(wanted).cloned().collect(),
            truncations: self.truncations,
        }
    }

    fn shed(&mut self) {
        while (self.tail.len() > self.limits.entries || self.tail_bytes > self.limits.bytes)
            && self.tail.front().is_some_and(|entry| entry.log_id.index < self.written_end)
        {
            if let Some(entry) = self.tail.pop_front() {
                self.tail_bytes -= entry.weight();
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;

    use super::*;
    use crate::ids::NodeId;
    use crate::storage::record::Payload;

    const TAIL_BYTES: usize = 1000;

    fn view() -> View {
        View { limits: TailLimits { entries: 1000, bytes: TAIL_BYTES }, ..View::default() }
    }

    fn id(index: u64) -> LogId {
        LogId { term: 1, node: NodeId(1), index }
    }

    fn entries(indices: std::ops::Range<u64>, bytes: usize) -> Vec<Arc<Entry>> {
        let payload = Payload::Command(Bytes::from(vec![0; bytes]));
        indices.map(|index| Arc::new(Entry { log_id: id(index), payload: payload.clone() })).collect()
    }

    fn indices(plan: &ReadPlan) -> Vec<u64> {
        plan.tail.iter().map(|entry| entry.log_id.index).collect()
    }

    #[test]
    fn what_is_not_written_never_leaves_memory() {
        let mut view = view();
        view.append(&entries(0..100, TAIL_BYTES / 10)).expect("appends");
        let plan = view.plan_read(0, 100);
        assert_eq!(plan.stored, 0..0);
        assert_eq!(indices(&plan), (0..100).collect::<Vec<_>>());
        view.set_written(50, 0);
        let plan = view.plan_read(0, 100);
        assert_eq!(plan.stored, 0..50);
        assert_eq!(indices(&plan), (50..100).collect::<Vec<_>>());
        view.set_written(100, 0);
        assert!(view.plan_read(0, 100).tail.len() < 11);
    }

    #[test]
    fn a_hole_is_refused_and_changes_nothing() {
        let mut view = view();
        view.append(&entries(5..8, 1)).expect("an empty log begins anywhere");
        assert!(view.append(&entries(9..10, 1)).is_err());
        assert!(view.append(&entries(7..8, 1)).is_err());
        let mut with_hole = entries(8..9, 1);
        with_hole.extend(entries(10..11, 1));
        assert!(view.append(&with_hole).is_err());
        assert_eq!(view.position().last, Some(id(7)));
        view.append(&entries(8..10, 1)).expect("follows");
    }

    #[test]
    fn reads_stay_within_the_log() {
        let mut view = view();
        view.append(&entries(0..10, 1)).expect("appends");
        view.purge(id(3));
        assert_eq!(indices(&view.plan_read(0, 100)), [4, 5, 6, 7, 8, 9]);
        assert_eq!(indices(&view.plan_read(6, 8)), [6, 7]);
        assert!(view.plan_read(20, 30).tail.is_empty());
        assert!(view.plan_read(8, 2).tail.is_empty());
        view.truncate_after(Some(id(6))).expect("truncates");
        assert_eq!(indices(&view.plan_read(0, 100)), [4, 5, 6]);
        assert!(view.truncate_after(Some(id(2))).is_err());
    }

    #[test]
    fn what_was_written_before_a_truncation_says_nothing_about_the_entries_after_it() {
        let mut view = view();
        view.append(&entries(0..10, 1)).expect("appends");
        view.truncate_after(Some(id(4))).expect("truncates");
        view.append(&entries(5..10, TAIL_BYTES / 3)).expect("appends");
        view.set_written(10, 0);
        assert_eq!(indices(&view.plan_read(0, 10)), (0..10).collect::<Vec<_>>());
        view.set_written(10, 1);
        assert!(!view.plan_read(0, 10).stored.is_empty());
    }

    #[test]
    fn a_purge_beyond_the_end_moves_the_end() {
        let mut view = view();
        view.append(&entries(0..3, 1)).expect("appends");
        view.purge(id(50));
        assert_eq!(view.position(), LogPosition { purged: Some(id(50)), last: Some(id(50)) });
        view.purge(id(10));
        assert_eq!(view.position().purged, Some(id(50)));
        view.append(&entries(51..52, 1)).expect("follows the purge point");
        assert_eq!(indices(&view.plan_read(0, 100)), [51]);
    }
}
