//! The Raft log of a node, with its vote, in a sled database of its own.
//!
//! An entry can be read as soon as [`RaftLog::append`] returns and is durable when its completion is called. One thread
//! writes ([`writer`]), readers look at memory first ([`view`]), and a floor file beside the database remembers what has
//! been acknowledged (INV-1 to INV-4 in `OVERVIEW.md`).

mod read;
mod recovery;
mod schema;
mod view;
mod writer;

use std::path::Path;
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::Duration;

use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc, oneshot};

use self::recovery::{Recovered, identify, judge, recover, self_test};
use self::view::View;
use self::writer::{Counters, Request, Writer};
use super::MAX_ENTRY;
use super::error::{OpenError, StoreError, Unusable};
use super::files::{exists, parent};
use super::floor::FloorFile;
use super::node::{DirectoryLock, OpenOptions};
use super::record::{Entry, LogId, Payload, Vote};
use super::store::{Database, Opener, Store};
use crate::ids::StoreId;

pub(super) use self::recovery::open_database;
pub use self::view::{LogPosition, TailLimits};
pub use self::writer::Completion;

/// How many requests may wait for the writer; more wait in their callers.
const QUEUE: usize = 1024;

/// How many bytes of entries may wait for the writer, in units of 1 KiB; more wait in their callers. Until it is written, an
/// entry is in memory.
const QUEUE_KIB: u32 = 64 * 1024;

/// Room for an entry's position beside its command.
const ENTRY_HEAD: usize = 64;

/// The Raft log on this node's disk.
///
/// Dropping it without [`RaftLog::close`] blocks until what is owed is written, unless the writer is hopelessly behind.
pub struct RaftLog {
    store_id: StoreId,
    store: Arc<dyn Store>,
    view: Arc<Mutex<View>>,
    counters: Arc<Counters>,
    requests: mpsc::Sender<Request>,
    room: Arc<Semaphore>,
    writer: Mutex<Option<JoinHandle<()>>>,
    first_sync: Duration,
    // The last field, so that it is let go last.
    _lock: Option<Arc<DirectoryLock>>,
}

/// What the log's writer has done since the log was opened.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct LogStats {
    /// Barriers.
    pub syncs: u64,
    /// Requests, of which each barrier covers as many as were waiting.
    pub requests: u64,
    /// Bytes of keys and values.
    pub bytes: u64,
    /// How long the last barrier took.
    pub last_sync: Duration,
    /// How long the slowest barrier took.
    pub slowest_sync: Duration,
}

impl RaftLog {
    /// Opens the log in `directory`, whose floor file is `floor`, or makes both.
    ///
    /// Every entry is read and checked: a log that opens is whole, follows its purge point without a hole, and holds what
    /// the floor file names.
    ///
    /// # Errors
    /// [`OpenError::Unusable`] when the log can not be trusted; nothing is moved then, and nothing of ours is written.
    pub(super) fn open(
        directory: &Path,
        floor: &Path,
        options: &OpenOptions,
        opener: &Opener,
        lock: Option<Arc<DirectoryLock>>,
    ) -> Result<Self, OpenError> {
        let unusable = |why| OpenError::Unusable { path: parent(directory).to_owned(), why };
        // An error while opening says whether the log is damaged or the disk refused.
        let verdict = |error: StoreError| match error.is_damage() {
            true => unusable(Unusable::LogDamaged(error)),
            false => OpenError::Store(error),
        };
        let floor_found = FloorFile::read(floor)?;
        if let (Some(found), false) = (&floor_found, exists(directory)?) {
            return Err(unusable(Unusable::LogMissing { store: found.store.to_string() }));
        }
        let store = opener(directory, Database::Log).map_err(verdict)?;
        let recovered = recover(&*store, options.tail).map_err(verdict)?;
        judge(&recovered, floor_found.as_ref()).map_err(unusable)?;

        let store_id = match recovered.store_id {
            Some(store_id) => store_id,
            None => identify(&*store, options.fresh_store_id)?,
        };
        let floor_file = match floor_found {
            Some(found) => FloorFile::open(floor, &found)?,
            None => FloorFile::create(floor, store_id)?,
        };
        let first_sync = self_test(&*store)?;
        let Recovered { view, leftover, .. } = recovered;
        let view = Arc::new(Mutex::new(view));
        let counters = Arc::new(Counters::default());
        let (requests, receiver) = mpsc::channel(QUEUE);
        let writer = Writer::new(
            Arc::clone(&store),
            floor_file,
            Arc::clone(&view),
            Arc::clone(&counters),
            receiver,
            leftover,
            lock.clone(),
        );
        // A runtime of the thread's own, only to wait for a request or a deadline, whichever is first.
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_time()
            .build()
            .map_err(|e| StoreError::io("starting the log writer's timer", e))?;
        let thread = std::thread::Builder::new()
            .name("raft-log".to_owned())
            .spawn(move || writer.run(&runtime))
            .map_err(|e| StoreError::io("starting the log writer", e))?;
        Ok(Self {
            store_id,
            store,
            view,
            counters,
            requests,
            room: Arc::new(Semaphore::new(QUEUE_KIB as usize)),
            writer: Mutex::new(Some(thread)),
            first_sync,
            _lock: lock,
        })
    }

