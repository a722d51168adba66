//! Giving up the lead on purpose, so that nobody has to notice first that the leader is gone.

use std::collections::BTreeSet;
use std::time::Duration;

use tokio::time::Instant;

use super::{Consensus, Role, Status};
use crate::ids::NodeId;

/// How often it is looked who leads.
const LOOK_AGAIN: Duration = Duration::from_millis(5);

/// How long a voter may take to be heard.
const ANSWER_LIMIT: Duration = Duration::from_secs(2);

/// How long another node may take to take the lead when an operator asks for it.
pub const PASS_ON_LIMIT: Duration = Duration::from_secs(5);

/// Who leads instead.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Transferred {
    /// This node did not lead.
    NotLeader,
    /// Nobody else that votes can be reached: this node is alone, or there is no quorum. Or the one that shall lead does not
    /// vote, or is not reached.
    Nobody,
    /// Another node leads.
    To(NodeId),
    /// It was asked for, and nobody has taken the lead in time.
    Late,
}

impl Consensus {
    /// If this node leads, has another voter lead in its place, the one that is furthest unless one is named, and waits until
    /// it does. Meanwhile writes and fresh reads wait for the new leader.
    ///
    /// # Errors
    /// When Raft has stopped.
    pub async fn transfer(&self, wish: Option<NodeId>, limit: Duration) -> Result<Transferred, String> {
        let status = self.status();
        if !matches!(status.role, Role::Leader { .. }) {
            return Ok(Transferred::NotLeader);
        }
        let deadline = Instant::now() + limit.min(ANSWER_LIMIT);
        let to = loop {
            if let Some(to) = self.candidate(&status, wish) {
                break to;
            }
            // A node that has just begun to vote, or to lead, is heard in a moment.
            let wished = |node: &NodeId| wish.is_none_or(|wish| wish == *node);
            if Instant::now() >= deadline || !voters(&status).iter().any(wished) {
                return Ok(Transferred::Nobody);
            }
            tokio::time::sleep(LOOK_AGAIN).await;
        };
        self.trigger_transfer(to).await?;
        let elsewhere = async {
            loop {
                match self.status().leader {
                    Some(leader) if leader != status.node => return leader,
                    _ => tokio::time::sleep(LOOK_AGAIN).await,
                }
            }
        };
        Ok(tokio::time::timeout(limit, elsewhere).await.map_or(Transferred::Late, Transferred::To))
    }
}

impl Consensus {
    /// The voter that is furthest of those that could lead now.
    fn candidate(&self, status: &Status, wish: Option<NodeId>) -> Option<NodeId> {
        // Whoever has not answered for as long as an election takes could not become the leader either.
        let alive = self.heard_within(self.timing().election().1);
        let matched = self.matched();
        let wished = |node: &NodeId| wish.is_none_or(|wish| wish == *node);
        let candidates = voters(status).into_iter().filter(|node| alive.contains(node) && wished(node));
        candidates.max_by_key(|node| matched.get(node).copied())
    }

    /// Has another node lead, whichever leads now. Returns who leads then.
    ///
    /// # Errors
    /// Why nobody else does.
    pub async fn pass_on(&self, wish: Option<NodeId>, limit: Duration) -> Result<NodeId, String> {
        let status = self.status();
        match (status.leader, &self.forward) {
            (None, _) => Err("there is no leader".to_owned()),
            (Some(leader), _) if wish == Some(leader) => Ok(leader),
            (Some(leader), Some(forward)) if leader != status.node => forward.pass_on(leader, wish, limit).await,
            _ => self.pass_on_here(wish, limit).await,
        }
    }

    /// The same on the node that leads.
    pub(super) async fn pass_on_here(&self, wish: Option<NodeId>, limit: Duration) -> Result<NodeId, String> {
        match self.transfer(wish, limit).await? {
            Transferred::To(leader) if wish.is_none_or(|wish| wish == leader) => Ok(leader),
            Transferred::To(leader) => Err(format!("node {leader} was faster")),
            Transferred::NotLeader => Err("the leader has changed in the meantime".to_owned()),
            Transferred::Nobody => Err("no such voter answers".to_owned()),
            Transferred::Late => Err("it was asked for, and nobody has taken the lead in time".to_owned()),
        }
    }
}

/// The other nodes that vote, now and after a change that is under way.
fn voters(status: &Status) -> BTreeSet<NodeId> {
    let Some((first, rest)) = status.voters.split_first() else { return BTreeSet::new() };
    let in_all = |node: &&NodeId| rest.iter().all(|voters| voters.contains(*node));
    first.iter().filter(in_all).copied().filter(|node| *node != status.node).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn status(voters: &[&[u64]]) -> Status {
        Status {
            node: NodeId(1),
            role: Role::Voter,
            term: 1,
            leader: None,
            voters: voters.iter().map(|nodes| nodes.iter().copied().map(NodeId).collect()).collect(),
            standbys: BTreeSet::new(),
            last_log: 0,
            committed: 0,
            applied: 0,
            snapshot: 0,
            purged: 0,
            quorum_acked: None,
            stopped: None,
        }
    }

    #[test]
    fn only_who_votes_before_and_after_a_change_can_lead() {
        for (sets, expected) in [
            (vec![], vec![]),
            (vec![[1].as_slice()], vec![]),
            (vec![&[1, 2, 3]], vec![2, 3]),
            (vec![&[1, 2, 3], &[1, 3, 4]], vec![3]),
        ] {
            let expected: BTreeSet<_> = expected.into_iter().map(NodeId).collect();
            assert_eq!(voters(&status(&sets)), expected, "{sets:?}");
        }
    }
}
