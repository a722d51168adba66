//! A running Raft: writes go in, views come out.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, PoisonError, Weak};
use std::time::Duration;

use bytes::Bytes;
use data_encoding::HEXLOWER;
use futures_util::future::join_all;
use openraft::async_runtime::watch::WatchReceiver;
use openraft::errors::{LinearizableReadError, RaftError};
use openraft::{ChangeMembers, EmptyNode, Instant, Raft, ReadPolicy, ServerState, SnapshotPolicy};
use prost::Message;
use tokio::sync::{mpsc, oneshot};
use tokio::time::Instant as Moment;
use tokio_util::task::AbortOnDropHandle;
use tonic::service::interceptor::InterceptedService;

use super::alone::Alone;
use super::error::{ProposeError, ReadError};
use super::forward::{Forward, Waiting, reads};
use super::in_flight::InFlight;
use super::network::{MESSAGE_LIMIT, Network};
use super::propose::{BYTES_TOGETHER, Carrier, From, QUEUE, Submission};
use super::service::{MeshService, RaftService};
use super::timing::Timing;
use super::{LogStore, StateMachine, TypeConfig, snapshots};
use crate::clock::Clock;
use crate::ids::NodeId;
use crate::rows::{Answer, ClientSeq, Command, Once, Origin, command, once};
use crate::state::{Fleet, Published, View};
use crate::storage::{
    DirectoryLock, LogStats, NodeStorage, RaftLog, SnapshotFile, SnapshotStore, StateStats, StateStore, StoreError,
};
use crate::transport::{Channels, Check};
use crate::wire::mesh_server::MeshServer;
use crate::wire::raft_server::RaftServer;

/// The longest command, in bytes as encoded.
pub const MAX_COMMAND: usize = 16 * 1024;

/// How long a write that was done elsewhere is waited for here.
const APPLY_LIMIT: Duration = Duration::from_secs(2);

/// How long writing a snapshot may take.
const SNAPSHOT_LIMIT: Duration = Duration::from_secs(60);

/// How long a write may take.
pub(super) const WRITE_LIMIT: Duration = Duration::from_secs(10);

/// How long a write waits while too many others of this node are under way.
const ROOM_LIMIT: Duration = Duration::from_secs(2);

/// How long a read may wait for the confirmation that the state is the newest.
const READ_LIMIT: Duration = Duration::from_secs(2);

/// How often to look whether Raft still runs.
const LOOK_PERIOD: Duration = Duration::from_millis(250);

/// How long to wait before asking the leader again.
const RETRY_PAUSE: Duration = Duration::from_millis(50);

/// What the leader's stamp adds to a command at most, in bytes.
const STAMP: usize = 11;

/// Whether this node leads, as far as it knows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Role {
    /// It leads in this term.
    Leader {
        /// The term.
        term: u64,
    },
    /// It votes, and follows or stands for election.
    Voter,
    /// It holds the state and does not vote.
    Standby,
    /// It has stopped.
    Stopped,
}

/// Where this node stands.
#[derive(Clone, Debug)]
pub struct Status {
    /// This node.
    pub node: NodeId,
    /// What it does.
    pub role: Role,
    /// The term.
    pub term: u64,
    /// The leader, as far as this node knows.
    pub leader: Option<NodeId>,
    /// Who votes. More than one set while that is changing.
    pub voters: Vec<BTreeSet<NodeId>>,
    /// Who holds the state without voting.
    pub standbys: BTreeSet<NodeId>,
    /// The last entry in the log.
    pub last_log: u64,
    /// The last entry known to be committed.
    pub committed: u64,
    /// The last entry applied.
    pub applied: u64,
    /// The entry up to which there is a snapshot.
    pub snapshot: u64,
    /// The entry up to which the log has been forgotten.
    pub purged: u64,
    /// How long ago a quorum last confirmed this leader. On the leader only.
    pub quorum_acked: Option<Duration>,
    /// Why the node has stopped.
    pub stopped: Option<String>,
}

/// The state machine of a fleet.
pub(super) type Machine = StateMachine<Fleet>;

