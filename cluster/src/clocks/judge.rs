//! Whose clock is right: pure arithmetic over what has been read.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use tokio::time::Instant;

use crate::ids::NodeId;

/// A clock that is further from the median of the voters than this is off.
pub const OFF: Duration = Duration::from_secs(2);

/// A clock that was off is good again once it is this close. The gap keeps one that wavers from being judged anew all the time.
const GOOD: Duration = Duration::from_secs(1);

/// A reading that took longer to get says too little.
const SLOWEST: Duration = Duration::from_secs(2);

/// Older readings do not count. A clock that is right does not drift by anything that matters in that time.
const FRESH: Duration = Duration::from_secs(10);

/// So many readings in a row must say that a clock is off, or no longer off. One alone may be a process that was frozen.
const IN_A_ROW: u8 = 2;

/// What another node's clock said, and when by this node's monotonic one: a jump of this node's own clock does not change it.
#[derive(Clone, Copy, Debug)]
pub(super) struct Reading {
    pub at: Instant,
    /// Milliseconds since 1970 at that moment, as far as half of the way there and back can tell.
    pub time_ms: i64,
    /// The way there and back.
    pub round_trip: Duration,
}

impl Reading {
    /// The other clock at this moment, if the reading still says anything.
    fn now(&self, now: Instant) -> Option<i64> {
        self.is_fresh(now).then(|| self.about_now(now))
    }

    /// The other clock at this moment, if nobody has put it since.
    fn about_now(&self, now: Instant) -> i64 {
        self.time_ms.saturating_add(millis(now.saturating_duration_since(self.at)))
    }

    pub fn is_fresh(&self, now: Instant) -> bool {
        now.saturating_duration_since(self.at) <= FRESH && self.round_trip <= SLOWEST
    }

    fn error_ms(&self) -> i64 {
        millis(self.round_trip) / 2
    }
}

pub(super) fn millis(duration: Duration) -> i64 {
    i64::try_from(duration.as_millis()).unwrap_or(i64::MAX)
}

/// What the voters agree on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Agreement {
    /// Nothing has been read yet.
    Unknown,
    /// Fewer than a majority of the voters have been read, or they are not within the bound of each other: nobody can say
    /// whose clock is right.
    Undecided,
    /// A majority of the voters are within the bound of their median.
    Agreed(Median),
}

/// The median of the voters' clocks when they were compared.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Median {
    pub(super) time_ms: i64,
}

/// What has been read of all clocks at one moment.
pub(super) struct Seen<'a> {
    pub own: NodeId,
    /// This node's own clock.
    pub own_ms: i64,
    pub now: Instant,
    pub voters: &'a BTreeSet<NodeId>,
    pub readings: &'a BTreeMap<NodeId, Reading>,
}

impl Seen<'_> {
    fn clock(&self, node: NodeId) -> Option<i64> {
        if node == self.own { Some(self.own_ms) } else { self.readings.get(&node)?.now(self.now) }
    }

    /// The median of the voters, if a majority of them stands behind it.
    pub fn agreement(&self) -> Agreement {
        let mut clocks: Vec<_> = self.voters.iter().filter_map(|voter| self.clock(*voter)).collect();
        clocks.sort_unstable();
        let majority = self.voters.len() / 2 + 1;
        // Of an even number the two in the middle are as good as each other.
        let middle = clocks.len().saturating_sub(1) / 2..=clocks.len() / 2;
        let close = |median: i64| clocks.iter().filter(|clock| clock.abs_diff(median) <= bound(OFF)).count();
        let best = clocks.get(middle).unwrap_or(&clocks).iter().copied().find(|median| close(*median) >= majority);
        match best {
            Some(time_ms) => Agreement::Agreed(Median { time_ms }),
            None => Agreement::Undecided,
        }
    }

    /// What an entry may be stamped with, if anything. Where no majority says what time it is, one other voter must have come
    /// as far: the time of the log goes wrong only if two are wrong alike. If none has been read of late, what was read last
    /// counts: Raft may still work where reading clocks does not.
    pub fn stamp(&self) -> Option<i64> {
        match self.agreement() {
            Agreement::Agreed(median) => (self.own_ms.abs_diff(median.time_ms) <= bound(OFF)).then_some(self.own_ms),
            Agreement::Undecided | Agreement::Unknown => {
                let others = || self.voters.iter().filter(|voter| **voter != self.own);
                let fresh = others().filter_map(|voter| self.clock(*voter)).max();
                let last = || others().filter_map(|voter| Some(self.readings.get(voter)?.about_now(self.now))).max();
                let furthest = fresh.or_else(last);
                Some(furthest.map_or(self.own_ms, |furthest| self.own_ms.min(furthest.saturating_add(millis(OFF)))))
            }
        }
    }

    /// How far a node's clock is from the median, and how far it is at least.
    pub fn offset(&self, node: NodeId, median: Median) -> Option<Offset> {
        let error_ms = if node == self.own { 0 } else { self.readings.get(&node)?.error_ms() };
        Some(Offset { offset_ms: self.clock(node)?.saturating_sub(median.time_ms), error_ms })
    }

    /// Whether somebody else who counts says that it is this time already.
    pub fn second_opinion(&self, time_ms: i64) -> Opinion {
        let reached = |clock: i64| clock >= time_ms.saturating_sub(millis(OFF));
        let others = || self.voters.iter().filter(|voter| **voter != self.own);
        if others().filter_map(|voter| self.clock(*voter)).any(reached) {
            return Opinion::Agrees;
        }
        if others().next().is_some() {
            return Opinion::Missing;
        }
        // The only voter: the others are standbys, if there are any.
        let mut standbys = self.readings.keys().filter_map(|node| self.clock(*node)).peekable();
        match (standbys.peek().is_some(), standbys.any(reached)) {
            (_, true) => Opinion::Agrees,
            (true, false) => Opinion::Missing,
            (false, false) => Opinion::Alone { own_agrees: reached(self.own_ms) },
        }
    }
}

