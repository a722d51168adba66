//! sled 0.34.7 behind the [`Store`] contract, with the guards that make it keep its promises.
//!
//! - `flush` writes without a barrier, so [`SledStore::sync`] adds `fdatasync` on the data file (INV-1).
//! - The background flusher is off: it would hide a missing barrier from every test and drops its own errors.
//! - Values beyond [`MAX_VALUE`] are refused, because sled puts them into blob files that it never syncs.
//! - A half-written `snap.*.generating` makes sled refuse to open; it is removed before every open.
//! - What recovery is about to read is synced first: sled writes a synced summary of it, which must not outlive it.
//! - A database is created beside its place and renamed into it, so that a half-made one is never opened.
//! - sled panics where others return errors; every call is made behind `catch_unwind`.
//! - A read error while it recovers looks to sled like the end of its log, whose rest it then overwrites; the whole file is
//!   read once before.
//! - A failed background write can leave a flush waiting for ever; a watcher wakes it, and a lock of our own ([`GATE`])
//!   keeps sled's from getting between the two.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io;
use std::ops::ControlFlow;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::sync::{Arc, OnceLock, PoisonError, RwLock};
use std::time::{Duration, Instant};

use sled::transaction::{TransactionError, Transactional};

use super::error::StoreError;
use super::files::{exists, parent, remove_dir_if_present, sibling, sync_directory, sync_tree};
use super::frame;
use super::store::{Batch, Store, Tree, Visitor, place};
use super::watcher::Watcher;

/// Can not be changed once a database exists. Large enough that no leaf of 16 values of [`MAX_VALUE`] spills into a blob.
const SEGMENT_BYTES: usize = 2 * 1024 * 1024;

/// sled's page cache, in bytes. Both databases stay far below it.
const CACHE_BYTES: u64 = 64 * 1024 * 1024;

/// How long sled's own threads may hold a closed database's lock.
const LOCK_PATIENCE: Duration = Duration::from_secs(10);

/// Taken in front of sled's own lock, which all databases of the process share: for reading by a flush, for writing by a
/// batch. A batch that queued inside sled while a flush waits there would also stop the watcher that is to wake the flush.
static GATE: RwLock<()> = RwLock::new(());

/// An open sled database.
pub(super) struct SledStore {
    path: PathBuf,
    // Before the database, which its thread uses.
    watcher: Watcher,
    open: Open,
    failed: OnceLock<Arc<StoreError>>,
}

/// sled's handles. Its own drop syncs and unwraps, so they are let go behind `catch_unwind`, wherever that happens.
struct Open {
    path: PathBuf,
    // Absent only while dropping.
    handles: Option<Handles>,
}

struct Handles {
    db: sled::Db,
    trees: BTreeMap<Tree, sled::Tree>,
    data: File,
}

impl Open {
    /// Writes everything. Closing does so too, but keeps an error to itself.
    fn flush(&self) -> Result<(), StoreError> {
        let Some(handles) = &self.handles else { return Err(StoreError::Closed) };
        no_panic("flushing", &self.path, || {
            handles.db.flush().map(drop).map_err(|error| database_error("flushing", &self.path, error))
        })
    }

    /// Closes the database.
    fn close(&mut self) -> Result<(), StoreError> {
        let handles = self.handles.take();
        no_panic("closing", &self.path, || {
            drop(handles);
            Ok(())
        })
    }
}

impl Drop for Open {
    fn drop(&mut self) {
        if let Err(error) = self.close() {
            tracing::error!(%error, "the database did not close cleanly");
        }
    }
}

