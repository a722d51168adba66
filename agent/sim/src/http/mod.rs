//! HTTP: the connections, the routes, the bodies in both directions.

mod body;
mod dev;
mod events;
mod routes;
mod serve;

use bytes::Bytes;
use http::header::CONTENT_TYPE;
use http::{HeaderValue, Response, StatusCode};
use http_body_util::{Either, Full};
use serde::Serialize;

pub use body::Arrived;
pub use events::{Cut, Events, Outlet, events};
pub use serve::{Listener, Server};

/// An answer on its way.
pub type Answer = Response<Either<Full<Bytes>, Events>>;

/// An answer of one piece. An empty content type is none.
fn whole(status: StatusCode, kind: &'static str, body: impl Into<Bytes>) -> Answer {
    let mut answer = Response::new(Either::Left(Full::new(body.into())));
    *answer.status_mut() = status;
    if !kind.is_empty() {
        answer.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static(kind));
    }
    answer
}

/// A successful answer of JSON text.
#[must_use]
pub fn json_bytes(body: Vec<u8>) -> Answer {
    whole(StatusCode::OK, "application/json", body)
}

/// A successful answer.
#[must_use]
pub fn json(value: &impl Serialize) -> Answer {
    with_status(StatusCode::OK, value)
}

/// An answer with a status.
fn with_status(status: StatusCode, value: &impl Serialize) -> Answer {
    // The values are the simulator's own; none has what JSON can not say.
    whole(status, "application/json", serde_json::to_vec(value).unwrap_or_default())
}
