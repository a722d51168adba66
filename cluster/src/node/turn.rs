//! Whose turn it is to take over another timing of Raft, which openraft reads once, when it starts.
//!
//! One node after the other starts its Raft anew, the leader last; and only from one preset to the next: a follower of one
//! preset hears a leader of the next more patient one often enough, and of the one after that it would not. So nobody stands
//! for election because of the change.

use std::collections::{BTreeMap, BTreeSet};

use crate::consensus::Timing;
use crate::ids::NodeId;

/// What is known of the fleet at one moment.
pub(super) struct Fleet<'a> {
    pub own: NodeId,
    pub leader: Option<NodeId>,
    pub voters: &'a BTreeSet<NodeId>,
    /// What each node goes by, this one included. Those that do not answer are not among them.
    pub timings: &'a BTreeMap<NodeId, Timing>,
    pub wanted: Timing,
}

fn place(timing: Timing) -> usize {
    Timing::ALL.iter().position(|other| *other == timing).unwrap_or_default()
}

impl Fleet<'_> {
    /// What this node is to go by next, if it is its turn.
    pub fn next(&self) -> Option<Timing> {
        let running = *self.timings.get(&self.own)?;
        let far = |timing: Timing| place(timing).abs_diff(place(self.wanted));
        let own = far(running);
        let leader = self.leader?;
        if own == 0 || !self.majority_without_this_one() {
            return None;
        }
        let others = || self.timings.iter().filter(|(node, _)| **node != self.own);
        let turn = if leader == self.own {
            others().all(|(_, timing)| far(*timing) < own)
        } else {
            let before = |node: NodeId| node != leader && node < self.own;
            others().all(|(node, timing)| far(*timing) < own || (!before(*node) && far(*timing) == own))
        };
        let step =
            if place(running) < place(self.wanted) { place(running) + 1 } else { place(running).checked_sub(1)? };
        turn.then(|| Timing::ALL.get(step).copied()).flatten()
    }

    /// The voters that do not answer: while one of them is missing, another may not be.
    pub fn silent(&self) -> BTreeSet<NodeId> {
        self.voters.iter().copied().filter(|voter| !self.timings.contains_key(voter)).collect()
    }

    /// Nobody is to wait for this one. One that is alone has nobody to be missed by.
    fn majority_without_this_one(&self) -> bool {
        let others = self.voters.iter().filter(|voter| **voter != self.own && self.timings.contains_key(voter)).count();
        self.voters.len() <= 1 || others > self.voters.len() / 2
    }
}

#[cfg(test)]
mod tests {
    use Timing::{Far, Lan, Mesh};

    use super::*;

    /// Nodes 1, 2, ... and what they go by; `None` for one that does not answer. Node 2 leads; the first three vote.
    fn next(own: u64, timings: &[Option<Timing>], wanted: Timing) -> Option<Timing> {
        let timings = (1..).map(NodeId).zip(timings).filter_map(|(node, timing)| Some((node, (*timing)?))).collect();
        let voters = [1, 2, 3].map(NodeId).into();
        Fleet { own: NodeId(own), leader: Some(NodeId(2)), voters: &voters, timings: &timings, wanted }.next()
    }

    #[test]
    fn one_after_the_other_and_the_leader_last() {
        let mut timings = [Some(Mesh); 4];
        let mut order = Vec::new();
        while let Some(node) = (1..=4).find(|node| next(*node, &timings, Lan).is_some()) {
            let turns = (1..=4).filter(|node| next(*node, &timings, Lan).is_some()).count();
            assert_eq!(turns, 1, "{timings:?}");
            timings[node as usize - 1] = next(node, &timings, Lan);
            order.push(node);
        }
        assert_eq!((order, timings), (vec![1, 3, 4, 2], [Some(Lan); 4]));
    }

    #[test]
    fn never_two_presets_apart() {
        for (from, to) in [(Far, Lan), (Lan, Far)] {
            let mut timings = [Some(from); 3];
            for _ in 0..6 {
                let node = (1..=3).find(|node| next(*node, &timings, to).is_some()).expect("somebody's turn");
                timings[node as usize - 1] = next(node, &timings, to);
                let places: Vec<_> = timings.iter().flatten().map(|timing| place(*timing)).collect();
                assert!(places.iter().max().expect("some") - places.iter().min().expect("some") <= 1, "{timings:?}");
            }
            assert_eq!(timings, [Some(to); 3]);
        }
    }

    #[test]
    fn who_does_not_answer_is_waited_for_while_it_is_needed_for_a_majority() {
        assert_eq!(next(1, &[Some(Mesh), Some(Mesh), None], Lan), None, "a voter is down");
        let (voters, timings) = ([1, 2, 3].map(NodeId).into(), [(NodeId(1), Mesh), (NodeId(2), Mesh)].into());
        let lame = Fleet { own: NodeId(1), leader: Some(NodeId(2)), voters: &voters, timings: &timings, wanted: Lan };
        assert_eq!(lame.silent(), [NodeId(3)].into(), "which is told");
        assert_eq!(next(1, &[Some(Mesh), Some(Mesh), Some(Mesh), None], Lan), Some(Lan), "a standby is not waited for");
        assert_eq!(next(1, &[Some(Lan), Some(Mesh), Some(Mesh)], Lan), None, "it has it already");
        let (voters, timings) = ([NodeId(1)].into(), [(NodeId(1), Mesh)].into());
        let mut alone = Fleet { own: NodeId(1), leader: None, voters: &voters, timings: &timings, wanted: Far };
        assert_eq!(alone.next(), None, "without a leader nothing changes");
        alone.leader = Some(NodeId(1));
        assert_eq!(alone.next(), Some(Far));
    }
}
