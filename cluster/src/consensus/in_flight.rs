//! The count of this process's writes. What is under way stays within the window that the replicated state remembers.

use std::collections::BTreeSet;
use std::sync::{Mutex, PoisonError};

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
}

/// A write that is under way, until it is dropped.
#[derive(Debug)]
pub(super) struct Seq<'a> {
    of: &'a InFlight,
    pub number: u64,
}

impl InFlight {
    /// The next number, or `None` when too many are under way, or the oldest has been for too long.
    pub fn begin(&self) -> Option<Seq<'_>> {
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
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn neither_too_many_nor_too_old() {
        let writes = InFlight::default();
        let first = writes.begin().expect("the first");
        for _ in 1..CLIENT_WINDOW {
            writes.begin().expect("one at a time beside the first");
        }
        assert!(writes.begin().is_none(), "the first is too old by now");
        drop(first);
        let many: Vec<_> = (0..LIMIT).map(|_| writes.begin().expect("one of many")).collect();
        assert!(writes.begin().is_none(), "too many");
        drop(many);
        assert_eq!(writes.begin().expect("the next").number, CLIENT_WINDOW + LIMIT as u64);
    }
}
