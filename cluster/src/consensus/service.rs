//! Raft's messages from other nodes, forwarded writes, and reads that ask the leader.

use std::sync::Arc;

use bytes::Bytes;
use openraft::Raft;
use openraft::alias::{SnapshotMetaOf, SnapshotOf};
use prost::Message;
use sha2::{Digest, Sha256};
use tokio_stream::StreamExt;
use tonic::{Request, Response, Status, Streaming};

use super::config::{TypeConfig, from_stored_membership};
use super::convert::{
    Malformed, append_from_wire, appended_to_wire, id_from_wire, transfer_from_wire, transferred_to_wire,
    vote_from_wire, vote_request_from_wire, vote_to_wire, voted_to_wire,
};
use super::propose::TOGETHER;
use super::raft::{Consensus, Machine};
use super::transfer::PASS_ON_LIMIT;
use super::{ProposeError, ReadError};
use crate::ids::NodeId;
use crate::rows::Command;
use crate::storage::{IncomingSnapshot, SnapshotFile, SnapshotStore, StoredMembership};
use crate::wire::pass_on_answer::Outcome as PassedOn;
use crate::wire::propose_outcome::Outcome as Proposed;
use crate::wire::read_index_answer::Outcome as ReadOutcome;
use crate::wire::{
    AppendAnswer, AppendRequest, Done, PassOnAnswer, PassOnRequest, ProposeAnswer, ProposeOutcome, ProposeRequest,
    ReadIndexAnswer, ReadIndexRequest, SnapshotAnswer, SnapshotBegin, SnapshotEnd, SnapshotPart, TransferAnswer,
    TransferRequest, VoteAnswer, VoteRequest, mesh_server, raft_server, snapshot_part::Part,
};

/// Takes Raft's messages.
pub(super) struct RaftService {
    pub raft: Raft<TypeConfig, Machine>,
    pub snapshots: Arc<SnapshotStore>,
}

fn malformed(error: Malformed) -> Status {
    Status::invalid_argument(error.to_string())
}

fn stopped(error: impl std::fmt::Display) -> Status {
    Status::unavailable(error.to_string())
}

#[tonic::async_trait]
impl raft_server::Raft for RaftService {
    async fn append(&self, request: Request<AppendRequest>) -> Result<Response<AppendAnswer>, Status> {
        let request = append_from_wire(request.into_inner()).map_err(malformed)?;
        let answer = self.raft.append_entries(request).await.map_err(stopped)?;
        Ok(Response::new(appended_to_wire(&answer)))
    }

    async fn vote(&self, request: Request<VoteRequest>) -> Result<Response<VoteAnswer>, Status> {
        let request = vote_request_from_wire(request.get_ref()).map_err(malformed)?;
        let answer = self.raft.vote(request).await.map_err(stopped)?;
        Ok(Response::new(voted_to_wire(&answer)))
    }

    async fn pre_vote(&self, request: Request<VoteRequest>) -> Result<Response<VoteAnswer>, Status> {
        let request = vote_request_from_wire(request.get_ref()).map_err(malformed)?;
        let answer = self.raft.pre_vote(request).await.map_err(stopped)?;
        Ok(Response::new(voted_to_wire(&answer)))
    }

    async fn transfer(&self, request: Request<TransferRequest>) -> Result<Response<TransferAnswer>, Status> {
        let request = transfer_from_wire(request.get_ref()).map_err(malformed)?;
        let answer = self.raft.handle_transfer_leader(request).await.map_err(stopped)?;
        Ok(Response::new(transferred_to_wire(&answer)))
    }

    async fn install_snapshot(
        &self,
        request: Request<Streaming<SnapshotPart>>,
    ) -> Result<Response<SnapshotAnswer>, Status> {
        let (begin, file) = receive(request.into_inner(), Arc::clone(&self.snapshots)).await?;
        let vote = vote_from_wire(begin.vote.as_ref()).map_err(malformed)?;
        let membership = begin.membership.as_ref().map(StoredMembership::from_pb).unwrap_or_default();
        let meta = SnapshotMetaOf::<TypeConfig> {
            last_log_id: id_from_wire(begin.last.as_ref()),
            last_membership: from_stored_membership(&membership),
        };
        let snapshot = SnapshotOf::<TypeConfig, _> { meta, snapshot: file };
        let answer = self.raft.install_full_snapshot(vote, snapshot).await.map_err(stopped)?;
        Ok(Response::new(SnapshotAnswer { vote: vote_to_wire(&answer.vote) }))
    }
}

