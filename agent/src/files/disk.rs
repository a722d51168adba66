//! How full the disk is on which the hub's cache lies.

use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use tokio::sync::Semaphore;

use super::error::{FilesError, blocking};
use super::measure::measure;
use super::room::space;

/// How long the measured size of the cache is good for. The walk goes through every file of it.
const GOOD_FOR: Duration = Duration::from_secs(300);

/// The disk of a node, in bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DiskUsage {
    /// How large the file system is.
    pub total: u64,
    /// What is free for this node's user.
    pub free: u64,
    /// What the hub's cache takes, as it was at most five minutes ago.
    pub hf_cache: u64,
}

/// Measures the disk, and the cache now and then.
#[derive(Clone, Debug)]
pub(super) struct Disk {
    cache: PathBuf,
    measured: Arc<Mutex<Option<(Instant, u64)>>>,
    /// One walk at a time.
    walking: Arc<Semaphore>,
    good_for: Duration,
}

impl Disk {
    pub(super) fn new(hf_home: &Path) -> Self {
        let walking = Arc::new(Semaphore::new(1));
        Self { cache: hf_home.to_owned(), measured: Arc::default(), walking, good_for: GOOD_FOR }
    }

    pub(super) async fn usage(&self) -> Result<DiskUsage, FilesError> {
        let walk = Arc::clone(&self.walking).acquire_owned().await.map_err(|_| FilesError::GivenUp)?;
        let disk = self.clone();
        blocking(move || {
            let _walk = walk;
            let found = space(&disk.cache).map_err(|e| FilesError::io("asking for the room on the disk", e))?;
            Ok(DiskUsage { total: found.total, free: found.free, hf_cache: disk.cache_size() })
        })
        .await
    }

    fn cache_size(&self) -> u64 {
        let known = *self.measured.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some((when, bytes)) = known
            && when.elapsed() < self.good_for
        {
            return bytes;
        }
        let bytes = measure(&self.cache).bytes;
        *self.measured.lock().unwrap_or_else(PoisonError::into_inner) = Some((Instant::now(), bytes));
        bytes
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn the_cache_is_measured_now_and_then() {
        let home = tempfile::tempdir().unwrap();
        std::fs::write(home.path().join("a"), [0; 10]).unwrap();
        let mut disk = Disk::new(home.path());
        let first = disk.usage().await.unwrap();
        assert_eq!(first.hf_cache, 10);
        assert!(first.total > 0 && first.free <= first.total);
        std::fs::write(home.path().join("b"), [0; 10]).unwrap();
        assert_eq!(disk.usage().await.unwrap().hf_cache, 10);
        disk.good_for = Duration::ZERO;
        assert_eq!(disk.usage().await.unwrap().hf_cache, 20);
    }
}
