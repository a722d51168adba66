//! vLLM, and the simulator, which takes its command line and speaks its API.

mod arguments;
mod calls;
mod metrics;
mod routes;
mod words;

use futures_util::future::BoxFuture;
use http::Method;

use self::calls::Limits;
use super::client::CallError;
use super::command::{Command, CommandError, Order};
use super::failure::FailureClass;
use super::health::Probe;
use super::image::{self, Image};
use super::metrics::Sample;
use super::phase::Phase;
use super::{Engine, Traffic};
use crate::runtime::{Endpoint, EngineKind};

/// vLLM itself.
pub(super) static VLLM: Vllm = Vllm { kind: EngineKind::Vllm, limits: Limits::DEFAULT };

/// Its simulator.
pub(super) static SIM: Vllm = Vllm { kind: EngineKind::Sim, limits: Limits::DEFAULT };

/// An engine that speaks vLLM's API.
#[derive(Debug)]
pub(super) struct Vllm {
    kind: EngineKind,
    limits: Limits,
}

impl Engine for Vllm {
    fn kind(&self) -> EngineKind {
        self.kind
    }

    fn command(&self, order: &Order<'_>) -> Result<Command, CommandError> {
        arguments::command(self.kind, order)
    }

    fn image(&self, version: Option<&str>, latest: Option<&str>, repository: Option<&str>) -> Image {
        match self.kind {
            EngineKind::Vllm => image::resolve(version, latest, repository.unwrap_or("vllm/vllm-openai")),
            // It is in no registry: it is made on the machine, and vLLM's releases say nothing of it.
            EngineKind::Sim => {
                let image = image::resolve(version, None, repository.unwrap_or("muster-sim"));
                Image { moves: false, ..image }
            }
        }
    }

    fn phase(&self, line: &str) -> Option<Phase> {
        words::phase(line)
    }

    fn failure(&self, line: &str) -> Option<FailureClass> {
        words::failure(line)
    }

    fn traffic(&self, method: &Method, path: &str) -> Option<Traffic> {
        routes::traffic(method, path)
    }

    fn probe<'a>(&'a self, at: &'a Endpoint) -> BoxFuture<'a, Probe> {
        Box::pin(calls::probe(at, &self.limits))
    }

    fn sample<'a>(&'a self, at: &'a Endpoint) -> BoxFuture<'a, Result<Sample, CallError>> {
        Box::pin(calls::sample(at, &self.limits))
    }

    fn sleep<'a>(&'a self, at: &'a Endpoint) -> BoxFuture<'a, Result<(), CallError>> {
        Box::pin(calls::post(at, "/sleep?level=1", self.limits.sleep))
    }

    fn wake_up<'a>(&'a self, at: &'a Endpoint) -> BoxFuture<'a, Result<(), CallError>> {
        Box::pin(calls::post(at, "/wake_up", self.limits.sleep))
    }

    fn reset_prefix_cache<'a>(&'a self, at: &'a Endpoint) -> BoxFuture<'a, Result<(), CallError>> {
        Box::pin(calls::post(at, "/reset_prefix_cache", self.limits.probe))
    }

    fn is_sleeping<'a>(&'a self, at: &'a Endpoint) -> BoxFuture<'a, Result<bool, CallError>> {
        Box::pin(calls::is_sleeping(at, &self.limits))
    }
}

#[cfg(test)]
mod tests;
