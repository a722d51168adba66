//! The cache of the hub as its clients lay it out: `hub/models--org--name` with `blobs`, `refs` and `snapshots`, and locks in
//! `hub/.locks`. Engines write it; here it is listed and cleared.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::SystemTime;

use uuid::Uuid;

use super::error::{FilesError, blocking};
use super::in_use::InUse;
use super::measure::measure;
use super::names::RepoName;

/// The most entries of the cache that are looked at.
const MOST_ENTRIES: usize = 10_000;

/// How directories are called that are being deleted.
const DELETED: &str = ".muster-deleted-";

/// A model in the cache.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CachedModel {
    /// Its name, like `org/model`.
    pub name: RepoName,
    /// Its size on the disk in bytes, each blob counted once.
    pub bytes: u64,
    /// When its directory was last changed.
    pub last_used_at: SystemTime,
    /// Whether something runs from it.
    pub in_use: bool,
}

/// What the cache holds.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct CacheListing {
    /// The models, by name.
    pub models: Vec<CachedModel>,
    /// How many directories were left out because their names can not be read.
    pub skipped: usize,
}

/// The cache of one node.
#[derive(Clone)]
pub struct HubCache {
    hub: PathBuf,
    in_use: Arc<dyn InUse>,
}

impl std::fmt::Debug for HubCache {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("HubCache").field("hub", &self.hub).finish_non_exhaustive()
    }
}

impl HubCache {
    /// The cache below the hub's home directory (`HF_HOME`), which need not be there yet.
    pub(super) fn new(hf_home: &Path, in_use: Arc<dyn InUse>) -> Self {
        Self { hub: hf_home.join("hub"), in_use }
    }

    /// What it holds.
    ///
    /// # Errors
    /// When the disk fails.
    pub async fn list(&self) -> Result<CacheListing, FilesError> {
        let cache = self.clone();
        blocking(move || cache.list_now()).await
    }

    fn list_now(&self) -> Result<CacheListing, FilesError> {
        let fail = |e| FilesError::io("reading the cache of the hub", e);
        let entries = match fs::read_dir(&self.hub) {
            Ok(entries) => entries,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(CacheListing::default()),
            Err(error) => return Err(fail(error)),
        };
        let mut listing = CacheListing::default();
        for entry in entries.take(MOST_ENTRIES) {
            let entry = entry.map_err(fail)?;
            if !entry.file_name().as_encoded_bytes().starts_with(b"models--") {
                continue;
            }
            let Some(name) = RepoName::from_directory(&entry.file_name()) else {
                listing.skipped += 1;
                continue;
            };
            // One that is deleted at this moment is not there.
            let Ok(metadata) = fs::metadata(entry.path()) else { continue };
            if !metadata.is_dir() {
                continue;
            }
            listing.models.push(CachedModel {
                bytes: measure(&entry.path()).bytes,
                last_used_at: metadata.modified().map_err(fail)?,
                in_use: self.is_used(&name, &entry.path()),
                name,
            });
        }
        listing.models.sort_by(|a, b| a.name.cmp(&b.name));
        Ok(listing)
    }

    fn is_used(&self, name: &RepoName, directory: &Path) -> bool {
        self.in_use.repo(name.as_str()) || fs::canonicalize(directory).is_ok_and(|resolved| self.in_use.path(&resolved))
    }

    /// Deletes a model with its locks.
    ///
    /// # Errors
    /// `Invalid` when it lies outside the cache, `NotFound`, `Conflict` when something runs from it, and when the disk fails:
    /// then it is listed again with what is left.
    pub async fn delete(&self, name: RepoName) -> Result<(), FilesError> {
        let cache = self.clone();
        blocking(move || cache.delete_now(&name)).await
    }

    fn delete_now(&self, name: &RepoName) -> Result<(), FilesError> {
        let fail = |e| FilesError::io("deleting a model of the cache", e);
        let missing = || FilesError::NotFound(format!("the model {name} is not in this node's cache"));
        let directory = self.hub.join(name.directory());
        let inside = match (fs::canonicalize(&self.hub), fs::canonicalize(&directory)) {
            (Ok(hub), Ok(resolved)) => resolved != hub && resolved.starts_with(hub),
            (Err(error), _) | (_, Err(error)) if error.kind() == io::ErrorKind::NotFound => return Err(missing()),
            (Err(error), _) | (_, Err(error)) => return Err(fail(error)),
        };
        if !inside {
            return Err(FilesError::Invalid(format!("the model {name} lies outside the cache of this node")));
        }
        let used = || FilesError::Conflict(format!("the model {name} is in use on this node"));
        if self.is_used(name, &directory) {
            return Err(used());
        }
        // Out of everybody's sight first: an engine finds all of it or nothing.
        let doomed = self.hub.join(format!("{DELETED}{}", Uuid::new_v4().simple()));
        match fs::rename(&directory, &doomed) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Err(missing()),
            other => other.map_err(fail)?,
        }
        let outcome = if self.in_use.repo(name.as_str()) { Err(used()) } else { remove(&doomed).map_err(fail) };
        if let Err(error) = outcome {
            let _ = fs::rename(&doomed, &directory);
            return Err(error);
        }
        match fs::remove_dir_all(self.hub.join(".locks").join(name.directory())) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                tracing::warn!(model = %name, %error, "the locks of a deleted model can not be removed");
            }
            _ => {}
        }
        Ok(())
    }

    /// Removes what an earlier process did not finish deleting.
    pub(super) fn sweep(&self) {
        let Ok(entries) = fs::read_dir(&self.hub) else { return };
        for entry in entries.take(MOST_ENTRIES).filter_map(Result::ok) {
            if entry.file_name().as_encoded_bytes().starts_with(DELETED.as_bytes()) {
                super::staging::remove(&entry.path());
            }
        }
    }
}

