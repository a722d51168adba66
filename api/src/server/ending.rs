//! How servers end: at once, or so that no client notices.
//!
//! A server that drains answers everything with `connection: close`, so that busy connections end by themselves; those on
//! which nothing happens for [`QUIET`] are closed as an idle timeout would close them.

use std::pin::Pin;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::task::{Context, Poll};
use std::time::Duration;

use http::{HeaderValue, Response, header};
use hyper::body::{Body, Frame, SizeHint};
use tokio::time::sleep;
use tokio_util::sync::CancellationToken;

use super::upgrade::{Begin, Leaving};

/// How long a connection of a draining server may be idle.
pub(super) const QUIET: Duration = Duration::from_secs(1);

/// How often it is looked whether all holds are gone.
const LOOK_AGAIN: Duration = Duration::from_millis(2);

#[derive(Default)]
struct Inner {
    draining: AtomicBool,
    drain: CancellationToken,
    close: CancellationToken,
    abandon: CancellationToken,
    stop: CancellationToken,
    /// Those of servers that are gone are dead.
    parts: Mutex<Vec<Weak<Count>>>,
    /// What ends this too.
    above: Option<Ending>,
}

/// What one server tells. It is not shared with others, so that servers on several cores do not meet there.
struct Count {
    listens: AtomicBool,
    /// The connections that may still need the state.
    holds: AtomicUsize,
}

/// The end of all servers of a node. Clones are the same.
#[derive(Clone, Default)]
pub struct Ending(Arc<Inner>);

impl Ending {
    /// The end of some of these servers: it comes by itself, or with the end of all.
    #[must_use]
    pub fn below(&self) -> Self {
        let Inner { drain, close, abandon, stop, .. } = &*self.0;
        Self(Arc::new(Inner {
            draining: AtomicBool::new(false),
            drain: drain.child_token(),
            close: close.child_token(),
            abandon: abandon.child_token(),
            stop: stop.child_token(),
            parts: Mutex::default(),
            above: Some(self.clone()),
        }))
    }

    /// Accepts nothing more, and ends each connection with its next answer or once it is idle. Nobody waits for that.
    pub fn part_with_all(&self) {
        self.drain();
        self.0.close.cancel();
    }

    /// Waits until nothing more is to be accepted.
    pub async fn closing(&self) {
        tokio::select! {
            () = self.0.close.cancelled() => {}
            () = self.0.stop.cancelled() => {}
        }
    }

    fn is_draining(&self) -> bool {
        self.0.draining.load(Ordering::Acquire) || self.0.above.as_ref().is_some_and(Self::is_draining)
    }

    fn count(&self, count: &Arc<Count>) {
        let mut parts = self.0.parts.lock().unwrap_or_else(PoisonError::into_inner);
        parts.retain(|part| part.strong_count() > 0);
        parts.push(Arc::downgrade(count));
        drop(parts);
        if let Some(above) = &self.0.above {
            above.count(count);
        }
    }

    /// From now on every answer ends its connection, and idle connections are closed. New ones are still accepted.
    pub fn drain(&self) {
        self.0.draining.store(true, Ordering::Release);
        self.0.drain.cancel();
    }

    /// Accepts nothing more, and waits until no server does. One that drains returns once its last connection has ended.
    pub async fn close(&self) {
        self.0.close.cancel();
        while self.any(|count| count.listens.load(Ordering::Acquire)) {
            sleep(LOOK_AGAIN).await;
        }
    }

    /// Drops the connections that still hold the state (see [`Self::released`]).
    pub fn abandon(&self) {
        self.0.abandon.cancel();
    }

    /// Ends every server: idle connections are closed, requests under way have [`Limits::grace`](super::Limits::grace).
    pub fn stop(&self) {
        self.0.stop.cancel();
    }

    /// Waits until no request that needs the state is under way, and no connection is open on which another could come.
    pub async fn released(&self) {
        while self.is_held() {
            sleep(LOOK_AGAIN).await;
        }
    }

    pub(super) fn is_held(&self) -> bool {
        self.any(|count| count.holds.load(Ordering::Acquire) > 0)
    }

    fn any(&self, is: impl Fn(&Count) -> bool) -> bool {
        let parts = self.0.parts.lock().unwrap_or_else(PoisonError::into_inner);
        parts.iter().filter_map(Weak::upgrade).any(|count| is(&count))
    }

    /// The share of one server. `needs_state` tells by its path whether a request needs the node to run until the head of the
    /// answer is there; `None` if no request does.
    #[must_use]
    pub fn part(&self, needs_state: Option<fn(&str) -> bool>) -> Part {
        let count = Arc::new(Count { listens: AtomicBool::new(true), holds: AtomicUsize::new(0) });
        self.count(&count);
        Part { ending: self.clone(), count, needs_state }
    }
}

