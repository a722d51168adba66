//! Raft's messages to other nodes.

use std::fs::File;
use std::io::Read;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use openraft::EmptyNode;
use openraft::alias::{SnapshotOf, VoteOf};
use openraft::errors::{NetworkError, RPCError, ReplicationClosed, StreamingError, Unreachable};
use openraft::network::{RPCOption, RaftNetworkFactory, RaftNetworkV2};
use openraft::raft::{
    AppendEntriesRequest, AppendEntriesResponse, SnapshotResponse, TransferLeaderRequest, TransferLeaderResponse,
    VoteRequest, VoteResponse,
};
use sha2::{Digest, Sha256};
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::service::interceptor::InterceptedService;
use tonic::transport::Channel;
use tonic::{Code, Status};

use super::TypeConfig;
use super::config::to_stored_membership;
use super::convert::{
    Malformed, append_to_wire, appended_from_wire, id_to_wire, transfer_to_wire, transferred_from_wire, vote_from_wire,
    vote_request_to_wire, vote_to_wire, voted_from_wire,
};
use crate::ids::NodeId;
use crate::storage::SnapshotFile;
use crate::transport::{Channels, Inject, Purpose};
use crate::wire::raft_client::RaftClient;
use crate::wire::{SnapshotBegin, SnapshotEnd, SnapshotPart, snapshot_part::Part};

/// The longest message of Raft, in bytes.
pub(super) const MESSAGE_LIMIT: usize = 4 * 1024 * 1024;

/// How much of a snapshot is sent at once.
const CHUNK: usize = 256 * 1024;

/// Makes the clients that openraft sends with.
pub(super) struct Network {
    pub channels: Arc<Channels>,
}

impl Network {
    fn client(&self, target: NodeId, purpose: Purpose) -> Client {
        let inject = Inject { registered: Arc::clone(self.channels.registered()), to: target };
        let client = RaftClient::with_interceptor(self.channels.to(target, purpose), inject);
        Client { client: client.max_decoding_message_size(MESSAGE_LIMIT).max_encoding_message_size(MESSAGE_LIMIT) }
    }
}

impl RaftNetworkFactory<TypeConfig> for Network {
    type Network = Client;

    async fn new_client(&mut self, target: NodeId, _: &EmptyNode) -> Client {
        self.client(target, Purpose::Replication)
    }

    async fn new_heartbeat_client(&mut self, target: NodeId, _: &EmptyNode) -> Client {
        self.client(target, Purpose::Heartbeat)
    }

    async fn new_snapshot_client(&mut self, target: NodeId, _: &EmptyNode) -> Client {
        self.client(target, Purpose::Snapshot)
    }
}

/// Sends to one node.
pub(super) struct Client {
    client: RaftClient<InterceptedService<Channel, Inject>>,
}

type Rpc<T> = Result<T, RPCError<TypeConfig>>;

/// A node that can not be reached is left alone for a while; anything else is tried again at once.
fn failed(status: &Status) -> RPCError<TypeConfig> {
    match status.code() {
        Code::Unavailable | Code::Unknown | Code::PermissionDenied => RPCError::Unreachable(Unreachable::new(status)),
        _ => RPCError::Network(NetworkError::new(status)),
    }
}

fn malformed(error: &Malformed) -> RPCError<TypeConfig> {
    RPCError::Network(NetworkError::new(error))
}

async fn within<T>(limit: Duration, call: impl Future<Output = Result<tonic::Response<T>, Status>>) -> Rpc<T> {
    match tokio::time::timeout(limit, call).await {
        Ok(Ok(answer)) => Ok(answer.into_inner()),
        Ok(Err(status)) => Err(failed(&status)),
        Err(_) => Err(RPCError::Network(NetworkError::new(&Status::deadline_exceeded("no answer in time")))),
    }
}

impl RaftNetworkV2<TypeConfig> for Client {
    type SnapshotData = Arc<SnapshotFile>;

