//! The listeners, and what to do when one cannot accept.

use std::io;
use std::time::Duration;

use muster_cluster::transport::PeerConnection;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, TcpStream, UnixListener, UnixStream};
use tokio::sync::mpsc;
use tokio::time::{Instant, sleep};

use super::Peer;

/// The pause after a failure to accept that the next attempt would only meet again.
pub(super) const PAUSE: Duration = Duration::from_millis(100);

/// Such failures are logged at most once in this time.
const LOG: Duration = Duration::from_secs(10);

/// A source of connections.
pub(super) trait Listen {
    type Io: AsyncRead + AsyncWrite + Unpin + Send + 'static;

    /// The next connection. Dropping the future loses none.
    fn accept(&self) -> impl Future<Output = io::Result<(Self::Io, Peer)>> + Send;

    /// Ends it, and returns the connections that somebody has accepted for it already. Those that wait in the kernel stay
    /// there, for whoever accepts next from the same socket.
    fn rest(self) -> Vec<(Self::Io, Peer)>
    where
        Self: Sized,
    {
        Vec::new()
    }
}

impl Listen for TcpListener {
    type Io = TcpStream;

    async fn accept(&self) -> io::Result<(TcpStream, Peer)> {
        let (io, address) = self.accept().await?;
        if let Err(error) = io.set_nodelay(true) {
            // The client is gone already; reading from it will say so.
            tracing::debug!(%address, %error, "setting TCP_NODELAY");
        }
        Ok((io, Peer::Tcp(address)))
    }
}

impl Listen for UnixListener {
    type Io = UnixStream;

    async fn accept(&self) -> io::Result<(UnixStream, Peer)> {
        let (io, _) = self.accept().await?;
        let uid = io.peer_cred().ok().map(|cred| cred.uid());
        Ok((io, Peer::Local { uid }))
    }
}

/// The connections of other nodes' gateways.
pub(super) struct Askers(pub tokio::sync::Mutex<mpsc::Receiver<PeerConnection>>);

impl Listen for Askers {
    type Io = PeerConnection;

    async fn accept(&self) -> io::Result<(PeerConnection, Peer)> {
        match self.0.lock().await.recv().await {
            Some(connection) => {
                let peer = Peer::Node(connection.node);
                Ok((connection, peer))
            }
            // The node has ended. Whoever serves it is told so, and stops asking.
            None => std::future::pending().await,
        }
    }

    fn rest(self) -> Vec<(PeerConnection, Peer)> {
        let mut connections = self.0.into_inner();
        let next = || connections.try_recv().ok();
        std::iter::from_fn(next)
            .map(|connection| {
                let peer = Peer::Node(connection.node);
                (connection, peer)
            })
            .collect()
    }
}

/// The next connection, however many fail before; none from a listener that is gone. Dropping the future loses none.
pub(super) async fn accept<L: Listen>(listener: Option<&L>, failures: &mut AcceptFailures) -> (L::Io, Peer) {
    let Some(listener) = listener else { return std::future::pending().await };
    loop {
        match listener.accept().await {
            Ok(accepted) => return accepted,
            Err(error) if is_of_connection(&error) => tracing::debug!(%error, "a connection failed before its start"),
            Err(error) => {
                failures.log(&error);
                sleep(PAUSE).await;
            }
        }
    }
}

/// Whether the failure is that of the one connection that `accept` took from the queue.
fn is_of_connection(error: &io::Error) -> bool {
    use io::ErrorKind as Kind;
    let network = [Kind::HostUnreachable, Kind::NetworkUnreachable, Kind::NetworkDown, Kind::TimedOut];
    let client = [Kind::ConnectionAborted, Kind::ConnectionReset, Kind::ConnectionRefused, Kind::Interrupted];
    network.contains(&error.kind()) || client.contains(&error.kind())
}

/// Keeps a lasting failure to accept from filling the log.
#[derive(Default)]
pub(super) struct AcceptFailures {
    pub(super) logged: Option<Instant>,
    pub(super) unlogged: u64,
}

impl AcceptFailures {
    pub(super) fn log(&mut self, error: &io::Error) {
        if self.logged.is_some_and(|at| at.elapsed() < LOG) {
            self.unlogged += 1;
            return;
        }
        tracing::warn!(%error, unlogged = self.unlogged, "no connection can be accepted");
        *self = Self { logged: Some(Instant::now()), unlogged: 0 };
    }
}
