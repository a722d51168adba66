//! The duty that ends deployments whose time is over.

use std::time::Duration;

use futures_util::future::BoxFuture;
use tokio::time::Instant;

use super::retention::{Wait, say, time};
use super::{Duty, Leader};
use crate::ids::LogTime;
use crate::rows::{ExpireDeployment, answer::Outcome, command::Body};
use crate::state::{Damaged, View};

/// How often it looks where the fleet has not set it, in seconds (`expiry_check_interval_seconds`, seed 004).
const PERIOD: u64 = 30;

/// The shortest that it can be set to.
const SHORTEST: Duration = Duration::from_secs(5);

/// Ends deployments whose time is over.
#[derive(Clone, Copy, Debug, Default)]
pub struct Endings;

impl Duty for Endings {
    fn name(&self) -> &'static str {
        "endings"
    }

    fn run(&self, leader: Leader) -> BoxFuture<'static, ()> {
        Box::pin(async move {
            let mut withheld = None;
            loop {
                let outcome = match time(&leader) {
                    Ok(now) => {
                        withheld = None;
                        pass(&leader, now).await
                    }
                    Err(Wait::Withheld(why)) => {
                        if withheld.replace(why) != Some(why) {
                            say(why);
                        }
                        Ok(())
                    }
                    Err(Wait::Damaged(damaged)) => Err(damaged.to_string()),
                };
                if let Err(error) = outcome {
                    tracing::warn!(error, "deployments whose time is over go on for now");
                }
                rest(&leader).await;
            }
        })
    }
}

/// Waits until it is time to look again. A period that is made shorter holds for the one that has begun.
async fn rest(leader: &Leader) {
    let begun = Instant::now();
    loop {
        let set = leader.consensus().local().settings().ok();
        let period = set.and_then(|(settings, _)| settings.expiry_check_interval_seconds);
        let left = Duration::from_secs(period.unwrap_or(PERIOD)).saturating_sub(begun.elapsed());
        if left.is_zero() {
            return;
        }
        tokio::time::sleep(left.min(SHORTEST)).await;
    }
}

async fn pass(leader: &Leader, now: LogTime) -> Result<(), String> {
    let due = due(&leader.consensus().local(), now).map_err(|damaged| damaged.to_string())?;
    for (id, expires_ms) in due {
        let command = ExpireDeployment { office: leader.office().0, id, expires_ms };
        let answer = leader.propose("endings", Body::ExpireDeployment(command)).await;
        match answer.map_err(|error| error.to_string())?.outcome {
            // It has been extended, stopped or deleted meanwhile.
            Some(Outcome::Refusal(refusal)) => tracing::debug!(id, why = refusal.message, "a deployment goes on"),
            _ => tracing::info!(id, "the time of this deployment is over"),
        }
    }
    Ok(())
}

/// The deployments whose time is over, with their ends.
fn due(view: &View, now: LogTime) -> Result<Vec<(u64, u64)>, Damaged> {
    let mut due = Vec::new();
    for stored in view.deployments()? {
        if let Some(expires) = stored.row.expires_ms.filter(|expires| *expires <= now.0) {
            due.push((stored.row.id, expires));
        }
    }
    Ok(due)
}
