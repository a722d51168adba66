//! What handlers take from a request: the body, the condition, the key against repetition, the page, the consistency.

use std::convert::Infallible;
use std::fmt::Display;
use std::str::FromStr;
use std::time::Duration;

use axum::extract::{FromRequest, FromRequestParts, OriginalUri, Query, Request};
use axum::response::{IntoResponse, Response};
use bytes::Bytes;
use data_encoding::BASE64URL_NOPAD;
use http::request::Parts;
use http::{Extensions, HeaderMap, HeaderName, HeaderValue, Method, Uri, header};
use http_body_util::{BodyExt, LengthLimitError, Limited};
use muster_cluster::consensus::{Role as RaftRole, parse_retry_key};
use muster_cluster::rows::{
    Answer, ClientSeq, Once, Origin, Precondition, Sealed, answer::Outcome, command, once::Who,
};
use muster_cluster::sealing::SecretText;
use muster_cluster::state::{View, key_digest};
use prost::Message;
use serde::Deserialize;
use serde::de::DeserializeOwned;
use sha2::{Digest, Sha256};
use url::form_urlencoded;

use crate::auth::Principal;
use crate::context::Context;
use crate::error::ApiError;
use crate::server::BodyTimedOut;
use crate::state::{ApiState, Member};

/// The longest Idempotency-Key.
const KEY_LIMIT: usize = 255;

/// The address as the caller wrote it. Below a nested router the request's own has lost the prefix.
pub(crate) fn original_uri<'a>(extensions: &'a Extensions, uri: &'a Uri) -> &'a Uri {
    extensions.get::<OriginalUri>().map_or(uri, |original| &original.0)
}

/// The parameters in the path, like axum's, but what is wrong with them is an error like any other.
#[derive(Debug)]
pub struct Path<T>(pub T);

impl<T: DeserializeOwned + Send, S: Send + Sync> FromRequestParts<S> for Path<T> {
    type Rejection = ApiError;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, ApiError> {
        match axum::extract::Path::from_request_parts(parts, state).await {
            Ok(axum::extract::Path(parameters)) => Ok(Self(parameters)),
            Err(error) if error.status().is_client_error() => Err(ApiError::Senseless(error.body_text())),
            Err(error) => Err(ApiError::Internal(error.body_text())),
        }
    }
}

/// A body of at most the configured length.
#[derive(Debug)]
pub struct Body(pub Bytes);

impl FromRequest<ApiState> for Body {
    type Rejection = ApiError;

    async fn from_request(request: Request, state: &ApiState) -> Result<Self, ApiError> {
        let limit = state.options.body_limit;
        match Limited::new(request.into_body(), limit).collect().await {
            Ok(body) => Ok(Self(body.to_bytes())),
            Err(error) if error.is::<LengthLimitError>() => {
                Err(ApiError::TooLarge(format!("the limit is {limit} bytes")))
            }
            Err(error) if timed_out(error.as_ref()) => Err(ApiError::TooSlow),
            Err(error) => Err(ApiError::NotJson(format!("the body did not arrive: {error}"))),
        }
    }
}

