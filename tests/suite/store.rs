//! A node's data directory that is not what it should be: rolled back, damaged, incomplete. It is refused with a reason or
//! found whole, never served wrong.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::SystemTime;

use muster_cluster::state::Tables;
use muster_cluster::storage::{
    Applied, Entry, LogId, MAX_ENTRY, NodeStorage, OpenError, OpenOptions, Payload, StoreError, TailLimits, Unusable,
    Vote, quarantine,
};
use muster_tests::process::number;
use muster_tests::workload::{History, Holding, Line, NODE, apply, digest, entry, hex, log_id, options};
use rand::rngs::SmallRng;
use rand::{RngExt, SeedableRng};
use tempfile::TempDir;
use tokio::sync::oneshot;

/// A data directory and what was promised about it.
struct Node {
    directory: TempDir,
    history: History,
    last: u64,
}

impl Node {
    /// A node that has written, voted, applied, taken a snapshot and purged, and was closed.
    async fn with_past() -> Self {
        let mut node =
            Self { directory: tempfile::tempdir().expect("a directory"), history: History::default(), last: 0 };
        node.work(200).await;
        node
    }

    fn data(&self) -> PathBuf {
        self.directory.path().join("data")
    }

    fn open(&self) -> NodeStorage {
        NodeStorage::open(&self.data(), &options()).expect("opens")
    }

    /// Adds entries, has the last of them overwritten by a new leader, applies all, takes a snapshot, purges to shortly
    /// before it, votes, and closes.
    async fn work(&mut self, entries: u64) {
        const OVERWRITTEN: u64 = 30;
        let storage = self.open();
        let (first, last) = (self.last + 1, self.last + entries);
        let (old_term, term) = (self.last / 100 + 1, self.last / 100 + 2);
        let keep = last - OVERWRITTEN;
        self.append(&storage, first, last, old_term).await;
        self.say(Line::Truncate(keep));
        storage.log.truncate_after(Some(log_id(keep, old_term))).await.expect("truncates");
        self.say(Line::Truncated(keep));
        self.say(Line::Vote { term, committed: true });
        storage.log.save_vote(Vote { term, node: NODE, committed: true }).await.expect("votes");
        self.say(Line::Voted { term, committed: true });
        self.append(&storage, keep + 1, last, term).await;

        let (mut tables, mut applied) = (storage.tables.clone(), storage.applied.clone());
        for index in first..=last {
            apply(&mut tables, index, if index <= keep { old_term } else { term });
        }
        applied.log_id = Some(log_id(last, term));
        applied.fingerprint = tables.fingerprint();
        self.say(Line::State { index: last, hash: hex(&applied.fingerprint.history), digest: digest(&tables) });
        storage.state.record(tables.take_changes(), applied.clone()).await.expect("records");
        storage.state.sync().await.expect("syncs");
        self.say(Line::Synced(last));
        storage.snapshots.build(&tables, &applied).expect("builds");
        self.say(Line::Snapshot(last));
        self.say(Line::Purge(last - 20));
        storage.log.purge(log_id(last - 20, term)).await.expect("purges");
        self.say(Line::Purged(last - 20));
        storage.close().await.expect("closes");
        self.last = last;
    }

    async fn append(&mut self, storage: &NodeStorage, first: u64, last: u64, term: u64) {
        self.say(Line::Append { batch: last, first, last, term });
        append(storage, (first..=last).map(|index| entry(index, term)).collect()).await.expect("appends");
        self.say(Line::Appended(last));
    }

    fn say(&mut self, line: Line) {
        self.history.take(line).expect("no promise is broken");
    }

    fn check(&self) -> Result<(), String> {
        self.history.check(&self.data())
    }

    fn refused(&self) -> Unusable {
        match NodeStorage::open(&self.data(), &options()).err().expect("is refused") {
            OpenError::Unusable { why, .. } => why,
            other => panic!("refused for another reason: {other}"),
        }
    }
}

async fn append(storage: &NodeStorage, entries: Vec<Entry>) -> Result<(), StoreError> {
    let (told, done) = oneshot::channel();
    storage.log.append(entries, Box::new(move |outcome| drop(told.send(outcome)))).await?;
    done.await.expect("every append is answered")
}

