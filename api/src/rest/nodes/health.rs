//! How a node is, in one word (seed 004), and why.

use muster_cluster::clocks::{NodeClock, Standing};
use muster_cluster::membership::Liveness;
use muster_cluster::state::Maintenance;

/// What is known of a node by the one that is asked.
#[derive(Clone, Debug)]
pub(super) struct Signs {
    /// It is the one that is asked.
    pub own: bool,
    /// What gossip says; `None`: it has never been heard.
    pub heard: Option<Liveness>,
    /// Whether it has ever said what its machine does.
    pub answered: bool,
    /// How often in a row it has not.
    pub missed: u32,
    /// After how many times it is critical.
    pub threshold: u64,
    /// What is wrong with its clock.
    pub clock: Option<String>,
    /// How much of it gets nothing new.
    pub maintenance: Maintenance,
}

/// The word, and the reason if it is not `online`.
pub(super) fn judge(signs: Signs) -> (&'static str, Option<String>) {
    if signs.maintenance == Maintenance::Full {
        return ("maintenance", Some("all of it is under maintenance".to_owned()));
    }
    let reason = |why: &str| Some(why.to_owned());
    if !signs.own {
        match signs.heard {
            Some(Liveness::Down) => return ("critical", reason("it does not answer")),
            None if !signs.answered => return ("unknown", reason("this node has never heard it")),
            Some(Liveness::Alive | Liveness::Suspect) | None => {}
        }
        if signs.missed > 0 {
            let why = format!("it has not said what its machine does {} times in a row", signs.missed);
            let word = if u64::from(signs.missed) >= signs.threshold { "critical" } else { "degraded" };
            return (word, Some(why));
        }
        if signs.heard == Some(Liveness::Suspect) {
            return ("degraded", reason("it has not answered of late"));
        }
    }
    match signs.clock {
        Some(why) => ("degraded", Some(why)),
        None => ("online", None),
    }
}

/// What is wrong with a clock.
pub(super) fn why_off(clock: &NodeClock) -> Option<String> {
    let offset_ms = clock.offset.filter(|_| clock.standing == Standing::Off)?.offset_ms;
    let (seconds, side) = (offset_ms.unsigned_abs() as f64 / 1000.0, if offset_ms > 0 { "ahead of" } else { "behind" });
    Some(format!("its clock is {seconds:.1} s {side} the median of the voters"))
}

#[cfg(test)]
mod tests {
    use muster_cluster::clocks::Offset;

    use super::*;

    fn signs() -> Signs {
        Signs {
            own: false,
            heard: Some(Liveness::Alive),
            answered: true,
            missed: 0,
            threshold: 3,
            clock: None,
            maintenance: Maintenance::None,
        }
    }

    fn word(signs: Signs) -> &'static str {
        judge(signs).0
    }

    /// B10 of the specification, but for one thing: below the threshold a miss shows as `degraded` and is not hidden.
    #[test]
    fn a_node_is_critical_after_as_many_misses_as_the_fleet_has_set() {
        let after = |missed| word(Signs { missed, ..signs() });
        assert_eq!([0, 1, 2, 3, 4].map(after), ["online", "degraded", "degraded", "critical", "critical"]);
        assert_eq!(word(Signs { missed: 1, threshold: 1, ..signs() }), "critical");
        assert_eq!(word(Signs { missed: 19, threshold: 20, ..signs() }), "degraded");
        let (_, why) = judge(Signs { missed: 2, ..signs() });
        assert!(why.is_some_and(|why| why.contains("2 times in a row")));
    }

    #[test]
    fn what_gossip_says_counts_before_anything_is_missed() {
        assert_eq!(word(Signs { heard: Some(Liveness::Suspect), ..signs() }), "degraded");
        assert_eq!(word(Signs { heard: Some(Liveness::Down), ..signs() }), "critical");
        assert_eq!(word(Signs { heard: None, answered: false, missed: 9, ..signs() }), "unknown");
        assert_eq!(word(Signs { heard: None, ..signs() }), "online", "it has answered");
        assert_eq!(word(Signs { own: true, heard: None, answered: false, ..signs() }), "online");
    }

    #[test]
    fn a_node_whose_clock_is_off_is_degraded_and_one_under_maintenance_is_nothing_else() {
        let off = Some("its clock is off".to_owned());
        assert_eq!(word(Signs { clock: off.clone(), ..signs() }), "degraded");
        assert_eq!(word(Signs { own: true, clock: off, ..signs() }), "degraded");
        let full = Signs { maintenance: Maintenance::Full, heard: Some(Liveness::Down), missed: 9, ..signs() };
        assert_eq!(word(full), "maintenance");
        let partial = Signs { maintenance: Maintenance::Partial, ..signs() };
        assert_eq!(word(partial.clone()), "online");
        assert_eq!(word(Signs { heard: Some(Liveness::Down), ..partial }), "critical");
    }

    #[test]
    fn a_clock_that_is_off_says_by_how_much() {
        let clock = |standing, offset_ms| {
            let offset = Some(Offset { offset_ms, error_ms: 3 });
            why_off(&NodeClock { standing, offset, round_trips: None, timing: None })
        };
        assert_eq!(clock(Standing::Good, 120_000), None);
        let ahead = clock(Standing::Off, 120_049).expect("off");
        assert_eq!(ahead, "its clock is 120.0 s ahead of the median of the voters");
        assert!(clock(Standing::Off, -2500).expect("off").contains("2.5 s behind"));
    }
}
