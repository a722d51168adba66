//! Gets an image: from the daemon's own store, from the store of the other runtime, or from a registry.

use std::pin::pin;
use std::time::{Duration, Instant};

use bollard::query_parameters::CreateImageOptions;
use futures_util::StreamExt;
use tokio::sync::watch;

use super::super::call::CallError;
use super::super::daemon::{Client, Daemon};
use super::pull::{Tracker, is_a_step};
use super::{Reference, copy, digest, identity, inspect};
use crate::runtime::{Progress, RuntimeError};

/// How long a registry may say nothing. A daemon that extracts a large layer says so.
const SILENCE: Duration = Duration::from_secs(300);

/// The same before its first word, when there is an image already that will do.
const SILENCE_WITH_SPARE: Duration = Duration::from_secs(30);

/// How long a pull may take.
const PULL: Duration = Duration::from_secs(6 * 3600);

/// How often progress is told that is less than a step.
const TELL: Duration = Duration::from_secs(1);

/// An image that the daemon has.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(in super::super) struct Ensured {
    /// Its identity in the store.
    pub(in super::super) id: String,
    /// What it is exactly.
    pub(in super::super) digest: Option<String>,
    /// What whoever asked for it should know: it is not the newest, and why.
    pub(in super::super) note: Option<String>,
}

/// Gets an image that is on the machine. No registry is asked for it.
pub(in super::super) async fn ensure_local(
    client: &Client,
    other: Option<&Daemon>,
    reference: &Reference,
    progress: &watch::Sender<Progress>,
) -> Result<Ensured, RuntimeError> {
    match local(client, reference).await? {
        Some(ensured) => Ok(ensured),
        None if copied(client, other, reference, progress).await => got(client, reference, None).await,
        None => Err(RuntimeError::NoImage {
            image: reference.to_string(),
            why: "no registry is asked for it: it has to be built on this node".to_owned(),
        }),
    }
}

/// Gets an image. A name that moves is pulled each time, and where that fails an older one has to do.
pub(in super::super) async fn ensure(
    client: &Client,
    other: Option<&Daemon>,
    reference: &Reference,
    progress: &watch::Sender<Progress>,
) -> Result<Ensured, RuntimeError> {
    let local = local(client, reference).await?;
    if !reference.moves() {
        if let Some(ensured) = local {
            return Ok(ensured);
        }
        if copied(client, other, reference, progress).await {
            return got(client, reference, None).await;
        }
        pull(client, reference, SILENCE, progress).await.map_err(|error| refused(client, reference, error))?;
        return got(client, reference, None).await;
    }
    let patience = if local.is_some() { SILENCE_WITH_SPARE } else { SILENCE };
    let error = match pull(client, reference, patience, progress).await {
        Ok(()) => return got(client, reference, None).await,
        Err(error) => error,
    };
    let note = format!("{reference} could not be pulled ({error}), so the one that is here is used");
    match local {
        Some(ensured) => Ok(Ensured { note: Some(note), ..ensured }),
        None if copied(client, other, reference, progress).await => got(client, reference, Some(note)).await,
        None => Err(refused(client, reference, error)),
    }
}

/// The image as the daemon has it.
async fn local(client: &Client, reference: &Reference) -> Result<Option<Ensured>, RuntimeError> {
    let image = inspect(client, &reference.to_string()).await.map_err(|error| client.failed(error))?;
    Ok(image.map(|image| Ensured {
        id: image.id.as_deref().map(identity).unwrap_or_default(),
        digest: digest(&image, Some(reference.repository())),
        note: None,
    }))
}

async fn got(client: &Client, reference: &Reference, note: Option<String>) -> Result<Ensured, RuntimeError> {
    match local(client, reference).await? {
        Some(ensured) => Ok(Ensured { note, ..ensured }),
        None => {
            Err(RuntimeError::Image { image: reference.to_string(), why: "it was got, and is not there".to_owned() })
        }
    }
}

/// Whether the image is here now because the other runtime had it. If it went wrong, a registry may still have it.
async fn copied(
    client: &Client,
    other: Option<&Daemon>,
    reference: &Reference,
    progress: &watch::Sender<Progress>,
) -> bool {
    let Some(other) = other else { return false };
    match copy::copy(other, client, reference, progress).await {
        Ok(copied) => copied,
        Err(error) => {
            tracing::warn!(image = %reference, %error, "the image could not be copied from the other runtime");
            false
        }
    }
}

async fn pull(
    client: &Client,
    reference: &Reference,
    first_word: Duration,
    progress: &watch::Sender<Progress>,
) -> Result<(), CallError> {
    let options = CreateImageOptions {
        from_image: Some(reference.repository().to_owned()),
        tag: Some(reference.tag_or_digest().to_owned()),
        ..Default::default()
    };
    let mut tracker = Tracker::default();
    let mut told = tracker.progress();
    let mut told_at = Instant::now();
    let begun = Instant::now();
    progress.send_replace(told.clone());
    let docker = client.patient(first_word);
    let mut messages = pin!(docker.create_image(Some(options), None, None));
    let mut patience = first_word;
    loop {
        let left = PULL.saturating_sub(begun.elapsed());
        let message = match tokio::time::timeout(patience.min(left), messages.next()).await {
            Ok(None) => return Ok(()),
            Ok(Some(message)) => message?,
            Err(_) => return Err(CallError::Silent),
        };
        patience = SILENCE;
        tracker.observe(&message);
        let now = tracker.progress();
        if is_a_step(&told, &now) || (told != now && told_at.elapsed() >= TELL) {
            progress.send_replace(now.clone());
            told = now;
            told_at = Instant::now();
        }
    }
}

/// A pull that failed: because there is no such image, or because it did not come.
fn refused(client: &Client, reference: &Reference, error: CallError) -> RuntimeError {
    const NO_SUCH_IMAGE: [&str; 4] = [
        "manifest unknown",
        "repository does not exist",
        "access denied",
        "requested access to the resource is denied",
    ];
    let why = error.to_string();
    match error {
        CallError::Unreachable(_) => client.failed(error),
        _ if error.is_missing() || NO_SUCH_IMAGE.iter().any(|words| why.contains(words)) => {
            RuntimeError::NoImage { image: reference.to_string(), why }
        }
        _ => RuntimeError::Image { image: reference.to_string(), why },
    }
}
