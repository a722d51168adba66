use std::collections::VecDeque;
use std::io::Read;
use std::os::unix::fs::PermissionsExt;
use std::time::UNIX_EPOCH;

use futures_util::FutureExt;
use futures_util::future::BoxFuture;
use muster_cluster::ids::PlacementEpoch;
use tokio::sync::{mpsc, watch};

use super::*;
use crate::runtime::{Exit, Found, Launch, Launched, Place, Progress, Runtime, RuntimeError, RuntimeKind};

const PLACEMENT: PlacementId = PlacementId { deployment: DeploymentId(12), ordinal: 3 };

fn unit(epoch: u64) -> UnitId {
    UnitId { placement: PLACEMENT, epoch: PlacementEpoch(epoch) }
}

/// A line that was said so many seconds after the first of January 2026.
fn line(second: f64, text: &str) -> Line {
    Line {
        at: UNIX_EPOCH + Duration::from_secs(1_767_225_600) + Duration::from_secs_f64(second),
        text: text.to_owned(),
    }
}

fn open(directory: &tempfile::TempDir) -> LogStore {
    LogStore::open(directory.path().join("logs"), LogBounds::default()).unwrap()
}

fn small(directory: &tempfile::TempDir) -> LogStore {
    let bounds = LogBounds { max_bytes: 64 << 10, ..LogBounds::default() };
    LogStore::open(directory.path().join("logs"), bounds).unwrap()
}

fn content(store: &LogStore) -> String {
    let mut text = String::new();
    let mut download = store.download(PLACEMENT).unwrap().unwrap();
    let length = download.length;
    download.read_to_string(&mut text).unwrap();
    assert_eq!(text.len() as u64, length);
    text
}

fn file(directory: &tempfile::TempDir, name: &str) -> PathBuf {
    directory.path().join("logs").join(name)
}

#[test]
fn lines_have_their_time_in_utc_and_probes_are_left_out() {
    let directory = tempfile::tempdir().unwrap();
    let store = open(&directory);
    store.begin(unit(1)).unwrap();
    let probe = "INFO:     127.0.0.1:1 - \"GET /health HTTP/1.1\" 200 OK";
    store
        .append(unit(1), &[line(1.5, "\x1b[1mone\x1b[0m"), line(2.0, ""), line(3.0, probe), line(61.0, "two")])
        .unwrap();
    assert_eq!(content(&store), "[2026-01-01 00:00:01] one\n[2026-01-01 00:01:01] two\n");
    assert_eq!(store.tail(PLACEMENT, 1).unwrap(), ["[2026-01-01 00:01:01] two"]);
    store.note(unit(1), "agent", "stopping").unwrap();
    assert!(store.tail(PLACEMENT, 1).unwrap()[0].ends_with("] [agent] stopping"));
    let mode = fs::metadata(file(&directory, "12-3.log")).unwrap().permissions().mode();
    assert_eq!(mode & 0o777, 0o600);
}

#[test]
fn b21_after_a_restart_only_what_is_new_is_added() {
    let directory = tempfile::tempdir().unwrap();
    let store = open(&directory);
    store.begin(unit(1)).unwrap();
    assert_eq!(store.attach(unit(1)).unwrap(), None);
    store.append(unit(1), &[line(5.25, "five")]).unwrap();
    drop(store);
    let store = open(&directory);
    // Whole seconds are asked for, so the line that is there comes again.
    assert_eq!(store.attach(unit(1)).unwrap(), Some(line(5.0, "").at));
    let metrics = "INFO:     127.0.0.1:1 - \"GET /metrics HTTP/1.1\" 200 OK";
    store.append(unit(1), &[line(5.25, "five"), line(6.0, "six"), line(7.0, metrics)]).unwrap();
    assert_eq!(content(&store), "[2026-01-01 00:00:05] five\n[2026-01-01 00:00:06] six\n");
    // The line that was left out counts as seen.
    assert_eq!(store.attach(unit(1)).unwrap(), Some(line(7.0, "").at));
}

#[test]
fn lines_that_were_written_but_not_noted_are_taken_back_and_come_again_once() {
    let directory = tempfile::tempdir().unwrap();
    let store = open(&directory);
    store.begin(unit(1)).unwrap();
    store.append(unit(1), &[line(1.0, "one")]).unwrap();
    let noted = fs::read(file(&directory, "12-3.pos")).unwrap();
    store.append(unit(1), &[line(2.0, "two")]).unwrap();
    drop(store);
    fs::write(file(&directory, "12-3.pos"), noted).unwrap();
    let store = open(&directory);
    assert_eq!(store.attach(unit(1)).unwrap(), Some(line(1.0, "").at));
    store.append(unit(1), &[line(1.0, "one"), line(2.0, "two")]).unwrap();
    assert_eq!(content(&store), "[2026-01-01 00:00:01] one\n[2026-01-01 00:00:02] two\n");
}

