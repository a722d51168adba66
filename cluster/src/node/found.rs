//! Founding a fleet: its first node, its keys, its first credentials.

use std::fs::{File, TryLockError};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use super::identity::{Identity, IdentityError, NodeKeys, Stage};
use super::{NodeOptions, StartError, close, open_consensus};
use crate::consensus::{Consensus, ProposeError};
use crate::ids::{FleetId, NodeId, StoreId};
use crate::rows::{
    Bootstrap, ConsoleKey, CredentialFields, GatewayKey, Node, Origin, Role, WrappedKey, answer::Outcome,
    command::Body, credential_fields::Kind,
};
use crate::sealing::{DataKey, HolderKey, Keyring, SealingError, SecretText, generate_key};
use crate::state::{FEATURE_LEVELS, key_hash};
use crate::storage::{OpenError, StoreError, make_directory, set_directory_aside};
use crate::transport::{Authority, CertificateError, TlsIdentity};

/// How long the first election may take.
const ELECTION_LIMIT: Duration = Duration::from_secs(60);

/// The fewest characters of a key that somebody chose.
pub const MIN_KEY: usize = 20;

/// What a founder decides.
#[derive(Clone, Debug, Default)]
pub struct FoundingOptions {
    /// The administrator's token; made if it is not given.
    pub admin_token: Option<SecretText>,
}

/// What only the founder gets to see, once.
#[derive(Debug)]
pub struct Founding {
    /// The fleet.
    pub fleet: FleetId,
    /// The administrator's token.
    pub admin_token: SecretText,
    /// Whether the token was made here.
    pub admin_token_generated: bool,
    /// A key for the gateway.
    pub gateway_key: SecretText,
    /// The key that opens a backup when every node is lost.
    pub recovery_key: SecretText,
}

