//! Deleting records by category (seed 004): a fleet that begins anew without losing its keys, its settings or its nodes.

use super::step::{Damaged, Row, Step, Stop, decode};
use super::{configs, deployments};
use crate::rows::{self, Config, Deployment, Node};

/// How many records of a category one command deletes at most.
pub const PURGE_LIMIT: usize = 64;

/// Takes back what operators have set of a node, and says whether there was anything. Whatever else they can set belongs here.
fn reset(node: &mut Node) -> bool {
    std::mem::take(&mut node.preferred_voter)
}

/// The first rows of a table with a smaller number than this.
fn first<R: Row>(step: &Step<'_>, before: u64, number: impl Fn(&R) -> u64) -> Result<Vec<R>, Damaged> {
    let rows = step.tables.range(R::TABLE, &[]).map(|(_, record)| Ok(decode::<R>(record)?.row));
    let smaller = rows.take_while(|row| row.as_ref().map_or(true, |row| number(row) < before));
    smaller.take(PURGE_LIMIT).collect()
}

pub(super) fn purge(step: &mut Step<'_>, command: &rows::Purge) -> Result<rows::PurgeAnswer, Stop> {
    let mut deleted = command.deleted.unwrap_or_default();
    if let Some(before) = command.deployments_before {
        let found = first::<Deployment>(step, before, |deployment| deployment.id)?;
        deployments::remove(step, &found)?;
        deleted.deployments = deleted.deployments.saturating_add(found.len() as u64);
    }
    if let Some(before) = command.configs_before {
        let found = first::<Config>(step, before, |config| config.id)?;
        found.iter().for_each(|config| configs::remove(step, config));
        deleted.configs = deleted.configs.saturating_add(found.len() as u64);
    }
    if command.nodes {
        let nodes = step.tables.range(Node::TABLE, &[]).map(|(_, record)| Ok(decode::<Node>(record)?.row));
        for mut node in nodes.collect::<Result<Vec<_>, Damaged>>()? {
            if reset(&mut node) {
                step.put(node.id.to_be_bytes().to_vec(), &node)?;
                deleted.nodes = deleted.nodes.saturating_add(1);
            }
        }
    }
    Ok(deleted)
}
