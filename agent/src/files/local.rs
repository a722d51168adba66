//! Models that lie on this node: in the directory that Muster keeps, and in directories of the machine that it only reads.

use std::ffi::OsStr;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::SystemTime;

use super::error::{FilesError, blocking};
use super::in_use::InUse;
use super::measure::measure;
use super::names::ModelName;
use super::staging::{STAGING, Workspace, sync_directory};

/// The most entries of one directory that are looked at.
const MOST_ENTRIES: usize = 10_000;

/// Where a model comes from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Source {
    /// From the directory that Muster keeps.
    Managed,
    /// From this directory of the machine.
    Directory(PathBuf),
}

/// A model that lies on this node.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LocalModel {
    /// Its name in its directory.
    pub name: String,
    /// What a deployment names to serve it.
    pub path: PathBuf,
    /// Where it comes from.
    pub source: Source,
    /// Its size in bytes.
    pub bytes: u64,
    /// Whether something runs from it.
    pub in_use: bool,
    /// Whether it can be deleted here.
    pub deletable: bool,
    /// When it was last changed.
    pub last_modified_at: SystemTime,
}

/// What lies on this node.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct LocalListing {
    /// The managed ones first, each directory by name.
    pub models: Vec<LocalModel>,
    /// How many entries were left out because their names can not be read.
    pub skipped: usize,
}

/// The local models of one node.
#[derive(Clone)]
pub struct LocalModels {
    managed: PathBuf,
    directories: Vec<PathBuf>,
    in_use: Arc<dyn InUse>,
}

impl std::fmt::Debug for LocalModels {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("LocalModels")
            .field("managed", &self.managed)
            .field("directories", &self.directories)
            .finish_non_exhaustive()
    }
}

impl LocalModels {
    pub(super) fn new(managed: PathBuf, directories: Vec<PathBuf>, in_use: Arc<dyn InUse>) -> Self {
        Self { managed, directories, in_use }
    }

    /// The directories whose models may be deployed, of those that are there: containers see them read-only.
    ///
    /// # Errors
    /// When this node shuts down.
    pub async fn allowed_directories(&self) -> Result<Vec<PathBuf>, FilesError> {
        let all: Vec<PathBuf> = std::iter::once(&self.managed).chain(&self.directories).cloned().collect();
        blocking(move || Ok(all.into_iter().filter(|directory| directory.is_dir()).collect())).await
    }

    /// What lies there.
    ///
    /// # Errors
    /// When the disk fails.
    pub async fn list(&self) -> Result<LocalListing, FilesError> {
        let models = self.clone();
        blocking(move || models.list_now()).await
    }

    fn list_now(&self) -> Result<LocalListing, FilesError> {
        let mut listing = LocalListing::default();
        self.read(&self.managed, &Source::Managed, &mut listing)?;
        for directory in &self.directories {
            self.read(directory, &Source::Directory(directory.clone()), &mut listing)?;
        }
        Ok(listing)
    }

    fn read(&self, directory: &Path, source: &Source, listing: &mut LocalListing) -> Result<(), FilesError> {
        let fail = |e| FilesError::io("reading a directory of models", e);
        let entries = match fs::read_dir(directory) {
            Ok(entries) => entries,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
            Err(error) => return Err(fail(error)),
        };
        let from = listing.models.len();
        for entry in entries.take(MOST_ENTRIES) {
            let entry = entry.map_err(fail)?;
            let file_name = entry.file_name();
            if file_name.as_encoded_bytes().starts_with(b".") {
                continue;
            }
            let Some(name) = file_name.to_str() else {
                listing.skipped += 1;
                continue;
            };
            // What leads outside can not be deployed, and what has just gone is not there.
            let Ok(resolved) = self.check_now(&entry.path()) else { continue };
            let Ok(metadata) = fs::metadata(&resolved) else { continue };
            if !metadata.is_dir() && !is_gguf(&entry.path()) {
                continue;
            }
            listing.models.push(LocalModel {
                name: name.to_owned(),
                path: deploy_path(&entry.path()),
                source: source.clone(),
                bytes: measure(&resolved).bytes,
                in_use: self.in_use.path(&resolved),
                deletable: *source == Source::Managed && ModelName::parse(name).is_ok(),
                last_modified_at: metadata.modified().map_err(fail)?,
            });
        }
        listing.models[from..].sort_by(|a, b| a.name.cmp(&b.name));
        Ok(())
    }

    /// Deletes a managed model.
    ///
    /// # Errors
    /// `NotFound`, `Conflict` when something runs from it, and when the disk fails.
    pub async fn delete(&self, name: ModelName) -> Result<(), FilesError> {
        let models = self.clone();
        blocking(move || models.delete_now(&name)).await
    }

