//! What a unit is made of, by what has been committed for it.

use std::path::{Component, Path};

use muster_cluster::rows::{Deployment, DeploymentSpec, Failure, OnNodeLoss, Seat};
use muster_cluster::sealing::SecretText;
use muster_cluster::state::{View, environment_name, on_node_loss};
use serde_json::{Map, Value};
use sha2::{Digest, Sha256};

use super::Tools;
use super::models::Sight;
use crate::engine::{self, Engine, command};
use crate::runtime::container::Package;
use crate::runtime::{Endpoint, EngineKind, Launch, RuntimeKind, UnitId};

/// What tells an engine where the hub's files lie.
const HF_HOME: &str = "HF_HOME";

/// What is the same in every life of a placement, and is known of an engine that runs whatever has become of the node.
pub(super) struct Order {
    pub engine: &'static dyn Engine,
    pub runtime: RuntimeKind,
    pub spec: DeploymentSpec,
    pub served_name: String,
    pub seat: Seat,
    /// It can be given to another node, and is served only while its lease is good.
    pub leased: bool,
}

/// A failure that is nobody's log's.
pub(super) fn failure(code: &str, message: impl Into<String>) -> Failure {
    Failure { code: code.to_owned(), message: message.into() }
}

fn unsuitable(message: impl Into<String>) -> Failure {
    failure("unsuitable", message)
}

fn broken(error: muster_cluster::state::Damaged) -> Failure {
    failure("internal", error.to_string())
}

fn missing() -> Failure {
    failure("internal", "its record is gone")
}

fn deployment(view: &View, unit: UnitId) -> Result<Deployment, Failure> {
    Ok(view.deployment(unit.placement.deployment).map_err(broken)?.ok_or_else(missing)?.row)
}

impl Order {
    /// Reads it.
    ///
    /// # Errors
    /// Why nothing of it can be on this node.
    pub fn read(tools: &Tools, view: &View, unit: UnitId) -> Result<Self, Failure> {
        let deployment = deployment(view, unit)?;
        let placement = view.placement(unit.placement).map_err(broken)?.ok_or_else(missing)?.row;
        let leased = on_node_loss(&deployment) == OnNodeLoss::Reschedule;
        let (spec, seat) = (deployment.spec.unwrap_or_default(), placement.seat.unwrap_or_default());
        let kinds = [RuntimeKind::Docker, RuntimeKind::Podman, RuntimeKind::Process];
        let runtime = kinds.into_iter().find(|kind| kind.name() == seat.runtime);
        let runtime = runtime.ok_or_else(|| unsuitable(format!("there is no runtime {:?}", seat.runtime)))?;
        if !tools.runtimes.contains_key(&runtime) {
            return Err(unsuitable(format!("{runtime} is not available on this node")));
        }
        let served_name = command::served_name(&spec);
        let engine = engine::of(engine::kind_of(&spec));
        Ok(Self { engine, runtime, spec, served_name, seat, leased })
    }

    fn packages(&self, tools: &Tools) -> Result<Vec<Package>, Failure> {
        self.spec.extra_packages.iter().map(|named| package(named, &tools.containers.packages)).collect()
    }

