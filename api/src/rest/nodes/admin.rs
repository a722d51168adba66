//! What operators say of a node: its runtime, its warm cache, its maintenance; and that it shall be forgotten.

use axum::Json;
use axum::extract::State;
use axum::response::{IntoResponse, Response};
use muster_cluster::ids::NodeId;
use muster_cluster::rows::{
    CordonNode, ForgetNode, NodeAdminAnswer, SetNodeRuntime, SetNodeWarmCache, answer::Outcome, command,
};
use serde::Serialize;
use utoipa::ToSchema;
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

use super::super::WriteParams;
use super::entry::NodeRead;
use super::{answer, find, missing};
use crate::error::{ApiError, ErrorBody};
use crate::fields::{Fields, Given, MAX_INTEGER};
use crate::request::{Body, Path, Write, number, unexpected};
use crate::state::{ApiState, Member};

/// How many GPUs can be named at once.
const GPUS_LIMIT: usize = 256;

/// Proposes what is said of a node, and answers with the node.
async fn say(member: &Member, write: &Write, id: u64, body: &[u8], said: command::Body) -> Result<Response, ApiError> {
    match write.propose(member, body, said).await? {
        Outcome::NodeAdmin(_) => {}
        _ => return Err(unexpected()),
    }
    let view = member.consensus.linearizable().await?;
    let node = find(&view, &id.to_string())?;
    answer(member, &view, node).await
}

/// Which container runtime a node uses.
#[derive(Debug, ToSchema)]
#[expect(dead_code, reason = "the description of the body; it is read field by field")]
struct RuntimeInput {
    /// `docker` or `podman`; null: whichever the fleet prefers (`preferred_container_runtime`).
    #[schema(required = true)]
    runtime: Option<String>,
}

/// The runtime that is wanted; empty for none.
fn read_runtime(mut fields: Fields) -> Result<String, ApiError> {
    let runtime = match fields.text("runtime") {
        Given::Value(runtime) => Some(runtime),
        Given::Null => None,
        Given::Absent => {
            fields.required("runtime");
            None
        }
    };
    fields.finish()?;
    match runtime {
        None => Ok(String::new()),
        Some(runtime) if ["docker", "podman"].contains(&runtime.as_str()) => Ok(runtime),
        Some(_) => Err(ApiError::Senseless("runtime is docker, podman or null".to_owned())),
    }
}

/// Sets which container runtime new deployments on a node use. One that the node does not have is not used.
#[utoipa::path(post, path = "/nodes/{id}/runtime", tag = "nodes", request_body = RuntimeInput,
    params(("id" = u64, Path, description = "number"), WriteParams),
    responses((status = 200, body = NodeRead), (status = 400, body = ErrorBody), (status = 401, body = ErrorBody),
        (status = 403, body = ErrorBody), (status = 404, body = ErrorBody), (status = 412, body = ErrorBody),
        (status = 422, body = ErrorBody), (status = 503, body = ErrorBody), (status = 504, body = ErrorBody)))]
async fn runtime(
    State(state): State<ApiState>,
    Path(id): Path<String>,
    write: Write,
    Body(body): Body,
) -> Result<Response, ApiError> {
    let id = number("id", &id)?;
    let runtime = read_runtime(Fields::parse(&body)?)?;
    let said = SetNodeRuntime { id, precondition: write.precondition.clone(), runtime };
    say(&state.member()?, &write, id, &body, command::Body::SetNodeRuntime(said)).await
}

/// Whether models sleep to make room, and how much memory they may take meanwhile.
#[derive(Debug, ToSchema)]
#[expect(dead_code, reason = "the description of the body; it is read field by field")]
struct WarmCacheInput {
    enabled: bool,
    /// In MiB, more than 0; null or left out: without limit.
    ram_cache_limit_mb: Option<u64>,
}

fn read_warm_cache(mut fields: Fields) -> Result<(bool, Option<u64>), ApiError> {
    let enabled = required(&mut fields, "enabled");
    let most = i64::try_from(MAX_INTEGER).unwrap_or(i64::MAX);
    let limit = fields.signed("ram_cache_limit_mb", -most, most).value();
    fields.finish()?;
    let limit = limit.map(|limit| {
        let limit = u64::try_from(limit).ok().filter(|limit| *limit > 0);
        limit.ok_or_else(|| ApiError::Senseless("ram_cache_limit_mb must be more than 0, or null".to_owned()))
    });
    Ok((enabled, limit.transpose()?))
}

