//! A journal in front of a database: a barrier costs one write and one `fdatasync`.
//!
//! sled's own barrier goes through a pool of threads that all wake for it, writes twice, and lets the file grow, which makes
//! the file system write as well. For the log, which needs a barrier for each batch, that is most of the time. So a batch is
//! written into a file of fixed length and kept in memory; the database gets it later, many at a time.
//!
//! ```text
//! write --> newer (memory) + frame        sync --> frame into one of two files, fdatasync
//!             | the file is full: the other one begins, with the next epoch
//!             v
//!           older (memory)  --> slice by slice into the database once the other file is nearly full (tidy); when all of it
//!                               is durable there, the database notes the epoch, and the file may be filled again
//! ```
//!
//! The database gets things late so that it gets few of them: what is overwritten or removed meanwhile it need not know. A
//! log that is purged as fast as it grows never reaches it.
//!
//! Opening reads the epochs that the database has not noted back into memory, and writes nothing but the last frame, as it
//! is. What the database holds of them already does no harm: they are carried out again from their beginning, in order.

mod file;
#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, BTreeSet};
use std::fs::{self, File};
use std::io::Write;
use std::ops::{Bound, ControlFlow};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError, RwLock};

use self::file::{Epoch, FRAME_HEAD, FRAMES, Found, Unreadable, room};
use super::error::StoreError;
use super::files::{exists, sibling, sync_directory};
use super::store::{Batch, Store, Tree, Visitor};

/// How many keys go to the database at a time.
const SLICE: usize = 512;

/// What stands for the length of a value that is removed.
const REMOVED: u32 = u32::MAX;

/// Where the database notes up to which epoch it holds everything.
#[derive(Clone, Debug)]
pub(super) struct Note {
    pub(super) tree: Tree,
    pub(super) key: &'static [u8],
    /// What is written with the first note.
    pub(super) first: Batch,
}

/// A database with a journal.
pub(super) struct Journaled {
    inner: Arc<dyn Store>,
    directory: PathBuf,
    trees: Vec<Tree>,
    note: Note,
    journal: Mutex<Journal>,
    pending: Mutex<Pending>,
    /// Held for reading by a scan, for writing while keys move from memory to the database: a scan must not miss them.
    moving: RwLock<()>,
    failed: OnceLock<Arc<StoreError>>,
}

/// What can be read and is not in the database, or not for sure.
#[derive(Debug, Default)]
struct Pending {
    newer: Overlay,
    older: Overlay,
}

#[derive(Debug, Default)]
struct Overlay(BTreeMap<Tree, BTreeMap<Vec<u8>, Option<Vec<u8>>>>);

/// The files, and what goes into them next.
#[derive(Debug)]
struct Journal {
    /// None until the first sync of a new database.
    files: Option<[File; 2]>,
    epoch: Epoch,
    /// Where the next frame goes; the end of the file when a new epoch must begin first.
    at: usize,
    sequence: u32,
    /// The next frame, with room for its head.
    frame: Vec<u8>,
    /// The epoch of what is older, if any of it is not noted in the database yet.
    older: Option<u64>,
    /// The length of a file.
    length: usize,
}

impl Overlay {
    fn set(&mut self, tree: Tree, key: Vec<u8>, value: Option<Vec<u8>>) {
        self.0.entry(tree).or_default().insert(key, value);
    }

    fn get(&self, tree: Tree, key: &[u8]) -> Option<&Option<Vec<u8>>> {
        self.0.get(&tree)?.get(key)
    }

    /// The first key within these bounds.
    fn first(&self, tree: Tree, from: Bound<&[u8]>, below: Bound<&[u8]>) -> Option<&Vec<u8>> {
        self.0.get(&tree)?.range::<[u8], _>((from, below)).next().map(|(key, _)| key)
    }

