//! Asking tailscaled: HTTP on its Unix socket, which every user of the machine may read from.

use std::path::Path;
use std::time::Duration;

use reqwest::{Client, StatusCode, redirect};

/// How long an answer may take, to its last byte.
const LIMIT: Duration = Duration::from_secs(2);

/// The longest status, in bytes: some thousands of machines.
const STATUS_LIMIT: usize = 8 * 1024 * 1024;

/// How much of a refusal is told.
const REFUSAL_LIMIT: usize = 200;

/// The status of this machine and of the others in its tailnet, as JSON.
///
/// # Errors
/// Why there is no answer, or none that could be one.
pub async fn status(socket: &Path) -> Result<Vec<u8>, String> {
    // tailscaled answers requests for this host name only.
    get(socket, "http://local-tailscaled.sock/localapi/v0/status", STATUS_LIMIT).await
}

async fn get(socket: &Path, url: &str, limit: usize) -> Result<Vec<u8>, String> {
    let builder = Client::builder().timeout(LIMIT).no_proxy().redirect(redirect::Policy::none());
    let client = builder.unix_socket(socket.to_owned()).build().map_err(|error| innermost(&error))?;
    let mut response = client.get(url).send().await.map_err(|error| reason(&error))?;
    let status = response.status();
    let mut body = Vec::new();
    while let Some(piece) = response.chunk().await.map_err(|error| reason(&error))? {
        if body.len() + piece.len() > limit {
            return Err(format!("its answer is longer than {limit} bytes"));
        }
        body.extend_from_slice(&piece);
    }
    if status == StatusCode::OK {
        return Ok(body);
    }
    body.truncate(REFUSAL_LIMIT);
    Err(format!("it answered {status}: {}", String::from_utf8_lossy(&body).trim().escape_debug()))
}

fn reason(error: &reqwest::Error) -> String {
    if error.is_timeout() { format!("no answer within {} s", LIMIT.as_secs()) } else { innermost(error) }
}

/// The innermost reason is the one that says something.
fn innermost(error: &reqwest::Error) -> String {
    let chain = std::iter::successors(Some(error as &dyn std::error::Error), |error| error.source());
    chain.last().map_or_else(String::new, ToString::to_string)
}
