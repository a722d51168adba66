//! Where the members of an archive go: the one place that makes files and directories, and that says no.

use std::cell::Cell;
use std::error::Error;
use std::fs::{self, File};
use std::io::{self, Read, Write};
use std::path::{Path, PathBuf};

use super::Bounds;
use super::tape::Stop;
use crate::files::error::FilesError;
use crate::files::names::RelativePath;
use crate::files::room::{LOOK_EVERY, human};

/// How much is read and written at once, in bytes.
const STEP: usize = 256 << 10;

/// The members that have come out of one archive so far.
pub(super) struct Members<'a> {
    root: &'a Path,
    bounds: &'a Bounds,
    /// How many bytes of the archive have been read, which bounds what may come out.
    packed: &'a Cell<u64>,
    bytes: u64,
    looked_at: u64,
    entries: u64,
    files: u64,
    /// The directory made last: members of one directory follow one another.
    last: PathBuf,
    buffer: Vec<u8>,
}

impl<'a> Members<'a> {
    pub(super) fn new(root: &'a Path, bounds: &'a Bounds, packed: &'a Cell<u64>) -> Self {
        let buffer = vec![0; STEP];
        Self { root, bounds, packed, bytes: 0, looked_at: 0, entries: 0, files: 0, last: root.to_owned(), buffer }
    }

    /// A directory, which may have come before.
    pub(super) fn directory(&mut self, name: &str) -> Result<(), FilesError> {
        self.count()?;
        match path_of(name)? {
            Some(path) => self.make(path.parts(), name),
            None => Ok(()),
        }
    }

    /// A regular file with its content, and the size that the archive claims for it.
    pub(super) fn file(&mut self, name: &str, claimed: u64, content: &mut dyn Read) -> Result<(), FilesError> {
        self.count()?;
        let Some(path) = path_of(name)? else {
            return Err(refused(name, "has no name"));
        };
        // Said before anything is written, where the archive admits it.
        if let Some(packed) = self.bounds.packed
            && self.bytes.saturating_add(claimed) > self.bounds.limits.most(packed)
        {
            return Err(too_large(self.bounds.limits.most(packed)));
        }
        let parts: Vec<&str> = path.parts().collect();
        let above = &parts[..parts.len() - 1];
        self.make(above.iter().copied(), name)?;
        let target = path.below(self.root);
        // Exclusive: a name that comes twice, be it in another case where the disk does not tell them apart, replaces nothing.
        let mut file =
            File::options().write(true).create_new(true).open(&target).map_err(|error| match error.kind() {
                io::ErrorKind::AlreadyExists | io::ErrorKind::IsADirectory => refused(name, "comes twice"),
                _ => FilesError::io("unpacking", error),
            })?;
        self.fill(&mut file, name, content)?;
        file.sync_all().map_err(|e| FilesError::io("unpacking", e))?;
        self.files += 1;
        Ok(())
    }

    /// All members have come.
    pub(super) fn finish(self) -> Result<(), FilesError> {
        if self.files == 0 {
            return Err(FilesError::Invalid("the archive holds no files".to_owned()));
        }
        Ok(())
    }

    fn fill(&mut self, file: &mut File, name: &str, content: &mut dyn Read) -> Result<(), FilesError> {
        loop {
            if self.bounds.cancel.is_cancelled() {
                return Err(FilesError::Cancelled);
            }
            let length = match content.read(&mut self.buffer) {
                Ok(0) => return Ok(()),
                Ok(length) => length,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                Err(error) => return Err(unreadable(error, name)),
            };
            self.bytes = self.bytes.saturating_add(length as u64);
            let ceiling = self.bounds.limits.most(self.packed.get());
            if self.bytes > ceiling {
                return Err(too_large(ceiling));
            }
            if self.bytes - self.looked_at >= LOOK_EVERY {
                self.looked_at = self.bytes;
                self.bounds.room.look()?;
            }
            file.write_all(&self.buffer[..length]).map_err(|e| FilesError::io("unpacking", e))?;
        }
    }

    fn count(&mut self) -> Result<(), FilesError> {
        if self.bounds.cancel.is_cancelled() {
            return Err(FilesError::Cancelled);
        }
        self.entries += 1;
        if self.entries > self.bounds.limits.entries {
            let most = self.bounds.limits.entries;
            return Err(FilesError::TooLarge(format!("the archive holds more than {most} files and directories")));
        }
        Ok(())
    }

    /// Makes the directories of a path, each of which counts.
    fn make<'p>(&mut self, parts: impl Iterator<Item = &'p str>, name: &str) -> Result<(), FilesError> {
        let mut wanted = self.root.to_owned();
        let steps: Vec<PathBuf> = parts
            .map(|part| {
                wanted.push(part);
                wanted.clone()
            })
            .collect();
        if wanted == self.last {
            return Ok(());
        }
        for step in steps {
            match fs::create_dir(&step) {
                Ok(()) => self.count()?,
                Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {
                    let there = fs::symlink_metadata(&step).map_err(|e| FilesError::io("unpacking", e))?;
                    if !there.is_dir() {
                        return Err(refused(name, "leads through a file"));
                    }
                }
                Err(error) => return Err(FilesError::io("unpacking", error)),
            }
        }
        self.last = wanted;
        Ok(())
    }
}

/// The path of a member. Archives of the current directory name it as `./`, which leads nowhere; everything else that is not
/// plain is refused. `None`: the root itself.
fn path_of(name: &str) -> Result<Option<RelativePath>, FilesError> {
    let mut plain = name;
    while let Some(rest) = plain.strip_prefix("./") {
        plain = rest;
    }
    let plain = plain.strip_suffix('/').unwrap_or(plain);
    if plain.is_empty() && name.starts_with("./") || plain == "." {
        return Ok(None);
    }
    match RelativePath::parse(plain) {
        Ok(path) => Ok(Some(path)),
        Err(error) => Err(refused(name, &format!("is refused: {error}"))),
    }
}

/// An archive is refused because of one member.
pub(super) fn refused(name: &str, why: &str) -> FilesError {
    let shown: String = name.chars().take(100).flat_map(char::escape_debug).collect();
    FilesError::Invalid(format!("the archive's member \"{shown}\" {why}"))
}

pub(super) fn too_large(most: u64) -> FilesError {
    FilesError::TooLarge(format!("the archive's content is out of proportion: {} would be allowed", human(most)))
}

/// Reading an archive has failed: because it says what it should not, or because its stream broke off.
pub(super) fn unreadable(error: io::Error, name: &str) -> FilesError {
    // Readers between here and there wrap errors in their own.
    let mut cause: Option<&(dyn Error + 'static)> = Some(&error);
    while let Some(current) = cause {
        if let Some(own) = current.downcast_ref::<Stop>() {
            return own.into();
        }
        cause = match current.downcast_ref::<io::Error>() {
            Some(wrapped) => wrapped.get_ref().map(|inner| inner as &(dyn Error + 'static)),
            None => current.source(),
        };
    }
    let place = if name.is_empty() { String::new() } else { format!(" at \"{}\"", name.escape_debug()) };
    FilesError::Invalid(format!("the archive can not be read{place}: {error}"))
}
