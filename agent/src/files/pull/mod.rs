//! Models that a node pulls from a URL.

mod address;
mod client;
mod fetch;
#[cfg(test)]
mod server;
#[cfg(test)]
mod tests;

use std::collections::HashMap;
use std::fs;
use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::sync::Semaphore;
use tokio_util::sync::{CancellationToken, DropGuard};
use url::Url;
use uuid::Uuid;

use super::archive::{ArchiveKind, Bounds, unpack_file, without_single_root};
use super::error::{FilesError, blocking};
use super::names::ModelName;
use super::shelf::{Arrived, Shelf};
use super::staging::{Workspace, in_workspace};
use super::transfers::{TransferHandle, TransferKind};

pub use address::PullPolicy;
use client::Client;
use fetch::{Fetched, fetch, last_segment};

type Running = Arc<Mutex<HashMap<Uuid, CancellationToken>>>;

/// The pulls of one node. Clones are the same ones; the running pulls end when the last one is dropped.
#[derive(Clone, Debug)]
pub struct Pulls {
    shelf: Shelf,
    client: Client,
    running: Running,
    turns: Arc<Semaphore>,
    all: CancellationToken,
    _ends_with_the_last: Arc<DropGuard>,
}

/// A pull that has begun.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Pull {
    /// Its transfer.
    pub id: Uuid,
    /// The name of the model that it becomes.
    pub name: ModelName,
}

impl Pulls {
    pub(super) fn new(shelf: Shelf, policy: PullPolicy) -> Self {
        let all = CancellationToken::new();
        let turns = Arc::new(Semaphore::new(shelf.limits.pulls));
        let guard = Arc::new(all.clone().drop_guard());
        Self { shelf, client: Client::new(policy), running: Arc::default(), turns, all, _ends_with_the_last: guard }
    }

    /// Begins to pull a file, or an archive that is unpacked, and returns at once. Without a name, the URL's last part gives it.
    ///
    /// # Errors
    /// `Invalid` URL or name, `Conflict` when the name is taken, `NoRoom`, `Busy` when too many pulls run.
    pub async fn start(&self, url: &str, name: Option<&str>) -> Result<Pull, FilesError> {
        let url = self.client.policy().check(url)?;
        let name = match name {
            Some(name) => ModelName::parse(name)?,
            None => name_from(&url)?,
        };
        let busy = || FilesError::Busy("too many pulls run on this node at once".to_owned());
        let turn = Arc::clone(&self.turns).try_acquire_owned().map_err(|_| busy())?;
        let (shelf, wanted) = (self.shelf.clone(), name.clone());
        blocking(move || {
            shelf.is_free(&wanted)?;
            shelf.room.look()
        })
        .await?;
        let transfer = self.shelf.transfers.begin(Uuid::new_v4(), TransferKind::Pull, name.as_str(), None);
        let pull = Pull { id: transfer.id(), name };
        let cancel = self.all.child_token();
        self.running().insert(pull.id, cancel.clone());
        let (client, shelf, running, wanted) =
            (self.client.clone(), self.shelf.clone(), Arc::clone(&self.running), pull.clone());
        // It ends by its token, which every owner of the pulls can cancel and the last one does.
        tokio::spawn(async move {
            let _turn = turn;
            carry_out(&client, &url, &shelf, &wanted.name, Arc::new(transfer), cancel).await;
            running.lock().unwrap_or_else(PoisonError::into_inner).remove(&wanted.id);
        });
        Ok(pull)
    }

    /// Cancels a pull, which then leaves nothing behind.
    ///
    /// # Errors
    /// `NotFound` when none of that id runs.
    pub fn cancel(&self, id: Uuid) -> Result<(), FilesError> {
        let missing = || FilesError::NotFound("no such pull runs on this node".to_owned());
        self.running().get(&id).ok_or_else(missing)?.cancel();
        Ok(())
    }

    fn running(&self) -> MutexGuard<'_, HashMap<Uuid, CancellationToken>> {
        self.running.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// What a model is called when only its URL is known.
fn name_from(url: &Url) -> Result<ModelName, FilesError> {
    let file = last_segment(url).unwrap_or_default();
    let stem = match ArchiveKind::split(&file) {
        Some((stem, _)) => stem,
        None => [".gguf", ".safetensors", ".bin"].iter().find_map(|end| file.strip_suffix(end)).unwrap_or(&file),
    };
    ModelName::parse(stem)
        .map_err(|_| FilesError::Invalid("the URL gives no name for the model: name it in the request".to_owned()))
}

async fn carry_out(
    client: &Client,
    url: &Url,
    shelf: &Shelf,
    name: &ModelName,
    transfer: Arc<TransferHandle>,
    cancel: CancellationToken,
) {
    match pull(client, url, shelf, name, &transfer, cancel).await {
        Ok(arrived) => {
            tracing::info!(model = %name, bytes = arrived.bytes, "a model has been pulled");
            transfer.done(&arrived.path);
        }
        Err(error) => {
            tracing::info!(model = %name, %error, "a model could not be pulled");
            transfer.failed(&error.to_string());
        }
    }
}

async fn pull(
    client: &Client,
    url: &Url,
    shelf: &Shelf,
    name: &ModelName,
    transfer: &Arc<TransferHandle>,
    cancel: CancellationToken,
) -> Result<Arrived, FilesError> {
    let models = shelf.models.clone();
    let workspace = blocking(move || Workspace::create(&models, "pull")).await?;
    let file = workspace.path().join("download");
    let outcome = tokio::select! {
        () = cancel.cancelled() => Err(FilesError::Cancelled),
        outcome = fetch(client, url, &file, shelf, transfer) => outcome,
    };
    let (shelf, name, transfer) = (shelf.clone(), name.clone(), Arc::clone(transfer));
    // The workspace goes here, before the transfer is said to have ended.
    blocking(move || in_workspace(workspace, |path| settle(path, outcome?, &shelf, &name, &transfer, cancel))).await
}

/// Makes a model of a file that has come.
fn settle(
    workspace: &Path,
    fetched: Fetched,
    shelf: &Shelf,
    name: &ModelName,
    transfer: &TransferHandle,
    cancel: CancellationToken,
) -> Result<Arrived, FilesError> {
    let fail = |e| FilesError::io("putting a model together", e);
    let file = workspace.join("download");
    let content = workspace.join("content");
    fs::create_dir(&content).map_err(fail)?;
    let root = match fetched.kind {
        Some(kind) => {
            transfer.extracting();
            let packed = Some(fs::metadata(&file).map_err(fail)?.len());
            let bounds =
                Bounds { limits: shelf.limits.archives, packed, room: shelf.room.clone(), cancel: cancel.clone() };
            unpack_file(&file, kind, &content, &bounds)?;
            without_single_root(&content)?
        }
        None => {
            let file_name = fetched.file_name.as_ref().map_or(name.as_str(), |file_name| file_name.as_str());
            fs::rename(&file, content.join(file_name)).map_err(fail)?;
            content
        }
    };
    if cancel.is_cancelled() {
        return Err(FilesError::Cancelled);
    }
    let arrived = shelf.put(&root, name)?;
    drop(fetched.promise);
    Ok(arrived)
}
