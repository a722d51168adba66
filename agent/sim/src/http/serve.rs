//! The connections: as many as are allowed, each bounded in what it buffers and how long it idles.

use std::convert::Infallible;
use std::io;
use std::net::SocketAddr;
use std::path::Path;
use std::pin::pin;
use std::time::Duration;

use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, UnixListener};
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio::time::sleep;

use super::routes::App;
use crate::engine::Engine;

/// Connections open at the same time. The next ones wait in the listener's backlog.
const CONNECTIONS: usize = 4096;

/// Bytes that a connection buffers in each direction, and so the bound of a request's head.
const BUFFER: usize = 64 * 1024;

/// How long a connection may take for a request's head, and idle between two. uvicorn's keep-alive under vLLM.
const HEAD: Duration = Duration::from_secs(5);

/// The pause after a failure to accept.
const PAUSE: Duration = Duration::from_millis(100);

/// What is listened on.
#[derive(Debug)]
pub enum Listener {
    /// A port.
    Tcp(TcpListener),
    /// A Unix socket.
    Unix(UnixListener),
}

impl Listener {
    /// Listens on a port, and says on which.
    ///
    /// # Errors
    /// When it can not.
    pub async fn tcp(address: SocketAddr) -> io::Result<(Self, SocketAddr)> {
        let listener = TcpListener::bind(address).await?;
        let bound = listener.local_addr()?;
        Ok((Self::Tcp(listener), bound))
    }

    /// Listens on a Unix socket, whose file is made.
    ///
    /// # Errors
    /// When it can not, as when the file exists already.
    pub fn unix(path: &Path) -> io::Result<Self> {
        UnixListener::bind(path).map(Self::Unix)
    }
}

/// Serves an engine. Dropping it cuts the connections.
#[derive(Debug)]
pub struct Server {
    listener: Listener,
    app: App,
    open: JoinSet<()>,
    closing: watch::Sender<bool>,
}

impl Server {
    /// One that does not accept yet.
    #[must_use]
    pub fn new(listener: Listener, engine: std::sync::Arc<Engine>) -> Self {
        Self { listener, app: App::new(engine), open: JoinSet::new(), closing: watch::Sender::new(false) }
    }

    /// Serves for as long as it is polled.
    pub async fn run(&mut self) -> Infallible {
        loop {
            while self.open.try_join_next().is_some() {}
            if self.open.len() >= CONNECTIONS {
                self.open.join_next().await;
                continue;
            }
            let accepted = match &self.listener {
                Listener::Tcp(listener) => listener.accept().await.map(|(io, _)| {
                    let _ = io.set_nodelay(true);
                    self.spawn(io);
                }),
                Listener::Unix(listener) => listener.accept().await.map(|(io, _)| self.spawn(io)),
            };
            if accepted.is_err() {
                // Of the connection, and the next one works; or of the process, and only time helps.
                sleep(PAUSE).await;
            }
        }
    }

    fn spawn(&mut self, io: impl AsyncRead + AsyncWrite + Unpin + Send + 'static) {
        let mut http = http1::Builder::new();
        http.timer(TokioTimer::new()).header_read_timeout(HEAD).max_buf_size(BUFFER);
        let app = self.app.clone();
        let service = service_fn(move |request| {
            let app = app.clone();
            async move { Ok::<_, Infallible>(app.answer(request).await) }
        });
        let mut closing = self.closing.subscribe();
        self.open.spawn(async move {
            let mut connection = pin!(http.serve_connection(TokioIo::new(io), service));
            // How a connection ends is its client's business, also when it was cut on purpose.
            tokio::select! {
                biased;
                _ = connection.as_mut() => return,
                _ = closing.wait_for(|closing| *closing) => connection.as_mut().graceful_shutdown(),
            }
            let _ = connection.await;
        });
    }

    /// Closes the port and the idle connections, and waits for the others however long they take, as uvicorn does.
    pub async fn close(self) {
        let Self { listener, mut open, closing, .. } = self;
        drop(listener);
        closing.send_replace(true);
        while open.join_next().await.is_some() {}
    }
}
