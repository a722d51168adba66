//! Who this node is: a small file beside the databases, and the private key that is never in them.

use std::path::{Path, PathBuf};

use data_encoding::HEXLOWER;
use serde::{Deserialize, Serialize};
use uuid::Uuid;
use zeroize::Zeroizing;

use crate::ids::{FleetId, NodeId, StoreId};
use crate::sealing::{HolderKey, SealingError};
use crate::storage::{StoreError, read_small, write_private};

const FILE: &str = "node.json";
const KEY_FILE: &str = "node.key";
const LIMIT: u64 = 64 * 1024;

/// What a node knows of itself before it opens its databases.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Identity {
    /// The fleet.
    pub fleet: FleetId,
    /// Its number in the fleet.
    pub node: NodeId,
    /// The log that it has promised things with.
    pub store: StoreId,
    /// Whether it belongs to the fleet yet.
    pub stage: Stage,
}

/// How far a node has come into its fleet.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Stage {
    /// It is founding the fleet. Nobody has been told of it: what is there may be set aside.
    Founding,
    /// It belongs to the fleet.
    Member,
}

#[derive(Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct File {
    format: u32,
    fleet_id: Uuid,
    node_id: u64,
    store_id: Uuid,
    stage: Stage,
}

/// What is wrong with the files that say who a node is.
#[derive(Debug, thiserror::Error)]
pub enum IdentityError {
    /// The disk refuses.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// The file is not what this program writes.
    #[error("{path} does not say who this node is: {why}")]
    Malformed {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        why: String,
    },
    /// The private key is gone, and with it what is sealed for this node.
    #[error(
        "{0} is missing: without its private key this node can not read the fleet's secrets; give it up and join anew"
    )]
    KeyMissing(PathBuf),
    /// There is no randomness for a key.
    #[error(transparent)]
    Sealing(#[from] SealingError),
}

impl Identity {
    /// Reads who the node of this data directory is, or `None` if it belongs to no fleet.
    ///
    /// # Errors
    /// When the file is there and can not be read.
    pub fn load(directory: &Path) -> Result<Option<Self>, IdentityError> {
        let path = directory.join(FILE);
        let Some(content) = read_small(&path, LIMIT)? else { return Ok(None) };
        let malformed = |why: String| IdentityError::Malformed { path: path.clone(), why };
        let file: File = serde_json::from_slice(&content).map_err(|error| malformed(error.to_string()))?;
        if file.format != 1 {
            return Err(malformed(format!("its format is {}, and this version reads 1", file.format)));
        }
        let (fleet, node, store) = (FleetId(file.fleet_id), NodeId(file.node_id), StoreId(file.store_id));
        Ok(Some(Self { fleet, node, store, stage: file.stage }))
    }

    /// Writes it, durably.
    ///
    /// # Errors
    /// When the disk refuses.
    pub fn save(&self, directory: &Path) -> Result<(), IdentityError> {
        let file =
            File { format: 1, fleet_id: self.fleet.0, node_id: self.node.0, store_id: self.store.0, stage: self.stage };
        let path = directory.join(FILE);
        let malformed =
            |error: serde_json::Error| IdentityError::Malformed { path: path.clone(), why: error.to_string() };
        let mut content = serde_json::to_vec_pretty(&file).map_err(malformed)?;
        content.push(b'\n');
        Ok(write_private(&path, &content)?)
    }
}

/// Makes the node's private key and keeps it.
pub(super) fn make_key(directory: &Path) -> Result<HolderKey, IdentityError> {
    let key = HolderKey::generate()?;
    let mut text = Zeroizing::new(HEXLOWER.encode(&key.to_bytes()));
    text.push('\n');
    write_private(&directory.join(KEY_FILE), text.as_bytes())?;
    Ok(key)
}

/// Reads the node's private key.
pub(super) fn load_key(directory: &Path) -> Result<HolderKey, IdentityError> {
    let path = directory.join(KEY_FILE);
    let content = Zeroizing::new(read_small(&path, LIMIT)?.ok_or_else(|| IdentityError::KeyMissing(path.clone()))?);
    let malformed = || IdentityError::Malformed { path: path.clone(), why: "it holds no private key".to_owned() };
    let bytes = Zeroizing::new(HEXLOWER.decode(content.trim_ascii()).map_err(|_| malformed())?);
    HolderKey::from_bytes(&bytes).map_err(|_| malformed())
}
