//! Which deployment a name means, and where its replicas are (seed 004; fleet.md 3.1 and 3.2).

use std::sync::Arc;

use muster_cluster::ids::{DeploymentId, NodeId, PlacementEpoch, PlacementId};
use muster_cluster::rows::{Deployment, DeploymentStatus, name_claim};
use muster_cluster::state::View;
use serde_json::{Value, json};

use super::error::GatewayError;

/// How many names an error tells of those that could be meant.
const TOLD: usize = 20;

/// What a key may use.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Access {
    /// Everything.
    Everything,
    /// These deployments, and so no model of the registry.
    Deployments(Arc<[u64]>),
}

impl Access {
    /// Whether a deployment may be used.
    pub fn allows(&self, id: DeploymentId) -> bool {
        match self {
            Self::Everything => true,
            Self::Deployments(ids) => ids.contains(&id.0),
        }
    }
}

/// One replica that takes requests, as far as this node knows.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Replica {
    pub placement: PlacementId,
    pub epoch: PlacementEpoch,
    pub node: NodeId,
}

/// A deployment that is meant by a name.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Meant {
    pub id: DeploymentId,
    /// What clients call it first of all.
    pub name: String,
    /// What its engine calls what is meant: the model itself, or an adapter.
    pub model_id: String,
    /// None while none of them runs.
    pub replicas: Vec<Replica>,
}

/// How well a name fits a deployment: the best that fits any decides.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Tier {
    /// It is the name that its owner has given it.
    Served,
    /// It is its model's.
    Model,
    /// It is an adapter's.
    Adapter,
}

fn served(deployment: &Deployment) -> &str {
    deployment.names.first().map_or("", |name| name.name.as_str())
}

fn model_name(deployment: &Deployment) -> &str {
    deployment.spec.as_ref().map_or("", |spec| spec.model_name.as_str())
}

fn tier(deployment: &Deployment, name: &str) -> Option<Tier> {
    if served(deployment) == name && model_name(deployment) != name {
        Some(Tier::Served)
    } else if model_name(deployment) == name {
        Some(Tier::Model)
    } else if deployment.names.iter().skip(1).any(|adapter| adapter.name == name) {
        Some(Tier::Adapter)
    } else {
        None
    }
}

fn runs(deployment: &Deployment) -> bool {
    deployment.status() == DeploymentStatus::Running
}

fn comes(deployment: &Deployment) -> bool {
    matches!(deployment.status(), DeploymentStatus::Starting | DeploymentStatus::Loading)
}

/// The deployments that hold a name or are called by their model's, running or about to.
fn candidates(view: &View, name: &str) -> Result<Vec<Deployment>, GatewayError> {
    let mut ids = view.aliased(name)?;
    if let Some(name_claim::Holder::Deployment(id)) = view.name_holder(name)?
        && !ids.contains(&DeploymentId(id))
    {
        ids.push(DeploymentId(id));
    }
    let mut found = Vec::new();
    for id in ids {
        found.extend(view.deployment(id)?.map(|stored| stored.row));
    }
    Ok(found)
}

/// The only deployment of the best tier, or an error if there are several. `None`: the name fits none.
fn best(of: impl Iterator<Item = Deployment>, name: &str) -> Result<Option<Deployment>, GatewayError> {
    let mut fitting: Vec<_> = of.filter_map(|one| tier(&one, name).map(|tier| (tier, one))).collect();
    let Some(first) = fitting.iter().map(|(tier, _)| *tier).min() else { return Ok(None) };
    fitting.retain(|(tier, _)| *tier == first);
    if fitting.len() > 1 {
        let mut names: Vec<_> = fitting.iter().map(|(_, one)| served(one).to_owned()).collect();
        names.sort_unstable();
        names.truncate(TOLD);
        return Err(GatewayError::Ambiguous { name: name.to_owned(), names: names.join(", ") });
    }
    Ok(fitting.pop().map(|(_, deployment)| deployment))
}

