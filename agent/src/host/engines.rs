//! What can run engines on this machine: the daemons of containers and the programs of processes, and whether they can be
//! used now.

use std::collections::{BTreeMap, HashMap};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use arc_swap::ArcSwap;
use muster_cluster::rows::NodeFacts;
use tokio::sync::watch;

use super::HostOptions;
use crate::runtime::container::{
    CDI_DIRECTORIES, ContainerOptions, ContainerRuntime, Daemon, Family, Flavour, LOCAL_REPOSITORY, Listen,
};
use crate::runtime::process::{ProcessOptions, ProcessRuntime, Program};
use crate::runtime::{EngineKind, Owner, Runtime, RuntimeKind};

/// The directory of containers' sockets in the data directory.
const PLACES: &str = "containers";

/// How often is looked which runtimes can be used.
const LOOK: Duration = Duration::from_secs(10);

/// How long a node's start waits for a daemon that does not answer. It is looked for again.
const FIRST_LOOK: Duration = Duration::from_secs(5);

/// Which runtimes a node has, by its configuration.
pub(super) struct Engines {
    programs: HashMap<EngineKind, Program>,
    daemons: Vec<Arc<Daemon>>,
    family: Family,
    containers: ArcSwap<Vec<Arc<ContainerRuntime>>>,
}

impl std::fmt::Debug for Engines {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let daemons: Vec<_> = self.daemons.iter().map(|daemon| daemon.configured()).collect();
        f.debug_struct("Engines").field("daemons", &daemons).field("programs", &self.programs).finish_non_exhaustive()
    }
}

/// What a path leads to. It may not be there yet.
fn target(path: &Path) -> PathBuf {
    if let Ok(real) = path.canonicalize() {
        return real;
    }
    if let Ok(link) = path.read_link() {
        return path.parent().map_or_else(|| link.clone(), |parent| parent.join(&link));
    }
    let parent = path.parent().and_then(|parent| parent.canonicalize().ok());
    match (parent, path.file_name()) {
        (Some(parent), Some(name)) => parent.join(name),
        _ => path.to_owned(),
    }
}

/// The sockets of both daemons, none of them twice. One that is a link to the other's is left out: where Podman stands in for
/// Docker, Docker's socket is such a link.
fn each_once(docker: &[PathBuf], podman: &[PathBuf]) -> (Vec<PathBuf>, Vec<PathBuf>) {
    let podmans: Vec<_> = podman.iter().map(|path| target(path)).collect();
    let is_link = |path: &Path| path.symlink_metadata().is_ok_and(|found| found.is_symlink());
    let of_docker: Vec<_> =
        docker.iter().filter(|path| !(is_link(path) && podmans.contains(&target(path)))).cloned().collect();
    let dockers: Vec<_> = of_docker.iter().map(|path| target(path)).collect();
    let of_podman = podman.iter().filter(|path| !dockers.contains(&target(path))).cloned().collect();
    (of_docker, of_podman)
}

impl Engines {
    pub(super) fn new(options: &HostOptions) -> Self {
        let (docker, podman) = each_once(&options.docker, &options.podman);
        let daemons = [(Flavour::Docker, docker), (Flavour::Podman, podman)].into_iter();
        let daemons = daemons.filter(|(_, sockets)| !sockets.is_empty());
        let repositories = options.images.values().map(String::as_str).chain([LOCAL_REPOSITORY]);
        Self {
            programs: options.programs.clone(),
            daemons: daemons.map(|(flavour, sockets)| Arc::new(Daemon::new(flavour, sockets))).collect(),
            family: Family::new(repositories),
            containers: ArcSwap::default(),
        }
    }

    /// The runtimes of containers; none until it is known whose they are.
    pub(super) fn containers(&self) -> Arc<Vec<Arc<ContainerRuntime>>> {
        self.containers.load_full()
    }

    /// The images that are this node's business.
    pub(super) fn family(&self) -> &Family {
        &self.family
    }

