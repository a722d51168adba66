//! The configuration of this node: flags, environment, file and defaults, in this order, with the origin of every value.

mod engines;
mod files;
mod tailscale;

pub use engines::{ContainerDaemon, Ports};
pub use files::Directories;
pub use tailscale::remember;

use std::fmt::Display;
use std::net::{IpAddr, SocketAddr};
use std::path::{Path, PathBuf};

use figment::error::Kind;
use figment::providers::{Env, Format, Serialized, Toml};
use figment::{Figment, Metadata, Profile, Provider, Source, value};
use muster_agent::gpu::GpuSource;
use serde::{Deserialize, Serialize};
use tracing_subscriber::EnvFilter;

use crate::cli::{NodeArguments, ServeArguments};
use crate::exit::Failure;
use crate::tailnet::{self, Tailscale};

const PREFIX: &str = "MUSTER_";
const FILE_VARIABLE: &str = "MUSTER_CONFIG";

/// The origin of what nobody has configured.
const DEFAULT: &str = "default";

/// Every key that a configuration file may have.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Values {
    /// Where the node keeps its data. `/var/lib/muster` as root, else `~/.local/share/muster`.
    pub data_dir: PathBuf,
    /// What the program says on standard error, as a filter of `tracing`. `info,openraft=error`.
    pub log: String,
    /// What the fleet calls this node. The machine's name.
    pub name: String,
    /// The address of the API. With Tailscale this machine's in the tailnet, and loopback as well; else `127.0.0.1:8000`.
    pub api: SocketAddr,
    /// The address of the proxy: the OpenAI-compatible surface alone, with and without `/v1`. With Tailscale this machine's in
    /// the tailnet, and loopback as well; else `127.0.0.1:4000`.
    pub proxy: SocketAddr,
    /// The address where other nodes reach this one. With Tailscale this machine's in the tailnet, else `127.0.0.1:7946`.
    pub mesh: SocketAddr,
    /// The host or address at which others reach this node; empty: where it listens. With Tailscale this machine's address in
    /// the tailnet, if everything listens there.
    pub advertise: String,
    /// Whether this node wants to vote: `auto` leaves it to the fleet, `voter` prefers it. `auto`.
    pub role: NodeRole,
    /// Who is let in without a credential: `required` nobody, `none` everybody, as administrator. `required`.
    pub auth_mode: AuthMode,
    /// Whether the API may be served without TLS where strangers can reach it. `false`.
    pub insecure_http: bool,
    /// The longest body of a request to `/api/*`, in bytes. 1048576.
    pub body_limit: usize,
    /// The longest body of a request to a model, in bytes. 33554432.
    pub gateway_body_limit: usize,
    /// How long a process that has been replaced (`muster serve --take-over`) finishes the answers that it has begun, in
    /// seconds. 120.
    pub drain_seconds: u64,
    /// Whether Tailscale is used: `auto` where it runs, `off`, or the path of tailscaled's socket, which must answer then.
    /// `auto`.
    pub tailscale: Tailscale,
    /// The tag of the machines that `--join tailscale` asks. `tag:muster`.
    pub tailscale_tag: String,
    /// Where the GPUs of this node come from: `auto` the driver, if there is one, `none`, or simulated ones as in
    /// `sim:2x80GiB`. `auto`.
    pub gpus: GpuSource,
    /// The program that is run for deployments of the simulator, instead of a container; an absolute path. None.
    pub engine_sim: PathBuf,
    /// The program that is run for deployments of vLLM, instead of a container; an absolute path. None.
    pub engine_vllm: PathBuf,
    /// The user who runs these programs, by name or number; empty: whoever runs this node. None.
    pub engine_user: String,
    /// The ports that deployments get on this node which do not ask for one. `8100-8999`.
    pub ports: Ports,
    /// Where the tools of the Hugging Face hub keep their files, the cached models among them; an absolute path where the user
    /// who runs engines may write. `HF_HOME` if that is set; else `.cache/huggingface` of the user who runs engines, or, for a
    /// node that runs as root, `huggingface` in the data directory.
    pub hf_home: PathBuf,
    /// More directories whose models deployments may use, besides `models` in the data directory; they are only read.
    /// Absolute paths, separated by colons. None.
    pub model_directories: Directories,
    /// Whether models may be pulled from addresses of private networks and of a tailnet. `true`.
    pub pull_private: bool,
    /// Whether models may be pulled from this machine itself. `false`; `true` for `muster dev`.
    pub pull_loopback: bool,
    /// What model files leave free on their disk, in bytes. 2147483648.
    pub keep_free: u64,
    /// Docker Engine, for containers: `auto` where it runs, `off`, or the path of its socket. `auto`.
    pub docker: ContainerDaemon,
    /// Podman, for containers: `auto` where its service runs, `off`, or the path of its socket. `auto`.
    pub podman: ContainerDaemon,
    /// The repository of vLLM's images, without a tag. `vllm/vllm-openai`.
    pub vllm_image: String,
    /// The repository of the simulator's image, which is built on this machine and never pulled. `muster-sim`.
    pub sim_image: String,
    /// What listens on loopback as well, because its address is Tailscale's. Nobody configures that.
    #[serde(skip)]
    pub loopback_too: LoopbackToo,
    /// The address of this machine in its tailnet, if anything listens there that nobody has given an address. Nobody
    /// configures that.
    #[serde(skip)]
    pub tailnet: Option<IpAddr>,
}

