//! The duty of a leader whose clock is off: to have another lead.

use std::collections::BTreeSet;
use std::time::Duration;

use futures_util::future::BoxFuture;

use super::{Duty, Leader};
use crate::clocks::Standing;
use crate::consensus::{PASS_ON_LIMIT, Transferred};
use crate::ids::NodeId;

/// How often it looks.
const PERIOD: Duration = Duration::from_millis(500);

/// How long it waits before it tries again: the others may be just as helpless a moment later.
const PAUSE: Duration = Duration::from_secs(5);

/// Hands the lead to a voter whose clock is right, when that of this node is off.
///
/// It does not come back to and fro: all nodes compare with the same median, and whoever gets the lead is further inside the
/// bound than whoever gives it up is outside.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct HandOver;

impl Duty for HandOver {
    fn name(&self) -> &'static str {
        "clocks"
    }

    fn run(&self, leader: Leader) -> BoxFuture<'static, ()> {
        Box::pin(async move {
            let mut said = false;
            loop {
                if leader.clocks().own() != Standing::Off {
                    said = false;
                    tokio::time::sleep(PERIOD).await;
                    continue;
                }
                match hand_over(&leader).await {
                    Ok(to) => tracing::warn!(%to, "the clock of this node is off, and another node leads now"),
                    Err(why) if !said => {
                        said = true;
                        tracing::warn!(
                            why,
                            "the clock of this node is off, and no other can lead; the log's time stands still"
                        );
                    }
                    Err(why) => tracing::debug!(why, "no other node leads yet"),
                }
                tokio::time::sleep(PAUSE).await;
            }
        })
    }
}

async fn hand_over(leader: &Leader) -> Result<NodeId, String> {
    let consensus = leader.consensus();
    let status = consensus.status();
    let voters: BTreeSet<_> = status.voters.iter().flatten().copied().collect();
    let sheet = leader.clocks().sheet();
    let good = |node: &NodeId| sheet.nodes.get(node).is_some_and(|clock| clock.standing == Standing::Good);
    let matched = consensus.matched();
    let mut fit: Vec<_> = voters.into_iter().filter(|node| *node != status.node && good(node)).collect();
    fit.sort_by_key(|node| std::cmp::Reverse(matched.get(node).copied().unwrap_or(0)));
    let mut why = "no other voter's clock is known to be right".to_owned();
    for node in fit {
        match consensus.transfer(Some(node), PASS_ON_LIMIT).await? {
            Transferred::To(leader) => return Ok(leader),
            Transferred::NotLeader => return Err("this node does not lead any more".to_owned()),
            Transferred::Nobody(unable) => why = format!("node {node}: {unable}"),
            Transferred::Late => why = format!("node {node} has not taken the lead in time"),
        }
    }
    Err(why)
}
