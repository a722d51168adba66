//! Running a node until it is told to stop, or can not go on.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use muster_api::server::{Limits, serve_nodes, serve_unix};
use muster_api::{
    ApiOptions, ApiState, Environment, Gateway, GatewayOptions, Member, Phase, UNCONFIGURED, Worker, service,
};
use muster_cluster::clock::SystemClock;
use muster_cluster::consensus::Timing;
use muster_cluster::leader::{Levels, Membership, Retention};
use muster_cluster::membership::Profile;
use muster_cluster::node::{self, Identity, JoinToken, MeshSockets, Node, NodeOptions, Stage};
use muster_cluster::rows::NodeFacts;
use muster_cluster::sealing::SecretText;
use muster_cluster::state::FEATURE_LEVELS;
use tokio::net::UnixListener;
use tokio::runtime::{Builder, Runtime};
use tokio::sync::watch;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

use super::listeners::{Addresses, Listeners};
use super::own_directory;
use super::workers::{self, Share, Workers};
use crate::config::{AuthMode, NodeRole, Values};
use crate::exit::Failure;

/// How often a node that belongs to no fleet looks whether it does by now.
const LOOK_AGAIN: Duration = Duration::from_secs(1);

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
        },
        timing: Timing::default(),
        gossip: Profile::default(),
        clock: Arc::new(SystemClock),
        duties: vec![Arc::new(Retention::default()), Arc::new(Membership::default()), Arc::new(Levels)],
        runtime: runtimes.raft.handle().clone(),
    }
}

/// The fleet that a node wants to join.
#[derive(Clone, Debug)]
pub struct JoinWish {
    /// Where the mesh of its nodes listens.
    pub addresses: Vec<String>,
    /// What lets it in.
    pub token: JoinToken,
}

fn failed(error: impl ToString) -> Failure {
    Failure::other(error.to_string())
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
    join: Option<JoinWish>,
    runtimes: &Runtimes,
    stop: CancellationToken,
) -> Result<Serving, Failure> {
    warn_of_openness(&values)?;
    own_directory(&values.data_dir)?;
    let listeners = Listeners::bind(&values)?;
    let addresses = listeners.addresses()?;
    let (to_phase, phase) = watch::channel(Phase::Starting);
    let options = ApiOptions {
        auth: match values.auth_mode {
            AuthMode::Required => muster_api::AuthMode::Required,
            AuthMode::None => muster_api::AuthMode::None,
        },
        body_limit: values.body_limit,
        own_uid: Some(rustix::process::geteuid().as_raw()),
        hosts: [&values.name, &values.advertise].into_iter().filter(|name| !name.is_empty()).cloned().collect(),
    };
    let closing = CancellationToken::new();
    let clients = Clients::start(&listeners, &values, ApiState::new(phase.clone(), options), &closing)?;
    let Listeners { mesh, file, .. } = listeners;
    let Addresses { api, proxy, mesh: address } = addresses;
    tracing::info!(address = %api, %proxy, mesh = %address, data = %values.data_dir.display(), "the API listens");
    let options = node_options(&values, addresses, runtimes);
    let (nodes, asked) = (clients.nodes.clone(), closing.clone());
    let ended = tokio::spawn(async move {
        live(options, join, mesh, &to_phase, &stop, (nodes, asked), async move {
            // While its listener is there, no successor takes the place of the file.
            file.remove();
            // Requests under way finish before the node goes.
            closing.cancel();
            clients.ended().await;
        })
        .await
    });
    Ok(Serving { addresses, phase, ended })
}

/// What serves clients.
struct Clients {
    /// Answers the gateways of other nodes.
    nodes: Worker,
    workers: Workers,
    local: JoinHandle<()>,
}

