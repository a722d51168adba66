//! What is on its way to this node, and what has lately arrived or failed.

use std::collections::VecDeque;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use uuid::Uuid;

/// The most transfers that are remembered. Running ones are far fewer; of the finished ones the oldest goes.
const MOST: usize = 512;

/// What kind of transfer it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum TransferKind {
    /// The node pulls from a URL.
    Pull,
    /// Files are uploaded one by one.
    Upload,
    /// An archive is uploaded.
    Archive,
}

impl TransferKind {
    /// As the API spells it.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Pull => "pull",
            Self::Upload => "upload",
            Self::Archive => "archive",
        }
    }
}

/// How far a transfer has come.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum TransferState {
    /// Bytes are coming.
    Downloading,
    /// All bytes have come, and are being unpacked.
    Extracting,
    /// The model is there, at this path.
    Done(PathBuf),
    /// It failed, for this reason, and has left nothing behind.
    Error(String),
}

impl TransferState {
    /// As the API spells it.
    #[must_use]
    pub fn name(&self) -> &'static str {
        match self {
            Self::Downloading => "downloading",
            Self::Extracting => "extracting",
            Self::Done(_) => "done",
            Self::Error(_) => "error",
        }
    }

    fn has_ended(&self) -> bool {
        matches!(self, Self::Done(_) | Self::Error(_))
    }
}

/// One transfer, at one moment.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Transfer {
    /// Which: for an upload it is the session's id.
    pub id: Uuid,
    /// What kind.
    pub kind: TransferKind,
    /// The model's name.
    pub name: String,
    /// How far it is.
    pub state: TransferState,
    /// How many bytes there are in all, where that is known.
    pub total_bytes: Option<u64>,
    /// How many have come.
    pub received_bytes: u64,
}

#[derive(Debug)]
struct Entry {
    id: Uuid,
    kind: TransferKind,
    name: String,
    received: AtomicU64,
    status: Mutex<Status>,
}

#[derive(Debug)]
struct Status {
    state: TransferState,
    total: Option<u64>,
    ended: Option<Instant>,
}

impl Entry {
    fn status(&self) -> MutexGuard<'_, Status> {
        self.status.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn end(&self, state: TransferState) {
        let mut status = self.status();
        if status.ended.is_none() {
            status.state = state;
            status.ended = Some(Instant::now());
        }
    }
}

/// The transfers of this node. Clones are the same ones.
#[derive(Clone, Debug)]
pub(super) struct Transfers {
    entries: Arc<Mutex<VecDeque<Arc<Entry>>>>,
    /// How long a finished one is remembered.
    kept: Duration,
}

impl Transfers {
    pub(super) fn new(kept: Duration) -> Self {
        Self { entries: Arc::default(), kept }
    }

    /// Begins one. It is told of until it has ended, and a while longer.
    pub(super) fn begin(&self, id: Uuid, kind: TransferKind, name: &str, total: Option<u64>) -> TransferHandle {
        let status = Status { state: TransferState::Downloading, total, ended: None };
        let entry = Entry { id, kind, name: name.to_owned(), received: AtomicU64::new(0), status: Mutex::new(status) };
        let entry = Arc::new(entry);
        let mut entries = self.pruned();
        if entries.len() >= MOST
            && let Some(oldest) = entries.iter().position(|entry| entry.status().ended.is_some())
        {
            entries.remove(oldest);
        }
        entries.push_back(Arc::clone(&entry));
        TransferHandle { entry }
    }

    fn pruned(&self) -> MutexGuard<'_, VecDeque<Arc<Entry>>> {
        let mut entries = self.entries.lock().unwrap_or_else(PoisonError::into_inner);
        entries.retain(|entry| entry.status().ended.is_none_or(|ended| ended.elapsed() < self.kept));
        entries
    }

    /// All of them, oldest first.
    pub(super) fn list(&self) -> Vec<Transfer> {
        let entries = self.pruned();
        let told = entries.iter().map(|entry| {
            let status = entry.status();
            Transfer {
                id: entry.id,
                kind: entry.kind,
                name: entry.name.clone(),
                state: status.state.clone(),
                total_bytes: status.total,
                received_bytes: entry.received.load(Ordering::Relaxed),
            }
        });
        told.collect()
    }
}

/// A running transfer, in the hands of whoever carries it out. Dropped before its end, it has broken off.
#[derive(Debug)]
pub(super) struct TransferHandle {
    entry: Arc<Entry>,
}

impl TransferHandle {
    pub(super) fn id(&self) -> Uuid {
        self.entry.id
    }

    pub(super) fn add(&self, bytes: u64) {
        self.entry.received.fetch_add(bytes, Ordering::Relaxed);
    }

    /// Some that were counted have been thrown away.
    pub(super) fn subtract(&self, bytes: u64) {
        let less = |received: u64| Some(received.saturating_sub(bytes));
        let _ = self.entry.received.fetch_update(Ordering::Relaxed, Ordering::Relaxed, less);
    }

    pub(super) fn set_received(&self, bytes: u64) {
        self.entry.received.store(bytes, Ordering::Relaxed);
    }

    pub(super) fn set_total(&self, bytes: Option<u64>) {
        self.entry.status().total = bytes;
    }

    pub(super) fn extracting(&self) {
        let mut status = self.entry.status();
        if !status.state.has_ended() {
            status.state = TransferState::Extracting;
        }
    }

    pub(super) fn done(&self, path: &Path) {
        self.entry.end(TransferState::Done(path.to_owned()));
    }

    pub(super) fn failed(&self, why: &str) {
        self.entry.end(TransferState::Error(why.to_owned()));
    }
}

impl Drop for TransferHandle {
    fn drop(&mut self) {
        self.failed("it broke off");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_transfer_is_told_of_until_a_while_after_its_end() {
        let transfers = Transfers::new(Duration::from_secs(3600));
        let handle = transfers.begin(Uuid::new_v4(), TransferKind::Pull, "m", None);
        handle.set_total(Some(10));
        handle.add(7);
        handle.subtract(3);
        handle.extracting();
        let told = transfers.list();
        assert_eq!(
            (told[0].state.clone(), told[0].received_bytes, told[0].total_bytes),
            (TransferState::Extracting, 4, Some(10))
        );
        handle.done(Path::new("/models/m"));
        drop(handle);
        assert_eq!(transfers.list()[0].state, TransferState::Done("/models/m".into()));
        drop(transfers.begin(Uuid::new_v4(), TransferKind::Upload, "n", None));
        assert_eq!(transfers.list()[1].state, TransferState::Error("it broke off".to_owned()));

        let forgetful = Transfers::new(Duration::ZERO);
        let running = forgetful.begin(Uuid::new_v4(), TransferKind::Pull, "m", None);
        drop(forgetful.begin(Uuid::new_v4(), TransferKind::Pull, "n", None));
        assert_eq!(forgetful.list().len(), 1);
        drop(running);
        assert!(forgetful.list().is_empty());
    }

    #[test]
    fn only_so_many_are_remembered_and_running_ones_never_forgotten() {
        let transfers = Transfers::new(Duration::from_secs(3600));
        let first = transfers.begin(Uuid::new_v4(), TransferKind::Pull, "first", None);
        for _ in 0..2 * MOST {
            drop(transfers.begin(Uuid::new_v4(), TransferKind::Pull, "m", None));
        }
        let told = transfers.list();
        assert_eq!(told.len(), MOST);
        assert_eq!(told[0].id, first.id());
    }
}
