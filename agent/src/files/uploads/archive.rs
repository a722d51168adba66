//! A model that comes as one archive.

use std::fmt::Display;
use std::fs::{self, File};
use std::path::Path;
use std::sync::Arc;

use bytes::Bytes;
use futures_util::{Stream, StreamExt};
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

use super::Uploads;
use crate::files::archive::{ArchiveKind, Bounds, unpack_file, unpack_tar, without_single_root};
use crate::files::error::{FilesError, blocking};
use crate::files::names::ModelName;
use crate::files::pipe::{PipeReader, copy, feed};
use crate::files::room::{LOOK_EVERY, Room};
use crate::files::shelf::{Arrived, Shelf};
use crate::files::staging::{Workspace, in_workspace};
use crate::files::transfers::{TransferHandle, TransferKind};

/// Archives need room for themselves and for what comes out of them.
pub(in crate::files) const ARCHIVE_FACTOR: u64 = 2;

impl Uploads {
    /// Receives an archive and makes its content the model, without a single directory at its root. Tars are unpacked as they
    /// come; a zip has to come whole first. `declared` is the length of the stream, where that is known.
    ///
    /// # Errors
    /// `Invalid` name or archive, `Conflict` when the name is taken, `TooLarge` content, `NoRoom`, `BrokenOff`, `Busy`. Whatever
    /// it is, nothing is left.
    pub async fn archive<S, E>(
        &self,
        name: &str,
        file_name: &str,
        declared: Option<u64>,
        content: S,
    ) -> Result<Arrived, FilesError>
    where
        S: Stream<Item = Result<Bytes, E>> + Send,
        E: Display,
    {
        let name = ModelName::parse(name)?;
        let kind = ArchiveKind::of(file_name)
            .ok_or_else(|| FilesError::Invalid("the archive must be a .tar, .tar.gz, .tgz or .zip file".to_owned()))?;
        let busy = || FilesError::Busy("too many archives are being received by this node".to_owned());
        let turn = Arc::clone(&self.archives).try_acquire_owned().map_err(|_| busy())?;
        let shelf = self.shelf.clone();
        let (named, asked) = (name.clone(), self.shelf.clone());
        let promise = blocking(move || {
            asked.is_free(&named)?;
            asked.room.promise(declared.unwrap_or(0), ARCHIVE_FACTOR)
        })
        .await?;
        let transfer = Arc::new(shelf.transfers.begin(Uuid::new_v4(), TransferKind::Archive, name.as_str(), declared));
        let counted = Arc::clone(&transfer);
        let content = content.inspect(move |piece| {
            if let Ok(bytes) = piece {
                counted.add(bytes.len() as u64);
            }
        });
        let silence = shelf.limits.silence;
        let cancel = CancellationToken::new();
        let bounds = Bounds {
            limits: shelf.limits.archives,
            packed: declared,
            room: shelf.room.clone(),
            cancel: cancel.clone(),
        };
        // Unpacking a zip reads no stream that could tell it that nobody waits any more.
        let _cancelled_with_this_call = cancel.drop_guard();
        feed(content, silence, move |reader| {
            let _held_until_the_end = (turn, promise);
            let outcome = Workspace::create(&shelf.models, "archive").and_then(|workspace| {
                in_workspace(workspace, |path| unpack(reader, kind, path, &shelf, &name, &bounds, &transfer))
            });
            match &outcome {
                Ok(arrived) => transfer.done(&arrived.path),
                Err(error) => transfer.failed(&error.to_string()),
            }
            outcome
        })
        .await
    }
}

fn unpack(
    mut reader: PipeReader,
    kind: ArchiveKind,
    workspace: &Path,
    shelf: &Shelf,
    name: &ModelName,
    bounds: &Bounds,
    transfer: &TransferHandle,
) -> Result<Arrived, FilesError> {
    let content = workspace.join("content");
    fs::create_dir(&content).map_err(|e| FilesError::io("making a staging directory", e))?;
    match kind {
        ArchiveKind::Tar => unpack_tar(reader, false, &content, bounds)?,
        ArchiveKind::TarGz => unpack_tar(reader, true, &content, bounds)?,
        ArchiveKind::Zip => {
            let file = workspace.join("archive");
            spool(&mut reader, &file, &bounds.room)?;
            transfer.extracting();
            unpack_file(&file, kind, &content, bounds)?;
        }
    }
    if bounds.cancel.is_cancelled() {
        return Err(FilesError::Cancelled);
    }
    shelf.put(&without_single_root(&content)?, name)
}

/// Writes a stream to a file, as long as there is room.
fn spool(reader: &mut PipeReader, file: &Path, room: &Room) -> Result<(), FilesError> {
    let mut file = File::create(file).map_err(|e| FilesError::io("writing a file", e))?;
    let mut unlooked = LOOK_EVERY;
    copy(reader, &mut file, |piece| {
        unlooked += piece.len() as u64;
        if unlooked >= LOOK_EVERY {
            unlooked = 0;
            room.look()?;
        }
        Ok(())
    })
}
