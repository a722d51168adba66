//! What this process knows of a unit beyond what is written down, and the task that waits for the unit's end.

use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use tokio::sync::{Semaphore, watch};
use tokio_util::task::AbortOnDropHandle;

use super::cgroup::Cgroup;
use super::kernel::{self, Ending, Identity};
use super::record::{self, Started};
use crate::runtime::Exit;

/// Nobody saw how it ended.
pub(super) const UNSEEN: Exit = Exit { code: None, signal: None, out_of_memory: false };

/// The kernel's number of SIGKILL.
const SIGKILL: i32 = 9;

/// A unit as this process knows it.
#[derive(Debug)]
pub(super) struct Slot {
    /// Set once it is being stopped; it is not started again after that.
    pub(super) stopping: AtomicBool,
    /// Whether its main process has been told to end.
    pub(super) told: AtomicBool,
    /// What was seen to belong to it while it was being stopped.
    pub(super) known: Mutex<Vec<Identity>>,
    /// One at a time reads the engine's output.
    pub(super) follower: Arc<Semaphore>,
    shared: Arc<Shared>,
    watcher: Mutex<Option<AbortOnDropHandle<()>>>,
}

/// What the task shares with the slot.
#[derive(Debug)]
struct Shared {
    exit: watch::Sender<Option<Exit>>,
    /// Whether this process has sent SIGKILL.
    killed: AtomicBool,
}

impl Default for Slot {
    fn default() -> Self {
        Self {
            stopping: AtomicBool::new(false),
            told: AtomicBool::new(false),
            known: Mutex::default(),
            follower: Arc::new(Semaphore::new(1)),
            shared: Arc::new(Shared { exit: watch::Sender::new(None), killed: AtomicBool::new(false) }),
            watcher: Mutex::default(),
        }
    }
}

impl Slot {
    /// Where the unit's end will be seen.
    pub(super) fn exit(&self) -> watch::Receiver<Option<Exit>> {
        self.shared.exit.subscribe()
    }

    /// From here on an end by SIGKILL is ours.
    pub(super) fn kills(&self) {
        self.shared.killed.store(true, Ordering::SeqCst);
    }

    /// Says how the unit has ended.
    pub(super) fn ended(&self, exit: Exit) {
        self.shared.exit.send_replace(Some(exit));
    }

    /// How a unit has ended whose process runs no more. A child is asked once; what it said is written down.
    pub(super) fn settle(&self, directory: &Path, started: &Started) -> Exit {
        settle(directory, started, &self.shared)
    }

    /// Watches for the unit's end, if nobody does yet. Must be called within a runtime.
    pub(super) fn watch(&self, directory: PathBuf, started: &Started) {
        let mut watcher = self.watcher.lock().unwrap_or_else(PoisonError::into_inner);
        if watcher.is_some() {
            return;
        }
        let (shared, started) = (Arc::clone(&self.shared), started.clone());
        *watcher = Some(AbortOnDropHandle::new(tokio::spawn(async move {
            kernel::gone(started.process).await;
            let settling = Arc::clone(&shared);
            let settled = tokio::task::spawn_blocking(move || settle(&directory, &started, &settling)).await;
            shared.exit.send_replace(Some(settled.unwrap_or(UNSEEN)));
        })));
    }
}

fn settle(directory: &Path, started: &Started, shared: &Shared) -> Exit {
    match record::read_exit(directory) {
        Ok(Some(exit)) => {
            kernel::reap(started.process);
            return exit;
        }
        Ok(None) => {}
        Err(error) => tracing::warn!(%error, "how a unit has ended can not be read"),
    }
    let Some(ending) = kernel::ending(started.process) else { return UNSEEN };
    let (code, signal) = match ending {
        Ending::Code(code) => (Some(code), None),
        Ending::Signal(signal) => (None, Some(signal)),
    };
    let group = started.cgroup.clone().map(Cgroup::at);
    let out_of_memory = signal == Some(SIGKILL)
        && !shared.killed.load(Ordering::SeqCst)
        && group.is_some_and(|group| group.ran_out_of_memory());
    let exit = Exit { code, signal, out_of_memory };
    // Written first, so that a crash in between does not lose it.
    let written = record::write_exit(directory, exit);
    kernel::reap(started.process);
    if let Err(error) = written {
        tracing::warn!(%error, "how a unit has ended could not be written down");
    }
    exit
}
