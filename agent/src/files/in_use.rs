//! What runs on this node, as far as files are concerned.

use std::path::Path;

/// Answers whether something runs from a file. Whoever supervises the engines implements it; answers come from memory.
pub trait InUse: Send + Sync + 'static {
    /// Whether a placement serves this model of the hub, named like `org/model`.
    fn repo(&self, name: &str) -> bool;

    /// Whether a placement uses this path, or anything below it. Links in it have been resolved.
    fn path(&self, path: &Path) -> bool;
}
