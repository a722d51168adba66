//! One upload session: what it is for, which of its files are being written, and its directory on the disk.
//!
//! The directory holds `session.json`, the complete files in `content`, and those that broke off in `partial`; so a session
//! outlives the process, and a file that is not complete never becomes part of a model.

use std::collections::HashSet;
use std::fs::{self, File};
use std::io::{Read, Write};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use serde::{Deserialize, Serialize};
use tokio::sync::watch;
use tokio::time::timeout;
use uuid::Uuid;

use crate::files::error::FilesError;
use crate::files::measure::measure;
use crate::files::names::{ModelName, RelativePath};
use crate::files::room::Promise;
use crate::files::shelf::Shelf;
use crate::files::staging::STAGING;
use crate::files::transfers::{TransferHandle, TransferKind};

/// The most files of one session that are written at once.
const WRITERS: usize = 16;

/// How a session's directory is called, before its id.
const PREFIX: &str = "upload-";

/// What of a session stands on the disk.
#[derive(Debug, Serialize, Deserialize)]
struct Record {
    name: String,
    total_bytes: u64,
}

/// Where a session stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Phase {
    /// Files can be written.
    Open,
    /// It is being finished or aborted: no file can be written.
    Closed,
    /// It is over, and its directory goes.
    Ended,
}

impl Phase {
    fn refuses(self) -> Option<FilesError> {
        match self {
            Self::Open => None,
            Self::Closed => Some(FilesError::Conflict("this upload is being finished".to_owned())),
            Self::Ended => Some(no_such_upload()),
        }
    }
}

pub(super) fn no_such_upload() -> FilesError {
    FilesError::NotFound("there is no such upload on this node".to_owned())
}

/// What of a session changes.
#[derive(Debug)]
struct State {
    phase: Phase,
    writing: HashSet<RelativePath>,
    last_used: Instant,
    /// How many files it has begun.
    files: usize,
}

/// An upload of one model, file by file.
#[derive(Debug)]
pub(super) struct Session {
    pub(super) id: Uuid,
    pub(super) name: ModelName,
    pub(super) directory: PathBuf,
    pub(super) transfer: TransferHandle,
    pub(super) promise: Promise,
    /// How long a call waits for another one to let go of what it needs.
    patience: Duration,
    state: watch::Sender<State>,
}

impl Session {
    /// Begins one: makes its directory and remembers what it is for.
    pub(super) fn create(
        shelf: &Shelf,
        name: ModelName,
        total_bytes: u64,
        promise: Promise,
    ) -> Result<Self, FilesError> {
        let id = Uuid::new_v4();
        let directory = shelf.models.join(STAGING).join(format!("{PREFIX}{}", id.simple()));
        let record = Record { name: name.as_str().to_owned(), total_bytes };
        let written = (|| {
            fs::create_dir_all(directory.join("content"))?;
            fs::create_dir_all(directory.join("partial"))?;
            let mut file = File::create(directory.join("session.json"))?;
            file.write_all(&serde_json::to_vec(&record)?)?;
            file.sync_all()
        })();
        if let Err(error) = written {
            crate::files::staging::remove(&directory);
            return Err(FilesError::io("beginning an upload", error));
        }
        let transfer = shelf.transfers.begin(id, TransferKind::Upload, name.as_str(), some(total_bytes));
        Ok(Self::new(name, directory, promise, transfer, (0, shelf.limits.patience)))
    }

    fn new(
        name: ModelName,
        directory: PathBuf,
        promise: Promise,
        transfer: TransferHandle,
        (files, patience): (usize, Duration),
    ) -> Self {
        let state = State { phase: Phase::Open, writing: HashSet::new(), last_used: Instant::now(), files };
        Self { id: transfer.id(), name, directory, transfer, promise, patience, state: watch::Sender::new(state) }
    }

    /// Goes on with the session of an earlier process, unless it has been idle for too long. `None`: this is no directory of a
    /// session that can go on.
    pub(super) fn restore(directory: &Path, shelf: &Shelf) -> Option<Self> {
        let id = Uuid::try_parse(directory.file_name()?.to_str()?.strip_prefix(PREFIX)?).ok()?;
        let record = File::open(directory.join("session.json")).ok()?;
        let used = record.metadata().ok()?.modified().ok()?;
        // A clock that was set back makes nothing idle.
        if SystemTime::now().duration_since(used).unwrap_or_default() >= shelf.limits.upload_idle {
            return None;
        }
        let mut text = String::new();
        record.take(4096).read_to_string(&mut text).ok()?;
        let record: Record = serde_json::from_str(&text).ok()?;
        let name = ModelName::parse(&record.name).ok()?;
        if !["content", "partial"].iter().all(|part| directory.join(part).is_dir()) {
            return None;
        }
        let found = measure(directory);
        let there = found.bytes.saturating_sub(text.len() as u64);
        // What it was promised is taken as it is: no room is found out about when it is needed.
        let promise = shelf.room.promise(record.total_bytes.saturating_sub(there), 1);
        let promise = promise.unwrap_or_else(|_| shelf.room.promise_nothing());
        let transfer = shelf.transfers.begin(id, TransferKind::Upload, name.as_str(), some(record.total_bytes));
        transfer.set_received(there);
        let files = usize::try_from(found.files).unwrap_or(usize::MAX).saturating_sub(1);
        Some(Self::new(name, directory.to_owned(), promise, transfer, (files, shelf.limits.patience)))
    }

