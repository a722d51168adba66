//! Who the nodes are and where they can be reached, as the replicated state says.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::sync::Arc;

use arc_swap::ArcSwap;

use crate::ids::{FleetId, NodeId, StoreId};
use crate::state::{Damaged, View};

/// Another node.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Peer {
    /// Its number.
    pub node: NodeId,
    /// The log that it promises things with.
    pub store: StoreId,
    /// Host and port of its mesh listener.
    pub address: String,
    /// The public key that it shows (SubjectPublicKeyInfo, DER).
    pub tls_key: Vec<u8>,
}

/// Everybody that this node knows of.
#[derive(Clone, Debug, Default)]
pub struct Registry {
    by_node: BTreeMap<NodeId, Peer>,
    by_key: HashMap<Vec<u8>, NodeId>,
    removed: HashSet<Vec<u8>>,
}

impl Registry {
    /// The registry of these nodes.
    #[must_use]
    pub fn of(peers: impl IntoIterator<Item = Peer>) -> Self {
        let by_node: BTreeMap<_, _> = peers.into_iter().map(|peer| (peer.node, peer)).collect();
        let by_key = by_node.values().map(|peer| (peer.tls_key.clone(), peer.node)).collect();
        Self { by_node, by_key, removed: HashSet::new() }
    }

    /// The nodes of the replicated state; where it has none yet, those that were met before.
    ///
    /// # Errors
    /// When the state is damaged.
    pub fn from_view(view: &View, met: &[Peer]) -> Result<Self, Damaged> {
        let mut peers: BTreeMap<_, _> = met.iter().map(|peer| (peer.node, peer.clone())).collect();
        for stored in view.nodes()? {
            let facts = stored.row.facts.unwrap_or_default();
            let Some(store) = StoreId::from_slice(&stored.row.store_id) else { continue };
            let node = NodeId(stored.row.id);
            peers.insert(node, Peer { node, store, address: facts.mesh, tls_key: stored.row.tls_key.to_vec() });
        }
        let removed: HashSet<_> = view.removed_keys()?.iter().map(|key| key.to_vec()).collect();
        peers.retain(|_, peer| !removed.contains(&peer.tls_key));
        Ok(Self { removed, ..Self::of(peers.into_values()) })
    }

    /// A node by its number.
    #[must_use]
    pub fn node(&self, node: NodeId) -> Option<&Peer> {
        self.by_node.get(&node)
    }

    /// A node by the key that it shows.
    #[must_use]
    pub fn by_key(&self, key: &[u8]) -> Option<&Peer> {
        self.by_key.get(key).and_then(|node| self.by_node.get(node))
    }

    /// Whether this is the key of a node that was removed from the fleet.
    #[must_use]
    pub fn is_removed(&self, key: &[u8]) -> bool {
        self.removed.contains(key)
    }

    /// Every node.
    pub fn peers(&self) -> impl Iterator<Item = &Peer> {
        self.by_node.values()
    }
}

/// The registry in force, and who asks it.
#[derive(Debug)]
pub struct Registered {
    /// The fleet.
    pub fleet: FleetId,
    /// The fleet's recovery generation.
    pub generation: u64,
    /// This node.
    pub node: NodeId,
    /// This node's log.
    pub store: StoreId,
    current: ArcSwap<Registry>,
}

impl Registered {
    /// Begins with these nodes.
    #[must_use]
    pub fn new(fleet: FleetId, generation: u64, node: NodeId, store: StoreId, registry: Registry) -> Self {
        Self { fleet, generation, node, store, current: ArcSwap::from_pointee(registry) }
    }

    /// Puts another registry in force.
    pub fn replace(&self, registry: Registry) {
        self.current.store(Arc::new(registry));
    }

    /// The registry in force.
    #[must_use]
    pub fn current(&self) -> Arc<Registry> {
        self.current.load_full()
    }
}
