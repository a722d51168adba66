//! The types that openraft is built over, and the way between them and Muster's own.

use std::fmt;

use bytes::Bytes;
use openraft::alias::{CommittedLeaderIdOf, EntryOf, LogIdOf, StoredMembershipOf, VoteOf};
use openraft::entry::RaftEntry;
use openraft::vote::RaftLeaderId;
use openraft::{EmptyNode, EntryPayload};

use crate::ids::NodeId;
use crate::storage::{Entry, LogId, Membership, Payload, StoredMembership, Vote};

/// An encoded command on its way through the log.
#[derive(Clone, PartialEq, Eq)]
pub struct Proposal(pub Bytes);

/// The encoded answer of a command; empty for entries that carry none.
#[derive(Clone, Default, PartialEq, Eq)]
pub struct Answer(pub Bytes);

// Commands and answers may hold keys and personal names: no form of them shows more than their length.
impl fmt::Debug for Proposal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "a command of {} bytes", self.0.len())
    }
}

impl fmt::Display for Proposal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(self, f)
    }
}

impl fmt::Debug for Answer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "an answer of {} bytes", self.0.len())
    }
}

openraft::declare_raft_types!(
    /// openraft's types for Muster. Addresses are not part of a membership: they change, and are looked up by node.
    pub TypeConfig:
        D = Proposal,
        R = Answer,
        NodeId = NodeId,
        Node = EmptyNode,
);

pub(super) fn to_log_id(id: &LogIdOf<TypeConfig>) -> LogId {
    let leader = id.committed_leader_id();
    LogId { term: leader.term, node: leader.node_id, index: id.index }
}

pub(super) fn from_log_id(id: LogId) -> LogIdOf<TypeConfig> {
    LogIdOf::<TypeConfig>::new(leader(id.term, id.node), id.index)
}

fn leader(term: u64, node: NodeId) -> CommittedLeaderIdOf<TypeConfig> {
    openraft::alias::LeaderIdOf::<TypeConfig>::new(term, node).to_committed()
}

pub(super) fn to_vote(vote: &VoteOf<TypeConfig>) -> Vote {
    Vote { term: vote.leader_id.term, node: vote.leader_id.node_id, committed: vote.committed }
}

pub(super) fn from_vote(vote: Vote) -> VoteOf<TypeConfig> {
    if vote.committed {
        VoteOf::<TypeConfig>::new_committed(vote.term, vote.node)
    } else {
        VoteOf::<TypeConfig>::new(vote.term, vote.node)
    }
}

pub(super) fn to_entry(entry: EntryOf<TypeConfig>) -> Entry {
    let payload = match entry.payload {
        EntryPayload::Blank => Payload::Blank,
        EntryPayload::Normal(Proposal(command)) => Payload::Command(command),
        EntryPayload::Membership(membership) => Payload::Membership(to_membership(&membership)),
    };
    Entry { log_id: to_log_id(&entry.log_id), payload }
}

pub(super) fn from_entry(entry: Entry) -> EntryOf<TypeConfig> {
    let payload = match entry.payload {
        Payload::Blank => EntryPayload::Blank,
        Payload::Command(command) => EntryPayload::Normal(Proposal(command)),
        Payload::Membership(membership) => EntryPayload::Membership(from_membership(membership)),
    };
    EntryOf::<TypeConfig>::new(from_log_id(entry.log_id), payload)
}

pub(super) fn to_membership(membership: &openraft::Membership<NodeId, EmptyNode>) -> Membership {
    Membership {
        configs: membership.get_joint_config().clone(),
        nodes: membership.nodes().map(|(node, _)| *node).collect(),
    }
}

fn from_membership(membership: Membership) -> openraft::Membership<NodeId, EmptyNode> {
    openraft::Membership::new_with_defaults(membership.configs, membership.nodes)
}

pub(super) fn from_stored_membership(stored: &StoredMembership) -> StoredMembershipOf<TypeConfig> {
    StoredMembershipOf::<TypeConfig>::new(stored.log_id.map(from_log_id), from_membership(stored.membership.clone()))
}

pub(super) fn to_stored_membership(stored: &StoredMembershipOf<TypeConfig>) -> StoredMembership {
    StoredMembership { log_id: stored.log_id().as_ref().map(to_log_id), membership: to_membership(stored.membership()) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::state::Record;

    #[test]
    fn nothing_that_passes_through_the_log_shows_its_bytes() {
        const CANARY: &str = "canary-in-the-log";
        let bytes = Bytes::from_static(CANARY.as_bytes());
        let log_id = LogId { term: 1, node: NodeId(1), index: 1 };
        let entry = Entry { log_id, payload: Payload::Command(bytes.clone()) };
        let shown = format!(
            "{entry:?} {:?} {} {:?} {:?} {:?}",
            Proposal(bytes.clone()),
            Proposal(bytes.clone()),
            Answer(bytes.clone()),
            Record { mod_index: 1, value: bytes },
            from_entry(entry.clone()),
        );
        assert!(!shown.contains(CANARY), "{shown}");
        assert!(shown.contains("17 bytes"), "{shown}");
    }
}
