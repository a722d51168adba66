//! The durable copy of the replicated state, in a sled database of its own.
//!
//! ```text
//! kv    table byte, key -> modification index, value
//! sys   "format" | "applied"
//! ```
//!
//! Readers use the tables in memory; this copy exists so that a restart need not replay the whole log. A thread writes what
//! has changed as checkpoints: one transaction with the position it belongs to, and one sync. A crash therefore leaves an
//! older state that the log carries forward, and no more than one checkpoint is ever on its way to the disk at a time.

use std::collections::BTreeMap;
use std::collections::btree_map::Entry;
use std::fs;
use std::ops::ControlFlow;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use bytes::Bytes;
use tokio::sync::watch;

use super::error::StoreError;
use super::files::{exists, parent, remove_dir_if_present, sibling, sync_directory};
use super::node::DirectoryLock;
use super::record::Applied;
use super::sled_store::SledStore;
use super::store::{Batch, Database, Opener, Store, Tree, check_format};
use super::{MAX_KEY, MAX_VALUE};
use crate::state::{Change, Record, RecordKey, TableId, Tables};

const KV: Tree = Tree("kv");
const SYS: Tree = Tree("sys");
const TREES: [Tree; 2] = [KV, SYS];

const FORMAT: &[u8] = b"format";
const APPLIED: &[u8] = b"applied";
const FORMAT_VERSION: u32 = 1;

/// So much that has changed is written without waiting any longer, in bytes.
const CHECKPOINT_BYTES: usize = 4 * 1024 * 1024;

/// So much of a replacement is written at once, in bytes.
const REPLACEMENT_BYTES: usize = 512 * 1024;

/// More that has changed makes `apply` wait for the disk, in bytes. It bounds a checkpoint.
const DIRTY_LIMIT: usize = 8 * 1024 * 1024;

/// How old a change may become before it is written.
const CHECKPOINT_PERIOD: Duration = Duration::from_secs(1);

/// The bytes of a value's head: the modification index.
const HEAD: usize = 8;

/// The longest value of the replicated state, in bytes.
pub(super) const MAX_STATE_VALUE: usize = MAX_VALUE - super::frame::OVERHEAD - HEAD;

/// Opens, or makes, the database of a state.
pub(super) fn open_database(directory: &Path) -> Result<Arc<dyn Store>, StoreError> {
    Ok(Arc::new(SledStore::open(directory, &TREES)?))
}

/// The state on this node's disk. Dropping it without [`StateStore::close`] blocks until what is owed is written.
pub struct StateStore {
    shared: Arc<Shared>,
    durable: watch::Receiver<Durable>,
    thread: Mutex<Option<JoinHandle<()>>>,
    // The last field, so that it is let go last.
    lock: Option<Arc<DirectoryLock>>,
}

/// What the checkpoint thread has done since the state was opened.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct StateStats {
    /// Checkpoints written.
    pub checkpoints: u64,
    /// Records written.
    pub records: u64,
}

struct Shared {
    dirty: Mutex<Dirty>,
    wake: Condvar,
    checkpoints: AtomicU64,
    records: AtomicU64,
}

/// What has been applied but not yet written.
#[derive(Default)]
struct Dirty {
    changes: BTreeMap<RecordKey, Owed>,
    bytes: usize,
    applied: Option<Applied>,
    since: Option<Instant>,
    /// Counts what was handed over; the thread publishes how far it has come.
    sequence: u64,
    /// Somebody waits for the disk.
    urgent: bool,
    replacement: Option<(Tables, Applied)>,
    closing: bool,
}

/// What the disk is owed of a key.
struct Owed {
    record: Option<Record>,
    /// Nothing that was handed to the disk before has the key.
    created: bool,
}

/// What the thread last reached. The error ends it.
#[derive(Clone, Debug)]
struct Durable {
    applied: u64,
    sequence: u64,
    outcome: Result<(), StoreError>,
}

