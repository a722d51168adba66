//! Renews the leases of what this node serves and could be given to another node, and ends what is served without one.

use std::collections::HashSet;
use std::time::Duration;

use muster_cluster::rows::OnNodeLoss;
use muster_cluster::state::{Damaged, on_node_loss};

use super::Tools;
use crate::leases::{RENEWAL, boot_time};
use crate::runtime::UnitId;

/// How often is looked whether a lease is over, or a new one is needed.
const LOOK: Duration = Duration::from_millis(200);

/// The units of this node that need a lease.
fn leased(tools: &Tools) -> Result<HashSet<UnitId>, Damaged> {
    let view = tools.consensus.local();
    let mut units = HashSet::new();
    for held in view.held_on(tools.node)? {
        let deployment = view.deployment(held.placement.deployment)?;
        if deployment.is_some_and(|stored| on_node_loss(&stored.row) == OnNodeLoss::Reschedule) {
            units.insert(UnitId { placement: held.placement, epoch: held.epoch });
        }
    }
    Ok(units)
}

/// Does both again and again. It never returns.
pub(super) async fn keep_renewing(tools: &Tools) {
    tokio::join!(renewing(tools), enforcing(tools));
}

async fn renewing(tools: &Tools) {
    let (mut last, mut before) = (None, HashSet::new());
    loop {
        let units = leased(tools).unwrap_or_else(|damaged| {
            tracing::error!(%damaged, "what is served here can not be read");
            HashSet::new()
        });
        let due = last.is_none_or(|last: tokio::time::Instant| last.elapsed() >= RENEWAL);
        // One that is new waits for nothing.
        if !units.is_empty() && (due || !units.is_subset(&before)) {
            last = Some(tokio::time::Instant::now());
            before = renew(tools, &units).await;
        }
        tokio::time::sleep(LOOK).await;
    }
}

/// Asks the leader once, and says what it has renewed.
async fn renew(tools: &Tools, units: &HashSet<UnitId>) -> HashSet<UnitId> {
    let Some(leader) = tools.consensus.status().leader else { return HashSet::new() };
    let asked: Vec<_> = units.iter().copied().collect();
    let at = boot_time();
    match tools.hosts.renew(leader, &asked).await {
        Ok(renewed) => {
            tools.leases.renewed(at, units, renewed.iter().copied());
            renewed.into_iter().collect()
        }
        Err(error) => {
            tracing::debug!(%error, "leases are not renewed");
            HashSet::new()
        }
    }
}

async fn enforcing(tools: &Tools) {
    loop {
        for served in tools.serving.all() {
            served.enforce();
        }
        tokio::time::sleep(LOOK).await;
    }
}
