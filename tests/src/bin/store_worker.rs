//! Works on a node's storage as a Raft node would, and says in a file what it is promised. See `muster_tests::workload`.

use std::collections::BTreeMap;
use std::fs::{File, OpenOptions};
use std::io::Write;
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};

use clap::Parser;
use muster_cluster::state::Tables;
use muster_cluster::storage::{Applied, NodeStorage, SnapshotStore, StoreError, Vote};
use muster_tests::workload::{Holding, Line, NODE, apply, digest, entry, hex, log_id, options};
use rand::rngs::SmallRng;
use rand::{RngExt, SeedableRng};
use tokio::sync::Semaphore;

/// How many batches may be on their way to the disk at once.
const PIPELINE: usize = 8;

#[derive(Parser)]
struct Arguments {
    /// The data directory.
    #[arg(long)]
    data_dir: PathBuf,
    /// The file that the lines are appended to.
    #[arg(long)]
    acks: PathBuf,
    /// Decides what is done.
    #[arg(long)]
    seed: u64,
    /// How many operations.
    #[arg(long)]
    operations: u64,
}

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    let runtime = match tokio::runtime::Builder::new_current_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => {
            eprintln!("{error}");
            return ExitCode::FAILURE;
        }
    };
    match runtime.block_on(work(&arguments)) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("{error}");
            // What the service manager would see of a node whose disk fails.
            ExitCode::from(70)
        }
    }
}

#[derive(Clone)]
struct Lines(Arc<Mutex<File>>);

impl Lines {
    fn say(&self, line: &Line) {
        let text = format!("{line}\n");
        self.0.lock().expect("no panic while writing").write_all(text.as_bytes()).expect("the file takes a line");
    }
}

struct Worker {
    storage: NodeStorage,
    lines: Lines,
    random: SmallRng,
    terms: BTreeMap<u64, u64>,
    tables: Tables,
    applied: Applied,
    committed: u64,
    term: u64,
    last: u64,
    /// Entries before this index are known to be durable.
    durable_end: Arc<AtomicU64>,
    pipeline: Arc<Semaphore>,
    failure: Arc<Mutex<Option<StoreError>>>,
    batch: u64,
}

async fn work(arguments: &Arguments) -> Result<(), Box<dyn std::error::Error>> {
    let lines = OpenOptions::new().create(true).append(true).open(&arguments.acks)?;
    let lines = Lines(Arc::new(Mutex::new(lines)));
    let storage = NodeStorage::open(&arguments.data_dir, &options())?;
    let holding = Holding::of(&storage)?;
    for line in holding.lines() {
        lines.say(&line);
    }
    let mut worker = Worker::new(storage, lines, &holding, arguments.seed).await?;
    for _ in 0..arguments.operations {
        worker.step().await?;
        if let Some(error) = worker.failure.lock().expect("no panic while noting").take() {
            return Err(error.into());
        }
    }
    worker.drain().await?;
    worker.storage.close().await?;
    Ok(())
}

impl Worker {
    async fn new(
        storage: NodeStorage,
        lines: Lines,
        holding: &Holding,
        seed: u64,
    ) -> Result<Self, Box<dyn std::error::Error>> {
        let position = storage.log.position();
        let (mut tables, mut applied) = (storage.tables.clone(), storage.applied.clone());
        // As openraft does: a newer snapshot replaces a state that has fallen behind it.
        if let Some(file) = storage.snapshots.latest()
            && file.applied.log_id > applied.log_id
        {
            tables = file.load()?;
            applied = file.applied.clone();
            storage.state.replace(tables.clone(), applied.clone()).await?;
        }
        let last = position.last.map_or(0, |id| id.index);
        let mut worker = Self {
            terms: holding.entries().clone(),
            tables,
            committed: applied.index().max(position.purged.map_or(0, |id| id.index)),
            applied,
            term: storage.log.vote().map_or(1, |vote| vote.term),
            last,
            durable_end: Arc::new(AtomicU64::new(last + 1)),
            pipeline: Arc::new(Semaphore::new(PIPELINE)),
            failure: Arc::default(),
            batch: 0,
            storage,
            lines,
            random: SmallRng::seed_from_u64(seed),
        };
        if worker.applied.index() > worker.last {
            let upto = worker.applied.index();
            worker.purge(upto).await?;
            worker.last = upto;
        }
        Ok(worker)
    }

    async fn step(&mut self) -> Result<(), StoreError> {
        match self.random.random_range(0..100u32) {
            0..65 => self.append().await,
            65..70 => self.vote().await,
            70..75 => self.truncate().await,
            75..90 => self.apply().await,
            90..94 => self.snapshot().await,
            94..98 => self.purge_behind_snapshot().await,
            98 => self.install().await,
            _ => self.sync_state().await,
        }
    }

    async fn append(&mut self) -> Result<(), StoreError> {
        let permit = Arc::clone(&self.pipeline).acquire_owned().await.expect("never closed");
        let number = self.random.random_range(1..20u64);
        let (first, last, term) = (self.last + 1, self.last + number, self.term);
        self.batch += 1;
        let batch = self.batch;
        self.lines.say(&Line::Append { batch, first, last, term });
        let (lines, durable_end, failure) =
            (self.lines.clone(), Arc::clone(&self.durable_end), Arc::clone(&self.failure));
        let done = Box::new(move |outcome: Result<(), StoreError>| {
            match outcome {
                Ok(()) => {
                    lines.say(&Line::Appended(batch));
                    durable_end.store(last + 1, Ordering::SeqCst);
                }
                Err(error) => *failure.lock().expect("no panic while noting") = Some(error),
            }
            drop(permit);
        });
        self.storage.log.append((first..=last).map(|index| entry(index, term)).collect(), done).await?;
        self.terms.extend((first..=last).map(|index| (index, term)));
        self.last = last;
        Ok(())
    }

