//! What is written down of a unit, in `unit.json` and `exit.json` of its directory. Both belong to this process alone: an
//! engine that could write them could name processes to be ended.

use std::path::{Path, PathBuf};

use muster_cluster::ids::{DeploymentId, FleetId, NodeId, PlacementEpoch, PlacementId};
use muster_cluster::storage::{read_small, write_private};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use uuid::Uuid;

use super::kernel::Identity;
use crate::runtime::{EngineKind, Exit, Owner, RuntimeError, RuntimeKind, UnitId};

/// The shape of the record.
const VERSION: u32 = 1;

/// Records are small; what is larger was not written by this process.
const LIMIT: u64 = 64 << 10;

const UNIT: &str = "unit.json";
const EXIT: &str = "exit.json";

/// What is known of a unit.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Record {
    version: u32,
    fleet: Uuid,
    pub(super) generation: u64,
    node: u64,
    deployment: u64,
    ordinal: u32,
    epoch: u64,
    /// The directory of the engine's socket.
    pub(super) socket_directory: PathBuf,
    pub(super) stage: Stage,
}

/// How far a unit has come.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum Stage {
    /// Its place is ready.
    Placed,
    /// Its process may have been started; only the process table knows.
    Launching(Order),
    /// Its process has been started, and never will be again.
    Launched(Order, Started),
}

/// What was to be started.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Order {
    engine: String,
    pub(super) spec_hash: String,
    /// Who runs it.
    pub(super) uid: u32,
}

/// What was started.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Started {
    pub(super) process: Identity,
    /// The boot of the machine that the process belongs to.
    pub(super) boot_id: String,
    pub(super) cgroup: Option<PathBuf>,
}

#[derive(Serialize, Deserialize)]
struct ExitRecord {
    code: Option<i32>,
    signal: Option<i32>,
    out_of_memory: bool,
}

impl Order {
    pub(super) fn new(engine: EngineKind, spec_hash: String, uid: u32) -> Self {
        Self { engine: engine.name().to_owned(), spec_hash, uid }
    }

    /// `None`: it was written by another version.
    pub(super) fn engine(&self) -> Option<EngineKind> {
        [EngineKind::Vllm, EngineKind::Sim].into_iter().find(|kind| kind.name() == self.engine)
    }
}

impl Record {
    pub(super) fn placed(owner: Owner, unit: UnitId, socket_directory: PathBuf) -> Self {
        Self {
            version: VERSION,
            fleet: owner.fleet.0,
            generation: owner.generation,
            node: owner.node.0,
            deployment: unit.placement.deployment.0,
            ordinal: unit.placement.ordinal,
            epoch: unit.epoch.0,
            socket_directory,
            stage: Stage::Placed,
        }
    }

    pub(super) fn unit(&self) -> UnitId {
        UnitId {
            placement: PlacementId { deployment: DeploymentId(self.deployment), ordinal: self.ordinal },
            epoch: PlacementEpoch(self.epoch),
        }
    }

    /// Whether it is one of this fleet and node, in whatever generation.
    pub(super) fn is_of(&self, owner: &Owner) -> bool {
        FleetId(self.fleet) == owner.fleet && NodeId(self.node) == owner.node
    }

    pub(super) fn socket(&self) -> PathBuf {
        self.socket_directory.join(super::directory::SOCKET)
    }

    /// Writes it, whole or not at all, and durably.
    pub(super) fn write(&self, directory: &Path) -> Result<(), RuntimeError> {
        write(directory, UNIT, self)
    }

    /// Reads it. `None`: there is none.
    pub(super) fn read(directory: &Path) -> Result<Option<Self>, RuntimeError> {
        let record: Option<Self> = read(directory, UNIT)?;
        match record {
            Some(record) if record.version != VERSION => {
                Err(failed(format!("{} has version {}, which is unknown", directory.display(), record.version)))
            }
            other => Ok(other),
        }
    }
}

/// Writes down how a unit has ended.
pub(super) fn write_exit(directory: &Path, exit: Exit) -> Result<(), RuntimeError> {
    let Exit { code, signal, out_of_memory } = exit;
    write(directory, EXIT, &ExitRecord { code, signal, out_of_memory })
}

/// How a unit has ended, if that was written down.
pub(super) fn read_exit(directory: &Path) -> Result<Option<Exit>, RuntimeError> {
    let record: Option<ExitRecord> = read(directory, EXIT)?;
    Ok(record.map(|ExitRecord { code, signal, out_of_memory }| Exit { code, signal, out_of_memory }))
}

fn write<T: Serialize>(directory: &Path, name: &str, value: &T) -> Result<(), RuntimeError> {
    let text = serde_json::to_vec_pretty(value).map_err(|error| failed(error.to_string()))?;
    write_private(&directory.join(name), &text).map_err(|error| failed(error.to_string()))
}

fn read<T: DeserializeOwned>(directory: &Path, name: &str) -> Result<Option<T>, RuntimeError> {
    let path = directory.join(name);
    let Some(text) = read_small(&path, LIMIT).map_err(|error| failed(error.to_string()))? else { return Ok(None) };
    let value = serde_json::from_slice(&text).map_err(|error| failed(format!("{}: {error}", path.display())))?;
    Ok(Some(value))
}

pub(super) fn failed(why: String) -> RuntimeError {
    RuntimeError::Failed { runtime: RuntimeKind::Process, why }
}
