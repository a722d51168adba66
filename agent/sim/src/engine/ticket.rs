//! One request's way through the engine: parked while the engine is held, waiting for a place, running, ended.

use std::sync::Arc;

use tokio::sync::{OwnedSemaphorePermit, watch};
use tokio::time::{Instant, sleep_until};

use super::{Control, Engine};
use crate::metrics::{Finish, Finished};

/// A request under way. Dropping it is the abort that follows when its client leaves.
#[derive(Debug)]
pub struct Ticket {
    engine: Arc<Engine>,
    number: u64,
    control: watch::Receiver<Control>,
    place: Option<OwnedSemaphorePermit>,
    finish: Finish,
    record: Finished,
    came: Instant,
    started: Option<Instant>,
    last_token: Option<Instant>,
}

/// Why a request cannot go on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stop {
    /// It is to end with `abort`.
    Aborted,
    /// The engine is dead.
    Dead,
}

/// What a request may do.
enum Verdict {
    Go,
    Hold,
    Stop(Stop),
}

impl Control {
    /// A frozen engine tells nobody of anything, so that comes first.
    fn verdict(self, number: u64) -> Verdict {
        match self {
            Self { frozen: true, .. } => Verdict::Hold,
            Self { dead: true, .. } => Verdict::Stop(Stop::Dead),
            Self { aborted_below, .. } if number < aborted_below => Verdict::Stop(Stop::Aborted),
            Self { held_from: Some(held), .. } if held <= number => Verdict::Hold,
            _ => Verdict::Go,
        }
    }
}

/// Counts a request as waiting for as long as it lives.
struct Waiting<'a>(&'a Engine);

impl<'a> Waiting<'a> {
    fn new(engine: &'a Engine) -> Self {
        engine.metrics().waiting += 1;
        Self(engine)
    }
}

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        self.0.metrics().waiting -= 1;
    }
}

impl Ticket {
    pub(super) fn new(engine: Arc<Engine>, number: u64, prompt_tokens: u64) -> Self {
        let control = engine.control.subscribe();
        let record = Finished { prompt_tokens, ..Finished::default() };
        Self {
            engine,
            number,
            control,
            place: None,
            finish: Finish::Abort,
            record,
            came: Instant::now(),
            started: None,
            last_token: None,
        }
    }

    /// What the request asked for, for the metrics.
    pub fn asks(&mut self, choices: u32, max_tokens: u32) {
        self.record.n = choices;
        self.record.max_tokens = max_tokens;
    }

    /// Waits until the engine is not held and has a place.
    ///
    /// # Errors
    /// When the request has to end first.
    pub async fn start(&mut self) -> Result<(), Stop> {
        loop {
            self.go().await?;
            let _waiting = Waiting::new(&self.engine);
            tokio::select! {
                biased;
                _ = self.control.changed() => {}
                place = Arc::clone(&self.engine.places).acquire_owned() => {
                    // The semaphore is never closed.
                    self.place = place.ok();
                    break;
                }
            }
        }
        let now = Instant::now();
        self.started = Some(now);
        self.record.queue = now - self.came;
        let mut metrics = self.engine.metrics();
        metrics.running += 1;
        metrics.prompt_tokens += self.record.prompt_tokens;
        metrics.kv_tokens += self.record.prompt_tokens;
        Ok(())
    }

    /// Waits while the engine is held. The result says whether it had to.
    async fn go(&mut self) -> Result<bool, Stop> {
        let mut held = false;
        loop {
            let verdict = self.control.borrow_and_update().verdict(self.number);
            match verdict {
                Verdict::Go => return Ok(held),
                Verdict::Stop(stop) => return Err(stop),
                Verdict::Hold => held = true,
            }
            let _ = self.control.changed().await;
        }
    }

    /// Waits until `due`, or until the engine is no longer held if that is later. The result is when the wait ended:
    /// `due` itself where nothing delayed it, so that the pace does not drift.
    ///
    /// # Errors
    /// When the request has to end first.
    pub async fn until(&mut self, due: Instant) -> Result<Instant, Stop> {
        let mut held = false;
        loop {
            held |= self.go().await?;
            if due <= Instant::now() {
                return Ok(if held { Instant::now() } else { due });
            }
            tokio::select! {
                biased;
                _ = self.control.changed() => {}
                () = sleep_until(due) => {}
            }
        }
    }

    /// Counts the tokens of one step.
    pub fn step(&mut self, tokens: u32) {
        let now = Instant::now();
        let mut metrics = self.engine.metrics();
        match self.last_token {
            None => {
                self.record.prefill = self.started.map_or_else(Default::default, |started| now - started);
                metrics.first_token(now - self.came);
            }
            Some(last) => metrics.next_token(now - last),
        }
        self.last_token = Some(now);
        self.record.generated += u64::from(tokens);
        metrics.step(u64::from(tokens));
    }

    /// Ends it in an orderly way.
    pub fn finish(mut self, finish: Finish) {
        self.finish = finish;
    }
}

impl Drop for Ticket {
    fn drop(&mut self) {
        let now = Instant::now();
        self.record.whole = now - self.came;
        self.record.inference = self.started.map_or_else(Default::default, |started| now - started);
        let mut metrics = self.engine.metrics();
        if self.place.take().is_some() {
            metrics.running -= 1;
            metrics.kv_tokens -= self.record.prompt_tokens + self.record.generated;
        }
        metrics.finished(self.finish, &self.record);
        drop(metrics);
        self.engine.close(self.number);
    }
}
