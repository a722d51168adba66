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
