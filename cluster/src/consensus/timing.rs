//! How patient the fleet is: how often a leader shows that it lives, and how long the others wait for it.

use std::time::Duration;

/// A preset of timings, chosen by the distance between the voters.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Timing {
    /// One site, round trips below 5 ms.
    Lan,
    /// Direct paths with round trips up to 150 ms.
    #[default]
    Mesh,
    /// Relayed paths between voters.
    Far,
}

impl Timing {
    /// How often the leader sends a sign of life. It is also the deadline of every message that carries entries.
    #[must_use]
    pub fn heartbeat(self) -> Duration {
        Duration::from_millis(match self {
            Self::Lan => 150,
            Self::Mesh => 500,
            Self::Far => 1000,
        })
    }

    /// The shortest and the longest election timeout. A lost leader is replaced after the longest plus a random one in between.
    #[must_use]
    pub fn election(self) -> (Duration, Duration) {
        let (min, max) = match self {
            Self::Lan => (450, 750),
            Self::Mesh => (1500, 2500),
            Self::Far => (3000, 5000),
        };
        (Duration::from_millis(min), Duration::from_millis(max))
    }

    /// Every preset, from the least patient on.
    pub const ALL: [Self; 3] = [Self::Lan, Self::Mesh, Self::Far];

    /// The preset of this name.
    #[must_use]
    pub fn parse(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|timing| timing.name() == name)
    }

    /// The least patient preset that fits when nearly all round trips between the voters are shorter than this. Every message
    /// with entries must be there and back, and on the disk, within a heartbeat.
    #[must_use]
    pub fn for_round_trip(p99: Duration) -> Self {
        match p99.as_micros() {
            0..5_000 => Self::Lan,
            5_000..150_000 => Self::Mesh,
            _ => Self::Far,
        }
    }

    /// The name in settings and answers.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Lan => "lan",
            Self::Mesh => "mesh",
            Self::Far => "far",
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_preset_has_a_name_and_a_distance() {
        for timing in Timing::ALL {
            assert_eq!(Timing::parse(timing.name()), Some(timing));
        }
        assert_eq!(Timing::parse("wan"), None);
        for (micros, timing) in [
            (200, Timing::Lan),
            (4_999, Timing::Lan),
            (5_000, Timing::Mesh),
            (149_999, Timing::Mesh),
            (150_000, Timing::Far),
        ] {
            assert_eq!(Timing::for_round_trip(Duration::from_micros(micros)), timing, "{micros}");
        }
    }
}
