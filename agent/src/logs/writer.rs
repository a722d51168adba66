//! The files of one placement, as they are written: `<deployment>-<ordinal>.log` for what is said now, `.log.1` for what was
//! said before (in this run or in the one before it), and `.pos`, which says how far the first may be believed.
//!
//! Lines are written first and the position after them. After a crash the file is cut back to the position, and the engine's
//! lines after it are asked for again: none is lost and none is there twice.

use std::fs::{self, File};
use std::io;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use jiff::Timestamp;
use muster_cluster::ids::{PlacementEpoch, PlacementId};

use super::clean::clean;
use crate::runtime::Line;

/// Where the files of a placement are.
#[derive(Clone, Debug)]
pub(super) struct Paths {
    pub(super) active: PathBuf,
    pub(super) older: PathBuf,
    pub(super) position: PathBuf,
}

impl Paths {
    pub(super) fn of(directory: &Path, placement: PlacementId) -> Self {
        let name = format!("{}-{}", placement.deployment, placement.ordinal);
        Self {
            active: directory.join(format!("{name}.log")),
            older: directory.join(format!("{name}.log.1")),
            position: directory.join(format!("{name}.pos")),
        }
    }
}

/// How far the log has come.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Position {
    /// The life of the placement whose lines these are.
    pub(super) epoch: u64,
    /// The run: grows with each.
    pub(super) run: u64,
    /// The time of the last line in nanoseconds since 1970, as the runtime had it. 0: there was none.
    pub(super) at: u64,
    /// How many bytes of the active file belong to the log.
    pub(super) length: u64,
    /// How many bytes of this run came before the active file. Above 0, the older file is of this run.
    pub(super) base: u64,
}

impl Position {
    /// Reads it. `None`: there is none that makes sense.
    pub(super) fn read(path: &Path) -> io::Result<Option<Self>> {
        match fs::read(path) {
            Ok(text) => Ok(Self::parse(&String::from_utf8_lossy(&text))),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(error),
        }
    }

    fn parse(text: &str) -> Option<Self> {
        let mut numbers = text.strip_suffix('\n')?.split(' ').map(str::parse);
        let mut next = || numbers.next()?.ok();
        let position = Self { epoch: next()?, run: next()?, at: next()?, length: next()?, base: next()? };
        numbers.next().is_none().then_some(position)
    }

    /// Always as long, so that it is written in place, whole.
    fn text(&self) -> String {
        let Self { epoch, run, at, length, base } = self;
        format!("{epoch:020} {run:020} {at:020} {length:020} {base:020}\n")
    }
}

/// Writes the log of one placement.
#[derive(Debug)]
pub(super) struct Writer {
    paths: Paths,
    part_limit: u64,
    active: File,
    sidecar: File,
    position: Position,
    /// Lines up to this time are there already.
    skip: u64,
}

impl Writer {
    /// Begins a run: what was said before becomes the older part, and what was that goes.
    pub(super) fn begin(paths: Paths, part_limit: u64, epoch: PlacementEpoch) -> io::Result<Self> {
        let before = Position::read(&paths.position)?.map_or(0, |position| position.run);
        let run = (before.saturating_add(1)).max(nanoseconds(SystemTime::now()));
        set_aside(&paths)?;
        Self::open(paths, part_limit, Position { epoch: epoch.0, run, ..Position::default() })
    }

    /// Goes on with the run of this epoch. `None`: what is there is of another one, or nobody knows how far it may be
    /// believed.
    pub(super) fn resume(paths: Paths, part_limit: u64, epoch: PlacementEpoch) -> io::Result<Option<Self>> {
        let Some(mut position) = Position::read(&paths.position)? else { return Ok(None) };
        if position.epoch != epoch.0 {
            return Ok(None);
        }
        let length = fs::metadata(&paths.active).map_or(0, |about| about.len());
        if length == 0 && position.length > 0 {
            // It ended between setting the file aside and writing that down.
            position.base = position.base.saturating_add(position.length);
        }
        position.length = position.length.min(length);
        Self::open(paths, part_limit, position).map(Some)
    }

