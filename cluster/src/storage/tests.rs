//! The storage of a node over a database that fails or stalls on purpose.

use std::fs;
use std::ops::ControlFlow;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures_util::FutureExt;
use tempfile::TempDir;
use tokio::sync::oneshot;
use tokio::task::unconstrained;

use super::node::databases;
use super::sled_store::SledStore;
use super::testing::{Fault, options};
use super::{Applied, Batch, Database, Entry, LogId, NodeStorage, Payload, Store, StoreError, Tree, Vote};
use crate::ids::NodeId;
use crate::state::{TableId, Tables};

const PATIENCE: Duration = Duration::from_secs(30);

fn open(directory: &TempDir, fault: &Arc<Fault>) -> NodeStorage {
    NodeStorage::open_with(directory.path(), &options(), &fault.opener()).expect("opens")
}

fn id(index: u64) -> LogId {
    LogId { term: 1, node: NodeId(1), index }
}

fn entry(index: u64) -> Entry {
    Entry { log_id: id(index), payload: Payload::Command(Bytes::from(vec![1; 50])) }
}

async fn append(storage: &NodeStorage, index: u64) -> Result<(), StoreError> {
    let (told, done) = oneshot::channel();
    storage.log.append(vec![entry(index)], Box::new(move |outcome| drop(told.send(outcome)))).await?;
    done.await.expect("every append is answered")
}

async fn in_time<T>(what: impl Future<Output = T>) -> T {
    tokio::time::timeout(PATIENCE, what).await.expect("nobody waits for ever")
}

#[tokio::test]
async fn after_a_failure_every_request_is_answered_and_closing_ends() {
    let directory = tempfile::tempdir().expect("a directory");
    let fault = Fault::never();
    let storage = open(&directory, &fault);
    append(&storage, 1).await.expect("appends");
    fault.fail_at(1);
    assert!(matches!(in_time(append(&storage, 2)).await, Err(StoreError::Io { .. })));
    assert!(matches!(in_time(append(&storage, 3)).await, Err(StoreError::Failed(_))));
    let vote = Vote { term: 2, node: NodeId(1), committed: false };
    assert!(matches!(in_time(storage.log.save_vote(vote)).await, Err(StoreError::Failed(_))));
    assert_eq!(storage.log.vote(), None, "a vote that was not saved is not reported");
    assert!(in_time(storage.log.purge(id(1))).await.is_err());
    assert!(in_time(storage.close()).await.is_err());
    // And again: the directory was let go.
    let storage = open(&directory, &Fault::never());
    assert_eq!(storage.log.position().last, Some(id(1)));
}

#[tokio::test]
async fn a_failure_while_closing_is_told() {
    let directory = tempfile::tempdir().expect("a directory");
    let fault = Fault::never();
    let storage = open(&directory, &fault);
    let mut tables = Tables::default();
    tables.put(TableId(1), "key", "value", 1);
    let applied = Applied { log_id: Some(id(1)), fingerprint: tables.fingerprint(), ..Applied::default() };
    storage.state.record(tables.take_changes(), applied).await.expect("is taken");
    fault.fail_at(1);
    assert!(in_time(storage.close()).await.is_err());
}

