//! Asking a server on the web for a file: names resolved and judged, redirects followed and judged again.
//!
//! This is hyper and not reqwest, because the address that is judged has to be the one that is dialled, and because reqwest's
//! TLS, once switched on, makes every client of the process depend on a global provider of cryptography.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::header::{
    ACCEPT, ACCEPT_ENCODING, CONNECTION, CONTENT_DISPOSITION, CONTENT_LENGTH, CONTENT_RANGE, ETAG, HOST, HeaderName,
    IF_RANGE, LAST_MODIFIED, LOCATION, RANGE, USER_AGENT,
};
use http::{HeaderMap, Request, Response, StatusCode};
use http_body_util::Empty;
use hyper::body::Incoming;
use hyper::client::conn::http1;
use hyper_util::rt::TokioIo;
use rustls::ClientConfig;
use rustls::pki_types::ServerName;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpStream, lookup_host};
use tokio::sync::OnceCell;
use tokio::time::timeout;
use tokio_rustls::TlsConnector;
use tokio_util::task::AbortOnDropHandle;
use url::{Host, Url};

use super::address::PullPolicy;
use crate::files::error::{FilesError, blocking};

/// The most redirects of one request.
const REDIRECTS: usize = 5;

/// How long it may take until a connection stands, and until an answer begins.
const CONNECT: Duration = Duration::from_secs(10);
const ANSWER: Duration = Duration::from_secs(30);

/// Why a request did not succeed.
#[derive(Debug)]
pub(super) enum Trouble {
    /// Trying again may help. Says what has happened.
    Again(String),
    /// It will not.
    Final(FilesError),
}

/// Where to go on with a file, and what tells that it is still the same one.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Resume {
    pub(super) from: u64,
    pub(super) validator: String,
}

/// An answer whose body is still to be read. Dropping it closes the connection.
#[derive(Debug)]
pub(super) struct Answer {
    pub(super) response: Response<Incoming>,
    /// Where the redirects have led.
    pub(super) url: Url,
    pub(super) connection: AbortOnDropHandle<()>,
}

impl Answer {
    fn header(&self, name: HeaderName) -> Option<&str> {
        self.response.headers().get(name)?.to_str().ok()
    }

    pub(super) fn length(&self) -> Option<u64> {
        self.header(CONTENT_LENGTH)?.parse().ok()
    }

    /// What a later request can name to be sure of the same file.
    pub(super) fn validator(&self) -> Option<String> {
        let strong = self.header(ETAG).filter(|tag| !tag.starts_with("W/"));
        strong.or_else(|| self.header(LAST_MODIFIED)).map(str::to_owned)
    }

    /// Where a partial answer starts, and how long the whole is.
    pub(super) fn range(&self) -> Option<(u64, Option<u64>)> {
        let (range, total) = self.header(CONTENT_RANGE)?.strip_prefix("bytes ")?.split_once('/')?;
        let (from, _) = range.split_once('-')?;
        Some((from.trim().parse().ok()?, total.trim().parse().ok()))
    }

    /// The file's name as the server gives it.
    pub(super) fn file_name(&self) -> Option<String> {
        disposition(self.response.headers())
    }
}

fn disposition(headers: &HeaderMap) -> Option<String> {
    let text = headers.get(CONTENT_DISPOSITION)?.to_str().ok()?;
    let mut parts = text.split(';').map(str::trim);
    let name = parts.find_map(|part| part.strip_prefix("filename="))?;
    Some(name.trim_matches('"').to_owned())
}

/// Asks servers for files.
#[derive(Clone, Debug)]
pub(super) struct Client {
    policy: PullPolicy,
    /// Read from the machine when first needed; `None` inside: there is none.
    tls: Arc<OnceCell<Option<Arc<ClientConfig>>>>,
}

impl Client {
    pub(super) fn new(policy: PullPolicy) -> Self {
        Self { policy, tls: Arc::default() }
    }

    #[cfg(test)]
    pub(super) fn trusting(policy: PullPolicy, tls: Arc<ClientConfig>) -> Self {
        Self { policy, tls: Arc::new(OnceCell::new_with(Some(Some(tls)))) }
    }

    pub(super) fn policy(&self) -> PullPolicy {
        self.policy
    }

    /// Asks for a file, or for the rest of it.
    pub(super) async fn get(&self, url: &Url, resume: Option<&Resume>) -> Result<Answer, Trouble> {
        let mut url = url.clone();
        for _ in 0..=REDIRECTS {
            let answer = self.ask(&url, resume).await?;
            let Some(next) = self.redirected(&answer)? else { return Ok(answer) };
            url = next;
        }
        Err(Trouble::Final(FilesError::Upstream(format!("the server redirects more than {REDIRECTS} times"))))
    }

    /// Where an answer sends the client, if that is what it does.
    fn redirected(&self, answer: &Answer) -> Result<Option<Url>, Trouble> {
        let redirects = [
            StatusCode::MOVED_PERMANENTLY,
            StatusCode::FOUND,
            StatusCode::SEE_OTHER,
            StatusCode::TEMPORARY_REDIRECT,
            StatusCode::PERMANENT_REDIRECT,
        ];
        if !redirects.contains(&answer.response.status()) {
            return Ok(None);
        }
        let refuse = |why: &str| Trouble::Final(FilesError::Upstream(format!("the server redirects {why}")));
        let to = answer.header(LOCATION).and_then(|to| answer.url.join(to).ok());
        let to = to.ok_or_else(|| refuse("to nowhere"))?;
        if answer.url.scheme() == "https" && to.scheme() != "https" {
            return Err(refuse("from https to something else"));
        }
        match self.policy.check(to.as_str()) {
            Ok(url) => Ok(Some(url)),
            Err(error) => Err(refuse(&format!("to where this node does not go: {error}"))),
        }
    }

