//! `/v1`: requests to models, from the client's key to the provider's bytes.
//!
//! A request is handled by one thread from its first byte to its last. It looks at the key, the name of the model and nothing
//! else; what it passes on, it passes on as it came. It reads this node's copy of the state and writes nothing, so it needs no
//! quorum.

mod body;
mod deployments;
mod door;
mod error;
mod forward;
mod origin;
mod relay;
mod resolve;
mod rewrite;
mod scan;
mod tally;
mod target;
mod uses;

use std::convert::Infallible;
use std::error::Error;
use std::fmt;
use std::hash::{Hash, Hasher};
use std::panic::AssertUnwindSafe;
use std::pin::Pin;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use futures_util::FutureExt;
use http::{HeaderValue, Method, Request, Response, header};
use http_body_util::Either;
use hyper::body::Body;
use muster_agent::serving::Flight as Busy;
use muster_cluster::ids::{ModelId, PlacementEpoch, PlacementId};
use muster_cluster::planner::balance;
use muster_cluster::sealing::SecretText;
use percent_encoding::percent_decode_str;
use tower::util::Oneshot;
use tower::{Service, ServiceExt};

pub use body::GatewayBody;
use body::{Collected, Form, Held};
use deployments::Meant;
pub use door::AtDoor;
use error::GatewayError;
use forward::{Asked, Call};
use origin::CONNECT_LIMIT;
use resolve::{Aim, Resolver, Shared};
pub(crate) use tally::Tally;
use target::{Endpoint, INDEX, MODEL, PLACEMENT, ReplicaOf, Target, placement};

use crate::context::{REQUEST_ID, TRACEPARENT, is_plain};
use crate::server::{HttpService, Peer, RequestBody};
use crate::state::{ApiState, Replica};

type Lookup = dyn Fn(&str) -> Option<SecretText> + Send + Sync;

/// Where keys are found that models name as `env:NAME`.
#[derive(Clone)]
pub struct Environment(Arc<Lookup>);

impl Environment {
    /// An environment that is asked by name.
    pub fn new(lookup: impl Fn(&str) -> Option<SecretText> + Send + Sync + 'static) -> Self {
        Self(Arc::new(lookup))
    }

    fn get(&self, name: &str) -> Option<SecretText> {
        (self.0)(name)
    }
}

impl Default for Environment {
    fn default() -> Self {
        Self::new(|_| None)
    }
}

impl fmt::Debug for Environment {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("(environment)")
    }
}

/// Settings of the gateway on this node.
#[derive(Clone, Debug)]
pub struct GatewayOptions {
    /// The longest body of a request to a model, in bytes.
    pub body_limit: usize,
    /// The variables that models may name.
    pub environment: Environment,
}

/// The gateway of a node. Each thread that serves takes a [`Worker`] of its own.
#[derive(Clone)]
pub struct Gateway {
    state: ApiState,
    body_limit: usize,
    held: Arc<Held>,
    shared: Arc<Shared>,
}

impl Gateway {
    /// The gateway of this node.
    #[must_use]
    pub fn new(state: ApiState, options: GatewayOptions) -> Self {
        let shared = Shared { tally: Arc::clone(&state.tally), environment: options.environment, ..Shared::default() };
        Self { state, body_limit: options.body_limit, held: Arc::default(), shared: Arc::new(shared) }
    }

    /// Tells the fleet which keys were used, for as long as this runs. Requests do not wait for it.
    pub fn telling(&self) -> impl Future<Output = ()> + Send + use<> {
        uses::keep_telling(self.state.clone(), Arc::clone(&self.shared.uses))
    }

    /// The part of the gateway that belongs to one thread: what it remembers, and its connections to providers.
    #[must_use]
    pub fn worker(&self) -> Worker {
        let inner = Inner {
            gateway: self.clone(),
            resolver: Mutex::default(),
            prefix: uuid::Uuid::new_v4().as_u64_pair().0,
            requests: AtomicU64::new(0),
        };
        Worker(Arc::new(inner))
    }
}

struct Inner {
    gateway: Gateway,
    /// Only this thread uses it, so nobody waits; it is never held while something is awaited.
    resolver: Mutex<Resolver>,
    prefix: u64,
    requests: AtomicU64,
}

/// The gateway in one thread. Clones are the same.
#[derive(Clone)]
pub struct Worker(Arc<Inner>);

impl Worker {
    /// The surface of `:8000`: `/v1` from the gateway, everything else from the rest.
    pub fn in_front_of<S: HttpService>(&self, rest: S) -> Front<S> {
        Front { worker: self.clone(), rest }
    }

