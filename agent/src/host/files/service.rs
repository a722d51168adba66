//! What a node answers others who ask for its files.

use std::sync::Arc;

use muster_cluster::transport::Members;
use tonic::service::RoutesBuilder;
use tonic::service::interceptor::InterceptedService;
use tonic::{Request, Response, Status, Streaming};

use super::parts::take_apart;
use super::wire::files_server::{self, FilesServer};
use super::wire::{
    ArchivePart, Arrived, BeginRequest, CachedModels, Done, FileLength, FileRequest, FinishRequest, IdRequest,
    ListRequest, LocalModels, NameRequest, Package, PackagePart, Packages, PullBegun, PullRequest, Received, Transfers,
    UploadBegun, WritePart,
};
use super::{OwnFiles, Refused};

struct FilesService(Arc<OwnFiles>);

/// Adds the service, for members alone.
pub(in super::super) fn add(routes: &mut RoutesBuilder, files: Arc<OwnFiles>, members: Members) {
    routes.add_service(InterceptedService::new(FilesServer::new(FilesService(files)), members));
}

fn answer<T>(done: Result<T, Refused>) -> Result<Response<T>, Status> {
    Ok(Response::new(done?))
}

#[tonic::async_trait]
impl files_server::Files for FilesService {
    async fn list_cached(&self, _: Request<ListRequest>) -> Result<Response<CachedModels>, Status> {
        answer(self.0.list_cached().await)
    }

    async fn delete_cached(&self, request: Request<NameRequest>) -> Result<Response<Done>, Status> {
        answer(self.0.delete_cached(request.into_inner()).await)
    }

    async fn list_local(&self, _: Request<ListRequest>) -> Result<Response<LocalModels>, Status> {
        answer(self.0.list_local().await)
    }

    async fn delete_local(&self, request: Request<NameRequest>) -> Result<Response<Done>, Status> {
        answer(self.0.delete_local(request.into_inner()).await)
    }

    async fn pull(&self, request: Request<PullRequest>) -> Result<Response<PullBegun>, Status> {
        answer(self.0.pull(request.into_inner()).await)
    }

    async fn cancel_pull(&self, request: Request<IdRequest>) -> Result<Response<Done>, Status> {
        answer(self.0.cancel_pull(request.into_inner()).await)
    }

    async fn list_transfers(&self, _: Request<ListRequest>) -> Result<Response<Transfers>, Status> {
        answer(self.0.list_transfers().await)
    }

    async fn begin_upload(&self, request: Request<BeginRequest>) -> Result<Response<UploadBegun>, Status> {
        answer(self.0.begin_upload(request.into_inner()).await)
    }

    async fn upload_length(&self, request: Request<FileRequest>) -> Result<Response<FileLength>, Status> {
        answer(self.0.upload_length(request.into_inner()).await)
    }

    async fn write(&self, request: Request<Streaming<WritePart>>) -> Result<Response<Received>, Status> {
        let (head, content) = take_apart(request.into_inner()).await.map_err(Refused::from)?;
        answer(self.0.write(head, content).await)
    }

    async fn finish_upload(&self, request: Request<FinishRequest>) -> Result<Response<Arrived>, Status> {
        answer(self.0.finish_upload(request.into_inner()).await)
    }

    async fn abort_upload(&self, request: Request<IdRequest>) -> Result<Response<Done>, Status> {
        answer(self.0.abort_upload(request.into_inner()).await)
    }

    async fn archive(&self, request: Request<Streaming<ArchivePart>>) -> Result<Response<Arrived>, Status> {
        let (head, content) = take_apart(request.into_inner()).await.map_err(Refused::from)?;
        answer(self.0.archive(head, content).await)
    }

    async fn list_packages(&self, _: Request<ListRequest>) -> Result<Response<Packages>, Status> {
        answer(self.0.list_packages().await)
    }

    async fn upload_package(&self, request: Request<Streaming<PackagePart>>) -> Result<Response<Package>, Status> {
        let (head, content) = take_apart(request.into_inner()).await.map_err(Refused::from)?;
        answer(self.0.upload_package(head, content).await)
    }

    async fn delete_package(&self, request: Request<NameRequest>) -> Result<Response<Done>, Status> {
        answer(self.0.delete_package(request.into_inner()).await)
    }
}
