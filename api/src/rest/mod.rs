//! The REST API of `:8000`, put together. One module for each resource, thin: validate, propose or read, answer.

mod admin;
mod api_keys;
mod audit;
mod cluster;
mod configs;
mod credentials;
mod deployments;
mod files;
mod health;
mod machines;
mod models;
mod nodes;
mod settings;

use axum::Router;
use axum::middleware;
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use bytes::Bytes;
use tower::Layer;
use tower_http::catch_panic::CatchPanicLayer;
use tower_http::normalize_path::{NormalizePath, NormalizePathLayer};
use utoipa::openapi::OpenApi as Document;
use utoipa::openapi::security::{ApiKey, ApiKeyValue, HttpAuthScheme, HttpBuilder, SecurityScheme};
use utoipa::{IntoParams, Modify, OpenApi};
use utoipa_axum::router::OpenApiRouter;

use crate::auth::{guard, guard_pages, guard_sockets};
use crate::context::with_context;
use crate::docs;
use crate::error::ApiError;
use crate::events;
use crate::request::{no_route, panicked};
use crate::state::ApiState;

/// The part of a list.
#[derive(Debug, IntoParams)]
#[into_params(parameter_in = Query)]
#[expect(dead_code, reason = "the description of the parameters")]
struct ListParams {
    /// At most so many items, 1 to 1000.
    limit: Option<u64>,
    /// Go on after this place, as the header `Link` of the page before named it.
    after: Option<u64>,
}

/// The part of a list in the order of its names.
#[derive(Debug, IntoParams)]
#[into_params(parameter_in = Query)]
#[expect(dead_code, reason = "the description of the parameters")]
struct NamedListParams {
    /// At most so many items, 1 to 1000.
    limit: Option<u64>,
    /// Go on after this name, as the header `Link` of the page before named it.
    after: Option<String>,
}

/// How new the answer must be.
#[derive(Debug, IntoParams)]
#[into_params(parameter_in = Query)]
#[expect(dead_code, reason = "the description of the parameters")]
struct ReadParams {
    /// `linearizable` (default): everything acknowledged before is in it. `local`: what this node has, at once, also without
    /// a quorum; the headers say how old that may be.
    consistency: Option<String>,
}

/// How a change is made.
#[derive(Debug, IntoParams)]
#[into_params(parameter_in = Query)]
#[expect(dead_code, reason = "the description of the parameters")]
struct ChangeParams {
    /// `true`: checks the change, answers with what would be, and changes nothing.
    #[param(rename = "dryRun")]
    dry_run: Option<bool>,
}

/// What guards a write.
#[derive(Debug, IntoParams)]
#[into_params(parameter_in = Header)]
#[expect(dead_code, reason = "the description of the parameters")]
struct WriteParams {
    /// A repetition with the same key is done once and gets the first answer.
    #[param(rename = "Idempotency-Key")]
    idempotency_key: Option<String>,
    /// Only if it is still at one of these versions (`ETag`).
    #[param(rename = "If-Match")]
    if_match: Option<String>,
}

#[derive(OpenApi)]
#[openapi(
    info(title = "Muster", description = "A fleet of GPU machines that acts as one. Every node serves this API alike."),
    modifiers(&Security),
    security(("bearer" = []), ("key" = [])),
    servers((url = "/"))
)]
struct Description;

struct Security;

impl Modify for Security {
    fn modify(&self, document: &mut Document) {
        let components = document.components.get_or_insert_default();
        let bearer = HttpBuilder::new().scheme(HttpAuthScheme::Bearer).build();
        components.add_security_scheme("bearer", SecurityScheme::Http(bearer));
        let key = ApiKey::Header(ApiKeyValue::new("x-api-key"));
        components.add_security_scheme("key", SecurityScheme::ApiKey(key));
    }
}

fn described(state: &ApiState) -> (Router<ApiState>, Document) {
    let resources = OpenApiRouter::new()
        .merge(models::router())
        .merge(nodes::router())
        .merge(files::router())
        .merge(machines::router())
        .merge(settings::router())
        .merge(cluster::router())
        .merge(credentials::router())
        .merge(api_keys::router())
        .merge(configs::router())
        .merge(deployments::router())
        .merge(audit::router())
        .merge(admin::router())
        .fallback(no_route);
    let resources = with_wrong_method(resources).layer(middleware::from_fn_with_state(state.clone(), guard));
    let pages = with_wrong_method(health::guarded()).layer(middleware::from_fn_with_state(state.clone(), guard_pages));
    let sockets = with_wrong_method(events::router());
    let sockets = sockets.layer(middleware::from_fn_with_state(state.clone(), guard_sockets));
    let (routes, mut document) = OpenApiRouter::with_openapi(Description::openapi())
        .merge(health::open())
        .merge(pages)
        .merge(sockets)
        .nest("/api", resources)
        .split_for_parts();
    // The router's mark of a parameter that may hold slashes is not one of OpenAPI.
    let paths = std::mem::take(&mut document.paths.paths);
    document.paths.paths = paths.into_iter().map(|(path, item)| (path.replace("{*", "{"), item)).collect();
    (routes, document)
}