    /// The identity of this log.
    #[must_use]
    pub fn store_id(&self) -> StoreId {
        self.store_id
    }

    /// How long the sync of the self-test at opening took.
    #[must_use]
    pub fn first_sync(&self) -> Duration {
        self.first_sync
    }

    /// Where the log begins and ends.
    #[must_use]
    pub fn position(&self) -> LogPosition {
        self.view().position()
    }

    /// The vote saved last.
    #[must_use]
    pub fn vote(&self) -> Option<Vote> {
        self.view().vote()
    }

    /// The committed position noted last. What is written of it lags by about a second, and never names an entry that is not
    /// durable here.
    #[must_use]
    pub fn committed(&self) -> Option<LogId> {
        self.view().committed()
    }

    /// What the writer has done so far.
    #[must_use]
    pub fn stats(&self) -> LogStats {
        let read = |counter: &std::sync::atomic::AtomicU64| counter.load(Ordering::Relaxed);
        LogStats {
            syncs: read(&self.counters.syncs),
            requests: read(&self.counters.requests),
            bytes: read(&self.counters.bytes),
            last_sync: Duration::from_micros(read(&self.counters.last_sync_micros)),
            slowest_sync: Duration::from_micros(read(&self.counters.slowest_sync_micros)),
        }
    }

    /// Adds entries to the end. They can be read on return; `done` is called once they are durable.
    ///
    /// # Errors
    /// When an entry is too long or does not follow the last one; nothing is added then, and `done` is called with the
    /// error too. When the log has failed or is closed.
    pub async fn append(&self, entries: Vec<Entry>, done: Completion) -> Result<(), StoreError> {
        let entries: Vec<_> = entries.into_iter().map(Arc::new).collect();
        let admitted = self.admit(&entries).await;
        let outcome = match admitted {
            Ok((permit, room)) => {
                // One step for readers and writer: neither a cancelled caller nor two at once can part them.
                let mut view = self.view();
                let previous = view.position().last;
                match view.append(&entries) {
                    Ok(()) => {
                        let (truncations, room) = (view.truncations(), Some(room));
                        permit.send(Request::Append { entries, previous, truncations, room, done });
                        return Ok(());
                    }
                    Err(error) => Err(error),
                }
            }
            Err(error) => Err(error),
        };
        done(outcome.clone());
        outcome
    }

    /// Waits until everything appended so far is durable.
    ///
    /// # Errors
    /// When the disk refused, or the log has failed or is closed.
    pub async fn flush(&self) -> Result<(), StoreError> {
        self.request(|done, view| {
            let truncations = view.truncations();
            Ok(Some(Request::Append { entries: Vec::new(), previous: None, truncations, room: None, done }))
        })
        .await
    }

    /// Saves a vote; durable on return.
    ///
    /// # Errors
    /// When the disk refused, or the log has failed or is closed.
    pub async fn save_vote(&self, vote: Vote) -> Result<(), StoreError> {
        self.request(|done, _| Ok(Some(Request::Vote { vote, done }))).await
    }

    /// Notes how far the log is committed. Written within about a second, and only once it is durable here.
    pub fn save_committed(&self, committed: Option<LogId>) {
        self.view().set_committed(committed);
    }

