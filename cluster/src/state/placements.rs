//! Placements: what of a deployment is where, what it holds there, and the one machine of its states.
//!
//! A placement holds a port, a share of GPUs and its deployment's names from the commit that gives it to a node until the commit
//! that says that nothing of it is left there. What a node merely shows frees nothing.

use std::collections::{BTreeMap, BTreeSet};

use sha2::{Digest, Sha256};

use super::deployments::{end, existing};
use super::names;
use super::node_admin::NodePolicy;
use super::step::{Damaged, Row, Step, Stop, Stored, decode, refused};
use super::totals;
use super::view::View;
use crate::ids::{DeploymentId, NodeId, PlacementEpoch, PlacementId};
use crate::planner::Share;
use crate::planner::claim::{self, Claim};
use crate::rows::report_placement::Event;
use crate::rows::{
    self, Deployment, DeploymentStatus, Failure, ModelAlias, NameClaim, Node, OnNodeLoss, Placement, PlacementEnded,
    RefusalKind, Reservation, Seat, name_claim,
};

pub(super) fn key(deployment: u64, ordinal: u32) -> Vec<u8> {
    [deployment.to_be_bytes().as_slice(), &ordinal.to_be_bytes()].concat()
}

fn reservation_key(node: u64, deployment: u64, ordinal: u32) -> Vec<u8> {
    [node.to_be_bytes().to_vec(), key(deployment, ordinal)].concat()
}

/// Whose reservation this is.
fn holder(key: &[u8]) -> Result<(u64, PlacementId), Damaged> {
    let parts = || {
        let (node, rest) = key.split_first_chunk::<8>()?;
        let (deployment, rest) = rest.split_first_chunk::<8>()?;
        let ordinal = u32::from_be_bytes(rest.try_into().ok()?);
        let deployment = DeploymentId(u64::from_be_bytes(*deployment));
        Some((u64::from_be_bytes(*node), PlacementId { deployment, ordinal }))
    };
    parts().ok_or_else(|| Damaged { table: 32, why: "the key of a reservation is none".to_owned() })
}

fn id_of(placement: &Placement) -> PlacementId {
    PlacementId { deployment: DeploymentId(placement.deployment), ordinal: placement.ordinal }
}

fn alias_key(deployment: &Deployment) -> Vec<u8> {
    let model = deployment.spec.as_ref().map_or("", |spec| spec.model_name.as_str());
    [Sha256::digest(model).as_slice(), &deployment.id.to_be_bytes()].concat()
}

/// The placements of a deployment, by ordinal.
pub(super) fn of(step: &Step<'_>, deployment: u64) -> Result<Vec<Placement>, Stop> {
    let from = key(deployment, 0);
    let rows = step.tables.range(<Placement as Row>::TABLE, &from);
    let rows = rows.take_while(|(key, _)| key.starts_with(&deployment.to_be_bytes()));
    Ok(rows.map(|(_, record)| Ok(decode::<Placement>(record)?.row)).collect::<Result<_, Damaged>>()?)
}

fn reservations(step: &Step<'_>, node: u64) -> Result<Vec<(PlacementId, Reservation)>, Stop> {
    let rows = step.tables.range(<Reservation as Row>::TABLE, &node.to_be_bytes());
    let rows = rows.take_while(|(key, _)| key.starts_with(&node.to_be_bytes()));
    let row = |(key, record)| Ok((holder(key)?.1, decode::<Reservation>(record)?.row));
    Ok(rows.map(row).collect::<Result<_, Damaged>>()?)
}

/// Whether a placement in this state holds what it was given.
#[must_use]
pub fn holds(status: DeploymentStatus) -> bool {
    match status {
        DeploymentStatus::Starting
        | DeploymentStatus::Loading
        | DeploymentStatus::Running
        | DeploymentStatus::Stopping => true,
        DeploymentStatus::Stopped
        | DeploymentStatus::Error
        | DeploymentStatus::Expired
        | DeploymentStatus::Unspecified => false,
    }
}

/// Whether anything of a deployment may be on a node.
pub(super) fn held(placements: &[Placement]) -> bool {
    placements.iter().any(|placement| holds(placement.status()))
}

