//! Which files the placements of this node need.

use std::collections::HashSet;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use muster_cluster::ids::NodeId;
use muster_cluster::rows::DeploymentSpec;
use muster_cluster::state::{Damaged, Published, View};

use crate::files::InUse;

/// What the placements that hold something on this node run from. While the node does not know what it holds, everything is
/// taken to be in use.
#[derive(Default)]
pub(crate) struct Occupied(Mutex<Option<Sight>>);

struct Sight {
    published: Arc<Published>,
    node: NodeId,
    /// What was found, and at which index of the state.
    found: Option<(u64, Arc<Needs>)>,
}

/// What placements need.
#[derive(Debug, Default)]
struct Needs {
    repos: HashSet<String>,
    /// With their links resolved, where they are there.
    paths: Vec<PathBuf>,
}

impl Needs {
    fn add(&mut self, spec: &DeploymentSpec) {
        for model in models(spec) {
            if is_local(model) {
                let path = Path::new(model);
                self.paths.push(path.canonicalize().unwrap_or_else(|_| path.to_owned()));
            } else {
                self.repos.insert(model.to_owned());
            }
        }
    }

    fn of(view: &View, node: NodeId) -> Result<Self, Damaged> {
        let mut needs = Self::default();
        for held in view.held_on(node)? {
            if let Some(spec) = view.deployment(held.placement.deployment)?.and_then(|deployment| deployment.row.spec) {
                needs.add(&spec);
            }
        }
        Ok(needs)
    }
}

/// The model of a specification and its adapters: paths of the machine, or names of the hub.
pub(crate) fn models(spec: &DeploymentSpec) -> impl Iterator<Item = &str> {
    std::iter::once(spec.model_name.as_str()).chain(spec.lora_modules.iter().map(|module| module.path.as_str()))
}

/// Whether this is a path of the machine, and no name of the hub.
pub(crate) fn is_local(model: &str) -> bool {
    model.starts_with(['/', '~'])
}

impl Occupied {
    fn sight(&self) -> MutexGuard<'_, Option<Sight>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// From now on it is known what this node holds.
    pub(super) fn see(&self, published: Arc<Published>, node: NodeId) {
        *self.sight() = Some(Sight { published, node, found: None });
    }

    /// From now on it is not known any more.
    pub(super) fn lose_sight(&self) {
        *self.sight() = None;
    }

    /// `None`: nobody knows.
    fn needs(&self) -> Option<Arc<Needs>> {
        let mut guard = self.sight();
        let sight = guard.as_mut()?;
        let view = sight.published.view();
        if let Some((index, needs)) = &sight.found
            && *index == view.index()
        {
            return Some(Arc::clone(needs));
        }
        let needs = match Needs::of(&view, sight.node) {
            Ok(needs) => Arc::new(needs),
            Err(damaged) => {
                tracing::error!(%damaged, "what runs here can not be read; all model files are taken to be in use");
                return None;
            }
        };
        sight.found = Some((view.index(), Arc::clone(&needs)));
        Some(needs)
    }
}

impl InUse for Occupied {
    fn repo(&self, name: &str) -> bool {
        self.needs().is_none_or(|needs| needs.repos.contains(name))
    }

    fn path(&self, path: &Path) -> bool {
        self.needs().is_none_or(|needs| needs.paths.iter().any(|used| used.starts_with(path)))
    }
}

#[cfg(test)]
mod tests {
    use muster_cluster::rows::LoraModule;

    use super::*;

    #[test]
    fn a_specification_needs_its_model_and_its_adapters() {
        let home = tempfile::tempdir().unwrap();
        let (real, link) = (home.path().join("real"), home.path().join("link"));
        std::fs::create_dir(&real).unwrap();
        std::os::unix::fs::symlink(&real, &link).unwrap();
        let module = |path: &str| LoraModule { name: "a".to_owned(), path: path.to_owned() };
        let spec = DeploymentSpec {
            model_name: link.to_str().unwrap().to_owned(),
            lora_modules: vec![module("org/adapter"), module("/no/where")],
            ..DeploymentSpec::default()
        };
        let mut needs = Needs::default();
        needs.add(&spec);
        assert_eq!(needs.paths, [real.canonicalize().unwrap(), PathBuf::from("/no/where")]);
        assert_eq!(needs.repos, HashSet::from(["org/adapter".to_owned()]));
    }

    #[test]
    fn while_nothing_is_known_everything_is_in_use() {
        let occupied = Occupied::default();
        assert!(occupied.repo("org/m") && occupied.path(Path::new("/models/m")));
    }
}
