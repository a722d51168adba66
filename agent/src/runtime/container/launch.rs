//! From a launch to a container that runs.

use bollard::query_parameters::CreateContainerOptions;
use tokio::sync::watch;
use tracing::{info, warn};

use super::call::CallError;
use super::create::{Surroundings, body, without_secrets};
use super::daemon::Client;
use super::images::{self, Ensured, Reference};
use super::place::Listen;
use super::{ContainerRuntime, ask, gpu, labels, network, units};
use crate::runtime::{Endpoint, Launch, Launched, Progress, RuntimeError, UnitState};

impl ContainerRuntime {
    /// Starts a unit. One that runs with the same specification is left as it is.
    pub(super) async fn start(
        &self,
        launch: Launch,
        progress: watch::Sender<Progress>,
    ) -> Result<Launched, RuntimeError> {
        let client = self.daemon.client().await?;
        let Some(image) = launch.image.as_deref() else {
            return Err(RuntimeError::Unsuitable("a container needs an image".to_owned()));
        };
        let reference = Reference::parse(image).map_err(RuntimeError::Unsuitable)?;
        let devices = gpu::requests(&client.facts, &launch.gpus, &self.cdi_directories)
            .await
            .map_err(RuntimeError::Unsuitable)?;
        if let Some(launched) = self.running(&client, &launch, &reference).await? {
            return Ok(launched);
        }
        let ensured = self.image(&client, &launch, &reference, &progress).await?;
        if let Some(note) = &ensured.note {
            warn!(unit = %launch.unit, note, "a unit starts with an image that may not be the newest");
        }
        progress.send_replace(Progress { phase: "starting container", pulled: None });
        let network = network::ensure(&client, self.places.owner.fleet).await.map_err(|error| client.failed(error))?;
        let unit = launch.unit;
        self.on_disk("an earlier socket could not be removed", move |places| places.clear(unit)).await?;
        let surroundings = Surroundings {
            owner: &self.places.owner,
            flavour: client.facts.flavour,
            listen: self.places.listen,
            directory: self.places.directory(unit),
            image: ensured.id,
            network,
            devices,
        };
        let id = self.create(&client, &launch, surroundings).await?;
        if let Err(error) = client.long(async |docker| docker.start_container(&id, None).await).await {
            let error = not_started(&client, error, &launch);
            if let Err(error) = units::remove(&client, &id).await {
                warn!(%unit, %error, "a container that did not start could not be removed");
            }
            return Err(error);
        }
        let endpoint = self.endpoint(&client, &id, &launch).await?;
        info!(%unit, container = id, "a container has been started");
        Ok(Launched { endpoint, image_digest: ensured.digest })
    }

    /// The image that a unit is made from: the one that was asked for, or that one with packages on top.
    async fn image(
        &self,
        client: &Client,
        launch: &Launch,
        base: &Reference,
        progress: &watch::Sender<Progress>,
    ) -> Result<Ensured, RuntimeError> {
        let other = self.other.as_deref();
        let ensured = if launch.pull {
            images::ensure(client, other, base, progress).await?
        } else {
            images::ensure_local(client, other, base, progress).await?
        };
        if launch.packages.is_empty() {
            return Ok(ensured);
        }
        let name = images::derived_name(images::LOCAL_REPOSITORY, base, &launch.packages);
        let name = name.map_err(RuntimeError::Unsuitable)?;
        let built = images::build(client, &name, base, &launch.packages, progress).await?;
        Ok(Ensured { note: ensured.note, ..built })
    }

    /// What is there of this unit already: it runs as it should, or it is removed.
    async fn running(
        &self,
        client: &Client,
        launch: &Launch,
        reference: &Reference,
    ) -> Result<Option<Launched>, RuntimeError> {
        let failed = |error: CallError| client.failed(error);
        let owner = &self.places.owner;
        let mut found = None;
        for id in units::of_unit(client, owner, launch.unit).await.map_err(failed)? {
            let Some(details) = ask::inspect(client, &id).await.map_err(failed)? else { continue };
            let marks = details.labels().and_then(|labels| labels::read(owner, labels));
            let as_wanted = marks.is_some_and(|marks| marks.spec_hash == launch.spec_hash);
            match units::state(&details, &self.places, launch.unit) {
                UnitState::Running(endpoint) if as_wanted && found.is_none() => {
                    let image = details.image.unwrap_or_default();
                    let image = images::inspect(client, &image).await.map_err(failed)?;
                    let image_digest = image.and_then(|image| images::digest(&image, Some(reference.repository())));
                    found = Some(Launched { endpoint, image_digest });
                }
                _ => units::stop(client, &id, std::time::Duration::ZERO).await.map_err(failed)?,
            }
        }
        Ok(found)
    }

    async fn create(
        &self,
        client: &Client,
        launch: &Launch,
        surroundings: Surroundings<'_>,
    ) -> Result<String, RuntimeError> {
        let name = labels::container_name(&self.places.owner, launch.unit);
        let body = body(launch, surroundings).map_err(RuntimeError::Unsuitable)?;
        let options = CreateContainerOptions { name: Some(name.clone()), platform: String::new() };
        match client.long(async |docker| docker.create_container(Some(options), body).await).await {
            Ok(created) => Ok(created.id),
            // Everything that carries this unit's labels has been removed.
            Err(error) if error.is_conflict() => Err(RuntimeError::Start(format!(
                "there is a container {name} that is not this node's: it is left alone, and has to be removed by hand"
            ))),
            Err(error) => Err(not_started(client, error, launch)),
        }
    }

    async fn endpoint(&self, client: &Client, id: &str, launch: &Launch) -> Result<Endpoint, RuntimeError> {
        if self.places.listen == Listen::Socket {
            return Ok(Endpoint::Unix(self.places.socket(launch.unit)));
        }
        let details = ask::inspect(client, id).await.map_err(|error| client.failed(error))?;
        details
            .and_then(|details| units::endpoint(&details))
            .ok_or_else(|| RuntimeError::Start("it ended at once, before it had a port".to_owned()))
    }
}

/// Why a container was not created or started.
fn not_started(client: &Client, error: CallError, launch: &Launch) -> RuntimeError {
    match error {
        CallError::Refused { message, .. } => {
            let message = without_secrets(&message, launch);
            match gpu::refusal(&message).filter(|_| !launch.gpus.is_empty()) {
                Some(why) => RuntimeError::Unsuitable(why),
                None => RuntimeError::Start(message),
            }
        }
        other => client.failed(other),
    }
}
