//! The one thread that writes the log's database.
//!
//! Requests are taken in the order in which they came, as many as are waiting, written as one batch, made durable by one
//! sync, and answered in order. There is no timer: while one sync runs, the next batch gathers. Vote and entries share the
//! thread, which is the serialization that Raft demands of them.

use std::ops::ControlFlow;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use tokio::sync::{OwnedSemaphorePermit, mpsc};

use super::schema::{COMMITTED, META, PURGED, VOTE, put_entry, remove_entries, scan_entries};
use super::view::View;
use crate::storage::error::StoreError;
use crate::storage::floor::{Floor, FloorFile};
use crate::storage::node::DirectoryLock;
use crate::storage::record::{Entry, LogId, Vote};
use crate::storage::store::{Batch, Store};

/// What is called once a write is durable, or has failed. It runs on the writer's thread and must not block.
pub type Completion = Box<dyn FnOnce(Result<(), StoreError>) + Send>;

/// How many requests become one batch at most.
const BATCH_REQUESTS: usize = 256;

/// After so many bytes a batch is written, with the write that it ends with.
const BATCH_BYTES: usize = 1024 * 1024;

/// How many entries a purge or a truncation removes at a time, so that no append waits long behind it.
const SLICE: u64 = 1_000;

/// How long purged entries may wait for an idle moment before a slice of them goes between two batches.
const REMOVAL_PERIOD: Duration = Duration::from_millis(100);

/// How often the floor file follows the log between votes, and the committed position is noted.
const FLOOR_PERIOD: Duration = Duration::from_secs(1);

/// A sync that takes longer is reported.
const SLOW_SYNC: Duration = Duration::from_millis(50);

/// What the writer is asked to do.
pub(super) enum Request {
    /// An append of nothing is a barrier: it is answered once everything before it is durable.
    Append {
        entries: Vec<Arc<Entry>>,
        /// The entry before the first.
        previous: Option<LogId>,
        /// How often the log had been cut when they were added to the view.
        truncations: u64,
        /// The room that they take up in the queue.
        room: Option<OwnedSemaphorePermit>,
        done: Completion,
    },
    Vote {
        vote: Vote,
        done: Completion,
    },
    Truncate {
        keep: Option<LogId>,
        end: u64,
        done: Completion,
    },
    Purge {
        upto: LogId,
        done: Completion,
    },
    Close {
        done: Completion,
    },
}

/// Counters of the writer, since the log was opened.
#[derive(Debug, Default)]
pub(super) struct Counters {
    pub(super) syncs: AtomicU64,
    pub(super) requests: AtomicU64,
    pub(super) bytes: AtomicU64,
    pub(super) last_sync_micros: AtomicU64,
    pub(super) slowest_sync_micros: AtomicU64,
}

pub(super) struct Writer {
    store: Arc<dyn Store>,
    floor: FloorFile,
    view: Arc<Mutex<View>>,
    counters: Arc<Counters>,
    requests: mpsc::Receiver<Request>,
    /// What is durable now; the floor file follows it.
    durable: Floor,
    floor_written: Instant,
    committed_noted: Option<LogId>,
    /// Entries that are purged but not yet removed, `first..=last`.
    to_remove: Option<(u64, u64)>,
    removed_at: Instant,
    // Held until the thread ends, whatever became of the handle.
    _lock: Option<Arc<DirectoryLock>>,
}

/// Completions of the batch under way, in order.
#[derive(Default)]
struct Gathered {
    batch: Batch,
    completions: Vec<Completion>,
    last_index: Option<u64>,
    vote: Option<Vote>,
    written: Option<(u64, u64)>,
    /// The room in the queue that these requests take up until they are answered.
    room: Vec<OwnedSemaphorePermit>,
}

impl Request {
    fn refuse(self, why: &StoreError) {
        let (Self::Append { done, .. }
        | Self::Vote { done, .. }
        | Self::Truncate { done, .. }
        | Self::Purge { done, .. }
        | Self::Close { done }) = self;
        done(Err(why.clone()));
    }
}

