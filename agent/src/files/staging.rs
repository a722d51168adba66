//! The directory where files lie until they are complete, on the file system on which they will stay.
//!
//! What is in it is nobody's model yet. A thing becomes visible by one rename, which replaces nothing; whatever a process left
//! there when it ended is removed when the next one starts, unless it belongs to an upload that can go on.

use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};

use rustix::fs::{CWD, RenameFlags, renameat_with};
use uuid::Uuid;
use walkdir::WalkDir;

use super::error::FilesError;

/// The name of the staging directory. No model's name starts with a dot.
pub(super) const STAGING: &str = ".tmp";

/// A directory of its own for one thing in the making. It is removed with it.
#[derive(Debug)]
pub(super) struct Workspace {
    path: PathBuf,
    removed: bool,
}

impl Workspace {
    /// Makes one below the staging directory of `home`.
    pub(super) fn create(home: &Path, kind: &str) -> Result<Self, FilesError> {
        let path = home.join(STAGING).join(format!("{kind}-{}", Uuid::new_v4().simple()));
        fs::create_dir_all(&path).map_err(|e| FilesError::io("making a staging directory", e))?;
        Ok(Self { path, removed: false })
    }

    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    /// Removes it with everything in it, here and now: for threads that may block.
    pub(super) fn remove(mut self) {
        self.removed = true;
        remove(&self.path);
    }
}

impl Drop for Workspace {
    fn drop(&mut self) {
        if self.removed {
            return;
        }
        let path = std::mem::take(&mut self.path);
        match tokio::runtime::Handle::try_current() {
            // Removing many gigabytes takes a while.
            Ok(runtime) => drop(runtime.spawn_blocking(move || remove(&path))),
            Err(_) => remove(&path),
        }
    }
}

/// Works in a workspace, and removes it whatever comes of that: for threads that may block.
pub(super) fn in_workspace<T>(
    workspace: Workspace,
    work: impl FnOnce(&Path) -> Result<T, FilesError>,
) -> Result<T, FilesError> {
    let outcome = work(workspace.path());
    workspace.remove();
    outcome
}

/// Removes a file or a directory; what can not be removed is tried again at the next start.
pub(super) fn remove(path: &Path) {
    let removed = match fs::symlink_metadata(path) {
        Ok(metadata) if metadata.is_dir() => fs::remove_dir_all(path),
        Ok(_) => fs::remove_file(path),
        Err(error) => Err(error),
    };
    match removed {
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            tracing::warn!(path = %path.display(), %error, "a leftover of a transfer can not be removed");
        }
        _ => {}
    }
}

/// Removes everything in the staging directory of `home`, except what is to be kept.
pub(super) fn sweep(home: &Path, keep: impl Fn(&Path) -> bool) -> Result<(), FilesError> {
    let entries = match fs::read_dir(home.join(STAGING)) {
        Ok(entries) => entries,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(FilesError::io("reading the staging directory", error)),
    };
    for entry in entries.filter_map(Result::ok) {
        if !keep(&entry.path()) {
            remove(&entry.path());
        }
    }
    Ok(())
}

/// Gives a finished file or directory its final name, in one step and durably. The files in it have been synced.
///
/// # Errors
/// `Conflict` when the name is taken: nothing is ever replaced.
pub(super) fn publish(from: &Path, to: &Path, what: &str) -> Result<(), FilesError> {
    let fail = |e| FilesError::io("putting it in its place", e);
    for entry in WalkDir::new(from).follow_links(false) {
        let entry = entry.map_err(|e| fail(e.into()))?;
        if entry.file_type().is_dir() {
            sync_directory(entry.path()).map_err(fail)?;
        }
    }
    match rename_exclusively(from, to) {
        Err(error) if matches!(error.kind(), io::ErrorKind::AlreadyExists | io::ErrorKind::DirectoryNotEmpty) => {
            return Err(FilesError::Conflict(format!("{what} exists already on this node")));
        }
        other => other.map_err(fail)?,
    }
    sync_directory(to.parent().unwrap_or(Path::new("/"))).map_err(fail)
}

fn rename_exclusively(from: &Path, to: &Path) -> io::Result<()> {
    match renameat_with(CWD, from, CWD, to, RenameFlags::NOREPLACE) {
        // Some network file systems can not. There, making the directory claims the name, and only an empty one is replaced.
        Err(rustix::io::Errno::INVAL | rustix::io::Errno::NOSYS | rustix::io::Errno::NOTSUP) if from.is_dir() => {
            fs::create_dir(to)?;
            fs::rename(from, to).inspect_err(|_| drop(fs::remove_dir(to)))
        }
        other => Ok(other?),
    }
}

/// Makes the names in a directory durable.
pub(super) fn sync_directory(path: &Path) -> io::Result<()> {
    File::open(path)?.sync_all()
}

#[cfg(test)]
mod tests {
    use super::super::error::ErrorKind;
    use super::*;

    #[test]
    fn publishing_replaces_nothing() {
        let home = tempfile::tempdir().unwrap();
        let (made, taken) = (home.path().join("made"), home.path().join("taken"));
        for directory in [&made, &taken] {
            fs::create_dir(directory).unwrap();
        }
        fs::write(made.join("f"), "x").unwrap();
        assert_eq!(publish(&made, &taken, "the model m").unwrap_err().kind(), ErrorKind::Conflict);
        assert!(made.join("f").exists() && !taken.join("f").exists());
        publish(&made, &home.path().join("free"), "the model m").unwrap();
        assert!(home.path().join("free/f").exists() && !made.exists());
    }

    #[test]
    fn a_workspace_goes_with_its_owner_and_a_sweep_keeps_what_is_to_be_kept() {
        let home = tempfile::tempdir().unwrap();
        let workspace = Workspace::create(home.path(), "pull").unwrap();
        let path = workspace.path().to_owned();
        fs::write(path.join("f"), "x").unwrap();
        drop(workspace);
        assert!(!path.exists());
        let (keep, lose) = (home.path().join(".tmp/keep"), home.path().join(".tmp/lose"));
        fs::create_dir(&keep).unwrap();
        fs::write(&lose, "x").unwrap();
        sweep(home.path(), |path| path == keep).unwrap();
        assert!(keep.exists() && !lose.exists());
    }
}
