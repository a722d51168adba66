//! The keeper of one placement in one epoch: starts its engine, watches it, starts it again, ends it.

use std::sync::Arc;
use std::time::{Duration, Instant};

use muster_cluster::rows::report_placement::Event;
use muster_cluster::rows::{Failure, PlacementEnded, PlacementFailed, PlacementLoading, PlacementRunning};
use tokio::sync::{mpsc, watch};

use super::models::{self, Unseen};
use super::order::{Order, failure};
use super::reporter::Reporter;
use super::{PAUSE, Sought, Tools, Wish};
use crate::engine::health::{Change, Health, Monitor, Patience, Probe};
use crate::engine::metrics::{Tally, Totals, UsageMeter};
use crate::engine::restarts::{Next, Restarts, given_up};
use crate::leases::boot_time;
use crate::logs::Follower;
use crate::runtime::{Endpoint, Found, Progress, Runtime, RuntimeError, UnitId, UnitState};

/// How long requests that are under way get to finish when an engine is to end.
const DRAIN: Duration = Duration::from_secs(30);

/// How long an engine gets after SIGTERM.
const GRACE: Duration = Duration::from_secs(30);

/// How often an engine is asked whether it is well: while it loads, and once it runs.
const LOADING_PROBE: Duration = Duration::from_millis(250);
const RUNNING_PROBE: Duration = Duration::from_secs(2);

/// How often it is asked what it has counted.
const SAMPLE: Duration = Duration::from_secs(5);

/// How long a wait for a runtime that does not answer becomes at most.
const LONGEST_PAUSE: Duration = Duration::from_secs(30);

/// How long the last lines of an engine that has ended may take to come.
const LAST_WORDS: Duration = Duration::from_secs(3);

/// How long an engine that is ready waits for its lease before callers are told of it, and how often it looks.
const LEASE_LIMIT: Duration = Duration::from_secs(2);
const LEASE_POLL: Duration = Duration::from_millis(10);

/// How many lines of an engine wait to be looked at.
const LINES: usize = 256;

/// Why an engine's life is over.
struct Over {
    failure: Failure,
    /// How long it was ready; `None` if it never was.
    ready_for: Option<Duration>,
    /// Starting it again would not help.
    hopeless: bool,
}

/// Keeps a placement until it has ended, or is no longer this keeper's. What is `sought` is let go of once it is known whether
/// there is an engine that takes requests.
pub(super) async fn keep(tools: Arc<Tools>, unit: UnitId, mut wish: watch::Receiver<Wish>, mut sought: Option<Sought>) {
    let order = Order::read(&tools, &tools.consensus.local(), unit);
    let order = match order {
        Ok(order) => order,
        Err(failure) => {
            tracing::warn!(%unit, why = failure.message, "a placement can not be started here");
            return Reporter::new(&tools, unit).last(ended(Some(failure))).await;
        }
    };
    let Some(runtime) = tools.runtimes.get(&order.runtime).cloned() else { return };
    let keeper = Keeper { tools: &tools, unit, order: &order, runtime: &runtime };
    let reporter = Reporter::new(&tools, unit);
    let opened = tokio::select! {
        biased;
        other = another(&mut wish) => return keeper.part(other, reporter).await,
        opened = tools.doors.open(unit, order.seat.port) => opened,
    };
    if let Err(taken) = opened {
        tracing::warn!(%unit, why = %taken, "a placement can not have its port");
        keeper.end(Duration::ZERO).await;
        return reporter.last(ended(Some(failure("port_conflict", taken.to_string())))).await;
    }
    let limit = tools.failure_limit(order.spec.max_failed_restarts);
    let mut restarts = Restarts::default();
    loop {
        let over = tokio::select! {
            biased;
            other = another(&mut wish) => return keeper.part(other, reporter).await,
            over = keeper.live(&reporter, &mut restarts, &mut sought) => over,
        };
        tools.serving.close(unit);
        sought = None;
        tracing::warn!(%unit, code = over.failure.code, why = over.failure.message, "an engine has ended");
        let next = if over.hopeless { None } else { Some(restarts.ended(over.ready_for, limit)) };
        let wait = match next {
            Some(Next::Restart(wait)) => {
                reporter.tell(Event::Failed(PlacementFailed { failure: Some(over.failure) }));
                wait
            }
            Some(Next::GiveUp { failed_starts }) => {
                let message = given_up(&over.failure.message, failed_starts);
                keeper.end(Duration::ZERO).await;
                return reporter.last(ended(Some(Failure { message, ..over.failure }))).await;
            }
            None => {
                keeper.end(Duration::ZERO).await;
                return reporter.last(ended(Some(over.failure))).await;
            }
        };
        tokio::select! {
            biased;
            other = another(&mut wish) => return keeper.part(other, reporter).await,
            () = async {
                keeper.end(Duration::ZERO).await;
                keeper.say("waiting to start again");
                tokio::time::sleep(wait).await;
            } => {}
        }
    }
}

