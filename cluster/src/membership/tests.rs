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
    registered: Arc<Registered>,
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
            net.peers.push(Peer {
                node: NodeId(node),
                store: StoreId::random(),
                address,
                tls_key: node.to_be_bytes().to_vec(),
            });
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
            registered: Arc::clone(&registered),
            keyring: keyring.clone(),
            profile: PROFILE,
            clock: Arc::new(At(now)),
            facts: told,
        };
        let stop = CancellationToken::new();
        let (gossip, task) = begin(options, stop.clone()).expect("begins");
        Running { gossip, registered, keyring, facts, stop, task: tokio::spawn(task) }
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
    let all = [1, 2, 3, 4];
    let first = net.start(1, &all, 1);
    let nodes: Vec<_> = (2..=4).map(|node| net.start(node, &all, 1)).collect();
    first.sees(&[2, 3, 4], Liveness::Alive).await;
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

/// A member, or one that was, tells of thousands of nodes, and speaks as them. It has the key.
#[tokio::test]
async fn a_member_that_tells_of_thousands_of_nodes_makes_nothing_grow() {
    let net = Net::of(2);
    let first = net.start(1, &[2], 1);
    let forger = net.sockets[&2].try_clone().expect("a handle");
    let to = net.peers[0].address.as_str();
    let keyring = Keyring::new(net.fleet, []).with_gossip(net.key.clone());
    let envelope = seal::Envelope::new(keyring, net.fleet, 1);
    let id = |node: u64| identity::GossipId::new(NodeId(node), 5);
    let datagram = |sender: u64, members: std::ops::Range<u64>| {
        use foca::{Codec, Header, Member, Message, PostcardCodec};
        let own = identity::GossipId::new(NodeId(1), 1);
        let header = Header { src: id(sender), src_incarnation: 0, dst: own, message: Message::Gossip };
        let mut content = Vec::new();
        PostcardCodec.encode_header(&header, &mut content).expect("encodes");
        content.extend(u16::try_from(members.clone().count()).expect("few").to_be_bytes());
        for member in members {
            PostcardCodec.encode_member(&Member::alive(id(member)), &mut content).expect("encodes");
        }
        envelope.seal(&content).expect("holds the key")
    };
    let stats = first.gossip.stats();
    let send = async |sender: u64, members: std::ops::Range<u64>| {
        let before = stats.received();
        forger.send_to(&datagram(sender, members), to).expect("is sent");
        let taken = async {
            while stats.received() == before {
                sleep(Duration::from_micros(100)).await;
            }
        };
        timeout(BOUND, taken).await.expect("is taken");
    };
    for node in (3..20_000).step_by(50) {
        // In its own name, and in the name of somebody who does not exist.
        send(2, node..node + 50).await;
        send(node, 2..3).await;
    }
    assert_eq!(stats.unknown(), 400 * 51);
    first.until(|roster| roster.nodes().count() == 1).await;
    timeout(BOUND, async {
        // It is counted now and then.
        while stats.kept() == 0 {
            sleep(Duration::from_millis(10)).await;
        }
    })
    .await
    .expect("is counted");
    assert_eq!(stats.kept(), 1);
    first.stop().await;
}

#[tokio::test]
async fn a_node_that_was_taken_out_is_not_spoken_of_any_more() {
    let net = Net::of(3);
    let all = [1, 2, 3];
    let nodes = all.map(|node| net.start(node, &all, 1));
    nodes[0].sees(&[2, 3], Liveness::Alive).await;
    nodes[1].sees(&[1, 3], Liveness::Alive).await;
    for node in &nodes[..2] {
        node.registered.replace(Registry::of(net.peers[..2].iter().cloned()));
    }
    for node in &nodes[..2] {
        node.until(|roster| roster.node(NodeId(3)).is_none()).await;
    }
    nodes[0].sees(&[2], Liveness::Alive).await;
}

#[tokio::test]
async fn a_node_whose_place_is_taken_at_once_is_not_missed() {
    let net = Net::of(3);
    let all = [1, 2, 3];
    let (first, second, third) = (net.start(1, &all, 1), net.start(2, &all, 1), net.start(3, &all, 1));
    first.sees(&[2, 3], Liveness::Alive).await;
    second.sees(&[1, 3], Liveness::Alive).await;
    third.sees(&[1, 2], Liveness::Alive).await;
    let mut roster = first.gossip.follow();
    roster.mark_unchanged();
    let down = |roster: &Arc<Roster>| roster.node(NodeId(3)).is_some_and(|heard| heard.liveness == Liveness::Down);
    third.gossip.stay();
    third.stop().await;
    // For as long as it may be silent without being missed; one that says that it goes is down within half of that.
    let missed = timeout(PROFILE.suspicion * 2 / 3, roster.wait_for(down)).await;
    assert!(missed.is_err(), "it is taken for dead");
    // In a life of its own.
    let again = net.start(3, &all, 1);
    again.facts.send_modify(|facts| facts.api = "taken over".to_owned());
    again.sees(&[1, 2], Liveness::Alive).await;
    let told = |roster: &Roster| {
        roster.node(NodeId(3)).and_then(|heard| heard.facts.clone()).is_some_and(|facts| facts.api == "taken over")
    };
    first.until(told).await;
    first.sees(&[2, 3], Liveness::Alive).await;
}