impl Gathered {
    fn fail(&mut self, error: &StoreError) {
        for done in self.completions.drain(..) {
            done(Err(error.clone()));
        }
    }
}

impl Writer {
    pub(super) fn new(
        store: Arc<dyn Store>,
        floor: FloorFile,
        view: Arc<Mutex<View>>,
        counters: Arc<Counters>,
        requests: mpsc::Receiver<Request>,
        leftover: Option<(u64, u64)>,
        lock: Option<Arc<DirectoryLock>>,
    ) -> Self {
        let (durable, committed_noted) = {
            let view = view.lock().unwrap_or_else(PoisonError::into_inner);
            let last_index = view.position().last.map(|id| id.index);
            (Floor { last_index, vote: view.vote() }, view.committed())
        };
        Self {
            store,
            floor,
            view,
            counters,
            requests,
            durable,
            floor_written: Instant::now(),
            committed_noted,
            to_remove: leftover,
            removed_at: Instant::now(),
            _lock: lock,
        }
    }

    /// Works until it is told to close, every sender is gone, or the disk fails. After a failure every request that is
    /// waiting or still comes is answered with it.
    pub(super) fn run(mut self, runtime: &tokio::runtime::Runtime) {
        let failure = loop {
            match runtime.block_on(self.next()) {
                Next::Request(request) => match self.handle(request) {
                    Ok(ControlFlow::Continue(())) => {}
                    Ok(ControlFlow::Break(done)) => {
                        self.requests.close();
                        let outcome = self.settle();
                        while let Some(request) = self.requests.blocking_recv() {
                            request.refuse(&StoreError::Closed);
                        }
                        drop(self.store);
                        return done(outcome);
                    }
                    Err(error) => break error,
                },
                Next::Idle => {
                    if let Err(error) = self.idle() {
                        break error;
                    }
                }
                Next::Abandoned => {
                    if let Err(error) = self.settle() {
                        tracing::error!(%error, "the log did not close cleanly");
                    }
                    return;
                }
            }
        };
        tracing::error!(error = %failure, "the Raft log stopped: this node can not take part until it is restarted");
        let failed = StoreError::Failed(Arc::new(failure));
        while let Some(request) = self.requests.blocking_recv() {
            if let Request::Close { .. } = &request {
                // Whoever closes waits for this thread, which ends once nothing more can come.
                self.requests.close();
            }
            request.refuse(&failed);
        }
    }

    async fn next(&mut self) -> Next {
        // Work that is waiting is done as soon as no request is. Otherwise a look once in a while: nobody says when there
        // is a new committed position to note.
        let patience = match self.to_remove {
            Some(_) => Duration::ZERO,
            None => FLOOR_PERIOD.saturating_sub(self.floor_written.elapsed()),
        };
        match tokio::time::timeout(patience, self.requests.recv()).await {
            Ok(Some(request)) => Next::Request(request),
            Ok(None) => Next::Abandoned,
            Err(_) => Next::Idle,
        }
    }