    /// The surface of `:4000`: the gateway alone, with and without `/v1`.
    #[must_use]
    pub fn alone(&self) -> Proxy {
        Proxy { worker: self.clone() }
    }

    /// What other nodes' gateways are answered with: they have checked the key and found the model.
    #[must_use]
    pub fn for_nodes(&self) -> ForNodes {
        ForNodes { worker: self.clone() }
    }

    /// Only arithmetic and maps happen while it is held.
    fn resolver(&self) -> MutexGuard<'_, Resolver> {
        self.0.resolver.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn with_replica<T>(
        &self,
        ask: impl FnOnce(&mut Resolver, &Replica) -> Result<T, GatewayError>,
    ) -> Result<T, GatewayError> {
        let state = &self.0.gateway.state;
        state.with_replica(|replica| ask(&mut self.resolver(), replica)).map_err(GatewayError::NotReady)?
    }

    /// The caller's id of the request, or one that no other request has.
    fn request_id(&self, request: &Request<RequestBody>) -> HeaderValue {
        let given = request.headers().get(REQUEST_ID);
        if let Some(given) = given.filter(|id| id.to_str().is_ok_and(is_plain)) {
            return given.clone();
        }
        let number = self.0.requests.fetch_add(1, Ordering::Relaxed);
        let id = format!("{:016x}{number:012x}", self.0.prefix);
        HeaderValue::try_from(id).unwrap_or_else(|_| HeaderValue::from_static("unknown"))
    }

    async fn answer(self, request: Request<RequestBody>, route: Route) -> Response<GatewayBody> {
        let request_id = self.request_id(&request);
        let mut model = String::new();
        let answering = AssertUnwindSafe(self.try_answer(request, route, &request_id, &mut model)).catch_unwind();
        let answer =
            answering.await.unwrap_or_else(|_| Err(GatewayError::Internal("a request has panicked".to_owned())));
        let mut response = answer.unwrap_or_else(|error| {
            let response = error.respond();
            self.0.gateway.shared.tally.refused(&model, response.status());
            tracing::debug!(model, status = response.status().as_u16(), %error, ?request_id, "a request to a model failed");
            response
        });
        response.headers_mut().insert(REQUEST_ID, request_id);
        response
    }