fn copy(from: &Path, to: &Path) {
    fs::create_dir_all(to).expect("a directory");
    for entry in fs::read_dir(from).expect("lists") {
        let entry = entry.expect("an entry");
        let target = to.join(entry.file_name());
        if entry.path().is_dir() {
            copy(&entry.path(), &target);
        } else {
            fs::copy(entry.path(), target).expect("copies");
        }
    }
}

fn replace(from: &Path, to: &Path) {
    fs::remove_dir_all(to).expect("goes");
    copy(from, to);
}

#[tokio::test]
async fn what_was_written_is_there_after_a_restart() {
    let mut node = Node::with_past().await;
    for _ in 0..3 {
        node.check().expect("holds");
        node.work(150).await;
    }
    node.check().expect("holds");
    assert_eq!(node.open().applied.index(), node.last);
}

#[tokio::test]
async fn a_log_from_an_older_image_is_refused_and_left_in_place() {
    let mut node = Node::with_past().await;
    let older = node.directory.path().join("older");
    copy(&node.data().join("raft"), &older);
    node.work(150).await;
    let newer = node.directory.path().join("newer");
    copy(&node.data().join("raft"), &newer);
    replace(&older, &node.data().join("raft"));
    assert!(matches!(node.refused(), Unusable::BelowFloor { .. }));
    // Somebody finds the right disk: nothing has been moved, so it is enough to put it back.
    replace(&newer, &node.data().join("raft"));
    node.check().expect("holds");
}

#[tokio::test]
async fn an_older_vote_alone_is_enough_to_refuse_a_log() {
    let node = Node::with_past().await;
    let older = node.directory.path().join("older");
    copy(&node.data().join("raft"), &older);
    let storage = node.open();
    storage.log.save_vote(Vote { term: 99, node: NODE, committed: false }).await.expect("votes");
    drop(storage);
    replace(&older, &node.data().join("raft"));
    let why = node.refused();
    assert!(matches!(&why, Unusable::BelowFloor { floor, .. } if floor.contains("term 99")), "{why}");
}

#[tokio::test]
async fn a_missing_log_and_a_strange_log_are_refused() {
    let (node, other) = (Node::with_past().await, Node::with_past().await);
    replace(&other.data().join("raft"), &node.data().join("raft"));
    assert!(matches!(node.refused(), Unusable::WrongStore { .. }));
    fs::remove_dir_all(node.data().join("raft")).expect("goes");
    assert!(matches!(node.refused(), Unusable::LogMissing { .. }));
}

#[tokio::test]
async fn a_log_with_a_past_and_no_floor_file_is_refused() {
    let node = Node::with_past().await;
    fs::remove_file(node.data().join("floor")).expect("goes");
    assert!(matches!(node.refused(), Unusable::FloorMissing));
    assert!(!node.data().join("floor").exists(), "nothing is made up");
}

#[tokio::test]
async fn damaged_parameters_of_a_database_are_damage() {
    let mut node = Node::with_past().await;
    node.history.forgive_a_lost_state();
    for (database, content) in
        [("state", "segment_size: 524288\nuse_compression: false\nversion: 0.34\nxxxx"), ("raft", "nothing like it")]
    {
        fs::write(node.data().join(database).join("conf"), content).expect("writes");
        if database == "state" {
            node.check().expect("is rebuilt");
        } else {
            assert!(matches!(node.refused(), Unusable::LogDamaged(_)));
        }
    }
}

#[tokio::test]
async fn a_damaged_snapshot_is_replaced_when_the_log_needs_it() {
    let mut node = Node::with_past().await;
    node.work(150).await;
    let newest = node.open().snapshots.latest().expect("is there").path.clone();
    let mut image = fs::read(&newest).expect("reads");
    let middle = image.len() / 2;
    image[middle] ^= 1;
    fs::write(&newest, image).expect("writes");
    let storage = node.open();
    let purged = storage.log.position().purged.expect("was purged");
    assert!(
        storage.snapshots.latest().expect("is there").log_id() >= Some(purged),
        "no follower can be served from before it"
    );
    drop(storage);
    node.check().expect("holds");
}

