//! Who a node is in gossip, so that what is said of its earlier lives can be told from what is said of this one.

use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use crate::clock::Clock;
use crate::ids::NodeId;
use crate::storage::{read_small, write_private};

/// A node in one of its lives.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct GossipId {
    node: u64,
    incarnation: u64,
}

impl GossipId {
    pub fn new(node: NodeId, incarnation: u64) -> Self {
        Self { node: node.0, incarnation }
    }

    /// Any life of a node, for speaking to one that has not been heard.
    pub fn any(node: NodeId) -> Self {
        Self::new(node, 0)
    }

    pub fn node(&self) -> NodeId {
        NodeId(self.node)
    }

    pub fn incarnation(&self) -> u64 {
        self.incarnation
    }
}

impl foca::Identity for GossipId {
    type Addr = u64;

    /// A node that was thought dead says that it lives.
    fn renew(&self) -> Option<Self> {
        Some(Self { incarnation: self.incarnation.saturating_add(1), ..*self })
    }

    fn addr(&self) -> u64 {
        self.node
    }

    fn win_addr_conflict(&self, adversary: &Self) -> bool {
        self.incarnation > adversary.incarnation
    }
}

const FILE: &str = "incarnation";

/// How many incarnations are set aside at once: a node may renew itself so often before the file is written again.
const ASIDE: u64 = 1000;

/// The incarnations of this node. Each is used once, also when its clock was set back.
#[derive(Debug)]
pub(super) struct Incarnations {
    file: PathBuf,
    /// All up to here may have been used by this life.
    ceiling: u64,
}

impl Incarnations {
    /// The first of a new life: later than every one before.
    ///
    /// # Errors
    /// When the file can not be read or written.
    pub fn begin(directory: &Path, clock: &dyn Clock) -> std::io::Result<(Self, u64)> {
        let file = directory.join(FILE);
        let kept = read_small(&file, 64)?;
        // An unreadable one is as good as none: the clock is later, unless it was set back.
        let before = kept.and_then(|bytes| String::from_utf8(bytes).ok()?.trim().parse::<u64>().ok()).unwrap_or(0);
        let first = before.saturating_add(1).max(clock.now_ms());
        let mut incarnations = Self { file, ceiling: 0 };
        incarnations.reserve(first)?;
        Ok((incarnations, first))
    }

    /// Sees to it that no later life uses this one, or those that follow it.
    ///
    /// # Errors
    /// When the file can not be written.
    pub fn reserve(&mut self, incarnation: u64) -> std::io::Result<()> {
        if incarnation + ASIDE / 2 <= self.ceiling {
            return Ok(());
        }
        let ceiling = incarnation.saturating_add(ASIDE);
        write_private(&self.file, ceiling.to_string().as_bytes())?;
        self.ceiling = ceiling;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    struct At(u64);

    impl Clock for At {
        fn now_ms(&self) -> u64 {
            self.0
        }
    }

    #[test]
    fn every_life_is_later_than_those_before() {
        let directory = tempfile::tempdir().expect("a directory");
        let begin = |now| Incarnations::begin(directory.path(), &At(now)).expect("a file");
        let (mut first, incarnation) = begin(1_000_000);
        assert_eq!(incarnation, 1_000_000);
        // Renewed so often that more had to be set aside.
        let last = incarnation + 5 * ASIDE;
        for renewed in incarnation..=last {
            first.reserve(renewed).expect("written");
        }
        let (_, second) = begin(10);
        assert!(second > last, "the clock was set back: {second}");
        let (_, third) = begin(2_000_000);
        assert_eq!(third, 2_000_000);
        std::fs::write(directory.path().join(FILE), "no number").expect("written");
        assert_eq!(begin(3_000_000).1, 3_000_000);
    }
}
