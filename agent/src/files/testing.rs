//! Stand-ins for tests.

use std::path::{Path, PathBuf};

use super::in_use::InUse;

/// Placements that run.
#[derive(Debug, Default)]
pub(super) struct Running {
    pub(super) repos: Vec<String>,
    pub(super) paths: Vec<PathBuf>,
}

impl InUse for Running {
    fn repo(&self, name: &str) -> bool {
        self.repos.iter().any(|repo| repo == name)
    }

    fn path(&self, path: &Path) -> bool {
        self.paths.iter().any(|used| used.starts_with(path))
    }
}
