//! Callers that read and write a few registers through all nodes and keep the history of it. A register is the
//! description of a model; its version is the model's.

use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};
use serde_json::{Value, json};

use crate::api::{Answer, Api, NoAnswer, try_send};
use crate::fleet::PATIENCE;
use crate::history::{Call, FIRST, Outcome, What, check};
use crate::process::wait_for;

/// How many callers read and write through each node.
const CALLERS: u64 = 2;

/// How long a caller lets a node alone that is not there, or that it asks for no more than its own state.
const PAUSE: Duration = Duration::from_millis(20);

/// How long the fleet may be without a leader: twice what it should take to notice the loss of one and to elect another.
pub const FAILOVER: Duration = Duration::from_secs(10);

/// Some registers, those who use them, and what they saw.
#[derive(Debug)]
pub struct Registers {
    /// What their names begin with.
    pub prefix: String,
    apis: Vec<Api>,
    names: Vec<String>,
    start: Instant,
    values: AtomicU32,
    stop: AtomicBool,
    calls: Mutex<Vec<Call>>,
    asked: Mutex<Vec<Asked>>,
}

/// One request; a call that is repeated is several.
#[derive(Clone, Copy, Debug)]
pub struct Asked {
    /// The node that was asked.
    pub node: usize,
    /// What was asked for.
    pub what: What,
    /// What this answer says.
    pub outcome: Outcome,
    /// When it was asked for.
    pub begun: Duration,
    /// How long the answer took.
    pub took: Duration,
}

/// How many calls came to what end.
#[derive(Clone, Copy, Debug, Default)]
pub struct Figures {
    /// Done, or not done because a swap found something else.
    pub answered: usize,
    /// Not done.
    pub refused: usize,
    /// Perhaps done.
    pub unknown: usize,
}

impl Registers {
    /// Makes so many registers, whose names begin like this.
    ///
    /// # Panics
    /// When that fails.
    #[must_use]
    pub fn new(apis: Vec<Api>, prefix: &str, count: usize) -> Self {
        let names: Vec<_> = (0..count).map(|number| format!("{prefix}-{number}")).collect();
        for name in &names {
            let model = json!({"name": name, "provider": "openai-compatible", "modelId": "x",
                "baseUrl": "http://192.0.2.1:9/v1", "description": FIRST.to_string()});
            wait_for(PATIENCE, "a register", || {
                let request = apis[0].request("POST", "/api/models").header("idempotency-key", name).json(&model);
                matches!(try_send(request), Ok(answer) if answer.status == 201).then_some(())
            });
        }
        let (start, values) = (Instant::now(), AtomicU32::new(FIRST + 1));
        let prefix = prefix.to_owned();
        Self {
            prefix,
            apis,
            names,
            start,
            values,
            stop: AtomicBool::new(false),
            calls: Mutex::default(),
            asked: Mutex::default(),
        }
    }

