//! What an engine has said, read from the file that it says it into.
//!
//! The file has no times, so each line gets one when it is first read. Which lines got which times is written down before
//! they are handed on: who has kept the lines up to some time asks for those after it, and gets each of them once, with the
//! same times as before.

mod marks;
#[cfg(test)]
mod tests;

use std::collections::VecDeque;
use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use rustix::fs::{FallocateFlags, SeekFrom, fallocate, seek};

use self::marks::{Mark, Marks};
use super::directory::LOG;
use crate::runtime::Line;

/// As much is read at once; a line that is longer is handed on in parts.
const READ: usize = 64 << 10;

/// As much of what has been read may lie on the disk before its space is given back.
const SPARE: u64 = 4 << 20;

/// The filesystem's blocks are at most this large, as far as giving space back is concerned.
const BLOCK: u64 = 64 << 10;

/// Reads an engine's output.
#[derive(Debug)]
pub(super) struct Reader {
    file: File,
    marks: Marks,
    /// What was read before and has to be read again.
    again: VecDeque<Mark>,
    since: u64,
    /// The time of the line that was read last. Clocks go back, lines do not.
    latest: u64,
    position: u64,
    /// The space before this has been given back.
    freed: u64,
    /// Whether the filesystem can give back space in the midst of a file.
    holes: bool,
}

impl Reader {
    /// Opens the output of the unit in a directory, for the lines from a time on. Whoever reads has at most so many lines
    /// that it has not kept.
    pub(super) fn open(directory: &Path, since: Option<SystemTime>, in_flight: usize) -> io::Result<Self> {
        let file = File::options().read(true).write(true).open(directory.join(LOG))?;
        let mut marks = Marks::open(directory, in_flight)?;
        let length = file.metadata()?.len();
        if marks.end().is_some_and(|end| end > length) {
            marks.clear()?;
        }
        let since = since.map_or(0, nanoseconds);
        let again = marks.kept().filter(|mark| mark.last() >= since).copied().collect();
        // Without marks nobody knows what has been read. What is still there is read.
        let position = match marks.end() {
            Some(end) => end,
            None => seek(&file, SeekFrom::Data(0)).unwrap_or(0),
        };
        let freed = marks.kept().next().map_or(0, |mark| mark.start) / BLOCK * BLOCK;
        let latest = marks.last().unwrap_or(0);
        Ok(Self { file, marks, again, since, latest, position, freed, holes: true })
    }

    /// The next lines; none, if there are none yet. With `ended`, what has no end of line is a line.
    pub(super) fn next(&mut self, ended: bool) -> io::Result<Vec<Line>> {
        while let Some(mark) = self.again.pop_front() {
            let length = usize::try_from(mark.end - mark.start).unwrap_or(READ).min(READ);
            let mut bytes = vec![0; length];
            let read = read_at(&self.file, &mut bytes, mark.start)?;
            let mut lines = lines(&bytes[..read], mark.at);
            lines.retain(|line| nanoseconds(line.at) >= self.since);
            if !lines.is_empty() {
                return Ok(lines);
            }
        }
        let length = self.file.metadata()?.len();
        if length < self.position {
            // Somebody has made it shorter; what is in it now is new.
            self.marks.clear()?;
            (self.position, self.freed) = (0, 0);
        }
        let mut bytes = vec![0; READ];
        let read = read_at(&self.file, &mut bytes, self.position)?;
        let Some(whole) = whole_lines(&bytes[..read], ended || read == READ) else { return Ok(Vec::new()) };
        let at = nanoseconds(SystemTime::now()).max(self.latest.saturating_add(1));
        let lines = lines(whole, at);
        let mark =
            Mark { at, start: self.position, end: self.position + whole.len() as u64, lines: lines.len() as u64 };
        self.marks.push(mark)?;
        (self.position, self.latest) = (mark.end, mark.last());
        if let Err(error) = self.give_back() {
            tracing::debug!(%error, "the space of what an engine has said is not given back");
        }
        Ok(lines)
    }

    /// Gives back the space of what nobody will ask for again.
    fn give_back(&mut self) -> io::Result<()> {
        let needed = self.marks.kept().next().map_or(self.position, |mark| mark.start) / BLOCK * BLOCK;
        if self.holes && needed >= self.freed + SPARE {
            let how = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
            match fallocate(&self.file, how, self.freed, needed - self.freed) {
                Ok(()) => self.freed = needed,
                Err(_) => self.holes = false,
            }
        }
        // Without holes the file is emptied at a moment when all of it has been read. What is said between the look and the
        // cut is lost, and what has been handed on can not be had again.
        if !self.holes && self.position >= 2 * SPARE && self.file.metadata()?.len() == self.position {
            self.file.set_len(0)?;
            self.marks.clear()?;
            (self.position, self.freed) = (0, 0);
        }
        Ok(())
    }
}

fn read_at(file: &File, bytes: &mut [u8], start: u64) -> io::Result<usize> {
    let mut read = 0;
    while read < bytes.len() {
        match file.read_at(&mut bytes[read..], start + read as u64) {
            Ok(0) => break,
            Ok(more) => read += more,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(read)
}

/// The bytes up to the last end of a line, or all of them.
fn whole_lines(bytes: &[u8], without_end: bool) -> Option<&[u8]> {
    let end = bytes.iter().rposition(|byte| *byte == b'\n').map(|last| last + 1);
    let end = end.or_else(|| (without_end && !bytes.is_empty()).then_some(bytes.len()))?;
    Some(&bytes[..end])
}

/// Each line is a nanosecond later than the one before, which tells them apart.
fn lines(bytes: &[u8], at: u64) -> Vec<Line> {
    let text = bytes.strip_suffix(b"\n").unwrap_or(bytes);
    let lines = text.split(|byte| *byte == b'\n').zip(at..);
    lines
        .map(|(line, at)| Line {
            at: UNIX_EPOCH + Duration::from_nanos(at),
            text: String::from_utf8_lossy(line).into_owned(),
        })
        .collect()
}

fn nanoseconds(time: SystemTime) -> u64 {
    let since = time.duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_nanos()).unwrap_or(u64::MAX)
}
