//! The Raft log of a node, with its vote, in a sled database of its own.
//!
//! An entry can be read as soon as [`RaftLog::append`] returns and is durable when its completion is called. One thread
//! writes ([`writer`]), readers look at memory first ([`view`]), and a floor file beside the database remembers what has
//! been acknowledged (INV-1 to INV-4 in `OVERVIEW.md`).

mod schema;
mod view;
mod writer;

use std::collections::VecDeque;
use std::ops::ControlFlow;
use std::path::Path;
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc, oneshot};

use self::schema::{COMMITTED, FORMAT, META, PURGED, SELF_TEST, STORE, VOTE, read_meta, scan_entries};
use self::view::View;
use self::writer::{Counters, Request, Writer};
use super::MAX_ENTRY;
use super::error::{OpenError, StoreError, Unusable};
use super::floor::{Floor, FloorFile};
use super::node::DirectoryLock;
use super::record::{Entry, LogId, Payload, Vote};
use super::sled_store::{exists, parent};
use super::store::{Batch, Opener, Store, check_format};
use crate::ids::StoreId;

pub use self::view::LogPosition;
pub use self::writer::Completion;

/// The layout of `schema.rs`; a log with a higher number was written by a newer version.
const FORMAT_VERSION: u32 = 1;

/// How many requests may wait for the writer; more wait in their callers.
const QUEUE: usize = 1024;

/// How many bytes of entries may wait for the writer, in units of 1 KiB; more wait in their callers. Until it is written, an
/// entry is in memory.
const QUEUE_KIB: u32 = 64 * 1024;

/// Room for an entry's position beside its command.
const ENTRY_HEAD: usize = 64;

