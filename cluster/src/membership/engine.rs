//! The one task that gossips: it owns the socket, the timers and foca, and every turn of it is short.

use std::collections::{BTreeMap, HashMap};
use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use foca::{AccumulatingRuntime, Foca, Member, OwnedNotification, PostcardCodec, State, Timer};
use prost::Message;
use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};
use tokio::net::UdpSocket;
use tokio::sync::watch;
use tokio::time::{Instant, sleep_until};
use tokio_util::sync::CancellationToken;

use super::GossipOptions;
use super::addresses::{self, Addresses};
use super::facts::{FactsTable, LONGEST, SharedFacts};
use super::identity::{GossipId, Incarnations};
use super::known::{Known, Sifted};
use super::profile::Profile;
use super::roster::{Facts, GossipStats, Heard, Liveness, Roster};
use super::seal::{CONTENT, DATAGRAM, Envelope};
use crate::ids::NodeId;

/// How often everything is looked over that nothing tells of: who is suspected, and whom nobody has heard yet.
const LOOK: Duration = Duration::from_millis(500);

/// A node that is not heard is announced to again after this time, at first and at most.
const ANNOUNCE: (Duration, Duration) = (Duration::from_secs(1), Duration::from_secs(60));

/// How often a node repeats what it tells of itself, for those who came later or missed it.
const REPEAT: Duration = Duration::from_secs(30);

/// The same when somebody new was heard.
const REPEAT_SOON: Duration = Duration::from_millis(500);

/// How many datagrams are taken in a turn before timers are looked at again.
const TURN: usize = 64;

/// How long the last words of a node that goes may take.
const LAST_WORDS: Duration = Duration::from_millis(200);

type Swim = Foca<GossipId, PostcardCodec, StdRng, SharedFacts>;

struct Engine {
    swim: Swim,
    runtime: AccumulatingRuntime<GossipId>,
    facts: SharedFacts,
    socket: UdpSocket,
    envelope: Envelope,
    known: Known,
    own: NodeId,
    incarnations: Incarnations,
    profile: Profile,
    configured_for: usize,
    timers: BTreeMap<(Instant, u64), Timer<GossipId>>,
    numbered: u64,
    /// Where the replicated state says that nodes are.
    registered: watch::Receiver<Addresses>,
    /// Where they were heard from. It wins: a node behind a translator is only there.
    heard_from: HashMap<NodeId, SocketAddr>,
    seen: BTreeMap<NodeId, Heard>,
    announced: HashMap<NodeId, (Instant, Duration)>,
    told: watch::Receiver<Facts>,
    sequence: u64,
    tell_at: Instant,
    to_roster: watch::Sender<Arc<Roster>>,
    stats: Arc<GossipStats>,
    jitter: StdRng,
}

/// Makes the task.
///
/// # Errors
/// When the socket or the data directory can not be used.
pub(super) fn run(
    options: GossipOptions,
    to_roster: watch::Sender<Arc<Roster>>,
    stats: Arc<GossipStats>,
    stays: Arc<AtomicBool>,
    stop: CancellationToken,
) -> std::io::Result<impl Future<Output = ()> + Send + 'static> {
    let GossipOptions { socket, directory, registered, keyring, profile, clock, facts: told } = options;
    socket.set_nonblocking(true)?;
    let socket = UdpSocket::from_std(socket)?;
    let (incarnations, first) = Incarnations::begin(&directory, clock.as_ref())?;
    let mut seed = [0; 32];
    getrandom::fill(&mut seed).map_err(std::io::Error::other)?;
    let mut jitter = StdRng::from_seed(seed);
    let own = registered.node;
    let known = Known(Arc::clone(&registered));
    let facts = SharedFacts { table: Arc::new(Mutex::new(FactsTable::new(own))), known: known.clone() };
    let identity = GossipId::new(own, first);
    let rng = StdRng::from_rng(&mut jitter);
    let swim = Foca::with_custom_broadcast(identity, profile.config(1), rng, PostcardCodec, facts.clone());
    let envelope = Envelope::new(keyring, registered.fleet, registered.generation);
    let (to_addresses, addresses) = watch::channel(Addresses::default());
    let engine = Engine {
        swim,
        runtime: AccumulatingRuntime::new(),
        facts,
        socket,
        envelope,
        known,
        own,
        incarnations,
        profile,
        configured_for: 1,
        timers: BTreeMap::new(),
        numbered: 0,
        registered: addresses,
        heard_from: HashMap::new(),
        seen: BTreeMap::new(),
        announced: HashMap::new(),
        told,
        sequence: 0,
        tell_at: Instant::now(),
        to_roster,
        stats,
        jitter,
    };
    Ok(async move {
        tokio::select! {
            () = engine.gossip(stop, &stays) => {}
            () = addresses::follow(registered, to_addresses) => {}
        }
    })
}