/// What becomes of a placement in this state by what its node says. `None`: nothing changes.
fn next(
    from: DeploymentStatus,
    event: &Event,
    desired: DeploymentStatus,
) -> Result<Option<DeploymentStatus>, &'static str> {
    use DeploymentStatus::{Error, Loading, Running, Starting, Stopped, Stopping};
    match (from, event) {
        // An engine that runs may have been started again while nobody could be told.
        (Starting | Running, Event::Loading(_)) => Ok(Some(Loading)),
        (Loading, Event::Loading(_)) => Ok(None),
        (Starting | Loading, Event::Running(_)) => Ok(Some(Running)),
        (Running, Event::Running(_)) => Ok(None),
        (Starting | Loading | Running, Event::Failed(_)) => Ok(Some(Starting)),
        (Starting | Loading | Running, Event::Ended(PlacementEnded { failure: Some(_) })) => Ok(Some(Error)),
        (Starting | Loading | Running, Event::Ended(PlacementEnded { failure: None })) => Ok(Some(Stopped)),
        (Stopping, Event::Ended(_)) => Ok(Some(if desired == Running { Stopped } else { desired })),
        (Stopping, _) => Err("it is being stopped"),
        (Stopped | Error | DeploymentStatus::Expired | DeploymentStatus::Unspecified, _) => Err("it has ended"),
    }
}

/// What a deployment is, by what its placements are.
fn overall(desired: DeploymentStatus, placements: &[Placement]) -> DeploymentStatus {
    use DeploymentStatus::{Error, Expired, Loading, Running, Starting, Stopped, Stopping};
    let any = |status| placements.iter().any(|placement| placement.status() == status);
    match desired {
        Running => {
            [Running, Loading, Starting, Stopping, Error].into_iter().find(|status| any(*status)).unwrap_or(Stopped)
        }
        // That its time is over can be seen at once; what it holds is free when its node says so.
        Expired => Expired,
        _ if held(placements) => Stopping,
        _ => Stopped,
    }
}

/// Brings a deployment in line with its placements. The caller writes it.
fn settle(step: &mut Step<'_>, deployment: &mut Deployment) -> Result<(), Stop> {
    let placements = of(step, deployment.id)?;
    let status = overall(deployment.desired(), &placements);
    if status != deployment.status() {
        deployment.status_changed_ms = step.now.0;
        deployment.status = status.into();
    }
    if matches!(status, DeploymentStatus::Running | DeploymentStatus::Stopped) {
        deployment.failure = None;
    }
    // Its time begins when it can first be used.
    if status == DeploymentStatus::Running
        && deployment.expires_ms.is_none()
        && let Some(duration) = deployment.duration_s
    {
        deployment.expires_ms = Some(step.now.0.saturating_add(duration.saturating_mul(1000)));
    }
    if !held(&placements) {
        release_names(step, deployment)?;
        deployment.expires_ms = None;
    }
    Ok(())
}

fn claim_names(step: &mut Step<'_>, deployment: &Deployment) -> Result<(), Stop> {
    let claim = NameClaim { holder: Some(name_claim::Holder::Deployment(deployment.id)) };
    // Whoever is told of a clash is told of the same one everywhere.
    let names: BTreeMap<_, _> = deployment.names.iter().map(|name| (name.name.as_str(), name.key.as_str())).collect();
    for (name, key) in names {
        match step.get::<NameClaim>(key.as_bytes())?.and_then(|held| held.row.holder) {
            Some(name_claim::Holder::Deployment(other)) if other != deployment.id => {
                let why = format!(
                    "the name {name:?} is served by deployment {other} already; choose another served_model_name"
                );
                return Err(refused(RefusalKind::Conflict, why));
            }
            Some(name_claim::Holder::Model(_)) => {
                let why = format!("the name {name:?} is a model's of the registry; choose another served_model_name");
                return Err(refused(RefusalKind::Conflict, why));
            }
            Some(name_claim::Holder::Deployment(_)) | None => names::claim(step, key, name, &claim)?,
        }
    }
    step.put(alias_key(deployment), &ModelAlias {})
}

fn release_names(step: &mut Step<'_>, deployment: &Deployment) -> Result<(), Stop> {
    for name in &deployment.names {
        let held = step.get::<NameClaim>(name.key.as_bytes())?.and_then(|held| held.row.holder);
        if held == Some(name_claim::Holder::Deployment(deployment.id)) {
            names::release(step, &name.key);
        }
    }
    step.remove::<ModelAlias>(alias_key(deployment));
    Ok(())
}

