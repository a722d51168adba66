//! The machine of a node, as a value: its GPUs, its runtimes, what it serves; supervised for as long as the node runs.

mod ask;
mod service;

use std::collections::{BTreeMap, HashMap};
use std::ops::RangeInclusive;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use muster_cluster::node::Node;
use muster_cluster::rows::{GpuFact, NodeFacts};
use muster_cluster::transport::Services;
use tokio::sync::mpsc;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

pub use ask::{Hosts, NoSight};

use crate::gpu::{Gpu, GpuProvider, GpuSource, NvmlOptions};
use crate::runtime::process::{ProcessOptions, ProcessRuntime, Program, UserName};
use crate::runtime::{EngineKind, GpuRef, Owner, Runtime, RuntimeKind};
use crate::serving::Serving;
use crate::supervisor::{Observed, Tools, supervise};

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
}

/// The machine of a node.
#[derive(Debug)]
pub struct Host {
    options: HostOptions,
    gpus: GpuProvider,
    inventory: Vec<Arc<Gpu>>,
    serving: Arc<Serving>,
    observed: Arc<Observed>,
}

impl Host {
    /// Looks at the machine. A driver that does not answer is waited for, for a while.
    pub async fn new(options: HostOptions) -> Arc<Self> {
        let gpus = GpuProvider::open(&options.gpus, NvmlOptions::default());
        let inventory = gpus.inventory().await.unwrap_or_else(|why| {
            tracing::info!(%why, "no GPUs");
            Vec::new()
        });
        Arc::new(Self { options, gpus, inventory, serving: Arc::default(), observed: Arc::default() })
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
        let mut engines: Vec<_> = self.options.programs.keys().map(|engine| engine.name().to_owned()).collect();
        engines.sort_unstable();
        facts.runtimes = if engines.is_empty() { Vec::new() } else { vec![RuntimeKind::Process.name().to_owned()] };
        facts.process_engines = engines;
        (facts.first_port, facts.last_port) =
            (u32::from(*self.options.ports.start()), u32::from(*self.options.ports.end()));
    }

    /// What it answers other nodes.
    #[must_use]
    pub fn services(self: &Arc<Self>) -> Services {
        let mut services = Services::default();
        let host = Arc::clone(self);
        services.add(move |routes, members| service::add(routes, Arc::clone(&host), members));
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
        let mut runtimes: BTreeMap<RuntimeKind, Arc<dyn Runtime>> = BTreeMap::new();
        // What an earlier configuration has started can run without its program being named any more.
        if !self.options.programs.is_empty() || ProcessRuntime::was_used(&self.options.directory) {
            let HostOptions { directory, programs, user, .. } = self.options.clone();
            let runtime = ProcessRuntime::new(owner, ProcessOptions { directory, programs, user });
            runtimes.insert(RuntimeKind::Process, Arc::new(runtime));
        }
        // A GPU that has never said which it is can not be given to anybody.
        let gpu = |gpu: &Arc<Gpu>| Some(GpuRef { index: gpu.index, uuid: gpu.uuid.clone()? });
        let tools = Tools {
            consensus: Arc::clone(node.consensus()),
            keyring: node.keyring().clone(),
            node: identity.node,
            runtimes,
            gpus: self.inventory.iter().filter_map(gpu).collect(),
            serving: Arc::clone(&self.serving),
            observed: Arc::clone(&self.observed),
        };
        let stop = CancellationToken::new();
        let (sought, found) = mpsc::channel(1);
        let supervising = tokio::spawn(supervise(Arc::new(tools), stop.clone(), sought));
        Supervision { stop, supervising, found }
    }
}

/// A host that is being supervised.
#[derive(Debug)]
pub struct Supervision {
    stop: CancellationToken,
    supervising: JoinHandle<()>,
    found: mpsc::Receiver<()>,
}

impl Supervision {
    /// Waits until the engines that took requests when the node ended take them again, or it is known that they do not; at most
    /// so long.
    pub async fn found(&mut self, limit: Duration) {
        if tokio::time::timeout(limit, self.found.recv()).await.is_err() {
            tracing::info!("not all engines that ran before have been found yet");
        }
    }

    /// Ends it. Engines go on, and so do requests to them.
    pub async fn end(self) {
        self.stop.cancel();
        if let Err(error) = self.supervising.await {
            tracing::error!(%error, "the supervisor has failed");
        }
    }
}
