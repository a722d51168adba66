//! A fleet that has gone on without this node: it was restored or recovered elsewhere, and is of a later generation.
//!
//! One node's word is not enough to stop another. It counts only when it comes over a connection that this node has made, to
//! a node of its own registry, which has shown that node's key; and only while no quorum of this node's own generation
//! confirms anything for a while. So whoever lies can stop nobody who could still acknowledge a write, and a machine on which
//! somebody has run `muster operator recover` by mistake does no harm to a fleet that lives. Nothing is moved or deleted: a
//! node that was stopped in error is started again.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::watch;
use tokio::time::Instant;

use crate::consensus::Consensus;
use crate::ids::NodeId;

/// How long nobody may have confirmed anything, while another node says that the fleet has gone on.
const ALONE: Duration = Duration::from_secs(20);

/// How long to wait before a quorum is asked for again.
const PAUSE: Duration = Duration::from_secs(1);

/// What is said while it is not believed.
const REMIND: Duration = Duration::from_secs(60);

/// Waits until the fleet has gone on without this node, and returns the sentence that says so.
pub(super) async fn superseded(
    consensus: Arc<Consensus>,
    mut later: watch::Receiver<Option<(u64, NodeId)>>,
    generation: u64,
    directory: &Path,
) -> String {
    let mut judge = Judge::default();
    loop {
        if later.borrow().is_none() {
            judge.quiet();
        }
        let Ok(said) = later.wait_for(Option::is_some).await.map(|said| *said) else {
            return std::future::pending().await;
        };
        let Some((theirs, node)) = said else { continue };
        // It takes two seconds to fail.
        let confirmed = consensus.linearizable().await.is_ok();
        match judge.hear(Instant::now(), confirmed) {
            Verdict::Wait => {}
            Verdict::Unbelievable => tracing::error!(
                %node,
                theirs,
                generation,
                "a node says that it is of a later generation of the fleet, but a quorum of this one lives: was `muster \
                 operator recover` run there by mistake? Take it out, empty it, and let it join anew"
            ),
            Verdict::Superseded => return sentence(node, theirs, generation, directory),
        }
        tokio::time::sleep(PAUSE).await;
    }
}

fn sentence(node: NodeId, theirs: u64, generation: u64, directory: &Path) -> String {
    let directory = directory.display();
    format!(
        "the fleet has gone on without this node: node {node} is of generation {theirs} (it was restored or recovered), and \
         this one of generation {generation}. Its data are left in {directory}, and are of no use to the fleet: move them \
         away, and let the machine join anew (muster serve --join ...)"
    )
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Verdict {
    Wait,
    /// It is said once in a while.
    Unbelievable,
    Superseded,
}

/// After so long without a word, what was heard before does not count: a quorum may have lived in between.
const GAP: Duration = Duration::from_secs(10);

/// How long nobody has confirmed anything.
#[derive(Debug, Default)]
struct Judge {
    since: Option<Instant>,
    heard: Option<Instant>,
    reminded: Option<Instant>,
}

impl Judge {
    /// Nobody says it any more.
    fn quiet(&mut self) {
        self.since = None;
    }

    /// A node has said it again, and a quorum of this generation has confirmed that it lives, or has not.
    fn hear(&mut self, now: Instant, confirmed: bool) -> Verdict {
        let heard = self.heard.replace(now);
        if heard.is_none_or(|heard| now.saturating_duration_since(heard) > GAP) {
            self.since = None;
        }
        if confirmed {
            self.since = None;
            if self.reminded.is_some_and(|at| now.saturating_duration_since(at) < REMIND) {
                return Verdict::Wait;
            }
            self.reminded = Some(now);
            return Verdict::Unbelievable;
        }
        let since = *self.since.get_or_insert(now);
        if now.saturating_duration_since(since) >= ALONE { Verdict::Superseded } else { Verdict::Wait }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nobody_is_believed_while_a_quorum_lives() {
        let (mut judge, begun) = (Judge::default(), Instant::now());
        let mut hear = |after: u64, confirmed| judge.hear(begun + Duration::from_secs(after), confirmed);
        assert_eq!(hear(0, true), Verdict::Unbelievable);
        assert_eq!(hear(3, true), Verdict::Wait, "it has just been said");
        assert_eq!([5, 8, 11, 14, 17, 20, 23].map(|after| hear(after, false)), [Verdict::Wait; 7]);
        assert_eq!(hear(24, true), Verdict::Wait, "a quorum again");
        assert_eq!([26, 35, 44, 45].map(|after| hear(after, false)), [Verdict::Wait; 4]);
        assert_eq!(hear(46, false), Verdict::Superseded);
        assert_eq!(hear(70, true), Verdict::Unbelievable);
        assert_eq!([hear(72, false), hear(3600, false)], [Verdict::Wait; 2], "who knows what was in between");
        assert_eq!([3609, 3615].map(|after| hear(after, false)), [Verdict::Wait; 2]);
        assert_eq!(hear(3620, false), Verdict::Superseded);
        let (mut judge, mut wait) = (Judge::default(), Vec::new());
        for after in 0..60 {
            judge.quiet();
            wait.push(judge.hear(begun + Duration::from_secs(after), false));
        }
        assert!(wait.iter().all(|verdict| *verdict == Verdict::Wait), "it is not said all the time");
    }
}
