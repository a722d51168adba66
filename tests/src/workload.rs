//! A workload on a node's storage that says what it is promised, and the check that the promises hold afterwards.
//!
//! The worker (`src/bin/store_worker.rs`) writes one line for everything that it is about to do and everything that was
//! acknowledged. [`History`] reads the lines; [`History::check`] compares them with what a reopened storage holds.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::fmt;
use std::path::Path;
use std::process::Command;
use std::str::FromStr;
use std::time::{Duration, SystemTime};

use bytes::Bytes;
use muster_cluster::ids::{NodeId, StoreId};
use muster_cluster::state::{TableId, Tables};
use muster_cluster::storage::{Applied, Entry, LogId, NodeStorage, OpenOptions, Payload, TailLimits, Vote};
use sha2::{Digest, Sha256};

use crate::process::binary;

/// The node that writes in this workload.
pub const NODE: NodeId = NodeId(1);

/// How many keys the state has per table.
const KEYS: u64 = 150;

/// The position of an entry of this workload.
#[must_use]
pub fn log_id(index: u64, term: u64) -> LogId {
    LogId { term, node: NODE, index }
}

/// The entry that belongs at this position: its content follows from it, so that any mix-up is noticed.
#[must_use]
pub fn entry(index: u64, term: u64) -> Entry {
    let mixed = mix(index, term);
    let payload = match mixed % 50 {
        0 => Payload::Blank,
        // Longer than one value may be, so that it is stored in parts.
        1 => Payload::Command(filled(mixed, 17_000 + (mixed >> 8) as usize % 60_000)),
        2 => Payload::Command(filled(mixed, 16_000)),
        _ => Payload::Command(filled(mixed, 20 + (mixed >> 8) as usize % 400)),
    };
    Entry { log_id: log_id(index, term), payload }
}

/// What applying the entry at this position does to the state.
pub fn apply(tables: &mut Tables, index: u64, term: u64) {
    let mixed = mix(index, term);
    let table = TableId((mixed % 3) as u8);
    let key = ((mixed >> 16) % KEYS).to_be_bytes().to_vec();
    if mixed.is_multiple_of(7) {
        tables.remove(table, key);
    } else {
        tables.put(table, key, filled(mixed, 10 + (mixed >> 24) as usize % 500), index);
    }
}

/// A hash over the content of the tables, whatever their history.
#[must_use]
pub fn digest(tables: &Tables) -> String {
    let mut hasher = Sha256::new();
    for (key, record) in tables.iter() {
        hasher.update([key.table.0]);
        hasher.update((key.key.len() as u64).to_be_bytes());
        hasher.update(&key.key);
        hasher.update(record.mod_index.to_be_bytes());
        hasher.update((record.value.len() as u64).to_be_bytes());
        hasher.update(&record.value);
    }
    hex(&hasher.finalize())
}

/// Bytes as text.
#[must_use]
pub fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

fn mix(index: u64, term: u64) -> u64 {
    let mut mixed = index.wrapping_mul(0x9e37_79b9_7f4a_7c15) ^ term.wrapping_mul(0xc2b2_ae3d_27d4_eb4f);
    mixed ^= mixed >> 29;
    mixed = mixed.wrapping_mul(0xbf58_476d_1ce4_e5b9);
    mixed ^ (mixed >> 32)
}

fn filled(seed: u64, length: usize) -> Bytes {
    let mut state = seed | 1;
    let mut bytes = Vec::with_capacity(length + 8);
    while bytes.len() < length {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        bytes.extend_from_slice(&state.to_le_bytes());
    }
    bytes.truncate(length);
    bytes.into()
}

/// Options for opening a directory of a test.
#[must_use]
pub fn options() -> OpenOptions {
    OpenOptions {
        fresh_store_id: StoreId::random(),
        now: SystemTime::now(),
        tail: TailLimits::default(),
        journal_bytes: 2 * 1024 * 1024,
    }
}

/// One line of the worker. Numbers are indices of the log, terms, or batches as the worker counts them.
#[derive(Clone, Debug, PartialEq, Eq)]
#[allow(missing_docs, reason = "the fields say what they are")]
pub enum Line {
    /// The storage was opened; what was found follows, up to [`Line::Found`].
    Opened,
    /// The log was found purged up to here.
    FoundPurged(u64),
    /// These entries were found.
    FoundEntries { first: u64, last: u64, term: u64 },
    /// This vote was found.
    FoundVote { term: u64, committed: bool },
    /// That was all that was found.
    Found,
    /// A batch is about to be appended.
    Append { batch: u64, first: u64, last: u64, term: u64 },
    /// A batch was acknowledged.
    Appended(u64),
    /// A vote is about to be saved.
    Vote { term: u64, committed: bool },
    /// A vote was acknowledged.
    Voted { term: u64, committed: bool },
    /// The log is about to be cut after this entry.
    Truncate(u64),
    /// The cut was acknowledged.
    Truncated(u64),
    /// The log is about to be purged up to this entry.
    Purge(u64),
    /// The purge was acknowledged.
    Purged(u64),
    /// The state is about to have this running hash and this content at this index.
    State { index: u64, hash: String, digest: String },
    /// The state was made durable up to this index.
    Synced(u64),
    /// A snapshot at this index was acknowledged.
    Snapshot(u64),
}

