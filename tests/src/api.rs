//! A client of the API for tests: it keeps the whole answer, and says all of it when something else was expected.

use std::fmt;
use std::path::Path;
use std::time::Duration;

use reqwest::Method;
use reqwest::blocking::{Client, RequestBuilder};
use reqwest::header::HeaderMap;
use serde_json::Value;

/// How long an answer may take. A write may take ten seconds until its outcome is unknown.
const LIMIT: Duration = Duration::from_secs(30);

/// Talks to a node as one caller.
#[derive(Clone, Debug)]
pub struct Api {
    http: Client,
    endpoint: String,
    key: Option<String>,
}

/// What came back.
#[derive(Clone, Debug)]
pub struct Answer {
    /// The status.
    pub status: u16,
    /// The headers.
    pub headers: HeaderMap,
    /// The body as it came.
    pub text: String,
    /// The body as JSON; null if it is none.
    pub body: Value,
}

/// Nothing came back.
#[derive(Clone, Debug)]
pub struct NoAnswer {
    /// Whether the request may have been sent.
    pub sent: bool,
    /// Why.
    pub why: String,
}

impl fmt::Display for NoAnswer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.why)
    }
}

impl Api {
    /// A caller without a key.
    ///
    /// # Panics
    /// When no client can be made.
    #[must_use]
    pub fn new(endpoint: &str) -> Self {
        // A pooled connection could belong to a process that has been killed since.
        let builder = Client::builder().timeout(LIMIT).no_proxy().pool_max_idle_per_host(0);
        let http = builder.redirect(reqwest::redirect::Policy::none()).build().expect("a client");
        Self { http, endpoint: endpoint.to_owned(), key: None }
    }

    /// A caller on a node's socket.
    ///
    /// # Panics
    /// When no client can be made.
    #[must_use]
    pub fn on_socket(socket: &Path) -> Self {
        let builder = Client::builder().timeout(LIMIT).no_proxy().pool_max_idle_per_host(0);
        let http = builder.unix_socket(socket.to_owned()).build().expect("a client");
        Self { http, endpoint: "http://localhost".to_owned(), key: None }
    }

    /// The same with a key.
    #[must_use]
    pub fn with_key(&self, key: &str) -> Self {
        Self { key: Some(key.to_owned()), ..self.clone() }
    }

    /// The same caller, asking elsewhere.
    #[must_use]
    pub fn at(&self, endpoint: &str) -> Self {
        Self { endpoint: endpoint.to_owned(), ..self.clone() }
    }

    /// Where it asks.
    #[must_use]
    pub fn endpoint(&self) -> &str {
        &self.endpoint
    }

    /// A request, to be changed and then given to [`send`].
    pub fn request(&self, method: &str, path: &str) -> RequestBuilder {
        let method = Method::from_bytes(method.as_bytes()).expect("a method");
        let request = self.http.request(method, format!("{}{path}", self.endpoint));
        match &self.key {
            Some(key) => request.bearer_auth(key),
            None => request,
        }
    }

    /// Reads.
    #[must_use]
    pub fn get(&self, path: &str) -> Answer {
        send(self.request("GET", path))
    }

    /// Makes.
    #[must_use]
    pub fn post(&self, path: &str, body: &Value) -> Answer {
        send(self.request("POST", path).json(body))
    }

    /// Changes.
    #[must_use]
    pub fn put(&self, path: &str, body: &Value) -> Answer {
        send(self.request("PUT", path).json(body))
    }

    /// Changes, by the other method.
    #[must_use]
    pub fn patch(&self, path: &str, body: &Value) -> Answer {
        send(self.request("PATCH", path).json(body))
    }

    /// Removes.
    #[must_use]
    pub fn delete(&self, path: &str) -> Answer {
        send(self.request("DELETE", path))
    }

    /// Makes, with a key against repetition.
    #[must_use]
    pub fn post_once(&self, path: &str, body: &Value, key: &str) -> Answer {
        send(self.request("POST", path).header("idempotency-key", key).json(body))
    }
}

/// Sends a request.
///
/// # Panics
/// When there is no answer.
#[must_use]
pub fn send(request: RequestBuilder) -> Answer {
    match try_send(request) {
        Ok(answer) => answer,
        Err(error) => panic!("no answer: {error}"),
    }
}

