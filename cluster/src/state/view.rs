//! What readers see: all tables at one index.

use super::step::{Damaged, Row, Stored, decode, read};
use super::tables::{Fingerprint, Tables};
use crate::ids::LogTime;
use crate::rows;
use crate::storage::Applied;

/// The replicated state at one index. It does not change, and a copy costs nothing.
#[derive(Clone, Debug, Default)]
pub struct View {
    tables: Tables,
    applied: Applied,
}

impl View {
    /// The view of these tables at this position.
    #[must_use]
    pub fn new(tables: &Tables, applied: &Applied) -> Self {
        let applied = Applied { fingerprint: tables.fingerprint(), ..applied.clone() };
        Self { tables: tables.view(), applied }
    }

    /// The index up to which it has been applied.
    #[must_use]
    pub fn index(&self) -> u64 {
        self.applied.index()
    }

    /// The position, the membership and the hashes.
    #[must_use]
    pub fn applied(&self) -> &Applied {
        &self.applied
    }

    /// What tells this state apart from others.
    #[must_use]
    pub fn fingerprint(&self) -> Fingerprint {
        self.applied.fingerprint
    }

    /// How many records there are.
    #[must_use]
    pub fn len(&self) -> usize {
        self.tables.len()
    }

    /// Whether there is no record.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.tables.is_empty()
    }

    /// The time of the log.
    ///
    /// # Errors
    /// When the row is damaged.
    pub fn time(&self) -> Result<LogTime, Damaged> {
        Ok(LogTime(self.get::<rows::Clock>(&[])?.map_or(0, |clock| clock.row.time_ms)))
    }

    pub(super) fn tables(&self) -> &Tables {
        &self.tables
    }

    /// A row.
    ///
    /// # Errors
    /// When it is damaged.
    pub fn get<R: Row>(&self, key: &[u8]) -> Result<Option<Stored<R>>, Damaged> {
        read(&self.tables, key)
    }

    /// The rows of a table from a key on, in the order of their keys.
    pub fn rows<R: Row>(&self, from: &[u8]) -> impl Iterator<Item = Result<(&[u8], Stored<R>), Damaged>> + use<'_, R> {
        self.tables.range(R::TABLE, from).map(|(key, record)| Ok((key, decode(record)?)))
    }
}