/// The replicated log and state of this node.
pub struct Consensus {
    raft: Raft<TypeConfig, Machine>,
    node: NodeId,
    client: [u8; 16],
    writes: InFlight,
    published: Arc<Published>,
    timing: Timing,
    log: Arc<RaftLog>,
    state: Arc<StateStore>,
    snapshots: Arc<SnapshotStore>,
    lock: Weak<DirectoryLock>,
    /// How to ask the leader; a node that founds a fleet has nobody to ask.
    pub(super) forward: Option<Arc<Forward>>,
    to_log: mpsc::Sender<Submission>,
    /// Carries what is sent there, and has snapshots built; they end with this value.
    tasks: [AbortOnDropHandle<()>; 2],
    to_reads: mpsc::Sender<Waiting>,
    reads: Mutex<Option<mpsc::Receiver<Waiting>>>,
}

/// What a running Raft needs.
pub struct Options {
    /// This node's number.
    pub node: NodeId,
    /// A number that no other process of this node has: with the node's it names the process in what is remembered of its
    /// writes.
    pub process: u64,
    /// How patient it is.
    pub timing: Timing,
    /// The time of day.
    pub clock: Arc<dyn Clock>,
    /// The way to the other nodes; none while a fleet is being founded.
    pub channels: Option<Arc<Channels>>,
}

fn raft_config(timing: Timing) -> Result<openraft::Config, String> {
    let millis = |duration: Duration| u64::try_from(duration.as_millis()).unwrap_or(u64::MAX);
    let (min, max) = timing.election();
    let config = openraft::Config {
        cluster_name: "muster".to_owned(),
        heartbeat_interval: millis(timing.heartbeat()),
        election_timeout_min: millis(min),
        election_timeout_max: millis(max),
        install_snapshot_timeout: 60_000,
        max_payload_entries: 64,
        // See `snapshots`.
        snapshot_policy: SnapshotPolicy::Never,
        max_in_snapshot_log_to_keep: snapshots::ENTRIES,
        // The default purges on nearly every entry.
        purge_batch_size: 256,
        replication_lag_threshold: 4 * snapshots::ENTRIES,
        // openraft's default for both is off.
        enable_pre_vote: Some(true),
        quorum_loss_probe_interval: Some(2 * millis(max)),
        // openraft's default is on. A leader sends entries before they are durable here (INV-19): when it starts again it may
        // have forgotten some, and in the same term it would give their places to others that nobody could tell from them.
        enable_leader_restore: Some(false),
        ..openraft::Config::default()
    };
    config.validate().map_err(|error| error.to_string())
}

impl Consensus {
    /// Starts Raft over an open data directory. Its tasks belong to the runtime that this is called on.
    ///
    /// # Errors
    /// When Raft does not start; the reason.
    pub async fn start(opened: NodeStorage, options: Options) -> Result<Self, String> {
        let lock = Arc::downgrade(&opened.lock);
        let (log, state, snapshots) = (Arc::new(opened.log), Arc::new(opened.state), Arc::new(opened.snapshots));
        let machine =
            StateMachine::new(Fleet, opened.tables, opened.applied, Arc::clone(&state), Arc::clone(&snapshots));
        let published = machine.published();
        let log_store = LogStore::new(Arc::clone(&log), Arc::clone(&state));
        let config = Arc::new(raft_config(options.timing)?);
        let raft = match &options.channels {
            Some(channels) => {
                let network = Network { channels: Arc::clone(channels) };
                Raft::new(options.node, config, network, log_store, machine).await
            }
            None => Raft::new(options.node, config, Alone, log_store, machine).await,
        };
        let raft = raft.map_err(|error| error.to_string())?;
        let (to_reads, reads) = reads();
        let forward = options.channels.map(|channels| Arc::new(Forward { channels }));
        let (to_log, submissions) = mpsc::channel(QUEUE);
        let carrier = Carrier::new(raft.clone(), options.node, options.clock, forward.clone());
        let building = snapshots::build(raft.clone(), Arc::clone(&published));
        let tasks = [tokio::spawn(carrier.carry(submissions)), tokio::spawn(building)].map(AbortOnDropHandle::new);
        let mut client = [0; 16];
        client[..8].copy_from_slice(&options.node.0.to_be_bytes());
        client[8..].copy_from_slice(&options.process.to_be_bytes());
        let consensus = Self {
            raft,
            node: options.node,
            client,
            writes: InFlight::default(),
            published,
            timing: options.timing,
            log,
            state,
            snapshots,
            lock,
            forward,
            to_log,
            tasks,
            to_reads,
            reads: Mutex::new(Some(reads)),
        };
        consensus.stand_if_alone().await;
        Ok(consensus)
    }

