//! The socket in the data directory, through which root and the node's own user administer it.

use std::io;
use std::os::unix::fs::{DirBuilderExt, MetadataExt, PermissionsExt};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};

use sha2::{Digest, Sha256};
use tokio::net::UnixListener;

use crate::exit::Failure;

/// The longest path that a socket's address holds.
const PATH_LIMIT: usize = 107;

/// Where the socket of a data directory is. A path that is too long for a socket is replaced by a short one of the user's.
pub fn socket_path(data_dir: &Path) -> PathBuf {
    let path = data_dir.join("muster.sock");
    if path.as_os_str().len() <= PATH_LIMIT {
        return path;
    }
    let digest = Sha256::digest(path.as_os_str().as_encoded_bytes());
    let name: String = digest[..8].iter().map(|byte| format!("{byte:02x}")).collect();
    short_directory().join(format!("{name}.sock"))
}

fn short_directory() -> PathBuf {
    PathBuf::from(format!("/tmp/muster-{}", rustix::process::geteuid().as_raw()))
}

/// Makes the short directory, and sees to it that nobody else owns it or may look inside.
fn own_short_directory() -> io::Result<()> {
    let path = short_directory();
    match std::fs::DirBuilder::new().mode(0o700).create(&path) {
        Err(error) if error.kind() != io::ErrorKind::AlreadyExists => return Err(error),
        _ => {}
    }
    let found = std::fs::symlink_metadata(&path)?;
    let own = found.is_dir() && found.uid() == rustix::process::geteuid().as_raw() && found.mode() & 0o077 == 0;
    if own { Ok(()) } else { Err(io::Error::other(format!("{} belongs to somebody else", path.display()))) }
}

/// Listens there. A socket that a dead process left behind is replaced; a living one is not.
pub fn bind(data_dir: &Path) -> Result<UnixListener, Failure> {
    let path = socket_path(data_dir);
    let doing = |error: io::Error| Failure::other(format!("{} does not open: {error}", path.display()));
    if path.parent() != Some(data_dir) {
        own_short_directory().map_err(doing)?;
    }
    if UnixStream::connect(&path).is_ok() {
        return Err(Failure::other(format!("another process serves {}", data_dir.display())));
    }
    match std::fs::remove_file(&path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(doing(error)),
        _ => {}
    }
    let listener = UnixListener::bind(&path).map_err(doing)?;
    // Between these two lines somebody else could connect; the kernel's word on who it is keeps them out all the same.
    std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o600)).map_err(doing)?;
    Ok(listener)
}