/// What listens on loopback as well, so that local tools find it where it always is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct LoopbackToo {
    /// The API.
    pub api: bool,
    /// The proxy.
    pub proxy: bool,
}

/// What a command needs besides what is configured.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Needs {
    /// Nothing.
    Nothing,
    /// The addresses of this machine, for which Tailscale may have to be asked.
    Addresses,
}

/// Whether a node wants to vote.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, clap::ValueEnum)]
#[serde(rename_all = "lowercase")]
pub enum NodeRole {
    /// The fleet decides.
    Auto,
    /// It is preferred to others.
    Voter,
}

/// Who is let in without a credential.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum AuthMode {
    /// Nobody.
    Required,
    /// Everybody, as administrator.
    None,
}

/// The keys, for listing and for picking them out of the environment.
const KEYS: [&str; 29] = [
    "data_dir",
    "log",
    "name",
    "api",
    "proxy",
    "mesh",
    "advertise",
    "role",
    "auth_mode",
    "insecure_http",
    "body_limit",
    "gateway_body_limit",
    "drain_seconds",
    "tailscale",
    "tailscale_tag",
    "gpus",
    "engine_sim",
    "engine_vllm",
    "engine_user",
    "ports",
    "hf_home",
    "model_directories",
    "pull_private",
    "pull_loopback",
    "keep_free",
    "docker",
    "podman",
    "vllm_image",
    "sim_image",
];

/// The bounds of `body_limit`.
const BODY_LIMITS: std::ops::RangeInclusive<usize> = 16 * 1024..=64 * 1024 * 1024;

/// The bounds of `gateway_body_limit`.
const GATEWAY_BODY_LIMITS: std::ops::RangeInclusive<usize> = 16 * 1024..=256 * 1024 * 1024;

/// The bounds of `drain_seconds`.
const DRAIN_SECONDS: std::ops::RangeInclusive<u64> = 0..=24 * 3600;

/// The effective configuration and where it came from.
#[derive(Debug)]
pub struct Config {
    pub values: Values,
    /// What the operator should know of it.
    pub warning: Option<String>,
    figment: Figment,
}

/// One key for `muster config show`.
#[derive(Debug, Serialize)]
pub struct Key {
    /// Its name in the file.
    pub key: &'static str,
    /// Its effective value.
    pub value: String,
    /// Flag, environment, file, Tailscale or default.
    pub origin: String,
    /// Whose setting it is. All of these are the node's own; what the fleet agrees on is not configured in files.
    pub scope: &'static str,
}

