//! The machine of a node, as a value: its GPUs, its runtimes, what it serves; supervised for as long as the node runs.

mod ask;
mod containers;
mod engines;
mod logs;
mod service;

use std::collections::{BTreeMap, HashMap};
use std::io;
use std::ops::RangeInclusive;
use std::path::PathBuf;
use std::sync::Arc;

use muster_cluster::node::Node;
use muster_cluster::rows::{GpuFact, NodeFacts};
use muster_cluster::transport::Services;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;
use tokio_util::task::AbortOnDropHandle;

pub use ask::{Hosts, NoSight};
pub use containers::{AskError, Refused};
pub use logs::Parts;

use engines::Engines;

use crate::gpu::{Gpu, GpuProvider, GpuSource, NvmlOptions};
use crate::logs::{LogBounds, LogStore};
use crate::runtime::process::{Program, UserName};
use crate::runtime::{EngineKind, GpuRef, Owner};
use crate::serving::Serving;
use crate::supervisor::{ContainerTerms, Ledger, Observed, Tools, supervise};

/// The directory of logs in the data directory.
const LOGS: &str = "engine-logs";

/// The directory of uploaded packages in the data directory.
const PACKAGES: &str = "packages";

/// What a node's configuration says of its machine.
#[derive(Clone, Debug)]
pub struct HostOptions {
    /// The node's data directory.
    pub directory: PathBuf,
    /// Where its GPUs come from.
    pub gpus: GpuSource,
    /// The programs of engines that run as processes.
    pub programs: HashMap<EngineKind, Program>,
    /// Who runs them; whoever runs this process, if nobody is named.
    pub user: Option<UserName>,
    /// The ports that are given out where nobody asks for one.
    pub ports: RangeInclusive<u16>,
    /// Where Docker may listen; nowhere, and it is not used.
    pub docker: Vec<PathBuf>,
    /// Where Podman may listen; nowhere, and it is not used.
    pub podman: Vec<PathBuf>,
    /// The repositories of the engines' images.
    pub images: BTreeMap<EngineKind, String>,
    /// A directory with a short path, for containers' sockets whose paths are too long in the data directory.
    pub short_places: PathBuf,
}

/// The machine of a node.
#[derive(Debug)]
pub struct Host {
    options: HostOptions,
    engines: Arc<Engines>,
    /// The runtimes that could be used when the node started.
    usable: Vec<String>,
    gpus: GpuProvider,
    inventory: Vec<Arc<Gpu>>,
    serving: Arc<Serving>,
    observed: Arc<Observed>,
    ledger: Arc<Ledger>,
    logs: Arc<LogStore>,
}

impl Host {
    /// Looks at the machine. A driver that does not answer is waited for, for a while.
    ///
    /// # Errors
    /// When the directory for logs can not be made.
    pub async fn new(options: HostOptions) -> io::Result<Arc<Self>> {
        let gpus = GpuProvider::open(&options.gpus, NvmlOptions::default());
        let engines = Arc::new(Engines::new(&options));
        let (inventory, usable) = tokio::join!(gpus.inventory(), engines.at_first());
        let inventory = inventory.unwrap_or_else(|why| {
            tracing::info!(%why, "no GPUs");
            Vec::new()
        });
        let logs = Arc::new(LogStore::open(options.directory.join(LOGS), LogBounds::default())?);
        let (serving, observed, ledger) = (Arc::default(), Arc::default(), Arc::default());
        Ok(Arc::new(Self { options, engines, usable, gpus, inventory, serving, observed, ledger, logs }))
    }

    /// Adds what the machine has to what the node tells the fleet of itself.
    pub fn describe(&self, facts: &mut NodeFacts) {
        facts.gpus = self
            .inventory
            .iter()
            .map(|gpu| GpuFact {
                index: gpu.index,
                uuid: gpu.uuid.clone().unwrap_or_default(),
                name: gpu.name.clone(),
                memory_bytes: gpu.memory_total.unwrap_or_default(),
            })
            .collect();
        facts.runtimes = self.usable.clone();
        facts.process_engines = self.engines.processes();
        (facts.first_port, facts.last_port) =
            (u32::from(*self.options.ports.start()), u32::from(*self.options.ports.end()));
    }

    /// What it answers other nodes.
    #[must_use]
    pub fn services(self: &Arc<Self>) -> Services {
        let mut services = Services::default();
        let host = Arc::clone(self);
        services.add(move |routes, members| {
            containers::add(routes, Arc::clone(&host), members.clone());
            service::add(routes, Arc::clone(&host), members);
        });
        services
    }

    /// What it serves.
    #[must_use]
    pub fn serving(&self) -> &Arc<Serving> {
        &self.serving
    }

    /// What it sees of its units.
    #[must_use]
    pub fn observed(&self) -> &Arc<Observed> {
        &self.observed
    }

    /// What its engines have said.
    #[must_use]
    pub fn logs(&self) -> &Arc<LogStore> {
        &self.logs
    }

    fn engines(&self) -> &Engines {
        &self.engines
    }

    /// Its GPUs.
    #[must_use]
    pub fn gpus(&self) -> &GpuProvider {
        &self.gpus
    }

    /// Begins to bring what runs here in line with what the node knows. No engine ends when this does.
    #[must_use]
    pub fn supervise(&self, node: &Node) -> Supervision {
        let identity = node.identity();
        let owner = Owner { fleet: identity.fleet, generation: identity.generation, node: identity.node };
        // A GPU that has never said which it is can not be given to anybody.
        let gpu = |gpu: &Arc<Gpu>| Some(GpuRef { index: gpu.index, uuid: gpu.uuid.clone()? });
        let tools = Tools {
            consensus: Arc::clone(node.consensus()),
            keyring: node.keyring().clone(),
            node: identity.node,
            runtimes: self.engines.runtimes(owner, &self.options),
            containers: ContainerTerms {
                images: self.options.images.clone(),
                packages: self.options.directory.join(PACKAGES),
                simulated_gpus: matches!(self.gpus, GpuProvider::Sim(_)),
            },
            gpus: self.inventory.iter().filter_map(gpu).collect(),
            serving: Arc::clone(&self.serving),
            observed: Arc::clone(&self.observed),
            ledger: Arc::clone(&self.ledger),
            logs: Arc::clone(&self.logs),
        };
        let stop = CancellationToken::new();
        let supervising = tokio::spawn(supervise(Arc::new(tools), stop.clone()));
        let telling = Arc::clone(&self.engines).keep_telling(node.told().clone());
        let telling = AbortOnDropHandle::new(tokio::spawn(telling));
        Supervision { stop, supervising, _telling: telling }
    }
}

/// A host that is being supervised.
#[derive(Debug)]
pub struct Supervision {
    stop: CancellationToken,
    supervising: JoinHandle<()>,
    _telling: AbortOnDropHandle<()>,
}

impl Supervision {
    /// Ends it. Engines go on, and so do requests to them.
    pub async fn end(self) {
        self.stop.cancel();
        if let Err(error) = self.supervising.await {
            tracing::error!(%error, "the supervisor has failed");
        }
    }
}