    async fn vote(&mut self) -> Result<(), StoreError> {
        let term = self.term + 1;
        for committed in [false, true] {
            self.lines.say(&Line::Vote { term, committed });
            self.storage.log.save_vote(Vote { term, node: NODE, committed }).await?;
            self.lines.say(&Line::Voted { term, committed });
        }
        self.term = term;
        Ok(())
    }

    async fn truncate(&mut self) -> Result<(), StoreError> {
        // A new leader overwrites what another one left, so a vote comes first.
        if self.last <= self.committed {
            return Ok(());
        }
        self.vote().await?;
        let keep = self.random.random_range(self.committed..self.last).max(self.last.saturating_sub(60));
        let Some(term) = self.terms.get(&keep).copied() else { return Ok(()) };
        self.lines.say(&Line::Truncate(keep));
        self.storage.log.truncate_after(Some(log_id(keep, term))).await?;
        self.lines.say(&Line::Truncated(keep));
        self.terms.split_off(&(keep + 1));
        self.last = keep;
        self.durable_end.store(keep + 1, Ordering::SeqCst);
        Ok(())
    }

    async fn apply(&mut self) -> Result<(), StoreError> {
        // What other nodes have on their disks may be committed before it is durable here.
        let durable = match self.random.random_bool(0.5) {
            true => self.durable_end.load(Ordering::SeqCst).saturating_sub(1).min(self.last),
            false => self.last,
        };
        if durable <= self.applied.index() {
            return Ok(());
        }
        self.committed = self.random.random_range(self.applied.index()..=durable).max(self.committed);
        for index in self.applied.index() + 1..=self.committed {
            let Some(term) = self.terms.get(&index).copied() else { return Ok(()) };
            apply(&mut self.tables, index, term);
            self.applied.log_id = Some(log_id(index, term));
        }
        self.storage.log.save_committed(self.applied.log_id);
        self.announce_state();
        self.storage.state.record(self.tables.take_changes(), self.applied.clone()).await
    }

    fn announce_state(&mut self) {
        self.applied.fingerprint = self.tables.fingerprint();
        let (index, hash) = (self.applied.index(), hex(&self.applied.fingerprint.history));
        self.lines.say(&Line::State { index, hash, digest: digest(&self.tables) });
    }

    async fn sync_state(&mut self) -> Result<(), StoreError> {
        self.storage.state.sync().await?;
        self.lines.say(&Line::Synced(self.applied.index()));
        Ok(())
    }

    async fn snapshot(&mut self) -> Result<(), StoreError> {
        if self.applied.index() == 0 {
            return Ok(());
        }
        self.sync_state().await?;
        self.storage.snapshots.build(&self.tables, &self.applied)?;
        self.lines.say(&Line::Snapshot(self.applied.index()));
        Ok(())
    }

    async fn purge_behind_snapshot(&mut self) -> Result<(), StoreError> {
        let Some(file) = self.storage.snapshots.latest() else { return Ok(()) };
        let purged = self.storage.log.position().purged.map_or(0, |id| id.index);
        if file.applied.index() <= purged {
            return Ok(());
        }
        let upto = self.random.random_range(purged + 1..=file.applied.index());
        self.sync_state().await?;
        self.purge(upto).await
    }

    async fn purge(&mut self, upto: u64) -> Result<(), StoreError> {
        let term = self.terms.get(&upto).copied().or(self.applied.log_id.map(|id| id.term)).unwrap_or(self.term);
        self.lines.say(&Line::Purge(upto));
        self.storage.log.purge(log_id(upto, term)).await?;
        self.lines.say(&Line::Purged(upto));
        self.terms = self.terms.split_off(&(upto + 1));
        Ok(())
    }

    /// As when a leader sends a snapshot to a node that is far behind.
    async fn install(&mut self) -> Result<(), StoreError> {
        self.drain().await?;
        let upto = self.last + 50;
        let mut tables = self.tables.clone();
        for index in self.applied.index() + 1..=upto {
            apply(&mut tables, index, self.terms.get(&index).copied().unwrap_or(self.term));
        }
        // The snapshot is built from these; what led to them is not for the disk.
        tables.take_changes();
        self.tables = tables;
        self.applied.log_id = Some(log_id(upto, self.term));
        self.announce_state();
        // Built where nobody records it, and received in pieces.
        let elsewhere = tempfile::tempdir().expect("a directory");
        let sent = SnapshotStore::open(elsewhere.path())?.build(&self.tables, &self.applied)?;
        let mut incoming = self.storage.snapshots.receive()?;
        for chunk in std::fs::read(&sent.path).expect("the snapshot can be read").chunks(10_000) {
            incoming.write(chunk)?;
        }
        let received = self.storage.snapshots.finish(incoming)?;
        self.storage.snapshots.adopt(&received)?;
        self.lines.say(&Line::Snapshot(upto));
        self.storage.state.replace(self.tables.clone(), self.applied.clone()).await?;
        self.lines.say(&Line::Synced(upto));
        self.terms.insert(upto, self.term);
        self.purge(upto).await?;
        self.last = upto;
        self.committed = upto;
        self.durable_end.store(upto + 1, Ordering::SeqCst);
        Ok(())
    }

    async fn drain(&self) -> Result<(), StoreError> {
        let all = self.pipeline.acquire_many(PIPELINE as u32).await.expect("never closed");
        drop(all);
        match self.failure.lock().expect("no panic while noting").take() {
            Some(error) => Err(error),
            None => Ok(()),
        }
    }
}
