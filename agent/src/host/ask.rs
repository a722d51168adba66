//! Asking the hosts of other nodes.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use muster_cluster::ids::NodeId;
use muster_cluster::transport::{Channels, Purpose};
use tokio::sync::OnceCell;

use super::Host;
use super::files::FilesOf;
use crate::wire::host_client::HostClient;
use crate::wire::{LookRequest, Seen};

/// How long what a node has said is good.
const GOOD_FOR: Duration = Duration::from_secs(1);

/// How long a node may take to say what it sees.
const LIMIT: Duration = Duration::from_secs(1);

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
    node: NodeId,
    channels: Arc<Channels>,
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

    /// The files of a node. Whether it can be reached shows when it is asked.
    #[must_use]
    pub fn files(&self, node: NodeId) -> FilesOf {
        if node == self.node {
            return FilesOf::own(Arc::clone(self.own.files()));
        }
        FilesOf::of(node, Arc::clone(&self.channels), Arc::clone(self.own.files()))
    }

    async fn ask(&self, node: NodeId) -> Result<Arc<Seen>, NoSight> {
        let silent = |why: String| NoSight { node, why };
        let channel = self.channels.to(node, Purpose::Machines);
        let mut client = HostClient::with_interceptor(channel, self.channels.route(node));
        match tokio::time::timeout(LIMIT, client.look(LookRequest {})).await {
            Ok(Ok(seen)) => Ok(Arc::new(seen.into_inner())),
            Ok(Err(status)) => Err(silent(status.message().to_owned())),
            Err(_) => Err(silent(format!("not within {LIMIT:?}"))),
        }
    }
}
