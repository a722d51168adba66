//! Running a node until it is told to stop, or can not go on.

use std::sync::Arc;
use std::time::Duration;

use muster_agent::host::Host;
use muster_api::{Member, Phase};
use muster_cluster::clock::SystemClock;
use muster_cluster::clocks::Rules;
use muster_cluster::consensus::Timing;
use muster_cluster::leader::{Endings, Levels, Membership, Retention};
use muster_cluster::membership::Profile;
use muster_cluster::node::{JoinToken, NodeOptions};
use muster_cluster::rows::NodeFacts;
use muster_cluster::state::FEATURE_LEVELS;
use muster_cluster::transport::Services;
use tokio::runtime::{Builder, Runtime};
use tokio::sync::watch;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

use super::clients::Desk;
use super::handover::{Inherited, Promise, take_over};
use super::life::Life;
use super::listeners::{Addresses, Listeners, SocketFiles};
use super::own_directory;
use super::seeds::Seed;
use crate::config::{AuthMode, NodeRole, Values};
use crate::exit::Failure;

/// How long the sockets of a process that has ended may take to be free.
const FREE_LIMIT: Duration = Duration::from_secs(15);

/// How long to wait before trying again to listen.
const PAUSE: Duration = Duration::from_millis(50);

/// The threads of this process. Raft has its own, so that load on the API does not cost a heartbeat.
pub struct Runtimes {
    raft: Runtime,
    http: Runtime,
}

impl Runtimes {
    /// Starts the threads.
    pub fn start() -> Result<Self, Failure> {
        let failed = |error: std::io::Error| Failure::other(format!("no threads: {error}"));
        let raft = Builder::new_multi_thread().worker_threads(2).thread_name("raft").enable_all().build();
        let http = Builder::new_multi_thread().thread_name("http").enable_all().build();
        Ok(Self { raft: raft.map_err(failed)?, http: http.map_err(failed)? })
    }

    /// The runtime of Raft and of the node itself.
    pub fn raft(&self) -> &Runtime {
        &self.raft
    }

    /// The runtime of everything that talks to clients.
    pub fn http(&self) -> &Runtime {
        &self.http
    }

    /// Lets go of the threads without waiting for any. What had to be finished is finished; what hangs, or was still
    /// starting, is not to keep the process.
    pub fn end(self) {
        self.http.shutdown_background();
        self.raft.shutdown_background();
    }
}

/// What the cluster needs to know of this node, which listens there.
pub fn node_options(values: &Values, addresses: Addresses, runtimes: &Runtimes) -> NodeOptions {
    NodeOptions {
        directory: values.data_dir.clone(),
        facts: NodeFacts {
            name: values.name.clone(),
            api: values.advertised(addresses.api),
            proxy: values.advertised(addresses.proxy),
            mesh: values.advertised(addresses.mesh),
            version: env!("CARGO_PKG_VERSION").to_owned(),
            max_level: *FEATURE_LEVELS.end(),
            wants_to_vote: values.role == NodeRole::Voter,
            ..NodeFacts::default()
        },
        timing: Timing::default(),
        step: None,
        gossip: Profile::default(),
        clock: Arc::new(SystemClock),
        clocks: Rules::default(),
        duties: vec![
            Arc::new(Retention::default()),
            Arc::new(Membership::default()),
            Arc::new(Levels),
            Arc::new(Endings),
        ],
        services: Services::default(),
        runtime: runtimes.raft.handle().clone(),
    }
}

/// The fleet that a node wants to join.
#[derive(Clone, Debug)]
pub struct JoinWish {
    /// Where its nodes are looked for.
    pub seeds: Vec<Seed>,
    /// What lets it in.
    pub token: JoinToken,
}

/// What a process has to do with those before and after it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Succession {
    /// There is none before and none after.
    #[default]
    None,
    /// It starts by itself, and hands over to a successor.
    Offer,
    /// It takes the place of the one that runs, and hands over to a successor.
    TakeOver,
}

/// How a node starts.
#[derive(Clone, Debug, Default)]
pub struct Start {
    /// The fleet that it joins first.
    pub join: Option<JoinWish>,
    /// Who serves it before and after.
    pub succession: Succession,
}

/// A node that serves.
pub struct Serving {
    /// Where it listens.
    pub addresses: Addresses,
    phase: watch::Receiver<Phase>,
    ended: JoinHandle<Result<(), Failure>>,
}

