//! What the engines of this node have done, until the fleet has been told.

use std::collections::BTreeMap;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use muster_cluster::ids::PlacementId;
use muster_cluster::rows::command::Body;
use muster_cluster::rows::{self, Origin, PlacementTotals, RecordTotals};
use muster_cluster::state::TOTALS_AT_ONCE;

use super::Tools;
use crate::engine::metrics::{Tally, Usage};

/// How often the fleet is told, at least, and how much longer it takes for each node.
const PERIOD: Duration = Duration::from_secs(30);
const PERIOD_PER_NODE: Duration = Duration::from_millis(100);

/// How often is looked whether somebody waits for it to be told.
const LOOK: Duration = Duration::from_millis(500);

#[derive(Clone, Copy, Debug, Default, PartialEq)]
struct Entry {
    done: Tally,
    told: Tally,
    usage: Usage,
    /// Nothing more will come: it is told soon, and forgotten.
    closed: bool,
}

/// Counts what has been done since this process began, by placement.
#[derive(Debug)]
pub(crate) struct Ledger {
    /// Tells this process from those before it, whose counts are others.
    source: u64,
    entries: Mutex<BTreeMap<PlacementId, Entry>>,
}

impl Default for Ledger {
    fn default() -> Self {
        Self { source: uuid::Uuid::new_v4().as_u64_pair().0, entries: Mutex::default() }
    }
}

impl Ledger {
    // Only arithmetic is done while it is held.
    fn entries(&self) -> MutexGuard<'_, BTreeMap<PlacementId, Entry>> {
        self.entries.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Adds what has been done.
    pub fn add(&self, placement: PlacementId, done: &Tally, usage: Option<Usage>) {
        if done.is_empty() && usage.is_none() {
            return;
        }
        let mut entries = self.entries();
        let entry = entries.entry(placement).or_default();
        entry.done = entry.done.plus(done);
        entry.usage = usage.unwrap_or(entry.usage);
        entry.closed = false;
    }

    /// No more will come of a placement for now.
    pub fn close(&self, placement: PlacementId) {
        if let Some(entry) = self.entries().get_mut(&placement) {
            entry.closed = true;
        }
    }

    fn is_urgent(&self) -> bool {
        self.entries().values().any(|entry| entry.closed && entry.done != entry.told)
    }

    /// What the fleet does not know yet, as much as one command takes.
    fn due(&self) -> Vec<(PlacementId, Entry)> {
        let mut entries = self.entries();
        let due = |entry: &Entry| entry.done != entry.told;
        // What is closed stays: its counts go on if it is started again.
        let some = entries.iter_mut().filter(|(_, entry)| due(entry)).take(TOTALS_AT_ONCE);
        some.map(|(placement, entry)| (*placement, *entry)).collect()
    }

    fn told(&self, told: &[(PlacementId, Entry)]) {
        let mut entries = self.entries();
        for (placement, entry) in told {
            if let Some(kept) = entries.get_mut(placement) {
                kept.told = entry.done;
            }
        }
    }

    /// Forgets placements that nobody asks for any more.
    fn retain(&self, exists: impl Fn(&PlacementId) -> bool) {
        self.entries().retain(|placement, entry| !entry.closed || entry.done != entry.told || exists(placement));
    }
}

fn row((placement, entry): &(PlacementId, Entry)) -> PlacementTotals {
    let thousandths = |rate: Option<f64>| rate.map(|rate| (rate.max(0.0) * 1000.0) as u64);
    PlacementTotals {
        deployment: placement.deployment.0,
        ordinal: placement.ordinal,
        totals: Some(rows::Totals {
            prompt_tokens: entry.done.prompt_tokens,
            completion_tokens: entry.done.generation_tokens,
            requests: entry.done.requests,
        }),
        prompt_mtps: thousandths(entry.usage.prompt_tps),
        generation_mtps: thousandths(entry.usage.generation_tps),
    }
}

/// Tells the fleet again and again. It never returns.
pub(super) async fn keep_telling(tools: &Tools) {
    let ledger = &tools.ledger;
    loop {
        let nodes = tools.consensus.local().nodes().map_or(0, |nodes| u32::try_from(nodes.len()).unwrap_or(u32::MAX));
        let period = PERIOD.max(PERIOD_PER_NODE.saturating_mul(nodes));
        let waiting = async {
            while !ledger.is_urgent() {
                tokio::time::sleep(LOOK).await;
            }
        };
        let _ = tokio::time::timeout(period, waiting).await;
        let due = ledger.due();
        if !due.is_empty() {
            let origin = Origin { principal: format!("node:{}", tools.node), ..Origin::default() };
            let told = RecordTotals { source: ledger.source, placements: due.iter().map(row).collect() };
            match tools.consensus.propose_repeatable(origin, Body::RecordTotals(told)).await {
                Ok(_) => ledger.told(&due),
                Err(error) => {
                    tracing::debug!(%error, "the fleet has not been told yet what engines have done");
                    tokio::time::sleep(PERIOD).await;
                }
            }
        }
        let view = tools.consensus.local();
        ledger.retain(|placement| !matches!(view.placement(*placement), Ok(None)));
    }
}

#[cfg(test)]
mod tests {
    use muster_cluster::ids::DeploymentId;

    use super::*;

    fn placement(number: u64) -> PlacementId {
        PlacementId { deployment: DeploymentId(number), ordinal: 0 }
    }

    fn prompts(prompt_tokens: u64) -> Tally {
        Tally { prompt_tokens, ..Tally::default() }
    }

    #[test]
    fn what_is_told_is_told_once_and_the_count_goes_on() {
        let ledger = Ledger::default();
        ledger.add(placement(1), &prompts(5), None);
        ledger.add(placement(1), &Tally::default(), None);
        let due = ledger.due();
        assert_eq!((due.len(), row(&due[0]).totals.map(|totals| totals.prompt_tokens)), (1, Some(5)));
        ledger.add(placement(1), &prompts(2), None);
        ledger.told(&due);
        assert_eq!(row(&ledger.due()[0]).totals.map(|totals| totals.prompt_tokens), Some(7));
        ledger.told(&ledger.due());
        assert!(ledger.due().is_empty());
    }

    #[test]
    fn what_has_ended_is_told_soon_and_forgotten_once_it_is_gone() {
        let ledger = Ledger::default();
        ledger.add(placement(1), &prompts(5), None);
        assert!(!ledger.is_urgent());
        ledger.close(placement(1));
        assert!(ledger.is_urgent());
        ledger.retain(|_| false);
        let due = ledger.due();
        assert_eq!(due.len(), 1, "nobody knows it yet");
        ledger.told(&due);
        ledger.retain(|_| true);
        ledger.add(placement(1), &prompts(1), None);
        assert_eq!(row(&ledger.due()[0]).totals.map(|totals| totals.prompt_tokens), Some(6));
        ledger.told(&ledger.due());
        ledger.close(placement(1));
        ledger.retain(|_| false);
        assert!(ledger.entries().is_empty());
    }

    #[test]
    fn one_command_takes_so_many() {
        let ledger = Ledger::default();
        for number in 0..=TOTALS_AT_ONCE as u64 {
            ledger.add(placement(number), &prompts(1), None);
        }
        let due = ledger.due();
        assert_eq!(due.len(), TOTALS_AT_ONCE);
        ledger.told(&due);
        assert_eq!(ledger.due().len(), 1);
    }
}
