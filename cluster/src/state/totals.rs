//! What deployments have done: tokens and requests, counted by the nodes that run them, told now and then.

use super::placements::key;
use super::step::{Damaged, Row, Step, Stop};
use super::view::View;
use crate::ids::DeploymentId;
use crate::rows::{DeploymentTotals, PlacementTotals, RecordTotals, Totals};

/// How many placements one command can tell of.
pub const TOTALS_AT_ONCE: usize = 128;

/// What a deployment has done, and how fast it was when that was last told.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Done {
    /// Tokens and requests of all its replicas.
    pub totals: Totals,
    /// Thousandths of tokens per second of its first replica.
    pub prompt_mtps: Option<u64>,
    /// The same of what it generates.
    pub generation_mtps: Option<u64>,
}

fn plus(a: &Totals, b: &Totals) -> Totals {
    Totals {
        prompt_tokens: a.prompt_tokens.saturating_add(b.prompt_tokens),
        completion_tokens: a.completion_tokens.saturating_add(b.completion_tokens),
        requests: a.requests.saturating_add(b.requests),
    }
}

fn minus(a: &Totals, b: &Totals) -> Totals {
    Totals {
        prompt_tokens: a.prompt_tokens.saturating_sub(b.prompt_tokens),
        completion_tokens: a.completion_tokens.saturating_sub(b.completion_tokens),
        requests: a.requests.saturating_sub(b.requests),
    }
}

pub(super) fn record(step: &mut Step<'_>, command: &RecordTotals) -> Result<(), Stop> {
    for told in command.placements.iter().take(TOTALS_AT_ONCE) {
        let PlacementTotals { deployment, ordinal, totals, prompt_mtps, generation_mtps } = told;
        // It may have been deleted meanwhile.
        if step.get::<crate::rows::Deployment>(&deployment.to_be_bytes())?.is_none() {
            continue;
        }
        let now = totals.unwrap_or_default();
        let mut row =
            step.get::<DeploymentTotals>(&key(*deployment, *ordinal))?.map(|stored| stored.row).unwrap_or_default();
        let before = row.counted.filter(|_| row.source == command.source).unwrap_or_default();
        row.totals = Some(plus(&row.totals.unwrap_or_default(), &minus(&now, &before)));
        (row.source, row.counted) = (command.source, Some(now));
        row.prompt_mtps = prompt_mtps.or(row.prompt_mtps);
        row.generation_mtps = generation_mtps.or(row.generation_mtps);
        step.put(key(*deployment, *ordinal), &row)?;
    }
    Ok(())
}

/// Forgets what a deployment has done.
pub(super) fn forget(step: &mut Step<'_>, deployment: u64) {
    let own = deployment.to_be_bytes();
    let rows = step.tables.range(<DeploymentTotals as Row>::TABLE, &own);
    let keys: Vec<_> = rows.take_while(|(key, _)| key.starts_with(&own)).map(|(key, _)| key.to_vec()).collect();
    for key in keys {
        step.remove::<DeploymentTotals>(key);
    }
}

impl View {
    /// What a deployment has done, as far as its nodes have told.
    ///
    /// # Errors
    /// When a row is damaged.
    pub fn done(&self, deployment: DeploymentId) -> Result<Done, Damaged> {
        let own = deployment.0.to_be_bytes();
        let mut done = Done::default();
        for row in self.rows::<DeploymentTotals>(&own) {
            let (key, stored) = row?;
            if !key.starts_with(&own) {
                break;
            }
            done.totals = plus(&done.totals, &stored.row.totals.unwrap_or_default());
            done.prompt_mtps = done.prompt_mtps.or(stored.row.prompt_mtps);
            done.generation_mtps = done.generation_mtps.or(stored.row.generation_mtps);
        }
        Ok(done)
    }
}
