//! The files of this node: opened when it begins to supervise what runs on it, closed when another process does.

use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use muster_cluster::ids::NodeId;
use muster_cluster::state::Published;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use super::parts::Pieces;
use super::told::id;
use super::wire::{
    ArchiveHead, Arrived, BeginRequest, CachedModels, Done, FileLength, FileRequest, FinishRequest, IdRequest,
    LocalModels, NameRequest, Package, PackageHead, Packages, PullBegun, PullRequest, Received, Transfers, UploadBegun,
    WriteHead,
};
use super::{Occupied, Refused};
use crate::files::{ErrorKind, Files, FilesConfig, FilesError, InUse, ModelName, RepoName};

/// How long to wait before directories that could not be opened are tried again.
const PAUSE: Duration = Duration::from_secs(5);

/// Files that can be worked with.
#[derive(Clone, Debug)]
struct Open {
    files: Arc<Files>,
    /// Cuts off what is under way when they are closed.
    closing: CancellationToken,
}

/// Where they stand.
#[derive(Clone, Debug)]
enum Stage {
    /// Nobody has opened them, or another process has them.
    Closed,
    /// They could not be opened so far.
    Failed(String),
    Open(Open),
}

/// The files of this node.
pub struct OwnFiles {
    config: FilesConfig,
    stage: watch::Sender<Stage>,
    occupied: Arc<Occupied>,
    /// Ends the streams that are under way, and those that begin until this node supervises again.
    streams: Mutex<CancellationToken>,
}

impl std::fmt::Debug for OwnFiles {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("OwnFiles").field("config", &self.config).finish_non_exhaustive()
    }
}

impl OwnFiles {
    pub(crate) fn new(config: FilesConfig) -> Self {
        Self { config, stage: watch::Sender::new(Stage::Closed), occupied: Arc::default(), streams: Mutex::default() }
    }

    /// Where they lie.
    pub(crate) fn config(&self) -> &FilesConfig {
        &self.config
    }

    /// Opens them, unless they are open, and goes on trying if that fails. Until they are open every call is refused.
    pub(crate) async fn open(&self, published: Arc<Published>, node: NodeId) {
        self.occupied.see(published, node);
        *self.streams.lock().unwrap_or_else(PoisonError::into_inner) = CancellationToken::new();
        while !matches!(&*self.stage.borrow(), Stage::Open(_)) {
            let in_use = Arc::clone(&self.occupied) as Arc<dyn InUse>;
            let stage = match Files::open(self.config.clone(), in_use).await {
                Ok(files) => Stage::Open(Open { files: Arc::new(files), closing: CancellationToken::new() }),
                Err(error) => {
                    tracing::warn!(%error, "the directories of model files can not be used; it is tried again");
                    Stage::Failed(error.to_string())
                }
            };
            let failed = matches!(stage, Stage::Failed(_));
            self.stage.send_replace(stage);
            if failed {
                tokio::time::sleep(PAUSE).await;
            }
        }
    }

    /// Opens them where there is no fleet.
    #[cfg(test)]
    pub(crate) async fn open_for_tests(&self) {
        let in_use = Arc::clone(&self.occupied) as Arc<dyn InUse>;
        let files = Arc::new(Files::open(self.config.clone(), in_use).await.unwrap());
        self.stage.send_replace(Stage::Open(Open { files, closing: CancellationToken::new() }));
    }

    /// Cuts off what clients send through this process, to this node or another, because it is about to stop or to start anew.
    /// Uploads can go on from there; pulls are left alone.
    pub fn cut(&self) {
        self.streams.lock().unwrap_or_else(PoisonError::into_inner).cancel();
    }

    /// Works with a stream until it is cut off.
    pub(super) async fn uncut<T, E: From<Refused>>(&self, work: impl Future<Output = Result<T, E>>) -> Result<T, E> {
        let streams = self.streams.lock().unwrap_or_else(PoisonError::into_inner).clone();
        tokio::select! {
            biased;
            () = streams.cancelled() => Err(Refused {
                kind: ErrorKind::Busy,
                message: "this node starts anew or stops; go on, or send it again, in a moment".to_owned(),
            }
            .into()),
            done = work => done,
        }
    }

    /// Closes them: what is under way is cut off, uploads so that they can go on.
    pub(crate) fn close(&self) {
        self.cut();
        if let Stage::Open(open) = self.stage.send_replace(Stage::Closed) {
            open.closing.cancel();
        }
        self.occupied.lose_sight();
    }

    /// What to work with.
    fn opened(&self) -> Result<Open, Refused> {
        let why = match &*self.stage.borrow() {
            Stage::Open(open) => return Ok(open.clone()),
            Stage::Closed => "this node does not work with its files at the moment: it starts or stops".to_owned(),
            Stage::Failed(why) => format!("the directories of model files can not be used: {why}"),
        };
        Err(Refused { kind: ErrorKind::Busy, message: why })
    }

    /// Works with them, as long as they are open.
    async fn with<T, F>(&self, work: impl FnOnce(Arc<Files>) -> F) -> Result<T, Refused>
    where
        F: Future<Output = Result<T, FilesError>>,
    {
        let Open { files, closing } = self.opened()?;
        let working = std::pin::pin!(work(files));
        tokio::select! {
            done = working => Ok(done?),
            () = closing.cancelled() => Err(Refused {
                kind: ErrorKind::Busy,
                message: "this node has stopped working with its files: it starts anew or stops".to_owned(),
            }),
        }
    }

