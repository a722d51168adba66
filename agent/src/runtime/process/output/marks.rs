//! Which parts of the output were read when: `engine.marks`, one line for each part. It is appended to before the part is
//! handed on, and made shorter now and then. It survives the end of this process; it need not survive a loss of power, which
//! ends the engine too.

use std::collections::VecDeque;
use std::fs::{self, File};
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use super::READ;

const NAME: &str = "engine.marks";

/// More lines are kept than a reader says that it may have in flight: so many that it may hold besides.
const BESIDES: u64 = 1024;

/// The file is written anew when it has so many marks more than are kept.
const SURPLUS: usize = 1024;

/// A part of the output.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Mark {
    /// The time of its first line in nanoseconds since 1970.
    pub(super) at: u64,
    /// Where it starts and ends in the file.
    pub(super) start: u64,
    pub(super) end: u64,
    /// How many lines it has: at least one.
    pub(super) lines: u64,
}

impl Mark {
    /// The time of its last line.
    pub(super) fn last(&self) -> u64 {
        self.at.saturating_add(self.lines - 1)
    }

    fn parse(line: &str) -> Option<Self> {
        let mut numbers = line.split(' ').map(str::parse);
        let mut next = || numbers.next()?.ok();
        let mark = Self { at: next()?, start: next()?, end: next()?, lines: next()? };
        let length = mark.end.checked_sub(mark.start)?;
        let sound =
            numbers.next().is_none() && (1..=READ as u64).contains(&length) && (1..=length).contains(&mark.lines);
        // Far beyond any clock there would be no room for the lines after it.
        let sound = sound && mark.at < u64::MAX / 2;
        sound.then_some(mark)
    }

    fn line(&self) -> String {
        format!("{} {} {} {}\n", self.at, self.start, self.end, self.lines)
    }
}

/// The newest parts.
#[derive(Debug)]
pub(super) struct Marks {
    path: PathBuf,
    file: File,
    kept: VecDeque<Mark>,
    in_file: usize,
    keep: u64,
    lines: u64,
}

impl Marks {
    /// Reads the marks of the unit in a directory. What makes no sense, and all before it, is forgotten.
    pub(super) fn open(directory: &Path, in_flight: usize) -> io::Result<Self> {
        let path = directory.join(NAME);
        let text = match fs::read_to_string(&path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            other => other.unwrap_or_default(),
        };
        let mut kept = VecDeque::<Mark>::new();
        for line in text.lines() {
            match Mark::parse(line) {
                Some(mark) if kept.back().is_none_or(|last| last.last() < mark.at && last.end == mark.start) => {
                    kept.push_back(mark);
                }
                Some(mark) => kept = VecDeque::from([mark]),
                None => kept.clear(),
            }
        }
        let lines = kept.iter().map(|mark| mark.lines).sum();
        let mut marks = Self {
            file: rewrite(&path, &kept)?,
            path,
            in_file: kept.len(),
            kept,
            keep: (in_flight as u64).saturating_add(BESIDES),
            lines,
        };
        marks.trim();
        Ok(marks)
    }

    pub(super) fn kept(&self) -> impl Iterator<Item = &Mark> {
        self.kept.iter()
    }

    /// Where what has been read ends.
    pub(super) fn end(&self) -> Option<u64> {
        self.kept.back().map(|mark| mark.end)
    }

    /// The time of the last line that has been read.
    pub(super) fn last(&self) -> Option<u64> {
        self.kept.back().map(Mark::last)
    }

    /// Writes down a part that is about to be handed on.
    pub(super) fn push(&mut self, mark: Mark) -> io::Result<()> {
        self.file.write_all(mark.line().as_bytes())?;
        self.kept.push_back(mark);
        self.lines += mark.lines;
        self.in_file += 1;
        self.trim();
        if self.in_file > self.kept.len() + SURPLUS {
            match rewrite(&self.path, &self.kept) {
                Ok(file) => (self.file, self.in_file) = (file, self.kept.len()),
                // The unit has been removed, and its output is read to the end.
                Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }

    /// Forgets all of them: the file of the output has begun anew.
    pub(super) fn clear(&mut self) -> io::Result<()> {
        self.kept.clear();
        (self.in_file, self.lines) = (0, 0);
        self.file.set_len(0)
    }

    fn trim(&mut self) {
        while let Some(first) = self.kept.front()
            && self.kept.len() > 1
            && self.lines - first.lines >= self.keep
        {
            self.lines -= first.lines;
            self.kept.pop_front();
        }
    }
}

fn rewrite(path: &Path, marks: &VecDeque<Mark>) -> io::Result<File> {
    let new = path.with_extension("marks.new");
    let text: String = marks.iter().map(Mark::line).collect();
    let mut file = File::options().create(true).truncate(true).write(true).mode(0o600).open(&new)?;
    file.write_all(text.as_bytes())?;
    fs::rename(&new, path)?;
    File::options().append(true).open(path)
}
