//! Small steps on files and directories, each with an error that names what it was for.

use std::fs::{self, File};
use std::io::{self, Read, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use super::error::StoreError;

/// The path beside `path` whose name has this suffix.
pub(super) fn sibling(path: &Path, suffix: &str) -> PathBuf {
    let mut name = path.file_name().unwrap_or_default().to_owned();
    name.push(".");
    name.push(suffix);
    path.with_file_name(name)
}

pub(super) fn parent(path: &Path) -> &Path {
    match path.parent() {
        // A relative path of one name lies in the current directory.
        Some(parent) if parent.as_os_str().is_empty() => Path::new("."),
        Some(parent) => parent,
        None => Path::new("/"),
    }
}

pub(super) fn remove_dir_if_present(path: &Path) -> Result<(), StoreError> {
    match fs::remove_dir_all(path) {
        Ok(()) => Ok(()),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        Err(error) => Err(StoreError::io(format!("removing {}", path.display()), error)),
    }
}

/// Makes a directory with those above it, if it is not there, and their names durable.
///
/// # Errors
/// When the disk refuses.
pub fn make_directory(path: &Path) -> Result<(), StoreError> {
    if !path.is_dir() {
        make_directory(parent(path))?;
        match fs::create_dir(path) {
            Err(error) if error.kind() != io::ErrorKind::AlreadyExists || !path.is_dir() => {
                return Err(StoreError::io(format!("making the directory {}", path.display()), error));
            }
            _ => {}
        }
    }
    // Even if it was there: whoever made it may have died before its name was durable.
    match sync_directory(parent(path)) {
        Err(StoreError::Io { source, .. }) if source.kind() == io::ErrorKind::PermissionDenied => Ok(()),
        other => other,
    }
}

/// Whether something is there; a disk that does not answer is an error, not a no.
pub(super) fn exists(path: &Path) -> Result<bool, StoreError> {
    path.try_exists().map_err(|e| StoreError::io(format!("looking for {}", path.display()), e))
}

/// Makes the names in a directory durable.
///
/// # Errors
/// When the disk refuses.
pub fn sync_directory(path: &Path) -> Result<(), StoreError> {
    File::open(path)
        .and_then(|directory| directory.sync_all())
        .map_err(|e| StoreError::io(format!("syncing the directory {}", path.display()), e))
}

/// Makes a directory with everything in it durable.
pub(super) fn sync_tree(path: &Path) -> Result<(), StoreError> {
    let doing = |path: &Path| format!("syncing {}", path.display());
    for entry in fs::read_dir(path).map_err(|e| StoreError::io(doing(path), e))? {
        let path = entry.map_err(|e| StoreError::io(doing(path), e))?.path();
        if path.is_dir() {
            sync_tree(&path)?;
        } else {
            File::open(&path).and_then(|file| file.sync_all()).map_err(|e| StoreError::io(doing(&path), e))?;
        }
    }
    sync_directory(path)
}

/// Writes a small file that only its owner may read, whole or not at all, and makes it durable.
///
/// # Errors
/// When the disk refuses.
pub fn write_private(path: &Path, content: &[u8]) -> Result<(), StoreError> {
    let doing = |e| StoreError::io(format!("writing {}", path.display()), e);
    let temporary = sibling(path, "tmp");
    match fs::remove_file(&temporary) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(doing(error)),
        _ => {}
    }
    let mut file = File::options().write(true).create_new(true).mode(0o600).open(&temporary).map_err(doing)?;
    file.write_all(content).and_then(|()| file.sync_all()).map_err(doing)?;
    fs::rename(&temporary, path).map_err(doing)?;
    sync_directory(parent(path))
}

/// Reads a small file, or `None` if it is not there.
///
/// # Errors
/// When the disk refuses, or the file is larger than the limit in bytes.
pub fn read_small(path: &Path, limit: u64) -> Result<Option<Vec<u8>>, StoreError> {
    let doing = |e| StoreError::io(format!("reading {}", path.display()), e);
    let file = match File::open(path) {
        Ok(file) => file,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(doing(error)),
    };
    let mut content = Vec::new();
    file.take(limit + 1).read_to_end(&mut content).map_err(doing)?;
    if content.len() as u64 > limit {
        return Err(doing(io::Error::other(format!("it is larger than {limit} bytes"))));
    }
    Ok(Some(content))
}
