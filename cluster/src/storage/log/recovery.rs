//! Opening a log: everything is read and compared first, and only a log that can be trusted is written to.

use std::collections::VecDeque;
use std::ops::ControlFlow;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::schema::{COMMITTED, FORMAT, JOURNAL, META, PURGED, SELF_TEST, STORE, TREES, VOTE, read_meta, scan_entries};
use super::view::{LogPosition, TailLimits, View};
use crate::ids::StoreId;
use crate::storage::error::{StoreError, Unusable};
use crate::storage::floor::{Floor, FloorFound};
use crate::storage::journal::{Journaled, Note};
use crate::storage::record::{Entry, LogId, Vote};
use crate::storage::sled_store::SledStore;
use crate::storage::store::{Batch, Store, check_format};

/// The layout of `schema.rs`; a log with a higher number was written by a newer version. Format 1 had no journal, and a
/// version that knows only that would take what lies in one for lost.
const FORMAT_VERSION: u32 = 2;

/// A log as it was read.
pub(super) struct Recovered {
    pub(super) store_id: Option<StoreId>,
    pub(super) view: View,
    /// Entries below the purge point that a crash left behind, `first..=last`.
    pub(super) leftover: Option<(u64, u64)>,
}

/// Opens, or makes, the database of a log, with its journal.
pub(in crate::storage) fn open_database(directory: &Path, journal_bytes: usize) -> Result<Arc<dyn Store>, StoreError> {
    let store = Arc::new(SledStore::open(directory, &TREES)?);
    check_format("the Raft log", store.get(META, FORMAT)?, FORMAT_VERSION)?;
    let mut first = Batch::default();
    first.put(META, FORMAT, FORMAT_VERSION.to_be_bytes());
    let note = Note { tree: META, key: JOURNAL, first };
    Ok(Arc::new(Journaled::open(directory, store, &TREES, note, journal_bytes)?))
}

/// Reads the whole log, checking every entry, that none is missing, and that each belongs behind the one before.
pub(super) fn recover(store: &dyn Store, limits: TailLimits) -> Result<Recovered, StoreError> {
    let parse = |bytes: &[u8]| StoreId::from_slice(bytes).ok_or_else(|| "a store id of the wrong length".into());
    let store_id = read_meta(store, STORE, parse)?;
    let purged = read_meta(store, PURGED, LogId::decode)?;
    let vote = read_meta(store, VOTE, Vote::decode)?;
    let committed = read_meta(store, COMMITTED, LogId::decode)?;
    let mut newest: VecDeque<Arc<Entry>> = VecDeque::new();
    let mut leftover: Option<(u64, u64)> = None;
    let mut failure = None;
    scan_entries(store, 0, &mut |stored| {
        let checked = stored.decode(store).and_then(|(entry, previous)| {
            let before = newest.back().map(|entry| entry.log_id);
            check_place(entry.log_id, previous, purged, before).map(|()| entry)
        });
        match checked {
            Ok(entry) if purged.is_some_and(|purged| entry.log_id.index <= purged.index) => {
                let index = entry.log_id.index;
                leftover = Some((leftover.map_or(index, |(first, _)| first), index));
            }
            Ok(entry) => newest.push_back(Arc::new(entry)),
            Err(error) => {
                failure = Some(error);
                return ControlFlow::Break(());
            }
        }
        ControlFlow::Continue(())
    })?;
    if let Some(error) = failure {
        return Err(error);
    }
    let last = newest.back().map(|entry| entry.log_id).or(purged);
    let view = View::opened(LogPosition { purged, last }, vote, committed, newest, limits);
    Ok(Recovered { store_id, view, leftover })
}

/// Whether an entry may stand where it was found: right behind the one that it was appended to. sled may come up with older
/// pages after damage; what was cut off and written anew must not reappear between what replaced it.
fn check_place(
    found: LogId,
    appended_to: Option<LogId>,
    purged: Option<LogId>,
    before: Option<LogId>,
) -> Result<(), StoreError> {
    let Some(before) = before.or(purged) else { return Ok(()) };
    if purged.is_some_and(|purged| found.index <= purged.index) {
        return Ok(());
    }
    if found.index == before.index + 1 && appended_to == Some(before) && found > before {
        return Ok(());
    }
    Err(StoreError::Damaged { what: "the Raft log".to_owned(), why: format!("entry {found} follows {before}") })
}

/// Compares the log with what is known to have been durable (INV-4).
pub(super) fn judge(recovered: &Recovered, floor: Option<&FloorFound>) -> Result<(), Unusable> {
    let (last, vote) = (recovered.view.position().last, recovered.view.vote());
    let Some(floor) = floor else {
        // The floor file is durable before the first vote or entry can be.
        return if last.is_some() || vote.is_some() { Err(Unusable::FloorMissing) } else { Ok(()) };
    };
    match recovered.store_id {
        Some(found) if found == floor.store => {}
        found => {
            let found = found.map_or_else(|| "one without an identity".to_owned(), |id| id.to_string());
            return Err(Unusable::WrongStore { expected: floor.store.to_string(), found });
        }
    }
    if !floor.floor.is_held_by(last, vote) {
        let found = Floor { last_index: last.map(|id| id.index), vote }.to_string();
        return Err(Unusable::BelowFloor { found, floor: floor.floor.to_string() });
    }
    Ok(())
}

/// Gives a new log its identity, durable on return.
pub(super) fn identify(store: &dyn Store, fresh: StoreId) -> Result<StoreId, StoreError> {
    let mut batch = Batch::default();
    batch.put(META, STORE, *fresh.as_bytes());
    store.write(batch)?;
    store.sync()?;
    Ok(fresh)
}

/// Writes and syncs on the real disk, reads what was written from memory, and returns how long the sync took. What opening has
/// read was read from the disk.
pub(super) fn self_test(store: &dyn Store) -> Result<Duration, StoreError> {
    const SLOW: Duration = Duration::from_millis(10);
    const WORDS: &[u8] = b"written, synced, read";
    let mut batch = Batch::default();
    batch.put(META, SELF_TEST, WORDS);
    store.write(batch)?;
    let started = Instant::now();
    store.sync()?;
    let took = started.elapsed();
    if store.get(META, SELF_TEST)?.as_deref() != Some(WORDS) {
        let why = "what was just written is not there".to_owned();
        return Err(StoreError::Damaged { what: "the self-test".to_owned(), why });
    }
    if took > SLOW {
        let milliseconds = took.as_millis() as u64;
        tracing::warn!(milliseconds, "the disk is slow: every write of the fleet waits for one sync");
    }
    Ok(took)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ids::NodeId;

    fn id(term: u64, index: u64) -> LogId {
        LogId { term, node: NodeId(1), index }
    }

    #[test]
    fn an_entry_stands_only_behind_the_one_it_was_appended_to() {
        let place = |found, appended_to, before| check_place(found, appended_to, Some(id(1, 3)), before).is_ok();
        assert!(place(id(1, 4), Some(id(1, 3)), None));
        assert!(place(id(2, 5), Some(id(1, 4)), Some(id(1, 4))));
        // What was cut off comes back between the entries that replaced it.
        assert!(!place(id(2, 5), Some(id(2, 4)), Some(id(1, 4))));
        assert!(!place(id(1, 5), Some(id(1, 4)), Some(id(2, 4))));
        assert!(!place(id(1, 6), Some(id(1, 4)), Some(id(1, 4))), "a hole");
        assert!(!place(id(1, 5), Some(id(1, 4)), None), "a hole behind the purge point");
        assert!(place(id(1, 2), None, None), "what is purged may still lie there");
    }
}
