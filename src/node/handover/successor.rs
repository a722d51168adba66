//! The successor's side: asking for the node, and saying that it serves.

use std::io;

use muster_cluster::node::Identity;
use tokio::net::UnixStream;

use super::wire::{Hello, Reply, Word, hear, receive_sockets, say};
use super::{SAY_LIMIT, WORK_LIMIT};
use crate::config::Values;
use crate::exit::Failure;
use crate::node::listeners::{Addresses, Listeners};
use crate::node::socket::{Socket, safe_socket_path};

/// What the process before has left to this one.
pub struct Inherited {
    /// Its sockets.
    pub listeners: Listeners,
    /// The way to tell it how it went.
    pub promise: Promise,
}

/// The process before waits for this: until it is kept, it is ready to take the node up again.
pub struct Promise(UnixStream);

impl Promise {
    /// This process serves.
    pub async fn keep(mut self) {
        if let Err(error) = say(&mut self.0, &Word::Serving, SAY_LIMIT).await {
            tracing::warn!(%error, "the process before has ended already");
        }
    }

    /// This process does not serve, and has let go of the data.
    pub async fn break_off(mut self, why: &str) {
        if let Err(error) = say(&mut self.0, &Word::Failed { why: why.to_owned() }, SAY_LIMIT).await {
            tracing::warn!(%error, "the process before does not know that this one has failed");
        }
    }
}

/// Asks the process that serves this data directory for the node. `None` if there is none, or it has ended meanwhile.
///
/// # Errors
/// When it refuses, or this one could not serve anyway.
pub async fn take_over(values: &Values) -> Result<Option<Inherited>, Failure> {
    let path = safe_socket_path(&values.data_dir, Socket::Handover)?;
    let mut stream = match UnixStream::connect(&path).await {
        Ok(stream) => stream,
        Err(error) if matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::ConnectionRefused) => {
            tracing::info!("there is no process to take over from");
            return Ok(None);
        }
        Err(error) => return Err(Failure::other(format!("{}: {error}", path.display()))),
    };
    // What can be known without the data is known before anything is asked for.
    Identity::load(&values.data_dir).map_err(|error| Failure::other(error.to_string()))?;
    match converse(&mut stream, Addresses::wanted(values)).await {
        Ok(Ok(listeners)) => Ok(Some(Inherited { listeners, promise: Promise(stream) })),
        Ok(Err(why)) => Err(Failure::other(format!("the running process does not hand over: {why}"))),
        Err(error) if is_end(&error) => {
            tracing::warn!("the running process has ended before it has handed over; starting as usual");
            Ok(None)
        }
        Err(error) => Err(Failure::other(format!("the running process does not hand over: {error}"))),
    }
}

fn is_end(error: &io::Error) -> bool {
    use io::ErrorKind as Kind;
    matches!(error.kind(), Kind::UnexpectedEof | Kind::ConnectionReset | Kind::BrokenPipe)
}

/// Asks, and waits for the sockets; or for a refusal and its reason.
async fn converse(stream: &mut UnixStream, wanted: Addresses) -> io::Result<Result<Listeners, String>> {
    say(stream, &Hello::new(wanted), SAY_LIMIT).await?;
    // Somebody before this one may be slow to say what he wants.
    match hear(stream, 2 * SAY_LIMIT).await? {
        Reply::Accepted { version } => tracing::info!(version, "the running process hands over"),
        Reply::Refused { why } => return Ok(Err(why)),
        Reply::Sockets { .. } => return Ok(Err("it did not say that it would".to_owned())),
    }
    match hear(stream, WORK_LIMIT).await? {
        Reply::Sockets { sockets } => receive_sockets(stream, &sockets, SAY_LIMIT).await.map(Ok),
        Reply::Refused { why } => Ok(Err(why)),
        Reply::Accepted { .. } => Ok(Err("it has said so twice".to_owned())),
    }
}
