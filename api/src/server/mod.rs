//! The loop that serves HTTP/1.1 on a listener, with a bound on everything that a client could hold open.
//!
//! A connection that waits for a request, the first or the next, is closed after [`Limits::header_timeout`]. There are no
//! upgrades: a handler that waits for one gets hyper's error.

mod body;
mod listen;
#[cfg(test)]
mod tests;

use std::collections::HashMap;
use std::convert::Infallible;
use std::error::Error;
use std::net::SocketAddr;
use std::pin::pin;
use std::time::Duration;

use http::{Request, Response};
use hyper::body::{Body, Incoming};
use hyper::server::conn::http1;
use hyper_util::rt::{TokioIo, TokioTimer};
use muster_cluster::ids::NodeId;
use muster_cluster::transport::PeerConnection;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, UnixListener};
use tokio::sync::{mpsc, oneshot};
use tokio::task::{Id, JoinError, JoinSet};
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;
use tower::ServiceExt;
use tower::util::Oneshot;

pub use body::{BodyTimedOut, RequestBody};
use listen::{AcceptFailures, Askers, Listen, accept};

/// Bytes that a connection buffers in each direction, and so the bound of a request's head. A larger head is answered 431.
///
/// So is one with more than 100 headers, hyper's default; naming that number would make it parse them on the heap.
const BUFFER: usize = 64 * 1024;

/// How long aborted connections get to let go of what they hold. Only one that blocks its thread needs it.
const ABORT: Duration = Duration::from_secs(1);

/// What one listener's clients may use.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Connections open at the same time, at least one. At the limit the next ones wait in the listener's backlog.
    pub connections: usize,
    /// The longest time from a connection's start, or from the end of an answer on it, to the end of the next request's
    /// head. It is also the longest that an idle connection is kept.
    pub header_timeout: Duration,
    /// The longest pause between two pieces of a request's body, counted only while the service waits for one.
    pub body_idle_timeout: Duration,
    /// How long requests under way may go on after the stop.
    pub grace: Duration,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            connections: 4096,
            header_timeout: Duration::from_secs(10),
            body_idle_timeout: Duration::from_secs(30),
            grace: Duration::from_secs(10),
        }
    }
}

/// The other end of a request's connection. Every request carries it in its extensions.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Peer {
    /// A client on the network.
    Tcp(SocketAddr),
    /// A process of this machine, on the Unix socket.
    Local {
        /// The user that the process ran as when it connected, where the kernel says so.
        uid: Option<u32>,
    },
    /// The gateway of another node.
    Node(NodeId),
}

/// What answers the requests: an axum `Router`, or any other service over [`RequestBody`] that cannot fail.
pub trait HttpService:
    tower::Service<Request<RequestBody>, Response = Response<Self::Body>, Error = Infallible, Future: Send>
    + Clone
    + Send
    + 'static
{
    /// The body of its answers.
    type Body: Body<Data: Send, Error: Into<Box<dyn Error + Send + Sync>>> + Send + 'static;
}

impl<S, B> HttpService for S
where
    S: tower::Service<Request<RequestBody>, Response = Response<B>, Error = Infallible, Future: Send>,
    S: Clone + Send + 'static,
    B: Body<Data: Send, Error: Into<Box<dyn Error + Send + Sync>>> + Send + 'static,
{
    type Body = B;
}

/// Serves `service` on `listener` until `stop` is cancelled. Then it closes the listener and the idle connections, lets the
/// requests under way finish for at most [`Limits::grace`], and drops the rest.
///
/// The connections end with this future, however it ends.
pub async fn serve_tcp(listener: TcpListener, service: impl HttpService, limits: Limits, stop: CancellationToken) {
    serve(listener, service, limits, stop).await;
}

/// [`serve_tcp`] for a Unix socket. Its file is left to the caller.
pub async fn serve_unix(listener: UnixListener, service: impl HttpService, limits: Limits, stop: CancellationToken) {
    serve(listener, service, limits, stop).await;
}