impl SledStore {
    /// Opens the database at `path`, or creates it there.
    pub(super) fn open(path: &Path, trees: &[Tree]) -> Result<Self, StoreError> {
        let unfinished = sibling(path, "new");
        remove_dir_if_present(&unfinished)?;
        if !exists(path)? {
            let mut made = open_database(&unfinished, trees)?;
            made.flush()?;
            made.close()?;
            sync_tree(&unfinished)?;
            fs::rename(&unfinished, path)
                .map_err(|e| StoreError::io(format!("moving {} into place", path.display()), e))?;
            sync_directory(parent(path))?;
        }
        remove_half_written_summaries(path)?;
        let mut data = open_data(path)?;
        io::copy(&mut data, &mut io::sink()).map_err(|e| StoreError::io(format!("reading {}", path.display()), e))?;
        data.sync_all().map_err(|e| StoreError::io(format!("syncing {} before opening it", path.display()), e))?;
        drop(data);

        let open = open_database(path, trees)?;
        // sled's recovery renamed and removed files here; from now on the directory is as it stands.
        sync_directory(path)?;

        let Some(db) = open.handles.as_ref().map(|handles| handles.db.clone()) else { return Err(StoreError::Closed) };
        let watcher = Watcher::start(db, path)?;
        Ok(Self { path: path.to_owned(), watcher, open, failed: OnceLock::new() })
    }

    fn guarded<T>(&self, doing: &str, action: impl FnOnce(&Handles) -> Result<T, StoreError>) -> Result<T, StoreError> {
        if let Some(earlier) = self.failed.get() {
            return Err(StoreError::Failed(Arc::clone(earlier)));
        }
        let Some(open) = &self.open.handles else { return Err(StoreError::Closed) };
        let outcome = no_panic(doing, &self.path, || action(open));
        if let Err(error) = &outcome
            && error.is_fatal()
        {
            // Never retried: a page that failed to reach the disk may already be marked clean.
            let _ = self.failed.set(Arc::new(error.clone()));
        }
        outcome
    }

    fn database_error(&self, doing: &str, error: sled::Error) -> StoreError {
        database_error(doing, &self.path, error)
    }
}

impl Store for SledStore {
    fn write(&self, batch: Batch) -> Result<(), StoreError> {
        if batch.is_empty() {
            return Ok(());
        }
        batch.check()?;
        self.guarded("writing", |open| {
            let _alone = GATE.write().unwrap_or_else(PoisonError::into_inner);
            let mut per_tree: BTreeMap<Tree, sled::Batch> = BTreeMap::new();
            for (tree, key, value) in batch.writes {
                let sled_batch = per_tree.entry(tree).or_default();
                match value {
                    Some(value) => sled_batch.insert(key.as_slice(), frame::seal(tree.0, &key, &value)),
                    None => sled_batch.remove(key.as_slice()),
                }
            }
            let known = |tree: &Tree| {
                let unknown =
                    || StoreError::OutOfOrder { what: "a write", why: format!("there is no tree {}", tree.0) };
                open.trees.get(tree).ok_or_else(unknown)
            };
            // One tree is the hot path of the log, and cheaper: a transaction over several reads every key first.
            if per_tree.len() == 1
                && let Some((tree, sled_batch)) = per_tree.pop_first()
            {
                return known(&tree)?.apply_batch(sled_batch).map_err(|e| self.database_error("writing", e));
            }
            let trees = per_tree.keys().map(known).collect::<Result<Vec<_>, _>>()?;
            let batches: Vec<_> = per_tree.values().collect();
            let outcome = trees.as_slice().transaction(|views| {
                for (view, sled_batch) in views.iter().zip(&batches) {
                    view.apply_batch(sled_batch)?;
                }
                Ok(())
            });
            outcome.map_err(|error| match error {
                TransactionError::Storage(error) => self.database_error("writing", error),
                TransactionError::Abort(()) => StoreError::Closed,
            })
        })
    }

    fn sync(&self) -> Result<(), StoreError> {
        self.guarded("syncing", |open| {
            {
                let _together = GATE.read().unwrap_or_else(PoisonError::into_inner);
                let _watched = self.watcher.watch();
                open.db.flush().map_err(|e| self.database_error("flushing", e))?;
            }
            open.data.sync_data().map_err(|e| StoreError::io(format!("syncing {}", self.path.display()), e))?;
            debug_assert!(no_blobs(&self.path), "a value spilled into a blob file, which is never synced");
            Ok(())
        })
    }

