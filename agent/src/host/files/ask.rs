//! Working with the files of any node: this one's directly, another's by asking it.

use std::fmt::Display;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures_util::Stream;
use futures_util::future::BoxFuture;
use muster_cluster::ids::NodeId;
use muster_cluster::transport::{Channels, Purpose, ToNode};
use tonic::service::interceptor::InterceptedService;
use tonic::transport::Channel;
use tonic::{Response, Status};

use super::parts::{Pace, Paced, Part, Pieces, parts, pieces};
use super::told::refusal;
use super::wire::files_client::FilesClient;
use super::wire::{
    ArchiveHead, Arrived, BeginRequest, CachedModels, Done, FileLength, FileRequest, FinishRequest, IdRequest,
    ListRequest, LocalModels, NameRequest, Package, PackageHead, Packages, PullBegun, PullRequest, Received, Transfers,
    UploadBegun, WriteHead,
};
use super::{FilesProblem, OwnFiles};

/// How long a node may take for what it knows.
const SHORT: Duration = Duration::from_secs(15);

/// How long it may take to walk through its directories.
const LIST: Duration = Duration::from_secs(60);

/// How long it may take to delete.
const DELETE: Duration = Duration::from_secs(120);

/// How long it may take to put together, and to make safe on its disk, what has come.
const FINISH: Duration = Duration::from_secs(600);

/// How long it may take to unpack what has come.
const UNPACK: Duration = Duration::from_secs(3600);

/// How long it may take nothing more of a stream.
const STALL: Duration = Duration::from_secs(60);

/// The longest list of a node, in bytes.
const LONGEST: usize = 64 << 20;

/// Content on its way to a node.
pub type Sending<T> = BoxFuture<'static, Result<T, FilesProblem>>;

type Client = FilesClient<InterceptedService<Channel, ToNode>>;

/// The files of one node.
#[derive(Clone)]
pub struct FilesOf(Whose);

#[derive(Clone)]
enum Whose {
    Own(Arc<OwnFiles>),
    Other(Other),
}

#[derive(Clone)]
struct Other {
    node: NodeId,
    channels: Arc<Channels>,
    /// This node's own, which know when streams have to end.
    own: Arc<OwnFiles>,
}

impl Other {
    fn client(&self) -> Client {
        let channel = self.channels.to(self.node, Purpose::Files);
        FilesClient::with_interceptor(channel, self.channels.route(self.node)).max_decoding_message_size(LONGEST)
    }

    fn judge<T>(&self, answer: Result<Response<T>, Status>) -> Result<T, FilesProblem> {
        answer.map(Response::into_inner).map_err(|status| match refusal(&status) {
            Some(refused) => refused.into(),
            None => FilesProblem::unreachable(self.node, status.message()),
        })
    }

    async fn ask<T, F>(&self, limit: Duration, call: impl FnOnce(Client) -> F) -> Result<T, FilesProblem>
    where
        F: Future<Output = Result<Response<T>, Status>>,
    {
        match tokio::time::timeout(limit, call(self.client())).await {
            Ok(answer) => self.judge(answer),
            Err(_) => Err(FilesProblem::unreachable(self.node, format!("not within {limit:?}"))),
        }
    }

    /// Sends content. There is no limit on the whole, but on how long the node may take nothing, and on how long it may take to
    /// answer when it has everything.
    async fn send<P: Part, T, F>(
        &self,
        (head, content): (P::Head, Pieces),
        limit: Duration,
        call: impl FnOnce(Client, Paced<P>) -> F,
    ) -> Result<T, FilesProblem>
    where
        F: Future<Output = Result<Response<T>, Status>>,
    {
        let pace = Pace::new();
        let sending = call(self.client(), Paced::new(parts(head, content), pace.clone()));
        let working = async {
            tokio::select! {
                answer = sending => self.judge(answer),
                waited = pace.stalls(STALL, limit) => {
                    Err(FilesProblem::unreachable(self.node, format!("it has not gone on within {waited:?}")))
                }
            }
        };
        self.own.uncut(working).await
    }
}

impl FilesOf {
    pub(in super::super) fn own(files: Arc<OwnFiles>) -> Self {
        Self(Whose::Own(files))
    }

