//! What callers did to a few registers and what they saw, and whether one register each, used by one caller after the
//! other, could have behaved like that (linearizability). Every value is written at most once.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::time::Duration;

/// What every register holds before anybody writes it.
pub const FIRST: u32 = 0;

/// What was asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum What {
    /// The newest value.
    Read,
    /// The value as the asked node has it.
    ReadLocal,
    /// A new value.
    Write(u32),
    /// A new value in the place of this one only.
    Swap(u32, u32),
}

impl What {
    /// The value that it writes.
    #[must_use]
    pub fn writes(self) -> Option<u32> {
        match self {
            Self::Read | Self::ReadLocal => None,
            Self::Write(value) | Self::Swap(_, value) => Some(value),
        }
    }
}

/// What became of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// It was done: what the register held then, and that value's version.
    Ok(u32, u64),
    /// It was not done because the register held another value than a swap was to replace.
    Differs,
    /// It was not done.
    Refused,
    /// It may have been done, at any time since it was asked for, or will be.
    Unknown,
}

/// One call. Its times are counted from the beginning of the history.
#[derive(Clone, Copy, Debug)]
pub struct Call {
    /// The register.
    pub register: usize,
    /// The node that was asked; of a repeated call the first one.
    pub node: usize,
    /// What was asked for.
    pub what: What,
    /// What became of it.
    pub outcome: Outcome,
    /// When it was asked for.
    pub begun: Duration,
    /// When the answer was there.
    pub ended: Duration,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Operation {
    Read(u32),
    Write(u32),
    Swap(u32, u32),
    Differs(u32),
}

impl Operation {
    /// What a register that holds this value holds afterwards; nothing if the operation could not have been done.
    fn on(self, value: u32) -> Option<u32> {
        match self {
            Self::Read(read) => (read == value).then_some(value),
            Self::Write(new) => Some(new),
            Self::Swap(before, after) => (before == value).then_some(after),
            Self::Differs(other) => (other != value).then_some(value),
        }
    }

