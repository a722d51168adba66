//! How large a directory is, by a walk that ends.

use std::collections::HashSet;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use walkdir::WalkDir;

/// How many entries a walk looks at, at most.
const MOST_ENTRIES: usize = 200_000;

/// How deep it goes. Anything that we wrote is shallower.
const DEEPEST: usize = 64;

/// What a walk has found.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Measure {
    /// Bytes of all files, each counted once; links are not followed.
    pub(super) bytes: u64,
    /// How many files.
    pub(super) files: u64,
}

/// Adds up the files below a path, or the file itself. What can not be read counts nothing; of a tree with more than 200,000
/// entries only those are counted.
pub(super) fn measure(path: &Path) -> Measure {
    let mut found = Measure::default();
    let mut shared = HashSet::new();
    let entries = WalkDir::new(path).follow_links(false).follow_root_links(true).max_depth(DEEPEST).max_open(16);
    for entry in entries.into_iter().take(MOST_ENTRIES).filter_map(Result::ok) {
        let Ok(metadata) = entry.metadata() else { continue };
        if !metadata.is_file() {
            continue;
        }
        // A file with several names takes its place once.
        if metadata.nlink() > 1 && !shared.insert((metadata.dev(), metadata.ino())) {
            continue;
        }
        found.bytes = found.bytes.saturating_add(metadata.len());
        found.files += 1;
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_counts_once_however_many_names_it_has() {
        let home = tempfile::tempdir().unwrap();
        std::fs::create_dir(home.path().join("sub")).unwrap();
        std::fs::write(home.path().join("a"), [0; 10]).unwrap();
        std::fs::hard_link(home.path().join("a"), home.path().join("sub/b")).unwrap();
        std::os::unix::fs::symlink("a", home.path().join("c")).unwrap();
        std::os::unix::fs::symlink("..", home.path().join("sub/loop")).unwrap();
        assert_eq!(measure(home.path()), Measure { bytes: 10, files: 1 });
        assert_eq!(measure(&home.path().join("a")), Measure { bytes: 10, files: 1 });
        assert_eq!(measure(&home.path().join("none")), Measure::default());
    }
}
