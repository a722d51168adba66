//! Whether, and when, an engine that has ended is started again.

use std::fmt;
use std::num::NonZeroU32;
use std::time::Duration;

/// How many starts may fail in a row where nothing else is said.
pub const DEFAULT_LIMIT: NonZeroU32 = NonZeroU32::new(3).unwrap();

/// The wait before the first restart. It doubles with each one.
const FIRST_WAIT: Duration = Duration::from_secs(1);

/// The longest wait.
const LONGEST_WAIT: Duration = Duration::from_secs(60);

/// How long an engine must have been ready for its next restart to be like the first.
const STEADY: Duration = Duration::from_secs(300);

/// The wait before a restart, counted from 1. It is the same for the same number.
#[must_use]
pub fn backoff(restart: u32) -> Duration {
    let doublings = restart.saturating_sub(1).min(16);
    FIRST_WAIT.saturating_mul(1 << doublings).min(LONGEST_WAIT)
}

/// What to do about an engine that has ended by itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Next {
    /// Start it again after this time.
    Restart(Duration),
    /// Leave it: so many starts have failed in a row.
    GiveUp {
        /// How many.
        failed_starts: u32,
    },
}

/// What is said of an engine that is not started any more.
#[must_use]
pub fn given_up(cause: impl fmt::Display, failed_starts: u32) -> String {
    format!("{cause} (stopped after {failed_starts} failed starts)")
}

/// Counts how often an engine has failed. It belongs to a placement and outlives its units.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Restarts {
    /// Starts in a row that were never ready.
    failed_starts: u32,
    /// Restarts since it was last steady.
    restarts: u32,
}

impl Restarts {
    /// The engine is ready.
    pub fn ready(&mut self) {
        self.failed_starts = 0;
    }

    /// The engine has ended, or was ended because it hung, after it had been ready for this long; `None` if it never was. An
    /// engine that was ready is always started again, but one that soon ends each time is started less and less often.
    pub fn ended(&mut self, ready_for: Option<Duration>, limit: NonZeroU32) -> Next {
        match ready_for {
            None => self.failed_starts = self.failed_starts.saturating_add(1),
            Some(lasted) => {
                self.failed_starts = 0;
                if lasted >= STEADY {
                    self.restarts = 0;
                }
            }
        }
        if self.failed_starts >= limit.get() {
            return Next::GiveUp { failed_starts: self.failed_starts };
        }
        self.restarts = self.restarts.saturating_add(1);
        Next::Restart(backoff(self.restarts))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn seconds(next: Next) -> u64 {
        match next {
            Next::Restart(wait) => wait.as_secs(),
            Next::GiveUp { .. } => panic!("{next:?}"),
        }
    }

    #[test]
    fn waits_double_and_are_bounded() {
        let waits = [0, 1, 2, 3, 4, 5, 6, 7, 8, 100, u32::MAX].map(|restart| backoff(restart).as_secs());
        assert_eq!(waits, [1, 1, 2, 4, 8, 16, 32, 60, 60, 60, 60]);
    }

    #[test]
    fn an_engine_that_never_starts_is_given_up() {
        let mut restarts = Restarts::default();
        assert_eq!(seconds(restarts.ended(None, DEFAULT_LIMIT)), 1);
        assert_eq!(seconds(restarts.ended(None, DEFAULT_LIMIT)), 2);
        assert_eq!(restarts.ended(None, DEFAULT_LIMIT), Next::GiveUp { failed_starts: 3 });
        assert_eq!(Restarts::default().ended(None, NonZeroU32::MIN), Next::GiveUp { failed_starts: 1 });
        assert_eq!(given_up("no luck", 3), "no luck (stopped after 3 failed starts)");
    }

    #[test]
    fn a_start_that_succeeds_begins_the_count_anew() {
        let mut restarts = Restarts::default();
        restarts.ended(None, DEFAULT_LIMIT);
        restarts.ended(None, DEFAULT_LIMIT);
        restarts.ready();
        assert!(matches!(restarts.ended(Some(Duration::from_secs(1)), DEFAULT_LIMIT), Next::Restart(_)));
        assert!(matches!(restarts.ended(None, DEFAULT_LIMIT), Next::Restart(_)));
        assert!(matches!(restarts.ended(None, DEFAULT_LIMIT), Next::Restart(_)));
        assert_eq!(restarts.ended(None, DEFAULT_LIMIT), Next::GiveUp { failed_starts: 3 });
    }

    #[test]
    fn an_engine_that_ends_soon_after_each_start_waits_longer_until_it_is_steady() {
        let mut restarts = Restarts::default();
        let soon = Some(Duration::from_secs(5));
        let waits: Vec<_> = (0..8).map(|_| seconds(restarts.ended(soon, NonZeroU32::MIN))).collect();
        assert_eq!(waits, [1, 2, 4, 8, 16, 32, 60, 60]);
        assert_eq!(seconds(restarts.ended(Some(STEADY), NonZeroU32::MIN)), 1);
    }
}