    async fn try_answer(
        &self,
        mut request: Request<RequestBody>,
        route: Route,
        request_id: &HeaderValue,
        model: &mut String,
    ) -> Result<Response<GatewayBody>, GatewayError> {
        let allowed = route.method()?;
        if request.method() != allowed && !(allowed == Method::GET && request.method() == Method::HEAD) {
            return Err(GatewayError::WrongMethod(if allowed == Method::GET { "GET, HEAD" } else { "POST" }));
        }
        let endpoint = match route {
            Route::Health => return Ok(json(Bytes::from_static(br#"{"status":"healthy"}"#))),
            Route::Models => {
                let listed = self.with_replica(|resolver, replica| {
                    let (_, access) = resolver.admit(replica, request.headers(), &self.0.gateway.shared)?;
                    resolver.list(replica, &access)
                });
                return listed.map(json);
            }
            Route::Model(name) => {
                let listed = self.with_replica(|resolver, replica| {
                    let (_, access) = resolver.admit(replica, request.headers(), &self.0.gateway.shared)?;
                    resolver.listed(replica, &name, &access)
                });
                return listed.map(json);
            }
            Route::Call(endpoint) => endpoint,
            Route::Unknown => return Err(GatewayError::NoRoute),
        };
        let (settings, access) =
            self.with_replica(|resolver, replica| resolver.admit(replica, request.headers(), &self.0.gateway.shared))?;
        let traceparent = request.headers_mut().remove(TRACEPARENT);
        let gateway = &self.0.gateway;
        let body = Collected::read(request.into_body(), gateway.body_limit, &gateway.held, Form::Json).await?;
        let (written, name) = body.model()?;
        let aim =
            self.with_replica(|resolver, replica| resolver.permitted(replica, &name, &access, &gateway.shared))?;
        let (timeout, request_id) = (settings.timeout, request_id.clone());
        let call = Call { asked: Asked::Endpoint(endpoint), body, written, name, request_id, traceparent, timeout };
        match aim {
            Aim::Model(target) => {
                model.clone_from(&target.name);
                Box::pin(call.run(&target, None, CONNECT_LIMIT)).await
            }
            Aim::Deployment(meant) => {
                model.clone_from(&meant.name);
                Box::pin(self.try_replicas(&call, &meant)).await
            }
        }
    }

    /// Asks one replica after the other until one has begun to answer: first the one of two that has less to do.
    async fn try_replicas(&self, call: &Call, meant: &Meant) -> Result<Response<GatewayBody>, GatewayError> {
        let mut left: Vec<_> = meant.replicas.iter().collect();
        let mut last = None;
        while !left.is_empty() {
            let loads = self.with_replica(|resolver, replica| Ok(resolver.loads(replica, meant, &left)))?;
            let Some(next) = balance::pick(&loads, self.random()) else { break };
            let seat = left.swap_remove(next);
            let Some((target, busy)) = self.reach(meant, seat)? else { continue };
            // Where there is another one, a node that does not answer is not waited for.
            let limit = if left.is_empty() { CONNECT_LIMIT } else { NEXT_AFTER };
            match call.run(&target, busy, limit).await {
                Err(error @ GatewayError::NoReplica { .. }) => {
                    self.resolver().eject(seat.node);
                    last = Some(error);
                }
                Err(GatewayError::NotServed) => {}
                answer => return answer,
            }
        }
        // It was running a moment ago.
        Err(last.unwrap_or(GatewayError::Loading { name: meant.name.clone(), deployment: meant.id.0 }))
    }

    /// How a replica is called; `None` if this node has it and does not serve it now.
    fn reach(&self, meant: &Meant, seat: &deployments::Replica) -> Result<Option<Reached>, GatewayError> {
        let shared = &self.0.gateway.shared;
        let of =
            ReplicaOf { placement: seat.placement, epoch: seat.epoch, name: &meant.name, model_id: &meant.model_id };
        self.with_replica(|resolver, replica| {
            if seat.node != replica.identity.node {
                return Ok(resolver.elsewhere(&of, seat.node, replica, shared).map(|target| (target, None)));
            }
            let served = replica.serving.find(seat.placement, seat.epoch);
            let Some((served, busy)) = served.and_then(|served| Some((served.clone(), served.admit()?))) else {
                return Ok(None);
            };
            Ok(resolver.engine(&of, served.endpoint(), shared).map(|target| (target, Some(busy))))
        })
    }

    /// Two numbers that nobody has to guess.
    fn random(&self) -> [u64; 2] {
        let mut hasher = std::hash::DefaultHasher::new();
        (self.0.prefix, self.0.requests.fetch_add(1, Ordering::Relaxed)).hash(&mut hasher);
        let first = hasher.finish();
        first.hash(&mut hasher);
        [first, hasher.finish()]
    }

    /// Answers what another gateway asks.
    async fn answer_node(self, request: Request<RequestBody>) -> Response<GatewayBody> {
        let request_id = self.request_id(&request);
        let mut model = String::new();
        let answering = AssertUnwindSafe(self.try_answer_node(request, &request_id, &mut model)).catch_unwind();
        let panicked = |_| Err(GatewayError::Internal("a request of another node has panicked".to_owned()));
        let mut response = answering.await.unwrap_or_else(panicked).unwrap_or_else(|error| {
            tracing::debug!(model, %error, ?request_id, "a request of another node to a model failed");
            error.respond()
        });
        response.headers_mut().insert(REQUEST_ID, request_id);
        response
    }

    async fn try_answer_node(
        &self,
        mut request: Request<RequestBody>,
        request_id: &HeaderValue,
        model: &mut String,
    ) -> Result<Response<GatewayBody>, GatewayError> {
        let Route::Call(endpoint) = Route::of(request.uri().path()) else { return Err(GatewayError::NoRoute) };
        // A connection outlives the eviction of the node that made it.
        let asker = request.extensions().get::<Peer>().copied();
        let belongs = self.with_replica(|_, replica| {
            let registry = replica.channels.registered().current();
            Ok(matches!(asker, Some(Peer::Node(node)) if registry.node(node).is_some()))
        })?;
        if !belongs {
            return Err(GatewayError::InvalidKey("the node that asks does not belong to the fleet"));
        }
        let text = |name: &str| request.headers().get(name).and_then(|value| value.to_str().ok());
        if let Some(seat) = text(PLACEMENT) {
            let seat = placement(seat).ok_or(GatewayError::MissingModel)?;
            return self.answer_for_replica(request, endpoint, seat, request_id, model).await;
        }
        let id = text(MODEL).and_then(|id| uuid::Uuid::try_parse(id).ok()).map(ModelId);
        let (id, index) = (id.ok_or(GatewayError::MissingModel)?, text(INDEX).and_then(|index| index.parse().ok()));
        let published = self.with_replica(|_, replica| Ok(Arc::clone(&replica.published)))?;
        // The other node may have heard of the model before this one.
        let reached = tokio::time::timeout(CATCH_UP, published.reached(index.unwrap_or(0))).await;
        reached.map_err(|_| GatewayError::NotReady("its copy of the state lags behind"))?;
        let traceparent = request.headers_mut().remove(TRACEPARENT);
        let gateway = &self.0.gateway;
        let body = Collected::read(request.into_body(), gateway.body_limit, &gateway.held, Form::Json).await?;
        let (written, _) = body.model()?;
        let (target, timeout) = self.with_replica(|resolver, replica| {
            Ok((resolver.own_model(replica, id, &gateway.shared)?, resolver.timeout(replica)?))
        })?;
        model.clone_from(&target.name);
        // The name was replaced where the client asked, and is replaced there again in the answer.
        let name = target.model_id.clone();
        let request_id = request_id.clone();
        let call = Call { asked: Asked::Endpoint(endpoint), body, written, name, request_id, traceparent, timeout };
        Box::pin(call.run(&target, None, CONNECT_LIMIT)).await
    }

    /// Answers another gateway that asks for a replica of this node, if it is served here in that epoch.
    async fn answer_for_replica(
        &self,
        mut request: Request<RequestBody>,
        endpoint: Endpoint,
        (placement, epoch): (PlacementId, PlacementEpoch),
        request_id: &HeaderValue,
        model: &mut String,
    ) -> Result<Response<GatewayBody>, GatewayError> {
        let gateway = &self.0.gateway;
        let traceparent = request.headers_mut().remove(TRACEPARENT);
        let body = Collected::read(request.into_body(), gateway.body_limit, &gateway.held, Form::Json).await?;
        let (written, name) = body.model()?;
        model.clone_from(&name);
        let (target, busy, timeout) = self.with_replica(|resolver, replica| {
            let served = replica.serving.find(placement, epoch).ok_or(GatewayError::NotServed)?;
            let busy = served.admit().ok_or(GatewayError::NotServed)?;
            // What the engine calls it has been put into the body where the client asked.
            let of = ReplicaOf { placement, epoch, name: &name, model_id: &name };
            let target = resolver.engine(&of, served.endpoint(), &gateway.shared).ok_or(GatewayError::NotServed)?;
            Ok((target, busy, resolver.timeout(replica)?))
        })?;
        let request_id = request_id.clone();
        let call = Call { asked: Asked::Endpoint(endpoint), body, written, name, request_id, traceparent, timeout };
        Box::pin(call.run(&target, Some(busy), CONNECT_LIMIT)).await
    }
}

fn json(body: Bytes) -> Response<GatewayBody> {
    let mut response = Response::new(GatewayBody::full(body));
    response.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static("application/json"));
    response
}

/// How a replica is called, and what has its engine count as busy if it is one of this node.
type Reached = (Arc<Target>, Option<Busy>);

/// How long a replica may take to be connected to when there is another one.
const NEXT_AFTER: Duration = Duration::from_millis(800);

/// How long a gateway that is asked by another may take to catch up with it.
const CATCH_UP: Duration = Duration::from_secs(2);

/// What a path of the gateway means.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Route {
    Call(Endpoint),
    Models,
    Model(String),
    Health,
    Unknown,
}

impl Route {
    /// The route of a path below `/v1`.
    fn of(path: &str) -> Self {
        let path = path.strip_suffix('/').unwrap_or(path);
        match path {
            "/chat/completions" => Self::Call(Endpoint::Chat),
            "/completions" => Self::Call(Endpoint::Completions),
            "/embeddings" => Self::Call(Endpoint::Embeddings),
            "/models" => Self::Models,
            _ => match path.strip_prefix("/models/").map(|name| percent_decode_str(name).decode_utf8()) {
                Some(Ok(name)) => Self::Model(name.into_owned()),
                _ => Self::Unknown,
            },
        }
    }

