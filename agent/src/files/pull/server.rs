//! A server for tests that says what it is told to, and breaks off where it is told to.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use rustls::pki_types::PrivateKeyDer;
use rustls::{ClientConfig, ServerConfig};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpListener;
use tokio_rustls::TlsAcceptor;
use tokio_util::task::AbortOnDropHandle;

/// A request as the server sees it, and which one it is.
pub(super) struct Asked {
    pub(super) head: String,
    pub(super) number: usize,
}

impl Asked {
    pub(super) fn path(&self) -> &str {
        self.head.split(' ').nth(1).unwrap_or_default()
    }

    pub(super) fn header(&self, name: &str) -> Option<&str> {
        self.head.lines().find_map(|line| {
            let (key, value) = line.split_once(": ")?;
            key.eq_ignore_ascii_case(name).then_some(value)
        })
    }

    /// Where a range starts.
    pub(super) fn from(&self) -> Option<usize> {
        self.header("range")?.strip_prefix("bytes=")?.strip_suffix('-')?.parse().ok()
    }
}

/// What a server says before it closes the connection, or instead keeps it open and says no more.
pub(super) struct Said {
    pub(super) bytes: Vec<u8>,
    pub(super) stays: bool,
}

pub(super) fn said(status: &str, headers: &str, body: &[u8]) -> Said {
    let mut bytes = format!("HTTP/1.1 {status}\r\n{headers}\r\n").into_bytes();
    bytes.extend_from_slice(body);
    Said { bytes, stays: false }
}

pub(super) fn ok(body: &[u8]) -> Said {
    said("200 OK", &format!("Content-Length: {}\r\n", body.len()), body)
}

/// A certificate for this machine, as a server shows it and as a client trusts it.
pub(super) fn certified() -> (TlsAcceptor, Arc<ClientConfig>) {
    let made = rcgen::generate_simple_self_signed(vec!["127.0.0.1".to_owned()]).unwrap();
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let key = PrivateKeyDer::try_from(made.signing_key.serialize_der()).unwrap();
    let server =
        ServerConfig::builder_with_provider(Arc::clone(&provider)).with_safe_default_protocol_versions().unwrap();
    let server = server.with_no_client_auth().with_single_cert(vec![made.cert.der().clone()], key).unwrap();
    let mut roots = rustls::RootCertStore::empty();
    roots.add(made.cert.der().clone()).unwrap();
    let client = ClientConfig::builder_with_provider(provider).with_safe_default_protocol_versions().unwrap();
    (TlsAcceptor::from(Arc::new(server)), Arc::new(client.with_root_certificates(roots).with_no_client_auth()))
}

pub(super) struct Server {
    pub(super) port: u16,
    pub(super) requests: Arc<AtomicUsize>,
    _task: AbortOnDropHandle<()>,
}

impl Server {
    pub(super) async fn start(answer: impl Fn(Asked) -> Said + Send + Sync + 'static) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let requests = Arc::new(AtomicUsize::new(0));
        let counter = Arc::clone(&requests);
        let task = tokio::spawn(async move {
            let mut open = Vec::new();
            loop {
                let (mut stream, _) = listener.accept().await.unwrap();
                let mut head = Vec::new();
                while !head.ends_with(b"\r\n\r\n") {
                    head.push(stream.read_u8().await.unwrap());
                }
                let number = counter.fetch_add(1, Ordering::Relaxed);
                let said = answer(Asked { head: String::from_utf8(head).unwrap(), number });
                let _ = stream.write_all(&said.bytes).await;
                if said.stays {
                    open.push(stream);
                }
            }
        });
        Self { port, requests, _task: AbortOnDropHandle::new(task) }
    }

    pub(super) fn url(&self, path: &str) -> String {
        format!("http://127.0.0.1:{}{path}", self.port)
    }
}
