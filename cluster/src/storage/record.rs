//! The values that a log and a state are made of, and their form on disk.
//!
//! They are Muster's own types: openraft promises no stable encoding of its structs, so none of them reaches the disk.

use std::cmp::Ordering;
use std::collections::BTreeSet;
use std::fmt;

use bytes::Bytes;
use prost::Message;

use super::error::StoreError;
use crate::ids::NodeId;
use crate::pb;
use crate::state::Fingerprint;

/// The position of an entry and the leader that wrote it. Ordered by term, then leader, then index.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct LogId {
    /// The leader's term.
    pub term: u64,
    /// The leader.
    pub node: NodeId,
    /// The position in the log.
    pub index: u64,
}

impl fmt::Display for LogId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}/{}", self.term, self.node, self.index)
    }
}

/// A promise not to follow anybody older, and, once committed, the leader that is followed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Vote {
    /// The candidate's term.
    pub term: u64,
    /// The candidate.
    pub node: NodeId,
    /// Whether a quorum granted it.
    pub committed: bool,
}

impl Ord for Vote {
    fn cmp(&self, other: &Self) -> Ordering {
        (self.term, self.node, self.committed).cmp(&(other.term, other.node, other.committed))
    }
}

impl PartialOrd for Vote {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl fmt::Display for Vote {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let kind = if self.committed { "leader" } else { "candidate" };
        write!(f, "term {} {kind} {}", self.term, self.node)
    }
}

/// The voters (two sets while they change) and all nodes of the Raft group.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Membership {
    /// One voter set, or the old and the new one during a change.
    pub configs: Vec<BTreeSet<NodeId>>,
    /// Voters and learners.
    pub nodes: BTreeSet<NodeId>,
}

/// A membership and the entry that made it effective; `None` before the first.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct StoredMembership {
    /// The entry that carried it.
    pub log_id: Option<LogId>,
    /// The membership.
    pub membership: Membership,
}

/// What a log entry carries.
#[derive(Clone, PartialEq, Eq)]
pub enum Payload {
    /// Nothing; written by a new leader to commit what came before it.
    Blank,
    /// An encoded command for the replicated state.
    Command(Bytes),
    /// A change of the Raft group.
    Membership(Membership),
}

// A command may hold keys and personal names, which have no place in a log line.
impl fmt::Debug for Payload {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Blank => write!(f, "blank"),
            Self::Command(bytes) => write!(f, "a command of {} bytes", bytes.len()),
            Self::Membership(membership) => fmt::Debug::fmt(membership, f),
        }
    }
}

/// One entry of the Raft log.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entry {
    /// Its position.
    pub log_id: LogId,
    /// What it carries.
    pub payload: Payload,
}

impl Entry {
    /// About how much memory the entry takes, in bytes.
    pub(crate) fn weight(&self) -> usize {
        let payload = match &self.payload {
            Payload::Blank => 0,
            Payload::Command(bytes) => bytes.len(),
            Payload::Membership(membership) => membership.nodes.len() * 64,
        };
        payload + size_of::<Self>()
    }

    /// The stored form, with the entry that stood before it when it was appended.
    pub(crate) fn encode(&self, previous: Option<LogId>) -> Vec<u8> {
        self.to_pb(previous).encode_to_vec()
    }

    /// The message, with the entry that stood before it when it was appended.
    pub(crate) fn to_pb(&self, previous: Option<LogId>) -> pb::Entry {
        let payload = match &self.payload {
            Payload::Blank => pb::entry::Payload::Blank(pb::Blank {}),
            Payload::Command(bytes) => pb::entry::Payload::Command(bytes.clone()),
            Payload::Membership(membership) => pb::entry::Payload::Membership(membership.to_pb()),
        };
        let previous = previous.map(LogId::to_pb);
        pb::Entry { log_id: Some(self.log_id.to_pb()), previous, payload: Some(payload) }
    }

    pub(crate) fn decode(bytes: Bytes) -> Result<(Self, Option<LogId>), Undecodable> {
        Self::from_pb(pb::Entry::decode(bytes)?)
    }

    /// The entry of a message, and the one that stood before it.
    pub(crate) fn from_pb(entry: pb::Entry) -> Result<(Self, Option<LogId>), Undecodable> {
        let previous = entry.previous.as_ref().map(LogId::from_pb);
        let log_id = LogId::from_pb(entry.log_id.as_ref().ok_or("an entry without position")?);
        let payload = match entry.payload.ok_or("an entry of an unknown kind")? {
            pb::entry::Payload::Blank(_) => Payload::Blank,
            pb::entry::Payload::Command(bytes) => Payload::Command(bytes),
            pb::entry::Payload::Membership(membership) => Payload::Membership(Membership::from_pb(&membership)),
        };
        Ok((Self { log_id, payload }, previous))
    }
}

/// How far a replica's state has come, and what it amounts to.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Applied {
    /// The entry applied last.
    pub log_id: Option<LogId>,
    /// The membership then.
    pub membership: StoredMembership,
    /// The fingerprint of the state there.
    pub fingerprint: Fingerprint,
}

impl Applied {
    /// The index applied last, or 0 before the first.
    #[must_use]
    pub fn index(&self) -> u64 {
        self.log_id.map_or(0, |id| id.index)
    }

    pub(crate) fn encode(&self) -> Vec<u8> {
        pb::Applied {
            log_id: self.log_id.map(LogId::to_pb),
            membership: Some(self.membership.to_pb()),
            history: Bytes::copy_from_slice(&self.fingerprint.history),
            content: Bytes::copy_from_slice(&self.fingerprint.content.to_be_bytes()),
        }
        .encode_to_vec()
    }

