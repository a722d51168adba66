//! Asking the hosts of other nodes about their containers.

use std::time::Duration;

use muster_cluster::ids::NodeId;
use muster_cluster::transport::{Purpose, ToNode};
use tonic::service::interceptor::InterceptedService;
use tonic::transport::Channel;
use tonic::{Response, Status};

use super::Refused;
use crate::host::{Hosts, NoSight};
use crate::wire::containers_client::ContainersClient;
use crate::wire::{
    self, Container, DeleteImageRequest, ImagesDeleted, ListContainersRequest, ListImagesRequest, NodeImage,
    PruneImagesRequest, StopContainerRequest,
};

/// How long a node may take to say what it has.
const LOOK: Duration = Duration::from_secs(40);

/// How long it may take to end a container, or to delete images.
const WORK: Duration = Duration::from_secs(330);

/// Why a node has not done what it was asked to.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum AskError {
    /// It does not answer. Whether it has done it is not known.
    #[error(transparent)]
    Silent(#[from] NoSight),
    /// It has refused.
    #[error("node {node}: {refused}")]
    Refused {
        /// Which node.
        node: NodeId,
        /// Why.
        refused: Refused,
    },
}

type Client = ContainersClient<InterceptedService<Channel, ToNode>>;

impl Hosts {
    async fn of_containers<T>(
        &self,
        node: NodeId,
        limit: Duration,
        ask: impl AsyncFnOnce(Client) -> Result<Response<T>, Status>,
        refused: impl FnOnce(&mut T) -> Option<wire::Refused>,
    ) -> Result<T, AskError> {
        let silent = |why: String| AskError::Silent(NoSight { node, why });
        let client =
            ContainersClient::with_interceptor(self.channels.to(node, Purpose::Machines), self.channels.route(node));
        let mut answer = match tokio::time::timeout(limit, ask(client)).await {
            Ok(Ok(answer)) => answer.into_inner(),
            Ok(Err(status)) => return Err(silent(status.message().to_owned())),
            Err(_) => return Err(silent(format!("not within {limit:?}"))),
        };
        match refused(&mut answer) {
            Some(refused) => Err(AskError::Refused { node, refused: refused.into() }),
            None => Ok(answer),
        }
    }

    fn told<T>(&self, done: Result<T, Refused>) -> Result<T, AskError> {
        done.map_err(|refused| AskError::Refused { node: self.node, refused })
    }

    /// [`super::Host::containers`] of a node.
    ///
    /// # Errors
    /// When it does not answer, or refuses.
    pub async fn containers(&self, node: NodeId) -> Result<Vec<Container>, AskError> {
        if node == self.node {
            return self.told(self.own().containers().await);
        }
        let ask = async |mut client: Client| client.list(ListContainersRequest {}).await;
        Ok(self.of_containers(node, LOOK, ask, |list| list.refused.take()).await?.containers)
    }

    /// [`super::Host::stop_container`] of a node.
    ///
    /// # Errors
    /// When it does not answer, or refuses.
    pub async fn stop_container(&self, node: NodeId, id: &str) -> Result<(), AskError> {
        if node == self.node {
            return self.told(self.own().stop_container(id).await);
        }
        let request = StopContainerRequest { id: id.to_owned() };
        let ask = async |mut client: Client| client.stop(request).await;
        self.of_containers(node, WORK, ask, |stopped| stopped.refused.take()).await.map(|_| ())
    }

    /// [`super::Host::images`] of a node.
    ///
    /// # Errors
    /// When it does not answer, or refuses.
    pub async fn images(&self, node: NodeId) -> Result<Vec<NodeImage>, AskError> {
        if node == self.node {
            return self.told(self.own().images().await);
        }
        let ask = async |mut client: Client| client.images(ListImagesRequest {}).await;
        Ok(self.of_containers(node, LOOK, ask, |list| list.refused.take()).await?.images)
    }

    /// [`super::Host::delete_image`] of a node.
    ///
    /// # Errors
    /// When it does not answer, or refuses.
    pub async fn delete_image(&self, node: NodeId, id: &str) -> Result<ImagesDeleted, AskError> {
        if node == self.node {
            return self.told(self.own().delete_image(id).await);
        }
        let request = DeleteImageRequest { id: id.to_owned() };
        let ask = async |mut client: Client| client.delete_image(request).await;
        self.of_containers(node, WORK, ask, |deleted| deleted.refused.take()).await
    }

    /// [`super::Host::prune_images`] of a node.
    ///
    /// # Errors
    /// When it does not answer, or refuses.
    pub async fn prune_images(&self, node: NodeId) -> Result<ImagesDeleted, AskError> {
        if node == self.node {
            return self.told(self.own().prune_images().await);
        }
        let ask = async |mut client: Client| client.prune_images(PruneImagesRequest {}).await;
        self.of_containers(node, WORK, ask, |pruned| pruned.refused.take()).await
    }
}
