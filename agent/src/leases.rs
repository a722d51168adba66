//! Who may serve a replica that can be given to another node.
//!
//! A node renews its leases with the leader every 3 s, and serves nothing whose lease is 12 s old. The leader gives a replica to
//! another node once it has not heard of it for 15 s, and a new leader waits as long before it judges. A leader answers only
//! while a quorum has just confirmed it, so that one which has been cut off, and does not know it, lets nobody go on for longer
//! than its successor waits. Nothing of it is kept: after a start a node serves what can move once it has renewed.

use std::collections::{HashMap, HashSet};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use muster_cluster::ids::{NodeId, Office};
use muster_cluster::state::{Damaged, View};

use crate::runtime::UnitId;

/// How often a node renews.
pub const RENEWAL: Duration = Duration::from_secs(3);

/// How long a renewal is good, counted from when the node asked for it.
pub const GOOD_FOR: Duration = Duration::from_secs(12);

/// How long the leader waits for a renewal before it gives the replica to another node.
pub const PATIENCE: Duration = Duration::from_secs(15);

/// A leader whom a quorum has not confirmed for so long answers nobody. With [`GOOD_FOR`] it is less than [`PATIENCE`].
pub const CONFIRMED: Duration = Duration::from_secs(2);

/// The time since the machine was started, the time in which it slept included.
#[must_use]
pub fn boot_time() -> Duration {
    let time = rustix::time::clock_gettime(rustix::time::ClockId::Boottime);
    let seconds = u64::try_from(time.tv_sec).unwrap_or_default();
    Duration::new(seconds, u32::try_from(time.tv_nsec).unwrap_or_default())
}

fn millis(time: Duration) -> u64 {
    u64::try_from(time.as_millis()).unwrap_or(u64::MAX)
}

/// The lease of one unit on its node. Clones are the same lease.
#[derive(Clone, Debug, Default)]
pub struct Lease(Arc<AtomicU64>);

impl Lease {
    /// Whether it is good at this time since the start of the machine.
    #[must_use]
    pub fn is_good(&self, at: Duration) -> bool {
        millis(at) < self.0.load(Ordering::SeqCst)
    }

    fn renewed(&self, asked: Duration) {
        self.0.fetch_max(millis(asked + GOOD_FOR), Ordering::SeqCst);
    }
}

/// The leases of a node's own units.
#[derive(Debug, Default)]
pub struct OwnLeases(Mutex<HashMap<UnitId, Lease>>);

impl OwnLeases {
    // Only maps are changed while it is held.
    fn leases(&self) -> MutexGuard<'_, HashMap<UnitId, Lease>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The lease of a unit. It is good for nothing until it has been renewed.
    #[must_use]
    pub fn of(&self, unit: UnitId) -> Lease {
        self.leases().entry(unit).or_default().clone()
    }

    /// Takes in what the leader has confirmed of what was asked at this time. Of other units nothing is kept.
    pub fn renewed(&self, asked_at: Duration, all: &HashSet<UnitId>, confirmed: impl Iterator<Item = UnitId>) {
        let mut leases = self.leases();
        leases.retain(|unit, _| all.contains(unit));
        for unit in confirmed.filter(|unit| all.contains(unit)) {
            leases.entry(unit).or_default().renewed(asked_at);
        }
    }
}

/// What a leader knows of the leases, in one office.
#[derive(Debug)]
struct InOffice {
    office: Office,
    since: Instant,
    heard: HashMap<UnitId, Instant>,
    /// These are being given to other nodes, and are renewed no more.
    given_up: HashSet<UnitId>,
}

impl InOffice {
    fn is_lost(&mut self, unit: UnitId, now: Instant) -> bool {
        let heard = *self.heard.entry(unit).or_insert(now);
        now.saturating_duration_since(heard.max(self.since)) > PATIENCE
    }
}

/// The leases as the leader sees them; nothing on other nodes.
#[derive(Debug, Default)]
pub struct Granted(Mutex<Option<InOffice>>);

impl Granted {
    // Only maps are changed while it is held.
    fn state(&self) -> MutexGuard<'_, Option<InOffice>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Begins to answer in this office, until what is returned is dropped.
    #[must_use]
    pub fn begin(self: &Arc<Self>, office: Office, now: Instant) -> Answering {
        *self.state() = Some(InOffice { office, since: now, heard: HashMap::new(), given_up: HashSet::new() });
        Answering { granted: Arc::clone(self), office }
    }

