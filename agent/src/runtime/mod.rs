//! Where engines run: in containers of Docker or Podman, or as processes of the machine.
//!
//! A runtime starts, finds and ends units. A unit is one life of one placement: the same placement in another epoch is another
//! unit. What shall run is not a runtime's business; it acts on nothing that does not carry its fleet and its node.

pub mod container;
pub mod process;

use std::fmt;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::{Duration, SystemTime};

use futures_util::future::BoxFuture;
use muster_cluster::ids::{FleetId, NodeId, PlacementEpoch, PlacementId};
use muster_cluster::sealing::SecretText;
use tokio::sync::{mpsc, watch};

use container::Package;

/// The kinds of runtimes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum RuntimeKind {
    /// Docker Engine.
    Docker,
    /// Podman, through its Docker-compatible socket.
    Podman,
    /// Processes of the machine.
    Process,
}

impl RuntimeKind {
    /// As the API and configurations spell it.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Docker => "docker",
            Self::Podman => "podman",
            Self::Process => "process",
        }
    }
}

impl fmt::Display for RuntimeKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// Whose units a runtime handles. Everything that carries something else is left alone.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Owner {
    /// The fleet.
    pub fleet: FleetId,
    /// Its generation, which restore and recovery raise.
    pub generation: u64,
    /// The node.
    pub node: NodeId,
}

/// One life of one placement.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct UnitId {
    /// The placement.
    pub placement: PlacementId,
    /// Which of its lives.
    pub epoch: PlacementEpoch,
}

impl fmt::Display for UnitId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}@{}", self.placement, self.epoch)
    }
}

/// What runs in a unit.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum EngineKind {
    /// vLLM.
    Vllm,
    /// The simulator of vLLM's API.
    Sim,
}

impl EngineKind {
    /// As the API and configurations spell it.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Vllm => "vllm",
            Self::Sim => "sim",
        }
    }
}

/// An address that only this machine can reach.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Endpoint {
    /// A Unix socket.
    Unix(PathBuf),
    /// A port on loopback.
    Tcp(SocketAddr),
}

/// Where a unit's engine is to listen.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Place {
    /// As the engine sees it, for its command line.
    pub inside: Endpoint,
    /// As this process reaches it. `None`: it is known once the unit has been launched (a published port).
    pub outside: Option<Endpoint>,
}

/// A GPU that a unit may use.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct GpuRef {
    /// The driver's number.
    pub index: u32,
    /// The name that stays the same when numbers move.
    pub uuid: String,
}

/// A directory of the machine that a container can see. Processes see the machine as it is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Mount {
    /// On the machine.
    pub outside: PathBuf,
    /// In the container.
    pub inside: PathBuf,
    /// Whether it can only be read.
    pub read_only: bool,
}

/// What a unit is made of.
#[derive(Clone, Debug)]
pub struct Launch {
    /// Which unit.
    pub unit: UnitId,
    /// What runs in it.
    pub engine: EngineKind,
    /// The image, for containers.
    pub image: Option<String>,
    /// Whether a registry may be asked for the image. One that is made on the machine has a name that others could take there.
    pub pull: bool,
    /// What is installed on top of the image. Processes have no image and take none.
    pub packages: Vec<Package>,
    /// The engine's command line, without the program.
    pub arguments: Vec<String>,
    /// Added to its environment. Values are in no log, no label and no error.
    pub environment: Vec<(String, SecretText)>,
    /// The GPUs that it may see. Empty: none.
    pub gpus: Vec<GpuRef>,
    /// How many processes of the engine share memory: one for each rank of tensor parallelism.
    pub ranks: u32,
    /// What containers see of the machine, besides the directory of their socket.
    pub mounts: Vec<Mount>,
    /// Tells different specifications of one placement apart.
    pub spec_hash: String,
}

/// How far a launch has come.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Progress {
    /// What is being done, in the words of the API: `pulling image`, `extracting image`, `building image`, `copying image`,
    /// `starting container` ...
    pub phase: &'static str,
    /// Bytes of the image that have come, and that there are, while it is pulled.
    pub pulled: Option<(u64, u64)>,
}

/// A unit that has been launched.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Launched {
    /// Where its engine will listen.
    pub endpoint: Endpoint,
    /// What the image is exactly: `repository@sha256:...`, or an image's id. `None` for processes.
    pub image_digest: Option<String>,
}