/// A caller that gives up leaves either everything or nothing behind.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn callers_that_give_up_leave_no_hole() {
    let directory = tempfile::tempdir().expect("a directory");
    let fault = Fault::never();
    let storage = open(&directory, &fault);
    let stalled = fault.stall();
    // Without the runtime's budget: it would make callers wait long before the queue is full.
    let next = || storage.log.position().last.map_or(1, |id| id.index + 1);
    let give_up =
        |index| unconstrained(storage.log.append(vec![entry(index)], Box::new(|_| {}))).now_or_never().is_none();
    let truncate = |keep| unconstrained(storage.log.truncate_after(Some(id(keep)))).now_or_never();
    for _ in 0..200 {
        assert!(!give_up(next()), "there is room");
    }
    assert!(truncate(100).is_none(), "the request was made, and nobody waits for the answer");
    assert_eq!(next(), 101);
    let given_up = (0..3000).filter(|_| give_up(next())).count();
    assert!(given_up > 1000 && given_up < 3000, "{given_up} callers gave up: the queue is bounded");
    let full = next();
    assert!(truncate(50).is_none());
    assert_eq!(next(), full, "a request that was not made changes nothing");
    drop(stalled);
    in_time(storage.log.flush()).await.expect("flushes");
    let position = storage.log.position();
    let before = storage.log.read(0, u64::MAX).expect("reads");
    in_time(storage.close()).await.expect("closes");
    let storage = open(&directory, &Fault::never());
    assert_eq!(storage.log.position(), position);
    assert_eq!(storage.log.read(0, u64::MAX).expect("reads"), before);
}

/// Raft may apply what is durable elsewhere; a loss of power then leaves a state ahead of the log.
#[tokio::test]
async fn a_state_ahead_of_the_log_is_covered_by_a_snapshot() {
    let directory = tempfile::tempdir().expect("a directory");
    let storage = open(&directory, &Fault::never());
    append(&storage, 1).await.expect("appends");
    let mut tables = Tables::default();
    tables.put(TableId(1), "key", "value", 5);
    let applied = Applied { log_id: Some(id(5)), fingerprint: tables.fingerprint(), ..Applied::default() };
    storage.state.record(tables.take_changes(), applied).await.expect("is taken");
    storage.close().await.expect("closes");
    let storage = open(&directory, &Fault::never());
    assert_eq!(storage.log.position().last, Some(id(1)));
    assert_eq!(storage.snapshots.latest().expect("is there").log_id(), Some(id(5)));
}

/// sled may come up with older pages after damage in the middle of its file.
#[tokio::test]
async fn a_state_whose_records_do_not_fit_its_position_is_set_aside() {
    let directory = tempfile::tempdir().expect("a directory");
    let storage = open(&directory, &Fault::never());
    let mut tables = Tables::default();
    tables.put(TableId(1), "key", "value", 1);
    let mut fingerprint = tables.fingerprint();
    fingerprint.content ^= 1;
    let applied = Applied { log_id: Some(id(1)), fingerprint, ..Applied::default() };
    storage.state.record(tables.take_changes(), applied).await.expect("is taken");
    storage.close().await.expect("closes");
    let storage = open(&directory, &Fault::never());
    assert!(storage.report.state_set_aside.is_some());
    assert_eq!(storage.applied, Applied::default());
}

/// What is recorded right behind a replacement belongs on top of it, at a position of its own.
#[tokio::test]
async fn a_replacement_and_what_follows_it_arrive_together() {
    let directory = tempfile::tempdir().expect("a directory");
    let fault = Fault::never();
    let storage = open(&directory, &fault);
    let mut tables = Tables::default();
    tables.put(TableId(1), "old", "value", 1);
    tables.take_changes();
    let replaced = Applied { log_id: Some(id(10)), fingerprint: tables.fingerprint(), ..Applied::default() };
    let copy = tables.clone();
    tables.put(TableId(1), "new", "value", 11);
    let after = Applied { log_id: Some(id(11)), fingerprint: tables.fingerprint(), ..Applied::default() };
    let changes = tables.take_changes();
    let (one, two) = tokio::join!(storage.state.replace(copy, replaced), storage.state.record(changes, after.clone()));
    one.and(two).expect("both are taken");
    storage.close().await.expect("closes");
    let storage = open(&directory, &Fault::never());
    assert_eq!(storage.report.state_set_aside, None);
    assert_eq!(storage.applied, after);
    assert_eq!(storage.tables.len(), 2);
}