impl Engine {
    async fn gossip(mut self, stop: CancellationToken, stays: &AtomicBool) {
        let mut buffer = vec![0; 64 * 1024];
        let mut look_at = Instant::now();
        let mut told = self.told.clone();
        let mut telling = true;
        loop {
            let next =
                self.timers.first_key_value().map_or(look_at, |((due, _), _)| look_at.min(*due)).min(self.tell_at);
            tokio::select! {
                biased;
                () = stop.cancelled() => break,
                () = sleep_until(next) => {}
                changed = told.changed(), if telling => {
                    // Whoever told is gone when the node ends.
                    telling = changed.is_ok();
                    told.mark_unchanged();
                    self.tell_at = Instant::now();
                }
                received = self.socket.recv_from(&mut buffer) => self.receive(received, &mut buffer),
            }
            let now = Instant::now();
            self.fire(now);
            if now >= self.tell_at {
                self.tell();
                self.tell_at = now + REPEAT;
            }
            if now >= look_at {
                look_at = now + LOOK;
                self.forget();
                self.announce(now);
                self.show(now);
            }
            self.act();
        }
        if !stays.load(Ordering::Relaxed) {
            self.leave().await;
        }
    }

    /// Takes in what has come, up to a bound.
    fn receive(&mut self, first: std::io::Result<(usize, SocketAddr)>, buffer: &mut [u8]) {
        let mut received = first;
        for _ in 0..TURN {
            match received {
                Ok((length, from)) => self.take(&mut buffer[..length], from),
                // What an earlier datagram met on its way; nothing that could be waited for.
                Err(error) if error.kind() != std::io::ErrorKind::WouldBlock => {
                    tracing::debug!(%error, "a datagram was not received");
                }
                Err(_) => return,
            }
            received = self.socket.try_recv_from(buffer);
        }
    }

    fn take(&mut self, datagram: &mut [u8], from: SocketAddr) {
        let Some(content) = self.envelope.open(datagram) else { return GossipStats::count(&self.stats.foreign) };
        GossipStats::count(&self.stats.received);
        let (sender, content) = match self.known.sift(content) {
            Sifted::Content { sender, content, unknown } => {
                GossipStats::add(&self.stats.unknown, unknown);
                (sender, content)
            }
            Sifted::Unknown => return GossipStats::count(&self.stats.unknown),
            Sifted::Malformed => return GossipStats::count(&self.stats.malformed),
        };
        if let Err(error) = self.swim.handle_data(&content, &mut self.runtime) {
            tracing::debug!(%error, %from, "a datagram makes no sense");
            return GossipStats::count(&self.stats.malformed);
        }
        if sender != self.own {
            self.heard_from.insert(sender, from);
        }
        self.act();
    }

    /// Hands foca the timers that are due, in the order in which they are.
    fn fire(&mut self, now: Instant) {
        while let Some(entry) = self.timers.first_entry().filter(|entry| entry.key().0 <= now) {
            let timer = entry.remove();
            if let Err(error) = self.swim.handle_timer(timer, &mut self.runtime) {
                tracing::debug!(%error, "a turn of gossip failed");
            }
            self.act();
        }
    }

    /// Does what foca has asked for.
    fn act(&mut self) {
        while let Some((to, content)) = self.runtime.to_send() {
            self.send(to, &content);
        }
        let now = Instant::now();
        while let Some((after, timer)) = self.runtime.to_schedule() {
            self.numbered += 1;
            self.timers.insert((now + after, self.numbered), timer);
        }
        while let Some(notification) = self.runtime.to_notify() {
            self.note(&notification, now);
        }
    }

    fn send(&self, to: GossipId, content: &[u8]) {
        let address = self.heard_from.get(&to.node()).copied();
        let address = address.or_else(|| self.registered.borrow().get(&to.node()).copied());
        let told = || self.facts.table().newest(to.node()).and_then(|facts| facts.mesh.parse().ok());
        let address = address.or_else(told);
        // One that is not registered here yet will be heard, or registered, or told of, soon.
        let Some(address) = address else { return };
        // Without a key there is nobody to talk to yet.
        let Some(datagram) = self.envelope.seal(content) else { return };
        debug_assert!(datagram.len() <= DATAGRAM);
        match self.socket.try_send_to(&datagram, address) {
            Ok(_) => GossipStats::count(&self.stats.sent),
            Err(error) => tracing::debug!(%error, %address, "a datagram was not sent"),
        }
    }

    fn note(&mut self, notification: &OwnedNotification<GossipId>, now: Instant) {
        match notification {
            OwnedNotification::MemberUp(id) => {
                tracing::info!(node = %id.node(), "a node is heard");
                self.announced.remove(&id.node());
                // It has not heard what was told before it came.
                self.tell_at = self.tell_at.min(now + REPEAT_SOON);
            }
            OwnedNotification::MemberDown(id) => {
                tracing::warn!(node = %id.node(), "a node is no longer heard");
                // When it comes back it may be elsewhere.
                self.heard_from.remove(&id.node());
            }
            OwnedNotification::Rejoin(id) => {
                tracing::warn!("the others took this node for dead");
                if let Err(error) = self.incarnations.reserve(id.incarnation()) {
                    tracing::warn!(%error, "the incarnation of this node is not kept");
                }
                self.tell_at = now;
            }
            OwnedNotification::Idle => tracing::debug!("nobody else is heard"),
            OwnedNotification::Active | OwnedNotification::Defunct | OwnedNotification::Rename(..) => {}
        }
    }

