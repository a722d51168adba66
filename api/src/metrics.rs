//! What is counted, in the form that Prometheus reads. Nothing global: the numbers belong to one node.

use std::sync::atomic::AtomicU64;
use std::time::Duration;

use http::Method;
use muster_cluster::clocks::{Clocks, Standing};
use muster_cluster::consensus::Role;
use muster_cluster::membership::Liveness;
use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::encoding::text::encode;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::Histogram;
use prometheus_client::metrics::info::Info;
use prometheus_client::registry::{Registry, Unit};

use crate::gateway::Tally;
use crate::state::Member;

/// Upper bounds of the classes of a request's duration, in seconds.
const BOUNDS: [f64; 11] = [0.000_5, 0.001, 0.002_5, 0.005, 0.01, 0.025, 0.05, 0.1, 0.5, 2.0, 10.0];

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct RequestLabels {
    method: String,
    route: String,
    status: u16,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct RouteLabels {
    route: String,
}

/// Counts requests.
#[derive(Debug)]
pub struct Metrics {
    requests: Family<RequestLabels, Counter>,
    seconds: Family<RouteLabels, Histogram>,
}

impl Default for Metrics {
    fn default() -> Self {
        let histogram = || Histogram::new(BOUNDS);
        Self { requests: Family::default(), seconds: Family::new_with_constructor(histogram) }
    }
}

impl Metrics {
    /// Counts a request that has been answered. `route` is a pattern, never what the caller wrote.
    pub(crate) fn request(&self, method: &Method, route: &str, status: u16, took: Duration) {
        // A caller may invent methods; a metric must not grow with them.
        let method = match *method {
            Method::GET | Method::HEAD | Method::POST | Method::PUT | Method::PATCH | Method::DELETE => method.as_str(),
            _ => "other",
        };
        let labels = RequestLabels { method: method.to_owned(), route: route.to_owned(), status };
        self.requests.get_or_create(&labels).inc();
        let route = RouteLabels { route: route.to_owned() };
        self.seconds.get_or_create(&route).observe(took.as_secs_f64());
    }

    /// Everything that is known of this node, as text.
    ///
    /// # Errors
    /// When the text can not be made.
    pub(crate) fn render(&self, member: Option<&Member>, tally: &Tally) -> Result<String, std::fmt::Error> {
        let mut registry = Registry::with_prefix("muster");
        registry.register("http_requests", "Requests answered", self.requests.clone());
        let seconds = self.seconds.clone();
        registry.register_with_unit("http_request_duration", "Time to answer a request", Unit::Seconds, seconds);
        let build = Info::new([("version", env!("CARGO_PKG_VERSION"))]);
        registry.register("build", "The running version", build);
        tally.register(&mut registry);
        if let Some(member) = member {
            consensus(&mut registry, member);
            clocks(&mut registry, &member.clocks);
        }
        let mut text = String::new();
        encode(&mut text, &registry)?;
        Ok(text)
    }
}

fn gauge(registry: &mut Registry, name: &str, help: &str, value: u64) {
    let gauge: Gauge = Gauge::default();
    gauge.set(i64::try_from(value).unwrap_or(i64::MAX));
    registry.register(name, help, gauge);
}

fn consensus(registry: &mut Registry, member: &Member) {
    let status = member.consensus.status();
    let view = member.consensus.local();
    gauge(registry, "raft_running", "1 unless Raft has stopped", u64::from(status.stopped.is_none()));
    gauge(registry, "raft_is_leader", "1 on the leader", u64::from(matches!(status.role, Role::Leader { .. })));
    gauge(registry, "raft_leader_id", "The leader, 0 if there is none", status.leader.map_or(0, |node| node.0));
    gauge(registry, "raft_term", "The term", status.term);
    gauge(registry, "raft_last_log_index", "The last entry of the log", status.last_log);
    gauge(registry, "raft_committed_index", "The last committed entry", status.committed);
    gauge(registry, "raft_applied_index", "The last applied entry", view.index());
    gauge(registry, "raft_snapshot_index", "The last entry of the newest snapshot", status.snapshot);
    gauge(registry, "raft_purged_index", "The last entry that the log has forgotten", status.purged);
    let voters = status.voters.iter().flatten().collect::<std::collections::BTreeSet<_>>().len();
    gauge(registry, "raft_voters", "Nodes that vote", voters as u64);
    gauge(registry, "raft_standbys", "Nodes that hold the state and do not vote", status.standbys.len() as u64);
    gauge(registry, "raft_joint", "1 while the voters are changing", u64::from(status.voters.len() > 1));
    gauge(registry, "state_records", "Records of the replicated state", view.len() as u64);
    // A gauge holds 53 bits without loss: equal on all nodes at an equal index.
    let history = view.fingerprint().history;
    let hash = history.first_chunk::<8>().map_or(0, |bytes| u64::from_be_bytes(*bytes)) >> 11;
    gauge(registry, "state_hash", "The first 53 bits of the running hash at the applied index", hash);
    let gossip = member.replica.gossip.stats();
    gauge(registry, "gossip_datagrams_sent", "Datagrams of gossip sent", gossip.sent());
    gauge(registry, "gossip_datagrams_received", "Datagrams of gossip of this fleet received", gossip.received());
    gauge(registry, "gossip_datagrams_foreign", "Datagrams that did not open", gossip.foreign());
    gauge(registry, "gossip_datagrams_malformed", "Datagrams of this fleet that made no sense", gossip.malformed());
    gauge(registry, "gossip_unknown_nodes", "Times that a node was told of that is not known here", gossip.unknown());
    gauge(registry, "gossip_nodes_kept", "Nodes of which gossip keeps anything", gossip.kept());
    let roster = member.replica.gossip.roster();
    let alive = roster.nodes().filter(|(_, heard)| heard.liveness == Liveness::Alive).count();
    gauge(registry, "gossip_nodes_alive", "Other nodes that are heard", alive as u64);
    let log = member.consensus.log_stats();
    let micros = |duration: Duration| u64::try_from(duration.as_micros()).unwrap_or(u64::MAX);
    gauge(registry, "log_syncs", "Barriers of the log", log.syncs);
    gauge(registry, "log_requests", "Writes that the barriers of the log covered", log.requests);
    gauge(registry, "log_bytes", "Bytes of keys and values written to the log", log.bytes);
    gauge(registry, "log_last_sync_micros", "How long the last barrier of the log took", micros(log.last_sync));
    gauge(registry, "log_slowest_sync_micros", "How long the slowest barrier took", micros(log.slowest_sync));
    let state = member.consensus.state_stats();
    gauge(registry, "state_checkpoints", "Times that the copy of the state was made durable", state.checkpoints);
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct NodeLabels {
    node: u64,
}

/// The nodes of the fleet bound the labels.
fn clocks(registry: &mut Registry, clocks: &Clocks) {
    let offsets: Family<NodeLabels, Gauge<f64, AtomicU64>> = Family::default();
    let round_trips: Family<NodeLabels, Gauge<f64, AtomicU64>> = Family::default();
    let mut off = 0;
    for (node, clock) in &clocks.sheet().nodes {
        let labels = NodeLabels { node: node.0 };
        off += u64::from(clock.standing == Standing::Off);
        if let Some(offset) = clock.offset {
            offsets.get_or_create(&labels).set(offset.offset_ms as f64 / 1000.0);
        }
        if let Some(trips) = clock.round_trips {
            round_trips.get_or_create(&labels).set(trips.median.as_secs_f64());
        }
    }
    let help = "How far a node's clock is ahead of the median of the voters";
    registry.register_with_unit("clock_offset", help, Unit::Seconds, offsets);
    let help = "The time to ask a node and have its answer, in the median";
    registry.register_with_unit("node_round_trip", help, Unit::Seconds, round_trips);
    gauge(registry, "clocks_off", "Nodes whose clock is more than 2 s from the median of the voters", off);
    let stamps = u64::from(clocks.stamps_forward());
    gauge(registry, "clock_stamps_forward", "1 unless the clock of this node is off", stamps);
}
