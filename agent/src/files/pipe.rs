//! From an asynchronous stream of bytes to blocking work that reads it, with a bound on what lies between.

use std::fmt::Display;
use std::io::{self, Read, Write};
use std::pin::pin;
use std::time::Duration;

use bytes::{Buf, Bytes};
use futures_util::{Stream, StreamExt};
use tokio::sync::mpsc;
use tokio::time::timeout;

use super::error::{FilesError, blocking};

/// The largest piece that is handed on at once, in bytes.
const PIECE: usize = 1 << 20;

/// How many pieces may wait.
const WAITING: usize = 8;

enum Piece {
    Data(Bytes),
    /// The stream has ended as it should: whoever only stops sending has broken off.
    End,
}

/// What blocking work reads. A stream that broke off is an error of the kind `UnexpectedEof`.
pub(super) struct PipeReader {
    pieces: mpsc::Receiver<Piece>,
    current: Bytes,
    ended: bool,
}

impl PipeReader {
    /// The next piece, or `None` at the proper end.
    pub(super) fn next_piece(&mut self) -> io::Result<Option<Bytes>> {
        if !self.current.is_empty() {
            return Ok(Some(std::mem::take(&mut self.current)));
        }
        if self.ended {
            return Ok(None);
        }
        match self.pieces.blocking_recv() {
            Some(Piece::Data(data)) => Ok(Some(data)),
            Some(Piece::End) => {
                self.ended = true;
                Ok(None)
            }
            None => Err(io::ErrorKind::UnexpectedEof.into()),
        }
    }
}

impl Read for PipeReader {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        while self.current.is_empty() {
            match self.next_piece()? {
                Some(piece) => self.current = piece,
                None => return Ok(0),
            }
        }
        let length = self.current.len().min(buffer.len());
        self.current.copy_to_slice(&mut buffer[..length]);
        Ok(length)
    }
}

/// Feeds a stream to blocking work, and returns what that makes of it. If this is dropped, or the stream fails or is silent for
/// too long, the work reads that it broke off.
pub(super) async fn feed<S, E, T, W>(stream: S, silence: Duration, work: W) -> Result<T, FilesError>
where
    S: Stream<Item = Result<Bytes, E>> + Send,
    E: Display,
    T: Send + 'static,
    W: FnOnce(PipeReader) -> Result<T, FilesError> + Send + 'static,
{
    let (sender, pieces) = mpsc::channel(WAITING);
    let mut worker = pin!(blocking(move || work(PipeReader { pieces, current: Bytes::new(), ended: false })));
    let mut pump = pin!(pump(stream, silence, sender));
    tokio::select! {
        // The work can be over before the stream is: it has failed, or has seen enough.
        outcome = &mut worker => return outcome,
        () = &mut pump => {}
    }
    worker.await
}

async fn pump<S, E>(stream: S, silence: Duration, sender: mpsc::Sender<Piece>)
where
    S: Stream<Item = Result<Bytes, E>>,
    E: Display,
{
    let mut stream = pin!(stream);
    loop {
        let mut data = match timeout(silence, stream.next()).await {
            Ok(Some(Ok(data))) => data,
            Ok(None) => {
                let _ = sender.send(Piece::End).await;
                return;
            }
            Ok(Some(Err(error))) => {
                tracing::debug!(%error, "a stream of a file broke off");
                return;
            }
            Err(_) => {
                tracing::debug!("a stream of a file has been silent for too long");
                return;
            }
        };
        while !data.is_empty() {
            let piece = data.split_to(data.len().min(PIECE));
            if sender.send(Piece::Data(piece)).await.is_err() {
                return;
            }
        }
    }
}

/// Copies a pipe, telling of each piece before it is written.
pub(super) fn copy(
    reader: &mut PipeReader,
    to: &mut impl Write,
    mut each: impl FnMut(&[u8]) -> Result<(), FilesError>,
) -> Result<(), FilesError> {
    loop {
        match reader.next_piece() {
            Ok(Some(piece)) => {
                each(&piece)?;
                to.write_all(&piece).map_err(|e| FilesError::io("writing a file", e))?;
            }
            Ok(None) => return Ok(()),
            Err(_) => return Err(FilesError::BrokenOff),
        }
    }
}

#[cfg(test)]
mod tests {
    use futures_util::stream;

    use super::*;

    fn read_all(mut reader: PipeReader) -> Result<Vec<u8>, FilesError> {
        let mut all = Vec::new();
        reader.read_to_end(&mut all).map_err(|_| FilesError::BrokenOff)?;
        Ok(all)
    }

    #[tokio::test]
    async fn bytes_arrive_as_they_were_sent() {
        let sent: Vec<u8> = (0..5_000_000_u32).map(|n| (n % 251) as u8).collect();
        let pieces = [Ok::<_, io::Error>(Bytes::from(sent.clone())), Ok(Bytes::new()), Ok(Bytes::from_static(b"end"))];
        let arrived = feed(stream::iter(pieces), Duration::from_secs(5), read_all).await.unwrap();
        assert_eq!(arrived.len(), sent.len() + 3);
        assert!(arrived.starts_with(&sent) && arrived.ends_with(b"end"));
    }

    #[tokio::test]
    async fn a_stream_that_fails_or_falls_silent_is_no_complete_file() {
        let broken = [Ok(Bytes::from_static(b"x")), Err(io::Error::other("cut"))];
        let outcome = feed(stream::iter(broken), Duration::from_secs(5), read_all).await;
        assert!(matches!(outcome, Err(FilesError::BrokenOff)));
        let silent = stream::pending::<Result<Bytes, io::Error>>();
        let outcome = feed(silent, Duration::from_millis(1), read_all).await;
        assert!(matches!(outcome, Err(FilesError::BrokenOff)));
    }

    #[tokio::test]
    async fn work_that_has_seen_enough_does_not_wait_for_the_stream() {
        let endless = stream::repeat_with(|| Ok::<_, io::Error>(Bytes::from_static(&[0; 1000])));
        let outcome = feed(endless, Duration::from_secs(5), |mut reader| {
            let mut first = [0; 10];
            reader.read_exact(&mut first).map_err(|_| FilesError::BrokenOff)?;
            Ok(first.len())
        });
        assert_eq!(outcome.await.unwrap(), 10);
    }
}
