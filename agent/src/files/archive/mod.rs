//! Archives (tar, tar.gz, zip), unpacked so that nothing in them can reach outside, stay behind or fill the disk.
//!
//! A member is a directory or a regular file with a path that leads nowhere else; everything else (links, devices, absolute
//! names, names that come twice) spoils the whole archive. What comes out is bounded by what went in, in bytes and in number,
//! and by what must stay free on the disk. The caller unpacks into a workspace, which goes when this fails.

mod members;
#[cfg(test)]
pub(super) mod samples;
mod tape;
#[cfg(test)]
mod tests;
mod zipped;

use std::fs;
use std::io::Read;
use std::path::{Path, PathBuf};

use tokio_util::sync::CancellationToken;

use super::error::FilesError;
use super::room::Room;

pub(super) use zipped::is_zip;

/// How an archive is packed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum ArchiveKind {
    Tar,
    TarGz,
    Zip,
}

impl ArchiveKind {
    /// What the end of a file's name says. `None`: it is no archive.
    pub(super) fn of(file_name: &str) -> Option<Self> {
        Self::split(file_name).map(|(_, kind)| kind)
    }

    /// The file's name without the part that says how it is packed, and what that part says.
    pub(super) fn split(file_name: &str) -> Option<(&str, Self)> {
        let endings = [(".tar.gz", Self::TarGz), (".tgz", Self::TarGz), (".tar", Self::Tar), (".zip", Self::Zip)];
        endings.into_iter().find_map(|(ending, kind)| {
            let at = file_name.len().checked_sub(ending.len())?;
            let (stem, end) = file_name.split_at_checked(at)?;
            end.eq_ignore_ascii_case(ending).then_some((stem, kind))
        })
    }
}

/// What an archive may become.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ArchiveLimits {
    /// How many times as large as the archive its content may be.
    pub ratio: u64,
    /// How large the content may be whatever the archive's size, in bytes.
    pub always: u64,
    /// The most files and directories.
    pub entries: u64,
}

impl Default for ArchiveLimits {
    fn default() -> Self {
        Self { ratio: 20, always: 256 << 20, entries: 100_000 }
    }
}

impl ArchiveLimits {
    /// The most bytes that may come out of so many.
    fn most(&self, packed: u64) -> u64 {
        packed.saturating_mul(self.ratio).max(self.always)
    }
}

/// What unpacking has to respect.
#[derive(Clone, Debug)]
pub(super) struct Bounds {
    pub(super) limits: ArchiveLimits,
    /// The size of the whole archive, where that is known before it has come.
    pub(super) packed: Option<u64>,
    pub(super) room: Room,
    pub(super) cancel: CancellationToken,
}

/// Unpacks a tar from a stream into an empty directory. The stream is read to its end.
pub(super) fn unpack_tar(source: impl Read, gzip: bool, into: &Path, bounds: &Bounds) -> Result<(), FilesError> {
    tape::unpack(source, gzip, into, bounds)
}

/// Unpacks an archive that lies in a file into an empty directory.
pub(super) fn unpack_file(file: &Path, kind: ArchiveKind, into: &Path, bounds: &Bounds) -> Result<(), FilesError> {
    let open = || fs::File::open(file).map_err(|e| FilesError::io("opening an archive", e));
    match kind {
        ArchiveKind::Tar => tape::unpack(open()?, false, into, bounds),
        ArchiveKind::TarGz => tape::unpack(open()?, true, into, bounds),
        ArchiveKind::Zip => zipped::unpack(open()?, open()?, into, bounds),
    }
}

/// What of an unpacked directory is the thing itself: its single directory, if it holds nothing else, or all of it.
pub(super) fn without_single_root(unpacked: &Path) -> Result<PathBuf, FilesError> {
    let fail = |e| FilesError::io("reading what was unpacked", e);
    let mut entries = fs::read_dir(unpacked).map_err(fail)?;
    let Some(first) = entries.next().transpose().map_err(fail)? else {
        return Ok(unpacked.to_owned());
    };
    let single = entries.next().is_none() && first.file_type().map_err(fail)?.is_dir();
    Ok(if single { first.path() } else { unpacked.to_owned() })
}