    /// The only voter need not wait for a leader that could still be alive.
    async fn stand_if_alone(&self) {
        let status = self.status();
        if status.voters == [BTreeSet::from([self.node])]
            && let Err(error) = self.raft.trigger().elect(false).await
        {
            tracing::warn!(%error, "the only voter does not stand for election");
        }
    }

    /// Makes this node the first of a fleet: the only voter. On a log without a past only.
    ///
    /// # Errors
    /// When the log has a past, or Raft has stopped.
    pub async fn initialize(&self) -> Result<(), String> {
        self.raft.initialize(BTreeSet::from([self.node])).await.map_err(|error| error.to_string())
    }

    /// Waits until everything has been applied that this node knew to be committed before it was restarted. Until then its
    /// state is older than what it may have shown before.
    ///
    /// # Errors
    /// When that takes longer than the limit.
    pub async fn recovered(&self, limit: Duration) -> Result<(), String> {
        self.raft.wait_for_recovery(Some(limit)).await.map(|_| ()).map_err(|error| error.to_string())
    }

    /// Where the state can be seen and followed.
    #[must_use]
    pub fn published(&self) -> &Arc<Published> {
        &self.published
    }

    /// Writes, at most once: a write that names no identity of its own gets the next one of this process, and is
    /// recognised by it if it comes again.
    ///
    /// # Errors
    /// See [`ProposeError`].
    pub async fn propose(&self, origin: Origin, body: command::Body) -> Result<Answer, ProposeError> {
        let write = self.writes.begin(ROOM_LIMIT).await.ok_or(ProposeError::Overloaded)?;
        let mut origin = origin;
        let mut once = origin.once.take().unwrap_or_default();
        once.who.get_or_insert_with(|| {
            once::Who::Client(ClientSeq { client: Bytes::copy_from_slice(&self.client), seq: write.number })
        });
        origin.once = Some(once);
        self.write(origin, body).await
    }

    /// Like [`Self::propose`], for what may be repeated without harm and needs no memory.
    ///
    /// # Errors
    /// See [`ProposeError`].
    pub async fn propose_repeatable(&self, origin: Origin, body: command::Body) -> Result<Answer, ProposeError> {
        let _write = self.writes.begin(ROOM_LIMIT).await.ok_or(ProposeError::Overloaded)?;
        self.write(Origin { once: None::<Once>, ..origin }, body).await
    }

    /// Writes through whoever leads, and tries again while that is safe: a write that is remembered, until it has an answer;
    /// any other only as long as it has certainly not been done.
    async fn write(&self, origin: Origin, body: command::Body) -> Result<Answer, ProposeError> {
        let once = origin.once.clone();
        let retry_key = once.as_ref().and_then(retry_key);
        let command = Command { time_ms: 0, origin: Some(origin), body: Some(body) };
        let bytes = command.encoded_len() + STAMP;
        if bytes > MAX_COMMAND {
            return Err(ProposeError::TooLarge { bytes, limit: MAX_COMMAND });
        }
        let deadline = Moment::now() + WRITE_LIMIT;
        let mut maybe_done = false;
        loop {
            let left = deadline.saturating_duration_since(Moment::now());
            let error = match self.attempt(&command, left).await {
                Ok(answer) => {
                    // Whoever has its answer finds it done on the node that it asked. One that lags behind the others by
                    // more than this is not waited for: the write is done.
                    let reached = self.published.reached(answer.index);
                    let _ = tokio::time::timeout(APPLY_LIMIT.min(left), reached).await;
                    return Ok(answer);
                }
                Err(error) => error,
            };
            let again = match &error {
                ProposeError::NoLeader | ProposeError::NotLeader(_) => true,
                ProposeError::Unknown { .. } => {
                    maybe_done = true;
                    once.is_some()
                }
                // Raft may have stopped with the write already in its log.
                ProposeError::Stopped(_) | ProposeError::Answer(_) => {
                    maybe_done = true;
                    false
                }
                _ => false,
            };
            if !again || Moment::now() + RETRY_PAUSE >= deadline {
                return Err(if maybe_done { ProposeError::Unknown { waited: WRITE_LIMIT, retry_key } } else { error });
            }
            tokio::time::sleep(RETRY_PAUSE).await;
        }
    }