    /// Tells the others of this node.
    fn tell(&mut self) {
        self.sequence += 1;
        let facts = self.told.borrow_and_update().clone();
        let told = facts.told(self.own, self.swim.identity().incarnation(), self.sequence).encode_to_vec();
        if told.len() > LONGEST {
            tracing::warn!(length = told.len(), "what this node tells of itself is too long to be told");
            return;
        }
        if let Err(error) = self.swim.add_broadcast(&told) {
            tracing::debug!(%error, "this node is not told of");
        }
    }

    /// Speaks to the nodes of the fleet that have not been heard, for ever, less and less often.
    fn announce(&mut self, now: Instant) {
        let addresses = Arc::clone(&self.registered.borrow_and_update());
        let silent: Vec<_> = addresses.keys().copied().filter(|node| !self.is_active(*node)).collect();
        self.announced.retain(|node, _| addresses.contains_key(node));
        for node in silent {
            let (due, pause) = self.announced.get(&node).copied().unwrap_or((now, ANNOUNCE.0));
            if now < due {
                continue;
            }
            if let Err(error) = self.swim.announce(GossipId::any(node), &mut self.runtime) {
                tracing::debug!(%error, %node, "a node was not announced to");
            }
            let spread = pause.mul_f64(self.jitter.random_range(0.75..1.25));
            self.announced.insert(node, (now + spread, (pause * 2).min(ANNOUNCE.1)));
        }
        let nodes = addresses.len() + 1;
        if nodes.next_power_of_two() != self.configured_for.next_power_of_two() {
            match self.swim.set_config(self.profile.config(nodes)) {
                Ok(()) => self.configured_for = nodes,
                Err(error) => tracing::debug!(%error, "gossip keeps its patience"),
            }
        }
    }

    /// Forgets those who are no longer known: they were taken out of the fleet.
    fn forget(&mut self) {
        let known = self.known.clone();
        self.heard_from.retain(|node, _| known.has(*node));
        self.facts.table().retain(|node| known.has(node));
        let members = self.swim.iter_members().map(|member| *member.id());
        let gone: Vec<_> = members.filter(|id| !known.has(id.node())).map(Member::down).collect();
        // They are not asked any more whether they live.
        if !gone.is_empty()
            && let Err(error) = self.swim.apply_many(gone.into_iter(), false, &mut self.runtime)
        {
            tracing::debug!(%error, "nodes that are gone are still asked for");
        }
    }

    fn is_active(&self, node: NodeId) -> bool {
        self.seen.get(&node).is_some_and(|heard| heard.liveness != Liveness::Down)
    }

    /// Shows what has been heard, if it has changed.
    fn show(&mut self, now: Instant) {
        let members: Vec<_> =
            self.swim.iter_membership_state().map(|member| (member.id().node(), liveness(member))).collect();
        let kept = members.len().max(self.heard_from.len());
        self.stats.kept.store(kept as u64, Ordering::Relaxed);
        let facts = self.facts.clone();
        let mut table = facts.table();
        let mut changed = table.take_changed();
        let heard_of = self.seen.len();
        self.seen.retain(|node, _| self.known.has(*node));
        changed |= self.seen.len() != heard_of;
        for (node, liveness) in members {
            if node == self.own || !self.known.has(node) {
                continue;
            }
            let told = table.newest(node).map(|told| Facts::of(told));
            let heard = self.seen.entry(node).or_insert_with(|| {
                changed = true;
                Heard { liveness, since: now.into_std(), facts: None }
            });
            if heard.liveness != liveness {
                changed = true;
                *heard = Heard { liveness, since: now.into_std(), facts: heard.facts.take() };
            }
            if told.as_ref() != heard.facts.as_deref() {
                changed = true;
                heard.facts = told.map(Arc::new);
            }
        }
        drop(table);
        if changed {
            self.to_roster.send_replace(Arc::new(Roster { nodes: self.seen.clone() }));
        }
    }

    /// Tells the others that this node goes.
    async fn leave(&mut self) {
        if let Err(error) = self.swim.leave_cluster(&mut self.runtime) {
            tracing::debug!(%error, "nobody is told that this node goes");
        }
        // The socket may be busy for a moment; nobody waits for longer.
        let _ = tokio::time::timeout(LAST_WORDS, self.socket.writable()).await;
        while let Some((to, content)) = self.runtime.to_send() {
            self.send(to, &content);
        }
    }
}

fn liveness(member: &Member<GossipId>) -> Liveness {
    match member.state() {
        State::Alive => Liveness::Alive,
        State::Suspect => Liveness::Suspect,
        State::Down => Liveness::Down,
    }
}

/// Facts and a header fit into one datagram with room for news of others.
const _: () = assert!(LONGEST + 200 < CONTENT);
