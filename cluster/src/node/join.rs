//! Joining a fleet: from both sides.

use std::io;
use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use data_encoding::HEXLOWER;
use hyper_util::rt::TokioIo;
use prost::Message;
use serde::{Deserialize, Serialize};
use tokio::net::lookup_host;
use tokio::sync::Semaphore;
use tokio::time::timeout;
use tonic::transport::{Endpoint, Uri};
use tonic::{Code, Request, Response, Status};
use tower::service_fn;
use uuid::Uuid;

use super::NodeOptions;
use super::identity::{Identity, IdentityError, NodeKeys, Stage};
use crate::consensus::Consensus;
use crate::ids::{FleetId, NodeId, StoreId};
use crate::rows::{Node, NodeFacts, Origin, RefusalKind, RegisterNode, answer::Outcome, command::Body};
use crate::sealing::{Keyring, SecretText};
use crate::state::key_hash;
use crate::storage::{StoreError, make_directory, read_small, sync_directory, write_private};
use crate::transport::{Authority, Peer, Registered, TlsIdentity, connect, join_config};
use crate::wire::join_client::JoinClient;
use crate::wire::join_server::{Join, JoinServer};
use crate::wire::{JoinAnswer, JoinRequest, Member};

/// The longest request of somebody who has shown no certificate, in bytes.
const REQUEST_LIMIT: usize = 16 * 1024;

/// How many of them are answered at once.
const AT_ONCE: usize = 4;

/// How long a refused one waits for its answer, so that guessing is slow.
const REFUSAL_DELAY: Duration = Duration::from_millis(200);

/// How long a node waits before it asks again.
const ASK_AGAIN: Duration = Duration::from_secs(1);

/// How long looking up a name may take.
const RESOLVE_LIMIT: Duration = Duration::from_secs(5);

/// How long one question may take.
const ANSWER_LIMIT: Duration = Duration::from_secs(20);

const PREFIX: &str = "muster1.";

/// The file that keeps what a node has said of itself, so that it is the same node when it asks again.
pub(super) const FILE: &str = "joining.json";

/// What a node shows to join: how to recognise the fleet, and a secret.
#[derive(Clone, Debug)]
pub struct JoinToken {
    ca_hash: [u8; 32],
    secret: SecretText,
}

impl JoinToken {
    /// The token for a fleet whose authority has this certificate.
    #[must_use]
    pub fn new(ca_certificate: &[u8], secret: SecretText) -> Self {
        Self { ca_hash: crate::transport::ca_hash(ca_certificate), secret }
    }

    /// The token as text.
    #[must_use]
    pub fn to_text(&self) -> SecretText {
        SecretText::new(format!("{PREFIX}{}.{}", HEXLOWER.encode(&self.ca_hash), self.secret.reveal()))
    }

    /// Reads a token, or `None` if it is none.
    #[must_use]
    pub fn parse(text: &str) -> Option<Self> {
        let (hash, secret) = text.trim().strip_prefix(PREFIX)?.split_once('.')?;
        let ca_hash = HEXLOWER.decode(hash.as_bytes()).ok()?.try_into().ok()?;
        Some(Self { ca_hash, secret: SecretText::new(secret.to_owned()) })
    }
}

