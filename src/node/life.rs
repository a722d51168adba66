//! The life of a node: waiting for a fleet, starting, serving, stopping; and being handed over.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use muster_agent::host::{Host, Supervision};
use muster_api::{Member, Phase, UNCONFIGURED};
use muster_cluster::consensus::{Timing, Transferred};
use muster_cluster::node::{self, Identity, Node, NodeOptions, Stage, StartError};
use muster_cluster::storage::OpenError;
use tokio::sync::watch;
use tokio::time::{Instant, timeout};
use tokio_util::sync::CancellationToken;

use super::clients::{Clients, Desk};
use super::handover::{Candidate, Door, Offer, Promise};
use super::listeners::{Addresses, Listeners, SocketFiles};
use super::seeds;
use super::serve::JoinWish;
use crate::config::Values;
use crate::exit::Failure;

/// How often a node that belongs to no fleet looks whether it does by now.
const LOOK_AGAIN: Duration = Duration::from_secs(1);

/// How long another node may take to become the leader: one that is told to, or one that notices that there is none.
const TRANSFER_LIMIT: Duration = Duration::from_secs(10);

/// How long another node may take to become the leader in the place of one that stops.
const STOP_LIMIT: Duration = Duration::from_secs(3);

/// How long a successor looks for the leader before it serves without one.
const LEADER_LIMIT: Duration = Duration::from_secs(5);

/// How long clients may wait for the engines that ran before to be found again.
const ENGINES_LIMIT: Duration = Duration::from_secs(3);

/// How long a process waits for a failed successor to let go of the data.
const TAKE_BACK_LIMIT: Duration = Duration::from_secs(10);

/// How long to wait before trying again what failed.
const PAUSE: Duration = Duration::from_millis(20);

fn failed(error: impl ToString) -> Failure {
    Failure::other(error.to_string())
}

/// What a node needs for its life.
pub struct Life {
    pub options: NodeOptions,
    pub host: Arc<Host>,
    pub values: Values,
    pub join: Option<JoinWish>,
    pub listeners: Listeners,
    pub addresses: Addresses,
    /// The files of its sockets; none while they are still another process's.
    pub files: Option<SocketFiles>,
    pub desk: Desk,
    pub phase: watch::Sender<Phase>,
    pub stop: CancellationToken,
    /// Whether there are other processes that could lead when this one stops.
    pub leaves_others: bool,
    /// How long answers that have begun may take after a handover.
    pub drain: Duration,
    /// Clients of before a handover that failed.
    pub leaving: Vec<Clients>,
}

/// How serving ended.
enum End {
    /// For good.
    Done(Result<(), Failure>),
    /// The successor has failed.
    TakeBack,
    /// This process is its own successor.
    Again,
}

/// What is open to clients and to successors.
pub struct Reception {
    clients: Clients,
    door: Option<Door>,
}

impl Life {
    /// Begins to accept clients, and successors.
    pub fn open(&self) -> Result<Reception, Failure> {
        let clients = Clients::start(&self.desk, &self.listeners)?;
        let offer = Offer { addresses: self.addresses, phase: self.phase.subscribe() };
        let open = |listener: &std::os::unix::net::UnixListener| Door::open(listener.try_clone()?, offer);
        let door = self.listeners.handover.as_ref().map(open).transpose();
        let door = door.map_err(|error| Failure::other(format!("no successor could be heard: {error}")))?;
        let Addresses { api, proxy, mesh, loopback } = self.addresses;
        tracing::info!(address = %api, %proxy, %mesh, data = %self.values.data_dir.display(), "the API listens");
        for (what, address) in [("API", loopback.api), ("proxy", loopback.proxy)] {
            if let Some(address) = address {
                tracing::info!(%address, "the {what} is on loopback as well");
            }
        }
        Ok(Reception { clients, door })
    }

