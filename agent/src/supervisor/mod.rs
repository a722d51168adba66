//! Brings what runs on this node in line with what has been committed for it.
//!
//! What shall run is read from the node's own replica and from nowhere else. Each placement has a keeper, which starts its
//! engine, watches it, and tells the fleet how it goes; the keeper of an epoch knows nothing of other epochs. A supervisor that
//! ends leaves every engine running; the next one finds them again.

mod keeper;
mod observed;
mod order;
mod reporter;
mod strays;

use std::collections::{BTreeMap, HashMap, HashSet};
use std::num::NonZeroU32;
use std::sync::Arc;
use std::time::Duration;

use muster_cluster::consensus::Consensus;
use muster_cluster::ids::{NodeId, PlacementId};
use muster_cluster::rows::{Deployment, DeploymentStatus, Placement, Reservation};
use muster_cluster::sealing::Keyring;
use muster_cluster::state::{Damaged, Row, View};
use tokio::sync::{mpsc, watch};
use tokio::task::{JoinError, JoinSet};
use tokio_util::sync::CancellationToken;

pub use observed::{Observation, Observed};

use crate::engine::restarts::DEFAULT_LIMIT;
use crate::runtime::{GpuRef, Runtime, RuntimeKind, UnitId};
use crate::serving::Serving;

/// How often everything is looked through, whatever has changed.
const LOOK_AGAIN: Duration = Duration::from_secs(30);

/// How long to wait before trying again what failed.
const PAUSE: Duration = Duration::from_secs(1);

/// How long a starting engine may take where the fleet has not set it, in seconds (`start_timeout_seconds`, seed 004).
const START_LIMIT: u64 = 1800;

/// What keepers work with.
pub(crate) struct Tools {
    pub consensus: Arc<Consensus>,
    pub keyring: Keyring,
    pub node: NodeId,
    pub runtimes: BTreeMap<RuntimeKind, Arc<dyn Runtime>>,
    /// The GPUs of this machine.
    pub gpus: Vec<GpuRef>,
    pub serving: Arc<Serving>,
    pub observed: Arc<Observed>,
}

impl Tools {
    /// How many starts may fail in a row.
    fn failure_limit(&self, wanted: Option<u32>) -> NonZeroU32 {
        let set = || self.consensus.local().settings().ok()?.0.default_max_failed_restarts;
        let limit = wanted.or_else(|| set().and_then(|limit| u32::try_from(limit).ok()));
        limit.and_then(NonZeroU32::new).unwrap_or(DEFAULT_LIMIT)
    }

    /// How long an engine may take until it is ready.
    fn start_limit(&self) -> Duration {
        let set = self.consensus.local().settings().ok().and_then(|(settings, _)| settings.start_timeout_seconds);
        Duration::from_secs(set.unwrap_or(START_LIMIT))
    }
}

/// What shall become of a placement, as far as its keeper is concerned.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Wish {
    /// It shall run.
    Run,
    /// It shall end, and the fleet is told.
    Stop,
    /// It is another's by now: it shall end, and nobody waits to be told.
    GoAway,
    /// Its record is gone: nobody knows whether it is still needed. It is left as it is.
    Leave,
}

/// Held while it is not known yet whether the engine of a placement that ran before is still there.
pub(crate) type Sought = mpsc::Sender<()>;

struct Keeper {
    unit: UnitId,
    wish: watch::Sender<Wish>,
}

struct Supervisor {
    tools: Arc<Tools>,
    keepers: HashMap<PlacementId, Keeper>,
    tasks: JoinSet<PlacementId>,
}

impl Supervisor {
    /// Gives every placement of this node its keeper, and every keeper its wish.
    fn reconcile(&mut self, view: &View, sought: Option<&Sought>) -> Result<(), Damaged> {
        let mut here = HashSet::new();
        for held in view.held_on(self.tools.node)? {
            let unit = UnitId { placement: held.placement, epoch: held.epoch };
            here.insert(held.placement);
            let status = view.placement(held.placement)?.map(|stored| stored.row.status());
            let wish = if status == Some(DeploymentStatus::Stopping) { Wish::Stop } else { Wish::Run };
            match self.keepers.get(&held.placement) {
                Some(keeper) if keeper.unit == unit => tell(keeper, wish),
                Some(keeper) => tell(keeper, Wish::GoAway),
                None => {
                    let sought = sought.filter(|_| status == Some(DeploymentStatus::Running));
                    self.begin(unit, wish, sought.cloned());
                }
            }
        }
        for (placement, keeper) in self.keepers.iter().filter(|(placement, _)| !here.contains(placement)) {
            let known = view.deployment(placement.deployment)?.is_some();
            tell(keeper, if known { Wish::GoAway } else { Wish::Leave });
        }
        Ok(())
    }

    fn begin(&mut self, unit: UnitId, wish: Wish, sought: Option<Sought>) {
        let (wish, told) = watch::channel(wish);
        let tools = Arc::clone(&self.tools);
        self.tasks.spawn(async move {
            keeper::keep(tools, unit, told, sought).await;
            unit.placement
        });
        self.keepers.insert(unit.placement, Keeper { unit, wish });
    }

    fn ended(&mut self, ended: Result<PlacementId, JoinError>) {
        match ended {
            Ok(placement) => {
                self.keepers.remove(&placement);
            }
            Err(error) => {
                tracing::error!(%error, "the keeper of a placement has failed; all of them are started again");
                // Nobody knows whose it was. Their engines go on meanwhile.
                self.tasks.abort_all();
                self.keepers.clear();
                self.tasks = JoinSet::new();
            }
        }
    }
}

fn tell(keeper: &Keeper, wish: Wish) {
    keeper.wish.send_if_modified(|told| std::mem::replace(told, wish) != wish);
}

/// Supervises until it is told to stop. No engine is ended by that. What is `sought` is let go of when every engine that took
/// requests before has been looked for.
pub(crate) async fn supervise(tools: Arc<Tools>, stop: CancellationToken, sought: Sought) {
    let mut sought = Some(sought);
    let published = Arc::clone(tools.consensus.published());
    let strays = strays::look(Arc::clone(&tools));
    let mut strays = std::pin::pin!(strays);
    let mut supervisor = Supervisor { tools, keepers: HashMap::new(), tasks: JoinSet::new() };
    let mut changes = published.changes(published.view().index());
    loop {
        if let Err(damaged) = supervisor.reconcile(&published.view(), sought.take().as_ref()) {
            tracing::error!(%damaged, "what shall run here can not be read");
        }
        tokio::select! {
            () = stop.cancelled() => return,
            () = concerned(&mut changes) => {}
            Some(ended) = supervisor.tasks.join_next() => supervisor.ended(ended),
            () = tokio::time::sleep(LOOK_AGAIN) => {}
            () = &mut strays => return,
        }
    }
}

/// Waits for a change of what shall run anywhere.
async fn concerned(changes: &mut muster_cluster::state::Changes) {
    const TABLES: [muster_cluster::state::TableId; 3] = [Deployment::TABLE, Placement::TABLE, Reservation::TABLE];
    loop {
        match changes.next().await {
            Ok(batches) => {
                let mut all = batches.iter().flat_map(|batch| batch.changes.iter());
                if all.any(|change| TABLES.contains(&change.key.table)) {
                    return;
                }
            }
            // Everything is looked through then.
            Err(_) => return,
        }
    }
}
