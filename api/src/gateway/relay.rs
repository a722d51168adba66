//! An answer on its way from the provider to the client.

use std::error::Error;
use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::Bytes;
use hyper::body::{Body, Incoming, SizeHint};
use muster_agent::serving::Flight as Busy;
use tokio_util::sync::WaitForCancellationFutureOwned;

use super::origin::Lease;
use super::rewrite::Rewriter;
use super::tally::Flight;
use super::target::Loaded;
use crate::server::Patience;

/// The provider sent nothing more in time.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the provider sent nothing for {0:?}")]
pub(super) struct ProviderStalled(Duration);

/// The replica that answers may have been given to another node.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the lease of this replica is over")]
struct LeaseOver;

/// The rest of a provider's answer. Dropping it before its end closes the connection to the provider.
#[derive(Debug)]
pub(super) struct Relay {
    /// None once it has ended.
    source: Option<(Incoming, Lease)>,
    rewriter: Option<Rewriter>,
    patience: Patience,
    /// Why the answer ends too early, until the client's side has been told.
    failed: Option<Box<dyn Error + Send + Sync>>,
    /// Counts the request as under way until this is dropped.
    flight: Flight,
    /// Has the engine of this machine count as busy until this is dropped.
    _busy: Option<Busy>,
    /// Has the replica count as loaded until this is dropped.
    _load: Option<Loaded>,
    /// Ready when the engine is another node's by now.
    cut: Option<Pin<Box<WaitForCancellationFutureOwned>>>,
}

impl Relay {
    pub fn new(body: Incoming, lease: Lease, rewriter: Option<Rewriter>, idle: Duration, flight: Flight) -> Self {
        Self {
            source: Some((body, lease)),
            rewriter,
            patience: Patience::new(idle),
            failed: None,
            flight,
            _busy: None,
            _load: None,
            cut: None,
        }
    }

    /// Has the engine count as busy for as long as its answer is read.
    pub fn keeping(mut self, busy: Option<Busy>, load: Loaded) -> Self {
        self._load = Some(load);
        self.cut = busy.as_ref().and_then(Busy::cut).map(Box::pin);
        self._busy = busy;
        self
    }

    /// Counts the request as answered: the client gets what comes from here.
    pub fn answered(&mut self) {
        self.flight.answered();
    }

    /// The next piece as it came.
    fn poll_source(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Bytes, Box<dyn Error + Send + Sync>>>> {
        if let Some(cut) = &mut self.cut
            && cut.as_mut().poll(cx).is_ready()
            && self.source.take().is_some()
        {
            self.flight.cut();
            return Poll::Ready(Some(Err(LeaseOver.into())));
        }
        let Some((body, lease)) = &mut self.source else { return Poll::Ready(None) };
        let mut frame = Pin::new(&mut *body).poll_frame(cx);
        if frame.is_pending() {
            // Nobody else drives the connection.
            lease.drive(cx);
            frame = Pin::new(body).poll_frame(cx);
        }
        match frame {
            Poll::Pending => {
                ready!(self.patience.poll_over(cx));
                self.source = None;
                self.flight.cut();
                Poll::Ready(Some(Err(ProviderStalled(self.patience.pause()).into())))
            }
            Poll::Ready(Some(Ok(frame))) => {
                self.patience.arrived();
                // The server asks for no more than the length that it has announced.
                if self.source.as_ref().is_some_and(|(body, _)| body.is_end_stream()) {
                    self.end(cx);
                }
                // Trailers mean nothing to the clients of these interfaces.
                Poll::Ready(Some(Ok(frame.into_data().unwrap_or_default())))
            }
            Poll::Ready(Some(Err(error))) => {
                self.source = None;
                self.flight.cut();
                Poll::Ready(Some(Err(error.into())))
            }
            Poll::Ready(None) => {
                self.end(cx);
                Poll::Ready(None)
            }
        }
    }

    /// The answer has come whole: its connection is free for the next request.
    fn end(&mut self, cx: &mut Context<'_>) {
        if let Some((body, lease)) = self.source.take() {
            drop(body);
            lease.give_back(cx);
        }
        self.flight.whole();
    }

    /// The next piece for the client.
    pub fn poll_piece(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Bytes, Box<dyn Error + Send + Sync>>>> {
        if let Some(error) = self.failed.take() {
            return Poll::Ready(Some(Err(error)));
        }
        loop {
            let piece = match ready!(self.poll_source(cx)) {
                Some(Ok(piece)) => match &mut self.rewriter {
                    Some(rewriter) => rewriter.push(piece),
                    None => piece,
                },
                Some(Err(error)) => {
                    // At an error the server closes the connection and forgets what it has not sent; at a pause it sends it.
                    self.failed = Some(error);
                    cx.waker().wake_by_ref();
                    return Poll::Pending;
                }
                None => match self.rewriter.take() {
                    Some(mut rewriter) => rewriter.finish(),
                    None => return Poll::Ready(None),
                },
            };
            if !piece.is_empty() {
                self.flight.first_byte();
                return Poll::Ready(Some(Ok(piece)));
            }
        }
    }

    /// How much is left, if that is known.
    pub fn size_hint(&self) -> SizeHint {
        match (&self.source, &self.rewriter) {
            (Some((body, _)), None) => body.size_hint(),
            (None, None) => SizeHint::with_exact(0),
            (_, Some(_)) => SizeHint::default(),
        }
    }
}