    fn get(&self, tree: Tree, key: &[u8]) -> Result<Option<Vec<u8>>, StoreError> {
        self.guarded("reading", |open| {
            let Some(sled_tree) = open.trees.get(&tree) else { return Ok(None) };
            match sled_tree.get(key).map_err(|e| self.database_error("reading", e))? {
                Some(framed) => Ok(Some(unframe(tree, key, &framed)?.to_vec())),
                None => Ok(None),
            }
        })
    }

    fn scan(&self, tree: Tree, from: &[u8], visit: &mut Visitor<'_>) -> Result<(), StoreError> {
        self.guarded("reading", |open| {
            let Some(sled_tree) = open.trees.get(&tree) else { return Ok(()) };
            for pair in sled_tree.range(from..) {
                let (key, framed) = pair.map_err(|e| self.database_error("reading", e))?;
                let value = unframe(tree, &key, &framed)?;
                if let ControlFlow::Break(()) = visit(&key, value)? {
                    break;
                }
            }
            Ok(())
        })
    }
}

fn unframe<'a>(tree: Tree, key: &[u8], framed: &'a [u8]) -> Result<&'a [u8], StoreError> {
    frame::open(tree.0, key, framed).map_err(|why| StoreError::Damaged { what: place(tree, key), why })
}

fn open_database(path: &Path, trees: &[Tree]) -> Result<Open, StoreError> {
    no_panic("opening", path, || {
        let config = sled::Config::new()
            .path(path)
            .mode(sled::Mode::LowSpace)
            .cache_capacity(CACHE_BYTES)
            .segment_size(SEGMENT_BYTES)
            .flush_every_ms(None);
        let give_up = Instant::now() + LOCK_PATIENCE;
        let db = loop {
            match config.open() {
                Ok(db) => break db,
                // The directory is ours (the data directory's lock says so): only a thread of an earlier, closed handle in
                // this process can still hold it, and not for long.
                Err(error) if is_lock_error(&error) && Instant::now() < give_up => {
                    std::thread::sleep(Duration::from_millis(10));
                }
                // Its parameters never change, so a file that asks for others is not what was written.
                Err(sled::Error::Unsupported(why)) => {
                    return Err(StoreError::Damaged { what: path.join("conf").display().to_string(), why });
                }
                Err(error) => return Err(database_error("opening", path, error)),
            }
        };
        let mut opened = BTreeMap::new();
        for tree in trees {
            let handle = db.open_tree(tree.0).map_err(|e| database_error("opening", path, e))?;
            opened.insert(*tree, handle);
        }
        let handles = Handles { db, trees: opened, data: open_data(path)? };
        Ok(Open { path: path.to_owned(), handles: Some(handles) })
    })
}

fn is_lock_error(error: &sled::Error) -> bool {
    matches!(error, sled::Error::Io(io) if io.to_string().contains("could not acquire lock"))
}

fn open_data(path: &Path) -> Result<File, StoreError> {
    let data = path.join("db");
    File::options()
        .read(true)
        .write(true)
        .open(&data)
        .map_err(|e| StoreError::io(format!("opening {}", data.display()), e))
}

fn database_error(doing: &str, path: &Path, error: sled::Error) -> StoreError {
    let doing = format!("{doing} {}", path.display());
    match error {
        sled::Error::Io(source) => StoreError::io(doing, source),
        sled::Error::Corruption { .. } => {
            StoreError::Damaged { what: path.display().to_string(), why: error.to_string() }
        }
        other => StoreError::Database { doing, why: other.to_string() },
    }
}

