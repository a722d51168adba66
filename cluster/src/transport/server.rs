//! The mesh listener: TLS, who is there, and the services behind it.

use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use rustls::ServerConfig;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc};
use tokio::task::JoinSet;
use tokio::time::Sleep;
use tokio_rustls::TlsAcceptor;
use tokio_rustls::server::TlsStream;
use tokio_stream::Stream;
use tokio_util::sync::CancellationToken;
use tonic::transport::server::{Connected, Router};

use super::certificates::TlsIdentity;
use super::registry::Registered;
use super::tls::{JOIN, MESH, PEER, named_node, public_key, server_config};
use crate::ids::NodeId;

/// How many connections are open at once, those that are still shaking hands included.
const CONNECTIONS: usize = 1024;

/// How many of them may belong to strangers who want to join, and for how long each: they must not take the members' places.
const STRANGERS: usize = 16;
const STRANGER_LIMIT: Duration = Duration::from_secs(60);

/// How long shaking hands may take.
const HANDSHAKE_LIMIT: Duration = Duration::from_secs(5);

/// How long handshakes under way may take when nothing more is accepted.
const LAST_HANDSHAKES: Duration = Duration::from_secs(1);

/// How long calls under way may take when the node stops.
const GRACE: Duration = Duration::from_secs(2);

/// Who is at the other end of a connection. Every call carries it in its extensions.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum PeerIdentity {
    /// Somebody with a certificate.
    Member {
        /// The public key.
        key: Arc<[u8]>,
        /// The node that the certificate names.
        named: Option<NodeId>,
    },
    /// Somebody who wants to join.
    Joiner,
}

/// What the mesh listener needs.
pub(crate) struct Mesh {
    pub listener: TcpListener,
    pub identity: Arc<TlsIdentity>,
    pub registered: Arc<Registered>,
    /// Where the connections go on which gateways ask each other.
    pub peers: mpsc::Sender<PeerConnection>,
    /// When to accept nothing more.
    pub gate: Gate,
}

/// Ends the accepting of connections, and leaves those that are there alone. Clones are the same.
#[derive(Clone, Debug, Default)]
pub(crate) struct Gate {
    close: CancellationToken,
    closed: CancellationToken,
}

impl Gate {
    /// Accepts nothing more, and waits until what was accepted has been handed on.
    pub async fn close(&self) {
        self.close.cancel();
        self.closed.cancelled().await;
    }
}

/// Serves the services on the mesh listener until told to stop.
pub(crate) async fn serve(mesh: Mesh, services: Router, stop: CancellationToken) {
    // Whoever waits for the end of the accepting need not wait longer than this.
    let _closed = mesh.gate.closed.clone().drop_guard();
    let config = match server_config(&mesh.identity, Arc::clone(&mesh.registered)) {
        Ok(config) => Arc::new(config),
        Err(error) => return tracing::error!(%error, "the mesh listener has no TLS"),
    };
    let (to_server, incoming) = mpsc::channel(16);
    // Without it the server would end with the accepting.
    let _open = to_server.clone();
    let accepting = async {
        accept(mesh.listener, config, mesh.registered, to_server, mesh.peers, &mesh.gate.close).await;
        mesh.gate.closed.cancel();
        std::future::pending::<()>().await;
    };
    let stopped = stop.clone();
    let serving = services.serve_with_incoming_shutdown(Incoming(incoming), async move { stopped.cancelled().await });
    let mut serving = std::pin::pin!(serving);
    tokio::select! {
        () = accepting => {}
        () = stop.cancelled() => {}
        served = &mut serving => {
            if let Err(error) = served {
                tracing::warn!(%error, "the mesh listener has ended");
            }
            return;
        }
    }
    let _ = tokio::time::timeout(GRACE, serving).await;
}

