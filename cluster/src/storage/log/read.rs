//! Reading entries: from memory where they are, from the database where they are not, and never with a hole.

use std::ops::ControlFlow;

use super::RaftLog;
use super::schema::scan_entries;
use crate::storage::error::StoreError;
use crate::storage::record::Entry;

impl RaftLog {
    /// The entries `from..to` that the log has. Blocks on the disk for those that are no longer in memory.
    ///
    /// # Errors
    /// When an entry is damaged or missing in the middle, or the log has failed.
    pub fn read(&self, from: u64, to: u64) -> Result<Vec<Entry>, StoreError> {
        self.read_up_to(from, to, usize::MAX)
    }

    /// Like [`Self::read`], but stops once the entries have more than `bytes` bytes; at least one is returned if there is
    /// one at `from`.
    ///
    /// # Errors
    /// As [`Self::read`].
    pub fn read_up_to(&self, from: u64, to: u64, bytes: usize) -> Result<Vec<Entry>, StoreError> {
        loop {
            let plan = self.view().plan_read(from, to);
            let mut budget = Budget { left: bytes.max(1) };
            let mut stored = Vec::new();
            let mut cut_short = false;
            if !plan.stored.is_empty() {
                scan_entries(&*self.store, plan.stored.start, &mut |entry| {
                    if entry.index >= plan.stored.end {
                        return ControlFlow::Break(());
                    }
                    if !budget.take(entry.weight()) {
                        cut_short = true;
                        return ControlFlow::Break(());
                    }
                    stored.push(entry);
                    ControlFlow::Continue(())
                })?;
            }
            let decoded: Result<Vec<Entry>, StoreError> =
                stored.iter().map(|entry| Ok(entry.decode(&*self.store)?.0)).collect();
            let (first, truncations) = {
                let view = self.view();
                (view.first(), view.truncations())
            };
            let begin = plan.stored.start.max(first);
            let removed_meanwhile = first > plan.stored.start;
            if truncations != plan.truncations || (removed_meanwhile && decoded.is_err()) {
                continue;
            }
            let mut entries = decoded?;
            // A purge may have removed entries while they were read; it is in the view before it touches the disk.
            entries.retain(|entry: &Entry| entry.log_id.index >= first);
            if !plan.stored.is_empty() {
                let follow = entries.iter().zip(begin..).all(|(entry, index)| entry.log_id.index == index);
                let end = begin + entries.len() as u64;
                if !follow || (!cut_short && end < plan.stored.end) {
                    let what = format!("the log from entry {begin} to {}", plan.stored.end);
                    return Err(StoreError::Damaged { what, why: "an entry is missing".to_owned() });
                }
                // All of it was purged, and may have used up the budget of what follows in memory.
                if entries.is_empty() {
                    continue;
                }
            }
            if !cut_short {
                entries.extend(
                    plan.tail.iter().map_while(|entry| budget.take(entry.weight()).then(|| Entry::clone(entry))),
                );
            }
            return Ok(entries);
        }
    }

    /// Like [`Self::read_up_to`], but `None` when the disk would be needed. Never blocks.
    pub fn read_in_memory(&self, from: u64, to: u64, bytes: usize) -> Option<Vec<Entry>> {
        let plan = self.view().plan_read(from, to);
        let mut budget = Budget { left: bytes.max(1) };
        let fitting = plan.tail.iter().map_while(|entry| budget.take(entry.weight()).then(|| Entry::clone(entry)));
        plan.stored.is_empty().then(|| fitting.collect())
    }
}

/// Bytes that a read may still return.
struct Budget {
    left: usize,
}

impl Budget {
    /// Whether so many bytes fit; the first ones always do.
    fn take(&mut self, bytes: usize) -> bool {
        if self.left == 0 {
            return false;
        }
        self.left = self.left.saturating_sub(bytes);
        true
    }
}
