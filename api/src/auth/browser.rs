//! Where nobody needs a credential, a browser inside the network must not be made a tool of pages from outside it.

use std::net::IpAddr;

use axum::extract::Request;
use http::uri::Authority;
use http::{HeaderMap, Method, header};
use url::Url;

use crate::error::ApiError;
use crate::request::original_uri;

const OTHER_ORIGIN: ApiError = ApiError::Forbidden("a page of another origin may not change anything");
const LISTENER: ApiError = ApiError::Forbidden("a page of another origin may not listen");
const OTHER_HOST: ApiError =
    ApiError::Forbidden("without a credential this node is asked by its address, localhost or its own name");

/// Lets a request without a credential pass, unless it looks like the work of a page from elsewhere: a name that leads here is
/// not ours (a page can change the address of its own name to ours), or a write comes from another origin.
///
/// # Errors
/// [`ApiError::Forbidden`] with what is wrong.
pub(super) fn check(request: &Request, names: &[String]) -> Result<(), ApiError> {
    let host = host(request);
    if host.as_ref().is_some_and(|host| !is_ours(host.host(), names)) {
        return Err(OTHER_HOST);
    }
    let reads = matches!(*request.method(), Method::GET | Method::HEAD | Method::OPTIONS);
    if reads || is_same_origin(request.headers(), host.as_ref()) { Ok(()) } else { Err(OTHER_ORIGIN) }
}

/// Lets a request pass that comes from no page, or from one of the host that it is for.
///
/// # Errors
/// [`ApiError::Forbidden`] with what is wrong.
pub(super) fn check_origin(request: &Request) -> Result<(), ApiError> {
    if is_same_origin(request.headers(), host(request).as_ref()) { Ok(()) } else { Err(LISTENER) }
}

/// Whom the request is for. Every browser says so; a host that can not be read is nobody's.
fn host(request: &Request) -> Option<Authority> {
    if let Some(authority) = original_uri(request.extensions(), request.uri()).authority() {
        return Some(authority.clone());
    }
    let value = request.headers().get(header::HOST)?;
    Some(Authority::try_from(value.as_bytes()).unwrap_or(Authority::from_static("invalid")))
}

fn is_ours(host: &str, names: &[String]) -> bool {
    if host.trim_matches(['[', ']']).parse::<IpAddr>().is_ok() {
        return true;
    }
    let host = host.strip_suffix('.').unwrap_or(host);
    host.eq_ignore_ascii_case("localhost") || names.iter().any(|name| name.eq_ignore_ascii_case(host))
}

/// Whether the request comes from no page, or from one of the host that it is for.
fn is_same_origin(headers: &HeaderMap, host: Option<&Authority>) -> bool {
    let Some(origin) = headers.get(header::ORIGIN) else { return true };
    let Some(origin) = origin.to_str().ok().and_then(|text| Url::parse(text).ok()) else { return false };
    let (Some(name), Some(port), Some(host)) = (origin.host_str(), origin.port_or_known_default(), host) else {
        return false;
    };
    // A Host without a port means the one of the scheme, of which only the origin tells.
    let default = if origin.scheme() == "https" { 443 } else { 80 };
    name.eq_ignore_ascii_case(host.host()) && port == host.port_u16().unwrap_or(default)
}

#[cfg(test)]
mod tests {
    use axum::body::Body;

    use super::*;

    fn allowed(method: Method, host: &str, origin: Option<&str>) -> bool {
        let mut request = Request::builder().method(method).uri("/api/models").header(header::HOST, host);
        if let Some(origin) = origin {
            request = request.header(header::ORIGIN, origin);
        }
        check(&request.body(Body::empty()).expect("a request"), &["gpu1.lab".to_owned()]).is_ok()
    }

    #[test]
    fn only_our_own_names_lead_here() {
        for host in ["127.0.0.1:8000", "[::1]:8000", "10.1.2.3", "localhost:8000", "LocalHost.", "GPU1.lab:8000"] {
            assert!(allowed(Method::GET, host, None), "{host}");
        }
        for host in ["evil.example", "evil.example:8000", "localhost.evil.example", "gpu1.lab.evil.example", "a b", ""]
        {
            assert!(!allowed(Method::GET, host, None), "{host}");
        }
        let request = Request::builder().uri("http://evil.example/api/models").body(Body::empty()).expect("a request");
        assert!(check(&request, &[]).is_err(), "the target names the host");
    }

    #[test]
    fn a_page_from_elsewhere_changes_nothing() {
        for (host, origin) in [
            ("127.0.0.1:8000", "http://127.0.0.1:8000"),
            ("[::1]:8000", "http://[::1]:8000"),
            ("localhost", "http://localhost"),
            ("localhost:443", "https://LOCALHOST"),
        ] {
            assert!(allowed(Method::POST, host, Some(origin)), "{host} {origin}");
        }
        for origin in ["http://evil.example", "http://127.0.0.1", "http://127.0.0.1:8001", "null", "", "file://"] {
            assert!(!allowed(Method::POST, "127.0.0.1:8000", Some(origin)), "{origin}");
            assert!(allowed(Method::GET, "127.0.0.1:8000", Some(origin)), "{origin}");
        }
        assert!(allowed(Method::POST, "127.0.0.1:8000", None), "no browser");
    }
}
