//! What the rest of the program sees of the replicated state: the newest view, and every change from an index on.

use std::collections::{BTreeMap, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use arc_swap::ArcSwap;
use tokio::sync::{oneshot, watch};

use super::step::Damaged;
use super::tables::Change;
use super::view::View;
use crate::ids::LogTime;

/// How many entries the ring of changes holds.
const RING_ENTRIES: usize = 64 * 1024;

/// How many bytes of keys and values it holds.
const RING_BYTES: usize = 16 * 1024 * 1024;

/// What one entry of the log wrote.
#[derive(Clone, Debug)]
pub struct Batch {
    /// The index of the entry.
    pub index: u64,
    /// Its writes, in order.
    pub changes: Arc<[Change]>,
}

/// The changes asked for are no longer kept, because the caller was too slow or a snapshot has replaced the state. Read the
/// view, and go on from its index.
#[derive(Clone, Copy, Debug, thiserror::Error, PartialEq, Eq)]
#[error("the changes after index {asked} are no longer kept; they begin after {kept}")]
pub struct Lagged {
    /// Where the caller stood.
    pub asked: u64,
    /// After which index changes are kept.
    pub kept: u64,
}

#[derive(Debug, Default)]
struct Ring {
    batches: VecDeque<Batch>,
    bytes: usize,
    /// Changes after this index are all here.
    after: u64,
}

fn size(changes: &[Change]) -> usize {
    let size = |change: &Change| change.key.key.len() + change.record.as_ref().map_or(0, |record| record.value.len());
    changes.iter().map(size).sum::<usize>() + size_of::<Batch>()
}

impl Ring {
    fn push(&mut self, batch: Batch) {
        self.bytes += size(&batch.changes);
        self.batches.push_back(batch);
        while self.batches.len() > RING_ENTRIES || self.bytes > RING_BYTES {
            let Some(oldest) = self.batches.pop_front() else { break };
            self.bytes -= size(&oldest.changes);
            self.after = oldest.index;
        }
    }

    /// Only up to what the newest view shows: whoever reads it after a change must find the change there.
    fn since(&self, index: u64, reached: u64, limit: usize) -> Result<Vec<Batch>, Lagged> {
        if index < self.after {
            return Err(Lagged { asked: index, kept: self.after });
        }
        let first = self.batches.partition_point(|batch| batch.index <= index);
        let shown = self.batches.range(first..).take_while(|batch| batch.index <= reached);
        Ok(shown.take(limit).cloned().collect())
    }
}

/// A view and the moment at which it became the newest.
#[derive(Debug)]
struct Seen {
    view: View,
    at: Instant,
    /// Since when the time of the log has been what it is: from there it goes on for readers. It may stand still while entries
    /// come (the leader's clock is off), and must not begin anew with each of them.
    timed: Instant,
}

impl Seen {
    fn new(view: View, before: Option<&Self>) -> Self {
        let at = Instant::now();
        let time = |view: &View| view.time().ok();
        let timed = before.filter(|before| time(&before.view) == time(&view)).map_or(at, |before| before.timed);
        Self { view, at, timed }
    }
}

/// Who waits for which index. Everybody is woken once: with one signal for all, each entry would wake all who wait.
#[derive(Debug, Default)]
struct Waiting {
    callers: BTreeMap<u64, Vec<oneshot::Sender<()>>>,
    count: usize,
}

impl Waiting {
    /// Those that gave up stay until their index comes, but for every so many all of them are looked through.
    const SWEEP: usize = 1024;

    fn add(&mut self, index: u64) -> oneshot::Receiver<()> {
        if self.count >= Self::SWEEP && self.count.is_power_of_two() {
            self.callers.retain(|_, callers| {
                callers.retain(|caller| !caller.is_closed());
                !callers.is_empty()
            });
            self.count = self.callers.values().map(Vec::len).sum();
        }
        let (caller, called) = oneshot::channel();
        self.callers.entry(index).or_default().push(caller);
        self.count += 1;
        called
    }

    fn wake(&mut self, reached: u64) {
        while let Some(first) = self.callers.first_entry()
            && *first.key() <= reached
        {
            let callers = first.remove();
            self.count -= callers.len();
            for caller in callers {
                // Gone if it gave up.
                let _ = caller.send(());
            }
        }
    }
}

/// Where the state machine shows what it has done. Readers never wait for it.
#[derive(Debug)]
pub struct Published {
    newest: ArcSwap<Seen>,
    index: watch::Sender<u64>,
    waiting: Mutex<Waiting>,
    ring: Mutex<Ring>,
}

impl Published {
    /// Begins with this view; changes are kept from here on.
    #[must_use]
    pub fn new(view: View) -> Self {
        let index = view.index();
        Self {
            newest: ArcSwap::from_pointee(Seen::new(view, None)),
            index: watch::Sender::new(index),
            waiting: Mutex::default(),
            ring: Mutex::new(Ring { after: index, ..Ring::default() }),
        }
    }

    // Nothing can panic while it is held.
    fn ring(&self) -> MutexGuard<'_, Ring> {
        self.ring.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn waiting(&self) -> MutexGuard<'_, Waiting> {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Shows the state after more entries, before they are answered.
    pub fn publish(&self, view: View, written: impl IntoIterator<Item = Batch>) {
        {
            let mut ring = self.ring();
            for batch in written {
                ring.push(batch);
            }
        }
        self.show(view);
    }

    /// Shows a state that replaces the one before. Whoever follows the changes has to start over.
    pub fn replace(&self, view: View) {
        *self.ring() = Ring { after: view.index(), ..Ring::default() };
        self.show(view);
    }

    fn show(&self, view: View) {
        let index = view.index();
        let seen = Seen::new(view, Some(&self.newest.load()));
        self.newest.store(Arc::new(seen));
        self.index.send_replace(index);
        self.waiting().wake(index);
    }

    /// The newest view.
    #[must_use]
    pub fn view(&self) -> View {
        self.newest.load().view.clone()
    }

    /// Looks at the newest view where it is. Whoever keeps it for longer takes a copy.
    pub fn with<T>(&self, look: impl FnOnce(&View) -> T) -> T {
        look(&self.newest.load().view)
    }

    /// How long ago the newest view became the newest.
    #[must_use]
    pub fn age(&self) -> Duration {
        self.newest.load().at.elapsed()
    }

    /// The time of the log as it would be stamped now: the newest stamp and what has passed since it was seen here. What
    /// expires between two entries is judged by it.
    ///
    /// # Errors
    /// When the state is damaged.
    pub fn time(&self) -> Result<LogTime, Damaged> {
        let seen = self.newest.load();
        let passed = u64::try_from(seen.timed.elapsed().as_millis()).unwrap_or(u64::MAX);
        Ok(LogTime(seen.view.time()?.0.saturating_add(passed)))
    }

    /// Waits until the state has reached this index.
    pub async fn reached(&self, index: u64) -> View {
        let called = {
            let mut waiting = self.waiting();
            // What is shown from here on wakes whoever has been added.
            if self.with(|view| view.index() >= index) {
                return self.view();
            }
            waiting.add(index)
        };
        // The sender is kept until the index is reached.
        let _ = called.await;
        self.view()
    }

    /// Follows the changes after this index.
    #[must_use]
    pub fn changes(self: &Arc<Self>, after: u64) -> Changes {
        Changes { published: Arc::clone(self), index: self.index.subscribe(), after }
    }
}

/// A follower of the changes.
#[derive(Debug)]
pub struct Changes {
    published: Arc<Published>,
    index: watch::Receiver<u64>,
    after: u64,
}

impl Changes {
    /// How many entries are handed out at once.
    const AT_ONCE: usize = 256;

    /// The index up to which changes have been handed out, or passed over.
    #[must_use]
    pub fn after(&self) -> u64 {
        self.after
    }

    /// The next changes, in order and without a gap; waits until there are some. Nothing is lost when it is dropped while it
    /// waits.
    ///
    /// # Errors
    /// [`Lagged`] when some are missing. The next call goes on from the newest view.
    pub async fn next(&mut self) -> Result<Vec<Batch>, Lagged> {
        loop {
            let reached = *self.index.borrow_and_update();
            let batches = self.published.ring().since(self.after, reached, Self::AT_ONCE);
            match batches {
                Ok(batches) if batches.is_empty() => self.after = self.after.max(reached),
                Ok(batches) => {
                    self.after = batches.last().map_or(self.after, |batch| batch.index);
                    return Ok(batches);
                }
                Err(lagged) => {
                    self.after = self.published.view().index();
                    return Err(lagged);
                }
            }
            // The sender lives as long as `published`.
            let _ = self.index.changed().await;
        }
    }
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;

    use super::*;
    use crate::ids::NodeId;
    use crate::state::{TableId, Tables};
    use crate::storage::{Applied, LogId};

    struct Writer {
        tables: Tables,
        index: u64,
        published: Arc<Published>,
    }

    impl Writer {
        fn new() -> Self {
            let published = Arc::new(Published::new(View::default()));
            Self { tables: Tables::default(), index: 0, published }
        }

        fn view(&self) -> View {
            let log_id = LogId { term: 1, node: NodeId(1), index: self.index };
            View::new(&self.tables, &Applied { log_id: Some(log_id), ..Applied::default() })
        }

        fn write(&mut self, bytes: usize) {
            self.index += 1;
            self.tables.put(TableId(99), self.index.to_be_bytes().to_vec(), vec![0; bytes], self.index);
            let changes = self.tables.take_changes().into();
            self.published.publish(self.view(), [Batch { index: self.index, changes }]);
        }
    }

    #[tokio::test]
    async fn changes_come_in_order_and_without_a_gap() {
        let mut writer = Writer::new();
        let mut changes = writer.published.changes(0);
        (0..600).for_each(|_| writer.write(1));
        let mut seen = Vec::new();
        while seen.len() < 600 {
            seen.extend(changes.next().await.expect("nothing is missing").into_iter().map(|batch| batch.index));
        }
        assert_eq!(seen, (1..=600).collect::<Vec<_>>());
        let waiting = tokio::spawn(async move { changes.next().await });
        writer.write(1);
        let batches = waiting.await.expect("ends").expect("nothing is missing");
        assert_eq!(batches.len(), 1);
        assert_eq!(batches[0].changes[0].key.key, Bytes::copy_from_slice(&601_u64.to_be_bytes()));
    }

    #[tokio::test]
    async fn a_slow_follower_is_told_and_the_ring_stays_bounded() {
        let mut writer = Writer::new();
        let mut changes = writer.published.changes(0);
        let pieces = 20;
        (0..pieces).for_each(|_| writer.write(RING_BYTES / 10));
        assert!(writer.published.ring().bytes <= RING_BYTES);
        let lagged = changes.next().await.expect_err("some are gone");
        assert!(lagged.asked == 0 && lagged.kept > 0, "{lagged}");
        writer.write(1);
        let batches = changes.next().await.expect("goes on from the view");
        assert_eq!(batches[0].index, pieces + 1);
        // A snapshot replaces the state: whoever was behind it has to start over.
        let mut behind = writer.published.changes(pieces);
        writer.index += 10;
        writer.published.replace(writer.view());
        assert!(behind.next().await.is_err());
    }

    #[tokio::test]
    async fn a_reader_waits_until_the_state_is_there() {
        let mut writer = Writer::new();
        let published = Arc::clone(&writer.published);
        let waiting = tokio::spawn(async move { published.reached(2).await.index() });
        writer.write(1);
        writer.write(1);
        assert_eq!(waiting.await.expect("ends"), 2);
        assert_eq!(writer.published.reached(1).await.index(), 2, "nothing to wait for");
    }

    #[tokio::test]
    async fn those_who_gave_up_are_forgotten() {
        let mut writer = Writer::new();
        for index in 1..=10 * Waiting::SWEEP as u64 {
            let waiting = writer.published.reached(index);
            assert!(futures_util::poll!(Box::pin(waiting)).is_pending());
        }
        assert!(writer.published.waiting().count <= Waiting::SWEEP);
        let published = Arc::clone(&writer.published);
        let patient = tokio::spawn(async move { published.reached(2).await.index() });
        (0..2).for_each(|_| writer.write(1));
        assert_eq!(patient.await.expect("ends"), 2);
    }
}
