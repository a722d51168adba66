//! Who is asking, and what they may do (DECISIONS, "Who may do what").

mod browser;

use axum::extract::{Request, State};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use data_encoding::BASE64;
use http::{HeaderMap, Method, header};
use muster_cluster::ids::CredentialId;
use muster_cluster::rows::{Credential, credential_fields::Kind};
use muster_cluster::state::{Published, has_expired, key_hash};

use crate::error::ApiError;
use crate::request::original_uri;
use crate::server::Peer;
use crate::state::{ApiState, AuthMode, Member};

/// What a console credential may do. Each includes those before it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Role {
    /// Reads.
    Viewer,
    /// Deployments and nodes.
    Operator,
    /// Everything.
    Admin,
}

impl Role {
    /// The name in requests and answers.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Viewer => "viewer",
            Self::Operator => "operator",
            Self::Admin => "admin",
        }
    }

    fn of(credential: &Credential) -> Option<Self> {
        use muster_cluster::rows::Role as Stored;
        match credential.fields.as_ref()?.kind.as_ref()? {
            Kind::Console(console) => match console.role() {
                Stored::Admin => Some(Self::Admin),
                Stored::Operator => Some(Self::Operator),
                Stored::Viewer => Some(Self::Viewer),
                Stored::Unspecified => None,
            },
            Kind::Gateway(_) | Kind::Temporary(_) | Kind::Join(_) => None,
        }
    }
}

/// Who is asking.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Principal {
    /// The name in the audit trail.
    pub name: String,
    /// What they may do.
    pub role: Role,
    /// Where they ask from.
    pub source: String,
}

impl Principal {
    /// Lets them pass, or says that they may not.
    ///
    /// # Errors
    /// [`ApiError::Forbidden`] with what is missing.
    pub fn must_be(&self, role: Role) -> Result<(), ApiError> {
        if self.role >= role {
            return Ok(());
        }
        Err(ApiError::Forbidden(match role {
            Role::Admin => "it needs the role admin",
            Role::Operator => "it needs the role operator or admin",
            Role::Viewer => "it needs a role of the console",
        }))
    }
}

fn source(peer: Option<&Peer>) -> String {
    match peer {
        Some(Peer::Tcp(address)) => address.ip().to_string(),
        Some(Peer::Local { .. }) => "local socket".to_owned(),
        Some(Peer::Node(node)) => format!("node {node}"),
        None => String::new(),
    }
}

fn header<'a>(headers: &'a HeaderMap, name: &str) -> Option<&'a str> {
    headers.get(name)?.to_str().ok()
}

/// The key that the request carries: `Authorization: Bearer` or `x-api-key`.
fn key(headers: &HeaderMap) -> Option<&str> {
    let bearer = header(headers, header::AUTHORIZATION.as_str())
        .and_then(|value| value.split_once(' '))
        .filter(|(scheme, _)| scheme.eq_ignore_ascii_case("bearer"))
        .map(|(_, key)| key.trim());
    bearer.or_else(|| header(headers, "x-api-key").map(str::trim)).filter(|key| !key.is_empty())
}

/// The password of `Authorization: Basic`, which a browser asks its user for.
fn password(headers: &HeaderMap) -> Option<String> {
    let value = header(headers, header::AUTHORIZATION.as_str())?;
    let (scheme, text) = value.split_once(' ')?;
    let decoded = BASE64.decode(text.trim().as_bytes()).ok().filter(|_| scheme.eq_ignore_ascii_case("basic"))?;
    let text = String::from_utf8(decoded).ok()?;
    text.split_once(':').map(|(_, password)| password.to_owned())
}

/// Finds out who is asking.
fn principal(state: &ApiState, request: &Request, basic: bool) -> Result<Principal, ApiError> {
    admit(state, request, basic).map(|(who, _)| who)
}

