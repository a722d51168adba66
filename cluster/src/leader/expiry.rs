//! Whether something may expire by the time of the log: not by a step that this node alone believes in.

use std::time::Duration;

use tokio::time::Instant;

use crate::clocks::{Opinion, Standing};
use crate::ids::LogTime;

/// The time of the log may move by so much without anybody being asked.
const STEP: Duration = Duration::from_secs(60);

/// Why nothing expires for now.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Withheld {
    /// The clock of this node is off. Another node will lead soon.
    #[error("the clock of this node is off; another one is to lead")]
    ClockOff,
    /// The time of the log has made a step, and no second voter says that it is so late.
    #[error("the time of the log has made a step of more than 60 s, and no second voter agrees")]
    NoSecondVoter,
    /// There is no other node, and the step is recent.
    #[error(
        "the time of the log has made a step of more than 60 s, and there is nobody to ask; it counts after a while"
    )]
    TooRecent,
}

/// What has been believed of the time of the log, in one office.
#[derive(Debug, Default)]
pub(super) struct Expiry {
    /// The last time that something could expire by.
    believed: Option<LogTime>,
    /// A step that nobody could be asked about, and since when this node's clock has said the same.
    waiting: Option<(LogTime, Instant)>,
}

impl Expiry {
    /// Whether something may expire by this time.
    pub fn may(
        &mut self,
        time: LogTime,
        own: Standing,
        opinion: Opinion,
        patience: Duration,
        now: Instant,
    ) -> Result<(), Withheld> {
        if own == Standing::Off {
            return Err(Withheld::ClockOff);
        }
        let step = u64::try_from(STEP.as_millis()).unwrap_or(u64::MAX);
        let small = self.believed.is_some_and(|believed| time.0 <= believed.0.saturating_add(step));
        if !small {
            self.ask(time, opinion, patience, now)?;
        }
        self.believed = self.believed.max(Some(time));
        self.waiting = None;
        Ok(())
    }

    fn ask(&mut self, time: LogTime, opinion: Opinion, patience: Duration, now: Instant) -> Result<(), Withheld> {
        match opinion {
            Opinion::Agrees => Ok(()),
            Opinion::Missing => Err(Withheld::NoSecondVoter),
            Opinion::Alone { own_agrees: false } => {
                // The clock has been put right behind the log: the step was wrong.
                self.waiting = None;
                Err(Withheld::TooRecent)
            }
            Opinion::Alone { own_agrees: true } => {
                let step = u64::try_from(STEP.as_millis()).unwrap_or(u64::MAX);
                let waited = |(step_to, since): (LogTime, Instant)| {
                    // The log's time goes on while it waits, as fast as any clock, and no faster.
                    let passed = u64::try_from(now.saturating_duration_since(since).as_millis()).unwrap_or(u64::MAX);
                    (time.0 <= step_to.0.saturating_add(passed).saturating_add(step)).then_some(since)
                };
                let since = self.waiting.and_then(waited).unwrap_or_else(|| {
                    self.waiting = Some((time, now));
                    now
                });
                if now.saturating_duration_since(since) >= patience { Ok(()) } else { Err(Withheld::TooRecent) }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const HOUR: u64 = 3_600_000;
    const PATIENCE: Duration = Duration::from_secs(600);

    fn seconds(time: LogTime, seconds: u64) -> LogTime {
        LogTime(time.0 + seconds * 1000)
    }

    #[test]
    fn a_step_of_more_than_a_minute_needs_a_second_voter() {
        let (mut expiry, now) = (Expiry::default(), Instant::now());
        let mut may = |time, opinion| expiry.may(time, Standing::Good, opinion, PATIENCE, now);
        let noon = LogTime(12 * HOUR);
        assert_eq!(
            may(noon, Opinion::Missing),
            Err(Withheld::NoSecondVoter),
            "of a new office nothing is believed yet"
        );
        assert_eq!(may(noon, Opinion::Agrees), Ok(()));
        assert_eq!(may(seconds(noon, 60), Opinion::Missing), Ok(()));
        assert_eq!(may(seconds(noon, 121), Opinion::Missing), Err(Withheld::NoSecondVoter));
        assert_eq!(
            may(seconds(noon, 121), Opinion::Missing),
            Err(Withheld::NoSecondVoter),
            "asking again helps nothing"
        );
        assert_eq!(may(seconds(noon, 121), Opinion::Agrees), Ok(()));
        assert_eq!(may(seconds(noon, 180), Opinion::Missing), Ok(()));
    }

    #[test]
    fn a_leader_whose_clock_is_off_expires_nothing() {
        let (mut expiry, now) = (Expiry::default(), Instant::now());
        let mut may = |own| expiry.may(LogTime(HOUR), own, Opinion::Agrees, PATIENCE, now);
        assert_eq!(may(Standing::Good), Ok(()));
        assert_eq!(may(Standing::Off), Err(Withheld::ClockOff));
        assert_eq!(may(Standing::Unknown), Ok(()));
    }

    #[test]
    fn a_node_without_others_waits_before_it_believes_a_step() {
        let (mut expiry, begun) = (Expiry::default(), Instant::now());
        let mut may = |time: LogTime, own_agrees, after: u64| {
            let now = begun + Duration::from_secs(after);
            expiry.may(time, Standing::Good, Opinion::Alone { own_agrees }, PATIENCE, now)
        };
        let wait = Err(Withheld::TooRecent);
        let noon = LogTime(12 * HOUR);
        assert_eq!(may(noon, true, 0), wait);
        assert_eq!(may(seconds(noon, 599), true, 599), wait);
        assert_eq!(may(seconds(noon, 600), true, 600), Ok(()));
        let jumped = seconds(noon, 7200);
        assert_eq!(may(jumped, true, 610), wait);
        assert_eq!(may(jumped, false, 700), wait, "the clock has been put right");
        assert_eq!(may(jumped, true, 1300), wait, "it counts from the beginning");
        assert_eq!(may(seconds(jumped, 300), true, 1600), wait);
        assert_eq!(may(seconds(jumped, 7200), true, 1700), wait, "another step");
        assert_eq!(may(seconds(jumped, 7800), true, 2300), Ok(()));
    }
}
