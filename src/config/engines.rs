//! What the configuration says of the machine: programs of engines, container runtimes, GPUs, ports.

use std::collections::{BTreeMap, HashMap};
use std::fmt;
use std::ops::RangeInclusive;
use std::path::{Path, PathBuf};
use std::str::FromStr;

use muster_agent::host::HostOptions;
use muster_agent::runtime::EngineKind;
use muster_agent::runtime::container::{Reference, Surroundings, docker_socket, podman_sockets};
use muster_agent::runtime::process::Program;
use serde::de::Error as _;
use serde::{Deserialize, Deserializer, Serialize, Serializer};

use super::Values;

/// The ports that a node gives out: the first and the last.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Ports(RangeInclusive<u16>);

impl Default for Ports {
    fn default() -> Self {
        Self(8100..=8999)
    }
}

impl Ports {
    /// The part of one of so many nodes on one machine.
    pub fn part(&self, index: usize, of: usize) -> Self {
        let (first, last) = (usize::from(*self.0.start()), usize::from(*self.0.end()));
        let each = (last + 1 - first) / of.max(1);
        let begin = first + each * index.min(of.saturating_sub(1));
        let port = |port: usize| u16::try_from(port).unwrap_or(u16::MAX);
        Self(port(begin)..=port((begin + each).saturating_sub(1).max(begin)))
    }
}

impl FromStr for Ports {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let wrong = || format!("{text:?} is no range of ports; write it like 8100-8999");
        let (first, last) = text.split_once('-').ok_or_else(wrong)?;
        let port = |text: &str| text.trim().parse::<u16>().ok().filter(|port| *port > 0).ok_or_else(wrong);
        let (first, last) = (port(first)?, port(last)?);
        if first > last { Err(wrong()) } else { Ok(Self(first..=last)) }
    }
}

impl fmt::Display for Ports {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}-{}", self.0.start(), self.0.end())
    }
}

impl Serialize for Ports {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Ports {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer)?.parse().map_err(D::Error::custom)
    }
}

/// Whether a daemon of containers is used, and where it is.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub enum ContainerDaemon {
    /// Where it usually is, if it runs there.
    Auto,
    /// Not at all.
    Off,
    /// Behind this socket.
    Socket(PathBuf),
}

impl FromStr for ContainerDaemon {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text {
            "auto" => Ok(Self::Auto),
            "off" => Ok(Self::Off),
            path if path.starts_with('/') => Ok(Self::Socket(path.into())),
            other => Err(format!("{other:?} is neither auto nor off nor the absolute path of a socket")),
        }
    }
}

impl TryFrom<String> for ContainerDaemon {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        text.parse()
    }
}

impl From<ContainerDaemon> for String {
    fn from(daemon: ContainerDaemon) -> Self {
        match daemon {
            ContainerDaemon::Auto => "auto".to_owned(),
            ContainerDaemon::Off => "off".to_owned(),
            ContainerDaemon::Socket(path) => path.display().to_string(),
        }
    }
}

impl ContainerDaemon {
    /// Where it may listen.
    fn sockets(&self, usual: impl FnOnce() -> Vec<PathBuf>) -> Vec<PathBuf> {
        match self {
            Self::Auto => usual(),
            Self::Off => Vec::new(),
            Self::Socket(path) => vec![path.clone()],
        }
    }
}

/// The socket of Docker that whoever started this process means.
fn usual_docker() -> Vec<PathBuf> {
    match docker_socket(std::env::var("DOCKER_HOST").ok().as_deref()) {
        Ok(socket) => vec![socket],
        Err(why) => {
            tracing::warn!(why, "DOCKER_HOST is left out of account, and Docker is not used");
            Vec::new()
        }
    }
}

/// A directory with a short path that is this user's alone, for sockets of containers.
fn short_places() -> PathBuf {
    let user = rustix::process::geteuid();
    if user.is_root() {
        return PathBuf::from("/run/muster-engines");
    }
    let session = std::env::var_os("XDG_RUNTIME_DIR").map(PathBuf::from).filter(|path| path.is_absolute());
    session.map_or_else(
        || Path::new("/tmp").join(format!("muster-engines-{}", user.as_raw())),
        |directory| directory.join("muster-engines"),
    )
}

