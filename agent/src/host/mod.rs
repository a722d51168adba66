//! The machine of a node, as a value: its GPUs, its runtimes, what it serves; supervised for as long as the node runs.

mod ask;
mod containers;
mod engines;
pub mod files;
mod logs;
mod past;
mod ports;
mod sample;
mod service;

use std::collections::{BTreeMap, HashMap};
use std::io;
use std::net::IpAddr;
use std::ops::RangeInclusive;
use std::path::PathBuf;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use arc_swap::ArcSwapOption;
use muster_cluster::consensus::Consensus;
use muster_cluster::ids::NodeId;
use muster_cluster::leader::Duty;
use muster_cluster::membership::Gossip;
use muster_cluster::node::Node;
use muster_cluster::rows::{GpuFact, NodeFacts};
use muster_cluster::transport::Services;
use tokio::sync::mpsc;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;
use tokio_util::task::AbortOnDropHandle;

pub use ask::{Hosts, NoSight, Sight};
pub use containers::{AskError, Refused};
pub use logs::Parts;

use engines::Engines;
use files::OwnFiles;
use past::Past;

use crate::doors::Doors;
use crate::files::FilesConfig;
use crate::gpu::{Gpu, GpuProvider, GpuSource, NvmlOptions};
use crate::leases::{CONFIRMED, Granted, OwnLeases};
use crate::logs::{LogBounds, LogStore};
use crate::machine::Disk;
use crate::runtime::process::{Program, UserName};
use crate::runtime::{EngineKind, GpuRef, Owner, UnitId};
use crate::scheduler::Scheduler;
use crate::serving::Serving;
use crate::supervisor::{ContainerTerms, Ledger, Observed, Tools, supervise};

/// The directory of logs in the data directory.
const LOGS: &str = "engine-logs";

/// How long a file system may take to say how full it is.
const DISK_LIMIT: Duration = Duration::from_millis(500);

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
    /// Where its API listens, and with it what is deployed here.
    pub address: IpAddr,
    /// Where its model files lie.
    pub files: FilesConfig,
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
    leases: Arc<OwnLeases>,
    granted: Arc<Granted>,
    /// The node that it belongs to, while that runs.
    node: ArcSwapOption<Belonging>,
    disk: Disk,
    past: Mutex<Past>,
    files: Arc<OwnFiles>,
}

/// What a host needs of its node to speak for it.
#[derive(Clone)]
pub(crate) struct Belonging {
    pub consensus: Arc<Consensus>,
    pub gossip: Gossip,
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
        let files = Arc::new(OwnFiles::new(options.files.clone()));
        let logs = Arc::new(LogStore::open(options.directory.join(LOGS), LogBounds::default())?);
        let (serving, observed, ledger) = (Arc::default(), Arc::default(), Arc::default());
        let (leases, granted, node) = (Arc::default(), Arc::default(), ArcSwapOption::empty());
        Ok(Arc::new(Self {
            disk: Disk::new(options.directory.clone(), DISK_LIMIT),
            options,
            engines,
            usable,
            gpus,
            inventory,
            serving,
            observed,
            ledger,
            logs,
            leases,
            granted,
            node,
            past: Mutex::default(),
            files,
        }))
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