/// Whether a body failed because its client stalled.
pub(crate) fn timed_out(error: &(dyn std::error::Error + 'static)) -> bool {
    std::iter::successors(Some(error), |error| error.source()).any(|error| error.is::<BodyTimedOut>())
}

/// What a write carries besides its body.
#[derive(Clone, Debug)]
pub struct Write {
    principal: Principal,
    context: Context,
    method: Method,
    path: String,
    key: Option<String>,
    /// What the caller has seen (`If-Match`).
    pub precondition: Option<Precondition>,
}

/// What a write led to.
#[derive(Clone, Debug)]
pub struct Done {
    /// The answer.
    pub outcome: Outcome,
    /// The sealed part of the first answer, if this was a repetition.
    pub first_secret: Option<Sealed>,
}

impl FromRequestParts<ApiState> for Write {
    type Rejection = ApiError;

    async fn from_request_parts(parts: &mut Parts, _: &ApiState) -> Result<Self, ApiError> {
        let missing = || ApiError::Internal("a request came past its guards".to_owned());
        Ok(Self {
            principal: parts.extensions.get::<Principal>().cloned().ok_or_else(missing)?,
            context: parts.extensions.get::<Context>().cloned().ok_or_else(missing)?,
            method: parts.method.clone(),
            path: original_uri(&parts.extensions, &parts.uri).path().to_owned(),
            key: idempotency_key(&parts.headers)?,
            precondition: if_match(&parts.headers)?,
        })
    }
}

fn idempotency_key(headers: &HeaderMap) -> Result<Option<String>, ApiError> {
    let Some(value) = headers.get("idempotency-key") else { return Ok(None) };
    let text = value.to_str().ok().filter(|text| !text.is_empty() && text.len() <= KEY_LIMIT);
    let wrong = || ApiError::Senseless(format!("an Idempotency-Key has 1 to {KEY_LIMIT} visible characters"));
    text.map(|text| Some(text.to_owned())).ok_or_else(wrong)
}

/// The versions that `If-Match` names. `*` means any, which is what a write without it means as well.
fn if_match(headers: &HeaderMap) -> Result<Option<Precondition>, ApiError> {
    let Some(value) = headers.get(header::IF_MATCH) else { return Ok(None) };
    let text = value.to_str().unwrap_or_default().trim();
    if text == "*" {
        return Ok(None);
    }
    // A tag that is none of ours can not match anything. 0 is the version of settings that nobody has changed yet.
    let tags = text.split(',').map(|tag| tag.trim().trim_matches('"').parse());
    let mod_index: Vec<u64> = tags.filter_map(Result::ok).collect();
    Ok(Some(Precondition { mod_index }))
}

impl Write {
    /// What makes this write recognisable if it comes again. `body` is what the caller sent.
    ///
    /// The identity of an earlier write that a 504 has named is sealed, so that nobody makes one up.
    fn once(&self, member: &Member, body: &[u8], answer: Option<Sealed>) -> Result<Once, ApiError> {
        let (method, path, principal) = (self.method.as_str(), self.path.as_str(), self.principal.name.as_str());
        let who = match self.key.as_deref() {
            None => None,
            Some(key) => Some(match key.strip_prefix(RETRY_PREFIX) {
                Some(sealed) => Who::Client(open_retry_key(member, sealed).ok_or_else(|| {
                    ApiError::Senseless(format!("an Idempotency-Key that begins with {RETRY_PREFIX} is one of ours"))
                })?),
                None => Who::Key(key_digest(principal, method, path, key).to_vec().into()),
            }),
        };
        let mut hasher = Sha256::new();
        for part in [principal.as_bytes(), method.as_bytes(), path.as_bytes(), body] {
            hasher.update((part.len() as u64).to_be_bytes());
            hasher.update(part);
        }
        let repeated = matches!(who, Some(Who::Client(_)));
        Ok(Once { who, body_hash: hasher.finalize().to_vec().into(), answer, repeated })
    }

    /// Proposes the command and returns what it led to. A refusal is an error.
    ///
    /// # Errors
    /// See [`ApiError`].
    pub async fn propose(&self, member: &Member, body: &[u8], command: command::Body) -> Result<Outcome, ApiError> {
        self.propose_with_secret(member, body, command, None).await.map(|done| done.outcome)
    }

    /// Like [`Self::propose`], for an answer with a secret part, which is sealed in the command. If the command was a
    /// repetition, the sealed part of the first answer is returned.
    ///
    /// # Errors
    /// See [`ApiError`].
    pub async fn propose_with_secret(
        &self,
        member: &Member,
        body: &[u8],
        command: command::Body,
        secret: Option<Sealed>,
    ) -> Result<Done, ApiError> {
        let once = self.once(member, body, secret)?;
        let origin = Origin {
            principal: self.principal.name.clone(),
            source: self.principal.source.clone(),
            request_id: self.context.request_id.clone(),
            once: Some(once.clone()),
        };
        let answer =
            member.consensus.propose(origin, command).await.map_err(|error| self.name_key(member, error.into()))?;
        Self::judge(&member.consensus.local(), &once, answer)
    }

    /// Proposes one of several commands that this write takes, but not the last. It may be done twice; whoever repeats the whole
    /// write names the key of the last.
    ///
    /// # Errors
    /// See [`ApiError`].
    pub async fn propose_part(&self, member: &Member, command: command::Body) -> Result<Outcome, ApiError> {
        let part = Self { key: None, ..self.clone() };
        part.propose(member, &[], command).await.map_err(|error| match error {
            ApiError::Unknown { .. } => ApiError::Unknown { retry_key: self.key.clone() },
            other => other,
        })
    }

    fn judge(view: &View, once: &Once, answer: Answer) -> Result<Done, ApiError> {
        match answer.outcome {
            Some(Outcome::Refusal(refusal)) => Err(refusal.into()),
            Some(outcome) => {
                let first_secret = if answer.replayed { view.secret_answer(once) } else { None };
                Ok(Done { outcome, first_secret })
            }
            None => Err(ApiError::Internal("an answer without an outcome".to_owned())),
        }
    }

    /// What this write led to, if it is the repetition of one that has been done: what it names may be gone by now. Only a
    /// caller that sends an Idempotency-Key can repeat itself.
    ///
    /// # Errors
    /// When the key belongs to another request, or the answer is no longer kept.
    pub async fn first_answer(&self, member: &Member, body: &[u8]) -> Result<Option<Done>, ApiError> {
        if self.key.is_none() {
            return Ok(None);
        }
        let view = member.consensus.linearizable().await?;
        let once = self.once(member, body, None)?;
        let answer = view.first_answer(&once)?;
        answer.map(|answer| Self::judge(&view, &once, answer)).transpose()
    }

    /// The caller's own key is the one to repeat the request with; without one, the sealed identity of the write.
    fn name_key(&self, member: &Member, error: ApiError) -> ApiError {
        match error {
            ApiError::Unknown { retry_key } => {
                let sealed = || seal_retry_key(member, &retry_key?);
                ApiError::Unknown { retry_key: self.key.clone().or_else(sealed) }
            }
            other => other,
        }
    }
}

const RETRY_PREFIX: &str = "muster-";
const RETRY_NAME: &str = "retry key";

fn seal_retry_key(member: &Member, key: &str) -> Option<String> {
    let sealed = member.replica.keyring.seal(RETRY_NAME, &SecretText::new(key.to_owned())).ok()?;
    Some(format!("{RETRY_PREFIX}{}", BASE64URL_NOPAD.encode(&sealed.encode_to_vec())))
}

fn open_retry_key(member: &Member, text: &str) -> Option<ClientSeq> {
    let sealed = Sealed::decode(BASE64URL_NOPAD.decode(text.as_bytes()).ok()?.as_slice()).ok()?;
    parse_retry_key(member.replica.keyring.open(RETRY_NAME, &sealed).ok()?.reveal())
}

/// The number that a path names something by.
///
/// # Errors
/// When it is none; the field of this name is wrong then.
pub fn number(field: &'static str, text: &str) -> Result<u64, ApiError> {
    text.parse().map_err(|_| ApiError::field(field, "must be a number"))
}

/// An answer that is not of the kind that the command has.
#[must_use]
pub fn unexpected() -> ApiError {
    ApiError::Internal("the answer is of another kind than the command".to_owned())
}

#[derive(Debug, Default, Deserialize)]
struct ReadQuery {
    consistency: Option<String>,
}

/// The state that a read is answered from: the newest, unless the caller is content with what this node has.
#[derive(Debug)]
pub struct Read {
    /// The state.
    pub view: View,
    age: Duration,
}

impl FromRequestParts<ApiState> for Read {
    type Rejection = ApiError;

    async fn from_request_parts(parts: &mut Parts, state: &ApiState) -> Result<Self, ApiError> {
        let query = Query::<ReadQuery>::try_from_uri(&parts.uri);
        let query = query.map_err(|error| ApiError::Senseless(error.body_text()))?;
        let member = state.member()?;
        match query.consistency.as_deref() {
            None | Some("linearizable") => {
                Ok(Self { view: member.consensus.linearizable().await?, age: Duration::ZERO })
            }
            Some("local") => Ok(Self { view: member.consensus.local(), age: age(&member) }),
            Some(_) => Err(ApiError::field("consistency", "must be one of linearizable, local")),
        }
    }
}

/// How old the state of this node may be: since a quorum last confirmed the leader that it follows.
fn age(member: &Member) -> Duration {
    let status = member.consensus.status();
    match status.role {
        RaftRole::Leader { .. } => status.quorum_acked.unwrap_or_default(),
        _ => member.consensus.published().age(),
    }
}

impl Read {
    /// Says in the answer how new the state is.
    pub fn answer(&self, response: impl IntoResponse) -> Response {
        let mut response = response.into_response();
        let headers = response.headers_mut();
        headers.insert(HeaderName::from_static("x-muster-applied-index"), HeaderValue::from(self.view.index()));
        let age = u64::try_from(self.age.as_millis()).unwrap_or(u64::MAX);
        headers.insert(HeaderName::from_static("x-muster-state-age-ms"), HeaderValue::from(age));
        response
    }
}

/// Adds the version of what is answered, for `If-Match`.
pub fn tagged(mod_index: u64, response: impl IntoResponse) -> Response {
    let mut response = response.into_response();
    if let Ok(tag) = HeaderValue::from_str(&format!("\"{mod_index}\"")) {
        response.headers_mut().insert(header::ETAG, tag);
    }
    response
}

/// The most items of a list that are answered at once.
const PAGE_LIMIT: usize = 1000;

#[derive(Debug, Default, Deserialize)]
struct PageQuery {
    limit: Option<String>,
    after: Option<String>,
}

/// The part of a list that a caller wants. A place in the list is a number, unless the list has another order.
#[derive(Clone, Debug)]
pub struct Page<P = u64> {
    limit: usize,
    after: Option<P>,
    address: Uri,
}

impl<P: FromStr, S: Sync> FromRequestParts<S> for Page<P> {
    type Rejection = ApiError;

    async fn from_request_parts(parts: &mut Parts, _: &S) -> Result<Self, ApiError> {
        let query = Query::<PageQuery>::try_from_uri(&parts.uri);
        let query = query.map_err(|error| ApiError::Senseless(error.body_text()))?;
        let limit = match query.limit.as_deref().map(str::parse) {
            None => PAGE_LIMIT,
            Some(Ok(limit @ 1..=PAGE_LIMIT)) => limit,
            Some(_) => return Err(ApiError::field("limit", format!("must be an integer from 1 to {PAGE_LIMIT}"))),
        };
        let after = match query.after.as_deref().map(str::parse) {
            None => None,
            Some(Ok(after)) => Some(after),
            Some(Err(_)) => return Err(ApiError::field("after", "must be what the header Link named")),
        };
        Ok(Self { limit, after, address: original_uri(&parts.extensions, &parts.uri).clone() })
    }
}

/// A page of a list.
#[derive(Debug)]
pub struct Paged<T> {
    /// Its items.
    pub items: Vec<T>,
    link: Option<HeaderValue>,
}

impl<P: Clone + Default + Display> Page<P> {
    /// Where the page begins.
    #[must_use]
    pub fn after(&self) -> Option<P> {
        self.after.clone()
    }

    /// Takes the page out of the items that come after [`Self::after`], each with its place in the list.
    pub fn of<T>(&self, items: impl IntoIterator<Item = (P, T)>) -> Paged<T> {
        let mut items = items.into_iter();
        let mut last = P::default();
        let page: Vec<T> = items
            .by_ref()
            .take(self.limit)
            .map(|(place, item)| {
                last = place;
                item
            })
            .collect();
        let link = items.next().and_then(|_| {
            let next = format!("<{}>; rel=\"next\"", self.next(&last));
            HeaderValue::from_str(&next).ok()
        });
        Paged { items: page, link }
    }

    /// The address of the page after that place: the caller's own, with whatever else was asked for in it.
    fn next(&self, last: &P) -> String {
        let given = form_urlencoded::parse(self.address.query().unwrap_or_default().as_bytes());
        let others = given.filter(|(name, _)| name != "limit" && name != "after");
        let mut query = form_urlencoded::Serializer::new(String::new());
        query.extend_pairs(others);
        query.append_pair("limit", &self.limit.to_string()).append_pair("after", &last.to_string());
        format!("{}?{}", self.address.path(), query.finish())
    }
}

impl<T> Paged<T> {
    /// Names the next page in the answer, if there is one.
    pub fn answer(link: Option<HeaderValue>, response: impl IntoResponse) -> Response {
        let mut response = response.into_response();
        if let Some(link) = link {
            response.headers_mut().insert(header::LINK, link);
        }
        response
    }

    /// The items and the link to the next page.
    #[must_use]
    pub fn into_parts(self) -> (Vec<T>, Option<HeaderValue>) {
        (self.items, self.link)
    }
}

/// The guard has let this caller in.
impl FromRequestParts<ApiState> for Principal {
    type Rejection = ApiError;

    async fn from_request_parts(parts: &mut Parts, _: &ApiState) -> Result<Self, ApiError> {
        let missing = || ApiError::Internal("a request came past its guards".to_owned());
        parts.extensions.get::<Self>().cloned().ok_or_else(missing)
    }
}

/// A moment in milliseconds since 1970, as RFC 3339 in UTC with milliseconds.
#[must_use]
pub fn time(ms: u64) -> String {
    let moment = i64::try_from(ms).ok().and_then(|ms| jiff::Timestamp::from_millisecond(ms).ok());
    moment.unwrap_or(jiff::Timestamp::MAX).strftime("%Y-%m-%dT%H:%M:%S%.3fZ").to_string()
}

/// Panics in a handler become an error like any other; the middleware writes the body.
pub(crate) fn panicked(_: Box<dyn std::any::Any + Send>) -> Response {
    ApiError::Internal("a handler panicked".to_owned()).into_response()
}

/// There is no such path.
pub(crate) async fn no_route() -> Result<Infallible, ApiError> {
    Err(ApiError::NotFound("there is no such path".to_owned()))
}

#[cfg(test)]
mod tests {
    use axum::Router;
    use axum::routing::get;
    use tower::ServiceExt;

    use super::*;

    #[test]
    fn moments_have_milliseconds() {
        assert_eq!(time(0), "1970-01-01T00:00:00.000Z");
        assert_eq!(time(1_766_275_200_007), "2025-12-21T00:00:00.007Z");
        assert!(time(u64::MAX).starts_with("9999-"));
    }

    #[test]
    fn conditions_name_versions() {
        let parse = |text: &str| {
            let headers = HeaderMap::from_iter([(header::IF_MATCH, HeaderValue::from_str(text).expect("a value"))]);
            if_match(&headers).expect("parses").map(|precondition| precondition.mod_index)
        };
        assert_eq!(parse("\"7\""), Some(vec![7]));
        assert_eq!(parse("\"7\", \"9\""), Some(vec![7, 9]));
        assert_eq!(parse("\"0\""), Some(vec![0]), "settings that were never changed");
        assert_eq!(parse("*"), None);
        assert_eq!(parse("W/\"abc\""), Some(vec![]), "what is none of ours matches nothing");
    }

    #[test]
    fn a_page_names_the_next() {
        let page = Page { limit: 2, after: None, address: Uri::from_static("/api/things") };
        let (items, link) = page.of([(5, 'a'), (4, 'b'), (3, 'c')]).into_parts();
        assert_eq!(items, ['a', 'b']);
        assert_eq!(link.expect("there is more"), "</api/things?limit=2&after=4>; rel=\"next\"");
        let (items, link) = page.of([(5, 'a'), (4, 'b')]).into_parts();
        assert_eq!((items.len(), link), (2, None));
    }

    #[test]
    fn the_next_page_is_asked_for_like_this_one() {
        let address = Uri::from_static("/api/things?after=9&consistency=local&limit=1&x=a%26b");
        let page = Page { limit: 1, after: Some(9), address };
        assert_eq!(page.next(&4), "/api/things?consistency=local&x=a%26b&limit=1&after=4");
    }

    #[test]
    fn a_place_may_be_a_name() {
        let address = Uri::from_static("/api/things");
        let page = Page { limit: 1, after: Some("a".to_owned()), address };
        let (_, link) = page.of([("b & \u{e9}".to_owned(), 1), ("c".to_owned(), 2)]).into_parts();
        assert_eq!(link.expect("there is more"), "</api/things?limit=1&after=b+%26+%C3%A9>; rel=\"next\"");
    }

    #[tokio::test]
    async fn the_address_is_the_whole_one() {
        let things = Router::new().route("/things", get(|page: Page| async move { page.next(&4) }));
        let router: Router = Router::new().nest("/api", things);
        let request = Request::builder().uri("/api/things?limit=7").body(axum::body::Body::empty()).expect("a request");
        let response = router.oneshot(request).await.expect("an answer");
        let body = response.into_body().collect().await.expect("a body").to_bytes();
        assert_eq!(body, "/api/things?limit=7&after=4");
    }
}