impl Serving {
    /// Waits until the node belongs to a fleet and has caught up, or can not.
    pub async fn started(&mut self) -> Result<(), Failure> {
        let settled = |phase: &Phase| matches!(phase, Phase::Member(_) | Phase::Stopped(_));
        match self.phase.wait_for(settled).await.as_deref() {
            Ok(Phase::Member(_)) => Ok(()),
            Ok(Phase::Stopped(why)) => Err(Failure::other(why.clone())),
            _ => Err(Failure::other("the node has ended")),
        }
    }

    /// The running node, once it has started.
    pub fn member(&self) -> Option<Member> {
        match &*self.phase.borrow() {
            Phase::Member(member) => Some(member.clone()),
            _ => None,
        }
    }

    /// Waits until the node has ended.
    pub async fn ended(self) -> Result<(), Failure> {
        self.ended.await.unwrap_or_else(|error| Err(Failure::other(format!("the node has failed: {error}"))))
    }
}

/// Begins to serve the node of this data directory. To be called on the runtime of HTTP.
pub async fn serve(
    values: Values,
    start: Start,
    runtimes: &Runtimes,
    stop: CancellationToken,
) -> Result<Serving, Failure> {
    warn_of_openness(&values)?;
    own_directory(&values.data_dir)?;
    let (listeners, files, promise) = tokio::select! {
        listening = listen(&values, start.succession) => listening?,
        () = stop.cancelled() => return Err(Failure::other("it was told to stop before it could serve")),
    };
    let addresses = listeners.addresses()?;
    let (to_phase, phase) = watch::channel(Phase::Starting);
    let host = Host::new(values.host()).await;
    let host = host.map_err(|error| Failure::other(format!("the logs of engines have no place: {error}")))?;
    let mut options = node_options(&values, addresses, runtimes);
    host.describe(&mut options.facts);
    options.services = host.services();
    options.duties.extend(host.duties());
    let life = Life {
        options,
        host,
        drain: Duration::from_secs(values.drain_seconds),
        desk: Desk::new(&values, phase.clone()),
        join: start.join,
        // The nodes of `muster dev` are one process, and stop together.
        leaves_others: start.succession != Succession::None,
        values,
        listeners,
        addresses,
        files,
        phase: to_phase,
        stop,
        leaving: Vec::new(),
    };
    // Whoever inherits serves when its node runs: until then clients wait, and are not told that it starts.
    let clients = if promise.is_none() { Some(life.open()?) } else { None };
    Ok(Serving { addresses, phase, ended: tokio::spawn(life.run(clients, promise)) })
}

/// The sockets: those of the process before, or new ones.
async fn listen(
    values: &Values,
    succession: Succession,
) -> Result<(Listeners, Option<SocketFiles>, Option<Promise>), Failure> {
    let with_successor = succession != Succession::None;
    if succession == Succession::TakeOver {
        if let Some(Inherited { listeners, promise }) = take_over(values).await? {
            return Ok((listeners, None, Some(promise)));
        }
        // One that has just ended may not have let go of everything yet.
        let deadline = tokio::time::Instant::now() + FREE_LIMIT;
        while tokio::time::Instant::now() < deadline {
            if let Ok((listeners, files)) = Listeners::bind(values, with_successor) {
                return Ok((listeners, Some(files), None));
            }
            tokio::time::sleep(PAUSE).await;
        }
    }
    let (listeners, files) = Listeners::bind(values, with_successor)?;
    Ok((listeners, Some(files), None))
}

/// Says loudly what is open to strangers, or refuses to be.
fn warn_of_openness(values: &Values) -> Result<(), Failure> {
    if values.auth_mode == AuthMode::None {
        tracing::warn!("auth_mode = none: EVERYBODY who reaches the API is administrator");
    }
    for (what, address) in [("API", values.api), ("proxy", values.proxy)] {
        if !Values::is_exposed(address.ip()) {
            continue;
        }
        if !values.insecure_http {
            let why =
                "strangers could reach it and it has no TLS; use a loopback or tailnet address, or --insecure-http";
            return Err(Failure::other(format!("the {what} is not served on {address}: {why}")));
        }
        tracing::warn!(%address, "insecure_http: the {what} is served WITHOUT TLS where strangers can reach it");
    }
    Ok(())
}