    /// Waits for a while until they are open, and checks where a model lies that a deployment names by its path.
    pub(crate) async fn check(&self, path: PathBuf, patience: Duration) -> Result<(), Refused> {
        let mut stages = self.stage.subscribe();
        let _ = tokio::time::timeout(patience, stages.wait_for(|stage| matches!(stage, Stage::Open(_)))).await;
        self.with(|files| async move { files.local.check(path).await }).await.map(drop)
    }

    /// The directories that containers see read-only.
    pub(crate) async fn allowed_directories(&self) -> Vec<PathBuf> {
        let known = self.with(|files| async move { files.local.allowed_directories().await }).await;
        known.unwrap_or_default()
    }

    pub(super) async fn list_cached(&self) -> Result<CachedModels, Refused> {
        let listing = self.with(|files| async move { files.hub.list().await }).await?;
        Ok(CachedModels { models: listing.models.into_iter().map(Into::into).collect() })
    }

    pub(super) async fn delete_cached(&self, request: NameRequest) -> Result<Done, Refused> {
        let name = RepoName::plain(&request.name)?;
        self.with(|files| async move { files.hub.delete(name).await }).await?;
        Ok(Done {})
    }

    pub(super) async fn list_local(&self) -> Result<LocalModels, Refused> {
        let listing = self.with(|files| async move { files.local.list().await }).await?;
        Ok(LocalModels { models: listing.models.into_iter().map(Into::into).collect() })
    }

    pub(super) async fn delete_local(&self, request: NameRequest) -> Result<Done, Refused> {
        let name = ModelName::parse(&request.name)?;
        self.with(|files| async move { files.local.delete(name).await }).await?;
        Ok(Done {})
    }

    pub(super) async fn pull(&self, request: PullRequest) -> Result<PullBegun, Refused> {
        let PullRequest { url, name } = request;
        let pull = self.with(|files| async move { files.pulls.start(&url, name.as_deref()).await }).await?;
        Ok(PullBegun { id: pull.id.as_bytes().to_vec().into(), name: pull.name.as_str().to_owned() })
    }

    pub(super) async fn cancel_pull(&self, request: IdRequest) -> Result<Done, Refused> {
        self.opened()?.files.pulls.cancel(id(&request.id)?)?;
        Ok(Done {})
    }

    pub(super) async fn list_transfers(&self) -> Result<Transfers, Refused> {
        let transfers = self.opened()?.files.transfers();
        Ok(Transfers { transfers: transfers.into_iter().map(Into::into).collect() })
    }

    pub(super) async fn begin_upload(&self, request: BeginRequest) -> Result<UploadBegun, Refused> {
        let BeginRequest { name, total_bytes, file_count } = request;
        let begun = self.with(|files| async move { files.uploads.begin(&name, total_bytes, file_count).await });
        Ok(UploadBegun { id: begun.await?.as_bytes().to_vec().into() })
    }

    pub(super) async fn upload_length(&self, request: FileRequest) -> Result<FileLength, Refused> {
        let session = id(&request.id)?;
        let length = self.with(|files| async move { files.uploads.length(session, &request.path).await }).await?;
        Ok(FileLength { length })
    }

    pub(super) async fn write(&self, head: WriteHead, content: Pieces) -> Result<Received, Refused> {
        let WriteHead { id: session, path, offset } = head;
        let session = id(&session)?;
        let working =
            self.with(|files| async move { Box::pin(files.uploads.write(session, &path, offset, content)).await });
        let received = self.uncut(working).await?;
        Ok(Received { bytes: received.bytes, length: received.length })
    }

    pub(super) async fn finish_upload(&self, request: FinishRequest) -> Result<Arrived, Refused> {
        let session = id(&request.id)?;
        let arrived = self.with(|files| async move { files.uploads.finish(session, request.flatten).await }).await?;
        Ok(arrived.into())
    }

    pub(super) async fn abort_upload(&self, request: IdRequest) -> Result<Done, Refused> {
        let session = id(&request.id)?;
        self.with(|files| async move { files.uploads.abort(session).await }).await?;
        Ok(Done {})
    }

    pub(super) async fn archive(&self, head: ArchiveHead, content: Pieces) -> Result<Arrived, Refused> {
        let ArchiveHead { name, file_name, declared } = head;
        let working = self
            .with(|files| async move { Box::pin(files.uploads.archive(&name, &file_name, declared, content)).await });
        let arrived = self.uncut(working).await?;
        Ok(arrived.into())
    }

    pub(super) async fn list_packages(&self) -> Result<Packages, Refused> {
        let packages = self.with(|files| async move { files.packages.list().await }).await?;
        Ok(Packages { packages: packages.into_iter().map(Into::into).collect() })
    }

    pub(super) async fn upload_package(&self, head: PackageHead, content: Pieces) -> Result<Package, Refused> {
        let PackageHead { file_name, declared } = head;
        let working =
            self.with(|files| async move { Box::pin(files.packages.upload(&file_name, declared, content)).await });
        let package = self.uncut(working).await?;
        Ok(package.into())
    }

    pub(super) async fn delete_package(&self, request: NameRequest) -> Result<Done, Refused> {
        self.with(|files| async move { files.packages.delete(&request.name).await }).await?;
        Ok(Done {})
    }
}