    /// Takes a request and those that wait behind it.
    fn handle(&mut self, first: Request) -> Result<ControlFlow<Completion>, StoreError> {
        let mut gathered = Gathered::default();
        let mut next = Some(first);
        let mut taken = 0;
        while let Some(request) = next.take() {
            taken += 1;
            match request {
                Request::Append { entries, mut previous, truncations, room, done } => {
                    gathered.completions.push(done);
                    gathered.room.extend(room);
                    for entry in &entries {
                        if let Err(error) = put_entry(&mut gathered.batch, entry, previous) {
                            gathered.fail(&error);
                            return Err(error);
                        }
                        previous = Some(entry.log_id);
                        gathered.last_index = Some(entry.log_id.index);
                        gathered.written = Some((entry.log_id.index + 1, truncations));
                        // A long request becomes several batches; it is answered with the last one.
                        if gathered.batch.bytes() > BATCH_BYTES
                            && let Err(error) = self.write_part(&mut gathered)
                        {
                            gathered.fail(&error);
                            return Err(error);
                        }
                    }
                }
                Request::Vote { vote, done } => {
                    gathered.batch.put(META, VOTE, vote.encode());
                    gathered.vote = Some(vote);
                    gathered.completions.push(done);
                }
                Request::Truncate { keep, end, done } => {
                    let outcome = self.commit(&mut gathered).and_then(|()| self.truncate(keep, end));
                    complete(done, &outcome);
                    outcome?;
                }
                Request::Purge { upto, done } => {
                    let outcome = self.commit(&mut gathered).and_then(|()| self.purge(upto));
                    complete(done, &outcome);
                    outcome?;
                }
                Request::Close { done } => {
                    if let Err(error) = self.commit(&mut gathered) {
                        self.requests.close();
                        done(Err(error.clone()));
                        return Err(error);
                    }
                    return Ok(ControlFlow::Break(done));
                }
            }
            if taken < BATCH_REQUESTS && gathered.batch.bytes() < BATCH_BYTES {
                next = self.requests.try_recv().ok();
            }
        }
        self.counters.requests.fetch_add(taken as u64, Ordering::Relaxed);
        self.commit(&mut gathered)?;
        // Under steady load there is no idle moment; what is purged must go all the same.
        if self.removed_at.elapsed() > REMOVAL_PERIOD {
            self.remove_slice()?;
        }
        self.follow_up()?;
        Ok(ControlFlow::Continue(()))
    }

    /// Makes what was gathered so far durable, without an answer.
    fn write_part(&mut self, gathered: &mut Gathered) -> Result<(), StoreError> {
        let batch = std::mem::take(&mut gathered.batch);
        self.counters.bytes.fetch_add(batch.bytes() as u64, Ordering::Relaxed);
        self.write_durably(batch)?;
        self.durable.last_index = gathered.last_index.or(self.durable.last_index);
        Ok(())
    }

    /// Writes what was gathered, makes it durable, and answers (INV-1, INV-2).
    fn commit(&mut self, gathered: &mut Gathered) -> Result<(), StoreError> {
        let gathered = std::mem::take(gathered);
        if gathered.completions.is_empty() {
            return Ok(());
        }
        self.counters.bytes.fetch_add(gathered.batch.bytes() as u64, Ordering::Relaxed);
        let outcome = self.write_durably(gathered.batch).and_then(|()| {
            self.durable.last_index = gathered.last_index.or(self.durable.last_index);
            if let Some(vote) = gathered.vote {
                self.durable.vote = Some(vote);
                // Before the vote is answered: whatever happens to the database, the promise is not forgotten (INV-3).
                self.write_floor()?;
            }
            Ok(())
        });
        if outcome.is_ok() {
            let mut view = self.view.lock().unwrap_or_else(PoisonError::into_inner);
            if let Some((end, truncations)) = gathered.written {
                view.set_written(end, truncations);
            }
            if let Some(vote) = gathered.vote {
                view.set_vote(vote);
            }
        }
        for done in gathered.completions {
            complete(done, &outcome);
        }
        outcome
    }

    fn write_durably(&self, batch: Batch) -> Result<(), StoreError> {
        self.store.write(batch)?;
        let started = Instant::now();
        self.store.sync()?;
        let took = started.elapsed();
        if took > SLOW_SYNC {
            tracing::warn!(milliseconds = took.as_millis() as u64, "slow sync of the Raft log");
        }
        let micros = took.as_micros() as u64;
        self.counters.syncs.fetch_add(1, Ordering::Relaxed);
        self.counters.last_sync_micros.store(micros, Ordering::Relaxed);
        self.counters.slowest_sync_micros.fetch_max(micros, Ordering::Relaxed);
        Ok(())
    }

