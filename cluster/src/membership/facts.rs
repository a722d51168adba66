//! The small things that nodes tell of themselves. They travel with the signs of life, and the newest of each node counts.

use std::collections::HashMap;
use std::sync::Arc;

use foca::{BroadcastHandler, Invalidates};
use prost::Message;

use super::identity::GossipId;
use super::known::Known;
use crate::ids::NodeId;
use crate::wire::GossipFacts;

/// The longest facts, in bytes.
pub(super) const LONGEST: usize = 600;

/// Which facts these are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct FactsKey {
    node: u64,
    incarnation: u64,
    sequence: u64,
}

impl FactsKey {
    fn of(facts: &GossipFacts) -> Self {
        Self { node: facts.node, incarnation: facts.incarnation, sequence: facts.sequence }
    }

    fn is_newer_than(&self, other: &Self) -> bool {
        (self.incarnation, self.sequence) > (other.incarnation, other.sequence)
    }
}

impl Invalidates for FactsKey {
    fn invalidates(&self, other: &Self) -> bool {
        self.node == other.node && !other.is_newer_than(self)
    }
}

/// What somebody told that can not be facts.
#[derive(Clone, Copy, Debug, thiserror::Error)]
#[error("these are no facts of a node")]
pub(super) struct NoFacts;

/// The newest facts of every node.
#[derive(Debug)]
pub(super) struct FactsTable {
    own: NodeId,
    newest: HashMap<NodeId, Arc<GossipFacts>>,
    /// Whether something is new since it was asked last.
    changed: bool,
}

impl FactsTable {
    pub fn new(own: NodeId) -> Self {
        Self { own, newest: HashMap::new(), changed: false }
    }

    pub fn newest(&self, node: NodeId) -> Option<&Arc<GossipFacts>> {
        self.newest.get(&node)
    }

    /// Keeps what these nodes tell.
    pub fn retain(&mut self, keep: impl Fn(NodeId) -> bool) {
        self.newest.retain(|node, _| keep(*node));
    }

    pub fn take_changed(&mut self) -> bool {
        std::mem::take(&mut self.changed)
    }
}

/// The table in the hands of the one task that gossips; `foca` keeps the handler, the task looks into it.
#[derive(Clone, Debug)]
pub(super) struct SharedFacts {
    pub table: Arc<std::sync::Mutex<FactsTable>>,
    /// Of whom anything is kept, and told on.
    pub known: Known,
}

impl SharedFacts {
    /// Only maps are touched while it is held.
    pub fn table(&self) -> std::sync::MutexGuard<'_, FactsTable> {
        self.table.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
    }
}

impl BroadcastHandler<GossipId> for SharedFacts {
    type Key = FactsKey;
    type Error = NoFacts;

    fn receive_item(&mut self, data: &[u8], sender: Option<&GossipId>) -> Result<Option<FactsKey>, NoFacts> {
        if data.len() > LONGEST {
            return Err(NoFacts);
        }
        let facts = GossipFacts::decode(data).map_err(|_| NoFacts)?;
        let (key, node) = (FactsKey::of(&facts), NodeId(facts.node));
        if !self.known.has(node) {
            return Ok(None);
        }
        let mut table = self.table();
        // What others tell of this node is what it told them, or worse.
        if sender.is_some() && node == table.own {
            return Ok(None);
        }
        let known = table.newest.get(&node);
        if known.is_some_and(|known| !key.is_newer_than(&FactsKey::of(known))) {
            return Ok(None);
        }
        table.newest.insert(node, Arc::new(facts));
        table.changed = true;
        Ok(Some(key))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ids::{FleetId, StoreId};
    use crate::transport::{Peer, Registered, Registry};

    /// Of node 1, which knows node 2.
    fn handler() -> SharedFacts {
        let other = Peer { node: NodeId(2), store: StoreId::random(), address: String::new(), tls_key: Vec::new() };
        let registry = Registry::of([other]);
        let registered = Registered::new(FleetId::random(), 1, NodeId(1), StoreId::random(), registry);
        let table = Arc::new(std::sync::Mutex::new(FactsTable::new(NodeId(1))));
        SharedFacts { table, known: Known(Arc::new(registered)) }
    }

    fn facts(node: u64, incarnation: u64, sequence: u64) -> Vec<u8> {
        GossipFacts { node, incarnation, sequence, ..GossipFacts::default() }.encode_to_vec()
    }

    #[test]
    fn only_what_is_newer_travels_on() {
        let mut handler = handler();
        let sender = GossipId::any(NodeId(2));
        let mut told = |data: &[u8]| handler.receive_item(data, Some(&sender)).map(|key| key.is_some());
        assert!(told(&facts(2, 5, 1)).expect("facts"));
        assert!(!told(&facts(2, 5, 1)).expect("facts"), "known");
        assert!(!told(&facts(2, 4, 9)).expect("facts"), "of an earlier life");
        assert!(told(&facts(2, 5, 2)).expect("facts"));
        assert!(told(&facts(2, 6, 0)).expect("facts"), "a new life");
        assert!(!told(&facts(1, 9, 9)).expect("facts"), "of this node, from another");
        assert!(told(b"\xff\xff\xff").is_err());
        assert!(told(&vec![0; LONGEST + 1]).is_err());
        let own = facts(1, 1, 1);
        assert!(handler.receive_item(&own, None).expect("facts").is_some());
        assert!(handler.table().take_changed() && !handler.table().take_changed());
    }

    #[test]
    fn of_nodes_that_are_not_known_nothing_is_kept_or_told_on() {
        let mut handler = handler();
        let sender = GossipId::any(NodeId(2));
        for node in 3..10_000 {
            assert!(handler.receive_item(&facts(node, 1, 1), Some(&sender)).expect("facts").is_none());
        }
        assert_eq!(handler.table().newest.len(), 0);
    }

    #[test]
    fn newer_facts_replace_older_ones_that_still_travel() {
        let key = |node, incarnation, sequence| FactsKey { node, incarnation, sequence };
        assert!(key(1, 2, 0).invalidates(&key(1, 1, 9)));
        assert!(key(1, 1, 1).invalidates(&key(1, 1, 1)));
        assert!(!key(1, 1, 1).invalidates(&key(1, 1, 2)));
        assert!(!key(1, 2, 0).invalidates(&key(2, 1, 0)));
    }
}
