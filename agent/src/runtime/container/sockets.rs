//! Where the sockets of the daemons are.

use std::path::{Path, PathBuf};

/// What decides where Podman's socket may be.
#[derive(Clone, Debug, Default)]
pub struct Surroundings {
    /// `PODMAN_SOCK`.
    pub podman_sock: Option<String>,
    /// `XDG_RUNTIME_DIR`.
    pub runtime_directory: Option<PathBuf>,
    /// The number of the user that this process runs as.
    pub user: u32,
}

impl Surroundings {
    /// Those of this process.
    #[must_use]
    pub fn of_this_process() -> Self {
        Self {
            podman_sock: std::env::var("PODMAN_SOCK").ok(),
            runtime_directory: std::env::var_os("XDG_RUNTIME_DIR").map(PathBuf::from),
            user: rustix::process::geteuid().as_raw(),
        }
    }
}

/// Where Podman's socket may be, the likeliest first.
#[must_use]
pub fn podman_sockets(surroundings: &Surroundings) -> Vec<PathBuf> {
    let named = surroundings.podman_sock.as_deref().filter(|text| !text.is_empty()).map(|text| path_of(text).into());
    let of_session = surroundings.runtime_directory.as_ref().map(|directory| directory.join("podman/podman.sock"));
    let of_user = PathBuf::from(format!("/run/user/{}/podman/podman.sock", surroundings.user));
    let mut sockets = Vec::new();
    for socket in [named, of_session, Some(of_user), Some(PathBuf::from("/run/podman/podman.sock"))] {
        let Some(socket) = socket else { continue };
        if !sockets.contains(&socket) {
            sockets.push(socket);
        }
    }
    sockets
}

/// The socket of Docker: the usual one, or what a configuration names in the way of `DOCKER_HOST`.
///
/// # Errors
/// In words, when it is not a Unix socket: a container's GPUs, files and sockets are of this machine.
pub fn docker_socket(host: Option<&str>) -> Result<PathBuf, String> {
    let Some(host) = host.filter(|host| !host.is_empty()) else {
        return Ok(PathBuf::from("/var/run/docker.sock"));
    };
    let path = path_of(host);
    if path.is_absolute() {
        Ok(path.to_owned())
    } else {
        Err(format!("{host} is not a Unix socket of this machine; one looks like unix:///var/run/docker.sock"))
    }
}

fn path_of(host: &str) -> &Path {
    Path::new(host.strip_prefix("unix://").unwrap_or(host))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn podman_is_looked_for_where_it_is_named_then_in_the_session_then_in_the_system() {
        let surroundings = Surroundings {
            podman_sock: Some("unix:///tmp/p.sock".to_owned()),
            runtime_directory: Some(PathBuf::from("/run/user/7")),
            user: 7,
        };
        let expected = ["/tmp/p.sock", "/run/user/7/podman/podman.sock", "/run/podman/podman.sock"];
        assert_eq!(podman_sockets(&surroundings), expected.map(PathBuf::from));
    }

    #[test]
    fn docker_is_reached_by_a_unix_socket_only() {
        assert_eq!(docker_socket(None).expect("usual"), Path::new("/var/run/docker.sock"));
        assert_eq!(docker_socket(Some("unix:///x/d.sock")).expect("named"), Path::new("/x/d.sock"));
        assert_eq!(docker_socket(Some("/x/d.sock")).expect("a path"), Path::new("/x/d.sock"));
        assert!(docker_socket(Some("tcp://10.0.0.1:2375")).is_err());
    }
}
