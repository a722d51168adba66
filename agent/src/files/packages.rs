//! Python packages and plugins that engines are given: `packages/<first 16 hex digits of the content's SHA-256>`.

use std::ffi::OsStr;
use std::fmt::Display;
use std::fs::{self, File};
use std::io::{self, Read, Write};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use bytes::Bytes;
use data_encoding::HEXLOWER;
use futures_util::Stream;
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};
use tokio::sync::Semaphore;
use tokio_util::sync::CancellationToken;

use super::archive::{ArchiveKind, Bounds, is_zip, unpack_file};
use super::error::{FilesError, blocking};
use super::names::RelativePath;
use super::pipe::{PipeReader, copy, feed};
use super::room::{Room, human};
use super::shelf::Limits;
use super::staging::{STAGING, Workspace, in_workspace, publish, remove, sweep, sync_directory};
use super::uploads::ARCHIVE_FACTOR;

/// The most packages of a node.
const MOST: usize = 1000;

/// What is remembered of a package, beside its content.
const RECORD: &str = ".muster-package.json";

/// What a package is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum PackageType {
    /// It is installed with pip.
    Package,
    /// A single Python file.
    Plugin,
}

impl PackageType {
    /// As the API spells it.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Package => "package",
            Self::Plugin => "plugin",
        }
    }
}

/// A package on this node.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Package {
    /// The first 16 hex digits of the SHA-256 of what was uploaded.
    pub id: String,
    /// What the uploaded file was called.
    pub file_name: String,
    /// What an engine installs or loads.
    pub install_path: PathBuf,
    /// What it is for.
    pub kind: PackageType,
}

#[derive(Debug, Serialize, Deserialize)]
struct Record {
    filename: String,
}

/// How an uploaded file is kept.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Form {
    Wheel,
    Plugin,
    Archive(ArchiveKind),
}

impl Form {
    fn of(file_name: &str) -> Option<Self> {
        let ends = |ending: &str| {
            let extension = Path::new(file_name).extension();
            extension.is_some_and(|found| found.eq_ignore_ascii_case(OsStr::new(ending)))
        };
        if ends("whl") {
            return Some(Self::Wheel);
        }
        if ends("py") {
            return Some(Self::Plugin);
        }
        match ArchiveKind::of(file_name)? {
            ArchiveKind::Tar => None,
            kind => Some(Self::Archive(kind)),
        }
    }
}

/// The packages of one node. Clones are the same ones.
#[derive(Clone, Debug)]
pub struct Packages {
    directory: PathBuf,
    room: Room,
    limits: Limits,
    turns: Arc<Semaphore>,
}

impl Packages {
    pub(super) fn open(directory: PathBuf, limits: Limits) -> Result<Self, FilesError> {
        let made = fs::create_dir_all(directory.join(STAGING));
        made.map_err(|e| FilesError::io("making the directory of packages", e))?;
        sweep(&directory, |_| false)?;
        let room = Room::new(&directory, limits.keep_free);
        let turns = Arc::new(Semaphore::new(limits.archives_at_once));
        Ok(Self { directory, room, limits, turns })
    }

    /// Where packages lie: containers see it read-only.
    #[must_use]
    pub fn directory(&self) -> &Path {
        &self.directory
    }

    /// Receives a package. The same content again is the same package.
    ///
    /// # Errors
    /// `Invalid` name, format or content, `TooLarge`, `NoRoom`, `BrokenOff`, `Busy`. Whatever it is, nothing is left.
    pub async fn upload<S, E>(&self, file_name: &str, declared: Option<u64>, content: S) -> Result<Package, FilesError>
    where
        S: Stream<Item = Result<Bytes, E>> + Send,
        E: Display,
    {
        let file_name = RelativePath::parse_file_name(file_name)?;
        let form = Form::of(file_name.as_str()).ok_or_else(|| {
            FilesError::Invalid("a package must be a .whl, .py, .tar.gz, .tgz or .zip file".to_owned())
        })?;
        let busy = || FilesError::Busy("too many packages are being received by this node".to_owned());
        let turn = Arc::clone(&self.turns).try_acquire_owned().map_err(|_| busy())?;
        let packages = self.clone();
        let cancel = CancellationToken::new();
        let _cancelled_with_this_call = cancel.clone().drop_guard();
        feed(content, self.limits.silence, move |reader| {
            let _turn = turn;
            let _promise = packages.room.promise(declared.unwrap_or(0), ARCHIVE_FACTOR)?;
            let workspace = Workspace::create(&packages.directory, "package")?;
            in_workspace(workspace, |path| packages.receive(reader, &file_name, form, path, cancel))
        })
        .await
    }

