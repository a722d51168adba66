//! How the log lies in its database.
//!
//! ```text
//! log    index, u64 big endian              -> one byte: how many further parts, then the entry or its first part
//! logx   index, u64; part, u16 big endian   -> a further part of a long entry
//! meta   "format" | "store" | "vote" | "purged" | "committed" | "self-test" | "journal"
//! ```
//!
//! What was written last may still lie in the journal in front of it.

use std::ops::ControlFlow;

use bytes::Bytes;

use crate::storage::error::StoreError;
use crate::storage::frame::OVERHEAD;
use crate::storage::record::{Entry, LogId, Undecodable};
use crate::storage::store::{Batch, Store, Tree};
use crate::storage::{MAX_ENTRY, MAX_VALUE};

pub(super) const LOG: Tree = Tree("log");
pub(super) const LOGX: Tree = Tree("logx");
pub(super) const META: Tree = Tree("meta");
pub(super) const TREES: [Tree; 3] = [LOG, LOGX, META];

pub(super) const FORMAT: &[u8] = b"format";
pub(super) const STORE: &[u8] = b"store";
pub(super) const VOTE: &[u8] = b"vote";
pub(super) const PURGED: &[u8] = b"purged";
pub(super) const COMMITTED: &[u8] = b"committed";
pub(super) const SELF_TEST: &[u8] = b"self-test";
pub(super) const JOURNAL: &[u8] = b"journal";

/// The longest part of an entry: a value without its frame and the byte that counts parts.
const PART_BYTES: usize = MAX_VALUE - OVERHEAD - 1;

/// Adds an entry to a batch.
pub(super) fn put_entry(batch: &mut Batch, entry: &Entry, previous: Option<LogId>) -> Result<(), StoreError> {
    let encoded = entry.encode(previous);
    if encoded.len() > MAX_ENTRY {
        return Err(StoreError::TooLarge {
            what: format!("log entry {}", entry.log_id.index),
            len: encoded.len(),
            max: MAX_ENTRY,
        });
    }
    let mut parts = encoded.chunks(PART_BYTES);
    let first = parts.next().unwrap_or_default();
    let mut value = Vec::with_capacity(first.len() + 1);
    // MAX_ENTRY keeps the number of parts far below 256.
    value.push(parts.len() as u8);
    value.extend_from_slice(first);
    let index = entry.log_id.index;
    batch.put(LOG, index.to_be_bytes(), value);
    for (number, part) in (1u16..).zip(parts) {
        batch.put(LOGX, part_key(index, number), part);
    }
    Ok(())
}

/// Adds the removal of the entries `first..=last` to a batch, further parts included.
pub(super) fn remove_entries(store: &dyn Store, batch: &mut Batch, first: u64, last: u64) -> Result<(), StoreError> {
    for index in first..=last {
        batch.remove(LOG, index.to_be_bytes());
    }
    store.scan(LOGX, &first.to_be_bytes(), &mut |key, _| {
        if index_of(LOGX, key)? > last {
            return Ok(ControlFlow::Break(()));
        }
        batch.remove(LOGX, key);
        Ok(ControlFlow::Continue(()))
    })
}

/// An entry as it is stored: its first part, and how many further ones there are.
pub(super) struct Stored {
    pub(super) index: u64,
    value: Vec<u8>,
}

impl Stored {
    /// About how long the entry is, in bytes.
    pub(super) fn weight(&self) -> usize {
        self.value.len() + self.value.first().map_or(0, |further| usize::from(*further)) * PART_BYTES
    }

    /// Puts the entry together. Another thread may be removing it meanwhile, so a part that is missing says nothing yet.
    /// Also returns the entry that stood before it when it was appended.
    pub(super) fn decode(&self, store: &dyn Store) -> Result<(Entry, Option<LogId>), StoreError> {
        let index = self.index;
        let damaged = |why: String| StoreError::Damaged { what: format!("log entry {index}"), why };
        let (further, first) = self.value.split_first().ok_or_else(|| damaged("it is empty".to_owned()))?;
        let mut encoded = first.to_vec();
        for number in 1..=u16::from(*further) {
            let part = store.get(LOGX, &part_key(index, number))?;
            encoded.extend(part.ok_or_else(|| damaged(format!("part {number} of {further} is missing")))?);
        }
        let (entry, previous) =
            Entry::decode(Bytes::from(encoded)).map_err(|why| why.of(format!("log entry {index}")))?;
        if entry.log_id.index != index {
            return Err(damaged(format!("it says that it is entry {}", entry.log_id.index)));
        }
        Ok((entry, previous))
    }
}

/// Visits the stored entries from `from` on, in order.
pub(super) fn scan_entries(
    store: &dyn Store,
    from: u64,
    visit: &mut dyn FnMut(Stored) -> ControlFlow<()>,
) -> Result<(), StoreError> {
    store.scan(LOG, &from.to_be_bytes(), &mut |key, value| {
        Ok(visit(Stored { index: index_of(LOG, key)?, value: value.to_vec() }))
    })
}

/// A value of the `meta` tree.
pub(super) fn read_meta<T>(
    store: &dyn Store,
    key: &[u8],
    decode: impl FnOnce(&[u8]) -> Result<T, Undecodable>,
) -> Result<Option<T>, StoreError> {
    match store.get(META, key)? {
        Some(value) => Ok(Some(decode(&value).map_err(|why| why.of(String::from_utf8_lossy(key)))?)),
        None => Ok(None),
    }
}

fn part_key(index: u64, number: u16) -> [u8; 10] {
    let mut key = [0; 10];
    key[..8].copy_from_slice(&index.to_be_bytes());
    key[8..].copy_from_slice(&number.to_be_bytes());
    key
}

fn index_of(tree: Tree, key: &[u8]) -> Result<u64, StoreError> {
    match key.first_chunk() {
        Some(index) => Ok(u64::from_be_bytes(*index)),
        None => Err(StoreError::Damaged { what: format!("a key of {}", tree.0), why: "it is too short".to_owned() }),
    }
}
