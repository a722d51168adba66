//! The state machine: one command in, the writes and the answer out. Deterministic: nothing but tables and command.

use bytes::Bytes;
use prost::Message;

use super::step::{Damaged, Step, Stop};
use super::tables::Tables;
use super::{
    ApplyError, Machine, audit, configs, credentials, deployments, fleet, models, node_admin, once, placements, purge,
    retention, settings, totals,
};
use crate::ids::LogTime;
use crate::rows::answer::Outcome;
use crate::rows::command::Body;
use crate::rows::{self, Answer, Clock, Command};
use crate::storage::LogId;

/// The meaning of the fleet's commands.
#[derive(Clone, Copy, Debug, Default)]
pub struct Fleet;

impl Machine for Fleet {
    fn apply(&mut self, tables: &mut Tables, at: LogId, command: &[u8]) -> Result<Bytes, ApplyError> {
        let broken = |why: String| ApplyError { index: at.index, why };
        let command = Command::decode(command).map_err(|error| broken(error.to_string()))?;
        let Some(body) = command.body else {
            return Err(broken("a command of an unknown kind".to_owned()));
        };
        let origin = command.origin.unwrap_or_default();
        let damaged = |damaged: Damaged| broken(damaged.to_string());
        let now = advance(tables, command.time_ms, at.index).map_err(damaged)?;
        let mut step = Step { tables, index: at.index, now, origin: &origin };
        let answer = run(&mut step, &body).map_err(damaged)?;
        Ok(answer.encode_to_vec().into())
    }
}

/// Moves the log's time forward to the leader's stamp; it never goes back.
fn advance(tables: &mut Tables, stamp_ms: u64, index: u64) -> Result<LogTime, Damaged> {
    let before = super::step::read::<Clock>(tables, &[])?.map_or(0, |clock| clock.row.time_ms);
    if stamp_ms > before {
        tables.put(<Clock as super::Row>::TABLE, Bytes::new(), Clock { time_ms: stamp_ms }.encode_to_vec(), index);
    }
    Ok(LogTime(before.max(stamp_ms)))
}

/// Carries the command out whole, or not at all.
fn run(step: &mut Step<'_>, body: &Body) -> Result<Answer, Damaged> {
    let mark = step.tables.mark();
    match attempt(step, body) {
        Ok(answer) => Ok(answer),
        Err(Stop::Damaged(damaged)) => Err(damaged),
        Err(Stop::Refused(refusal)) => {
            step.tables.go_back(mark);
            Ok(Answer { index: step.index, replayed: false, outcome: Some(Outcome::Refusal(refusal)) })
        }
    }
}

fn attempt(step: &mut Step<'_>, body: &Body) -> Result<Answer, Stop> {
    fleet::admit(step, body)?;
    if let Some(first) = once::recall(step)? {
        return Ok(first);
    }
    let outcome = dispatch(step, body)?;
    once::remember(step, &outcome)?;
    audit::write(step, body, &outcome)?;
    Ok(Answer { index: step.index, replayed: false, outcome: Some(outcome) })
}

fn dispatch(step: &mut Step<'_>, body: &Body) -> Result<Outcome, Stop> {
    let nothing = Outcome::Nothing(rows::Nothing {});
    Ok(match body {
        Body::Bootstrap(command) => {
            fleet::bootstrap(step, command)?;
            nothing
        }
        Body::TakeOffice(command) => {
            fleet::take_office(step, command)?;
            nothing
        }
        Body::Sweep(command) => {
            retention::sweep(step, command)?;
            nothing
        }
        Body::ReportNode(command) => {
            fleet::report_node(step, command)?;
            nothing
        }
        Body::RegisterNode(command) => Outcome::Node(fleet::register_node(step, command)?),
        Body::RemoveNode(command) => Outcome::Node(fleet::remove_node(step, command)?),
        Body::SetLevel(command) => {
            fleet::set_level(step, command)?;
            nothing
        }
        Body::PreferVoter(command) => Outcome::Node(fleet::prefer_voter(step, command)?),
        Body::Rebirth(command) => {
            fleet::rebirth(step, command)?;
            nothing
        }
        Body::UpdateSettings(command) => Outcome::Settings(settings::update(step, command)?),
        Body::CreateModel(command) => Outcome::Model(models::create(step, command)?),
        Body::UpdateModel(command) => Outcome::Model(models::update(step, command)?),
        Body::DeleteModel(command) => Outcome::Model(models::delete(step, command)?),
        Body::CreateCredential(command) => Outcome::Credential(credentials::create(step, command)?),
        Body::UpdateCredential(command) => Outcome::Credential(credentials::update(step, command)?),
        Body::DeleteCredential(command) => Outcome::Credential(credentials::delete(step, command)?),
        Body::CreateDeployment(command) => Outcome::Deployment(deployments::create(step, command)?),
        Body::DeleteDeployment(command) => Outcome::Deployment(deployments::delete(step, command)?),
        Body::StartDeployment(command) => Outcome::Deployment(deployments::start(step, command)?),
        Body::StopDeployment(command) => Outcome::Deployment(deployments::stop(step, command)?),
        Body::ExtendDeployment(command) => Outcome::Deployment(deployments::extend(step, command)?),
        Body::PinDeployment(command) => Outcome::Deployment(deployments::pin(step, command)?),
        Body::ExpireDeployment(command) => Outcome::Deployment(deployments::expire(step, command)?),
        Body::RecordTotals(command) => {
            totals::record(step, command)?;
            nothing
        }
        Body::PlaceReplica(command) => Outcome::Deployment(placements::place(step, command)?),
        Body::ReportPlacement(command) => {
            placements::report(step, command)?;
            nothing
        }
        Body::SetNodeRuntime(command) => Outcome::NodeAdmin(node_admin::set_runtime(step, command)?),
        Body::SetNodeWarmCache(command) => Outcome::NodeAdmin(node_admin::set_warm_cache(step, command)?),
        Body::CordonNode(command) => Outcome::NodeAdmin(node_admin::cordon(step, command)?),
        Body::ForgetNode(command) => Outcome::NodeAdmin(node_admin::forget(step, command)?),
        Body::RecordUse(command) => {
            credentials::record_use(step, command)?;
            nothing
        }
        Body::Purge(command) => Outcome::Purge(purge::purge(step, command)?),
        Body::CreateConfig(command) => Outcome::Config(configs::create(step, command)?),
        Body::DeleteConfig(command) => Outcome::Config(configs::delete(step, command)?),
    })
}
