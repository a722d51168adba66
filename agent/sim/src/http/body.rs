//! Requests' bodies, bounded each and together.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use http::header::CONTENT_TYPE;
use http::{HeaderMap, StatusCode};
use http_body_util::BodyExt;
use hyper::body::{Body, Incoming};
use tokio::time::timeout;

use crate::openai::ApiError;

/// The longest body.
const MOST: usize = 64 << 20;

/// The most that all bodies together may hold.
const ALL: usize = 256 << 20;

/// The longest pause between two pieces of one.
const PAUSE: Duration = Duration::from_secs(30);

/// What the bodies that are held have in bytes.
#[derive(Clone, Debug, Default)]
pub struct Budget(Arc<AtomicUsize>);

/// A part of it, given back when dropped.
#[derive(Debug)]
struct Share {
    budget: Budget,
    bytes: usize,
}

impl Share {
    fn grow(&mut self, bytes: usize) -> Result<(), ApiError> {
        self.bytes += bytes;
        let all = self.budget.0.fetch_add(bytes, Ordering::Relaxed) + bytes;
        if self.bytes > MOST {
            return Err(ApiError::plain(StatusCode::PAYLOAD_TOO_LARGE, "The body is longer than 64 MiB."));
        }
        if all > ALL {
            let message = "The bodies of all requests together are longer than 256 MiB.";
            return Err(ApiError::plain(StatusCode::SERVICE_UNAVAILABLE, message));
        }
        Ok(())
    }
}

impl Drop for Share {
    fn drop(&mut self) {
        self.budget.0.fetch_sub(self.bytes, Ordering::Relaxed);
    }
}

/// A request that has come in whole.
#[derive(Debug)]
pub struct Arrived {
    /// What becomes part of the answer's id.
    pub id: String,
    /// Its body.
    pub body: Vec<u8>,
    _share: Share,
}

impl Arrived {
    /// Reads a body that is said to be JSON.
    ///
    /// # Errors
    /// When it is not, is too long, or does not come.
    pub async fn read(id: String, headers: &HeaderMap, body: Incoming, budget: &Budget) -> Result<Self, ApiError> {
        let kind = headers.get(CONTENT_TYPE).and_then(|kind| kind.to_str().ok()).unwrap_or_default();
        let kind = kind.split(';').next().unwrap_or_default().trim();
        if !kind.eq_ignore_ascii_case("application/json") {
            return Err(ApiError::not_json());
        }
        let mut share = Share { budget: budget.clone(), bytes: 0 };
        let mut body = body;
        if body.size_hint().lower() > MOST as u64 {
            share.grow(MOST + 1)?;
        }
        let mut whole = Vec::new();
        loop {
            let frame = match timeout(PAUSE, body.frame()).await {
                Ok(None) => return Ok(Self { id, body: whole, _share: share }),
                Ok(Some(Ok(frame))) => frame,
                Ok(Some(Err(error))) => return Err(ApiError::plain(StatusCode::BAD_REQUEST, error.to_string())),
                Err(_) => return Err(ApiError::plain(StatusCode::REQUEST_TIMEOUT, "The body does not come.")),
            };
            if let Some(data) = frame.data_ref() {
                share.grow(data.len())?;
                whole.extend_from_slice(data);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_body_and_all_bodies_together_have_their_limits() {
        let budget = Budget::default();
        let share = || Share { budget: budget.clone(), bytes: 0 };
        let mut full: Vec<_> = (0..ALL / MOST).map(|_| share()).collect();
        assert!(full.iter_mut().all(|share| share.grow(MOST).is_ok()));
        let mut late = share();
        assert_eq!(late.grow(1).map_err(|error| error.status), Err(StatusCode::SERVICE_UNAVAILABLE));
        drop(full);
        assert_eq!(late.grow(MOST - 1), Ok(()));
        assert_eq!(late.grow(1).map_err(|error| error.status), Err(StatusCode::PAYLOAD_TOO_LARGE));
    }
}