/// Refuses what a placement has claimed if its node's GPUs can not meet it.
fn check_gpus(step: &Step<'_>, placement: PlacementId, seat: &Seat) -> Result<(), Stop> {
    let held = reservations(step, seat.node_id)?;
    let (own, others): (Vec<_>, Vec<_>) = held.iter().partition(|(holder, _)| *holder == placement);
    let others: Vec<_> = others.into_iter().map(claim).collect();
    for own in own {
        let checked = claim::check(&others, &claim(own));
        checked.map_err(|over| refused(RefusalKind::Conflict, format!("on node {}: {over}", seat.node_id)))?;
    }
    Ok(())
}

/// A reservation as the planner takes it.
fn claim((placement, held): &(PlacementId, Reservation)) -> Claim<'_> {
    let (share, evictable) = (Share(held.gpu_share_ppm), held.evictable);
    Claim { placement: *placement, gpus: &held.gpu_ids, share, evictable, awake: true }
}

fn reserve(step: &mut Step<'_>, deployment: &Deployment, placement: &Placement) -> Result<(), Stop> {
    let seat = placement.seat.clone().unwrap_or_default();
    let reservation = Reservation {
        epoch: placement.epoch,
        port: seat.port,
        gpu_share_ppm: deployment.spec.as_ref().map_or(0, |spec| spec.gpu_share_ppm),
        evictable: seat.warm && !deployment.pinned,
        gpu_ids: seat.gpu_ids,
    };
    step.put(reservation_key(seat.node_id, placement.deployment, placement.ordinal), &reservation)
}

/// Whether these GPUs can be given to anybody on this node.
fn check_seat(step: &Step<'_>, seat: &Seat) -> Result<(), Stop> {
    let node = seat.node_id;
    let Some(stored) = step.get::<Node>(&node.to_be_bytes())? else {
        return Err(refused(RefusalKind::NotFound, format!("there is no node {node}")));
    };
    NodePolicy::of(&stored.row).check_open(node, &seat.gpu_ids)?;
    let facts = stored.row.facts.unwrap_or_default();
    if let Some(missing) = seat.gpu_ids.iter().find(|id| !facts.gpus.iter().any(|gpu| gpu.index == **id)) {
        let there: Vec<_> = facts.gpus.iter().map(|gpu| gpu.index.to_string()).collect();
        let there = if there.is_empty() { "none".to_owned() } else { there.join(", ") };
        let why = format!("node {node} has no GPU {missing}; it has {there}");
        return Err(refused(RefusalKind::Invalid, why));
    }
    for (placement, held) in reservations(step, node)? {
        if held.port == seat.port {
            let model = existing(step, placement.deployment.0)?.row.spec.unwrap_or_default().model_name;
            let why =
                format!("port {} of node {node} is held by deployment {} ({model})", seat.port, placement.deployment);
            return Err(refused(RefusalKind::Conflict, why));
        }
    }
    Ok(())
}

/// Gives each replica its seat, and claims what it needs there. The caller writes the deployment.
pub(super) fn begin(step: &mut Step<'_>, deployment: &mut Deployment, seats: &[Seat]) -> Result<(), Stop> {
    let wish = deployment.wish.clone().unwrap_or_default();
    // Where its caller has named the node, nobody else looks for one.
    if wish.node_id.is_some() && seats.is_empty() {
        return Err(refused(RefusalKind::Conflict, "there is nowhere to start it"));
    }
    let replicas = (wish.replicas.max(1) as usize).max(seats.len());
    for old in of(step, deployment.id)? {
        step.remove::<Placement>(key(old.deployment, old.ordinal));
    }
    for (ordinal, seat) in (0..).zip(seats.iter().map(Some).chain(std::iter::repeat(None)).take(replicas)) {
        let placement = Placement {
            deployment: deployment.id,
            ordinal,
            status: DeploymentStatus::Starting.into(),
            status_changed_ms: step.now.0,
            ..Placement::default()
        };
        match seat {
            Some(seat) => {
                check_seat(step, seat)?;
                seat_down(step, deployment, placement, seat.clone())?;
            }
            // The leader finds one.
            None => step.put(key(deployment.id, ordinal), &placement)?,
        }
    }
    claim_names(step, deployment)?;
    for (ordinal, seat) in (0..).zip(seats) {
        check_gpus(step, PlacementId { deployment: DeploymentId(deployment.id), ordinal }, seat)?;
    }
    settle(step, deployment)
}

