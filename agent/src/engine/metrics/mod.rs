//! What engines count: samples of it, the usage that people see, and what is added to a deployment's totals.

mod exposition;
mod totals;
mod usage;

pub use exposition::{Series, series};
pub use totals::{Tally, Totals};
pub use usage::{Usage, UsageMeter};

/// The parts of a distribution that are used.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Spread {
    /// All its values together.
    pub sum: f64,
    /// How many there are.
    pub count: f64,
}

/// What an engine says at one time: counters since it began, and gauges. What it does not say is absent, and is not zero.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Sample {
    /// Tokens of prompts.
    pub prompt_tokens: Option<u64>,
    /// Tokens of answers.
    pub generation_tokens: Option<u64>,
    /// Requests that have ended, however they ended.
    pub requests: Option<u64>,
    /// Seconds that requests spent in their prompts.
    pub prefill: Option<Spread>,
    /// Seconds that requests spent in their answers.
    pub decode: Option<Spread>,
    /// Seconds to the first token.
    pub first_token: Option<Spread>,
    /// Seconds to each token after the first.
    pub next_token: Option<Spread>,
    /// Requests under way.
    pub running: Option<u64>,
    /// Requests that wait.
    pub waiting: Option<u64>,
    /// The memory that a simulator says it holds, in bytes.
    pub memory: Option<u64>,
    /// When its process began, in seconds since 1970 and by its own clock.
    pub began: Option<f64>,
}

impl Sample {
    /// Whether it says nothing that usage could be read from.
    #[must_use]
    pub fn is_silent(&self) -> bool {
        let counters = [self.prompt_tokens, self.generation_tokens, self.requests, self.running, self.waiting];
        counters.iter().all(Option::is_none)
    }

    /// Whether its engine has begun anew since the earlier sample: its process is another, or a counter has fallen.
    #[must_use]
    pub fn is_after_restart(&self, earlier: &Self) -> bool {
        let fell = |now: Option<u64>, then: Option<u64>| matches!((now, then), (Some(now), Some(then)) if now < then);
        let shrank = |now: Option<Spread>, then: Option<Spread>| matches!((now, then), (Some(now), Some(then)) if now.sum < then.sum || now.count < then.count);
        matches!((self.began, earlier.began), (Some(now), Some(then)) if (now - then).abs() > 0.5)
            || fell(self.prompt_tokens, earlier.prompt_tokens)
            || fell(self.generation_tokens, earlier.generation_tokens)
            || fell(self.requests, earlier.requests)
            || shrank(self.prefill, earlier.prefill)
            || shrank(self.decode, earlier.decode)
            || shrank(self.first_token, earlier.first_token)
            || shrank(self.next_token, earlier.next_token)
    }
}
