//! What this node serves now: which units take requests, where, and how many are under way.
//!
//! The supervisor opens and closes units here; whoever forwards requests asks here. It is read for every request, so reading
//! takes no lock.

use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use arc_swap::ArcSwap;
use muster_cluster::ids::{PlacementEpoch, PlacementId};
use tokio::sync::Notify;
use tokio_util::sync::{CancellationToken, WaitForCancellationFutureOwned};

use crate::leases::{Lease, boot_time};
use crate::runtime::{Endpoint, UnitId};

/// A unit that takes requests.
#[derive(Debug)]
pub struct Served {
    unit: UnitId,
    endpoint: Endpoint,
    flights: AtomicUsize,
    closed: AtomicBool,
    landed: Notify,
    /// What it may be served by, if it can be given to another node; it is looked at with every request.
    lease: Option<Lease>,
    /// Ends the answers under way when the lease does.
    cut: Mutex<CancellationToken>,
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
        let cut = self.lease.as_ref().map(|_| self.cut().clone());
        let flight = Flight { served: Arc::clone(self), cut };
        if self.closed.load(Ordering::SeqCst) || !self.is_leased() { None } else { Some(flight) }
    }

    // Only a token is copied or replaced while it is held.
    fn cut(&self) -> MutexGuard<'_, CancellationToken> {
        self.cut.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether its lease is good, if it needs one.
    #[must_use]
    pub fn is_leased(&self) -> bool {
        self.lease.as_ref().is_none_or(|lease| lease.is_good(boot_time()))
    }

    /// Ends the answers under way if the lease is over. Another node may have begun to answer.
    pub fn enforce(&self) {
        if !self.is_leased() && self.in_flight() > 0 {
            let over = std::mem::take(&mut *self.cut());
            over.cancel();
        }
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
pub struct Flight {
    served: Arc<Served>,
    cut: Option<CancellationToken>,
}

impl Flight {
    /// Waits until the answer must end, whether it is whole or not; `None` if nothing but its own end ends it.
    #[must_use]
    pub fn cut(&self) -> Option<WaitForCancellationFutureOwned> {
        self.cut.clone().map(CancellationToken::cancelled_owned)
    }
}

impl Drop for Flight {
    fn drop(&mut self) {
        if self.served.flights.fetch_sub(1, Ordering::SeqCst) == 1 {
            self.served.landed.notify_waiters();
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
    pub fn open(&self, unit: UnitId, endpoint: Endpoint, lease: Option<Lease>) -> Arc<Served> {
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
            lease,
            cut: Mutex::default(),
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
    use std::collections::HashSet;
    use std::path::PathBuf;
    use std::time::Duration;

    use futures_util::FutureExt;
    use muster_cluster::ids::DeploymentId;

    use super::*;
    use crate::leases::OwnLeases;

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
        serving.open(unit(1, 5), endpoint(), None);
        let find = |epoch| serving.find(unit(1, 5).placement, PlacementEpoch(epoch)).is_some();
        assert!(find(5) && !find(4) && !find(6));
        serving.open(unit(1, 6), endpoint(), None);
        assert!(find(6) && !find(5));
        assert!(serving.close(unit(1, 5)).is_none(), "it is another's turn");
        assert!(find(6));
        assert!(serving.close(unit(1, 6)).is_some() && !find(6) && serving.all().is_empty());
    }

    #[test]
    fn what_is_open_already_keeps_what_is_under_way() {
        let serving = Serving::default();
        let _flight = serving.open(unit(1, 5), endpoint(), None).admit().expect("open");
        assert_eq!(serving.open(unit(1, 5), endpoint(), None).in_flight(), 1);
        let moved = serving.open(unit(1, 5), Endpoint::Unix(PathBuf::from("/elsewhere")), None);
        assert_eq!(moved.in_flight(), 0);
    }

    #[test]
    fn who_closes_waits_for_what_is_under_way_and_nothing_more_comes() {
        let serving = Serving::default();
        let served = serving.open(unit(1, 5), endpoint(), None);
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

    #[test]
    fn without_a_lease_nothing_is_let_in_and_what_is_under_way_is_cut() {
        let (serving, leases) = (Serving::default(), OwnLeases::default());
        let served = serving.open(unit(1, 5), endpoint(), Some(leases.of(unit(1, 5))));
        assert!(served.admit().is_none(), "it has not been renewed yet");
        let renew = |asked| leases.renewed(asked, &HashSet::from([unit(1, 5)]), [unit(1, 5)].into_iter());
        renew(boot_time());
        let flight = served.admit().expect("leased");
        let mut cut = Box::pin(flight.cut().expect("it can be cut"));
        served.enforce();
        assert!(cut.as_mut().now_or_never().is_none());
        let over = OwnLeases::default();
        let late = boot_time().saturating_sub(crate::leases::GOOD_FOR - Duration::from_millis(50));
        over.renewed(late, &HashSet::from([unit(3, 5)]), [unit(3, 5)].into_iter());
        let served = serving.open(unit(3, 5), endpoint(), Some(over.of(unit(3, 5))));
        let flight = served.admit().expect("leased for a moment");
        while served.is_leased() {
            std::thread::yield_now();
        }
        served.enforce();
        assert!(Box::pin(flight.cut().expect("it can be cut")).as_mut().now_or_never().is_some());
        assert!(served.admit().is_none());
    }
}