    /// A part of it, of one tree: how many keys, and of those what is not covered.
    fn slice(&self, limit: usize, covered: impl Fn(Tree, &[u8]) -> bool) -> Option<(Tree, usize, Batch)> {
        let (tree, keys) = self.0.iter().next()?;
        let (mut batch, mut count) = (Batch::default(), 0);
        for (key, value) in keys {
            if batch.writes.len() >= limit {
                break;
            }
            count += 1;
            if covered(*tree, key) {
                continue;
            }
            match value {
                Some(value) => batch.put(*tree, key.as_slice(), value.as_slice()),
                None => batch.remove(*tree, key.as_slice()),
            }
        }
        Some((*tree, count, batch))
    }

    fn drop_first(&mut self, tree: Tree, count: usize) {
        if let Some(keys) = self.0.get_mut(&tree) {
            for _ in 0..count {
                keys.pop_first();
            }
            if keys.is_empty() {
                self.0.remove(&tree);
            }
        }
    }

    fn len(&self) -> usize {
        self.0.values().map(BTreeMap::len).sum()
    }

    fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

impl Pending {
    fn get(&self, tree: Tree, key: &[u8]) -> Option<&Option<Vec<u8>>> {
        self.newer.get(tree, key).or_else(|| self.older.get(tree, key))
    }

    /// The first key within these bounds, and what became of it.
    fn first(&self, tree: Tree, from: Bound<&[u8]>, below: Bound<&[u8]>) -> Option<(Vec<u8>, Option<Vec<u8>>)> {
        let (newer, older) = (self.newer.first(tree, from, below), self.older.first(tree, from, below));
        let key = match (newer, older) {
            (Some(newer), Some(older)) => newer.min(older),
            (newer, older) => newer.or(older)?,
        };
        Some((key.clone(), self.get(tree, key).cloned().flatten()))
    }
}

impl Journaled {
    /// Puts a journal, which lies in the database's directory, in front of the database. Writes nothing. Files that are made
    /// get this length, in bytes; those that are there keep theirs.
    ///
    /// # Errors
    /// When the journal can not be read, or does not fit the database.
    pub(super) fn open(
        directory: &Path,
        inner: Arc<dyn Store>,
        trees: &[Tree],
        note: Note,
        length: usize,
    ) -> Result<Self, StoreError> {
        let noted = match inner.get(note.tree, note.key)? {
            Some(noted) => Some(u64::from_be_bytes(noted.try_into().map_err(|_| StoreError::Damaged {
                what: "the note of the journal".to_owned(),
                why: "its length is wrong".to_owned(),
            })?)),
            None => None,
        };
        let length = file::allowed(length);
        let mut pending = Pending::default();
        let mut journal = Journal {
            files: None,
            epoch: Epoch { number: noted.unwrap_or(0), salt: 0 },
            at: length,
            sequence: 0,
            frame: vec![0; FRAME_HEAD],
            older: None,
            length,
        };
        match noted {
            None => unused(directory)?,
            Some(noted) => {
                let (files, length, mut epochs) = read_files(directory, noted)?;
                (journal.length, journal.at) = (length, length);
                if let Some(last) = epochs.pop() {
                    journal.epoch = last.epoch;
                    journal.at = last.end;
                    journal.sequence = last.frames.len() as u32;
                    replay(&last, trees, &mut pending.newer).map_err(|why| damaged(directory, why))?;
                }
                if let Some(older) = epochs.pop() {
                    replay(&older, trees, &mut pending.older).map_err(|why| damaged(directory, why))?;
                    journal.older = Some(older.epoch.number);
                }
                journal.files = Some(files);
            }
        }
        Ok(Self {
            inner,
            directory: directory.to_owned(),
            trees: trees.to_vec(),
            note,
            journal: Mutex::new(journal),
            pending: Mutex::new(pending),
            moving: RwLock::new(()),
            failed: OnceLock::new(),
        })
    }

