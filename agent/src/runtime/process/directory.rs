//! The directories of units: `DIR/units/<deployment>-<ordinal>-<epoch>/` with `unit.json`, `exit.json`, `engine.log` and
//! `run/engine.sock`. All but `run` belongs to this process; `run` belongs to the user who runs the engine.
//!
//! Whoever changes a unit's directory or starts its process holds the lock, in this process and in every other. A process
//! that was forked and has not yet become the engine holds it too, because it has the lock's descriptor until then: who gets
//! the lock after a crash sees in the process table every engine that was being started.

use std::fs::{self, DirBuilder, File, TryLockError};
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{DirBuilderExt, MetadataExt, PermissionsExt, chown};
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use muster_cluster::storage::{make_directory, sync_directory};

use super::options::{Account, unavailable};
use super::record::{Record, failed};
use crate::runtime::{Owner, RuntimeError, UnitId};

/// The engine's socket in its directory.
pub(super) const SOCKET: &str = "engine.sock";

/// What the engine says, as it says it.
pub(super) const LOG: &str = "engine.log";

/// A socket's path can have this many bytes.
const SOCKET_LIMIT: usize = 107;

/// The lock is held for as long as a process takes to start.
const LOCK_LIMIT: Duration = Duration::from_secs(10);

/// Directories that are being made, and that are being removed.
const NEW: &str = ".new-";
const GONE: &str = ".gone-";

/// The units of one data directory.
#[derive(Debug)]
pub(super) struct Units {
    root: PathBuf,
    gate: Mutex<()>,
}

/// The right to change them.
pub(super) struct Locked<'a> {
    units: &'a Units,
    _file: File,
    _gate: MutexGuard<'a, ()>,
}

impl Units {
    pub(super) fn new(data: &Path) -> Self {
        Self { root: data.join("units"), gate: Mutex::new(()) }
    }

    /// Whether there has ever been a unit.
    pub(super) fn exist(&self) -> bool {
        self.root.is_dir()
    }

    /// The unit's directory, whether it is there or not.
    pub(super) fn of(&self, unit: UnitId) -> PathBuf {
        let UnitId { placement, epoch } = unit;
        self.root.join(format!("{}-{}-{epoch}", placement.deployment, placement.ordinal))
    }

    /// What is written down of a unit of this owner.
    pub(super) fn find(&self, owner: &Owner, unit: UnitId) -> Result<Option<Record>, RuntimeError> {
        let record = Record::read(&self.of(unit))?;
        Ok(record.filter(|record| record.is_of(owner) && record.unit() == unit))
    }

    /// Waits for the lock, within bounds.
    pub(super) fn lock(&self) -> Result<Locked<'_>, RuntimeError> {
        let gate = self.gate.lock().unwrap_or_else(PoisonError::into_inner);
        make_directory(&self.root).map_err(|error| failed(error.to_string()))?;
        let doing = |source| RuntimeError::Io { what: "locking the directory of units", source };
        let path = self.root.join(".lock");
        let file = File::options().create(true).append(true).open(path).map_err(doing)?;
        let deadline = Instant::now() + LOCK_LIMIT;
        loop {
            match file.try_lock() {
                Ok(()) => return Ok(Locked { units: self, _file: file, _gate: gate }),
                Err(TryLockError::WouldBlock) if Instant::now() < deadline => {
                    std::thread::sleep(Duration::from_millis(5));
                }
                Err(TryLockError::WouldBlock) => {
                    return Err(unavailable("another process has held the directory of units for too long"));
                }
                Err(TryLockError::Error(error)) => return Err(doing(error)),
            }
        }
    }
}