/// Answers wrong methods. It has to come before the guard: an answer that is added after a layer is outside of it.
fn with_wrong_method(router: OpenApiRouter<ApiState>) -> OpenApiRouter<ApiState> {
    let (routes, document) = router.split_for_parts();
    let mut router = OpenApiRouter::from(routes.method_not_allowed_fallback(wrong_method));
    *router.get_openapi_mut() = document;
    router
}

async fn wrong_method() -> Response {
    ApiError::MethodNotAllowed.into_response()
}

/// The description of the API: OpenAPI, in JSON. It is kept in `api/openapi.json`, so that a change shows.
///
/// # Errors
/// When it has no JSON form.
pub fn openapi() -> Result<String, serde_json::Error> {
    let (_, phase) = tokio::sync::watch::channel(crate::state::Phase::Unconfigured);
    let (_, document) = described(&ApiState::new(phase, crate::state::ApiOptions::default()));
    document.to_pretty_json()
}

/// The whole API as a service: routes work with and without a trailing slash.
#[must_use]
pub fn service(state: ApiState) -> NormalizePath<Router> {
    let (routes, document) = described(&state);
    let document = Bytes::from(document.to_json().unwrap_or_default());
    let pages = docs::router(document).method_not_allowed_fallback(wrong_method);
    let pages = pages.layer(middleware::from_fn_with_state(state.clone(), guard_pages));
    let router = routes
        .merge(pages)
        .route("/api/health", get(|| async { axum::Json(serde_json::json!({ "status": "ok" })) }))
        .fallback(no_route)
        .method_not_allowed_fallback(wrong_method)
        .layer(CatchPanicLayer::custom(panicked))
        .layer(middleware::from_fn_with_state(state.clone(), with_context))
        .with_state(state);
    NormalizePathLayer::trim_trailing_slash().layer(router)
}

#[cfg(test)]
mod tests {
    use axum::body::Body;
    use http::{Request, StatusCode};
    use http_body_util::BodyExt;
    use serde_json::Value;
    use tower::ServiceExt;

    use super::{openapi, service};
    use crate::state::{ApiOptions, ApiState, AuthMode, Phase};

    async fn answer(phase: Phase, auth: AuthMode, method: &str, path: &str) -> (StatusCode, Value) {
        let (_sender, phase) = tokio::sync::watch::channel(phase);
        let service = service(ApiState::new(phase, ApiOptions { auth, ..ApiOptions::default() }));
        let request = Request::builder().method(method).uri(path).body(Body::empty()).expect("a request");
        let response = service.oneshot(request).await.expect("an answer");
        let status = response.status();
        let body = response.into_body().collect().await.expect("a body").to_bytes();
        (status, serde_json::from_slice(&body).expect("an object"))
    }

    #[tokio::test]
    async fn strangers_do_not_learn_what_there_is() {
        for (method, path) in [
            ("GET", "/api/models"),
            ("BREW", "/api/models"),
            ("DELETE", "/api/cluster"),
            ("GET", "/api/nothing"),
            ("POST", "/api/docs"),
            ("POST", "/metrics"),
        ] {
            let (status, body) = answer(Phase::Starting, AuthMode::Required, method, path).await;
            assert_eq!((status, body["code"].as_str()), (StatusCode::UNAUTHORIZED, Some("UNAUTHORIZED")), "{path}");
        }
        let (status, body) = answer(Phase::Starting, AuthMode::None, "DELETE", "/api/cluster").await;
        assert_eq!((status, body["code"].as_str()), (StatusCode::METHOD_NOT_ALLOWED, Some("METHOD_NOT_ALLOWED")));
        let (status, body) = answer(Phase::Starting, AuthMode::None, "POST", "/health").await;
        assert_eq!((status, body["code"].as_str()), (StatusCode::METHOD_NOT_ALLOWED, Some("METHOD_NOT_ALLOWED")));
    }

    #[tokio::test]
    async fn why_it_has_stopped_is_not_for_strangers() {
        let stopped = Phase::Stopped("/var/lib/muster/raft is damaged".to_owned());
        let (status, body) = answer(stopped, AuthMode::Required, "GET", "/ready").await;
        assert_eq!((status, body["detail"].as_str()), (StatusCode::SERVICE_UNAVAILABLE, Some("it has stopped")));
    }

    #[tokio::test]
    async fn a_path_that_is_no_text_is_an_error_like_any_other() {
        for path in ["/api/models/%FF", "/api/nodes/%C3%28", "/api/credentials/%80"] {
            let (status, body) = answer(Phase::Starting, AuthMode::None, "GET", path).await;
            assert_eq!((status, body["code"].as_str()), (StatusCode::BAD_REQUEST, Some("BAD_REQUEST")), "{path}");
        }
    }

    /// The description lies in the repository, so that a change of the API shows in a change of that file.
    #[test]
    fn the_description_in_the_repository_is_the_one_that_is_served() {
        let path = concat!(env!("CARGO_MANIFEST_DIR"), "/openapi.json");
        let served = format!("{}\n", openapi().expect("a description"));
        if std::env::var_os("MUSTER_WRITE_OPENAPI").is_some() {
            std::fs::write(path, &served).expect("writes");
        }
        let kept = std::fs::read_to_string(path).unwrap_or_default();
        assert!(
            kept == served,
            "api/openapi.json is out of date; MUSTER_WRITE_OPENAPI=1 cargo nextest run -p muster-api writes it"
        );
    }
}
