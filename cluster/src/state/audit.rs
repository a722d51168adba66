//! The audit trail: who changed what, bounded.

use super::step::{Damaged, Step, Stop};
use super::view::View;
use crate::rows::answer::Outcome;
use crate::rows::command::Body;
use crate::rows::{AuditEntry, Model};

/// What an entry says was done, and to what. Duties that run by themselves leave no trail.
fn describe(body: &Body, outcome: &Outcome) -> Option<(&'static str, String)> {
    let model = |model: Option<&Model>| {
        model.map(|model| uuid::Uuid::from_slice(&model.id).map_or_else(|_| String::new(), |id| id.to_string()))
    };
    let action = match body {
        Body::Bootstrap(_) => "fleet.bootstrap",
        Body::TakeOffice(_) => "office.take",
        Body::Sweep(_)
        | Body::ReportNode(_)
        | Body::RecordUse(_)
        | Body::RecordTotals(_)
        | Body::ReportPlacement(_) => return None,
        Body::RegisterNode(_) => "node.join",
        Body::RemoveNode(_) => "node.evict",
        Body::PreferVoter(_) => "node.prefer_voter",
        Body::SetLevel(_) => "fleet.set_level",
        Body::Rebirth(_) => "fleet.rebirth",
        Body::UpdateSettings(_) => "settings.update",
        Body::CreateModel(_) => "model.create",
        Body::UpdateModel(_) => "model.update",
        Body::DeleteModel(_) => "model.delete",
        Body::CreateCredential(_) => "credential.create",
        Body::UpdateCredential(_) => "credential.update",
        Body::DeleteCredential(_) => "credential.delete",
        Body::CreateDeployment(_) => "deployment.create",
        Body::DeleteDeployment(_) => "deployment.delete",
        Body::StartDeployment(_) => "deployment.start",
        Body::StopDeployment(_) => "deployment.stop",
        Body::ExtendDeployment(_) => "deployment.extend",
        Body::PinDeployment(_) => "deployment.pin",
        Body::ExpireDeployment(_) => "deployment.expire",
        Body::PlaceReplica(_) => "deployment.place",
        Body::Purge(_) => "fleet.purge",
        Body::SetNodeRuntime(_) => "node.set_runtime",
        Body::SetNodeWarmCache(_) => "node.set_warm_cache",
        Body::CordonNode(command) if command.enabled => "node.cordon",
        Body::CordonNode(_) => "node.uncordon",
        Body::ForgetNode(_) => "node.forget",
        Body::CreateConfig(_) => "config.create",
        Body::DeleteConfig(_) => "config.delete",
    };
    let object = match outcome {
        Outcome::Model(answer) => model(answer.model.as_ref()),
        Outcome::Credential(answer) => Some(answer.id.to_string()),
        Outcome::Node(answer) => Some(answer.id.to_string()),
        Outcome::NodeAdmin(answer) => Some(answer.id.to_string()),
        Outcome::Deployment(answer) => answer.deployment.as_ref().map(|deployment| deployment.id.to_string()),
        Outcome::Config(answer) => answer.config.as_ref().map(|config| config.id.to_string()),
        Outcome::Purge(purged) => Some(format!(
            "{} deployments, {} configurations, {} nodes",
            purged.deployments, purged.configs, purged.nodes
        )),
        Outcome::Refusal(_) | Outcome::Nothing(_) | Outcome::Settings(_) => None,
    };
    Some((action, object.unwrap_or_default()))
}

pub(super) fn write(step: &mut Step<'_>, body: &Body, outcome: &Outcome) -> Result<(), Stop> {
    let Some((action, object)) = describe(body, outcome) else { return Ok(()) };
    let entry = AuditEntry {
        time_ms: step.now.0,
        principal: step.origin.principal.clone(),
        source: step.origin.source.clone(),
        request_id: step.origin.request_id.clone(),
        action: action.to_owned(),
        object,
    };
    step.put(step.index.to_be_bytes().to_vec(), &entry)
}

impl View {
    /// The audit trail after this index, oldest first, with the index of each entry.
    pub fn audit(&self, after: u64) -> impl Iterator<Item = Result<(u64, AuditEntry), Damaged>> {
        let rows = self.rows::<AuditEntry>(&after.saturating_add(1).to_be_bytes());
        rows.map(|row| row.map(|(_, stored)| (stored.mod_index, stored.row)))
    }
}
