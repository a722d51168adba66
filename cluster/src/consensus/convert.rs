//! Between openraft's messages and those of the mesh.

use openraft::alias::{EntryOf, LogIdOf, VoteOf};
use openraft::raft::{
    AppendEntriesRequest, AppendEntriesResponse, TransferLeaderError, TransferLeaderRequest, TransferLeaderResponse,
    VoteRequest, VoteResponse,
};

use super::config::{TypeConfig, from_entry, from_log_id, from_vote, to_entry, to_log_id, to_vote};
use crate::ids::NodeId;
use crate::pb;
use crate::storage::{Entry, LogId, Vote};
use crate::wire::{
    AppendAnswer, AppendRequest, Done, NotFlushed, PartlyDone, TransferAnswer, TransferRequest, VoteAnswer,
    VoteChanged, VoteRequest as WireVoteRequest, append_answer, transfer_answer,
};

/// A message that is not what it should be.
#[derive(Clone, Debug, thiserror::Error)]
#[error("a message of another node is malformed: {0}")]
pub(super) struct Malformed(pub &'static str);

type Id = LogIdOf<TypeConfig>;

pub(super) fn id_to_wire(id: Option<&Id>) -> Option<pb::LogId> {
    id.map(|id| to_log_id(id).to_pb())
}

pub(super) fn id_from_wire(id: Option<&pb::LogId>) -> Option<Id> {
    id.map(|id| from_log_id(LogId::from_pb(id)))
}

pub(super) fn vote_to_wire(vote: &VoteOf<TypeConfig>) -> Option<pb::Vote> {
    Some(to_vote(vote).to_pb())
}

pub(super) fn vote_from_wire(vote: Option<&pb::Vote>) -> Result<VoteOf<TypeConfig>, Malformed> {
    vote.map(|vote| from_vote(Vote::from_pb(vote))).ok_or(Malformed("there is no vote"))
}

fn entry_to_wire(entry: EntryOf<TypeConfig>) -> pb::Entry {
    to_entry(entry).to_pb(None)
}

fn entry_from_wire(entry: pb::Entry) -> Result<EntryOf<TypeConfig>, Malformed> {
    Entry::from_pb(entry).map(|(entry, _)| from_entry(entry)).map_err(|_| Malformed("an entry does not decode"))
}

pub(super) fn append_to_wire(request: AppendEntriesRequest<TypeConfig>) -> AppendRequest {
    AppendRequest {
        vote: vote_to_wire(&request.vote),
        previous: id_to_wire(request.prev_log_id.as_ref()),
        entries: request.entries.into_iter().map(entry_to_wire).collect(),
        committed: id_to_wire(request.leader_commit.as_ref()),
    }
}

pub(super) fn append_from_wire(request: AppendRequest) -> Result<AppendEntriesRequest<TypeConfig>, Malformed> {
    Ok(AppendEntriesRequest {
        vote: vote_from_wire(request.vote.as_ref())?,
        prev_log_id: id_from_wire(request.previous.as_ref()),
        entries: request.entries.into_iter().map(entry_from_wire).collect::<Result<_, _>>()?,
        leader_commit: id_from_wire(request.committed.as_ref()),
    })
}

pub(super) fn appended_to_wire(answer: &AppendEntriesResponse<TypeConfig>) -> AppendAnswer {
    use append_answer::Outcome;
    let outcome = match answer {
        AppendEntriesResponse::Success => Outcome::Done(Done {}),
        AppendEntriesResponse::PartialSuccess(id) => Outcome::Partly(PartlyDone { up_to: id_to_wire(id.as_ref()) }),
        AppendEntriesResponse::Conflict => Outcome::Conflict(Done {}),
        AppendEntriesResponse::HigherVote(vote) => Outcome::HigherVote(to_vote(vote).to_pb()),
    };
    AppendAnswer { outcome: Some(outcome) }
}

pub(super) fn appended_from_wire(answer: &AppendAnswer) -> Result<AppendEntriesResponse<TypeConfig>, Malformed> {
    use append_answer::Outcome;
    Ok(match answer.outcome.as_ref().ok_or(Malformed("an answer without an outcome"))? {
        Outcome::Done(_) => AppendEntriesResponse::Success,
        Outcome::Partly(partly) => AppendEntriesResponse::PartialSuccess(id_from_wire(partly.up_to.as_ref())),
        Outcome::Conflict(_) => AppendEntriesResponse::Conflict,
        Outcome::HigherVote(vote) => AppendEntriesResponse::HigherVote(from_vote(Vote::from_pb(vote))),
    })
}

pub(super) fn vote_request_to_wire(request: &VoteRequest<TypeConfig>) -> WireVoteRequest {
    WireVoteRequest {
        vote: vote_to_wire(&request.vote),
        last: id_to_wire(request.last_log_id.as_ref()),
        leadership_transfer: request.leadership_transfer,
    }
}

pub(super) fn vote_request_from_wire(request: &WireVoteRequest) -> Result<VoteRequest<TypeConfig>, Malformed> {
    let mut own = VoteRequest::new(vote_from_wire(request.vote.as_ref())?, id_from_wire(request.last.as_ref()));
    own.leadership_transfer = request.leadership_transfer;
    Ok(own)
}

pub(super) fn voted_to_wire(answer: &VoteResponse<TypeConfig>) -> VoteAnswer {
    VoteAnswer {
        vote: vote_to_wire(&answer.vote),
        granted: answer.vote_granted,
        last: id_to_wire(answer.last_log_id.as_ref()),
    }
}

pub(super) fn voted_from_wire(answer: &VoteAnswer) -> Result<VoteResponse<TypeConfig>, Malformed> {
    let vote = vote_from_wire(answer.vote.as_ref())?;
    Ok(VoteResponse::new(vote, id_from_wire(answer.last.as_ref()), answer.granted))
}

pub(super) fn transfer_to_wire(request: &TransferLeaderRequest<TypeConfig>) -> TransferRequest {
    TransferRequest {
        from_leader: vote_to_wire(request.from_leader()),
        to: request.to_node_id().0,
        last: id_to_wire(request.last_log_id()),
    }
}

pub(super) fn transfer_from_wire(request: &TransferRequest) -> Result<TransferLeaderRequest<TypeConfig>, Malformed> {
    let from = vote_from_wire(request.from_leader.as_ref())?;
    Ok(TransferLeaderRequest::new(from, NodeId(request.to), id_from_wire(request.last.as_ref())))
}

pub(super) fn transferred_to_wire(answer: &TransferLeaderResponse<TypeConfig>) -> TransferAnswer {
    use transfer_answer::Outcome;
    let outcome = match answer {
        Ok(()) => Outcome::Done(Done {}),
        Err(TransferLeaderError::VoteChanged { expected, actual }) => {
            Outcome::VoteChanged(VoteChanged { expected: vote_to_wire(expected), actual: vote_to_wire(actual) })
        }
        Err(TransferLeaderError::LogNotFlushed { expected, actual }) => Outcome::NotFlushed(NotFlushed {
            expected: id_to_wire(expected.as_ref()),
            actual: id_to_wire(actual.as_ref()),
        }),
    };
    TransferAnswer { outcome: Some(outcome) }
}

pub(super) fn transferred_from_wire(answer: &TransferAnswer) -> Result<TransferLeaderResponse<TypeConfig>, Malformed> {
    use transfer_answer::Outcome;
    Ok(match answer.outcome.as_ref().ok_or(Malformed("an answer without an outcome"))? {
        Outcome::Done(_) => Ok(()),
        Outcome::VoteChanged(votes) => Err(TransferLeaderError::VoteChanged {
            expected: vote_from_wire(votes.expected.as_ref())?,
            actual: vote_from_wire(votes.actual.as_ref())?,
        }),
        Outcome::NotFlushed(ids) => Err(TransferLeaderError::LogNotFlushed {
            expected: id_from_wire(ids.expected.as_ref()),
            actual: id_from_wire(ids.actual.as_ref()),
        }),
    })
}
