//! What serves the clients of a node, from accepting them to the last answer.

use std::collections::HashMap;
use std::net::TcpListener;
use std::time::Duration;

use muster_agent::runtime::UnitId;
use muster_api::server::{Ending, Limits, Part, serve_nodes, serve_tcp, serve_unix};
use muster_api::{ApiOptions, ApiState, Environment, Gateway, GatewayOptions, Phase, Worker, is_gateway_path, service};
use muster_cluster::sealing::SecretText;
use muster_cluster::transport::PeerConnection;
use tokio::net::UnixListener;
use tokio::sync::{mpsc, watch};
use tokio::task::{JoinHandle, JoinSet};
use tokio_util::task::AbortOnDropHandle;

use super::doors::{Doorway, Table};
use super::listeners::Listeners;
use super::workers::{self, Door, Share, Workers};
use crate::config::{AuthMode, Values};
use crate::exit::Failure;

/// How long connections get to end by themselves while new ones are still accepted.
const DRAIN: Duration = Duration::from_secs(1);

/// How long requests that need the node may take once nothing more is accepted: longer than a write or a read takes.
const LAST_REQUESTS: Duration = Duration::from_secs(12);

/// How long the connections get to end that took longer.
const LAST_WORDS: Duration = Duration::from_secs(1);

/// What answers clients, whoever accepts them.
pub struct Desk {
    gateway: Gateway,
    state: ApiState,
}

impl Desk {
    /// That of a node in this phase.
    pub fn new(values: &Values, phase: watch::Receiver<Phase>) -> Self {
        let options = ApiOptions {
            auth: match values.auth_mode {
                AuthMode::Required => muster_api::AuthMode::Required,
                AuthMode::None => muster_api::AuthMode::None,
            },
            body_limit: values.body_limit,
            own_uid: Some(rustix::process::geteuid().as_raw()),
            hosts: [&values.name, &values.advertise].into_iter().filter(|name| !name.is_empty()).cloned().collect(),
        };
        let state = ApiState::new(phase, options);
        let environment = Environment::new(|name| std::env::var(name).ok().map(SecretText::new));
        let options = GatewayOptions { body_limit: values.gateway_body_limit, environment };
        Self { gateway: Gateway::new(state.clone(), options), state }
    }
}

/// What serves clients.
pub struct Clients {
    ending: Ending,
    /// Answers the gateways of other nodes.
    for_nodes: Worker,
    workers: Workers,
    others: Vec<JoinHandle<()>>,
    /// Tells the fleet which keys were used.
    telling: AbortOnDropHandle<()>,
}

/// Whether a request on `:8000` needs the node to run. The gateway's do not: it knows what it needs.
fn needs_node(path: &str) -> bool {
    !is_gateway_path(path)
}

/// A handle of each of these sockets for one thread.
fn doors(listeners: [Option<&TcpListener>; 2], part: impl Fn() -> Part) -> std::io::Result<Vec<Door>> {
    let door = |listener: &TcpListener| Ok(Door { listener: listener.try_clone()?, part: part() });
    listeners.into_iter().flatten().map(door).collect()
}

/// Serves the listeners of the placements in one thread, those that come and those that go, until nothing more is accepted and
/// the last client has been answered.
async fn serve_placements(worker: Worker, mut table: watch::Receiver<Table>, limits: Limits, ending: Ending) {
    let mut serving = JoinSet::new();
    let mut open: HashMap<UnitId, Ending> = HashMap::new();
    loop {
        let wanted = table.borrow_and_update().clone();
        open.retain(|unit, ending| {
            let stays = wanted.contains_key(unit);
            if !stays {
                ending.part_with_all();
            }
            stays
        });
        for (unit, doorway) in wanted {
            if open.contains_key(&unit) {
                continue;
            }
            let own = ending.below();
            match placement_listeners(&doorway) {
                Ok(listeners) => {
                    for listener in listeners {
                        let service = worker.at_door(unit.placement, unit.epoch);
                        serving.spawn(serve_tcp(listener, service, limits, own.part(None)));
                    }
                    open.insert(unit, own);
                }
                // The other threads serve it, and this one tries again at the next change.
                Err(error) => tracing::warn!(%unit, %error, "a thread can not serve a placement's listener"),
            }
        }
        tokio::select! {
            biased;
            () = ending.closing() => break,
            changed = table.changed() => if changed.is_err() { break },
            Some(_) = serving.join_next() => {}
        }
    }
    while serving.join_next().await.is_some() {}
}

