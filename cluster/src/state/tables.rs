//! The replicated tables in memory: ordered, cheap to copy, with a fingerprint of their history and of their content.

use std::fmt;
use std::ops::Bound;

use bytes::Bytes;
use imbl::OrdMap;
use sha2::{Digest, Sha256};

/// A table of the replicated state.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct TableId(pub u8);

/// Where a record stands.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct RecordKey {
    /// The table.
    pub table: TableId,
    /// The key within the table.
    pub key: Bytes,
}

/// A stored value.
#[derive(Clone, PartialEq, Eq)]
pub struct Record {
    /// The log index that wrote it last.
    pub mod_index: u64,
    /// The encoded value.
    pub value: Bytes,
}

// A value may hold keys and personal names, which have no place in a log line.
impl fmt::Debug for Record {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} bytes of index {}", self.value.len(), self.mod_index)
    }
}

/// What a write has done.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Change {
    /// Where.
    pub key: RecordKey,
    /// The record as it stands after the write; `None` when it was removed.
    pub record: Option<Record>,
    /// Whether there was none before.
    pub created: bool,
}

/// What tells two states apart without comparing them.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Fingerprint {
    /// The running hash over every write so far, in order. Equal on all replicas at an equal index.
    pub history: [u8; 32],
    /// The sum, modulo 2^128, of a hash of every record that is there, whatever led to it. A copy can be checked against it.
    pub content: u128,
}

/// All tables of one replica.
///
/// A clone is a consistent view that costs nothing; it is what a snapshot is built from.
#[derive(Clone, Debug, Default)]
pub struct Tables {
    records: OrdMap<RecordKey, Record>,
    fingerprint: Fingerprint,
    changes: Vec<Change>,
    /// What stood where something was changed since the last mark or taking of changes, in order. A copy of the tables to go back to would do
    /// too, but while there is one every write has to copy what it touches.
    before: Vec<(RecordKey, Option<Record>)>,
    side: OrdMap<Bytes, Record>,
}

/// A point to go back to, see [`Tables::mark`].
#[derive(Debug)]
pub struct Mark {
    fingerprint: Fingerprint,
    changes: usize,
    side: OrdMap<Bytes, Record>,
}

impl Tables {
    /// The tables with this content, whose running hash had this value.
    #[must_use]
    pub fn restored(records: impl IntoIterator<Item = (RecordKey, Record)>, history: [u8; 32]) -> Self {
        let records: OrdMap<RecordKey, Record> = records.into_iter().collect();
        let content = records.iter().fold(0, |sum: u128, (key, record)| sum.wrapping_add(summand(key, record)));
        Self { records, fingerprint: Fingerprint { history, content }, ..Self::default() }
    }

    /// The record of a key.
    #[must_use]
    pub fn get(&self, table: TableId, key: &[u8]) -> Option<&Record> {
        self.records.get(&RecordKey { table, key: Bytes::copy_from_slice(key) })
    }

    /// Sets a key on behalf of the entry at `index`.
    pub fn put(&mut self, table: TableId, key: impl Into<Bytes>, value: impl Into<Bytes>, index: u64) {
        let key = RecordKey { table, key: key.into() };
        let record = Record { mod_index: index, value: value.into() };
        self.fingerprint.history = chain(&self.fingerprint.history, &key, Some(&record.value));
        self.fingerprint.content = self.fingerprint.content.wrapping_add(summand(&key, &record));
        let old = self.records.insert(key.clone(), record.clone());
        self.changes.push(Change { key: key.clone(), record: Some(record), created: old.is_none() });
        if let Some(old) = &old {
            self.fingerprint.content = self.fingerprint.content.wrapping_sub(summand(&key, old));
        }
        self.before.push((key, old));
    }

    /// Removes a key, if it is there.
    pub fn remove(&mut self, table: TableId, key: impl Into<Bytes>) {
        let key = RecordKey { table, key: key.into() };
        if let Some(old) = self.records.remove(&key) {
            self.fingerprint.history = chain(&self.fingerprint.history, &key, None);
            self.fingerprint.content = self.fingerprint.content.wrapping_sub(summand(&key, &old));
            self.changes.push(Change { key: key.clone(), record: None, created: false });
            self.before.push((key, Some(old)));
        }
    }

