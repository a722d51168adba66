//! Nodes that gossip on loopback, in one process.

use std::collections::BTreeMap;
use std::time::Duration;

use tokio::task::JoinHandle;
use tokio::time::{Instant, sleep, timeout};

use super::*;
use crate::ids::{FleetId, NodeId, StoreId};
use crate::sealing::DataKey;
use crate::transport::{Peer, Registry};

const BOUND: Duration = Duration::from_secs(30);

/// So impatient that a test need not wait, and still patient enough for a busy machine.
const PROFILE: Profile = Profile {
    probe_period: Duration::from_millis(300),
    probe_rtt: Duration::from_millis(100),
    suspicion: Duration::from_millis(1500),
};

struct At(u64);

impl Clock for At {
    fn now_ms(&self) -> u64 {
        self.0
    }
}

struct Net {
    fleet: FleetId,
    key: DataKey,
    peers: Vec<Peer>,
    sockets: BTreeMap<u64, UdpSocket>,
    directories: BTreeMap<u64, tempfile::TempDir>,
}

struct Running {
    gossip: Gossip,
    keyring: Keyring,
    facts: watch::Sender<Facts>,
    stop: CancellationToken,
    task: JoinHandle<()>,
}

impl Net {
    fn of(nodes: u64) -> Self {
        let mut net = Self {
            fleet: FleetId::random(),
            key: DataKey::generate(1).expect("a key"),
            peers: Vec::new(),
            sockets: BTreeMap::new(),
            directories: BTreeMap::new(),
        };
        for node in 1..=nodes {
            let socket = UdpSocket::bind("127.0.0.1:0").expect("a port");
            let address = socket.local_addr().expect("an address").to_string();
            net.peers.push(Peer { node: NodeId(node), store: StoreId::random(), address, tls_key: Vec::new() });
            net.sockets.insert(node, socket);
            net.directories.insert(node, tempfile::tempdir().expect("a directory"));
        }
        net
    }

    /// A node that knows these others.
    fn start(&self, node: u64, known: &[u64], now: u64) -> Running {
        let known = self.peers.iter().filter(|peer| peer.node.0 == node || known.contains(&peer.node.0)).cloned();
        let registry = Registry::of(known);
        let registered = Arc::new(Registered::new(self.fleet, 1, NodeId(node), StoreId::random(), registry));
        let keyring = Keyring::new(self.fleet, []).with_gossip(self.key.clone());
        let (facts, told) = watch::channel(Facts {
            api: format!("api of {node}"),
            mesh: self.sockets[&node].local_addr().expect("an address").to_string(),
            ..Facts::default()
        });
        let options = GossipOptions {
            socket: self.sockets[&node].try_clone().expect("a handle"),
            directory: self.directories[&node].path().to_owned(),
            registered,
            keyring: keyring.clone(),
            profile: PROFILE,
            clock: Arc::new(At(now)),
            facts: told,
        };
        let stop = CancellationToken::new();
        let (gossip, task) = begin(options, stop.clone()).expect("begins");
        Running { gossip, keyring, facts, stop, task: tokio::spawn(task) }
    }
}

impl Running {
    /// Waits until it sees these nodes so.
    async fn sees(&self, nodes: &[u64], liveness: Liveness) {
        self.until(|roster| {
            nodes.iter().all(|node| roster.node(NodeId(*node)).is_some_and(|heard| heard.liveness == liveness))
        })
        .await;
    }

    async fn until(&self, holds: impl Fn(&Roster) -> bool) {
        let mut roster = self.gossip.follow();
        let waiting = timeout(BOUND, roster.wait_for(|roster| holds(roster))).await;
        assert!(waiting.is_ok(), "still {:?}", self.gossip.roster());
    }

    async fn stop(self) {
        self.stop.cancel();
        timeout(BOUND, self.task).await.expect("ends").expect("does not panic");
    }
}

