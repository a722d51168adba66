//! A node's data directory as a whole: which parts must be there, how they must fit, and what is set aside when they do not.
//!
//! ```text
//! lock        held while the directory is open
//! raft/       the log and the vote
//! floor       what the log must hold at least
//! state/      the durable copy of the replicated state
//! snap/       snapshots
//! quarantine-<time>/   what could not be trusted, with a file REASON
//! ```

use std::fs::{self, File, TryLockError};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use super::error::{OpenError, StoreError, Unusable};
use super::files::{make_directory, sync_directory};
use super::log::{self, RaftLog, TailLimits};
use super::record::Applied;
use super::snapshot::SnapshotStore;
use super::state::{self, StateStore};
use super::store::{Database, Opener};
use crate::ids::StoreId;
use crate::state::Tables;

const LOG: &str = "raft";
const FLOOR: &str = "floor";
const STATE: &str = "state";
const SNAPSHOTS: &str = "snap";
const LOCK: &str = "lock";

/// What opening needs from outside.
#[derive(Clone, Copy, Debug)]
pub struct OpenOptions {
    /// The identity of a log that is made now.
    pub fresh_store_id: StoreId,
    /// The time, for the names of what is set aside.
    pub now: SystemTime,
    /// How much of the log stays in memory.
    pub tail: TailLimits,
    /// How long each of the two files of the log's journal is made, in bytes. What is purged before they are nearly full is
    /// never written a second time.
    pub journal_bytes: usize,
}

impl OpenOptions {
    /// For twice as many entries of usual length as there are between two snapshots.
    pub const JOURNAL_BYTES: usize = 8 * 1024 * 1024;
}

/// What happened while opening.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct OpenReport {
    /// How long the disk took for one sync.
    pub first_sync: Duration,
    /// Where the state was moved, if it was damaged. It is rebuilt from the snapshot and the log.
    pub state_set_aside: Option<PathBuf>,
}

/// Everything a node keeps on its disk, open.
pub struct NodeStorage {
    /// The Raft log and the vote.
    pub log: RaftLog,
    /// The durable copy of the state.
    pub state: StateStore,
    /// The snapshots.
    pub snapshots: SnapshotStore,
    /// The state as it was read.
    pub tables: Tables,
    /// Where the state stands.
    pub applied: Applied,
    /// What happened while opening.
    pub report: OpenReport,
    /// Also held by the log and the state, for as long as they live.
    pub lock: Arc<DirectoryLock>,
}

/// The right to use a data directory. It ends with the value.
#[derive(Debug)]
pub struct DirectoryLock {
    _file: File,
}

impl DirectoryLock {
    fn take(directory: &Path) -> Result<Self, OpenError> {
        let path = directory.join(LOCK);
        let doing = |e| StoreError::io(format!("locking {}", path.display()), e);
        let file = File::options().create(true).truncate(false).write(true).open(&path).map_err(doing)?;
        match file.try_lock() {
            Ok(()) => Ok(Self { _file: file }),
            Err(TryLockError::WouldBlock) => Err(OpenError::InUse(directory.to_owned())),
            Err(TryLockError::Error(error)) => Err(doing(error).into()),
        }
    }
}

/// The real databases.
pub(super) fn databases(journal_bytes: usize) -> Opener {
    Arc::new(move |path, database| match database {
        Database::Log => log::open_database(path, journal_bytes),
        Database::State => state::open_database(path),
    })
}

impl NodeStorage {
    /// Opens the data directory or makes a new one. Blocks for as long as the disk takes.
    ///
    /// # Errors
    /// [`OpenError::Unusable`] when the directory can not be trusted to hold what its node has acknowledged. Nothing is
    /// moved then: whether this node may give up its data is for its fleet to say (see [`quarantine`]).
    pub fn open(directory: &Path, options: &OpenOptions) -> Result<Self, OpenError> {
        Self::open_with(directory, options, &databases(options.journal_bytes))
    }