    /// Removes every entry after `keep`, durable on return.
    ///
    /// # Errors
    /// When entries before that are purged already; when the disk refused, or the log has failed or is closed.
    pub async fn truncate_after(&self, keep: Option<LogId>) -> Result<(), StoreError> {
        self.request(|done, view| {
            let end = view.end();
            if keep.is_some_and(|keep| keep.index + 1 >= end) {
                return Ok(None);
            }
            view.truncate_after(keep)?;
            Ok(Some(Request::Truncate { keep, end, done }))
        })
        .await
    }

    /// Forgets every entry up to `upto`. The purge point is durable on return; the entries go soon after, in slices.
    ///
    /// # Errors
    /// When the disk refused, or the log has failed or is closed.
    pub async fn purge(&self, upto: LogId) -> Result<(), StoreError> {
        self.request(|done, view| {
            if view.position().purged >= Some(upto) {
                return Ok(None);
            }
            view.purge(upto);
            Ok(Some(Request::Purge { upto, done }))
        })
        .await
    }

    /// Writes everything that is owed and takes nothing more. The database itself is closed when the last handle is dropped.
    ///
    /// # Errors
    /// When something that was owed could not be written. What was acknowledged is not affected.
    pub async fn close(&self) -> Result<(), StoreError> {
        let outcome = self.request(|done, _| Ok(Some(Request::Close { done }))).await;
        self.join_writer();
        outcome
    }

    /// The writer has been told to close, so what remains of it takes no time.
    fn join_writer(&self) {
        let thread = self.writer.lock().unwrap_or_else(PoisonError::into_inner).take();
        if let Some(thread) = thread {
            let _ = thread.join();
        }
    }

    /// Room in the queue for these entries, if they may be stored at all.
    async fn admit(
        &self,
        entries: &[Arc<Entry>],
    ) -> Result<(mpsc::Permit<'_, Request>, OwnedSemaphorePermit), StoreError> {
        entries.iter().try_for_each(|entry| check_length(entry))?;
        let bytes: usize = entries.iter().map(|entry| entry.weight()).sum();
        // What is larger than the whole queue waits until it is empty.
        let kib = u32::try_from(bytes / 1024 + 1).unwrap_or(QUEUE_KIB).min(QUEUE_KIB);
        let room = Arc::clone(&self.room).acquire_many_owned(kib).await.map_err(|_| StoreError::Closed)?;
        let permit = self.requests.reserve().await.map_err(|_| StoreError::Closed)?;
        Ok((permit, room))
    }

    /// Makes a request and waits for its answer. The view is changed and the request sent in one step; `None` means that
    /// there is nothing to do.
    async fn request(
        &self,
        make: impl FnOnce(Completion, &mut View) -> Result<Option<Request>, StoreError>,
    ) -> Result<(), StoreError> {
        let (answer, answered) = oneshot::channel();
        let done: Completion = Box::new(move |outcome| {
            // Nobody waits any more if the caller was cancelled; the write itself stands.
            let _ = answer.send(outcome);
        });
        let permit = self.requests.reserve().await.map_err(|_| StoreError::Closed)?;
        {
            let mut view = self.view();
            match make(done, &mut view)? {
                Some(request) => permit.send(request),
                None => return Ok(()),
            };
        }
        answered.await.map_err(|_| StoreError::Closed)?
    }

    fn view(&self) -> MutexGuard<'_, View> {
        self.view.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for RaftLog {
    fn drop(&mut self) {
        let closing = Request::Close { done: Box::new(|_| {}) };
        // With a full queue the writer is stuck or hopelessly behind; it then ends by itself once this handle is gone.
        if self.requests.try_send(closing).is_ok() || self.requests.is_closed() {
            self.join_writer();
        }
    }
}

fn check_length(entry: &Entry) -> Result<(), StoreError> {
    let len = match &entry.payload {
        Payload::Command(command) => command.len() + ENTRY_HEAD,
        Payload::Blank => ENTRY_HEAD,
        Payload::Membership(_) => entry.encode(None).len() + ENTRY_HEAD,
    };
    if len > MAX_ENTRY {
        return Err(StoreError::TooLarge { what: format!("log entry {}", entry.log_id.index), len, max: MAX_ENTRY });
    }
    Ok(())
}
