//! Containers and images of engines on this machine, as operators see them: what a supervisor keeps, and what nobody does.

mod ask;
mod service;

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

pub use ask::AskError;
pub(super) use service::add;

use super::Host;
use crate::runtime::container::{ContainerRuntime, Deletion, HeldImage, MergedImage, Stray, deletion, merge};
use crate::runtime::{Runtime, RuntimeError};
use crate::wire::refused::Kind;
use crate::wire::{self, Container, ContainerUnit, ImagesDeleted, NodeImage};

/// What a container's engine gets to finish when an operator ends it.
const GRACE: Duration = Duration::from_secs(10);

/// Why a node has not done what an operator wants. The text is for the operator.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Refused {
    /// No container runtime can be used there now.
    #[error("{0}")]
    NoRuntime(String),
    /// There is no such thing there.
    #[error("{0}")]
    NotFound(String),
    /// Something needs it.
    #[error("{0}")]
    InUse(String),
    /// The runtime did not do it.
    #[error("{0}")]
    Failed(String),
}

impl From<RuntimeError> for Refused {
    fn from(error: RuntimeError) -> Self {
        let text = error.to_string();
        match error {
            RuntimeError::Unavailable { .. } => Self::NoRuntime(text),
            RuntimeError::NotFound(_) => Self::NotFound(text),
            _ => Self::Failed(text),
        }
    }
}

impl From<Refused> for wire::Refused {
    fn from(refused: Refused) -> Self {
        let kind = match &refused {
            Refused::NoRuntime(_) => Kind::NoRuntime,
            Refused::NotFound(_) => Kind::NotFound,
            Refused::InUse(_) => Kind::InUse,
            Refused::Failed(_) => Kind::Failed,
        };
        Self { kind: kind.into(), why: refused.to_string() }
    }
}

impl From<wire::Refused> for Refused {
    fn from(refused: wire::Refused) -> Self {
        let kind = refused.kind();
        match kind {
            Kind::NoRuntime => Self::NoRuntime(refused.why),
            Kind::NotFound => Self::NotFound(refused.why),
            Kind::InUse => Self::InUse(refused.why),
            Kind::Failed | Kind::Unspecified => Self::Failed(refused.why),
        }
    }
}

type Answers<T> = Vec<(Arc<ContainerRuntime>, Result<T, RuntimeError>)>;

/// What those runtimes have answered that can be used. At least one can.
fn usable<T>(all: Answers<T>) -> Result<Vec<(Arc<ContainerRuntime>, T)>, Refused> {
    let (mut answers, mut silent) = (Vec::new(), Vec::new());
    for (runtime, answer) in all {
        match answer {
            Ok(answer) => answers.push((runtime, answer)),
            Err(error @ RuntimeError::Unavailable { .. }) => silent.push(error.to_string()),
            Err(error) => return Err(error.into()),
        }
    }
    if answers.is_empty() {
        let why = if silent.is_empty() { "this node uses no container runtime".to_owned() } else { silent.join("; ") };
        return Err(Refused::NoRuntime(why));
    }
    Ok(answers)
}

fn container(runtime: &ContainerRuntime, stray: Stray) -> Container {
    let unit = stray.unit.map(|unit| ContainerUnit {
        deployment: unit.placement.deployment.0,
        ordinal: unit.placement.ordinal,
        epoch: unit.epoch.0,
    });
    let Stray { id, name, image, state, .. } = stray;
    Container { id, name, image, status: state, runtime: runtime.kind().name().to_owned(), unit }
}

/// An image's identity without the algorithm.
fn digits(id: &str) -> &str {
    id.strip_prefix("sha256:").unwrap_or(id)
}

fn is_called(image: &MergedImage, id: &str) -> bool {
    let id = digits(id);
    image.layers.as_str() == id || image.copies.iter().any(|(_, copy)| digits(&copy.id) == id)
}

/// Why a copy of an image is left alone, if it is.
fn reason_to_keep(copy: &HeldImage) -> Option<String> {
    match (copy.containers, deletion(copy)) {
        (0, Deletion::Leave) => Some("it has only names that are not an engine's".to_owned()),
        (0, _) => None,
        (1, _) => Some("a container is made from it".to_owned()),
        (count, _) => Some(format!("{count} containers are made from it")),
    }
}

impl Host {
    /// What each runtime has of this fleet and node, and of nobody.
    async fn found(&self) -> Result<Vec<(Arc<ContainerRuntime>, Vec<Stray>)>, Refused> {
        let mut answers = Answers::new();
        for runtime in self.engines().containers().iter() {
            answers.push((Arc::clone(runtime), runtime.strays(&BTreeSet::new(), self.engines().family()).await));
        }
        usable(answers)
    }