    pub(in super::super) fn of(node: NodeId, channels: Arc<Channels>, own: Arc<OwnFiles>) -> Self {
        Self(Whose::Other(Other { node, channels, own }))
    }

    /// The models in the hub's cache.
    ///
    /// # Errors
    /// See [`FilesProblem`]; so for all that follow.
    pub async fn list_cached(&self) -> Result<CachedModels, FilesProblem> {
        match &self.0 {
            Whose::Own(own) => Ok(own.list_cached().await?),
            Whose::Other(other) => {
                other.ask(LIST, |mut client| async move { client.list_cached(ListRequest {}).await }).await
            }
        }
    }

    /// Deletes a model of the hub's cache, by its name.
    ///
    /// # Errors
    /// Its name is invalid or leads elsewhere, it is not there, or in use.
    pub async fn delete_cached(&self, name: &str) -> Result<(), FilesProblem> {
        let request = NameRequest { name: name.to_owned() };
        let Done {} = match &self.0 {
            Whose::Own(own) => own.delete_cached(request).await?,
            Whose::Other(other) => {
                other.ask(DELETE, |mut client| async move { client.delete_cached(request).await }).await?
            }
        };
        Ok(())
    }

    /// The models in the node's directories.
    ///
    /// # Errors
    /// See [`FilesProblem`].
    pub async fn list_local(&self) -> Result<LocalModels, FilesProblem> {
        match &self.0 {
            Whose::Own(own) => Ok(own.list_local().await?),
            Whose::Other(other) => {
                other.ask(LIST, |mut client| async move { client.list_local(ListRequest {}).await }).await
            }
        }
    }

    /// Deletes a managed model.
    ///
    /// # Errors
    /// Its name is invalid, it is not there, or in use.
    pub async fn delete_local(&self, name: &str) -> Result<(), FilesProblem> {
        let request = NameRequest { name: name.to_owned() };
        let Done {} = match &self.0 {
            Whose::Own(own) => own.delete_local(request).await?,
            Whose::Other(other) => {
                other.ask(DELETE, |mut client| async move { client.delete_local(request).await }).await?
            }
        };
        Ok(())
    }

    /// Begins to pull a model from a URL.
    ///
    /// # Errors
    /// The URL or the name is invalid, the name is taken, there is no room, or too many pulls run.
    pub async fn pull(&self, request: PullRequest) -> Result<PullBegun, FilesProblem> {
        match &self.0 {
            Whose::Own(own) => Ok(own.pull(request).await?),
            Whose::Other(other) => other.ask(SHORT, |mut client| async move { client.pull(request).await }).await,
        }
    }

    /// Cancels a pull.
    ///
    /// # Errors
    /// No such pull runs.
    pub async fn cancel_pull(&self, request: IdRequest) -> Result<(), FilesProblem> {
        let Done {} = match &self.0 {
            Whose::Own(own) => own.cancel_pull(request).await?,
            Whose::Other(other) => {
                other.ask(SHORT, |mut client| async move { client.cancel_pull(request).await }).await?
            }
        };
        Ok(())
    }

    /// What is on its way to the node, and what has lately ended.
    ///
    /// # Errors
    /// See [`FilesProblem`].
    pub async fn list_transfers(&self) -> Result<Transfers, FilesProblem> {
        match &self.0 {
            Whose::Own(own) => Ok(own.list_transfers().await?),
            Whose::Other(other) => {
                other.ask(SHORT, |mut client| async move { client.list_transfers(ListRequest {}).await }).await
            }
        }
    }

    /// Begins an upload.
    ///
    /// # Errors
    /// The name is invalid or taken, there is no room, or too many uploads are open.
    pub async fn begin_upload(&self, request: BeginRequest) -> Result<UploadBegun, FilesProblem> {
        match &self.0 {
            Whose::Own(own) => Ok(own.begin_upload(request).await?),
            Whose::Other(other) => {
                other.ask(SHORT, |mut client| async move { client.begin_upload(request).await }).await
            }
        }
    }

    /// How much of a file has come.
    ///
    /// # Errors
    /// The upload is not there, the path is invalid, or the file is being written.
    pub async fn upload_length(&self, request: FileRequest) -> Result<FileLength, FilesProblem> {
        match &self.0 {
            Whose::Own(own) => Ok(own.upload_length(request).await?),
            Whose::Other(other) => {
                other.ask(SHORT, |mut client| async move { client.upload_length(request).await }).await
            }
        }
    }

