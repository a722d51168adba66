//! The loop that serves HTTP/1.1 on a listener, with a bound on everything that a client could hold open.
//!
//! A connection that waits for a request, the first or the next, is closed after [`Limits::header_timeout`]. One that leaves
//! HTTP goes on with what its handler has left for that ([`Afterwards`]).

mod body;
mod ending;
mod listen;
mod patience;
#[cfg(test)]
mod tests;
mod upgrade;

use std::collections::HashMap;
use std::convert::Infallible;
use std::error::Error;
use std::future::ready;
use std::net::SocketAddr;
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use http::{Request, Response, StatusCode};
use hyper::body::{Body, Incoming};
use hyper::server::conn::http1;
use hyper_util::rt::{TokioIo, TokioTimer};
use muster_cluster::ids::NodeId;
use muster_cluster::transport::PeerConnection;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, UnixListener};
use tokio::sync::{mpsc, oneshot};
use tokio::task::{AbortHandle, Id, JoinError, JoinSet};
use tokio::time::timeout;
use tower::ServiceExt;

pub use body::{BodyTimedOut, RequestBody};
use ending::{Activity, Counted};
pub use ending::{Ending, Part};
use listen::{AcceptFailures, Askers, Listen, accept};
pub(crate) use patience::Patience;
pub use upgrade::{Afterwards, Leave, Leaving};

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
    type Body: Body<Data: Send, Error: Into<Box<dyn Error + Send + Sync>>> + Send + Unpin + 'static;
}

impl<S, B> HttpService for S
where
    S: tower::Service<Request<RequestBody>, Response = Response<B>, Error = Infallible, Future: Send>,
    S: Clone + Send + 'static,
    B: Body<Data: Send, Error: Into<Box<dyn Error + Send + Sync>>> + Send + Unpin + 'static,
{
    type Body = B;
}

/// Serves `service` on `listener` until it is told to stop. Then it closes the listener and the idle connections, lets the
/// requests under way finish for at most [`Limits::grace`], and drops the rest. See [`Ending`] for the gentle way.
///
/// The connections end with this future, however it ends.
pub async fn serve_tcp(listener: TcpListener, service: impl HttpService, limits: Limits, part: Part) {
    serve(listener, service, limits, part).await;
}

/// [`serve_tcp`] for a Unix socket. Its file is left to the caller.
pub async fn serve_unix(listener: UnixListener, service: impl HttpService, limits: Limits, part: Part) {
    serve(listener, service, limits, part).await;
}

/// [`serve_tcp`] for the connections on which the gateways of other nodes ask.
pub async fn serve_nodes(
    connections: mpsc::Receiver<PeerConnection>,
    service: impl HttpService,
    limits: Limits,
    part: Part,
) {
    serve(Askers(tokio::sync::Mutex::new(connections)), service, limits, part).await;
}

async fn serve<L: Listen>(listener: L, service: impl HttpService, limits: Limits, part: Part) {
    let mut http = http1::Builder::new();
    http.timer(TokioTimer::new()).header_read_timeout(limits.header_timeout).max_buf_size(BUFFER);
    let mut open = Open::default();
    let mut failures = AcceptFailures::default();
    let mut listener = Some(listener);
    let (mut stopped, mut draining) = (pin!(part.stopped()), pin!(part.draining()));
    let (mut closed, mut abandoned) = (pin!(part.closed()), pin!(part.abandoned()));
    let mut is_abandoned = false;
    let own = part.clone();
    let serve_one = move |open: &mut Open, io, peer| {
        let activity = own.connection();
        let service = with_peer(service.clone(), peer, limits.body_idle_timeout, Arc::clone(&activity));
        let connection = http.serve_connection(TokioIo::new(io), service).with_upgrades();
        open.spawn(connection, peer, activity);
    };
    while listener.is_some() || !open.tasks.is_empty() {
        tokio::select! {
            biased;
            () = &mut stopped => break,
            () = &mut draining, if !open.is_draining => open.drain(),
            () = &mut closed, if listener.is_some() => {
                for (io, peer) in listener.take().into_iter().flat_map(L::rest) {
                    serve_one(&mut open, io, peer);
                }
                part.no_longer_listens();
            }
            () = &mut abandoned, if !is_abandoned => {
                is_abandoned = true;
                open.abandon();
            }
            Some(ended) = open.tasks.join_next_with_id() => open.forget(ended),
            (io, peer) = accept(listener.as_ref(), &mut failures), if open.tasks.len() < limits.connections.max(1) => {
                serve_one(&mut open, io, peer);
            }
        }
    }
    drop(listener);
    part.no_longer_listens();
    open.finish(limits.grace).await;
}

/// The open connections. Dropping it aborts them.
///
/// Each has a channel of its own for the stop, because one that all share would be locked at every wake of every one.
#[derive(Default)]
struct Open {
    tasks: JoinSet<()>,
    lines: HashMap<Id, Line>,
    is_draining: bool,
}