    fn guarded<T>(&self, action: impl FnOnce() -> Result<T, StoreError>) -> Result<T, StoreError> {
        if let Some(earlier) = self.failed.get() {
            return Err(StoreError::Failed(Arc::clone(earlier)));
        }
        let outcome = action();
        if let Err(error) = &outcome
            && error.is_fatal()
        {
            let _ = self.failed.set(Arc::new(error.clone()));
        }
        outcome
    }

    fn pending(&self) -> MutexGuard<'_, Pending> {
        self.pending.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn journal(&self) -> MutexGuard<'_, Journal> {
        self.journal.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Makes both files, whole, and then has the database note that there are some.
    fn make_files(&self, length: usize) -> Result<[File; 2], StoreError> {
        let files = [make_file(&path(&self.directory, 0), length)?, make_file(&path(&self.directory, 1), length)?];
        sync_directory(&self.directory)?;
        self.note(0, self.note.first.clone())?;
        Ok(files)
    }

    /// Has the database note that it holds everything up to this epoch; durable on return.
    fn note(&self, epoch: u64, mut batch: Batch) -> Result<(), StoreError> {
        batch.put(self.note.tree, self.note.key, epoch.to_be_bytes());
        self.inner.write(batch)?;
        self.inner.sync()
    }

    /// Begins the next epoch in the other file, which nothing that matters is in once the older epoch is in the database.
    fn turn(&self, journal: &mut Journal) -> Result<(), StoreError> {
        if journal.files.is_none() {
            journal.files = Some(self.make_files(journal.length)?);
        }
        while journal.older.is_some() {
            self.drain(journal, true)?;
        }
        {
            let mut pending = self.pending();
            // What belongs to the frame that did not fit any more is among it, and is written again with the new epoch.
            pending.older = std::mem::take(&mut pending.newer);
            if !pending.older.is_empty() {
                journal.older = Some(journal.epoch.number);
            }
        }
        let epoch = Epoch { number: journal.epoch.number + 1, salt: rand::random() };
        let file = journal.files.as_ref().map(|files| &files[epoch.file()]).ok_or(StoreError::Closed)?;
        epoch.begin(file, journal.sequence).map_err(|e| self.io("beginning", epoch, e))?;
        (journal.epoch, journal.at, journal.sequence) = (epoch, FRAMES, 0);
        Ok(())
    }

    /// Moves a part of what is older to the database.
    fn drain(&self, journal: &mut Journal, wait_for_scans: bool) -> Result<(), StoreError> {
        let Some(epoch) = journal.older else { return Ok(()) };
        if journal.at == FRAMES {
            // What is older may hold what the first frame of this epoch will: it is not durable yet.
            return Ok(());
        }
        let moving = match wait_for_scans {
            true => Some(self.moving.write().unwrap_or_else(PoisonError::into_inner)),
            false => self.moving.try_write().ok(),
        };
        if moving.is_none() {
            return Ok(());
        }
        let gathering = self.gathering(journal)?;
        let slice = {
            let pending = self.pending();
            // What is newer and durable comes to the database with its own epoch.
            let covered = |tree, key: &[u8]| {
                let newer = pending.newer.get(tree, key).is_some();
                newer && !gathering.get(&tree).is_some_and(|keys| keys.contains(key))
            };
            pending.older.slice(SLICE, covered)
        };
        if let Some((tree, count, batch)) = slice {
            self.inner.write(batch)?;
            self.pending().older.drop_first(tree, count);
        }
        drop(moving);
        if self.pending().older.is_empty() {
            // In two steps: the note must not be durable before what it speaks of.
            self.inner.sync()?;
            self.note(epoch, Batch::default())?;
            journal.older = None;
        }
        Ok(())
    }

