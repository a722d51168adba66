//! The fleet itself: its birth, its nodes, who holds the office, and what every node must understand.

use super::credentials;
use super::keys::wrapped_key;
use super::node_admin;
use super::placements;
use super::step::{Damaged, Row, Step, Stop, refused};
use super::view::View;
use crate::ids::{FleetId, NodeId, Office};
use crate::rows::{self, RefusalKind, credential_fields::Kind};

/// The highest feature level that this version supports, and the lowest: nodes of two adjacent versions form one fleet.
pub const FEATURE_LEVELS: std::ops::RangeInclusive<u32> = 1..=1;

/// The feature level from which on a command may be used.
fn level_of(body: &rows::command::Body) -> u32 {
    use rows::command::Body;
    match body {
        Body::Bootstrap(_)
        | Body::TakeOffice(_)
        | Body::Sweep(_)
        | Body::ReportNode(_)
        | Body::RegisterNode(_)
        | Body::RemoveNode(_)
        | Body::Rebirth(_)
        | Body::SetLevel(_)
        | Body::PreferVoter(_)
        | Body::UpdateSettings(_)
        | Body::CreateModel(_)
        | Body::UpdateModel(_)
        | Body::DeleteModel(_)
        | Body::CreateCredential(_)
        | Body::UpdateCredential(_)
        | Body::DeleteCredential(_)
        | Body::CreateDeployment(_)
        | Body::DeleteDeployment(_)
        | Body::StartDeployment(_)
        | Body::StopDeployment(_)
        | Body::ExtendDeployment(_)
        | Body::PinDeployment(_)
        | Body::ReportPlacement(_)
        | Body::ExpireDeployment(_)
        | Body::RecordTotals(_)
        | Body::PlaceReplica(_)
        | Body::SetNodeRuntime(_)
        | Body::SetNodeWarmCache(_)
        | Body::CordonNode(_)
        | Body::ForgetNode(_)
        | Body::RecordUse(_)
        | Body::Purge(_)
        | Body::CreateConfig(_)
        | Body::DeleteConfig(_) => 1,
    }
}

/// Refuses what not every node of the fleet understands yet, and everything before there is a fleet.
pub(super) fn admit(step: &Step<'_>, body: &rows::command::Body) -> Result<(), Stop> {
    let Some(fleet) = step.get::<rows::Fleet>(&[])? else {
        return match body {
            rows::command::Body::Bootstrap(_) => Ok(()),
            // A new leader takes office before the fleet that it is to found exists.
            rows::command::Body::TakeOffice(_) => Ok(()),
            _ => Err(refused(RefusalKind::Conflict, "there is no fleet yet")),
        };
    };
    let needed = level_of(body);
    if needed <= fleet.row.feature_level {
        return Ok(());
    }
    let level = fleet.row.feature_level;
    let why = format!("this needs feature level {needed}; the fleet is at {level} until every node has been upgraded");
    Err(refused(RefusalKind::FeatureLevel, why))
}

pub(super) fn bootstrap(step: &mut Step<'_>, command: &rows::Bootstrap) -> Result<(), Stop> {
    if step.get::<rows::Fleet>(&[])?.is_some() {
        return Err(refused(RefusalKind::Conflict, "there is a fleet here already"));
    }
    let mut fleet = rows::Fleet {
        id: command.fleet_id.clone(),
        feature_level: command.feature_level,
        recovery_key: command.recovery_key.clone(),
        created_ms: step.now.0,
        next_node: 2,
        next_credential: 1,
        next_config: 1,
        ca_certificate: command.ca_certificate.clone(),
        generation: 1,
        next_deployment: 0,
    };
    for fields in &command.credentials {
        credentials::insert(step, &mut fleet, fields)?;
    }
    for key in &command.keys {
        step.put(wrapped_key(key.kind(), key.version, key.holder), key)?;
    }
    if let Some(node) = &command.node {
        let node = rows::Node { created_index: step.index, created_ms: step.now.0, ..node.clone() };
        step.put(node.id.to_be_bytes().to_vec(), &node)?;
    }
    step.put(Vec::new(), &fleet)?;
    Ok(())
}

pub(super) fn take_office(step: &mut Step<'_>, command: &rows::TakeOffice) -> Result<(), Stop> {
    let office = rows::Office { index: step.index, node: command.node, since_ms: step.now.0 };
    step.put(Vec::new(), &office)
}

/// Refuses a command of a duty whose leader has been followed by another.
pub(super) fn in_office(step: &Step<'_>, office: u64) -> Result<(), Stop> {
    let current = step.only::<rows::Office>()?.index;
    if office == current {
        return Ok(());
    }
    let why = format!("office {office} has ended; the present one is {current}");
    Err(refused(RefusalKind::OldOffice, why))
}

/// How many nodes a fleet can have until most of them need not hold the log.
pub const NODE_LIMIT: usize = 33;

