//! A socket, from its opening to its end.
//!
//! Nothing is kept for a client: it is told from the ring of changes at its own pace, and of one that is slower than the ring
//! only that it has missed something.

use std::sync::Arc;
use std::time::Duration;

use futures_util::{FutureExt, SinkExt, StreamExt};
use muster_cluster::membership::Roster;
use muster_cluster::state::{Batch, Changes, Lagged, Published, View};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite};
use tokio::sync::watch;
use tokio::time::{Instant, sleep_until, timeout};
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::Message;
use tokio_tungstenite::tungstenite::error::{CapacityError, Error};
use tokio_tungstenite::tungstenite::protocol::frame::coding::CloseCode;
use tokio_tungstenite::tungstenite::protocol::{CloseFrame, Role, WebSocketConfig};

use super::news::{self, Event};
use super::nodes::Lives;
use crate::auth::Listener;
use crate::server::{Leave, Leaving};

/// The longest message of a client, in bytes.
const MESSAGE: usize = 4 * 1024;

/// What a socket reads and writes at once, in bytes.
const BUFFER: usize = 4 * 1024;

/// The most that lies ready to be written, in bytes: more than the longest event.
const WRITTEN: usize = 64 * 1024;

/// How often the ring is looked at in one go: more entries than it holds.
const ROUNDS: usize = 256;

/// The times of a socket.
#[derive(Clone, Copy, Debug)]
pub(super) struct Rules {
    /// How often a client is asked whether it is there.
    pub ping: Duration,
    /// How long a client may say nothing.
    pub silence: Duration,
    /// How long a client may take to read an event.
    pub send: Duration,
    /// How long changes are gathered after one has been told.
    pub gather: Duration,
    /// The same of how nodes are seen.
    pub gather_lives: Duration,
    /// How long a client that is ahead waits for this node.
    pub catch_up: Duration,
    /// How long the end may take.
    pub goodbye: Duration,
}

impl Default for Rules {
    fn default() -> Self {
        Self {
            ping: Duration::from_secs(20),
            silence: Duration::from_secs(50),
            send: Duration::from_secs(20),
            gather: Duration::from_millis(100),
            gather_lives: Duration::from_secs(1),
            catch_up: Duration::from_secs(30),
            goodbye: Duration::from_secs(1),
        }
    }
}

/// What a client is told from.
#[derive(Debug)]
pub(super) struct Feed {
    published: Arc<Published>,
    changes: Changes,
    lives: Lives,
    listener: Listener,
}

impl Feed {
    /// The changes after this entry, or from now on.
    pub fn new(
        published: Arc<Published>,
        roster: watch::Receiver<Arc<Roster>>,
        from: Option<u64>,
        listener: Listener,
    ) -> Self {
        let from = from.unwrap_or_else(|| published.with(View::index));
        Self { changes: published.changes(from), published, lives: Lives::new(roster), listener }
    }

    /// The entry after which it begins.
    pub fn begins_after(&self) -> u64 {
        self.changes.after()
    }
}

/// The next changes, and what has come by now besides. Nothing is lost when it is dropped while it waits.
async fn next(changes: &mut Changes) -> Result<Vec<Batch>, Lagged> {
    let mut batches = changes.next().await?;
    for _ in 0..ROUNDS {
        match changes.next().now_or_never() {
            Some(Ok(more)) => batches.extend(more),
            Some(Err(lagged)) => return Err(lagged),
            None => break,
        }
    }
    Ok(batches)
}

