//! The content of a request that is handed on as it comes, however long it is.

use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, ready};
use std::time::Duration;

use axum::body::BodyDataStream;
use axum::extract::{FromRequest, Request};
use bytes::Bytes;
use futures_util::{Stream, StreamExt};
use http::header;
use muster_agent::host::files::FilesProblem;

use crate::error::ApiError;
use crate::request::timed_out;

/// How much is still taken from a client whose request has failed, and for how long. One that never gets to the end of what it
/// sends may not look at the answer.
const REST: u64 = 64 << 20;
const REST_LIMIT: Duration = Duration::from_secs(2);

/// The client's content ended before it was complete.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub(super) enum Cut {
    /// The connection is gone, or what comes is no HTTP.
    #[error("the connection broke")]
    Broken,
    /// The client has sent nothing for too long.
    #[error("the client stopped sending")]
    Slow,
}

/// The content of a request. Clones are the same one.
#[derive(Clone)]
pub(super) struct Source(Arc<Mutex<State>>);

struct State {
    body: BodyDataStream,
    /// The length that the client has named.
    declared: Option<u64>,
    /// The client waits until it is told to send.
    waits: bool,
    cut: Option<Cut>,
    ended: bool,
}

impl<S: Send + Sync> FromRequest<S> for Source {
    type Rejection = ApiError;

    async fn from_request(request: Request, _: &S) -> Result<Self, ApiError> {
        let length = request.headers().get(header::CONTENT_LENGTH).and_then(|value| value.to_str().ok());
        let declared = length.and_then(|length| length.parse().ok());
        let waits = request.headers().contains_key(header::EXPECT);
        let body = request.into_body().into_data_stream();
        Ok(Self(Arc::new(Mutex::new(State { body, declared, waits, cut: None, ended: false }))))
    }
}

impl Source {
    fn state(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// How long the content is, if the client has said so.
    pub(super) fn declared(&self) -> Option<u64> {
        self.state().declared
    }

    /// What was looked at before content is taken. If it is wrong, the client is let finish, within bounds.
    pub(super) async fn unless_wrong<T>(&self, looked: Result<T, ApiError>) -> Result<T, ApiError> {
        if looked.is_err() {
            self.clone().drain().await;
        }
        looked
    }

    /// What has come of handing it on. After a failure the client is let finish, within bounds, so that it sees the answer.
    pub(super) async fn settle<T>(mut self, outcome: Result<T, FilesProblem>) -> Result<T, ApiError> {
        let problem = match outcome {
            Ok(done) => return Ok(done),
            Err(problem) => problem,
        };
        if self.state().cut == Some(Cut::Slow) {
            return Err(ApiError::TooSlow);
        }
        self.drain().await;
        Err(problem.into())
    }

    /// Reads what is left, within bounds. Who waits to be told to send is not told.
    async fn drain(&mut self) {
        if self.state().waits {
            return;
        }
        let mut left = REST;
        let rest = async {
            while let Some(Ok(piece)) = self.next().await {
                left = left.saturating_sub(piece.len() as u64);
                if left == 0 {
                    return;
                }
            }
        };
        if tokio::time::timeout(REST_LIMIT, rest).await.is_err() {
            tracing::debug!("a client goes on sending what nobody wants");
        }
    }
}

impl Stream for Source {
    type Item = Result<Bytes, Cut>;

    fn poll_next(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        let mut state = self.state();
        if state.ended {
            return Poll::Ready(None);
        }
        state.waits = false;
        let polled = ready!(state.body.poll_next_unpin(cx));
        Poll::Ready(match polled {
            Some(Ok(piece)) => Some(Ok(piece)),
            Some(Err(error)) => {
                let cut = if timed_out(&error) { Cut::Slow } else { Cut::Broken };
                (state.cut, state.ended) = (Some(cut), true);
                Some(Err(cut))
            }
            None => {
                state.ended = true;
                None
            }
        })
    }
}

/// A stream that is ready with one piece at a time. Who reads until nothing is ready holds no more than one then.
pub(super) struct OneByOne<S> {
    stream: S,
    paused: bool,
}

impl<S> OneByOne<S> {
    pub(super) fn new(stream: S) -> Self {
        Self { stream, paused: false }
    }
}

impl<S: Stream + Unpin> Stream for OneByOne<S> {
    type Item = S::Item;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<S::Item>> {
        if std::mem::take(&mut self.paused) {
            cx.waker().wake_by_ref();
            return Poll::Pending;
        }
        let polled = ready!(self.stream.poll_next_unpin(cx));
        self.paused = polled.is_some();
        Poll::Ready(polled)
    }
}

#[cfg(test)]
mod tests {
    use axum::body::Body;
    use futures_util::{FutureExt, stream};
    use muster_agent::files::ErrorKind;
    use muster_agent::host::files::Refused;

    use super::*;

    async fn source(body: Body, expect: bool) -> Source {
        let mut request = Request::builder().header("content-length", "7");
        if expect {
            request = request.header("expect", "100-continue");
        }
        Source::from_request(request.body(body).expect("a request"), &()).await.expect("a source")
    }

    fn refusal() -> FilesProblem {
        FilesProblem::Refused(Refused { kind: ErrorKind::NoRoom, message: "full".to_owned() })
    }

    #[tokio::test]
    async fn what_is_left_is_read_before_a_failure_is_answered() {
        let pieces = stream::iter((0..3).map(|_| Ok::<_, std::io::Error>(Bytes::from_static(b"x"))));
        let mut source = source(Body::from_stream(pieces), false).await;
        assert_eq!(source.declared(), Some(7));
        assert_eq!(source.next().await, Some(Ok(Bytes::from_static(b"x"))));
        let mut other = source.clone();
        assert!(matches!(source.settle::<()>(Err(refusal())).await, Err(ApiError::NoRoom(_))));
        assert_eq!(other.next().await, None);
    }

    #[tokio::test]
    async fn who_waits_to_send_is_answered_without_it() {
        let source = source(Body::from("content"), true).await;
        let mut other = source.clone();
        assert!(source.settle::<()>(Err(refusal())).await.is_err());
        assert_eq!(other.next().await, Some(Ok(Bytes::from_static(b"content"))), "nothing was read");
    }

    #[tokio::test]
    async fn a_broken_body_breaks_the_content() {
        let pieces = [Ok(Bytes::from_static(b"x")), Err(std::io::Error::other("cut")), Ok(Bytes::from_static(b"y"))];
        let source = source(Body::from_stream(stream::iter(pieces)), false).await;
        let found: Vec<_> = source.collect().await;
        assert_eq!(found, [Ok(Bytes::from_static(b"x")), Err(Cut::Broken)]);
    }

    #[tokio::test]
    async fn one_piece_is_ready_at_a_time() {
        let mut pieces = OneByOne::new(stream::iter(0..3));
        assert_eq!(pieces.next().now_or_never(), Some(Some(0)));
        assert_eq!(pieces.next().now_or_never(), None, "a pause");
        assert_eq!(pieces.collect::<Vec<_>>().await, [1, 2]);
    }
}
