//! The running process's side: who may take the node over, and when.

use std::io;
use std::net::SocketAddr;
use std::os::unix::net::UnixListener;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use muster_api::Phase;
use tokio::io::AsyncReadExt;
use tokio::net::UnixStream;
use tokio::sync::{mpsc, watch};
use tokio::task::JoinHandle;

use super::wire::{Greeting, Hello, PROTOCOL, Reply, Word, hear, hear_bytes, say, send_sockets};
use super::{SAY_LIMIT, WORK_LIMIT};
use crate::node::listeners::{Addresses, Listeners};

/// The pause after a failure to accept.
const PAUSE: Duration = Duration::from_millis(100);

/// What can be taken over.
#[derive(Clone)]
pub struct Offer {
    /// Where the node listens.
    pub addresses: Addresses,
    /// Where it is in its life.
    pub phase: watch::Receiver<Phase>,
}

/// Listens for successors. Dropping it leaves those that come to whoever listens next.
pub struct Door {
    task: JoinHandle<()>,
    candidates: mpsc::Receiver<Candidate>,
}

impl Door {
    /// Opens it.
    pub fn open(listener: UnixListener, offer: Offer) -> io::Result<Self> {
        let listener = tokio::net::UnixListener::from_std(listener)?;
        let (to_node, candidates) = mpsc::channel(1);
        Ok(Self { task: tokio::spawn(answer(listener, offer, to_node)), candidates })
    }

    /// The next one that may take the node over.
    pub async fn candidate(&mut self) -> Candidate {
        match self.candidates.recv().await {
            Some(candidate) => candidate,
            None => std::future::pending().await,
        }
    }
}

impl Drop for Door {
    fn drop(&mut self) {
        self.task.abort();
    }
}

async fn answer(listener: tokio::net::UnixListener, offer: Offer, to_node: mpsc::Sender<Candidate>) {
    let busy = Arc::new(AtomicBool::new(false));
    loop {
        let stream = match listener.accept().await {
            Ok((stream, _)) => stream,
            Err(error) => {
                tracing::warn!(%error, "no successor can be accepted");
                tokio::time::sleep(PAUSE).await;
                continue;
            }
        };
        match receive(stream, &offer, &busy).await {
            Ok(Some(candidate)) => drop(to_node.send(candidate).await),
            Ok(None) => {}
            Err(error) => {
                tracing::debug!(%error, "somebody on the handover socket said nothing that could be understood")
            }
        }
    }
}

/// Hears who is there. Whoever can not have the node is told why.
async fn receive(mut stream: UnixStream, offer: &Offer, busy: &Arc<AtomicBool>) -> io::Result<Option<Candidate>> {
    let user = stream.peer_cred()?.uid();
    if user != 0 && user != rustix::process::geteuid().as_raw() {
        return Err(io::Error::other(format!("user {user} may not take the node over")));
    }
    let said = hear_bytes(&mut stream, SAY_LIMIT).await?;
    let Greeting { protocol } = serde_json::from_slice(&said)?;
    let refused = if protocol == PROTOCOL {
        let hello: Hello = serde_json::from_slice(&said)?;
        match objection(&hello, offer.addresses, level(&offer.phase)) {
            None => match Busy::begin(busy) {
                Some(busy) => return Ok(Some(Candidate { stream, version: hello.version, _busy: busy })),
                None => "a handover is under way already; wait for its end".to_owned(),
            },
            Some(why) => why,
        }
    } else {
        format!(
            "the running process speaks protocol {PROTOCOL} of the handover, not {protocol}; stop it, then start this one"
        )
    };
    tracing::warn!(why = refused, "a successor is refused");
    say(&mut stream, &Reply::Refused { why: refused }, SAY_LIMIT).await?;
    Ok(None)
}

/// The feature level of the fleet, or why the node can not be taken over now.
fn level(phase: &watch::Receiver<Phase>) -> Result<u32, String> {
    match &*phase.borrow() {
        Phase::Member(member) => {
            let fleet = member.consensus.local().fleet().map_err(|error| error.to_string())?;
            Ok(fleet.map_or(0, |fleet| fleet.feature_level))
        }
        Phase::Starting => Err("the running process is still starting; try again when it is ready".to_owned()),
        Phase::Unconfigured => {
            Err("the running process belongs to no fleet yet; stop it, then start this one".to_owned())
        }
        Phase::HandedOver(_) => Err("the running process hands the node over already; wait for its end".to_owned()),
        Phase::Stopped(_) => Err("the running process is stopping; start this one when it has ended".to_owned()),
    }
}

