//! The duty that brings nodes into Raft: every node of the fleet holds the log, and the right number of them votes.
//!
//! Nobody is removed here.

use std::collections::BTreeSet;
use std::time::Duration;

use futures_util::future::BoxFuture;

use super::{Duty, Leader};
use crate::ids::NodeId;

/// How often it looks.
const PERIOD: Duration = Duration::from_millis(250);

/// A node that lags by more entries than this has not caught up.
const LAG: u64 = 100;

/// How many nodes of so many vote: an odd number always.
#[must_use]
pub fn target_voters(nodes: usize) -> usize {
    match nodes {
        0..=2 => 1,
        3..=6 => 3,
        7..=99 => 5,
        _ => 7,
    }
}

/// Adds the nodes of the fleet to Raft, and has as many of them vote as there should be.
#[derive(Clone, Copy, Debug, Default)]
pub struct Membership;

impl Duty for Membership {
    fn name(&self) -> &'static str {
        "membership"
    }

    fn run(&self, leader: Leader) -> BoxFuture<'static, ()> {
        Box::pin(async move {
            loop {
                if let Err(error) = pass(&leader).await {
                    tracing::warn!(error, "the members of Raft do not change yet");
                }
                tokio::time::sleep(PERIOD).await;
            }
        })
    }
}

/// What is to be done next.
#[derive(Debug, PartialEq, Eq)]
enum Step {
    Nothing,
    Add(BTreeSet<NodeId>),
    Vote(BTreeSet<NodeId>),
}

async fn pass(leader: &Leader) -> Result<(), String> {
    let consensus = leader.consensus();
    let status = consensus.status();
    let nodes = consensus.local().nodes().map_err(|damaged| damaged.to_string())?;
    let fleet: BTreeSet<_> = nodes.iter().map(|node| NodeId(node.row.id)).collect();
    let matched = consensus.matched();
    let up_to_date = |node: &NodeId| matched.get(node).is_some_and(|index| index + LAG >= status.committed);
    let ready = status.standbys.iter().copied().filter(up_to_date).collect();
    match next(&fleet, &status.voters, &status.standbys, &ready) {
        Step::Nothing => Ok(()),
        Step::Add(nodes) => {
            tracing::info!(?nodes, "new nodes hold the log from now on");
            consensus.add_standbys(nodes).await
        }
        Step::Vote(voters) => {
            tracing::info!(?voters, "these nodes vote from now on");
            consensus.set_voters(voters).await
        }
    }
}

fn next(
    fleet: &BTreeSet<NodeId>,
    voters: &[BTreeSet<NodeId>],
    standbys: &BTreeSet<NodeId>,
    ready: &BTreeSet<NodeId>,
) -> Step {
    // While the voters change nothing else does.
    let [voters] = voters else { return Step::Nothing };
    let missing: BTreeSet<_> = fleet.iter().filter(|node| !voters.contains(node) && !standbys.contains(node)).collect();
    if !missing.is_empty() {
        return Step::Add(missing.into_iter().copied().collect());
    }
    let wanted = target_voters(fleet.len());
    let ready: Vec<_> =
        ready.iter().filter(|node| fleet.contains(node)).take(wanted.saturating_sub(voters.len())).collect();
    if voters.len() >= wanted || voters.len() + ready.len() < wanted {
        return Step::Nothing;
    }
    Step::Vote(voters.iter().chain(ready).copied().collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn set(numbers: &[u64]) -> BTreeSet<NodeId> {
        numbers.iter().copied().map(NodeId).collect()
    }

    #[test]
    fn nodes_become_standbys_and_then_voters_in_one_step() {
        let next = |fleet: &[u64], voters: &[u64], standbys: &[u64], ready: &[u64]| {
            next(&set(fleet), &[set(voters)], &set(standbys), &set(ready))
        };
        assert_eq!(next(&[1], &[1], &[], &[]), Step::Nothing);
        assert_eq!(next(&[1, 2], &[1], &[], &[]), Step::Add(set(&[2])));
        assert_eq!(next(&[1, 2], &[1], &[2], &[2]), Step::Nothing, "two nodes have one voter");
        assert_eq!(next(&[1, 2, 3], &[1], &[2, 3], &[2]), Step::Nothing, "never an even number");
        assert_eq!(next(&[1, 2, 3], &[1], &[2, 3], &[2, 3]), Step::Vote(set(&[1, 2, 3])));
        assert_eq!(next(&[1, 2, 3, 4], &[1, 2, 3], &[4], &[4]), Step::Nothing);
        let seven = [1, 2, 3, 4, 5, 6, 7];
        assert_eq!(next(&seven, &[1, 2, 3], &[4, 5, 6, 7], &[5, 6, 7]), Step::Vote(set(&[1, 2, 3, 5, 6])));
    }

    #[test]
    fn nothing_happens_while_the_voters_change() {
        assert_eq!(next(&set(&[1, 2]), &[set(&[1]), set(&[1, 2])], &set(&[]), &set(&[])), Step::Nothing);
    }
}