/// Gives a placement to a node: a new epoch begins.
fn seat_down(step: &mut Step<'_>, deployment: &Deployment, mut placement: Placement, seat: Seat) -> Result<(), Stop> {
    placement.epoch = step.index;
    placement.placed_ms = step.now.0;
    placement.image_digest.clear();
    placement.seat = Some(seat);
    reserve(step, deployment, &placement)?;
    enter(step, placement, DeploymentStatus::Starting)
}

/// Takes a placement from the node that it has.
fn unseat(step: &mut Step<'_>, placement: &mut Placement) {
    if let Some(seat) = placement.seat.take() {
        step.remove::<Reservation>(reservation_key(seat.node_id, placement.deployment, placement.ordinal));
    }
}

/// What becomes of a deployment's replicas whose node is lost.
#[must_use]
pub fn on_node_loss(deployment: &Deployment) -> OnNodeLoss {
    let wish = deployment.wish.clone().unwrap_or_default();
    match wish.on_node_loss() {
        OnNodeLoss::Unspecified if wish.node_id.is_some() => OnNodeLoss::Wait,
        OnNodeLoss::Unspecified => OnNodeLoss::Reschedule,
        said => said,
    }
}

/// Gives a replica a place, or another one (the scheduler's word).
pub(super) fn place(step: &mut Step<'_>, command: &rows::PlaceReplica) -> Result<rows::DeploymentAnswer, Stop> {
    super::fleet::in_office(step, command.office)?;
    let gone = || {
        let why = format!("placement {}/{} is not as it was", command.deployment, command.ordinal);
        refused(RefusalKind::OldEpoch, why)
    };
    let stored = step.get::<Placement>(&key(command.deployment, command.ordinal))?;
    let mut placement = stored.ok_or_else(gone)?.row;
    let mut deployment = existing(step, command.deployment)?.row;
    let runs = holds(placement.status()) && placement.status() != DeploymentStatus::Stopping;
    if placement.epoch != command.epoch || !runs || deployment.desired() != DeploymentStatus::Running {
        return Err(gone());
    }
    let seat = command.seat.clone().unwrap_or_default();
    placement.moved = placement.seat.is_some();
    unseat(step, &mut placement);
    check_seat(step, &seat)?;
    placement.explained.clone_from(&command.explained);
    placement.failure.clone_from(&command.failure);
    if command.failure.is_some() {
        deployment.failure.clone_from(&command.failure);
    }
    let id = id_of(&placement);
    seat_down(step, &deployment, placement, seat.clone())?;
    check_gpus(step, id, &seat)?;
    settle(step, &mut deployment)?;
    step.put(deployment.id.to_be_bytes().to_vec(), &deployment)?;
    let placements = of(step, deployment.id)?;
    Ok(rows::DeploymentAnswer { mod_index: step.index, deployment: Some(deployment), placements })
}

/// Writes a placement's new state, and frees what it no longer holds.
fn enter(step: &mut Step<'_>, mut placement: Placement, status: DeploymentStatus) -> Result<(), Stop> {
    if placement.status() != status {
        placement.status_changed_ms = step.now.0;
        placement.status = status.into();
    }
    if !holds(status) {
        let node = placement.seat.as_ref().map_or(0, |seat| seat.node_id);
        step.remove::<Reservation>(reservation_key(node, placement.deployment, placement.ordinal));
    }
    step.put(key(placement.deployment, placement.ordinal), &placement)
}

/// Has every node end what it has of a deployment. The caller writes the deployment.
pub(super) fn stop(step: &mut Step<'_>, deployment: &mut Deployment) -> Result<(), Stop> {
    for placement in of(step, deployment.id)? {
        if holds(placement.status()) {
            // Of one that has no place nothing is left to end.
            let status = if placement.seat.is_some() { DeploymentStatus::Stopping } else { deployment.desired() };
            enter(step, placement, status)?;
        }
    }
    settle(step, deployment)
}

/// Claims anew after whether a deployment is pinned has changed. The caller writes the deployment.
pub(super) fn claim_anew(step: &mut Step<'_>, deployment: &Deployment) -> Result<(), Stop> {
    for placement in of(step, deployment.id)? {
        if let Some(seat) = placement.seat.as_ref().filter(|_| holds(placement.status())) {
            reserve(step, deployment, &placement)?;
            check_gpus(step, id_of(&placement), seat)?;
        }
    }
    Ok(())
}

