//! A fleet that goes on from a snapshot, or from the one node that is left of it. It becomes a new generation: nodes of the
//! old one are not spoken to any more.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::SystemTime;

use super::found::{FoundingError, clear_the_ground, only_founder};
use super::identity::{Identity, IdentityError, NodeKeys, Stage};
use super::{NodeOptions, StartError, close, open_consensus};
use crate::consensus::ProposeError;
use crate::ids::{FleetId, NodeId, StoreId};
use crate::rows::{self, Node, Origin, Rebirth, answer::Outcome, command::Body};
use crate::sealing::{HolderKey, Keyring, RefreshError, SealingError};
use crate::state::{ApplyError, Damaged, Fleet, Machine, RECOVERY, Tables, View};
use crate::storage::{
    Applied, LogId, Membership, NodeStorage, OpenError, OpenOptions, Payload, SnapshotFile, SnapshotStore, StoreError,
    StoredMembership, TailLimits, Vote, make_directory, set_directory_aside,
};
use crate::transport::{Authority, CertificateError, TlsIdentity};

/// How many bytes of entries are read at once.
const CHUNK: usize = 4 * 1024 * 1024;

/// Where the state lies between being taken from the old data and being the beginning of the new.
const TAKEN: &str = "recovery";

/// What has come of it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Reborn {
    /// The fleet.
    pub fleet: FleetId,
    /// Its generation from now on.
    pub generation: u64,
    /// The number that this node has from now on.
    pub node: NodeId,
    /// The last entry of the old log that is in the state.
    pub index: u64,
    /// Where the old data of this node lies, if there was any.
    pub aside: Option<PathBuf>,
}

