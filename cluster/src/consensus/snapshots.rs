//! When a node builds a snapshot. openraft counts entries only, and a snapshot costs what the whole state does: of a large
//! one it would be built over and over.

use std::sync::Arc;
use std::time::Duration;

use openraft::Raft;
use openraft::async_runtime::watch::WatchReceiver;

use super::TypeConfig;
use super::raft::Machine;
use crate::state::Published;

/// After so many entries there is a new one, and so many are kept behind it for those who lag.
pub(super) const ENTRIES: u64 = 5000;

/// Of a large state it is built after as many entries as one in so many of its records.
const SHARE: u64 = 20;

/// How long a snapshot is given before it is looked whether there is one.
const LOOK_AGAIN: Duration = Duration::from_millis(250);

/// How many entries after the last snapshot of a state of so many records there is the next.
fn due(records: usize) -> u64 {
    ENTRIES.max(records as u64 / SHARE)
}

/// Has a snapshot built whenever it is due, until Raft stops.
pub(super) async fn build(raft: Raft<TypeConfig, Machine>, published: Arc<Published>) {
    let metrics = raft.metrics();
    loop {
        let newest = metrics.borrow_watched().snapshot.as_ref().map_or(0, |id| id.index);
        let view = published.reached(newest + published.with(|view| due(view.len()))).await;
        // The state may have grown meanwhile.
        if view.index() < newest + due(view.len()) {
            continue;
        }
        if raft.trigger().snapshot().await.is_err() {
            return;
        }
        tokio::time::sleep(LOOK_AGAIN).await;
    }
}

#[cfg(test)]
mod tests {
    use super::{ENTRIES, due};

    #[test]
    fn a_large_state_is_written_less_often() {
        assert_eq!([due(0), due(100_000), due(100_040), due(1_000_000)], [ENTRIES, ENTRIES, ENTRIES + 2, 50_000]);
    }
}
