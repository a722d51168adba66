//! What can go wrong on a node's own disk. All of it is on our side, except for what a caller asks for against the rules;
//! none of it is worth a retry on this node.

use std::io;
use std::path::PathBuf;
use std::sync::Arc;

/// A read or write of the store failed.
///
/// [`TooLarge`](Self::TooLarge) and [`OutOfOrder`](Self::OutOfOrder) refuse a request and leave the store as it was. Every
/// other variant is final for the store that returned it: a failed sync may have dropped the very pages it failed on, so
/// trying again would only hide the loss.
#[derive(Clone, Debug, thiserror::Error)]
pub enum StoreError {
    /// The operating system refused: a full disk, a failing disk, a missing permission.
    #[error("{doing}: {source}")]
    Io {
        /// What was being done, with the path.
        doing: String,
        /// The operating system's answer.
        source: Arc<io::Error>,
    },
    /// The embedded database panicked, as it does on data that it did not write.
    #[error("{doing}: panic: {why}")]
    Panicked {
        /// What was being done, with the path.
        doing: String,
        /// The database's own words.
        why: String,
    },
    /// The embedded database refused for a reason of its own.
    #[error("{doing}: {why}")]
    Database {
        /// What was being done, with the path.
        doing: String,
        /// The database's own words.
        why: String,
    },
    /// A stored value is not what was written.
    #[error("{what} is damaged: {why}")]
    Damaged {
        /// Which value, by tree and key.
        what: String,
        /// What does not fit.
        why: String,
    },
    /// It was written by a newer version, which this one must not touch.
    #[error("{what} has format {found}, this version reads up to {known}; start the version that wrote it")]
    NewerFormat {
        /// The file or database.
        what: String,
        /// The format found.
        found: u32,
        /// The newest format known here.
        known: u32,
    },
    /// A value is longer than may be stored. Nothing was written.
    #[error("{what} has {len} bytes, at most {max} can be stored")]
    TooLarge {
        /// Which value.
        what: String,
        /// Its length in bytes.
        len: usize,
        /// The limit in bytes.
        max: usize,
    },
    /// An operation breaks a rule of the log: a hole, or a step backwards.
    #[error("the log refuses {what}: {why}")]
    OutOfOrder {
        /// The operation.
        what: &'static str,
        /// The rule that it breaks, with the numbers.
        why: String,
    },
    /// The store failed earlier and takes nothing more.
    #[error("the store stopped after an earlier failure: {0}")]
    Failed(Arc<StoreError>),
    /// The store was closed.
    #[error("the store is closed")]
    Closed,
}

impl StoreError {
    /// An operating system error while doing something to a path.
    pub(crate) fn io(doing: impl Into<String>, source: io::Error) -> Self {
        Self::Io { doing: doing.into(), source: Arc::new(source) }
    }

    /// Whether the store can go on after this error.
    #[must_use]
    pub fn is_fatal(&self) -> bool {
        !matches!(self, Self::TooLarge { .. } | Self::OutOfOrder { .. })
    }

    /// Whether it says that what is stored can not be trusted, rather than that it could not be reached.
    #[must_use]
    pub fn is_damage(&self) -> bool {
        matches!(self, Self::Damaged { .. } | Self::Panicked { .. })
    }
}

impl From<StoreError> for io::Error {
    fn from(error: StoreError) -> Self {
        let kind = match &error {
            StoreError::Io { source, .. } => source.kind(),
            StoreError::Damaged { .. } => io::ErrorKind::InvalidData,
            StoreError::TooLarge { .. } | StoreError::OutOfOrder { .. } => io::ErrorKind::InvalidInput,
            StoreError::Panicked { .. }
            | StoreError::Database { .. }
            | StoreError::NewerFormat { .. }
            | StoreError::Failed(_)
            | StoreError::Closed => io::ErrorKind::Other,
        };
        Self::new(kind, error.to_string())
    }
}

/// The data directory could not be opened.
#[derive(Clone, Debug, thiserror::Error)]
pub enum OpenError {
    /// Another process has it open.
    #[error("{} is in use by another process", .0.display())]
    InUse(PathBuf),
    /// The disk did not do what was asked, or a newer version wrote the data, which may be sound.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// The data can not be trusted to hold what this node has acknowledged. It must not vote with it.
    #[error("{} is unusable: {why}", path.display())]
    Unusable {
        /// The data directory.
        path: PathBuf,
        /// Why it can not be trusted.
        why: Unusable,
    },
}

/// Why a data directory can not be trusted to hold what its node has acknowledged.
#[derive(Clone, Debug, thiserror::Error)]
pub enum Unusable {
    /// The log's database is gone although this node has had one.
    #[error("the Raft log is missing, but the floor file of store {store} remains")]
    LogMissing {
        /// The identity of the log that is missing.
        store: String,
    },
    /// The log's database does not open, or holds a value that is not what was written.
    #[error("the Raft log does not open: {0}")]
    LogDamaged(StoreError),
    /// The log is another one than the floor file was written for.
    #[error("the Raft log is store {found}, but this directory belongs to store {expected}")]
    WrongStore {
        /// The identity in the floor file.
        expected: String,
        /// The identity in the log.
        found: String,
    },
    /// The log ends before what was known to be durable, or its vote is older.
    #[error("the Raft log has lost acknowledged writes: it holds {found}, but {floor} was durable")]
    BelowFloor {
        /// What the log holds.
        found: String,
        /// What had been durable.
        floor: String,
    },
    /// Entries were purged that neither the state nor any snapshot covers.
    #[error("log entries up to {purged} are purged, but the state and the snapshots reach only {covered}")]
    StateLost {
        /// The purge point.
        purged: u64,
        /// The highest index that state or snapshots hold.
        covered: u64,
    },
    /// There is a log with a past, and no floor file to compare it with.
    #[error("the floor file is missing, so nobody can say whether the Raft log is the newest one")]
    FloorMissing,
    /// The floor file has no readable slot.
    #[error("the floor file is damaged: {0}")]
    FloorDamaged(String),
}
