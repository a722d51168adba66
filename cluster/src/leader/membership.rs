//! The duty that keeps Raft's members right: every node of the fleet holds the log, the right number of them votes, and a
//! voter that has died is replaced when another can take its place.
//!
//! It never makes the fleet weaker: a voter goes only in the same step in which another comes, or because the fleet has
//! become so small that fewer should vote.

use std::collections::BTreeSet;
use std::time::Duration;

use futures_util::future::BoxFuture;
use tokio::time::Instant;

use super::{Duty, Leader};
use crate::ids::NodeId;
use crate::rows;

/// How often it looks.
const PERIOD: Duration = Duration::from_millis(250);

/// A node that lags by more entries than this has not caught up.
const LAG: u64 = 100;

/// How often it is said again that a dead voter can not be replaced.
const REMIND: Duration = Duration::from_secs(60);

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

/// Adds the nodes of the fleet to Raft, has as many of them vote as there should be, and replaces dead voters.
#[derive(Clone, Copy, Debug)]
pub struct Membership {
    /// How long a voter may be silent before it counts as dead.
    pub silence: Duration,
    /// How long a node must have been in good health before it replaces another.
    pub stability: Duration,
}

impl Default for Membership {
    fn default() -> Self {
        Self { silence: Duration::from_secs(60), stability: Duration::from_secs(30) }
    }
}

impl Duty for Membership {
    fn name(&self) -> &'static str {
        "membership"
    }

    fn run(&self, leader: Leader) -> BoxFuture<'static, ()> {
        let mut autopilot =
            Autopilot { rules: *self, begun: Instant::now(), healthy: Vec::new(), reminded: None, said: Step::Nothing };
        Box::pin(async move {
            let mut failed = None;
            loop {
                let outcome = autopilot.pass(&leader).await.err();
                if let Some(error) = &outcome
                    && outcome != failed
                {
                    tracing::warn!(error, "the members of Raft do not change yet");
                }
                failed = outcome;
                tokio::time::sleep(PERIOD).await;
            }
        })
    }
}

/// What is known of the members at one moment.
#[derive(Clone, Debug, Default)]
struct Seen {
    /// Who leads, and looks.
    leader: NodeId,
    /// The nodes of the fleet.
    fleet: BTreeSet<NodeId>,
    /// Those that vote; two sets while that changes.
    voters: Vec<BTreeSet<NodeId>>,
    standbys: BTreeSet<NodeId>,
    /// Standbys that have caught up and answer.
    ready: BTreeSet<NodeId>,
    /// Those of them that have been in good health for long enough to replace another.
    stable: BTreeSet<NodeId>,
    /// Nodes that have been silent for so long that they count as dead.
    dead: BTreeSet<NodeId>,
    /// Nodes that want to vote, or that an operator wants to.
    preferred: BTreeSet<NodeId>,
}

/// What is to be done next.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Step {
    Nothing,
    /// A dead voter can not be replaced.
    Stuck(BTreeSet<NodeId>),
    Add(BTreeSet<NodeId>),
    Vote(BTreeSet<NodeId>),
    Remove(BTreeSet<NodeId>),
}

struct Autopilot {
    rules: Membership,
    /// When this node began to lead: who has been silent before is not known.
    begun: Instant,
    /// Since when each standby has been in good health.
    healthy: Vec<(NodeId, Instant)>,
    reminded: Option<Instant>,
    /// What was said to be done last.
    said: Step,
}

impl Autopilot {
    async fn pass(&mut self, leader: &Leader) -> Result<(), String> {
        let consensus = leader.consensus();
        let seen = self.look(leader)?;
        let step = next(&seen);
        // One that does not succeed is tried again four times a second.
        let new = step != self.said;
        self.said = step.clone();
        match step {
            Step::Nothing => Ok(()),
            Step::Stuck(dead) => {
                if self.reminded.is_none_or(|at| at.elapsed() >= REMIND) {
                    self.reminded = Some(Instant::now());
                    tracing::warn!(?dead, "voters are dead, and no other node can take their place");
                }
                Ok(())
            }
            Step::Add(nodes) => {
                if new {
                    tracing::info!(?nodes, "new nodes hold the log from now on");
                }
                consensus.add_standbys(nodes).await
            }
            Step::Vote(voters) => {
                if new {
                    tracing::info!(?voters, before = ?seen.voters, "these nodes vote from now on");
                }
                consensus.set_voters(voters).await
            }
            Step::Remove(nodes) => {
                if new {
                    tracing::info!(?nodes, "these nodes no longer hold the log");
                }
                consensus.remove_standbys(nodes).await
            }
        }
    }