/// Lets a node in that shows a join token. A node that has joined already, with the same disk, gets the same number.
pub(super) fn register_node(step: &mut Step<'_>, command: &rows::RegisterNode) -> Result<rows::NodeAnswer, Stop> {
    let denied = || refused(RefusalKind::Denied, "the join token is unknown, expired or used up");
    let reference = step.get::<rows::CredentialRef>(&command.token_sha256)?.ok_or_else(denied)?.row;
    let key = reference.id.to_be_bytes();
    let mut credential = step.get::<rows::Credential>(&key)?.ok_or_else(denied)?.row;
    if credentials::has_expired(&credential, step.now) {
        return Err(denied());
    }
    let Some(Kind::Join(join)) = credential.fields.as_mut().and_then(|fields| fields.kind.as_mut()) else {
        return Err(denied());
    };
    let node = command.node.clone().unwrap_or_default();
    let facts = node.facts.clone().unwrap_or_default();
    for record in step.tables.range(<rows::RemovedNode as Row>::TABLE, &[]) {
        if super::step::decode::<rows::RemovedNode>(record.1)?.row.tls_key == node.tls_key {
            let why = "this node was removed from the fleet; it can join again with an empty data directory";
            return Err(refused(RefusalKind::Conflict, why));
        }
    }
    let mut nodes = 0;
    for record in step.tables.range(<rows::Node as Row>::TABLE, &[]) {
        let other = super::step::decode::<rows::Node>(record.1)?.row;
        if other.store_id == node.store_id {
            let same = other.tls_key == node.tls_key && other.sealing_key == node.sealing_key;
            return if same { Ok(rows::NodeAnswer { id: other.id }) } else { Err(denied()) };
        }
        if other.facts.is_some_and(|others| others.name == facts.name) {
            let why = format!("there is a node named {:?} already; choose another --name", facts.name);
            return Err(refused(RefusalKind::Conflict, why));
        }
        nodes += 1;
    }
    if nodes >= NODE_LIMIT {
        let why = format!("the fleet has {nodes} nodes; this version holds {NODE_LIMIT} at most");
        return Err(refused(RefusalKind::Conflict, why));
    }
    match &mut join.uses_left {
        Some(0) => return Err(denied()),
        Some(left) => *left -= 1,
        None => {}
    }
    step.put(key.to_vec(), &credential)?;
    let mut fleet = step.only::<rows::Fleet>()?;
    let id = fleet.next_node;
    fleet.next_node += 1;
    step.put(Vec::new(), &fleet)?;
    for key in &command.keys {
        let key = rows::WrappedKey { holder: id, ..key.clone() };
        step.put(wrapped_key(key.kind(), key.version, id), &key)?;
    }
    let admin = Some(node_admin::of_newcomer(step, 0)?);
    let node = rows::Node { id, created_index: step.index, created_ms: step.now.0, admin, ..node };
    step.put(id.to_be_bytes().to_vec(), &node)?;
    Ok(rows::NodeAnswer { id })
}

fn node_ids(step: &Step<'_>) -> Result<Vec<u64>, Stop> {
    let rows = step.tables.range(<rows::Node as Row>::TABLE, &[]);
    rows.map(|(_, record)| Ok(super::step::decode::<rows::Node>(record)?.row.id)).collect()
}

/// Forgets the node and the keys that are wrapped for it.
fn forget_node(step: &mut Step<'_>, id: u64) -> Result<(), Stop> {
    let keys = step.tables.range(<rows::WrappedKey as Row>::TABLE, &[]);
    let keys =
        keys.map(|(key, record)| Ok((key.to_vec(), super::step::decode::<rows::WrappedKey>(record)?.row.holder)));
    let keys: Vec<_> = keys.collect::<Result<_, Damaged>>()?;
    for (key, _) in keys.into_iter().filter(|(_, holder)| *holder == id) {
        step.remove::<rows::WrappedKey>(key);
    }
    step.remove::<rows::Node>(id.to_be_bytes().to_vec());
    Ok(())
}

/// Takes a node out of the fleet for good. Raft's members follow (see `leader::Membership`).
pub(super) fn remove_node(step: &mut Step<'_>, command: &rows::RemoveNode) -> Result<rows::NodeAnswer, Stop> {
    let id = command.id;
    let Some(node) = step.get::<rows::Node>(&id.to_be_bytes())? else {
        return Err(refused(RefusalKind::NotFound, format!("there is no node {id}")));
    };
    if step.get::<rows::Office>(&[])?.is_some_and(|office| office.row.node == id) {
        let why = format!("node {id} leads the fleet; let another one lead first");
        return Err(refused(RefusalKind::Conflict, why));
    }
    let left: Vec<_> = node_ids(step)?.into_iter().filter(|other| *other != id).collect();
    if left != command.holders {
        return Err(refused(RefusalKind::Conflict, "the nodes of the fleet have changed in the meantime; try again"));
    }
    placements::lose_node(step, id)?;
    forget_node(step, id)?;
    for key in &command.keys {
        step.put(wrapped_key(key.kind(), key.version, key.holder), key)?;
    }
    let removed = rows::RemovedNode { id, tls_key: node.row.tls_key, removed_ms: step.now.0 };
    step.put(id.to_be_bytes().to_vec(), &removed)?;
    Ok(rows::NodeAnswer { id })
}

