//! What vLLM is asked.

use std::time::Duration;

use bytes::Bytes;
use http::{Method, StatusCode};
use serde::Deserialize;

use super::metrics;
use crate::engine::client::{Bounds, CallError, Reply, ask};
use crate::engine::health::Probe;
use crate::engine::metrics::Sample;
use crate::runtime::Endpoint;

/// How long and how large the answers may be.
#[derive(Debug)]
pub(super) struct Limits {
    /// For questions that are answered at once.
    pub probe: Bounds,
    /// For metrics. With many adapters they are long.
    pub metrics: Bounds,
    /// For sleeping and waking: weights move through the bus.
    pub sleep: Bounds,
}

impl Limits {
    pub(super) const DEFAULT: Self = Self {
        probe: Bounds { time: Duration::from_secs(5), size: 1 << 20 },
        metrics: Bounds { time: Duration::from_secs(5), size: 8 << 20 },
        sleep: Bounds { time: Duration::from_secs(120), size: 64 << 10 },
    };
}

async fn get(at: &Endpoint, target: &'static str, bounds: Bounds) -> Result<Reply, CallError> {
    ask(at, Method::GET, target, bounds).await
}

/// The body of a success.
fn succeeded(what: &'static str, reply: Reply) -> Result<Bytes, CallError> {
    let Reply { status, body } = reply;
    if status.is_success() { Ok(body) } else { Err(CallError::Status { what, status }) }
}

/// Does something that is done once the answer is there.
pub(super) async fn post(at: &Endpoint, target: &'static str, bounds: Bounds) -> Result<(), CallError> {
    succeeded(target, ask(at, Method::POST, target, bounds).await?).map(drop)
}

pub(super) async fn sample(at: &Endpoint, limits: &Limits) -> Result<Sample, CallError> {
    let body = succeeded("/metrics", get(at, "/metrics", limits.metrics).await?)?;
    Ok(metrics::read(&String::from_utf8_lossy(&body)))
}

pub(super) async fn is_sleeping(at: &Endpoint, limits: &Limits) -> Result<bool, CallError> {
    #[derive(Deserialize)]
    struct Answer {
        is_sleeping: bool,
    }
    let body = succeeded("/is_sleeping", get(at, "/is_sleeping", limits.probe).await?)?;
    let answer: Answer = serde_json::from_slice(&body).map_err(|_| CallError::Malformed("/is_sleeping"))?;
    Ok(answer.is_sleeping)
}

/// An engine that has no `/health` is asked for its models.
pub(super) async fn probe(at: &Endpoint, limits: &Limits) -> Probe {
    let status = match get(at, "/health", limits.probe).await {
        Ok(reply) => reply.status,
        Err(error) => return unwell(&error),
    };
    match status {
        StatusCode::OK => Probe::Ready,
        StatusCode::SERVICE_UNAVAILABLE => Probe::Dead,
        _ => match get(at, "/v1/models", limits.probe).await {
            Ok(reply) if reply.status == StatusCode::OK => Probe::Ready,
            Ok(_) => Probe::Unwell,
            Err(error) => unwell(&error),
        },
    }
}

fn unwell(error: &CallError) -> Probe {
    match error {
        CallError::Refused | CallError::Unanswered => Probe::NotListening,
        CallError::Timeout(_) => Probe::Silent,
        CallError::TooLong(_) | CallError::Status { .. } | CallError::Malformed(_) | CallError::Io(_) => Probe::Unwell,
    }
}
