//! Connections to other nodes, one for each purpose, made when they are needed.

use std::collections::HashMap;
use std::io;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use hyper_util::rt::TokioIo;
use rustix::net::sockopt;
use rustls::ClientConfig;
use rustls::pki_types::ServerName;
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;
use tonic::transport::{Channel, Endpoint, Uri};
use tower::service_fn;

use super::certificates::TlsIdentity;
use super::registry::Registered;
use super::tls::{MESH, PEER, member_config};
use crate::ids::NodeId;

/// How long connecting may take, TLS included.
const CONNECT_LIMIT: Duration = Duration::from_secs(5);

/// How often a silent connection is asked whether it is still there, and how long that may take.
const KEEP_ALIVE: Duration = Duration::from_secs(10);
const KEEP_ALIVE_LIMIT: Duration = Duration::from_secs(5);

/// What a connection is for. Each purpose has its own, so that bulk never delays a sign of life.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Purpose {
    /// Entries and votes.
    Replication,
    /// Signs of life and confirmations of reads.
    Heartbeat,
    /// Snapshots.
    Snapshot,
    /// Forwarded writes and reads.
    Calls,
    /// What machines are asked: what runs there, logs.
    Machines,
    /// Model files on their way, and what is asked about them.
    Files,
}

/// The connections of this node.
pub struct Channels {
    identity: Arc<TlsIdentity>,
    registered: Arc<Registered>,
    open: Mutex<HashMap<(NodeId, Purpose), Channel>>,
}

/// A TCP connection with TLS over it.
pub(crate) async fn connect(address: &str, config: Arc<ClientConfig>) -> io::Result<TlsStream<TcpStream>> {
    let connecting = async {
        let stream = TcpStream::connect(address).await?;
        stream.set_nodelay(true)?;
        // Nodes are known by key, not by host name; the verifier does not look at this one.
        let name = ServerName::try_from("node.muster").map_err(io::Error::other)?;
        TlsConnector::from(config).connect(name, stream).await
    };
    let late = || io::Error::new(io::ErrorKind::TimedOut, format!("{address} did not answer within {CONNECT_LIMIT:?}"));
    tokio::time::timeout(CONNECT_LIMIT, connecting).await.unwrap_or_else(|_| Err(late()))
}

async fn dial(
    identity: &TlsIdentity,
    registered: Arc<Registered>,
    node: NodeId,
    protocol: &[u8],
) -> io::Result<TlsStream<TcpStream>> {
    let address = registered.current().node(node).map(|peer| peer.address.clone());
    let address = address.ok_or_else(|| io::Error::other(format!("node {node} is not known here yet")))?;
    let config = member_config(identity, registered, node, protocol).map_err(io::Error::other)?;
    connect(&address, Arc::new(config)).await
}

/// Has the system end a connection whose other machine says nothing any more. An answer may take minutes, and HTTP/1.1 has no
/// signs of life of its own.
fn notice_silence(stream: &TcpStream) -> io::Result<()> {
    sockopt::set_tcp_keepidle(stream, KEEP_ALIVE)?;
    sockopt::set_tcp_keepintvl(stream, KEEP_ALIVE_LIMIT)?;
    sockopt::set_tcp_keepcnt(stream, 2)?;
    sockopt::set_socket_keepalive(stream, true)?;
    // For what has been sent: it is sent again for a quarter of an hour otherwise.
    let limit = (KEEP_ALIVE + 2 * KEEP_ALIVE_LIMIT).as_millis();
    sockopt::set_tcp_user_timeout(stream, u32::try_from(limit).unwrap_or(u32::MAX))?;
    Ok(())
}

impl Channels {
    /// No connection yet.
    #[must_use]
    pub fn new(identity: Arc<TlsIdentity>, registered: Arc<Registered>) -> Self {
        Self { identity, registered, open: Mutex::default() }
    }

    /// Who the nodes are.
    #[must_use]
    pub fn registered(&self) -> &Arc<Registered> {
        &self.registered
    }

    /// The connection to a node for a purpose. It connects when it is used, to where the node is then, and again when it has
    /// been lost.
    #[must_use]
    pub fn to(&self, node: NodeId, purpose: Purpose) -> Channel {
        let mut open = self.open.lock().unwrap_or_else(PoisonError::into_inner);
        open.entry((node, purpose)).or_insert_with(|| self.make(node)).clone()
    }

    /// A new connection to the gateway of another node, on which it is asked in HTTP/1.1.
    ///
    /// # Errors
    /// When the node is not known, can not be reached or is another one.
    pub async fn dial(&self, node: NodeId) -> io::Result<TlsStream<TcpStream>> {
        let stream = dial(&self.identity, Arc::clone(&self.registered), node, PEER).await?;
        notice_silence(stream.get_ref().0)?;
        Ok(stream)
    }

    fn make(&self, node: NodeId) -> Channel {
        let (identity, registered) = (Arc::clone(&self.identity), Arc::clone(&self.registered));
        let connector = service_fn(move |_: Uri| {
            let (identity, registered) = (Arc::clone(&identity), Arc::clone(&registered));
            async move { Ok::<_, io::Error>(TokioIo::new(dial(&identity, registered, node, MESH).await?)) }
        });
        Endpoint::from_static("http://node.muster")
            .http2_keep_alive_interval(KEEP_ALIVE)
            .keep_alive_timeout(KEEP_ALIVE_LIMIT)
            .initial_stream_window_size(1 << 20)
            .initial_connection_window_size(4 << 20)
            .connect_with_connector_lazy(connector)
    }
}