fn ended(failure: Option<Failure>) -> Event {
    Event::Ended(PlacementEnded { failure })
}

/// Waits until the placement shall no longer run here.
async fn another(wish: &mut watch::Receiver<Wish>) -> Wish {
    let told = wish.wait_for(|wish| *wish != Wish::Run).await.map(|wish| *wish);
    match told {
        Ok(wish) => wish,
        // The supervisor is gone, and this task with it.
        Err(_) => std::future::pending().await,
    }
}

fn over(code: &str, message: impl Into<String>) -> Over {
    Over { failure: failure(code, message), ready_for: None, hopeless: false }
}

/// What has gone wrong before there was an engine.
fn not_launched(error: &RuntimeError) -> Over {
    let (code, hopeless) = match error {
        RuntimeError::Unsuitable(_) => ("unsuitable", true),
        RuntimeError::NoImage { .. } => ("image", true),
        RuntimeError::Image { .. } => ("image", false),
        RuntimeError::Unavailable { .. } => ("runtime_unavailable", false),
        RuntimeError::Start(_) | RuntimeError::NotFound(_) | RuntimeError::Io { .. } | RuntimeError::Failed { .. } => {
            ("start_failed", false)
        }
    };
    Over { hopeless, ..over(code, error.to_string()) }
}

struct Keeper<'a> {
    tools: &'a Arc<Tools>,
    unit: UnitId,
    order: &'a Order,
    runtime: &'a Arc<dyn Runtime>,
}