    fn look(&mut self, leader: &Leader) -> Result<Seen, String> {
        let consensus = leader.consensus();
        let status = consensus.status();
        let nodes = consensus.local().nodes().map_err(|damaged| damaged.to_string())?;
        let fleet: BTreeSet<_> = nodes.iter().map(|node| NodeId(node.row.id)).collect();
        let (matched, silence) = (consensus.matched(), consensus.silence());
        let silent = |node: &NodeId| silence.get(node).copied().flatten().unwrap_or_else(|| self.begun.elapsed());
        let answers = |node: &NodeId| silent(node) < consensus.timing().election().1;
        let up_to_date = |node: &NodeId| matched.get(node).is_some_and(|index| index + LAG >= status.committed);
        let ready: BTreeSet<_> =
            status.standbys.iter().copied().filter(|node| up_to_date(node) && answers(node)).collect();
        let dead = |node: &NodeId| *node != status.node && silent(node) >= self.rules.silence;
        let dead = status.voters.iter().flatten().copied().filter(dead).collect();
        self.healthy.retain(|(node, _)| ready.contains(node));
        for node in &ready {
            if !self.healthy.iter().any(|(known, _)| known == node) {
                self.healthy.push((*node, Instant::now()));
            }
        }
        let long = self.healthy.iter().filter(|(_, since)| since.elapsed() >= self.rules.stability);
        let stable = long.map(|(node, _)| *node).collect();
        let prefers =
            |node: &&rows::Node| node.preferred_voter || node.facts.as_ref().is_some_and(|facts| facts.wants_to_vote);
        let preferred = nodes.iter().map(|node| &node.row).filter(prefers).map(|node| NodeId(node.id)).collect();
        let (voters, standbys) = (status.voters, status.standbys);
        Ok(Seen { leader: status.node, fleet, voters, standbys, ready, stable, dead, preferred })
    }
}

