//! Asking the hosts of other nodes.

use std::collections::HashMap;
use std::io;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use futures_util::StreamExt;
use muster_cluster::ids::{NodeId, PlacementId};
use muster_cluster::transport::{Channels, Purpose, ToNode};
use tokio::sync::OnceCell;
use tonic::service::interceptor::InterceptedService;
use tonic::transport::Channel;
use tonic::{Code, Response, Status};

use super::files::FilesOf;
use super::service::{unit, wire_unit};
use super::{Host, Parts};
use crate::runtime::UnitId;
use crate::wire::host_client::HostClient;
use crate::wire::{
    LookRequest, PastAnswer, PastRequest, PortAnswer, PortRequest, ReadLogRequest, RenewRequest, Seen, TailRequest,
};

/// How long what a node has said is good.
const GOOD_FOR: Duration = Duration::from_secs(1);

/// How long a node may take to say what it sees.
const LIMIT: Duration = Duration::from_secs(1);

/// How long the leader may take to renew leases: several times until one is over.
const RENEW_LIMIT: Duration = Duration::from_secs(2);

/// How long a node may take to begin to tell of a log.
const LOG_LIMIT: Duration = Duration::from_secs(10);

/// How long a node may take to try a port, and to say what its figures were.
const PORT_LIMIT: Duration = Duration::from_secs(5);
const PAST_LIMIT: Duration = Duration::from_secs(10);

/// A node does not say what it sees.
#[derive(Clone, Debug, thiserror::Error, PartialEq, Eq)]
#[error("node {node} does not answer: {why}")]
pub struct NoSight {
    /// Which.
    pub node: NodeId,
    /// Why.
    pub why: String,
}

/// What this node knows of another's machine.
#[derive(Clone, Debug, Default)]
pub struct Sight {
    /// What it said last, and how long ago.
    pub last: Option<(Arc<Seen>, Duration)>,
    /// How often in a row it has not answered since.
    pub missed: u32,
}

type Answer = Arc<OnceCell<Result<Arc<Seen>, NoSight>>>;

#[derive(Debug)]
struct Asked {
    at: Instant,
    answer: Answer,
    last: Option<(Arc<Seen>, Instant)>,
    missed: u32,
}

/// The hosts of all nodes, this one's among them. Many who ask at once ask once.
pub struct Hosts {
    own: Arc<Host>,
    pub(super) node: NodeId,
    pub(super) channels: Arc<Channels>,
    // There are no more of them than nodes.
    asked: Mutex<HashMap<NodeId, Asked>>,
}

impl Hosts {
    /// Those that can be reached from this node, whose host this is.
    #[must_use]
    pub fn new(own: Arc<Host>, node: NodeId, channels: Arc<Channels>) -> Self {
        Self { own, node, channels, asked: Mutex::default() }
    }

    /// The host of this node.
    #[must_use]
    pub fn own(&self) -> &Arc<Host> {
        &self.own
    }

    // Only maps are changed while it is held.
    fn asked(&self) -> MutexGuard<'_, HashMap<NodeId, Asked>> {
        self.asked.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What a node sees, at most a second ago.
    ///
    /// # Errors
    /// When it does not say so in time.
    pub async fn look(&self, node: NodeId) -> Result<Arc<Seen>, NoSight> {
        let answer = {
            let now = Instant::now();
            let mut asked = self.asked();
            let kept = asked.entry(node).or_insert_with(|| Asked::new(now));
            if now.saturating_duration_since(kept.at) > GOOD_FOR {
                (kept.at, kept.answer) = (now, Answer::default());
            }
            Arc::clone(&kept.answer)
        };
        let ask = || async {
            let said = self.ask(node).await;
            if let Some(kept) = self.asked().get_mut(&node) {
                kept.note(&said, Instant::now());
            }
            said
        };
        answer.get_or_init(ask).await.clone()
    }

    /// What is known of a node's machine, without asking it.
    #[must_use]
    pub fn sight(&self, node: NodeId) -> Sight {
        self.asked().get(&node).map(Asked::sight).unwrap_or_default()
    }

    /// What the figures of a node's machine were.
    ///
    /// # Errors
    /// When it does not say so in time.
    pub async fn past(&self, node: NodeId, request: PastRequest) -> Result<PastAnswer, NoSight> {
        if node == self.node {
            let past = Arc::clone(&self.own).past(request).await;
            return past.ok_or_else(|| NoSight { node, why: "it is about to end".to_owned() });
        }
        let mut client = self.client(node);
        within(node, PAST_LIMIT, client.past(request)).await
    }