/// The deployment that a caller with this access means. `None`: the name is no deployment's.
///
/// # Errors
/// When several are meant, it does not run yet, or the caller may not use it.
pub(super) fn meant(view: &View, name: &str, access: &Access) -> Result<Option<Meant>, GatewayError> {
    let all = candidates(view, name)?;
    let allowed = |one: &Deployment| access.allows(DeploymentId(one.id));
    let running = best(all.iter().filter(|one| allowed(one) && runs(one)).cloned(), name)?;
    let Some(deployment) = running else {
        if let Some(coming) = best(all.iter().filter(|one| allowed(one) && comes(one)).cloned(), name)? {
            return Err(GatewayError::Loading { name: name.to_owned(), deployment: coming.id });
        }
        let others = |one: &Deployment| !allowed(one) && (runs(one) || comes(one)) && tier(one, name).is_some();
        return if all.iter().any(others) { Err(GatewayError::AccessDenied(name.to_owned())) } else { Ok(None) };
    };
    let id = DeploymentId(deployment.id);
    let own = served(&deployment).to_owned();
    let model_id = if tier(&deployment, name) == Some(Tier::Adapter) { name.to_owned() } else { own.clone() };
    let running = |placement: &muster_cluster::rows::Placement| placement.status() == DeploymentStatus::Running;
    let replicas = view.placements(id)?.into_iter().filter(running).map(|placement| Replica {
        placement: PlacementId { deployment: id, ordinal: placement.ordinal },
        epoch: PlacementEpoch(placement.epoch),
        node: NodeId(placement.seat.map_or(0, |seat| seat.node_id)),
    });
    Ok(Some(Meant { id, name: own, model_id, replicas: replicas.collect() }))
}

/// Names that a caller with this access may use, for an error.
pub(super) fn told(view: &View, access: &Access) -> Result<String, GatewayError> {
    let mut names = std::collections::BTreeSet::new();
    for stored in view.deployments()? {
        let one = stored.row;
        if access.allows(DeploymentId(one.id)) && runs(&one) {
            names.extend(one.names.iter().map(|name| name.name.clone()));
            names.insert(model_name(&one).to_owned());
        }
        if names.len() > TOLD {
            break;
        }
    }
    let names: Vec<_> = names.into_iter().take(TOLD).collect();
    Ok(if names.is_empty() { "none".to_owned() } else { names.join(", ") })
}

/// What can be called of the deployments, as OpenAI lists models.
pub(super) fn listed(view: &View, access: &Access) -> Result<Vec<Value>, GatewayError> {
    let mut listed = Vec::new();
    for stored in view.deployments()? {
        if access.allows(DeploymentId(stored.row.id)) && runs(&stored.row) {
            listed.extend(entries(&stored.row));
        }
    }
    Ok(listed)
}

/// A deployment and its adapters.
fn entries(deployment: &Deployment) -> impl Iterator<Item = Value> + '_ {
    let owner = if deployment.owner.is_empty() { "unknown" } else { deployment.owner.as_str() };
    let (base, created) = (served(deployment), deployment.created_ms / 1000);
    let entry = move |name: &str, root: &str, parent: Value| json!({ "id": name, "object": "model", "created": created, "owned_by": owner, "root": root, "parent": parent });
    let own = std::iter::once(entry(base, model_name(deployment), Value::Null));
    own.chain(deployment.names.iter().skip(1).map(move |adapter| entry(&adapter.name, &adapter.name, json!(base))))
}

/// One that can be called, by a name that is listed.
pub(super) fn one_listed(view: &View, name: &str, access: &Access) -> Result<Option<Value>, GatewayError> {
    let Some(name_claim::Holder::Deployment(id)) = view.name_holder(name)? else { return Ok(None) };
    let Some(stored) = view.deployment(DeploymentId(id))? else { return Ok(None) };
    if !runs(&stored.row) {
        return Ok(None);
    }
    let found = entries(&stored.row).find(|entry| entry["id"] == *name);
    match found {
        Some(_) if !access.allows(DeploymentId(id)) => Err(GatewayError::AccessDenied(name.to_owned())),
        found => Ok(found),
    }
}
