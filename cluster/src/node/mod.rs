//! A node of the fleet as a value: started over a data directory, asked and told things, stopped.
//!
//! It ends no process and touches nothing global. When it can not go on, [`Node::failed`] says why.

mod found;
mod identity;
mod join;
mod rebirth;
mod superseded;
mod turn;

#[cfg(test)]
mod mesh_tests;
#[cfg(test)]
mod rebirth_tests;
#[cfg(test)]
mod tests;

use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant, SystemTime};

use tokio::net::TcpListener;
use tokio::sync::{mpsc, watch};
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

pub use found::{Founding, FoundingError, FoundingOptions, MIN_KEY, found, prefix};
use identity::NodeKeys;
pub use identity::{Identity, IdentityError, Stage};
use join::JoinService;
pub use join::{JoinError, JoinToken, join};
pub use rebirth::{RebirthError, Reborn, recover, restore};

use crate::clock::Clock;
use crate::clocks::{self, ClockService, Clocks, Stamps, measure};
use crate::consensus::{Consensus, Options, Timing, answer_reads};
use crate::ids::StoreId;
use crate::leader::{Duty, HandOver, lead};
use crate::membership::{self, Facts, Gossip, GossipOptions, Profile};
use crate::rows::{NodeFacts, Origin, ReportNode, WrappedKey, command::Body};
use crate::sealing::{HolderKey, Keyring};
use crate::state::{Changes, Damaged, FEATURE_LEVELS, NodePolicy, Row, Stored, TableId, View};
use crate::storage::{NodeStorage, OpenError, OpenOptions, StoreError, TailLimits};
use crate::transport::{
    Authority, Channels, Check, Gate, Mesh, PeerConnection, Registered, Registry, Services, TlsIdentity, serve,
};

/// How long a node may take to catch up with what it knew before it was restarted.
const RECOVERY_LIMIT: Duration = Duration::from_secs(5);

/// How long starting waits for what time it is on the other nodes.
const CLOCKS_LIMIT: Duration = Duration::from_millis(250);

/// How often a node gives itself a new certificate.
const RENEWAL: Duration = Duration::from_secs(24 * 3600);

/// How often a silent peer is asked whether it is still there, and how long it may take to say so. A connection that a
/// partition has cut would hold its place for ever.
const KEEP_ALIVE: Duration = Duration::from_secs(10);

/// How long stopping waits for others to let go of the data directory.
const RELEASE_LIMIT: Duration = Duration::from_secs(2);

/// How often a node tells how far it has come.
const PROGRESS: Duration = Duration::from_secs(10);

/// How many connections of other nodes' gateways wait for whoever serves them.
const ASKERS: usize = 64;

/// How often it is said again what the fleet waits for.
const TELL_AGAIN: Duration = Duration::from_secs(60);

/// How long to wait before trying again what failed.
const PAUSE: Duration = Duration::from_secs(1);

/// Where the other nodes reach a node: one port, twice.
#[derive(Debug)]
pub struct MeshSockets {
    /// Calls.
    pub calls: std::net::TcpListener,
    /// Gossip.
    pub gossip: std::net::UdpSocket,
}

impl MeshSockets {
    /// Listens there. Port 0 takes one that is free for both.
    ///
    /// # Errors
    /// When the address is taken, or is not this machine's.
    pub fn bind(address: std::net::SocketAddr) -> std::io::Result<Self> {
        let mut tries = 0;
        loop {
            let calls = std::net::TcpListener::bind(address)?;
            match std::net::UdpSocket::bind(calls.local_addr()?) {
                Ok(gossip) => return Ok(Self { calls, gossip }),
                // Somebody has the other half of the port that was found free.
                Err(error) if address.port() != 0 || tries == 16 => return Err(error),
                Err(_) => tries += 1,
            }
        }
    }
}

