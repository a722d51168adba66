//! Talking to a node: through the socket in its data directory, or over the network with a key.

use std::fs::OpenOptions;
use std::io::Write;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use reqwest::{Client as Http, Method, StatusCode};
use serde_json::Value;
use tokio::runtime::{Builder, Runtime};

use crate::cli::ClientArguments;
use crate::exit::Failure;
use crate::node::{Socket, safe_socket_path};

/// How long a command waits for an answer. A write may take ten seconds until its outcome is unknown.
const LIMIT: Duration = Duration::from_secs(20);

/// How long writing a file may take.
const DOWNLOAD_LIMIT: Duration = Duration::from_secs(3600);

/// A connection to a node.
pub struct Client {
    runtime: Runtime,
    http: Http,
    endpoint: String,
    token: Option<String>,
    socket: Option<PathBuf>,
}

impl Client {
    /// Prepares to talk to the node that the arguments name, or to the one of this data directory.
    pub fn new(arguments: &ClientArguments, data_dir: &Path) -> Result<Self, Failure> {
        let failed = |error: &dyn std::fmt::Display| Failure::other(format!("no connection can be made: {error}"));
        let runtime = Builder::new_current_thread().enable_all().build().map_err(|error| failed(&error))?;
        let socket = if arguments.endpoint.is_none() { Some(safe_socket_path(data_dir, Socket::Local)?) } else { None };
        let mut builder = Http::builder().timeout(LIMIT).no_proxy();
        if let Some(socket) = &socket {
            builder = builder.unix_socket(socket.clone());
        }
        let http = builder.build().map_err(|error| failed(&error))?;
        let endpoint = arguments.endpoint.as_deref().unwrap_or("http://localhost").trim_end_matches('/').to_owned();
        Ok(Self { runtime, http, endpoint, token: arguments.token.clone(), socket })
    }

    /// Asks for something.
    pub fn get(&self, path: &str) -> Result<Value, Failure> {
        self.call(Method::GET, path, None)
    }

    /// Makes something.
    pub fn post(&self, path: &str, body: &Value) -> Result<Value, Failure> {
        self.call(Method::POST, path, Some(body))
    }

    /// Changes something.
    pub fn put(&self, path: &str, body: &Value) -> Result<Value, Failure> {
        self.call(Method::PUT, path, Some(body))
    }

    /// Removes something.
    pub fn delete(&self, path: &str) -> Result<Value, Failure> {
        self.call(Method::DELETE, path, None)
    }

    /// Writes what is at a path into a new file. On an error there is none.
    pub fn download(&self, path: &str, to: &Path) -> Result<(), Failure> {
        let mut request = self.http.get(format!("{}{path}", self.endpoint)).timeout(DOWNLOAD_LIMIT);
        if let Some(token) = &self.token {
            request = request.bearer_auth(token);
        }
        let doing = |error: std::io::Error| Failure::other(format!("{}: {error}", to.display()));
        self.runtime.block_on(async {
            let mut response = request.send().await.map_err(|error| self.unreachable(&error))?;
            let status = response.status();
            if !status.is_success() {
                let bytes = response.bytes().await.map_err(|error| self.unreachable(&error))?;
                return Err(refused(status, &serde_json::from_slice(&bytes).unwrap_or(Value::Null)));
            }
            // It holds hashes of keys; and an older backup is not written over.
            let mut file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(to).map_err(doing)?;
            let written = async {
                while let Some(piece) = response.chunk().await.map_err(|error| self.unreachable(&error))? {
                    file.write_all(&piece).map_err(doing)?;
                }
                file.sync_all().map_err(doing)
            };
            let written = written.await;
            if written.is_err() {
                let _ = std::fs::remove_file(to);
            }
            written
        })
    }

    fn call(&self, method: Method, path: &str, body: Option<&Value>) -> Result<Value, Failure> {
        let mut request = self.http.request(method, format!("{}{path}", self.endpoint));
        if let Some(token) = &self.token {
            request = request.bearer_auth(token);
        }
        if let Some(body) = body {
            request = request.json(body);
        }
        self.runtime.block_on(async {
            let response = request.send().await.map_err(|error| self.unreachable(&error))?;
            let status = response.status();
            let bytes = response.bytes().await.map_err(|error| self.unreachable(&error))?;
            let answer: Value = serde_json::from_slice(&bytes).unwrap_or(Value::Null);
            if status.is_success() { Ok(answer) } else { Err(refused(status, &answer)) }
        })
    }

    fn unreachable(&self, error: &reqwest::Error) -> Failure {
        let place = match &self.socket {
            Some(socket) => format!("the node of this machine ({})", socket.display()),
            None => self.endpoint.clone(),
        };
        // The innermost reason is the one that says something.
        let chain = std::iter::successors(Some(error as &dyn std::error::Error), |error| error.source());
        let why = chain.last().map_or_else(String::new, ToString::to_string);
        let hint = if self.socket.is_some() { "; is it running? --endpoint names another node" } else { "" };
        Failure::other(format!("{place} can not be reached: {why}{hint}"))
    }
}

/// What the node said, and the exit code that fits.
fn refused(status: StatusCode, answer: &Value) -> Failure {
    let text = |field: &str| answer.get(field).and_then(Value::as_str).unwrap_or_default();
    let message = match (text("error"), text("detail")) {
        ("", _) => format!("the node answered {status}"),
        (error, "") => error.to_owned(),
        (error, detail) => format!("{error}: {detail}"),
    };
    let message = match text("idempotencyKey") {
        "" => message,
        key => format!("{message} (Idempotency-Key: {key})"),
    };
    match status {
        StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN => Failure::denied(message),
        StatusCode::NOT_FOUND => Failure::not_found(message),
        StatusCode::SERVICE_UNAVAILABLE if text("code") == "NO_QUORUM" => Failure::no_quorum(message),
        _ => Failure::other(message),
    }
}

/// A part of a path: everything that could end it is encoded.
pub fn segment(text: &str) -> String {
    let mut encoded = String::new();
    for byte in text.bytes() {
        if byte.is_ascii_alphanumeric() || b"-._~".contains(&byte) {
            encoded.push(char::from(byte));
        } else {
            encoded.push_str(&format!("%{byte:02X}"));
        }
    }
    encoded
}

#[cfg(test)]
mod tests {
    use reqwest::StatusCode;
    use serde_json::json;

    use super::{refused, segment};

    #[test]
    fn an_unknown_outcome_names_the_key_to_repeat_it_with() {
        let answer = json!({ "error": "the outcome is unknown", "detail": "repeat it", "idempotencyKey": "m-1.2" });
        let message = refused(StatusCode::GATEWAY_TIMEOUT, &answer).to_string();
        assert_eq!(message, "the outcome is unknown: repeat it (Idempotency-Key: m-1.2)");
    }

    #[test]
    fn a_name_stays_one_segment() {
        assert_eq!(segment("Llama 3 (local)/x?#\u{e9}"), "Llama%203%20%28local%29%2Fx%3F%23%C3%A9");
    }
}
