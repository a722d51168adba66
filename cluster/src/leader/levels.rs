//! The duty that raises the fleet's feature level once every node has been upgraded.

use std::time::Duration;

use futures_util::future::BoxFuture;

use super::{Duty, Leader};
use crate::rows::{SetLevel, answer::Outcome, command::Body};

/// How often it looks.
const PERIOD: Duration = Duration::from_secs(5);

/// Raises the fleet's feature level when every node supports a higher one.
#[derive(Clone, Copy, Debug, Default)]
pub struct Levels;

impl Duty for Levels {
    fn name(&self) -> &'static str {
        "levels"
    }

    fn run(&self, leader: Leader) -> BoxFuture<'static, ()> {
        Box::pin(async move {
            loop {
                if let Err(error) = pass(&leader).await {
                    tracing::warn!(error, "the feature level stays");
                }
                tokio::time::sleep(PERIOD).await;
            }
        })
    }
}

async fn pass(leader: &Leader) -> Result<(), String> {
    let view = leader.consensus().local();
    let damaged = |error: crate::state::Damaged| error.to_string();
    let Some(fleet) = view.fleet().map_err(damaged)? else { return Ok(()) };
    let nodes = view.nodes().map_err(damaged)?;
    let supported = nodes.iter().map(|node| node.row.facts.as_ref().map_or(0, |facts| facts.max_level)).min();
    if supported.is_none_or(|supported| supported <= fleet.feature_level) {
        return Ok(());
    }
    let level = fleet.feature_level + 1;
    let command = SetLevel { office: leader.office().0, level };
    let answer = leader.propose("levels", Body::SetLevel(command)).await.map_err(|error| error.to_string())?;
    match answer.outcome {
        Some(Outcome::Nothing(_)) => {
            tracing::info!(level, "every node supports this feature level; it is in force");
            Ok(())
        }
        Some(Outcome::Refusal(refusal)) => Err(refusal.message),
        _ => Err("an unexpected answer".to_owned()),
    }
}