    /// Sends a file of an upload, or the rest of it. Content that ends with an error leaves what has come, to go on from.
    ///
    /// # Errors
    /// The upload is not there, the path or the offset is invalid, it broke off, or there is no room.
    pub fn write<S, E>(&self, head: WriteHead, content: S) -> Sending<Received>
    where
        S: Stream<Item = Result<Bytes, E>> + Send + 'static,
        E: Display + Send + 'static,
    {
        let (whose, content) = (self.0.clone(), pieces(content));
        Box::pin(async move {
            match whose {
                Whose::Own(own) => Ok(own.write(head, content).await?),
                Whose::Other(other) => {
                    let call = |mut client: Client, parts| async move { client.write(parts).await };
                    other.send((head, content), FINISH, call).await
                }
            }
        })
    }

    /// Makes what was uploaded a model.
    ///
    /// # Errors
    /// The upload is not there or not complete, or the name has been taken.
    pub async fn finish_upload(&self, request: FinishRequest) -> Result<Arrived, FilesProblem> {
        match &self.0 {
            Whose::Own(own) => Ok(own.finish_upload(request).await?),
            Whose::Other(other) => {
                other.ask(FINISH, |mut client| async move { client.finish_upload(request).await }).await
            }
        }
    }

    /// Ends an upload and removes what has come.
    ///
    /// # Errors
    /// It is being finished.
    pub async fn abort_upload(&self, request: IdRequest) -> Result<(), FilesProblem> {
        let Done {} = match &self.0 {
            Whose::Own(own) => own.abort_upload(request).await?,
            Whose::Other(other) => {
                other.ask(DELETE, |mut client| async move { client.abort_upload(request).await }).await?
            }
        };
        Ok(())
    }

    /// Sends an archive, whose content becomes a model.
    ///
    /// # Errors
    /// The name, the file's name or the archive is invalid, the name is taken, there is no room, or it broke off. Nothing is left.
    pub fn archive<S, E>(&self, head: ArchiveHead, content: S) -> Sending<Arrived>
    where
        S: Stream<Item = Result<Bytes, E>> + Send + 'static,
        E: Display + Send + 'static,
    {
        let (whose, content) = (self.0.clone(), pieces(content));
        Box::pin(async move {
            match whose {
                Whose::Own(own) => Ok(own.archive(head, content).await?),
                Whose::Other(other) => {
                    let call = |mut client: Client, parts| async move { client.archive(parts).await };
                    other.send((head, content), UNPACK, call).await
                }
            }
        })
    }

    /// The packages of the node.
    ///
    /// # Errors
    /// See [`FilesProblem`].
    pub async fn list_packages(&self) -> Result<Packages, FilesProblem> {
        match &self.0 {
            Whose::Own(own) => Ok(own.list_packages().await?),
            Whose::Other(other) => {
                other.ask(LIST, |mut client| async move { client.list_packages(ListRequest {}).await }).await
            }
        }
    }

    /// Sends a package.
    ///
    /// # Errors
    /// It is none, there is no room, or it broke off. Nothing is left.
    pub fn upload_package<S, E>(&self, head: PackageHead, content: S) -> Sending<Package>
    where
        S: Stream<Item = Result<Bytes, E>> + Send + 'static,
        E: Display + Send + 'static,
    {
        let (whose, content) = (self.0.clone(), pieces(content));
        Box::pin(async move {
            match whose {
                Whose::Own(own) => Ok(own.upload_package(head, content).await?),
                Whose::Other(other) => {
                    let call = |mut client: Client, parts| async move { client.upload_package(parts).await };
                    other.send((head, content), FINISH, call).await
                }
            }
        })
    }

    /// Deletes a package.
    ///
    /// # Errors
    /// It is not there.
    pub async fn delete_package(&self, id: &str) -> Result<(), FilesProblem> {
        let request = NameRequest { name: id.to_owned() };
        let Done {} = match &self.0 {
            Whose::Own(own) => own.delete_package(request).await?,
            Whose::Other(other) => {
                other.ask(DELETE, |mut client| async move { client.delete_package(request).await }).await?
            }
        };
        Ok(())
    }
}