/// Runs a call into sled and turns a panic into an error.
fn no_panic<T>(doing: &str, path: &Path, call: impl FnOnce() -> Result<T, StoreError>) -> Result<T, StoreError> {
    catch_unwind(AssertUnwindSafe(call)).unwrap_or_else(|panic| {
        let why = panic
            .downcast_ref::<String>()
            .cloned()
            .or_else(|| panic.downcast_ref::<&str>().map(|why| (*why).to_owned()))
            .unwrap_or_else(|| "it panicked without a word".to_owned());
        Err(StoreError::Panicked { doing: format!("{doing} {}", path.display()), why })
    })
}

fn remove_half_written_summaries(path: &Path) -> Result<(), StoreError> {
    let doing = || format!("clearing {} of half-written summaries", path.display());
    for entry in fs::read_dir(path).map_err(|e| StoreError::io(doing(), e))? {
        let entry = entry.map_err(|e| StoreError::io(doing(), e))?;
        let name = entry.file_name();
        let name = name.to_string_lossy();
        if name.starts_with("snap.") && name.ends_with(".generating") {
            tracing::warn!(file = %entry.path().display(), "removing a half-written summary of an interrupted start");
            fs::remove_file(entry.path()).map_err(|e| StoreError::io(doing(), e))?;
        }
    }
    Ok(())
}

fn no_blobs(path: &Path) -> bool {
    fs::read_dir(path.join("blobs")).map_or(true, |mut blobs| blobs.next().is_none())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::storage::MAX_VALUE;
    use crate::storage::frame::OVERHEAD;

    const TREE: Tree = Tree("t");

    fn put(key: &str, length: usize) -> Batch {
        let mut batch = Batch::default();
        batch.put(TREE, key, vec![1; length]);
        batch
    }

    #[test]
    fn after_a_fatal_error_nothing_is_taken_any_more() {
        let directory = tempfile::tempdir().expect("a directory");
        let store = SledStore::open(&directory.path().join("db"), &[TREE]).expect("opens");
        store.write(put("a", 10)).expect("writes");
        let failing = store.scan(TREE, b"", &mut |_, _| Err(StoreError::io("a test", io::Error::other("injected"))));
        assert!(matches!(failing, Err(StoreError::Io { .. })));
        assert!(matches!(store.write(put("b", 10)), Err(StoreError::Failed(_))));
        assert!(matches!(store.sync(), Err(StoreError::Failed(_))));
        assert!(matches!(store.get(TREE, b"a"), Err(StoreError::Failed(_))));
    }

    #[test]
    fn a_panic_in_the_database_is_an_error_and_final() {
        let directory = tempfile::tempdir().expect("a directory");
        let store = SledStore::open(&directory.path().join("db"), &[TREE]).expect("opens");
        store.write(put("a", 10)).expect("writes");
        let panicking = store.scan(TREE, b"", &mut |_, _| panic!("as sled does"));
        assert!(matches!(&panicking, Err(StoreError::Panicked { why, .. }) if why == "as sled does"), "{panicking:?}");
        assert!(matches!(store.sync(), Err(StoreError::Failed(_))));
    }

    #[test]
    fn the_longest_value_fits_and_the_next_longer_one_is_refused_alone() {
        let directory = tempfile::tempdir().expect("a directory");
        let path = directory.path().join("db");
        let store = SledStore::open(&path, &[TREE]).expect("opens");
        let longest = MAX_VALUE - OVERHEAD;
        for number in 0..200 {
            store.write(put(&format!("{number}"), longest)).expect("writes");
        }
        store.sync().expect("syncs");
        assert!(no_blobs(&path), "no value may spill into files that are never synced");
        let mut batch = put("small", 1);
        batch.put(TREE, "large", vec![1; longest + 1]);
        assert!(matches!(store.write(batch), Err(StoreError::TooLarge { .. })));
        assert_eq!(store.get(TREE, b"small").expect("reads"), None, "a refused batch writes nothing");
        store.write(put("small", 1)).expect("goes on");
    }
}