fn required(fields: &mut Fields, field: &str) -> bool {
    let given = fields.boolean(field);
    if given.is_null() || !matches!(given, Given::Value(_)) {
        fields.required(field);
    }
    given.value().unwrap_or_default()
}

/// Sets whether models on a node make room for others by going to sleep, and how much memory they may take then. What runs
/// already keeps its mode.
#[utoipa::path(post, path = "/nodes/{id}/warm-cache", tag = "nodes", request_body = WarmCacheInput,
    params(("id" = u64, Path, description = "number"), WriteParams),
    responses((status = 200, body = NodeRead), (status = 400, body = ErrorBody), (status = 401, body = ErrorBody),
        (status = 403, body = ErrorBody), (status = 404, body = ErrorBody), (status = 412, body = ErrorBody),
        (status = 422, body = ErrorBody), (status = 503, body = ErrorBody), (status = 504, body = ErrorBody)))]
async fn warm_cache(
    State(state): State<ApiState>,
    Path(id): Path<String>,
    write: Write,
    Body(body): Body,
) -> Result<Response, ApiError> {
    let id = number("id", &id)?;
    let (enabled, ram_limit_mb) = read_warm_cache(Fields::parse(&body)?)?;
    let said = SetNodeWarmCache { id, precondition: write.precondition.clone(), enabled, ram_limit_mb };
    say(&state.member()?, &write, id, &body, command::Body::SetNodeWarmCache(said)).await
}

/// Which GPUs get nothing new.
#[derive(Debug, ToSchema)]
#[expect(dead_code, reason = "the description of the body; it is read field by field")]
struct MaintenanceInput {
    /// By index; empty or left out: all of them.
    gpu_ids: Option<Vec<u32>>,
    /// True: they get nothing new. False: they do again.
    enabled: bool,
    /// True: deployments on them are stopped as well. Only when `enabled`.
    drain: Option<bool>,
}

fn read_maintenance(mut fields: Fields) -> Result<(Vec<u32>, bool, bool), ApiError> {
    let enabled = required(&mut fields, "enabled");
    let gpu_ids = fields.numbers("gpu_ids", 0, u64::from(u32::MAX), GPUS_LIMIT).value().unwrap_or_default();
    let drain = fields.boolean("drain").value().unwrap_or(false);
    fields.finish()?;
    let gpu_ids = gpu_ids.into_iter().filter_map(|gpu| u32::try_from(gpu).ok()).collect();
    Ok((gpu_ids, enabled, drain))
}

/// Keeps new deployments away from GPUs of a node, or from the node, or lets them in again. What runs there goes on, unless it is
/// drained.
#[utoipa::path(post, path = "/nodes/{id}/maintenance", tag = "nodes", request_body = MaintenanceInput,
    params(("id" = u64, Path, description = "number"), WriteParams),
    responses((status = 200, body = NodeRead), (status = 400, body = ErrorBody), (status = 401, body = ErrorBody),
        (status = 403, body = ErrorBody), (status = 404, body = ErrorBody), (status = 412, body = ErrorBody),
        (status = 422, body = ErrorBody), (status = 503, body = ErrorBody), (status = 504, body = ErrorBody)))]
async fn maintenance(
    State(state): State<ApiState>,
    Path(id): Path<String>,
    write: Write,
    Body(body): Body,
) -> Result<Response, ApiError> {
    let id = number("id", &id)?;
    let (gpu_ids, enabled, drain) = read_maintenance(Fields::parse(&body)?)?;
    let said = CordonNode { id, precondition: write.precondition.clone(), gpu_ids, enabled, drain };
    say(&state.member()?, &write, id, &body, command::Body::CordonNode(said)).await
}

/// What has become of a node's record.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct NodeDeleted {
    /// `deleted`.
    status: &'static str,
    /// The name of the node.
    hostname: String,
    /// How many deployments have gone with it.
    deployments_deleted: u64,
}