    /// Lives it. Whoever has promised to serve keeps the promise once it does.
    pub async fn run(mut self, reception: Option<Reception>, promise: Option<Promise>) -> Result<(), Failure> {
        let (mut reception, mut promise, mut taken_back, mut again) = (reception, promise, false, false);
        loop {
            let node = tokio::select! {
                node = self.start(taken_back) => node,
                () = self.stop.clone().cancelled_owned() => {
                    tracing::info!("stopping before it has started");
                    self.close(reception).await;
                    return Ok(());
                }
            };
            let node = match node {
                Ok(Some(node)) => node,
                Ok(None) if again => {
                    // Nobody else can have it: what is left of the node of before holds on to it.
                    let failure = Failure::other("the data directory did not become free for the node to start again");
                    self.phase.send_replace(Phase::Stopped(failure.to_string()));
                    self.close(reception).await;
                    return Err(failure);
                }
                Ok(None) => {
                    tracing::warn!("the successor has the data directory and did not say that it serves");
                    self.finish(None).await;
                    return Ok(());
                }
                Err(failure) => {
                    self.phase.send_replace(Phase::Stopped(failure.to_string()));
                    if let Some(promise) = promise {
                        promise.break_off(&failure.to_string()).await;
                    }
                    self.close(reception).await;
                    return Err(failure);
                }
            };
            if reception.is_none() {
                find_leader(&node).await;
            }
            let mut supervision = self.host.supervise(&node, self.listeners.doors.clone());
            // Clients that wait would be told that a model is being loaded which runs.
            supervision.found(ENGINES_LIMIT).await;
            self.phase.send_replace(Phase::Member(Member::of(&node, &self.host)));
            let now = match reception.take() {
                Some(reception) => Ok(reception),
                None => self.open(),
            };
            let mut now = match now.and_then(|reception| self.own_files().map(|()| reception)) {
                Ok(reception) => reception,
                Err(failure) => {
                    supervision.end().await;
                    let closed = node.shutdown().await.map_err(failed);
                    if let Some(promise) = promise {
                        promise.break_off(&failure.to_string()).await;
                    }
                    return closed.and(Err(failure));
                }
            };
            if let Some(askers) = node.take_askers() {
                now.clients.answer_nodes(askers);
            }
            if let Some(promise) = promise.take() {
                promise.keep().await;
            }
            tracing::info!(node = %node.identity().node, fleet = %node.identity().fleet, "serving");
            match self.serve(node, now, supervision).await {
                End::Done(outcome) => return outcome,
                End::TakeBack => (taken_back, again) = (true, false),
                End::Again => (taken_back, again) = (true, true),
            }
        }
    }

    /// The files of inherited sockets are this process's once it serves.
    fn own_files(&mut self) -> Result<(), Failure> {
        if self.files.is_none() {
            self.files = Some(SocketFiles::inherited(&self.values)?);
        }
        Ok(())
    }

    /// Starts the node. One that is taken back may still be in the hands of the successor: `None` if it stays there.
    async fn start(&self, taken_back: bool) -> Result<Option<Node>, Failure> {
        match &self.join {
            Some(JoinWish { seeds, token }) if !taken_back => {
                let find = || seeds::addresses(seeds, &self.values);
                node::join(&self.options, find, token).await.map_err(failed)?;
            }
            Some(_) => {}
            None => wait_for_a_fleet(&self.options.directory, &self.phase).await?,
        }
        if !taken_back {
            self.phase.send_replace(Phase::Starting);
        }
        let deadline = Instant::now() + TAKE_BACK_LIMIT;
        loop {
            let mesh = self.listeners.mesh().map_err(failed)?;
            match Node::start(self.options.clone(), mesh).await {
                Ok(node) => {
                    self.remember_tailnet().await;
                    return Ok(Some(node));
                }
                Err(StartError::Open(OpenError::InUse(_))) if taken_back => {
                    if Instant::now() >= deadline {
                        return Ok(None);
                    }
                    tokio::time::sleep(PAUSE).await;
                }
                Err(error) => return Err(failed(error)),
            }
        }
    }

    /// Keeps the address that the others are told of, for the next start.
    async fn remember_tailnet(&self) {
        let (directory, address) = (self.options.directory.clone(), self.values.tailnet);
        let kept = tokio::task::spawn_blocking(move || crate::config::remember(&directory, address)).await;
        if let Ok(Err(error)) = kept {
            tracing::warn!(%error, "the address in the tailnet is not kept");
        }
    }

