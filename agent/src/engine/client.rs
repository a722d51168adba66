//! One request to an engine on this machine: HTTP/1.1 over a Unix socket or loopback, within a time and a size.
//!
//! Every request has a connection of its own. They are few, and a connection that is kept would say of an engine that has been
//! replaced what was true of the one before.

use std::io::{Error as IoError, ErrorKind};
use std::pin::pin;
use std::time::Duration;

use bytes::Bytes;
use http::header::HOST;
use http::{HeaderValue, Method, Request, StatusCode};
use http_body_util::{BodyExt, Empty, LengthLimitError, Limited};
use hyper::client::conn::http1;
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpStream, UnixStream};

use crate::runtime::Endpoint;

/// What a request may take.
#[derive(Clone, Copy, Debug)]
pub struct Bounds {
    /// From the first byte sent to the last one read.
    pub time: Duration,
    /// The answer's body, in bytes.
    pub size: usize,
}

/// What an engine has answered.
#[derive(Clone, Debug)]
pub struct Reply {
    /// How.
    pub status: StatusCode,
    /// What, whole.
    pub body: Bytes,
}

/// Why a request to an engine has no answer, or not the one that it should have.
#[derive(Debug, thiserror::Error)]
pub enum CallError {
    /// Nothing listens there. It may not do so yet.
    #[error("the engine does not listen")]
    Refused,
    /// The connection was closed, or reset, before there was an answer. The proxy of a published port does that for an engine
    /// that does not listen yet.
    #[error("the engine closed the connection without an answer")]
    Unanswered,
    /// It took too long. What was asked for may still happen.
    #[error("the engine did not answer within {} s", .0.as_secs_f64())]
    Timeout(Duration),
    /// The answer is larger than is read.
    #[error("the engine's answer is longer than {0} bytes")]
    TooLong(usize),
    /// It does not do what it was asked for.
    #[error("the engine answered {status} to {what}")]
    Status {
        /// What was asked for.
        what: &'static str,
        /// How it answered.
        status: StatusCode,
    },
    /// The answer is not what this is answered with.
    #[error("the engine's answer to {0} makes no sense")]
    Malformed(&'static str),
    /// Anything else on the way.
    #[error("the engine can not be called: {0}")]
    Io(#[from] IoError),
}

/// Asks, and reads the whole answer, whatever its status. The target is a path, with a query if there is one.
///
/// # Errors
/// When there is no answer within the bounds.
pub async fn ask(at: &Endpoint, method: Method, target: &'static str, bounds: Bounds) -> Result<Reply, CallError> {
    let asking = async {
        match at {
            Endpoint::Unix(path) => {
                exchange(UnixStream::connect(path).await.map_err(unconnected)?, method, target, bounds.size).await
            }
            Endpoint::Tcp(address) => {
                exchange(TcpStream::connect(address).await.map_err(unconnected)?, method, target, bounds.size).await
            }
        }
    };
    // A request's state is large, and callers hold several.
    let asking = Box::pin(asking);
    tokio::time::timeout(bounds.time, asking).await.unwrap_or(Err(CallError::Timeout(bounds.time)))
}

async fn exchange<S: AsyncRead + AsyncWrite + Unpin>(
    stream: S,
    method: Method,
    target: &'static str,
    size: usize,
) -> Result<Reply, CallError> {
    let lost = |error| unanswered(error, target);
    let (mut sender, connection) = http1::handshake(TokioIo::new(stream)).await.map_err(lost)?;
    let mut request = Request::new(Empty::<Bytes>::new());
    *request.method_mut() = method;
    *request.uri_mut() = http::Uri::from_static(target);
    request.headers_mut().insert(HOST, HeaderValue::from_static("localhost"));
    let reading = async {
        let (head, body) = sender.send_request(request).await.map_err(lost)?.into_parts();
        match Limited::new(body, size).collect().await {
            Ok(body) => Ok(Reply { status: head.status, body: body.to_bytes() }),
            Err(error) if error.is::<LengthLimitError>() => Err(CallError::TooLong(size)),
            Err(error) => match error.downcast::<hyper::Error>() {
                Ok(error) => Err(lost(*error)),
                Err(_) => Err(CallError::Malformed(target)),
            },
        }
    };
    let (mut reading, connection) = (pin!(reading), pin!(connection));
    // Nothing runs beside this: both sides of the connection are driven here, and end with it.
    tokio::select! {
        biased;
        reply = &mut reading => reply,
        _ = connection => reading.await,
    }
}

fn unconnected(error: IoError) -> CallError {
    match error.kind() {
        ErrorKind::ConnectionRefused | ErrorKind::NotFound => CallError::Refused,
        ErrorKind::ConnectionReset => CallError::Unanswered,
        _ => CallError::Io(error),
    }
}

fn unanswered(error: hyper::Error, target: &'static str) -> CallError {
    if error.is_parse() || error.is_parse_too_large() { CallError::Malformed(target) } else { CallError::Unanswered }
}
