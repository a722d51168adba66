//! How fast a durable append is, beside a plain file with the same batching and beside sled's own `flush`, which promises
//! less: 256-byte entries, 1, 16 and 64 writers that each wait for their answer. The three take turns, so that whatever
//! else the disk does hits all of them.

use std::fs::File;
use std::io::Write;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::time::{Duration, Instant};

use bytes::Bytes;
use hdrhistogram::Histogram;
use muster_cluster::ids::NodeId;
use muster_cluster::storage::{Entry, LogId, NodeStorage, Payload};
use muster_tests::workload::options;

const ENTRY: usize = 256;
const TURN: Duration = Duration::from_millis(1500);
const TURNS: usize = 3;

/// Something that makes 256 bytes durable and says so by calling back.
trait Target {
    fn append(&self, done: Box<dyn FnOnce() + Send>);
}

/// Muster's log: one task orders the appends, as openraft's core does.
struct Log {
    orders: tokio::sync::mpsc::UnboundedSender<Box<dyn FnOnce() + Send>>,
}

impl Log {
    fn open(directory: &Path) -> Self {
        let storage = NodeStorage::open(directory, &options()).expect("opens");
        let (orders, mut received) = tokio::sync::mpsc::unbounded_channel::<Box<dyn FnOnce() + Send>>();
        std::thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
            runtime.block_on(async {
                let payload = Payload::Command(Bytes::from(vec![7; ENTRY]));
                let mut index = storage.log.position().last.map_or(0, |id| id.index);
                while let Some(done) = received.recv().await {
                    index += 1;
                    let log_id = LogId { term: 1, node: NodeId(1), index };
                    let entry = Entry { log_id, payload: payload.clone() };
                    let answered = Box::new(move |outcome: Result<(), _>| {
                        assert!(outcome.is_ok(), "an append failed");
                        done();
                    });
                    storage.log.append(vec![entry], answered).await.expect("appends");
                    // As after a snapshot: the log is kept short.
                    if index.is_multiple_of(20_000) {
                        storage.log.purge(LogId { index: index - 10_000, ..log_id }).await.expect("purges");
                    }
                }
            });
        });
        Self { orders }
    }
}

impl Target for Log {
    fn append(&self, done: Box<dyn FnOnce() + Send>) {
        assert!(self.orders.send(done).is_ok(), "the log takes appends");
    }
}

/// A file that grows, or a bare sled tree; one thread batches whatever is waiting.
struct Batched {
    orders: Sender<Box<dyn FnOnce() + Send>>,
}

impl Batched {
    fn file(directory: &Path) -> Self {
        let mut file = File::create(directory.join("plain")).expect("a file");
        Self::start(move |count| {
            file.write_all(&vec![7; ENTRY * count]).expect("writes");
            file.sync_data().expect("syncs");
        })
    }

    fn sled(directory: &Path) -> Self {
        let db = sled::Config::new().path(directory.join("sled")).flush_every_ms(None).open().expect("opens");
        let mut next = 0u64;
        Self::start(move |count| {
            let mut batch = sled::Batch::default();
            for _ in 0..count {
                next += 1;
                batch.insert(&next.to_be_bytes(), &[7; ENTRY][..]);
            }
            db.apply_batch(batch).expect("writes");
            db.flush().expect("flushes");
        })
    }

    fn start(mut write: impl FnMut(usize) + Send + 'static) -> Self {
        let (orders, received): (_, Receiver<Box<dyn FnOnce() + Send>>) = channel();
        std::thread::spawn(move || {
            while let Ok(first) = received.recv() {
                let mut waiting = vec![first];
                waiting.extend(received.try_iter().take(255));
                write(waiting.len());
                waiting.into_iter().for_each(|done| done());
            }
        });
        Self { orders }
    }
}

impl Target for Batched {
    fn append(&self, done: Box<dyn FnOnce() + Send>) {
        assert!(self.orders.send(done).is_ok(), "the target takes appends");
    }
}

/// Runs writers that wait for each answer, and adds their latencies in microseconds.
fn turn(target: &Arc<dyn Target + Send + Sync>, writers: usize, latencies: &mut Histogram<u64>) -> (u64, Duration) {
    let total = Arc::new(AtomicU64::new(0));
    let started = Instant::now();
    let threads: Vec<_> = (0..writers)
        .map(|_| {
            let (target, total) = (Arc::clone(target), Arc::clone(&total));
            std::thread::spawn(move || {
                let mut latencies = Histogram::<u64>::new(3).expect("a histogram");
                let (told, done) = channel();
                while started.elapsed() < TURN {
                    let told = told.clone();
                    let asked = Instant::now();
                    target.append(Box::new(move || told.send(()).expect("the writer waits")));
                    done.recv().expect("every append is answered");
                    latencies.record(asked.elapsed().as_micros() as u64).expect("fits");
                    total.fetch_add(1, Ordering::Relaxed);
                }
                latencies
            })
        })
        .collect();
    for thread in threads {
        latencies.add(thread.join().expect("a writer")).expect("fits");
    }
    (total.load(Ordering::Relaxed), started.elapsed())
}

fn main() {
    println!("durable appends of {ENTRY} bytes, {TURNS} turns of {TURN:?} each\n");
    println!(
        "{:>7}  {:<26} {:>9} {:>10} {:>10} {:>12}",
        "writers", "target", "appends/s", "p50 ms", "p99 ms", "of the file"
    );
    for writers in [1, 16, 64] {
        let directory = tempfile::tempdir().expect("a directory");
        let targets: [(&str, Arc<dyn Target + Send + Sync>); 3] = [
            ("plain file + fdatasync", Arc::new(Batched::file(directory.path()))),
            ("Muster's log", Arc::new(Log::open(&directory.path().join("muster")))),
            ("sled flush (not durable)", Arc::new(Batched::sled(directory.path()))),
        ];
        let mut figures = vec![(0u64, Duration::ZERO, Histogram::<u64>::new(3).expect("a histogram")); 3];
        for _ in 0..TURNS {
            for ((_, target), (appends, time, latencies)) in targets.iter().zip(&mut figures) {
                let (more, took) = turn(target, writers, latencies);
                *appends += more;
                *time += took;
            }
        }
        let rate = |(appends, time, _): &(u64, Duration, Histogram<u64>)| *appends as f64 / time.as_secs_f64();
        let file = rate(&figures[0]);
        for ((name, _), figure) in targets.iter().zip(&figures) {
            let quantile = |q| figure.2.value_at_quantile(q) as f64 / 1e3;
            println!(
                "{writers:>7}  {name:<26} {:>9.0} {:>10.2} {:>10.2} {:>11.2}x",
                rate(figure),
                quantile(0.5),
                quantile(0.99),
                rate(figure) / file
            );
        }
    }
}
