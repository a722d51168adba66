//! The floor file: a lower bound of what the log on this disk must hold.
//!
//! It lies beside the log's database and is written after the sync that covers what it names (INV-3). A log that opens
//! below it has lost what this node promised to others, and must not vote. Two slots are written in turn, each with its
//! own checksum, and each is durable before the other is touched: a torn write leaves the one before.

use std::fs::{self, File};
use std::io::{Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};

use super::error::{OpenError, StoreError, Unusable};
use super::files::{parent, sibling, sync_directory};
use super::record::{LogId, Vote};
use crate::ids::{NodeId, StoreId};

/// A slot fills a sector of its own, so that a torn write of one never touches the other.
const SLOT_BYTES: usize = 4096;
const BODY_BYTES: usize = 80;
const MAGIC: &[u8; 8] = b"MSTRFLR1";

/// What is known to be durable on this disk: at least this.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Floor {
    /// The index of the last durable entry; a snapshot or a purge point counts as one.
    pub last_index: Option<u64>,
    /// The last durable vote.
    pub vote: Option<Vote>,
}

impl Floor {
    /// Whether a log with this end and this vote holds everything that the floor names.
    #[must_use]
    pub fn is_held_by(&self, last: Option<LogId>, vote: Option<Vote>) -> bool {
        last.map(|id| id.index) >= self.last_index && vote >= self.vote
    }
}

impl std::fmt::Display for Floor {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self.last_index {
            Some(index) => write!(f, "entries up to {index}")?,
            None => write!(f, "no entry")?,
        }
        match self.vote {
            Some(vote) => write!(f, " and the vote {vote}"),
            None => write!(f, " and no vote"),
        }
    }
}

/// The open floor file of one store.
#[derive(Debug)]
pub(super) struct FloorFile {
    file: File,
    path: PathBuf,
    store: StoreId,
    sequence: u64,
    current: Floor,
}

/// What a floor file says, before anything is known about the log.
pub(super) struct FloorFound {
    pub(super) store: StoreId,
    pub(super) floor: Floor,
    sequence: u64,
}

impl FloorFile {
    /// What lies at `path`; `None` if there is no file.
    pub(super) fn read(path: &Path) -> Result<Option<FloorFound>, OpenError> {
        let bytes = match fs::read(path) {
            Ok(bytes) => bytes,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(StoreError::io(format!("reading {}", path.display()), error).into()),
        };
        let slots = [slot(&bytes, 0), slot(&bytes, 1)];
        match slots.into_iter().flatten().max_by_key(|found| found.sequence) {
            Some(found) => Ok(Some(found)),
            None => Err(OpenError::Unusable {
                path: parent(path).to_owned(),
                why: Unusable::FloorDamaged(format!("none of its slots is readable ({} bytes)", bytes.len())),
            }),
        }
    }

    /// Makes the file for a new store, durable on return.
    pub(super) fn create(path: &Path, store: StoreId) -> Result<Self, StoreError> {
        let unfinished = sibling(path, "new");
        let doing = |e| StoreError::io(format!("creating {}", path.display()), e);
        let mut file = File::create(&unfinished).map_err(doing)?;
        let mut bytes = vec![0; SLOT_BYTES * 2];
        bytes[..BODY_BYTES].copy_from_slice(&encode(store, 0, &Floor::default()));
        file.write_all(&bytes).and_then(|()| file.sync_all()).map_err(doing)?;
        fs::rename(&unfinished, path).map_err(doing)?;
        sync_directory(parent(path))?;
        let found = FloorFound { store, floor: Floor::default(), sequence: 0 };
        Self::open(path, &found)
    }

    /// Opens the file that [`Self::read`] has read.
    pub(super) fn open(path: &Path, found: &FloorFound) -> Result<Self, StoreError> {
        let file = File::options()
            .read(true)
            .write(true)
            .open(path)
            .map_err(|e| StoreError::io(format!("opening {}", path.display()), e))?;
        // A slot that was read may not be durable yet, and the next write goes over the other one.
        file.sync_data().map_err(|e| StoreError::io(format!("syncing {}", path.display()), e))?;
        Ok(Self { file, path: path.to_owned(), store: found.store, sequence: found.sequence, current: found.floor })
    }

    /// The floor written last.
    pub(super) fn current(&self) -> Floor {
        self.current
    }

    /// Writes a floor, durable on return.
    pub(super) fn write(&mut self, floor: Floor) -> Result<(), StoreError> {
        let doing = |e| StoreError::io(format!("writing {}", self.path.display()), e);
        let sequence = self.sequence + 1;
        self.file.seek(SeekFrom::Start((sequence % 2) * SLOT_BYTES as u64)).map_err(doing)?;
        self.file.write_all(&encode(self.store, sequence, &floor)).map_err(doing)?;
        self.file.sync_data().map_err(doing)?;
        self.sequence = sequence;
        self.current = floor;
        Ok(())
    }
}

fn slot(bytes: &[u8], number: usize) -> Option<FloorFound> {
    decode(bytes.get(number * SLOT_BYTES..)?.get(..BODY_BYTES)?)
}