impl Locked<'_> {
    /// Makes the unit's directory and the one of its socket, both at once or none.
    pub(super) fn make(&self, owner: Owner, unit: UnitId, account: &Account) -> Result<Record, RuntimeError> {
        let doing = |source| RuntimeError::Io { what: "making the directory of a unit", source };
        let path = self.units.of(unit);
        let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
        let new = self.units.root.join(format!("{NEW}{name}"));
        // Only the directory of the socket is opened to the engine's user.
        DirBuilder::new().mode(if account.other { 0o711 } else { 0o700 }).create(&new).map_err(doing)?;
        let record = Record::placed(owner, unit, socket_directory(&path, account)?);
        let written = if record.socket_directory.starts_with(&path) { make_run(&new, account) } else { Ok(()) };
        written.map_err(doing)?;
        record.write(&new)?;
        fs::rename(&new, &path).map_err(doing)?;
        sync_directory(&self.units.root).map_err(|error| failed(error.to_string()))?;
        Ok(record)
    }

    /// Makes the socket's directory again, where something has removed it, or where the user who runs engines is another.
    pub(super) fn mend(&self, record: &mut Record, account: &Account) -> Result<(), RuntimeError> {
        let path = self.units.of(record.unit());
        let fits = fs::symlink_metadata(&record.socket_directory)
            .is_ok_and(|about| about.is_dir() && about.uid() == account.uid);
        if fits {
            return Ok(());
        }
        let doing = |source| RuntimeError::Io { what: "making the directory of a socket", source };
        record.socket_directory = socket_directory(&path, account)?;
        if record.socket_directory.starts_with(&path) {
            remove(&record.socket_directory).map_err(doing)?;
            make_run(&path, account).map_err(doing)?;
        }
        record.write(&path)
    }

    /// All units that are written down, whoever's they are. What can not be read is left alone.
    pub(super) fn records(&self) -> Result<Vec<Record>, RuntimeError> {
        let doing = |source| RuntimeError::Io { what: "reading the directory of units", source };
        let mut records = Vec::new();
        for entry in fs::read_dir(&self.units.root).map_err(doing)? {
            let entry = entry.map_err(doing)?;
            let (name, path) = (entry.file_name(), entry.path());
            if name.as_bytes().starts_with(NEW.as_bytes()) || name.as_bytes().starts_with(GONE.as_bytes()) {
                // Under the lock nobody is at work on it: who was has died.
                if let Err(error) = remove(&path) {
                    tracing::warn!(path = %path.display(), %error, "what is left of a unit can not be removed");
                }
                continue;
            }
            if name.as_bytes().starts_with(b".") {
                continue;
            }
            match Record::read(&path) {
                Ok(Some(record)) if self.units.of(record.unit()) == path => records.push(record),
                Ok(_) => tracing::debug!(path = %path.display(), "this is no unit's directory"),
                Err(error) => tracing::warn!(path = %path.display(), %error, "a unit is left alone"),
            }
        }
        Ok(records)
    }

    /// Removes a unit's directory. It is there or not, but never without its record.
    pub(super) fn remove(&self, record: &Record) -> Result<(), RuntimeError> {
        let doing = |source| RuntimeError::Io { what: "removing the directory of a unit", source };
        let path = self.units.of(record.unit());
        if !record.socket_directory.starts_with(&path) {
            remove(&record.socket_directory).map_err(doing)?;
        }
        let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
        let gone = self.units.root.join(format!("{GONE}{name}"));
        remove(&gone).map_err(doing)?;
        fs::rename(&path, &gone).map_err(doing)?;
        remove(&gone).map_err(doing)
    }
}

fn remove(path: &Path) -> io::Result<()> {
    match fs::remove_dir_all(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        other => other,
    }
}

fn make_run(unit: &Path, account: &Account) -> io::Result<()> {
    let run = unit.join("run");
    DirBuilder::new().mode(0o700).create(&run)?;
    if account.other { chown(&run, Some(account.uid), Some(account.gid)) } else { Ok(()) }
}

/// Where the socket goes: below the unit's directory if the path is short enough and the engine's user gets there, else into
/// a new directory of its own.
fn socket_directory(unit: &Path, account: &Account) -> Result<PathBuf, RuntimeError> {
    let run = unit.join("run");
    if fits(&run) && (!account.other || open_to_all(unit.parent().unwrap_or(unit))) {
        return Ok(run);
    }
    for parent in [PathBuf::from("/run"), std::env::temp_dir(), PathBuf::from("/tmp")] {
        if !fits(&parent.join("muster-000000")) || (account.other && !open_to_all(&parent)) {
            continue;
        }
        let Ok(made) = tempfile::Builder::new()
            .prefix("muster-")
            .permissions(fs::Permissions::from_mode(0o700))
            .tempdir_in(&parent)
        else {
            continue;
        };
        if account.other {
            let doing = |source| RuntimeError::Io { what: "giving a socket's directory to the engine's user", source };
            chown(made.path(), Some(account.uid), Some(account.gid)).map_err(doing)?;
        }
        return Ok(made.keep());
    }
    Err(unavailable("no directory for sockets has a path that is short enough"))
}

fn fits(directory: &Path) -> bool {
    directory.join(SOCKET).as_os_str().len() <= SOCKET_LIMIT
}

/// Whether everybody may pass through a directory and all above it.
fn open_to_all(directory: &Path) -> bool {
    directory
        .ancestors()
        .filter(|path| !path.as_os_str().is_empty())
        .all(|path| fs::metadata(path).is_ok_and(|about| about.permissions().mode() & 0o001 != 0))
}
