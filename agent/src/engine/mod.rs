//! Inference engines: their command lines, what they say of themselves, and how they sleep.
//!
//! Everything that depends on which engine runs in a unit is behind [`Engine`]; `vllm/` is the only one that knows vLLM. What is
//! the same for all of them is beside it: the words of phases and failures, the client, the arithmetic of usage, the judgement
//! of health. Nothing here starts or ends anything.

pub mod client;
pub mod command;
pub mod environment;
pub mod failure;
pub mod health;
pub mod image;
pub mod metrics;
pub mod phase;
pub mod restarts;
mod vllm;

use std::fmt;

use futures_util::future::BoxFuture;
use http::Method;
use muster_cluster::rows;

use self::client::CallError;
use self::command::{Command, CommandError, Order};
use self::failure::FailureClass;
use self::health::Probe;
use self::image::Image;
use self::metrics::Sample;
use self::phase::Phase;
use crate::runtime::{Endpoint, EngineKind};

/// What a route of an engine is for. Only these are forwarded to it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Traffic {
    /// The model is used. A sleeping engine would hold the request until it is woken.
    Inference,
    /// The engine answers by itself, asleep or not.
    Lookup,
}

/// One kind of engine. All calls have a time limit and read a bounded answer.
pub trait Engine: fmt::Debug + Send + Sync + 'static {
    /// Which it is.
    fn kind(&self) -> EngineKind;

    /// What it is started with.
    ///
    /// # Errors
    /// When the order makes no command line, with a reason for whoever gave it.
    fn command(&self, order: &Order<'_>) -> Result<Command, CommandError>;

    /// The image for a wanted version. `latest` is the newest release of the engine, if that is known; the repository is the
    /// engine's own where none is given.
    fn image(&self, version: Option<&str>, latest: Option<&str>, repository: Option<&str>) -> Image;

    /// How far it has come, if a line of its log says so. For people to look at: nothing is decided by it.
    fn phase(&self, line: &str) -> Option<Phase>;

    /// What has gone wrong, if a line of its log says so.
    fn failure(&self, line: &str) -> Option<FailureClass>;

    /// What a request would be for, or `None` where nobody outside may send it. The path is taken as it came, without the query,
    /// and nothing is decoded: what is not spelled exactly like a known route is none.
    fn traffic(&self, method: &Method, path: &str) -> Option<Traffic>;

    /// Whether it answers.
    fn probe<'a>(&'a self, at: &'a Endpoint) -> BoxFuture<'a, Probe>;

    /// What it has counted.
    fn sample<'a>(&'a self, at: &'a Endpoint) -> BoxFuture<'a, Result<Sample, CallError>>;

    /// Sends it to sleep with its weights in the machine's memory, and waits until it says that it sleeps. Requests that are under
    /// way may be cut. That memory was freed has to be measured: the engine's word is not enough.
    fn sleep<'a>(&'a self, at: &'a Endpoint) -> BoxFuture<'a, Result<(), CallError>>;

    /// Wakes it, and waits until it says that it does. [`Engine::is_sleeping`] tells when it is awake.
    fn wake_up<'a>(&'a self, at: &'a Endpoint) -> BoxFuture<'a, Result<(), CallError>>;

    /// Makes it forget what it has cached of prompts, as it should after a sleep.
    fn reset_prefix_cache<'a>(&'a self, at: &'a Endpoint) -> BoxFuture<'a, Result<(), CallError>>;

    /// Whether it sleeps.
    fn is_sleeping<'a>(&'a self, at: &'a Endpoint) -> BoxFuture<'a, Result<bool, CallError>>;

    /// Whether a request from outside may be forwarded to it.
    fn is_public(&self, method: &Method, path: &str) -> bool {
        self.traffic(method, path).is_some()
    }
}

/// The engine of this kind.
#[must_use]
pub fn of(kind: EngineKind) -> &'static dyn Engine {
    match kind {
        EngineKind::Vllm => &vllm::VLLM,
        EngineKind::Sim => &vllm::SIM,
    }
}

/// The kind of engine that a specification asks for. One that names none is of a time when there was only vLLM.
#[must_use]
pub fn kind_of(spec: &rows::DeploymentSpec) -> EngineKind {
    match spec.engine() {
        rows::Engine::Sim => EngineKind::Sim,
        rows::Engine::Vllm | rows::Engine::Unspecified => EngineKind::Vllm,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_kind_has_an_engine_of_its_own() {
        for kind in [EngineKind::Vllm, EngineKind::Sim] {
            assert_eq!(of(kind).kind(), kind);
        }
    }
}
