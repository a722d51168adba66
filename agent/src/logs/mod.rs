//! What engines have said: kept in files, in bounds, and read again.
//!
//! Each placement has its file, of lines `[YYYY-MM-DD HH:MM:SS] text` in UTC. A new run moves what was said before aside, and
//! so does a file that has grown too large; there is one such older part. All methods of the store block.

mod clean;
mod follower;
mod reading;
#[cfg(test)]
mod tests;
mod writer;

use std::collections::HashMap;
use std::fs::{self, DirBuilder};
use std::io;
use std::os::unix::fs::DirBuilderExt;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, SystemTime};

use muster_cluster::ids::{DeploymentId, PlacementId};

pub use self::follower::Follower;
pub use self::reading::{Chunk, Cursor, Download};

use self::reading::Snapshot;
use self::writer::{Paths, Writer};
use crate::runtime::{Line, UnitId};

/// How many lines can be asked for at once.
const TAIL_LIMIT: usize = 2000;

/// A log can not be bounded to less: some of the longest lines must fit into each of its parts.
const SMALLEST: u64 = 64 << 10;

/// How much is kept.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LogBounds {
    /// Bytes for each placement, the older part included. 50 MB by default, 64 KiB at least.
    pub max_bytes: u64,
    /// For how long a file is kept that nobody writes to. 14 days by default.
    pub retention: Duration,
}

impl Default for LogBounds {
    fn default() -> Self {
        Self { max_bytes: 50_000_000, retention: Duration::from_secs(14 * 24 * 60 * 60) }
    }
}

type Open = Arc<Mutex<Option<Writer>>>;

/// The logs of this node's placements. It alone writes to its directory.
#[derive(Debug)]
pub struct LogStore {
    directory: PathBuf,
    bounds: LogBounds,
    /// One for each placement that is being written to.
    writers: Mutex<HashMap<PlacementId, Open>>,
}

impl LogStore {
    /// Opens the logs in a directory, which is made if it is not there.
    ///
    /// # Errors
    /// When the disk refuses.
    pub fn open(directory: PathBuf, bounds: LogBounds) -> io::Result<Self> {
        DirBuilder::new().recursive(true).mode(0o700).create(&directory)?;
        Ok(Self { directory, bounds, writers: Mutex::default() })
    }

    /// Begins a new run of a unit: what its placement has said before is moved aside.
    ///
    /// # Errors
    /// When the disk refuses.
    pub fn begin(&self, unit: UnitId) -> io::Result<()> {
        let open = self.writer(unit.placement);
        *lock(&open) = Some(Writer::begin(self.paths(unit.placement), self.part_limit(), unit.epoch)?);
        Ok(())
    }

    /// Makes ready for a runtime that is about to send what a unit says, and says from when on that is needed. Lines that are
    /// there already are left out. If the log is not one of this unit, a new run begins.
    ///
    /// # Errors
    /// When the disk refuses.
    pub fn attach(&self, unit: UnitId) -> io::Result<Option<SystemTime>> {
        let open = self.writer(unit.placement);
        let mut writer = lock(&open);
        Ok(self.ready(&mut writer, unit)?.attach())
    }

    /// Adds what a unit has said. Lines of a unit that is not the placement's newest are left out.
    ///
    /// # Errors
    /// When the disk refuses. The lines are not there then, and can be sent again after [`Self::attach`].
    pub fn append(&self, unit: UnitId, lines: &[Line]) -> io::Result<()> {
        let open = self.writer(unit.placement);
        let mut writer = lock(&open);
        match writer.as_mut() {
            Some(writer) if writer.position().epoch > unit.epoch.0 => Ok(()),
            _ => self.ready(&mut writer, unit)?.append(lines),
        }
    }

    /// Adds a line of our own to a unit's log: `[tag] text`.
    ///
    /// # Errors
    /// When the disk refuses.
    pub fn note(&self, unit: UnitId, tag: &str, text: &str) -> io::Result<()> {
        let open = self.writer(unit.placement);
        let mut writer = lock(&open);
        self.ready(&mut writer, unit)?.note(SystemTime::now(), &format!("[{tag}] {text}"))
    }

    /// Says that nothing more will come of a unit. What is there stays.
    pub fn close(&self, unit: UnitId) {
        let mut writers = self.writers();
        let unused = writers.get(&unit.placement).is_some_and(|open| {
            // Who is at work on it has got it from this map, which is locked.
            Arc::strong_count(open) == 1
                && lock(open).as_ref().is_none_or(|writer| writer.position().epoch == unit.epoch.0)
        });
        if unused {
            writers.remove(&unit.placement);
        }
    }

