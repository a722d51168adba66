//! Model files on the node: the cache of the hub, local models, uploads, archives, pulls from the web, packages.
//!
//! It knows no HTTP of its own and no RPC: names come as text, content as streams of bytes. Nothing half-done is ever visible:
//! what comes lies in a staging directory on the same file system until one rename makes it the model. Blocking work runs on
//! the threads that are there for it; everything that a caller can make grow has a bound in [`Limits`].

mod archive;
mod disk;
mod error;
mod hub;
mod in_use;
mod local;
mod measure;
mod names;
mod packages;
mod pipe;
mod pull;
mod room;
mod shelf;
mod staging;
#[cfg(test)]
mod testing;
#[cfg(test)]
mod tests;
mod transfers;
mod uploads;

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use tokio::time::{MissedTickBehavior, interval};
use tokio_util::task::AbortOnDropHandle;

use disk::Disk;
use room::Room;
use shelf::Shelf;
use transfers::Transfers;

pub use archive::ArchiveLimits;
pub use disk::DiskUsage;
pub use error::{ErrorKind, FilesError};
pub use hub::{CacheListing, CachedModel, HubCache};
pub use in_use::InUse;
pub use local::{LocalListing, LocalModel, LocalModels, Source};
pub use names::{ModelName, RelativePath, RepoName};
pub use packages::{Package, PackageType, Packages};
pub use pull::{Pull, PullPolicy, Pulls};
pub use shelf::{Arrived, Limits};
pub use transfers::{Transfer, TransferKind, TransferState};
pub use uploads::{Received, Uploads};

/// How often uploads in which nothing happens are looked for.
const SWEEP_EVERY: Duration = Duration::from_secs(600);

/// Where a node keeps its files, and what it accepts.
#[derive(Clone, Debug)]
pub struct FilesConfig {
    /// The hub's home directory (`HF_HOME`): its cache lies in `hub` below.
    pub hf_home: PathBuf,
    /// The directory of local models that Muster keeps. No other process writes to it.
    pub models: PathBuf,
    /// Directories of the machine whose models can be deployed, and are only read.
    pub model_directories: Vec<PathBuf>,
    /// The directory of packages. No other process writes to it.
    pub packages: PathBuf,
    /// Where pulls may go.
    pub pulls: PullPolicy,
    /// What is accepted.
    pub limits: Limits,
}

/// The files of one node. What runs in the background ends when this is dropped.
#[derive(Debug)]
pub struct Files {
    /// The hub's cache.
    pub hub: HubCache,
    /// Models that lie on the node.
    pub local: LocalModels,
    /// Models that are uploaded.
    pub uploads: Uploads,
    /// Models that the node pulls.
    pub pulls: Pulls,
    /// Packages for engines.
    pub packages: Packages,
    disk: Disk,
    transfers: Transfers,
    _sweeping: AbortOnDropHandle<()>,
}

impl Files {
    /// Makes the directories that are missing, goes on with the uploads of an earlier process, and removes what else it left.
    ///
    /// # Errors
    /// When the disk fails.
    pub async fn open(config: FilesConfig, in_use: Arc<dyn InUse>) -> Result<Self, FilesError> {
        let FilesConfig { hf_home, models, model_directories, packages, pulls, limits } = config;
        let hub = HubCache::new(&hf_home, Arc::clone(&in_use));
        let local = LocalModels::new(models.clone(), model_directories, in_use);
        let transfers = Transfers::new(limits.transfers_kept);
        let room = Room::new(&models, limits.keep_free);
        let shelf = Shelf { models, room, limits: limits.clone(), transfers: transfers.clone() };
        let (swept, shared) = (hub.clone(), shelf.clone());
        let (uploads, packages) = error::blocking(move || {
            swept.sweep();
            Ok((Uploads::open(shared)?, Packages::open(packages, limits)?))
        })
        .await?;
        let sweeping = AbortOnDropHandle::new(tokio::spawn(sweep(uploads.clone())));
        let pulls = Pulls::new(shelf, pulls);
        Ok(Self { hub, local, uploads, pulls, packages, disk: Disk::new(&hf_home), transfers, _sweeping: sweeping })
    }

    /// What is on its way to this node, and what has ended within the last hour; oldest first.
    #[must_use]
    pub fn transfers(&self) -> Vec<Transfer> {
        self.transfers.list()
    }

    /// How full the disk of the hub's cache is.
    ///
    /// # Errors
    /// When the disk fails.
    pub async fn disk_usage(&self) -> Result<DiskUsage, FilesError> {
        self.disk.usage().await
    }
}

async fn sweep(uploads: Uploads) {
    let mut ticks = interval(SWEEP_EVERY);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        ticks.tick().await;
        if let Err(error) = uploads.sweep().await {
            tracing::warn!(%error, "idle uploads can not be removed");
        }
    }
}