/// Why this successor can not have the node, if so.
fn objection(hello: &Hello, own: Addresses, level: Result<u32, String>) -> Option<String> {
    let level = match level {
        Ok(level) => level,
        Err(why) => return Some(why),
    };
    let Addresses { api, proxy, mesh, loopback } = hello.addresses;
    for (what, wanted, listening) in [("API", api, own.api), ("proxy", proxy, own.proxy), ("mesh", mesh, own.mesh)] {
        if wanted.ip() != listening.ip() || wanted.port() != 0 && wanted.port() != listening.port() {
            return Some(format!(
                "the {what} listens on {listening}, and the new configuration says {wanted}; an address changes only when \
                 the running process is stopped first"
            ));
        }
    }
    for (what, wanted, listening) in
        [("API", loopback.api, own.loopback.api), ("proxy", loopback.proxy, own.loopback.proxy)]
    {
        if wanted != listening {
            let place =
                |address: Option<SocketAddr>| address.map_or("nowhere".to_owned(), |address| address.to_string());
            return Some(format!(
                "the {what} listens for this machine alone on {}, and the new configuration says {}; that changes only when \
                 the running process is stopped first",
                place(listening),
                place(wanted)
            ));
        }
    }
    let (lowest, highest) = hello.levels;
    // Level 0 is that of a fleet that has not said any.
    if level != 0 && !(lowest..=highest).contains(&level) {
        return Some(format!(
            "the fleet is at feature level {level}, and version {} supports {lowest} to {highest}",
            hello.version
        ));
    }
    None
}

/// Says that a handover is under way, until it is dropped.
struct Busy(Arc<AtomicBool>);

impl Busy {
    fn begin(busy: &Arc<AtomicBool>) -> Option<Self> {
        (!busy.swap(true, Ordering::AcqRel)).then(|| Self(Arc::clone(busy)))
    }
}

impl Drop for Busy {
    fn drop(&mut self) {
        self.0.store(false, Ordering::Release);
    }
}

/// A successor that may have the node.
pub struct Candidate {
    stream: UnixStream,
    /// Its version.
    pub version: String,
    _busy: Busy,
}

impl Candidate {
    /// Tells it that the node will be handed over.
    pub async fn accept(&mut self) -> io::Result<()> {
        let version = env!("CARGO_PKG_VERSION").to_owned();
        say(&mut self.stream, &Reply::Accepted { version }, SAY_LIMIT).await
    }

    /// Returns once it is gone, or says something although it is not its turn.
    pub async fn gone(&mut self) {
        let _ = self.stream.read_u8().await;
    }

    /// Tells it that it does not get the node after all.
    pub async fn refuse(mut self, why: &str) {
        if let Err(error) = say(&mut self.stream, &Reply::Refused { why: why.to_owned() }, SAY_LIMIT).await {
            tracing::debug!(%error, "the successor is gone");
        }
    }

    /// Gives it the sockets and waits until it serves.
    pub async fn install(&mut self, listeners: &Listeners) -> Result<(), String> {
        let gone = |error: io::Error| format!("it does not answer: {error}");
        send_sockets(&mut self.stream, listeners, SAY_LIMIT).await.map_err(gone)?;
        match hear(&mut self.stream, WORK_LIMIT).await.map_err(gone)? {
            Word::Serving => Ok(()),
            Word::Failed { why } => Err(why),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::node::listeners::Loopback;

    fn addresses(api: &str) -> Addresses {
        let parse = |text: &str| text.parse().expect("an address");
        let (proxy, mesh) = (parse("127.0.0.1:4000"), parse("127.0.0.1:7946"));
        Addresses { api: parse(api), proxy, mesh, loopback: Loopback::default() }
    }

    fn hello(api: &str) -> Hello {
        Hello { levels: (1, 2), ..Hello::new(addresses(api)) }
    }

    #[test]
    fn a_successor_must_want_the_same_addresses() {
        let own = addresses("127.0.0.1:8000");
        for (wanted, refused) in [
            ("127.0.0.1:8000", false),
            ("127.0.0.1:0", false),
            ("127.0.0.1:8001", true),
            ("127.0.0.2:8000", true),
            ("0.0.0.0:0", true),
            ("[::1]:8000", true),
        ] {
            let why = objection(&hello(wanted), own, Ok(1));
            assert_eq!(why.is_some(), refused, "{wanted}: {why:?}");
            assert!(why.is_none_or(|why| why.contains(wanted) && why.contains("127.0.0.1:8000")));
        }
    }

    #[test]
    fn a_successor_must_want_the_same_on_loopback() {
        let also = |proxy: Option<u16>| {
            let loopback = Loopback { api: None, proxy: proxy.map(|port| ([127, 0, 0, 1], port).into()) };
            Addresses { loopback, ..addresses("100.64.0.1:8000") }
        };
        for (wanted, own, refused) in
            [(None, None, false), (Some(4000), Some(4000), false), (Some(4000), None, true), (None, Some(4000), true)]
        {
            let hello = Hello { levels: (1, 2), ..Hello::new(also(wanted)) };
            assert_eq!(objection(&hello, also(own), Ok(1)).is_some(), refused, "{wanted:?} {own:?}");
        }
    }

    #[test]
    fn a_successor_must_support_the_fleets_level_and_the_node_must_run() {
        let own = addresses("127.0.0.1:8000");
        for (level, refused) in [(Ok(0), false), (Ok(1), false), (Ok(2), false), (Ok(3), true), (Err("no"), true)] {
            let why = objection(&hello("127.0.0.1:8000"), own, level.map_err(ToOwned::to_owned));
            assert_eq!(why.is_some(), refused, "{level:?}: {why:?}");
        }
    }

    #[test]
    fn only_one_handover_is_under_way() {
        let busy = Arc::default();
        let first = Busy::begin(&busy);
        assert!(first.is_some() && Busy::begin(&busy).is_none());
        drop(first);
        assert!(Busy::begin(&busy).is_some());
    }
}
