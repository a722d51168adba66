//! Gossip: which nodes live, and small things that they tell of themselves (SWIM, with foca).
//!
//! Everybody gossips with everybody, in sealed datagrams. What is heard here is an observation: it decides nothing. Who
//! belongs to the fleet stands in the replicated state, and so does where they are: nothing is kept of anybody else, whatever
//! a member tells.

mod addresses;
mod engine;
mod facts;
mod identity;
mod known;
mod profile;
mod roster;
mod seal;
#[cfg(test)]
mod tests;

use std::net::UdpSocket;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

pub use profile::Profile;
pub use roster::{Facts, GossipStats, Heard, Liveness, Roster};

use crate::clock::Clock;
use crate::sealing::Keyring;
use crate::transport::Registered;

/// What gossip needs.
pub(crate) struct GossipOptions {
    /// Where datagrams come in and go out.
    pub socket: UdpSocket,
    /// Where the incarnations of this node are kept.
    pub directory: PathBuf,
    /// Who belongs to the fleet.
    pub registered: Arc<Registered>,
    /// What datagrams are sealed with.
    pub keyring: Keyring,
    /// How patient it is.
    pub profile: Profile,
    /// The time of day.
    pub clock: Arc<dyn Clock>,
    /// What this node tells of itself.
    pub facts: watch::Receiver<Facts>,
}

/// What this node has heard. Clones are the same.
#[derive(Clone, Debug)]
pub struct Gossip {
    roster: watch::Receiver<Arc<Roster>>,
    stats: Arc<GossipStats>,
    stays: Arc<AtomicBool>,
}

impl Gossip {
    /// Has this node say nothing when it stops: another process takes its place at once, in a life that is later than this one,
    /// and the others need not take it for dead in between.
    pub(crate) fn stay(&self) {
        self.stays.store(true, Ordering::Relaxed);
    }

    /// The newest of what has been heard.
    #[must_use]
    pub fn roster(&self) -> Arc<Roster> {
        Arc::clone(&self.roster.borrow())
    }

    /// Follows what is heard.
    #[must_use]
    pub fn follow(&self) -> watch::Receiver<Arc<Roster>> {
        self.roster.clone()
    }

    /// What is counted.
    #[must_use]
    pub fn stats(&self) -> &GossipStats {
        &self.stats
    }
}

/// Begins to gossip: what has been heard, and the task that hears it. The task ends soon after `stop`; the others have been
/// told then that this node goes, unless it stays (see [`Gossip::stay`]).
///
/// # Errors
/// When the socket or the data directory can not be used.
pub(crate) fn begin(
    options: GossipOptions,
    stop: CancellationToken,
) -> std::io::Result<(Gossip, impl Future<Output = ()> + Send + 'static)> {
    let (to_roster, roster) = watch::channel(Arc::default());
    let (stats, stays) = (Arc::new(GossipStats::default()), Arc::new(AtomicBool::new(false)));
    let task = engine::run(options, to_roster, Arc::clone(&stats), Arc::clone(&stays), stop)?;
    Ok((Gossip { roster, stats, stays }, task))
}