    fn receive(
        &self,
        mut reader: PipeReader,
        file_name: &RelativePath,
        form: Form,
        workspace: &Path,
        cancel: CancellationToken,
    ) -> Result<Package, FilesError> {
        let fail = |e| FilesError::io("writing a package", e);
        let upload = workspace.join("upload");
        let id = self.spool(&mut reader, &upload)?;
        if let Some(there) = self.read(&id) {
            return Ok(there);
        }
        if self.list_now()?.len() >= MOST {
            return Err(FilesError::Busy(format!("this node has {MOST} packages: delete one")));
        }
        let content = workspace.join("content");
        fs::create_dir(&content).map_err(fail)?;
        match form {
            Form::Archive(kind) => {
                let packed = Some(fs::metadata(&upload).map_err(fail)?.len());
                let bounds =
                    Bounds { limits: self.limits.archives, packed, room: self.room.clone(), cancel: cancel.clone() };
                unpack_file(&upload, kind, &content, &bounds)?;
            }
            Form::Wheel if !is_zip(&upload)? => {
                return Err(FilesError::Invalid(format!("{file_name} is not a wheel: it is no zip archive")));
            }
            Form::Wheel | Form::Plugin => fs::rename(&upload, file_name.below(&content)).map_err(fail)?,
        }
        if cancel.is_cancelled() {
            return Err(FilesError::Cancelled);
        }
        let record = Record { filename: file_name.as_str().to_owned() };
        let text = serde_json::to_vec(&record).map_err(|e| fail(e.into()))?;
        let file = File::options().write(true).create_new(true).open(content.join(RECORD));
        let mut file = file.map_err(|error| match error.kind() {
            io::ErrorKind::AlreadyExists => FilesError::Invalid(format!("the archive must not hold {RECORD}")),
            _ => fail(error),
        })?;
        file.write_all(&text).and_then(|()| file.sync_all()).map_err(fail)?;
        match publish(&content, &self.directory.join(&id), "the package") {
            // Somebody else has uploaded the same at the same time.
            Ok(()) | Err(FilesError::Conflict(_)) => {}
            Err(error) => return Err(error),
        }
        self.read(&id).ok_or(FilesError::GivenUp)
    }

    /// Writes the stream to a file, and says which package that is.
    fn spool(&self, reader: &mut PipeReader, to: &Path) -> Result<String, FilesError> {
        let fail = |e| FilesError::io("writing a package", e);
        let mut file = File::create(to).map_err(fail)?;
        let mut hash = Sha256::new();
        let mut length = 0_u64;
        let most = self.limits.package;
        self.room.look()?;
        copy(reader, &mut file, |piece| {
            length += piece.len() as u64;
            if length > most {
                return Err(FilesError::TooLarge(format!("a package has at most {}", human(most))));
            }
            hash.update(piece);
            Ok(())
        })?;
        file.sync_all().map_err(fail)?;
        Ok(HEXLOWER.encode(&hash.finalize()[..8]))
    }

    /// The packages of this node, by id.
    ///
    /// # Errors
    /// When the disk fails.
    pub async fn list(&self) -> Result<Vec<Package>, FilesError> {
        let packages = self.clone();
        blocking(move || packages.list_now()).await
    }

