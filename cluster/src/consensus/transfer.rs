//! Giving up the lead on purpose, so that nobody has to notice first that the leader is gone.

use std::collections::BTreeSet;
use std::time::Duration;

use tokio::time::Instant;

use super::{Consensus, Role, Status};
use crate::ids::NodeId;

/// How often it is looked who leads.
const LOOK_AGAIN: Duration = Duration::from_millis(5);

/// How long a voter may take to answer and to catch up.
const ANSWER_LIMIT: Duration = Duration::from_secs(2);

/// How long another node may take to take the lead when an operator asks for it.
pub const PASS_ON_LIMIT: Duration = Duration::from_secs(5);

/// Who leads instead.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Transferred {
    /// This node did not lead.
    NotLeader,
    /// Nobody could, and this node leads on.
    Nobody(Unable),
    /// Another node leads.
    To(NodeId),
    /// It was asked for, and nobody has taken the lead in time. This node takes no writes until somebody is elected.
    Late,
}

/// Why nobody, or not the one that was named, could lead.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Unable {
    /// This node is alone, or the other one does not vote.
    #[error("there is no such other voter")]
    NoVoter,
    /// It is gone, frozen or cut off, or does not follow this leader; or there is no quorum.
    #[error("no such voter answers")]
    Silent,
    /// It lacks what this node had already when it was asked.
    #[error("no such voter has caught up yet; try again later")]
    Behind,
}

impl Consensus {
    /// If this node leads, has another voter lead in its place, the one that is furthest unless one is named, and waits until
    /// it does. Meanwhile writes and fresh reads wait for the new leader.
    ///
    /// openraft takes no more writes from the moment on at which it is told who shall lead, and nothing but another leader ends
    /// that. So it is told only of a voter that answers now and has caught up; and if that one is lost in the very moment, of
    /// the next, named or not.
    ///
    /// # Errors
    /// When Raft has stopped.
    pub async fn transfer(&self, wish: Option<NodeId>, limit: Duration) -> Result<Transferred, String> {
        let status = self.status();
        if !matches!(status.role, Role::Leader { .. }) {
            return Ok(Transferred::NotLeader);
        }
        let deadline = Instant::now() + limit;
        let answered = Instant::now() + limit.min(ANSWER_LIMIT);
        let wished: BTreeSet<_> =
            voters(&status).into_iter().filter(|node| wish.is_none_or(|to| to == *node)).collect();
        let to = loop {
            let why = match self.ready(&wished, status.last_log).await {
                Ok(to) => break to,
                Err(why) => why,
            };
            if !matches!(self.status().role, Role::Leader { .. }) {
                return Ok(Transferred::NotLeader);
            }
            // A node that has just begun to vote is heard, and has caught up, in a moment.
            if why == Unable::NoVoter || Instant::now() >= answered {
                return Ok(Transferred::Nobody(why));
            }
            tokio::time::sleep(LOOK_AGAIN).await;
        };
        self.give(to, &status, deadline).await
    }

    /// Tells Raft that this voter shall lead, and if it does not take the lead in time, that the next shall, until one does.
    pub(crate) async fn give(&self, to: NodeId, status: &Status, deadline: Instant) -> Result<Transferred, String> {
        let mut rest = voters(status);
        let mut next = Some(to);
        loop {
            if let Some(to) = next {
                rest.remove(&to);
                self.trigger_transfer(to).await?;
            }
            let patience = deadline.min(Instant::now() + self.timing().election().0);
            match tokio::time::timeout_at(patience, self.led_elsewhere()).await {
                Ok(leader) => return Ok(Transferred::To(leader)),
                Err(_) if Instant::now() >= deadline => return Ok(Transferred::Late),
                Err(_) => {}
            }
            if let Some(node) = next {
                tracing::warn!(%node, "it has not taken the lead in time");
            }
            next = self.ready(&rest, status.last_log).await.ok();
        }
    }

    /// Waits until another node leads, and returns which.
    async fn led_elsewhere(&self) -> NodeId {
        loop {
            match self.status() {
                Status { leader: Some(leader), node, .. } if leader != node => return leader,
                _ => tokio::time::sleep(LOOK_AGAIN).await,
            }
        }
    }

    /// The furthest of these that could lead now: it says that it follows this leader, and has its log up to this entry.
    async fn ready(&self, nodes: &BTreeSet<NodeId>, index: u64) -> Result<NodeId, Unable> {
        let Some(forward) = &self.forward else { return Err(Unable::NoVoter) };
        let mut why = Unable::NoVoter;
        let matched = self.matched();
        let mut nodes: Vec<_> = nodes.iter().copied().collect();
        nodes.sort_by_key(|node| std::cmp::Reverse(matched.get(node).copied()));
        let leader = self.status().node;
        for node in nodes {
            if !forward.follows(node, leader, self.timing().heartbeat()).await {
                why = Unable::Silent;
            } else if self.matched().get(&node).is_none_or(|matched| *matched < index) {
                why = Unable::Behind;
            } else {
                return Ok(node);
            }
        }
        Err(why)
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
            Transferred::To(leader) => {
                Err(format!("it has not taken the lead in time, and node {leader} leads instead"))
            }
            Transferred::NotLeader => Err("the leader has changed in the meantime".to_owned()),
            Transferred::Nobody(why) => Err(format!("{why}; node {} leads on", self.status().node)),
            Transferred::Late => {
                Err("nobody has taken the lead in time; there is no leader until one is elected".to_owned())
            }
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