#[test]
fn a_log_that_nobody_knows_the_state_of_is_set_aside_and_fetched_anew() {
    for damage in ["", "x", "1 2 3\n"] {
        let directory = tempfile::tempdir().unwrap();
        let store = open(&directory);
        store.begin(unit(1)).unwrap();
        store.append(unit(1), &[line(1.0, "one")]).unwrap();
        drop(store);
        fs::write(file(&directory, "12-3.pos"), damage).unwrap();
        let store = open(&directory);
        assert_eq!(store.tail(PLACEMENT, 9).unwrap(), ["[2026-01-01 00:00:01] one"]);
        assert_eq!(store.attach(unit(1)).unwrap(), None);
        assert_eq!(store.tail(PLACEMENT, 9).unwrap(), Vec::<String>::new());
        assert_eq!(fs::read_to_string(file(&directory, "12-3.log.1")).unwrap(), "[2026-01-01 00:00:01] one\n");
    }
}

#[test]
fn a_position_with_numbers_that_can_not_be_is_no_reason_to_fail() {
    let directory = tempfile::tempdir().unwrap();
    let store = open(&directory);
    let most = u64::MAX;
    fs::write(file(&directory, "12-3.pos"), format!("1 {most} {most} {most} {most}\n")).unwrap();
    fs::write(file(&directory, "12-3.log"), "[x] one\n").unwrap();
    assert_eq!(store.tail(PLACEMENT, 5).unwrap(), ["[x] one"]);
    store.read(PLACEMENT, Some(Cursor { run: most, offset: most }), most).unwrap();
    store.attach(unit(1)).unwrap();
    store.append(unit(1), &[line(1.0, "two")]).unwrap();
    store.begin(unit(2)).unwrap();
    store.append(unit(2), &[line(1.0, "three")]).unwrap();
    assert_eq!(content(&store), "[2026-01-01 00:00:01] three\n");
}

#[test]
fn a_new_run_moves_the_one_before_aside_and_the_one_before_that_away() {
    let directory = tempfile::tempdir().unwrap();
    let store = open(&directory);
    for epoch in [1, 2, 3] {
        store.begin(unit(epoch)).unwrap();
        store.append(unit(epoch), &[line(1.0, &format!("run {epoch}"))]).unwrap();
    }
    assert_eq!(content(&store), "[2026-01-01 00:00:01] run 3\n");
    assert_eq!(fs::read_to_string(file(&directory, "12-3.log.1")).unwrap(), "[2026-01-01 00:00:01] run 2\n");
    // A run of the same epoch is a run, and one in which nothing was said drives nothing out.
    store.begin(unit(3)).unwrap();
    store.begin(unit(3)).unwrap();
    assert_eq!(content(&store), "");
    assert_eq!(fs::read_to_string(file(&directory, "12-3.log.1")).unwrap(), "[2026-01-01 00:00:01] run 3\n");
    // What an older life says late is nobody's.
    store.append(unit(2), &[line(9.0, "late")]).unwrap();
    assert_eq!(content(&store), "");
}

#[test]
fn a_log_stays_within_its_bound_and_holds_the_newest_lines() {
    let directory = tempfile::tempdir().unwrap();
    let store = small(&directory);
    store.begin(unit(1)).unwrap();
    let text = "x".repeat(977);
    for batch in 0..20 {
        let lines: Vec<Line> =
            (0..10).map(|number| line(f64::from(batch * 10 + number), &format!("{batch:02}{number} {text}"))).collect();
        store.append(unit(1), &lines).unwrap();
        let size = |name| fs::metadata(file(&directory, name)).map_or(0, |about| about.len());
        assert!(size("12-3.log") + size("12-3.log.1") <= 64 << 10);
    }
    let text = content(&store);
    assert!(text.len() > 32 << 10);
    let numbers: Vec<u32> = text.lines().map(|line| line[22..25].parse().unwrap()).collect();
    assert_eq!(numbers, (200 - u32::try_from(numbers.len()).unwrap()..200).collect::<Vec<_>>());
    // Both parts are one log for those who ask for its end, and after a restart.
    drop(store);
    let store = small(&directory);
    store.attach(unit(1)).unwrap();
    assert_eq!(content(&store), text);
    let tail = store.tail(PLACEMENT, numbers.len() - 1).unwrap();
    assert_eq!(tail, text.lines().skip(1).collect::<Vec<_>>());
}

