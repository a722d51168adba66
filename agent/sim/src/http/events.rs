//! Bodies of server-sent events, written by a future that lives and dies with the body.

use std::error::Error;
use std::fmt;
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use http::header::CONTENT_TYPE;
use http::{HeaderValue, Response};
use http_body_util::Either;
use hyper::body::{Body, Frame};
use tokio::sync::mpsc;
use tokio::time::sleep;

use super::Answer;

/// The stream ends here, and the client shall not be able to take it for the end of the answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Cut;

impl fmt::Display for Cut {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("the stream was cut")
    }
}

impl Error for Cut {}

type Writer = Pin<Box<dyn Future<Output = Result<(), Cut>> + Send>>;

/// A body of events.
pub struct Events {
    /// None when it has ended.
    writer: Option<Writer>,
    written: mpsc::Receiver<Bytes>,
    end: Option<Cut>,
}

/// Where the writer puts its events.
#[derive(Debug)]
pub struct Outlet {
    events: mpsc::Sender<Bytes>,
    /// How many events may still be sent until the cut.
    left: Option<u64>,
}

/// An answer whose events the future writes.
pub fn events<F>(write: impl FnOnce(Outlet) -> F) -> Answer
where
    F: Future<Output = Result<(), Cut>> + Send + 'static,
{
    let (events, written) = mpsc::channel(1);
    let writer = Box::pin(write(Outlet { events, left: None }));
    let mut answer = Response::new(Either::Right(Events { writer: Some(writer), written, end: None }));
    let kind = HeaderValue::from_static("text/event-stream; charset=utf-8");
    answer.headers_mut().insert(CONTENT_TYPE, kind);
    answer
}

impl Outlet {
    /// The connection is to be cut after so many events.
    pub fn cut_after(&mut self, events: Option<u64>) {
        self.left = events;
    }

    /// Sends one event.
    ///
    /// # Errors
    /// When nothing is to follow it.
    pub async fn send(&mut self, json: serde_json::Result<Vec<u8>>) -> Result<(), Cut> {
        let json = json.map_err(|_| Cut)?;
        let event = [b"data: ", json.as_slice(), b"\n\n"].concat();
        self.put(event.into()).await?;
        if let Some(left) = &mut self.left {
            *left = left.saturating_sub(1);
        }
        self.may_go_on().await
    }

    /// Whether the cut has not come yet.
    ///
    /// # Errors
    /// When it has.
    pub async fn may_go_on(&self) -> Result<(), Cut> {
        if self.left == Some(0) {
            // What was sent before has to reach the client; the connection writes it out while this waits.
            sleep(Duration::from_millis(20)).await;
            return Err(Cut);
        }
        Ok(())
    }

    /// Says that the answer is complete.
    ///
    /// # Errors
    /// When nobody listens.
    pub async fn done(self) -> Result<(), Cut> {
        self.put(Bytes::from_static(b"data: [DONE]\n\n")).await
    }

    async fn put(&self, event: Bytes) -> Result<(), Cut> {
        self.events.send(event).await.map_err(|_| Cut)
    }
}

impl Body for Events {
    type Data = Bytes;
    type Error = Cut;

    fn poll_frame(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Cut>>> {
        let this = self.get_mut();
        // What is written comes first; then the writer goes on, and what it has written since comes next.
        loop {
            match this.written.poll_recv(cx) {
                Poll::Ready(Some(event)) => return Poll::Ready(Some(Ok(Frame::data(event)))),
                Poll::Ready(None) => return Poll::Ready(this.end.take().map(Err)),
                // The task's budget is used up. Its waker has been called; to ask again at once would never end.
                Poll::Pending if !this.written.is_empty() => return Poll::Pending,
                Poll::Pending => {}
            }
            let Some(writer) = &mut this.writer else { return Poll::Pending };
            match writer.as_mut().poll(cx) {
                Poll::Ready(end) => {
                    this.end = end.err();
                    this.writer = None;
                }
                Poll::Pending if this.written.is_empty() => return Poll::Pending,
                Poll::Pending => {}
            }
        }
    }
}
