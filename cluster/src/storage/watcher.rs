//! Wakes a flush that waits for a background write which has already failed.
//!
//! sled notifies its waiters of such a failure on one of its two paths only; on the other the waiter sleeps for ever. A
//! second flush finds the recorded error, returns it, and wakes the first on its way out. It must not come before the
//! failure is recorded, or it goes to sleep beside the first.

use std::path::Path;
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use super::error::StoreError;

/// How often a sync under way is looked at.
const LOOK: Duration = Duration::from_millis(100);

/// A sync that takes longer is reported.
const PATIENCE: Duration = Duration::from_secs(2);

/// The watcher of one database. Dropping it ends its thread.
pub(super) struct Watcher {
    shared: Arc<Shared>,
    thread: Option<JoinHandle<()>>,
}

#[derive(Default)]
struct Shared {
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Default)]
struct State {
    since: Option<Instant>,
    stopped: bool,
}

/// A sync is under way; it is over when this is dropped, however that comes.
pub(super) struct Watched<'a>(&'a Shared);

impl Drop for Watched<'_> {
    fn drop(&mut self) {
        self.0.state.lock().unwrap_or_else(PoisonError::into_inner).since = None;
    }
}

impl Watcher {
    /// Watches the syncs of a database.
    pub(super) fn start(db: sled::Db, path: &Path) -> Result<Self, StoreError> {
        let shared = Arc::new(Shared::default());
        let (watched, shown) = (Arc::clone(&shared), path.display().to_string());
        let thread = std::thread::Builder::new()
            .name("store-watch".to_owned())
            .spawn(move || watched.run(&db, &shown))
            .map_err(|e| StoreError::io("starting the store's watcher", e))?;
        Ok(Self { shared, thread: Some(thread) })
    }

    /// A sync begins.
    pub(super) fn watch(&self) -> Watched<'_> {
        self.shared.state.lock().unwrap_or_else(PoisonError::into_inner).since = Some(Instant::now());
        self.shared.changed.notify_one();
        Watched(&self.shared)
    }
}

impl Drop for Watcher {
    fn drop(&mut self) {
        self.shared.state.lock().unwrap_or_else(PoisonError::into_inner).stopped = true;
        self.shared.changed.notify_one();
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

impl Shared {
    fn run(&self, db: &sled::Db, shown: &str) {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        let mut reported = None;
        while !state.stopped {
            let Some(since) = state.since else {
                state = self.changed.wait(state).unwrap_or_else(PoisonError::into_inner);
                continue;
            };
            state = self.changed.wait_timeout(state, LOOK).unwrap_or_else(PoisonError::into_inner).0;
            if state.stopped || state.since != Some(since) || since.elapsed() < LOOK {
                continue;
            }
            drop(state);
            if since.elapsed() > PATIENCE && reported != Some(since) {
                reported = Some(since);
                tracing::warn!(path = shown, "a sync takes longer than {PATIENCE:?}");
            }
            if db.context.global_error().is_err() {
                // Its error is the one that the sync itself will return.
                let _ = db.flush();
            }
            state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        }
    }
}
