//! The daemons that are there, and what the tests do with them.

use std::io::{Read, Write};
use std::net::TcpStream;
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bollard::Docker;
use bollard::query_parameters::BuildImageOptions;
use bytes::Bytes;
use futures_util::StreamExt;
use muster_agent::runtime::container::{ContainerOptions, ContainerRuntime, Daemon, Flavour, Listen};
use muster_agent::runtime::{Endpoint, EngineKind, Launch, Launched, Owner, Progress, Runtime, RuntimeError, UnitId};
use muster_cluster::ids::{DeploymentId, FleetId, NodeId, PlacementEpoch, PlacementId};
use muster_cluster::sealing::SecretText;
use tempfile::TempDir;
use tokio::sync::watch;

/// How long anything may take that a test waits for.
pub const LIMIT: Duration = Duration::from_secs(60);

pub const SECRET: &str = "hf_not_to_be_seen";

/// A daemon with a runtime on it, of a fleet of its own.
pub struct Bench {
    pub flavour: Flavour,
    pub docker: Docker,
    pub daemon: Arc<Daemon>,
    pub runtime: ContainerRuntime,
    pub owner: Owner,
    pub image: String,
    directory: TempDir,
}

/// Each of the daemons that are there, ready for use.
pub async fn benches() -> Vec<Bench> {
    let mut benches = Vec::new();
    for flavour in [Flavour::Docker, Flavour::Podman] {
        benches.extend(find(flavour).await);
    }
    if benches.is_empty() {
        skipped("there is no container runtime of the tests' own (make test, as root)");
    }
    benches
}

/// One of them, if it is there.
pub async fn bench(flavour: Flavour) -> Option<Bench> {
    let bench = find(flavour).await;
    if bench.is_none() {
        skipped(&format!("there is no {flavour} of the tests' own (make test, as root)"));
    }
    bench
}

/// Both of them, if they are there. That there is no Podman is told by the group podman.
pub async fn both() -> Option<(Bench, Bench)> {
    let docker = bench(Flavour::Docker).await?;
    Some((docker, find(Flavour::Podman).await?))
}

/// Writes down that the calling test can not run, for the table of `make test`. Docker is what must be there where these
/// tests are required.
fn skipped(why: &str) {
    let required = std::env::var("MUSTER_TEST_REQUIRE").unwrap_or_default();
    assert!(
        !required.split(',').any(|name| name.trim() == "containers"),
        "the group containers is required here, but {why}"
    );
    if let Ok(path) = std::env::var("MUSTER_TEST_SKIPPED")
        && let Ok(mut file) = std::fs::OpenOptions::new().create(true).append(true).open(path)
    {
        let _ = writeln!(file, "containers\t{why}");
    }
}

async fn find(flavour: Flavour) -> Option<Bench> {
    let name = match flavour {
        Flavour::Docker => "MUSTER_TEST_DOCKER",
        Flavour::Podman => "MUSTER_TEST_PODMAN",
    };
    let (Some(socket), Some(simulator)) = (std::env::var_os(name), std::env::var_os("MUSTER_TEST_SIM")) else {
        println!("skipped for {flavour}: {name} or MUSTER_TEST_SIM is not set");
        return None;
    };
    let owner = Owner { fleet: FleetId::random(), generation: 1, node: NodeId(1) };
    let socket = PathBuf::from(socket);
    let docker = Docker::connect_with_unix(socket.to_str().expect("text"), 60, bollard::API_DEFAULT_VERSION);
    let docker = docker.expect("a daemon");
    let image = image_of(&docker, PathBuf::from(simulator)).await;
    let directory = tempfile::Builder::new().prefix("m").tempdir().expect("a directory");
    let daemon = Arc::new(Daemon::new(flavour, vec![socket]));
    let options = options(owner, &directory, Listen::Socket);
    let runtime = ContainerRuntime::new(Arc::clone(&daemon), None, options);
    Some(Bench { flavour, docker, daemon, runtime, owner, image, directory })
}

fn options(owner: Owner, directory: &TempDir, listen: Listen) -> ContainerOptions {
    ContainerOptions {
        owner,
        listen,
        places: directory.path().join(format!("units-{}", owner.node)),
        short_places: directory.path().join("s"),
        cdi_directories: Vec::new(),
    }
}

/// Builds an image from nothing but the simulator, named like vLLM's. The same simulator has the same name.
async fn image_of(docker: &Docker, simulator: PathBuf) -> String {
    let size = std::fs::metadata(&simulator).expect("a simulator").len();
    let name = format!("vllm/vllm-openai:v0.0.{size}");
    if docker.inspect_image(&name).await.is_err() {
        build(docker, &name, simulator).await;
    }
    name
}

