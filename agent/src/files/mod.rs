//! Model files on the node.

mod archive;
mod disk;
mod error;
mod hub;
mod in_use;
mod local;
mod measure;
mod names;
mod pipe;
mod room;
mod shelf;
mod staging;
#[cfg(test)]
mod testing;
mod transfers;
mod uploads;

pub use archive::ArchiveLimits;
pub use disk::DiskUsage;
pub use error::{ErrorKind, FilesError};
pub use hub::{CacheListing, CachedModel, HubCache};
pub use in_use::InUse;
pub use local::{LocalListing, LocalModel, LocalModels, Source};
pub use names::{ModelName, RelativePath, RepoName};
pub use shelf::{Arrived, Limits};
pub use transfers::{Transfer, TransferKind, TransferState};
pub use uploads::{Received, Uploads};
