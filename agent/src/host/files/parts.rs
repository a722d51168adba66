//! Content on its way between nodes: a head, pieces of bounded size, and an end that tells a whole stream from a broken one.

use std::fmt::Display;
use std::future::ready;
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use bytes::Bytes;
use futures_util::stream::{self, BoxStream};
use futures_util::{Stream, StreamExt};
use tonic::{Status, Streaming};

use super::wire::{
    ArchiveHead, ArchivePart, End, PackageHead, PackagePart, WriteHead, WritePart, archive_part, package_part,
    write_part,
};
use crate::files::FilesError;

/// The largest piece, in bytes.
const PIECE: usize = 256 << 10;

/// Content as it comes.
pub(super) type Pieces = BoxStream<'static, Result<Bytes, String>>;

/// Content, whatever its errors are.
pub(super) fn pieces<S, E>(content: S) -> Pieces
where
    S: Stream<Item = Result<Bytes, E>> + Send + 'static,
    E: Display + 'static,
{
    content.map(|piece| piece.map_err(|error| error.to_string())).boxed()
}

/// What stands in one message of a stream.
pub(super) enum Content<H> {
    Head(H),
    Data(Bytes),
    End,
}

/// A message of a stream.
pub(super) trait Part: Send + 'static {
    type Head: Send + 'static;

    fn of(content: Content<Self::Head>) -> Self;

    /// What it holds. `None`: something that this version does not know.
    fn content(self) -> Option<Content<Self::Head>>;
}

macro_rules! part {
    ($part:ty, $module:ident, $head:ty) => {
        impl Part for $part {
            type Head = $head;

            fn of(content: Content<$head>) -> Self {
                Self {
                    part: Some(match content {
                        Content::Head(head) => $module::Part::Head(head),
                        Content::Data(data) => $module::Part::Data(data),
                        Content::End => $module::Part::End(End {}),
                    }),
                }
            }

            fn content(self) -> Option<Content<$head>> {
                Some(match self.part? {
                    $module::Part::Head(head) => Content::Head(head),
                    $module::Part::Data(data) => Content::Data(data),
                    $module::Part::End(End {}) => Content::End,
                })
            }
        }
    };
}

part!(WritePart, write_part, WriteHead);
part!(ArchivePart, archive_part, ArchiveHead);
part!(PackagePart, package_part, PackageHead);

/// The messages of a stream. One that fails has no end.
pub(super) fn parts<P: Part>(head: P::Head, content: Pieces) -> BoxStream<'static, P> {
    let pieces = content.map(|piece| piece.ok().map(Some)).chain(stream::once(ready(Some(None))));
    // A failure is where the messages stop.
    let pieces = pieces.take_while(|piece| ready(piece.is_some())).filter_map(ready);
    let messages = pieces.flat_map(|piece| {
        let mut rest = piece;
        let mut ended = false;
        stream::iter(std::iter::from_fn(move || match &mut rest {
            Some(data) if data.is_empty() => None,
            Some(data) => Some(P::of(Content::Data(data.split_to(data.len().min(PIECE))))),
            None if ended => None,
            None => {
                ended = true;
                Some(P::of(Content::End))
            }
        }))
    });
    stream::once(ready(P::of(Content::Head(head)))).chain(messages).boxed()
}

/// The other side does not keep to the order of messages, or has broken off.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the stream of another node broke off")]
pub(super) struct Broken;

/// Takes the messages of a stream apart again: its head, and its content, which fails unless its end has come.
///
/// # Errors
/// When there is no head.
pub(super) async fn take_apart<P: Part>(mut messages: Streaming<P>) -> Result<(P::Head, Pieces), FilesError> {
    let first = messages.message().await.ok().flatten().and_then(Part::content);
    let Some(Content::Head(head)) = first else { return Err(FilesError::BrokenOff) };
    Ok((head, pieces(content(messages))))
}

fn content<P: Part, S>(messages: S) -> impl Stream<Item = Result<Bytes, Broken>> + Send + 'static
where
    S: Stream<Item = Result<P, Status>> + Send + Unpin + 'static,
{
    stream::unfold(Some(messages), |messages| async {
        let mut messages = messages?;
        match messages.next().await.and_then(Result::ok).and_then(Part::content) {
            Some(Content::Data(data)) => Some((Ok(data), Some(messages))),
            Some(Content::End) => None,
            Some(Content::Head(_)) | None => Some((Err(Broken), None)),
        }
    })
}