/// Finds out who is asking, and with which credential if it takes one.
fn admit(state: &ApiState, request: &Request, basic: bool) -> Result<(Principal, Option<CredentialId>), ApiError> {
    let peer = request.extensions().get::<Peer>();
    let source = source(peer);
    // The socket's file lets only root and the service's own user in; the kernel says who it really is.
    if let Some(Peer::Local { uid: Some(uid) }) = peer
        && (*uid == 0 || state.options.own_uid == Some(*uid))
    {
        return Ok((Principal { name: "local".to_owned(), role: Role::Admin, source }, None));
    }
    let password = if basic { password(request.headers()) } else { None };
    let Some(key) = key(request.headers()).or(password.as_deref()) else {
        return match state.options.auth {
            AuthMode::None => {
                browser::check(request, &state.options.hosts)?;
                Ok((Principal { name: "anonymous".to_owned(), role: Role::Admin, source }, None))
            }
            AuthMode::Required => Err(ApiError::Unauthorized("send it as Authorization: Bearer, or as x-api-key")),
        };
    };
    let (id, credential) = credential(&state.member()?, key)?;
    let role = Role::of(&credential).ok_or(ApiError::Forbidden("this kind of credential is not for the console"))?;
    Ok((Principal { name: format!("credential:{id}"), role, source }, Some(id)))
}

/// The credential of a key that is valid now. Found by the key's SHA-256, so nothing of the key can be told from how long it
/// takes.
fn credential(member: &Member, key: &str) -> Result<(CredentialId, Credential), ApiError> {
    const UNKNOWN: ApiError = ApiError::Unauthorized("this key is unknown, expired or revoked");
    let view = member.consensus.local();
    let (id, credential) = view.credential_by_hash(&key_hash(key))?.ok_or(UNKNOWN)?;
    let now = member.consensus.published().time()?;
    if has_expired(&credential, now) { Err(UNKNOWN) } else { Ok((id, credential)) }
}

/// What operators may change; everything else is for administrators.
const FOR_OPERATORS: [&str; 3] = ["/api/nodes", "/api/deployments", "/api/configs"];

fn needed_for(request: &Request) -> Role {
    needed(request.method(), original_uri(request.extensions(), request.uri()).path())
}

fn needed(method: &Method, path: &str) -> Role {
    let below = |prefix: &&str| path.strip_prefix(*prefix).is_some_and(|rest| rest.is_empty() || rest.starts_with('/'));
    match *method {
        Method::GET | Method::HEAD | Method::OPTIONS => Role::Viewer,
        _ if FOR_OPERATORS.iter().any(below) => Role::Operator,
        _ => Role::Admin,
    }
}

/// Lets only those in who may read, and only those write who may write there.
pub(crate) async fn guard(State(state): State<ApiState>, mut request: Request, next: Next) -> Response {
    let needed = needed_for(&request);
    match principal(&state, &request, false).and_then(|who| who.must_be(needed).map(|()| who)) {
        Ok(who) => {
            request.extensions_mut().insert(who);
            next.run(request).await
        }
        Err(error) => error.into_response(),
    }
}

/// Lets only those in who may read; a browser may ask its user for the key. For pages that change nothing: a password that a
/// browser remembers would otherwise be sent along with what other sites make it ask for.
pub(crate) async fn guard_pages(State(state): State<ApiState>, mut request: Request, next: Next) -> Response {
    match principal(&state, &request, true) {
        Ok(who) => {
            request.extensions_mut().insert(who);
            next.run(request).await
        }
        Err(error @ ApiError::Unauthorized(_)) => {
            let mut response = error.into_response();
            response.extensions_mut().insert(AskForPassword);
            response
        }
        Err(error) => error.into_response(),
    }
}

/// Who listens on a socket, for as long as it is open.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Listener(Option<CredentialId>);

impl Listener {
    /// Somebody who needs no credential.
    #[cfg(test)]
    pub fn anybody() -> Self {
        Self(None)
    }

