//! Which route there is, who may use it, and what answers it.

use std::sync::Arc;
use std::time::Instant;

use http::header::{ALLOW, AUTHORIZATION, HeaderName, SERVER};
use http::{HeaderMap, HeaderValue, Method, Request, StatusCode};
use hyper::body::Incoming;
use serde_json::json;

use super::body::{Arrived, Budget};
use super::{Answer, dev, json, whole, with_status};
use crate::engine::Engine;
use crate::metrics::expose;
use crate::openai::{self, ApiError};
use crate::settings::{Settings, VLLM_VERSION};

/// What the requests of all connections share.
#[derive(Clone, Debug)]
pub struct App {
    /// The engine behind it.
    pub engine: Arc<Engine>,
    bodies: Budget,
}

/// When a route is there.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum When {
    Always,
    Generating,
    Pooling,
    Dev,
}

/// What answers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Route {
    Health,
    Version,
    Load,
    Metrics,
    Models,
    Chat,
    Completions,
    Embeddings,
    Tokenize,
    Detokenize,
    Sleep,
    WakeUp,
    IsSleeping,
    ResetPrefixCache,
    Pause,
    Resume,
    IsPaused,
    ServerInfo,
}

type Row = (&'static str, &'static str, When, Route);

/// Paths, the methods that they take, and when they are there.
const ROUTES: &[Row] = &[
    ("/health", "GET", When::Always, Route::Health),
    ("/ping", "GET, POST", When::Always, Route::Health),
    ("/version", "GET", When::Always, Route::Version),
    ("/load", "GET", When::Always, Route::Load),
    ("/metrics", "GET", When::Always, Route::Metrics),
    ("/v1/models", "GET", When::Always, Route::Models),
    ("/v1/chat/completions", "POST", When::Generating, Route::Chat),
    ("/v1/completions", "POST", When::Generating, Route::Completions),
    ("/v1/embeddings", "POST", When::Pooling, Route::Embeddings),
    ("/tokenize", "POST", When::Always, Route::Tokenize),
    ("/detokenize", "POST", When::Always, Route::Detokenize),
    ("/sleep", "POST", When::Dev, Route::Sleep),
    ("/wake_up", "POST", When::Dev, Route::WakeUp),
    ("/is_sleeping", "GET", When::Dev, Route::IsSleeping),
    ("/reset_prefix_cache", "POST", When::Dev, Route::ResetPrefixCache),
    ("/pause", "POST", When::Dev, Route::Pause),
    ("/resume", "POST", When::Dev, Route::Resume),
    ("/is_paused", "GET", When::Dev, Route::IsPaused),
    ("/server_info", "GET", When::Dev, Route::ServerInfo),
];

/// The paths whose requests need a key.
const GUARDED: [&str; 4] = ["/v1", "/v2", "/inference", "/cohere"];

/// The methods by their names in metrics.
const METHODS: [&str; 7] = ["GET", "POST", "HEAD", "PUT", "DELETE", "PATCH", "OPTIONS"];

static REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");

fn row(path: &str, settings: &Settings) -> Option<&'static Row> {
    ROUTES.iter().find(|(known, _, when, _)| {
        let there = match when {
            When::Always => true,
            When::Generating => !settings.arguments.pooling,
            When::Pooling => settings.arguments.pooling,
            When::Dev => settings.dev_mode,
        };
        there && *known == path
    })
}

fn has_key(path: &str, method: &Method, headers: &HeaderMap, settings: &Settings) -> bool {
    let keys = &settings.arguments.api_key;
    if keys.is_empty() || method == Method::OPTIONS || !GUARDED.iter().any(|guarded| path.starts_with(guarded)) {
        return true;
    }
    let given = headers.get(AUTHORIZATION).and_then(|value| value.to_str().ok());
    let token =
        given.and_then(|given| given.split_once(' ')).filter(|(scheme, _)| scheme.eq_ignore_ascii_case("bearer"));
    token.is_some_and(|(_, token)| keys.iter().any(|key| key == token))
}

impl Route {
    /// The counters of HTTP requests leave out what is asked all the time.
    fn is_counted(self) -> bool {
        !matches!(self, Self::Health | Self::Metrics | Self::Version | Self::Load)
    }

    fn is_inference(self) -> bool {
        matches!(self, Self::Chat | Self::Completions | Self::Embeddings)
    }
}

impl App {
    /// The requests of one engine.
    #[must_use]
    pub fn new(engine: Arc<Engine>) -> Self {
        Self { engine, bodies: Budget::default() }
    }