    /// Serves until it is told to stop, can not go on, or a successor takes over.
    async fn serve(&mut self, node: Node, mut reception: Reception, supervision: Supervision) -> End {
        loop {
            let candidate = async {
                match &mut reception.door {
                    Some(door) => door.candidate().await,
                    None => std::future::pending().await,
                }
            };
            let outcome = tokio::select! {
                why = node.failed() => {
                    tracing::error!(why, "this node can not go on");
                    Err(Failure::other(format!("this node can not go on: {why}")))
                }
                () = self.stop.cancelled() => {
                    tracing::info!("stopping");
                    Ok(())
                }
                step = node.next_timing() => match self.give_up_the_lead(&node).await {
                    Ok(()) => return self.start_anew(node, reception, supervision, step).await,
                    Err(why) => {
                        tracing::warn!(why, "this node keeps its timing for now");
                        continue;
                    }
                },
                mut candidate = candidate => match self.prepare(&node, &mut candidate).await {
                    Ok(()) => return self.hand_over(node, reception, supervision, candidate).await,
                    // The successor notices that this process ends, and starts by itself.
                    Err(_) if self.stop.is_cancelled() => continue,
                    Err(why) => {
                        tracing::warn!(why, "the node is not handed over");
                        candidate.refuse(&why).await;
                        continue;
                    }
                },
            };
            return self.end(node, reception, supervision, outcome).await;
        }
    }

    /// Stops everything.
    async fn end(
        &mut self,
        node: Node,
        reception: Reception,
        supervision: Supervision,
        outcome: Result<(), Failure>,
    ) -> End {
        let why = outcome.as_ref().err().map_or_else(|| "it is stopping".to_owned(), ToString::to_string);
        let orderly = outcome.is_ok() && self.leaves_others;
        let deadline = Instant::now() + STOP_LIMIT;
        // Clients are served meanwhile: what they ask for goes on to the new leader.
        let settled = !orderly || pass_on_lead(&node, STOP_LIMIT).await;
        let left = deadline.saturating_duration_since(Instant::now());
        supervision.end().await;
        self.close(Some(reception)).await;
        self.phase.send_replace(Phase::Stopped(why));
        if orderly && settled {
            // Another one that stops may have passed its lead on to this one.
            pass_on_lead(&node, left).await;
        }
        let closed = node.shutdown().await.map_err(failed);
        End::Done(outcome.and(closed))
    }

    /// Lets the requests under way finish.
    async fn close(&mut self, reception: Option<Reception>) {
        // While its listener is there, nobody else takes the place of a file.
        if let Some(files) = self.files.take() {
            files.remove();
        }
        let clients: Vec<_> = self.leaving.drain(..).chain(reception.map(|reception| reception.clients)).collect();
        clients.iter().for_each(Clients::stop);
        for clients in clients {
            clients.ended().await;
        }
    }

    /// Has another node lead, if this one does.
    async fn give_up_the_lead(&self, node: &Node) -> Result<(), String> {
        match node.consensus().transfer(None, TRANSFER_LIMIT).await? {
            Transferred::NotLeader | Transferred::Nobody(_) => Ok(()),
            Transferred::To(leader) => {
                tracing::info!(%leader, "another node leads");
                Ok(())
            }
            Transferred::Late => Err("no other node has become the leader".to_owned()),
        }
    }

    /// Starts the node again in this process, for what is read only when it starts. Clients wait meanwhile.
    async fn start_anew(&mut self, node: Node, reception: Reception, supervision: Supervision, timing: Timing) -> End {
        tracing::info!(timing = timing.name(), "taking over another timing");
        let stop = self.stop.clone();
        // Nobody waits for the end of an upload: it goes on afterwards.
        self.host.files().cut();
        tokio::select! {
            () = reception.clients.drain(node.close_mesh()) => {}
            () = stop.cancelled() => return self.end(node, reception, supervision, Ok(())).await,
        }
        supervision.pause().await;
        self.phase.send_replace(Phase::HandedOver(Member::of(&node, &self.host).replica));
        let Reception { clients, door } = reception;
        let handed_over = node.hand_over().await;
        drop(door);
        self.leaving.push(clients);
        if let Err(error) = handed_over {
            self.phase.send_replace(Phase::Stopped(error.to_string()));
            self.close(None).await;
            return End::Done(Err(failed(error)));
        }
        self.options.step = Some(timing);
        End::Again
    }