    async fn attempt(&self, command: &Command, limit: Duration) -> Result<Answer, ProposeError> {
        let carried = self.carry(command.clone(), From::Here);
        let answer = tokio::time::timeout(limit, carried).await;
        let answer = answer.unwrap_or(Err(ProposeError::Unknown { waited: limit, retry_key: None }))?;
        Answer::decode(answer).map_err(|error| ProposeError::Answer(error.to_string()))
    }

    /// Writes of other nodes, if this one leads; for each there is an outcome.
    pub(super) async fn propose_for_others(&self, commands: Vec<Command>) -> Vec<Result<Bytes, ProposeError>> {
        // Writes of this node that wait for another leader must not hold up the answer that it is not this one.
        let leader = self.raft.server_metrics().borrow_watched().current_leader;
        if leader != Some(self.node) {
            let error = leader.map_or(ProposeError::NoLeader, ProposeError::NotLeader);
            return vec![Err(error); commands.len()];
        }
        join_all(commands.into_iter().map(|command| self.carry(command, From::AnotherNode))).await
    }

    async fn carry(&self, command: Command, from: From) -> Result<Bytes, ProposeError> {
        let (answer, answered) = oneshot::channel();
        let ended = |_| ProposeError::Stopped("it is stopping".to_owned());
        self.to_log.send(Submission { command, from, answer }).await.map_err(ended)?;
        let given_up = ProposeError::Unknown { waited: WRITE_LIMIT, retry_key: None };
        answered.await.unwrap_or(Err(given_up))
    }

    /// The state as it is on this node.
    #[must_use]
    pub fn local(&self) -> View {
        self.published.view()
    }

    /// The newest state: everything that was acknowledged anywhere before this call is in it.
    ///
    /// # Errors
    /// When no quorum confirms it within two seconds.
    pub async fn linearizable(&self) -> Result<View, ReadError> {
        let reading = async {
            loop {
                let (to_reader, index) = oneshot::channel();
                let ended = |()| ReadError::Stopped("it is stopping".to_owned());
                self.to_reads.send(to_reader).await.map_err(|_| ended(()))?;
                match index.await.map_err(|_| ended(()))? {
                    Ok(index) => return Ok(self.published.reached(index).await),
                    Err(ReadError::NoQuorum | ReadError::NotLeader(_)) => tokio::time::sleep(RETRY_PAUSE).await,
                    Err(error) => return Err(error),
                }
            }
        };
        tokio::time::timeout(READ_LIMIT, reading).await.unwrap_or(Err(ReadError::NoQuorum))
    }

    /// The index that a linearizable read must wait for, if this node leads.
    pub(super) async fn read_index_here(&self) -> Result<u64, ReadError> {
        let reading = self.raft.get_read_linearizer(ReadPolicy::ReadIndex);
        match tokio::time::timeout(READ_LIMIT, reading).await {
            Ok(Ok(linearizer)) => Ok(linearizer.read_log_id().index()),
            Ok(Err(error)) => Err(read_error(error)),
            Err(_) => Err(ReadError::NoQuorum),
        }
    }

    /// The reads that wait; whoever takes them answers them (see `forward`).
    pub(super) fn take_reads(&self) -> Option<mpsc::Receiver<Waiting>> {
        self.reads.lock().unwrap_or_else(PoisonError::into_inner).take()
    }

    /// Takes part in Raft and answers what other nodes ask, on the mesh listener.
    pub(crate) fn services(self: &Arc<Self>, check: &Check) -> tonic::service::RoutesBuilder {
        let raft = RaftService { raft: self.raft.clone(), snapshots: Arc::clone(&self.snapshots) };
        let raft = RaftServer::new(raft).max_decoding_message_size(MESSAGE_LIMIT);
        let mesh = MeshServer::new(MeshService { consensus: Arc::clone(self) });
        let mesh = mesh.max_decoding_message_size(2 * BYTES_TOGETHER);
        let mut routes = tonic::service::Routes::builder();
        routes.add_service(InterceptedService::new(raft, check.clone()));
        routes.add_service(InterceptedService::new(mesh, check.clone()));
        routes
    }