    /// The route of a path of `:8000`, if it is the gateway's.
    fn of_api(path: &str) -> Option<Self> {
        below_v1(path).map(Self::of)
    }

    /// The route of a path of `:4000`.
    fn of_proxy(path: &str) -> Self {
        match Self::of_api(path) {
            Some(Self::Unknown) | None if path.trim_end_matches('/') == "/health" => Self::Health,
            Some(route) => route,
            None => Self::of(path),
        }
    }

    fn method(&self) -> Result<Method, GatewayError> {
        match self {
            Self::Call(_) => Ok(Method::POST),
            Self::Models | Self::Model(_) | Self::Health => Ok(Method::GET),
            Self::Unknown => Err(GatewayError::NoRoute),
        }
    }
}

/// Whether the path of a request to `:8000` is the gateway's.
#[must_use]
pub fn is_gateway_path(path: &str) -> bool {
    below_v1(path).is_some()
}

fn below_v1(path: &str) -> Option<&str> {
    path.strip_prefix("/v1").filter(|rest| rest.is_empty() || rest.starts_with('/'))
}

type Answering<B> = Pin<Box<dyn Future<Output = Result<Response<B>, Infallible>> + Send>>;

/// The service of `:8000`.
#[derive(Clone)]
pub struct Front<S> {
    worker: Worker,
    rest: S,
}

/// An answer of [`Front`] that is on its way.
pub enum FrontAnswer<S: HttpService> {
    /// Of the gateway.
    Gateway(Answering<GatewayBody>),
    /// Of the rest.
    Rest(Pin<Box<Oneshot<S, Request<RequestBody>>>>),
}

impl<S: HttpService> Future for FrontAnswer<S> {
    type Output = Result<Response<Either<GatewayBody, S::Body>>, Infallible>;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        match self.get_mut() {
            Self::Gateway(answering) => answering.as_mut().poll(cx).map_ok(|response| response.map(Either::Left)),
            Self::Rest(answering) => answering.as_mut().poll(cx).map_ok(|response| response.map(Either::Right)),
        }
    }
}

