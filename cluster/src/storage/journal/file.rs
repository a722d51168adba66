//! One file of the journal: what lies in it, and what of that may be believed.
//!
//! ```text
//! sector 0, 1   head of the epoch, in turn: magic, frames of the epoch before, epoch, salt, checksum
//! sector 2 ..   frames, each beginning at a sector: magic, sequence, length, checksum, writes
//! ```
//!
//! The file has its full length, in zeros, before it is used: a write into it changes no metadata, so that a barrier costs
//! the disk one write. A frame is written only once the one before is durable. Therefore a frame that does not fit its
//! checksum ends what was acknowledged, unless one of the same epoch follows it, or the next epoch has begun, whose head says
//! how many there were: then it was whole once, and is damaged.
//!
//! A sector is taken to be written whole or not at all, and to leave its neighbours alone. Where that is not so, a frame may
//! take the one before it along, which the floor file notices if it is older than about a second.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;

/// What the disk writes whole or not at all. Rewriting one never harms another.
pub(super) const SECTOR: usize = 512;

/// The shortest file that there may be: one that takes the longest batch of the log.
const SHORTEST: usize = 2 * 1024 * 1024;

/// The longest file.
const LONGEST: usize = 1024 * 1024 * 1024;

/// Where frames begin.
pub(super) const FRAMES: usize = 2 * SECTOR;

/// The head of a frame: magic, sequence, length of the writes, checksum.
pub(super) const FRAME_HEAD: usize = 16;

const HEAD_MAGIC: &[u8; 8] = b"MSTRJRN1";
const HEAD_BYTES: usize = 36;
const FRAME_MAGIC: &[u8; 4] = b"MJF1";

/// A filling of a file. The salt goes into every checksum, so that neither an older filling nor anything inside a write can
/// pass for a frame of this one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Epoch {
    pub(super) number: u64,
    pub(super) salt: u64,
}

/// What a file holds of its newest epoch.
#[derive(Debug)]
pub(super) struct Found {
    pub(super) epoch: Epoch,
    /// How many frames the epoch before has, in the other file.
    pub(super) before: u64,
    /// The writes of each frame, in order.
    pub(super) frames: Vec<Vec<u8>>,
    /// Where the next frame goes.
    pub(super) end: usize,
}

/// Why a file can not be believed.
#[derive(Debug)]
pub(super) enum Unreadable {
    Io(io::Error),
    Damaged(String),
}

impl Epoch {
    /// Which of the two files it fills.
    pub(super) fn file(self) -> usize {
        usize::from(self.number % 2 == 1)
    }

    /// Where its head lies. The head of the epoch before in the same file stays whole until this one is durable.
    fn head_offset(self) -> usize {
        if (self.number / 2).is_multiple_of(2) { 0 } else { SECTOR }
    }

    /// Writes the head. The barrier of the first frame makes it durable: without it there is no frame to be found.
    pub(super) fn begin(self, file: &File, frames_before: u32) -> io::Result<()> {
        let mut head = Vec::with_capacity(SECTOR);
        head.extend_from_slice(HEAD_MAGIC);
        head.extend_from_slice(&u64::from(frames_before).to_le_bytes());
        head.extend_from_slice(&self.number.to_le_bytes());
        head.extend_from_slice(&self.salt.to_le_bytes());
        head.extend_from_slice(&crc32fast::hash(&head).to_le_bytes());
        head.resize(SECTOR, 0);
        file.write_all_at(&head, self.head_offset() as u64)
    }

    fn checksum(self, sequence: u32, writes: &[u8]) -> u32 {
        let mut hasher = crc32fast::Hasher::new();
        hasher.update(&self.salt.to_le_bytes());
        hasher.update(&self.number.to_le_bytes());
        hasher.update(&sequence.to_le_bytes());
        hasher.update(&(writes.len() as u64).to_le_bytes());
        hasher.update(writes);
        hasher.finalize()
    }

    /// Completes a frame whose head is still empty, and fills its last sector.
    pub(super) fn complete(self, sequence: u32, frame: &mut Vec<u8>) {
        let checksum = self.checksum(sequence, &frame[FRAME_HEAD..]);
        let length = (frame.len() - FRAME_HEAD) as u32;
        frame[0..4].copy_from_slice(FRAME_MAGIC);
        frame[4..8].copy_from_slice(&sequence.to_le_bytes());
        frame[8..12].copy_from_slice(&length.to_le_bytes());
        frame[12..16].copy_from_slice(&checksum.to_le_bytes());
        frame.resize(frame.len().next_multiple_of(SECTOR), 0);
    }