fn next(seen: &Seen) -> Step {
    let Seen { leader, fleet, voters, standbys, ready, stable, dead, preferred } = seen;
    let voters = match voters.as_slice() {
        [voters] => voters,
        // The leader that began this is gone: a change of its own is waited for. Raft leaves it between the two sets, both of
        // which have to agree to everything until somebody takes the second step.
        [.., coming] => return Step::Vote(coming.clone()),
        [] => return Step::Nothing,
    };
    let missing: BTreeSet<_> =
        fleet.iter().copied().filter(|node| !voters.contains(node) && !standbys.contains(node)).collect();
    if !missing.is_empty() {
        return Step::Add(missing);
    }
    let wanted = target_voters(fleet.len());
    let first = |nodes: &BTreeSet<NodeId>| {
        let mut nodes: Vec<_> = nodes.iter().copied().filter(|node| fleet.contains(node)).collect();
        nodes.sort_by_key(|node| !preferred.contains(node));
        nodes
    };
    if voters.len() < wanted {
        let ready: Vec<_> = first(ready).into_iter().take(wanted - voters.len()).collect();
        if voters.len() + ready.len() < wanted {
            return Step::Nothing;
        }
        return Step::Vote(voters.iter().copied().chain(ready).collect());
    }
    // The leader stays, and of the others those that live and belong to the fleet come first.
    let good = |node: &&NodeId| fleet.contains(node) && !dead.contains(node);
    let others: Vec<_> = voters.iter().filter(|node| *node != leader && good(node)).collect();
    let kept: BTreeSet<_> = [leader].into_iter().chain(others).take(wanted).copied().collect();
    let bad: BTreeSet<_> = voters.iter().filter(|node| *node != leader && !good(node)).copied().collect();
    if voters.len() > wanted && kept.len() == wanted {
        return Step::Vote(kept);
    }
    if !bad.is_empty() {
        // One that was removed from the fleet goes as soon as another can come; one that only died has some time to return.
        let removed = bad.iter().any(|node| !fleet.contains(node));
        let fit = first(if removed { ready } else { stable });
        // At least a majority of those that vote now has to agree.
        let agreed = voters.len() - bad.len() > voters.len() / 2;
        let replaced: Vec<_> = fit.into_iter().take(bad.len()).collect();
        if replaced.is_empty() || !agreed {
            let dead: BTreeSet<_> = bad.into_iter().filter(|node| dead.contains(node)).collect();
            return if dead.is_empty() { Step::Nothing } else { Step::Stuck(dead) };
        }
        // As many go as come: those that were removed first.
        let mut leaving: Vec<_> = bad.into_iter().collect();
        leaving.sort_by_key(|node| fleet.contains(node));
        leaving.truncate(replaced.len());
        let staying = voters.iter().filter(|node| !leaving.contains(node));
        return Step::Vote(staying.copied().chain(replaced).collect());
    }
    // One that shall vote takes the place of one of which nobody said so.
    let comes = stable.iter().find(|node| preferred.contains(node) && fleet.contains(node));
    let goes = voters.iter().rev().find(|node| *node != leader && !preferred.contains(node));
    if let (Some(comes), Some(goes)) = (comes, goes) {
        return Step::Vote(voters.iter().filter(|node| *node != goes).chain([comes]).copied().collect());
    }
    let strangers: BTreeSet<_> = standbys.iter().copied().filter(|node| !fleet.contains(node)).collect();
    if strangers.is_empty() { Step::Nothing } else { Step::Remove(strangers) }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn set(numbers: &[u64]) -> BTreeSet<NodeId> {
        numbers.iter().copied().map(NodeId).collect()
    }

    fn seen(fleet: &[u64], voters: &[u64], standbys: &[u64], ready: &[u64]) -> Seen {
        Seen {
            leader: NodeId(1),
            fleet: set(fleet),
            voters: vec![set(voters)],
            standbys: set(standbys),
            ready: set(ready),
            stable: set(ready),
            dead: set(&[]),
            preferred: set(&[]),
        }
    }

    #[test]
    fn nodes_become_standbys_and_then_voters_in_one_step() {
        let next = |fleet: &[u64], voters: &[u64], standbys: &[u64], ready: &[u64]| {
            // Growing does not wait for stability.
            next(&Seen { stable: set(&[]), ..seen(fleet, voters, standbys, ready) })
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
    fn a_change_whose_leader_is_gone_is_finished_before_anything_else() {
        let voters = vec![set(&[1, 2, 3]), set(&[1, 3, 4])];
        assert_eq!(next(&Seen { voters, ..seen(&[1, 3, 4, 5], &[], &[2], &[]) }), Step::Vote(set(&[1, 3, 4])));
    }

    #[test]
    fn a_dead_voter_goes_only_when_another_comes() {
        let with = |ready: &[u64], stable: &[u64], dead: &[u64]| {
            let seen = seen(&[1, 2, 3, 4, 5], &[1, 2, 3], &[4, 5], ready);
            next(&Seen { stable: set(stable), dead: set(dead), ..seen })
        };
        assert_eq!(with(&[4], &[4], &[]), Step::Nothing);
        assert_eq!(with(&[4], &[4], &[2]), Step::Vote(set(&[1, 3, 4])));
        assert_eq!(with(&[4, 5], &[4, 5], &[2]), Step::Vote(set(&[1, 3, 4])), "as many come as go");
        assert_eq!(with(&[4], &[], &[2]), Step::Stuck(set(&[2])), "not stable yet");
        assert_eq!(with(&[], &[], &[2]), Step::Stuck(set(&[2])));
        assert_eq!(with(&[4, 5], &[4, 5], &[2, 3]), Step::Stuck(set(&[2, 3])), "a majority could not agree");
        let three = seen(&[1, 2, 3], &[1, 2, 3], &[], &[]);
        assert_eq!(next(&Seen { dead: set(&[3]), ..three }), Step::Stuck(set(&[3])));
    }

    #[test]
    fn a_node_that_was_removed_leaves_raft() {
        let next = |fleet: &[u64], voters: &[u64], standbys: &[u64], ready: &[u64]| {
            next(&Seen { stable: set(&[]), ..seen(fleet, voters, standbys, ready) })
        };
        assert_eq!(next(&[1, 2, 4], &[1, 2, 3], &[4], &[4]), Step::Vote(set(&[1, 2, 4])));
        assert_eq!(next(&[1, 2, 4], &[1, 2, 3], &[4], &[]), Step::Nothing, "nobody is ready to take its place");
        assert_eq!(next(&[1, 2], &[1, 2, 3], &[], &[]), Step::Vote(set(&[1])), "two nodes have one voter");
        assert_eq!(next(&[1, 2], &[1], &[2, 3], &[2]), Step::Remove(set(&[3])));
        assert_eq!(next(&[1, 2, 3, 4, 5, 6], &[1, 2, 3, 4, 7], &[5, 6], &[5]), Step::Vote(set(&[1, 2, 3])));
    }

    #[test]
    fn one_that_shall_vote_takes_the_place_of_another() {
        let with = |preferred: &[u64], stable: &[u64]| {
            let seen = seen(&[1, 2, 3, 4, 5], &[1, 2, 3], &[4, 5], &[4, 5]);
            next(&Seen { preferred: set(preferred), stable: set(stable), ..seen })
        };
        assert_eq!(with(&[5], &[4, 5]), Step::Vote(set(&[1, 2, 5])));
        assert_eq!(with(&[5], &[4]), Step::Nothing, "not yet");
        assert_eq!(with(&[3, 5], &[4, 5]), Step::Vote(set(&[1, 3, 5])));
        assert_eq!(with(&[2, 3, 5], &[4, 5]), Step::Nothing, "the leader stays");
        let growing = seen(&[1, 2, 3, 4], &[1], &[2, 3, 4], &[2, 3, 4]);
        assert_eq!(next(&Seen { preferred: set(&[4]), ..growing }), Step::Vote(set(&[1, 2, 4])));
    }

    #[test]
    fn the_leader_stays() {
        let mut seen = seen(&[5, 6], &[4, 5, 6], &[], &[]);
        seen.leader = NodeId(6);
        assert_eq!(next(&seen), Step::Vote(set(&[6])));
    }
}
