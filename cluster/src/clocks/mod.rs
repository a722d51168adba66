//! The clocks of the nodes: read, compared with the median of the voters, and kept from doing harm.
//!
//! Every node reads the clocks of all others by a small call, so each knows by itself where it stands; nothing of it is
//! replicated, and gossip has no part in it. While a majority of the voters agrees and this node does not, it stamps nothing
//! forward: the time of the log stands still rather than going wrong. What a leader does besides is `leader::HandOver`, and
//! what expires asks [`Clocks::second_opinion`].

mod judge;
mod measure;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, OnceLock, Weak};
use std::time::Duration;

use arc_swap::ArcSwap;
use tokio::sync::watch;
use tokio::time::Instant;

pub use judge::{Agreement, Median, OFF, Offset, Opinion, Standing};
use judge::{Reading, Seen};
pub use measure::RoundTrips;
pub(crate) use measure::{ClockService, measure};

use crate::clock::Clock;
use crate::consensus::{Consensus, Timing};
use crate::ids::{LogTime, NodeId};

/// How clocks are compared.
#[derive(Clone, Copy, Debug)]
pub struct Rules {
    /// How often the clocks of the others are read.
    pub period: Duration,
    /// How long a node without any other must have run since a step of the log's time before something expires by it. There
    /// is nobody to ask; whoever has set the clock wrongly has this long to put it right.
    pub patience_alone: Duration,
}

impl Default for Rules {
    fn default() -> Self {
        Self { period: Duration::from_secs(2), patience_alone: Duration::from_secs(600) }
    }
}

/// What is known of one node's clock.
#[derive(Clone, Copy, Debug)]
pub struct NodeClock {
    /// What it is.
    pub standing: Standing,
    /// How far it is from the median, when that was looked at last.
    pub offset: Option<Offset>,
    /// How long it takes to ask the node and have its answer. Not of this node itself.
    pub round_trips: Option<RoundTrips>,
    /// How patient its Raft is, if it has said so of late.
    pub timing: Option<Timing>,
}

/// What is known of all clocks, at one moment.
#[derive(Clone, Debug)]
pub struct Sheet {
    /// What the voters agree on.
    pub agreement: Agreement,
    /// Each node, this one included.
    pub nodes: BTreeMap<NodeId, NodeClock>,
    voters: BTreeSet<NodeId>,
    readings: BTreeMap<NodeId, Reading>,
}

impl Sheet {
    /// The longest round trips to other voters: the median and nearly all of them. None while none is known.
    #[must_use]
    pub fn between_voters(&self) -> Option<RoundTrips> {
        let trips = self.nodes.iter().filter(|(node, _)| self.voters.contains(node));
        let trips: Vec<_> = trips.filter_map(|(_, clock)| clock.round_trips).collect();
        let median = trips.iter().map(|trips| trips.median).max()?;
        let p99 = trips.iter().map(|trips| trips.p99).max()?;
        Some(RoundTrips { median, p99, count: trips.iter().map(|trips| trips.count).sum() })
    }
}

struct Inner {
    clock: Arc<dyn Clock>,
    own: NodeId,
    rules: Rules,
    sheet: ArcSwap<Sheet>,
    /// Knows who votes this very moment: a node that has just been joined by other voters must not take its own clock for that of
    /// all of them until it looks again. It owns these clocks, so that they must not own it.
    consensus: OnceLock<Weak<Consensus>>,
    /// Whether everybody has been asked once.
    asked: watch::Sender<bool>,
    /// The node that is of the latest generation of the fleet, if one that was asked is of a later one than this.
    later: watch::Sender<Option<(u64, NodeId)>>,
}

/// The clocks of the fleet as this node sees them. Clones are the same.
#[derive(Clone)]
pub struct Clocks {
    inner: Arc<Inner>,
}

impl Clocks {
    /// Nothing has been read yet.
    pub(crate) fn new(clock: Arc<dyn Clock>, own: NodeId, rules: Rules) -> Self {
        let (nodes, voters, readings) = Default::default();
        let sheet = ArcSwap::from_pointee(Sheet { agreement: Agreement::Unknown, nodes, voters, readings });
        Self {
            inner: Arc::new(Inner {
                clock,
                own,
                rules,
                sheet,
                consensus: OnceLock::new(),
                asked: watch::Sender::new(false),
                later: watch::Sender::new(None),
            }),
        }
    }

    /// Waits until everybody has been asked once, or for a while.
    pub(crate) async fn asked(&self, limit: Duration) {
        let mut asked = self.inner.asked.subscribe();
        // Somebody may be dead, and takes longer to say nothing.
        let _ = tokio::time::timeout(limit, asked.wait_for(|asked| *asked)).await;
    }

