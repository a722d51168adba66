//! Brings what a unit says from its runtime into the store.

use std::io;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::mpsc;
use tokio::time::{sleep, timeout};
use tokio_util::task::AbortOnDropHandle;

use super::LogStore;
use crate::runtime::{Line, Runtime, RuntimeError, UnitId};

/// How many lines can be under way between the runtime and the disk.
const IN_FLIGHT: usize = 256;

/// How long it waits before it tries again: twice as long each time.
const FIRST_PAUSE: Duration = Duration::from_millis(250);
const LONGEST_PAUSE: Duration = Duration::from_secs(30);

/// A runtime that has stopped sending is given this long to say that the unit has ended.
const END_LIMIT: Duration = Duration::from_millis(500);

/// Follows one unit that has been launched, until the unit has ended or this is dropped.
#[derive(Debug)]
pub struct Follower {
    task: AbortOnDropHandle<()>,
}

impl Follower {
    /// Begins to follow. What is in the unit's log already is not added again; with a log of another unit a new run begins.
    /// Whoever listens gets each line that is new in the log. Must be called within a tokio runtime.
    #[must_use]
    pub fn start(
        runtime: Arc<dyn Runtime>,
        store: Arc<LogStore>,
        unit: UnitId,
        listener: Option<mpsc::Sender<Line>>,
    ) -> Self {
        Self { task: AbortOnDropHandle::new(tokio::spawn(follow(runtime, store, unit, listener))) }
    }

    /// Waits until the unit has ended and all that it said is in its log.
    pub async fn finished(self) {
        // It is cancelled only by being dropped, and has no panics to tell of.
        let _ = self.task.await;
    }
}

async fn follow(runtime: Arc<dyn Runtime>, store: Arc<LogStore>, unit: UnitId, listener: Option<mpsc::Sender<Line>>) {
    let mut pause = FIRST_PAUSE;
    loop {
        let (attached, came) = attach(&*runtime, &store, unit, listener.as_ref()).await;
        match attached {
            Ok(true) => break,
            Ok(false) => {}
            Err(error) => tracing::debug!(%unit, %error, "following what an engine says is tried again"),
        }
        if came {
            pause = FIRST_PAUSE;
        }
        sleep(pause).await;
        pause = (pause * 2).min(LONGEST_PAUSE);
    }
    store.close(unit);
}

#[derive(Debug, thiserror::Error)]
enum Broken {
    #[error(transparent)]
    Runtime(#[from] RuntimeError),
    #[error("its log can not be written: {0}")]
    Log(#[from] io::Error),
}

/// Follows for as long as runtime and disk allow. Says whether the unit has ended, and whether any lines came.
async fn attach(
    runtime: &dyn Runtime,
    store: &Arc<LogStore>,
    unit: UnitId,
    listener: Option<&mpsc::Sender<Line>>,
) -> (Result<bool, Broken>, bool) {
    let attaching = Arc::clone(store);
    let since = match blocking(move || attaching.attach(unit)).await {
        Ok(since) => since,
        Err(error) => return (Err(error.into()), false),
    };
    let (sender, lines) = mpsc::channel(IN_FLIGHT);
    let mut came = false;
    let (followed, kept) =
        futures_util::future::join(runtime.follow(unit, since, sender), keep(store, unit, lines, listener, &mut came))
            .await;
    let ended = match (followed, kept) {
        (_, Err(error)) => Err(error.into()),
        (Err(RuntimeError::NotFound(_)), Ok(())) => Ok(true),
        (Err(error), Ok(())) => Err(error.into()),
        // Some runtimes stop sending for reasons of their own.
        (Ok(()), Ok(())) => {
            Ok(matches!(timeout(END_LIMIT, runtime.ended(unit)).await, Ok(Ok(_) | Err(RuntimeError::NotFound(_)))))
        }
    };
    (ended, came)
}

async fn keep(
    store: &Arc<LogStore>,
    unit: UnitId,
    mut lines: mpsc::Receiver<Line>,
    listener: Option<&mpsc::Sender<Line>>,
    came: &mut bool,
) -> io::Result<()> {
    loop {
        let mut batch = Vec::with_capacity(IN_FLIGHT);
        if lines.recv_many(&mut batch, IN_FLIGHT).await == 0 {
            return Ok(());
        }
        *came = true;
        let store = Arc::clone(store);
        let batch = blocking(move || store.append(unit, &batch).map(|()| batch)).await?;
        if let Some(listener) = listener {
            for line in batch {
                // Whoever has stopped listening misses nothing: it is in the log.
                if listener.send(line).await.is_err() {
                    break;
                }
            }
        }
    }
}

async fn blocking<T: Send + 'static>(step: impl FnOnce() -> io::Result<T> + Send + 'static) -> io::Result<T> {
    tokio::task::spawn_blocking(step).await.map_err(io::Error::other)?
}
