//! What only the leader does.
//!
//! A new leader's first command is `TakeOffice`; its log index is the office. Each duty starts when the office is taken and
//! is cancelled when this node stops leading. That a node believes it leads proves nothing: every command of a duty carries
//! the office, and `apply` refuses one of an older office.

mod endings;
mod expiry;
mod hand_over;
mod levels;
mod membership;
mod retention;

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use futures_util::future::BoxFuture;
use tokio::task::JoinSet;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

pub use endings::Endings;
use expiry::Expiry;
pub use expiry::Withheld;
pub(crate) use hand_over::HandOver;
pub use levels::Levels;
pub use membership::{Membership, target_voters};
pub use retention::Retention;

use crate::clocks::Clocks;
use crate::consensus::{Consensus, ProposeError, Role};
use crate::ids::{LogTime, Office};
use crate::rows::{Answer, Origin, TakeOffice, answer::Outcome, command::Body};

/// How long to wait before trying again what failed.
const PAUSE: Duration = Duration::from_secs(1);

/// Something that only the leader does, for as long as it leads.
pub trait Duty: Send + Sync + 'static {
    /// Its name in the log.
    fn name(&self) -> &'static str;

    /// Does it. The future is dropped when the office ends; if it returns before, it is started again after a second.
    fn run(&self, leader: Leader) -> BoxFuture<'static, ()>;
}

/// The right to act as leader, as far as this node knows.
#[derive(Clone)]
pub struct Leader {
    consensus: Arc<Consensus>,
    office: Office,
    clocks: Clocks,
    expiry: Arc<Mutex<Expiry>>,
}

impl Leader {
    /// The clocks of the fleet.
    #[must_use]
    pub fn clocks(&self) -> &Clocks {
        &self.clocks
    }

    /// Whether something may expire by this time of the log. Every duty that ends things by time asks this first.
    ///
    /// # Errors
    /// Why not.
    pub fn may_expire(&self, time: LogTime) -> Result<(), Withheld> {
        let (own, opinion) = (self.clocks.own(), self.clocks.second_opinion(time));
        let patience = self.clocks.rules().patience_alone;
        let mut expiry = self.expiry.lock().unwrap_or_else(PoisonError::into_inner);
        expiry.may(time, own, opinion, patience, Instant::now())
    }

    /// The office that every command of a duty must carry.
    #[must_use]
    pub fn office(&self) -> Office {
        self.office
    }

    /// The replicated log and state.
    #[must_use]
    pub fn consensus(&self) -> &Consensus {
        &self.consensus
    }

    /// Proposes a command of a duty, which carries the office itself.
    ///
    /// # Errors
    /// See [`ProposeError`].
    pub async fn propose(&self, duty: &'static str, body: Body) -> Result<Answer, ProposeError> {
        self.consensus.propose_repeatable(origin(&self.consensus, duty), body).await
    }
}

fn origin(consensus: &Consensus, duty: &str) -> Origin {
    let principal = format!("node:{}", consensus.status().node);
    Origin { principal, source: duty.to_owned(), ..Origin::default() }
}

/// Runs the duties whenever this node leads, until it is told to stop.
pub async fn lead(consensus: Arc<Consensus>, clocks: Clocks, duties: Vec<Arc<dyn Duty>>, stop: CancellationToken) {
    let mut role = None;
    while !stop.is_cancelled() {
        let now = tokio::select! {
            now = consensus.role_other_than(role) => now,
            () = stop.cancelled() => return,
        };
        role = Some(now);
        match now {
            Role::Leader { term } => {
                tokio::select! {
                    () = in_office(&consensus, &clocks, &duties, term) => {}
                    _ = consensus.role_other_than(role) => tracing::info!(term, "no longer the leader"),
                    () = stop.cancelled() => {}
                }
            }
            Role::Stopped => return,
            Role::Voter | Role::Standby => {}
        }
    }
}

/// Takes the office and runs the duties; never returns by itself. Dropping it ends them all.
async fn in_office(consensus: &Arc<Consensus>, clocks: &Clocks, duties: &[Arc<dyn Duty>], term: u64) {
    let office = take_office(consensus).await;
    tracing::info!(term, %office, "leader");
    let (consensus, clocks) = (Arc::clone(consensus), clocks.clone());
    let leader = Leader { consensus, office, clocks, expiry: Arc::default() };
    let mut running = JoinSet::new();
    for duty in duties {
        start(&mut running, Arc::clone(duty), leader.clone(), Duration::ZERO);
    }
    while let Some(ended) = running.join_next().await {
        // Only a panic ends a duty for good, and then nobody knows which one it was: they are all started anew.
        if let Err(error) = ended {
            tracing::error!(%error, "a duty of the leader has failed; starting all of them again");
            running.shutdown().await;
            for duty in duties {
                start(&mut running, Arc::clone(duty), leader.clone(), PAUSE);
            }
        }
    }
    std::future::pending().await
}

fn start(running: &mut JoinSet<()>, duty: Arc<dyn Duty>, leader: Leader, delay: Duration) {
    running.spawn(async move {
        tokio::time::sleep(delay).await;
        loop {
            duty.run(leader.clone()).await;
            tracing::debug!(duty = duty.name(), "a duty has returned; it is started again");
            tokio::time::sleep(PAUSE).await;
        }
    });
}

async fn take_office(consensus: &Consensus) -> Office {
    loop {
        let body = Body::TakeOffice(TakeOffice { node: consensus.status().node.0 });
        match consensus.propose_repeatable(origin(consensus, "leader"), body).await {
            Ok(Answer { index, outcome: Some(Outcome::Nothing(_)), .. }) => return Office(index),
            Ok(answer) => tracing::error!(index = answer.index, "the office was refused"),
            Err(error) => tracing::warn!(%error, "the office is not taken yet"),
        }
        tokio::time::sleep(PAUSE).await;
    }
}