    /// The keys of the next frame, which is not durable yet.
    fn gathering(&self, journal: &Journal) -> Result<BTreeMap<Tree, BTreeSet<Vec<u8>>>, StoreError> {
        let mut keys: BTreeMap<Tree, BTreeSet<Vec<u8>>> = BTreeMap::new();
        for_each_write(&journal.frame[FRAME_HEAD..], &self.trees, |tree, key, _| {
            keys.entry(tree).or_default().insert(key);
        })
        .map_err(|why| damaged(&self.directory, why))?;
        Ok(keys)
    }

    fn io(&self, doing: &str, epoch: Epoch, error: std::io::Error) -> StoreError {
        StoreError::io(format!("{doing} {}", path(&self.directory, epoch.file()).display()), error)
    }
}

impl Store for Journaled {
    fn write(&self, batch: Batch) -> Result<(), StoreError> {
        batch.check()?;
        self.guarded(|| {
            let mut journal = self.journal();
            let before = journal.frame.len();
            for (tree, key, value) in &batch.writes {
                let Some(number) = self.trees.iter().position(|known| known == tree) else {
                    journal.frame.truncate(before);
                    let why = format!("there is no tree {}", tree.0);
                    return Err(StoreError::OutOfOrder { what: "a write", why });
                };
                encode(&mut journal.frame, number, key, value.as_deref());
            }
            let len = journal.frame.len();
            if FRAMES + room(len) > journal.length {
                journal.frame.truncate(before);
                return Err(StoreError::TooLarge { what: "a batch".to_owned(), len, max: journal.length - FRAMES });
            }
            let mut pending = self.pending();
            for (tree, key, value) in batch.writes {
                pending.newer.set(tree, key, value);
            }
            Ok(())
        })
    }

    fn sync(&self) -> Result<(), StoreError> {
        self.guarded(|| {
            let mut journal = self.journal();
            let journal = &mut *journal;
            if journal.frame.len() > FRAME_HEAD {
                if journal.at + room(journal.frame.len()) > journal.length {
                    self.turn(journal)?;
                }
                let (epoch, at) = (journal.epoch, journal.at);
                epoch.complete(journal.sequence, &mut journal.frame);
                let file = journal.files.as_ref().map(|files| &files[epoch.file()]).ok_or(StoreError::Closed)?;
                file.write_all_at(&journal.frame, at as u64).map_err(|e| self.io("writing", epoch, e))?;
                file.sync_data().map_err(|e| self.io("syncing", epoch, e))?;
                journal.at += journal.frame.len();
                journal.sequence += 1;
                journal.frame.truncate(FRAME_HEAD);
            }
            Ok(())
        })
    }

    fn tidy(&self) -> Result<(), StoreError> {
        self.guarded(|| {
            let mut journal = self.journal();
            let eighth = journal.length / 8;
            if journal.at < 6 * eighth {
                return Ok(());
            }
            self.drain(&mut journal, false)?;
            // What is left when the file is full is in the way of an append.
            let mut left = usize::MAX;
            while journal.at >= 7 * eighth && journal.older.is_some() && self.pending().older.len() < left {
                left = self.pending().older.len();
                self.drain(&mut journal, false)?;
            }
            Ok(())
        })
    }

    fn get(&self, tree: Tree, key: &[u8]) -> Result<Option<Vec<u8>>, StoreError> {
        self.guarded(|| {
            // First in memory: what moves is in the database before it leaves the memory.
            if let Some(value) = self.pending().get(tree, key) {
                return Ok(value.clone());
            }
            self.inner.get(tree, key)
        })
    }

