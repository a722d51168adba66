//! What the handlers work with.

use std::sync::Arc;

use muster_agent::host::{Host, Hosts};
use muster_agent::serving::Serving;
use muster_cluster::clocks::Clocks;
use muster_cluster::consensus::Consensus;
use muster_cluster::membership::Gossip;
use muster_cluster::node::{Identity, Node};
use muster_cluster::sealing::Keyring;
use muster_cluster::state::Published;
use muster_cluster::transport::Channels;
use tokio::sync::{Semaphore, watch};

use crate::error::ApiError;
use crate::events::SOCKETS;
use crate::gateway::Tally;
use crate::metrics::Metrics;

/// Where this node is in its life.
#[derive(Clone)]
pub enum Phase {
    /// It is opening its data and catching up.
    Starting,
    /// It belongs to no fleet.
    Unconfigured,
    /// It belongs to a fleet and works.
    Member(Member),
    /// Another process serves the node from now on. Requests to models that come here still are answered from what was known.
    HandedOver(Replica),
    /// It can not go on.
    Stopped(String),
}

/// The parts of a running node that the API needs.
#[derive(Clone)]
pub struct Member {
    /// The replicated log and state.
    pub consensus: Arc<Consensus>,
    /// The clocks of the fleet.
    pub clocks: Clocks,
    /// The machines of the fleet.
    pub hosts: Arc<Hosts>,
    /// What needs no stores.
    pub replica: Replica,
}

/// The parts of a node that outlive its stores. The gateway needs no others.
#[derive(Clone)]
pub struct Replica {
    /// The state as this node knows it.
    pub published: Arc<Published>,
    /// The fleet's keys.
    pub keyring: Keyring,
    /// Who the node is.
    pub identity: Identity,
    /// Its ways to other nodes.
    pub channels: Arc<Channels>,
    /// What it has heard of them.
    pub gossip: Gossip,
    /// What it serves itself.
    pub serving: Arc<Serving>,
}

impl Member {
    /// The parts of this node.
    #[must_use]
    pub fn of(node: &Node, host: &Arc<Host>) -> Self {
        Self {
            consensus: Arc::clone(node.consensus()),
            clocks: node.clocks().clone(),
            hosts: Arc::new(Hosts::new(Arc::clone(host), node.identity().node, Arc::clone(node.channels()))),
            replica: Replica {
                published: Arc::clone(node.consensus().published()),
                keyring: node.keyring().clone(),
                identity: node.identity().clone(),
                channels: Arc::clone(node.channels()),
                gossip: node.gossip().clone(),
                serving: Arc::clone(host.serving()),
            },
        }
    }
}

/// Who is let in without a credential.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum AuthMode {
    /// Nobody.
    #[default]
    Required,
    /// Everybody, as administrator: the trusted network of seed 004. Not to be used where strangers can reach the node.
    None,
}

/// Settings of the API on this node.
#[derive(Clone, Debug)]
pub struct ApiOptions {
    /// Who is let in without a credential.
    pub auth: AuthMode,
    /// The longest body of a request to `/api/*`, in bytes.
    pub body_limit: usize,
    /// The user that this process runs as: it and root are administrators on the local socket.
    pub own_uid: Option<u32>,
    /// The names by which this node may be asked where nobody needs a credential, besides addresses and localhost.
    pub hosts: Arc<[String]>,
}

impl Default for ApiOptions {
    fn default() -> Self {
        Self { auth: AuthMode::Required, body_limit: 1024 * 1024, own_uid: None, hosts: Arc::new([]) }
    }
}

/// What every handler can get at. Clones share it.
#[derive(Clone)]
pub struct ApiState {
    phase: watch::Receiver<Phase>,
    /// Settings of the API on this node.
    pub options: ApiOptions,
    /// What is counted.
    pub metrics: Arc<Metrics>,
    /// What is counted of requests to models.
    pub(crate) tally: Arc<Tally>,
    /// Places for sockets that are told what changes.
    pub(crate) sockets: Arc<Semaphore>,
}

impl ApiState {
    /// The state of an API whose node is in this phase.
    #[must_use]
    pub fn new(phase: watch::Receiver<Phase>, options: ApiOptions) -> Self {
        let sockets = Arc::new(Semaphore::new(SOCKETS));
        Self { phase, options, metrics: Arc::default(), tally: Arc::default(), sockets }
    }

    /// Where the node is in its life.
    #[must_use]
    pub fn phase(&self) -> Phase {
        self.phase.borrow().clone()
    }

    /// Asks what this node knows, or says why it knows nothing.
    pub(crate) fn with_replica<T>(&self, ask: impl FnOnce(&Replica) -> T) -> Result<T, &'static str> {
        match &*self.phase.borrow() {
            Phase::Member(Member { replica, .. }) | Phase::HandedOver(replica) => Ok(ask(replica)),
            Phase::Starting => Err("it is starting"),
            Phase::Unconfigured => Err(UNCONFIGURED),
            Phase::Stopped(_) => Err(STOPPED),
        }
    }

    /// The running node.
    ///
    /// # Errors
    /// When it does not run. Why it has stopped is not said: strangers get this error too, and the reason may name paths.
    pub fn member(&self) -> Result<Member, ApiError> {
        let why = match &*self.phase.borrow() {
            Phase::Member(member) => return Ok(member.clone()),
            Phase::Starting => "it is starting",
            Phase::Unconfigured => UNCONFIGURED,
            Phase::HandedOver(_) => "another process has taken its place; ask again on a new connection",
            Phase::Stopped(_) => STOPPED,
        };
        Err(ApiError::NotReady(why.to_owned()))
    }
}

/// What a node says that can not go on.
pub(crate) const STOPPED: &str = "it has stopped";

/// What a node says that belongs to no fleet.
pub const UNCONFIGURED: &str = "it belongs to no fleet; found one with `muster init`";
