//! A Raft of one node over the real storage, stopped and started again: what it answered is there, and a state that was
//! lost is rebuilt from snapshot and log to the very same.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use openraft::{Config, Raft, SnapshotPolicy};

use super::alone::Alone;
use super::{LogStore, Proposal, StateMachine, TypeConfig};
use crate::ids::NodeId;
use crate::state::{ApplyError, Machine, TableId, Tables};
use crate::storage::testing::options;
use crate::storage::{LogId, NodeStorage, OpenError};

const TABLE: TableId = TableId(1);
const NODE: NodeId = NodeId(1);
const PATIENCE: Duration = Duration::from_secs(20);

/// A command is `key=value`; the answer is what stood there before.
struct Assign;

impl Machine for Assign {
    fn apply(&mut self, tables: &mut Tables, at: LogId, command: &[u8]) -> Result<Bytes, ApplyError> {
        let text = String::from_utf8_lossy(command).into_owned();
        let (key, value) =
            text.split_once('=').ok_or_else(|| ApplyError { index: at.index, why: "not an assignment".to_owned() })?;
        let before = tables.get(TABLE, key.as_bytes()).map(|record| record.value.clone()).unwrap_or_default();
        tables.put(TABLE, key.to_owned(), value.to_owned(), at.index);
        Ok(before)
    }
}

/// Opens the directory, once the tasks of the Raft that was stopped before have let go of it.
fn open(directory: &Path) -> NodeStorage {
    let deadline = std::time::Instant::now() + PATIENCE;
    loop {
        match NodeStorage::open(directory, &options()) {
            Err(OpenError::InUse(_)) if std::time::Instant::now() < deadline => {
                std::thread::sleep(Duration::from_millis(2));
            }
            opened => return opened.expect("opens"),
        }
    }
}

struct Node {
    raft: Raft<TypeConfig, StateMachine<Assign>>,
    log: Arc<crate::storage::RaftLog>,
    state: Arc<crate::storage::StateStore>,
}

impl Node {
    async fn start(directory: &Path) -> Self {
        let opened = open(directory);
        let (log, state, snapshots) = (Arc::new(opened.log), Arc::new(opened.state), Arc::new(opened.snapshots));
        let config = Config {
            heartbeat_interval: 50,
            election_timeout_min: 100,
            election_timeout_max: 200,
            // Small, so that snapshots and purges happen all the time.
            snapshot_policy: SnapshotPolicy::LogsSinceLast(40),
            max_in_snapshot_log_to_keep: 10,
            purge_batch_size: 5,
            ..Config::default()
        };
        let machine = StateMachine::new(Assign, opened.tables, opened.applied, Arc::clone(&state), snapshots);
        let log_store = LogStore::new(Arc::clone(&log), Arc::clone(&state));
        let raft = Raft::new(NODE, Arc::new(config.validate().expect("valid")), Alone, log_store, machine)
            .await
            .expect("starts");
        if !raft.is_initialized().await.expect("answers") {
            raft.initialize(BTreeSet::from([NODE])).await.expect("initializes");
        }
        raft.wait(Some(PATIENCE)).current_leader(NODE, "the only node leads").await.expect("leads");
        raft.wait_for_recovery(Some(PATIENCE)).await.expect("has applied what it knew");
        Self { raft, log, state }
    }

    async fn assign(&self, key: &str, value: &str) -> String {
        let command = Proposal(format!("{key}={value}").into());
        let answer = self.raft.client_write(command).await.expect("is committed");
        String::from_utf8_lossy(&answer.data.0).into_owned()
    }

    async fn stop(self) {
        // An answer is given before the change is handed to the disk, where the log has it already. Here the copy is looked at.
        let last = self.log.position().last.map(|id| id.index);
        self.raft.wait(Some(PATIENCE)).applied_index_at_least(last, "everything is applied").await.expect("applies");
        self.raft.shutdown().await.expect("stops");
        self.state.close().await.expect("closes");
        self.log.close().await.expect("closes");
    }
}

/// What lies on the disk of a stopped node.
fn content(directory: &Path) -> (NodeStorage, BTreeMap<String, String>) {
    let opened = open(directory);
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    let content = opened.tables.range(TABLE, b"").map(|(key, record)| (text(key), text(&record.value))).collect();
    (opened, content)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn answered_writes_are_there_after_restarts_and_a_lost_state_is_rebuilt_to_the_same() {
    let directory = tempfile::tempdir().expect("a directory");
    let mut expected = BTreeMap::new();
    for round in 0..6 {
        let node = Node::start(directory.path()).await;
        for number in 0..75 {
            let (key, value) = (format!("key {}", number % 20), format!("round {round}, {number}"));
            let before = expected.insert(key.clone(), value.clone()).unwrap_or_default();
            assert_eq!(node.assign(&key, &value).await, before, "the state went on from where it was");
        }
        let wait = node.raft.wait(Some(PATIENCE));
        wait.metrics(|metrics| metrics.purged.is_some(), "the log is purged").await.expect("purges behind a snapshot");
        node.stop().await;
        let (opened, found) = content(directory.path());
        assert_eq!(found, expected, "round {round}");
        let before = opened.applied.clone();
        drop(opened);
        if round % 2 == 1 {
            std::fs::remove_dir_all(directory.path().join("state")).expect("the state goes");
            let node = Node::start(directory.path()).await;
            node.stop().await;
            let (opened, found) = content(directory.path());
            assert_eq!(found, expected, "rebuilt after round {round}");
            assert_eq!(opened.applied.fingerprint, before.fingerprint, "the same history, too");
        }
    }
}