    /// Answers a request, whatever it is.
    pub async fn answer(self, request: Request<Incoming>) -> Answer {
        let started = Instant::now();
        let settings = self.engine.settings();
        let found = row(request.uri().path(), settings);
        let method = METHODS.into_iter().find(|method| request.method() == method).unwrap_or("other");
        let given = request.headers().get(&REQUEST_ID).map(|id| String::from_utf8_lossy(id.as_bytes()).into_owned());
        let id = given.unwrap_or_else(|| self.engine.next_id());
        let mut answer = if !has_key(request.uri().path(), request.method(), request.headers(), settings) {
            with_status(StatusCode::UNAUTHORIZED, &json!({"error": "Unauthorized"}))
        } else {
            match found {
                None => dev::detail(StatusCode::NOT_FOUND, "Not Found"),
                Some((_, methods, ..)) if !methods.split(", ").any(|known| known == method) => {
                    let mut answer = dev::detail(StatusCode::METHOD_NOT_ALLOWED, "Method Not Allowed");
                    answer.headers_mut().insert(ALLOW, HeaderValue::from_static(methods));
                    answer
                }
                Some((_, _, _, route)) => {
                    let answer = self.call(*route, id.clone(), request).await;
                    answer.unwrap_or_else(|error| with_status(error.status, &error))
                }
            }
        };
        let headers = answer.headers_mut();
        headers.insert(SERVER, HeaderValue::from_static("muster-sim"));
        if settings.arguments.enable_request_id_headers
            && let Ok(value) = HeaderValue::from_bytes(id.as_bytes())
        {
            headers.insert(REQUEST_ID.clone(), value);
        }
        if found.is_none_or(|(.., route)| route.is_counted()) {
            let handler = found.map_or("none", |(path, ..)| path);
            self.engine.metrics().answered(handler, method, answer.status().as_u16(), started.elapsed());
        }
        answer
    }

    async fn call(&self, route: Route, id: String, request: Request<Incoming>) -> Result<Answer, ApiError> {
        let engine = Arc::clone(&self.engine);
        let settings = engine.settings();
        if let Some(status) = engine.failing().filter(|_| route.is_inference()) {
            return Err(ApiError::plain(status, "The simulator was told to answer this."));
        }
        let (parts, body) = request.into_parts();
        let query = parts.uri.query().unwrap_or_default();
        let arrived = async || Arrived::read(id, &parts.headers, body, &self.bodies).await;
        Ok(match route {
            Route::Health if engine.is_dead() => whole(StatusCode::SERVICE_UNAVAILABLE, "", ""),
            Route::Health => dev::nothing(),
            Route::Version => json(&json!({"version": VLLM_VERSION})),
            Route::Load => {
                let load = if settings.arguments.enable_server_load_tracking { engine.under_way() } else { 0 };
                json(&json!({"server_load": load}))
            }
            Route::Metrics => whole(StatusCode::OK, "text/plain; version=0.0.4; charset=utf-8", expose(&engine)),
            Route::Models => json(&openai::models(settings)),
            Route::Chat => openai::chat(Arc::clone(&engine), arrived().await?).await?,
            Route::Completions => openai::completions(Arc::clone(&engine), arrived().await?).await?,
            Route::Embeddings => openai::embeddings(Arc::clone(&engine), arrived().await?).await?,
            Route::Tokenize => openai::tokenize(Arc::clone(&engine), arrived().await?).await?,
            Route::Detokenize => openai::detokenize(Arc::clone(&engine), arrived().await?).await?,
            Route::Sleep => dev::sleep(Arc::clone(&engine), query).await?,
            Route::WakeUp => dev::wake_up(&engine, query),
            Route::IsSleeping => json(&json!({"is_sleeping": engine.sleep().is_some()})),
            Route::ResetPrefixCache => dev::reset_prefix_cache(),
            Route::Pause => dev::pause(Arc::clone(&engine), query).await?,
            Route::Resume => dev::resume(&engine),
            Route::IsPaused => json(&json!({"is_paused": engine.is_paused()})),
            Route::ServerInfo => dev::server_info(&engine),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::arguments;

    fn settings(line: &str, dev_mode: bool) -> Settings {
        Settings { arguments: arguments::parse(line.split_whitespace().map(Into::into)).unwrap(), dev_mode }
    }

    #[test]
    fn routes_come_and_go_with_the_settings() {
        let there = |path, line, dev| row(path, &settings(line, dev)).is_some();
        assert!(there("/v1/chat/completions", "", false) && !there("/v1/chat/completions", "--pooling", false));
        assert!(there("/v1/embeddings", "--pooling", false) && !there("/v1/embeddings", "", false));
        assert!(there("/sleep", "", true) && !there("/sleep", "", false));
        assert!(!there("/v1/models/x", "", true) && !there("/", "", true));
    }

    #[test]
    fn only_guarded_paths_need_one_of_the_keys() {
        let settings = settings("--api-key a b", false);
        let may = |path, value: &str| {
            let headers = [(AUTHORIZATION, HeaderValue::from_str(value).unwrap())].into_iter().collect();
            has_key(path, &Method::POST, &headers, &settings)
        };
        assert!(may("/v1/models", "Bearer a") && may("/v1/models", "bearer b"));
        assert!(!may("/v1/models", "Bearer c") && !may("/v1/models", "a") && !may("/v1x", ""));
        assert!(may("/metrics", "") && may("/tokenize", "Bearer c"));
        assert!(has_key("/v1/models", &Method::OPTIONS, &HeaderMap::new(), &settings));
    }
}