#[test]
fn a_crash_while_a_full_part_is_set_aside_loses_nothing() {
    let directory = tempfile::tempdir().unwrap();
    let store = open(&directory);
    store.begin(unit(1)).unwrap();
    store.append(unit(1), &[line(1.0, "one")]).unwrap();
    drop(store);
    fs::rename(file(&directory, "12-3.log"), file(&directory, "12-3.log.1")).unwrap();
    let store = open(&directory);
    assert_eq!(store.attach(unit(1)).unwrap(), Some(line(1.0, "").at));
    store.append(unit(1), &[line(1.0, "one"), line(2.0, "two")]).unwrap();
    assert_eq!(content(&store), "[2026-01-01 00:00:01] one\n[2026-01-01 00:00:02] two\n");
}

#[test]
fn the_tail_has_the_last_lines_however_many_there_are() {
    let directory = tempfile::tempdir().unwrap();
    let store = open(&directory);
    assert_eq!(store.tail(PLACEMENT, 5).unwrap(), Vec::<String>::new());
    assert!(store.download(PLACEMENT).unwrap().is_none());
    store.begin(unit(1)).unwrap();
    assert_eq!(store.tail(PLACEMENT, 5).unwrap(), Vec::<String>::new());
    let lines: Vec<Line> =
        (1..=5000).map(|number| line(f64::from(number), &format!("{number} {}", "y".repeat(90)))).collect();
    store.append(unit(1), &lines).unwrap();
    let all: Vec<String> = content(&store).lines().map(str::to_owned).collect();
    assert_eq!(all.len(), 5000);
    for (asked, given) in [(0, 1), (1, 1), (573, 573), (2000, 2000), (usize::MAX, 2000)] {
        assert_eq!(store.tail(PLACEMENT, asked).unwrap(), all[5000 - given..], "{asked}");
    }
}

#[test]
fn a_reader_follows_through_parts_and_into_the_next_run() {
    let directory = tempfile::tempdir().unwrap();
    let store = small(&directory);
    assert_eq!(store.read(PLACEMENT, None, 0).unwrap(), None);
    store.begin(unit(1)).unwrap();
    let mut cursor = None;
    let mut read = String::new();
    let mut written = String::new();
    for number in 0..100 {
        let text = format!("{number} {}", "z".repeat(3000));
        store.append(unit(1), &[line(0.5 + f64::from(number), &text)]).unwrap();
        written.push_str(&format!("{}\n", store.tail(PLACEMENT, 1).unwrap()[0]));
        // A reader that is behind by less than the bound misses nothing.
        if number % 7 == 0 {
            loop {
                let chunk = store.read(PLACEMENT, cursor, 1).unwrap().unwrap();
                cursor = Some(chunk.next);
                if chunk.text.is_empty() {
                    break;
                }
                assert_eq!(chunk.text.last(), Some(&b'\n'));
                read.push_str(std::str::from_utf8(&chunk.text).unwrap());
            }
        }
    }
    assert!(written.starts_with(&read) && read.lines().count() == 99);
    // One that comes too late starts at the oldest line that is left.
    let old = Cursor { offset: 0, ..cursor.unwrap() };
    let chunk = store.read(PLACEMENT, Some(old), u64::MAX).unwrap().unwrap();
    assert!(chunk.start.offset > 0 && chunk.text.starts_with(b"["));
    store.begin(unit(1)).unwrap();
    store.append(unit(1), &[line(200.0, "new")]).unwrap();
    let chunk = store.read(PLACEMENT, cursor, 0).unwrap().unwrap();
    assert_eq!((chunk.start.offset, chunk.text.as_slice()), (0, b"[2026-01-01 00:03:20] new\n".as_slice()));
    assert_ne!(chunk.start.run, cursor.unwrap().run);
}

#[test]
fn files_that_nobody_writes_to_go_when_their_time_is_over() {
    let directory = tempfile::tempdir().unwrap();
    let store = open(&directory);
    store.begin(unit(1)).unwrap();
    store.append(unit(1), &[line(1.0, "one")]).unwrap();
    store.begin(unit(2)).unwrap();
    fs::write(file(&directory, "somebody.else"), "").unwrap();
    let later = |days: u64| SystemTime::now() + Duration::from_secs(days * 24 * 60 * 60);
    assert_eq!(store.sweep(later(13)).unwrap(), 0);
    // The run before goes; what is being written to stays, however quiet it is.
    assert_eq!(store.sweep(later(15)).unwrap(), 1);
    store.close(unit(1));
    assert_eq!(store.sweep(later(15)).unwrap(), 0);
    store.close(unit(2));
    assert_eq!(store.sweep(later(15)).unwrap(), 2);
    assert!(file(&directory, "somebody.else").exists());
    assert!(store.download(PLACEMENT).unwrap().is_none());
}

