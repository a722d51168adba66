//! What this node has heard of the others.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Instant;

use crate::ids::NodeId;
use crate::wire::GossipFacts;

/// Whether a node lives, as far as this one can tell. Nothing is decided by it: it is a hint for those who ask first, and a
/// suspicion for those who must be sure.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Liveness {
    /// It answers.
    Alive,
    /// It has not answered of late.
    Suspect,
    /// It does not answer, or has said that it goes.
    Down,
}

/// What a node told of itself.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Facts {
    /// Host and port of its API.
    pub api: String,
    /// Host and port of its proxy.
    pub proxy: String,
    /// Host and port of its mesh.
    pub mesh: String,
    /// Its version.
    pub version: String,
    /// Whether it takes no new work and is about to go.
    pub draining: bool,
    /// The last entry of the log that it had applied, some seconds ago at most.
    pub applied_index: u64,
}

impl Facts {
    pub(super) fn of(told: &GossipFacts) -> Self {
        let GossipFacts { api, proxy, mesh, version, draining, applied_index, .. } = told.clone();
        Self { api, proxy, mesh, version, draining, applied_index }
    }

    pub(super) fn told(&self, node: NodeId, incarnation: u64, sequence: u64) -> GossipFacts {
        let Self { api, proxy, mesh, version, draining, applied_index } = self.clone();
        GossipFacts { node: node.0, incarnation, sequence, api, proxy, mesh, version, draining, applied_index }
    }
}

/// A node, as this one sees it.
#[derive(Clone, Debug)]
pub struct Heard {
    /// Whether it lives.
    pub liveness: Liveness,
    /// Since when this node sees it so.
    pub since: Instant,
    /// What it told last.
    pub facts: Option<Arc<Facts>>,
}

/// Every other node that this one has heard of in this life.
#[derive(Clone, Debug, Default)]
pub struct Roster {
    pub(super) nodes: BTreeMap<NodeId, Heard>,
}

impl Roster {
    /// What is known of a node. None for one that was never heard, and for this node itself.
    #[must_use]
    pub fn node(&self, node: NodeId) -> Option<&Heard> {
        self.nodes.get(&node)
    }

    /// Everybody, in the order of their numbers.
    pub fn nodes(&self) -> impl Iterator<Item = (NodeId, &Heard)> {
        self.nodes.iter().map(|(node, heard)| (*node, heard))
    }
}

/// What is counted of gossip.
#[derive(Debug, Default)]
pub struct GossipStats {
    pub(super) sent: AtomicU64,
    pub(super) received: AtomicU64,
    pub(super) foreign: AtomicU64,
    pub(super) malformed: AtomicU64,
    pub(super) unknown: AtomicU64,
    pub(super) kept: AtomicU64,
}

impl GossipStats {
    pub(super) fn count(counter: &AtomicU64) {
        Self::add(counter, 1);
    }

    pub(super) fn add(counter: &AtomicU64, number: u64) {
        counter.fetch_add(number, Ordering::Relaxed);
    }

    /// Datagrams sent.
    #[must_use]
    pub fn sent(&self) -> u64 {
        self.sent.load(Ordering::Relaxed)
    }

    /// Datagrams of this fleet received.
    #[must_use]
    pub fn received(&self) -> u64 {
        self.received.load(Ordering::Relaxed)
    }

    /// Datagrams that did not open: of strangers, of another fleet or generation, or damaged.
    #[must_use]
    pub fn foreign(&self) -> u64 {
        self.foreign.load(Ordering::Relaxed)
    }

    /// How often somebody was told of, or spoke, who is not known here.
    #[must_use]
    pub fn unknown(&self) -> u64 {
        self.unknown.load(Ordering::Relaxed)
    }

    /// Of how many nodes anything is kept, those that are gone included.
    #[must_use]
    pub fn kept(&self) -> u64 {
        self.kept.load(Ordering::Relaxed)
    }

    /// Datagrams of this fleet that made no sense.
    #[must_use]
    pub fn malformed(&self) -> u64 {
        self.malformed.load(Ordering::Relaxed)
    }
}