/// Takes a snapshot in, and checks that it is whole and the one that was announced.
async fn receive(
    mut parts: Streaming<SnapshotPart>,
    snapshots: Arc<SnapshotStore>,
) -> Result<(SnapshotBegin, Arc<SnapshotFile>), Status> {
    let disk = |error: crate::storage::StoreError| Status::internal(error.to_string());
    let ended = |error: tokio::task::JoinError| Status::internal(error.to_string());
    let Some(SnapshotPart { part: Some(Part::Begin(begin)) }) = parts.message().await? else {
        return Err(Status::invalid_argument("a snapshot must be announced first"));
    };
    let store = Arc::clone(&snapshots);
    let mut incoming = tokio::task::spawn_blocking(move || store.receive()).await.map_err(ended)?.map_err(disk)?;
    let (mut hasher, mut received) = (Sha256::new(), 0);
    let end = loop {
        match parts.next().await.transpose()?.and_then(|part| part.part) {
            Some(Part::Chunk(chunk)) => {
                hasher.update(&chunk);
                received += chunk.len() as u64;
                let written = tokio::task::spawn_blocking(move || write(incoming, &chunk)).await;
                incoming = written.map_err(ended)?.map_err(disk)?;
            }
            Some(Part::End(end)) => break end,
            Some(Part::Begin(_)) | None => return Err(Status::invalid_argument("the snapshot was not sent whole")),
        }
    };
    if end != (SnapshotEnd { bytes: received, sha256: hasher.finalize().to_vec().into() }) {
        return Err(Status::data_loss("the snapshot did not arrive as it was sent"));
    }
    let file = tokio::task::spawn_blocking(move || snapshots.finish(incoming)).await.map_err(ended)?.map_err(disk)?;
    if file.log_id().map(|id| id.to_pb()) != begin.last {
        return Err(Status::invalid_argument("the snapshot is not the one that was announced"));
    }
    Ok((begin, file))
}

fn write(mut incoming: IncomingSnapshot, chunk: &[u8]) -> Result<IncomingSnapshot, crate::storage::StoreError> {
    incoming.write(chunk).map(|()| incoming)
}

fn to_wire(outcome: Result<Bytes, ProposeError>) -> ProposeOutcome {
    let outcome = match outcome {
        Ok(answer) => Proposed::Answer(answer),
        Err(ProposeError::NoLeader) => Proposed::Leader(0),
        Err(ProposeError::NotLeader(leader)) => Proposed::Leader(leader.0),
        Err(ProposeError::Overloaded) => Proposed::Overloaded(Done {}),
        // Who sent it has looked at its length: that it is too long here does not happen.
        Err(
            ProposeError::Unknown { .. }
            | ProposeError::Answer(_)
            | ProposeError::Stopped(_)
            | ProposeError::TooLarge { .. },
        ) => Proposed::Unknown(Done {}),
    };
    ProposeOutcome { outcome: Some(outcome) }
}

/// Takes what other nodes ask the leader.
pub(super) struct MeshService {
    pub consensus: Arc<Consensus>,
}

#[tonic::async_trait]
impl mesh_server::Mesh for MeshService {
    async fn propose_all(&self, request: Request<ProposeRequest>) -> Result<Response<ProposeAnswer>, Status> {
        let commands = request.into_inner().commands;
        if commands.len() > TOGETHER {
            return Err(Status::invalid_argument(format!("{} commands; the limit is {TOGETHER}", commands.len())));
        }
        let commands = commands.into_iter().map(Command::decode).collect::<Result<Vec<_>, _>>();
        let commands = commands.map_err(|error| Status::invalid_argument(error.to_string()))?;
        // In the log it would stop every node that applies it.
        if commands.iter().any(|command| command.body.is_none()) {
            return Err(Status::invalid_argument("a command that this node does not know"));
        }
        let outcomes = self.consensus.propose_for_others(commands).await;
        Ok(Response::new(ProposeAnswer { outcomes: outcomes.into_iter().map(to_wire).collect() }))
    }

    async fn pass_on(&self, request: Request<PassOnRequest>) -> Result<Response<PassOnAnswer>, Status> {
        let wish = Some(NodeId(request.get_ref().to)).filter(|node| node.0 != 0);
        let outcome = match self.consensus.pass_on_here(wish, PASS_ON_LIMIT).await {
            Ok(leader) => PassedOn::Leader(leader.0),
            Err(why) => PassedOn::Refused(why),
        };
        Ok(Response::new(PassOnAnswer { outcome: Some(outcome) }))
    }

    async fn read_index(&self, _: Request<ReadIndexRequest>) -> Result<Response<ReadIndexAnswer>, Status> {
        let outcome = match self.consensus.read_index_here().await {
            Ok(index) => ReadOutcome::Index(index),
            Err(ReadError::NotLeader(leader)) => ReadOutcome::Leader(leader.0),
            Err(ReadError::NoQuorum) => ReadOutcome::Leader(0),
            Err(error) => return Err(stopped(error)),
        };
        Ok(Response::new(ReadIndexAnswer { outcome: Some(outcome) }))
    }
}