    pub(crate) fn decode(bytes: &[u8]) -> Result<Self, Undecodable> {
        let applied = pb::Applied::decode(bytes)?;
        Ok(Self {
            log_id: applied.log_id.as_ref().map(LogId::from_pb),
            membership: StoredMembership::from_pb(&applied.membership.ok_or("a position without membership")?),
            fingerprint: Fingerprint {
                history: applied.history.as_ref().try_into().map_err(|_| "a state hash of the wrong length")?,
                content: applied
                    .content
                    .as_ref()
                    .try_into()
                    .map(u128::from_be_bytes)
                    .map_err(|_| "a content sum of the wrong length")?,
            },
        })
    }
}

/// Stored bytes passed their checksum but do not decode: they were written by something else.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Undecodable {
    #[error("{0}")]
    Protobuf(#[from] prost::DecodeError),
    #[error("{0}")]
    Missing(&'static str),
}

impl From<&'static str> for Undecodable {
    fn from(what: &'static str) -> Self {
        Self::Missing(what)
    }
}

impl Undecodable {
    /// The error that names the value in question.
    pub(crate) fn of(self, what: impl Into<String>) -> StoreError {
        StoreError::Damaged { what: what.into(), why: self.to_string() }
    }
}

impl LogId {
    pub(crate) fn encode(self) -> Vec<u8> {
        self.to_pb().encode_to_vec()
    }

    pub(crate) fn decode(bytes: &[u8]) -> Result<Self, Undecodable> {
        Ok(Self::from_pb(&pb::LogId::decode(bytes)?))
    }

    pub(crate) fn to_pb(self) -> pb::LogId {
        pb::LogId { term: self.term, node: self.node.0, index: self.index }
    }

    pub(crate) fn from_pb(id: &pb::LogId) -> Self {
        Self { term: id.term, node: NodeId(id.node), index: id.index }
    }
}

impl Vote {
    pub(crate) fn encode(self) -> Vec<u8> {
        self.to_pb().encode_to_vec()
    }

    pub(crate) fn decode(bytes: &[u8]) -> Result<Self, Undecodable> {
        Ok(Self::from_pb(&pb::Vote::decode(bytes)?))
    }

    pub(crate) fn to_pb(self) -> pb::Vote {
        pb::Vote { term: self.term, node: self.node.0, committed: self.committed }
    }

    pub(crate) fn from_pb(vote: &pb::Vote) -> Self {
        Self { term: vote.term, node: NodeId(vote.node), committed: vote.committed }
    }
}

impl Membership {
    pub(crate) fn to_pb(&self) -> pb::Membership {
        let configs = self.configs.iter().map(|set| pb::VoterSet { nodes: set.iter().map(|node| node.0).collect() });
        pb::Membership { configs: configs.collect(), nodes: self.nodes.iter().map(|node| node.0).collect() }
    }

    pub(crate) fn from_pb(membership: &pb::Membership) -> Self {
        let set = |nodes: &[u64]| nodes.iter().copied().map(NodeId).collect();
        Self {
            configs: membership.configs.iter().map(|config| set(&config.nodes)).collect(),
            nodes: set(&membership.nodes),
        }
    }
}

impl StoredMembership {
    pub(crate) fn to_pb(&self) -> pb::StoredMembership {
        pb::StoredMembership { log_id: self.log_id.map(LogId::to_pb), membership: Some(self.membership.to_pb()) }
    }

    pub(crate) fn from_pb(stored: &pb::StoredMembership) -> Self {
        Self {
            log_id: stored.log_id.as_ref().map(LogId::from_pb),
            membership: stored.membership.as_ref().map(Membership::from_pb).unwrap_or_default(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn membership() -> Membership {
        let set = |ids: &[u64]| ids.iter().copied().map(NodeId).collect();
        Membership { configs: vec![set(&[1, 2, 3]), set(&[2, 3, 4])], nodes: set(&[1, 2, 3, 4, 9]) }
    }

    #[test]
    fn entries_of_every_kind_come_back_as_they_were_written() {
        let log_id = LogId { term: 7, node: NodeId(2), index: u64::from(u32::MAX) + 5 };
        for payload in [
            Payload::Blank,
            Payload::Command(Bytes::from_static(b"x")),
            Payload::Command(Bytes::new()),
            Payload::Membership(membership()),
        ] {
            let entry = Entry { log_id, payload };
            for previous in [None, Some(LogId { index: 3, ..log_id })] {
                let stored = entry.encode(previous);
                assert_eq!(Entry::decode(stored.into()).expect("decodes"), (entry.clone(), previous));
            }
        }
    }

    #[test]
    fn positions_come_back_as_they_were_written() {
        let log_id = Some(LogId { term: 3, node: NodeId(1), index: 12 });
        let applied = Applied {
            log_id,
            membership: StoredMembership { log_id, membership: membership() },
            fingerprint: Fingerprint { history: [7; 32], content: u128::MAX - 3 },
        };
        assert_eq!(Applied::decode(&applied.encode()).expect("decodes"), applied);
        assert_eq!(Applied::decode(&Applied::default().encode()).expect("decodes"), Applied::default());
    }

    #[test]
    fn a_granted_vote_is_newer_than_the_candidacy_it_came_from() {
        let vote = |term, node, committed| Vote { term, node: NodeId(node), committed };
        assert!(vote(2, 1, true) > vote(2, 1, false));
        assert!(vote(2, 2, false) > vote(2, 1, true));
        assert!(vote(3, 1, false) > vote(2, 9, true));
    }
}
