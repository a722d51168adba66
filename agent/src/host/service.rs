//! What a host answers other nodes.

use std::sync::Arc;

use muster_cluster::transport::Members;
use tonic::service::RoutesBuilder;
use tonic::service::interceptor::InterceptedService;
use tonic::{Request, Response, Status};

use super::Host;
use crate::runtime::UnitId;
use crate::supervisor::Observation;
use crate::wire::host_server::{self, HostServer};
use crate::wire::{LookRequest, PastAnswer, PastRequest, PortAnswer, PortRequest, Seen, SeenUnit};

struct HostService(Arc<Host>);

/// Adds the service, for members alone.
pub(super) fn add(routes: &mut RoutesBuilder, host: Arc<Host>, members: Members) {
    routes.add_service(InterceptedService::new(HostServer::new(HostService(host)), members));
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
}