impl Config {
    /// Reads the configuration.
    pub fn load(arguments: &NodeArguments, serve: Option<&ServeArguments>, needs: Needs) -> Result<Self, Failure> {
        let mut figment = Figment::from(Named(DEFAULT, Serialized::defaults(defaults())));
        let hub = std::env::var_os(files::HF_HOME).filter(|home| !home.is_empty()).map(PathBuf::from);
        figment = flag(figment, "environment HF_HOME", "hf_home", hub.as_ref());
        let file = arguments.config.clone().or_else(|| std::env::var_os(FILE_VARIABLE).map(PathBuf::from));
        if let Some(file) = file {
            figment = figment.merge(read_file(&file)?);
        }
        figment = figment.merge(Env::prefixed(PREFIX).only(&KEYS));
        figment = flag(figment, "flag --data-dir", "data_dir", arguments.data_dir.as_ref());
        figment = flag(figment, "flag --log", "log", arguments.log.as_ref());
        if let Some(serve) = serve {
            figment = flag(figment, "flag --name", "name", serve.name.as_ref());
            figment = flag(figment, "flag --api", "api", serve.api.as_ref());
            figment = flag(figment, "flag --proxy", "proxy", serve.proxy.as_ref());
            figment = flag(figment, "flag --mesh", "mesh", serve.mesh.as_ref());
            figment = flag(figment, "flag --advertise", "advertise", serve.advertise.as_ref());
            figment = flag(figment, "flag --role", "role", serve.role.as_ref());
            figment = flag(figment, "flag --tailscale", "tailscale", serve.tailscale.as_ref());
            figment = flag(figment, "flag --tailscale-tag", "tailscale_tag", serve.tailscale_tag.as_ref());
            let insecure = serve.insecure_http.then_some(true);
            figment = flag(figment, "flag --insecure-http", "insecure_http", insecure.as_ref());
        }
        let mut values: Values = figment.extract().map_err(|error| Failure::other(sentence(&error)))?;
        if values.hf_home == PathBuf::new() {
            values.hf_home = files::default_hf_home(&values);
            figment = figment.merge(Named(DEFAULT, Serialized::default("hf_home", &values.hf_home)));
        }
        if let Err(why) = check_values(&values) {
            let from_flag = arguments.log.is_some();
            return Err(if from_flag { Failure::usage(why) } else { Failure::other(why) });
        }
        let mut config = Self { values, warning: None, figment };
        if needs == Needs::Addresses {
            config.take_addresses_of_tailscale(serve.is_some())?;
        }
        Ok(config)
    }

    /// Every key with its value and origin.
    pub fn keys(&self) -> Vec<Key> {
        let value_of = |key| match self.figment.find_value(key) {
            Ok(value::Value::String(_, text)) => text,
            Ok(value::Value::Bool(_, truth)) => truth.to_string(),
            Ok(value::Value::Num(_, number)) => number.to_u128().map_or_else(String::new, |number| number.to_string()),
            Ok(other) => format!("{other:?}"),
            Err(_) => String::new(),
        };
        KEYS.into_iter()
            .map(|key| {
                let origin = self.figment.find_metadata(key).map_or_else(String::new, |metadata| origin(metadata, key));
                Key { key, value: value_of(key), origin, scope: "node" }
            })
            .collect()
    }
}

impl Values {
    /// Host and port at which others reach something of this node, once it is known where it listens.
    pub fn advertised(&self, listening: SocketAddr) -> String {
        match self.advertise.parse::<IpAddr>() {
            Ok(IpAddr::V6(address)) => format!("[{address}]:{}", listening.port()),
            _ if self.advertise.is_empty() => listening.to_string(),
            _ => format!("{}:{}", self.advertise, listening.port()),
        }
    }