/// Forgets what operators have said of a node, its deployments and its past. Nothing that runs there is ended by that, and the
/// node still belongs to the fleet: one that lives is back in seconds, under its number. To take a node out of the fleet, evict
/// it.
#[utoipa::path(delete, path = "/nodes/{id}", tag = "nodes", params(("id" = u64, Path, description = "number"), WriteParams),
    responses((status = 200, body = NodeDeleted), (status = 401, body = ErrorBody), (status = 403, body = ErrorBody),
        (status = 404, body = ErrorBody), (status = 412, body = ErrorBody), (status = 503, body = ErrorBody),
        (status = 504, body = ErrorBody)))]
pub(super) async fn delete(
    State(state): State<ApiState>,
    Path(id): Path<String>,
    write: Write,
) -> Result<Response, ApiError> {
    let id = number("id", &id)?;
    let member = state.member()?;
    let command = ForgetNode { id, precondition: write.precondition.clone() };
    let outcome = write.propose(&member, &[], command::Body::ForgetNode(command)).await?;
    let Outcome::NodeAdmin(NodeAdminAnswer { deployments, .. }) = outcome else { return Err(unexpected()) };
    let node = member.consensus.local().node(NodeId(id))?.ok_or_else(|| missing(NodeId(id)))?;
    let hostname = node.row.facts.unwrap_or_default().name;
    Ok(Json(NodeDeleted { status: "deleted", hostname, deployments_deleted: deployments }).into_response())
}

/// The routes.
pub(super) fn router() -> OpenApiRouter<ApiState> {
    OpenApiRouter::new().routes(routes!(runtime)).routes(routes!(warm_cache)).routes(routes!(maintenance))
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn fields(body: &Value) -> Fields {
        Fields::parse(body.to_string().as_bytes()).expect("an object")
    }

    /// What a body is refused with: 400 for what makes no sense, 422 for fields that are wrong.
    fn status<T>(read: Result<T, ApiError>) -> u16 {
        match read {
            Ok(_) => 200,
            Err(ApiError::Senseless(_)) => 400,
            Err(ApiError::Invalid(_)) => 422,
            Err(other) => panic!("{other}"),
        }
    }

    #[test]
    fn a_runtime_is_one_of_two_or_none() {
        assert_eq!(read_runtime(fields(&json!({"runtime": "podman"}))).ok().as_deref(), Some("podman"));
        assert_eq!(read_runtime(fields(&json!({"runtime": null}))).ok().as_deref(), Some(""));
        for (body, expected) in [
            (json!({"runtime": "process"}), 400),
            (json!({"runtime": ""}), 400),
            (json!({"runtime": 7}), 422),
            (json!({}), 422),
            (json!({"runtime": "docker", "x": 1}), 422),
        ] {
            assert_eq!(status(read_runtime(fields(&body))), expected, "{body}");
        }
    }

    #[test]
    fn a_limit_of_the_warm_cache_is_more_than_nothing() {
        let read = |body: Value| read_warm_cache(fields(&body));
        assert_eq!(read(json!({"enabled": true, "ram_cache_limit_mb": 1})).ok(), Some((true, Some(1))));
        assert_eq!(read(json!({"enabled": false, "ram_cache_limit_mb": null})).ok(), Some((false, None)));
        assert_eq!(read(json!({"enabled": false})).ok(), Some((false, None)));
        for (body, expected) in [
            (json!({"enabled": true, "ram_cache_limit_mb": 0}), 400),
            (json!({"enabled": true, "ram_cache_limit_mb": -5}), 400),
            (json!({"enabled": true, "ram_cache_limit_mb": 1.5}), 422),
            (json!({"enabled": null}), 422),
            (json!({"ram_cache_limit_mb": 5}), 422),
        ] {
            assert_eq!(status(read(body.clone())), expected, "{body}");
        }
    }

    #[test]
    fn maintenance_is_of_all_gpus_and_drains_nothing_unless_it_is_said() {
        let read = |body: Value| read_maintenance(fields(&body));
        assert_eq!(read(json!({"enabled": true})).ok(), Some((vec![], true, false)));
        let all = json!({"enabled": false, "gpu_ids": [1, 0], "drain": true});
        assert_eq!(read(all).ok(), Some((vec![1, 0], false, true)));
        for body in [json!({}), json!({"enabled": 1}), json!({"enabled": true, "gpu_ids": [-1]})] {
            assert_eq!(status(read(body.clone())), 422, "{body}");
        }
    }
}