fn encode(store: StoreId, sequence: u64, floor: &Floor) -> [u8; BODY_BYTES] {
    let mut body = [0; BODY_BYTES];
    let vote = floor.vote.unwrap_or(Vote { term: 0, node: NodeId(0), committed: false });
    let flags =
        u8::from(floor.last_index.is_some()) | u8::from(floor.vote.is_some()) << 1 | u8::from(vote.committed) << 2;
    let mut rest = &mut body[..];
    for part in [
        &MAGIC[..],
        store.as_bytes(),
        &sequence.to_le_bytes(),
        &floor.last_index.unwrap_or(0).to_le_bytes(),
        &vote.term.to_le_bytes(),
        &vote.node.0.to_le_bytes(),
        &[flags],
    ] {
        let (head, tail) = rest.split_at_mut(part.len());
        head.copy_from_slice(part);
        rest = tail;
    }
    let checksum = crc32fast::hash(&body[..BODY_BYTES - 4]);
    body[BODY_BYTES - 4..].copy_from_slice(&checksum.to_le_bytes());
    body
}

fn decode(body: &[u8]) -> Option<FloorFound> {
    let (fields, checksum) = body.split_at_checked(BODY_BYTES - 4)?;
    if checksum != crc32fast::hash(fields).to_le_bytes() {
        return None;
    }
    let mut reader = fields;
    let mut magic = [0; 8];
    let mut store = [0; 16];
    let mut number = [0; 8];
    let mut flags = [0; 1];
    reader.read_exact(&mut magic).ok()?;
    reader.read_exact(&mut store).ok()?;
    let mut next_number = || {
        reader.read_exact(&mut number).ok()?;
        Some(u64::from_le_bytes(number))
    };
    let (sequence, last_index, term, node) = (next_number()?, next_number()?, next_number()?, next_number()?);
    reader.read_exact(&mut flags).ok()?;
    if &magic != MAGIC {
        return None;
    }
    let flag = |bit: u8| flags[0] & (1 << bit) != 0;
    let floor = Floor {
        last_index: flag(0).then_some(last_index),
        vote: flag(1).then_some(Vote { term, node: NodeId(node), committed: flag(2) }),
    };
    Some(FloorFound { store: StoreId::from_slice(&store)?, floor, sequence })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn floor(index: u64) -> Floor {
        let vote = Vote { term: index * 2, node: NodeId(3), committed: index.is_multiple_of(2) };
        Floor { last_index: Some(index), vote: Some(vote) }
    }

    fn file_with_writes(directory: &Path, writes: u64) -> PathBuf {
        let path = directory.join("floor");
        let mut file = FloorFile::create(&path, StoreId::random()).expect("creates");
        for index in 1..=writes {
            file.write(floor(index)).expect("writes");
        }
        path
    }

    fn read(path: &Path) -> Floor {
        FloorFile::read(path).expect("reads").expect("is there").floor
    }

    #[test]
    fn the_last_write_is_read_back() {
        let directory = tempfile::tempdir().expect("a directory");
        for writes in 1..5 {
            assert_eq!(read(&file_with_writes(directory.path(), writes)), floor(writes));
        }
    }

    #[test]
    fn a_new_file_says_nothing() {
        let directory = tempfile::tempdir().expect("a directory");
        assert_eq!(read(&file_with_writes(directory.path(), 0)), Floor::default());
        assert!(Floor::default().is_held_by(None, None));
    }

    #[test]
    fn a_write_torn_at_any_byte_leaves_the_one_before() {
        let directory = tempfile::tempdir().expect("a directory");
        for writes in [4, 5] {
            let path = file_with_writes(directory.path(), writes);
            let before = fs::read(&path).expect("reads");
            let found = FloorFile::read(&path).expect("reads").expect("is there");
            FloorFile::open(&path, &found).expect("opens").write(floor(writes + 1)).expect("writes");
            let after = fs::read(&path).expect("reads");
            let start = usize::try_from((writes + 1) % 2).expect("small") * SLOT_BYTES;
            let same = floor(writes);
            for torn in 0..BODY_BYTES {
                let mut image = before.clone();
                image[start..start + torn].copy_from_slice(&after[start..start + torn]);
                fs::write(&path, &image).expect("writes");
                // The last bytes may happen to be equal; then the write is whole.
                let whole = image[..] == after[..];
                assert_eq!(read(&path), if whole { floor(writes + 1) } else { same }, "torn after {torn} bytes");
            }
        }
    }

    #[test]
    fn a_file_without_a_readable_slot_is_unusable() {
        let directory = tempfile::tempdir().expect("a directory");
        let path = directory.path().join("floor");
        for content in [vec![], vec![0; 100], vec![0xff; SLOT_BYTES * 2]] {
            fs::write(&path, content).expect("writes");
            let outcome = FloorFile::read(&path).map(|found| found.map(|found| found.floor));
            assert!(matches!(outcome, Err(OpenError::Unusable { why: Unusable::FloorDamaged(_), .. })), "{outcome:?}");
        }
    }

    #[test]
    fn a_log_holds_the_floor_only_with_both_its_entries_and_its_vote() {
        let id = |index| Some(LogId { term: 1, node: NodeId(1), index });
        let held = floor(6);
        assert!(held.is_held_by(id(6), held.vote));
        assert!(!held.is_held_by(id(5), held.vote));
        assert!(!held.is_held_by(None, held.vote));
        assert!(!held.is_held_by(id(6), None));
        assert!(!held.is_held_by(id(6), held.vote.map(|vote| Vote { committed: false, ..vote })));
    }
}