    /// The containers of this fleet and node, and those with an image of an engine that no fleet has made.
    ///
    /// # Errors
    /// When no runtime can be used, or one fails.
    pub async fn containers(&self) -> Result<Vec<Container>, Refused> {
        let all = self.found().await?.into_iter().flat_map(|(runtime, strays)| {
            strays.into_iter().map(move |stray| container(&runtime, stray)).collect::<Vec<_>>()
        });
        Ok(all.collect())
    }

    /// Ends one of these containers and removes it. Whether something needs it is for the caller to know.
    ///
    /// # Errors
    /// When there is none of this identity, no runtime can be used, or it does not end.
    pub async fn stop_container(&self, id: &str) -> Result<(), Refused> {
        for (runtime, strays) in self.found().await? {
            let Some(stray) = strays.into_iter().find(|stray| stray.id == id) else { continue };
            tracing::info!(container = stray.name, "an operator ends a container");
            match stray.unit {
                Some(unit) => runtime.stop(unit, GRACE).await?,
                None => runtime.remove_stray(&stray, GRACE).await?,
            }
            return Ok(());
        }
        Err(Refused::NotFound(format!("there is no container {id} of an engine")))
    }

    async fn merged(&self) -> Result<Vec<MergedImage>, Refused> {
        let mut held = Answers::new();
        for runtime in self.engines().containers().iter() {
            held.push((Arc::clone(runtime), runtime.images(self.engines().family()).await));
        }
        Ok(merge(usable(held)?.into_iter().map(|(runtime, images)| (runtime.daemon().configured(), images)).collect()))
    }

    /// The images of engines, each once however many runtimes have it.
    ///
    /// # Errors
    /// When no runtime can be used, or one fails.
    pub async fn images(&self) -> Result<Vec<NodeImage>, Refused> {
        let merged = self.merged().await?;
        let image = |image: MergedImage| NodeImage {
            id: image.copies.first().map(|(_, copy)| copy.id.clone()).unwrap_or_default(),
            tags: image.tags,
            size: image.size,
            runtimes: image.copies.iter().map(|(flavour, _)| flavour.kind().name().to_owned()).collect(),
            containers: image.copies.iter().map(|(_, copy)| copy.containers as u64).sum(),
        };
        Ok(merged.into_iter().map(image).collect())
    }

    /// Deletes an image in every runtime that has it, but neither what a container is made from nor names of others.
    ///
    /// # Errors
    /// When there is no such image, all copies are needed, or no runtime can be used.
    pub async fn delete_image(&self, id: &str) -> Result<ImagesDeleted, Refused> {
        let runtimes = self.engines().containers();
        let image = self.merged().await?.into_iter().find(|image| is_called(image, id));
        let image = image.ok_or_else(|| Refused::NotFound(format!("there is no image {id} of an engine")))?;
        let mut done = ImagesDeleted::default();
        for (flavour, copy) in &image.copies {
            let runtime = runtimes.iter().find(|runtime| runtime.daemon().configured() == *flavour);
            let Some(runtime) = runtime else { continue };
            if let Some(why) = reason_to_keep(copy) {
                done.skipped.push(format!("{flavour}: {why}"));
                continue;
            }
            let deleted = runtime.delete_image(self.engines().family(), &image.layers).await?;
            done.skipped.extend(deleted.failed.into_iter().map(|(name, why)| format!("{flavour}: {name}: {why}")));
            if !(deleted.removed.is_empty() && deleted.untagged.is_empty()) {
                done.runtimes.push(flavour.to_string());
            }
            done.removed.extend(deleted.removed.into_iter().chain(deleted.untagged));
            done.freed = done.freed.saturating_add(deleted.freed);
        }
        if done.runtimes.is_empty() {
            return Err(Refused::InUse(done.skipped.join("; ")));
        }
        Ok(done)
    }

    /// Deletes the images of engines that no container is made from.
    ///
    /// # Errors
    /// When no runtime can be used, or one fails.
    pub async fn prune_images(&self) -> Result<ImagesDeleted, Refused> {
        let mut answers = Answers::new();
        for runtime in self.engines().containers().iter() {
            answers.push((Arc::clone(runtime), runtime.prune_images(self.engines().family()).await));
        }
        let mut done = ImagesDeleted::default();
        for (runtime, deleted) in usable(answers)? {
            done.runtimes.push(runtime.kind().name().to_owned());
            done.removed.extend(deleted.removed.into_iter().chain(deleted.untagged));
            done.skipped
                .extend(deleted.failed.into_iter().map(|(name, why)| format!("{}: {name}: {why}", runtime.kind())));
            done.freed = done.freed.saturating_add(deleted.freed);
        }
        Ok(done)
    }
}
