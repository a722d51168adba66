//! How full the file system of a directory is.

use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use rustix::io::Errno;

use crate::asked::{Answer, Asked};

/// Space in a file system, in bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DiskUsage {
    /// All of it.
    pub total: u64,
    /// What Muster may still write. What the file system keeps for root is not in it.
    pub free: u64,
}

impl DiskUsage {
    /// Of the file system that a directory is in, or will be in once it is made. It blocks while a file system over the
    /// network does not answer; see [`Disk`].
    pub fn of(directory: &Path) -> io::Result<Self> {
        let mut failure = Errno::NOENT;
        for path in directory.ancestors().map(|path| if path.as_os_str().is_empty() { Path::new(".") } else { path }) {
            match rustix::fs::statvfs(path) {
                Ok(found) => {
                    return Ok(Self {
                        total: found.f_blocks.saturating_mul(found.f_frsize),
                        free: found.f_bavail.saturating_mul(found.f_frsize),
                    });
                }
                Err(Errno::NOENT) => {}
                Err(error) => {
                    failure = error;
                    break;
                }
            }
        }
        Err(failure.into())
    }
}

/// A directory whose file system is asked how full it is, on a thread of its own.
#[derive(Clone, Debug)]
pub struct Disk {
    asked: Asked<Result<DiskUsage, String>>,
}

impl Disk {
    /// Watches over a directory. An asker waits as long as `patience` says.
    #[must_use]
    pub fn new(directory: PathBuf, patience: Duration) -> Self {
        let asked = Asked::start("disk", patience, move |mut questions| {
            // It answers before anybody asks: until it has, it counts as one that hangs.
            loop {
                questions.answer(DiskUsage::of(&directory).map_err(|error| error.to_string()));
                if questions.wait().is_none() {
                    return;
                }
            }
        });
        Self { asked }
    }

    /// How full it is, or why that is not known.
    pub async fn usage(&self) -> Answer<Result<DiskUsage, String>> {
        self.asked.ask().await
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_directory_that_is_not_there_yet_is_in_the_file_system_of_its_parent() {
        let directory = tempfile::tempdir().unwrap();
        let there = DiskUsage::of(directory.path()).unwrap();
        assert!(there.total > 0 && there.free <= there.total, "{there:?}");
        let disk = Disk::new(directory.path().join("not/yet"), Duration::from_secs(20));
        let Answer::Fresh(Ok(usage)) = disk.usage().await else { panic!("no answer") };
        assert_eq!(usage.total, there.total);
        assert_eq!(
            DiskUsage::of(Path::new("neither-this-one")).unwrap().total,
            DiskUsage::of(Path::new(".")).unwrap().total
        );
    }

    #[test]
    fn it_is_known_before_anybody_asks() {
        let disk = Disk::new(PathBuf::from("."), Duration::ZERO);
        let begun = std::time::Instant::now();
        while disk.asked.last().is_none() {
            assert!(begun.elapsed() < Duration::from_secs(20), "nobody has looked");
            std::thread::yield_now();
        }
    }

    #[tokio::test]
    async fn what_is_no_directory_says_so() {
        let file = tempfile::NamedTempFile::new().unwrap();
        let disk = Disk::new(file.path().join("below"), Duration::from_secs(20));
        assert!(matches!(disk.usage().await, Answer::Fresh(Err(why)) if why.contains("Not a directory")));
    }
}
