//! Deployments: what shall run, where its caller wants it, and how far it has come (seed 004).

use uuid::Uuid;

use super::credentials;
use super::keys::put_secret;
use super::step::{Damaged, Step, Stop, Stored, check, refused};
use super::view::View;
use crate::ids::DeploymentId;
use crate::rows::{self, Deployment, DeploymentStatus, Environment, Fleet, RefusalKind};

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

fn existing(step: &Step<'_>, id: u64) -> Result<Stored<Deployment>, Stop> {
    step.get::<Deployment>(&id.to_be_bytes())?
        .ok_or_else(|| refused(RefusalKind::NotFound, format!("there is no deployment {id}")))
}

pub(super) fn create(step: &mut Step<'_>, command: &rows::CreateDeployment) -> Result<rows::DeploymentAnswer, Stop> {
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
    let deployment = Deployment {
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
    };
    step.put(id.to_be_bytes().to_vec(), &deployment)?;
    Ok(rows::DeploymentAnswer { mod_index: step.index, deployment: Some(deployment) })
}

pub(super) fn delete(step: &mut Step<'_>, command: &rows::DeleteDeployment) -> Result<rows::DeploymentAnswer, Stop> {
    let Stored { row: deployment, mod_index } = existing(step, command.id)?;
    check(command.precondition.as_ref(), mod_index)?;
    if let Some(environment) = &deployment.environment {
        put_secret(step, &secret_of(environment)?, None)?;
    }
    credentials::forget_deployment(step, command.id)?;
    step.remove::<Deployment>(command.id.to_be_bytes().to_vec());
    Ok(rows::DeploymentAnswer { mod_index, deployment: Some(deployment) })
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
