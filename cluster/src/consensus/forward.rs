//! What a node that does not lead asks the leader: writes and reads, one hop.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use tokio::sync::{mpsc, oneshot};
use tonic::service::interceptor::InterceptedService;
use tonic::transport::Channel;
use tonic::{Code, Status};

use super::network::MESSAGE_LIMIT;
use super::{Consensus, ProposeError, ReadError};
use crate::ids::NodeId;
use crate::transport::{Channels, Inject, Purpose};
use crate::wire::mesh_client::MeshClient;
use crate::wire::pass_on_answer::Outcome as PassedOn;
use crate::wire::propose_outcome::Outcome as Proposed;
use crate::wire::read_index_answer::Outcome as ReadOutcome;
use crate::wire::{PassOnRequest, ProposeOutcome, ProposeRequest, ReadIndexRequest};

/// How many reads may wait for one question to the leader.
const READS: usize = 4096;

/// How long the leader may take to say how far a read must wait.
const ASK_LIMIT: Duration = Duration::from_secs(1);

/// How long one attempt to forward writes may take. It is repeated under the same identities, to whoever leads by then.
const FORWARD_LIMIT: Duration = Duration::from_secs(3);

/// Asks the leader.
pub(super) struct Forward {
    pub channels: Arc<Channels>,
}

impl Forward {
    fn client(&self, leader: NodeId) -> MeshClient<InterceptedService<Channel, Inject>> {
        let inject = Inject { registered: Arc::clone(self.channels.registered()), to: leader };
        MeshClient::with_interceptor(self.channels.to(leader, Purpose::Calls), inject)
            .max_decoding_message_size(MESSAGE_LIMIT)
    }

    /// Sends writes to the leader; for each there is an outcome.
    pub async fn propose(&self, leader: NodeId, commands: Vec<Bytes>) -> Vec<Result<Bytes, ProposeError>> {
        let sent = commands.len();
        let unknown = ProposeError::Unknown { waited: FORWARD_LIMIT, retry_key: None };
        let mut client = self.client(leader);
        let error = match tokio::time::timeout(FORWARD_LIMIT, client.propose_all(ProposeRequest { commands })).await {
            Err(_) => unknown,
            Ok(Err(status)) if never_arrived(&status) => ProposeError::NoLeader,
            Ok(Err(status)) => {
                tracing::debug!(%status, %leader, "forwarded writes have no answer");
                unknown
            }
            Ok(Ok(answer)) => {
                let outcomes = answer.into_inner().outcomes;
                if outcomes.len() == sent {
                    return outcomes.into_iter().map(|outcome| from_wire(outcome, &unknown)).collect();
                }
                unknown
            }
        };
        vec![Err(error); sent]
    }

    /// Asks the leader to give up the lead.
    pub async fn pass_on(&self, leader: NodeId, wish: Option<NodeId>, limit: Duration) -> Result<NodeId, String> {
        let request = PassOnRequest { to: wish.map_or(0, |node| node.0) };
        let asked = tokio::time::timeout(limit + ASK_LIMIT, self.client(leader).pass_on(request)).await;
        let answer = asked.map_err(|_| "the leader does not answer".to_owned())?;
        match answer.map_err(|status| status.message().to_owned())?.into_inner().outcome {
            Some(PassedOn::Leader(leader)) => Ok(NodeId(leader)),
            Some(PassedOn::Refused(why)) => Err(why),
            None => Err("the leader says nothing".to_owned()),
        }
    }

    /// Whether this node answers in time, and says that it follows this leader.
    pub async fn follows(&self, node: NodeId, leader: NodeId, limit: Duration) -> bool {
        let asked = tokio::time::timeout(limit, self.client(node).read_index(ReadIndexRequest {})).await;
        matches!(asked, Ok(Ok(answer)) if answer.get_ref().outcome == Some(ReadOutcome::Leader(leader.0)))
    }

    async fn read_index(&self, leader: NodeId) -> Result<u64, ReadError> {
        let mut client = self.client(leader);
        // A leader that is frozen keeps its connections; everybody who reads here waits behind this question.
        let asking = tokio::time::timeout(ASK_LIMIT, client.read_index(ReadIndexRequest {}));
        let Ok(answer) = asking.await else { return Err(ReadError::NoQuorum) };
        match answer.map(|answer| answer.into_inner().outcome) {
            Ok(Some(ReadOutcome::Index(index))) => Ok(index),
            Ok(Some(ReadOutcome::Leader(leader))) if leader != 0 => Err(ReadError::NotLeader(NodeId(leader))),
            Ok(_) | Err(_) => Err(ReadError::NoQuorum),
        }
    }
}

fn from_wire(outcome: ProposeOutcome, unknown: &ProposeError) -> Result<Bytes, ProposeError> {
    match outcome.outcome {
        Some(Proposed::Answer(answer)) => Ok(answer),
        Some(Proposed::Leader(0)) => Err(ProposeError::NoLeader),
        Some(Proposed::Leader(leader)) => Err(ProposeError::NotLeader(NodeId(leader))),
        Some(Proposed::Overloaded(_)) => Err(ProposeError::Overloaded),
        Some(Proposed::Unknown(_)) | None => Err(unknown.clone()),
    }
}

/// Whether a call has certainly not reached the other side: it was refused there before anything was done, or there was no
/// connection to send it on.
fn never_arrived(status: &Status) -> bool {
    match status.code() {
        Code::PermissionDenied | Code::InvalidArgument | Code::Unimplemented => true,
        Code::Unavailable => {
            let source = std::error::Error::source(status);
            std::iter::successors(source, |error| error.source()).any(|error| {
                let kind = error.downcast_ref::<std::io::Error>().map(std::io::Error::kind);
                kind == Some(std::io::ErrorKind::ConnectionRefused)
            })
        }
        _ => false,
    }
}

/// A read that waits to know how far the state must be.
pub(super) type Waiting = oneshot::Sender<Result<u64, ReadError>>;

/// Where reads are put.
pub(super) fn reads() -> (mpsc::Sender<Waiting>, mpsc::Receiver<Waiting>) {
    mpsc::channel(READS)
}

/// Answers reads: one question to the leader is under way at a time, for all that were waiting when it was sent.
pub async fn answer_reads(consensus: Arc<Consensus>) {
    let Some(mut waiting) = consensus.take_reads() else { return };
    let mut batch = Vec::new();
    while waiting.recv_many(&mut batch, READS).await > 0 {
        let outcome = ask(&consensus).await;
        for reader in batch.drain(..) {
            let _ = reader.send(outcome.clone());
        }
    }
}

async fn ask(consensus: &Consensus) -> Result<u64, ReadError> {
    match consensus.read_index_here().await {
        Err(ReadError::NotLeader(leader)) => match &consensus.forward {
            Some(forward) => forward.read_index(leader).await,
            None => Err(ReadError::NoQuorum),
        },
        outcome => outcome,
    }
}