/// [`serve_tcp`] for the connections on which the gateways of other nodes ask.
pub async fn serve_nodes(
    connections: mpsc::Receiver<PeerConnection>,
    service: impl HttpService,
    limits: Limits,
    stop: CancellationToken,
) {
    serve(Askers(tokio::sync::Mutex::new(connections)), service, limits, stop).await;
}

async fn serve<L: Listen>(listener: L, service: impl HttpService, limits: Limits, stop: CancellationToken) {
    let mut http = http1::Builder::new();
    http.timer(TokioTimer::new()).header_read_timeout(limits.header_timeout).max_buf_size(BUFFER);
    let mut open = Open::default();
    let mut failures = AcceptFailures::default();
    let mut stopped = pin!(stop.cancelled());
    loop {
        tokio::select! {
            biased;
            () = &mut stopped => break,
            Some(ended) = open.tasks.join_next_with_id() => open.forget(ended),
            (io, peer) = accept(&listener, &mut failures), if open.tasks.len() < limits.connections.max(1) => {
                let service = PeerService { service: service.clone(), peer, idle: limits.body_idle_timeout };
                open.spawn(http.serve_connection(TokioIo::new(io), service), peer);
            }
        }
    }
    drop(listener);
    open.finish(limits.grace).await;
}

/// The open connections. Dropping it aborts them.
///
/// Each has a channel of its own for the stop, because one that all share would be locked at every wake of every one.
#[derive(Default)]
struct Open {
    tasks: JoinSet<()>,
    stops: HashMap<Id, oneshot::Sender<Infallible>>,
}

type Connection<I, S> = http1::Connection<TokioIo<I>, PeerService<S>>;

impl Open {
    fn spawn<I, S>(&mut self, connection: Connection<I, S>, peer: Peer)
    where
        I: AsyncRead + AsyncWrite + Unpin + Send + 'static,
        S: HttpService,
    {
        let (stop, stopped) = oneshot::channel();
        let task = self.tasks.spawn(async move {
            if let Err(error) = drive(connection, stopped).await {
                tracing::debug!(?peer, error = &error as &(dyn Error + 'static), "a connection failed");
            }
        });
        self.stops.insert(task.id(), stop);
    }

    fn forget(&mut self, ended: Result<(Id, ()), JoinError>) {
        let id = match ended {
            Ok((id, ())) => id,
            Err(error) => {
                tracing::debug!(%error, "a connection's task failed");
                error.id()
            }
        };
        self.stops.remove(&id);
    }

    async fn finish(mut self, grace: Duration) {
        // A connection takes the drop of its sender for the stop.
        self.stops.clear();
        if timeout(grace, self.ended()).await.is_err() {
            tracing::debug!(connections = self.tasks.len(), "dropped at the end of the grace");
            self.tasks.abort_all();
            let _ = timeout(ABORT, self.ended()).await;
        }
    }

    async fn ended(&mut self) {
        while self.tasks.join_next().await.is_some() {}
    }
}

async fn drive<I, S>(connection: Connection<I, S>, stopped: oneshot::Receiver<Infallible>) -> hyper::Result<()>
where
    I: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    S: HttpService,
{
    let mut connection = pin!(connection);
    tokio::select! {
        biased;
        ended = connection.as_mut() => return ended,
        _ = stopped => connection.as_mut().graceful_shutdown(),
    }
    connection.await
}

/// A connection's service: it tells every request who sent it, and bounds its body's pauses.
struct PeerService<S> {
    service: S,
    peer: Peer,
    idle: Duration,
}

impl<S: HttpService> hyper::service::Service<Request<Incoming>> for PeerService<S> {
    type Response = S::Response;
    type Error = Infallible;
    type Future = Oneshot<S, Request<RequestBody>>;

    fn call(&self, request: Request<Incoming>) -> Self::Future {
        let mut request = request.map(|body| RequestBody::new(body, self.idle));
        request.extensions_mut().insert(self.peer);
        self.service.clone().oneshot(request)
    }
}
