//! What a node is asked about its machine: what it did, and which ports are free.

use axum::Json;
use axum::extract::{Query, State};
use axum::response::Response;
use muster_agent::history::MOST_MINUTES;
use muster_agent::wire::{PastAnswer, PastGpu, PastInventory, PastPoint, PastRequest};
use muster_cluster::ids::NodeId;
use muster_cluster::state::NodePolicy;
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

use super::super::ReadParams;
use super::find;
use crate::error::{ApiError, ErrorBody};
use crate::request::{Path, Read, time};
use crate::state::ApiState;

const MINUTES: u32 = 60;

/// Which samples are wanted.
#[derive(Debug, Default, Deserialize, utoipa::IntoParams)]
#[into_params(parameter_in = Query)]
struct PastQuery {
    /// Of so many last minutes, 1 to 2880; what is out of range is the nearest that is in range. 60.
    #[param(value_type = Option<u32>)]
    minutes: Option<String>,
    /// Every so many samples, from the oldest on. 1.
    #[param(value_type = Option<u32>)]
    step: Option<String>,
}

/// A number in a query, or the nearest within these bounds.
fn clamped(field: &'static str, text: Option<&str>, default: u32, (least, most): (u32, u32)) -> Result<u32, ApiError> {
    let Some(text) = text else { return Ok(default) };
    let number: i64 = text.trim().parse().map_err(|_| ApiError::field(field, "must be an integer"))?;
    let number = number.clamp(i64::from(least), i64::from(most));
    Ok(u32::try_from(number).unwrap_or(default))
}

/// A GPU as it was. What is null is not known.
#[derive(Debug, Serialize, ToSchema)]
struct PastGpuBody {
    index: u32,
    name: String,
    source: String,
    /// 0 to 100.
    utilization: Option<u32>,
    /// In MiB.
    memory_used_mb: Option<u32>,
    /// In MiB.
    memory_total_mb: Option<u64>,
    /// In degrees Celsius.
    temperature: Option<u32>,
    /// In watts.
    power_watts: Option<u32>,
}

/// A sample of a node.
#[derive(Debug, Serialize, ToSchema)]
struct PastPointBody {
    recorded_at: String,
    gpus: Vec<PastGpuBody>,
    /// Of all processors together, 0 to 100.
    cpu_percent: Option<f32>,
    /// 0 to 100.
    memory_percent: Option<f32>,
}

/// What a node did.
#[derive(Debug, Serialize, ToSchema)]
struct PastBody {
    node_id: u64,
    /// The step that was taken: a larger one than was asked for if there would be too much to say.
    step: u32,
    /// Oldest first.
    points: Vec<PastPointBody>,
}

/// The figure at a place; each is one more than it was.
fn figure(figures: &[u32], place: usize) -> Option<u32> {
    figures.get(place).and_then(|figure| figure.checked_sub(1))
}

impl PastPointBody {
    fn of(point: PastPoint, inventories: &[PastInventory]) -> Self {
        let gpus = inventories.get(point.inventory as usize).map_or(&[][..], |inventory| &inventory.gpus);
        let gpu = |(place, gpu): (usize, &PastGpu)| PastGpuBody {
            index: gpu.index,
            name: gpu.name.clone(),
            source: gpu.source.clone(),
            utilization: figure(&point.utilization, place),
            memory_used_mb: figure(&point.memory_used_mib, place),
            memory_total_mb: gpu.memory_total.map(|bytes| bytes >> 20),
            temperature: figure(&point.temperature, place),
            power_watts: figure(&point.power_watts, place),
        };
        Self {
            recorded_at: time(point.recorded_ms),
            gpus: gpus.iter().enumerate().map(gpu).collect(),
            cpu_percent: point.cpu_percent,
            memory_percent: point.memory_percent,
        }
    }
}

/// What a node's machine did, by what the node itself keeps: a sample every `nodes_sync_interval_seconds`, for
/// `node_metrics_retention_hours`, and not from before the node's process started.
#[utoipa::path(get, path = "/nodes/{id}/metrics/history", tag = "nodes",
    params(("id" = u64, Path, description = "number"), PastQuery, ReadParams),
    responses((status = 200, body = PastBody), (status = 401, body = ErrorBody), (status = 404, body = ErrorBody),
        (status = 422, body = ErrorBody), (status = 502, body = ErrorBody), (status = 503, body = ErrorBody)))]
