//! Who this node is: a small file beside the databases, and the private key that is never in them.

use std::path::{Path, PathBuf};

use data_encoding::HEXLOWER;
use serde::{Deserialize, Serialize};
use uuid::Uuid;
use zeroize::Zeroizing;

use crate::ids::{FleetId, NodeId, StoreId};
use crate::sealing::{HolderKey, SealingError};
use crate::storage::{StoreError, read_small, write_private};
use crate::transport::{CertificateError, Peer, TlsIdentity};

const FILE: &str = "node.json";
const KEY_FILE: &str = "node.key";
const TLS_KEY_FILE: &str = "node-tls.key";
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
    /// The fleet's recovery generation.
    pub generation: u64,
    /// The certificate that the fleet's authority gave to this node (DER).
    pub certificate: Vec<u8>,
    /// The authority's own certificate (DER).
    pub ca_certificate: Vec<u8>,
    /// Nodes that were met: whom to ask while the replicated state is not there yet.
    pub met: Vec<Peer>,
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
    generation: u64,
    certificate: String,
    ca_certificate: String,
    met: Vec<Met>,
}

#[derive(Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct Met {
    node_id: u64,
    store_id: Uuid,
    address: String,
    tls_key: String,
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
    /// A key or certificate for TLS can not be made or read.
    #[error(transparent)]
    Certificate(#[from] CertificateError),
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
        let bytes = |text: &str| HEXLOWER.decode(text.as_bytes()).map_err(|error| malformed(error.to_string()));
        let peer = |met: &Met| {
            let (node, store) = (NodeId(met.node_id), StoreId(met.store_id));
            Ok(Peer { node, store, address: met.address.clone(), tls_key: bytes(&met.tls_key)? })
        };
        Ok(Some(Self {
            fleet: FleetId(file.fleet_id),
            node: NodeId(file.node_id),
            store: StoreId(file.store_id),
            stage: file.stage,
            generation: file.generation,
            certificate: bytes(&file.certificate)?,
            ca_certificate: bytes(&file.ca_certificate)?,
            met: file.met.iter().map(peer).collect::<Result<_, IdentityError>>()?,
        }))
    }

    /// Writes it, durably.
    ///
    /// # Errors
    /// When the disk refuses.
    pub fn save(&self, directory: &Path) -> Result<(), IdentityError> {
        let met = |peer: &Peer| Met {
            node_id: peer.node.0,
            store_id: peer.store.0,
            address: peer.address.clone(),
            tls_key: HEXLOWER.encode(&peer.tls_key),
        };
        let file = File {
            format: 1,
            fleet_id: self.fleet.0,
            node_id: self.node.0,
            store_id: self.store.0,
            stage: self.stage,
            generation: self.generation,
            certificate: HEXLOWER.encode(&self.certificate),
            ca_certificate: HEXLOWER.encode(&self.ca_certificate),
            met: self.met.iter().map(met).collect(),
        };
        let path = directory.join(FILE);
        let malformed =
            |error: serde_json::Error| IdentityError::Malformed { path: path.clone(), why: error.to_string() };
        let mut content = serde_json::to_vec_pretty(&file).map_err(malformed)?;
        content.push(b'\n');
        Ok(write_private(&path, &content)?)
    }
}

/// The private keys of a node: what is sealed for it, and what it shows in TLS.
pub(super) struct NodeKeys {
    pub holder: HolderKey,
    /// PKCS#8.
    pub tls: Zeroizing<Vec<u8>>,
}

fn write_key(path: &Path, key: &[u8]) -> Result<(), IdentityError> {
    let mut text = Zeroizing::new(HEXLOWER.encode(key));
    text.push('\n');
    Ok(write_private(path, text.as_bytes())?)
}

fn read_key(path: &Path) -> Result<Option<Zeroizing<Vec<u8>>>, IdentityError> {
    let Some(content) = read_small(path, LIMIT)?.map(Zeroizing::new) else { return Ok(None) };
    let malformed = || IdentityError::Malformed { path: path.to_owned(), why: "it holds no private key".to_owned() };
    let bytes = HEXLOWER.decode(content.trim_ascii()).map_err(|_| malformed())?;
    Ok(Some(Zeroizing::new(bytes)))
}

impl NodeKeys {
    /// Makes new keys and keeps them.
    pub fn make(directory: &Path) -> Result<Self, IdentityError> {
        let keys = Self { holder: HolderKey::generate()?, tls: TlsIdentity::generate_key()? };
        write_key(&directory.join(KEY_FILE), &keys.holder.to_bytes())?;
        write_key(&directory.join(TLS_KEY_FILE), &keys.tls)?;
        Ok(keys)
    }

    /// Reads the keys, or `None` if one of them is not there.
    pub fn find(directory: &Path) -> Result<Option<Self>, IdentityError> {
        let path = directory.join(KEY_FILE);
        let malformed = || IdentityError::Malformed { path: path.clone(), why: "it holds no private key".to_owned() };
        let (Some(holder), Some(tls)) = (read_key(&path)?, read_key(&directory.join(TLS_KEY_FILE))?) else {
            return Ok(None);
        };
        Ok(Some(Self { holder: HolderKey::from_bytes(&holder).map_err(|_| malformed())?, tls }))
    }

    /// Reads the keys of a node that must have them.
    pub fn load(directory: &Path) -> Result<Self, IdentityError> {
        let missing = [KEY_FILE, TLS_KEY_FILE].into_iter().map(|file| directory.join(file)).find(|path| !path.exists());
        match (Self::find(directory)?, missing) {
            (Some(keys), _) => Ok(keys),
            (None, missing) => Err(IdentityError::KeyMissing(missing.unwrap_or_else(|| directory.to_owned()))),
        }
    }
}