impl Clients {
    fn start(
        listeners: &Listeners,
        values: &Values,
        state: ApiState,
        closing: &CancellationToken,
    ) -> Result<Self, Failure> {
        let shared = |error: std::io::Error| Failure::other(format!("a listener can not be shared: {error}"));
        let environment = Environment::new(|name| std::env::var(name).ok().map(SecretText::new));
        let options = GatewayOptions { body_limit: values.gateway_body_limit, environment };
        let gateway = Gateway::new(state.clone(), options);
        let rest = service(state);
        let count = workers::count();
        let whole = Limits::default();
        let limits = Limits { connections: whole.connections.div_ceil(count), ..whole };
        let share = || {
            let worker = gateway.worker();
            let (api, proxy) = (listeners.api.try_clone()?, listeners.proxy.try_clone()?);
            let api = Share { listener: api, service: worker.in_front_of(rest.clone()), limits };
            Ok((api, Share { listener: proxy, service: worker.alone(), limits }))
        };
        let shares = (0..count).map(|_| share()).collect::<Result<_, _>>().map_err(shared)?;
        let workers = Workers::start(shares, closing)?;
        let local = listeners.local.try_clone().and_then(UnixListener::from_std).map_err(shared)?;
        let local = tokio::spawn(serve_unix(local, gateway.worker().in_front_of(rest), whole, closing.clone()));
        Ok(Self { nodes: gateway.worker(), workers, local })
    }

    async fn ended(self) {
        self.workers.ended().await;
        let _ = self.local.await;
    }
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

/// The node's life: waiting for a fleet, starting, serving, stopping.
async fn live(
    options: NodeOptions,
    join: Option<JoinWish>,
    mesh: MeshSockets,
    phase: &watch::Sender<Phase>,
    stop: &CancellationToken,
    (nodes, closing): (Worker, CancellationToken),
    close: impl Future<Output = ()>,
) -> Result<(), Failure> {
    let close = std::pin::pin!(close);
    let starting = async {
        match &join {
            Some(JoinWish { addresses, token }) => node::join(&options, addresses, token).await.map_err(failed)?,
            None => wait_for_a_fleet(&options.directory, phase).await?,
        }
        phase.send_replace(Phase::Starting);
        Node::start(options, mesh).await.map_err(failed)
    };
    let node = tokio::select! {
        started = starting => started,
        () = stop.cancelled() => {
            tracing::info!("stopping before it has started");
            close.await;
            return Ok(());
        }
    };
    let node = match node {
        Ok(node) => node,
        Err(failure) => {
            phase.send_replace(Phase::Stopped(failure.to_string()));
            close.await;
            return Err(failure);
        }
    };
    phase.send_replace(Phase::Member(Member::of(&node)));
    let askers = node
        .take_askers()
        .map(|askers| tokio::spawn(serve_nodes(askers, nodes.for_nodes(), Limits::default(), closing)));
    tracing::info!(node = %node.identity().node, fleet = %node.identity().fleet, "serving");
    let outcome = tokio::select! {
        why = node.failed() => {
            tracing::error!(why, "this node can not go on");
            Err(Failure::other(format!("this node can not go on: {why}")))
        }
        () = stop.cancelled() => {
            tracing::info!("stopping");
            Ok(())
        }
    };
    let why = outcome.as_ref().err().map_or_else(|| "it is stopping".to_owned(), ToString::to_string);
    close.await;
    if let Some(askers) = askers {
        let _ = askers.await;
    }
    phase.send_replace(Phase::Stopped(why));
    let closed = node.shutdown().await.map_err(|error| Failure::other(error.to_string()));
    outcome.and(closed)
}

async fn wait_for_a_fleet(directory: &Path, phase: &watch::Sender<Phase>) -> Result<(), Failure> {
    let mut told = false;
    loop {
        let path = directory.to_path_buf();
        let looked = tokio::task::spawn_blocking(move || Identity::load(&path)).await;
        let identity = looked.map_err(|error| Failure::other(error.to_string()))?;
        match identity.map_err(|error| Failure::other(error.to_string()))? {
            Some(Identity { stage: Stage::Member, .. }) => return Ok(()),
            Some(Identity { stage: Stage::Founding, .. }) | None => {}
        }
        if !told {
            tracing::warn!("this node waits: {UNCONFIGURED}");
            phase.send_replace(Phase::Unconfigured);
            told = true;
        }
        tokio::time::sleep(LOOK_AGAIN).await;
    }
}
