//! From the writes of the log to the events that clients know.

use std::collections::BTreeSet;

use muster_cluster::rows::{Config, Credential, Deployment, Node, Placement, Settings, credential_fields::Kind};
use muster_cluster::state::{Batch, Change, Record, Row};
use prost::Message;
use serde::Serialize;
use utoipa::ToSchema;

/// With more deployments than this an event names none, which means all of them.
const IDS: usize = 1000;

/// What a client is told.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, ToSchema)]
#[serde(tag = "type", rename_all = "snake_case")]
pub(super) enum Event {
    /// Deployments have changed.
    DeploymentsChanged {
        /// Which; left out if it may be any.
        #[serde(skip_serializing_if = "Option::is_none")]
        ids: Option<BTreeSet<u64>>,
        /// Everything up to this entry of the log has been told.
        seq: u64,
    },
    /// Nodes have changed.
    NodesChanged {
        /// Everything up to this entry of the log has been told. Left out where this node only sees another one otherwise than
        /// before.
        #[serde(skip_serializing_if = "Option::is_none")]
        seq: Option<u64>,
    },
    /// The fleet's settings have changed.
    SettingsChanged {
        /// Everything up to this entry of the log has been told.
        seq: u64,
    },
    /// Keys of the gateway have been made, changed or removed.
    ApiKeysChanged {
        /// Everything up to this entry of the log has been told.
        seq: u64,
    },
    /// What has changed is no longer known: everything is to be read anew, and from this entry on events follow.
    Resync {
        /// The entry.
        seq: u64,
    },
}

impl Event {
    /// Joins with what comes next, if it says the same of more.
    fn join(&mut self, next: &Self) -> bool {
        match (self, next) {
            (Self::DeploymentsChanged { ids, seq }, Self::DeploymentsChanged { ids: more, seq: later }) => {
                *ids = ids.take().zip(more.as_ref()).and_then(|(mut ids, more)| {
                    ids.extend(more);
                    (ids.len() <= IDS).then_some(ids)
                });
                *seq = *later;
                true
            }
            (Self::NodesChanged { seq }, Self::NodesChanged { seq: later }) => {
                *seq = *later;
                true
            }
            (Self::SettingsChanged { seq }, Self::SettingsChanged { seq: later })
            | (Self::ApiKeysChanged { seq }, Self::ApiKeysChanged { seq: later }) => {
                *seq = *later;
                true
            }
            _ => false,
        }
    }
}

/// What of one entry is worth telling.
#[derive(Debug, Default)]
struct Told {
    api_keys: bool,
    settings: bool,
    nodes: bool,
    /// None named means all of them.
    deployments: Option<Option<BTreeSet<u64>>>,
}

impl Told {
    fn note(&mut self, change: &Change) {
        let table = change.key.table;
        if table == Deployment::TABLE || table == Placement::TABLE {
            // Both keys begin with the number of the deployment.
            let id = change.key.key.first_chunk::<8>().copied().map(u64::from_be_bytes);
            let ids = self.deployments.get_or_insert_with(|| Some(BTreeSet::new()));
            match (ids.as_mut(), id) {
                (Some(ids), Some(id)) => drop(ids.insert(id)),
                _ => *ids = None,
            }
        } else if table == Config::TABLE {
            // The seed tells of a purge of configurations so.
            if change.record.is_none() {
                self.deployments = Some(None);
            }
        } else if table == Credential::TABLE {
            self.api_keys |= change.record.as_ref().is_none_or(is_of_the_gateway);
        } else if table == Node::TABLE {
            self.nodes = true;
        } else if table == Settings::TABLE {
            self.settings = true;
        }
    }

    /// The events of the entry. A client may hear some of them and not the others, so only the last says that all has been told.
    fn events(self, index: u64) -> Vec<Event> {
        let mut left = usize::from(self.api_keys) + usize::from(self.settings) + usize::from(self.nodes);
        left += usize::from(self.deployments.is_some());
        let mut events = Vec::with_capacity(left);
        let mut seq = || {
            left -= 1;
            if left == 0 { index } else { index.saturating_sub(1) }
        };
        if self.api_keys {
            events.push(Event::ApiKeysChanged { seq: seq() });
        }
        if self.settings {
            events.push(Event::SettingsChanged { seq: seq() });
        }
        if self.nodes {
            events.push(Event::NodesChanged { seq: Some(seq()) });
        }
        if let Some(ids) = self.deployments {
            events.push(Event::DeploymentsChanged { ids: ids.filter(|ids| ids.len() <= IDS), seq: seq() });
        }
        events
    }
}

/// Whether it is a key that calls models. One that can not be read may be.
fn is_of_the_gateway(record: &Record) -> bool {
    let Ok(credential) = Credential::decode(record.value.clone()) else { return true };
    match credential.fields.and_then(|fields| fields.kind) {
        Some(Kind::Gateway(_) | Kind::Temporary(_)) => true,
        Some(Kind::Console(_) | Kind::Join(_)) => false,
        None => true,
    }
}

/// Whether a credential has changed, of whatever kind.
pub(super) fn concerns_credentials(batches: &[Batch]) -> bool {
    batches.iter().flat_map(|batch| batch.changes.iter()).any(|change| change.key.table == Credential::TABLE)
}