fn bound(duration: Duration) -> u64 {
    millis(duration).unsigned_abs()
}

/// What others say to a time of the log.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Opinion {
    /// A second clock says so as well.
    Agrees,
    /// There are others, and none of those that count says so.
    Missing,
    /// There is nobody else.
    Alone {
        /// Whether this node's own clock still says so.
        own_agrees: bool,
    },
}

/// How far a clock is from the median of the voters.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Offset {
    /// Positive: it is ahead.
    pub offset_ms: i64,
    /// By how much this may be wrong.
    pub error_ms: i64,
}

/// What a clock is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Standing {
    /// It has not been read of late, or the voters do not agree.
    #[default]
    Unknown,
    /// It is where the voters are.
    Good,
    /// It is off.
    Off,
}

/// The standing of one clock, which changes only when several readings say so.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Health {
    pub standing: Standing,
    /// So many readings in a row have said otherwise.
    contrary: u8,
}

impl Health {
    /// Takes a reading into account.
    pub fn take(&mut self, offset: Option<Offset>) {
        let Some(Offset { offset_ms, error_ms }) = offset else {
            *self = Self::default();
            return;
        };
        let distance = i64::try_from(offset_ms.unsigned_abs()).unwrap_or(i64::MAX);
        let says = match () {
            () if distance - error_ms > millis(OFF) => Standing::Off,
            () if distance <= millis(GOOD) => Standing::Good,
            () => self.standing,
        };
        if says == self.standing {
            self.contrary = 0;
            return;
        }
        self.contrary += 1;
        // Nothing was known before: that it is good may be believed at once.
        if self.contrary >= IN_A_ROW || (self.standing, says) == (Standing::Unknown, Standing::Good) {
            *self = Self { standing: says, contrary: 0 };
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOON: i64 = 1_700_000_000_000;

    struct Clocks {
        now: Instant,
        voters: BTreeSet<NodeId>,
        readings: BTreeMap<NodeId, Reading>,
        own_ms: i64,
    }

    /// Nodes 1, 2, ... with clocks that are off by so much; those that are missing have not been read. This is node 1.
    fn clocks(voters: u64, offsets: &[Option<i64>]) -> Clocks {
        let now = Instant::now() + Duration::from_secs(3600);
        let reading = |offset: i64| Reading { at: now, time_ms: NOON + offset, round_trip: Duration::from_millis(10) };
        let others = (2..).zip(&offsets[1..]);
        let readings = others.filter_map(|(node, offset)| Some((NodeId(node), reading((*offset)?)))).collect();
        let voters = (1..=voters).map(NodeId).collect();
        Clocks { now, voters, readings, own_ms: NOON + offsets[0].expect("its own clock") }
    }

    impl Clocks {
        fn seen(&self) -> Seen<'_> {
            let Self { now, voters, readings, own_ms } = self;
            Seen { own: NodeId(1), own_ms: *own_ms, now: *now, voters, readings }
        }

        fn median(&self) -> Option<i64> {
            match self.seen().agreement() {
                Agreement::Agreed(median) => Some(median.time_ms - NOON),
                Agreement::Undecided | Agreement::Unknown => None,
            }
        }
    }

    #[test]
    fn a_majority_of_the_voters_says_what_time_it_is() {
        for (voters, offsets, median) in [
            (1, vec![Some(500)], Some(500)),
            (1, vec![Some(500), Some(-90_000)], Some(500)),
            (3, vec![Some(0), Some(10), Some(120_000)], Some(10)),
            (3, vec![Some(120_000), Some(10), Some(0)], Some(10)),
            (3, vec![Some(0), Some(120_000), None], None),
            (3, vec![Some(0), Some(1500), None], Some(0)),
            (3, vec![Some(0), None, None], None),
            (3, vec![Some(-5000), Some(0), Some(5000)], None),
            (5, vec![Some(-90_000), Some(-90_000), Some(0), Some(20), Some(10)], Some(0)),
            (5, vec![Some(-90_000), Some(0), Some(1900), Some(3800), None], Some(1900)),
            (5, vec![Some(0), Some(0), Some(90_000), Some(90_000), None], None),
        ] {
            assert_eq!(clocks(voters, &offsets).median(), median, "{voters} voters, {offsets:?}");
        }
    }

    #[test]
    fn who_does_not_vote_is_compared_and_does_not_count() {
        let mut standby = clocks(3, &[Some(90_000), Some(0), Some(0), Some(100)]);
        standby.voters = [2, 3, 4].map(NodeId).into();
        assert_eq!(standby.median(), Some(0));
        let Agreement::Agreed(median) = standby.seen().agreement() else { panic!("a majority agrees") };
        let offset = |node: u64| standby.seen().offset(NodeId(node), median).map(|offset| offset.offset_ms);
        assert_eq!([offset(1), offset(2), offset(4), offset(9)], [Some(90_000), Some(0), Some(100), None]);
    }

    #[test]
    fn readings_age_and_a_jump_of_the_own_clock_does_not_move_them() {
        let mut three = clocks(3, &[Some(0), Some(0), Some(0)]);
        three.now += Duration::from_secs(4);
        three.own_ms += 4000 + 120_000;
        assert_eq!(three.median(), Some(4000), "the others have gone on by as much as the monotonic clock");
        three.now += FRESH;
        assert_eq!(three.median(), None, "too old");
        let mut slow = clocks(3, &[Some(0), Some(0), Some(0)]);
        for reading in slow.readings.values_mut() {
            reading.round_trip = SLOWEST * 2;
        }
        assert_eq!(slow.median(), None, "too slow to say anything");
    }

    #[test]
    fn one_reading_alone_changes_no_standing() {
        let mut health = Health::default();
        let mut take = |offset_ms: i64| {
            health.take(Some(Offset { offset_ms, error_ms: 100 }));
            health.standing
        };
        use Standing::{Good, Off, Unknown};
        assert_eq!(take(0), Good);
        assert_eq!([take(3000), take(0), take(-3000), take(0)], [Good; 4], "one at a time");
        assert_eq!([take(3000), take(3000)], [Good, Off]);
        assert_eq!(
            [take(1500), take(1500), take(900), take(1500), take(900), take(-900)],
            [Off, Off, Off, Off, Off, Good]
        );
        assert_eq!([take(2050), take(2050), take(2050)], [Good; 3], "it may be within the bound");
        health.take(None);
        assert_eq!(health.standing, Unknown);
        let mut take = |offset_ms: i64| {
            health.take(Some(Offset { offset_ms, error_ms: 0 }));
            health.standing
        };
        assert_eq!([take(9000), take(9000)], [Unknown, Off]);
    }

    #[test]
    fn a_stamp_is_where_a_majority_is_or_at_least_one_other() {
        for (voters, offsets, stamp) in [
            (1, vec![Some(120_000)], Some(120_000)),
            (3, vec![Some(300), Some(0), Some(-20)], Some(300)),
            (3, vec![Some(120_000), Some(0), Some(0)], None),
            (3, vec![Some(-120_000), Some(0), Some(0)], None),
            (3, vec![Some(120_000), Some(0), None], Some(2000)),
            (3, vec![Some(0), Some(120_000), None], Some(0)),
            (3, vec![Some(120_000), None, None], Some(120_000)),
        ] {
            let found = clocks(voters, &offsets).seen().stamp().map(|stamp| stamp - NOON);
            assert_eq!(found, stamp, "{voters} voters, {offsets:?}");
        }
        let mut deaf = clocks(3, &[Some(120_000), Some(0), Some(100)]);
        deaf.now += 10 * FRESH;
        deaf.own_ms += millis(10 * FRESH);
        let stamp = deaf.seen().stamp().map(|stamp| stamp - NOON - millis(10 * FRESH));
        assert_eq!(stamp, Some(100 + millis(OFF)), "the last that was read counts where nothing can be read");
    }

    #[test]
    fn a_clock_that_shows_the_end_of_numbers_breaks_nothing() {
        let three = clocks(3, &[Some(0), Some(i64::MAX - NOON), Some(i64::MIN + NOON)]);
        let _ = (three.seen().agreement(), three.seen().stamp(), three.seen().second_opinion(i64::MAX));
    }

    #[test]
    fn somebody_else_must_say_that_it_is_so_late() {
        let opinion = |clocks: &Clocks, ahead: i64| clocks.seen().second_opinion(NOON + ahead);
        let three = clocks(3, &[Some(90_000), Some(0), Some(-50)]);
        assert_eq!([opinion(&three, 1000), opinion(&three, 90_000)], [Opinion::Agrees, Opinion::Missing]);
        let cut_off = clocks(3, &[Some(0), None, None, Some(0)]);
        assert_eq!(opinion(&cut_off, 0), Opinion::Missing, "a standby does not count where there are voters");
        let two = clocks(1, &[Some(90_000), Some(0)]);
        assert_eq!(opinion(&two, 0), Opinion::Agrees);
        assert_eq!(opinion(&two, 90_000), Opinion::Missing, "the standby says otherwise");
        let deaf = clocks(1, &[Some(90_000), None]);
        assert_eq!(opinion(&deaf, 90_000), Opinion::Alone { own_agrees: true });
        let one = clocks(1, &[Some(0)]);
        assert_eq!(opinion(&one, 90_000), Opinion::Alone { own_agrees: false });
    }
}