impl fmt::Display for Line {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Opened => write!(f, "opened"),
            Self::FoundPurged(index) => write!(f, "found-purged {index}"),
            Self::FoundEntries { first, last, term } => write!(f, "found-entries {first} {last} {term}"),
            Self::FoundVote { term, committed } => write!(f, "found-vote {term} {committed}"),
            Self::Found => write!(f, "found"),
            Self::Append { batch, first, last, term } => write!(f, "append {batch} {first} {last} {term}"),
            Self::Appended(batch) => write!(f, "appended {batch}"),
            Self::Vote { term, committed } => write!(f, "vote {term} {committed}"),
            Self::Voted { term, committed } => write!(f, "voted {term} {committed}"),
            Self::Truncate(keep) => write!(f, "truncate {keep}"),
            Self::Truncated(keep) => write!(f, "truncated {keep}"),
            Self::Purge(upto) => write!(f, "purge {upto}"),
            Self::Purged(upto) => write!(f, "purged {upto}"),
            Self::State { index, hash, digest } => write!(f, "state {index} {hash} {digest}"),
            Self::Synced(index) => write!(f, "synced {index}"),
            Self::Snapshot(index) => write!(f, "snapshot {index}"),
        }
    }
}

impl FromStr for Line {
    type Err = String;

    fn from_str(line: &str) -> Result<Self, String> {
        let mut words = line.split_whitespace();
        let bad = || format!("not a line of the worker: {line:?}");
        let kind = words.next().ok_or_else(bad)?;
        let rest: Vec<&str> = words.collect();
        let number = |at: usize| rest.get(at).and_then(|word| word.parse::<u64>().ok()).ok_or_else(bad);
        let flag = |at: usize| rest.get(at).and_then(|word| word.parse::<bool>().ok()).ok_or_else(bad);
        let text = |at: usize| rest.get(at).map(|word| (*word).to_owned()).ok_or_else(bad);
        Ok(match kind {
            "opened" => Self::Opened,
            "found-purged" => Self::FoundPurged(number(0)?),
            "found-entries" => Self::FoundEntries { first: number(0)?, last: number(1)?, term: number(2)? },
            "found-vote" => Self::FoundVote { term: number(0)?, committed: flag(1)? },
            "found" => Self::Found,
            "append" => Self::Append { batch: number(0)?, first: number(1)?, last: number(2)?, term: number(3)? },
            "appended" => Self::Appended(number(0)?),
            "vote" => Self::Vote { term: number(0)?, committed: flag(1)? },
            "voted" => Self::Voted { term: number(0)?, committed: flag(1)? },
            "truncate" => Self::Truncate(number(0)?),
            "truncated" => Self::Truncated(number(0)?),
            "purge" => Self::Purge(number(0)?),
            "purged" => Self::Purged(number(0)?),
            "state" => Self::State { index: number(0)?, hash: text(1)?, digest: text(2)? },
            "synced" => Self::Synced(number(0)?),
            "snapshot" => Self::Snapshot(number(0)?),
            _ => return Err(bad()),
        })
    }
}

/// What a storage holds, in the terms of the workload.
#[derive(Clone, Debug, Default)]
pub struct Holding {
    purged: u64,
    entries: BTreeMap<u64, u64>,
    vote: Option<(u64, bool)>,
}

impl Holding {
    /// Reads it from an open storage.
    ///
    /// # Errors
    /// When the log can not be read, or an entry is not what belongs at its position.
    pub fn of(storage: &NodeStorage) -> Result<Self, String> {
        let mut entries = BTreeMap::new();
        for found in storage.log.read(0, u64::MAX).map_err(|error| error.to_string())? {
            if found != entry(found.log_id.index, found.log_id.term) {
                return Err(format!("entry {} is not what was written", found.log_id));
            }
            entries.insert(found.log_id.index, found.log_id.term);
        }
        let purged = storage.log.position().purged.map_or(0, |id| id.index);
        Ok(Self { purged, entries, vote: storage.log.vote().map(|vote: Vote| (vote.term, vote.committed)) })
    }

