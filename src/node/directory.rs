//! The data directory, which is for the node's own user alone.

use std::fs::{self, DirBuilder, Metadata, Permissions};
use std::io;
use std::os::unix::fs::{DirBuilderExt, MetadataExt, PermissionsExt};
use std::path::Path;

use muster_cluster::storage::make_directory;

use crate::exit::Failure;

/// What lies in a directory that nobody but this program has made: a node's, or that of `muster dev`.
const SIGNS: [&str; 4] = ["node.json", "raft", "muster.sock", "node-1"];

/// Makes the directory for its owner alone, and closes one to others that is there already and open to them.
pub fn own_directory(path: &Path) -> Result<(), Failure> {
    let doing = |error: io::Error| Failure::other(format!("{}: {error}", path.display()));
    let durable = |path: &Path| make_directory(path).map_err(|error| Failure::other(error.to_string()));
    if let Some(parent) = path.parent().filter(|parent| !parent.as_os_str().is_empty()) {
        durable(parent)?;
    }
    match DirBuilder::new().mode(0o700).create(path) {
        Err(error) if error.kind() != io::ErrorKind::AlreadyExists => return Err(doing(error)),
        _ => {}
    }
    let found = fs::metadata(path).map_err(doing)?;
    if is_open(&found) && found.uid() == rustix::process::geteuid().as_raw() {
        close(path).map_err(doing)?;
    }
    durable(path)
}

fn is_open(found: &Metadata) -> bool {
    found.is_dir() && found.mode() & 0o077 != 0
}

/// Takes the others' rights. A directory that holds other things may be open for a reason, as `/` or somebody's home.
fn close(path: &Path) -> io::Result<()> {
    let empty = fs::read_dir(path)?.next().is_none();
    if !empty && !SIGNS.iter().any(|sign| path.join(sign).exists()) {
        tracing::warn!(directory = %path.display(), "the data directory is open to others, and not only a node's");
        return Ok(());
    }
    fs::set_permissions(path, Permissions::from_mode(0o700))?;
    tracing::warn!(directory = %path.display(), "the data directory was open to others; now it is its owner's alone");
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::scratch::Scratch;

    fn mode(path: &Path) -> u32 {
        fs::metadata(path).expect("it is there").mode() & 0o777
    }

    fn open(path: &Path) {
        fs::set_permissions(path, Permissions::from_mode(0o755)).expect("it is ours");
    }

    #[test]
    fn the_data_directory_is_its_owners_alone() {
        let scratch = Scratch::new("own");
        let directory = scratch.path().join("a/b");
        own_directory(&directory).expect("it is made");
        assert_eq!(mode(&directory), 0o700);
        for sign in ["", "node.json"] {
            if !sign.is_empty() {
                fs::write(directory.join(sign), "").expect("writes");
            }
            open(&directory);
            own_directory(&directory).expect("it is there");
            assert_eq!(mode(&directory), 0o700, "with {sign:?}");
        }
    }

    #[test]
    fn what_is_not_only_a_nodes_stays_open() {
        let scratch = Scratch::new("others");
        fs::write(scratch.path().join("notes"), "").expect("writes");
        open(scratch.path());
        own_directory(scratch.path()).expect("it is there");
        assert_eq!(mode(scratch.path()), 0o755);
    }
}