    /// All runtimes of this owner, whether they can be used now or not: units may run in one that does not answer.
    pub(super) fn runtimes(&self, owner: Owner, options: &HostOptions) -> BTreeMap<RuntimeKind, Arc<dyn Runtime>> {
        let mut runtimes: BTreeMap<RuntimeKind, Arc<dyn Runtime>> = BTreeMap::new();
        // What an earlier configuration has started can run without its program being named any more.
        if !options.programs.is_empty() || ProcessRuntime::was_used(&options.directory) {
            let HostOptions { directory, programs, user, .. } = options.clone();
            let runtime = ProcessRuntime::new(owner, ProcessOptions { directory, programs, user });
            runtimes.insert(RuntimeKind::Process, Arc::new(runtime));
        }
        let mut containers = Vec::new();
        for daemon in &self.daemons {
            let other = self.daemons.iter().find(|other| other.configured() != daemon.configured()).cloned();
            let options = ContainerOptions {
                owner,
                listen: Listen::Socket,
                places: options.directory.join(PLACES),
                short_places: options.short_places.clone(),
                cdi_directories: CDI_DIRECTORIES.map(PathBuf::from).to_vec(),
            };
            let runtime = Arc::new(ContainerRuntime::new(Arc::clone(daemon), other, options));
            runtimes.insert(runtime.kind(), Arc::clone(&runtime) as Arc<dyn Runtime>);
            containers.push(runtime);
        }
        self.containers.store(Arc::new(containers));
        runtimes
    }

    /// The runtimes that can be used now, as the fleet is told.
    async fn usable(&self) -> Vec<String> {
        let pings = self.daemons.iter().map(|daemon| async move {
            let answer = daemon.ping().await;
            if let Err(error) = &answer {
                tracing::debug!(%error, "a runtime is not used");
            }
            answer.is_ok().then(|| daemon.configured().kind())
        });
        let answers = futures_util::future::join_all(pings).await;
        let process = (!self.programs.is_empty()).then_some(RuntimeKind::Process);
        answers.into_iter().chain([process]).flatten().map(|kind| kind.name().to_owned()).collect()
    }

    /// What can be used when a node starts. A daemon that hangs is not waited for long.
    pub(super) async fn at_first(&self) -> Vec<String> {
        match tokio::time::timeout(FIRST_LOOK, self.usable()).await {
            Ok(usable) => usable,
            Err(_) => (!self.programs.is_empty()).then(|| RuntimeKind::Process.name().to_owned()).into_iter().collect(),
        }
    }

    /// The engines that run as processes, as the fleet is told.
    pub(super) fn processes(&self) -> Vec<String> {
        let mut engines: Vec<_> = self.programs.keys().map(|engine| engine.name().to_owned()).collect();
        engines.sort_unstable();
        engines
    }

    /// Tells the fleet which runtimes can be used, whenever that changes. It never returns.
    pub(super) async fn keep_telling(self: Arc<Self>, told: watch::Sender<NodeFacts>) {
        loop {
            let usable = self.usable().await;
            told.send_if_modified(|facts| {
                if facts.runtimes == usable {
                    return false;
                }
                tracing::info!(runtimes = ?usable, "the runtimes of this node that can be used have changed");
                facts.runtimes = usable;
                true
            });
            tokio::time::sleep(LOOK).await;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn paths(paths: &[&PathBuf]) -> Vec<PathBuf> {
        paths.iter().map(|path| (*path).clone()).collect()
    }

    #[test]
    fn a_socket_that_is_both_is_used_once() {
        let directory = tempfile::tempdir().expect("a directory");
        let [docker, podman, link] = ["d.sock", "p.sock", "l.sock"].map(|name| directory.path().join(name));
        assert_eq!(each_once(&paths(&[&docker]), &paths(&[&podman])), (paths(&[&docker]), paths(&[&podman])));
        assert_eq!(each_once(&paths(&[&docker]), &paths(&[&docker])), (paths(&[&docker]), Vec::new()));
        let roundabout =
            directory.path().join("../").join(directory.path().file_name().expect("a name")).join("d.sock");
        assert_eq!(each_once(&paths(&[&docker]), &paths(&[&roundabout])).1, Vec::<PathBuf>::new());
        // Podman's stand-in for Docker's socket, before and after the service has made its own.
        std::os::unix::fs::symlink(&podman, &link).expect("a link");
        for _ in 0..2 {
            assert_eq!(each_once(&paths(&[&link]), &paths(&[&podman])), (Vec::new(), paths(&[&podman])));
            assert_eq!(each_once(&paths(&[&link]), &[]), (paths(&[&link]), Vec::new()));
            std::fs::write(&podman, "").expect("a file");
        }
    }
}