impl StateStore {
    /// Opens the state in `directory`, or makes an empty one, and reads all of it.
    ///
    /// # Errors
    /// When it does not open, a value is damaged, or a newer version wrote it. The state can be rebuilt from a snapshot and
    /// the log, so a caller that has those sets it aside and opens an empty one.
    pub fn open(directory: &Path, opener: &Opener) -> Result<(Self, Tables, Applied), StoreError> {
        // What an interrupted replacement left. Between its two renames only the old state is sure to be whole.
        let old = sibling(directory, "replaced");
        if !exists(directory)? && exists(&old)? {
            rename(&old, directory)?;
            sync_directory(parent(directory))?;
        }
        for leftover in ["replacement", "replacement.new", "replaced"] {
            remove_dir_if_present(&sibling(directory, leftover))?;
        }
        let store = opener(directory, Database::State)?;
        let (tables, applied) = load(&*store)?;

        let shared = Arc::new(Shared {
            dirty: Mutex::new(Dirty::default()),
            wake: Condvar::new(),
            checkpoints: AtomicU64::new(0),
            records: AtomicU64::new(0),
        });
        let (publish, durable) = watch::channel(Durable { applied: applied.index(), sequence: 0, outcome: Ok(()) });
        let checkpointer = Checkpointer {
            directory: directory.to_owned(),
            opener: Arc::clone(opener),
            store: Some(store),
            shared: Arc::clone(&shared),
            publish,
        };
        let thread = std::thread::Builder::new()
            .name("state-checkpoint".to_owned())
            .spawn(move || checkpointer.run())
            .map_err(|e| StoreError::io("starting the checkpoint thread", e))?;
        Ok((Self { shared, durable, thread: Mutex::new(Some(thread)), lock: None }, tables, applied))
    }

    /// Keeps the directory locked for as long as the state is open.
    pub(super) fn holding(mut self, lock: &Arc<DirectoryLock>) -> Self {
        self.lock = Some(Arc::clone(lock));
        self
    }

    /// Hands over what one or more entries have changed, and the position after them. Waits when the disk is far behind.
    ///
    /// # Errors
    /// When a value is too long to be stored, or the store has failed.
    pub async fn record(&self, changes: Vec<Change>, applied: Applied) -> Result<(), StoreError> {
        for Change { key, record, .. } in &changes {
            if key.key.len() >= MAX_KEY {
                let what = format!("a key of table {}", key.table.0);
                return Err(StoreError::TooLarge { what, len: key.key.len(), max: MAX_KEY - 1 });
            }
            let len = record.as_ref().map_or(0, |record| record.value.len());
            if len > MAX_STATE_VALUE {
                let what = format!("a record of table {}", key.table.0);
                return Err(StoreError::TooLarge { what, len, max: MAX_STATE_VALUE });
            }
        }
        let (due, full) = {
            let mut dirty = self.dirty();
            if dirty.closing {
                return Err(StoreError::Closed);
            }
            let first = dirty.since.is_none();
            for change in changes {
                dirty.take(change);
            }
            dirty.note(applied);
            (first || dirty.bytes >= CHECKPOINT_BYTES, dirty.bytes >= DIRTY_LIMIT)
        };
        // Waking the thread costs more than all of the above; from the first change on it knows when it is due.
        if due {
            self.shared.wake.notify_one();
        }
        if full { self.sync().await } else { self.health() }
    }

    /// Replaces the whole state, as after receiving a snapshot. Durable on return, and all or nothing across a crash.
    ///
    /// # Errors
    /// When the disk refused, or the store has failed.
    pub async fn replace(&self, tables: Tables, applied: Applied) -> Result<(), StoreError> {
        {
            let mut dirty = self.dirty();
            if dirty.closing {
                return Err(StoreError::Closed);
            }
            dirty.changes.clear();
            dirty.bytes = 0;
            dirty.note(applied.clone());
            dirty.replacement = Some((tables, applied));
        }
        self.sync().await
    }

    /// Makes everything that was recorded so far durable.
    ///
    /// # Errors
    /// When the disk refused, or the store has failed.
    pub async fn sync(&self) -> Result<(), StoreError> {
        let target = {
            let mut dirty = self.dirty();
            dirty.urgent = dirty.applied.is_some();
            dirty.sequence
        };
        self.shared.wake.notify_one();
        let mut durable = self.durable.clone();
        let reached = durable
            .wait_for(|durable| durable.outcome.is_err() || durable.sequence >= target)
            .await
            .map_err(|_| StoreError::Closed)?;
        reached.outcome.clone()
    }

    /// Writes everything that is owed and takes nothing more.
    ///
    /// # Errors
    /// When it could not be written.
    pub async fn close(&self) -> Result<(), StoreError> {
        self.dirty().closing = true;
        self.shared.wake.notify_one();
        let mut durable = self.durable.clone();
        // The thread lets go of its end when it is done.
        while durable.changed().await.is_ok() {}
        self.join();
        self.health()
    }