#[tokio::test]
async fn a_quarantined_directory_keeps_everything_and_makes_room_for_a_new_node() {
    let mut node = Node::with_past().await;
    let store = node.open().log.store_id();
    let older = node.directory.path().join("older");
    copy(&node.data().join("raft"), &older);
    node.work(120).await;
    replace(&older, &node.data().join("raft"));
    let why = node.refused();

    let now = SystemTime::now();
    let aside = quarantine(&node.data(), &why, now).expect("is set aside");
    let reason = fs::read_to_string(aside.join("REASON")).expect("a reason");
    assert!(reason.contains("lost acknowledged writes"), "{reason}");
    for part in ["raft", "floor", "state", "snap"] {
        assert!(aside.join(part).exists(), "{part} is kept");
    }
    let fresh = node.open();
    assert_ne!(fresh.log.store_id(), store, "a wiped disk is a new store");
    assert_eq!(fresh.log.vote(), None);
    assert_eq!(fresh.applied, Applied::default());
    drop(fresh);
    // The second one of the same second does not touch the first.
    let second = quarantine(&node.data(), &why, now).expect("is set aside");
    assert_ne!(second, aside);
    assert!(aside.join("REASON").exists());
}

#[tokio::test]
async fn a_directory_in_use_is_refused_to_everybody_else() {
    let node = Node::with_past().await;
    let storage = node.open();
    assert!(matches!(NodeStorage::open(&node.data(), &options()), Err(OpenError::InUse(_))));
    let why = Unusable::LogMissing { store: String::new() };
    assert!(matches!(quarantine(&node.data(), &why, SystemTime::now()), Err(OpenError::InUse(_))));
    drop(storage);
    node.check().expect("holds");
}

#[tokio::test]
async fn a_damaged_log_is_refused_or_whole_wherever_the_damage_is() {
    let mut node = Node::with_past().await;
    node.history.forgive_an_older_purge_point();
    let whole = node.directory.path().join("whole");
    copy(&node.data(), &whole);
    // Where a file is in use; most of a fresh segment, and of a journal, is padding.
    let files: Vec<_> = ["raft/db", "raft/journal-0", "raft/journal-1"]
        .into_iter()
        .filter_map(|file| {
            let image = fs::read(whole.join(file)).expect("reads");
            let used = image.iter().rposition(|byte| *byte != 0)?;
            Some((file, image, used))
        })
        .collect();
    assert!(files.len() > 1, "nothing lies in the journal");
    let (mut refused, mut sound) = (0, 0);
    let (seed, turns) = (number("SEED_DAMAGE", 11), number("RUNS_DAMAGE", 120));
    for turn in seed..seed + turns {
        let mut random = SmallRng::seed_from_u64(turn);
        replace(&whole, &node.data());
        let (file, image, used) = &files[turn as usize / 3 % files.len()];
        let (mut damaged, used) = (image.clone(), *used);
        match turn % 3 {
            0 => damaged[random.random_range(0..=used)] ^= 1 << random.random_range(0..8),
            1 => damaged.truncate(random.random_range(0..=used)),
            _ => {
                let from = random.random_range(0..=used);
                let to = image.len().min(from + 512);
                damaged[from..to].fill(0);
            }
        }
        fs::write(node.data().join(file), &damaged).expect("writes");
        match NodeStorage::open(&node.data(), &options()) {
            Err(OpenError::Unusable { .. }) => refused += 1,
            Err(other) => panic!("turn {turn}: {file} refused for another reason: {other}"),
            Ok(storage) => {
                drop(storage);
                node.check().unwrap_or_else(|why| panic!("turn {turn}: {file} served although {why}"));
                sound += 1;
            }
        }
    }
    println!("of {turns} damaged logs {refused} were refused and {sound} had lost nothing");
    assert!(turns < 100 || refused > 20, "damage was hardly ever noticed");
}

#[tokio::test]
async fn a_damaged_state_is_rebuilt_from_snapshot_and_log() {
    let mut node = Node::with_past().await;
    node.history.forgive_a_lost_state();
    // A summary that sled takes for the newest and can not read.
    fs::write(node.data().join("state/snap.7FFFFFFFFFFFFFFF"), b"not a summary at all").expect("writes");
    let storage = node.open();
    let aside = storage.report.state_set_aside.clone().expect("it was noticed");
    assert!(aside.join("state").is_dir() && aside.join("REASON").is_file());
    assert_eq!(storage.applied, Applied::default());
    let snapshot = storage.snapshots.latest().expect("is there");
    let tables = snapshot.load().expect("loads");
    storage.state.replace(tables, snapshot.applied.clone()).await.expect("replaces");
    drop(storage);
    node.check().expect("holds");
    assert_eq!(node.open().applied.index(), node.last);
}

