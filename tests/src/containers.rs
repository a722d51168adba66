//! Docker Engine and Podman as the tests use them: daemons of their own, which `tests/run` starts, an image of the simulator
//! that is named as the test likes, and the containers of a fleet as the daemon shows them.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use serde_json::Value;

use crate::api::{Answer, Api, send};

/// The variables in which `tests/run` says where the daemons listen, and where the simulator lies that needs only the kernel.
pub const DOCKER: &str = "MUSTER_TEST_DOCKER";
/// The same for Podman.
pub const PODMAN: &str = "MUSTER_TEST_PODMAN";
/// The simulator.
pub const SIMULATOR: &str = "MUSTER_TEST_SIM";

/// A daemon that answers Docker's API.
#[derive(Clone, Debug)]
pub struct Daemon {
    socket: PathBuf,
    api: Api,
}

/// A container, as its daemon shows it.
#[derive(Clone, Debug, PartialEq)]
pub struct Container {
    /// Its identity.
    pub id: String,
    /// All that the daemon says of it.
    pub details: Value,
}

impl Daemon {
    /// The one that a variable names.
    ///
    /// # Panics
    /// When it names none.
    #[must_use]
    pub fn named_by(variable: &str) -> Self {
        Self::at(Path::new(&std::env::var_os(variable).expect("a daemon of the tests' own")))
    }

    /// The one behind this socket.
    #[must_use]
    pub fn at(socket: &Path) -> Self {
        Self { socket: socket.to_owned(), api: Api::on_socket(socket) }
    }

    /// Its socket.
    ///
    /// # Panics
    /// When the path is not text.
    #[must_use]
    pub fn socket(&self) -> &str {
        self.socket.to_str().expect("a path that is text")
    }

    /// Whether it has this image.
    #[must_use]
    pub fn has_image(&self, name: &str) -> bool {
        self.api.get(&format!("/images/{name}/json")).status == 200
    }

    /// Makes an image from nothing but the simulator, unless it is there. `mark` makes it another one than those with other
    /// marks.
    ///
    /// # Panics
    /// When it is not made.
    pub fn make_image(&self, name: &str, mark: &str) {
        if self.has_image(name) {
            return;
        }
        let simulator = std::env::var_os(SIMULATOR).expect("a simulator that needs only the kernel");
        let recipe = "FROM scratch\nCOPY muster-sim /muster-sim\nCOPY mark /mark\nENTRYPOINT [\"/muster-sim\"]\n";
        let mut archive = tar::Builder::new(Vec::new());
        archive.sparse(false);
        for (file, content) in [("Dockerfile", recipe), ("mark", mark)] {
            let mut header = tar::Header::new_gnu();
            header.set_size(content.len() as u64);
            header.set_mode(0o644);
            archive.append_data(&mut header, file, content.as_bytes()).expect("appended");
        }
        archive.append_path_with_name(simulator, "muster-sim").expect("appended");
        let body = archive.into_inner().expect("an archive");
        let request = self.api.request("POST", &format!("/build?t={name}&rm=true"));
        let built = send(request.header("content-type", "application/x-tar").body(body));
        assert!(self.has_image(name), "{built}");
    }

    /// Gives an image another tag.
    pub fn tag(&self, name: &str, repository: &str, tag: &str) {
        let path = format!("/images/{name}/tag?repo={repository}&tag={tag}");
        let _ = self.api.post(&path, &Value::Null).expect(201);
    }

    /// Removes an image with this name, if it is there.
    pub fn forget_image(&self, name: &str) {
        let _ = self.api.delete(&format!("/images/{name}?force=true"));
    }

    /// The containers of a fleet, running or not.
    ///
    /// # Panics
    /// When the daemon does not say.
    #[must_use]
    pub fn containers(&self, fleet: &str) -> Vec<Container> {
        let filters = format!("%7B%22label%22%3A%5B%22muster.fleet%3D{fleet}%22%5D%7D");
        let listed = self.api.get(&format!("/containers/json?all=true&filters={filters}")).expect(200).body;
        let ids = listed.as_array().expect("a list").iter().filter_map(|one| one["Id"].as_str());
        ids.filter_map(|id| self.container(id)).collect()
    }

