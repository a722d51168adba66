//! Deployments: what shall run, where its caller wants it, and how far it has come (seed 004).

use uuid::Uuid;

use super::keys::put_secret;
use super::step::{Damaged, Step, Stop, Stored, check, refused};
use super::view::View;
use super::{credentials, fleet, placements};
use crate::ids::DeploymentId;
use crate::rows::start_deployment::What;
use crate::rows::{self, Deployment, DeploymentAnswer, DeploymentStatus, Environment, Fleet, RefusalKind};

/// The name under which the values of an environment are sealed.
#[must_use]
pub fn environment_name(id: Uuid) -> String {
    format!("environment/{id}")
}

fn secret_of(environment: &Environment) -> Result<String, Stop> {
    let id = Uuid::from_slice(&environment.id);
    let id = id.map_err(|_| Damaged { table: 30, why: "an environment's id is not a UUID".to_owned() })?;
    Ok(environment_name(id))
}

pub(super) fn existing(step: &Step<'_>, id: u64) -> Result<Stored<Deployment>, Stop> {
    step.get::<Deployment>(&id.to_be_bytes())?
        .ok_or_else(|| refused(RefusalKind::NotFound, format!("there is no deployment {id}")))
}

fn put(step: &mut Step<'_>, deployment: &Deployment) -> Result<(), Stop> {
    step.put(deployment.id.to_be_bytes().to_vec(), deployment)
}

fn answer(step: &Step<'_>, deployment: Deployment) -> Result<DeploymentAnswer, Stop> {
    let placements = placements::of(step, deployment.id)?;
    Ok(DeploymentAnswer { mod_index: step.index, deployment: Some(deployment), placements })
}

/// Makes a record, and writes everything of it but the record itself.
fn made(step: &mut Step<'_>, command: &rows::CreateDeployment) -> Result<Deployment, Stop> {
    let wish = command.wish.clone().unwrap_or_default();
    if let Some(node) = wish.node_id
        && step.get::<rows::Node>(&node.to_be_bytes())?.is_none()
    {
        return Err(refused(RefusalKind::NotFound, format!("there is no node {node}")));
    }
    let mut fleet = step.only::<Fleet>()?;
    fleet.next_deployment += 1;
    let id = fleet.next_deployment;
    step.put(Vec::new(), &fleet)?;
    let environment = match &command.environment {
        Some(environment) => {
            put_secret(step, &secret_of(environment)?, environment.values.as_ref())?;
            Some(Environment { values: None, ..environment.clone() })
        }
        None => None,
    };
    Ok(Deployment {
        id,
        spec: command.spec.clone(),
        wish: Some(wish),
        owner: command.owner.clone(),
        duration_s: command.duration_s,
        pinned: command.pinned,
        status: DeploymentStatus::Stopped.into(),
        status_changed_ms: step.now.0,
        created_index: step.index,
        created_ms: step.now.0,
        created_by: step.origin.principal.clone(),
        environment,
        names: command.names.clone(),
        expires_ms: None,
        desired: DeploymentStatus::Stopped.into(),
        failure: None,
    })
}

pub(super) fn create(step: &mut Step<'_>, command: &rows::CreateDeployment) -> Result<DeploymentAnswer, Stop> {
    let deployment = made(step, command)?;
    put(step, &deployment)?;
    answer(step, deployment)
}

pub(super) fn start(step: &mut Step<'_>, command: &rows::StartDeployment) -> Result<DeploymentAnswer, Stop> {
    let mut deployment = match &command.what {
        Some(What::Create(create)) => made(step, create)?,
        Some(What::Restart(restart)) => {
            let Stored { row: mut deployment, mod_index } = existing(step, restart.id)?;
            check(restart.precondition.as_ref(), mod_index)?;
            if placements::held(&placements::of(step, deployment.id)?) {
                let why =
                    format!("deployment {} is not stopped yet; stop it first, or wait until it is", deployment.id);
                return Err(refused(RefusalKind::Conflict, why));
            }
            deployment.owner.clone_from(&restart.owner);
            deployment.duration_s = restart.duration_s;
            deployment
        }
        None => return Err(refused(RefusalKind::Conflict, "there is nothing to start")),
    };
    deployment.expires_ms = None;
    deployment.failure = None;
    deployment.desired = DeploymentStatus::Running.into();
    placements::begin(step, &mut deployment, &command.seats)?;
    put(step, &deployment)?;
    answer(step, deployment)
}

/// Ends what runs of a deployment.
pub(super) fn end(step: &mut Step<'_>, deployment: &mut Deployment, how: DeploymentStatus) -> Result<(), Stop> {
    deployment.desired = how.into();
    deployment.expires_ms = None;
    placements::stop(step, deployment)?;
    put(step, deployment)
}