/// What a node needs from outside.
#[derive(Clone)]
pub struct NodeOptions {
    /// Its data directory.
    pub directory: PathBuf,
    /// What others are told about it.
    pub facts: NodeFacts,
    /// How patient it is, where the fleet has not set it.
    pub timing: Timing,
    /// How patient it is for now, while the fleet changes from one timing to another.
    pub step: Option<Timing>,
    /// How patient its gossip is.
    pub gossip: Profile,
    /// The time of day.
    pub clock: Arc<dyn Clock>,
    /// How it compares its clock with those of the others.
    pub clocks: clocks::Rules,
    /// What it does when it leads.
    pub duties: Vec<Arc<dyn Duty>>,
    /// What else it answers on the mesh port.
    pub services: Services,
    /// Where the tasks of Raft and of the node itself run. Load elsewhere must not cost a heartbeat.
    pub runtime: tokio::runtime::Handle,
}

/// Why a node did not start.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// The data directory belongs to no fleet, or its founding was never finished.
    #[error("{0} belongs to no fleet")]
    NoFleet(PathBuf),
    /// Who the node is can not be told.
    #[error(transparent)]
    Identity(#[from] IdentityError),
    /// The data can not be used.
    #[error(transparent)]
    Open(#[from] OpenError),
    /// The databases are not those that the node has promised things with.
    #[error("the log in {path} is not this node's: {found} instead of {expected}; the node must join anew")]
    OtherStore {
        /// The data directory.
        path: PathBuf,
        /// The identity that the node had.
        expected: StoreId,
        /// The one that was found.
        found: StoreId,
    },
    /// The fleet is ahead of this version.
    #[error("the fleet is at feature level {fleet}, and this version supports {lowest} to {highest}; upgrade it")]
    FeatureLevel {
        /// The fleet's level.
        fleet: u32,
        /// The lowest that this version supports.
        lowest: u32,
        /// The highest.
        highest: u32,
    },
    /// The state is damaged.
    #[error(transparent)]
    Damaged(#[from] Damaged),
    /// Raft did not start.
    #[error("Raft does not start: {0}")]
    Raft(String),
    /// The mesh listener can not be used.
    #[error("the mesh listener can not be used: {0}")]
    Listener(#[source] std::io::Error),
    /// Gossip can not begin.
    #[error("gossip can not begin: {0}")]
    Gossip(#[source] std::io::Error),
    /// The task that starts it has failed.
    #[error("starting was interrupted: {0}")]
    Interrupted(String),
}

/// A running node that belongs to a fleet.
pub struct Node {
    consensus: Arc<Consensus>,
    clocks: Clocks,
    keyring: Keyring,
    identity: Identity,
    channels: Arc<Channels>,
    askers: Mutex<Option<mpsc::Receiver<PeerConnection>>>,
    gate: Gate,
    gossip: Gossip,
    facts: watch::Sender<Facts>,
    told: watch::Sender<NodeFacts>,
    /// Why the fleet needs this node no more.
    superseded: watch::Receiver<Option<String>>,
    stop: CancellationToken,
    tasks: JoinSet<()>,
}

fn open_storage(directory: &Path, fresh: StoreId) -> Result<NodeStorage, OpenError> {
    let options = OpenOptions {
        fresh_store_id: fresh,
        now: SystemTime::now(),
        tail: TailLimits::default(),
        journal_bytes: OpenOptions::JOURNAL_BYTES,
    };
    NodeStorage::open(directory, &options)
}

/// A number that no other process of this node has.
fn process_number() -> u64 {
    let (high, low) = uuid::Uuid::new_v4().as_u64_pair();
    high ^ low
}

impl Node {
    /// Starts the node of a data directory that belongs to a fleet, with its mesh listener. It returns once it has caught up
    /// with what it knew before, or after a while: without a quorum it can not, and still answers from what it has.
    ///
    /// # Errors
    /// See [`StartError`].
    pub async fn start(options: NodeOptions, mesh: MeshSockets) -> Result<Self, StartError> {
        let runtime = options.runtime.clone();
        let starting = runtime.spawn(Self::start_here(options, mesh));
        starting.await.map_err(|error| StartError::Interrupted(error.to_string()))?
    }

    async fn start_here(options: NodeOptions, mesh: MeshSockets) -> Result<Self, StartError> {
        let MeshSockets { calls: mesh, gossip: datagrams } = mesh;
        // It belongs to the runtime that this runs on from here.
        let mesh =
            mesh.set_nonblocking(true).and_then(|()| TcpListener::from_std(mesh)).map_err(StartError::Listener)?;
        let directory = options.directory.clone();
        let no_fleet = || StartError::NoFleet(directory.clone());
        let identity = Identity::load(&directory)?.ok_or_else(no_fleet)?;
        if identity.stage != Stage::Member {
            return Err(no_fleet());
        }
        let keys = NodeKeys::load(&directory)?;
        let (certificate, ca_certificate) = (identity.certificate.clone(), identity.ca_certificate.clone());
        let tls = Arc::new(TlsIdentity::new(keys.tls, certificate, ca_certificate));
        let met = Registry::of(identity.met.iter().cloned());
        let registered = Registered::new(identity.fleet, identity.generation, identity.node, identity.store, met);
        let registered = Arc::new(registered);
        let channels = Arc::new(Channels::new(Arc::clone(&tls), Arc::clone(&registered)));
        let fresh = if identity.met.is_empty() { StoreId::random() } else { fresh_store(&directory, &identity) };
        let clocks = Clocks::new(Arc::clone(&options.clock), identity.node, options.clocks);
        // What it leads is stamped by what the clocks of all voters say.
        let stamped = NodeOptions { clock: Arc::new(Stamps(clocks.clone())), ..options.clone() };
        let consensus = Arc::new(open_consensus(&stamped, &identity, fresh, Some(Arc::clone(&channels))).await?);
        // From now on a log that is not there has been lost.
        join::forget(&directory)?;
        let follower = Follower {
            consensus: Arc::clone(&consensus),
            keyring: Keyring::new(identity.fleet, []),
            registered: Arc::clone(&registered),
            identity: identity.clone(),
            private: keys.holder,
        };
        let keyring = follower.keyring.clone();
        let (stop, mut tasks) = (CancellationToken::new(), JoinSet::new());
        let from = follower.refresh();
        let check = Check { registered: Arc::clone(&registered) };
        let mut services = consensus.services(&check);
        options.services.build(&mut services, &check);
        services.add_service(ClockService::server(clocks.clone(), consensus.timing(), check));
        let (joining, registry) = (identity.clone(), Arc::clone(&registered));
        services.add_service(JoinService::server(Arc::clone(&consensus), keyring.clone(), joining, registry));
        let NodeFacts { api, proxy, mesh: own_mesh, version, .. } = options.facts.clone();
        let (facts, told) = watch::channel(Facts { api, proxy, mesh: own_mesh, version, ..Facts::default() });
        let gossiping = GossipOptions {
            socket: datagrams,
            directory: directory.clone(),
            registered: Arc::clone(&registered),
            keyring: keyring.clone(),
            profile: options.gossip,
            clock: Arc::clone(&options.clock),
            facts: told,
        };
        let (gossip, gossiping) = membership::begin(gossiping, stop.clone()).map_err(StartError::Gossip)?;
        tasks.spawn(gossiping);
        let router = tonic::transport::Server::builder()
            .http2_keepalive_interval(Some(KEEP_ALIVE))
            .http2_keepalive_timeout(Some(KEEP_ALIVE))
            .add_routes(services.routes());
        let (peers, askers) = mpsc::channel(ASKERS);
        let gate = Gate::default();
        let mesh = Mesh { listener: mesh, identity: Arc::clone(&tls), registered, peers, gate: gate.clone() };
        tasks.spawn(serve(mesh, router, stop.clone()));
        tasks.spawn(until(stop.clone(), answer_reads(Arc::clone(&consensus))));
        tasks.spawn(until(stop.clone(), follower.follow(from)));
        let measuring = measure(clocks.clone(), Arc::clone(&consensus), Arc::clone(&channels));
        tasks.spawn(until(stop.clone(), measuring));
        let (to_superseded, superseded) = watch::channel(None);
        let (consensus_asked, later) = (Arc::clone(&consensus), clocks.later_generation());
        let (generation, data) = (identity.generation, directory.clone());
        tasks.spawn(until(stop.clone(), async move {
            let why = superseded::superseded(consensus_asked, later, generation, &data).await;
            to_superseded.send_replace(Some(why));
        }));
        // What is written before would be of the time at which the log ended.
        clocks.asked(CLOCKS_LIMIT).await;
        let renewal = renew(Arc::clone(&tls), keyring.clone(), identity.clone(), directory.clone());
        tasks.spawn(until(stop.clone(), renewal));
        if let Err(why) = consensus.recovered(RECOVERY_LIMIT).await {
            tracing::warn!(why, "without a quorum this node can not catch up; it answers from the state that it has");
        }
        check_level(&consensus)?;
        let hand_over: Arc<dyn Duty> = Arc::new(HandOver);
        let duties = options.duties.into_iter().chain([hand_over]).collect();
        tasks.spawn(lead(Arc::clone(&consensus), clocks.clone(), duties, stop.clone()));
        let (told, to_tell) = watch::channel(options.facts);
        let report = report(Arc::clone(&consensus), identity.clone(), to_tell);
        tasks.spawn(until(stop.clone(), report));
        tasks.spawn(until(stop.clone(), tell_progress(Arc::clone(&consensus), facts.clone())));
        let askers = Mutex::new(Some(askers));
        Ok(Self {
            consensus,
            clocks,
            keyring,
            identity,
            channels,
            askers,
            gate,
            gossip,
            facts,
            told,
            superseded,
            stop,
            tasks,
        })
    }

    /// The replicated log and state.
    #[must_use]
    pub fn consensus(&self) -> &Arc<Consensus> {
        &self.consensus
    }

    /// The clocks of the fleet.
    #[must_use]
    pub fn clocks(&self) -> &Clocks {
        &self.clocks
    }

    /// The fleet's keys in the hands of this node.
    #[must_use]
    pub fn keyring(&self) -> &Keyring {
        &self.keyring
    }

    /// Who it is.
    #[must_use]
    pub fn identity(&self) -> &Identity {
        &self.identity
    }

    /// Its ways to other nodes.
    #[must_use]
    pub fn channels(&self) -> &Arc<Channels> {
        &self.channels
    }

    /// The connections on which the gateways of other nodes ask, for the one who serves them.
    #[must_use]
    pub fn take_askers(&self) -> Option<mpsc::Receiver<PeerConnection>> {
        self.askers.lock().unwrap_or_else(PoisonError::into_inner).take()
    }

    /// Accepts nothing more on the mesh listener; what waits there waits for whoever accepts from that socket next. The
    /// connections that are open go on.
    pub async fn close_mesh(&self) {
        self.gate.close().await;
    }

    /// What it has heard of the others.
    #[must_use]
    pub fn gossip(&self) -> &Gossip {
        &self.gossip
    }

    /// What the fleet is told of this node. Whoever changes it has the fleet told.
    #[must_use]
    pub fn told(&self) -> &watch::Sender<NodeFacts> {
        &self.told
    }

    /// Tells the others that it takes no new work and is about to go.
    pub fn drain(&self) {
        self.facts.send_modify(|facts| facts.draining = true);
    }

    /// Waits until it is this node's turn to go by another timing, and returns which. Raft reads it once: the node has to be
    /// started anew for it, with [`NodeOptions::step`].
    pub async fn next_timing(&self) -> Timing {
        let mut told = Instant::now();
        loop {
            tokio::time::sleep(PAUSE).await;
            let Ok((settings, _)) = self.consensus.local().settings() else { continue };
            // What nobody has set is left as it is.
            let Some(wanted) = settings.timing.as_deref().and_then(Timing::parse) else { continue };
            if wanted == self.consensus.timing() {
                continue;
            }
            let status = self.consensus.status();
            // While the voters change nobody is to be missing.
            let [voters] = status.voters.as_slice() else { continue };
            let sheet = self.clocks.sheet();
            let timings = sheet.nodes.iter().filter_map(|(node, clock)| Some((*node, clock.timing?))).collect();
            let fleet = turn::Fleet { own: status.node, leader: status.leader, voters, timings: &timings, wanted };
            if let Some(step) = fleet.next() {
                return step;
            }
            let silent = fleet.silent();
            if !silent.is_empty() && told.elapsed() >= TELL_AGAIN {
                told = Instant::now();
                tracing::warn!(?silent, ?wanted, "these voters do not answer, and the fleet's timing waits for them");
            }
        }
    }

    /// Waits until the node can not go on, and returns why.
    pub async fn failed(&self) -> String {
        let mut superseded = self.superseded.clone();
        let superseded = async {
            let why = superseded.wait_for(Option::is_some).await.ok().and_then(|why| why.clone());
            match why {
                Some(why) => why,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            why = self.consensus.failed() => why,
            why = superseded => why,
        }
    }

    /// Like [`Self::shutdown`], for a node whose place another process takes at once: the others are not told that it goes.
    ///
    /// # Errors
    /// When something that was owed could not be written. What was acknowledged is not affected.
    pub async fn hand_over(self) -> Result<(), StoreError> {
        self.gossip.stay();
        self.shutdown().await
    }

    /// Stops it and writes everything that is owed. Whoever still holds a part of it gets errors from then on.
    ///
    /// # Errors
    /// When something that was owed could not be written. What was acknowledged is not affected.
    pub async fn shutdown(mut self) -> Result<(), StoreError> {
        self.stop.cancel();
        while self.tasks.join_next().await.is_some() {}
        close(self.consensus).await
    }
}

/// Stops Raft and lets go of the data directory, if nobody else holds it: it can be opened again on return.
async fn close(consensus: Arc<Consensus>) -> Result<(), StoreError> {
    let outcome = consensus.stop().await;
    let lock = consensus.lock();
    // Closing the databases waits for the disk.
    let closed = tokio::task::spawn_blocking(move || drop(consensus)).await;
    // Raft's own tasks have been told to end, and hold the databases until they have.
    let deadline = tokio::time::Instant::now() + RELEASE_LIMIT;
    while lock.strong_count() > 0 && tokio::time::Instant::now() < deadline {
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
    outcome.and(closed.map_err(|_| StoreError::Closed))
}

/// Opens the data directory and starts Raft over it. A log that has to be made gets the identity `fresh`: for a node that
/// has promised something already that is never its own, so that an emptied disk is noticed.
async fn open_consensus(
    options: &NodeOptions,
    identity: &Identity,
    fresh: StoreId,
    channels: Option<Arc<Channels>>,
) -> Result<Consensus, StartError> {
    let (directory, expected) = (options.directory.clone(), identity.store);
    let opening = tokio::task::spawn_blocking(move || open_storage(&directory, fresh));
    let opened = opening.await.map_err(|error| StartError::Interrupted(error.to_string()))??;
    let found = opened.log.store_id();
    if found != expected {
        return Err(StartError::OtherStore { path: options.directory.clone(), expected, found });
    }
    let (settings, _) = View::new(&opened.tables, &opened.applied).settings()?;
    let set = settings.timing.as_deref().and_then(Timing::parse);
    let raft = Options {
        node: identity.node,
        process: process_number(),
        timing: options.step.or(set).unwrap_or(options.timing),
        clock: Arc::clone(&options.clock),
        channels,
    };
    Consensus::start(opened, raft).await.map_err(StartError::Raft)
}

fn check_level(consensus: &Consensus) -> Result<(), StartError> {
    let level = consensus.local().fleet()?.map_or(*FEATURE_LEVELS.start(), |fleet| fleet.feature_level);
    if FEATURE_LEVELS.contains(&level) {
        return Ok(());
    }
    let (lowest, highest) = (*FEATURE_LEVELS.start(), *FEATURE_LEVELS.end());
    Err(StartError::FeatureLevel { fleet: level, lowest, highest })
}

/// The identity of a log that has to be made. A node that has joined and not opened its log yet makes it as it was announced,
/// also when it was killed while it made it; any other gets a new one, so that an emptied disk is noticed.
fn fresh_store(directory: &Path, identity: &Identity) -> StoreId {
    if directory.join(join::FILE).exists() { identity.store } else { StoreId::random() }
}

async fn until(stop: CancellationToken, task: impl Future<Output = ()>) {
    tokio::select! {
        () = task => {}
        () = stop.cancelled() => {}
    }
}

/// Gives this node a new certificate when it starts and once a day, long before the old one expires: a node that does not know
/// this one yet goes by it. Every node that holds the authority's key can sign for itself.
async fn renew(tls: Arc<TlsIdentity>, keyring: Keyring, identity: Identity, directory: PathBuf) {
    let public = tls.public();
    loop {
        let signed =
            keyring.authority_key().ok_or_else(|| "it holds no key of the authority yet".to_owned()).and_then(|key| {
                let authority = Authority::from_key(identity.fleet, &key).map_err(|error| error.to_string())?;
                let public = public.as_deref().map_err(ToString::to_string)?;
                authority.sign(identity.node, public, SystemTime::now()).map_err(|error| error.to_string())
            });
        let pause = match signed {
            Ok(certificate) => {
                tls.renew(certificate.clone());
                let (renewed, directory) = (Identity { certificate, ..identity.clone() }, directory.clone());
                let kept = tokio::task::spawn_blocking(move || renewed.save(&directory)).await;
                if let Ok(Err(error)) = kept {
                    tracing::warn!(%error, "the new certificate is shown, and not kept");
                }
                RENEWAL
            }
            Err(why) => {
                tracing::debug!(why, "no new certificate yet");
                PAUSE
            }
        };
        tokio::time::sleep(pause).await;
    }
}

/// Tells the others now and then how far this node has come.
async fn tell_progress(consensus: Arc<Consensus>, facts: watch::Sender<Facts>) {
    loop {
        let applied = consensus.published().with(View::index);
        facts.send_if_modified(|facts| std::mem::replace(&mut facts.applied_index, applied) != applied);
        tokio::time::sleep(PROGRESS).await;
    }
}

/// Tells the fleet what this node is, and again whenever that changes.
///
/// It is told at every start: of a process that has never written anything nobody could say whether a write that it wants to
/// repeat is its first, or one that is too old to be remembered.
async fn report(consensus: Arc<Consensus>, identity: Identity, mut to_tell: watch::Receiver<NodeFacts>) {
    let mut told = false;
    let mut changes = consensus.published().changes(consensus.published().with(View::index));
    loop {
        let facts = to_tell.borrow_and_update().clone();
        match consensus.local().node(identity.node) {
            Ok(Some(Stored { row, .. }))
                if told && row.facts.as_ref() == Some(&facts) && !NodePolicy::of(&row).is_forgotten() =>
            {
                tokio::select! {
                    () = of_tables(&mut changes, &[<crate::rows::Node as Row>::TABLE]) => {}
                    changed = to_tell.changed() => if changed.is_err() { return },
                }
                continue;
            }
            Ok(Some(_)) => {
                let origin = Origin { principal: format!("node:{}", identity.node), ..Origin::default() };
                let body = Body::ReportNode(ReportNode { id: identity.node.0, facts: Some(facts) });
                match consensus.propose(origin, body).await {
                    Ok(_) => told = true,
                    Err(error) => tracing::debug!(%error, "the fleet has not been told yet what this node is"),
                }
            }
            // A node that has just joined does not find itself in its state at first.
            Ok(None) => {}
            Err(error) => return tracing::error!(%error, "the nodes of the fleet can not be read"),
        }
        tokio::time::sleep(PAUSE).await;
    }
}

/// Waits for a change in one of these tables, or until it is not known whether there was one.
async fn of_tables(changes: &mut Changes, tables: &[TableId]) {
    loop {
        match changes.next().await {
            Ok(batches) => {
                let mut all = batches.iter().flat_map(|batch| batch.changes.iter());
                if all.any(|change| tables.contains(&change.key.table)) {
                    return;
                }
            }
            Err(lagged) => return tracing::debug!(%lagged, "everything is read again"),
        }
    }
}

/// Takes over keys and nodes of the fleet as they come and go.
struct Follower {
    consensus: Arc<Consensus>,
    keyring: Keyring,
    registered: Arc<Registered>,
    identity: Identity,
    private: HolderKey,
}

impl Follower {
    /// Reads keys and nodes from the newest view, and returns its index.
    fn refresh(&self) -> u64 {
        let view = self.consensus.local();
        if let Err(error) = self.keyring.refresh(&view, self.identity.node, &self.private) {
            tracing::error!(%error, "some of the fleet's keys can not be read by this node");
        }
        match Registry::from_view(&view, &self.identity.met) {
            Ok(registry) => self.registered.replace(registry),
            Err(error) => tracing::error!(%error, "the nodes of the fleet can not be read"),
        }
        view.index()
    }

    async fn follow(self, from: u64) {
        let mut changes = self.consensus.published().changes(from);
        loop {
            of_tables(&mut changes, &[<WrappedKey as Row>::TABLE, <crate::rows::Node as Row>::TABLE]).await;
            self.refresh();
        }
    }
}
