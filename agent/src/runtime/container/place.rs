//! Where a container's engine listens: a socket in a directory of its own, or a port that is published on loopback.

use std::fs::{DirBuilder, Permissions};
use std::io;
use std::net::{Ipv4Addr, SocketAddr};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{DirBuilderExt, MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};

use data_encoding::HEXLOWER;
use sha2::{Digest, Sha256};

use crate::runtime::{Endpoint, Owner, Place, UnitId};

/// The longest path that a Unix socket can have, in bytes.
const SOCKET_PATH_LIMIT: usize = 107;

/// Where the directory of the socket is in a container.
pub(super) const INSIDE: &str = "/run/muster";

/// The name of the socket.
const SOCKET: &str = "engine.sock";

/// The port of an engine that listens on TCP, in its container.
pub(super) const PORT: u16 = 8000;

/// How the engines of containers are reached.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Listen {
    /// By a Unix socket in a directory that only this user can enter.
    #[default]
    Socket,
    /// By a port on loopback, for engines that know no Unix sockets.
    Loopback,
}

/// Where the directories of sockets are made.
#[derive(Clone, Debug)]
pub(super) struct Places {
    pub(super) owner: Owner,
    pub(super) listen: Listen,
    /// In the node's data.
    pub(super) usual: PathBuf,
    /// Where paths are short.
    pub(super) short: PathBuf,
}

impl Places {
    /// The directory of a unit's socket. It is the same one each time.
    pub(super) fn directory(&self, unit: UnitId) -> PathBuf {
        let name = format!("{}-{}-{}", unit.placement.deployment, unit.placement.ordinal, unit.epoch);
        let usual = self.usual.join(name);
        if usual.join(SOCKET).as_os_str().as_bytes().len() <= SOCKET_PATH_LIMIT {
            return usual;
        }
        // Several nodes share the short directory.
        let mut hash = Sha256::new();
        hash.update(format!("{} {} ", self.owner.fleet, self.owner.node));
        hash.update(usual.as_os_str().as_bytes());
        let hash = HEXLOWER.encode(&hash.finalize()[..8]);
        self.short.join(hash)
    }

    /// The socket of a unit, as this process reaches it.
    pub(super) fn socket(&self, unit: UnitId) -> PathBuf {
        self.directory(unit).join(SOCKET)
    }

    /// Makes the directory and says where the engine is to listen.
    pub(super) fn make(&self, unit: UnitId) -> io::Result<Place> {
        if self.listen == Listen::Loopback {
            let inside = Endpoint::Tcp(SocketAddr::from((Ipv4Addr::UNSPECIFIED, PORT)));
            return Ok(Place { inside, outside: None });
        }
        let directory = self.directory(unit);
        let socket = directory.join(SOCKET);
        if socket.as_os_str().as_bytes().len() > SOCKET_PATH_LIMIT {
            let why = format!("{} is too long for a socket, in bytes: {SOCKET_PATH_LIMIT}", socket.display());
            return Err(io::Error::new(io::ErrorKind::InvalidFilename, why));
        }
        if let Some(parent) = directory.parent() {
            private_directory(parent)?;
        }
        private_directory(&directory)?;
        let inside = Endpoint::Unix(Path::new(INSIDE).join(SOCKET));
        Ok(Place { inside, outside: Some(Endpoint::Unix(socket)) })
    }

    /// Removes the socket of an earlier try: an engine does not bind where one lies.
    pub(super) fn clear(&self, unit: UnitId) -> io::Result<()> {
        gone(std::fs::remove_file(self.socket(unit)))
    }

    /// Removes the directory with all that is in it.
    pub(super) fn remove(&self, unit: UnitId) -> io::Result<()> {
        gone(std::fs::remove_dir_all(self.directory(unit)))
    }
}

fn gone(outcome: io::Result<()>) -> io::Result<()> {
    match outcome {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        other => other,
    }
}