    /// Has these nodes hold the log and the state without voting.
    ///
    /// # Errors
    /// When this node does not lead, or another change is under way.
    pub async fn add_standbys(&self, nodes: BTreeSet<NodeId>) -> Result<(), String> {
        let nodes = nodes.into_iter().map(|node| (node, EmptyNode {})).collect();
        let changed = self.raft.change_membership(ChangeMembers::AddNodes(nodes), true).await;
        changed.map(|_| ()).map_err(|error| error.to_string())
    }

    /// Has these nodes vote, and no others; those that did stay as standbys.
    ///
    /// # Errors
    /// When this node does not lead, or another change is under way.
    pub async fn set_voters(&self, voters: BTreeSet<NodeId>) -> Result<(), String> {
        let changed = self.raft.change_membership(ChangeMembers::ReplaceAllVoters(voters), true).await;
        changed.map(|_| ()).map_err(|error| error.to_string())
    }

    /// Has these standbys no longer hold the log.
    ///
    /// # Errors
    /// When this node does not lead, another change is under way, or one of them votes.
    pub async fn remove_standbys(&self, nodes: BTreeSet<NodeId>) -> Result<(), String> {
        let changed = self.raft.change_membership(ChangeMembers::RemoveNodes(nodes), true).await;
        changed.map(|_| ()).map_err(|error| error.to_string())
    }

    /// How long ago each other node answered last; none if it never has. On the leader only.
    #[must_use]
    pub fn silence(&self) -> BTreeMap<NodeId, Option<Duration>> {
        let metrics = self.raft.metrics();
        let metrics = metrics.borrow_watched();
        let heard = metrics.heartbeat.iter().flatten();
        heard.map(|(node, at)| (*node, at.as_ref().map(|at| at.elapsed()))).collect()
    }

    /// How far the log of each other node has come. On the leader only.
    #[must_use]
    pub fn matched(&self) -> BTreeMap<NodeId, u64> {
        let metrics = self.raft.metrics();
        let metrics = metrics.borrow_watched();
        let replication = metrics.replication.iter().flatten();
        replication.map(|(node, id)| (*node, id.as_ref().map_or(0, |id| id.index))).collect()
    }

    /// A snapshot that has everything which this node has applied until now.
    ///
    /// # Errors
    /// When Raft has stopped, or it takes longer than a minute.
    pub async fn snapshot(&self) -> Result<Arc<SnapshotFile>, String> {
        let index = self.local().index();
        let fresh = || self.snapshots.latest().filter(|file| file.applied.index() >= index);
        let deadline = Moment::now() + SNAPSHOT_LIMIT;
        loop {
            if let Some(file) = fresh() {
                return Ok(file);
            }
            if Moment::now() >= deadline {
                return Err(format!("no snapshot within {SNAPSHOT_LIMIT:?}"));
            }
            // Another one may be under way, which is older.
            self.raft.trigger().snapshot().await.map_err(|error| error.to_string())?;
            tokio::time::sleep(RETRY_PAUSE).await;
        }
    }

    /// Asks this node to take the lead. This one takes no more writes.
    pub(super) async fn trigger_transfer(&self, to: NodeId) -> Result<(), String> {
        self.raft.trigger().transfer_leader(to).await.map_err(|error| error.to_string())
    }

    /// Who votes; while that changes, before and after the change.
    #[must_use]
    pub fn voters(&self) -> BTreeSet<NodeId> {
        self.raft.metrics().borrow_watched().membership_config.membership().voter_ids().collect()
    }

    /// Has this node never stand for election by itself.
    #[cfg(test)]
    pub(crate) fn never_stands(&self) {
        self.raft.runtime_config().elect(false);
    }

    /// Where this node stands.
    #[must_use]
    pub fn status(&self) -> Status {
        let metrics = self.raft.metrics().borrow_watched().clone();
        let index = |id: &Option<openraft::alias::LogIdOf<TypeConfig>>| id.as_ref().map_or(0, |id| id.index);
        let membership = metrics.membership_config.membership();
        let voters: Vec<_> = membership.get_joint_config().clone();
        let all: BTreeSet<_> = voters.iter().flatten().copied().collect();
        let stopped = metrics.running_state.as_ref().err().map(ToString::to_string);
        Status {
            node: self.node,
            role: role(metrics.state, metrics.current_term, stopped.is_some()),
            term: metrics.current_term,
            leader: metrics.current_leader,
            standbys: membership.nodes().map(|(node, _)| *node).filter(|node| !all.contains(node)).collect(),
            voters,
            last_log: metrics.last_log_index.unwrap_or(0),
            committed: index(&metrics.cluster_committed),
            applied: index(&metrics.last_applied),
            snapshot: index(&metrics.snapshot),
            purged: index(&metrics.purged),
            quorum_acked: metrics.last_quorum_acked.map(|at| at.elapsed()),
            stopped,
        }
    }