    /// The last lines of a placement's newest run, oldest first: from 1 to 2000 of them.
    ///
    /// # Errors
    /// When the disk refuses.
    pub fn tail(&self, placement: PlacementId, count: usize) -> io::Result<Vec<String>> {
        let Some(snapshot) = self.snapshot(placement)? else { return Ok(Vec::new()) };
        snapshot.tail(count.clamp(1, TAIL_LIMIT))
    }

    /// What a placement's log has after a cursor, or from its beginning, about `limit` bytes at most. `None`: there is no log.
    ///
    /// # Errors
    /// When the disk refuses.
    pub fn read(&self, placement: PlacementId, after: Option<Cursor>, limit: u64) -> io::Result<Option<Chunk>> {
        self.snapshot(placement)?.map(|snapshot| snapshot.chunk(after, limit)).transpose()
    }

    /// A placement's newest run as a whole. `None`: there is no log.
    ///
    /// # Errors
    /// When the disk refuses.
    pub fn download(&self, placement: PlacementId) -> io::Result<Option<Download>> {
        Ok(self.snapshot(placement)?.map(Snapshot::download))
    }

    /// Removes the files that nobody has written to for longer than they are kept, and says how many there were.
    ///
    /// # Errors
    /// When the disk refuses.
    pub fn sweep(&self, now: SystemTime) -> io::Result<usize> {
        let mut removed = 0;
        for entry in fs::read_dir(&self.directory)? {
            let entry = entry?;
            let name = entry.file_name();
            let Some((placement, kind)) = name.to_str().and_then(parse_name) else { continue };
            // Nobody begins to write while this is held, so that no file goes from under a writer.
            let writers = self.writers();
            let Ok(about) = entry.metadata() else { continue };
            let age = about.modified().ok().and_then(|touched| now.duration_since(touched).ok());
            let in_use = kind != "log.1" && writers.contains_key(&placement);
            if in_use || age.is_none_or(|age| age <= self.bounds.retention) {
                continue;
            }
            fs::remove_file(entry.path())?;
            removed += 1;
        }
        Ok(removed)
    }

    fn paths(&self, placement: PlacementId) -> Paths {
        Paths::of(&self.directory, placement)
    }

    /// There are two parts.
    fn part_limit(&self) -> u64 {
        self.bounds.max_bytes.max(SMALLEST) / 2
    }

    fn writers(&self) -> MutexGuard<'_, HashMap<PlacementId, Open>> {
        self.writers.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn writer(&self, placement: PlacementId) -> Open {
        Arc::clone(self.writers().entry(placement).or_default())
    }

    /// The writer for a unit, made if there is none for it.
    fn ready<'a>(&self, writer: &'a mut Option<Writer>, unit: UnitId) -> io::Result<&'a mut Writer> {
        let fitting = writer.take().filter(|writer| writer.position().epoch == unit.epoch.0);
        let ready = match fitting {
            Some(writer) => writer,
            None => {
                let resumed = Writer::resume(self.paths(unit.placement), self.part_limit(), unit.epoch)?;
                match resumed {
                    Some(resumed) => resumed,
                    None => Writer::begin(self.paths(unit.placement), self.part_limit(), unit.epoch)?,
                }
            }
        };
        Ok(writer.insert(ready))
    }

    fn snapshot(&self, placement: PlacementId) -> io::Result<Option<Snapshot>> {
        let open = self.writers().get(&placement).cloned();
        let writer = open.as_ref().map(lock);
        let position = writer.as_ref().and_then(|writer| writer.as_ref()).map(Writer::position);
        Snapshot::open(&self.paths(placement), position)
    }
}

/// What a downloaded log is called: the model's name, as far as a file can have it, and the port.
#[must_use]
pub fn download_name(model: &str, port: u16) -> String {
    format!("{}-{port}.log", model.replace('/', "--"))
}

fn lock(open: &Open) -> MutexGuard<'_, Option<Writer>> {
    open.lock().unwrap_or_else(PoisonError::into_inner)
}

/// The placement of a file, and the rest of its name.
fn parse_name(name: &str) -> Option<(PlacementId, &str)> {
    let (ids, kind) = name.split_once('.')?;
    let (deployment, ordinal) = ids.split_once('-')?;
    let placement = PlacementId { deployment: DeploymentId(deployment.parse().ok()?), ordinal: ordinal.parse().ok()? };
    matches!(kind, "log" | "log.1" | "pos").then_some((placement, kind))
}
