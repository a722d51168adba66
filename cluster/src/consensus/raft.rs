//! A running Raft: writes go in, views come out.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use data_encoding::HEXLOWER;
use openraft::async_runtime::watch::WatchReceiver;
use openraft::errors::{ClientWriteError, ForwardToLeader, LinearizableReadError, RaftError};
use openraft::{Instant, Raft, ReadPolicy, ServerState, SnapshotPolicy};
use prost::Message;

use super::alone::Alone;
use super::error::{ProposeError, ReadError};
use super::in_flight::InFlight;
use super::timing::Timing;
use super::{LogStore, Proposal, StateMachine, TypeConfig};
use crate::clock::Clock;
use crate::ids::NodeId;
use crate::rows::{Answer, ClientSeq, Command, Once, Origin, command, once};
use crate::state::{Fleet, Published, View};
use crate::storage::{LogStats, NodeStorage, RaftLog, StateStats, StateStore, StoreError};

/// The longest command, in bytes as encoded.
pub const MAX_COMMAND: usize = 16 * 1024;

/// How long a write may take.
const WRITE_LIMIT: Duration = Duration::from_secs(10);

/// How long a read may wait for the confirmation that the state is the newest.
const READ_LIMIT: Duration = Duration::from_secs(2);

/// After so many entries a snapshot is built, and so many are kept behind it for those who lag.
const SNAPSHOT_ENTRIES: u64 = 5000;

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

/// The replicated log and state of this node.
pub struct Consensus {
    raft: Raft<TypeConfig, StateMachine<Fleet>>,
    node: NodeId,
    client: [u8; 16],
    writes: InFlight,
    published: Arc<Published>,
    clock: Arc<dyn Clock>,
    timing: Timing,
    log: Arc<RaftLog>,
    state: Arc<StateStore>,
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
        snapshot_policy: SnapshotPolicy::LogsSinceLast(SNAPSHOT_ENTRIES),
        max_in_snapshot_log_to_keep: SNAPSHOT_ENTRIES,
        // The default purges on nearly every entry.
        purge_batch_size: 256,
        replication_lag_threshold: 4 * SNAPSHOT_ENTRIES,
        // openraft's default for both is off.
        enable_pre_vote: Some(true),
        quorum_loss_probe_interval: Some(2 * millis(max)),
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
        let (log, state, snapshots) = (Arc::new(opened.log), Arc::new(opened.state), Arc::new(opened.snapshots));
        let machine = StateMachine::new(Fleet, opened.tables, opened.applied, Arc::clone(&state), snapshots);
        let published = machine.published();
        let log_store = LogStore::new(Arc::clone(&log), Arc::clone(&state));
        let config = Arc::new(raft_config(options.timing)?);
        let raft =
            Raft::new(options.node, config, Alone, log_store, machine).await.map_err(|error| error.to_string())?;
        let mut client = [0; 16];
        client[..8].copy_from_slice(&options.node.0.to_be_bytes());
        client[8..].copy_from_slice(&options.process.to_be_bytes());
        let consensus = Self {
            raft,
            node: options.node,
            client,
            writes: InFlight::default(),
            published,
            clock: options.clock,
            timing: options.timing,
            log,
            state,
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
        let write = self.writes.begin().ok_or(ProposeError::Overloaded)?;
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
        let _write = self.writes.begin().ok_or(ProposeError::Overloaded)?;
        self.write(Origin { once: None::<Once>, ..origin }, body).await
    }

    async fn write(&self, origin: Origin, body: command::Body) -> Result<Answer, ProposeError> {
        let retry_key = origin.once.as_ref().and_then(retry_key);
        let command = Command { time_ms: self.clock.now_ms(), origin: Some(origin), body: Some(body) };
        let command = command.encode_to_vec();
        if command.len() > MAX_COMMAND {
            return Err(ProposeError::TooLarge { bytes: command.len(), limit: MAX_COMMAND });
        }
        let writing = self.raft.client_write(Proposal(command.into()));
        match tokio::time::timeout(WRITE_LIMIT, writing).await {
            Err(_) => Err(ProposeError::Unknown { waited: WRITE_LIMIT, retry_key }),
            Ok(Ok(done)) => Answer::decode(done.data.0).map_err(|error| ProposeError::Answer(error.to_string())),
            Ok(Err(error)) => Err(write_error(error, retry_key)),
        }
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
            let linearizer = self.raft.get_read_linearizer(ReadPolicy::ReadIndex).await.map_err(read_error)?;
            Ok(self.published.reached(linearizer.read_log_id().index()).await)
        };
        tokio::time::timeout(READ_LIMIT, reading).await.unwrap_or(Err(ReadError::NoQuorum))
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
        let mut metrics = self.raft.metrics();
        loop {
            if let Err(fatal) = &metrics.borrow_watched().running_state {
                return fatal.to_string();
            }
            if metrics.changed().await.is_err() {
                return "Raft has ended".to_owned();
            }
        }
    }

    /// Stops Raft and writes everything that is owed. The data directory is let go of when the value is dropped.
    ///
    /// # Errors
    /// When something that was owed could not be written. What was acknowledged is not affected.
    pub async fn stop(&self) -> Result<(), StoreError> {
        if let Err(error) = self.raft.shutdown().await {
            tracing::warn!(%error, "Raft does not stop in an orderly way");
        }
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

fn elsewhere(forward: &ForwardToLeader<TypeConfig>) -> ProposeError {
    forward.leader_id.map_or(ProposeError::NoLeader, ProposeError::NotLeader)
}

fn write_error(error: RaftError<TypeConfig, ClientWriteError<TypeConfig>>, retry_key: Option<String>) -> ProposeError {
    match error {
        RaftError::APIError(ClientWriteError::ForwardToLeader(forward)) => elsewhere(&forward),
        RaftError::APIError(_) => ProposeError::Unknown { waited: Duration::ZERO, retry_key },
        RaftError::Fatal(fatal) => ProposeError::Stopped(fatal.to_string()),
    }
}

fn read_error(error: RaftError<TypeConfig, LinearizableReadError<TypeConfig>>) -> ReadError {
    match error {
        RaftError::APIError(_) => ReadError::NoQuorum,
        RaftError::Fatal(fatal) => ReadError::Stopped(fatal.to_string()),
    }
}