impl<S> Service<Request<RequestBody>> for Front<S>
where
    S: HttpService<Body: Body<Data = Bytes, Error: Into<Box<dyn Error + Send + Sync>>>>,
{
    type Response = Response<Either<GatewayBody, S::Body>>;
    type Error = Infallible;
    type Future = FrontAnswer<S>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        // The rest is asked when a request for it has come.
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: Request<RequestBody>) -> FrontAnswer<S> {
        match Route::of_api(request.uri().path()) {
            Some(route) => {
                let answering = self.worker.clone().answer(request, route);
                FrontAnswer::Gateway(Box::pin(answering.map(Ok)))
            }
            None => FrontAnswer::Rest(Box::pin(self.rest.clone().oneshot(request))),
        }
    }
}

/// The service of `:4000`.
#[derive(Clone)]
pub struct Proxy {
    worker: Worker,
}

impl Service<Request<RequestBody>> for Proxy {
    type Response = Response<GatewayBody>;
    type Error = Infallible;
    type Future = Answering<GatewayBody>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: Request<RequestBody>) -> Self::Future {
        let route = Route::of_proxy(request.uri().path());
        Box::pin(self.worker.clone().answer(request, route).map(Ok))
    }
}

/// The service for the gateways of other nodes.
#[derive(Clone)]
pub struct ForNodes {
    worker: Worker,
}

impl Service<Request<RequestBody>> for ForNodes {
    type Response = Response<GatewayBody>;
    type Error = Infallible;
    type Future = Answering<GatewayBody>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: Request<RequestBody>) -> Self::Future {
        Box::pin(self.worker.clone().answer_node(request).map(Ok))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_mean_the_same_with_and_without_a_slash() {
        for (path, route) in [
            ("/v1/chat/completions", Some(Route::Call(Endpoint::Chat))),
            ("/v1/completions/", Some(Route::Call(Endpoint::Completions))),
            ("/v1/embeddings", Some(Route::Call(Endpoint::Embeddings))),
            ("/v1/models/", Some(Route::Models)),
            ("/v1/models/a%20b/c", Some(Route::Model("a b/c".to_owned()))),
            ("/v1/models/%FF", Some(Route::Unknown)),
            ("/v1", Some(Route::Unknown)),
            ("/v1/health", Some(Route::Unknown)),
            ("/v1x/models", None),
            ("/api/models", None),
        ] {
            assert_eq!(Route::of_api(path), route, "{path}");
        }
        for (path, route) in [
            ("/chat/completions", Route::Call(Endpoint::Chat)),
            ("/v1/chat/completions", Route::Call(Endpoint::Chat)),
            ("/models", Route::Models),
            ("/v1/models", Route::Models),
            ("/health", Route::Health),
            ("/health/", Route::Health),
            ("/", Route::Unknown),
            ("/api/models", Route::Unknown),
        ] {
            assert_eq!(Route::of_proxy(path), route, "{path}");
        }
    }
}