/// Removes everything of a deployment but the deployment. What runs of it is nobody's from now on.
pub(super) fn forget(step: &mut Step<'_>, deployment: &Deployment) -> Result<(), Stop> {
    for placement in of(step, deployment.id)? {
        let node = placement.seat.as_ref().map_or(0, |seat| seat.node_id);
        step.remove::<Reservation>(reservation_key(node, placement.deployment, placement.ordinal));
        step.remove::<Placement>(key(placement.deployment, placement.ordinal));
    }
    totals::forget(step, deployment.id);
    release_names(step, deployment)
}

/// What the node of a placement says of it.
pub(super) fn report(step: &mut Step<'_>, command: &rows::ReportPlacement) -> Result<(), Stop> {
    let gone = || {
        let why = format!("placement {}/{} is of another epoch", command.deployment, command.ordinal);
        refused(RefusalKind::OldEpoch, why)
    };
    let stored = step.get::<Placement>(&key(command.deployment, command.ordinal))?;
    let mut placement = stored.ok_or_else(gone)?.row;
    if placement.epoch != command.epoch || placement.seat.is_none() {
        return Err(gone());
    }
    let Some(event) = &command.event else { return Ok(()) };
    let mut deployment = existing(step, command.deployment)?.row;
    let status = next(placement.status(), event, deployment.desired());
    let Some(status) = status.map_err(|why| refused(RefusalKind::Conflict, why))? else { return Ok(()) };
    let failure = match event {
        Event::Loading(loading) => {
            placement.image_digest.clone_from(&loading.image_digest);
            // Why it had to be started again is told until it runs.
            placement.failure.clone()
        }
        Event::Running(_) => None,
        Event::Failed(failed) => failed.failure.clone(),
        Event::Ended(ended) => ended.failure.clone(),
    };
    fail(step, &mut deployment, placement, status, failure)
}

/// Writes a placement's new state with its reason, and its deployment.
fn fail(
    step: &mut Step<'_>,
    deployment: &mut Deployment,
    mut placement: Placement,
    status: DeploymentStatus,
    failure: Option<Failure>,
) -> Result<(), Stop> {
    if failure.is_some() {
        deployment.failure.clone_from(&failure);
    }
    placement.failure = failure;
    enter(step, placement, status)?;
    settle(step, deployment)?;
    step.put(deployment.id.to_be_bytes().to_vec(), deployment)
}

/// Has a node end what it has on GPUs, or everything it has if that is what `touches` says, and returns how many deployments
/// that concerns. Those that have nothing left elsewhere are stopped.
pub(super) fn drain(step: &mut Step<'_>, node: u64, touches: impl Fn(&Reservation) -> bool) -> Result<u64, Stop> {
    let touched = reservations(step, node)?.into_iter().filter(|(_, held)| touches(held)).map(|(id, _)| id);
    let touched: BTreeSet<_> = touched.map(|id| (id.deployment.0, id.ordinal)).collect();
    let mut drained = 0;
    for id in touched.iter().map(|(id, _)| *id).collect::<BTreeSet<_>>() {
        let mut deployment = existing(step, id)?.row;
        if deployment.desired() != DeploymentStatus::Running {
            continue;
        }
        let held = of(step, id)?.into_iter().filter(|placement| holds(placement.status()));
        let (here, elsewhere): (Vec<_>, Vec<_>) =
            held.partition(|placement| touched.contains(&(id, placement.ordinal)));
        if elsewhere.is_empty() {
            end(step, &mut deployment, DeploymentStatus::Stopped)?;
        } else {
            for placement in here {
                enter(step, placement, DeploymentStatus::Stopping)?;
            }
            settle(step, &mut deployment)?;
            step.put(id.to_be_bytes().to_vec(), &deployment)?;
        }
        drained += 1;
    }
    Ok(drained)
}

/// Ends every placement of a node that leaves the fleet: it can not say so itself any more.
pub(super) fn lose_node(step: &mut Step<'_>, node: u64) -> Result<(), Stop> {
    lose(step, node, "does not belong to the fleet any more")
}