/// Why there is no new fleet.
#[derive(Debug, thiserror::Error)]
pub enum FoundingError {
    /// The data directory belongs to a fleet.
    #[error("{path} belongs to the fleet {fleet} already; nothing was changed")]
    Exists {
        /// The data directory.
        path: PathBuf,
        /// Its fleet.
        fleet: FleetId,
    },
    /// There is a log in the data directory, and nothing that says whose.
    #[error("{0} holds the data of a node, but not who it is (node.json); nothing was changed")]
    Foreign(PathBuf),
    /// The token is too short to be safe.
    #[error("the administrator's token has {0} characters; {MIN_KEY} are the least")]
    WeakToken(usize),
    /// The node did not start.
    #[error(transparent)]
    Start(#[from] StartError),
    /// The node's identity could not be kept.
    #[error(transparent)]
    Identity(#[from] IdentityError),
    /// There is no certificate.
    #[error(transparent)]
    Certificate(#[from] CertificateError),
    /// There is no key.
    #[error(transparent)]
    Sealing(#[from] SealingError),
    /// The first command was not committed.
    #[error(transparent)]
    Propose(#[from] ProposeError),
    /// The first command was refused.
    #[error("the fleet was not founded: {0}")]
    Refused(String),
}

impl From<OpenError> for FoundingError {
    fn from(error: OpenError) -> Self {
        Self::Start(error.into())
    }
}

/// Makes a data directory the first node of a new fleet. The node is not running afterwards.
///
/// A founding that was interrupted has told nobody anything, so what it left is set aside and it begins anew.
///
/// # Errors
/// See [`FoundingError`]. A data directory that belongs to a fleet is left alone.
pub async fn found(options: NodeOptions, founding: FoundingOptions) -> Result<Founding, FoundingError> {
    let runtime = options.runtime.clone();
    let task = runtime.spawn(found_here(options, founding));
    task.await.map_err(|error| StartError::Interrupted(error.to_string()))?
}

fn fields(label: &str, key: &SecretText, kind: Kind) -> CredentialFields {
    CredentialFields {
        label: label.to_owned(),
        sha256: key_hash(key.reveal()).to_vec().into(),
        prefix: prefix(key.reveal()),
        ttl_ms: None,
        kind: Some(kind),
    }
}

/// The first characters of a key: enough to tell keys apart, too few to guess one.
#[must_use]
pub fn prefix(key: &str) -> String {
    let shown = (key.chars().count() / 4).min(8);
    key.chars().take(shown).collect()
}

async fn found_here(options: NodeOptions, founding: FoundingOptions) -> Result<Founding, FoundingError> {
    let admin_token = match &founding.admin_token {
        Some(token) if token.reveal().chars().count() < MIN_KEY => {
            return Err(FoundingError::WeakToken(token.reveal().chars().count()));
        }
        Some(token) => token.clone(),
        None => generate_key()?,
    };
    make_directory(&options.directory).map_err(OpenError::from)?;
    let _alone = only_founder(&options.directory)?;
    clear_the_ground(&options.directory)?;
    let store = StoreId::random();
    let fleet = FleetId::random();
    let (authority, ca_certificate) = Authority::generate(fleet, SystemTime::now())?;
    let mut identity = Identity {
        fleet,
        node: NodeId(1),
        store,
        stage: Stage::Founding,
        generation: 1,
        certificate: Vec::new(),
        ca_certificate,
        met: Vec::new(),
    };
    identity.save(&options.directory)?;
    let keys = NodeKeys::make(&options.directory)?;
    let tls_key = TlsIdentity::public_key(&keys.tls)?;
    identity.certificate = authority.sign(identity.node, &tls_key, SystemTime::now())?;
    let (gateway_key, recovery) = (generate_key()?, HolderKey::generate()?);
    let keyring = Keyring::new(fleet, [DataKey::generate(1)?]);
    let keyring = keyring.with_authority(1, authority.key()).with_gossip(DataKey::generate(1)?);
    let own = keyring.wrap_all(&keys.holder.public())?;
    let own = own.into_iter().map(|key| WrappedKey { holder: identity.node.0, ..key });
    let command = Bootstrap {
        fleet_id: fleet.as_bytes().to_vec().into(),
        feature_level: *FEATURE_LEVELS.end(),
        node: Some(Node {
            id: identity.node.0,
            store_id: store.as_bytes().to_vec().into(),
            sealing_key: keys.holder.public().into(),
            tls_key: tls_key.into(),
            facts: Some(options.facts.clone()),
            ..Node::default()
        }),
        keys: own.chain(keyring.wrap_all(&recovery.public())?).collect(),
        ca_certificate: identity.ca_certificate.clone().into(),
        recovery_key: recovery.public().into(),
        credentials: vec![
            fields("bootstrap administrator", &admin_token, Kind::Console(ConsoleKey { role: Role::Admin.into() })),
            fields("bootstrap gateway key", &gateway_key, Kind::Gateway(GatewayKey::default())),
        ],
    };
    let consensus = Arc::new(open_consensus(&options, &identity, store, None).await?);
    let outcome = propose(&consensus, command).await;
    let closed = close(consensus).await.map_err(|error| StartError::Open(error.into()));
    outcome?;
    closed?;
    Identity { stage: Stage::Member, ..identity }.save(&options.directory)?;
    Ok(Founding {
        fleet,
        admin_token,
        admin_token_generated: founding.admin_token.is_none(),
        gateway_key,
        recovery_key: recovery.to_recovery_text(),
    })
}

async fn propose(consensus: &Consensus, command: Bootstrap) -> Result<(), FoundingError> {
    consensus.initialize().await.map_err(FoundingError::Refused)?;
    let origin = Origin { principal: "bootstrap".to_owned(), ..Origin::default() };
    let deadline = tokio::time::Instant::now() + ELECTION_LIMIT;
    let answer = loop {
        // It waits for a leader itself, for a while.
        match consensus.propose_repeatable(origin.clone(), Body::Bootstrap(command.clone())).await {
            Err(ProposeError::NoLeader) if tokio::time::Instant::now() < deadline => {}
            outcome => break outcome?,
        }
    };
    match answer.outcome {
        Some(Outcome::Nothing(_)) => Ok(()),
        Some(Outcome::Refusal(refusal)) => Err(FoundingError::Refused(refusal.message)),
        _ => Err(FoundingError::Refused("an unexpected answer".to_owned())),
    }
}

/// Held while a fleet is being founded: two founders would overwrite each other's keys.
pub(super) fn only_founder(directory: &Path) -> Result<File, FoundingError> {
    let path = directory.join("founding.lock");
    let doing = |error| OpenError::from(StoreError::io(format!("locking {}", path.display()), error));
    let file = File::create(&path).map_err(doing)?;
    match file.try_lock() {
        Ok(()) => Ok(file),
        Err(TryLockError::WouldBlock) => Err(OpenError::InUse(directory.to_owned()).into()),
        Err(TryLockError::Error(error)) => Err(doing(error).into()),
    }
}

/// Sees to it that nothing is there that could belong to a fleet.
pub(super) fn clear_the_ground(directory: &Path) -> Result<(), FoundingError> {
    match Identity::load(directory)? {
        Some(Identity { fleet, stage: Stage::Member, .. }) => {
            Err(FoundingError::Exists { path: directory.to_owned(), fleet })
        }
        Some(Identity { stage: Stage::Founding, .. }) => {
            let aside = set_directory_aside(directory, "the founding of a fleet was interrupted", SystemTime::now())?;
            tracing::warn!(to = %aside.display(), "an interrupted founding is set aside; beginning anew");
            Ok(())
        }
        None if ["raft", "floor"].iter().any(|part| directory.join(part).exists()) => {
            Err(FoundingError::Foreign(directory.to_owned()))
        }
        None => Ok(()),
    }
}
