//! `/api/nodes/{node_id}/...`: the model files of any node, through any node (seed 004).

mod cache;
mod local;
mod packages;
mod source;
mod uploads;

use axum::extract::{FromRequestParts, Query};
use http::request::Parts;
use muster_agent::files::ErrorKind;
use muster_agent::host::files::{FilesOf, FilesProblem, Refused};
use muster_cluster::ids::NodeId;
use serde::Serialize;
use serde::de::DeserializeOwned;
use utoipa::ToSchema;
use utoipa_axum::router::OpenApiRouter;

use crate::error::ApiError;
use crate::request::number;
use crate::state::ApiState;

/// A node whose files somebody works with.
struct Target {
    id: NodeId,
    files: FilesOf,
}

/// The node that a path names, if it belongs to the fleet.
async fn target(state: &ApiState, node: &str) -> Result<Target, ApiError> {
    let member = state.member()?;
    let id = number("node_id", node).map(NodeId)?;
    // One that this node does not know may have joined a moment ago.
    let known =
        member.consensus.local().node(id)?.is_some() || member.consensus.linearizable().await?.node(id)?.is_some();
    if !known {
        return Err(ApiError::NotFound(format!("there is no node {id}")));
    }
    Ok(Target { id, files: member.hosts.files(id) })
}

impl From<FilesProblem> for ApiError {
    fn from(problem: FilesProblem) -> Self {
        let text = problem.to_string();
        let kind = match problem {
            FilesProblem::Unreachable(_) => return Self::Unreachable(text),
            FilesProblem::Refused(Refused { kind, .. }) => kind,
        };
        match kind {
            ErrorKind::Invalid => Self::Senseless(text),
            ErrorKind::NotFound => Self::NotFound(text),
            ErrorKind::Conflict => Self::Conflict(text),
            ErrorKind::TooLarge => Self::TooLarge(text),
            ErrorKind::Upstream => Self::Upstream(text),
            ErrorKind::Busy => Self::Overloaded(text),
            ErrorKind::NoRoom => Self::NoRoom(text),
            ErrorKind::Own => Self::Internal(text),
        }
    }
}

/// The parameters behind the question mark, like axum's, but what is wrong with them is an error like any other.
struct Asked<T>(T);

impl<T: DeserializeOwned, S: Sync> FromRequestParts<S> for Asked<T> {
    type Rejection = ApiError;

    async fn from_request_parts(parts: &mut Parts, _: &S) -> Result<Self, ApiError> {
        let query = Query::<T>::try_from_uri(&parts.uri);
        query.map(|Query(asked)| Self(asked)).map_err(|error| ApiError::Senseless(error.body_text()))
    }
}

/// What must be given.
fn required(field: &'static str, given: Option<String>) -> Result<String, ApiError> {
    given.ok_or_else(|| ApiError::field(field, "is required"))
}

/// It was done.
#[derive(Debug, Serialize, ToSchema)]
struct Deleted {
    /// `deleted`.
    status: &'static str,
    /// What.
    name: String,
}

impl Deleted {
    fn of(name: String) -> Self {
        Self { status: "deleted", name }
    }
}

/// Bytes in units of 1,048,576, with two decimals.
#[expect(clippy::cast_precision_loss, reason = "two decimals are all that is shown")]
fn mb(bytes: u64) -> f64 {
    (bytes as f64 / (1024.0 * 1024.0) * 100.0).round() / 100.0
}

/// A moment in milliseconds since 1970, in seconds.
#[expect(clippy::cast_precision_loss, reason = "exact until the year 287396")]
fn seconds(ms: u64) -> f64 {
    ms as f64 / 1000.0
}

/// The routes.
pub(super) fn router() -> OpenApiRouter<ApiState> {
    OpenApiRouter::new()
        .merge(cache::router())
        .merge(local::router())
        .merge(uploads::router())
        .merge(packages::router())
}

#[cfg(test)]
mod tests {
    use axum::response::IntoResponse;
    use muster_agent::host::NoSight;

    use super::*;

    #[test]
    fn each_kind_of_refusal_has_its_status() {
        let status = |kind| {
            let refused = Refused { kind, message: "why".to_owned() };
            ApiError::from(FilesProblem::Refused(refused)).into_response().status().as_u16()
        };
        for (kind, expected) in [
            (ErrorKind::Invalid, 400),
            (ErrorKind::NotFound, 404),
            (ErrorKind::Conflict, 409),
            (ErrorKind::TooLarge, 413),
            (ErrorKind::Upstream, 502),
            (ErrorKind::Busy, 503),
            (ErrorKind::NoRoom, 507),
            (ErrorKind::Own, 500),
        ] {
            assert_eq!(status(kind), expected, "{kind:?}");
        }
        let silent = FilesProblem::Unreachable(NoSight { node: NodeId(3), why: "refused".to_owned() });
        assert_eq!(ApiError::from(silent).into_response().status().as_u16(), 502);
    }

    #[test]
    fn sizes_have_two_decimals() {
        for (bytes, shown) in [(0, 0.0), (1 << 20, 1.0), (1_572_864, 1.5), (10_486, 0.01), (16 << 30, 16384.0)] {
            assert!((mb(bytes) - shown).abs() < 1e-9, "{bytes}: {}", mb(bytes));
        }
    }
}