    /// Whether the credential that has let the listener in would still do.
    pub fn is_welcome(self, published: &Published) -> bool {
        let Some(id) = self.0 else { return true };
        let credential = published.with(|view| view.credential(id)).ok().flatten();
        let valid =
            |now| credential.is_some_and(|stored| Role::of(&stored.row).is_some() && !has_expired(&stored.row, now));
        published.time().is_ok_and(valid)
    }
}

/// Lets only those open a socket who may read. A page of another origin may not, whatever its browser sends along: nothing else
/// keeps it from listening.
pub(crate) async fn guard_sockets(State(state): State<ApiState>, mut request: Request, next: Next) -> Response {
    match admit(&state, &request, true).and_then(|admitted| browser::check_origin(&request).map(|()| admitted)) {
        Ok((_, credential)) => {
            request.extensions_mut().insert(Listener(credential));
            next.run(request).await
        }
        Err(error) => error.into_response(),
    }
}

/// Marks a refusal that a browser shall answer by asking its user.
#[derive(Clone, Copy, Debug)]
pub(crate) struct AskForPassword;

#[cfg(test)]
mod tests {
    use axum::Router;
    use axum::body::Body;
    use axum::middleware;
    use http::HeaderValue;
    use http_body_util::BodyExt;
    use tower::ServiceExt;

    use super::*;
    use crate::request::no_route;

    fn headers(name: &'static str, value: &str) -> HeaderMap {
        HeaderMap::from_iter([(http::HeaderName::from_static(name), HeaderValue::from_str(value).expect("a value"))])
    }

    #[test]
    fn a_key_comes_in_either_header() {
        assert_eq!(key(&headers("authorization", "Bearer abc")), Some("abc"));
        assert_eq!(key(&headers("authorization", "bearer  abc ")), Some("abc"));
        assert_eq!(key(&headers("x-api-key", "abc")), Some("abc"));
        for (name, value) in [("authorization", "Basic YTpi"), ("authorization", "Bearer "), ("x-api-key", " ")] {
            assert_eq!(key(&headers(name, value)), None, "{name}: {value}");
        }
        assert_eq!(password(&headers("authorization", "Basic YTpi")), Some("b".to_owned()));
        assert_eq!(password(&headers("authorization", "Basic !")), None);
    }

    #[test]
    fn what_is_not_named_is_for_administrators() {
        assert_eq!(needed(&Method::GET, "/api/models"), Role::Viewer);
        assert_eq!(needed(&Method::POST, "/api/nodes"), Role::Operator);
        assert_eq!(needed(&Method::DELETE, "/api/nodes/3"), Role::Operator);
        assert_eq!(needed(&Method::DELETE, "/api/configs/3"), Role::Operator);
        assert_eq!(needed(&Method::POST, "/api/nodesque"), Role::Admin);
        assert_eq!(needed(&Method::POST, "/api/api-keys"), Role::Admin);
        assert_eq!(needed(&Method::POST, "/api/models"), Role::Admin);
    }

    #[tokio::test]
    async fn the_whole_path_counts() {
        let told = |request: Request, _: Next| async move { needed_for(&request).name() };
        let inner: Router = Router::new().fallback(no_route).layer(middleware::from_fn(told));
        let router = Router::new().nest("/api", inner);
        for (path, role) in [("/api/nodes/3", "operator"), ("/api/models", "admin"), ("/api/api/nodes", "admin")] {
            let request = Request::post(path).body(Body::empty()).expect("a request");
            let response = router.clone().oneshot(request).await.expect("an answer");
            let body = response.into_body().collect().await.expect("a body").to_bytes();
            assert_eq!(body, role, "{path}");
        }
    }

    #[test]
    fn each_role_includes_those_before_it() {
        let who = |role| Principal { name: String::new(), role, source: String::new() };
        assert!(who(Role::Admin).must_be(Role::Operator).is_ok());
        assert!(who(Role::Operator).must_be(Role::Admin).is_err());
        assert!(who(Role::Viewer).must_be(Role::Operator).is_err());
        assert!(who(Role::Viewer).must_be(Role::Viewer).is_ok());
    }
}
