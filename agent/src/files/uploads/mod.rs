//! Models that are uploaded: file by file in a session that can be interrupted, or as one archive.

mod archive;
mod receive;
mod session;
#[cfg(test)]
mod tests;

use std::collections::HashMap;
use std::fmt::Display;
use std::fs;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use bytes::Bytes;
use futures_util::Stream;
use tokio::sync::Semaphore;
use uuid::Uuid;

use super::archive::without_single_root;
use super::error::{FilesError, blocking};
use super::names::{ModelName, RelativePath};
use super::pipe::feed;
use super::shelf::{Arrived, Shelf};
use super::staging::{STAGING, remove, sweep};

pub(super) use archive::ARCHIVE_FACTOR;
pub use receive::Received;
use session::{Session, no_such_upload};

/// The uploads of one node. Clones are the same ones.
#[derive(Clone, Debug)]
pub struct Uploads {
    shelf: Shelf,
    sessions: Arc<Mutex<HashMap<Uuid, Arc<Session>>>>,
    archives: Arc<Semaphore>,
}

impl Uploads {
    /// Goes on with the sessions of an earlier process and removes whatever else it left. Nobody else uses the directory.
    pub(super) fn open(shelf: Shelf) -> Result<Self, FilesError> {
        let mut sessions = HashMap::new();
        let staging = shelf.models.join(STAGING);
        fs::create_dir_all(&staging).map_err(|e| FilesError::io("making the staging directory", e))?;
        let entries = fs::read_dir(&staging).map_err(|e| FilesError::io("reading the staging directory", e))?;
        for entry in entries.filter_map(Result::ok) {
            if sessions.len() >= shelf.limits.uploads {
                break;
            }
            if let Some(session) = Session::restore(&entry.path(), &shelf) {
                tracing::info!(model = %session.name, upload = %session.id, "an upload can go on");
                sessions.insert(session.id, Arc::new(session));
            }
        }
        sweep(&shelf.models, |path| sessions.values().any(|session| session.directory == path))?;
        let archives = Arc::new(Semaphore::new(shelf.limits.archives_at_once));
        Ok(Self { shelf, sessions: Arc::new(Mutex::new(sessions)), archives })
    }

    fn sessions(&self) -> MutexGuard<'_, HashMap<Uuid, Arc<Session>>> {
        self.sessions.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn session(&self, id: Uuid) -> Result<Arc<Session>, FilesError> {
        self.sessions().get(&id).cloned().ok_or_else(no_such_upload)
    }

    /// Begins an upload. Zero bytes or files: it is not known how many come.
    ///
    /// # Errors
    /// `Invalid` name, `Conflict` when it is taken, `NoRoom`, `Busy` when too many uploads are open.
    pub async fn begin(&self, name: &str, total_bytes: u64, file_count: u64) -> Result<Uuid, FilesError> {
        let name = ModelName::parse(name)?;
        self.sweep().await?;
        let most = self.shelf.limits.upload_files;
        if file_count > most as u64 {
            return Err(FilesError::TooLarge(format!("an upload has at most {most} files")));
        }
        let uploads = self.clone();
        blocking(move || {
            let shelf = &uploads.shelf;
            shelf.is_free(&name)?;
            let promise = shelf.room.promise(total_bytes, 1)?;
            let session = Arc::new(Session::create(shelf, name, total_bytes, promise)?);
            let mut sessions = uploads.sessions();
            if sessions.len() >= shelf.limits.uploads {
                drop(sessions);
                remove(&session.directory);
                return Err(FilesError::Busy("too many uploads are open on this node: finish or abort one".to_owned()));
            }
            sessions.insert(session.id, Arc::clone(&session));
            Ok(session.id)
        })
        .await
    }