    /// Sees to it that nobody misses this node. Nothing has changed if it fails.
    async fn prepare(&self, node: &Node, candidate: &mut Candidate) -> Result<(), String> {
        tracing::info!(version = candidate.version, "a successor takes over");
        candidate.accept().await.map_err(|error| format!("the successor does not answer: {error}"))?;
        let transferred = tokio::select! {
            transferred = node.consensus().transfer(None, TRANSFER_LIMIT) => transferred?,
            () = candidate.gone() => return Err("the successor is gone".to_owned()),
            () = self.stop.cancelled() => return Err("it was told to stop".to_owned()),
        };
        match transferred {
            Transferred::NotLeader => {}
            Transferred::To(leader) => tracing::info!(%leader, "another node leads"),
            Transferred::Nobody(why) => tracing::info!(%why, "no other node could lead"),
            Transferred::Late => return Err("no other node has become the leader".to_owned()),
        }
        Ok(())
    }

    /// Hands the node over, or takes it back.
    async fn hand_over(
        &mut self,
        node: Node,
        reception: Reception,
        supervision: Supervision,
        mut candidate: Candidate,
    ) -> End {
        let stop = self.stop.clone();
        let begun = Instant::now();
        // Nobody waits for the end of an upload: it goes on afterwards.
        self.host.files().cut();
        tokio::select! {
            () = reception.clients.drain(node.close_mesh()) => {}
            () = stop.cancelled() => {
                tracing::info!("stopping; the successor starts by itself");
                drop(candidate);
                return self.end(node, reception, supervision, Ok(())).await;
            }
        }
        supervision.end().await;
        tracing::info!(took = ?begun.elapsed(), "clients wait for the successor");
        self.phase.send_replace(Phase::HandedOver(Member::of(&node, &self.host).replica));
        let Reception { clients, door } = reception;
        if let Err(error) = node.hand_over().await {
            tracing::error!(%error, "the data could not be closed in an orderly way; the successor may notice more");
        }
        // Whoever wants to take over from now on waits for the successor.
        drop(door);
        let installed = tokio::select! {
            installed = candidate.install(&self.listeners) => installed,
            () = stop.cancelled() => {
                tracing::info!("told to stop while the successor starts");
                Ok(())
            }
        };
        match installed {
            Ok(()) => {
                tracing::info!(took = ?begun.elapsed(), "the successor serves; finishing what was begun");
                // They are the successor's.
                self.files = None;
                self.listeners.doors.let_go();
                self.finish(Some(clients)).await;
                End::Done(Ok(()))
            }
            Err(why) => {
                tracing::warn!(why, "the successor has failed; this process takes the node up again");
                self.leaving.push(clients);
                End::TakeBack
            }
        }
    }

    /// Finishes answers that have begun, for a while; or a shorter one if it is told to stop.
    async fn finish(&mut self, clients: Option<Clients>) {
        let clients: Vec<_> = self.leaving.drain(..).chain(clients).collect();
        let endings: Vec<_> = clients.iter().map(Clients::ending).collect();
        let ended = async {
            for clients in clients {
                clients.ended().await;
            }
        };
        let mut ended = std::pin::pin!(ended);
        tokio::select! {
            ended = timeout(self.drain, &mut ended) => {
                if ended.is_err() {
                    tracing::warn!("some answers were not finished in time, and are cut off");
                }
                return;
            }
            () = self.stop.cancelled() => tracing::info!("stopping"),
        }
        endings.iter().for_each(muster_api::server::Ending::stop);
        ended.await;
    }
}

/// Sees to it that another node leads, so that nobody has to notice first that this one is gone. Says whether one does; if
/// none takes the lead, the node stops all the same.
async fn pass_on_lead(node: &Node, limit: Duration) -> bool {
    let transferred = timeout(limit, node.consensus().transfer(None, limit)).await;
    match transferred.unwrap_or(Ok(Transferred::Late)) {
        Ok(Transferred::NotLeader) => true,
        Ok(Transferred::To(leader)) => {
            tracing::info!(%leader, "another node leads");
            true
        }
        Ok(Transferred::Nobody(why)) => {
            tracing::info!(%why, "no other node could lead");
            false
        }
        Ok(Transferred::Late) => {
            tracing::warn!("no other node has become the leader");
            false
        }
        Err(why) => {
            tracing::warn!(why, "the lead is not passed on");
            false
        }
    }
}

/// Waits until this node can answer fresh reads, or for a while.
async fn find_leader(node: &Node) {
    let reading = async { while node.consensus().linearizable().await.is_err() {} };
    if timeout(LEADER_LIMIT, reading).await.is_err() {
        tracing::warn!("no leader is known yet; serving what needs none");
    }
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
