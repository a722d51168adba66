//! `/api/audit`: who changed what. For administrators.

use axum::Json;
use axum::response::Response;
use muster_cluster::rows::AuditEntry;
use serde::Serialize;
use utoipa::ToSchema;
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

use crate::auth::{Principal, Role};
use crate::error::{ApiError, ErrorBody};
use crate::request::{Page, Paged, Read, time};
use crate::state::ApiState;

/// One change.
#[derive(Debug, Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
struct AuditRead {
    /// The log index of the change.
    index: u64,
    time: String,
    /// Who: a credential, a node, or `local` for the node's own socket.
    principal: String,
    /// From where.
    source: String,
    request_id: String,
    #[schema(example = "model.create")]
    action: String,
    /// What it was done to.
    object: String,
}

#[derive(Debug, Serialize, ToSchema)]
struct AuditList {
    entries: Vec<AuditRead>,
}

fn read_entry((index, entry): (u64, AuditEntry)) -> AuditRead {
    let AuditEntry { time_ms, principal, source, request_id, action, object } = entry;
    AuditRead { index, time: time(time_ms), principal, source, request_id, action, object }
}

/// The newest changes first. The last 10,000 or seven days are kept.
#[utoipa::path(get, path = "/audit", tag = "cluster", params(super::ListParams, super::ReadParams),
    responses((status = 200, body = AuditList), (status = 401, body = ErrorBody), (status = 403, body = ErrorBody)))]
async fn list(who: Principal, read: Read, page: Page) -> Result<Response, ApiError> {
    who.must_be(Role::Admin)?;
    let before = page.after().unwrap_or(u64::MAX);
    let mut entries: Vec<_> = read.view.audit(0).collect::<Result<_, _>>()?;
    entries.reverse();
    let rest = entries.into_iter().filter(|(index, _)| *index < before);
    let (entries, link) = page.of(rest.map(|entry| (entry.0, read_entry(entry)))).into_parts();
    Ok(Paged::<AuditRead>::answer(link, read.answer(Json(AuditList { entries }))))
}

/// The routes.
pub(super) fn router() -> OpenApiRouter<ApiState> {
    OpenApiRouter::new().routes(routes!(list))
}
