//! Zip archives, which have to lie in a file: their list of members stands at the end.

use std::cell::Cell;
use std::fs::File;
use std::io::{BufReader, Read};
use std::path::Path;

use zip::ZipReadOptions;
use zip::read::Config;
use zip::result::ZipError;
use zip::unstable::read::ZipIterable;

use super::Bounds;
use super::members::{Members, refused, unreadable};
use crate::files::error::FilesError;

/// The kinds of files among the bits of a Unix mode, and those that may come out of an archive.
const KIND: u32 = 0o170_000;
const REGULAR: u32 = 0o100_000;
const DIRECTORY: u32 = 0o040_000;

/// Unpacks an archive that is opened twice: for its list, which is never held in memory as a whole, and for its content.
pub(super) fn unpack(list: File, content: File, into: &Path, bounds: &Bounds) -> Result<(), FilesError> {
    let length = list.metadata().map_err(|e| FilesError::io("opening an archive", e))?.len();
    let packed = Cell::new(length);
    let mut members = Members::new(into, bounds, &packed);
    let mut archive = ZipIterable::try_new(BufReader::new(list), Config::default()).map_err(broken)?;
    if archive.len() as u64 > bounds.limits.entries {
        let most = bounds.limits.entries;
        return Err(FilesError::TooLarge(format!("the archive holds more than {most} files and directories")));
    }
    let mut entries = archive.files_with_reader(BufReader::new(content), ZipReadOptions::new()).map_err(broken)?;
    while let Some(entry) = entries.next() {
        let mut entry = entry.map_err(broken)?;
        let name = entry.name().map_err(broken)?.into_owned();
        if entry.encrypted() {
            return Err(refused(&name, "is encrypted"));
        }
        // The mode of a link or a device decides, whatever its name looks like.
        let kind = entry.unix_mode().map_or(0, |mode| mode & KIND);
        if entry.is_symlink() || !matches!(kind, 0 | REGULAR | DIRECTORY) {
            return Err(refused(&name, "is a link or a device, and those are refused"));
        }
        if entry.is_dir() {
            members.directory(&name)?;
        } else {
            let claimed = entry.size();
            members.file(&name, claimed, &mut entry as &mut dyn Read)?;
        }
    }
    members.finish()
}

/// Whether a file is a zip archive.
pub(in crate::files) fn is_zip(file: &Path) -> Result<bool, FilesError> {
    let file = File::open(file).map_err(|e| FilesError::io("opening an archive", e))?;
    Ok(ZipIterable::try_new(BufReader::new(file), Config::default()).is_ok_and(|archive| !archive.is_empty()))
}

fn broken(error: ZipError) -> FilesError {
    match error {
        ZipError::Io(error) => unreadable(error, ""),
        other => FilesError::Invalid(format!("the archive can not be read: {other}")),
    }
}