    /// Whether something could listen on a port of a node.
    ///
    /// # Errors
    /// When it does not say so in time.
    pub async fn check_port(&self, node: NodeId, port: u16) -> Result<PortAnswer, NoSight> {
        if node == self.node {
            return Ok(self.own.check_port(port));
        }
        let mut client = self.client(node);
        within(node, PORT_LIMIT, client.check_port(PortRequest { port: u32::from(port) })).await
    }

    /// Asks the leader to let this node go on with these units, and says with which it may.
    ///
    /// # Errors
    /// When the leader does not answer in time, or is none.
    pub async fn renew(&self, leader: NodeId, units: &[UnitId]) -> Result<Vec<UnitId>, NoSight> {
        let silent = |why: String| NoSight { node: leader, why };
        if leader == self.node {
            return self.own.renew(self.node, units).map_err(|why| silent(why.to_owned()));
        }
        let request = RenewRequest { node: self.node.0, units: units.iter().copied().map(wire_unit).collect() };
        match tokio::time::timeout(RENEW_LIMIT, self.client(leader).renew(request)).await {
            Ok(Ok(renewed)) => Ok(renewed.into_inner().units.iter().map(unit).collect()),
            Ok(Err(status)) => Err(silent(status.message().to_owned())),
            Err(_) => Err(silent(format!("not within {RENEW_LIMIT:?}"))),
        }
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

    /// The files of a node. Whether it can be reached shows when it is asked.
    #[must_use]
    pub fn files(&self, node: NodeId) -> FilesOf {
        if node == self.node {
            return FilesOf::own(Arc::clone(self.own.files()));
        }
        FilesOf::of(node, Arc::clone(&self.channels), Arc::clone(self.own.files()))
    }

    async fn ask(&self, node: NodeId) -> Result<Arc<Seen>, NoSight> {
        if node == self.node {
            return Ok(Arc::new(self.own.look().await));
        }
        let mut client = self.client(node);
        within(node, LIMIT, client.look(LookRequest {})).await.map(Arc::new)
    }

    fn client(&self, node: NodeId) -> HostClient<InterceptedService<Channel, ToNode>> {
        HostClient::with_interceptor(self.channels.to(node, Purpose::Machines), self.channels.route(node))
    }
}

async fn within<T>(
    node: NodeId,
    limit: Duration,
    call: impl Future<Output = Result<Response<T>, Status>>,
) -> Result<T, NoSight> {
    match tokio::time::timeout(limit, call).await {
        Ok(Ok(answer)) => Ok(answer.into_inner()),
        Ok(Err(status)) => Err(NoSight { node, why: status.message().to_owned() }),
        Err(_) => Err(NoSight { node, why: format!("not within {limit:?}") }),
    }
}

impl Asked {
    fn new(at: Instant) -> Self {
        Self { at, answer: Answer::default(), last: None, missed: 0 }
    }

    fn note(&mut self, said: &Result<Arc<Seen>, NoSight>, now: Instant) {
        match said {
            Ok(seen) => (self.last, self.missed) = (Some((Arc::clone(seen), now)), 0),
            Err(_) => self.missed = self.missed.saturating_add(1),
        }
    }

    fn sight(&self) -> Sight {
        Sight { last: self.last.as_ref().map(|(seen, at)| (Arc::clone(seen), at.elapsed())), missed: self.missed }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_node_said_last_is_kept_until_it_answers_again() {
        let now = Instant::now();
        let mut asked = Asked::new(now);
        assert!(asked.sight().last.is_none());
        let silent = Err(NoSight { node: NodeId(2), why: "no route".to_owned() });
        let seen = Arc::new(Seen::default());
        asked.note(&silent, now);
        assert_eq!((asked.sight().missed, asked.sight().last.is_some()), (1, false));
        asked.note(&Ok(Arc::clone(&seen)), now);
        assert_eq!(asked.sight().missed, 0);
        asked.note(&silent, now);
        asked.note(&silent, now);
        let sight = asked.sight();
        assert_eq!(sight.missed, 2);
        assert!(Arc::ptr_eq(&sight.last.unwrap().0, &seen));
    }
}
