//! What is on the machine of a node, whichever node is asked (seed 004): `/api/nodes/{node_id}/...`.

mod containers;
mod images;

use muster_agent::host::{AskError, Refused};
use muster_cluster::ids::NodeId;
use muster_cluster::state::View;
use utoipa_axum::router::OpenApiRouter;

use crate::error::ApiError;
use crate::request::number;
use crate::state::ApiState;

/// The node that a path names, if there is one.
fn node(view: &View, id: &str) -> Result<NodeId, ApiError> {
    let id = number("node_id", id).map(NodeId)?;
    view.node(id)?.ok_or_else(|| ApiError::NotFound(format!("there is no node {id}")))?;
    Ok(id)
}

impl From<AskError> for ApiError {
    fn from(error: AskError) -> Self {
        let text = error.to_string();
        match error {
            AskError::Silent(_) => Self::Unreachable(text),
            AskError::Refused { refused, .. } => match refused {
                Refused::NoRuntime(_) => Self::NoRuntime(text),
                Refused::NotFound(_) => Self::NotFound(text),
                Refused::InUse(_) => Self::Conflict(text),
                Refused::Failed(_) => Self::Internal(text),
            },
        }
    }
}

/// Bytes in MiB, to a tenth.
fn mebibytes(bytes: u64) -> f64 {
    (bytes as f64 / f64::from(1 << 20) * 10.0).round() / 10.0
}

/// The routes.
pub(super) fn router() -> OpenApiRouter<ApiState> {
    OpenApiRouter::new().merge(containers::router()).merge(images::router())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_are_told_to_a_tenth_of_a_mebibyte() {
        assert_eq!([0, 1 << 20, 1_600_000].map(mebibytes), [0.0, 1.0, 1.5]);
    }
}
