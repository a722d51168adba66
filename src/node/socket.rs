//! The sockets in the data directory: one through which root and the node's own user administer it, one through which a
//! successor takes the node over.

use std::fs::{Metadata, symlink_metadata};
use std::io;
use std::os::unix::fs::{DirBuilderExt, MetadataExt, PermissionsExt};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};

use sha2::{Digest, Sha256};

use crate::exit::Failure;

/// The longest path that a socket's address holds.
const PATH_LIMIT: usize = 107;

/// A socket in the data directory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Socket {
    /// The administrator's.
    Local,
    /// The successor's.
    Handover,
}

impl Socket {
    fn name(self) -> &'static str {
        match self {
            Self::Local => "muster.sock",
            Self::Handover => "handover.sock",
        }
    }
}

/// Where a socket of a data directory is, for somebody who wants to use it: the directory of short paths must be nobody
/// else's, who could listen there in the node's place.
pub fn safe_socket_path(data_dir: &Path, socket: Socket) -> Result<PathBuf, Failure> {
    let path = socket_path(data_dir, socket);
    if path.parent() != Some(data_dir) {
        let directory = short_directory();
        // If there is none, there is no node, which whoever connects will notice.
        if symlink_metadata(&directory).is_ok_and(|found| !is_safe(&found)) {
            return Err(Failure::denied(format!("{} belongs to somebody else", directory.display())));
        }
    }
    Ok(path)
}

/// Whether only root or this user can put something there.
fn is_safe(directory: &Metadata) -> bool {
    let (owner, own) = (directory.uid(), rustix::process::geteuid().as_raw());
    directory.is_dir() && (owner == 0 || owner == own) && directory.mode() & 0o022 == 0
}

/// Where a socket of a data directory is. A path that is too long for a socket is replaced by a short one of the user's.
fn socket_path(data_dir: &Path, socket: Socket) -> PathBuf {
    let path = data_dir.join(socket.name());
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
    let found = symlink_metadata(&path)?;
    let own = found.is_dir() && found.uid() == rustix::process::geteuid().as_raw() && found.mode() & 0o077 == 0;
    if own { Ok(()) } else { Err(io::Error::other(format!("{} belongs to somebody else", path.display()))) }
}

/// The file of a socket that this process listens on.
#[derive(Debug)]
pub struct SocketFile {
    path: PathBuf,
    device: u64,
    inode: u64,
}

impl SocketFile {
    /// The file of a socket that this process has inherited.
    pub fn inherited(data_dir: &Path, socket: Socket) -> Result<Self, Failure> {
        let path = socket_path(data_dir, socket);
        Self::of(path.clone()).map_err(|error| Failure::other(format!("{} is not there: {error}", path.display())))
    }

    fn of(path: PathBuf) -> io::Result<Self> {
        let found = symlink_metadata(&path)?;
        Ok(Self { path, device: found.dev(), inode: found.ino() })
    }

    /// Removes it, unless something else is in its place. To be called while the listener is there: nobody else gets its inode.
    pub fn remove(self) {
        let own = |found: Metadata| (found.dev(), found.ino()) == (self.device, self.inode);
        if symlink_metadata(&self.path).is_ok_and(own)
            && let Err(error) = std::fs::remove_file(&self.path)
        {
            tracing::warn!(socket = %self.path.display(), %error, "the socket is left behind");
        }
    }
}

/// Listens there. A socket that a dead process left behind is replaced; a living one is not.
pub fn bind(data_dir: &Path, socket: Socket) -> Result<(UnixListener, SocketFile), Failure> {
    let path = socket_path(data_dir, socket);
    let doing = |error: io::Error| Failure::other(format!("{} does not open: {error}", path.display()));
    if path.parent() != Some(data_dir) {
        own_short_directory().map_err(doing)?;
    }
    if UnixStream::connect(&path).is_ok() {
        let advice = "stop it first, or have this one take its place with --take-over";
        return Err(Failure::other(format!("another process serves {}; {advice}", data_dir.display())));
    }
    match std::fs::remove_file(&path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(doing(error)),
        _ => {}
    }
    let listener = UnixListener::bind(&path).map_err(doing)?;
    listener.set_nonblocking(true).map_err(doing)?;
    // Between these two lines somebody else could connect; the kernel's word on who it is keeps them out all the same.
    std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o600)).map_err(doing)?;
    let file = SocketFile::of(path.clone()).map_err(doing)?;
    Ok((listener, file))
}

#[cfg(test)]
mod tests {
    use std::fs::{self, Permissions};

    use super::*;
    use crate::scratch::Scratch;

    #[test]
    fn only_the_own_file_is_removed() {
        let scratch = Scratch::new("socket");
        let path = scratch.path().join("muster.sock");
        let (_listener, file) = bind(scratch.path(), Socket::Local).expect("it listens");
        assert!(bind(scratch.path(), Socket::Local).is_err(), "somebody listens");
        fs::remove_file(&path).expect("it is there");
        let (_successor, later) = bind(scratch.path(), Socket::Local).expect("the place is free");
        file.remove();
        assert!(path.exists(), "it is the successor's");
        later.remove();
        assert!(!path.exists());
    }

    #[test]
    fn a_directory_that_others_can_write_to_is_not_safe() {
        let scratch = Scratch::new("unsafe");
        for (mode, safe) in [(0o700, true), (0o755, true), (0o770, false), (0o1777, false)] {
            fs::set_permissions(scratch.path(), Permissions::from_mode(mode)).expect("it is ours");
            assert_eq!(is_safe(&symlink_metadata(scratch.path()).expect("it is there")), safe, "{mode:o}");
        }
    }
}