/// Who is waited for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Waiting {
    /// Whoever sends the content, and has limits of their own.
    Source,
    /// The other node, to take more.
    Node,
    /// The other node, to answer.
    Answer,
}

/// How a stream to another node goes on.
#[derive(Clone, Debug)]
pub(super) struct Pace(Arc<Mutex<(Waiting, Instant)>>);

impl Pace {
    pub(super) fn new() -> Self {
        Self(Arc::new(Mutex::new((Waiting::Node, Instant::now()))))
    }

    fn now(&self) -> MutexGuard<'_, (Waiting, Instant)> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn change(&self, waiting: Waiting) {
        *self.now() = (waiting, Instant::now());
    }

    /// Returns when the other node has been waited for too long: to take more, or to answer when it has everything.
    pub(super) async fn stalls(&self, more: Duration, answer: Duration) -> Duration {
        loop {
            let (waiting, since) = *self.now();
            let limit = if waiting == Waiting::Answer { answer } else { more };
            let left = limit.saturating_sub(since.elapsed());
            if left.is_zero() && waiting != Waiting::Source {
                return limit;
            }
            tokio::time::sleep(if left.is_zero() { more } else { left }).await;
        }
    }
}

/// A stream whose pace is known.
pub(super) struct Paced<P> {
    messages: BoxStream<'static, P>,
    pace: Pace,
}

impl<P> Paced<P> {
    pub(super) fn new(messages: BoxStream<'static, P>, pace: Pace) -> Self {
        Self { messages, pace }
    }
}

impl<P> Stream for Paced<P> {
    type Item = P;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<P>> {
        let polled = self.messages.poll_next_unpin(cx);
        self.pace.change(match &polled {
            Poll::Pending => Waiting::Source,
            Poll::Ready(Some(_)) => Waiting::Node,
            Poll::Ready(None) => Waiting::Answer,
        });
        polled
    }
}

#[cfg(test)]
mod tests {
    use std::io;

    use super::*;

    fn head() -> PackageHead {
        PackageHead { file_name: "x.py".to_owned(), declared: None }
    }

    async fn through(sent: Vec<Result<Bytes, io::Error>>) -> (usize, Result<Vec<u8>, Broken>) {
        let sent: Vec<PackagePart> = parts(head(), pieces(stream::iter(sent))).collect().await;
        let messages = sent.len();
        for part in &sent {
            if let Some(package_part::Part::Data(data)) = &part.part {
                assert!(data.len() <= PIECE, "{}", data.len());
            }
        }
        let mut rest = sent.into_iter();
        assert!(matches!(rest.next().and_then(Part::content), Some(Content::Head(found)) if found == head()));
        let received: Vec<_> = content(stream::iter(rest.map(Ok))).collect().await;
        let joined = received.into_iter().collect::<Result<Vec<Bytes>, Broken>>();
        (messages, joined.map(|pieces| pieces.concat()))
    }

    #[tokio::test]
    async fn content_comes_through_in_pieces_of_bounded_size() {
        let large = Bytes::from((0..PIECE * 2 + 1).map(|number| (number % 251) as u8).collect::<Vec<_>>());
        let pieces = vec![Ok(large.clone()), Ok(Bytes::new()), Ok(Bytes::from_static(b"end"))];
        let expected = [&large[..], b"end"].concat();
        // The head, three pieces, one more, the end.
        assert_eq!(through(pieces).await, (6, Ok(expected)));
        assert_eq!(through(Vec::new()).await, (2, Ok(Vec::new())));
    }

    #[tokio::test]
    async fn content_that_breaks_off_never_looks_whole() {
        let cut = vec![Ok(Bytes::from_static(b"x")), Err(io::Error::other("cut")), Ok(Bytes::from_static(b"y"))];
        assert_eq!(through(cut).await, (2, Err(Broken)));
    }

    #[tokio::test]
    async fn only_the_other_node_is_hurried() {
        let pace = Pace::new();
        let (more, answer) = (Duration::from_millis(20), Duration::from_millis(40));
        pace.change(Waiting::Source);
        let stalls = tokio::time::timeout(more * 10, pace.stalls(more, answer)).await;
        assert!(stalls.is_err(), "a slow sender is not the node's fault");
        pace.change(Waiting::Answer);
        tokio::time::sleep(answer).await;
        assert_eq!(pace.stalls(more, answer).await, answer);
        pace.change(Waiting::Node);
        tokio::time::sleep(more).await;
        assert_eq!(pace.stalls(more, answer).await, more);
    }
}
