//! What the configuration says of the machine: programs of engines, GPUs, ports.

use std::collections::HashMap;
use std::fmt;
use std::ops::RangeInclusive;
use std::path::PathBuf;
use std::str::FromStr;

use muster_agent::host::HostOptions;
use muster_agent::runtime::EngineKind;
use muster_agent::runtime::process::{Program, UserName};
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

impl Values {
    /// What is configured of the machine.
    pub fn host(&self) -> HostOptions {
        let programs = [(EngineKind::Sim, &self.engine_sim), (EngineKind::Vllm, &self.engine_vllm)];
        let programs = programs.into_iter().filter(|(_, path)| **path != PathBuf::new());
        let programs: HashMap<_, _> = programs
            .map(|(engine, path)| (engine, Program { path: path.clone(), arguments: arguments(engine) }))
            .collect();
        let user = Some(self.engine_user.as_str()).filter(|user| !user.is_empty());
        let user = user.map(|user| user.parse().map_or_else(|_| UserName::Name(user.to_owned()), UserName::Uid));
        HostOptions { directory: self.data_dir.clone(), gpus: self.gpus, programs, user, ports: self.ports.0.clone() }
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
    fn nodes_of_one_machine_share_them() {
        let ports: Ports = "8100-8999".parse().expect("ports");
        let parts: Vec<_> = (0..3).map(|index| ports.part(index, 3).to_string()).collect();
        assert_eq!(parts, ["8100-8399", "8400-8699", "8700-8999"]);
        assert_eq!(ports.part(0, 1), ports);
        assert_eq!("5-5".parse::<Ports>().expect("ports").part(1, 2).to_string(), "5-5");
    }
}
