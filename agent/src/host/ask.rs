//! Asking the hosts of other nodes.

use std::collections::HashMap;
use std::io;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use futures_util::StreamExt;
use muster_cluster::ids::{NodeId, PlacementId};
use muster_cluster::transport::{Channels, Purpose, ToNode};
use tokio::sync::OnceCell;
use tonic::Code;
use tonic::service::interceptor::InterceptedService;
use tonic::transport::Channel;

use super::{Host, Parts};
use crate::wire::host_client::HostClient;
use crate::wire::{LookRequest, ReadLogRequest, Seen, TailRequest};

/// How long what a node has said is good.
const GOOD_FOR: Duration = Duration::from_secs(1);

/// How long a node may take to say what it sees.
const LIMIT: Duration = Duration::from_secs(1);

/// How long a node may take to begin to tell of a log.
const LOG_LIMIT: Duration = Duration::from_secs(10);

/// A node does not say what it sees.
#[derive(Clone, Debug, thiserror::Error, PartialEq, Eq)]
#[error("node {node} does not answer: {why}")]
pub struct NoSight {
    /// Which.
    pub node: NodeId,
    /// Why.
    pub why: String,
}

type Answer = Arc<OnceCell<Result<Arc<Seen>, NoSight>>>;

/// The hosts of all nodes, this one's among them. Many who ask at once ask once.
pub struct Hosts {
    own: Arc<Host>,
    pub(super) node: NodeId,
    pub(super) channels: Arc<Channels>,
    // There are no more of them than nodes.
    answers: Mutex<HashMap<NodeId, (Instant, Answer)>>,
}

impl Hosts {
    /// Those that can be reached from this node, whose host this is.
    #[must_use]
    pub fn new(own: Arc<Host>, node: NodeId, channels: Arc<Channels>) -> Self {
        Self { own, node, channels, answers: Mutex::default() }
    }

    /// The host of this node.
    #[must_use]
    pub fn own(&self) -> &Arc<Host> {
        &self.own
    }

    /// What a node sees, at most a second ago.
    ///
    /// # Errors
    /// When it does not say so in time.
    pub async fn look(&self, node: NodeId) -> Result<Arc<Seen>, NoSight> {
        if node == self.node {
            return Ok(Arc::new(self.own.look()));
        }
        let answer = {
            let now = Instant::now();
            let mut answers = self.answers.lock().unwrap_or_else(PoisonError::into_inner);
            let kept = answers.entry(node).or_insert_with(|| (now, Answer::default()));
            if now.saturating_duration_since(kept.0) > GOOD_FOR {
                *kept = (now, Answer::default());
            }
            Arc::clone(&kept.1)
        };
        answer.get_or_init(|| self.ask(node)).await.clone()
    }

    /// The last lines of a placement's log on a node.
    ///
    /// # Errors
    /// When the node does not answer in time, or can not read the log.
    pub async fn tail(&self, node: NodeId, placement: PlacementId, count: usize) -> Result<Vec<String>, NoSight> {
        let silent = |why: String| NoSight { node, why };
        if node == self.node {
            return self.own.tail(placement, count).await.map_err(|error| silent(error.to_string()));
        }
        let count = u32::try_from(count).unwrap_or(u32::MAX);
        let request = TailRequest { deployment: placement.deployment.0, ordinal: placement.ordinal, count };
        match tokio::time::timeout(LOG_LIMIT, self.client(node).tail(request)).await {
            Ok(Ok(lines)) => Ok(lines.into_inner().lines),
            Ok(Err(status)) => Err(silent(status.message().to_owned())),
            Err(_) => Err(silent(format!("not within {LOG_LIMIT:?}"))),
        }
    }

    /// A placement's log on a node; `None` if there is none.
    ///
    /// # Errors
    /// When the node does not answer in time, or can not read the log.
    pub async fn read_log(&self, node: NodeId, placement: PlacementId) -> Result<Option<Parts>, NoSight> {
        let silent = |why: String| NoSight { node, why };
        if node == self.node {
            return self.own.read_log(placement).await.map_err(|error| silent(error.to_string()));
        }
        let request = ReadLogRequest { deployment: placement.deployment.0, ordinal: placement.ordinal };
        let mut client = self.client(node);
        match tokio::time::timeout(LOG_LIMIT, client.read_log(request)).await {
            Ok(Ok(parts)) => {
                let parts = parts.into_inner().map(|part| part.map(|part| part.bytes).map_err(io::Error::other));
                Ok(Some(Box::pin(parts)))
            }
            Ok(Err(status)) if status.code() == Code::NotFound => Ok(None),
            Ok(Err(status)) => Err(silent(status.message().to_owned())),
            Err(_) => Err(silent(format!("not within {LOG_LIMIT:?}"))),
        }
    }

    fn client(&self, node: NodeId) -> HostClient<InterceptedService<Channel, ToNode>> {
        HostClient::with_interceptor(self.channels.to(node, Purpose::Machines), self.channels.route(node))
    }

    async fn ask(&self, node: NodeId) -> Result<Arc<Seen>, NoSight> {
        let silent = |why: String| NoSight { node, why };
        match tokio::time::timeout(LIMIT, self.client(node).look(LookRequest {})).await {
            Ok(Ok(seen)) => Ok(Arc::new(seen.into_inner())),
            Ok(Err(status)) => Err(silent(status.message().to_owned())),
            Err(_) => Err(silent(format!("not within {LIMIT:?}"))),
        }
    }
}