/// Makes a directory that only this user can enter. One that is there and somebody else's is not used.
fn private_directory(path: &Path) -> io::Result<()> {
    DirBuilder::new().recursive(true).mode(0o700).create(path)?;
    let metadata = std::fs::symlink_metadata(path)?;
    if !metadata.is_dir() || metadata.uid() != rustix::process::geteuid().as_raw() {
        let why = format!("{} is there and is not a directory of this user", path.display());
        return Err(io::Error::new(io::ErrorKind::PermissionDenied, why));
    }
    if metadata.mode() & 0o077 != 0 {
        std::fs::set_permissions(path, Permissions::from_mode(0o700))?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::super::testing;
    use super::*;

    fn places(usual: &Path, short: &Path) -> Places {
        let (usual, short) = (usual.to_owned(), short.to_owned());
        Places { owner: testing::owner(1), listen: Listen::Socket, usual, short }
    }

    fn mode(path: &Path) -> u32 {
        std::fs::metadata(path).expect("metadata").mode() & 0o777
    }

    #[test]
    fn only_this_user_can_enter_the_directory_of_a_socket() {
        let directory = tempfile::tempdir().expect("a directory");
        let usual = directory.path().join("units");
        std::fs::create_dir(&usual).expect("a directory");
        std::fs::set_permissions(&usual, Permissions::from_mode(0o755)).expect("permissions");
        let places = places(&usual, directory.path());
        let place = places.make(testing::unit(1, 0, 5)).expect("a place");
        assert_eq!(place.inside, Endpoint::Unix("/run/muster/engine.sock".into()));
        assert_eq!(place.outside, Some(Endpoint::Unix(usual.join("1-0-5/engine.sock"))));
        assert_eq!((mode(&usual), mode(&usual.join("1-0-5"))), (0o700, 0o700));
    }

    #[test]
    fn a_path_that_is_too_long_for_a_socket_moves_to_the_short_directory() {
        let directory = tempfile::tempdir().expect("a directory");
        let long = directory.path().join("x".repeat(100));
        let places = places(&long, &directory.path().join("s"));
        let place = places.make(testing::unit(1, 0, 5)).expect("a place");
        let Some(Endpoint::Unix(socket)) = place.outside else { panic!("{:?}", place.outside) };
        assert!(socket.starts_with(directory.path().join("s")) && socket.as_os_str().len() <= SOCKET_PATH_LIMIT);
        std::os::unix::net::UnixListener::bind(&socket).expect("a socket can be bound there");
        assert_ne!(places.directory(testing::unit(1, 0, 6)), places.directory(testing::unit(1, 0, 5)));
    }

    #[test]
    fn two_nodes_with_long_paths_do_not_share_a_socket() {
        let long = Path::new("/").join("x".repeat(100));
        let one = places(&long, Path::new("/s"));
        let two = Places { owner: testing::owner(2), ..one.clone() };
        assert_ne!(one.directory(testing::unit(1, 0, 5)), two.directory(testing::unit(1, 0, 5)));
    }

    #[test]
    fn a_link_where_the_directory_should_be_is_not_followed() {
        let directory = tempfile::tempdir().expect("a directory");
        let places = places(&directory.path().join("units"), directory.path());
        std::fs::create_dir(&places.usual).expect("a directory");
        std::os::unix::fs::symlink("/tmp", places.directory(testing::unit(1, 0, 5))).expect("a link");
        assert!(places.make(testing::unit(1, 0, 5)).is_err());
    }

    #[test]
    fn an_earlier_socket_is_removed_and_nothing_there_is_fine_too() {
        let directory = tempfile::tempdir().expect("a directory");
        let places = places(&directory.path().join("units"), directory.path());
        let unit = testing::unit(1, 0, 5);
        places.clear(unit).expect("nothing to remove");
        places.make(unit).expect("a place");
        std::fs::write(places.socket(unit), "").expect("a file");
        places.clear(unit).expect("removed");
        assert!(!places.socket(unit).exists());
        places.remove(unit).expect("removed");
        places.remove(unit).expect("gone already");
        assert!(!places.directory(unit).exists());
    }
}
