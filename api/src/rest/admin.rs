//! `/api/admin`: what concerns all records at once (seed 004). For administrators.

use axum::Json;
use axum::extract::State;
use muster_cluster::rows::{Purge, PurgeAnswer, answer::Outcome, command};
use muster_cluster::state::{PURGE_LIMIT, View};
use serde::Serialize;
use serde_json::Value;
use utoipa::ToSchema;
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

use crate::error::{ApiError, ErrorBody};
use crate::fields::Fields;
use crate::request::{Body, Write, unexpected};
use crate::state::ApiState;

/// What can be purged.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Targets {
    deployments: bool,
    nodes: bool,
    metrics: bool,
    configs: bool,
}

/// Which records are deleted.
#[derive(Debug, ToSchema)]
#[expect(dead_code, reason = "the description of the body; it is read field by field")]
struct PurgeInput {
    /// Any of `deployments`, `nodes`, `metrics` and `configs`; empty or left out: all of them. `nodes` has `deployments` and
    /// `metrics` with it.
    #[schema(example = json!(["deployments"]))]
    targets: Option<Vec<String>>,
}

/// How many records were deleted of each table that was purged.
#[derive(Debug, Default, PartialEq, Eq, Serialize, ToSchema)]
struct Counts {
    /// What runs of them is left alone, and belongs to nobody from then on.
    #[serde(skip_serializing_if = "Option::is_none")]
    deployments: Option<u64>,
    /// Always 0: samples of a node are kept by that node for a while, and are no records of the fleet.
    #[serde(skip_serializing_if = "Option::is_none")]
    node_metrics: Option<u64>,
    /// Nodes of which something had been set by an operator. That is taken back; the nodes stay.
    #[serde(skip_serializing_if = "Option::is_none")]
    nodes: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    deployment_configs: Option<u64>,
}

#[derive(Debug, Serialize, ToSchema)]
struct Purged {
    purged: Counts,
}

impl Targets {
    const ALL: Self = Self { deployments: true, nodes: true, metrics: true, configs: true };

    fn of(body: &[u8]) -> Result<Self, ApiError> {
        let mut fields = Fields::parse(body)?;
        let named = fields.list("targets", 100, |target| match target {
            Value::String(target) => Ok(target),
            _ => Err("must be a string".to_owned()),
        });
        fields.finish()?;
        let named = named.value().unwrap_or_default();
        if named.is_empty() {
            return Ok(Self::ALL);
        }
        let mut targets = Self::default();
        for target in named {
            match target.as_str() {
                "deployments" => targets.deployments = true,
                "nodes" => (targets.nodes, targets.deployments, targets.metrics) = (true, true, true),
                "metrics" => targets.metrics = true,
                "configs" => targets.configs = true,
                _ => {
                    let why = format!("there is no target {target:?}; there are deployments, nodes, metrics, configs");
                    return Err(ApiError::Senseless(why));
                }
            }
        }
        Ok(targets)
    }

    fn answer(self, purged: PurgeAnswer) -> Json<Purged> {
        let of = |targeted: bool, count: u64| targeted.then_some(count);
        let purged = Counts {
            deployments: of(self.deployments, purged.deployments),
            node_metrics: of(self.metrics, 0),
            nodes: of(self.nodes, purged.nodes),
            deployment_configs: of(self.configs, purged.configs),
        };
        Json(Purged { purged })
    }

    /// The command that deletes what is there now.
    fn command(self, view: &View) -> Result<Purge, ApiError> {
        let fleet = view.fleet()?.unwrap_or_default();
        Ok(Purge {
            deployments_before: self.deployments.then(|| fleet.next_deployment.saturating_add(1)),
            configs_before: self.configs.then_some(fleet.next_config),
            nodes: self.nodes,
            deleted: None,
        })
    }
}

/// How many commands it takes before the last one.
fn rounds(purge: &Purge, view: &View) -> Result<usize, ApiError> {
    let deployments = if purge.deployments_before.is_some() { view.deployments()?.len() } else { 0 };
    let configs = if purge.configs_before.is_some() { view.configs()?.len() } else { 0 };
    Ok(deployments.max(configs).div_ceil(PURGE_LIMIT).saturating_sub(1))
}

fn counted(outcome: Outcome) -> Result<PurgeAnswer, ApiError> {
    match outcome {
        Outcome::Purge(purged) => Ok(purged),
        _ => Err(unexpected()),
    }
}

/// Deletes records by category. Keys and settings are never among them, and what runs goes on.
///
/// Many records are deleted in several steps. If it fails in between, a repetition deletes the rest.
#[utoipa::path(post, path = "/admin/purge", tag = "admin", request_body = PurgeInput, params(super::WriteParams),
    responses((status = 200, body = Purged), (status = 400, body = ErrorBody), (status = 401, body = ErrorBody),
        (status = 403, body = ErrorBody), (status = 422, body = ErrorBody), (status = 503, body = ErrorBody),
        (status = 504, body = ErrorBody)))]
async fn purge(State(state): State<ApiState>, write: Write, Body(body): Body) -> Result<Json<Purged>, ApiError> {
    let targets = Targets::of(&body)?;
    let member = state.member()?;
    if let Some(done) = write.first_answer(&member, &body).await? {
        return Ok(targets.answer(counted(done.outcome)?));
    }
    let view = member.consensus.linearizable().await?;
    let mut purge = targets.command(&view)?;
    for _ in 0..rounds(&purge, &view)? {
        let some = Purge { nodes: false, ..purge };
        purge.deleted = Some(counted(write.propose_part(&member, command::Body::Purge(some)).await?)?);
    }
    let purged = write.propose(&member, &body, command::Body::Purge(purge)).await?;
    Ok(targets.answer(counted(purged)?))
}

/// The routes.
pub(super) fn router() -> OpenApiRouter<ApiState> {
    OpenApiRouter::new().routes(routes!(purge))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn targets_are_named_and_nodes_have_others_with_them() {
        let of = |body: &str| Targets::of(body.as_bytes());
        for all in ["{}", r#"{"targets": []}"#, r#"{"targets": null}"#] {
            assert_eq!(of(all).expect("valid"), Targets::ALL, "{all}");
        }
        let nodes = Targets { configs: false, ..Targets::ALL };
        assert_eq!(of(r#"{"targets": ["nodes"]}"#).expect("valid"), nodes);
        let configs = Targets { configs: true, ..Targets::default() };
        assert_eq!(of(r#"{"targets": ["configs", "configs"]}"#).expect("valid"), configs);
        assert!(matches!(of(r#"{"targets": ["configs", "keys"]}"#), Err(ApiError::Senseless(_))));
        assert!(matches!(of(r#"{"targets": "configs"}"#), Err(ApiError::Invalid(_))));
        assert!(matches!(of(r#"{"target": []}"#), Err(ApiError::Invalid(_))));
    }
}
