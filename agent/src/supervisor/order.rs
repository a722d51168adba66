//! What a unit is made of, by what has been committed for it.

use muster_cluster::rows::{Deployment, DeploymentSpec, Failure, Seat};
use muster_cluster::sealing::SecretText;
use muster_cluster::state::{View, environment_name};
use serde_json::{Map, Value};
use sha2::{Digest, Sha256};

use super::Tools;
use crate::engine::{self, Engine, command};
use crate::runtime::{Endpoint, Launch, RuntimeKind, UnitId};

/// What is the same in every life of a placement, and is known of an engine that runs whatever has become of the node.
pub(super) struct Order {
    pub engine: &'static dyn Engine,
    pub runtime: RuntimeKind,
    pub spec: DeploymentSpec,
    pub served_name: String,
    pub seat: Seat,
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
        let (spec, seat) = (deployment.spec.unwrap_or_default(), placement.seat.unwrap_or_default());
        let kinds = [RuntimeKind::Docker, RuntimeKind::Podman, RuntimeKind::Process];
        let runtime = kinds.into_iter().find(|kind| kind.name() == seat.runtime);
        let runtime = runtime.ok_or_else(|| unsuitable(format!("there is no runtime {:?}", seat.runtime)))?;
        if !tools.runtimes.contains_key(&runtime) {
            return Err(unsuitable(format!("{runtime} is not available on this node")));
        }
        let served_name = command::served_name(&spec);
        Ok(Self { engine: engine::of(engine::kind_of(&spec)), runtime, spec, served_name, seat })
    }

    /// What is launched, once it is known where it shall listen.
    ///
    /// # Errors
    /// Why it can not be: it makes no command line, or the node does not have what it needs.
    pub fn launch(&self, tools: &Tools, unit: UnitId, listen: &Endpoint) -> Result<Launch, Failure> {
        let gpu = |index: &u32| {
            let found = tools.gpus.iter().find(|gpu| gpu.index == *index).cloned();
            found.ok_or_else(|| unsuitable(format!("this node has no GPU {index} any more")))
        };
        let gpus = self.seat.gpu_ids.iter().map(gpu).collect::<Result<_, _>>()?;
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
        let made = self.engine.command(&order).map_err(|error| failure("bad_args", error.to_string()))?;
        let mut hasher = Sha256::new();
        for argument in &made.arguments {
            hasher.update((argument.len() as u64).to_be_bytes());
            hasher.update(argument);
        }
        let image = match self.runtime {
            RuntimeKind::Process => None,
            RuntimeKind::Docker | RuntimeKind::Podman => {
                Some(self.engine.image(self.spec.vllm_version.as_deref(), None, None).reference())
            }
        };
        Ok(Launch {
            unit,
            engine: self.engine.kind(),
            image,
            arguments: made.arguments,
            environment: made.environment,
            gpus,
            ranks: self.spec.tensor_parallel_size.unwrap_or(1),
            mounts: Vec::new(),
            spec_hash: data_encoding::HEXLOWER.encode(&hasher.finalize()),
        })
    }
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