pub(super) fn stop(step: &mut Step<'_>, command: &rows::StopDeployment) -> Result<DeploymentAnswer, Stop> {
    let Stored { row: mut deployment, mod_index } = existing(step, command.id)?;
    check(command.precondition.as_ref(), mod_index)?;
    if deployment.desired() != DeploymentStatus::Running {
        let answer = answer(step, deployment)?;
        return Ok(DeploymentAnswer { mod_index, ..answer });
    }
    end(step, &mut deployment, DeploymentStatus::Stopped)?;
    answer(step, deployment)
}

pub(super) fn expire(step: &mut Step<'_>, command: &rows::ExpireDeployment) -> Result<DeploymentAnswer, Stop> {
    fleet::in_office(step, command.office)?;
    let Stored { row: mut deployment, .. } = existing(step, command.id)?;
    // It may have been extended or stopped since the duty looked.
    let due = deployment.expires_ms.filter(|expires| *expires == command.expires_ms && *expires <= step.now.0);
    if due.is_none() || deployment.desired() != DeploymentStatus::Running {
        return Err(refused(RefusalKind::Conflict, format!("deployment {} does not end now", command.id)));
    }
    end(step, &mut deployment, DeploymentStatus::Expired)?;
    answer(step, deployment)
}

pub(super) fn extend(step: &mut Step<'_>, command: &rows::ExtendDeployment) -> Result<DeploymentAnswer, Stop> {
    let Stored { row: mut deployment, mod_index } = existing(step, command.id)?;
    check(command.precondition.as_ref(), mod_index)?;
    let conflict = |why: String| Err(refused(RefusalKind::Conflict, why));
    match deployment.status() {
        DeploymentStatus::Starting | DeploymentStatus::Loading | DeploymentStatus::Running => {}
        _ => return conflict(format!("deployment {} does not run", command.id)),
    }
    match (command.by_s, deployment.duration_s) {
        (None, _) => (deployment.duration_s, deployment.expires_ms) = (None, None),
        (Some(by), Some(duration)) => {
            deployment.duration_s = Some(duration.saturating_add(by));
            // While it loads its time has not begun.
            deployment.expires_ms =
                deployment.expires_ms.map(|expires| expires.saturating_add(by.saturating_mul(1000)));
        }
        (Some(_), None) => return conflict(format!("deployment {} has no end that could be moved", command.id)),
    }
    put(step, &deployment)?;
    answer(step, deployment)
}

pub(super) fn pin(step: &mut Step<'_>, command: &rows::PinDeployment) -> Result<DeploymentAnswer, Stop> {
    let Stored { row: mut deployment, mod_index } = existing(step, command.id)?;
    check(command.precondition.as_ref(), mod_index)?;
    deployment.pinned = command.pinned;
    placements::claim_anew(step, &deployment)?;
    put(step, &deployment)?;
    answer(step, deployment)
}

pub(super) fn delete(step: &mut Step<'_>, command: &rows::DeleteDeployment) -> Result<DeploymentAnswer, Stop> {
    let Stored { row: deployment, mod_index } = existing(step, command.id)?;
    check(command.precondition.as_ref(), mod_index)?;
    remove(step, std::slice::from_ref(&deployment))?;
    Ok(DeploymentAnswer { mod_index, deployment: Some(deployment), placements: Vec::new() })
}

/// Removes deployments with everything of theirs. What runs of them is nobody's from now on.
pub(super) fn remove(step: &mut Step<'_>, deployments: &[Deployment]) -> Result<(), Stop> {
    for deployment in deployments {
        if let Some(environment) = &deployment.environment {
            put_secret(step, &secret_of(environment)?, None)?;
        }
        placements::forget(step, deployment)?;
        step.remove::<Deployment>(deployment.id.to_be_bytes().to_vec());
    }
    credentials::forget_deployments(step, &deployments.iter().map(|deployment| deployment.id).collect())
}

impl View {
    /// A deployment.
    ///
    /// # Errors
    /// When the row is damaged.
    pub fn deployment(&self, id: DeploymentId) -> Result<Option<Stored<Deployment>>, Damaged> {
        self.get(&id.0.to_be_bytes())
    }

    /// Every deployment, by number.
    ///
    /// # Errors
    /// When a row is damaged.
    pub fn deployments(&self) -> Result<Vec<Stored<Deployment>>, Damaged> {
        self.rows(&[]).map(|row| row.map(|(_, deployment)| deployment)).collect()
    }
}
