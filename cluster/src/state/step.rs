//! One step of the state machine: typed access to the tables on behalf of one command, and the ways in which it can end.

use bytes::Bytes;
use prost::Message;

use super::tables::{Record, TableId, Tables};
use crate::ids::LogTime;
use crate::rows;

/// A message that is kept as a row of a table.
pub trait Row: Message + Default {
    /// Its table.
    const TABLE: TableId;
}

macro_rules! tables {
    ($($(#[$doc:meta])* $row:ident = $number:literal),* $(,)?) => {
        $(
            $(#[$doc])*
            impl Row for rows::$row {
                const TABLE: TableId = TableId($number);
            }
        )*
    };
}

// A number is never given to another table.
tables! {
    /// One row, key empty.
    Fleet = 1,
    /// One row, key empty.
    Clock = 2,
    /// One row, key empty.
    Office = 3,
    /// By number.
    Node = 4,
    /// By kind, version and holder.
    WrappedKey = 5,
    /// By what it belongs to.
    Secret = 6,
    /// By number.
    Credential = 7,
    /// By SHA-256.
    CredentialRef = 8,
    /// By UUID.
    Model = 9,
    /// By folded name.
    NameClaim = 10,
    /// One row, key empty.
    Settings = 11,
    /// By log index.
    AuditEntry = 12,
    /// By client and sequence number, or by the hash of the caller's key.
    Marker = 13,
    /// By number.
    RemovedNode = 14,
    /// By number.
    Config = 20,
    /// By the SHA-256 of the folded name, which may be longer than a key.
    ConfigRef = 21,
    /// By the credential's number.
    CredentialUse = 22,
    /// By number.
    Deployment = 30,
    /// By deployment and ordinal.
    Placement = 31,
    /// By node, deployment and ordinal.
    Reservation = 32,
    /// By the SHA-256 of the model's name, and deployment.
    ModelAlias = 33,
    /// By deployment and ordinal.
    DeploymentTotals = 34,
}

/// The longest row, in bytes as encoded.
const ROW_LIMIT: usize = 16 * 1024;

/// The longest key of a row.
const KEY_LIMIT: usize = 1000;

/// A row and the index of the entry that wrote it last.
#[derive(Clone, Debug, PartialEq)]
pub struct Stored<R> {
    /// The row.
    pub row: R,
    /// The index.
    pub mod_index: u64,
}

/// A record that is not what its table holds. The state can not be trusted then.
#[derive(Clone, Debug, thiserror::Error, PartialEq, Eq)]
#[error("a record of table {table} is damaged: {why}")]
pub struct Damaged {
    /// The number of the table.
    pub table: u8,
    /// What the decoder says.
    pub why: String,
}

/// Why a command had no effect.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum Stop {
    /// The rules of the domain say no. Every replica says so.
    Refused(rows::Refusal),
    /// This replica can not go on.
    Damaged(Damaged),
}

impl From<Damaged> for Stop {
    fn from(damaged: Damaged) -> Self {
        Self::Damaged(damaged)
    }
}

/// A refusal with its reason.
pub(super) fn refused(kind: rows::RefusalKind, message: impl Into<String>) -> Stop {
    Stop::Refused(rows::Refusal { kind: kind.into(), message: message.into() })
}

pub(super) fn decode<R: Row>(record: &Record) -> Result<Stored<R>, Damaged> {
    match R::decode(record.value.clone()) {
        Ok(row) => Ok(Stored { row, mod_index: record.mod_index }),
        Err(error) => Err(Damaged { table: R::TABLE.0, why: error.to_string() }),
    }
}

/// Reads a row.
pub(super) fn read<R: Row>(tables: &Tables, key: &[u8]) -> Result<Option<Stored<R>>, Damaged> {
    tables.get(R::TABLE, key).map(decode).transpose()
}

/// The tables as one command sees and changes them.
pub(super) struct Step<'a> {
    pub tables: &'a mut Tables,
    /// The index of the command's entry.
    pub index: u64,
    /// The time of the log at this entry.
    pub now: LogTime,
    pub origin: &'a rows::Origin,
}

impl Step<'_> {
    pub fn get<R: Row>(&self, key: &[u8]) -> Result<Option<Stored<R>>, Damaged> {
        read(self.tables, key)
    }

    /// The row of a table that has one.
    pub fn only<R: Row>(&self) -> Result<R, Damaged> {
        Ok(self.get::<R>(&[])?.map(|stored| stored.row).unwrap_or_default())
    }

    /// Writes a row. What would not fit into the store is refused here, where every replica refuses it alike.
    pub fn put<R: Row>(&mut self, key: impl Into<Bytes>, row: &R) -> Result<(), Stop> {
        let (key, value) = (key.into(), row.encode_to_vec());
        if key.len() > KEY_LIMIT || value.len() > ROW_LIMIT {
            let why = format!("it would take {} bytes; the limit is {ROW_LIMIT}", value.len());
            return Err(refused(rows::RefusalKind::TooLarge, why));
        }
        self.tables.put(R::TABLE, key, value, self.index);
        Ok(())
    }

    pub fn remove<R: Row>(&mut self, key: impl Into<Bytes>) {
        self.tables.remove(R::TABLE, key);
    }
}

/// Whether the caller has seen the row as it is.
pub(super) fn check(precondition: Option<&rows::Precondition>, mod_index: u64) -> Result<(), Stop> {
    match precondition {
        Some(expected) if !expected.mod_index.contains(&mod_index) => Err(refused(
            rows::RefusalKind::PreconditionFailed,
            format!("it has changed in the meantime: it is at \"{mod_index}\" now"),
        )),
        _ => Ok(()),
    }
}