    fn delete_now(&self, name: &ModelName) -> Result<(), FilesError> {
        let fail = |e| FilesError::io("deleting a model", e);
        let missing = || FilesError::NotFound(format!("there is no local model {name} on this node"));
        let path = self.managed.join(name.as_str());
        match fs::symlink_metadata(&path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Err(missing()),
            other => other.map_err(fail)?,
        };
        let resolved = fs::canonicalize(&path).unwrap_or_else(|_| path.clone());
        let used = || FilesError::Conflict(format!("the model {name} is in use on this node"));
        if self.in_use.path(&resolved) {
            return Err(used());
        }
        // Out of everybody's sight first, so that nobody finds half of it.
        let doomed = Workspace::create(&self.managed, "deleted")?;
        let aside = doomed.path().join("model");
        match fs::rename(&path, &aside) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Err(missing()),
            other => other.map_err(fail)?,
        }
        if self.in_use.path(&resolved) {
            let _ = fs::rename(&aside, &path);
            return Err(used());
        }
        doomed.remove();
        sync_directory(&self.managed).map_err(fail)
    }

    /// The path of a model that a deployment names, with links resolved, if it may be served from there.
    ///
    /// # Errors
    /// `Invalid` when it leads outside the allowed directories, `NotFound` when nothing is there.
    pub async fn check(&self, path: PathBuf) -> Result<PathBuf, FilesError> {
        let models = self.clone();
        blocking(move || models.check_now(&path)).await
    }

    fn check_now(&self, path: &Path) -> Result<PathBuf, FilesError> {
        let refuse = || {
            FilesError::Invalid(format!("the path {} lies outside the model directories of this node", path.display()))
        };
        let allowed = std::iter::once(&self.managed).chain(&self.directories);
        let resolved = match fs::canonicalize(path) {
            Ok(resolved) => resolved,
            // Nobody learns here what else there is on the machine.
            Err(_) if path.is_absolute() && allowed.clone().any(|directory| plainly_below(path, directory)) => {
                return Err(FilesError::NotFound(format!("there is no model at {} on this node", path.display())));
            }
            Err(_) => return Err(refuse()),
        };
        let roots: Vec<PathBuf> = allowed.filter_map(|directory| fs::canonicalize(directory).ok()).collect();
        let inside = path.is_absolute() && roots.iter().any(|root| resolved.starts_with(root) && resolved != *root);
        let staged = fs::canonicalize(self.managed.join(STAGING)).is_ok_and(|staging| resolved.starts_with(staging));
        if inside && !staged { Ok(resolved) } else { Err(refuse()) }
    }
}

fn plainly_below(path: &Path, directory: &Path) -> bool {
    let plain = path.components().all(|part| !matches!(part, std::path::Component::ParentDir));
    plain && path.starts_with(directory)
}

fn is_gguf(path: &Path) -> bool {
    path.extension().is_some_and(|extension| extension.eq_ignore_ascii_case(OsStr::new("gguf")))
}

/// What a deployment names to serve a model: its directory, or the file itself where that is a single GGUF.
pub(super) fn deploy_path(model: &Path) -> PathBuf {
    let Ok(entries) = fs::read_dir(model) else { return model.to_owned() };
    let mut files = entries.take(MOST_ENTRIES).filter_map(Result::ok).map(|entry| entry.path());
    let first = files.find(|path| is_gguf(path));
    match first {
        Some(only) if only.is_file() && !files.any(|path| is_gguf(&path)) => only,
        _ => model.to_owned(),
    }
}

/// What a person should know about a model that has just come.
pub(super) fn warnings(model: &Path) -> Vec<String> {
    if measure(model).files == 0 {
        return vec!["the model is empty: it holds no files".to_owned()];
    }
    let Ok(entries) = fs::read_dir(model) else { return Vec::new() };
    let names: Vec<PathBuf> = entries.take(MOST_ENTRIES).filter_map(Result::ok).map(|e| e.file_name().into()).collect();
    let has =
        |extension: &str| names.iter().any(|name| name.extension().is_some_and(|e| e.eq_ignore_ascii_case(extension)));
    let gguf = has("gguf");
    let mut warnings = Vec::new();
    if !gguf && !names.iter().any(|name| name == Path::new("config.json")) {
        warnings.push("there is no config.json at its root".to_owned());
    }
    if !gguf && !["safetensors", "bin", "pt", "pth"].iter().any(|extension| has(extension)) {
        warnings.push("there are no weights at its root".to_owned());
    }
    warnings
}

#[cfg(test)]
mod tests {
    use std::os::unix::ffi::OsStrExt;
    use std::os::unix::fs::symlink;

    use tempfile::TempDir;

    use super::super::error::ErrorKind;
    use super::super::testing::Running;
    use super::*;

    struct Scene {
        home: TempDir,
    }

    impl Scene {
        fn new() -> Self {
            let home = tempfile::tempdir().unwrap();
            for (path, length) in [
                ("managed/m/w.bin", 10),
                ("managed/.tmp/upload-1/x", 1),
                ("dir/d/w.bin", 20),
                ("dir/f.gguf", 30),
                ("dir/one/q.GGUF", 5),
                ("dir/one/readme", 1),
                ("dir/two/a.gguf", 1),
                ("dir/two/b.gguf", 1),
                ("dir/notes.txt", 1),
                ("other/secret", 1),
            ] {
                let path = home.path().join(path);
                fs::create_dir_all(path.parent().unwrap()).unwrap();
                fs::write(path, vec![0; length]).unwrap();
            }
            Self { home }
        }

