//! A directory for one test.

use std::path::{Path, PathBuf};

/// A new directory, which goes with this.
pub struct Scratch(PathBuf);

impl Scratch {
    /// Makes it. The name is that of the test.
    pub fn new(name: &str) -> Self {
        let path = std::env::temp_dir().join(format!("muster-{name}-{}", std::process::id()));
        std::fs::create_dir(&path).expect("nobody has it");
        Self(path)
    }

    /// Where it is.
    pub fn path(&self) -> &Path {
        &self.0
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}