/// Why a node has not joined.
#[derive(Debug, thiserror::Error)]
pub enum JoinError {
    /// The fleet does not want it. Trying again does not help.
    #[error("the fleet refuses this node: {0}")]
    Refused(String),
    /// The keys or the identity could not be kept.
    #[error(transparent)]
    Identity(#[from] IdentityError),
    /// The answer makes no sense.
    #[error("the answer of the fleet makes no sense: {0}")]
    Answer(&'static str),
    /// There is no TLS.
    #[error("there is no TLS: {0}")]
    Tls(String),
}

#[derive(Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Joining {
    store_id: Uuid,
}

/// Makes the node of a data directory a member of a fleet: asks the nodes at the addresses that `find` finds, one after the
/// other, and finds and asks again, until one answers. A name stands for each of its addresses, and may lead elsewhere the next
/// time. A node that belongs to a fleet already is left alone.
///
/// # Errors
/// See [`JoinError`]. That nobody answers is no error: it asks again.
pub async fn join<F: Future<Output = Vec<String>>>(
    options: &NodeOptions,
    find: impl Fn() -> F,
    token: &JoinToken,
) -> Result<(), JoinError> {
    if matches!(Identity::load(&options.directory)?, Some(Identity { stage: Stage::Member, .. })) {
        return Ok(());
    }
    make_directory(&options.directory).map_err(IdentityError::from)?;
    let store = own_store(options)?;
    let keys = match NodeKeys::find(&options.directory)? {
        Some(keys) => keys,
        None => NodeKeys::make(&options.directory)?,
    };
    let request = JoinRequest {
        secret: token.secret.reveal().to_owned(),
        store: store.as_bytes().to_vec().into(),
        sealing_key: keys.holder.public().into(),
        tls_key: TlsIdentity::public_key(&keys.tls).map_err(IdentityError::from)?.into(),
        facts: options.facts.encode_to_vec().into(),
    };
    loop {
        for name in find().await {
            // Each has its own time: the first of a name's addresses may be one from which nothing ever comes.
            for address in resolve(&name).await {
                match ask(address, token, request.clone()).await {
                    Ok(answer) => return keep(options, store, answer),
                    Err(status) if is_final(&status) => return Err(JoinError::Refused(status.message().to_owned())),
                    Err(status) => {
                        tracing::warn!(name, %address, why = status.message(), "no answer to the wish to join yet");
                    }
                }
            }
        }
        tokio::time::sleep(ASK_AGAIN).await;
    }
}

/// Every address that a name leads to now.
async fn resolve(name: &str) -> Vec<SocketAddr> {
    if let Ok(address) = name.parse() {
        return vec![address];
    }
    let why = match timeout(RESOLVE_LIMIT, lookup_host(name)).await {
        Ok(Ok(found)) => {
            let mut addresses: Vec<SocketAddr> = Vec::new();
            for address in found {
                if !addresses.contains(&address) {
                    addresses.push(address);
                }
            }
            return addresses;
        }
        Ok(Err(error)) => error.to_string(),
        Err(_) => format!("no answer within {} s", RESOLVE_LIMIT.as_secs()),
    };
    tracing::warn!(name, why, "the name of a node leads nowhere yet");
    Vec::new()
}

fn is_final(status: &Status) -> bool {
    matches!(
        status.code(),
        Code::PermissionDenied | Code::InvalidArgument | Code::AlreadyExists | Code::FailedPrecondition
    )
}

/// The identity that the log will be made with; the same each time it asks.
fn own_store(options: &NodeOptions) -> Result<StoreId, JoinError> {
    let path = options.directory.join(FILE);
    if let Some(content) = read_small(&path, 4096).map_err(IdentityError::from)?
        && let Ok(joining) = serde_json::from_slice::<Joining>(&content)
    {
        return Ok(StoreId(joining.store_id));
    }
    let store = StoreId::random();
    let content = serde_json::to_vec(&Joining { store_id: store.0 }).unwrap_or_default();
    write_private(&path, &content).map_err(IdentityError::from)?;
    Ok(store)
}

/// Forgets that the log is still to be made.
pub(super) fn forget(directory: &Path) -> Result<(), IdentityError> {
    let path = directory.join(FILE);
    match std::fs::remove_file(&path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        Err(error) => Err(StoreError::io(format!("removing {}", path.display()), error).into()),
        Ok(()) => Ok(sync_directory(directory)?),
    }
}

async fn ask(address: SocketAddr, token: &JoinToken, request: JoinRequest) -> Result<JoinAnswer, Status> {
    let config = join_config(token.ca_hash).map_err(|error| Status::internal(error.to_string()))?;
    let (config, target) = (Arc::new(config), address.to_string());
    let connector = service_fn(move |_: Uri| {
        let (config, target) = (Arc::clone(&config), target.clone());
        async move { Ok::<_, io::Error>(TokioIo::new(connect(&target, config).await?)) }
    });
    let asking = async {
        let endpoint = Endpoint::from_static("http://node.muster");
        let channel =
            endpoint.connect_with_connector(connector).await.map_err(|error| Status::unavailable(innermost(&error)))?;
        Ok(JoinClient::new(channel).join(request).await?.into_inner())
    };
    let late = || Err(Status::deadline_exceeded("no answer in time"));
    timeout(ANSWER_LIMIT, asking).await.unwrap_or_else(|_| late())
}

/// The innermost reason is the one that says something.
fn innermost(error: &dyn std::error::Error) -> String {
    let chain = std::iter::successors(Some(error), |error| error.source());
    chain.last().map_or_else(String::new, ToString::to_string)
}

/// Keeps what the fleet has said; the node is a member from then on.
fn keep(options: &NodeOptions, store: StoreId, answer: JoinAnswer) -> Result<(), JoinError> {
    let peer = |member: Member| {
        let store = StoreId::from_slice(&member.store)?;
        let (node, tls_key) = (NodeId(member.node), member.tls_key.to_vec());
        Some(Peer { node, store, address: member.address, tls_key })
    };
    let identity = Identity {
        fleet: FleetId::from_slice(&answer.fleet).ok_or(JoinError::Answer("it names no fleet"))?,
        node: NodeId(answer.node),
        store,
        stage: Stage::Member,
        generation: answer.generation,
        certificate: answer.certificate.to_vec(),
        ca_certificate: answer.ca_certificate.to_vec(),
        met: answer.members.into_iter().filter_map(peer).collect(),
    };
    Ok(identity.save(&options.directory)?)
}

/// Lets nodes in.
pub(super) struct JoinService {
    pub consensus: Arc<Consensus>,
    pub keyring: Keyring,
    pub identity: Identity,
    pub registered: Arc<Registered>,
    pub places: Semaphore,
}

impl JoinService {
    /// The service with its limits.
    pub fn server(
        consensus: Arc<Consensus>,
        keyring: Keyring,
        identity: Identity,
        registered: Arc<Registered>,
    ) -> JoinServer<Self> {
        let service = Self { consensus, keyring, identity, registered, places: Semaphore::new(AT_ONCE) };
        JoinServer::new(service).max_decoding_message_size(REQUEST_LIMIT)
    }

