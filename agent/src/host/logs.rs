//! Reading the logs of engines, for this node and for others.

use std::io::{self, Read};
use std::sync::Arc;

use bytes::Bytes;
use futures_util::Stream;
use muster_cluster::ids::PlacementId;
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;

use super::Host;

/// How much of a log is read at once.
const PART: usize = 128 * 1024;

/// How many parts wait for whoever reads them.
const PARTS: usize = 4;

/// The parts of a log, in order.
pub type Parts = std::pin::Pin<Box<dyn Stream<Item = io::Result<Bytes>> + Send>>;

impl Host {
    /// The last lines of a placement's log; none if it has none.
    ///
    /// # Errors
    /// When it can not be read.
    pub async fn tail(&self, placement: PlacementId, count: usize) -> io::Result<Vec<String>> {
        let logs = Arc::clone(self.logs());
        tokio::task::spawn_blocking(move || logs.tail(placement, count)).await.map_err(io::Error::other)?
    }

    /// A placement's log from the beginning of its last run, as it is now; `None` if it has none.
    ///
    /// # Errors
    /// When it can not be read.
    pub async fn read_log(&self, placement: PlacementId) -> io::Result<Option<Parts>> {
        let logs = Arc::clone(self.logs());
        let opened = tokio::task::spawn_blocking(move || logs.download(placement)).await.map_err(io::Error::other)?;
        let Some(mut log) = opened? else { return Ok(None) };
        let (to, parts) = mpsc::channel(PARTS);
        // It ends when nobody reads any more.
        tokio::task::spawn_blocking(move || {
            loop {
                let mut part = vec![0; PART];
                let part = match log.read(&mut part) {
                    Ok(0) => return,
                    Ok(read) => {
                        part.truncate(read);
                        Ok(Bytes::from(part))
                    }
                    Err(error) => Err(error),
                };
                let over = part.is_err();
                if to.blocking_send(part).is_err() || over {
                    return;
                }
            }
        });
        Ok(Some(Box::pin(ReceiverStream::new(parts))))
    }
}