    /// Removes everything from the end down to `keep`, so that no crash leaves a hole.
    fn truncate(&mut self, keep: Option<LogId>, end: u64) -> Result<(), StoreError> {
        let first = keep.map_or(0, |id| id.index + 1);
        let kept = keep.map(|id| id.index);
        if self.durable.last_index > kept {
            self.durable.last_index = kept;
        }
        // Lowered before the entries go, or a crash in between would look like lost entries (INV-3).
        if self.floor.current().last_index > kept {
            self.write_floor()?;
        }
        let mut end = end;
        while end > first {
            let slice = first.max(end.saturating_sub(SLICE));
            let mut batch = Batch::default();
            remove_entries(&*self.store, &mut batch, slice, end - 1)?;
            self.write_durably(batch)?;
            end = slice;
        }
        Ok(())
    }

    /// Notes the purge point; the entries themselves go in slices when nothing else is waiting.
    fn purge(&mut self, upto: LogId) -> Result<(), StoreError> {
        // A purge may reach far beyond the end, as after a snapshot: what is not there need not be removed.
        let held = self.durable.last_index;
        let mut first = None;
        scan_entries(&*self.store, 0, &mut |entry| {
            first = Some(entry.index);
            ControlFlow::Break(())
        })?;
        let mut batch = Batch::default();
        batch.put(META, PURGED, upto.encode());
        self.write_durably(batch)?;
        self.durable.last_index = self.durable.last_index.max(Some(upto.index));
        let last = held.map_or(upto.index, |held| held.min(upto.index));
        self.to_remove = first.filter(|first| *first <= last).map(|first| (first, last));
        Ok(())
    }

    fn remove_slice(&mut self) -> Result<(), StoreError> {
        if let Some((first, last)) = self.to_remove.take() {
            let slice_end = last.min(first + SLICE - 1);
            let mut batch = Batch::default();
            remove_entries(&*self.store, &mut batch, first, slice_end)?;
            self.write_durably(batch)?;
            self.to_remove = (slice_end < last).then_some((slice_end + 1, last));
            self.removed_at = Instant::now();
        }
        Ok(())
    }

    fn idle(&mut self) -> Result<(), StoreError> {
        self.remove_slice()?;
        self.follow_up()
    }

    /// What nobody waits for; and, once in a while, the floor file and the committed position.
    fn follow_up(&mut self) -> Result<(), StoreError> {
        self.store.tidy()?;
        if self.floor_written.elapsed() < FLOOR_PERIOD {
            return Ok(());
        }
        if self.committed_lags() {
            self.note_committed()?;
        }
        if self.floor_lags() {
            self.write_floor()?;
        }
        self.floor_written = Instant::now();
        Ok(())
    }

    /// Everything that is owed, before the database is closed.
    fn settle(&mut self) -> Result<(), StoreError> {
        while self.to_remove.is_some() {
            self.remove_slice()?;
        }
        if self.committed_lags() {
            self.note_committed()?;
        }
        if self.floor_lags() {
            self.write_floor()?;
        }
        Ok(())
    }

    fn committed(&self) -> Option<LogId> {
        let committed = self.view.lock().unwrap_or_else(PoisonError::into_inner).committed();
        // A position that is not durable here yet must not be noted: after a crash there would be nothing to apply.
        committed.filter(|id| Some(id.index) <= self.durable.last_index)
    }

    fn committed_lags(&self) -> bool {
        self.committed() > self.committed_noted
    }

    fn note_committed(&mut self) -> Result<(), StoreError> {
        if let Some(committed) = self.committed() {
            let mut batch = Batch::default();
            batch.put(META, COMMITTED, committed.encode());
            self.write_durably(batch)?;
            self.committed_noted = Some(committed);
        }
        Ok(())
    }

    fn floor_lags(&self) -> bool {
        self.floor.current() != self.durable
    }

    fn write_floor(&mut self) -> Result<(), StoreError> {
        self.floor.write(self.durable)
    }
}

enum Next {
    Request(Request),
    Idle,
    Abandoned,
}

fn complete(done: Completion, outcome: &Result<(), StoreError>) {
    done(outcome.clone());
}
