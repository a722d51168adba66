//! What becomes of a connection that has left HTTP with an answer of status 101.

use std::fmt;
use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError};

/// Why a connection that has left HTTP is to end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Leave {
    /// The server drains: another process takes its place.
    Drain,
    /// The server stops.
    Stop,
}

/// Ready when the connection is to end. What then goes on for longer than [`Limits::grace`](super::Limits::grace) is dropped.
pub type Leaving = Pin<Box<dyn Future<Output = Leave> + Send>>;

type Task = Pin<Box<dyn Future<Output = ()> + Send>>;

pub(super) type Begin = Box<dyn FnOnce(Leaving) -> Task + Send>;

/// What a connection does after HTTP, as an extension of the answer that says so. It runs in the task of the connection: it
/// counts as a connection, and ends with the server.
#[derive(Clone)]
pub struct Afterwards(Arc<Mutex<Option<Begin>>>);

impl Afterwards {
    /// Goes on so.
    pub fn new<F: Future<Output = ()> + Send + 'static>(begin: impl FnOnce(Leaving) -> F + Send + 'static) -> Self {
        let begin: Begin = Box::new(|leaving| Box::pin(begin(leaving)));
        Self(Arc::new(Mutex::new(Some(begin))))
    }

    /// Only the first of its clones has it.
    pub(super) fn take(&self) -> Option<Begin> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).take()
    }
}

impl fmt::Debug for Afterwards {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("(what a connection does after HTTP)")
    }
}
