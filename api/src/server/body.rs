//! A request's body that fails when its client stalls.

use std::error::Error;
use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::Bytes;
use hyper::body::{Body, Frame, Incoming, SizeHint};

use super::patience::Patience;

/// The client sent no further piece of the request's body in time. An extractor's error has it in its chain of sources.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("no further piece of the request's body came within {0:?}")]
pub struct BodyTimedOut(
    /// The pause that is allowed.
    pub Duration,
);

/// A request's body as it comes from the connection. It fails with [`BodyTimedOut`] when the pause between two pieces is
/// longer than [`Limits::body_idle_timeout`](super::Limits::body_idle_timeout), with hyper's error when the connection does,
/// and ends there.
#[derive(Debug)]
pub struct RequestBody {
    /// None once it has timed out. Dropping it is what lets hyper close the connection after the answer.
    incoming: Option<Incoming>,
    patience: Patience,
}

impl RequestBody {
    pub(super) fn new(incoming: Incoming, idle: Duration) -> Self {
        Self { incoming: Some(incoming), patience: Patience::new(idle) }
    }
}

impl Body for RequestBody {
    type Data = Bytes;
    type Error = Box<dyn Error + Send + Sync>;

    fn poll_frame(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Self::Error>>> {
        let this = self.get_mut();
        let Some(incoming) = &mut this.incoming else { return Poll::Ready(None) };
        if let Poll::Ready(frame) = Pin::new(incoming).poll_frame(cx) {
            this.patience.arrived();
            return Poll::Ready(frame.map(|frame| frame.map_err(Into::into)));
        }
        ready!(this.patience.poll_over(cx));
        this.incoming = None;
        Poll::Ready(Some(Err(BodyTimedOut(this.patience.pause()).into())))
    }

    fn is_end_stream(&self) -> bool {
        self.incoming.as_ref().is_none_or(Body::is_end_stream)
    }

    fn size_hint(&self) -> SizeHint {
        self.incoming.as_ref().map_or_else(|| SizeHint::with_exact(0), Body::size_hint)
    }
}
