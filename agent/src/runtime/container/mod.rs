//! Engines in containers of Docker Engine or Podman, which are spoken to in Docker's API over a Unix socket.
//!
//! ```text
//! daemon      finds the socket, asks what is there (`flavour`), remembers it for a short while
//! launch      image (`images`), GPUs (`gpu`), network, place, then `create` and start
//! units       what carries this fleet and node (`labels`): listed, waited for, stopped; `outlived` ends what stays behind
//! follow      what an engine says
//! strays      what nobody here keeps
//! ```
//!
//! Requests and answers hold values of the environment. The client of the API writes them to the `log` crate at debug and
//! trace, which nothing in this program listens to; it must stay so.

mod ask;
mod call;
mod create;
mod daemon;
mod flavour;
mod follow;
mod gpu;
mod images;
mod labels;
mod launch;
mod network;
mod outlived;
mod place;
#[cfg(test)]
mod recorded;
mod sockets;
mod strays;
#[cfg(test)]
mod testing;
#[cfg(test)]
mod tests;
mod units;

use std::collections::BTreeSet;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use futures_util::future::BoxFuture;
use tokio::sync::{mpsc, watch};

use super::{Exit, Found, Launch, Launched, Line, Owner, Place, Progress, Runtime, RuntimeError, RuntimeKind, UnitId};
use call::CallError;
use daemon::Client;
use place::Places;

pub use daemon::Daemon;
pub use flavour::{Facts, Flavour, Version};
pub use gpu::CDI_DIRECTORIES;
pub use images::{
    Deleted, Deletion, Family, HeldImage, LOCAL_REPOSITORY, LayerIdentity, MergedImage, Package, Reference, deletion,
    derived_name, merge,
};
pub use place::Listen;
pub use sockets::{Surroundings, docker_socket, podman_sockets};
pub use strays::Stray;

/// What a container runtime needs to know.
#[derive(Clone, Debug)]
pub struct ContainerOptions {
    /// Whose units it handles.
    pub owner: Owner,
    /// How engines are reached.
    pub listen: Listen,
    /// Where the directories of their sockets are made. It is this user's alone.
    pub places: PathBuf,
    /// Where they are made if paths there are too long for a socket: a short path, this user's alone.
    pub short_places: PathBuf,
    /// Where specifications of CDI are: [`CDI_DIRECTORIES`].
    pub cdi_directories: Vec<PathBuf>,
}

/// Docker Engine or Podman as a runtime.
pub struct ContainerRuntime {
    daemon: Arc<Daemon>,
    other: Option<Arc<Daemon>>,
    places: Places,
    cdi_directories: Vec<PathBuf>,
}

impl ContainerRuntime {
    /// A runtime on a daemon. Images that it lacks are copied from the other one, if that is there and has them.
    #[must_use]
    pub fn new(daemon: Arc<Daemon>, other: Option<Arc<Daemon>>, options: ContainerOptions) -> Self {
        let ContainerOptions { owner, listen, places, short_places, cdi_directories } = options;
        let places = Places { owner, listen, usual: places, short: short_places };
        Self { daemon, other, places, cdi_directories }
    }

    /// The daemon, and what is known of it.
    #[must_use]
    pub fn daemon(&self) -> &Daemon {
        &self.daemon
    }

    /// The images of the family that this runtime has.
    ///
    /// # Errors
    /// When the daemon does not answer.
    pub async fn images(&self, family: &Family) -> Result<Vec<HeldImage>, RuntimeError> {
        let client = self.daemon.client().await?;
        images::held(&client, family).await.map_err(|error| client.failed(error))
    }

    /// Deletes an image, but neither tags of others nor what a container is made from.
    ///
    /// # Errors
    /// When the daemon does not answer. What it refuses to delete is in the answer.
    pub async fn delete_image(&self, family: &Family, layers: &LayerIdentity) -> Result<Deleted, RuntimeError> {
        let client = self.daemon.client().await?;
        images::delete(&client, family, layers).await.map_err(|error| client.failed(error))
    }

    /// Deletes the images of the family that no container is made from.
    ///
    /// # Errors
    /// When the daemon does not answer. What it refuses to delete is in the answer.
    pub async fn prune_images(&self, family: &Family) -> Result<Deleted, RuntimeError> {
        let client = self.daemon.client().await?;
        images::prune(&client, family).await.map_err(|error| client.failed(error))
    }

    /// Makes the image `name` from `base` and packages, unless it is there and `base` is still the same one.
    ///
    /// # Errors
    /// When the base can not be got, a package is none, or pip fails.
    pub async fn build_image(
        &self,
        name: &Reference,
        base: &Reference,
        packages: &[Package],
        progress: watch::Sender<Progress>,
    ) -> Result<(), RuntimeError> {
        let client = self.daemon.client().await?;
        images::ensure(&client, self.other.as_deref(), base, &progress).await?;
        images::build(&client, name, base, packages, &progress).await?;
        Ok(())
    }