/// Whether images can be named after a repository.
pub(super) fn check_repository(repository: &str) -> Result<(), String> {
    let named = Reference::parse(&format!("{repository}:latest"));
    match named {
        Ok(name) if name.repository() == repository => Ok(()),
        _ => Err("it must be the repository of an image, without a tag, as in vllm/vllm-openai".to_owned()),
    }
}

impl Values {
    /// What is configured of the machine.
    pub fn host(&self) -> HostOptions {
        let programs = [(EngineKind::Sim, &self.engine_sim), (EngineKind::Vllm, &self.engine_vllm)];
        let programs = programs.into_iter().filter(|(_, path)| **path != PathBuf::new());
        let programs: HashMap<_, _> = programs
            .map(|(engine, path)| (engine, Program { path: path.clone(), arguments: arguments(engine) }))
            .collect();
        HostOptions {
            directory: self.data_dir.clone(),
            gpus: self.gpus,
            programs,
            user: self.engine_user(),
            ports: self.ports.0.clone(),
            address: self.api.ip(),
            files: self.files(),
            docker: self.docker.sockets(usual_docker),
            podman: self.podman.sockets(|| podman_sockets(&Surroundings::of_this_process())),
            images: BTreeMap::from([
                (EngineKind::Vllm, self.vllm_image.clone()),
                (EngineKind::Sim, self.sim_image.clone()),
            ]),
            short_places: short_places(),
        }
    }
}

/// What stands before an engine's own arguments.
fn arguments(engine: EngineKind) -> Vec<String> {
    match engine {
        EngineKind::Vllm => vec!["serve".to_owned()],
        EngineKind::Sim => Vec::new(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ports_are_a_range() {
        for text in ["8100-8999", "1-65535", "8100-8100"] {
            assert_eq!(text.parse::<Ports>().map(|ports| ports.to_string()), Ok(text.to_owned()));
        }
        for text in ["", "8100", "9-8", "0-9", "1-65536", "a-b", "1-2-3"] {
            assert!(text.parse::<Ports>().is_err(), "{text}");
        }
    }

    #[test]
    fn a_container_runtime_is_found_left_out_or_behind_a_socket() {
        for text in ["auto", "off", "/run/x.sock"] {
            assert_eq!(text.parse::<ContainerDaemon>().map(String::from), Ok(text.to_owned()));
        }
        for text in ["", "on", "x.sock", "tcp://127.0.0.1:2375"] {
            assert!(text.parse::<ContainerDaemon>().is_err(), "{text}");
        }
        assert_eq!(ContainerDaemon::Off.sockets(|| vec!["/a".into()]), Vec::<PathBuf>::new());
        assert_eq!(ContainerDaemon::Auto.sockets(|| vec!["/a".into()]), [PathBuf::from("/a")]);
    }

    #[test]
    fn images_are_named_by_a_repository_without_a_tag() {
        for repository in ["vllm/vllm-openai", "registry.example:5000/team/vllm", "muster-sim"] {
            assert_eq!(check_repository(repository), Ok(()), "{repository}");
        }
        for repository in ["", "vllm/vllm-openai:v1", "a b", "X", "a@sha256:00", "a?b"] {
            assert!(check_repository(repository).is_err(), "{repository}");
        }
    }

    #[test]
    fn nodes_of_one_machine_share_them() {
        let ports: Ports = "8100-8999".parse().expect("ports");
        let parts: Vec<_> = (0..3).map(|index| ports.part(index, 3).to_string()).collect();
        assert_eq!(parts, ["8100-8399", "8400-8699", "8700-8999"]);
        assert_eq!(ports.part(0, 1), ports);
        assert_eq!("5-5".parse::<Ports>().expect("ports").part(1, 2).to_string(), "5-5");
    }
}