fn remove(path: &Path) -> io::Result<()> {
    if fs::symlink_metadata(path)?.is_dir() { fs::remove_dir_all(path) } else { fs::remove_file(path) }
}

#[cfg(test)]
mod tests {
    use std::ffi::OsStr;
    use std::os::unix::ffi::OsStrExt;
    use std::os::unix::fs::symlink;

    use tempfile::TempDir;

    use super::super::error::ErrorKind;
    use super::super::testing::Running;
    use super::*;

    /// A cache with a model as the hub's client leaves it.
    fn cache(in_use: Running) -> (TempDir, HubCache) {
        let home = tempfile::tempdir().unwrap();
        let model = home.path().join("hub/models--org--model");
        for directory in ["blobs", "refs", "snapshots/abc"] {
            fs::create_dir_all(model.join(directory)).unwrap();
        }
        fs::write(model.join("blobs/123"), [0; 1000]).unwrap();
        fs::write(model.join("refs/main"), "abc").unwrap();
        symlink("../../blobs/123", model.join("snapshots/abc/w.bin")).unwrap();
        fs::create_dir_all(home.path().join("hub/.locks/models--org--model")).unwrap();
        fs::create_dir_all(home.path().join("hub/datasets--a--b")).unwrap();
        fs::write(home.path().join("hub/version.txt"), "1").unwrap();
        let cache = HubCache::new(home.path(), Arc::new(in_use));
        (home, cache)
    }

    fn name(text: &str) -> RepoName {
        RepoName::parse(text).unwrap()
    }

    #[tokio::test]
    async fn models_are_listed_with_each_blob_counted_once() {
        let (home, cache) = cache(Running::default());
        let listing = cache.list().await.unwrap();
        let [model] = &listing.models[..] else { panic!("{listing:?}") };
        assert_eq!((model.name.as_str(), model.bytes, model.in_use), ("org/model", 1003, false));
        let changed = fs::metadata(home.path().join("hub/models--org--model")).unwrap().modified().unwrap();
        assert_eq!(model.last_used_at, changed);
        let empty = HubCache::new(&home.path().join("none"), Arc::new(Running::default()));
        assert_eq!(empty.list().await.unwrap(), CacheListing::default());
    }

    #[tokio::test]
    async fn names_that_can_not_be_read_are_counted_not_fatal() {
        let (home, cache) = cache(Running::default());
        fs::create_dir(home.path().join("hub").join(OsStr::from_bytes(b"models--\xff\xfe"))).unwrap();
        let listing = cache.list().await.unwrap();
        assert_eq!((listing.models.len(), listing.skipped), (1, 1));
    }

    #[tokio::test]
    async fn deleting_takes_the_locks_along_whichever_way_the_name_is_written() {
        for written in ["org/model", "org%2Fmodel"] {
            let (home, cache) = cache(Running::default());
            cache.delete(name(written)).await.unwrap();
            let left = fs::read_dir(home.path().join("hub")).unwrap().count();
            assert_eq!(left, 3, "datasets, locks and the version");
            assert_eq!(fs::read_dir(home.path().join("hub/.locks")).unwrap().count(), 0);
            assert_eq!(cache.delete(name(written)).await.unwrap_err().kind(), ErrorKind::NotFound);
        }
    }

    #[tokio::test]
    async fn a_model_in_use_stays() {
        let by_path =
            |home: &TempDir| fs::canonicalize(home.path().join("hub/models--org--model/snapshots/abc")).unwrap();
        let (home, by_name) = cache(Running { repos: vec!["org/model".into()], ..Running::default() });
        let used = Running { paths: vec![by_path(&home)], ..Running::default() };
        let by_path = HubCache::new(home.path(), Arc::new(used));
        for cache in [by_name, by_path] {
            assert!(cache.list().await.unwrap().models[0].in_use);
            assert_eq!(cache.delete(name("org/model")).await.unwrap_err().kind(), ErrorKind::Conflict);
            assert!(home.path().join("hub/models--org--model/blobs/123").exists());
        }
    }

    #[tokio::test]
    async fn nothing_outside_the_cache_is_deleted() {
        let (home, cache) = cache(Running::default());
        let outside = home.path().join("outside");
        fs::create_dir(&outside).unwrap();
        symlink(&outside, home.path().join("hub/models--evil")).unwrap();
        symlink("..", home.path().join("hub/models--up")).unwrap();
        symlink(".", home.path().join("hub/models--self")).unwrap();
        for evil in ["evil", "up", "self"] {
            assert_eq!(cache.delete(name(evil)).await.unwrap_err().kind(), ErrorKind::Invalid, "{evil}");
        }
        assert!(outside.exists() && home.path().join("hub/models--org--model").exists());
    }

    #[tokio::test]
    async fn what_was_being_deleted_goes_at_the_next_start() {
        let (home, cache) = cache(Running::default());
        fs::create_dir(home.path().join("hub/.muster-deleted-1")).unwrap();
        cache.sweep();
        assert!(!home.path().join("hub/.muster-deleted-1").exists());
        assert_eq!(cache.list().await.unwrap().models.len(), 1);
    }
}
