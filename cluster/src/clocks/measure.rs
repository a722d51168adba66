//! Reading the clocks of the others, again and again, and saying what has come of it.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::Arc;
use std::time::Duration;

use futures_util::StreamExt;
use futures_util::stream::FuturesUnordered;
use tokio::time::Instant;
use tonic::service::interceptor::InterceptedService;
use tonic::{Request, Response, Status};

use super::judge::{Health, Reading, Seen, millis};
use super::{Agreement, Clocks, NodeClock, Sheet, Standing, signed};
use crate::consensus::{Consensus, Timing};
use crate::ids::NodeId;
use crate::transport::{Channels, Check, Inject, Purpose, refused_by_generation};
use crate::wire::clocks_client::ClocksClient;
use crate::wire::clocks_server::ClocksServer;
use crate::wire::{ClockAnswer, ClockRequest, clocks_server};

/// How long a node may take to say what time it is there.
const ASK_LIMIT: Duration = Duration::from_secs(1);

/// How many round trips of each node are kept.
const KEPT: usize = 64;

/// How long it takes to ask a node and have its answer, of the last times that it answered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RoundTrips {
    /// Half of them were shorter.
    pub median: Duration,
    /// Nearly all of them were shorter.
    pub p99: Duration,
    /// How many they are.
    pub count: usize,
}

impl RoundTrips {
    fn of(kept: &VecDeque<Duration>) -> Option<Self> {
        let mut sorted: Vec<_> = kept.iter().copied().collect();
        sorted.sort_unstable();
        let at = |share: usize| sorted.get((sorted.len() * share).div_ceil(100).saturating_sub(1)).copied();
        Some(Self { median: at(50)?, p99: at(99)?, count: sorted.len() })
    }
}

/// Says what time it is here.
pub(crate) struct ClockService {
    clocks: Clocks,
    timing: Timing,
}

impl ClockService {
    /// The service, for members alone.
    pub fn server(clocks: Clocks, timing: Timing, check: Check) -> InterceptedService<ClocksServer<Self>, Check> {
        InterceptedService::new(ClocksServer::new(Self { clocks, timing }), check)
    }
}

#[tonic::async_trait]
impl clocks_server::Clocks for ClockService {
    async fn read(&self, _: Request<ClockRequest>) -> Result<Response<ClockAnswer>, Status> {
        let timing = self.timing.name().to_owned();
        Ok(Response::new(ClockAnswer { time_ms: self.clocks.own_ms(), timing }))
    }
}

/// What has come of asking a node.
enum Asked {
    Reading(Reading, Option<Timing>),
    /// It is of this later generation of the fleet, or says so.
    Later(u64),
    Nothing,
}

async fn ask(channels: &Channels, node: NodeId) -> Asked {
    let inject = Inject { registered: Arc::clone(channels.registered()), to: node };
    let mut client = ClocksClient::with_interceptor(channels.to(node, Purpose::Calls), inject);
    let begun = Instant::now();
    let answer = tokio::time::timeout(ASK_LIMIT, client.read(ClockRequest {})).await;
    let at = Instant::now();
    let answer = match answer {
        Ok(Ok(answer)) => answer.into_inner(),
        Ok(Err(status)) => {
            let later = refused_by_generation(&status).filter(|theirs| *theirs > channels.registered().generation);
            return later.map_or(Asked::Nothing, Asked::Later);
        }
        Err(_) => return Asked::Nothing,
    };
    let round_trip = at.saturating_duration_since(begun);
    let reading = Reading { at, time_ms: signed(answer.time_ms) + millis(round_trip) / 2, round_trip };
    Asked::Reading(reading, Timing::parse(&answer.timing))
}

/// What is kept of a node from one round to the next.
#[derive(Default)]
struct Kept {
    health: Health,
    round_trips: VecDeque<Duration>,
    /// Whether it answered the last time.
    answered: bool,
    /// How patient its Raft was then.
    timing: Option<Timing>,
    /// What was said of its clock last.
    said: Standing,
}

impl Kept {
    fn note(&mut self, reading: Option<&Reading>) {
        // The first answer after none may have waited for a connection.
        if let Some(reading) = reading.filter(|_| self.answered) {
            if self.round_trips.len() >= KEPT {
                self.round_trips.pop_front();
            }
            self.round_trips.push_back(reading.round_trip);
        }
        self.answered = reading.is_some();
    }
}