    /// Lets a node go on with what it has, if this one leads and a quorum has just said so.
    pub(crate) fn renew(&self, node: NodeId, units: &[UnitId]) -> Result<Vec<UnitId>, &'static str> {
        const NO_LEADER: &str = "this node does not lead";
        let belonging = self.node.load_full().ok_or(NO_LEADER)?;
        let confirmed = belonging.consensus.status().quorum_acked.is_some_and(|age| age < CONFIRMED);
        if !confirmed {
            return Err(NO_LEADER);
        }
        let renewed = self.granted.renew(&belonging.consensus.local(), node, units, Instant::now());
        renewed.map_err(|_| "the state of this node is damaged")?.ok_or(NO_LEADER)
    }

    /// The leases that it grants while its node leads.
    pub(crate) fn granted(&self) -> &Arc<Granted> {
        &self.granted
    }

    /// The node that it belongs to, while that runs.
    pub(crate) fn node(&self) -> Option<Arc<Belonging>> {
        self.node.load_full()
    }

    /// What only the leader does with machines.
    #[must_use]
    pub fn duties(self: &Arc<Self>) -> Vec<Arc<dyn Duty>> {
        vec![Arc::new(Scheduler::new(Arc::clone(self)))]
    }

    /// What it answers other nodes.
    #[must_use]
    pub fn services(self: &Arc<Self>) -> Services {
        let mut services = Services::default();
        let host = Arc::clone(self);
        services.add(move |routes, members| {
            containers::add(routes, Arc::clone(&host), members.clone());
            files::add(routes, Arc::clone(&host.files), members.clone());
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

    /// Its model files.
    #[must_use]
    pub fn files(&self) -> &Arc<OwnFiles> {
        &self.files
    }

    fn engines(&self) -> &Engines {
        &self.engines
    }

    /// Its GPUs.
    #[must_use]
    pub fn gpus(&self) -> &GpuProvider {
        &self.gpus
    }

    /// Begins to bring what runs here in line with what the node knows; clients come to it through these doors. No engine ends
    /// when this does, and no door closes.
    #[must_use]
    pub fn supervise(self: &Arc<Self>, node: &Node, doors: Arc<dyn Doors>) -> Supervision {
        let (consensus, gossip) = (Arc::clone(node.consensus()), node.gossip().clone());
        self.node.store(Some(Arc::new(Belonging { consensus, gossip })));
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
            leases: Arc::clone(&self.leases),
            hosts: Hosts::new(Arc::clone(self), identity.node, Arc::clone(node.channels())),
            doors,
            files: Arc::clone(&self.files),
        };
        let stop = CancellationToken::new();
        let (sought, found) = mpsc::channel(1);
        let supervising = tokio::spawn(supervise(Arc::new(tools), stop.clone(), sought));
        let sampling = past::sample_on(Arc::clone(self), Arc::clone(node.consensus()), stop.clone());
        let sampling = tokio::spawn(sampling);
        let (files, published) = (Arc::clone(&self.files), Arc::clone(node.consensus().published()));
        let own = identity.node;
        let opening = async move { files.open(published, own).await };
        let opening = AbortOnDropHandle::new(tokio::spawn(opening));
        let telling = Arc::clone(&self.engines).keep_telling(node.told().clone());
        let telling = AbortOnDropHandle::new(tokio::spawn(telling));
        Supervision { stop, supervising, sampling, found, opening, host: Arc::clone(self), _telling: telling }
    }
}

/// A host that is being supervised.
pub struct Supervision {
    stop: CancellationToken,
    supervising: JoinHandle<()>,
    sampling: JoinHandle<()>,
    opening: AbortOnDropHandle<()>,
    host: Arc<Host>,
    found: mpsc::Receiver<()>,
    _telling: AbortOnDropHandle<()>,
}

impl Supervision {
    /// Waits until the engines that took requests when the node ended take them again, or it is known that they do not; at most
    /// so long.
    pub async fn found(&mut self, limit: Duration) {
        if tokio::time::timeout(limit, self.found.recv()).await.is_err() {
            tracing::info!("not all engines that ran before have been found yet");
        }
    }

    /// Ends it. Engines go on, and so do requests to them. What is on its way to the node's disk is cut off: another process may
    /// work there now.
    pub async fn end(mut self) {
        self.opening.abort();
        // Nothing opens them once it is over.
        let _ = (&mut self.opening).await;
        self.host.files.close();
        self.pause().await;
    }

    /// Ends it for a moment, after which this process goes on with it: nothing is cut off.
    pub async fn pause(self) {
        self.stop.cancel();
        self.host.node.store(None);
        for (what, task) in [("supervisor", self.supervising), ("sampler", self.sampling)] {
            if let Err(error) = task.await {
                tracing::error!(%error, "the {what} has failed");
            }
        }
    }
}