async fn past(
    State(state): State<ApiState>,
    Path(id): Path<String>,
    Query(query): Query<PastQuery>,
    read: Read,
) -> Result<Response, ApiError> {
    let minutes = clamped("minutes", query.minutes.as_deref(), MINUTES, (1, MOST_MINUTES))?;
    let step = clamped("step", query.step.as_deref(), 1, (1, u32::MAX))?;
    let node = find(&read.view, &id)?.row;
    let since_ms = NodePolicy::of(&node).forgotten_ms();
    let request = PastRequest { minutes, step, since_ms };
    let PastAnswer { step, inventories, points } = state.member()?.hosts.past(NodeId(node.id), request).await?;
    let points = points.into_iter().map(|point| PastPointBody::of(point, &inventories)).collect();
    Ok(read.answer(Json(PastBody { node_id: node.id, step, points })))
}

/// Which port is meant.
#[derive(Debug, Default, Deserialize, utoipa::IntoParams)]
#[into_params(parameter_in = Query)]
struct PortQuery {
    /// 1 to 65535.
    #[param(value_type = u16, required = true)]
    port: Option<String>,
}

/// Whether a port is free.
#[derive(Debug, Serialize, ToSchema)]
struct PortBody {
    available: bool,
    /// Why it is not.
    reason: Option<String>,
}

fn port(text: Option<&str>) -> Result<u16, ApiError> {
    let text = text.ok_or_else(|| ApiError::field("port", "is required"))?;
    let port = text.trim().parse::<u16>().ok().filter(|port| *port > 0);
    port.ok_or_else(|| ApiError::field("port", "must be an integer from 1 to 65535"))
}

/// Whether a deployment could listen on a port of a node: nothing does, and no deployment has been given it.
#[utoipa::path(get, path = "/nodes/{id}/ports/check", tag = "nodes",
    params(("id" = u64, Path, description = "number"), PortQuery, ReadParams),
    responses((status = 200, body = PortBody), (status = 401, body = ErrorBody), (status = 404, body = ErrorBody),
        (status = 422, body = ErrorBody), (status = 502, body = ErrorBody), (status = 503, body = ErrorBody)))]
async fn check_port(
    State(state): State<ApiState>,
    Path(id): Path<String>,
    Query(query): Query<PortQuery>,
    read: Read,
) -> Result<Response, ApiError> {
    let port = port(query.port.as_deref())?;
    let node = NodeId(find(&read.view, &id)?.row.id);
    let held = read.view.held_on(node)?.into_iter().find(|held| held.reservation.port == u32::from(port));
    let reason = match held {
        Some(held) => format!("deployment {} has it", held.placement.deployment),
        None => state.member()?.hosts.check_port(node, port).await?.why,
    };
    let reason = Some(reason).filter(|reason| !reason.is_empty());
    Ok(read.answer(Json(PortBody { available: reason.is_none(), reason })))
}

/// The routes.
pub(super) fn router() -> OpenApiRouter<ApiState> {
    OpenApiRouter::new().routes(routes!(past)).routes(routes!(check_port))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_out_of_range_is_the_nearest_that_is_in_range() {
        let minutes = |text| clamped("minutes", text, MINUTES, (1, MOST_MINUTES)).ok();
        for (text, expected) in [
            (None, 60),
            (Some("5"), 5),
            (Some("0"), 1),
            (Some("-7"), 1),
            (Some("2881"), 2880),
            (Some("99999999999"), 2880),
        ] {
            assert_eq!(minutes(text), Some(expected), "{text:?}");
        }
        for text in ["", "x", "1.5", "99999999999999999999"] {
            assert_eq!(minutes(Some(text)), None, "{text}");
        }
    }

    #[test]
    fn a_port_is_one_that_something_can_listen_on() {
        assert_eq!(port(Some("1")).ok(), Some(1));
        assert_eq!(port(Some("65535")).ok(), Some(65_535));
        for text in [None, Some(""), Some("0"), Some("65536"), Some("-1"), Some("http")] {
            assert!(port(text).is_err(), "{text:?}");
        }
    }

    #[test]
    fn what_another_node_says_may_have_gaps() {
        let gpu = |index| PastGpu { index, ..PastGpu::default() };
        let inventories = [PastInventory { gpus: vec![gpu(0), gpu(1)] }];
        let point = |inventory| {
            let point =
                PastPoint { inventory, utilization: vec![1, 0], memory_used_mib: vec![6], ..PastPoint::default() };
            PastPointBody::of(point, &inventories)
        };
        let figures: Vec<_> = point(0).gpus.iter().map(|gpu| (gpu.utilization, gpu.memory_used_mb)).collect();
        assert_eq!(figures, [(Some(0), Some(5)), (None, None)]);
        assert!(point(7).gpus.is_empty());
    }
}