/// Builds an image from nothing but the simulator.
pub async fn build(docker: &Docker, name: &str, simulator: PathBuf) {
    let recipe = "FROM scratch\nCOPY muster-sim /muster-sim\nENTRYPOINT [\"/muster-sim\"]\n";
    let mut archive = tar::Builder::new(Vec::new());
    archive.sparse(false);
    let mut header = tar::Header::new_gnu();
    header.set_size(recipe.len() as u64);
    header.set_mode(0o644);
    archive.append_data(&mut header, "Dockerfile", recipe.as_bytes()).expect("appended");
    archive.append_path_with_name(simulator, "muster-sim").expect("appended");
    let context = Bytes::from(archive.into_inner().expect("an archive"));
    let options = BuildImageOptions { t: Some(name.to_owned()), rm: true, ..Default::default() };
    let mut said = Box::pin(docker.build_image(options, None, Some(bollard::body_full(context))));
    while let Some(message) = said.next().await {
        message.expect("built");
    }
}

impl Bench {
    /// A runtime of another node of the fleet, or of the same one after a restart, on the same daemon.
    pub fn runtime_of(&self, owner: Owner, listen: Listen, other: Option<&Bench>) -> ContainerRuntime {
        let other = other.map(|bench| Arc::clone(&bench.daemon));
        ContainerRuntime::new(Arc::clone(&self.daemon), other, options(owner, &self.directory, listen))
    }

    pub fn launch(&self, unit: UnitId, arguments: &[&str]) -> Launch {
        Launch {
            unit,
            engine: EngineKind::Sim,
            image: Some(self.image.clone()),
            pull: true,
            packages: Vec::new(),
            arguments: arguments.iter().map(|argument| (*argument).to_owned()).collect(),
            environment: vec![("HF_TOKEN".to_owned(), SecretText::new(SECRET.to_owned()))],
            gpus: Vec::new(),
            ranks: 2,
            mounts: Vec::new(),
            spec_hash: "one".to_owned(),
        }
    }

    /// Ends what a test has left, whatever it is, and the fleet's network.
    pub async fn clean(&self) {
        for unit in self.runtime.units().await.expect("units") {
            self.runtime.stop(unit.unit, Duration::ZERO).await.expect("stopped");
        }
        let label = format!("muster.fleet={}", self.owner.fleet);
        let filters = std::collections::HashMap::from([("label".to_owned(), vec![label])]);
        let options = bollard::query_parameters::ListNetworksOptions { filters: Some(filters) };
        for network in self.docker.list_networks(Some(options)).await.expect("networks") {
            self.docker.remove_network(network.name.as_deref().expect("a name")).await.expect("removed");
        }
    }
}

pub fn unit(deployment: u64, epoch: u64) -> UnitId {
    let placement = PlacementId { deployment: DeploymentId(deployment), ordinal: 0 };
    UnitId { placement, epoch: PlacementEpoch(epoch) }
}

/// Launches a simulator at its place, and waits until it answers if it is to.
pub async fn started(runtime: &ContainerRuntime, mut launch: Launch) -> Result<Launched, RuntimeError> {
    let place = runtime.place(launch.unit).await?;
    launch.arguments.extend(match place.inside {
        Endpoint::Unix(path) => ["--uds".to_owned(), path.display().to_string()].to_vec(),
        Endpoint::Tcp(address) => {
            ["--host", &address.ip().to_string(), "--port", &address.port().to_string()].map(str::to_owned).to_vec()
        }
    });
    runtime.launch(launch, watch::Sender::new(Progress::default())).await
}

/// Waits until an engine answers.
pub async fn answers(endpoint: &Endpoint) {
    let begun = Instant::now();
    while !get(endpoint, "/health").is_some_and(|answer| answer.contains(" 200 ")) {
        assert!(begun.elapsed() < LIMIT, "{endpoint:?} does not answer");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

/// The whole answer to a request, if there is one.
pub fn get(endpoint: &Endpoint, path: &str) -> Option<String> {
    let request = format!("GET {path} HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n");
    let mut answer = String::new();
    match endpoint {
        Endpoint::Unix(path) => {
            let mut stream = UnixStream::connect(path).ok()?;
            stream.write_all(request.as_bytes()).ok()?;
            stream.read_to_string(&mut answer).ok()?;
        }
        Endpoint::Tcp(address) => {
            let mut stream = TcpStream::connect(address).ok()?;
            stream.write_all(request.as_bytes()).ok()?;
            stream.read_to_string(&mut answer).ok()?;
        }
    }
    Some(answer)
}

/// Begins a stream that does not end soon.
pub fn stream(endpoint: &Endpoint) -> UnixStream {
    let Endpoint::Unix(path) = endpoint else { panic!("{endpoint:?}") };
    let body = r#"{"messages":[{"role":"user","content":"hi"}],"stream":true,"max_tokens":4000}"#;
    let length = body.len();
    let head = format!(
        "POST /v1/chat/completions HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\ncontent-length: {length}\r\n\r\n"
    );
    let mut stream = UnixStream::connect(path).expect("a connection");
    stream.write_all(format!("{head}{body}").as_bytes()).expect("sent");
    stream.read_exact(&mut [0; 64]).expect("it has begun");
    stream
}
