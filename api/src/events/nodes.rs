//! How this node sees the others, as far as it changes.

use std::collections::BTreeMap;
use std::sync::Arc;

use muster_cluster::ids::NodeId;
use muster_cluster::membership::{Liveness, Roster};
use tokio::sync::watch;

/// Follows who lives. What nodes tell of themselves all the time is left out.
#[derive(Debug)]
pub(super) struct Lives {
    roster: watch::Receiver<Arc<Roster>>,
    seen: BTreeMap<NodeId, Liveness>,
}

fn lives(roster: &Roster) -> BTreeMap<NodeId, Liveness> {
    roster.nodes().map(|(node, heard)| (node, heard.liveness)).collect()
}

impl Lives {
    /// From now on.
    pub fn new(mut roster: watch::Receiver<Arc<Roster>>) -> Self {
        let seen = lives(&roster.borrow_and_update());
        Self { roster, seen }
    }

    /// Waits until one is seen otherwise than before. Nothing is lost when it is dropped.
    pub async fn changed(&mut self) {
        loop {
            // Gossip has ended: nothing more is heard.
            if self.roster.changed().await.is_err() {
                return std::future::pending().await;
            }
            let now = lives(&self.roster.borrow_and_update());
            if now != self.seen {
                self.seen = now;
                return;
            }
        }
    }
}
