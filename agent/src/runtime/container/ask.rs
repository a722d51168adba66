//! The two questions about containers on which everything depends, asked without the client's own types.
//!
//! Those refuse a whole answer for one word that they do not know, and Podman has states that Docker has not: somebody's
//! container that is `stopped` would hide all others.

use std::collections::HashMap;
use std::path::Path;

use bytes::Bytes;
use http::{Request, header};
use http_body_util::{BodyExt, Empty, Limited};
use hyper::client::conn::http1;
use hyper_util::rt::TokioIo;
use percent_encoding::{NON_ALPHANUMERIC, utf8_percent_encode};
use serde::Deserialize;
use serde::de::DeserializeOwned;
use tokio::net::UnixStream;

use super::call::{CallError, shortened};
use super::daemon::{Client, SHORT};
use super::flavour::Version;

/// The largest answer, in bytes.
const ANSWER_LIMIT: usize = 64 << 20;

/// A container in the list of all.
#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub(super) struct Listed {
    pub(super) id: String,
    pub(super) names: Option<Vec<String>>,
    pub(super) image: Option<String>,
    #[serde(rename = "ImageID")]
    pub(super) image_id: Option<String>,
    pub(super) labels: Option<HashMap<String, String>>,
    pub(super) state: Option<String>,
}

/// A container with its details.
#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub(super) struct Details {
    /// The identity of its image.
    pub(super) image: Option<String>,
    pub(super) state: Option<State>,
    pub(super) config: Option<Config>,
    pub(super) network_settings: Option<NetworkSettings>,
}

impl Details {
    pub(super) fn labels(&self) -> Option<&HashMap<String, String>> {
        self.config.as_ref()?.labels.as_ref()
    }
}

/// Whether a container runs, and how it ended.
#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub(super) struct State {
    pub(super) running: bool,
    pub(super) paused: bool,
    pub(super) restarting: bool,
    #[serde(rename = "OOMKilled")]
    pub(super) oom_killed: bool,
    pub(super) pid: i64,
    pub(super) exit_code: Option<i64>,
    pub(super) started_at: Option<String>,
}

/// What a container was created with.
#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub(super) struct Config {
    /// The image as it was asked for.
    pub(super) image: Option<String>,
    pub(super) labels: Option<HashMap<String, String>>,
}

/// Where a container's ports are published.
#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub(super) struct NetworkSettings {
    pub(super) ports: Option<HashMap<String, Option<Vec<Binding>>>>,
}

/// One of these places.
#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub(super) struct Binding {
    pub(super) host_port: Option<String>,
}

/// All containers, running or not, that pass these filters.
pub(super) async fn list(client: &Client, filters: &HashMap<String, Vec<String>>) -> Result<Vec<Listed>, CallError> {
    let filters = serde_json::to_string(filters).map_err(|error| CallError::Odd(error.to_string()))?;
    let filters = utf8_percent_encode(&filters, NON_ALPHANUMERIC);
    get(client, &format!("/containers/json?all=true&filters={filters}")).await
}

/// A container, if it is there.
pub(super) async fn inspect(client: &Client, id: &str) -> Result<Option<Details>, CallError> {
    let id = utf8_percent_encode(id, NON_ALPHANUMERIC);
    match get(client, &format!("/containers/{id}/json")).await {
        Ok(details) => Ok(Some(details)),
        Err(error) if error.is_missing() => Ok(None),
        Err(error) => Err(error),
    }
}

async fn get<T: DeserializeOwned>(client: &Client, path: &str) -> Result<T, CallError> {
    let answer = tokio::time::timeout(SHORT, fetch(&client.socket, client.facts.api, path)).await;
    let (status, body) = answer.map_err(|_| CallError::Silent)??;
    if !(200..300).contains(&status) {
        #[derive(Deserialize)]
        struct Said {
            message: String,
        }
        let message = serde_json::from_slice(&body)
            .map_or_else(|_| String::from_utf8_lossy(&body).into_owned(), |said: Said| said.message);
        return Err(CallError::Refused { status, message: shortened(&message) });
    }
    // The text of a parser's error would name what it stumbled over.
    serde_json::from_slice(&body)
        .map_err(|error| CallError::Odd(format!("its answer can not be read at column {}", error.column())))
}

async fn fetch(socket: &Path, api: Version, path: &str) -> Result<(u16, Bytes), CallError> {
    let unreachable = |error: hyper::Error| CallError::Unreachable(error.to_string());
    let stream = UnixStream::connect(socket).await.map_err(|error| CallError::Unreachable(error.to_string()))?;
    let (mut sender, connection) = http1::handshake(TokioIo::new(stream)).await.map_err(unreachable)?;
    let request = Request::get(format!("/v{api}{path}"))
        .header(header::HOST, "localhost")
        .header(header::CONNECTION, "close")
        .body(Empty::<Bytes>::new())
        .map_err(|error| CallError::Odd(error.to_string()))?;
    let answer = async {
        let response = sender.send_request(request).await.map_err(unreachable)?;
        let status = response.status().as_u16();
        let body = Limited::new(response.into_body(), ANSWER_LIMIT).collect().await;
        let body = body.map_err(|error| CallError::Unreachable(error.to_string()))?;
        Ok((status, body.to_bytes()))
    };
    // Both go on together, and nothing of it outlives this call.
    let mut answer = std::pin::pin!(answer);
    tokio::select! {
        answer = &mut answer => answer,
        ended = connection => match ended {
            // All of it has been read; what came is still to be taken.
            Ok(()) => answer.await,
            Err(error) => Err(unreachable(error)),
        },
    }
}
