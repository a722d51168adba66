//! Units of this fleet and node that nothing of the state asks for.
//!
//! One whose deployment is known was given to another node or another epoch, and is ended. One whose deployment is not known
//! was deleted while it ran, or the fleet was restored from an older snapshot: it is left alone, and never taken over.

use std::sync::Arc;
use std::time::{Duration, SystemTime};

use muster_cluster::rows::Deployment;
use muster_cluster::state::{Changes, Row};

use super::Tools;
use crate::runtime::{Found, Runtime};

/// How often they are looked for, if no deployment is deleted.
const PERIOD: Duration = Duration::from_secs(30);

/// How long to wait until it is tried again to learn what the fleet knows.
const PAUSE: Duration = Duration::from_secs(1);

/// What an ended placement's engine gets to finish.
const GRACE: Duration = Duration::from_secs(10);

/// Looks for them again and again. It never returns.
pub(super) async fn look(tools: Arc<Tools>) {
    // A state that lags behind may not know what has been given to this node.
    while let Err(error) = tools.consensus.linearizable().await {
        tracing::debug!(%error, "what runs here is not judged until the state has caught up");
        tokio::time::sleep(PAUSE).await;
    }
    let mut changes = tools.consensus.published().changes(tools.consensus.local().index());
    loop {
        for runtime in tools.runtimes.values() {
            let strays = match runtime.units().await {
                Ok(found) => Some(judge(&tools, runtime.as_ref(), found).await),
                Err(error) => {
                    tracing::debug!(runtime = %runtime.kind(), %error, "what runs here is not known");
                    None
                }
            };
            tools.observed.note_strays(runtime.kind(), strays);
        }
        sweep(&tools).await;
        tokio::select! {
            () = tokio::time::sleep(PERIOD) => {}
            // One after the other may be deleted: they are looked for once.
            () = deleted(&mut changes) => tokio::time::sleep(PAUSE).await,
        }
    }
}

/// Waits until a deployment is deleted.
async fn deleted(changes: &mut Changes) {
    loop {
        match changes.next().await {
            Ok(batches) => {
                let mut all = batches.iter().flat_map(|batch| batch.changes.iter());
                if all.any(|change| change.key.table == Deployment::TABLE && change.record.is_none()) {
                    return;
                }
            }
            Err(_) => return,
        }
    }
}

/// Removes logs that are kept no longer.
async fn sweep(tools: &Tools) {
    let logs = Arc::clone(&tools.logs);
    match tokio::task::spawn_blocking(move || logs.sweep(SystemTime::now())).await {
        Ok(Ok(_)) => {}
        Ok(Err(error)) => tracing::warn!(%error, "old logs of engines are not removed"),
        Err(error) => tracing::error!(%error, "removing old logs of engines has failed"),
    }
}

/// Ends what is not to run, and says how many units no record knows.
async fn judge(tools: &Tools, runtime: &dyn Runtime, found: Vec<Found>) -> u64 {
    let mut strays = 0;
    for Found { unit, .. } in found {
        // Read for each: what was just given to this node has a unit a moment later.
        let view = tools.consensus.local();
        let held = view
            .held_on(tools.node)
            .map(|held| held.iter().any(|held| held.placement == unit.placement && held.epoch == unit.epoch));
        let known = view.deployment(unit.placement.deployment).map(|found| found.is_some());
        match (held, known) {
            (Ok(false), Ok(true)) => {
                tracing::warn!(%unit, runtime = %runtime.kind(), "ending what belongs to another epoch or node by now");
                if let Err(error) = runtime.stop(unit, GRACE).await {
                    tracing::warn!(%unit, %error, "it did not end; it is tried again");
                }
            }
            (Ok(false), Ok(false)) => {
                tracing::debug!(%unit, "an engine runs that no record knows; it is left alone");
                strays += 1;
            }
            (Ok(true), _) => {}
            (Err(damaged), _) | (_, Err(damaged)) => tracing::error!(%damaged, "what shall run here can not be read"),
        }
    }
    strays
}
