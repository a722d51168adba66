//! A database that fails on purpose, for tests.

use std::io;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::SystemTime;

use super::error::StoreError;
use super::log::TailLimits;
use super::node::{OpenOptions, databases};
use super::store::{Batch, Opener, Store, Tree, Visitor};
use crate::ids::StoreId;

/// Options for a directory of a test.
pub(crate) fn options() -> OpenOptions {
    OpenOptions {
        fresh_store_id: StoreId::random(),
        now: SystemTime::now(),
        tail: TailLimits::default(),
        journal_bytes: 2 * 1024 * 1024,
    }
}

/// Counts the writes and syncs of all databases of a node, and fails the one whose turn it is, and every later one.
#[derive(Debug)]
pub(crate) struct Fault {
    done: AtomicU64,
    fails_at: AtomicU64,
    // Held by a test that stalls the disk.
    gate: Arc<Mutex<()>>,
}

/// Ends the stall when it is dropped.
pub(crate) struct Stalled {
    release: Option<std::sync::mpsc::Sender<()>>,
    holder: Option<std::thread::JoinHandle<()>>,
}

impl Drop for Stalled {
    fn drop(&mut self) {
        drop(self.release.take());
        if let Some(holder) = self.holder.take() {
            let _ = holder.join();
        }
    }
}

impl Fault {
    pub(crate) fn never() -> Arc<Self> {
        Arc::new(Self { done: AtomicU64::new(0), fails_at: AtomicU64::new(u64::MAX), gate: Arc::default() })
    }

    /// From now on every write and sync waits until the answer is dropped.
    pub(crate) fn stall(&self) -> Stalled {
        let gate = Arc::clone(&self.gate);
        let (release, released) = std::sync::mpsc::channel::<()>();
        let (held, holds) = std::sync::mpsc::channel();
        // A thread of its own, because a guard must not travel with a test that awaits.
        let holder = std::thread::spawn(move || {
            let _guard = gate.lock();
            let _ = held.send(());
            let _ = released.recv();
        });
        holds.recv().expect("the gate is held");
        Stalled { release: Some(release), holder: Some(holder) }
    }

    /// The `nth` write or sync from now on fails; the next one is number 1.
    pub(crate) fn fail_at(&self, nth: u64) {
        self.fails_at.store(self.done() + nth, Ordering::SeqCst);
    }

    /// How many writes and syncs were tried.
    pub(crate) fn done(&self) -> u64 {
        self.done.load(Ordering::SeqCst)
    }

    /// Whether it has struck.
    pub(crate) fn struck(&self) -> bool {
        self.done() >= self.fails_at.load(Ordering::SeqCst)
    }

    /// Real databases under this fault.
    pub(crate) fn opener(self: &Arc<Self>) -> Opener {
        let (fault, real) = (Arc::clone(self), databases(options().journal_bytes));
        Arc::new(move |path, database| Ok(fault.over(real(path, database)?)))
    }

    /// This database under this fault.
    pub(crate) fn over(self: &Arc<Self>, inner: Arc<dyn Store>) -> Arc<dyn Store> {
        Arc::new(FaultyStore { inner, fault: Arc::clone(self) })
    }

    fn step(&self) -> Result<(), StoreError> {
        drop(self.gate.lock());
        let number = self.done.fetch_add(1, Ordering::SeqCst) + 1;
        if number >= self.fails_at.load(Ordering::SeqCst) {
            return Err(StoreError::io("a write that a test lets fail", io::Error::other("injected")));
        }
        Ok(())
    }
}

struct FaultyStore {
    inner: Arc<dyn Store>,
    fault: Arc<Fault>,
}

impl Store for FaultyStore {
    fn write(&self, batch: Batch) -> Result<(), StoreError> {
        self.fault.step()?;
        self.inner.write(batch)
    }

    fn sync(&self) -> Result<(), StoreError> {
        self.fault.step()?;
        self.inner.sync()
    }

    fn tidy(&self) -> Result<(), StoreError> {
        self.inner.tidy()
    }

    fn get(&self, tree: Tree, key: &[u8]) -> Result<Option<Vec<u8>>, StoreError> {
        self.inner.get(tree, key)
    }

    fn scan(&self, tree: Tree, from: &[u8], visit: &mut Visitor<'_>) -> Result<(), StoreError> {
        self.inner.scan(tree, from, visit)
    }
}