    /// Has callers use them through all nodes while something is done to those.
    pub fn used_while<T>(&self, seed: u64, fault: impl FnOnce() -> T) -> T {
        /// Callers end when the fault's test fails, too: nothing would fail if they went on for ever.
        struct Stop<'a>(&'a AtomicBool);
        impl Drop for Stop<'_> {
            fn drop(&mut self) {
                self.0.store(true, Ordering::Relaxed);
            }
        }
        self.stop.store(false, Ordering::Relaxed);
        std::thread::scope(|scope| {
            let _stop = Stop(&self.stop);
            for node in 0..self.apis.len() {
                let seeds = seed.wrapping_mul(1000).wrapping_add(10 * node as u64);
                for caller in 1..=CALLERS {
                    let _ = scope.spawn(move || self.caller(node, seeds + caller));
                }
                let _ = scope.spawn(move || self.local_reader(node, seeds));
            }
            fault()
        })
    }

    /// Somebody who is content with what this node has, and goes on when it has no quorum.
    fn local_reader(&self, node: usize, seed: u64) {
        let mut random = StdRng::seed_from_u64(seed);
        while !self.stop.load(Ordering::Relaxed) {
            let _ = self.call(node, random.random_range(self.numbers()), What::ReadLocal, None, false);
            std::thread::sleep(PAUSE);
        }
    }

    fn caller(&self, node: usize, seed: u64) {
        let mut random = StdRng::seed_from_u64(seed);
        let mut known = vec![None; self.names.len()];
        while !self.stop.load(Ordering::Relaxed) {
            let register = random.random_range(self.numbers());
            let new = || self.values.fetch_add(1, Ordering::Relaxed);
            let what = match (random.random_range(0..100), known[register]) {
                (0..40, _) => What::Read,
                (40..70, Some((value, _))) => What::Swap(value, new()),
                _ => What::Write(new()),
            };
            let before = known[register].map(|(_, version)| version);
            // Most callers want to know, and some never ask again.
            let insists = random.random_bool(0.75);
            let outcome = self.call(node, register, what, before, insists);
            if let Outcome::Ok(value, version) = outcome {
                known[register] = Some((value, version));
                // Some do not believe it, or their first answer was lost on its way.
                if what.writes().is_some() && random.random_bool(0.05) {
                    self.repeat(node, register, what, before, outcome);
                }
            }
        }
    }

    /// One call, which is repeated through the next node with the same key until its outcome is known, if the caller
    /// insists.
    fn call(&self, node: usize, register: usize, what: What, version: Option<u64>, insists: bool) -> Outcome {
        let begun = self.start.elapsed();
        let mut outcome = self.ask(node, register, what, version);
        let mut through = node;
        while outcome == Outcome::Unknown && what.writes().is_some() && insists && !self.stop.load(Ordering::Relaxed) {
            through = (through + 1) % self.apis.len();
            outcome = match self.ask(through, register, what, version) {
                // This time it was not done; that says nothing of the first time.
                Outcome::Refused => Outcome::Unknown,
                outcome => outcome,
            };
        }
        let call = Call { register, node, what, outcome, begun, ended: self.start.elapsed() };
        self.calls.lock().unwrap_or_else(PoisonError::into_inner).push(call);
        outcome
    }

    /// The repetition of a write is answered as the write was, and nothing is done.
    fn repeat(&self, node: usize, register: usize, what: What, version: Option<u64>, first: Outcome) {
        let again = self.ask((node + 1) % self.apis.len(), register, what, version);
        let unanswered = matches!(again, Outcome::Refused | Outcome::Unknown);
        assert!(unanswered || again == first, "{what:?} was {first:?}, and the same again was {again:?}");
    }

    fn ask(&self, node: usize, register: usize, what: What, version: Option<u64>) -> Outcome {
        let (api, path) = (&self.apis[node], format!("/api/models/{}", self.names[register].replace(' ', "%20")));
        let request = match what {
            What::Read => api.request("GET", &path),
            What::ReadLocal => api.request("GET", &format!("{path}?consistency=local")),
            What::Write(value) | What::Swap(_, value) => {
                let request = api.request("PUT", &path).header("idempotency-key", format!("{path} {value}"));
                let request = request.json(&json!({"description": value.to_string()}));
                match (what, version) {
                    (What::Swap(..), Some(version)) => request.header("if-match", format!("\"{version}\"")),
                    _ => request,
                }
            }
        };
        let begun = self.start.elapsed();
        let sent = try_send(request);
        let took = self.start.elapsed() - begun;
        let outcome = match sent {
            Ok(answer) => outcome(what, &answer),
            Err(NoAnswer { sent: false, .. }) => {
                std::thread::sleep(PAUSE);
                Outcome::Refused
            }
            Err(_) => Outcome::Unknown,
        };
        let asked = Asked { node, what, outcome, begun, took };
        self.asked.lock().unwrap_or_else(PoisonError::into_inner).push(asked);
        outcome
    }

    /// The registers.
    #[must_use]
    pub fn numbers(&self) -> std::ops::Range<usize> {
        0..self.names.len()
    }

    /// Reads the newest value of a register through this node.
    pub fn read(&self, node: usize, register: usize) {
        let _ = self.call(node, register, What::Read, None, false);
    }

    /// The calls so far.
    #[must_use]
    pub fn calls(&self) -> Vec<Call> {
        self.calls.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Forgets all calls but the first so many.
    pub fn forget_after(&self, calls: usize) {
        self.calls.lock().unwrap_or_else(PoisonError::into_inner).truncate(calls);
    }

    /// Waits until something was done through each of these nodes that was asked for after this moment, and returns how
    /// long that took since then, for the first of them.
    ///
    /// # Panics
    /// When that takes longer.
    pub fn wait_for_each(
        &self,
        limit: Duration,
        since: Instant,
        nodes: &[usize],
        kind: impl Fn(What) -> bool,
    ) -> Duration {
        let since = self.time(since);
        wait_for(limit, "calls that are answered", || {
            let calls = self.calls.lock().unwrap_or_else(PoisonError::into_inner);
            let first = |node: &usize| {
                let done = |call: &&Call| call.node == *node && call.begun >= since && kind(call.what);
                let mut done = calls.iter().filter(done).filter(|call| matches!(call.outcome, Outcome::Ok(..)));
                done.next().map(|call| call.ended)
            };
            let each: Option<Vec<_>> = nodes.iter().map(first).collect();
            each?.into_iter().min().map(|first| first - since)
        })
    }

    /// Reads every register through every node, and checks everything that was ever seen of them.
    ///
    /// # Panics
    /// When it can not be explained, or a node does not answer.
    pub fn check(&self) -> Figures {
        for node in 0..self.apis.len() {
            for register in self.numbers() {
                for what in [What::Read, What::ReadLocal] {
                    wait_for(PATIENCE, "a last read", || {
                        matches!(self.call(node, register, what, None, false), Outcome::Ok(..)).then_some(())
                    });
                }
            }
        }
        let calls = self.calls();
        if let Err(why) = check(&calls) {
            panic!("{why}");
        }
        figures(&calls)
    }

    /// What this node was asked and has answered since then.
    #[must_use]
    pub fn answered_since(&self, node: usize, since: Instant) -> Vec<Asked> {
        let since = self.time(since);
        let asked = self.asked.lock().unwrap_or_else(PoisonError::into_inner);
        asked.iter().filter(|asked| asked.node == node && asked.begun + asked.took >= since).copied().collect()
    }

    /// The longest time without a write that was done through any of these nodes, from this moment until now.
    #[must_use]
    pub fn longest_gap(&self, nodes: &[usize], since: Instant) -> Duration {
        let (since, now) = (self.time(since), self.start.elapsed());
        let calls = self.calls();
        let done = calls.iter().filter(|call| nodes.contains(&call.node) && call.what.writes().is_some());
        let done = done.filter(|call| matches!(call.outcome, Outcome::Ok(..)) && call.ended >= since);
        let mut moments: Vec<_> = done.map(|call| call.ended).chain([since, now]).collect();
        moments.sort_unstable();
        moments.windows(2).map(|pair| pair[1] - pair[0]).max().unwrap_or_default()
    }

    /// How long the longest answer took.
    #[must_use]
    pub fn longest(&self) -> Duration {
        let asked = self.asked.lock().unwrap_or_else(PoisonError::into_inner);
        asked.iter().map(|asked| asked.took).max().unwrap_or_default()
    }

    /// The time since the registers were made.
    #[must_use]
    pub fn time(&self, moment: Instant) -> Duration {
        moment.saturating_duration_since(self.start)
    }
}

fn figures(calls: &[Call]) -> Figures {
    let mut figures = Figures::default();
    for call in calls {
        match call.outcome {
            Outcome::Ok(..) | Outcome::Differs => figures.answered += 1,
            Outcome::Refused => figures.refused += 1,
            Outcome::Unknown => figures.unknown += 1,
        }
    }
    figures
}

fn outcome(what: What, answer: &Answer) -> Outcome {
    match (answer.status, what) {
        (200, _) => {
            let value = answer.body["description"].as_str().and_then(|text| text.parse().ok());
            let version = answer.body["modIndex"].as_u64();
            let (Some(value), Some(version)) = (value, version) else { panic!("{what:?}: no register: {answer}") };
            assert!(what.writes().is_none_or(|written| written == value), "{what:?}: {answer}");
            Outcome::Ok(value, version)
        }
        (412, What::Swap(..)) => Outcome::Differs,
        (503, _) => Outcome::Refused,
        (504, _) => Outcome::Unknown,
        _ => panic!("{what:?}: {answer}"),
    }
}

/// A model that is no register.
#[must_use]
pub fn model(name: &str) -> Value {
    json!({"name": name, "provider": "openai-compatible", "modelId": "x", "baseUrl": "http://10.0.0.1:9/v1"})
}
