//! The connection to a daemon: found by trying sockets, asked what it is, remembered for a short while.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use arc_swap::ArcSwapOption;
use bollard::{BollardRequest, ClientVersion, Docker};
use http::Uri;
use http::uri::PathAndQuery;

use super::call::{CallError, within};
use super::flavour::{Facts, Flavour, Version};
use crate::runtime::RuntimeError;

/// How long a call may take that only reads or changes a record.
pub(super) const SHORT: Duration = Duration::from_secs(30);

/// How long a call may take that moves a container's or an image's files.
pub(super) const LONG: Duration = Duration::from_secs(300);

/// How long the question may take whether a daemon is there.
const PROBE: Duration = Duration::from_secs(5);

/// How long an answer to that question is believed.
const BELIEVED: Duration = Duration::from_secs(20);

/// How long it is believed that a daemon is not there.
const DOUBTED: Duration = Duration::from_secs(1);

/// A daemon that may be at one of some sockets.
pub struct Daemon {
    configured: Flavour,
    sockets: Vec<PathBuf>,
    found: ArcSwapOption<Found>,
}

struct Found {
    at: Instant,
    outcome: Result<Client, String>,
}

/// A daemon that answers.
#[derive(Clone)]
pub(super) struct Client {
    pub(super) docker: Docker,
    pub(super) socket: Arc<Path>,
    pub(super) facts: Arc<Facts>,
    /// As what it is configured, for messages.
    pub(super) configured: Flavour,
}

impl Client {
    /// The outcome of a short call.
    pub(super) async fn short<T>(
        &self,
        call: impl Future<Output = Result<T, bollard::errors::Error>>,
    ) -> Result<T, CallError> {
        within(SHORT, call).await
    }

    /// The outcome of a call that moves files.
    pub(super) async fn long<T, F: Future<Output = Result<T, bollard::errors::Error>>>(
        &self,
        call: impl FnOnce(Docker) -> F,
    ) -> Result<T, CallError> {
        within(LONG, call(self.patient(LONG))).await
    }

    /// One whose answers may take longer to begin.
    pub(super) fn patient(&self, limit: Duration) -> Docker {
        self.docker.clone().with_timeout(limit)
    }

    /// An error of the runtime.
    pub(super) fn failed(&self, error: CallError) -> RuntimeError {
        error.of(self.configured)
    }
}

impl Daemon {
    /// One of this kind, at the first of these sockets that answers.
    #[must_use]
    pub fn new(configured: Flavour, sockets: Vec<PathBuf>) -> Self {
        Self { configured, sockets, found: ArcSwapOption::empty() }
    }

    /// As what it is configured. What it really is, is in its [`Facts`].
    #[must_use]
    pub fn configured(&self) -> Flavour {
        self.configured
    }

    /// What is known of it.
    ///
    /// # Errors
    /// When it does not answer.
    pub async fn facts(&self) -> Result<Arc<Facts>, RuntimeError> {
        self.client().await.map(|client| client.facts)
    }

    /// A client of it.
    pub(super) async fn client(&self) -> Result<Client, RuntimeError> {
        if let Some(found) = self.found.load_full() {
            let believed = if found.outcome.is_ok() { BELIEVED } else { DOUBTED };
            if found.at.elapsed() < believed {
                return self.told(&found);
            }
        }
        let found = Arc::new(Found { at: Instant::now(), outcome: self.look().await });
        self.found.store(Some(Arc::clone(&found)));
        self.told(&found)
    }

    /// Whether it answers now; what is remembered is not asked.
    ///
    /// # Errors
    /// When it does not.
    pub async fn ping(&self) -> Result<(), RuntimeError> {
        let client = self.client().await?;
        let answer = within(PROBE, client.docker.ping()).await;
        answer.map(|_| ()).map_err(|error| {
            self.found.store(None);
            error.of(self.configured)
        })
    }

    fn told(&self, found: &Found) -> Result<Client, RuntimeError> {
        let runtime = self.configured.kind();
        found.outcome.clone().map_err(|why| RuntimeError::Unavailable { runtime, why })
    }

    async fn look(&self) -> Result<Client, String> {
        let mut reasons = Vec::new();
        for socket in &self.sockets {
            match connect(socket).await {
                Ok((docker, facts)) => {
                    return Ok(Client {
                        docker,
                        socket: Arc::from(socket.as_path()),
                        facts: Arc::new(facts),
                        configured: self.configured,
                    });
                }
                Err(why) => reasons.push(format!("{}: {why}", socket.display())),
            }
        }
        match self.configured {
            _ if reasons.is_empty() => Err("no socket is configured".to_owned()),
            Flavour::Docker => Err(format!("{}. Is Docker Engine installed and started?", reasons.join("; "))),
            Flavour::Podman => Err(format!("{}. Is Podman's service started (podman.socket)?", reasons.join("; "))),
        }
    }
}

async fn connect(socket: &Path) -> Result<(Docker, Facts), String> {
    if !socket.exists() {
        return Err("there is no such socket".to_owned());
    }
    let Some(path) = socket.to_str() else {
        return Err("its path is not text".to_owned());
    };
    let any = ClientVersion { major_version: 1, minor_version: 40 };
    let docker = Docker::connect_with_unix(path, PROBE.as_secs(), &any).map_err(|error| error.to_string())?;
    // Without a version in its path a question is answered by every daemon, in its own newest version.
    let version = within(PROBE, docker.version()).await.map_err(|error| error.to_string())?;
    // Podman's answer has shapes that Docker's has not; what can not be read is as if it were not said.
    let info = within(PROBE, docker.info()).await.ok();
    let facts = Facts::read(&version, info.as_ref())?;
    let api = facts.api;
    let docker = docker.with_timeout(SHORT).with_request_modifier(move |request| versioned(request, api));
    Ok((docker, facts))
}

/// A request that names the version of the API that was agreed on.
fn versioned(mut request: BollardRequest, api: Version) -> BollardRequest {
    let mut parts = request.uri().clone().into_parts();
    let path = parts.path_and_query.as_ref().map_or("/", PathAndQuery::as_str);
    if let Ok(path) = PathAndQuery::try_from(format!("/v{api}{path}")) {
        parts.path_and_query = Some(path);
        if let Ok(uri) = Uri::from_parts(parts) {
            *request.uri_mut() = uri;
        }
    }
    request
}