        fn path(&self, path: &str) -> PathBuf {
            fs::canonicalize(self.home.path()).unwrap().join(path)
        }

        fn models(&self, in_use: Running) -> LocalModels {
            LocalModels::new(self.path("managed"), vec![self.path("dir"), self.path("none")], Arc::new(in_use))
        }
    }

    fn name(text: &str) -> ModelName {
        ModelName::parse(text).unwrap()
    }

    #[tokio::test]
    async fn models_are_listed_with_what_a_deployment_names() {
        let scene = Scene::new();
        symlink(scene.path("other"), scene.path("dir/evil")).unwrap();
        symlink(scene.path("managed/m"), scene.path("dir/alias")).unwrap();
        fs::create_dir(scene.path("dir").join(OsStr::from_bytes(b"\xff"))).unwrap();
        let running = Running { paths: vec![scene.path("dir/one/q.GGUF")], ..Running::default() };
        let listing = scene.models(running).list().await.unwrap();
        let told: Vec<_> =
            listing.models.iter().map(|m| (m.name.as_str(), m.path.clone(), m.bytes, m.in_use, m.deletable)).collect();
        assert_eq!(
            told,
            [
                ("m", scene.path("managed/m"), 10, false, true),
                ("alias", scene.path("dir/alias"), 10, false, false),
                ("d", scene.path("dir/d"), 20, false, false),
                ("f.gguf", scene.path("dir/f.gguf"), 30, false, false),
                ("one", scene.path("dir/one/q.GGUF"), 6, true, false),
                ("two", scene.path("dir/two"), 2, false, false),
            ]
        );
        assert_eq!(listing.skipped, 1);
        assert_eq!(listing.models[0].source, Source::Managed);
        assert_eq!(listing.models[1].source, Source::Directory(scene.path("dir")));
    }

    #[tokio::test]
    async fn only_managed_models_that_nobody_uses_are_deleted() {
        let scene = Scene::new();
        let used = scene.models(Running { paths: vec![scene.path("managed/m/w.bin")], ..Running::default() });
        assert_eq!(used.delete(name("m")).await.unwrap_err().kind(), ErrorKind::Conflict);
        assert!(scene.path("managed/m/w.bin").exists());
        let models = scene.models(Running::default());
        assert_eq!(models.delete(name("d")).await.unwrap_err().kind(), ErrorKind::NotFound);
        models.delete(name("m")).await.unwrap();
        assert!(!scene.path("managed/m").exists());
        assert_eq!(fs::read_dir(scene.path("managed/.tmp")).unwrap().count(), 1, "nothing but the upload is left");
    }

    #[tokio::test]
    async fn deleting_a_link_leaves_what_it_leads_to() {
        let scene = Scene::new();
        symlink(scene.path("other"), scene.path("managed/link")).unwrap();
        scene.models(Running::default()).delete(name("link")).await.unwrap();
        assert!(scene.path("other/secret").exists() && !scene.path("managed/link").exists());
    }

    #[tokio::test]
    async fn a_deployment_is_served_from_allowed_directories_only() {
        let scene = Scene::new();
        symlink(scene.path("other/secret"), scene.path("managed/out")).unwrap();
        symlink(scene.path("dir/d"), scene.path("other/in")).unwrap();
        let models = scene.models(Running::default());
        assert_eq!(models.allowed_directories().await.unwrap(), [scene.path("managed"), scene.path("dir")]);
        for (good, resolved) in [
            ("managed/m", "managed/m"),
            ("dir/f.gguf", "dir/f.gguf"),
            ("other/in", "dir/d"),
            ("dir/d/../one", "dir/one"),
        ] {
            assert_eq!(models.check(scene.path(good)).await.unwrap(), scene.path(resolved));
        }
        for bad in [
            "other/secret",
            "managed/out",
            "managed/../other/secret",
            "managed",
            "dir",
            "managed/.tmp/upload-1/x",
            "other/none",
            "dir/../other/none",
            "/etc/passwd",
        ] {
            assert_eq!(models.check(scene.path(bad)).await.unwrap_err().kind(), ErrorKind::Invalid, "{bad}");
        }
        assert_eq!(models.check("Cargo.toml".into()).await.unwrap_err().kind(), ErrorKind::Invalid);
        assert_eq!(models.check(scene.path("managed/none")).await.unwrap_err().kind(), ErrorKind::NotFound);
    }

    #[test]
    fn a_model_without_weights_or_configuration_is_warned_of() {
        let scene = Scene::new();
        assert_eq!(warnings(&scene.path("dir/one")), Vec::<String>::new());
        assert_eq!(warnings(&scene.path("managed/m")).len(), 1);
        assert_eq!(warnings(&scene.path("other")).len(), 2);
        fs::create_dir(scene.path("empty")).unwrap();
        assert!(warnings(&scene.path("empty"))[0].contains("empty"));
    }
}