#[test]
fn a_download_is_called_after_model_and_port() {
    assert_eq!(download_name("Qwen/Qwen3-8B", 8001), "Qwen--Qwen3-8B-8001.log");
}

/// A runtime that says one of its parts at each attachment, and has ended after the last.
struct Teller {
    parts: Mutex<VecDeque<Vec<Line>>>,
    attached: watch::Sender<usize>,
    ended: watch::Sender<bool>,
}

impl Teller {
    fn new(parts: impl IntoIterator<Item = Vec<Line>>) -> Arc<Self> {
        let parts = Mutex::new(parts.into_iter().collect());
        Arc::new(Self { parts, attached: watch::Sender::new(0), ended: watch::Sender::new(false) })
    }
}

impl Runtime for Teller {
    fn kind(&self) -> RuntimeKind {
        RuntimeKind::Docker
    }

    fn available(&self) -> BoxFuture<'_, Result<(), RuntimeError>> {
        unreachable!("nobody asks")
    }

    fn place(&self, _: UnitId) -> BoxFuture<'_, Result<Place, RuntimeError>> {
        unreachable!("nobody asks")
    }

    fn launch(&self, _: Launch, _: watch::Sender<Progress>) -> BoxFuture<'_, Result<Launched, RuntimeError>> {
        unreachable!("nobody asks")
    }

    fn units(&self) -> BoxFuture<'_, Result<Vec<Found>, RuntimeError>> {
        unreachable!("nobody asks")
    }

    fn ended(&self, _: UnitId) -> BoxFuture<'_, Result<Exit, RuntimeError>> {
        async {
            let _ = self.ended.subscribe().wait_for(|ended| *ended).await;
            Ok(Exit { code: Some(0), signal: None, out_of_memory: false })
        }
        .boxed()
    }

    fn stop(&self, _: UnitId, _: Duration) -> BoxFuture<'_, Result<(), RuntimeError>> {
        unreachable!("nobody asks")
    }

    fn follow(
        &self,
        _: UnitId,
        _: Option<SystemTime>,
        lines: mpsc::Sender<Line>,
    ) -> BoxFuture<'_, Result<(), RuntimeError>> {
        async move {
            let attached = *self.attached.borrow();
            self.attached.send_replace(attached + 1);
            let part = self.parts.lock().unwrap().pop_front().unwrap();
            for line in part {
                if lines.send(line).await.is_err() {
                    return Ok(());
                }
            }
            if self.parts.lock().unwrap().is_empty() {
                self.ended.send_replace(true);
            }
            match attached {
                // It breaks off with words, and then without.
                0 => Err(RuntimeError::Failed { runtime: RuntimeKind::Docker, why: "gone away".to_owned() }),
                _ => Ok(()),
            }
        }
        .boxed()
    }
}

#[tokio::test]
async fn a_follower_comes_back_until_the_unit_has_ended_and_adds_each_line_once() {
    let directory = tempfile::tempdir().unwrap();
    let store = Arc::new(open(&directory));
    let (one, two, three) = (line(1.0, "one"), line(2.0, "two"), line(2.5, "three"));
    let parts = [vec![one.clone()], vec![one, two.clone()], vec![], vec![two, three]];
    let teller = Teller::new(parts);
    let runtime: Arc<dyn Runtime> = teller.clone();
    Follower::start(runtime, Arc::clone(&store), unit(1), None).finished().await;
    assert_eq!(*teller.attached.borrow(), 4);
    assert_eq!(content(&store), "[2026-01-01 00:00:01] one\n[2026-01-01 00:00:02] two\n[2026-01-01 00:00:02] three\n");
    assert!(store.writers().is_empty());
}

#[tokio::test]
async fn a_follower_ends_with_its_owner() {
    let directory = tempfile::tempdir().unwrap();
    let store = Arc::new(open(&directory));
    let teller = Teller::new((0..1000).map(|_| Vec::new()));
    let mut attached = teller.attached.subscribe();
    let runtime: Arc<dyn Runtime> = teller;
    let weak = Arc::downgrade(&runtime);
    let follower = Follower::start(runtime, store, unit(1), None);
    attached.wait_for(|attached| *attached > 0).await.unwrap();
    assert!(weak.upgrade().is_some());
    drop(follower);
    let dropped = async {
        while weak.upgrade().is_some() {
            tokio::task::yield_now().await;
        }
    };
    tokio::time::timeout(Duration::from_secs(60), dropped).await.unwrap();
}