    fn open(paths: Paths, part_limit: u64, position: Position) -> io::Result<Self> {
        let open = |path: &Path| File::options().create(true).truncate(false).write(true).mode(0o600).open(path);
        let (active, sidecar) = (open(&paths.active)?, open(&paths.position)?);
        active.set_len(position.length)?;
        let writer = Self { paths, part_limit, active, sidecar, position, skip: position.at };
        writer.save()?;
        Ok(writer)
    }

    pub(super) fn position(&self) -> Position {
        self.position
    }

    /// From here on the runtime's lines are sent anew. Says from when on they are needed: whole seconds, because some
    /// runtimes know no others. What is known already is left out.
    pub(super) fn attach(&mut self) -> Option<SystemTime> {
        self.skip = self.position.at;
        let seconds = Duration::from_nanos(self.position.at).as_secs();
        (self.position.at > 0).then(|| UNIX_EPOCH + Duration::from_secs(seconds))
    }

    /// Adds lines that an engine has said.
    pub(super) fn append(&mut self, lines: &[Line]) -> io::Result<()> {
        let mut pending = String::new();
        for line in lines {
            let at = nanoseconds(line.at);
            if at <= self.skip {
                continue;
            }
            if let Some(text) = clean(&line.text) {
                self.add(&mut pending, line.at, &text)?;
            }
            self.position.at = self.position.at.max(at);
        }
        self.flush(&mut pending)
    }

    /// Adds a line of our own. It does not count as one of the engine's.
    pub(super) fn note(&mut self, at: SystemTime, text: &str) -> io::Result<()> {
        let Some(text) = clean(text) else { return Ok(()) };
        let mut pending = String::new();
        self.add(&mut pending, at, &text)?;
        self.flush(&mut pending)
    }

    fn add(&mut self, pending: &mut String, at: SystemTime, text: &str) -> io::Result<()> {
        let line = format!("[{}] {text}\n", shown(at));
        if self.position.length + (pending.len() + line.len()) as u64 > self.part_limit {
            self.flush(pending)?;
            self.rotate()?;
        }
        pending.push_str(&line);
        Ok(())
    }

    fn flush(&mut self, pending: &mut String) -> io::Result<()> {
        if let Err(error) = self.active.write_all_at(pending.as_bytes(), self.position.length) {
            // These lines will come again, and the space is needed.
            let _ = self.active.set_len(self.position.length);
            if let Ok(Some(position)) = Position::read(&self.paths.position) {
                self.position = position;
            }
            return Err(error);
        }
        self.position.length += pending.len() as u64;
        pending.clear();
        self.save()
    }

    fn rotate(&mut self) -> io::Result<()> {
        let base = self.position.base.saturating_add(self.position.length);
        set_aside(&self.paths)?;
        *self = Self::open(self.paths.clone(), self.part_limit, Position { length: 0, base, ..self.position })
            .map(|writer| Self { skip: self.skip, ..writer })?;
        Ok(())
    }

    fn save(&self) -> io::Result<()> {
        self.sidecar.write_all_at(self.position.text().as_bytes(), 0)
    }
}

/// What the active file holds becomes the older part. An empty one drives nothing out.
fn set_aside(paths: &Paths) -> io::Result<()> {
    match fs::metadata(&paths.active) {
        Ok(about) if about.len() > 0 => fs::rename(&paths.active, &paths.older),
        Ok(_) => Ok(()),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        Err(error) => Err(error),
    }
}

fn shown(at: SystemTime) -> String {
    let time = Timestamp::try_from(at).unwrap_or(Timestamp::UNIX_EPOCH);
    time.strftime("%Y-%m-%d %H:%M:%S").to_string()
}

fn nanoseconds(time: SystemTime) -> u64 {
    let since = time.duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_nanos()).unwrap_or(u64::MAX)
}