    /// A container by identity or name, if it is there.
    #[must_use]
    pub fn container(&self, id: &str) -> Option<Container> {
        let details = self.api.get(&format!("/containers/{id}/json"));
        let id = details.body["Id"].as_str().filter(|_| details.status == 200)?.to_owned();
        Some(Container { id, details: details.body })
    }

    /// Kills what runs in a container with signal 9.
    pub fn kill(&self, id: &str) {
        let _ = self.api.post(&format!("/containers/{id}/kill"), &Value::Null).expect(204);
    }

    /// Starts a container by hand, from this image.
    ///
    /// # Panics
    /// When it does not start.
    #[must_use]
    pub fn run(&self, name: &str, image: &str) -> String {
        let body = serde_json::json!({"Image": image, "HostConfig": {"NetworkMode": "none"}});
        let made = self.api.post(&format!("/containers/create?name={name}"), &body).expect(201);
        let id = made.body["Id"].as_str().expect("an identity").to_owned();
        let _ = self.api.post(&format!("/containers/{id}/start"), &Value::Null).expect(204);
        id
    }

    /// Removes a container, running or not.
    pub fn remove(&self, id: &str) -> Answer {
        self.api.delete(&format!("/containers/{id}?force=true&v=true"))
    }

    /// Removes what a fleet has made: its containers and its networks.
    pub fn clean(&self, fleet: &str) {
        for container in self.containers(fleet) {
            let _ = self.remove(&container.id);
        }
        let filters = format!("%7B%22label%22%3A%5B%22muster.fleet%3D{fleet}%22%5D%7D");
        let networks = self.api.get(&format!("/networks?filters={filters}")).body;
        for network in networks.as_array().into_iter().flatten() {
            if let Some(id) = network["Id"].as_str() {
                let _ = self.api.delete(&format!("/networks/{id}"));
            }
        }
    }
}

/// A Docker Engine that belongs to one test, which can stop it.
#[derive(Debug)]
pub struct OwnDocker {
    directory: tempfile::TempDir,
}

impl OwnDocker {
    /// Starts one.
    ///
    /// # Panics
    /// When it does not start.
    #[must_use]
    pub fn start() -> Self {
        // A short path, for the socket, on a disk, for the images.
        let directory = tempfile::Builder::new().prefix("m").tempdir_in("/var/tmp").expect("a directory");
        let own = Self { directory };
        own.again();
        own
    }

    /// One that does not run yet.
    ///
    /// # Panics
    /// When there is no room for it.
    #[must_use]
    pub fn not_yet() -> Self {
        Self { directory: tempfile::Builder::new().prefix("m").tempdir_in("/var/tmp").expect("a directory") }
    }

    /// Where it listens.
    #[must_use]
    pub fn socket(&self) -> PathBuf {
        self.directory.path().join("docker.sock")
    }

    /// The daemon.
    #[must_use]
    pub fn daemon(&self) -> Daemon {
        Daemon::at(&self.socket())
    }

    fn script(&self, what: &str) -> bool {
        let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("engines/docker");
        let mut command = Command::new(script);
        command.arg(what).arg(self.directory.path()).stdin(Stdio::null()).stdout(Stdio::null());
        // It starts and stops while others are at work.
        command.env("NETWORK", "own");
        command.status().expect("the script").success()
    }

    /// Starts it again over the same data.
    ///
    /// # Panics
    /// When it does not start.
    pub fn again(&self) {
        assert!(self.script("start"), "Docker Engine does not start");
    }

    /// Stops the daemon, as whoever updates it does: what runs in containers ends, the containers stay.
    ///
    /// # Panics
    /// When it does not stop.
    pub fn stop(&self) {
        assert!(self.script("halt"), "Docker Engine does not stop");
    }
}

impl Drop for OwnDocker {
    fn drop(&mut self) {
        let _ = self.script("stop");
    }
}