    fn join(&self) {
        let thread = self.thread.lock().unwrap_or_else(PoisonError::into_inner).take();
        if let Some(thread) = thread {
            let _ = thread.join();
        }
    }

    /// The index up to which the state is durable.
    #[must_use]
    pub fn durable_index(&self) -> u64 {
        self.durable.borrow().applied
    }

    /// What the checkpoint thread has done so far.
    #[must_use]
    pub fn stats(&self) -> StateStats {
        StateStats {
            checkpoints: self.shared.checkpoints.load(Ordering::Relaxed),
            records: self.shared.records.load(Ordering::Relaxed),
        }
    }

    fn health(&self) -> Result<(), StoreError> {
        self.durable.borrow().outcome.clone()
    }

    fn dirty(&self) -> MutexGuard<'_, Dirty> {
        self.shared.dirty.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for StateStore {
    fn drop(&mut self) {
        self.dirty().closing = true;
        self.shared.wake.notify_one();
        self.join();
    }
}

struct Checkpointer {
    directory: PathBuf,
    opener: Opener,
    // Absent only while the database is being replaced.
    store: Option<Arc<dyn Store>>,
    shared: Arc<Shared>,
    publish: watch::Sender<Durable>,
}

fn size(key: &RecordKey, record: Option<&Record>) -> usize {
    key.key.len() + record.map_or(0, |record| record.value.len()) + HEAD
}

impl Dirty {
    /// What came and went since the last checkpoint never reaches the disk.
    fn take(&mut self, Change { key, record, created }: Change) {
        let more = size(&key, record.as_ref());
        match self.changes.entry(key) {
            Entry::Vacant(entry) => {
                entry.insert(Owed { record, created });
                self.bytes += more;
            }
            Entry::Occupied(mut entry) => {
                self.bytes -= size(entry.key(), entry.get().record.as_ref());
                if record.is_none() && entry.get().created {
                    entry.remove();
                } else {
                    entry.get_mut().record = record;
                    self.bytes += more;
                }
            }
        }
    }

    fn note(&mut self, applied: Applied) {
        self.applied = Some(applied);
        self.since.get_or_insert_with(Instant::now);
        self.sequence += 1;
    }

    /// Whether it is time to write, or else how long that may wait; `None` when there is nothing to write.
    fn due_in(&self) -> Option<Duration> {
        let since = self.since?;
        if self.urgent || self.closing || self.replacement.is_some() || self.bytes >= CHECKPOINT_BYTES {
            return Some(Duration::ZERO);
        }
        Some(CHECKPOINT_PERIOD.saturating_sub(since.elapsed()))
    }
}

impl Checkpointer {
    fn run(mut self) {
        while let Some(dirty) = self.next() {
            let sequence = dirty.sequence;
            let applied = dirty.applied.as_ref().map(Applied::index);
            let outcome = self.write(dirty);
            if let Err(error) = &outcome {
                tracing::error!(%error, "the state can not be written: this node can not take part until it is restarted");
            }
            let failed = outcome.is_err();
            self.publish.send_modify(|durable| {
                durable.outcome = outcome;
                if !failed {
                    durable.sequence = sequence;
                    durable.applied = applied.unwrap_or(durable.applied);
                }
            });
            if failed {
                return;
            }
        }
    }

    /// Waits until something is due and takes all of it; `None` when the store is dropped and nothing is left.
    fn next(&self) -> Option<Dirty> {
        let mut dirty = self.shared.dirty.lock().unwrap_or_else(PoisonError::into_inner);
        loop {
            dirty = match dirty.due_in() {
                Some(Duration::ZERO) => {
                    let rest = Dirty { sequence: dirty.sequence, closing: dirty.closing, ..Dirty::default() };
                    return Some(std::mem::replace(&mut *dirty, rest));
                }
                Some(wait) => self.shared.wake.wait_timeout(dirty, wait).unwrap_or_else(PoisonError::into_inner).0,
                None if dirty.closing => return None,
                None => self.shared.wake.wait(dirty).unwrap_or_else(PoisonError::into_inner),
            };
        }
    }

