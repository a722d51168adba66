//! The small contract that the log and the state need from a database: ordered trees, atomic batches, one barrier.

use std::ops::ControlFlow;
use std::path::Path;
use std::sync::Arc;

use super::error::StoreError;
use super::frame::OVERHEAD;
use super::{MAX_KEY, MAX_VALUE};

/// A named, ordered map from bytes to bytes within a database.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Tree(pub &'static str);

/// Writes that take effect together or not at all, in one tree or several.
#[derive(Clone, Debug, Default)]
pub struct Batch {
    pub(super) writes: Vec<(Tree, Vec<u8>, Option<Vec<u8>>)>,
    bytes: usize,
}

impl Batch {
    /// Sets a key. The last write to a key in a batch wins.
    pub fn put(&mut self, tree: Tree, key: impl Into<Vec<u8>>, value: impl Into<Vec<u8>>) {
        let (key, value) = (key.into(), value.into());
        self.bytes += key.len() + value.len();
        self.writes.push((tree, key, Some(value)));
    }

    /// Removes a key, if it is there.
    pub fn remove(&mut self, tree: Tree, key: impl Into<Vec<u8>>) {
        let key = key.into();
        self.bytes += key.len();
        self.writes.push((tree, key, None));
    }

    /// Whether there is nothing to write.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.writes.is_empty()
    }

    /// Whether every key and value is short enough to be stored.
    pub(super) fn check(&self) -> Result<(), StoreError> {
        for (tree, key, value) in &self.writes {
            if key.len() > MAX_KEY {
                let what = format!("a key of {}", tree.0);
                return Err(StoreError::TooLarge { what, len: key.len(), max: MAX_KEY });
            }
            let len = value.as_ref().map_or(0, Vec::len);
            if len + OVERHEAD > MAX_VALUE {
                let what = format!("the value of {}", place(*tree, key));
                return Err(StoreError::TooLarge { what, len, max: MAX_VALUE - OVERHEAD });
            }
        }
        Ok(())
    }

    /// The bytes of all keys and values.
    #[must_use]
    pub fn bytes(&self) -> usize {
        self.bytes
    }
}

/// What [`Store::scan`] calls for every pair, in the order of the keys.
pub type Visitor<'a> = dyn FnMut(&[u8], &[u8]) -> Result<ControlFlow<()>, StoreError> + 'a;

/// An ordered, transactional database with an explicit barrier.
///
/// All methods block and may be called from any thread; a caller on an async runtime hands them to a thread of its own.
/// After an error that is fatal ([`StoreError::is_fatal`]) every further call fails.
pub trait Store: Send + Sync + 'static {
    /// Applies a batch: readable on return, atomic across a crash, durable only after the next [`Self::sync`].
    ///
    /// # Errors
    /// When the batch was refused or the database failed. A refused batch ([`StoreError::TooLarge`]) wrote nothing.
    fn write(&self, batch: Batch) -> Result<(), StoreError>;

    /// Makes every batch that was applied before the call survive a loss of power.
    ///
    /// # Errors
    /// When the disk did not confirm it. Nothing is known then about what was written since the last success.
    fn sync(&self) -> Result<(), StoreError>;

    /// Does a part of what may be done at any time and need not be done for anybody who waits.
    ///
    /// # Errors
    /// When the database failed.
    fn tidy(&self) -> Result<(), StoreError> {
        Ok(())
    }

    /// The value of a key.
    ///
    /// # Errors
    /// When the value is damaged or the database failed.
    fn get(&self, tree: Tree, key: &[u8]) -> Result<Option<Vec<u8>>, StoreError>;

    /// Visits the pairs from key `from`, inclusive, in order, until the visitor breaks. It is not a snapshot: a batch
    /// applied meanwhile may be seen in part. The visitor may [`get`](Self::get), and do nothing else with the store.
    ///
    /// # Errors
    /// When a value is damaged, the database failed, or the visitor did.
    fn scan(&self, tree: Tree, from: &[u8], visit: &mut Visitor<'_>) -> Result<(), StoreError>;
}

/// Which database of a node.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Database {
    /// The Raft log with its vote.
    Log,
    /// The durable copy of the replicated state.
    State,
}

/// Opens, or makes, the database in a directory. Tests hand in one that fails on purpose.
pub type Opener = Arc<dyn Fn(&Path, Database) -> Result<Arc<dyn Store>, StoreError> + Send + Sync>;

/// A value's place in words.
pub(super) fn place(tree: Tree, key: &[u8]) -> String {
    let key: String = key.iter().take(32).map(|byte| format!("{byte:02x}")).collect();
    format!("{}/{key}", tree.0)
}

/// Refuses what a newer version wrote. Nothing stored means a new database.
pub(super) fn check_format(what: &str, stored: Option<Vec<u8>>, known: u32) -> Result<(), StoreError> {
    let Some(stored) = stored else { return Ok(()) };
    let wrong_length =
        |_| StoreError::Damaged { what: format!("the format of {what}"), why: "its length is wrong".to_owned() };
    let found = stored.try_into().map(u32::from_be_bytes).map_err(wrong_length)?;
    if found > known {
        return Err(StoreError::NewerFormat { what: what.to_owned(), found, known });
    }
    Ok(())
}
