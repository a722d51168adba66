//! What a node sees of its placements now. It decides nothing, and nobody keeps it.

use std::collections::BTreeMap;
use std::sync::{Mutex, MutexGuard, PoisonError};

use muster_cluster::ids::PlacementId;

use crate::engine::metrics::Usage;
use crate::runtime::{RuntimeKind, UnitId};

/// What is seen of one unit.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Observation {
    /// What is being done about it, in the words of the API; empty once it runs.
    pub detail: String,
    /// Bytes of its image that have come, and that there are.
    pub pulled: Option<(u64, u64)>,
    /// How much its engine is used.
    pub usage: Usage,
    /// Whether it takes requests.
    pub ready: bool,
}

/// What is seen of all units of a node.
#[derive(Debug, Default)]
pub struct Observed {
    units: Mutex<BTreeMap<PlacementId, (UnitId, Observation)>>,
    strays: Mutex<BTreeMap<RuntimeKind, u64>>,
}

impl Observed {
    // Only maps are changed while it is held.
    fn units(&self) -> MutexGuard<'_, BTreeMap<PlacementId, (UnitId, Observation)>> {
        self.units.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Changes what is seen of a unit.
    pub(crate) fn note(&self, unit: UnitId, note: impl FnOnce(&mut Observation)) {
        let mut units = self.units();
        let seen = units.entry(unit.placement).or_insert_with(|| (unit, Observation::default()));
        if seen.0 != unit {
            *seen = (unit, Observation::default());
        }
        note(&mut seen.1);
    }

    /// Forgets a unit.
    pub(crate) fn forget(&self, unit: UnitId) {
        let mut units = self.units();
        if units.get(&unit.placement).is_some_and(|(seen, _)| *seen == unit) {
            units.remove(&unit.placement);
        }
    }

    /// Notes how many units a runtime has that no record knows; `None`: it does not say.
    pub(crate) fn note_strays(&self, runtime: RuntimeKind, count: Option<u64>) {
        let mut strays = self.strays.lock().unwrap_or_else(PoisonError::into_inner);
        match count {
            Some(count) => strays.insert(runtime, count),
            None => strays.remove(&runtime),
        };
    }

    /// How many units of these runtimes no record knows. `None`: none of them has said so yet.
    #[must_use]
    pub fn strays(&self, of: impl Fn(RuntimeKind) -> bool) -> Option<u64> {
        let strays = self.strays.lock().unwrap_or_else(PoisonError::into_inner);
        strays.iter().filter(|(runtime, _)| of(**runtime)).map(|(_, count)| *count).reduce(u64::saturating_add)
    }

    /// Everything that is seen, by placement.
    #[must_use]
    pub fn all(&self) -> Vec<(UnitId, Observation)> {
        self.units().values().cloned().collect()
    }
}