    /// The records of a table from `from` on, in the order of their keys.
    pub fn range(&self, table: TableId, from: &[u8]) -> impl Iterator<Item = (&[u8], &Record)> + use<'_> {
        let start = RecordKey { table, key: Bytes::copy_from_slice(from) };
        self.records
            .range((Bound::Included(start), Bound::Unbounded))
            .take_while(move |(key, _)| key.table == table)
            .map(|(key, record)| (key.key.as_ref(), record))
    }

    /// The last record of a table whose key lies between these, both included.
    #[must_use]
    pub fn last(&self, table: TableId, from: &[u8], to: &[u8]) -> Option<(&[u8], &Record)> {
        let bound = |key| Bound::Included(RecordKey { table, key: Bytes::copy_from_slice(key) });
        if from > to {
            return None;
        }
        self.records.range((bound(from), bound(to))).next_back().map(|(key, record)| (key.key.as_ref(), record))
    }

    /// Every record of every table, in order.
    pub fn iter(&self) -> impl Iterator<Item = (&RecordKey, &Record)> {
        self.records.iter()
    }

    /// How many records there are.
    #[must_use]
    pub fn len(&self) -> usize {
        self.records.len()
    }

    /// Whether there is no record.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.records.is_empty()
    }

    /// What tells this state apart from others.
    #[must_use]
    pub fn fingerprint(&self) -> Fingerprint {
        self.fingerprint
    }

    /// Where the tables stand now. It takes the place of the mark before.
    #[must_use]
    pub fn mark(&mut self) -> Mark {
        self.before.clear();
        Mark { fingerprint: self.fingerprint, changes: self.changes.len(), side: self.side.clone() }
    }

    /// Undoes what was written since the last mark was taken, which must be after the last [`Self::take_changes`].
    pub fn go_back(&mut self, mark: Mark) {
        for (key, record) in self.before.drain(..).rev() {
            match record {
                Some(record) => self.records.insert(key, record),
                None => self.records.remove(&key),
            };
        }
        self.fingerprint = mark.fingerprint;
        self.changes.truncate(mark.changes);
        self.side = mark.side;
    }

    /// A copy for readers: everything but what is still to be handed to the disk.
    #[must_use]
    pub fn view(&self) -> Self {
        Self {
            records: self.records.clone(),
            fingerprint: self.fingerprint,
            changes: Vec::new(),
            before: Vec::new(),
            side: self.side.clone(),
        }
    }

    /// Keeps a value beside the tables: in no hash, in no snapshot, on no disk. It may be gone at any time.
    pub fn keep_aside(&mut self, key: Bytes, value: Bytes, index: u64) {
        self.side.insert(key, Record { mod_index: index, value });
    }

    /// A value that was kept aside.
    #[must_use]
    pub fn aside(&self, key: &[u8]) -> Option<&Record> {
        self.side.get(key)
    }

    /// Keeps of what lies aside only what fits the condition.
    pub fn retain_aside(&mut self, keep: impl Fn(&Record) -> bool) {
        self.side = self.side.iter().filter(|(_, record)| keep(record)).map(|(k, r)| (k.clone(), r.clone())).collect();
    }

    /// How many values lie aside.
    #[must_use]
    pub fn aside_len(&self) -> usize {
        self.side.len()
    }

    /// What was written since the last [`Self::take_changes`], in order.
    #[must_use]
    pub fn changes(&self) -> &[Change] {
        &self.changes
    }

    /// What was written since the last call, in order.
    pub fn take_changes(&mut self) -> Vec<Change> {
        self.before.clear();
        std::mem::take(&mut self.changes)
    }
}

fn chain(previous: &[u8; 32], key: &RecordKey, value: Option<&Bytes>) -> [u8; 32] {
    let mut hasher = Sha256::new();
    hasher.update(previous);
    hasher.update([key.table.0]);
    hasher.update((key.key.len() as u64).to_be_bytes());
    hasher.update(&key.key);
    // A removal and an empty value differ.
    hasher.update([u8::from(value.is_some())]);
    hasher.update(value.map_or(&[][..], |value| value));
    hasher.finalize().into()
}