/// How a connection is told to end. It takes the drop of a sender for the stop.
struct Line {
    /// Gets it to drain; what is sent along is the channel for its stop.
    drain: Option<oneshot::Sender<oneshot::Receiver<Infallible>>>,
    stop: Option<oneshot::Sender<Infallible>>,
    activity: Arc<Activity>,
    task: AbortHandle,
}

impl Line {
    fn drain(&mut self) {
        if let Some(drain) = self.drain.take() {
            let (stop, stopped) = oneshot::channel();
            // It has ended if it does not listen.
            let _ = drain.send(stopped);
            self.stop = Some(stop);
        }
    }
}

impl Open {
    fn spawn<I, S, B>(
        &mut self,
        connection: http1::UpgradeableConnection<TokioIo<I>, S>,
        peer: Peer,
        activity: Arc<Activity>,
    ) where
        I: AsyncRead + AsyncWrite + Unpin + Send + 'static,
        S: hyper::service::Service<Request<Incoming>, Response = Response<B>, Error = Infallible> + Send + 'static,
        S::Future: Send,
        B: Body<Data: Send, Error: Into<Box<dyn Error + Send + Sync>>> + Send + 'static,
    {
        let (drain, order) = oneshot::channel();
        let own = Arc::clone(&activity);
        let task = self.tasks.spawn(async move {
            if let Err(error) = drive(connection, order, own).await {
                tracing::debug!(?peer, error = &error as &(dyn Error + 'static), "a connection failed");
            }
        });
        let id = task.id();
        let mut line = Line { drain: Some(drain), stop: None, activity, task };
        if self.is_draining {
            line.drain();
        }
        self.lines.insert(id, line);
    }

    fn forget(&mut self, ended: Result<(Id, ()), JoinError>) {
        let id = match ended {
            Ok((id, ())) => id,
            Err(error) => {
                tracing::debug!(%error, "a connection's task failed");
                error.id()
            }
        };
        self.lines.remove(&id);
    }

    fn drain(&mut self) {
        self.is_draining = true;
        self.lines.values_mut().for_each(Line::drain);
    }

    fn abandon(&self) {
        let held: Vec<_> = self.lines.values().filter(|line| line.activity.is_held()).collect();
        if !held.is_empty() {
            tracing::warn!(connections = held.len(), "dropped: their requests take too long");
        }
        held.iter().for_each(|line| line.task.abort());
    }

    async fn finish(mut self, grace: Duration) {
        self.lines.clear();
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

async fn drive<I, S, B>(
    connection: http1::UpgradeableConnection<TokioIo<I>, S>,
    mut order: oneshot::Receiver<oneshot::Receiver<Infallible>>,
    activity: Arc<Activity>,
) -> hyper::Result<()>
where
    I: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    S: hyper::service::Service<Request<Incoming>, Response = Response<B>, Error = Infallible>,
    B: Body<Data: Send, Error: Into<Box<dyn Error + Send + Sync>>> + 'static,
{
    let leave = |order: &Result<_, _>| if order.is_ok() { Leave::Drain } else { Leave::Stop };
    let mut connection = pin!(connection);
    let drained = tokio::select! {
        biased;
        ended = connection.as_mut() => {
            ended?;
            activity.afterwards(Box::pin(async move { leave(&order.await) })).await;
            return Ok(());
        }
        order = &mut order => order,
    };
    let leave = leave(&drained);
    let ended = async {
        if let Ok(stopped) = drained {
            tokio::select! {
                biased;
                ended = connection.as_mut() => return ended,
                _ = stopped => {}
                () = activity.quiet() => {}
            }
        }
        connection.as_mut().graceful_shutdown();
        connection.await
    };
    ended.await?;
    activity.afterwards(Box::pin(ready(leave))).await;
    Ok(())
}

/// A connection's service: it tells every request who sent it, bounds its body's pauses, and notes what happens.
fn with_peer<S: HttpService>(
    service: S,
    peer: Peer,
    idle: Duration,
    activity: Arc<Activity>,
) -> impl hyper::service::Service<Request<Incoming>, Response = Response<Counted<S::Body>>, Error = Infallible, Future: Send>
+ Send
+ 'static {
    hyper::service::service_fn(move |request: Request<Incoming>| {
        let answering = activity.begin(request.uri().path());
        let mut request = request.map(|body| RequestBody::new(body, idle));
        request.extensions_mut().insert(peer);
        let answer = service.clone().oneshot(request);
        async move {
            let Ok(mut response) = answer.await;
            if response.status() == StatusCode::SWITCHING_PROTOCOLS {
                let afterwards = response.extensions_mut().remove::<Afterwards>();
                return Ok(answering.switched(response, afterwards.and_then(|afterwards| afterwards.take())));
            }
            Ok(answering.answered(response))
        }
    })
}
