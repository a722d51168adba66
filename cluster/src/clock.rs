//! The time of day, handed in so that tests and simulations can have their own.

use std::time::{SystemTime, UNIX_EPOCH};

/// Tells the time of day. It may jump and go back; nothing is decided by it but through the log (see
/// [`crate::ids::LogTime`]).
pub trait Clock: Send + Sync + 'static {
    /// Milliseconds since 1970.
    fn now_ms(&self) -> u64;
}

/// The clock of the machine.
#[derive(Clone, Copy, Debug, Default)]
pub struct SystemClock;

impl Clock for SystemClock {
    fn now_ms(&self) -> u64 {
        let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        u64::try_from(since.as_millis()).unwrap_or(u64::MAX)
    }
}
