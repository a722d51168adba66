//! Copies an image from the store of one runtime to that of the other, as a stream.

use std::pin::pin;
use std::time::Duration;

use bollard::query_parameters::{ImportImageOptions, TagImageOptions};
use futures_util::StreamExt;
use tokio::sync::watch;

use super::super::call::{CallError, within};
use super::super::daemon::{Client, Daemon};
use super::{Reference, inspect};
use crate::runtime::Progress;

/// How long a copy may take.
const COPY: Duration = Duration::from_secs(3600);

/// How many names of loaded images are looked at.
const MOST_NAMES: usize = 16;

/// Copies an image, if the other runtime is there and has it. Says whether it has been copied.
pub(super) async fn copy(
    from: &Daemon,
    to: &Client,
    reference: &Reference,
    progress: &watch::Sender<Progress>,
) -> Result<bool, CallError> {
    let Ok(from) = from.client().await else { return Ok(false) };
    let name = reference.to_string();
    if reference.tag().is_none() || inspect(&from, &name).await?.is_none() {
        return Ok(false);
    }
    progress.send_replace(Progress { phase: "copying image", pulled: None });
    let saved = from.patient(COPY).export_image(&name);
    let docker = to.patient(COPY);
    let loaded = within(COPY, async {
        let mut messages = pin!(docker.import_image_stream(ImportImageOptions::default(), saved, None));
        let mut names = Vec::new();
        while let Some(message) = messages.next().await {
            let said = message?.stream.unwrap_or_default();
            // `Loaded image: NAME`, or `Loaded image ID: IDENTITY`.
            let loaded = said.trim().strip_prefix("Loaded image").and_then(|rest| rest.split_once(": "));
            if let Some((_, name)) = loaded.filter(|_| names.len() < MOST_NAMES) {
                names.push(name.to_owned());
            }
        }
        Ok(names)
    })
    .await?;
    if inspect(to, &name).await?.is_some() {
        return Ok(true);
    }
    // What Podman built is called localhost/ there, and is not found under the name that was asked for.
    for loaded in loaded {
        let Some(image) = inspect(to, &loaded).await? else { continue };
        let options =
            TagImageOptions { repo: Some(reference.repository().to_owned()), tag: reference.tag().map(str::to_owned) };
        let id = image.id.unwrap_or(loaded);
        to.short(docker.tag_image(&id, Some(options))).await?;
        return Ok(true);
    }
    Ok(false)
}