    fn write(&mut self, dirty: Dirty) -> Result<(), StoreError> {
        let Some(applied) = dirty.applied else { return Ok(()) };
        if let Some((tables, replaced_at)) = dirty.replacement {
            self.replace(&tables, &replaced_at)?;
            if dirty.changes.is_empty() && replaced_at == applied {
                return Ok(());
            }
            // What was recorded after the replacement was handed over goes on top of it.
        }
        let Some(store) = &self.store else { return Err(StoreError::Closed) };
        let mut batch = Batch::default();
        for (key, owed) in &dirty.changes {
            put(&mut batch, key, owed.record.as_ref());
        }
        batch.put(SYS, APPLIED, applied.encode());
        store.write(batch)?;
        store.sync()?;
        self.shared.checkpoints.fetch_add(1, Ordering::Relaxed);
        self.shared.records.fetch_add(dirty.changes.len() as u64, Ordering::Relaxed);
        Ok(())
    }

    /// Builds the new state beside the old one and swaps their names. A crash before the swap is complete leaves the old
    /// state, which the snapshot that this came from, on the disk already, then carries forward.
    fn replace(&mut self, tables: &Tables, applied: &Applied) -> Result<(), StoreError> {
        let (fresh, old) = (sibling(&self.directory, "replacement"), sibling(&self.directory, "replaced"));
        remove_dir_if_present(&fresh)?;
        remove_dir_if_present(&old)?;
        let store = (self.opener)(&fresh, Database::State)?;
        let mut batch = Batch::default();
        batch.put(SYS, FORMAT, FORMAT_VERSION.to_be_bytes());
        for (key, record) in tables.iter() {
            put(&mut batch, key, Some(record));
            if batch.bytes() >= REPLACEMENT_BYTES {
                store.write(std::mem::take(&mut batch))?;
                store.sync()?;
            }
        }
        batch.put(SYS, APPLIED, applied.encode());
        store.write(batch)?;
        store.sync()?;
        drop(store);
        self.store = None;
        rename(&self.directory, &old)?;
        rename(&fresh, &self.directory)?;
        sync_directory(parent(&self.directory))?;
        self.store = Some((self.opener)(&self.directory, Database::State)?);
        remove_dir_if_present(&old)
    }
}

fn rename(from: &Path, to: &Path) -> Result<(), StoreError> {
    fs::rename(from, to).map_err(|e| StoreError::io(format!("moving {} to {}", from.display(), to.display()), e))
}

fn put(batch: &mut Batch, key: &RecordKey, record: Option<&Record>) {
    let mut stored_key = Vec::with_capacity(key.key.len() + 1);
    stored_key.push(key.table.0);
    stored_key.extend_from_slice(&key.key);
    match record {
        Some(record) => {
            let mut value = Vec::with_capacity(record.value.len() + HEAD);
            value.extend_from_slice(&record.mod_index.to_be_bytes());
            value.extend_from_slice(&record.value);
            batch.put(KV, stored_key, value);
        }
        None => batch.remove(KV, stored_key),
    }
}

fn load(store: &dyn Store) -> Result<(Tables, Applied), StoreError> {
    let damaged = |what: &str, why: &str| StoreError::Damaged { what: what.to_owned(), why: why.to_owned() };
    let format = store.get(SYS, FORMAT)?;
    let new = format.is_none();
    check_format("the state", format, FORMAT_VERSION)?;
    if new {
        let mut batch = Batch::default();
        batch.put(SYS, FORMAT, FORMAT_VERSION.to_be_bytes());
        store.write(batch)?;
        store.sync()?;
    }
    let position = match store.get(SYS, APPLIED)? {
        Some(encoded) => Some(Applied::decode(&encoded).map_err(|why| why.of("the state's position"))?),
        None => None,
    };
    let applied = position.unwrap_or_default();
    let mut records = Vec::new();
    store.scan(KV, &[], &mut |key, value| {
        let (table, key) = key.split_first().ok_or_else(|| damaged("a key of the state", "it is empty"))?;
        let (index, value) =
            value.split_first_chunk().ok_or_else(|| damaged("a value of the state", "it is too short"))?;
        let record = Record { mod_index: u64::from_be_bytes(*index), value: Bytes::copy_from_slice(value) };
        records.push((RecordKey { table: TableId(*table), key: Bytes::copy_from_slice(key) }, record));
        Ok(ControlFlow::Continue(()))
    })?;
    let tables = Tables::restored(records, applied.fingerprint.history);
    // sled may pass over damage in the middle of its file and come up with older pages; nothing else would notice.
    if tables.fingerprint() != applied.fingerprint {
        return Err(damaged("the state", "its records are not those of its position"));
    }
    Ok((tables, applied))
}
