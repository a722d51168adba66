//! Telling the fleet how a placement goes.
//!
//! Only the newest news counts: the state takes any of them from any other, so that what could not be told while there was no
//! quorum need not be told afterwards. It is told again whenever the state shows something else: what was proposed and given up
//! may be committed after what came later.

use std::sync::Arc;
use std::time::Duration;

use muster_cluster::rows::answer::Outcome;
use muster_cluster::rows::command::Body;
use muster_cluster::rows::report_placement::Event;
use muster_cluster::rows::{DeploymentStatus, Origin, Placement, RefusalKind, ReportPlacement};
use muster_cluster::state::{View, holds};
use tokio::sync::watch;
use tokio_util::task::AbortOnDropHandle;

use super::{Tools, concerned};
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
        let (newest, news) = watch::channel(None);
        let telling = AbortOnDropHandle::new(tokio::spawn(tell_on(Arc::clone(tools), unit, news)));
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

/// Tells the newest, and tells it again if the state shows something else.
async fn tell_on(tools: Arc<Tools>, unit: UnitId, mut news: watch::Receiver<Option<Event>>) {
    let published = Arc::clone(tools.consensus.published());
    let mut changes = published.changes(published.view().index());
    let mut pause = FIRST_PAUSE;
    loop {
        let newest = news.borrow_and_update().clone();
        if let Some(event) = newest.filter(|event| !shows(&published.view(), unit, event)) {
            // It is not given up for something newer: both could be committed, in any order.
            if try_propose(&tools, unit, event).await {
                pause = FIRST_PAUSE;
            } else {
                tokio::time::sleep(pause).await;
                pause = (pause * 2).min(LONGEST_PAUSE);
                continue;
            }
        }
        tokio::select! {
            changed = news.changed() => if changed.is_err() { return },
            () = concerned(&mut changes) => {}
        }
    }
}

/// Whether nothing would change if this were told.
fn shows(view: &View, unit: UnitId, event: &Event) -> bool {
    let Ok(Some(stored)) = view.placement(unit.placement) else { return true };
    let placement = stored.row;
    let wanted = match event {
        Event::Loading(_) => DeploymentStatus::Loading,
        Event::Running(_) => DeploymentStatus::Running,
        Event::Failed(failed) if failed.failure != placement.failure => return !runs_on(&placement, unit),
        Event::Failed(_) => DeploymentStatus::Starting,
        Event::Ended(_) => return !holds(placement.status()),
    };
    placement.status() == wanted || !runs_on(&placement, unit)
}

/// Whether the fleet still wants to hear how it goes.
fn runs_on(placement: &Placement, unit: UnitId) -> bool {
    let status = placement.status();
    placement.epoch == unit.epoch.0 && holds(status) && status != DeploymentStatus::Stopping
}

/// Proposes it until it is committed, or nobody wants to hear it any more.
async fn propose(tools: &Tools, unit: UnitId, event: Event) {
    let mut pause = FIRST_PAUSE;
    while !try_propose(tools, unit, event.clone()).await {
        tokio::time::sleep(pause).await;
        pause = (pause * 2).min(LONGEST_PAUSE);
    }
}

/// Proposes it once, and waits until this node's state shows the outcome. False: there is none yet.
async fn try_propose(tools: &Tools, unit: UnitId, event: Event) -> bool {
    let report = ReportPlacement {
        deployment: unit.placement.deployment.0,
        ordinal: unit.placement.ordinal,
        epoch: unit.epoch.0,
        event: Some(event),
    };
    let origin =
        Origin { principal: format!("node:{}", tools.node), source: "supervisor".to_owned(), ..Origin::default() };
    let answer = match tools.consensus.propose(origin, Body::ReportPlacement(report)).await {
        Ok(answer) => answer,
        Err(error) => {
            tracing::debug!(%unit, %error, "the fleet has not been told yet how a placement goes");
            return false;
        }
    };
    if let Some(Outcome::Refusal(refusal)) = &answer.outcome {
        let old = refusal.kind() == RefusalKind::OldEpoch;
        tracing::debug!(%unit, old, why = refusal.message, "the fleet does not want to hear of this placement");
    }
    let shown = tools.consensus.published().reached(answer.index);
    if tokio::time::timeout(SHOW_LIMIT, shown).await.is_err() {
        tracing::debug!(%unit, "this node's state lags behind");
    }
    true
}
