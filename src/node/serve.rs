//! Running a node until it is told to stop, or can not go on.

use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use muster_api::server::{Limits, serve_tcp, serve_unix};
use muster_api::{ApiOptions, ApiState, Member, Phase, UNCONFIGURED, service};
use muster_cluster::clock::SystemClock;
use muster_cluster::consensus::Timing;
use muster_cluster::leader::Retention;
use muster_cluster::node::{Identity, Node, NodeOptions, Stage};
use muster_cluster::rows::NodeFacts;
use muster_cluster::state::FEATURE_LEVELS;
use tokio::net::TcpListener;
use tokio::runtime::{Builder, Runtime};
use tokio::sync::{oneshot, watch};
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

use super::socket;
use crate::config::{AuthMode, Values};
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
}

/// What the cluster needs to know of this node, whose API listens there.
pub fn node_options(values: &Values, listening: SocketAddr, runtimes: &Runtimes) -> NodeOptions {
    NodeOptions {
        directory: values.data_dir.clone(),
        facts: NodeFacts {
            name: values.name.clone(),
            api: values.advertised(listening),
            version: env!("CARGO_PKG_VERSION").to_owned(),
            max_level: *FEATURE_LEVELS.end(),
        },
        timing: Timing::default(),
        clock: Arc::new(SystemClock),
        duties: vec![Arc::new(Retention::default())],
        runtime: runtimes.raft.handle().clone(),
    }
}

/// A node that serves.
pub struct Serving {
    /// Where its API listens.
    pub address: SocketAddr,
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

    /// Waits until the node has ended.
    pub async fn ended(self) -> Result<(), Failure> {
        self.ended.await.unwrap_or_else(|error| Err(Failure::other(format!("the node has failed: {error}"))))
    }
}

/// Begins to serve the node of this data directory. To be called on the runtime of HTTP.
pub async fn serve(values: Values, runtimes: &Runtimes, stop: CancellationToken) -> Result<Serving, Failure> {
    warn_of_openness(&values)?;
    std::fs::create_dir_all(&values.data_dir)
        .map_err(|error| Failure::other(format!("{}: {error}", values.data_dir.display())))?;
    let bound = TcpListener::bind(values.api).await;
    let listener =
        bound.map_err(|error| Failure::other(format!("the API can not listen on {}: {error}", values.api)))?;
    let address = listener.local_addr().map_err(|error| Failure::other(error.to_string()))?;
    let local = socket::bind(&values.data_dir)?;
    let (to_phase, phase) = watch::channel(Phase::Starting);
    let options = ApiOptions {
        auth: match values.auth_mode {
            AuthMode::Required => muster_api::AuthMode::Required,
            AuthMode::None => muster_api::AuthMode::None,
        },
        body_limit: values.body_limit,
        own_uid: Some(rustix::process::geteuid().as_raw()),
    };
    let api = service(ApiState::new(phase.clone(), options));
    let closing = CancellationToken::new();
    let servers = [
        tokio::spawn(serve_tcp(listener, api.clone(), Limits::default(), closing.clone())),
        tokio::spawn(serve_unix(local, api, Limits::default(), closing.clone())),
    ];
    let options = node_options(&values, address, runtimes);
    tracing::info!(%address, data = %values.data_dir.display(), "the API listens");
    let ended = tokio::spawn(async move {
        let outcome = live(options, &to_phase, &stop, async move {
            // Requests under way finish before the node goes.
            closing.cancel();
            for server in servers {
                let _ = server.await;
            }
        })
        .await;
        let _ = std::fs::remove_file(socket::socket_path(&values.data_dir));
        outcome
    });
    Ok(Serving { address, phase, ended })
}

/// Says loudly what is open to strangers, or refuses to be.
fn warn_of_openness(values: &Values) -> Result<(), Failure> {
    if values.auth_mode == AuthMode::None {
        tracing::warn!("auth_mode = none: EVERYBODY who reaches the API is administrator");
    }
    if !Values::is_exposed(values.api.ip()) {
        return Ok(());
    }
    if !values.insecure_http {
        let why = "strangers could reach it and it has no TLS; use a loopback or tailnet address, or --insecure-http";
        return Err(Failure::other(format!("the API is not served on {}: {why}", values.api)));
    }
    tracing::warn!(api = %values.api, "insecure_http: the API is served WITHOUT TLS where strangers can reach it");
    Ok(())
}

/// The node's life: waiting for a fleet, starting, serving, stopping.
async fn live(
    options: NodeOptions,
    phase: &watch::Sender<Phase>,
    stop: &CancellationToken,
    close: impl Future<Output = ()>,
) -> Result<(), Failure> {
    let close = std::pin::pin!(close);
    let starting = async {
        wait_for_a_fleet(&options.directory, phase).await?;
        phase.send_replace(Phase::Starting);
        Node::start(options).await.map_err(|error| Failure::other(error.to_string()))
    };
    let node = tokio::select! {
        started = starting => started,
        () = stop.cancelled() => {
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
    tracing::info!(node = %node.identity().node, fleet = %node.identity().fleet, "serving");
    let outcome = tokio::select! {
        why = node.failed() => {
            tracing::error!(why, "this node can not go on");
            Err(Failure::other(format!("this node can not go on: {why}")))
        }
        () = stop.cancelled() => Ok(()),
    };
    let why = outcome.as_ref().err().map_or_else(|| "it is stopping".to_owned(), ToString::to_string);
    close.await;
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

/// Told by the operating system to stop. The second time it is told, the process ends at once.
pub fn stop_on_signal(stop: CancellationToken) -> Result<oneshot::Receiver<()>, Failure> {
    use tokio::signal::unix::{SignalKind, signal};
    let failed = |error: std::io::Error| Failure::other(format!("signals can not be heard: {error}"));
    let mut terminate = signal(SignalKind::terminate()).map_err(failed)?;
    let mut interrupt = signal(SignalKind::interrupt()).map_err(failed)?;
    let (to_again, again) = oneshot::channel();
    tokio::spawn(async move {
        for turn in 0..2 {
            tokio::select! {
                _ = terminate.recv() => {}
                _ = interrupt.recv() => {}
            }
            if turn == 0 {
                tracing::info!("stopping");
                stop.cancel();
            }
        }
        let _ = to_again.send(());
    });
    Ok(again)
}
