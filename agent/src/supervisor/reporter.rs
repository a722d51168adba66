//! Telling the fleet how a placement goes.
//!
//! Only the newest news counts: the state takes any of them from any other, so that what could not be told while there was no
//! quorum need not be told afterwards.

use std::sync::Arc;
use std::time::Duration;

use muster_cluster::rows::answer::Outcome;
use muster_cluster::rows::command::Body;
use muster_cluster::rows::report_placement::Event;
use muster_cluster::rows::{Origin, RefusalKind, ReportPlacement};
use tokio::sync::watch;
use tokio_util::task::AbortOnDropHandle;

use super::Tools;
use crate::runtime::UnitId;

/// How long to wait before trying again, at first and at most.
const FIRST_PAUSE: Duration = Duration::from_millis(250);
const LONGEST_PAUSE: Duration = Duration::from_secs(5);

/// How long this node's copy of the state may take to show what it has been told.
const SHOW_LIMIT: Duration = Duration::from_secs(10);

/// Tells of one unit.
pub(super) struct Reporter {
    tools: Arc<Tools>,
    unit: UnitId,
    newest: watch::Sender<Option<Event>>,
    _telling: AbortOnDropHandle<()>,
}

impl Reporter {
    /// One that tells in the background.
    pub fn new(tools: &Arc<Tools>, unit: UnitId) -> Self {
        let (newest, mut news) = watch::channel(None);
        let telling = {
            let tools = Arc::clone(tools);
            async move {
                while news.changed().await.is_ok() {
                    let event = news.borrow_and_update().clone();
                    let Some(event) = event else { continue };
                    tokio::select! {
                        () = propose(&tools, unit, event) => {}
                        // What is newer makes it pointless to go on.
                        outcome = news.changed() => match outcome {
                            Ok(()) => news.mark_changed(),
                            Err(_) => return,
                        },
                    }
                }
            }
        };
        let telling = AbortOnDropHandle::new(tokio::spawn(telling));
        Self { tools: Arc::clone(tools), unit, newest, _telling: telling }
    }

    /// Tells this, as soon as it can be told.
    pub fn tell(&self, event: Event) {
        self.newest.send_replace(Some(event));
    }

    /// Tells the last there is to tell, and waits until the fleet knows and this node's state shows it.
    pub async fn last(self, event: Event) {
        let Self { tools, unit, _telling, .. } = self;
        drop(_telling);
        propose(&tools, unit, event).await;
    }
}

/// Proposes it until it is committed, or nobody wants to hear it any more.
async fn propose(tools: &Tools, unit: UnitId, event: Event) {
    let report = ReportPlacement {
        deployment: unit.placement.deployment.0,
        ordinal: unit.placement.ordinal,
        epoch: unit.epoch.0,
        event: Some(event),
    };
    let mut pause = FIRST_PAUSE;
    loop {
        let origin =
            Origin { principal: format!("node:{}", tools.node), source: "supervisor".to_owned(), ..Origin::default() };
        let proposed = tools.consensus.propose(origin, Body::ReportPlacement(report.clone())).await;
        match proposed {
            Ok(answer) => {
                if let Some(Outcome::Refusal(refusal)) = &answer.outcome {
                    let old = refusal.kind() == RefusalKind::OldEpoch;
                    tracing::debug!(%unit, old, why = refusal.message, "the fleet does not want to hear of this placement");
                }
                let shown = tools.consensus.published().reached(answer.index);
                if tokio::time::timeout(SHOW_LIMIT, shown).await.is_err() {
                    tracing::debug!(%unit, "this node's state lags behind");
                }
                return;
            }
            Err(error) => tracing::debug!(%unit, %error, "the fleet has not been told yet how a placement goes"),
        }
        tokio::time::sleep(pause).await;
        pause = (pause * 2).min(LONGEST_PAUSE);
    }
}