/// Reads all clocks again and again.
pub(crate) async fn measure(clocks: Clocks, consensus: Arc<Consensus>, channels: Arc<Channels>) {
    let mut kept: BTreeMap<NodeId, Kept> = BTreeMap::new();
    let mut readings: BTreeMap<NodeId, Reading> = BTreeMap::new();
    let mut undecided = Undecided::default();
    // It is asked for once only, when the node starts.
    let _ = clocks.inner.consensus.set(Arc::downgrade(&consensus));
    loop {
        let own = clocks.inner.own;
        // The nodes of the fleet bound what is kept.
        let nodes: BTreeSet<_> = channels.registered().current().peers().map(|peer| peer.node).collect();
        let asked = nodes.iter().copied().filter(|node| *node != own);
        let mut asking: FuturesUnordered<_> = asked
            .map(|node| {
                let channels = &channels;
                async move { (node, ask(channels, node).await) }
            })
            .collect();
        let mut later = None;
        while let Some((node, asked)) = asking.next().await {
            let reading = match asked {
                Asked::Reading(reading, timing) => {
                    kept.entry(node).or_default().timing = timing;
                    Some(reading)
                }
                Asked::Later(generation) => {
                    later = later.max(Some((generation, node)));
                    None
                }
                Asked::Nothing => None,
            };
            kept.entry(node).or_default().note(reading.as_ref());
            if let Some(reading) = reading {
                readings.insert(node, reading);
            }
        }
        drop(asking);
        clocks.inner.later.send_if_modified(|known| std::mem::replace(known, later) != later);
        kept.entry(own).or_default().timing = Some(consensus.timing());
        kept.retain(|node, _| *node == own || nodes.contains(node));
        readings.retain(|node, _| nodes.contains(node));
        let voters = consensus.voters();
        let (own_ms, now) = (signed(clocks.own_ms()), Instant::now());
        let seen = Seen { own, own_ms, now, voters: &voters, readings: &readings };
        let agreement = seen.agreement();
        let fresh = |node: &NodeId| readings.get(node).is_some_and(|reading| reading.is_fresh(now));
        let mut shown = BTreeMap::new();
        for (node, kept) in &mut kept {
            let offset = match agreement {
                Agreement::Agreed(median) => seen.offset(*node, median),
                Agreement::Undecided | Agreement::Unknown => None,
            };
            kept.health.take(offset);
            let standing = kept.health.standing;
            say(*node, kept, standing, offset.map(|offset| offset.offset_ms), own);
            let timing = kept.timing.filter(|_| *node == own || fresh(node));
            let round_trips = RoundTrips::of(&kept.round_trips);
            shown.insert(*node, NodeClock { standing, offset, round_trips, timing });
        }
        let all_read = !voters.is_empty() && voters.iter().all(|voter| *voter == own || fresh(voter));
        undecided.say(agreement, all_read);
        clocks.show(Sheet { agreement, nodes: shown, voters, readings: readings.clone() });
        tokio::time::sleep(clocks.inner.rules.period).await;
    }
}

/// Says once what has changed.
fn say(node: NodeId, kept: &mut Kept, standing: Standing, offset_ms: Option<i64>, own: NodeId) {
    if standing == Standing::Unknown || standing == kept.said {
        return;
    }
    let before = std::mem::replace(&mut kept.said, standing);
    match (standing, node == own) {
        (Standing::Off, true) => {
            tracing::warn!(
                offset_ms,
                "the clock of this node is off: the voters agree on another time; see to its NTP"
            );
        }
        (Standing::Off, false) => tracing::warn!(%node, offset_ms, "the clock of a node is off; see to its NTP"),
        (Standing::Good, _) if before == Standing::Off => tracing::info!(%node, "the clock of a node is right again"),
        _ => {}
    }
}

/// Whether it has been said that the voters do not agree.
#[derive(Default)]
struct Undecided {
    said: bool,
}

impl Undecided {
    fn say(&mut self, agreement: Agreement, all_read: bool) {
        match agreement {
            // A voter that does not answer is told of elsewhere.
            Agreement::Undecided if all_read && !self.said => {
                self.said = true;
                tracing::warn!(
                    "the clocks of the voters differ so much that no majority agrees on the time; see to their NTP"
                );
            }
            Agreement::Agreed(_) if self.said => {
                self.said = false;
                tracing::info!("a majority of the voters agrees on the time again");
            }
            _ => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_answer_after_a_silence_tells_nothing_of_the_way() {
        let mut kept = Kept::default();
        let reading = |ms| Reading { at: Instant::now(), time_ms: 0, round_trip: Duration::from_millis(ms) };
        for (reading, count) in
            [(Some(reading(900)), 0), (Some(reading(2)), 1), (None, 1), (Some(reading(900)), 1), (Some(reading(4)), 2)]
        {
            kept.note(reading.as_ref());
            assert_eq!(kept.round_trips.len(), count);
        }
        for _ in 0..2 * KEPT {
            kept.note(Some(&reading(3)));
        }
        kept.note(Some(&reading(50)));
        let found = RoundTrips::of(&kept.round_trips);
        let (median, p99) = (Duration::from_millis(3), Duration::from_millis(50));
        assert_eq!(found, Some(RoundTrips { median, p99, count: KEPT }));
    }
}