    /// Whether strangers may reach an API that is served here. Addresses of a tailnet are as private as the machine's own.
    pub fn is_exposed(address: IpAddr) -> bool {
        let tailnet = match address {
            IpAddr::V4(address) => address.octets()[0] == 100 && (64..128).contains(&address.octets()[1]),
            IpAddr::V6(address) => address.segments()[..3] == [0xfd7a, 0x115c, 0xa1e0],
        };
        !(address.is_loopback() || tailnet)
    }
}

fn flag<T: Serialize>(figment: Figment, origin: &'static str, key: &str, value: Option<&T>) -> Figment {
    match value {
        Some(value) => figment.merge(Named(origin, Serialized::default(key, value))),
        None => figment,
    }
}

/// Checks a file on its own: every key known, every value of the right type.
pub fn check_file(file: &Path) -> Result<(), Failure> {
    let figment = Figment::from(Serialized::defaults(defaults())).merge(read_file(file)?);
    let values: Values = figment.extract().map_err(|error| Failure::other(sentence(&error)))?;
    check_values(&values).map_err(Failure::other)
}

/// What a type can not say.
fn check_values(values: &Values) -> Result<(), String> {
    if let Err(error) = EnvFilter::try_new(&values.log) {
        return Err(format!("log = {:?} is not a filter: {error}", values.log));
    }
    let plain = |text: &str| text.len() <= 253 && text.chars().all(|c| c.is_ascii_graphic());
    if values.name.is_empty() || !plain(&values.name) {
        return Err(format!("name = {:?} must have 1 to 253 visible ASCII characters without blanks", values.name));
    }
    if !plain(&values.advertise) || values.advertise.contains('/') {
        return Err(format!("advertise = {:?} is neither a host nor an address", values.advertise));
    }
    tailnet::check_tag(&values.tailscale_tag)?;
    for (key, path) in [("engine_sim", &values.engine_sim), ("engine_vllm", &values.engine_vllm)] {
        if *path != PathBuf::new() && !path.is_absolute() {
            return Err(format!("{key} = {:?} must be an absolute path", path.display().to_string()));
        }
    }
    if *values.hf_home != *Path::new("") && !values.hf_home.is_absolute() {
        return Err(format!("hf_home = {:?} must be an absolute path", values.hf_home.display().to_string()));
    }
    if let Some(path) = values.model_directories.relative() {
        return Err(format!("model_directories: {:?} must be an absolute path", path.display().to_string()));
    }
    for (key, repository) in [("vllm_image", &values.vllm_image), ("sim_image", &values.sim_image)] {
        engines::check_repository(repository).map_err(|why| format!("{key} = {repository:?}: {why}"))?;
    }
    within("body_limit", values.body_limit, &BODY_LIMITS)?;
    within("gateway_body_limit", values.gateway_body_limit, &GATEWAY_BODY_LIMITS)?;
    within("drain_seconds", values.drain_seconds, &DRAIN_SECONDS)
}

fn within<T: PartialOrd + Display>(key: &str, value: T, bounds: &std::ops::RangeInclusive<T>) -> Result<(), String> {
    if bounds.contains(&value) {
        return Ok(());
    }
    Err(format!("{key} = {value} must be from {} to {}", bounds.start(), bounds.end()))
}

fn read_file(file: &Path) -> Result<figment::providers::Data<Toml>, Failure> {
    // figment treats a missing file as an empty one; a file that was named must be there.
    match file.try_exists() {
        Ok(true) => Ok(Toml::file_exact(file)),
        Ok(false) => Err(Failure::not_found(format!("there is no configuration file {}", file.display()))),
        Err(error) => Err(Failure::other(format!("{} can not be looked at: {error}", file.display()))),
    }
}