    /// Containers that nobody here keeps: `known` are the units that somebody does.
    ///
    /// # Errors
    /// When the daemon does not answer.
    pub async fn strays(&self, known: &BTreeSet<UnitId>, family: &Family) -> Result<Vec<Stray>, RuntimeError> {
        let client = self.daemon.client().await?;
        let found = strays::find(&client, &self.places.owner, known, family).await;
        found.map_err(|error| client.failed(error))
    }

    /// Ends a container that [`Self::strays`] has named, with its processes, and removes it.
    ///
    /// # Errors
    /// When the daemon does not answer, or the container carries another fleet or node.
    pub async fn remove_stray(&self, stray: &Stray, grace: Duration) -> Result<(), RuntimeError> {
        let client = self.daemon.client().await?;
        let failed = |error: CallError| client.failed(error);
        let Some(details) = ask::inspect(&client, &stray.id).await.map_err(failed)? else { return Ok(()) };
        let foreign = |labels| labels::is_of_anybody(labels) && !labels::is_of(&self.places.owner, labels);
        if details.labels().is_some_and(foreign) {
            let why = format!("the container {} belongs to another fleet or node", stray.name);
            return Err(RuntimeError::Unsuitable(why));
        }
        units::stop(&client, &stray.id, grace).await.map_err(failed)
    }

    /// The container of a unit.
    async fn container(&self, unit: UnitId) -> Result<(Client, String), RuntimeError> {
        let client = self.daemon.client().await?;
        let found = units::of_unit(&client, &self.places.owner, unit).await.map_err(|error| client.failed(error))?;
        let id = found.into_iter().next().ok_or(RuntimeError::NotFound(unit))?;
        Ok((client, id))
    }

    /// Works on the directories of sockets, where a disk may be slow.
    async fn on_disk<T: Send + 'static>(
        &self,
        what: &'static str,
        work: impl FnOnce(&Places) -> std::io::Result<T> + Send + 'static,
    ) -> Result<T, RuntimeError> {
        let places = self.places.clone();
        let done = tokio::task::spawn_blocking(move || work(&places)).await;
        done.map_err(std::io::Error::other)
            .and_then(std::convert::identity)
            .map_err(|source| RuntimeError::Io { what, source })
    }
}

impl Runtime for ContainerRuntime {
    fn kind(&self) -> RuntimeKind {
        self.daemon.configured().kind()
    }

    fn available(&self) -> BoxFuture<'_, Result<(), RuntimeError>> {
        Box::pin(self.daemon.ping())
    }

    fn place(&self, unit: UnitId) -> BoxFuture<'_, Result<Place, RuntimeError>> {
        Box::pin(self.on_disk("the directory of a socket could not be made", move |places| places.make(unit)))
    }

    fn launch(
        &self,
        launch: Launch,
        progress: watch::Sender<Progress>,
    ) -> BoxFuture<'_, Result<Launched, RuntimeError>> {
        Box::pin(self.start(launch, progress))
    }

    fn units(&self) -> BoxFuture<'_, Result<Vec<Found>, RuntimeError>> {
        Box::pin(async {
            let client = self.daemon.client().await?;
            let found = units::list(&client, &self.places.owner, &self.places).await;
            found.map_err(|error| client.failed(error))
        })
    }

    fn ended(&self, unit: UnitId) -> BoxFuture<'_, Result<Exit, RuntimeError>> {
        Box::pin(async move {
            let (client, id) = self.container(unit).await?;
            units::ended(&client, &id).await.map_err(|error| client.failed(error))
        })
    }

    fn stop(&self, unit: UnitId, grace: Duration) -> BoxFuture<'_, Result<(), RuntimeError>> {
        Box::pin(async move {
            let client = self.daemon.client().await?;
            let failed = |error: CallError| client.failed(error);
            for id in units::of_unit(&client, &self.places.owner, unit).await.map_err(failed)? {
                units::stop(&client, &id, grace).await.map_err(failed)?;
            }
            self.on_disk("the directory of a socket could not be removed", move |places| places.remove(unit)).await
        })
    }

    fn follow(
        &self,
        unit: UnitId,
        since: Option<SystemTime>,
        lines: mpsc::Sender<Line>,
    ) -> BoxFuture<'_, Result<(), RuntimeError>> {
        Box::pin(async move {
            let (client, id) = self.container(unit).await?;
            follow::follow(&client, &id, since, &lines).await.map_err(|error| client.failed(error))
        })
    }
}