/// How a unit has ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Exit {
    /// The exit code; `None` where nobody saw it (a process that ended while this one did not run).
    pub code: Option<i32>,
    /// The signal that ended it.
    pub signal: Option<i32>,
    /// Whether the kernel ended it because memory ran out.
    pub out_of_memory: bool,
}

/// Whether a unit runs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum UnitState {
    /// It runs, and its engine listens there.
    Running(Endpoint),
    /// It has ended and is still there.
    Ended(Exit),
}

/// A unit of this fleet and node that was found on the machine.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Found {
    /// Which.
    pub unit: UnitId,
    /// The fleet's generation in which it was launched.
    pub generation: u64,
    /// What it was launched with.
    pub spec_hash: String,
    /// What runs in it.
    pub engine: EngineKind,
    /// Whether it runs.
    pub state: UnitState,
    /// What the image is exactly.
    pub image_digest: Option<String>,
}

/// One line that an engine has said.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Line {
    /// When, as the runtime has it.
    pub at: SystemTime,
    /// What, as it was written, without the line's end.
    pub text: String,
}

/// Why a runtime did not do what it was asked for. Messages name neither secrets nor values of the environment.
#[derive(Debug, thiserror::Error)]
pub enum RuntimeError {
    /// The runtime does not answer, or is not set up on this machine. It may later be.
    #[error("{runtime} is not available on this node: {why}")]
    Unavailable {
        /// Which.
        runtime: RuntimeKind,
        /// Why, and what helps.
        why: String,
    },
    /// This can not be run here: no program, no GPU access. Trying again does not help.
    #[error("{0}")]
    Unsuitable(String),
    /// There is no such image. Trying again does not help.
    #[error("there is no image {image}: {why}")]
    NoImage {
        /// Which.
        image: String,
        /// Why, and what helps.
        why: String,
    },
    /// The image did not come. It may, if it is tried again.
    #[error("the image {image} could not be got: {why}")]
    Image {
        /// Which.
        image: String,
        /// Why.
        why: String,
    },
    /// The unit could not be started.
    #[error("it could not be started: {0}")]
    Start(String),
    /// There is no such unit.
    #[error("there is no unit {0} on this node")]
    NotFound(UnitId),
    /// Something that should work did not.
    #[error("{what}: {source}")]
    Io {
        /// What was tried.
        what: &'static str,
        /// What the system says.
        source: std::io::Error,
    },
    /// The runtime refused, or answered what it should not.
    #[error("{runtime}: {why}")]
    Failed {
        /// Which.
        runtime: RuntimeKind,
        /// What it says.
        why: String,
    },
}

/// Something that runs engines. All calls can be repeated: what is done already is done.
pub trait Runtime: Send + Sync + 'static {
    /// Which it is.
    fn kind(&self) -> RuntimeKind;

    /// Whether it can be used now.
    fn available(&self) -> BoxFuture<'_, Result<(), RuntimeError>>;

    /// Makes ready where the engine of a unit will listen, and says where that is.
    fn place(&self, unit: UnitId) -> BoxFuture<'_, Result<Place, RuntimeError>>;

    /// Starts a unit whose place has been made ready. If it is dropped before it returns, the unit may or may not be there.
    fn launch(
        &self,
        launch: Launch,
        progress: watch::Sender<Progress>,
    ) -> BoxFuture<'_, Result<Launched, RuntimeError>>;

    /// All units of this fleet and node, running or not.
    fn units(&self) -> BoxFuture<'_, Result<Vec<Found>, RuntimeError>>;

    /// Waits until a unit has ended by itself or otherwise.
    fn ended(&self, unit: UnitId) -> BoxFuture<'_, Result<Exit, RuntimeError>>;

    /// Ends a unit with everything that belongs to it, and removes what is left: SIGTERM, and SIGKILL once the grace is over.
    /// One that is not there has been ended.
    fn stop(&self, unit: UnitId, grace: Duration) -> BoxFuture<'_, Result<(), RuntimeError>>;

    /// Sends what a unit says, from this time on, until it ends or nobody listens.
    fn follow(
        &self,
        unit: UnitId,
        since: Option<SystemTime>,
        lines: mpsc::Sender<Line>,
    ) -> BoxFuture<'_, Result<(), RuntimeError>>;
}