/// Sends a request to a node that may not be there any more.
///
/// # Errors
/// When there is no answer.
pub fn try_send(request: RequestBuilder) -> Result<Answer, NoAnswer> {
    let response = request.send().map_err(|error| NoAnswer { sent: !error.is_connect(), why: format!("{error:?}") })?;
    let (status, headers) = (response.status().as_u16(), response.headers().clone());
    let text = response.text().map_err(|error| NoAnswer { sent: true, why: format!("{error:?}") })?;
    let body = serde_json::from_str(&text).unwrap_or(Value::Null);
    Ok(Answer { status, headers, text, body })
}

impl fmt::Display for Answer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "{}", self.status)?;
        for (name, value) in &self.headers {
            writeln!(f, "{name}: {}", String::from_utf8_lossy(value.as_bytes()))?;
        }
        write!(f, "\n{}", self.text)
    }
}

impl Answer {
    /// A header; empty if there is none.
    #[must_use]
    pub fn header(&self, name: &str) -> &str {
        self.headers.get(name).and_then(|value| value.to_str().ok()).unwrap_or_default()
    }

    /// Checks the status.
    ///
    /// # Panics
    /// When it is another.
    #[must_use]
    #[track_caller]
    pub fn expect(self, status: u16) -> Self {
        assert_eq!(self.status, status, "{self}");
        self
    }

    /// Checks that it is an error of this kind, in the form that every error of `/api/*` has.
    ///
    /// # Panics
    /// When it is something else.
    #[track_caller]
    pub fn is_error(&self, status: u16, code: &str) -> &Self {
        assert_eq!((self.status, self.body["code"].as_str()), (status, Some(code)), "{self}");
        for field in ["error", "detail", "requestId"] {
            assert!(self.body[field].as_str().is_some_and(|text| !text.is_empty()), "{field} in {self}");
        }
        assert_eq!(self.body["requestId"].as_str(), Some(self.header("x-request-id")), "{self}");
        assert_eq!(self.header("content-type"), "application/json", "{self}");
        assert_eq!(self.header("retry-after").is_empty(), status != 503, "{self}");
        self
    }

    /// Checks that it is an error of this kind in the form that clients of OpenAI expect, which every error of the gateway has.
    ///
    /// # Panics
    /// When it is something else.
    #[track_caller]
    pub fn is_openai_error(&self, status: u16, code: &str) -> &Self {
        let error = &self.body["error"];
        assert_eq!((self.status, error["code"].as_str()), (status, Some(code)), "{self}");
        let fields = |value: &Value| value.as_object().map(|object| object.keys().cloned().collect::<Vec<_>>());
        assert_eq!(fields(&self.body), Some(vec!["error".to_owned()]), "{self}");
        assert_eq!(fields(error), Some(["code", "message", "param", "type"].map(ToOwned::to_owned).to_vec()), "{self}");
        for field in ["message", "type"] {
            assert!(error[field].as_str().is_some_and(|text| !text.is_empty()), "{field} in {self}");
        }
        assert!(error["param"].is_null() || error["param"].is_string(), "{self}");
        assert_eq!(self.header("content-type"), "application/json", "{self}");
        assert!(!self.header("x-request-id").is_empty(), "{self}");
        assert_eq!(self.header("retry-after").is_empty(), !matches!(status, 429 | 503), "{self}");
        self
    }

    /// The text of such an error.
    #[must_use]
    pub fn message(&self) -> &str {
        self.body["error"]["message"].as_str().unwrap_or_default()
    }

    /// Checks that it is a refusal that names exactly these fields.
    ///
    /// # Panics
    /// When it is something else.
    #[track_caller]
    pub fn names(&self, fields: &[&str]) -> &Self {
        self.is_error(422, "UNPROCESSABLE_ENTITY");
        let detail = self.body["detail"].as_str().unwrap_or_default();
        // A reason may have a semicolon of its own, but no colon behind it.
        let mut named: Vec<_> = detail.split("; ").filter_map(|part| Some(part.split_once(": ")?.0)).collect();
        named.sort_unstable();
        let mut expected = fields.to_vec();
        expected.sort_unstable();
        assert_eq!(named, expected, "{self}");
        self
    }
}