/// Begins the next generation of the fleet with this node alone.
pub(super) fn rebirth(step: &mut Step<'_>, command: &rows::Rebirth) -> Result<(), Stop> {
    let mut fleet = step.only::<rows::Fleet>()?;
    let node = command.node.clone().unwrap_or_default();
    if command.generation != fleet.generation + 1 || node.id != fleet.next_node {
        return Err(refused(RefusalKind::Conflict, "the fleet is of another generation"));
    }
    for id in node_ids(step)? {
        placements::lose_node(step, id)?;
        forget_node(step, id)?;
    }
    for key in &command.keys {
        let key = rows::WrappedKey { holder: node.id, ..key.clone() };
        step.put(wrapped_key(key.kind(), key.version, node.id), &key)?;
    }
    fleet.generation = command.generation;
    fleet.next_node += 1;
    step.put(Vec::new(), &fleet)?;
    let node = rows::Node { created_index: step.index, created_ms: step.now.0, ..node };
    step.put(node.id.to_be_bytes().to_vec(), &node)
}

/// Raises the level by one, when every node of the fleet supports it.
pub(super) fn set_level(step: &mut Step<'_>, command: &rows::SetLevel) -> Result<(), Stop> {
    in_office(step, command.office)?;
    let mut fleet = step.only::<rows::Fleet>()?;
    if command.level != fleet.feature_level + 1 {
        let why =
            format!("the fleet is at feature level {}, and {} does not follow", fleet.feature_level, command.level);
        return Err(refused(RefusalKind::Conflict, why));
    }
    for record in step.tables.range(<rows::Node as Row>::TABLE, &[]) {
        let node = super::step::decode::<rows::Node>(record.1)?.row;
        let supported = node.facts.map_or(0, |facts| facts.max_level);
        if supported < command.level {
            let why = format!("node {} supports feature level {supported} at most", node.id);
            return Err(refused(RefusalKind::FeatureLevel, why));
        }
    }
    fleet.feature_level = command.level;
    step.put(Vec::new(), &fleet)
}

pub(super) fn prefer_voter(step: &mut Step<'_>, command: &rows::PreferVoter) -> Result<rows::NodeAnswer, Stop> {
    let key = command.id.to_be_bytes();
    let Some(mut node) = step.get::<rows::Node>(&key)? else {
        return Err(refused(RefusalKind::NotFound, format!("there is no node {}", command.id)));
    };
    node.row.preferred_voter = true;
    step.put(key.to_vec(), &node.row)?;
    Ok(rows::NodeAnswer { id: command.id })
}

pub(super) fn report_node(step: &mut Step<'_>, command: &rows::ReportNode) -> Result<(), Stop> {
    let key = command.id.to_be_bytes().to_vec();
    let Some(mut node) = step.get::<rows::Node>(&key)? else {
        return Err(refused(RefusalKind::NotFound, format!("there is no node {}", command.id)));
    };
    node.row.facts.clone_from(&command.facts);
    node_admin::come_back(step, &mut node.row)?;
    step.put(key, &node.row)?;
    Ok(())
}

impl View {
    /// The public keys of the nodes that were removed.
    ///
    /// # Errors
    /// When a row is damaged.
    pub fn removed_keys(&self) -> Result<Vec<bytes::Bytes>, Damaged> {
        self.rows::<rows::RemovedNode>(&[]).map(|row| row.map(|(_, removed)| removed.row.tls_key)).collect()
    }

    /// The fleet, or `None` before its bootstrap.
    ///
    /// # Errors
    /// When the row is damaged.
    pub fn fleet(&self) -> Result<Option<rows::Fleet>, Damaged> {
        Ok(self.get::<rows::Fleet>(&[])?.map(|stored| stored.row))
    }

    /// The identity of the fleet, or `None` before its bootstrap.
    ///
    /// # Errors
    /// When the row is damaged.
    pub fn fleet_id(&self) -> Result<Option<FleetId>, Damaged> {
        Ok(self.fleet()?.and_then(|fleet| FleetId::from_slice(&fleet.id)))
    }

    /// The office that commands of duties must carry, and who holds it.
    ///
    /// # Errors
    /// When the row is damaged.
    pub fn office(&self) -> Result<Option<(Office, NodeId)>, Damaged> {
        let office = self.get::<rows::Office>(&[])?;
        Ok(office.map(|stored| (Office(stored.row.index), NodeId(stored.row.node))))
    }

    /// One node's record.
    ///
    /// # Errors
    /// When the row is damaged.
    pub fn node(&self, id: NodeId) -> Result<Option<super::Stored<rows::Node>>, Damaged> {
        self.get(&id.0.to_be_bytes())
    }

    /// Every node of the fleet, by number.
    ///
    /// # Errors
    /// When a row is damaged.
    pub fn nodes(&self) -> Result<Vec<super::Stored<rows::Node>>, Damaged> {
        self.rows(&[]).map(|row| row.map(|(_, node)| node)).collect()
    }
}