    async fn ask(&self, url: &Url, resume: Option<&Resume>) -> Result<Answer, Trouble> {
        let again = |why: &str| Trouble::Again(why.to_owned());
        let request = request(url, resume)?;
        let connected = timeout(CONNECT, self.reach(url)).await;
        let stream = connected.map_err(|_| again("connecting to the server took too long"))??;
        let sent = async {
            if url.scheme() == "http" {
                return speak(stream, request).await;
            }
            let tls = self.tls.get_or_init(load_trust).await.clone();
            let tls = tls.ok_or_else(|| io::Error::other("this machine trusts no certificates")).map_err(broken)?;
            let name = ServerName::try_from(host(url)).map_err(|e| broken(io::Error::other(e)))?;
            let stream = TlsConnector::from(tls).connect(name, stream).await.map_err(broken)?;
            speak(stream, request).await
        };
        let (response, connection) =
            timeout(ANSWER, sent).await.map_err(|_| again("the server took too long to answer"))??;
        Ok(Answer { response, url: url.clone(), connection })
    }

    /// Connects to the first address of the URL's host that answers, of those that are not refused.
    async fn reach(&self, url: &Url) -> Result<TcpStream, Trouble> {
        let port = url.port_or_known_default().unwrap_or(80);
        let found = lookup_host((host(url), port)).await;
        let found: Vec<SocketAddr> =
            found.map_err(|_| Trouble::Again("the server's name leads nowhere".to_owned()))?.collect();
        let mut last = Trouble::Again("the server's name leads nowhere".to_owned());
        for address in found {
            if let Some(why) = self.policy.refuses(address.ip()) {
                last = Trouble::Final(FilesError::Invalid(format!("the URL's name must not lead to {why}")));
                continue;
            }
            match TcpStream::connect(address).await {
                Ok(stream) => return Ok(stream),
                Err(error) => last = broken(error),
            }
        }
        Err(last)
    }
}

/// The host as the system's resolver takes it: addresses without brackets.
fn host(url: &Url) -> String {
    match url.host() {
        Some(Host::Ipv6(address)) => address.to_string(),
        Some(host) => host.to_string(),
        None => String::new(),
    }
}

fn broken(error: io::Error) -> Trouble {
    Trouble::Again(format!("the server can not be reached: {error}"))
}

fn request(url: &Url, resume: Option<&Resume>) -> Result<Request<Empty<Bytes>>, Trouble> {
    let authority = match url.port() {
        Some(port) => format!("{}:{port}", url.host_str().unwrap_or_default()),
        None => url.host_str().unwrap_or_default().to_owned(),
    };
    let target = match url.query() {
        Some(query) => format!("{}?{query}", url.path()),
        None => url.path().to_owned(),
    };
    let mut request = Request::get(target)
        .header(HOST, authority)
        .header(USER_AGENT, concat!("muster/", env!("CARGO_PKG_VERSION")))
        .header(ACCEPT, "*/*")
        // The file itself, so that offsets and lengths are the file's.
        .header(ACCEPT_ENCODING, "identity")
        .header(CONNECTION, "close");
    if let Some(Resume { from, validator }) = resume {
        request = request.header(RANGE, format!("bytes={from}-")).header(IF_RANGE, validator);
    }
    request
        .body(Empty::new())
        .map_err(|_| Trouble::Final(FilesError::Invalid("the URL can not be asked for".to_owned())))
}

async fn speak<T>(
    stream: T,
    request: Request<Empty<Bytes>>,
) -> Result<(Response<Incoming>, AbortOnDropHandle<()>), Trouble>
where
    T: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let fail = |_| Trouble::Again("the connection broke before the answer".to_owned());
    let (mut sender, connection) = http1::handshake(TokioIo::new(stream)).await.map_err(fail)?;
    let connection = AbortOnDropHandle::new(tokio::spawn(async move {
        // What went wrong is seen by whoever reads the body.
        let _ = connection.await;
    }));
    Ok((sender.send_request(request).await.map_err(fail)?, connection))
}

async fn load_trust() -> Option<Arc<ClientConfig>> {
    let loaded = blocking(|| {
        let mut roots = rustls::RootCertStore::empty();
        let (added, _) = roots.add_parsable_certificates(rustls_native_certs::load_native_certs().certs);
        if added == 0 {
            tracing::warn!(
                "this machine trusts no certificates (ca-certificates is missing?): nothing is pulled by https"
            );
        }
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let builder = ClientConfig::builder_with_provider(provider).with_safe_default_protocol_versions();
        let mut config = builder.map_err(|_| FilesError::GivenUp)?.with_root_certificates(roots).with_no_client_auth();
        config.alpn_protocols = vec![b"http/1.1".to_vec()];
        Ok(Arc::new(config))
    });
    loaded.await.ok()
}
