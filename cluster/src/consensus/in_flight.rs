//! The count of this process's writes. What is under way stays within the window that the replicated state remembers.

use std::collections::BTreeSet;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use tokio::sync::Notify;

use crate::state::CLIENT_WINDOW;

/// How many writes of a process may be under way at once.
const LIMIT: usize = 128;

#[derive(Debug, Default)]
struct Inner {
    next: u64,
    under_way: BTreeSet<u64>,
}

/// Gives out sequence numbers.
#[derive(Debug, Default)]
pub(super) struct InFlight {
    inner: Mutex<Inner>,
    /// Told of room, one who waits at a time.
    room: Notify,
}

/// A write that is under way, until it is dropped.
#[derive(Debug)]
pub(super) struct Seq<'a> {
    of: &'a InFlight,
    pub number: u64,
}

impl InFlight {
    /// The next number. Waits while too many are under way, or the oldest has been for too long; `None` when it waited for
    /// as long as this.
    pub async fn begin(&self, patience: Duration) -> Option<Seq<'_>> {
        if let Some(seq) = self.try_begin() {
            return Some(seq);
        }
        let waiting = async {
            loop {
                self.room.notified().await;
                if let Some(seq) = self.try_begin() {
                    return seq;
                }
            }
        };
        let seq = tokio::time::timeout(patience, waiting).await.ok()?;
        // The end of the oldest may have made room for more than one.
        self.room.notify_one();
        Some(seq)
    }

    fn try_begin(&self) -> Option<Seq<'_>> {
        let mut inner = self.inner.lock().unwrap_or_else(PoisonError::into_inner);
        let number = inner.next;
        let oldest = inner.under_way.first().copied().unwrap_or(number);
        if inner.under_way.len() >= LIMIT || number - oldest >= CLIENT_WINDOW {
            return None;
        }
        inner.next += 1;
        inner.under_way.insert(number);
        Some(Seq { of: self, number })
    }
}

impl Drop for Seq<'_> {
    fn drop(&mut self) {
        self.of.inner.lock().unwrap_or_else(PoisonError::into_inner).under_way.remove(&self.number);
        self.of.room.notify_one();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn neither_too_many_nor_too_old() {
        let writes = InFlight::default();
        let first = writes.try_begin().expect("the first");
        for _ in 1..CLIENT_WINDOW {
            writes.try_begin().expect("one at a time beside the first");
        }
        assert!(writes.try_begin().is_none(), "the first is too old by now");
        drop(first);
        let many: Vec<_> = (0..LIMIT).map(|_| writes.try_begin().expect("one of many")).collect();
        assert!(writes.try_begin().is_none(), "too many");
        drop(many);
        assert_eq!(writes.try_begin().expect("the next").number, CLIENT_WINDOW + LIMIT as u64);
    }

    #[tokio::test]
    async fn those_who_wait_come_in_as_soon_as_there_is_room() {
        let writes = InFlight::default();
        let first = writes.try_begin().expect("the first");
        for _ in 1..CLIENT_WINDOW {
            writes.try_begin().expect("one at a time beside the first");
        }
        assert!(writes.begin(Duration::from_millis(1)).await.is_none(), "it gives up");
        let waiting = (0..3 * LIMIT).map(|_| async { writes.begin(Duration::from_secs(30)).await.is_some() });
        let (came, ()) = tokio::join!(futures_util::future::join_all(waiting), async {
            tokio::task::yield_now().await;
            drop(first);
        });
        assert!(came.into_iter().all(|came| came));
    }
}