    async fn append_entries(
        &mut self,
        rpc: AppendEntriesRequest<TypeConfig>,
        option: RPCOption,
    ) -> Rpc<AppendEntriesResponse<TypeConfig>> {
        let answer = within(option.soft_ttl(), self.client.append(append_to_wire(rpc))).await?;
        appended_from_wire(&answer).map_err(|error| malformed(&error))
    }

    async fn vote(&mut self, rpc: VoteRequest<TypeConfig>, option: RPCOption) -> Rpc<VoteResponse<TypeConfig>> {
        let answer = within(option.soft_ttl(), self.client.vote(vote_request_to_wire(&rpc))).await?;
        voted_from_wire(&answer).map_err(|error| malformed(&error))
    }

    // openraft's own default grants without asking anybody.
    async fn pre_vote(&mut self, rpc: VoteRequest<TypeConfig>, option: RPCOption) -> Rpc<VoteResponse<TypeConfig>> {
        let answer = within(option.soft_ttl(), self.client.pre_vote(vote_request_to_wire(&rpc))).await?;
        voted_from_wire(&answer).map_err(|error| malformed(&error))
    }

    async fn full_snapshot(
        &mut self,
        vote: VoteOf<TypeConfig>,
        snapshot: SnapshotOf<TypeConfig, Arc<SnapshotFile>>,
        cancel: impl Future<Output = ReplicationClosed> + Send + 'static,
        option: RPCOption,
    ) -> Result<SnapshotResponse<TypeConfig>, StreamingError<TypeConfig>> {
        let begin = SnapshotBegin {
            vote: vote_to_wire(&vote),
            last: id_to_wire(snapshot.meta.last_log_id.as_ref()),
            membership: Some(to_stored_membership(&snapshot.meta.last_membership).to_pb()),
        };
        let (to_stream, parts) = mpsc::channel(2);
        let file = Arc::clone(&snapshot.snapshot);
        // It ends by itself once nobody listens any more.
        tokio::task::spawn_blocking(move || read_parts(begin, &file, &to_stream));
        let sending = within(option.hard_ttl(), self.client.install_snapshot(ReceiverStream::new(parts)));
        let answer = tokio::select! {
            answer = sending => answer?,
            closed = cancel => return Err(StreamingError::Closed(closed)),
        };
        let vote = vote_from_wire(answer.vote.as_ref()).map_err(|error| malformed(&error))?;
        Ok(SnapshotResponse::new(vote))
    }

    // openraft's own default fails without asking anybody.
    async fn transfer_leader(
        &mut self,
        rpc: TransferLeaderRequest<TypeConfig>,
        option: RPCOption,
    ) -> Rpc<TransferLeaderResponse<TypeConfig>> {
        let answer = within(option.soft_ttl(), self.client.transfer(transfer_to_wire(&rpc))).await?;
        transferred_from_wire(&answer).map_err(|error| malformed(&error))
    }
}

/// Reads a snapshot part by part. A file that can not be read ends the stream early, and the receiver notices.
fn read_parts(begin: SnapshotBegin, file: &SnapshotFile, to: &mpsc::Sender<SnapshotPart>) {
    let send = |part| to.blocking_send(SnapshotPart { part: Some(part) }).is_ok();
    if !send(Part::Begin(begin)) {
        return;
    }
    let mut opened = match File::open(&file.path) {
        Ok(opened) => opened,
        Err(error) => return tracing::error!(path = %file.path.display(), %error, "a snapshot can not be sent"),
    };
    let (mut hasher, mut sent) = (Sha256::new(), 0);
    loop {
        let mut chunk = Vec::with_capacity(CHUNK);
        match (&mut opened).take(CHUNK as u64).read_to_end(&mut chunk) {
            Ok(0) => break,
            Ok(read) => sent += read as u64,
            Err(error) => return tracing::error!(path = %file.path.display(), %error, "a snapshot can not be sent"),
        }
        hasher.update(&chunk);
        if !send(Part::Chunk(Bytes::from(chunk))) {
            return;
        }
    }
    send(Part::End(SnapshotEnd { bytes: sent, sha256: hasher.finalize().to_vec().into() }));
}