#[tokio::test]
async fn nodes_find_each_other_and_what_they_tell() {
    let net = Net::of(4);
    // Each knows the first only: the rest they hear of.
    let first = net.start(1, &[], 1);
    let nodes: Vec<_> = (2..=4).map(|node| net.start(node, &[1], 1)).collect();
    first.sees(&[2, 3, 4], Liveness::Alive).await;
    // Those whom nobody has registered can not be spoken to, but are heard of.
    for (index, node) in nodes.iter().enumerate() {
        let others: Vec<_> = (1..=4).filter(|other| *other != index as u64 + 2).collect();
        node.sees(&others, Liveness::Alive).await;
    }
    let tells = |api: &'static str| {
        move |roster: &Roster| {
            roster.node(NodeId(2)).and_then(|heard| heard.facts.clone()).is_some_and(|facts| facts.api == api)
        }
    };
    first.until(tells("api of 2")).await;
    nodes[0].facts.send_modify(|facts| facts.api = "elsewhere".to_owned());
    first.until(tells("elsewhere")).await;
    nodes[2].until(tells("elsewhere")).await;
    for node in nodes {
        node.stop().await;
    }
}

#[tokio::test]
async fn a_node_that_dies_is_missed_and_one_that_goes_says_so() {
    let net = Net::of(3);
    let all = [1, 2, 3];
    let (first, second, third) = (net.start(1, &all, 1), net.start(2, &all, 1), net.start(3, &all, 1));
    for node in [&first, &second, &third] {
        let others: Vec<_> = all
            .into_iter()
            .filter(|other| !std::ptr::eq(node, [&first, &second, &third][*other as usize - 1]))
            .collect();
        node.sees(&others, Liveness::Alive).await;
    }
    third.task.abort();
    first.sees(&[3], Liveness::Down).await;
    second.sees(&[3], Liveness::Down).await;
    first.sees(&[2], Liveness::Alive).await;

    // Its clock was set back, and it is newer all the same.
    let third = net.start(3, &all, 0);
    first.sees(&[3], Liveness::Alive).await;
    second.sees(&[3], Liveness::Alive).await;

    let begun = Instant::now();
    third.stop().await;
    first.sees(&[3], Liveness::Down).await;
    assert!(begun.elapsed() < PROFILE.suspicion, "it was waited for: {:?}", begun.elapsed());
}

#[tokio::test]
async fn a_partition_heals() {
    let net = Net::of(4);
    let all = [1, 2, 3, 4];
    let nodes: Vec<_> = all.into_iter().map(|node| net.start(node, &all, 1)).collect();
    nodes[0].sees(&[2, 3, 4], Liveness::Alive).await;
    nodes[3].sees(&[1, 2, 3], Liveness::Alive).await;
    // Two halves that do not understand each other.
    for half in nodes.chunks(2) {
        let key = DataKey::generate(2).expect("a key");
        half.iter().for_each(|node| drop(node.keyring.clone().with_gossip(key.clone())));
    }
    nodes[0].sees(&[3, 4], Liveness::Down).await;
    nodes[3].sees(&[1, 2], Liveness::Down).await;
    nodes[0].sees(&[2], Liveness::Alive).await;
    assert!(nodes[0].gossip.stats().foreign() > 0);
    let key = DataKey::generate(3).expect("a key");
    nodes.iter().for_each(|node| drop(node.keyring.clone().with_gossip(key.clone())));
    nodes[0].sees(&[2, 3, 4], Liveness::Alive).await;
    nodes[3].sees(&[1, 2, 3], Liveness::Alive).await;
    nodes[1].sees(&[1, 3, 4], Liveness::Alive).await;
}

#[tokio::test]
async fn garbage_is_counted_and_does_no_harm() {
    let net = Net::of(2);
    let (first, second) = (net.start(1, &[2], 1), net.start(2, &[1], 1));
    first.sees(&[2], Liveness::Alive).await;
    let stranger = UdpSocket::bind("127.0.0.1:0").expect("a port");
    let to = net.peers[0].address.as_str();
    let begun = Instant::now();
    let mut garbage = vec![1_u8; 1400];
    while begun.elapsed() < PROFILE.suspicion * 3 {
        for length in [0, 1, 45, 300, 1100, 1400] {
            garbage.iter_mut().skip(1).for_each(|byte| *byte = byte.wrapping_mul(31).wrapping_add(7));
            // The kernel may drop what does not fit, and say nothing.
            let _ = stranger.send_to(&garbage[..length], to);
        }
        sleep(Duration::from_millis(1)).await;
    }
    assert!(first.gossip.stats().foreign() > 1000, "{:?}", first.gossip.stats());
    first.sees(&[2], Liveness::Alive).await;
    second.sees(&[1], Liveness::Alive).await;
    assert_eq!(first.gossip.roster().nodes().count(), 1);
}
