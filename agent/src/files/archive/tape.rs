//! Tar archives, plain and compressed, unpacked as they come.

use std::cell::Cell;
use std::io::{self, BufRead, BufReader, Read};
use std::path::Path;
use std::rc::Rc;

use flate2::bufread::MultiGzDecoder;
use tar::EntryType;

use super::members::{Members, refused, too_large, unreadable};
use super::{ArchiveLimits, Bounds};
use crate::files::error::FilesError;

/// The most bytes of headers before a member. Long names stand there, and they are held in memory.
const LONGEST_HEADERS: u64 = 1 << 20;

/// Why reading was ended from within a reader.
#[derive(Clone, Copy, Debug, thiserror::Error)]
pub(super) enum Stop {
    /// The stream that the archive comes in was not complete.
    #[error("it broke off")]
    BrokenOff,
    /// More came out than may.
    #[error("too much")]
    TooMuch(u64),
    /// The headers of one member are too long.
    #[error("its headers are too long")]
    Headers,
}

impl From<&Stop> for FilesError {
    fn from(stop: &Stop) -> Self {
        match stop {
            Stop::BrokenOff => Self::BrokenOff,
            Stop::TooMuch(most) => too_large(*most),
            Stop::Headers => {
                Self::Invalid("the archive can not be read: the headers of a member are too long".to_owned())
            }
        }
    }
}

fn stop(why: Stop) -> io::Error {
    io::Error::other(why)
}

/// Counts what comes in, and tells a stream that broke off from an archive that is too short.
struct Packed<R> {
    source: R,
    count: Rc<Cell<u64>>,
}

impl<R: Read> Read for Packed<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        match self.source.read(buffer) {
            Ok(length) => {
                self.count.set(self.count.get() + length as u64);
                Ok(length)
            }
            Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => Err(stop(Stop::BrokenOff)),
            Err(error) => Err(error),
        }
    }
}

/// What has been unpacked, as long as it is in proportion, and as long as headers are short.
struct Unpacked<R> {
    source: R,
    packed: Rc<Cell<u64>>,
    limits: ArchiveLimits,
    count: u64,
    /// How much may be read before the next member's content.
    allowed: Rc<Cell<u64>>,
}

impl<R: Read> Read for Unpacked<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let allowed = self.allowed.get();
        if allowed == 0 {
            return Err(stop(Stop::Headers));
        }
        let most = usize::try_from(allowed).unwrap_or(usize::MAX).min(buffer.len());
        let length = self.source.read(&mut buffer[..most])?;
        self.allowed.set(allowed.saturating_sub(length as u64));
        self.count = self.count.saturating_add(length as u64);
        // Headers and padding come on top of the content: half a kilobyte for each member, and the end.
        let ceiling = self.limits.most(self.packed.get()).saturating_mul(2);
        if self.count > ceiling {
            return Err(stop(Stop::TooMuch(ceiling)));
        }
        Ok(length)
    }
}

pub(super) fn unpack(source: impl Read, gzip: bool, into: &Path, bounds: &Bounds) -> Result<(), FilesError> {
    let packed = Rc::new(Cell::new(0));
    let source = BufReader::with_capacity(64 << 10, Packed { source, count: Rc::clone(&packed) });
    if gzip {
        members(MultiGzDecoder::new(source), &packed, into, bounds)
    } else {
        members(source, &packed, into, bounds)
    }
}

fn members(source: impl Read, packed: &Rc<Cell<u64>>, into: &Path, bounds: &Bounds) -> Result<(), FilesError> {
    let allowed = Rc::new(Cell::new(LONGEST_HEADERS));
    let reader =
        Unpacked { source, packed: Rc::clone(packed), limits: bounds.limits, count: 0, allowed: Rc::clone(&allowed) };
    let mut archive = tar::Archive::new(reader);
    let mut members = Members::new(into, bounds, packed);
    let mut entries = archive.entries().map_err(|e| unreadable(e, ""))?;
    loop {
        allowed.set(LONGEST_HEADERS);
        let Some(entry) = entries.next() else { break };
        let mut entry = entry.map_err(|e| unreadable(e, ""))?;
        allowed.set(u64::MAX);
        let name = String::from_utf8_lossy(&entry.path_bytes()).into_owned();
        if name.contains(char::REPLACEMENT_CHARACTER) {
            return Err(refused(&name, "has a name that is not UTF-8"));
        }
        let kind = entry.header().entry_type();
        match kind {
            EntryType::Directory => members.directory(&name)?,
            EntryType::Regular | EntryType::Continuous | EntryType::GNUSparse => {
                let claimed = entry.size();
                members.file(&name, claimed, &mut entry)?;
            }
            // A comment on the whole archive, as git writes it.
            EntryType::XGlobalHeader => {
                io::copy(&mut entry.take(LONGEST_HEADERS), &mut io::sink()).map_err(|e| unreadable(e, &name))?;
            }
            EntryType::Symlink | EntryType::Link => return Err(refused(&name, "is a link, and links are refused")),
            EntryType::Char | EntryType::Block | EntryType::Fifo => {
                return Err(refused(&name, "is a device, and devices are refused"));
            }
            _ => return Err(refused(&name, "is neither a file nor a directory")),
        }
    }
    // Blocks may follow the end; a broken checksum of the compression shows only there.
    allowed.set(u64::MAX);
    drain(archive.into_inner(), bounds)?;
    members.finish()
}

fn drain(source: impl Read, bounds: &Bounds) -> Result<(), FilesError> {
    let mut source = BufReader::with_capacity(64 << 10, source);
    loop {
        if bounds.cancel.is_cancelled() {
            return Err(FilesError::Cancelled);
        }
        let length = source.fill_buf().map_err(|e| unreadable(e, ""))?.len();
        if length == 0 {
            return Ok(());
        }
        source.consume(length);
    }
}