    /// How many bytes of a file have come: where to go on after a break.
    ///
    /// # Errors
    /// `NotFound` upload, `Invalid` path, `Conflict` while the file is being written.
    pub async fn length(&self, id: Uuid, path: &str) -> Result<u64, FilesError> {
        let path = RelativePath::parse(path)?;
        let session = self.session(id)?;
        let writing = session.claim(&path, None).await?;
        blocking(move || receive::length(&writing)).await
    }

    /// Receives a file of an upload from its start, or from an offset at which it is cut off before it goes on. A stream that
    /// ends with an error, or is dropped, leaves what has come: the upload can not be finished until the file is complete.
    ///
    /// # Errors
    /// `NotFound` upload, `Invalid` path, `BrokenOff`, `NoRoom`, `Conflict` when the offset is beyond what has come or when the
    /// file is being written by somebody else.
    pub async fn write<S, E>(
        &self,
        id: Uuid,
        path: &str,
        offset: Option<u64>,
        content: S,
    ) -> Result<Received, FilesError>
    where
        S: Stream<Item = Result<Bytes, E>> + Send,
        E: Display,
    {
        let path = RelativePath::parse(path)?;
        let session = self.session(id)?;
        let writing = session.claim(&path, Some(self.shelf.limits.upload_files)).await?;
        let room = self.shelf.room.clone();
        feed(content, self.shelf.limits.silence, move |reader| receive::receive(&writing, offset, reader, &room)).await
    }

    /// Makes what has come the model. With `flatten`, a single directory at its root is left out. If that fails, the upload is
    /// still open.
    ///
    /// # Errors
    /// `NotFound` upload, `Conflict` when the name has been taken meanwhile or a file is not complete.
    pub async fn finish(&self, id: Uuid, flatten: bool) -> Result<Arrived, FilesError> {
        let closed = self.session(id)?.close().await?;
        let uploads = self.clone();
        // To its end even if nobody waits: the rename and the forgetting belong together.
        blocking(move || {
            let session = &closed.session;
            let incomplete = receive::incomplete(&session.partial());
            if let Some(first) = incomplete.first() {
                return Err(FilesError::Conflict(format!(
                    "the upload is not complete: {first} broke off; send the rest of it, or abort the upload"
                )));
            }
            let content = session.content();
            let root = if flatten { without_single_root(&content)? } else { content };
            let arrived = uploads.shelf.put(&root, &session.name)?;
            session.end();
            uploads.sessions().remove(&session.id);
            session.transfer.done(&arrived.path);
            remove(&session.directory);
            Ok(arrived)
        })
        .await
    }

    /// Ends an upload and removes everything of it. One that is not there has been aborted.
    ///
    /// # Errors
    /// `Conflict` when it is being finished or a file of it is being written, and does not let go.
    pub async fn abort(&self, id: Uuid) -> Result<(), FilesError> {
        let Ok(session) = self.session(id) else { return Ok(()) };
        let closed = session.close().await?;
        closed.session.end();
        self.drop_session(closed.session.id, "it was aborted").await
    }

    /// Gives up the uploads in which nothing has happened for too long.
    ///
    /// # Errors
    /// When this node shuts down.
    pub async fn sweep(&self) -> Result<(), FilesError> {
        let idle: Vec<Uuid> = {
            let sessions = self.sessions();
            let limit = self.shelf.limits.upload_idle;
            sessions.values().filter(|session| session.end_if_idle(limit)).map(|session| session.id).collect()
        };
        for id in idle {
            self.drop_session(id, "nothing has come for too long").await?;
        }
        Ok(())
    }

    async fn drop_session(&self, id: Uuid, why: &str) -> Result<(), FilesError> {
        let Some(session) = self.sessions().remove(&id) else { return Ok(()) };
        session.transfer.failed(why);
        blocking(move || {
            remove(&session.directory);
            Ok(())
        })
        .await
    }

    /// Where models lie, for tests.
    #[cfg(test)]
    fn models(&self) -> &std::path::Path {
        &self.shelf.models
    }
}