#[tokio::test]
async fn what_comes_and_goes_between_two_checkpoints_never_reaches_the_disk() {
    const TABLE: TableId = TableId(1);
    let directory = tempfile::tempdir().expect("a directory");
    let storage = open(&directory, &Fault::never());
    let mut tables = Tables::default();
    let record = async |tables: &mut Tables, index: u64| {
        let applied = Applied { log_id: Some(id(index)), fingerprint: tables.fingerprint(), ..Applied::default() };
        storage.state.record(tables.take_changes(), applied).await.expect("records");
    };
    tables.put(TABLE, "stays", "1", 1);
    tables.put(TABLE, "goes", "1", 1);
    record(&mut tables, 1).await;
    storage.state.sync().await.expect("syncs");
    assert_eq!(storage.state.stats().records, 2);
    tables.put(TABLE, "came", "2", 2);
    tables.put(TABLE, "came", "3", 2);
    tables.remove(TABLE, "goes");
    record(&mut tables, 2).await;
    tables.remove(TABLE, "came");
    // It is on the disk, whatever became of it since: it has to be removed there.
    tables.put(TABLE, "goes", "4", 3);
    tables.remove(TABLE, "goes");
    record(&mut tables, 3).await;
    storage.state.sync().await.expect("syncs");
    assert_eq!(storage.state.stats().records, 3, "one more: the removal");
    append(&storage, 1).await.expect("appends");
    storage.close().await.expect("closes");
    let storage = open(&directory, &Fault::never());
    assert_eq!(storage.report.state_set_aside, None);
    assert_eq!(storage.tables.iter().map(|(key, _)| key.key.clone()).collect::<Vec<_>>(), ["stays"]);
}

#[tokio::test]
async fn a_purge_far_beyond_the_end_removes_only_what_is_there() {
    let directory = tempfile::tempdir().expect("a directory");
    let fault = Fault::never();
    let storage = open(&directory, &fault);
    for index in 1..=30 {
        append(&storage, index).await.expect("appends");
    }
    let before = fault.done();
    storage.log.purge(id(5_000_000)).await.expect("purges");
    storage.log.close().await.expect("closes");
    assert!(fault.done() - before < 20, "{} writes and syncs for 30 entries", fault.done() - before);
    // Neither snapshot nor state reaches so far.
    drop(storage);
    assert!(NodeStorage::open(directory.path(), &options()).is_err());
}

/// The first format had no journal in front of the log.
#[tokio::test]
async fn a_directory_of_the_first_format_is_taken_over() {
    const TREES: [Tree; 3] = [Tree("log"), Tree("logx"), Tree("meta")];
    let directory = tempfile::tempdir().expect("a directory");
    let storage = open(&directory, &Fault::never());
    for index in 1..=3 {
        append(&storage, index).await.expect("appends");
    }
    storage.close().await.expect("closes");

    let raft = directory.path().join("raft");
    let with_journal = databases(options().journal_bytes)(&raft, Database::Log).expect("opens");
    let mut batch = Batch::default();
    for tree in &TREES {
        let mut visit = |key: &[u8], value: &[u8]| {
            batch.put(*tree, key, value);
            Ok(ControlFlow::Continue(()))
        };
        with_journal.scan(*tree, &[], &mut visit).expect("scans");
    }
    batch.put(TREES[2], *b"format", 1_u32.to_be_bytes());
    batch.remove(TREES[2], *b"journal");
    drop(with_journal);
    let plain = SledStore::open(&raft, &TREES).expect("opens");
    plain.write(batch).and_then(|()| plain.sync()).expect("writes");
    drop(plain);
    for number in 0..2 {
        fs::remove_file(raft.join(format!("journal-{number}"))).expect("is there");
    }
    for _ in 0..2 {
        let storage = open(&directory, &Fault::never());
        assert_eq!(storage.log.position().last, Some(id(3)));
        assert_eq!(storage.log.read(0, u64::MAX).expect("reads").len(), 3);
        storage.close().await.expect("closes");
    }
}