async fn accept(
    listener: TcpListener,
    config: Arc<ServerConfig>,
    registered: Arc<Registered>,
    to_server: mpsc::Sender<io::Result<Connection>>,
    peers: mpsc::Sender<PeerConnection>,
    close: &CancellationToken,
) {
    let places = Arc::new(Semaphore::new(CONNECTIONS));
    let strangers = Arc::new(Semaphore::new(STRANGERS));
    let mut handshakes = JoinSet::new();
    loop {
        while handshakes.try_join_next().is_some() {}
        let next = async { Some((Arc::clone(&places).acquire_owned().await.ok()?, listener.accept().await)) };
        let accepted = tokio::select! {
            biased;
            () = close.cancelled() => None,
            next = next => next,
        };
        let Some((place, accepted)) = accepted else { break };
        let stream = match accepted {
            Ok((stream, _)) => stream,
            Err(error) => {
                tracing::warn!(%error, "the mesh listener does not accept");
                tokio::time::sleep(Duration::from_millis(100)).await;
                continue;
            }
        };
        let (config, registered, to_server) = (Arc::clone(&config), Arc::clone(&registered), to_server.clone());
        let (strangers, peers) = (Arc::clone(&strangers), peers.clone());
        handshakes.spawn(async move {
            let shaken =
                tokio::time::timeout(HANDSHAKE_LIMIT, shake_hands(stream, config, &registered, place, strangers)).await;
            match shaken {
                Ok(Ok(connection)) => match connection.asker {
                    Some(node) => {
                        let handing = peers.send(PeerConnection { node, connection });
                        if tokio::time::timeout(HANDSHAKE_LIMIT, handing).await.is_err() {
                            tracing::debug!(%node, "nobody serves the gateways of other nodes");
                        }
                    }
                    None => drop(to_server.send(Ok(connection)).await),
                },
                Ok(Err(error)) => tracing::debug!(%error, "a connection to the mesh was refused"),
                Err(_) => tracing::debug!("a connection to the mesh was too slow"),
            }
        });
    }
    drop(listener);
    let last = async { while handshakes.join_next().await.is_some() {} };
    if tokio::time::timeout(LAST_HANDSHAKES, last).await.is_err() {
        tracing::debug!("some connections to the mesh were too slow");
    }
}

async fn shake_hands(
    stream: TcpStream,
    config: Arc<ServerConfig>,
    registered: &Registered,
    place: OwnedSemaphorePermit,
    strangers: Arc<Semaphore>,
) -> io::Result<Connection> {
    stream.set_nodelay(true)?;
    let stream = TlsAcceptor::from(config).accept(stream).await?;
    let (_, session) = stream.get_ref();
    let certificate = session.peer_certificates().and_then(<[_]>::first);
    let mut asker = None;
    let peer = match (session.alpn_protocol(), certificate) {
        (Some(MESH), Some(certificate)) => PeerIdentity::Member {
            key: public_key(certificate).map_err(io::Error::other)?.into(),
            named: named_node(certificate, registered.fleet),
        },
        (Some(PEER), Some(certificate)) => {
            let key = public_key(certificate).map_err(io::Error::other)?;
            // Its requests name no route: only who is registered may send any.
            let registry = registered.current();
            asker = Some(registry.by_key(&key).ok_or_else(|| io::Error::other("not a registered node"))?.node);
            PeerIdentity::Member { key: key.into(), named: asker }
        }
        (Some(JOIN), _) => PeerIdentity::Joiner,
        (Some(_), None) => return Err(io::Error::other("no certificate")),
        _ => return Err(io::Error::other("no protocol of ours")),
    };
    let stranger = match peer {
        PeerIdentity::Member { .. } => None,
        PeerIdentity::Joiner => {
            let place = strangers.try_acquire_owned().map_err(|_| io::Error::other("too many strangers"))?;
            Some(Stranger { left: Box::pin(tokio::time::sleep(STRANGER_LIMIT)), _place: place })
        }
    };
    Ok(Connection { stream, peer, asker, stranger, _place: place })
}

/// An accepted connection.
pub(crate) struct Connection {
    stream: TlsStream<TcpStream>,
    peer: PeerIdentity,
    /// The node whose gateway asks on it.
    asker: Option<NodeId>,
    stranger: Option<Stranger>,
    _place: OwnedSemaphorePermit,
}

/// What bounds a connection of somebody who is no member.
struct Stranger {
    left: Pin<Box<Sleep>>,
    _place: OwnedSemaphorePermit,
}

impl Connected for Connection {
    type ConnectInfo = PeerIdentity;

    fn connect_info(&self) -> PeerIdentity {
        self.peer.clone()
    }
}

impl AsyncRead for Connection {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buffer: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        if let Some(stranger) = &mut self.stranger
            && stranger.left.as_mut().poll(cx).is_ready()
        {
            return Poll::Ready(Err(io::Error::new(io::ErrorKind::TimedOut, "a stranger has stayed for too long")));
        }
        Pin::new(&mut self.stream).poll_read(cx, buffer)
    }
}

impl AsyncWrite for Connection {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(cx, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        pieces: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write_vectored(cx, pieces)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }
}

/// A connection on which the gateway of another node asks.
pub struct PeerConnection {
    /// The other node. Its registered key has been seen.
    pub node: NodeId,
    connection: Connection,
}

impl AsyncRead for PeerConnection {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buffer: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.connection).poll_read(cx, buffer)
    }
}

impl AsyncWrite for PeerConnection {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.connection).poll_write(cx, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.connection).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.connection).poll_shutdown(cx)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        pieces: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.connection).poll_write_vectored(cx, pieces)
    }

    fn is_write_vectored(&self) -> bool {
        self.connection.is_write_vectored()
    }
}

/// The accepted connections as tonic takes them.
struct Incoming(mpsc::Receiver<io::Result<Connection>>);

impl Stream for Incoming {
    type Item = io::Result<Connection>;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        self.0.poll_recv(cx)
    }
}