/// What is told of these entries, in their order. What says the same one after the other is told once.
pub(super) fn events(batches: &[Batch]) -> Vec<Event> {
    let mut events: Vec<Event> = Vec::new();
    for batch in batches {
        let mut told = Told::default();
        batch.changes.iter().for_each(|change| told.note(change));
        for event in told.events(batch.index) {
            if !events.last_mut().is_some_and(|last| last.join(&event)) {
                events.push(event);
            }
        }
    }
    events
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use bytes::Bytes;
    use muster_cluster::rows::{ConsoleKey, CredentialFields, GatewayKey, Model};
    use muster_cluster::state::{RecordKey, TableId};
    use serde_json::json;

    use super::*;

    fn change(table: TableId, key: impl Into<Vec<u8>>, value: Option<Vec<u8>>) -> Change {
        let record = value.map(|value| Record { mod_index: 1, value: value.into() });
        Change { key: RecordKey { table, key: Bytes::from(key.into()) }, record, created: false }
    }

    fn of(table: TableId, id: u64) -> Change {
        change(table, id.to_be_bytes(), Some(Vec::new()))
    }

    fn placement(id: u64, ordinal: u32) -> Change {
        change(Placement::TABLE, [&id.to_be_bytes()[..], &ordinal.to_be_bytes()].concat(), Some(Vec::new()))
    }

    fn credential(kind: Kind) -> Change {
        let fields = Some(CredentialFields { kind: Some(kind), ..CredentialFields::default() });
        let value = Credential { fields, ..Credential::default() }.encode_to_vec();
        change(Credential::TABLE, 1_u64.to_be_bytes(), Some(value))
    }

    fn told(batches: Vec<(u64, Vec<Change>)>) -> serde_json::Value {
        let batches: Vec<_> =
            batches.into_iter().map(|(index, changes)| Batch { index, changes: Arc::from(changes) }).collect();
        serde_json::to_value(events(&batches)).expect("JSON")
    }

    #[test]
    fn each_table_is_told_by_its_name() {
        let (deployment, node, settings) = (Deployment::TABLE, Node::TABLE, Settings::TABLE);
        assert_eq!(
            told(vec![
                (1, vec![of(deployment, 7)]),
                (2, vec![of(node, 1)]),
                (3, vec![change(settings, Vec::new(), Some(Vec::new()))]),
                (4, vec![credential(Kind::Gateway(GatewayKey::default()))]),
                (5, vec![placement(8, 1)]),
            ]),
            json!([
                {"type": "deployments_changed", "ids": [7], "seq": 1},
                {"type": "nodes_changed", "seq": 2},
                {"type": "settings_changed", "seq": 3},
                {"type": "api_keys_changed", "seq": 4},
                {"type": "deployments_changed", "ids": [8], "seq": 5},
            ])
        );
    }

    #[test]
    fn what_nobody_keeps_a_picture_of_is_not_told() {
        let silent = [
            of(Model::TABLE, 1),
            of(muster_cluster::rows::CredentialUse::TABLE, 1),
            of(muster_cluster::rows::Reservation::TABLE, 1),
            of(Config::TABLE, 1),
            credential(Kind::Console(ConsoleKey::default())),
        ];
        assert_eq!(told(vec![(1, silent.to_vec())]), json!([]));
        // What kind it was can not be told any more.
        let removed = change(Credential::TABLE, 1_u64.to_be_bytes(), None);
        assert_eq!(told(vec![(2, vec![removed])]), json!([{"type": "api_keys_changed", "seq": 2}]));
        let removed = change(Config::TABLE, 1_u64.to_be_bytes(), None);
        assert_eq!(told(vec![(3, vec![removed])]), json!([{"type": "deployments_changed", "seq": 3}]));
    }

    #[test]
    fn entries_that_say_the_same_one_after_the_other_are_one_event() {
        let deployment = |id| of(Deployment::TABLE, id);
        assert_eq!(
            told(vec![
                (1, vec![deployment(2), placement(2, 0)]),
                (2, vec![of(Model::TABLE, 1)]),
                (3, vec![deployment(1)]),
                (4, vec![of(Node::TABLE, 1)]),
                (5, vec![deployment(2)]),
            ]),
            json!([
                {"type": "deployments_changed", "ids": [1, 2], "seq": 3},
                {"type": "nodes_changed", "seq": 4},
                {"type": "deployments_changed", "ids": [2], "seq": 5},
            ])
        );
        let many = (1..=IDS as u64 + 1).map(|id| (id, vec![deployment(id)])).collect();
        assert_eq!(told(many), json!([{"type": "deployments_changed", "seq": IDS + 1}]), "any may have changed");
    }

    /// Whoever has heard only one of them hears the other when it comes again.
    #[test]
    fn only_the_last_event_of_an_entry_says_that_all_of_it_was_told() {
        let both = vec![of(Deployment::TABLE, 7), credential(Kind::Gateway(GatewayKey::default()))];
        assert_eq!(
            told(vec![(9, both)]),
            json!([
                {"type": "api_keys_changed", "seq": 8},
                {"type": "deployments_changed", "ids": [7], "seq": 9},
            ])
        );
    }
}