    /// The lines that say what was found.
    #[must_use]
    pub fn lines(&self) -> Vec<Line> {
        let mut lines = vec![Line::Opened, Line::FoundPurged(self.purged)];
        let mut run: Option<(u64, u64, u64)> = None;
        for (index, term) in &self.entries {
            run = match run {
                Some((first, last, same)) if same == *term && last + 1 == *index => Some((first, *index, same)),
                other => {
                    lines.extend(other.map(|(first, last, term)| Line::FoundEntries { first, last, term }));
                    Some((*index, *index, *term))
                }
            };
        }
        lines.extend(run.map(|(first, last, term)| Line::FoundEntries { first, last, term }));
        lines.extend(self.vote.map(|(term, committed)| Line::FoundVote { term, committed }));
        lines.push(Line::Found);
        lines
    }

    /// The entries, by index, with their terms.
    #[must_use]
    pub fn entries(&self) -> &BTreeMap<u64, u64> {
        &self.entries
    }
}

/// What was promised so far.
#[derive(Clone, Debug, Default)]
pub struct History {
    /// Acknowledged entries that must be there.
    acked: BTreeMap<u64, u64>,
    /// Everything that may be there.
    issued: BTreeSet<(u64, u64)>,
    /// Batches under way: first, last, term, and where a truncation has cut them since.
    batches: HashMap<u64, (u64, u64, u64, u64)>,
    vote_acked: Option<(u64, bool)>,
    votes_issued: BTreeSet<(u64, bool)>,
    purge_acked: u64,
    purge_issued: u64,
    snapshot_acked: u64,
    synced: u64,
    state_may_be_lost: bool,
    states: BTreeMap<u64, BTreeSet<(String, String)>>,
    finding: Option<Holding>,
    acknowledgements: usize,
}

impl History {
    /// Takes a line of the worker.
    ///
    /// # Errors
    /// When the line reports something that breaks an earlier promise, as a restart after a kill may.
    pub fn take(&mut self, line: Line) -> Result<(), String> {
        match line {
            Line::Opened => self.finding = Some(Holding::default()),
            Line::FoundPurged(index) => self.finding.get_or_insert_default().purged = index,
            Line::FoundEntries { first, last, term } => {
                self.finding.get_or_insert_default().entries.extend((first..=last).map(|index| (index, term)));
            }
            Line::FoundVote { term, committed } => {
                self.finding.get_or_insert_default().vote = Some((term, committed));
            }
            Line::Found => {
                let found = self.finding.take().unwrap_or_default();
                self.check_log(&found)?;
                // A node acts on what it finds: from now on that must not be lost either.
                self.acked = found.entries;
                self.vote_acked = found.vote;
                self.purge_acked = found.purged;
                self.batches.clear();
            }
            Line::Append { batch, first, last, term } => {
                self.issued.extend((first..=last).map(|index| (index, term)));
                self.batches.insert(batch, (first, last, term, u64::MAX));
            }
            Line::Appended(batch) => {
                let (first, last, term, cut) =
                    self.batches.remove(&batch).ok_or("an unknown batch was acknowledged")?;
                self.acked.extend((first..=last.min(cut)).map(|index| (index, term)));
                self.acknowledgements += 1;
            }
            Line::Vote { term, committed } => {
                self.votes_issued.insert((term, committed));
            }
            Line::Voted { term, committed } => {
                self.vote_acked = Some((term, committed));
                self.acknowledgements += 1;
            }
            Line::Truncate(keep) => {
                // From here on the entries behind it may be there or not.
                self.acked.split_off(&(keep + 1));
                for (_, _, _, cut) in self.batches.values_mut() {
                    *cut = keep.min(*cut);
                }
            }
            Line::Truncated(keep) => {
                self.issued.retain(|(index, _)| *index <= keep);
                self.acknowledgements += 1;
            }
            Line::Purge(upto) => self.purge_issued = self.purge_issued.max(upto),
            Line::Purged(upto) => {
                self.purge_acked = self.purge_acked.max(upto);
                self.acked = self.acked.split_off(&(upto + 1));
                self.acknowledgements += 1;
            }
            Line::State { index, hash, digest } => {
                self.states.entry(index).or_default().insert((hash, digest));
            }
            Line::Synced(index) => {
                self.synced = self.synced.max(index);
                self.acknowledgements += 1;
            }
            Line::Snapshot(index) => {
                self.snapshot_acked = self.snapshot_acked.max(index);
                self.acknowledgements += 1;
            }
        }
        Ok(())
    }

    /// From now on the log may be found purged less far than it was: that costs room, and nothing else.
    pub fn forgive_an_older_purge_point(&mut self) {
        self.purge_acked = 0;
    }

    /// From now on the durable copy of the state may be older or gone: snapshot and log can rebuild it.
    pub fn forgive_a_lost_state(&mut self) {
        self.state_may_be_lost = true;
    }

