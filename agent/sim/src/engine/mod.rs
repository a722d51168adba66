//! The engine: what it is doing, and whom it lets in. A request's way through it is a [`Ticket`].

mod sleep;
mod ticket;

use std::collections::BTreeSet;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use http::StatusCode;
use tokio::sync::{Semaphore, watch};

pub use sleep::{Mode, Sleep};
pub use ticket::{Stop, Ticket};

use crate::metrics::Metrics;
use crate::settings::Settings;

/// One engine. There is one in a process.
#[derive(Debug)]
pub struct Engine {
    settings: Settings,
    control: watch::Sender<Control>,
    places: Arc<Semaphore>,
    open: Mutex<Open>,
    /// Tells who waits for requests to end that some did.
    closed: watch::Sender<()>,
    sleep: Mutex<Option<Sleep>>,
    metrics: Mutex<Metrics>,
    inferences: AtomicU64,
    ids: AtomicU64,
}

/// What all requests have to follow.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Control {
    /// Nothing works any more.
    dead: bool,
    /// Nothing moves any more, and nobody is told.
    frozen: bool,
    /// Nobody new gets in.
    draining: bool,
    /// Requests with a lower number end with `abort`.
    aborted_below: u64,
    /// Requests with this number or a higher one do not move.
    held_from: Option<u64>,
}

/// The requests under way, by the number that each got when it came in.
#[derive(Debug, Default)]
struct Open {
    numbers: BTreeSet<u64>,
    next: u64,
}

/// Why a request did not get in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Refused {
    /// The engine is dead.
    Dead,
    /// The process has been told to stop.
    Draining,
    /// `--max-num-queued-reqs` has been reached.
    Busy,
}

impl Engine {
    /// An engine that is awake and idle.
    #[must_use]
    pub fn new(settings: Settings) -> Arc<Self> {
        let places = Semaphore::new(settings.arguments.max_num_seqs as usize);
        let metrics = Metrics::new(settings.arguments.max_model_len);
        Arc::new(Self {
            settings,
            control: watch::Sender::new(Control::default()),
            places: Arc::new(places),
            open: Mutex::default(),
            closed: watch::Sender::new(()),
            sleep: Mutex::default(),
            metrics: Mutex::new(metrics),
            inferences: AtomicU64::new(0),
            ids: AtomicU64::new(0),
        })
    }

    /// What it was started with.
    #[must_use]
    pub fn settings(&self) -> &Settings {
        &self.settings
    }

    /// Its counters.
    pub fn metrics(&self) -> MutexGuard<'_, Metrics> {
        locked(&self.metrics)
    }

    /// A part of an answer's id for a request that brought none: counted, so that a run can be repeated.
    pub fn next_id(&self) -> String {
        format!("{:032x}", self.ids.fetch_add(1, Ordering::Relaxed))
    }

    /// The status that every inference request is to get, if that was asked for.
    #[must_use]
    pub fn failing(&self) -> Option<StatusCode> {
        self.settings.arguments.error_status.and_then(|code| StatusCode::from_u16(code).ok())
    }

    /// Lets a request in that is valid.
    ///
    /// # Errors
    /// When it has to be refused.
    pub fn admit(self: &Arc<Self>, prompt_tokens: u64) -> Result<Ticket, Refused> {
        let nth = self.inferences.fetch_add(1, Ordering::Relaxed) + 1;
        if self.settings.arguments.fail_after == Some(nth) {
            self.control.send_modify(|control| control.dead = true);
        }
        let control = *self.control.borrow();
        if control.dead {
            return Err(Refused::Dead);
        }
        if control.draining {
            return Err(Refused::Draining);
        }
        let mut open = locked(&self.open);
        let limit = self.settings.arguments.max_num_queued_reqs;
        if limit.is_some_and(|limit| open.numbers.len() >= limit as usize) {
            self.metrics().rejected();
            return Err(Refused::Busy);
        }
        let number = open.next;
        open.next += 1;
        open.numbers.insert(number);
        drop(open);
        Ok(Ticket::new(Arc::clone(self), number, prompt_tokens))
    }

    /// Whether it has died.
    #[must_use]
    pub fn is_dead(&self) -> bool {
        self.control.borrow().dead
    }

    /// Ends when it dies.
    pub async fn died(&self) {
        // The sender is in `self`, so the wait can not fail.
        let _ = self.control.subscribe().wait_for(|control| control.dead).await;
    }

    /// Lets nobody in any more.
    pub fn drain(&self) {
        self.control.send_modify(|control| control.draining = true);
    }

    /// Stops everything where it is.
    pub fn freeze(&self) {
        self.control.send_modify(|control| control.frozen = true);
    }

    /// How many requests are under way.
    #[must_use]
    pub fn under_way(&self) -> usize {
        locked(&self.open).numbers.len()
    }

    /// Ends when no request is under way whose number is below this.
    async fn ended_below(&self, number: u64) {
        let mut closed = self.closed.subscribe();
        while locked(&self.open).numbers.first().is_some_and(|first| *first < number) {
            let _ = closed.changed().await;
        }
    }

    /// Ends when no request is under way.
    pub async fn idle(&self) {
        self.ended_below(u64::MAX).await;
    }

    fn close(&self, number: u64) {
        locked(&self.open).numbers.remove(&number);
        self.closed.send_replace(());
    }
}

/// The value, also where its last holder panicked: each is changed in one step.
fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