    /// Renews what this node has by the state, and says which that is. `None`: this node does not lead.
    ///
    /// # Errors
    /// When the state is damaged.
    pub fn renew(
        &self,
        view: &View,
        node: NodeId,
        asked: &[UnitId],
        now: Instant,
    ) -> Result<Option<Vec<UnitId>>, Damaged> {
        let held = view.held_on(node)?;
        let mut state = self.state();
        let Some(in_office) = state.as_mut() else { return Ok(None) };
        let held: HashSet<_> =
            held.into_iter().map(|held| UnitId { placement: held.placement, epoch: held.epoch }).collect();
        let good = |unit: &&UnitId| held.contains(unit) && !in_office.given_up.contains(unit);
        let good: Vec<_> = asked.iter().filter(good).copied().collect();
        in_office.heard.extend(good.iter().map(|unit| (*unit, now)));
        Ok(Some(good))
    }

    /// Whether nothing has been heard of a unit for so long that its node does not serve it any more. One that is seen for the
    /// first time is waited for from now on.
    pub fn is_lost(&self, unit: UnitId, now: Instant) -> bool {
        self.state().as_mut().is_some_and(|in_office| in_office.is_lost(unit, now))
    }

    /// Renews a unit no more. To be done before it is given to another node; `false` if it was heard of in the meantime.
    pub fn give_up(&self, unit: UnitId, now: Instant) -> bool {
        let mut state = self.state();
        let Some(in_office) = state.as_mut() else { return false };
        let lost = in_office.is_lost(unit, now);
        if lost {
            in_office.given_up.insert(unit);
        }
        lost
    }

    /// Nothing has come of giving a unit to another node: it may be renewed again.
    pub fn keep(&self, unit: UnitId) {
        if let Some(in_office) = self.state().as_mut() {
            in_office.given_up.remove(&unit);
        }
    }

    /// Forgets what is not there any more.
    pub fn retain(&self, exists: &HashSet<UnitId>) {
        if let Some(in_office) = self.state().as_mut() {
            in_office.heard.retain(|unit, _| exists.contains(unit));
            in_office.given_up.retain(|unit| exists.contains(unit));
        }
    }
}

/// A leader's time of answering.
#[derive(Debug)]
pub struct Answering {
    granted: Arc<Granted>,
    office: Office,
}

impl Drop for Answering {
    fn drop(&mut self) {
        let mut state = self.granted.state();
        if state.as_ref().is_some_and(|in_office| in_office.office == self.office) {
            *state = None;
        }
    }
}

#[cfg(test)]
mod tests {
    use muster_cluster::ids::{DeploymentId, PlacementEpoch, PlacementId};

    use super::*;

    fn unit(epoch: u64) -> UnitId {
        let placement = PlacementId { deployment: DeploymentId(1), ordinal: 0 };
        UnitId { placement, epoch: PlacementEpoch(epoch) }
    }

    #[test]
    fn a_lease_ends_before_the_leader_gives_the_replica_to_another_node() {
        assert!(GOOD_FOR + CONFIRMED < PATIENCE);
        let leases = OwnLeases::default();
        let (lease, asked) = (leases.of(unit(1)), Duration::from_secs(100));
        assert!(!lease.is_good(asked), "it has never been renewed");
        leases.renewed(asked, &HashSet::from([unit(1)]), [unit(1), unit(2)].into_iter());
        assert!(lease.is_good(asked + GOOD_FOR - Duration::from_millis(1)));
        assert!(!lease.is_good(asked + GOOD_FOR));
        leases.renewed(asked - Duration::from_secs(1), &HashSet::from([unit(1)]), [unit(1)].into_iter());
        assert!(lease.is_good(asked + GOOD_FOR - Duration::from_millis(1)), "an older answer shortens nothing");
        assert!(!leases.of(unit(2)).is_good(asked), "nobody asked for it");
    }

    #[test]
    fn a_new_leader_waits_before_it_judges() {
        let (granted, begun) = (Arc::new(Granted::default()), Instant::now());
        let after = |time: Duration| begun + time;
        assert!(!granted.is_lost(unit(1), after(PATIENCE * 2)), "it does not lead");
        let answering = granted.begin(Office(5), begun);
        assert!(!granted.is_lost(unit(1), begun));
        assert!(!granted.is_lost(unit(1), after(PATIENCE)));
        assert!(!granted.is_lost(unit(2), after(PATIENCE * 2)), "it is seen for the first time");
        let late = after(PATIENCE + Duration::from_millis(1));
        assert!(granted.is_lost(unit(1), late));
        assert!(granted.give_up(unit(1), late) && granted.give_up(unit(1), late));
        assert!(!granted.give_up(unit(2), late));
        let other = granted.begin(Office(6), late);
        drop(answering);
        assert!(!granted.is_lost(unit(1), late), "the office is another's");
        drop(other);
        assert_eq!(granted.renew(&View::default(), NodeId(1), &[unit(1)], late), Ok(None));
    }
}