/// The values of everything that nobody has configured.
pub fn defaults() -> Values {
    Values {
        data_dir: default_data_dir("muster"),
        log: "info,openraft=error".to_owned(),
        name: host_name(),
        api: SocketAddr::from(([127, 0, 0, 1], 8000)),
        proxy: SocketAddr::from(([127, 0, 0, 1], 4000)),
        mesh: SocketAddr::from(([127, 0, 0, 1], 7946)),
        advertise: String::new(),
        role: NodeRole::Auto,
        auth_mode: AuthMode::Required,
        insecure_http: false,
        body_limit: 1024 * 1024,
        gateway_body_limit: 32 * 1024 * 1024,
        drain_seconds: 120,
        tailscale: Tailscale::Auto,
        tailscale_tag: "tag:muster".to_owned(),
        gpus: GpuSource::Auto,
        engine_sim: PathBuf::new(),
        engine_vllm: PathBuf::new(),
        engine_user: String::new(),
        ports: Ports::default(),
        hf_home: PathBuf::new(),
        model_directories: Directories::default(),
        pull_private: true,
        pull_loopback: false,
        keep_free: 2 << 30,
        docker: ContainerDaemon::Auto,
        podman: ContainerDaemon::Auto,
        vllm_image: "vllm/vllm-openai".to_owned(),
        sim_image: "muster-sim".to_owned(),
        loopback_too: LoopbackToo::default(),
        tailnet: None,
    }
}

fn host_name() -> String {
    let system = rustix::system::uname();
    let name = system.nodename().to_string_lossy().into_owned();
    if name.is_empty() { "node".to_owned() } else { name }
}

/// Where data is kept under this name unless somebody says otherwise.
pub fn default_data_dir(name: &str) -> PathBuf {
    let home = std::env::var_os("HOME").map(PathBuf::from).filter(|home| home.is_absolute());
    match home {
        Some(home) if !rustix::process::geteuid().is_root() => home.join(".local/share").join(name),
        _ => Path::new("/var/lib").join(name),
    }
}

fn origin(metadata: &Metadata, key: &str) -> String {
    match &metadata.source {
        Some(Source::File(file)) => format!("file {}", file.display()),
        _ if metadata.name.contains("environment") => format!("environment {PREFIX}{}", key.to_uppercase()),
        _ => metadata.name.to_string(),
    }
}

/// The first thing that is wrong, in one sentence that names the key and where it stands.
fn sentence(error: &figment::Error) -> String {
    let Some(first) = error.clone().into_iter().next() else { return "the configuration does not load".to_owned() };
    let path = first.path.join(".");
    let place = first.metadata.as_ref().map_or_else(String::new, |metadata| format!(" ({})", origin(metadata, &path)));
    let key = if path.is_empty() { String::new() } else { format!("{path}: ") };
    match &first.kind {
        Kind::UnknownField(name, _) => format!("there is no key {name}; the keys are {}{place}", KEYS.join(", ")),
        kind => format!("{key}{kind}{place}"),
    }
}

/// A provider under a name that an operator understands.
struct Named<P>(&'static str, P);

impl<P: Provider> Provider for Named<P> {
    fn metadata(&self) -> Metadata {
        Metadata::named(self.0)
    }

    fn data(&self) -> Result<value::Map<Profile, value::Dict>, figment::Error> {
        self.1.data()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_loopback_and_the_tailnet_are_private() {
        for (address, exposed) in [
            ("127.0.0.1", false),
            ("::1", false),
            ("100.64.0.1", false),
            ("100.127.255.254", false),
            ("fd7a:115c:a1e0::5", false),
            ("100.128.0.1", true),
            ("0.0.0.0", true),
            ("192.168.1.1", true),
            ("::", true),
        ] {
            assert_eq!(Values::is_exposed(address.parse().expect("an address")), exposed, "{address}");
        }
    }

    #[test]
    fn others_are_told_where_the_api_really_is() {
        let listening = SocketAddr::from(([127, 0, 0, 1], 8123));
        let values = |advertise: &str| Values { advertise: advertise.to_owned(), ..defaults() };
        assert_eq!(values("").advertised(listening), "127.0.0.1:8123");
        assert_eq!(values("gpu1.lab").advertised(listening), "gpu1.lab:8123");
        assert_eq!(values("fd7a::1").advertised(listening), "[fd7a::1]:8123");
    }
}
