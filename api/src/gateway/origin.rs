//! Connections to a provider: made, kept for the next request, and driven by the request that uses one.

use std::future::poll_fn;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::pin::{Pin, pin};
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use http::{Request, Response};
use hyper::body::Incoming;
use hyper::client::conn::http1::{Builder, Connection, SendRequest};
use hyper_util::rt::TokioIo;
use muster_agent::runtime::Endpoint;
use muster_cluster::ids::NodeId;
use muster_cluster::transport::Channels;
use rustls::ClientConfig;
use rustls::pki_types::ServerName;
use tokio::net::{TcpStream, UnixStream, lookup_host};
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;
use tokio_util::either::Either;

use super::body::Pieces;
use crate::upstream::is_forbidden;

/// How long making a connection may take, TLS included.
pub(super) const CONNECT_LIMIT: Duration = Duration::from_secs(5);

/// How long an idle connection is kept. Engines close theirs after five seconds, and a request that meets that is lost.
const IDLE_LIMIT: Duration = Duration::from_secs(4);

/// How many idle connections a thread keeps to one provider.
const IDLE_COUNT: usize = 128;

/// A failure of a used connection this soon after the request was sent is its end being noticed: nothing has been done.
const STALE_LIMIT: Duration = Duration::from_secs(1);

type Stream = TokioIo<Either<Either<TcpStream, UnixStream>, TlsStream<TcpStream>>>;

/// Why a provider could not be asked, without its address.
#[derive(Debug, thiserror::Error)]
pub(super) enum OriginError {
    /// Nothing listens there, or it can not be reached.
    #[error("{}", describe(.0))]
    Connect(io::Error),
    /// The node whose provider it is can not be reached.
    #[error("its node can not be reached: {}", describe(.0))]
    Node(io::Error),
    /// The name leads nowhere, or only to where a node does not go.
    #[error("{0}")]
    Name(&'static str),
    /// The connection broke before the answer.
    #[error("the connection broke before the answer")]
    Broken(#[source] hyper::Error),
    /// Connecting took too long.
    #[error("connecting took too long")]
    Slow,
}

/// The system's messages name no addresses; those of libraries might.
fn describe(error: &io::Error) -> String {
    match error.raw_os_error() {
        Some(_) => error.kind().to_string(),
        None if error.get_ref().is_some_and(|inner| inner.is::<rustls::Error>()) => "TLS failed".to_owned(),
        None => error.kind().to_string(),
    }
}

/// Where requests for a provider go.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(super) enum Address {
    /// To the provider.
    Provider {
        /// Whether it is asked with TLS.
        tls: bool,
        /// A name or an address, without brackets.
        host: String,
        port: u16,
    },
    /// To the gateway of the node whose provider it is.
    Node(NodeId),
    /// To an engine of this machine.
    Engine(Endpoint),
}

/// What is needed to connect there.
#[derive(Clone)]
pub(super) enum Way {
    /// Nothing.
    Plain,
    /// There is none: this machine has no TLS.
    None,
    /// TLS, with the certificates that this machine trusts.
    Tls(Arc<ClientConfig>),
    /// This node's ways to others.
    Mesh(Arc<Channels>),
}

/// A provider's address and the connections of one thread to it.
pub(super) struct Origin {
    address: Address,
    way: Way,
    /// The one that was used last is last.
    idle: Mutex<Vec<Idle>>,
}

impl std::fmt::Debug for Origin {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Origin").field("address", &self.address).finish_non_exhaustive()
    }
}

struct Idle {
    connected: Connected,
    since: Instant,
}

/// A connection and what drives it. There is no task for it: whoever waits for its answer drives it.
struct Connected {
    sender: SendRequest<Pieces>,
    connection: Pin<Box<Connection<Stream, Pieces>>>,
    ended: bool,
}

impl Connected {
    /// Lets it read and write what it can.
    fn drive(&mut self, cx: &mut Context<'_>) {
        if !self.ended && self.connection.as_mut().poll(cx).is_ready() {
            self.ended = true;
        }
    }

    /// Whether it takes a request.
    fn poll_usable(&mut self, cx: &mut Context<'_>) -> Poll<bool> {
        self.drive(cx);
        if self.ended {
            return Poll::Ready(false);
        }
        self.sender.poll_ready(cx).map(|ready| ready.is_ok())
    }
}

impl Origin {
    pub fn new(address: Address, way: Way) -> Self {
        Self { address, way, idle: Mutex::default() }
    }

    pub fn address(&self) -> &Address {
        &self.address
    }

    // Nothing can panic while it is held.
    fn idle(&self) -> std::sync::MutexGuard<'_, Vec<Idle>> {
        self.idle.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A kept connection that is still good.
    fn kept(&self, cx: &mut Context<'_>) -> Option<Connected> {
        loop {
            let Idle { mut connected, since } = self.idle().pop()?;
            if since.elapsed() > IDLE_LIMIT {
                // Those before it are older.
                self.idle().clear();
                return None;
            }
            if let Poll::Ready(true) = connected.poll_usable(cx) {
                return Some(connected);
            }
        }
    }

    /// Forgets the connections that nobody has used for a while.
    pub fn sweep(&self) {
        self.idle().retain(|idle| idle.since.elapsed() <= IDLE_LIMIT);
    }

    /// Whether it keeps no connection.
    pub fn is_idle(&self) -> bool {
        self.idle().is_empty()
    }