/// Ends every placement of a node that nobody waits for, for this reason.
pub(super) fn lose(step: &mut Step<'_>, node: u64, why: &str) -> Result<(), Stop> {
    for (id, _) in reservations(step, node)? {
        let Some(stored) = step.get::<Placement>(&key(id.deployment.0, id.ordinal))? else { continue };
        let mut deployment = existing(step, id.deployment.0)?.row;
        let message = format!("node {node} {why}");
        let failure = Failure { code: "node_removed".to_owned(), message };
        let mut stored = stored;
        let waits = on_node_loss(&deployment) == OnNodeLoss::Wait;
        if stored.row.status() != DeploymentStatus::Stopping && !waits {
            unseat(step, &mut stored.row);
            fail(step, &mut deployment, stored.row, DeploymentStatus::Starting, Some(failure))?;
            continue;
        }
        let status = match stored.row.status() {
            DeploymentStatus::Stopping => deployment.desired(),
            _ => DeploymentStatus::Error,
        };
        fail(step, &mut deployment, stored.row, status, Some(failure))?;
    }
    Ok(())
}

/// A placement on a node, and what it holds there.
#[derive(Clone, Debug, PartialEq)]
pub struct Held {
    /// Which.
    pub placement: PlacementId,
    /// In which epoch.
    pub epoch: PlacementEpoch,
    /// What it holds.
    pub reservation: Reservation,
}

impl View {
    /// Whether there is any deployment.
    #[must_use]
    pub fn has_deployments(&self) -> bool {
        self.rows::<Deployment>(&[]).next().is_some()
    }

    /// A placement.
    ///
    /// # Errors
    /// When the row is damaged.
    pub fn placement(&self, id: PlacementId) -> Result<Option<Stored<Placement>>, Damaged> {
        self.get(&key(id.deployment.0, id.ordinal))
    }

    /// The placements of a deployment, by ordinal.
    ///
    /// # Errors
    /// When a row is damaged.
    pub fn placements(&self, deployment: DeploymentId) -> Result<Vec<Placement>, Damaged> {
        let rows = self.rows::<Placement>(&key(deployment.0, 0));
        let own = deployment.0.to_be_bytes();
        let own = rows.take_while(|row| row.as_ref().is_ok_and(|(key, _)| key.starts_with(&own)) || row.is_err());
        own.map(|row| row.map(|(_, stored)| stored.row)).collect()
    }

    /// What placements hold of a node, by placement.
    ///
    /// # Errors
    /// When a row is damaged.
    pub fn held_on(&self, node: NodeId) -> Result<Vec<Held>, Damaged> {
        let own = node.0.to_be_bytes();
        let rows = self.rows::<Reservation>(&own);
        let rows = rows.take_while(|row| row.as_ref().is_ok_and(|(key, _)| key.starts_with(&own)) || row.is_err());
        let held = |row| {
            let (key, stored): (&[u8], Stored<Reservation>) = row?;
            let (_, placement) = holder(key)?;
            let reservation = stored.row;
            Ok(Held { placement, epoch: PlacementEpoch(reservation.epoch), reservation })
        };
        rows.map(held).collect()
    }

    /// The deployment that holds this name, its adapters' names included, however it is spelled.
    ///
    /// # Errors
    /// When the row is damaged.
    pub fn name_holder(&self, name: &str) -> Result<Option<name_claim::Holder>, Damaged> {
        Ok(self.get::<NameClaim>(names::name_key(name).as_bytes())?.and_then(|claim| claim.row.holder))
    }

    /// The deployments whose model has exactly this name and that hold their names, by number.
    ///
    /// # Errors
    /// When a row is damaged.
    pub fn aliased(&self, model_name: &str) -> Result<Vec<DeploymentId>, Damaged> {
        let digest = Sha256::digest(model_name);
        let rows = self.rows::<ModelAlias>(&digest);
        let rows = rows.take_while(|row| row.as_ref().is_ok_and(|(key, _)| key.starts_with(&digest)) || row.is_err());
        let number = |key: &[u8]| {
            let number = key.get(digest.len()..).and_then(|rest| rest.try_into().ok()).map(u64::from_be_bytes);
            number.map(DeploymentId).ok_or_else(|| Damaged { table: 33, why: "the key of an alias is none".to_owned() })
        };
        rows.map(|row| number(row?.0)).collect()
    }
}
