//! How what a node says of its files, and its refusals, stand in messages.

use std::path::Path;
use std::time::{SystemTime, UNIX_EPOCH};

use tonic::metadata::MetadataValue;
use tonic::{Code, Status};
use uuid::Uuid;

use super::{Refused, wire};
use crate::files::{self, ErrorKind, FilesError, Source, TransferState};

/// Where a status says what kind of refusal it is.
const KIND: &str = "muster-files-error";

const KINDS: [(ErrorKind, &str, Code); 8] = [
    (ErrorKind::Invalid, "invalid", Code::InvalidArgument),
    (ErrorKind::NotFound, "not-found", Code::NotFound),
    (ErrorKind::Conflict, "conflict", Code::FailedPrecondition),
    (ErrorKind::TooLarge, "too-large", Code::OutOfRange),
    (ErrorKind::Upstream, "upstream", Code::Aborted),
    (ErrorKind::Busy, "busy", Code::ResourceExhausted),
    (ErrorKind::NoRoom, "no-room", Code::ResourceExhausted),
    (ErrorKind::Own, "own", Code::Internal),
];

impl From<Refused> for Status {
    fn from(Refused { kind, message }: Refused) -> Self {
        let code = KINDS.iter().find(|known| known.0 == kind).map_or(Code::Internal, |known| known.2);
        let name = KINDS.iter().find(|known| known.0 == kind).map_or("own", |known| known.1);
        let mut status = Self::new(code, message);
        status.metadata_mut().insert(KIND, MetadataValue::from_static(name));
        status
    }
}

/// The refusal that a status carries. `None`: it is not one of a node's files.
pub(super) fn refusal(status: &Status) -> Option<Refused> {
    let name = status.metadata().get(KIND)?.to_str().ok()?;
    // What a later version says that this one does not know is that node's own affair.
    let kind = KINDS.iter().find(|known| known.1 == name).map_or(ErrorKind::Own, |known| known.0);
    Some(Refused { kind, message: status.message().to_owned() })
}

/// The number of an upload or a transfer. One that is none belongs to nothing.
pub(super) fn id(bytes: &[u8]) -> Result<Uuid, FilesError> {
    Uuid::from_slice(bytes).map_err(|_| FilesError::NotFound("there is no such transfer on this node".to_owned()))
}

pub(super) fn ms(time: SystemTime) -> u64 {
    let since = time.duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_millis()).unwrap_or(u64::MAX)
}

fn text(path: &Path) -> String {
    path.to_string_lossy().into_owned()
}

impl From<files::CachedModel> for wire::CachedModel {
    fn from(model: files::CachedModel) -> Self {
        Self {
            name: model.name.as_str().to_owned(),
            bytes: model.bytes,
            last_used_ms: ms(model.last_used_at),
            in_use: model.in_use,
        }
    }
}

impl From<files::LocalModel> for wire::LocalModel {
    fn from(model: files::LocalModel) -> Self {
        Self {
            name: model.name,
            path: text(&model.path),
            directory: match &model.source {
                Source::Managed => None,
                Source::Directory(directory) => Some(text(directory)),
            },
            bytes: model.bytes,
            in_use: model.in_use,
            deletable: model.deletable,
            last_modified_ms: ms(model.last_modified_at),
        }
    }
}

impl From<files::Transfer> for wire::Transfer {
    fn from(transfer: files::Transfer) -> Self {
        let status = transfer.state.name().to_owned();
        let (path, error) = match transfer.state {
            TransferState::Done(path) => (Some(text(&path)), None),
            TransferState::Error(error) => (None, Some(error)),
            TransferState::Downloading | TransferState::Extracting => (None, None),
        };
        Self {
            id: transfer.id.as_bytes().to_vec().into(),
            kind: transfer.kind.name().to_owned(),
            name: transfer.name,
            status,
            total_bytes: transfer.total_bytes,
            received_bytes: transfer.received_bytes,
            error,
            path,
        }
    }
}

impl From<files::Arrived> for wire::Arrived {
    fn from(arrived: files::Arrived) -> Self {
        Self {
            name: arrived.name.as_str().to_owned(),
            path: text(&arrived.path),
            bytes: arrived.bytes,
            warnings: arrived.warnings,
        }
    }
}

impl From<files::Package> for wire::Package {
    fn from(package: files::Package) -> Self {
        Self {
            id: package.id,
            file_name: package.file_name,
            install_path: text(&package.install_path),
            kind: package.kind.name().to_owned(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_refusal_is_the_same_on_the_other_side() {
        for (kind, ..) in KINDS {
            let refused = Refused { kind, message: "the path ä leads outside".to_owned() };
            assert_eq!(refusal(&Status::from(refused.clone())), Some(refused));
        }
    }

    #[test]
    fn what_did_not_come_from_the_files_is_no_refusal() {
        for code in [Code::Unavailable, Code::Internal, Code::ResourceExhausted, Code::NotFound] {
            assert_eq!(refusal(&Status::new(code, "x")), None);
        }
        let mut later = Status::new(Code::Aborted, "x");
        later.metadata_mut().insert(KIND, MetadataValue::from_static("of-a-later-version"));
        assert_eq!(refusal(&later).map(|refused| refused.kind), Some(ErrorKind::Own));
    }
}