    /// What is launched, once it is known where it shall listen and what it sees of the node's files.
    ///
    /// # Errors
    /// Why it can not be: it makes no command line, or the node does not have what it needs.
    pub fn launch(&self, tools: &Tools, unit: UnitId, listen: &Endpoint, sight: Sight) -> Result<Launch, Failure> {
        let gpu = |index: &u32| {
            let found = tools.gpus.iter().find(|gpu| gpu.index == *index).cloned();
            found.ok_or_else(|| unsuitable(format!("this node has no GPU {index} any more")))
        };
        let mut gpus = self.seat.gpu_ids.iter().map(gpu).collect::<Result<Vec<_>, _>>()?;
        if tools.containers.simulated_gpus && self.runtime != RuntimeKind::Process {
            // No daemon can give a container what is not there.
            gpus.clear();
        }
        let view = tools.consensus.local();
        let environment = match &deployment(&view, unit)?.environment {
            Some(sealed) => environment(tools, &view, &sealed.id)?,
            None => Vec::new(),
        };
        let order = command::Order {
            spec: &self.spec,
            served_name: &self.served_name,
            listen,
            warm: self.seat.warm,
            environment,
            cache: None,
            memory: None,
        };
        let mut made = self.engine.command(&order).map_err(|error| failure("bad_args", error.to_string()))?;
        made.arguments = made.arguments.into_iter().map(|argument| sight.inside(argument)).collect();
        let own_home = made.environment.iter().any(|(name, _)| name == HF_HOME);
        if let Some(home) = sight.hf_home.as_deref().and_then(Path::to_str).filter(|_| !own_home) {
            made.environment.push((HF_HOME.to_owned(), SecretText::new(home.to_owned())));
        }
        let mut hasher = Sha256::new();
        for argument in &made.arguments {
            hasher.update((argument.len() as u64).to_be_bytes());
            hasher.update(argument);
        }
        let in_container = self.runtime != RuntimeKind::Process;
        let kind = self.engine.kind();
        let image = in_container.then(|| {
            let repository = tools.containers.images.get(&kind).map(String::as_str);
            self.engine.image(self.spec.vllm_version.as_deref(), None, repository).reference()
        });
        let packages = if in_container { self.packages(tools)? } else { Vec::new() };
        Ok(Launch {
            unit,
            engine: kind,
            image,
            // The simulator's image is made on the machine: whoever took its name in a registry would run code here.
            pull: kind != EngineKind::Sim,
            packages,
            arguments: made.arguments,
            environment: made.environment,
            gpus,
            ranks: self.spec.tensor_parallel_size.unwrap_or(1),
            mounts: sight.mounts,
            spec_hash: data_encoding::HEXLOWER.encode(&hasher.finalize()),
        })
    }
}

/// A package that a deployment names: a name for pip, or the path of one that was uploaded to this node. No other file of
/// the machine gets into an image.
fn package(named: &str, uploaded: &Path) -> Result<Package, Failure> {
    if !named.starts_with('/') {
        return Ok(Package::Named(named.to_owned()));
    }
    let path = Path::new(named);
    let inside = path.strip_prefix(uploaded).is_ok_and(|rest| {
        let mut parts = rest.components().peekable();
        parts.peek().is_some() && parts.all(|part| matches!(part, Component::Normal(_)))
    });
    if inside {
        return Ok(Package::Local(path.to_owned()));
    }
    Err(failure("bad_args", format!("{named} is no package that was uploaded to this node")))
}

/// The environment that the deployment's owner has given, opened.
fn environment(tools: &Tools, view: &View, id: &[u8]) -> Result<Vec<(String, SecretText)>, Failure> {
    let unreadable = |why: &str| failure("internal", format!("its environment can not be read on this node: {why}"));
    let id = uuid::Uuid::from_slice(id).map_err(|_| unreadable("it has no name"))?;
    let name = environment_name(id);
    let sealed = view.secret(&name).map_err(|error| unreadable(&error.to_string()))?;
    let sealed = sealed.ok_or_else(|| unreadable("it is missing"))?;
    let opened = tools.keyring.open(&name, &sealed).map_err(|error| unreadable(&error.to_string()))?;
    let values: Map<String, Value> =
        serde_json::from_str(opened.reveal()).map_err(|_| unreadable("it is no object"))?;
    let text = |(key, value): (String, Value)| match value {
        Value::String(value) => Some((key, SecretText::new(value))),
        _ => None,
    };
    Ok(engine::environment::read(values.into_iter().filter_map(text).collect()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_package_is_a_name_or_one_that_was_uploaded() {
        let uploaded = Path::new("/data/packages");
        assert_eq!(package("einops==0.8", uploaded), Ok(Package::Named("einops==0.8".to_owned())));
        let wheel = "/data/packages/0011223344556677/x.whl";
        assert_eq!(package(wheel, uploaded), Ok(Package::Local(wheel.into())));
        for outside in
            ["/etc/shadow", "/data/packages", "/data/packages/", "/data/packages/../node.json", "/data/packagesx/y"]
        {
            assert_eq!(
                package(outside, uploaded).map_err(|failure| failure.code),
                Err("bad_args".to_owned()),
                "{outside}"
            );
        }
    }
}