    async fn admit(&self, request: JoinRequest) -> Result<JoinAnswer, Status> {
        let internal = |error: &dyn std::fmt::Display| Status::internal(error.to_string());
        let facts = NodeFacts::decode(request.facts).map_err(|error| Status::invalid_argument(error.to_string()))?;
        if StoreId::from_slice(&request.store).is_none() || facts.name.is_empty() || facts.mesh.is_empty() {
            return Err(Status::invalid_argument("the request does not say who asks"));
        }
        let highest = *crate::state::FEATURE_LEVELS.end();
        if facts.max_level.abs_diff(highest) > 1 {
            let why = format!("this fleet runs feature level {highest}, and the node supports {}", facts.max_level);
            return Err(Status::failed_precondition(why));
        }
        let authority =
            self.keyring.authority_key().ok_or_else(|| Status::unavailable("this node can not sign yet"))?;
        let authority = Authority::from_key(self.identity.fleet, &authority).map_err(|error| internal(&error))?;
        // Before anything is stored: a key that is none must not become a member.
        let sign = |node| authority.sign(node, &request.tls_key, SystemTime::now());
        sign(NodeId(0)).map_err(|error| Status::invalid_argument(error.to_string()))?;
        let keys = self.keyring.wrap_all(&request.sealing_key);
        let command = RegisterNode {
            token_sha256: key_hash(&request.secret).to_vec().into(),
            node: Some(Node {
                store_id: request.store,
                sealing_key: request.sealing_key,
                facts: Some(facts.clone()),
                tls_key: request.tls_key.clone(),
                ..Node::default()
            }),
            keys: keys.map_err(|error| Status::invalid_argument(error.to_string()))?,
        };
        let origin = Origin { principal: "join".to_owned(), source: facts.name, ..Origin::default() };
        let answer = self.consensus.propose(origin, Body::RegisterNode(command)).await;
        let node = match answer.map_err(|error| Status::unavailable(error.to_string()))?.outcome {
            Some(Outcome::Node(answer)) => NodeId(answer.id),
            Some(Outcome::Refusal(refusal)) => {
                return Err(match refusal.kind() {
                    RefusalKind::Denied => Status::permission_denied(refusal.message),
                    RefusalKind::Conflict => Status::already_exists(refusal.message),
                    _ => Status::internal(refusal.message),
                });
            }
            _ => return Err(Status::internal("an unexpected answer")),
        };
        let member = |peer: &Peer| Member {
            node: peer.node.0,
            store: peer.store.as_bytes().to_vec().into(),
            address: peer.address.clone(),
            tls_key: peer.tls_key.clone().into(),
        };
        Ok(JoinAnswer {
            fleet: self.identity.fleet.as_bytes().to_vec().into(),
            generation: self.identity.generation,
            node: node.0,
            certificate: sign(node).map_err(|error| internal(&error))?.into(),
            ca_certificate: self.identity.ca_certificate.clone().into(),
            members: self.registered.current().peers().filter(|peer| peer.node != node).map(member).collect(),
        })
    }
}

#[tonic::async_trait]
impl Join for JoinService {
    async fn join(&self, request: Request<JoinRequest>) -> Result<Response<JoinAnswer>, Status> {
        let _place = self.places.try_acquire().map_err(|_| Status::unavailable("too many want to join at once"))?;
        match self.admit(request.into_inner()).await {
            Ok(answer) => {
                tracing::info!(node = answer.node, "a node joins");
                Ok(Response::new(answer))
            }
            Err(status) => {
                tracing::warn!(why = status.message(), "a node does not join");
                tokio::time::sleep(REFUSAL_DELAY).await;
                Err(status)
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_token_names_its_fleet() {
        let token = JoinToken::new(b"certificate", SecretText::new("secret.with.dots".to_owned()));
        let again = JoinToken::parse(&format!(" {}\n", token.to_text().reveal())).expect("a token");
        assert_eq!((again.ca_hash, again.secret.reveal()), (token.ca_hash, "secret.with.dots"));
        for wrong in ["", "muster1.", "muster1.ab.secret", "sk-something"] {
            assert!(JoinToken::parse(wrong).is_none(), "{wrong}");
        }
    }
}