fn summand(key: &RecordKey, record: &Record) -> u128 {
    let mut hasher = Sha256::new();
    hasher.update([key.table.0]);
    hasher.update((key.key.len() as u64).to_be_bytes());
    hasher.update(&key.key);
    hasher.update(record.mod_index.to_be_bytes());
    hasher.update(&record.value);
    let hash: [u8; 32] = hasher.finalize().into();
    hash.first_chunk().copied().map_or(0, u128::from_be_bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    const A: TableId = TableId(1);
    const B: TableId = TableId(2);

    #[test]
    fn the_hash_tells_every_difference_in_what_was_written() {
        type Write = (TableId, &'static [u8], Option<&'static [u8]>);
        let hash = |writes: &[Write]| {
            let mut tables = Tables::default();
            for (index, (table, key, value)) in (1..).zip(writes) {
                match value {
                    Some(value) => tables.put(*table, *key, *value, index),
                    None => tables.remove(*table, *key),
                }
            }
            tables.fingerprint().history
        };
        let base = hash(&[(A, b"k", Some(b"v")), (A, b"l", Some(b"w"))]);
        assert_eq!(base, hash(&[(A, b"k", Some(b"v")), (A, b"l", Some(b"w"))]));
        for other in [
            hash(&[(A, b"l", Some(b"w")), (A, b"k", Some(b"v"))]),
            hash(&[(B, b"k", Some(b"v")), (A, b"l", Some(b"w"))]),
            hash(&[(A, b"kv", Some(b"")), (A, b"l", Some(b"w"))]),
            hash(&[(A, b"k", Some(b"v")), (A, b"l", Some(b"w")), (A, b"l", None)]),
            hash(&[(A, b"k", Some(b"v")), (A, b"l", Some(b""))]),
        ] {
            assert_ne!(base, other);
        }
        assert_eq!(base, hash(&[(A, b"k", Some(b"v")), (A, b"l", Some(b"w")), (A, b"none", None)]));
    }

    #[test]
    fn the_content_sum_follows_from_the_records_alone() {
        let mut tables = Tables::default();
        tables.put(A, "k", "first", 1);
        tables.put(A, "l", "w", 2);
        tables.put(A, "k", "second", 3);
        tables.put(B, "gone", "x", 4);
        tables.remove(B, "gone");
        let records: Vec<_> = tables.iter().map(|(key, record)| (key.clone(), record.clone())).collect();
        assert_eq!(Tables::restored(records.clone(), [0; 32]).fingerprint().content, tables.fingerprint().content);
        let mut changed = records;
        changed[0].1.mod_index += 1;
        assert_ne!(Tables::restored(changed, [0; 32]).fingerprint().content, tables.fingerprint().content);
        tables.remove(A, "k");
        tables.remove(A, "l");
        assert_eq!(tables.fingerprint().content, 0);
    }

    #[test]
    fn a_range_stays_in_its_table() {
        let mut tables = Tables::default();
        for (table, key) in [(A, "b"), (A, "a"), (B, "a"), (B, "c")] {
            tables.put(table, key, "", 1);
        }
        let keys: Vec<_> = tables.range(A, b"").map(|(key, _)| key.to_vec()).collect();
        assert_eq!(keys, [b"a", b"b"]);
        assert_eq!(tables.range(B, b"b").count(), 1);
        assert_eq!(tables.last(A, b"", b"az").map(|(key, _)| key), Some(&b"a"[..]));
        assert_eq!(tables.last(A, b"", b"z").map(|(key, _)| key), Some(&b"b"[..]));
        assert!(tables.last(A, b"c", b"z").is_none() && tables.last(A, b"z", b"a").is_none());
    }

    #[test]
    fn what_was_written_since_a_mark_can_be_undone() {
        let mut tables = Tables::default();
        for (key, value) in [("changed", "1"), ("removed", "2"), ("both", "3")] {
            tables.put(A, key, value, 1);
        }
        let all =
            |tables: &Tables| tables.iter().map(|(key, record)| (key.clone(), record.clone())).collect::<Vec<_>>();
        let (before, fingerprint) = (all(&tables), tables.fingerprint());
        for _ in 0..2 {
            let mark = tables.mark();
            tables.put(A, "changed", "x", 2);
            tables.put(A, "changed", "y", 2);
            tables.remove(A, "removed");
            tables.remove(A, "both");
            tables.put(A, "both", "z", 2);
            tables.put(B, "new", "n", 2);
            tables.remove(B, "new");
            tables.put(B, "newer", "n", 2);
            assert_ne!(tables.fingerprint(), fingerprint);
            tables.go_back(mark);
            assert_eq!((all(&tables), tables.fingerprint(), tables.changes().len()), (before.clone(), fingerprint, 3));
        }
    }

    #[test]
    fn a_clone_keeps_its_content() {
        let mut tables = Tables::default();
        tables.put(A, "k", "old", 1);
        let view = tables.clone();
        tables.put(A, "k", "new", 2);
        assert_eq!(view.get(A, b"k").map(|record| record.value.clone()), Some(Bytes::from("old")));
    }
}