/// How a socket ends.
#[derive(Debug, PartialEq, Eq)]
enum End {
    /// The client has closed it, or is gone.
    Gone,
    /// With this word.
    Closed(CloseCode, &'static str),
}

impl From<Leave> for End {
    fn from(leave: Leave) -> Self {
        match leave {
            Leave::Drain => Self::Closed(CloseCode::Restart, "another process takes over; go on with ?from="),
            Leave::Stop => Self::Closed(CloseCode::Away, "the node stops; go on at another with ?from="),
        }
    }
}

impl From<Error> for End {
    fn from(error: Error) -> Self {
        match error {
            Error::Capacity(CapacityError::MessageTooLong { .. }) => Self::Closed(CloseCode::Size, "too long"),
            Error::Protocol(_) => Self::Closed(CloseCode::Protocol, "this is no WebSocket"),
            Error::Utf8(_) => Self::Closed(CloseCode::Invalid, "this is no text"),
            _ => Self::Gone,
        }
    }
}

/// Serves one until either side ends it.
pub(super) async fn serve<S>(stream: S, mut feed: Feed, leaving: Leaving, rules: Rules)
where
    S: AsyncRead + AsyncWrite + Unpin,
{
    let config = WebSocketConfig::default()
        .max_message_size(Some(MESSAGE))
        .max_frame_size(Some(MESSAGE))
        .read_buffer_size(BUFFER)
        .write_buffer_size(0)
        .max_write_buffer_size(WRITTEN);
    let mut socket = WebSocketStream::from_raw_socket(stream, Role::Server, Some(config)).await;
    let end = tokio::select! {
        biased;
        leave = leaving => leave.into(),
        end = talk(&mut socket, &mut feed, rules) => end,
    };
    tracing::debug!(?end, "a socket ends");
    let _ = timeout(rules.goodbye, say_goodbye(&mut socket, end)).await;
}

/// Says how it ends, and waits until the client has closed it: what is closed with unread bytes may lose the last word.
async fn say_goodbye<S>(socket: &mut WebSocketStream<S>, end: End)
where
    S: AsyncRead + AsyncWrite + Unpin,
{
    let word = match end {
        End::Gone => None,
        End::Closed(code, reason) => Some(CloseFrame { code, reason: reason.into() }),
    };
    let _ = socket.close(word).await;
    let mut rest = [0; 512];
    while socket.get_mut().read(&mut rest).await.is_ok_and(|read| read > 0) {}
}

async fn talk<S>(socket: &mut WebSocketStream<S>, feed: &mut Feed, rules: Rules) -> End
where
    S: AsyncRead + AsyncWrite + Unpin,
{
    let Feed { published, changes, lives, listener } = feed;
    let begun = Instant::now();
    let (mut heard, mut next_ping) = (begun, begun + rules.ping);
    let (mut next_news, mut next_lives) = (begun, begun);
    let mut ahead = Some(begun + rules.catch_up);
    loop {
        let sent = tokio::select! {
            message = socket.next() => match message {
                Some(Ok(Message::Close(_))) | None => return End::Gone,
                Some(Ok(_)) => {
                    heard = Instant::now();
                    Ok(())
                }
                Some(Err(error)) => return error.into(),
            },
            news = async {
                sleep_until(next_news).await;
                next(changes).await
            } => {
                next_news = Instant::now() + rules.gather;
                ahead = None;
                match news {
                    Ok(batches) => {
                        if news::concerns_credentials(&batches) && !listener.is_welcome(published) {
                            return UNWELCOME;
                        }
                        tell(socket, &news::events(&batches), rules).await
                    }
                    Err(_) => tell(socket, &[Event::Resync { seq: changes.after() }], rules).await,
                }
            }
            () = async {
                sleep_until(next_lives).await;
                lives.changed().await;
            } => {
                next_lives = Instant::now() + rules.gather_lives;
                tell(socket, &[Event::NodesChanged { seq: None }], rules).await
            }
            () = sleep_until(ahead.unwrap_or(begun)), if ahead.is_some() => {
                ahead = None;
                let seq = published.with(View::index);
                if seq < changes.after() {
                    *changes = published.changes(seq);
                    tell(socket, &[Event::Resync { seq }], rules).await
                } else {
                    Ok(())
                }
            }
            () = sleep_until(next_ping) => {
                next_ping = Instant::now() + rules.ping;
                if !listener.is_welcome(published) {
                    return UNWELCOME;
                }
                if heard.elapsed() >= rules.silence {
                    return End::Closed(CloseCode::Policy, "no answer to a ping");
                }
                send(socket, Message::Ping(<_>::default()), rules).await
            }
        };
        if let Err(end) = sent {
            return end;
        }
    }
}

const UNWELCOME: End = End::Closed(CloseCode::Policy, "the credential is not valid any more");

async fn tell<S>(socket: &mut WebSocketStream<S>, events: &[Event], rules: Rules) -> Result<(), End>
where
    S: AsyncRead + AsyncWrite + Unpin,
{
    for event in events {
        let text = serde_json::to_string(event).map_err(|_| End::Closed(CloseCode::Error, "an event has no text"))?;
        send(socket, Message::text(text), rules).await?;
    }
    Ok(())
}

async fn send<S>(socket: &mut WebSocketStream<S>, message: Message, rules: Rules) -> Result<(), End>
where
    S: AsyncRead + AsyncWrite + Unpin,
{
    match timeout(rules.send, socket.send(message)).await {
        Ok(sent) => sent.map_err(End::from),
        Err(_) => Err(End::Closed(CloseCode::Policy, "too slow")),
    }
}