    /// How patient this node is.
    #[must_use]
    pub fn timing(&self) -> Timing {
        self.timing
    }

    /// What the log's writer has done.
    #[must_use]
    pub fn log_stats(&self) -> LogStats {
        self.log.stats()
    }

    /// What the writer of the state's durable copy has done.
    #[must_use]
    pub fn state_stats(&self) -> StateStats {
        self.state.stats()
    }

    /// Waits until this node's role is another than this one, and returns it.
    pub async fn role_other_than(&self, before: Option<Role>) -> Role {
        let mut metrics = self.raft.server_metrics();
        loop {
            let (state, term) = {
                let seen = metrics.borrow_watched();
                (seen.state, seen.vote.leader_id.term)
            };
            let now = role(state, term, false);
            if before != Some(now) {
                return now;
            }
            if metrics.changed().await.is_err() {
                return Role::Stopped;
            }
        }
    }

    /// Waits until Raft has stopped by itself, and returns why.
    pub async fn failed(&self) -> String {
        let metrics = self.raft.metrics();
        // These change with the role, those above with every entry: waiting for them would wake this task for each.
        let mut rare = self.raft.server_metrics();
        let mut ended = false;
        loop {
            if let Err(fatal) = &metrics.borrow_watched().running_state {
                return fatal.to_string();
            }
            if ended {
                return "Raft has ended".to_owned();
            }
            ended = matches!(tokio::time::timeout(LOOK_PERIOD, rare.changed()).await, Ok(Err(_)));
        }
    }

    /// Is gone once nobody holds the data directory any more.
    #[must_use]
    pub fn lock(&self) -> Weak<DirectoryLock> {
        Weak::clone(&self.lock)
    }

    /// Stops Raft and writes everything that is owed. The data directory is let go of when the value is dropped.
    ///
    /// # Errors
    /// When something that was owed could not be written. What was acknowledged is not affected.
    pub async fn stop(&self) -> Result<(), StoreError> {
        if let Err(error) = self.raft.shutdown().await {
            tracing::warn!(%error, "Raft does not stop in an orderly way");
        }
        self.tasks.iter().for_each(|task| task.abort());
        self.log.close().await.and(self.state.close().await)
    }
}

const RETRY_PREFIX: &str = "muster-";

/// The identity of a write of a process, as a text that a caller can repeat it with. A caller's own key it knows itself.
#[must_use]
pub fn retry_key(once: &Once) -> Option<String> {
    match once.who.as_ref()? {
        once::Who::Client(client) => Some(format!("{RETRY_PREFIX}{}-{}", HEXLOWER.encode(&client.client), client.seq)),
        once::Who::Key(_) => None,
    }
}

/// The write that such a text names, or `None` if it is a key of the caller's own.
#[must_use]
pub fn parse_retry_key(text: &str) -> Option<ClientSeq> {
    let (client, seq) = text.strip_prefix(RETRY_PREFIX)?.split_once('-')?;
    let client = HEXLOWER.decode(client.as_bytes()).ok().filter(|client| client.len() == 16)?;
    Some(ClientSeq { client: client.into(), seq: seq.parse().ok()? })
}

fn role(state: ServerState, term: u64, stopped: bool) -> Role {
    match state {
        _ if stopped => Role::Stopped,
        ServerState::Leader => Role::Leader { term },
        ServerState::Follower | ServerState::Candidate => Role::Voter,
        ServerState::Learner => Role::Standby,
        ServerState::Shutdown => Role::Stopped,
    }
}

fn read_error(error: RaftError<TypeConfig, LinearizableReadError<TypeConfig>>) -> ReadError {
    match error {
        RaftError::APIError(LinearizableReadError::ForwardToLeader(forward)) => {
            forward.leader_id.map_or(ReadError::NoQuorum, ReadError::NotLeader)
        }
        RaftError::APIError(LinearizableReadError::QuorumNotEnough(_)) => ReadError::NoQuorum,
        RaftError::Fatal(fatal) => ReadError::Stopped(fatal.to_string()),
    }
}
