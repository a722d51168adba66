//! What this node serves now: which units take requests, where, and how many are under way.
//!
//! The supervisor opens and closes units here; whoever forwards requests asks here. It is read for every request, so reading
//! takes no lock.

use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use arc_swap::ArcSwap;
use muster_cluster::ids::{PlacementEpoch, PlacementId};
use tokio::sync::Notify;

use crate::runtime::{Endpoint, UnitId};

/// A unit that takes requests.
#[derive(Debug)]
pub struct Served {
    unit: UnitId,
    endpoint: Endpoint,
    flights: AtomicUsize,
    closed: AtomicBool,
    landed: Notify,
}

impl Served {
    /// Which unit.
    #[must_use]
    pub fn unit(&self) -> UnitId {
        self.unit
    }

    /// Where its engine listens.
    #[must_use]
    pub fn endpoint(&self) -> &Endpoint {
        &self.endpoint
    }

    /// How many requests are under way.
    #[must_use]
    pub fn in_flight(&self) -> usize {
        self.flights.load(Ordering::SeqCst)
    }

    /// Lets a request in, and counts it for as long as the answer lives. `None` once the unit is closed.
    #[must_use]
    pub fn admit(self: &Arc<Self>) -> Option<Flight> {
        // Counted first: whoever closes it either sees this request, or this request sees that it is closed.
        self.flights.fetch_add(1, Ordering::SeqCst);
        let flight = Flight(Arc::clone(self));
        if self.closed.load(Ordering::SeqCst) { None } else { Some(flight) }
    }

    /// Waits until no request is under way.
    pub async fn drained(&self) {
        loop {
            let landed = self.landed.notified();
            if self.in_flight() == 0 {
                return;
            }
            landed.await;
        }
    }
}

/// A request under way.
#[derive(Debug)]
pub struct Flight(Arc<Served>);

impl Drop for Flight {
    fn drop(&mut self) {
        if self.0.flights.fetch_sub(1, Ordering::SeqCst) == 1 {
            self.0.landed.notify_waiters();
        }
    }
}

type Table = HashMap<PlacementId, Arc<Served>>;

/// All units of this node that take requests.
#[derive(Debug, Default)]
pub struct Serving {
    table: ArcSwap<Table>,
    /// Held while the table is replaced.
    writing: Mutex<()>,
}

impl Serving {
    /// The unit of a placement, if this node serves it in this epoch.
    #[must_use]
    pub fn find(&self, placement: PlacementId, epoch: PlacementEpoch) -> Option<Arc<Served>> {
        self.table.load().get(&placement).filter(|served| served.unit.epoch == epoch).cloned()
    }

    /// Every unit that takes requests.
    #[must_use]
    pub fn all(&self) -> Vec<Arc<Served>> {
        self.table.load().values().cloned().collect()
    }

    fn change(&self, change: impl FnOnce(&mut Table)) {
        let _writing = self.writing.lock().unwrap_or_else(PoisonError::into_inner);
        let mut table = Table::clone(&self.table.load());
        change(&mut table);
        self.table.store(Arc::new(table));
    }

    /// Lets requests to a unit in. What was open of its placement before is closed, unless it is the same: then it stays, with
    /// what is under way.
    pub fn open(&self, unit: UnitId, endpoint: Endpoint) -> Arc<Served> {
        let before = self.find(unit.placement, unit.epoch);
        if let Some(before) = before.filter(|served| served.endpoint == endpoint) {
            return before;
        }
        let served = Arc::new(Served {
            unit,
            endpoint,
            flights: AtomicUsize::new(0),
            closed: AtomicBool::new(false),
            landed: Notify::new(),
        });
        self.change(|table| {
            if let Some(before) = table.insert(unit.placement, Arc::clone(&served)) {
                before.closed.store(true, Ordering::SeqCst);
            }
        });
        served
    }

    /// Lets no more requests to a unit in, and says which are under way. Another unit of the same placement stays open.
    pub fn close(&self, unit: UnitId) -> Option<Arc<Served>> {
        let mut closed = None;
        self.change(|table| {
            if let Some(served) = table.get(&unit.placement).filter(|served| served.unit == unit).cloned() {
                served.closed.store(true, Ordering::SeqCst);
                table.remove(&unit.placement);
                closed = Some(served);
            }
        });
        closed
    }
}

#[cfg(test)]
mod tests {
    use std::path::PathBuf;

    use futures_util::FutureExt;
    use muster_cluster::ids::DeploymentId;

    use super::*;

    fn unit(deployment: u64, epoch: u64) -> UnitId {
        let placement = PlacementId { deployment: DeploymentId(deployment), ordinal: 0 };
        UnitId { placement, epoch: PlacementEpoch(epoch) }
    }

    fn endpoint() -> Endpoint {
        Endpoint::Unix(PathBuf::from("/nowhere"))
    }

    #[test]
    fn only_the_epoch_that_is_open_is_found() {
        let serving = Serving::default();
        serving.open(unit(1, 5), endpoint());
        let find = |epoch| serving.find(unit(1, 5).placement, PlacementEpoch(epoch)).is_some();
        assert!(find(5) && !find(4) && !find(6));
        serving.open(unit(1, 6), endpoint());
        assert!(find(6) && !find(5));
        assert!(serving.close(unit(1, 5)).is_none(), "it is another's turn");
        assert!(find(6));
        assert!(serving.close(unit(1, 6)).is_some() && !find(6) && serving.all().is_empty());
    }

    #[test]
    fn what_is_open_already_keeps_what_is_under_way() {
        let serving = Serving::default();
        let _flight = serving.open(unit(1, 5), endpoint()).admit().expect("open");
        assert_eq!(serving.open(unit(1, 5), endpoint()).in_flight(), 1);
        let moved = serving.open(unit(1, 5), Endpoint::Unix(PathBuf::from("/elsewhere")));
        assert_eq!(moved.in_flight(), 0);
    }

    #[test]
    fn who_closes_waits_for_what_is_under_way_and_nothing_more_comes() {
        let serving = Serving::default();
        let served = serving.open(unit(1, 5), endpoint());
        let flights = (served.admit().expect("open"), served.admit().expect("open"));
        let closed = serving.close(unit(1, 5)).expect("open");
        assert!(served.admit().is_none());
        assert_eq!(closed.in_flight(), 2);
        let mut drained = Box::pin(closed.drained());
        assert!(drained.as_mut().now_or_never().is_none());
        drop(flights.0);
        assert!(drained.as_mut().now_or_never().is_none());
        drop(flights.1);
        assert!(drained.as_mut().now_or_never().is_some());
        assert!(closed.drained().now_or_never().is_some());
    }
}