/// The Raft log on this node's disk.
///
/// Dropping it without [`RaftLog::close`] blocks until what is owed is written.
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
    lock: Option<Arc<DirectoryLock>>,
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
    /// [`OpenError::Unusable`] when the log can not be trusted; nothing is moved then.
    pub fn open(directory: &Path, floor: &Path, fresh: StoreId, opener: &Opener) -> Result<Self, OpenError> {
        let unusable = |why| OpenError::Unusable { path: parent(directory).to_owned(), why };
        let floor_found = FloorFile::read(floor)?;
        if let (Some(found), false) = (&floor_found, exists(directory)?) {
            return Err(unusable(Unusable::LogMissing { store: found.store.to_string() }));
        }
        let store = opener(directory, &schema::TREES).map_err(|error| damaged(directory, error))?;
        let store_id = identify(&*store, fresh).map_err(|error| damaged(directory, error))?;
        let first_sync = self_test(&*store)?;
        let floor_file = match FloorFile::read(floor)? {
            Some(found) if found.store != store_id => {
                let (expected, found) = (found.store.to_string(), store_id.to_string());
                return Err(unusable(Unusable::WrongStore { expected, found }));
            }
            Some(found) => FloorFile::open(floor, &found)?,
            None => FloorFile::create(floor, store_id)?,
        };
        let Recovered { view, leftover } = recover(&*store).map_err(|error| damaged(directory, error))?;
        let (last, vote) = (view.position().last, view.vote());
        if !floor_file.current().is_held_by(last, vote) {
            let found = Floor { last_index: last.map(|id| id.index), vote }.to_string();
            return Err(unusable(Unusable::BelowFloor { found, floor: floor_file.current().to_string() }));
        }

        let view = Arc::new(Mutex::new(view));
        let counters = Arc::new(Counters::default());
        let (requests, receiver) = mpsc::channel(QUEUE);
        let writer =
            Writer::new(Arc::clone(&store), floor_file, Arc::clone(&view), Arc::clone(&counters), receiver, leftover);
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
            lock: None,
        })
    }

    /// Keeps the directory locked for as long as the log lives.
    pub(super) fn holding(mut self, lock: &Arc<DirectoryLock>) -> Self {
        self.lock = Some(Arc::clone(lock));
        self
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
                match view.append(&entries) {
                    Ok(()) => {
                        permit.send(Request::Append {
                            entries,
                            truncations: view.truncations(),
                            room: Some(room),
                            done,
                        });
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
            Ok(Some(Request::Append { entries: Vec::new(), truncations, room: None, done }))
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
            let mut budget = Budget { left: bytes };
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
                stored.iter().map(|entry| entry.decode(&*self.store)).collect();
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
                if cut_short && entries.is_empty() {
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
        let mut budget = Budget { left: bytes };
        let fitting = plan.tail.iter().map_while(|entry| budget.take(entry.weight()).then(|| Entry::clone(entry)));
        plan.stored.is_empty().then(|| fitting.collect())
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

fn check_length(entry: &Entry) -> Result<(), StoreError> {
    let len = match &entry.payload {
        Payload::Command(command) => command.len() + ENTRY_HEAD,
        Payload::Blank => ENTRY_HEAD,
        Payload::Membership(_) => entry.encode().len(),
    };
    if len > MAX_ENTRY {
        return Err(StoreError::TooLarge { what: format!("log entry {}", entry.log_id.index), len, max: MAX_ENTRY });
    }
    Ok(())
}

/// Reads the log's identity, or gives a new log one.
fn identify(store: &dyn Store, fresh: StoreId) -> Result<StoreId, StoreError> {
    check_format("the Raft log", store.get(META, FORMAT)?, FORMAT_VERSION)?;
    let parse = |bytes: &[u8]| StoreId::from_slice(bytes).ok_or_else(|| "a store id of the wrong length".into());
    if let Some(id) = read_meta(store, STORE, parse)? {
        return Ok(id);
    }
    let mut batch = Batch::default();
    batch.put(META, FORMAT, FORMAT_VERSION.to_be_bytes());
    batch.put(META, STORE, *fresh.as_bytes());
    store.write(batch)?;
    store.sync()?;
    Ok(fresh)
}

/// Writes, syncs and reads on the real disk, and returns how long the sync took.
fn self_test(store: &dyn Store) -> Result<Duration, StoreError> {
    const SLOW: Duration = Duration::from_millis(10);
    let mut batch = Batch::default();
    batch.put(META, SELF_TEST, *b"written, synced, read");
    store.write(batch)?;
    let started = Instant::now();
    store.sync()?;
    let took = started.elapsed();
    if store.get(META, SELF_TEST)?.as_deref() != Some(b"written, synced, read") {
        let why = "what was just written is not there".to_owned();
        return Err(StoreError::Damaged { what: "the self-test".to_owned(), why });
    }
    if took > SLOW {
        tracing::warn!(
            milliseconds = took.as_millis() as u64,
            "the disk is slow: every write of the fleet waits for one sync"
        );
    }
    Ok(took)
}

struct Recovered {
    view: View,
    /// Entries below the purge point that a crash left behind, `first..=last`.
    leftover: Option<(u64, u64)>,
}

/// Reads the whole log, checking every entry and that none is missing.
fn recover(store: &dyn Store) -> Result<Recovered, StoreError> {
    let purged = read_meta(store, PURGED, LogId::decode)?;
    let vote = read_meta(store, VOTE, Vote::decode)?;
    let committed = read_meta(store, COMMITTED, LogId::decode)?;
    let mut newest: VecDeque<Arc<Entry>> = VecDeque::new();
    let mut leftover: Option<(u64, u64)> = None;
    let mut failure = None;
    scan_entries(store, 0, &mut |stored| {
        match stored.decode(store).and_then(|entry| follows(entry, purged, newest.back())) {
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
    Ok(Recovered { view: View::opened(LogPosition { purged, last }, vote, committed, newest), leftover })
}

/// Whether an entry may stand where it was found: right behind the one before, and written by no older leader.
fn follows(entry: Entry, purged: Option<LogId>, before: Option<&Arc<Entry>>) -> Result<Entry, StoreError> {
    let found = entry.log_id;
    let Some(previous) = before.map(|entry| entry.log_id).or(purged) else { return Ok(entry) };
    if purged.is_some_and(|purged| found.index <= purged.index)
        || (found.index == previous.index + 1 && found > previous)
    {
        return Ok(entry);
    }
    Err(StoreError::Damaged { what: "the Raft log".to_owned(), why: format!("entry {found} follows {previous}") })
}

/// An error while opening says whether the log is damaged or the disk refused.
fn damaged(directory: &Path, error: StoreError) -> OpenError {
    if error.is_damage() {
        OpenError::Unusable { path: parent(directory).to_owned(), why: Unusable::LogDamaged(error) }
    } else {
        OpenError::Store(error)
    }
}
