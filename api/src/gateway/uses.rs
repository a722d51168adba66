//! When each key was last used: kept in memory by the threads that let callers in, and told to the fleet now and then. What
//! was not told yet is lost with the process.

use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use muster_cluster::ids::CredentialId;
use muster_cluster::rows::{KeyUse, Origin, RecordUse, command::Body};
use muster_cluster::state::USES_AT_ONCE;

use crate::state::{ApiState, Member};

/// How often it is looked whether there is something to tell.
const LOOK: Duration = Duration::from_secs(1);

/// The shortest time between two commands of one node, and how much longer it gets with each node of the fleet: together they
/// must not write more than a fleet can.
const PERIOD: Duration = Duration::from_secs(30);
const PERIOD_PER_NODE: Duration = Duration::from_millis(100);

/// A use within this of the one before is the same, so that threads do not fight for the place where it is kept.
const SAME_MS: u64 = 1000;

/// When a key was last used on this node, in milliseconds of the log's time; 0 if it was not.
#[derive(Debug, Default)]
pub(super) struct LastUse(AtomicU64);

impl LastUse {
    pub fn at(&self, now_ms: u64) {
        if self.0.load(Ordering::Relaxed).saturating_add(SAME_MS) <= now_ms {
            self.0.fetch_max(now_ms, Ordering::Relaxed);
        }
    }
}

#[derive(Debug, Default)]
struct Kept {
    last: Arc<LastUse>,
    told_ms: u64,
}

/// The last use of every key that was used on this node.
#[derive(Debug, Default)]
pub(crate) struct Uses(Mutex<HashMap<CredentialId, Kept>>);

impl Uses {
    fn with<T>(&self, work: impl FnOnce(&mut HashMap<CredentialId, Kept>) -> T) -> T {
        work(&mut self.0.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// The place of one key, to be kept by whoever lets its callers in.
    pub(super) fn of(&self, id: CredentialId) -> Arc<LastUse> {
        self.with(|kept| Arc::clone(&kept.entry(id).or_default().last))
    }

    /// What is to be told, as much as one command takes. Keys that are gone are forgotten.
    fn due(&self, exists: impl Fn(CredentialId) -> bool) -> Vec<(CredentialId, u64)> {
        self.with(|kept| {
            let is_new = |kept: &Kept| kept.last.0.load(Ordering::Relaxed) > kept.told_ms;
            if !kept.values().any(is_new) {
                return Vec::new();
            }
            kept.retain(|id, _| exists(*id));
            let new = kept.iter().filter(|(_, kept)| is_new(kept));
            new.map(|(id, kept)| (*id, kept.last.0.load(Ordering::Relaxed))).take(USES_AT_ONCE).collect()
        })
    }

    fn told(&self, uses: &[(CredentialId, u64)]) {
        self.with(|kept| {
            for (id, last) in uses {
                if let Some(kept) = kept.get_mut(id) {
                    kept.told_ms = *last;
                }
            }
        });
    }

    /// Tells the fleet once, if there is something to tell. Returns how long to wait until the next time.
    async fn tell(&self, member: &Member) -> Duration {
        let view = member.consensus.local();
        let due = self.due(|id| matches!(view.credential(id), Ok(Some(_)) | Err(_)));
        if due.is_empty() {
            return LOOK;
        }
        let origin = Origin { principal: format!("node:{}", member.replica.identity.node), ..Origin::default() };
        let uses = due.iter().map(|(id, last)| KeyUse { credential: id.0, used_ms: *last }).collect();
        match member.consensus.propose_repeatable(origin, Body::RecordUse(RecordUse { uses })).await {
            Ok(_) => self.told(&due),
            // Told with the next ones.
            Err(error) => tracing::debug!(%error, "the fleet has not been told yet which keys were used"),
        }
        let nodes = view.nodes().map_or(0, |nodes| u32::try_from(nodes.len()).unwrap_or(u32::MAX));
        PERIOD.max(PERIOD_PER_NODE.saturating_mul(nodes))
    }
}

/// Tells the fleet for as long as it runs.
pub(super) async fn keep_telling(state: ApiState, uses: Arc<Uses>) {
    loop {
        let wait = match state.member() {
            Ok(member) => uses.tell(&member).await,
            Err(_) => LOOK,
        };
        tokio::time::sleep(wait).await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_newest_use_is_told_once_and_what_is_gone_is_forgotten() {
        let (uses, all) = (Uses::default(), |_| true);
        let (first, second) = (uses.of(CredentialId(1)), uses.of(CredentialId(2)));
        assert_eq!(uses.due(all), [], "nobody has used them");
        first.at(5000);
        uses.of(CredentialId(1)).at(7000);
        first.at(6000);
        assert_eq!(uses.due(all), [(CredentialId(1), 7000)]);
        // It is used while it is told.
        let due = uses.due(all);
        first.at(9000);
        uses.told(&due);
        assert_eq!(uses.due(all), [(CredentialId(1), 9000)]);
        uses.told(&uses.due(all));
        first.at(9999);
        assert_eq!(uses.due(all), [], "within a second it is the same use");
        second.at(10_000);
        assert_eq!(uses.due(|id| id.0 == 1), [], "the second is gone");
        assert_eq!(uses.with(|kept| kept.len()), 1);
    }

    #[test]
    fn one_command_takes_so_many() {
        let uses = Uses::default();
        for id in 0..=USES_AT_ONCE as u64 {
            uses.of(CredentialId(id)).at(1000);
        }
        let due = uses.due(|_| true);
        assert_eq!(due.len(), USES_AT_ONCE);
        uses.told(&due);
        assert_eq!(uses.due(|_| true).len(), 1);
    }
}