    pub(super) fn content(&self) -> PathBuf {
        self.directory.join("content")
    }

    pub(super) fn partial(&self) -> PathBuf {
        self.directory.join("partial")
    }

    /// Ends it if nobody has written to it for so long, and says whether it has.
    pub(super) fn end_if_idle(&self, limit: Duration) -> bool {
        self.state.send_if_modified(|state| {
            let idle = state.writing.is_empty() && state.last_used.elapsed() >= limit;
            let ends = state.phase == Phase::Open && idle;
            if ends {
                state.phase = Phase::Ended;
            }
            ends
        })
    }

    /// Ends it: it has become a model, or has been aborted.
    pub(super) fn end(&self) {
        self.state.send_modify(|state| state.phase = Phase::Ended);
    }

    /// Takes a file of it, for writing if it is said how many files there may be at most.
    pub(super) async fn claim(
        self: &Arc<Self>,
        path: &RelativePath,
        most: Option<usize>,
    ) -> Result<Writing, FilesError> {
        let there = |root: PathBuf| tokio::fs::try_exists(path.below(&root));
        let new = !there(self.content()).await.unwrap_or(false) && !there(self.partial()).await.unwrap_or(false);
        self.change(|state| {
            if let Some(refused) = state.phase.refuses() {
                return Step::Refused(refused);
            }
            if state.writing.contains(path) {
                return Step::Wait("this file is being written by another request");
            }
            if state.writing.len() >= WRITERS {
                return Step::Wait("too many files of this upload are being written at once");
            }
            if let Some(most) = most.filter(|_| new) {
                if state.files >= most {
                    return Step::Refused(FilesError::TooLarge(format!("an upload has at most {most} files")));
                }
                state.files += 1;
            }
            state.writing.insert(path.clone());
            state.last_used = Instant::now();
            Step::Done
        })
        .await?;
        Ok(Writing { session: Arc::clone(self), path: path.clone() })
    }

    /// Lets no file of it be written any more, once none is.
    pub(super) async fn close(self: &Arc<Self>) -> Result<Closed, FilesError> {
        self.change(|state| {
            if let Some(refused) = state.phase.refuses() {
                return Step::Refused(refused);
            }
            if !state.writing.is_empty() {
                return Step::Wait("a file of this upload is still being written");
            }
            state.phase = Phase::Closed;
            Step::Done
        })
        .await?;
        Ok(Closed { session: Arc::clone(self) })
    }

    async fn change(&self, mut step: impl FnMut(&mut State) -> Step) -> Result<(), FilesError> {
        let mut waits_for = "";
        let attempts = async {
            let mut changes = self.state.subscribe();
            loop {
                let mut outcome = Step::Done;
                self.state.send_if_modified(|state| {
                    outcome = step(state);
                    matches!(outcome, Step::Done)
                });
                match outcome {
                    Step::Done => return Ok(()),
                    Step::Refused(error) => return Err(error),
                    Step::Wait(why) => waits_for = why,
                }
                changes.changed().await.map_err(|_| FilesError::GivenUp)?;
            }
        };
        let outcome = timeout(self.patience, attempts).await;
        outcome.unwrap_or_else(|_| Err(FilesError::Conflict(waits_for.to_owned())))
    }

    /// Remembers on the disk that it was used now.
    fn touch(&self) {
        let touched = File::options().write(true).open(self.directory.join("session.json"));
        let _ = touched.and_then(|file| file.set_modified(SystemTime::now()));
    }
}

enum Step {
    Done,
    Wait(&'static str),
    Refused(FilesError),
}

fn some(total: u64) -> Option<u64> {
    (total > 0).then_some(total)
}

/// A file that is being written. Others may write it once this is dropped.
#[derive(Debug)]
pub(super) struct Writing {
    pub(super) session: Arc<Session>,
    pub(super) path: RelativePath,
}

impl Drop for Writing {
    fn drop(&mut self) {
        self.session.touch();
        self.session.state.send_modify(|state| {
            state.writing.remove(&self.path);
            state.last_used = Instant::now();
        });
    }
}

/// A session that is being finished. If it could not be, it goes on once this is dropped.
#[derive(Debug)]
pub(super) struct Closed {
    pub(super) session: Arc<Session>,
}

impl Drop for Closed {
    fn drop(&mut self) {
        self.session.state.send_modify(|state| {
            if state.phase == Phase::Closed {
                state.phase = Phase::Open;
            }
            state.last_used = Instant::now();
        });
    }
}