    fn list_now(&self) -> Result<Vec<Package>, FilesError> {
        let fail = |e| FilesError::io("reading the directory of packages", e);
        let entries = fs::read_dir(&self.directory).map_err(fail)?.take(2 * MOST);
        let mut found: Vec<Package> =
            entries.filter_map(Result::ok).filter_map(|entry| self.read(entry.file_name().to_str()?)).collect();
        found.sort_by(|a, b| a.id.cmp(&b.id));
        Ok(found)
    }

    /// A package by its id. `None`: there is none that can be read.
    fn read(&self, id: &str) -> Option<Package> {
        if !is_id(id) {
            return None;
        }
        let directory = self.directory.join(id);
        let mut text = String::new();
        File::open(directory.join(RECORD)).ok()?.take(8192).read_to_string(&mut text).ok()?;
        let record: Record = serde_json::from_str(&text).ok()?;
        let kind = match Form::of(&record.filename)? {
            Form::Plugin => PackageType::Plugin,
            Form::Wheel | Form::Archive(_) => PackageType::Package,
        };
        let children = fs::read_dir(&directory).ok()?.filter_map(Result::ok);
        let mut children = children.filter(|child| child.file_name() != RECORD).take(2);
        let install_path = match (children.next(), children.next()) {
            (Some(only), None) => only.path(),
            _ => directory,
        };
        Some(Package { id: id.to_owned(), file_name: record.filename, install_path, kind })
    }

    /// Deletes a package.
    ///
    /// # Errors
    /// `NotFound`, and when the disk fails.
    pub async fn delete(&self, id: &str) -> Result<(), FilesError> {
        let (packages, id) = (self.clone(), id.to_owned());
        blocking(move || {
            let missing = || FilesError::NotFound("there is no such package on this node".to_owned());
            if !is_id(&id) {
                return Err(missing());
            }
            let doomed = Workspace::create(&packages.directory, "deleted")?;
            let moved = fs::rename(packages.directory.join(&id), doomed.path().join("package"));
            remove(doomed.path());
            moved.map_err(|error| match error.kind() {
                io::ErrorKind::NotFound => missing(),
                _ => FilesError::io("deleting a package", error),
            })?;
            sync_directory(&packages.directory).map_err(|e| FilesError::io("deleting a package", e))
        })
        .await
    }
}

fn is_id(text: &str) -> bool {
    text.len() == 16 && text.bytes().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f'))
}

#[cfg(test)]
mod tests {
    use std::convert::Infallible;

    use futures_util::stream;
    use tempfile::TempDir;

    use super::super::archive::ArchiveLimits;
    use super::super::archive::samples::{gzip, renamed, tar, zip};
    use super::super::error::ErrorKind;
    use super::*;

    fn scene() -> (TempDir, Packages) {
        let home = tempfile::tempdir().unwrap();
        let archives = ArchiveLimits { ratio: 2, always: 1 << 20, entries: 10 };
        let limits = Limits { keep_free: 0, package: 100_000, archives, ..Limits::default() };
        let packages = Packages::open(home.path().join("packages"), limits).unwrap();
        (home, packages)
    }

    fn whole(content: &[u8]) -> impl Stream<Item = Result<Bytes, Infallible>> + Send + use<> {
        stream::iter([Ok(Bytes::copy_from_slice(content))])
    }

    fn is_clean(packages: &Packages) -> bool {
        fs::read_dir(packages.directory.join(STAGING)).unwrap().count() == 0
    }

