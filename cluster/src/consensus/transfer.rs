//! Giving up the lead on purpose, so that nobody has to notice first that the leader is gone.

use std::collections::BTreeSet;
use std::time::Duration;

use super::{Consensus, Role, Status};
use crate::ids::NodeId;

/// How often it is looked who leads.
const LOOK_AGAIN: Duration = Duration::from_millis(5);

/// Who leads instead.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Transferred {
    /// This node did not lead.
    NotLeader,
    /// Nobody else that votes can be reached: this node is alone, or there is no quorum.
    Nobody,
    /// Another node leads.
    To(NodeId),
    /// It was asked for, and nobody has taken the lead in time.
    Late,
}

impl Consensus {
    /// If this node leads, has the voter that is furthest lead in its place, and waits until it does. Meanwhile writes and
    /// fresh reads wait for the new leader.
    ///
    /// # Errors
    /// When Raft has stopped.
    pub async fn transfer(&self, limit: Duration) -> Result<Transferred, String> {
        let status = self.status();
        if !matches!(status.role, Role::Leader { .. }) {
            return Ok(Transferred::NotLeader);
        }
        // Whoever has not answered for as long as an election takes could not become the leader either.
        let alive = self.heard_within(self.timing().election().1);
        let matched = self.matched();
        let candidates = voters(&status).into_iter().filter(|node| alive.contains(node));
        let Some(to) = candidates.max_by_key(|node| matched.get(node).copied()) else {
            return Ok(Transferred::Nobody);
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
