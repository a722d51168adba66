//! What a unit sees of the model files of its node.

use std::path::{Path, PathBuf};
use std::time::Duration;

use muster_cluster::rows::{DeploymentSpec, Failure};

use super::order::failure;
use crate::files::ErrorKind;
use crate::host::files::OwnFiles;
use crate::host::files::{is_local, models};
use crate::runtime::{Mount, RuntimeKind};

/// How long to wait until the node works with its files.
const PATIENCE: Duration = Duration::from_secs(10);

/// Where containers see the hub's home directory, and the packages.
const HF_HOME: &str = "/root/.cache/huggingface";
const PACKAGES: &str = "/packages";

/// What a unit sees.
#[derive(Debug, Default)]
pub(super) struct Sight {
    /// What a container sees of the machine.
    pub mounts: Vec<Mount>,
    /// The hub's home directory for a process, which sees the machine as it is.
    pub hf_home: Option<PathBuf>,
    /// Where packages lie on the machine, if the unit sees them elsewhere.
    packages: Option<PathBuf>,
}

impl Sight {
    /// An argument as the unit has to be told it.
    pub fn inside(&self, argument: String) -> String {
        let Some(packages) = self.packages.as_deref().and_then(Path::to_str) else { return argument };
        match argument.strip_prefix(packages) {
            Some(rest) if rest.is_empty() || rest.starts_with('/') => format!("{PACKAGES}{rest}"),
            _ => argument,
        }
    }
}

/// Why a unit can not be launched, and whether trying again is in vain.
pub(super) struct Unseen {
    pub failure: Failure,
    pub hopeless: bool,
}

/// Checks that the unit may use the paths that its specification names, and says what it sees.
pub(super) async fn look(files: &OwnFiles, spec: &DeploymentSpec, runtime: RuntimeKind) -> Result<Sight, Unseen> {
    for path in models(spec).filter(|model| is_local(model)) {
        files.check(PathBuf::from(path), PATIENCE).await.map_err(|refused| match refused.kind {
            ErrorKind::Busy | ErrorKind::Own => {
                Unseen { failure: failure("files_unavailable", refused.message), hopeless: false }
            }
            _ => Unseen { failure: failure("unsuitable", refused.message), hopeless: true },
        })?;
    }
    let config = files.config();
    if runtime == RuntimeKind::Process {
        return Ok(Sight { hf_home: Some(config.hf_home.clone()), ..Sight::default() });
    }
    let mount = |outside: &Path, inside: &Path, read_only| Mount {
        outside: outside.to_owned(),
        inside: inside.to_owned(),
        read_only,
    };
    if let Err(error) = tokio::fs::create_dir_all(&config.hf_home).await {
        let why = format!("the directory {} can not be made: {error}", config.hf_home.display());
        return Err(Unseen { failure: failure("files_unavailable", why), hopeless: false });
    }
    let mut mounts = vec![mount(&config.hf_home, Path::new(HF_HOME), false)];
    let has_packages = tokio::fs::metadata(&config.packages).await.is_ok_and(|found| found.is_dir());
    if has_packages {
        mounts.push(mount(&config.packages, Path::new(PACKAGES), true));
    }
    let directories = files.allowed_directories().await;
    mounts.extend(directories.iter().map(|directory| mount(directory, directory, true)));
    Ok(Sight { mounts, hf_home: None, packages: has_packages.then(|| config.packages.clone()) })
}

#[cfg(test)]
mod tests {
    use muster_cluster::rows::LoraModule;

    use super::*;
    use crate::files::{FilesConfig, Limits, PullPolicy};

    fn scene() -> (tempfile::TempDir, OwnFiles) {
        let home = tempfile::tempdir().unwrap();
        let config = FilesConfig {
            hf_home: home.path().join("hf"),
            models: home.path().join("models"),
            model_directories: vec![home.path().join("more"), home.path().join("missing")],
            packages: home.path().join("packages"),
            pulls: PullPolicy::default(),
            limits: Limits { keep_free: 0, ..Limits::default() },
        };
        for directory in ["more/m", "elsewhere"] {
            std::fs::create_dir_all(home.path().join(directory)).unwrap();
        }
        (home, OwnFiles::new(config))
    }

    fn spec(model: &str, adapter: &str) -> DeploymentSpec {
        let module = LoraModule { name: "a".to_owned(), path: adapter.to_owned() };
        DeploymentSpec { model_name: model.to_owned(), lora_modules: vec![module], ..DeploymentSpec::default() }
    }

    #[tokio::test]
    async fn a_container_sees_the_cache_the_packages_and_the_allowed_directories() {
        let (home, files) = scene();
        files.open_for_tests().await;
        let sight = look(&files, &spec("org/m", "org/a"), RuntimeKind::Docker).await.ok().unwrap();
        let at = |path: &str| home.path().join(path);
        let mount =
            |outside: PathBuf, inside: &Path, read_only| Mount { outside, inside: inside.to_owned(), read_only };
        assert_eq!(
            sight.mounts,
            [
                mount(at("hf"), Path::new("/root/.cache/huggingface"), false),
                mount(at("packages"), Path::new("/packages"), true),
                mount(at("models"), &at("models"), true),
                mount(at("more"), &at("more"), true),
            ]
        );
        assert!(at("hf").is_dir() && sight.hf_home.is_none());
        let plugin = at("packages/0123/x.py").to_str().unwrap().to_owned();
        assert_eq!(sight.inside(plugin), "/packages/0123/x.py");
        let other = at("packages-of-somebody/x.py").to_str().unwrap().to_owned();
        assert_eq!(sight.inside(other.clone()), other);
    }

    #[tokio::test]
    async fn a_process_sees_the_machine_as_it_is() {
        let (home, files) = scene();
        files.open_for_tests().await;
        let sight = look(&files, &spec("org/m", "org/a"), RuntimeKind::Process).await.ok().unwrap();
        assert_eq!((sight.mounts.len(), sight.hf_home.clone()), (0, Some(home.path().join("hf"))));
        let path = home.path().join("packages/x").to_str().unwrap().to_owned();
        assert_eq!(sight.inside(path.clone()), path);
    }

    #[tokio::test]
    async fn paths_outside_the_allowed_directories_are_never_launched() {
        let (home, files) = scene();
        files.open_for_tests().await;
        let text = |path: &str| home.path().join(path).to_str().unwrap().to_owned();
        let (good, outside) = (text("more/m"), text("elsewhere"));
        assert!(look(&files, &spec(&good, &good), RuntimeKind::Process).await.is_ok());
        for (model, adapter) in
            [(&outside, &good), (&good, &outside), (&text("more/none"), &good), (&"~/m".to_owned(), &good)]
        {
            let unseen = look(&files, &spec(model, adapter), RuntimeKind::Process).await.err().unwrap();
            assert_eq!((unseen.failure.code.as_str(), unseen.hopeless), ("unsuitable", true), "{model} {adapter}");
        }
    }
}