/// Why the fleet does not go on.
#[derive(Debug, thiserror::Error)]
pub enum RebirthError {
    /// The data directory can not be used.
    #[error(transparent)]
    Ground(#[from] FoundingError),
    /// The data can not be read or written.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// The data can not be used.
    #[error(transparent)]
    Open(#[from] OpenError),
    /// Who the node is can not be told or kept.
    #[error(transparent)]
    Identity(#[from] IdentityError),
    /// The node belongs to no fleet.
    #[error("{0} belongs to no fleet; there is nothing to recover")]
    NoFleet(PathBuf),
    /// The snapshot is one of a state without a fleet.
    #[error("there is no fleet in this state")]
    Empty,
    /// The recovery key is another fleet's, or of another time.
    #[error("this recovery key does not open this snapshot")]
    WrongKey,
    /// The text is no recovery key.
    #[error(transparent)]
    Sealing(#[from] SealingError),
    /// The keys can not be read.
    #[error(transparent)]
    Keys(#[from] RefreshError),
    /// The fleet's certificate authority is not among the keys.
    #[error("the key of the fleet's authority is not among the keys that this node can read")]
    NoAuthority,
    /// There is no certificate.
    #[error(transparent)]
    Certificate(#[from] CertificateError),
    /// An entry of the log can not be applied.
    #[error(transparent)]
    Apply(#[from] ApplyError),
    /// The state is damaged.
    #[error(transparent)]
    Damaged(#[from] Damaged),
    /// The node did not start.
    #[error(transparent)]
    Start(#[from] StartError),
    /// The first command was not committed.
    #[error(transparent)]
    Propose(#[from] ProposeError),
    /// The first command was refused.
    #[error("the fleet does not go on: {0}")]
    Refused(String),
}

/// Begins the next generation of a fleet from a snapshot, on a machine that belongs to none. The node is not running
/// afterwards. One that was interrupted is begun anew.
///
/// # Errors
/// See [`RebirthError`]. A data directory that belongs to a fleet is left alone.
pub async fn restore(options: NodeOptions, snapshot: &Path, recovery_key: &str) -> Result<Reborn, RebirthError> {
    let holder = HolderKey::from_recovery_text(recovery_key)?;
    let path = snapshot.to_owned();
    let runtime = options.runtime.clone();
    let task = runtime.spawn(async move {
        make_directory(&options.directory)?;
        let _alone = only_founder(&options.directory)?;
        clear_the_ground(&options.directory)?;
        let (tables, applied) = blocking(move || {
            let file = SnapshotFile::inspect(&path)?;
            Ok((file.load()?, file.applied.clone()))
        })
        .await?;
        let view = View::new(&tables, &applied);
        let fleet = view.fleet()?.ok_or(RebirthError::Empty)?;
        if fleet.recovery_key != holder.public() {
            return Err(RebirthError::WrongKey);
        }
        let keyring = Keyring::new(fleet_id(&view)?, []);
        keyring.refresh(&view, RECOVERY, &holder)?;
        let keys = NodeKeys::make(&options.directory)?;
        let taken = Taken { tables, applied, keyring, keys };
        begin(options, taken, None).await
    });
    task.await.map_err(|error| StartError::Interrupted(error.to_string()))?
}

/// Begins the next generation of a fleet from the data of this node, which is all that is left. What only others knew is
/// lost. The node is not running afterwards.
///
/// # Errors
/// See [`RebirthError`].
pub async fn recover(options: NodeOptions) -> Result<Reborn, RebirthError> {
    let runtime = options.runtime.clone();
    let task = runtime.spawn(async move {
        let directory = options.directory.clone();
        let identity = Identity::load(&directory)?.filter(|identity| identity.stage == Stage::Member);
        let identity = identity.ok_or_else(|| RebirthError::NoFleet(directory.clone()))?;
        let keys = NodeKeys::load(&directory)?;
        let taken = SnapshotStore::open(&directory.join(TAKEN))?;
        let mut aside = None;
        if taken.latest().is_none() {
            let (tables, applied) = everything(&directory).await?;
            taken.build(&tables, &applied)?;
        }
        // From here on the state lies beside the old data, and an interruption is taken up again.
        if directory.join("raft").exists() {
            let why = "the fleet went on from the state of this node alone (muster operator recover)";
            aside = Some(set_directory_aside(&directory, why, SystemTime::now())?);
        }
        let file = taken.latest().ok_or(RebirthError::Empty)?;
        let (tables, applied) = blocking(move || Ok((file.load()?, file.applied.clone()))).await?;
        let view = View::new(&tables, &applied);
        let keyring = Keyring::new(fleet_id(&view)?, []);
        keyring.refresh(&view, identity.node, &keys.holder)?;
        let reborn = begin(options, Taken { tables, applied, keyring, keys }, aside).await?;
        let finished = directory.join(TAKEN);
        if let Err(error) = std::fs::remove_dir_all(&finished) {
            tracing::warn!(path = %finished.display(), %error, "what the recovery took is left behind");
        }
        Ok(reborn)
    });
    task.await.map_err(|error| StartError::Interrupted(error.to_string()))?
}

async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, RebirthError> + Send + 'static,
) -> Result<T, RebirthError> {
    let done = tokio::task::spawn_blocking(work).await;
    done.map_err(|error| StartError::Interrupted(error.to_string()))?
}

fn fleet_id(view: &View) -> Result<FleetId, RebirthError> {
    view.fleet_id()?.ok_or(RebirthError::Empty)
}

/// The state with every entry that this node's log has. One that was acknowledged may be there without being known to be
/// committed; giving it up would lose it.
async fn everything(directory: &Path) -> Result<(Tables, Applied), RebirthError> {
    let path = directory.to_owned();
    let storage = blocking(move || {
        let options = OpenOptions {
            fresh_store_id: StoreId::random(),
            now: SystemTime::now(),
            tail: TailLimits::default(),
            journal_bytes: OpenOptions::JOURNAL_BYTES,
        };
        Ok(NodeStorage::open(&path, &options)?)
    })
    .await?;
    let (mut tables, mut applied) = (storage.tables.clone(), storage.applied.clone());
    // A snapshot that was received may be ahead of the durable copy of the state.
    if let Some(file) = storage.snapshots.latest().filter(|file| file.applied.index() > applied.index()) {
        (tables, applied) = (file.load()?, file.applied.clone());
    }
    let last = storage.log.position().last.map_or(0, |id| id.index);
    while applied.index() < last {
        for entry in storage.log.read_up_to(applied.index() + 1, last + 1, CHUNK)? {
            match &entry.payload {
                Payload::Command(command) => drop(Fleet.apply(&mut tables, entry.log_id, command)?),
                Payload::Membership(membership) => {
                    let (log_id, membership) = (Some(entry.log_id), membership.clone());
                    applied.membership = StoredMembership { log_id, membership };
                }
                Payload::Blank => {}
            }
            applied.log_id = Some(entry.log_id);
        }
    }
    applied.fingerprint = tables.fingerprint();
    storage.close().await?;
    Ok((tables, applied))
}

/// What the new generation begins with.
struct Taken {
    tables: Tables,
    applied: Applied,
    /// Every key of the fleet.
    keyring: Keyring,
    /// The node's own.
    keys: NodeKeys,
}

async fn begin(options: NodeOptions, taken: Taken, aside: Option<PathBuf>) -> Result<Reborn, RebirthError> {
    let Taken { tables, mut applied, keyring, keys } = taken;
    let view = View::new(&tables, &applied);
    let (fleet, id) = (view.fleet()?.ok_or(RebirthError::Empty)?, fleet_id(&view)?);
    let (node, generation, index) = (NodeId(fleet.next_node), fleet.generation + 1, applied.index());
    let authority = Authority::from_key(id, &keyring.authority_key().ok_or(RebirthError::NoAuthority)?)?;
    let tls_key = TlsIdentity::public_key(&keys.tls)?;
    let store = StoreId::random();
    let identity = Identity {
        fleet: id,
        node,
        store,
        stage: Stage::Founding,
        generation,
        certificate: authority.sign(node, &tls_key, SystemTime::now())?,
        ca_certificate: fleet.ca_certificate.to_vec(),
        met: Vec::new(),
    };
    if aside.is_none() {
        // On an empty machine: nobody knows of this node yet, and an interruption is begun anew.
        identity.save(&options.directory)?;
    }
    let membership = Membership { configs: vec![BTreeSet::from([node])], nodes: BTreeSet::from([node]) };
    applied.membership = StoredMembership { log_id: applied.log_id, membership };
    plant(&options.directory, store, tables, applied, node).await?;
    let command = Rebirth {
        node: Some(Node {
            id: node.0,
            store_id: store.as_bytes().to_vec().into(),
            sealing_key: keys.holder.public().into(),
            tls_key: tls_key.into(),
            facts: Some(options.facts.clone()),
            ..Node::default()
        }),
        keys: keyring.wrap_all(&keys.holder.public())?,
        generation,
    };
    let consensus = Arc::new(open_consensus(&options, &identity, store, None).await?);
    let origin = Origin { principal: "recovery".to_owned(), ..Origin::default() };
    let outcome = consensus.propose_repeatable(origin, Body::Rebirth(command)).await;
    let closed = close(consensus).await;
    match outcome?.outcome {
        Some(Outcome::Nothing(_)) => {}
        Some(Outcome::Refusal(rows::Refusal { message, .. })) => return Err(RebirthError::Refused(message)),
        _ => return Err(RebirthError::Refused("an unexpected answer".to_owned())),
    }
    closed?;
    Identity { stage: Stage::Member, ..identity }.save(&options.directory)?;
    Ok(Reborn { fleet: id, generation, node, index, aside })
}

/// Makes a data directory whose log begins behind this state, with the node as the only voter.
async fn plant(
    directory: &Path,
    store: StoreId,
    tables: Tables,
    applied: Applied,
    node: NodeId,
) -> Result<(), RebirthError> {
    let path = directory.to_owned();
    let last: Option<LogId> = applied.log_id;
    let storage = blocking(move || {
        let options = OpenOptions {
            fresh_store_id: store,
            now: SystemTime::now(),
            tail: TailLimits::default(),
            journal_bytes: OpenOptions::JOURNAL_BYTES,
        };
        let storage = NodeStorage::open(&path, &options)?;
        storage.snapshots.build(&tables, &applied)?;
        Ok((storage, tables, applied))
    })
    .await?;
    let (storage, tables, applied) = storage;
    storage.state.replace(tables, applied).await?;
    // Whoever is elected is elected in a later term than the state's.
    storage.log.save_vote(Vote { term: last.map_or(0, |id| id.term), node, committed: false }).await?;
    storage.close().await?;
    Ok(())
}