    #[tokio::test]
    async fn packages_of_each_form_are_kept_under_their_hash() {
        let (_home, packages) = scene();
        let wheel = zip(&[("x/__init__.py", 0o644, b""), ("x-1.0.dist-info/METADATA", 0o644, b"")]);
        let source = gzip(&tar(&[("x-1.0/setup.py", b"1"), ("x-1.0/x.py", b"2")])[..]);
        let flat = zip(&[("setup.py", 0o644, b"1"), ("x.py", 0o644, b"2")]);
        let cases: [(&str, &[u8], PackageType, Option<&str>); 4] = [
            ("x-1.0+cu121-py3-none-any.whl", &wheel, PackageType::Package, Some("x-1.0+cu121-py3-none-any.whl")),
            ("plugin.py", b"import vllm", PackageType::Plugin, Some("plugin.py")),
            ("x-1.0.tar.gz", &source, PackageType::Package, Some("x-1.0")),
            ("flat.zip", &flat, PackageType::Package, None),
        ];
        for (file_name, content, kind, child) in cases {
            let package = packages.upload(file_name, Some(content.len() as u64), whole(content)).await.unwrap();
            let id = &HEXLOWER.encode(&Sha256::digest(content))[..16];
            assert_eq!((package.id.as_str(), package.file_name.as_str(), package.kind), (id, file_name, kind));
            let directory = packages.directory().join(id);
            assert_eq!(package.install_path, child.map_or(directory.clone(), |child| directory.join(child)));
            assert!(package.install_path.exists());
            assert_eq!(packages.upload(file_name, None, whole(content)).await.unwrap(), package);
            assert!(packages.list().await.unwrap().contains(&package));
        }
        assert_eq!(packages.list().await.unwrap().len(), 4);
        assert!(is_clean(&packages));
    }

    #[tokio::test]
    async fn what_is_no_package_is_refused_and_leaves_nothing() {
        let (home, packages) = scene();
        let good = zip(&[("QQQ", 0o644, b"x")]);
        let cases: [(&str, &[u8], ErrorKind); 12] = [
            ("x.exe", b"x", ErrorKind::Invalid),
            ("x.tar", b"x", ErrorKind::Invalid),
            ("whl", b"x", ErrorKind::Invalid),
            ("../x.whl", &good, ErrorKind::Invalid),
            ("a\\x.whl", &good, ErrorKind::Invalid),
            ("x.whl", b"not a wheel", ErrorKind::Invalid),
            ("x.zip", &renamed(good.clone(), "QQQ", "../"), ErrorKind::Invalid),
            ("x.zip", &renamed(good.clone(), "QQQ", "/ab"), ErrorKind::Invalid),
            ("x.tgz", &gzip(&tar(&[("../x", b"x")])[..]), ErrorKind::Invalid),
            ("x.tgz", &gzip(&tar(&[(RECORD, b"x")])[..]), ErrorKind::Invalid),
            ("x.tgz", &gzip(&tar(&[("zeros", &[0; 3 << 20])])[..]), ErrorKind::TooLarge),
            ("x.py", &[b'#'; 100_001], ErrorKind::TooLarge),
        ];
        for (file_name, content, kind) in cases {
            let error = packages.upload(file_name, None, whole(content)).await.unwrap_err();
            assert_eq!(error.kind(), kind, "{file_name}: {error}");
        }
        let cut = stream::iter([Ok(Bytes::from_static(b"x")), Err(io::Error::other("cut"))]);
        assert!(matches!(packages.upload("x.py", None, cut).await, Err(FilesError::BrokenOff)));
        let huge = packages.upload("x.py", Some(u64::MAX / 8), whole(b"x")).await.unwrap_err();
        assert_eq!(huge.kind(), ErrorKind::NoRoom);
        assert!(packages.list().await.unwrap().is_empty() && is_clean(&packages));
        assert_eq!(fs::read_dir(home.path()).unwrap().count(), 1);
    }

    #[tokio::test]
    async fn a_package_can_be_deleted_and_nothing_else() {
        let (home, packages) = scene();
        fs::write(home.path().join("packages/0123456789abcdef"), "no package").unwrap();
        let package = packages.upload("x.py", None, whole(b"x")).await.unwrap();
        assert_eq!(packages.list().await.unwrap(), std::slice::from_ref(&package));
        packages.delete(&package.id).await.unwrap();
        for id in [package.id.as_str(), "..", ".tmp", "", "../packages", "ABCDEF0123456789"] {
            assert_eq!(packages.delete(id).await.unwrap_err().kind(), ErrorKind::NotFound, "{id}");
        }
        assert!(packages.list().await.unwrap().is_empty() && is_clean(&packages));
    }
}