impl Keeper<'_> {
    /// Says what is being done.
    fn say(&self, detail: &str) {
        self.tools.observed.note(self.unit, |seen| {
            detail.clone_into(&mut seen.detail);
            seen.pulled = None;
            seen.ready = false;
        });
    }

    /// Does what is left to do with a placement that shall not run any more.
    async fn part(&self, wish: Wish, reporter: Reporter) {
        match wish {
            Wish::Leave => {
                self.tools.serving.close(self.unit);
                self.tools.observed.forget(self.unit);
                tracing::warn!(unit = %self.unit, "its record is gone; an engine that runs is left as it is");
            }
            Wish::GoAway => self.end(DRAIN).await,
            Wish::Stop | Wish::Run => {
                self.end(DRAIN).await;
                reporter.last(ended(None)).await;
            }
        }
    }

    /// Ends the engine with everything that belongs to it, however long that takes.
    async fn end(&self, drain: Duration) {
        if let Some(served) = self.tools.serving.close(self.unit) {
            self.say("finishing requests");
            if tokio::time::timeout(drain, served.drained()).await.is_err() && !drain.is_zero() {
                tracing::info!(unit = %self.unit, left = served.in_flight(), "requests that are under way are cut off");
            }
        }
        self.say("stopping");
        let mut pause = PAUSE;
        while let Err(error) = self.runtime.stop(self.unit, GRACE).await {
            tracing::warn!(unit = %self.unit, %error, "an engine could not be ended; it is tried again");
            tokio::time::sleep(pause).await;
            pause = (pause * 2).min(LONGEST_PAUSE);
        }
        self.tools.observed.forget(self.unit);
        self.tools.ledger.close(self.unit.placement);
    }

    /// One life of the engine: found or launched, and watched until it is over.
    async fn live(&self, reporter: &Reporter, restarts: &mut Restarts, sought: &mut Option<Sought>) -> Over {
        let endpoint = match self.find().await {
            Some(Found { state: UnitState::Running(endpoint), image_digest, .. }) => {
                tracing::info!(unit = %self.unit, "found its engine running");
                let digest = image_digest.unwrap_or_default();
                return self.watch(endpoint, digest, true, reporter, restarts, sought).await;
            }
            Some(Found { state: UnitState::Ended(exit), .. }) => {
                let mut monitor = Monitor::new(self.order.engine, Patience::default(), Instant::now());
                return over("exited", monitor.ended(exit).to_string());
            }
            None => {
                *sought = None;
                match self.launch().await {
                    Ok(launched) => launched,
                    Err(over) => return over,
                }
            }
        };
        self.watch(endpoint.0, endpoint.1, false, reporter, restarts, sought).await
    }

    /// The unit, if it is on the machine. A runtime that does not answer is asked again: it may hold the unit.
    async fn find(&self) -> Option<Found> {
        let mut pause = PAUSE;
        loop {
            match self.runtime.units().await {
                Ok(found) => return found.into_iter().find(|found| found.unit == self.unit),
                Err(error) => {
                    self.say("waiting for the runtime");
                    tracing::debug!(unit = %self.unit, %error, "a runtime does not say what runs");
                }
            }
            tokio::time::sleep(pause).await;
            pause = (pause * 2).min(LONGEST_PAUSE);
        }
    }

    async fn launch(&self) -> Result<(Endpoint, String), Over> {
        self.say("starting");
        self.begin_log().await;
        let place = self.runtime.place(self.unit).await.map_err(|error| not_launched(&error))?;
        let sight = models::look(&self.tools.files, &self.order.spec, self.order.runtime).await;
        let sight = sight.map_err(|Unseen { failure, hopeless }| Over { failure, ready_for: None, hopeless })?;
        let launch = self.order.launch(self.tools, self.unit, &place.inside, sight);
        let launch = launch.map_err(|failure| Over { failure, ready_for: None, hopeless: true })?;
        let (progress, mut told) = watch::channel(Progress::default());
        let mut launching = std::pin::pin!(self.runtime.launch(launch, progress));
        loop {
            tokio::select! {
                launched = &mut launching => {
                    let launched = launched.map_err(|error| not_launched(&error))?;
                    return Ok((launched.endpoint, launched.image_digest.unwrap_or_default()));
                }
                Ok(()) = told.changed() => {
                    let Progress { phase, pulled } = told.borrow_and_update().clone();
                    self.tools.observed.note(self.unit, |seen| {
                        phase.clone_into(&mut seen.detail);
                        seen.pulled = pulled;
                    });
                }
            }
        }
    }

    /// Watches an engine until it is over. One that was found is adopted.
    async fn watch(
        &self,
        endpoint: Endpoint,
        image_digest: String,
        adopted: bool,
        reporter: &Reporter,
        restarts: &mut Restarts,
        sought: &mut Option<Sought>,
    ) -> Over {
        self.say("loading");
        // One that was found may be running already, for the fleet too.
        let loading = Event::Loading(PlacementLoading { image_digest });
        if !adopted {
            reporter.tell(loading.clone());
        }
        let mut monitor = Monitor::new(self.order.engine, Patience::default(), Instant::now());
        let limit = self.tools.start_limit();
        let (to_lines, mut lines) = mpsc::channel(LINES);
        let (runtime, logs) = (Arc::clone(self.runtime), Arc::clone(&self.tools.logs));
        let _following = Follower::start(runtime, logs, self.unit, Some(to_lines));
        let mut ending = std::pin::pin!(self.exit());
        let mut probing = std::pin::pin!(self.probe(Duration::ZERO, &endpoint));
        let mut sampling = std::pin::pin!(self.sample(&endpoint, adopted));
        let mut first = adopted;
        loop {
            tokio::select! {
                exit = &mut ending => {
                    let ready_for = monitor.ready_for(Instant::now());
                    // What it has said last says why. The follower ends with the unit.
                    let last_words = async {
                        while let Some(line) = lines.recv().await {
                            monitor.line(&line.text);
                        }
                    };
                    let _ = tokio::time::timeout(LAST_WORDS, last_words).await;
                    let ended = monitor.ended(exit);
                    let code = ended.class.map_or("exited", |class| class.name());
                    return Over { ready_for, ..over(code, ended.to_string()) };
                }
                Some(line) = lines.recv() => {
                    monitor.line(&line.text);
                    if let Some(detail) = monitor.health().detail() {
                        self.tools.observed.note(self.unit, |seen| detail.clone_into(&mut seen.detail));
                    }
                }
                probe = &mut probing => {
                    match monitor.probe(Instant::now(), probe) {
                        Some(Change::Ready) => {
                            restarts.ready();
                            let lease = self.order.leased.then(|| self.tools.leases.of(self.unit));
                            if let Some(lease) = &lease {
                                // Nobody shall be sent here before requests are let in.
                                let renewed = async {
                                    while !lease.is_good(boot_time()) {
                                        tokio::time::sleep(LEASE_POLL).await;
                                    }
                                };
                                let _ = tokio::time::timeout(LEASE_LIMIT, renewed).await;
                            }
                            self.tools.serving.open(self.unit, endpoint.clone(), lease);
                            self.tools.observed.note(self.unit, |seen| {
                                seen.detail.clear();
                                seen.ready = true;
                            });
                            reporter.tell(Event::Running(PlacementRunning {}));
                        }
                        Some(Change::Hung(probe)) => {
                            let ready_for = monitor.ready_for(Instant::now());
                            return Over { ready_for, ..over("hung", format!("the engine hangs: {probe}")) };
                        }
                        Some(Change::Recovered) | None => {}
                    }
                    // It is not ready at once: for the fleet it is being loaded.
                    *sought = None;
                    if std::mem::take(&mut first) && monitor.health() != Health::Running {
                        reporter.tell(loading.clone());
                    }
                    if monitor.is_overdue(Instant::now(), limit) {
                        let message = format!("the engine was not ready after {} s", limit.as_secs());
                        return Over { hopeless: true, ..over("start_timeout", message) };
                    }
                    let pause = if monitor.health() == Health::Running { RUNNING_PROBE } else { LOADING_PROBE };
                    probing.set(self.probe(pause, &endpoint));
                }
                () = &mut sampling => {}
            }
        }
    }

    async fn probe(&self, after: Duration, endpoint: &Endpoint) -> Probe {
        tokio::time::sleep(after).await;
        self.order.engine.probe(endpoint).await
    }

    /// Reads what the engine counts, again and again. It never returns.
    async fn sample(&self, endpoint: &Endpoint, adopted: bool) {
        let mut meter = UsageMeter::default();
        let mut totals = if adopted { Totals::resumed(&self.stored()) } else { Totals::fresh() };
        loop {
            tokio::time::sleep(SAMPLE).await;
            let ready = self.tools.serving.find(self.unit.placement, self.unit.epoch).is_some();
            if !ready {
                continue;
            }
            let Ok(sample) = self.order.engine.sample(endpoint).await else { continue };
            let usage = meter.observe(Instant::now(), &sample);
            self.tools.ledger.add(self.unit.placement, &totals.fold(&sample), usage);
            if let Some(usage) = usage {
                self.tools.observed.note(self.unit, |seen| seen.usage = usage);
            }
        }
    }

    /// What the fleet knows that this placement has done.
    fn stored(&self) -> Tally {
        let done = self.tools.consensus.local().done(self.unit.placement.deployment).unwrap_or_default().totals;
        Tally { prompt_tokens: done.prompt_tokens, generation_tokens: done.completion_tokens, requests: done.requests }
    }

    /// Begins a new log: what is said from now on is of another engine.
    async fn begin_log(&self) {
        let (logs, unit) = (Arc::clone(&self.tools.logs), self.unit);
        match tokio::task::spawn_blocking(move || logs.begin(unit)).await {
            Ok(Ok(())) => {}
            Ok(Err(error)) => tracing::warn!(%unit, %error, "an engine has no log"),
            Err(error) => tracing::error!(%unit, %error, "beginning a log has failed"),
        }
    }

    /// Waits for the end of the unit. A runtime that does not answer says nothing about it.
    async fn exit(&self) -> crate::runtime::Exit {
        loop {
            match self.runtime.ended(self.unit).await {
                Ok(exit) => return exit,
                Err(RuntimeError::NotFound(_)) => {
                    return crate::runtime::Exit { code: None, signal: None, out_of_memory: false };
                }
                Err(error) => tracing::debug!(unit = %self.unit, %error, "a runtime does not say how a unit does"),
            }
            tokio::time::sleep(PAUSE).await;
        }
    }
}