#[tokio::test]
async fn a_damaged_state_is_set_aside_or_older_and_never_wrong() {
    let mut node = Node::with_past().await;
    node.history.forgive_a_lost_state();
    let whole = node.directory.path().join("whole");
    copy(&node.data(), &whole);
    let image = fs::read(whole.join("state/db")).expect("reads");
    let used = image.iter().rposition(|byte| *byte != 0).expect("not empty");
    let mut random = SmallRng::seed_from_u64(12);
    let mut noticed = 0;
    for turn in 0..60 {
        replace(&whole, &node.data());
        let mut damaged = image.clone();
        let from = random.random_range(0..used);
        let to = image.len().min(from + if turn % 2 == 0 { 1 } else { 700 });
        damaged[from..to].iter_mut().for_each(|byte| *byte ^= 0x5a);
        fs::write(node.data().join("state/db"), damaged).expect("writes");
        node.check().unwrap_or_else(|why| panic!("turn {turn}, bytes {from} to {to}: {why}"));
        noticed += usize::from(node.open().applied.index() < node.last);
    }
    println!("60 damaged states, {noticed} of them have to be carried forward");
    assert!(noticed > 10, "damage was hardly ever noticed");
}

#[tokio::test]
async fn a_state_that_nothing_can_rebuild_is_refused() {
    let node = Node::with_past().await;
    fs::remove_dir_all(node.data().join("state")).expect("goes");
    drop(node.open());
    fs::remove_dir_all(node.data().join("snap")).expect("goes");
    let why = node.refused();
    assert!(matches!(why, Unusable::StateLost { purged: 180, covered: 0 }), "{why}");
}

#[tokio::test]
async fn what_an_interrupted_start_leaves_behind_does_no_harm() {
    let node = Node::with_past().await;
    let data = node.data();
    for database in ["raft", "state"] {
        // sled takes the newest summary by name, half-written or not.
        fs::write(data.join(database).join("snap.7FFFFFFFFFFFFFFF.generating"), b"").expect("writes");
        copy(&data.join(database), &data.join(format!("{database}.new")));
    }
    fs::create_dir(data.join("state.replacement")).expect("a directory");
    fs::write(data.join("snap/1-1.tmp"), b"half").expect("writes");
    fs::write(data.join("floor.new"), b"half").expect("writes");
    node.check().expect("holds");
    assert!(!data.join("state.replacement").exists() && !data.join("snap/1-1.tmp").exists());
}

#[tokio::test]
async fn a_replacement_of_the_state_interrupted_between_its_renames_leaves_the_old_state() {
    let node = Node::with_past().await;
    let data = node.data();
    copy(&data.join("state"), &data.join("state.replacement"));
    fs::rename(data.join("state"), data.join("state.replaced")).expect("moves");
    node.check().expect("holds");
    assert_eq!(node.open().applied.index(), node.last);
    assert!(!data.join("state.replaced").exists() && !data.join("state.replacement").exists());
}

#[tokio::test]
async fn what_the_log_refuses_changes_nothing() {
    let node = Node::with_past().await;
    let storage = node.open();
    let before = storage.log.position();
    let next = node.last + 1;
    let too_long = Payload::Command(vec![0; MAX_ENTRY].into());
    let refused = append(&storage, vec![Entry { log_id: log_id(next, 9), payload: too_long }]).await;
    assert!(matches!(refused, Err(StoreError::TooLarge { .. })), "{refused:?}");
    let refused = append(&storage, vec![entry(next + 1, 9)]).await;
    assert!(matches!(refused, Err(StoreError::OutOfOrder { .. })), "{refused:?}");
    let purged = before.purged.expect("was purged").index;
    assert!(storage.log.truncate_after(Some(log_id(purged - 1, 1))).await.is_err());
    assert_eq!(storage.log.position(), before);
    append(&storage, vec![entry(next, 9)]).await.expect("goes on");
    assert_eq!(storage.log.read(next, next + 1).expect("reads"), [entry(next, 9)]);
}

