//! The directory of managed models as whoever brings a model sees it: is the name free, is there room, and put it there.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use super::archive::ArchiveLimits;
use super::error::FilesError;
use super::local::{deploy_path, warnings};
use super::measure::measure;
use super::names::ModelName;
use super::room::Room;
use super::staging::publish;
use super::transfers::Transfers;

/// What this node accepts. The defaults are those of the product; tests take smaller ones.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Limits {
    /// What must stay free on the disk, in bytes.
    pub keep_free: u64,
    /// What archives may become.
    pub archives: ArchiveLimits,
    /// The most open upload sessions.
    pub uploads: usize,
    /// The most files of one upload.
    pub upload_files: usize,
    /// After how long without a file an upload is given up.
    pub upload_idle: Duration,
    /// How long a request waits for another one to let go of a file: a client that was cut off is back before its old
    /// connection has been noticed dead.
    pub patience: Duration,
    /// The most archives and packages that are received at once.
    pub archives_at_once: usize,
    /// The most pulls at once.
    pub pulls: usize,
    /// The pause before a pull that broke off is tried again. It doubles with each attempt that brings nothing.
    pub pull_pause: Duration,
    /// How long a stream may be silent.
    pub silence: Duration,
    /// How long a finished transfer is told of.
    pub transfers_kept: Duration,
    /// The largest package, in bytes.
    pub package: u64,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            keep_free: 2 << 30,
            archives: ArchiveLimits::default(),
            uploads: 32,
            upload_files: 20_000,
            upload_idle: Duration::from_secs(6 * 3600),
            patience: Duration::from_secs(5),
            archives_at_once: 8,
            pulls: 8,
            pull_pause: Duration::from_millis(500),
            silence: Duration::from_secs(60),
            transfers_kept: Duration::from_secs(3600),
            package: 2 << 30,
        }
    }
}

/// A model that has come.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Arrived {
    /// Its name.
    pub name: ModelName,
    /// What a deployment names to serve it.
    pub path: PathBuf,
    /// Its size in bytes.
    pub bytes: u64,
    /// What a person should know about it.
    pub warnings: Vec<String>,
}

/// The managed models' directory and what belongs to bringing something there.
#[derive(Clone, Debug)]
pub(super) struct Shelf {
    pub(super) models: PathBuf,
    pub(super) room: Room,
    pub(super) limits: Limits,
    pub(super) transfers: Transfers,
}

impl Shelf {
    /// Refuses a name that is taken, before anything is received for it.
    pub(super) fn is_free(&self, name: &ModelName) -> Result<(), FilesError> {
        match fs::symlink_metadata(self.models.join(name.as_str())) {
            Ok(_) => Err(FilesError::Conflict(format!("the model {name} exists already on this node"))),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
            Err(error) => Err(FilesError::io("looking for a model", error)),
        }
    }

    /// Makes a complete directory the model of that name, in one step.
    pub(super) fn put(&self, complete: &Path, name: &ModelName) -> Result<Arrived, FilesError> {
        let place = self.models.join(name.as_str());
        publish(complete, &place, &format!("the model {name}"))?;
        Ok(Arrived {
            name: name.clone(),
            path: deploy_path(&place),
            bytes: measure(&place).bytes,
            warnings: warnings(&place),
        })
    }
}