    /// Which node says, when it is asked for its clock, that it is of a later generation of the fleet, and of which.
    pub(crate) fn later_generation(&self) -> watch::Receiver<Option<(u64, NodeId)>> {
        self.inner.later.subscribe()
    }

    fn show(&self, sheet: Sheet) {
        self.inner.sheet.store(Arc::new(sheet));
        self.inner.asked.send_replace(true);
    }

    /// How clocks are compared.
    #[must_use]
    pub fn rules(&self) -> Rules {
        self.inner.rules
    }

    /// This node's own clock, in milliseconds since 1970.
    #[must_use]
    pub fn own_ms(&self) -> u64 {
        self.inner.clock.now_ms()
    }

    /// What is known.
    #[must_use]
    pub fn sheet(&self) -> Arc<Sheet> {
        self.inner.sheet.load_full()
    }

    /// What is known of a node's clock.
    #[must_use]
    pub fn node(&self, node: NodeId) -> Option<NodeClock> {
        self.inner.sheet.load().nodes.get(&node).copied()
    }

    /// What this node's own clock is.
    #[must_use]
    pub fn own(&self) -> Standing {
        self.node(self.inner.own).map(|clock| clock.standing).unwrap_or_default()
    }

    /// Whether the stamps of this node would move the log's time: not while its clock is off, and not before the others have
    /// been asked for the first time. Judged by where the clock is now: one that has just jumped stamps nothing.
    #[must_use]
    pub fn stamps_forward(&self) -> bool {
        self.stamp().is_some()
    }

    fn stamp(&self) -> Option<u64> {
        let stamp = self.with_seen(|seen, sheet| match sheet.agreement {
            Agreement::Unknown => None,
            Agreement::Undecided | Agreement::Agreed(_) => seen.stamp(),
        });
        stamp.and_then(|stamp| u64::try_from(stamp).ok())
    }

    fn with_seen<T>(&self, ask: impl FnOnce(&Seen<'_>, &Sheet) -> T) -> T {
        let sheet = self.inner.sheet.load();
        let Inner { own, .. } = *self.inner;
        let consensus = self.inner.consensus.get().and_then(Weak::upgrade);
        let voters = consensus.map(|consensus| consensus.voters());
        let (voters, readings) = (voters.as_ref().unwrap_or(&sheet.voters), &sheet.readings);
        let seen = Seen { own, own_ms: signed(self.own_ms()), now: Instant::now(), voters, readings };
        ask(&seen, &sheet)
    }

    /// What others say to a time of the log.
    #[must_use]
    pub fn second_opinion(&self, time: LogTime) -> Opinion {
        self.with_seen(|seen, _| seen.second_opinion(signed(time.0)))
    }
}

/// What a leader stamps its entries with: its clock, or nothing that moves the log's time.
pub(crate) struct Stamps(pub Clocks);

impl Clock for Stamps {
    fn now_ms(&self) -> u64 {
        // The time of the log never goes back, so that an entry of 1970 leaves it where it is.
        self.0.stamp().unwrap_or(0)
    }
}

fn signed(ms: u64) -> i64 {
    i64::try_from(ms).unwrap_or(LATEST).min(LATEST)
}

/// No clock shows more: whatever is reckoned with times stays far from where numbers end.
const LATEST: i64 = 1 << 53;

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicU64, Ordering};

    use super::*;

    const NOON: u64 = 1_700_000_000_000;

    struct At(AtomicU64);

    impl Clock for At {
        fn now_ms(&self) -> u64 {
            self.0.load(Ordering::SeqCst)
        }
    }

    #[test]
    fn a_clock_that_jumps_stamps_nothing_from_that_moment_on() {
        let clock = Arc::new(At(AtomicU64::new(NOON)));
        let clocks = Clocks::new(Arc::clone(&clock) as Arc<dyn Clock>, NodeId(1), Rules::default());
        let stamps = Stamps(clocks.clone());
        assert_eq!(stamps.now_ms(), 0, "nobody has been asked yet");
        let reading = Reading { at: Instant::now(), time_ms: signed(NOON), round_trip: Duration::ZERO };
        let readings = [2, 3].map(|node| (NodeId(node), reading)).into();
        let (nodes, voters) = (BTreeMap::new(), [1, 2, 3].map(NodeId).into());
        clocks.show(Sheet { agreement: Agreement::Undecided, nodes, voters, readings });
        assert_eq!(stamps.now_ms(), NOON);
        for jumped in [NOON + 120_000, NOON - 120_000] {
            clock.0.store(jumped, Ordering::SeqCst);
            assert_eq!(stamps.now_ms(), 0);
        }
        clock.0.store(NOON + 500, Ordering::SeqCst);
        assert_eq!(stamps.now_ms(), NOON + 500, "it has been put right");
    }
}
