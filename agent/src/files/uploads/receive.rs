//! One file of an upload, from the stream to the disk.

use std::fs::{self, File};
use std::io::{self, Seek, SeekFrom};
use std::path::{Path, PathBuf};

use super::session::Writing;
use crate::files::error::FilesError;
use crate::files::names::RelativePath;
use crate::files::pipe::{PipeReader, copy};
use crate::files::room::{LOOK_EVERY, Room};

/// What has been received of a file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Received {
    /// How many bytes have come with this call.
    pub bytes: u64,
    /// How long the file is now.
    pub length: u64,
}

/// How long a file is so far, complete or not.
pub(super) fn length(writing: &Writing) -> Result<u64, FilesError> {
    let (partial, complete) = places(writing);
    match length_of(&partial)? {
        Some(length) => Ok(length),
        None => Ok(length_of(&complete)?.unwrap_or(0)),
    }
}

/// Receives a file, or the rest of it from an offset. What has come before a stream breaks off is kept for going on, apart from
/// the complete files; what the disk had no room for is not.
pub(super) fn receive(
    writing: &Writing,
    offset: Option<u64>,
    mut reader: PipeReader,
    room: &Room,
) -> Result<Received, FilesError> {
    let session = &writing.session;
    let (partial, complete) = places(writing);
    make_above(&partial)?;
    make_above(&complete)?;
    if complete.is_dir() || partial.is_dir() {
        return Err(FilesError::Invalid(format!("{} is a directory of this upload", writing.path)));
    }
    let start = offset.unwrap_or(0);
    let mut file = open_at(&partial, &complete, start, writing)?;
    let mut bytes = 0_u64;
    let mut unlooked = LOOK_EVERY;
    let copied = copy(&mut reader, &mut file, |piece| {
        let more = piece.len() as u64;
        unlooked += more;
        if unlooked >= LOOK_EVERY {
            unlooked = 0;
            room.look()?;
        }
        bytes += more;
        session.transfer.add(more);
        session.promise.written(more);
        Ok(())
    });
    let synced = file.sync_all().map_err(|e| FilesError::io("writing a file", e));
    match copied.and(synced) {
        Ok(()) => {}
        Err(error @ FilesError::BrokenOff) => return Err(error),
        Err(error) => {
            session.transfer.subtract(length_of(&partial).ok().flatten().unwrap_or(0));
            crate::files::staging::remove(&partial);
            return Err(error);
        }
    }
    let replaced = length_of(&complete)?.unwrap_or(0);
    fs::rename(&partial, &complete).map_err(shape)?;
    session.transfer.subtract(replaced);
    Ok(Received { bytes, length: start + bytes })
}

fn places(writing: &Writing) -> (PathBuf, PathBuf) {
    (writing.path.below(&writing.session.partial()), writing.path.below(&writing.session.content()))
}

fn length_of(path: &Path) -> Result<Option<u64>, FilesError> {
    match fs::symlink_metadata(path) {
        Ok(metadata) if metadata.is_file() => Ok(Some(metadata.len())),
        Ok(_) => Ok(None),
        Err(error) if matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory) => Ok(None),
        Err(error) => Err(FilesError::io("looking for a file of the upload", error)),
    }
}

/// Opens the file that is not complete at an offset, at which it then ends.
fn open_at(partial: &Path, complete: &Path, start: u64, writing: &Writing) -> Result<File, FilesError> {
    let fail = |e| FilesError::io("writing a file", e);
    let transfer = &writing.session.transfer;
    let mut there = length_of(partial)?;
    if start > 0 && there.is_none() && length_of(complete)?.is_some() {
        fs::rename(complete, partial).map_err(shape)?;
        there = length_of(partial)?;
    }
    let there = there.unwrap_or(0);
    if start > there {
        return Err(FilesError::Conflict(format!(
            "only {there} bytes of {} have come: go on from there",
            writing.path
        )));
    }
    let mut file = File::options().create(true).write(true).truncate(false).open(partial).map_err(shape)?;
    file.set_len(start).map_err(fail)?;
    transfer.subtract(there - start);
    file.seek(SeekFrom::Start(start)).map_err(fail)?;
    Ok(file)
}

fn make_above(path: &Path) -> Result<(), FilesError> {
    match path.parent() {
        Some(parent) => fs::create_dir_all(parent).map_err(shape),
        None => Ok(()),
    }
}

/// A file where another path needs a directory is the caller's doing.
fn shape(error: io::Error) -> FilesError {
    match error.kind() {
        io::ErrorKind::NotADirectory | io::ErrorKind::IsADirectory | io::ErrorKind::AlreadyExists => {
            FilesError::Invalid("one path of this upload can not be a file and a directory".to_owned())
        }
        _ => FilesError::io("writing a file", error),
    }
}

/// The files below a directory that are not complete: some of them, for telling.
pub(super) fn incomplete(partial: &Path) -> Vec<RelativePath> {
    let files = walkdir::WalkDir::new(partial).into_iter().filter_map(Result::ok).filter(|e| e.file_type().is_file());
    let paths = files.filter_map(|e| RelativePath::parse(e.path().strip_prefix(partial).ok()?.to_str()?).ok());
    paths.take(3).collect()
}
