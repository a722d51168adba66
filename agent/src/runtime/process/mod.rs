//! Engines as processes of the machine. The programs come from the node's configuration.
//!
//! An engine runs in a session of its own and outlives this process. Its unit has a directory that says what it is; the intent
//! is written down before the process is started, and every process of a unit carries the unit's name in its environment, so
//! that whoever comes after a crash finds each engine that was started and starts none twice.

mod cgroup;
mod directory;
mod kernel;
mod life;
mod members;
mod options;
mod output;
mod record;
mod slot;
mod spawn;
#[cfg(test)]
mod tests;

use std::io;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use futures_util::FutureExt;
use futures_util::future::BoxFuture;
use tokio::sync::{mpsc, watch};
use tokio::time::{Instant, sleep, timeout};

pub use self::options::{ProcessOptions, Program, UserName};

use self::life::Life;
use self::options::{Account, unavailable};
use self::output::Reader;
use self::record::failed;
use self::slot::UNSEEN;
use super::{
    Endpoint, Exit, Found, Launch, Launched, Line, Owner, Place, Progress, Runtime, RuntimeError, RuntimeKind, UnitId,
};

/// How long processes may take to go after SIGKILL.
const KILL_LIMIT: Duration = Duration::from_secs(10);

/// How often is looked whether they have gone.
const KILL_POLL: Duration = Duration::from_millis(20);

/// How often is looked whether an engine has said something.
const OUTPUT_POLL: Duration = Duration::from_millis(200);

/// Runs engines as processes of the machine. Its methods must be called within a tokio runtime with I/O and time.
#[derive(Clone, Debug)]
pub struct ProcessRuntime {
    life: Arc<Life>,
}

impl ProcessRuntime {
    /// One for the units of an owner. Nothing is done yet.
    #[must_use]
    pub fn new(owner: Owner, options: ProcessOptions) -> Self {
        Self { life: Arc::new(Life::new(owner, options)) }
    }

    /// Whether engines have ever run as processes of the node with this data directory.
    #[must_use]
    pub fn was_used(directory: &Path) -> bool {
        directory::Units::new(directory).exist()
    }

    /// Runs a step that blocks. It is finished even if nobody waits for it any more.
    async fn step<T, F>(&self, step: F) -> Result<T, RuntimeError>
    where
        T: Send + 'static,
        F: FnOnce(&Life) -> Result<T, RuntimeError> + Send + 'static,
    {
        let life = Arc::clone(&self.life);
        tokio::task::spawn_blocking(move || step(&life)).await.map_err(|error| failed(error.to_string()))?
    }

    async fn end(&self, unit: UnitId, grace: Duration) -> Result<(), RuntimeError> {
        if let Some(slot) = self.step(move |life| life.tell(unit)).await? {
            // Either it has ended or its time is over; the rest is the same.
            let _ = timeout(grace, slot.exit().wait_for(Option::is_some)).await;
        }
        let deadline = Instant::now() + KILL_LIMIT;
        loop {
            let left = self.step(move |life| life.kill(unit)).await?;
            if left == 0 {
                return self.step(move |life| life.remove(unit)).await;
            }
            if Instant::now() > deadline {
                return Err(failed(format!("{left} processes of {unit} do not end")));
            }
            sleep(KILL_POLL).await;
        }
    }

    async fn read(
        &self,
        unit: UnitId,
        since: Option<SystemTime>,
        lines: mpsc::Sender<Line>,
    ) -> Result<(), RuntimeError> {
        let slot = self.step(move |life| life.attach(unit)).await?;
        let Ok(_reads) = Arc::clone(&slot.follower).try_acquire_owned() else {
            return Err(failed(format!("what {unit} says is being read already")));
        };
        let mut exit = slot.exit();
        let in_flight = lines.max_capacity();
        let opened = self.step(move |life| {
            Reader::open(&life.units.of(unit), since, in_flight).map_err(|source| match source.kind() {
                io::ErrorKind::NotFound => RuntimeError::NotFound(unit),
                _ => reading(source),
            })
        });
        let mut reader = opened.await?;
        loop {
            // Asked before it is read: what was said until the end is there to be read after it.
            let ended = exit.borrow_and_update().is_some();
            let (back, read) = self
                .step(move |_| {
                    let read = reader.next(ended).map_err(reading)?;
                    Ok((reader, read))
                })
                .await?;
            reader = back;
            if read.is_empty() {
                if ended {
                    return Ok(());
                }
                tokio::select! {
                    () = sleep(OUTPUT_POLL) => {}
                    _ = exit.changed() => {}
                    () = lines.closed() => return Ok(()),
                }
            }
            for line in read {
                if lines.send(line).await.is_err() {
                    return Ok(());
                }
            }
        }
    }
}

impl Runtime for ProcessRuntime {
    fn kind(&self) -> RuntimeKind {
        RuntimeKind::Process
    }

    fn available(&self) -> BoxFuture<'_, Result<(), RuntimeError>> {
        self.step(|life| {
            if life.options.programs.is_empty() {
                return Err(unavailable(
                    "there are no programs: set engine_vllm or engine_sim in the node's configuration",
                ));
            }
            Account::resolve(life.options.user.as_ref())?;
            life.units.lock().map(drop)
        })
        .boxed()
    }

    fn place(&self, unit: UnitId) -> BoxFuture<'_, Result<Place, RuntimeError>> {
        self.step(move |life| {
            let socket = Endpoint::Unix(life.place(unit)?.socket());
            Ok(Place { inside: socket.clone(), outside: Some(socket) })
        })
        .boxed()
    }

    fn launch(
        &self,
        launch: Launch,
        progress: watch::Sender<Progress>,
    ) -> BoxFuture<'_, Result<Launched, RuntimeError>> {
        self.step(move |life| {
            progress.send_replace(Progress { phase: "starting process", pulled: None });
            let record = life.launch(&launch)?;
            Ok(Launched { endpoint: Endpoint::Unix(record.socket()), image_digest: None })
        })
        .boxed()
    }

    fn units(&self) -> BoxFuture<'_, Result<Vec<Found>, RuntimeError>> {
        self.step(Life::found).boxed()
    }

    fn ended(&self, unit: UnitId) -> BoxFuture<'_, Result<Exit, RuntimeError>> {
        async move {
            let slot = self.step(move |life| life.attach(unit)).await?;
            let mut exit = slot.exit();
            let ended = exit.wait_for(Option::is_some).await;
            Ok(ended.ok().and_then(|exit| *exit).unwrap_or(UNSEEN))
        }
        .boxed()
    }

    fn stop(&self, unit: UnitId, grace: Duration) -> BoxFuture<'_, Result<(), RuntimeError>> {
        self.end(unit, grace).boxed()
    }

    fn follow(
        &self,
        unit: UnitId,
        since: Option<SystemTime>,
        lines: mpsc::Sender<Line>,
    ) -> BoxFuture<'_, Result<(), RuntimeError>> {
        self.read(unit, since, lines).boxed()
    }
}

fn reading(source: io::Error) -> RuntimeError {
    RuntimeError::Io { what: "reading what an engine says", source }
}