    fn changes(self) -> bool {
        matches!(self, Self::Write(_) | Self::Swap(..))
    }
}

/// Checks a whole history.
///
/// # Errors
/// When no order of the calls explains what was seen; with the calls that led to it.
pub fn check(calls: &[Call]) -> Result<(), String> {
    let registers: BTreeSet<_> = calls.iter().map(|call| call.register).collect();
    for register in registers {
        let mut own: Vec<_> = calls.iter().filter(|call| call.register == register).copied().collect();
        own.sort_unstable_by_key(|call| call.ended);
        if !is_linearizable(&operations(&own)) {
            return Err(explain(&own));
        }
        check_versions(&own)?;
        check_local(&own)?;
    }
    Ok(())
}

/// What is left of the calls for the checker, which knows only calls that were done: a write of unknown outcome was done
/// before anybody had seen its value, and one that nobody saw explains nothing but a difference.
fn operations(calls: &[Call]) -> Vec<(Duration, Duration, Operation)> {
    let mut seen: HashMap<u32, Duration> = HashMap::new();
    for call in calls {
        let value = match (call.what, call.outcome) {
            (What::Read, Outcome::Ok(value, _)) | (What::Swap(value, _), Outcome::Ok(..)) => value,
            _ => continue,
        };
        let first = seen.entry(value).or_insert(call.ended);
        *first = call.ended.min(*first);
    }
    let unseen = |call: &&Call| {
        call.outcome == Outcome::Unknown && call.what.writes().is_some_and(|value| !seen.contains_key(&value))
    };
    let maybe_different_since = calls.iter().filter(unseen).map(|call| call.begun).min();
    let operation = |call: &Call| {
        let done = (call.begun, call.ended);
        let of = |(begun, ended), operation| Some((begun, ended, operation));
        match (call.what, call.outcome) {
            (What::Read, Outcome::Ok(value, _)) => of(done, Operation::Read(value)),
            (What::Write(value), Outcome::Ok(..)) => of(done, Operation::Write(value)),
            (What::Swap(before, after), Outcome::Ok(..)) => of(done, Operation::Swap(before, after)),
            (What::Swap(before, _), Outcome::Differs) => {
                let certain = maybe_different_since.is_none_or(|since| since > call.ended);
                certain.then_some((call.begun, call.ended, Operation::Differs(before)))
            }
            (what, Outcome::Unknown) => {
                let value = what.writes()?;
                let until = *seen.get(&value).filter(|until| **until > call.begun)?;
                let operation = match what {
                    What::Swap(before, after) => Operation::Swap(before, after),
                    _ => Operation::Write(value),
                };
                of((call.begun, until), operation)
            }
            _ => None,
        }
    };
    calls.iter().filter_map(operation).collect()
}

/// Begins and ends of operations in the order of time. At one moment what begins comes first: the two are at the same time
/// then.
fn moments(operations: &[(Duration, Duration, Operation)]) -> Vec<(Duration, bool, usize)> {
    let both = |(number, (begun, ended, _)): (usize, &(Duration, Duration, Operation))| {
        [(*begun, false, number), (*ended, true, number)]
    };
    let mut moments: Vec<_> = operations.iter().enumerate().flat_map(both).collect();
    moments.sort_unstable();
    moments
}

/// The search of Wing and Gong, with what Lowe made of it: it goes through time with all that the register may hold and,
/// for each, which of the calls under way have been done. A call is done at the latest when it ends. What that needs does
/// not grow with the history.
fn is_linearizable(operations: &[(Duration, Duration, Operation)]) -> bool {
    let mut under_way: Vec<Option<Operation>> = Vec::new();
    let mut places = HashMap::new();
    let mut possible = HashSet::from([(FIRST, 0_u128)]);
    for (_, ends, number) in moments(operations) {
        if !ends {
            let free = under_way.iter().position(Option::is_none).unwrap_or(under_way.len());
            assert!(free < 128, "so many calls at once are more than can be told apart");
            under_way.resize(under_way.len().max(free + 1), None);
            under_way[free] = Some(operations[number].2);
            places.insert(number, free);
            continue;
        }
        let place = places.remove(&number).expect("it has begun");
        let mut next = HashSet::new();
        let mut seen = possible.clone();
        let mut open: Vec<_> = possible.into_iter().collect();
        while let Some((value, mut done)) = open.pop() {
            let not_done = |done: u128| {
                let waiting = under_way.iter().enumerate().filter(move |(place, _)| done & (1 << place) == 0);
                waiting.filter_map(|(place, operation)| Some((place, (*operation)?)))
            };
            // What changes nothing and could be done now may as well be.
            for (place, operation) in not_done(done) {
                if !operation.changes() && operation.on(value).is_some() {
                    done |= 1 << place;
                }
            }
            if done & (1 << place) != 0 {
                next.insert((value, done & !(1 << place)));
                continue;
            }
            for (place, operation) in not_done(done) {
                if let Some(after) = operation.on(value)
                    && seen.insert((after, done | 1 << place))
                {
                    open.push((after, done | 1 << place));
                }
            }
        }
        if next.is_empty() {
            return false;
        }
        under_way[place] = None;
        possible = next;
    }
    true
}

/// The calls that had ended so early, and what was under way then: it may be done or not.
fn beginning(calls: &[Call], ended: usize) -> Vec<Call> {
    let now = calls[ended - 1].ended;
    let under_way = calls[ended..].iter().filter(|call| call.begun <= now);
    let under_way = under_way.map(|call| Call { outcome: Outcome::Unknown, ..*call });
    calls[..ended].iter().copied().chain(under_way).collect()
}

/// The end of the shortest beginning that has no explanation.
fn explain(calls: &[Call]) -> String {
    let (mut good, mut bad) = (0, calls.len());
    while bad - good > 1 {
        let middle = usize::midpoint(good, bad);
        if is_linearizable(&operations(&beginning(calls, middle))) { good = middle } else { bad = middle }
    }
    let mut calls = beginning(calls, bad);
    calls.retain(|call| call.what != What::ReadLocal);
    calls.sort_unstable_by_key(|call| call.begun);
    let last: Vec<_> = calls.iter().skip(calls.len().saturating_sub(24)).map(|call| format!("  {call:?}")).collect();
    format!("no order explains what was seen:\n{}", last.join("\n"))
}

/// A version is of one value, and a value of one version.
fn check_versions(calls: &[Call]) -> Result<(), String> {
    let (mut values, mut versions) = (BTreeMap::new(), HashMap::new());
    for call in calls {
        if let Outcome::Ok(value, version) = call.outcome
            && (*values.entry(version).or_insert(value) != value
                || *versions.entry(value).or_insert(version) != version)
        {
            return Err(format!("{call:?}, and elsewhere it was another value or version"));
        }
    }
    Ok(())
}

/// What a node shows from its own state was written, and committed by then, and never becomes older.
fn check_local(calls: &[Call]) -> Result<(), String> {
    let begun_writes: HashMap<_, _> = calls
        .iter()
        .filter(|call| !matches!(call.outcome, Outcome::Refused | Outcome::Differs))
        .filter_map(|call| Some((call.what.writes()?, call.begun)))
        .collect();
    let version = |call: &Call| match call.outcome {
        Outcome::Ok(_, version) => Some(version),
        _ => None,
    };
    for local in calls.iter().filter(|call| call.what == What::ReadLocal) {
        let Outcome::Ok(value, seen) = local.outcome else { continue };
        if value != FIRST && begun_writes.get(&value).is_none_or(|begun| *begun > local.ended) {
            return Err(format!("{local:?}: nobody has written that"));
        }
        // What comes after it, here or as the newest state, is at least as new.
        let older = calls.iter().find(|later| {
            let follows = later.what != What::ReadLocal || later.node == local.node;
            follows && later.begun > local.ended && version(later).is_some_and(|version| version < seen)
        });
        if let Some(older) = older {
            return Err(format!("{local:?}\nand then something older:\n{older:?}"));
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use rand::rngs::StdRng;
    use rand::{RngExt, SeedableRng};
    use todc_utils::{Action, History, Specification, WGLChecker};

    use super::What::{Read, ReadLocal, Swap, Write};
    use super::*;

    /// A register, as another's checker wants it.
    struct Register;

    impl Specification for Register {
        type State = u32;
        type Operation = Operation;

        fn init() -> u32 {
            FIRST
        }

        fn apply(operation: &Operation, state: &u32) -> (bool, u32) {
            let after = operation.on(*state);
            (after.is_some(), after.unwrap_or(*state))
        }
    }

    /// That one keeps every set of calls that it has tried, which is too much for long histories.
    #[test]
    fn short_histories_are_judged_as_another_checker_judges_them() {
        let mut random = StdRng::seed_from_u64(1);
        let mut judged = [0, 0];
        for _ in 0..3000 {
            let operations: Vec<_> = (0..random.random_range(1..9))
                .map(|_| {
                    let begun = random.random_range(0..12);
                    let mut value = || random.random_range(0..3);
                    let operation = match (value(), value()) {
                        (0, _) => Operation::Read(value()),
                        (1, _) => Operation::Write(value()),
                        (_, 0) => Operation::Differs(value()),
                        _ => Operation::Swap(value(), value()),
                    };
                    let ended = begun + random.random_range(1..6);
                    (Duration::from_secs(begun), Duration::from_secs(ended), operation)
                })
                .collect();
            let actions = moments(&operations).into_iter().map(|(_, ends, number)| {
                let operation = operations[number].2;
                (number, if ends { Action::Response(operation) } else { Action::Call(operation) })
            });
            let theirs = WGLChecker::<Register>::is_linearizable(History::from_actions(actions.collect()));
            assert_eq!(is_linearizable(&operations), theirs, "{operations:?}");
            judged[usize::from(theirs)] += 1;
        }
        assert!(judged.iter().all(|count| *count > 300), "both happen: {judged:?}");
    }

    /// Calls of one register through one node; the version of a value is the value.
    fn history(calls: &[(u64, u64, What, Outcome)]) -> Vec<Call> {
        let call = |(begun, ended, what, outcome): &(u64, u64, What, Outcome)| Call {
            register: 0,
            node: 0,
            what: *what,
            outcome: *outcome,
            begun: Duration::from_secs(*begun),
            ended: Duration::from_secs(*ended),
        };
        calls.iter().map(call).collect()
    }

    fn ok(value: u32) -> Outcome {
        Outcome::Ok(value, u64::from(value))
    }

    #[track_caller]
    fn good(calls: &[(u64, u64, What, Outcome)]) {
        check(&history(calls)).expect("has an explanation");
    }

    #[track_caller]
    fn bad(calls: &[(u64, u64, What, Outcome)]) -> String {
        check(&history(calls)).expect_err("has no explanation")
    }

    #[test]
    fn what_one_register_could_have_done_is_accepted() {
        good(&[]);
        good(&[(0, 1, Read, ok(FIRST)), (1, 2, Write(1), ok(1)), (3, 4, Read, ok(1))]);
        // At the same time: in either order.
        good(&[(0, 9, Write(1), ok(1)), (1, 2, Read, ok(FIRST)), (3, 4, Read, ok(1))]);
        good(&[(0, 9, Write(2), ok(2)), (0, 9, Write(1), ok(1)), (1, 3, Read, ok(1)), (4, 9, Read, ok(2))]);
        good(&[(0, 1, Write(1), ok(1)), (2, 3, Swap(1, 2), ok(2)), (4, 5, Swap(1, 3), Outcome::Differs)]);
    }

    #[test]
    fn a_stale_read_is_found() {
        let why = bad(&[(0, 1, Write(1), ok(1)), (2, 3, Write(2), ok(2)), (4, 5, Read, ok(1)), (6, 7, Read, ok(2))]);
        assert!(why.contains("no order explains") && !why.contains("6s"), "the shortest beginning: {why}");
        let _ = bad(&[(0, 1, Write(1), ok(1)), (2, 3, Read, ok(FIRST))]);
        // Two readers at the same time as the write, one after the other.
        let _ = bad(&[(0, 9, Write(1), ok(1)), (1, 2, Read, ok(1)), (3, 4, Read, ok(FIRST))]);
    }

    #[test]
    fn a_lost_write_is_found() {
        let _ = bad(&[(0, 1, Write(1), ok(1)), (2, 3, Write(2), ok(2)), (4, 5, Swap(1, 3), ok(3))]);
        let _ = bad(&[(0, 1, Swap(FIRST, 1), ok(1)), (2, 3, Swap(FIRST, 2), ok(2))]);
    }

    #[test]
    fn a_write_that_is_done_twice_is_found() {
        let calls = [
            (0, 9, Write(1), ok(1)),
            (1, 2, Read, ok(1)),
            (3, 4, Write(2), ok(2)),
            (5, 6, Read, ok(2)),
            (7, 8, Read, ok(1)),
        ];
        let _ = bad(&calls);
        // Versions tell as well.
        let _ = bad(&[(0, 1, Write(1), Outcome::Ok(1, 1)), (2, 3, Read, Outcome::Ok(1, 2))]);
    }

    #[test]
    fn an_unknown_write_may_be_done_at_any_later_time_or_never_but_once() {
        let unknown = (0, 1, Write(1), Outcome::Unknown);
        good(&[unknown, (2, 3, Read, ok(FIRST))]);
        good(&[unknown, (2, 3, Read, ok(FIRST)), (4, 5, Read, ok(1)), (6, 7, Read, ok(1))]);
        good(&[unknown, (2, 3, Write(2), ok(2)), (4, 5, Read, ok(2)), (6, 7, Read, ok(1))]);
        let _ = bad(&[unknown, (2, 3, Read, ok(1)), (4, 5, Read, ok(FIRST))]);
        let twice = [unknown, (2, 3, Read, ok(1)), (4, 5, Write(2), ok(2)), (6, 7, Read, ok(2)), (8, 9, Read, ok(1))];
        let _ = bad(&twice);
        // Nobody saw the unknown write, but it may be why the swap found something else.
        good(&[unknown, (2, 3, Swap(FIRST, 2), Outcome::Differs)]);
        let _ = bad(&[(0, 1, Swap(FIRST, 2), Outcome::Differs), (2, 3, Write(1), Outcome::Unknown)]);
        good(&[(0, 1, Swap(FIRST, 2), Outcome::Unknown), (2, 3, Read, ok(2))]);
        let _ = bad(&[(0, 1, Swap(7, 2), Outcome::Unknown), (2, 3, Read, ok(2))]);
    }

    #[test]
    fn a_refused_write_that_was_done_is_found() {
        let _ = bad(&[(0, 1, Write(1), Outcome::Refused), (2, 3, Read, ok(1))]);
        let _ = bad(&[(0, 1, Write(1), Outcome::Refused), (2, 3, ReadLocal, ok(1))]);
    }

    #[test]
    fn local_reads_may_be_old_but_go_neither_back_nor_ahead() {
        let writes = [(0, 1, Write(1), ok(1)), (2, 3, Write(2), ok(2))];
        let with = |more: &[(u64, u64, What, Outcome)]| [writes.as_slice(), more].concat();
        good(&with(&[(4, 5, ReadLocal, ok(1)), (6, 7, ReadLocal, ok(2))]));
        let _ = bad(&with(&[(4, 5, ReadLocal, ok(2)), (6, 7, ReadLocal, ok(1))]));
        let mut elsewhere = history(&with(&[(4, 5, ReadLocal, ok(2)), (6, 7, ReadLocal, ok(1))]));
        elsewhere[3].node = 1;
        check(&elsewhere).expect("another node may be behind");
        // Shown before it was committed.
        let _ = bad(&[(0, 9, Write(1), ok(1)), (1, 2, ReadLocal, ok(1)), (3, 4, Read, ok(FIRST))]);
        let _ = bad(&[(0, 1, ReadLocal, ok(1)), (2, 3, Write(1), ok(1))]);
    }

    #[test]
    fn long_histories_are_checked_in_little_time() {
        // Eight callers in turns, each call at the same time as seven others.
        let mut calls = Vec::new();
        for turn in 1..1500_u32 {
            let (begun, what) = (u64::from(turn), if turn % 3 == 0 { Read } else { Write(turn) });
            let value = if turn % 3 == 0 { turn - 1 } else { turn };
            calls.push((begun, begun + 8, what, ok(value)));
        }
        good(&calls);
        let begun = std::time::Instant::now();
        calls.push((4000, 4001, Read, ok(1)));
        let _ = bad(&calls);
        assert!(begun.elapsed() < Duration::from_secs(30), "{:?}", begun.elapsed());
    }
}