    /// The frame at this place, if it is whole: its sequence and its writes.
    fn frame(self, content: &[u8], at: usize) -> Option<(u32, &[u8])> {
        let head = content.get(at..at + FRAME_HEAD)?;
        if &head[0..4] != FRAME_MAGIC {
            return None;
        }
        let (sequence, length, checksum) = (number(head, 4), number(head, 8), number(head, 12));
        // No batch is longer. Bytes that only look like a head must not cost the sum of half the file each.
        if length as usize > SHORTEST {
            return None;
        }
        let from = at + FRAME_HEAD;
        let writes = content.get(from..from.checked_add(length as usize)?)?;
        (self.checksum(sequence, writes) == checksum).then_some((sequence, writes))
    }
}

impl Found {
    /// Writes the last frame once more, as it is. A barrier that failed may leave it in memory and not on the disk, and no
    /// later barrier writes it again, because the kernel takes it for written.
    pub(super) fn repeat_last(&self, file: &File) -> io::Result<()> {
        let Some((last, before)) = self.frames.split_last() else { return Ok(()) };
        if before.is_empty() {
            self.epoch.begin(file, self.before as u32)?;
        }
        let mut frame = vec![0; FRAME_HEAD];
        frame.extend_from_slice(last);
        self.epoch.complete(before.len() as u32, &mut frame);
        file.write_all_at(&frame, (self.end - frame.len()) as u64)
    }
}

/// How much room a frame of so many bytes takes up.
pub(super) fn room(frame: usize) -> usize {
    frame.next_multiple_of(SECTOR)
}

fn number(bytes: &[u8], at: usize) -> u32 {
    u32::from_le_bytes([bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]])
}

fn long_number(bytes: &[u8], at: usize) -> u64 {
    u64::from(number(bytes, at)) | u64::from(number(bytes, at + 4)) << 32
}

/// The nearest length that a file may have.
pub(super) fn allowed(length: usize) -> usize {
    length.clamp(SHORTEST, LONGEST).next_multiple_of(SECTOR)
}

/// The length of a file, if it is one that a file may have.
pub(super) fn length(file: &File) -> Result<usize, Unreadable> {
    let bytes = file.metadata().map_err(Unreadable::Io)?.len();
    let length = usize::try_from(bytes).ok().filter(|length| (SHORTEST..=LONGEST).contains(length));
    let length = length.filter(|length| length.is_multiple_of(SECTOR));
    length.ok_or_else(|| Unreadable::Damaged(format!("its length is {bytes} bytes")))
}

/// Reads a file. `None` when it holds nothing newer than the epoch that is noted: it has not been used yet, or may be filled
/// again, and what lies in it need not be whole.
pub(super) fn read(file: &File, noted: u64) -> Result<Option<Found>, Unreadable> {
    let mut content = vec![0; length(file)?];
    file.read_exact_at(&mut content, 0).map_err(Unreadable::Io)?;
    let mut newest: Option<(Epoch, u64)> = None;
    for offset in [0, SECTOR] {
        if let Some(head) = head(&content[offset..offset + SECTOR]).map_err(Unreadable::Damaged)? {
            newest = newest.filter(|(other, _)| other.number > head.0.number).or(Some(head));
        }
    }
    let Some((epoch, before)) = newest.filter(|(epoch, _)| epoch.number > noted) else { return Ok(None) };
    let (mut frames, mut end) = (Vec::new(), FRAMES);
    while let Some((sequence, writes)) = epoch.frame(&content, end) {
        if sequence as usize != frames.len() {
            break;
        }
        frames.push(writes.to_vec());
        end += room(FRAME_HEAD + writes.len());
    }
    let later = (end..content.len()).step_by(SECTOR).find_map(|at| epoch.frame(&content, at));
    if let Some((sequence, _)) = later {
        return Err(Unreadable::Damaged(format!("frame {} is broken, and frame {sequence} is not", frames.len())));
    }
    Ok(Some(Found { epoch, before, frames, end }))
}

/// The epoch that a head begins, and how many frames the one before has.
fn head(sector: &[u8]) -> Result<Option<(Epoch, u64)>, String> {
    if sector.iter().all(|byte| *byte == 0) {
        return Ok(None);
    }
    let (covered, rest) = sector.split_at(HEAD_BYTES - 4);
    if covered[..8] != *HEAD_MAGIC || crc32fast::hash(covered) != number(rest, 0) {
        return Err("its head does not fit its checksum".to_owned());
    }
    let epoch = Epoch { number: long_number(covered, 16), salt: long_number(covered, 24) };
    Ok(Some((epoch, long_number(covered, 8))))
}