    /// How many operations were acknowledged.
    #[must_use]
    pub fn acknowledgements(&self) -> usize {
        self.acknowledgements
    }

    /// Opens what is left of the directory and checks that every promise holds, and that it can be worked with.
    ///
    /// # Errors
    /// Says which promise was broken.
    pub fn check(&self, directory: &Path) -> Result<(), String> {
        let storage = NodeStorage::open(directory, &options()).map_err(|error| format!("does not open: {error}"))?;
        let holding = Holding::of(&storage)?;
        self.check_log(&holding)?;
        self.check_state(&storage, &holding)
    }

    fn check_log(&self, found: &Holding) -> Result<(), String> {
        for (index, term) in &self.acked {
            if *index > found.purged && found.entries.get(index) != Some(term) {
                let (first, last) = (found.entries.keys().next(), found.entries.keys().last());
                let there = format!("purged up to {}, entries {first:?} to {last:?} are there", found.purged);
                return Err(format!("entry {index} of term {term} was acknowledged and is lost; {there}"));
            }
        }
        for (index, term) in &found.entries {
            if !self.issued.contains(&(*index, *term)) {
                return Err(format!("entry {index} of term {term} was never written, or was cut off"));
            }
        }
        if found.purged < self.purge_acked || found.purged > self.purge_issued {
            let (acked, issued) = (self.purge_acked, self.purge_issued);
            return Err(format!("the log is purged up to {}, not between {acked} and {issued}", found.purged));
        }
        if found.vote < self.vote_acked {
            return Err(format!("the vote {:?} was acknowledged, {:?} was found", self.vote_acked, found.vote));
        }
        match found.vote {
            Some(vote) if !self.votes_issued.contains(&vote) => Err(format!("the vote {vote:?} was never cast")),
            _ => Ok(()),
        }
    }

    fn check_state(&self, storage: &NodeStorage, holding: &Holding) -> Result<(), String> {
        let fits = |index: u64, applied: &Applied, tables: &Tables| {
            let found = (hex(&applied.fingerprint.history), digest(tables));
            index == 0 || self.states.get(&index).is_some_and(|states| states.contains(&found))
        };
        let applied = storage.applied.index();
        if !fits(applied, &storage.applied, &storage.tables) {
            return Err(format!("the state at {applied} is none that was ever reached"));
        }
        if let (Some(aside), false) = (&storage.report.state_set_aside, self.state_may_be_lost) {
            return Err(format!("the state was set aside as damaged, to {}", aside.display()));
        }
        if applied < self.synced && !self.state_may_be_lost {
            return Err(format!("the state was durable up to {}, {applied} was found", self.synced));
        }
        let snapshot = storage.snapshots.latest();
        let snapshot_index = snapshot.as_ref().map_or(0, |file| file.applied.index());
        if snapshot_index < self.snapshot_acked {
            return Err(format!("the snapshot at {} was acknowledged and is lost", self.snapshot_acked));
        }
        if let Some(file) = snapshot {
            let tables = file.load().map_err(|error| error.to_string())?;
            if !fits(snapshot_index, &file.applied, &tables) {
                return Err(format!("the snapshot at {snapshot_index} holds a state that was never reached"));
            }
        }
        let last = storage.log.position().last.map_or(0, |id| id.index);
        if applied > last && snapshot_index < applied {
            return Err(format!(
                "the state is at {applied}, the log ends at {last}, and the snapshot is at {snapshot_index}"
            ));
        }
        // From the better of the two, the log must carry the state forward without a gap.
        let reached = applied.max(snapshot_index);
        if holding.purged > reached {
            return Err(format!("the log begins after {}, the state ends at {reached}", holding.purged));
        }
        Ok(())
    }
}

/// The worker's command line.
#[must_use]
pub fn worker(data: &Path, acks: &Path, seed: u64, operations: u64) -> Command {
    let mut command = Command::new(binary("store-worker"));
    command.arg("--data-dir").arg(data).arg("--acks").arg(acks);
    command.args(["--seed", &seed.to_string(), "--operations", &operations.to_string()]);
    command
}

impl History {
    /// What the lines in a file say. A line that was cut off by a kill is left out.
    ///
    /// # Errors
    /// When a line reports that a promise was broken.
    ///
    /// # Panics
    /// When the file holds something else.
    pub fn read(acks: &Path) -> Result<Self, String> {
        let text = std::fs::read_to_string(acks).unwrap_or_default();
        let mut history = Self::default();
        for line in text.split_inclusive('\n').filter(|line| line.ends_with('\n')) {
            history.take(line.parse().expect("a line of the worker"))?;
        }
        Ok(history)
    }
}

/// How long a worker may take for what it is asked; far more than it needs.
pub const PATIENCE: Duration = Duration::from_secs(120);