#[tokio::test]
async fn after_closing_nothing_is_taken_and_nobody_waits() {
    let node = Node::with_past().await;
    let storage = node.open();
    storage.log.close().await.expect("closes");
    assert!(matches!(append(&storage, vec![entry(node.last + 1, 9)]).await, Err(StoreError::Closed)));
    assert!(matches!(
        storage.log.save_vote(Vote { term: 9, node: NODE, committed: false }).await,
        Err(StoreError::Closed)
    ));
    assert!(matches!(storage.log.close().await, Err(StoreError::Closed)));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn writers_that_wait_together_share_a_sync() {
    let node = Node::with_past().await;
    let storage = node.open();
    let before = storage.log.stats();
    let mut waiting = Vec::new();
    for index in node.last + 1..=node.last + 500 {
        let (told, done) = oneshot::channel();
        storage
            .log
            .append(vec![entry(index, 9)], Box::new(move |outcome| drop(told.send(outcome))))
            .await
            .expect("appends");
        waiting.push(done);
    }
    for done in waiting {
        done.await.expect("is answered").expect("is durable");
    }
    let after = storage.log.stats();
    let (syncs, requests) = (after.syncs - before.syncs, after.requests - before.requests);
    println!("{requests} appends took {syncs} syncs");
    assert_eq!(requests, 500);
    assert!(syncs < requests / 2, "{syncs} syncs for {requests} appends");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn readers_never_see_a_hole_while_the_log_is_purged_and_grows() {
    let node = Node::with_past().await;
    // Hardly anything stays in memory, so that nearly every read goes to the disk.
    let options = OpenOptions { tail: TailLimits { entries: 16, bytes: 1 << 20 }, ..options() };
    let storage = Arc::new(NodeStorage::open(&node.data(), &options).expect("opens"));
    let over = Arc::new(AtomicBool::new(false));
    let reader = std::thread::spawn({
        let (storage, over) = (Arc::clone(&storage), Arc::clone(&over));
        move || {
            let mut reads = 0u64;
            while !over.load(Ordering::SeqCst) {
                let budget = [usize::MAX, 0, 1, 3_000, 100_000][reads as usize % 5];
                let entries = storage.log.read_up_to(0, u64::MAX, budget).expect("reads");
                assert!(!entries.is_empty(), "there is always one");
                for found in &entries {
                    assert_eq!(*found, entry(found.log_id.index, found.log_id.term), "as it was written");
                }
                for pair in entries.windows(2) {
                    assert_eq!(pair[0].log_id.index + 1, pair[1].log_id.index, "a hole");
                }
                reads += 1;
            }
            reads
        }
    });
    let mut last = node.last;
    for round in 0..300 {
        let entries: Vec<_> = (last + 1..=last + 100).map(|index| entry(index, 9)).collect();
        append(&storage, entries).await.expect("appends");
        last += 100;
        if round % 5 == 0 {
            storage.log.purge(log_id(last - 50, 9)).await.expect("purges");
        } else {
            storage.log.truncate_after(Some(log_id(last - 70, 9))).await.expect("truncates");
            last -= 70;
        }
    }
    over.store(true, Ordering::SeqCst);
    let reads = reader.join().expect("no hole was seen");
    println!("{reads} reads of the whole log");
    assert!(reads > 10);
}

#[tokio::test]
async fn a_state_value_that_is_too_long_is_refused_before_anything_is_written() {
    let node = Node::with_past().await;
    let storage = node.open();
    let mut tables = Tables::default();
    tables.put(muster_cluster::state::TableId(1), "key", vec![0; 17_000], 1);
    let applied = Applied { log_id: Some(LogId { term: 9, node: NODE, index: 999 }), ..Applied::default() };
    let refused = storage.state.record(tables.take_changes(), applied).await;
    assert!(matches!(refused, Err(StoreError::TooLarge { .. })), "{refused:?}");
    drop(storage);
    node.check().expect("holds");
}

#[tokio::test]
async fn the_holding_of_a_reopened_log_is_that_of_the_open_one() {
    let node = Node::with_past().await;
    let open = Holding::of(&node.open()).expect("reads");
    let again = Holding::of(&node.open()).expect("reads");
    assert_eq!(open.lines(), again.lines());
    assert!(!open.entries().is_empty());
}