/// What one server needs to know of its end, and tells of its connections.
#[derive(Clone)]
pub struct Part {
    ending: Ending,
    count: Arc<Count>,
    needs_state: Option<fn(&str) -> bool>,
}

impl Part {
    pub(super) async fn draining(&self) {
        self.ending.0.drain.cancelled().await;
    }

    pub(super) async fn closed(&self) {
        self.ending.0.close.cancelled().await;
    }

    pub(super) async fn abandoned(&self) {
        self.ending.0.abandon.cancelled().await;
    }

    pub(super) async fn stopped(&self) {
        self.ending.0.stop.cancelled().await;
    }

    /// The server accepts nothing more, and every connection that it has accepted is known here.
    pub(super) fn no_longer_listens(&self) {
        self.count.listens.store(false, Ordering::Release);
    }

    /// A connection that waits for its first request.
    pub(super) fn connection(&self) -> Arc<Activity> {
        let activity = Activity {
            part: self.clone(),
            moves: AtomicU64::new(0),
            holds: AtomicBool::new(false),
            afterwards: Mutex::default(),
        };
        activity.hold(self.needs_state.is_some());
        Arc::new(activity)
    }
}

/// What happens on a connection. Only its own task changes it.
pub(super) struct Activity {
    part: Part,
    /// How many requests have begun and ended: odd while one is under way.
    moves: AtomicU64,
    /// Whether it may still need the state: it waits for a request, or one that needs it has no head of an answer yet.
    holds: AtomicBool,
    /// What it does once it has left HTTP.
    afterwards: Mutex<Option<Begin>>,
}

impl Activity {
    fn hold(&self, holds: bool) {
        match (self.holds.swap(holds, Ordering::Relaxed), holds) {
            (false, true) => drop(self.part.count.holds.fetch_add(1, Ordering::AcqRel)),
            (true, false) => drop(self.part.count.holds.fetch_sub(1, Ordering::AcqRel)),
            _ => {}
        }
    }

    pub fn is_held(&self) -> bool {
        self.holds.load(Ordering::Relaxed)
    }

    /// A request has come.
    pub fn begin(self: &Arc<Self>, path: &str) -> Answering {
        self.moves.fetch_add(1, Ordering::Relaxed);
        self.hold(self.part.needs_state.is_some_and(|needs| needs(path)));
        Answering(Arc::clone(self))
    }

    /// Goes on with what its handler has left for the time after HTTP, if it has. No request comes any more.
    pub async fn afterwards(&self, leaving: Leaving) {
        self.hold(false);
        let begin = self.slot().take();
        if let Some(begin) = begin {
            begin(leaving).await;
        }
    }

    fn slot(&self) -> MutexGuard<'_, Option<Begin>> {
        self.afterwards.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Waits until nothing has happened for a while.
    pub async fn quiet(&self) {
        loop {
            let before = self.moves.load(Ordering::Relaxed);
            sleep(QUIET).await;
            if before.is_multiple_of(2) && self.moves.load(Ordering::Relaxed) == before {
                return;
            }
        }
    }
}

impl Drop for Activity {
    fn drop(&mut self) {
        self.hold(false);
    }
}

/// A request without an answer.
pub(super) struct Answering(Arc<Activity>);

impl Answering {
    /// The answer, which says that the connection ends with it if the server drains.
    pub fn answered<B>(self, mut response: Response<B>) -> Response<Counted<B>> {
        let activity = self.0;
        let last = activity.part.ending.is_draining();
        if last {
            response.headers_mut().insert(header::CONNECTION, HeaderValue::from_static("close"));
            // Otherwise it is held without a gap: another request may follow at once.
            activity.hold(false);
        }
        response.map(|body| Counted { body, _end: End { activity, last } })
    }

    /// The answer with which the connection leaves HTTP.
    pub fn switched<B>(self, response: Response<B>, begin: Option<Begin>) -> Response<Counted<B>> {
        let activity = self.0;
        *activity.slot() = begin;
        activity.hold(false);
        response.map(|body| Counted { body, _end: End { activity, last: true } })
    }
}

/// Notes the end of an answer.
struct End {
    activity: Arc<Activity>,
    last: bool,
}

impl Drop for End {
    fn drop(&mut self) {
        self.activity.moves.fetch_add(1, Ordering::Relaxed);
        // Another request may come.
        self.activity.hold(!self.last && self.activity.part.needs_state.is_some());
    }
}

/// The body of an answer.
pub(super) struct Counted<B> {
    body: B,
    _end: End,
}

impl<B: Body + Unpin> Body for Counted<B> {
    type Data = B::Data;
    type Error = B::Error;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<B::Data>, B::Error>>> {
        Pin::new(&mut self.body).poll_frame(cx)
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}