    /// Like [`Self::open`], over any database.
    pub(crate) fn open_with(directory: &Path, options: &OpenOptions, opener: &Opener) -> Result<Self, OpenError> {
        make_directory(directory)?;
        let lock = Arc::new(DirectoryLock::take(directory)?);
        let held = Some(Arc::clone(&lock));
        let log = RaftLog::open(&directory.join(LOG), &directory.join(FLOOR), options, opener, held)?;
        let snapshots = SnapshotStore::open(&directory.join(SNAPSHOTS))?;
        let mut report = OpenReport { first_sync: log.first_sync(), ..OpenReport::default() };
        let state_directory = directory.join(STATE);
        let (state, tables, applied) = match StateStore::open(&state_directory, opener) {
            Ok(opened) => opened,
            // The state is a copy of what snapshot and log hold: it may be given up without asking anybody.
            Err(error) if error.is_damage() => {
                let aside = set_aside(directory, &[STATE], &error.to_string(), options.now)?;
                tracing::error!(%error, to = %aside.display(), "the state does not open; rebuilding it from snapshot and log");
                report.state_set_aside = Some(aside);
                StateStore::open(&state_directory, opener)?
            }
            Err(error) => return Err(error.into()),
        };
        let purged = log.position().purged.map_or(0, |id| id.index);
        let covered = applied.index().max(snapshots.latest().map_or(0, |file| file.applied.index()));
        if covered < purged {
            let why = Unusable::StateLost { purged, covered };
            return Err(OpenError::Unusable { path: directory.to_owned(), why });
        }
        // The newest snapshot must reach the purge point, which it does not if a newer one was damaged; and the end of a log
        // that has fallen behind the state, as a loss of power may leave it: entries may be committed and applied before
        // they are durable here, and the log then begins anew behind the state.
        let position = log.position();
        let needed = if applied.log_id > position.last { applied.log_id } else { position.purged };
        if snapshots.latest().map(|file| file.applied.index()) < needed.map(|id| id.index) && applied.index() >= purged
        {
            snapshots.build(&tables, &applied)?;
        }
        Ok(Self { log, state: state.holding(&lock), snapshots, tables, applied, report, lock })
    }

    /// Writes everything that is owed and closes the directory; it can be opened again on return.
    ///
    /// # Errors
    /// When something that was owed could not be written. What was acknowledged is not affected.
    pub async fn close(self) -> Result<(), StoreError> {
        let outcome = self.log.close().await.and(self.state.close().await);
        // Closing the databases waits for the disk.
        let closed = tokio::task::spawn_blocking(move || drop(self)).await;
        outcome.and(closed.map_err(|_| StoreError::Closed))
    }
}

/// Sets everything in a data directory aside, with the reason, and returns where. The node that starts on it next is a new
/// one.
///
/// For a voter this is only right once its fleet has removed it: a power cut of a whole site must not make every voter
/// discard itself.
///
/// # Errors
/// When the directory is in use, or the disk refused.
pub fn quarantine(directory: &Path, reason: &Unusable, now: SystemTime) -> Result<PathBuf, OpenError> {
    set_directory_aside(directory, &reason.to_string(), now)
}

/// Sets everything in a data directory aside, for a reason in words. See [`quarantine`] for when that is right.
///
/// # Errors
/// When the directory is in use, or the disk refused.
pub fn set_directory_aside(directory: &Path, reason: &str, now: SystemTime) -> Result<PathBuf, OpenError> {
    let _lock = DirectoryLock::take(directory)?;
    Ok(set_aside(directory, &[SNAPSHOTS, STATE, LOG, FLOOR], reason, now)?)
}

fn set_aside(directory: &Path, parts: &[&str], reason: &str, now: SystemTime) -> Result<PathBuf, StoreError> {
    let seconds = now.duration_since(UNIX_EPOCH).map_or(0, |time| time.as_secs());
    let mut aside = directory.join(format!("quarantine-{seconds}"));
    let mut attempt = 0;
    // Two in one second get two names: nothing that was set aside is ever overwritten.
    while let Err(error) = fs::create_dir(&aside) {
        if error.kind() != std::io::ErrorKind::AlreadyExists {
            return Err(StoreError::io(format!("making {}", aside.display()), error));
        }
        attempt += 1;
        aside = directory.join(format!("quarantine-{seconds}-{attempt}"));
    }
    let doing = |e| StoreError::io(format!("moving data to {}", aside.display()), e);
    fs::write(aside.join("REASON"), format!("{reason}\n")).map_err(doing)?;
    sync_directory(directory)?;
    // One after the other, each durable before the next: what a crash in between leaves is as unusable as it was.
    for part in parts {
        match fs::rename(directory.join(part), aside.join(part)) {
            Ok(()) => {}
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => continue,
            Err(error) => return Err(doing(error)),
        }
        sync_directory(&aside)?;
        sync_directory(directory)?;
    }
    Ok(aside)
}