/// A thread's own handles of a placement's sockets.
fn placement_listeners(doorway: &Doorway) -> std::io::Result<Vec<tokio::net::TcpListener>> {
    doorway.handles()?.into_iter().map(tokio::net::TcpListener::from_std).collect()
}

impl Clients {
    /// Begins to accept them.
    pub fn start(desk: &Desk, listeners: &Listeners) -> Result<Self, Failure> {
        let shared = |error: std::io::Error| Failure::other(format!("a listener can not be shared: {error}"));
        let Desk { gateway, state } = desk;
        let rest = service(state.clone());
        let ending = Ending::default();
        let count = workers::count();
        let whole = Limits::default();
        let limits = Limits { connections: whole.connections.div_ceil(count), ..whole };
        let share = || {
            let worker = gateway.worker();
            let Listeners { api, proxy, loopback, doors: placements, .. } = listeners;
            let api = doors([Some(api), loopback.api.as_ref()], || ending.part(Some(needs_node)))?;
            let proxy = doors([Some(proxy), loopback.proxy.as_ref()], || ending.part(None))?;
            let service = worker.in_front_of(rest.clone());
            let beside = serve_placements(worker.clone(), placements.follow(), limits, ending.clone());
            Ok((Share { doors: api, service, limits }, Share { doors: proxy, service: worker.alone(), limits }, beside))
        };
        let shares = (0..count).map(|_| share()).collect::<Result<_, _>>().map_err(shared)?;
        let local = listeners.local.try_clone().and_then(UnixListener::from_std).map_err(shared)?;
        let workers = Workers::start(shares)?;
        let service = gateway.worker().in_front_of(rest);
        let local = tokio::spawn(serve_unix(local, service, whole, ending.part(Some(needs_node))));
        let telling = AbortOnDropHandle::new(tokio::spawn(gateway.telling()));
        Ok(Self { ending, for_nodes: gateway.worker(), workers, others: vec![local], telling })
    }

    /// Answers the gateways of other nodes.
    pub fn answer_nodes(&mut self, askers: mpsc::Receiver<PeerConnection>) {
        let serving = serve_nodes(askers, self.for_nodes.for_nodes(), Limits::default(), self.ending.part(None));
        self.others.push(tokio::spawn(serving));
    }

    /// Has every connection end with its next answer, then accepts nothing more, and waits until nobody needs the node. What
    /// takes too long is cut off. `close_mesh` ends the accepting on the mesh listener.
    ///
    /// New connections are accepted while the old ones end: whoever comes waits only for what follows.
    pub async fn drain(&self, close_mesh: impl Future<Output = ()>) {
        self.telling.abort();
        self.ending.drain();
        let _ = tokio::time::timeout(DRAIN, self.ending.released()).await;
        close_mesh.await;
        let last_requests = async {
            self.ending.close().await;
            self.ending.released().await;
        };
        if tokio::time::timeout(LAST_REQUESTS, last_requests).await.is_err() {
            self.ending.abandon();
            let _ = tokio::time::timeout(LAST_WORDS, self.ending.released()).await;
        }
    }

    /// Ends them: requests under way have a while to finish.
    pub fn stop(&self) {
        self.ending.stop();
    }

    /// How to end them while somebody waits for their end.
    pub fn ending(&self) -> Ending {
        self.ending.clone()
    }

    /// Waits until the last one has been answered.
    pub async fn ended(self) {
        self.workers.ended().await;
        for serving in self.others {
            let _ = serving.await;
        }
    }
}