    async fn connect(&self, limit: Duration) -> Result<Connected, OriginError> {
        match tokio::time::timeout(limit, self.connect_unbounded()).await {
            Ok(outcome) => outcome,
            Err(_) => Err(OriginError::Slow),
        }
    }

    async fn connect_unbounded(&self) -> Result<Connected, OriginError> {
        let stream = match (&self.address, &self.way) {
            (Address::Provider { host, port, .. }, Way::Plain) => Either::Left(Either::Left(reach(host, *port).await?)),
            (Address::Engine(Endpoint::Unix(path)), _) => {
                Either::Left(Either::Right(UnixStream::connect(path).await.map_err(OriginError::Connect)?))
            }
            (Address::Engine(Endpoint::Tcp(address)), _) => {
                let stream = TcpStream::connect(address).await.map_err(OriginError::Connect)?;
                stream.set_nodelay(true).map_err(OriginError::Connect)?;
                Either::Left(Either::Left(stream))
            }
            (Address::Provider { host, port, .. }, Way::Tls(config)) => {
                let name = ServerName::try_from(host.clone()).map_err(|_| OriginError::Name("its name is no name"))?;
                let connecting = TlsConnector::from(Arc::clone(config)).connect(name, reach(host, *port).await?);
                Either::Right(connecting.await.map_err(OriginError::Connect)?)
            }
            (Address::Node(node), Way::Mesh(channels)) => {
                Either::Right(channels.dial(*node).await.map_err(OriginError::Node)?)
            }
            _ => return Err(OriginError::Name("there is no way to it")),
        };
        let handshake = Builder::new().handshake(TokioIo::new(stream)).await;
        let (sender, connection) = handshake.map_err(OriginError::Broken)?;
        Ok(Connected { sender, connection: Box::pin(connection), ended: false })
    }

    /// Sends a request and waits for the head of the answer.
    ///
    /// A kept connection may have been closed from the other side just before; then a new one is made, once.
    pub async fn ask(
        self: &Arc<Self>,
        request: impl Fn() -> Request<Pieces>,
        connect_limit: Duration,
    ) -> Result<(Response<Incoming>, Lease), OriginError> {
        if let Some(kept) = poll_fn(|cx| Poll::Ready(self.kept(cx))).await {
            let (begun, mut lease) = (Instant::now(), Lease { connected: kept, origin: Arc::clone(self) });
            match lease.send(request()).await {
                Ok(response) => return Ok((response, lease)),
                Err(error) if begun.elapsed() > STALE_LIMIT => return Err(OriginError::Broken(error)),
                Err(error) => tracing::debug!(%error, "a kept connection was closed"),
            }
        }
        let mut lease = Lease { connected: self.connect(connect_limit).await?, origin: Arc::clone(self) };
        match lease.send(request()).await {
            Ok(response) => Ok((response, lease)),
            Err(error) => Err(OriginError::Broken(error)),
        }
    }
}

/// Connects to a name or an address.
async fn reach(host: &str, port: u16) -> Result<TcpStream, OriginError> {
    let stream = match host.parse::<IpAddr>() {
        Ok(address) => dial([SocketAddr::new(address, port)].into_iter()).await?,
        Err(_) => {
            let found = lookup_host((host, port)).await;
            dial(found.map_err(|_| OriginError::Name("its name leads nowhere"))?).await?
        }
    };
    stream.set_nodelay(true).map_err(OriginError::Connect)?;
    Ok(stream)
}

/// Connects to the first of the addresses that answers.
async fn dial(addresses: impl Iterator<Item = SocketAddr>) -> Result<TcpStream, OriginError> {
    let mut last = OriginError::Name("its name leads nowhere");
    for address in addresses {
        // A name may lead there although the URL did not look like it.
        if is_forbidden(address.ip()) {
            last = OriginError::Name("its name leads to a link-local or metadata address");
            continue;
        }
        match TcpStream::connect(address).await {
            Ok(stream) => return Ok(stream),
            Err(error) => last = OriginError::Connect(error),
        }
    }
    Err(last)
}

/// A connection in the hands of one request. Dropping it closes it, and so ends what the provider was doing.
pub(super) struct Lease {
    connected: Connected,
    origin: Arc<Origin>,
}

impl std::fmt::Debug for Lease {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Lease").field("origin", &self.origin).finish_non_exhaustive()
    }
}

impl Lease {
    async fn send(&mut self, request: Request<Pieces>) -> hyper::Result<Response<Incoming>> {
        let Connected { sender, .. } = &mut self.connected;
        let mut answer = pin!(sender.send_request(request));
        let Connected { connection, ended, .. } = &mut self.connected;
        poll_fn(|cx| {
            if !*ended && connection.as_mut().poll(cx).is_ready() {
                *ended = true;
            }
            answer.as_mut().poll(cx)
        })
        .await
    }

    /// Lets the connection go on while its answer is read.
    pub fn drive(&mut self, cx: &mut Context<'_>) {
        self.connected.drive(cx);
    }

    /// Keeps the connection for the next request, once its answer has been read to the end.
    pub fn give_back(mut self, cx: &mut Context<'_>) {
        if let Poll::Ready(true) = self.connected.poll_usable(cx) {
            let mut idle = self.origin.idle.lock().unwrap_or_else(PoisonError::into_inner);
            if idle.len() < IDLE_COUNT {
                idle.push(Idle { connected: self.connected, since: Instant::now() });
            }
        }
    }
}