    fn scan(&self, tree: Tree, from: &[u8], visit: &mut Visitor<'_>) -> Result<(), StoreError> {
        self.guarded(|| {
            let _staying = self.moving.read().unwrap_or_else(PoisonError::into_inner);
            let mut after = Bound::Included(from.to_vec());
            let mut broken = false;
            self.inner.scan(tree, from, &mut |key, value| {
                if self.visit_pending(tree, &mut after, Bound::Excluded(key), visit)?.is_break() {
                    broken = true;
                    return Ok(ControlFlow::Break(()));
                }
                let known = self.pending().get(tree, key).cloned();
                after = Bound::Excluded(key.to_vec());
                let visited = match &known {
                    Some(Some(newer)) => visit(key, newer)?,
                    Some(None) => ControlFlow::Continue(()),
                    None => visit(key, value)?,
                };
                broken = visited.is_break();
                Ok(visited)
            })?;
            if !broken {
                let _ = self.visit_pending(tree, &mut after, Bound::Unbounded, visit)?;
            }
            Ok(())
        })
    }
}

impl Journaled {
    /// Visits what is only in memory, within these bounds. The visitor may get other keys, so nothing that a get needs is held
    /// meanwhile.
    fn visit_pending(
        &self,
        tree: Tree,
        after: &mut Bound<Vec<u8>>,
        below: Bound<&[u8]>,
        visit: &mut Visitor<'_>,
    ) -> Result<ControlFlow<()>, StoreError> {
        loop {
            if let (Bound::Included(after) | Bound::Excluded(after), Bound::Excluded(below)) = (&*after, below)
                && after.as_slice() >= below
            {
                return Ok(ControlFlow::Continue(()));
            }
            let next = self.pending().first(tree, after.as_ref().map(Vec::as_slice), below);
            let Some((key, value)) = next else { return Ok(ControlFlow::Continue(())) };
            if let Some(value) = value
                && visit(&key, &value)?.is_break()
            {
                return Ok(ControlFlow::Break(()));
            }
            *after = Bound::Excluded(key);
        }
    }
}

/// Whether there is no journal, or one that was made and not used before the database noted that there is one.
fn unused(directory: &Path) -> Result<(), StoreError> {
    for number in 0..2 {
        let path = path(directory, number);
        if exists(&path)? && file::read(&open_file(&path)?, 0).map_err(|why| unreadable(&path, why))?.is_some() {
            return Err(damaged(directory, "the database knows nothing of it".to_owned()));
        }
    }
    Ok(())
}

/// The files, and the epochs in them that the database has not noted, at most two and in order.
fn read_files(directory: &Path, noted: u64) -> Result<([File; 2], usize, Vec<Found>), StoreError> {
    let files = [open_file(&path(directory, 0))?, open_file(&path(directory, 1))?];
    let (mut epochs, mut lengths) = (Vec::new(), Vec::new());
    for (number, file) in files.iter().enumerate() {
        let path = path(directory, number);
        lengths.push(file::length(file).map_err(|why| unreadable(&path, why))?);
        // What was read need not be durable yet, and from now on is relied on: a process that died between a write and its
        // barrier leaves a frame that a loss of power may still take away.
        file.sync_data().map_err(|e| StoreError::io(format!("syncing {} before reading it", path.display()), e))?;
        epochs.extend(file::read(file, noted).map_err(|why| unreadable(&path, why))?);
    }
    let length = lengths.iter().copied().min().unwrap_or_default();
    if lengths.iter().any(|other| *other != length) {
        return Err(damaged(directory, format!("its files have {lengths:?} bytes")));
    }
    epochs.sort_by_key(|found| found.epoch.number);
    if epochs.iter().zip(noted + 1..).any(|(found, expected)| found.epoch.number != expected) {
        return Err(damaged(directory, "the database is older than its journal".to_owned()));
    }
    // An epoch is noted only once the next one has a frame.
    if noted > 0 && epochs.first().is_none_or(|next| next.frames.is_empty()) {
        return Err(damaged(directory, "the database is newer than its journal".to_owned()));
    }
    if let [older, newer] = epochs.as_slice()
        && older.frames.len() as u64 != newer.before
    {
        let why = format!("epoch {} has {} frames of {}", older.epoch.number, older.frames.len(), newer.before);
        return Err(damaged(directory, why));
    }
    if let Some(last) = epochs.last() {
        let number = last.epoch.file();
        let repeated = last.repeat_last(&files[number]).and_then(|()| files[number].sync_data());
        repeated.map_err(|e| StoreError::io(format!("writing {} again", path(directory, number).display()), e))?;
    }
    Ok((files, length, epochs))
}

fn encode(frame: &mut Vec<u8>, tree: usize, key: &[u8], value: Option<&[u8]>) {
    // Batch::check keeps keys and values, and the database its trees, far below what fits.
    frame.push(tree as u8);
    frame.extend_from_slice(&(key.len() as u16).to_le_bytes());
    frame.extend_from_slice(&value.map_or(REMOVED, |value| value.len() as u32).to_le_bytes());
    frame.extend_from_slice(key);
    frame.extend_from_slice(value.unwrap_or_default());
}

fn replay(found: &Found, trees: &[Tree], overlay: &mut Overlay) -> Result<(), String> {
    for frame in &found.frames {
        for_each_write(frame, trees, |tree, key, value| overlay.set(tree, key, value))?;
    }
    Ok(())
}

fn for_each_write(
    mut rest: &[u8],
    trees: &[Tree],
    mut visit: impl FnMut(Tree, Vec<u8>, Option<Vec<u8>>),
) -> Result<(), String> {
    while !rest.is_empty() {
        let (tree, key, value) = decode(&mut rest).ok_or("a frame ends within a write")?;
        let tree = trees.get(tree).ok_or_else(|| format!("it names tree {tree}"))?;
        visit(*tree, key, value);
    }
    Ok(())
}

fn decode(rest: &mut &[u8]) -> Option<(usize, Vec<u8>, Option<Vec<u8>>)> {
    let (tree, tail) = rest.split_first()?;
    let (key_length, tail) = tail.split_first_chunk()?;
    let (value_length, tail) = tail.split_first_chunk()?;
    let (key, tail) = tail.split_at_checked(usize::from(u16::from_le_bytes(*key_length)))?;
    let value_length = u32::from_le_bytes(*value_length);
    let removed = value_length == REMOVED;
    let (value, tail) = tail.split_at_checked(if removed { 0 } else { value_length as usize })?;
    *rest = tail;
    Some((usize::from(*tree), key.to_vec(), (!removed).then(|| value.to_vec())))
}

fn path(directory: &Path, number: usize) -> PathBuf {
    directory.join(format!("journal-{number}"))
}

fn damaged(path: &Path, why: String) -> StoreError {
    StoreError::Damaged { what: format!("the journal in {}", path.display()), why }
}

fn unreadable(path: &Path, why: Unreadable) -> StoreError {
    match why {
        Unreadable::Io(error) => StoreError::io(format!("reading {}", path.display()), error),
        Unreadable::Damaged(why) => StoreError::Damaged { what: path.display().to_string(), why },
    }
}

fn open_file(path: &Path) -> Result<File, StoreError> {
    File::options().read(true).write(true).open(path).map_err(|error| match error.kind() {
        std::io::ErrorKind::NotFound => {
            StoreError::Damaged { what: path.display().to_string(), why: "it is missing".to_owned() }
        }
        _ => StoreError::io(format!("opening {}", path.display()), error),
    })
}

/// A file in zeros, of full length, durable but for its name.
fn make_file(path: &Path, length: usize) -> Result<File, StoreError> {
    let doing = |e| StoreError::io(format!("making {}", path.display()), e);
    let temporary = sibling(path, "new");
    let mut file =
        File::options().read(true).write(true).create(true).truncate(true).open(&temporary).map_err(doing)?;
    let zeros = vec![0; 64 * 1024];
    for at in (0..length).step_by(zeros.len()) {
        file.write_all(&zeros[..zeros.len().min(length - at)]).map_err(doing)?;
    }
    file.sync_all().map_err(doing)?;
    fs::rename(&temporary, path).map_err(doing)?;
    Ok(file)
}
