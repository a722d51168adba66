//! How patient gossip is.

use std::num::{NonZeroU8, NonZeroUsize};
use std::time::Duration;

use foca::{Config, PeriodicParams};

use super::seal::CONTENT;

/// How patient gossip is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Profile {
    /// How often a node asks another whether it lives.
    pub probe_period: Duration,
    /// How long that one may take to answer before others are asked to ask.
    pub probe_rtt: Duration,
    /// How long a node is suspected before it is taken for dead, in a fleet of at most 100 nodes.
    pub suspicion: Duration,
}

impl Default for Profile {
    /// For nodes up to 150 ms apart.
    fn default() -> Self {
        Self {
            probe_period: Duration::from_secs(2),
            probe_rtt: Duration::from_millis(700),
            suspicion: Duration::from_secs(8),
        }
    }
}

const fn several(number: usize) -> NonZeroUsize {
    match NonZeroUsize::new(number) {
        Some(number) => number,
        None => NonZeroUsize::MIN,
    }
}

fn every(frequency: Duration, members: usize) -> Option<PeriodicParams> {
    Some(PeriodicParams { frequency, num_members: several(members) })
}

impl Profile {
    /// The configuration for so many nodes.
    pub(super) fn config(self, nodes: usize) -> Config {
        let nodes = u32::try_from(nodes.max(1)).unwrap_or(u32::MAX);
        let size = f64::from(nodes);
        // As often as an update needs to reach everybody with near certainty.
        let transmissions = (4.0 * (size + 1.0).log10()).ceil().clamp(5.0, 40.0);
        // Twice as patient at 1,000 nodes as at 100.
        let patience = (size / 100.0).max(1.0).log10().mul_add(7.0 / 8.0, 1.0);
        Config {
            probe_period: self.probe_period,
            probe_rtt: self.probe_rtt,
            num_indirect_probes: several(3),
            #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "it is from 5 to 40")]
            max_transmissions: NonZeroU8::new(transmissions as u8).unwrap_or(NonZeroU8::MIN),
            suspect_to_down_after: self.suspicion.mul_f64(patience),
            remove_down_after: None,
            max_packet_size: several(CONTENT),
            notify_down_members: true,
            periodic_announce: every(Duration::from_secs(30), 1),
            periodic_announce_to_down_members: every(Duration::from_secs(60), 2),
            periodic_gossip: every(Duration::from_millis(300), 3),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn larger_fleets_are_more_patient() {
        let profile = Profile::default();
        let of = |nodes| {
            let config = profile.config(nodes);
            (config.max_transmissions.get(), config.suspect_to_down_after.as_millis())
        };
        assert_eq!(of(1), (5, 8000));
        assert_eq!(of(3), (5, 8000));
        assert_eq!(of(100), (9, 8000));
        assert_eq!(of(1000), (13, 15_000));
        assert!(of(usize::MAX).0 <= 40);
    }
}
