//! A log as it is at one moment, for those who read it.

use std::fs::File;
use std::io::{self, Read};
use std::os::unix::fs::FileExt;
use std::path::Path;

use super::writer::{Paths, Position};

/// Read backwards in steps of this size.
const STEP: u64 = 64 << 10;

/// As much is read at once at most, and at least; the latter holds several lines of any length.
const CHUNK_MAX: u64 = 1 << 20;
const CHUNK_MIN: u64 = 32 << 10;

/// A place in a run of a log. It stays good while lines are added; in another run it is the beginning of that.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Cursor {
    /// Which run.
    pub run: u64,
    /// How many bytes of it came before.
    pub offset: u64,
}

/// A part of a log.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Chunk {
    /// Where it starts: behind the cursor that was asked for, if what stood there is gone.
    pub start: Cursor,
    /// Where to go on.
    pub next: Cursor,
    /// Whole lines, each with its end. Empty: there is nothing more yet.
    pub text: Vec<u8>,
}

/// A log as it was when the download began.
#[derive(Debug)]
pub struct Download {
    /// How many bytes it has.
    pub length: u64,
    parts: Vec<(File, u64, u64)>,
}

impl Read for Download {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        while let Some((file, at, end)) = self.parts.first_mut() {
            let wanted = buffer.len().min(usize::try_from(*end - *at).unwrap_or(usize::MAX));
            let read = file.read_at(&mut buffer[..wanted], *at)?;
            *at += read as u64;
            if read > 0 || buffer.is_empty() {
                return Ok(read);
            }
            self.parts.remove(0);
        }
        Ok(0)
    }
}

/// The files of a run: the older part of it, if there is one, and the newer.
#[derive(Debug)]
pub(super) struct Snapshot {
    position: Position,
    parts: Vec<(File, u64)>,
}

impl Snapshot {
    /// Opens the files. Nobody may set them aside meanwhile.
    pub(super) fn open(paths: &Paths, position: Option<Position>) -> io::Result<Option<Self>> {
        let Some(active) = open(&paths.active)? else { return Ok(None) };
        let length = active.metadata()?.len();
        let mut position = match position {
            Some(position) => position,
            None => Position::read(&paths.position)?.unwrap_or(Position { length, ..Position::default() }),
        };
        position.length = position.length.min(length);
        let mut parts = Vec::new();
        if position.base > 0
            && let Some(older) = open(&paths.older)?
        {
            let length = older.metadata()?.len().min(position.base);
            parts.push((older, length));
        }
        parts.push((active, position.length));
        Ok(Some(Self { position, parts }))
    }

    /// The last lines.
    pub(super) fn tail(&self, count: usize) -> io::Result<Vec<String>> {
        let mut blocks = Vec::new();
        let mut ends = 0;
        'parts: for (file, length) in self.parts.iter().rev() {
            let mut end = *length;
            while end > 0 {
                // The line before the first one must be seen to end.
                if ends > count {
                    break 'parts;
                }
                let start = end.saturating_sub(STEP);
                let block = read(file, start, end)?;
                ends += block.iter().filter(|byte| **byte == b'\n').count();
                blocks.push(block);
                end = start;
            }
        }
        blocks.reverse();
        let text = blocks.concat();
        let text = text.strip_suffix(b"\n").unwrap_or(&text);
        if text.is_empty() {
            return Ok(Vec::new());
        }
        let mut lines: Vec<String> =
            text.rsplit(|byte| *byte == b'\n').take(count).map(|line| String::from_utf8_lossy(line).into()).collect();
        lines.reverse();
        Ok(lines)
    }

    /// What comes after a cursor.
    pub(super) fn chunk(&self, after: Option<Cursor>, limit: u64) -> io::Result<Chunk> {
        let run = self.position.run;
        let end = self.position.base.saturating_add(self.position.length);
        let begin = end.saturating_sub(self.parts.iter().map(|(_, length)| length).sum());
        let offset = after.filter(|cursor| cursor.run == run).map_or(begin, |cursor| cursor.offset.max(begin));
        let start = Cursor { run, offset };
        let mut from = begin;
        for (file, length) in &self.parts {
            if offset < from + length {
                let stop = (offset + limit.clamp(CHUNK_MIN, CHUNK_MAX)).min(from + length);
                let mut text = read(file, offset - from, stop - from)?;
                let whole = text.iter().rposition(|byte| *byte == b'\n').map_or(text.len(), |last| last + 1);
                text.truncate(whole);
                return Ok(Chunk { start, next: Cursor { run, offset: offset + text.len() as u64 }, text });
            }
            from += length;
        }
        Ok(Chunk { start, next: start, text: Vec::new() })
    }

    pub(super) fn download(self) -> Download {
        let length = self.parts.iter().map(|(_, length)| length).sum();
        Download { length, parts: self.parts.into_iter().map(|(file, length)| (file, 0, length)).collect() }
    }
}

fn open(path: &Path) -> io::Result<Option<File>> {
    match File::open(path) {
        Ok(file) => Ok(Some(file)),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error),
    }
}

fn read(file: &File, start: u64, end: u64) -> io::Result<Vec<u8>> {
    let mut bytes = vec![0; usize::try_from(end - start).unwrap_or(0)];
    file.read_exact_at(&mut bytes, start)?;
    Ok(bytes)
}
