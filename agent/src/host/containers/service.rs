//! What a host answers other nodes of its containers.

use std::sync::Arc;

use muster_cluster::transport::Members;
use tonic::service::RoutesBuilder;
use tonic::service::interceptor::InterceptedService;
use tonic::{Request, Response, Status};

use super::Host;
use crate::wire::containers_server::{self, ContainersServer};
use crate::wire::{
    ContainerList, ContainerStopped, DeleteImageRequest, ImageList, ImagesDeleted, ListContainersRequest,
    ListImagesRequest, PruneImagesRequest, StopContainerRequest,
};

struct ContainerService(Arc<Host>);

/// Adds the service, for members alone.
pub(in super::super) fn add(routes: &mut RoutesBuilder, host: Arc<Host>, members: Members) {
    routes.add_service(InterceptedService::new(ContainersServer::new(ContainerService(host)), members));
}

#[tonic::async_trait]
impl containers_server::Containers for ContainerService {
    async fn list(&self, _: Request<ListContainersRequest>) -> Result<Response<ContainerList>, Status> {
        Ok(Response::new(match self.0.containers().await {
            Ok(containers) => ContainerList { refused: None, containers },
            Err(refused) => ContainerList { refused: Some(refused.into()), containers: Vec::new() },
        }))
    }

    async fn stop(&self, request: Request<StopContainerRequest>) -> Result<Response<ContainerStopped>, Status> {
        let refused = self.0.stop_container(&request.into_inner().id).await.err().map(Into::into);
        Ok(Response::new(ContainerStopped { refused }))
    }

    async fn images(&self, _: Request<ListImagesRequest>) -> Result<Response<ImageList>, Status> {
        Ok(Response::new(match self.0.images().await {
            Ok(images) => ImageList { refused: None, images },
            Err(refused) => ImageList { refused: Some(refused.into()), images: Vec::new() },
        }))
    }

    async fn delete_image(&self, request: Request<DeleteImageRequest>) -> Result<Response<ImagesDeleted>, Status> {
        let deleted = self.0.delete_image(&request.into_inner().id).await;
        Ok(Response::new(deleted.unwrap_or_else(|refused| refused_deletion(refused.into()))))
    }

    async fn prune_images(&self, _: Request<PruneImagesRequest>) -> Result<Response<ImagesDeleted>, Status> {
        let pruned = self.0.prune_images().await;
        Ok(Response::new(pruned.unwrap_or_else(|refused| refused_deletion(refused.into()))))
    }
}

fn refused_deletion(refused: crate::wire::Refused) -> ImagesDeleted {
    ImagesDeleted { refused: Some(refused), ..ImagesDeleted::default() }
}
