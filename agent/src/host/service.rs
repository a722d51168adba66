//! What a host answers other nodes.

use std::pin::Pin;
use std::sync::Arc;

use futures_util::{Stream, StreamExt};
use muster_cluster::ids::{DeploymentId, NodeId, PlacementEpoch, PlacementId};
use muster_cluster::transport::Members;
use tonic::service::RoutesBuilder;
use tonic::service::interceptor::InterceptedService;
use tonic::{Request, Response, Status};

use super::Host;
use crate::runtime::UnitId;
use crate::supervisor::Observation;
use crate::wire::host_server::{self, HostServer};
use crate::wire::{
    Lines, LogPart, LookRequest, PastAnswer, PastRequest, PortAnswer, PortRequest, ReadLogRequest, RenewRequest,
    Renewed, Seen, SeenUnit, TailRequest, Unit,
};

struct HostService(Arc<Host>);

/// Adds the service, for members alone.
pub(super) fn add(routes: &mut RoutesBuilder, host: Arc<Host>, members: Members) {
    routes.add_service(InterceptedService::new(HostServer::new(HostService(host)), members));
}

fn placement(deployment: u64, ordinal: u32) -> PlacementId {
    PlacementId { deployment: DeploymentId(deployment), ordinal }
}

/// A unit as it is sent.
pub(super) fn wire_unit(unit: UnitId) -> Unit {
    Unit { deployment: unit.placement.deployment.0, ordinal: unit.placement.ordinal, epoch: unit.epoch.0 }
}

/// A unit as it was sent.
pub(super) fn unit(unit: &Unit) -> UnitId {
    UnitId { placement: placement(unit.deployment, unit.ordinal), epoch: PlacementEpoch(unit.epoch) }
}

fn seen(unit: UnitId, seen: Observation) -> SeenUnit {
    SeenUnit {
        deployment: unit.placement.deployment.0,
        ordinal: unit.placement.ordinal,
        epoch: unit.epoch.0,
        detail: seen.detail,
        pulled_bytes: seen.pulled.map(|(pulled, _)| pulled),
        pull_bytes: seen.pulled.map(|(_, all)| all),
        prompt_tps: seen.usage.prompt_tps,
        generation_tps: seen.usage.generation_tps,
        prompt_throughput: seen.usage.prompt_throughput,
        generation_throughput: seen.usage.generation_throughput,
        requests_running: seen.usage.requests_running,
        requests_waiting: seen.usage.requests_waiting,
        ready: seen.ready,
    }
}

impl Host {
    /// What it sees now, as it tells other nodes.
    pub(super) async fn look(&self) -> Seen {
        let machine = Some(self.machine().await);
        Seen { units: self.observed().all().into_iter().map(|(unit, one)| seen(unit, one)).collect(), machine }
    }
}

#[tonic::async_trait]
impl host_server::Host for HostService {
    async fn look(&self, _: Request<LookRequest>) -> Result<Response<Seen>, Status> {
        Ok(Response::new(self.0.look().await))
    }

    async fn past(&self, request: Request<PastRequest>) -> Result<Response<PastAnswer>, Status> {
        let past = self.0.clone().past(request.into_inner()).await;
        past.map(Response::new).ok_or_else(|| Status::internal("the figures can not be read"))
    }

    async fn check_port(&self, request: Request<PortRequest>) -> Result<Response<PortAnswer>, Status> {
        let port = u16::try_from(request.into_inner().port).ok().filter(|port| *port > 0);
        let port = port.ok_or_else(|| Status::invalid_argument("this is no port"))?;
        Ok(Response::new(self.0.check_port(port)))
    }

    async fn renew(&self, request: Request<RenewRequest>) -> Result<Response<Renewed>, Status> {
        let RenewRequest { node, units } = request.into_inner();
        let units: Vec<_> = units.iter().map(unit).collect();
        let renewed = self.0.renew(NodeId(node), &units).map_err(Status::failed_precondition)?;
        Ok(Response::new(Renewed { units: renewed.into_iter().map(wire_unit).collect() }))
    }

    async fn tail(&self, request: Request<TailRequest>) -> Result<Response<Lines>, Status> {
        let TailRequest { deployment, ordinal, count } = request.into_inner();
        let lines = self.0.tail(placement(deployment, ordinal), count as usize).await;
        let lines = lines.map_err(|error| Status::internal(format!("the log can not be read: {error}")))?;
        Ok(Response::new(Lines { lines }))
    }

    type ReadLogStream = Pin<Box<dyn Stream<Item = Result<LogPart, Status>> + Send>>;

    async fn read_log(&self, request: Request<ReadLogRequest>) -> Result<Response<Self::ReadLogStream>, Status> {
        let ReadLogRequest { deployment, ordinal } = request.into_inner();
        let unreadable = |error: std::io::Error| Status::internal(format!("the log can not be read: {error}"));
        let parts = self.0.read_log(placement(deployment, ordinal)).await.map_err(unreadable)?;
        let parts = parts.ok_or_else(|| Status::not_found("there is no log"))?;
        let parts = parts.map(move |part| part.map(|bytes| LogPart { bytes }).map_err(unreadable));
        Ok(Response::new(Box::pin(parts)))
    }
}
