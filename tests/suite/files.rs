//! The model files of a node, asked of the node itself and of another one: caches, uploads, archives, pulls, packages, and what
//! goes wrong with them. The ids in front of a test are the rows of the requirements that it shows.

#[path = "files/archives.rs"]
mod archives;
#[path = "files/cache.rs"]
mod cache;
#[path = "files/faults.rs"]
mod faults;
#[path = "files/packages.rs"]
mod packages;
#[path = "files/pulls.rs"]
mod pulls;
#[path = "files/uploads.rs"]
mod uploads;

use std::collections::BTreeMap;
use std::fs;
use std::io::Write;
use std::net::TcpStream;
use std::path::{Path, PathBuf};
use std::time::Duration;

use muster_tests::api::{Answer, Api, send};
use muster_tests::mesh::{Machine, Mesh};
use muster_tests::process::{binary, wait_for};
use serde_json::{Value, json};

/// The key of a mesh's administrator.
const ADMIN: &str = "token-of-the-tests-administrator";

/// How long something may take that takes a moment.
const SOON: Duration = Duration::from_secs(20);

/// Two nodes, of which the first has the files and both are asked.
struct Site {
    mesh: Mesh,
    /// Models of the first node's machine that are not Muster's.
    others: tempfile::TempDir,
}

impl Site {
    fn new() -> Self {
        Self::with(&[])
    }

    fn with(variables: &[(&'static str, &str)]) -> Self {
        let others = tempfile::tempdir().expect("a directory");
        let mut machines: Vec<_> = (0..2).map(|_| Machine::on_loopback()).collect();
        for machine in &mut machines {
            let hub = machine.home.path().join("hub-home");
            machine.variables = vec![
                ("HF_HOME", hub),
                ("MUSTER_KEEP_FREE", "0".into()),
                ("MUSTER_GPUS", "sim:1x80GiB".into()),
                ("MUSTER_ENGINE_SIM", binary("muster-sim")),
                ("MUSTER_MODEL_DIRECTORIES", others.path().to_owned()),
            ];
            machine.variables.extend(variables.iter().map(|(name, value)| (*name, PathBuf::from(value))));
        }
        Self { mesh: Mesh::of(machines), others }
    }

    /// The node itself and the other one, each with how it is called.
    fn callers(&self) -> [(&'static str, Caller); 2] {
        [("itself", Caller(self.mesh.api(0))), ("another", Caller(self.mesh.api(1)))]
    }

    fn caller(&self) -> Caller {
        Caller(self.mesh.api(0))
    }

    fn other(&self) -> Caller {
        Caller(self.mesh.api(1))
    }

    /// Where the first node keeps its models.
    fn models(&self) -> PathBuf {
        self.mesh.machines[0].home.data().join("models")
    }

    fn packages(&self) -> PathBuf {
        self.mesh.machines[0].home.data().join("packages")
    }

    fn hub(&self) -> PathBuf {
        self.mesh.machines[0].home.path().join("hub-home/hub")
    }

    /// Waits until nothing half-done is left on the disk.
    #[track_caller]
    fn is_clean(&self) {
        wait_for(SOON, "the staging directories to be empty", || {
            let left = |home: PathBuf| fs::read_dir(home.join(".tmp")).expect("a directory").count();
            (left(self.models()) + left(self.packages()) == 0).then_some(())
        });
    }
}

/// Somebody who works with the files of the first node.
#[derive(Clone)]
struct Caller(Api);

impl Caller {
    fn path(&self, path: &str) -> String {
        format!("/api/nodes/1/{path}")
    }

    fn get(&self, path: &str) -> Answer {
        self.0.get(&self.path(path))
    }

    fn post(&self, path: &str, body: &Value) -> Answer {
        self.0.post(&self.path(path), body)
    }

    fn delete(&self, path: &str) -> Answer {
        self.0.delete(&self.path(path))
    }

    fn send(&self, method: &str, path: &str, body: impl Into<Vec<u8>>) -> Answer {
        send(self.0.request(method, &self.path(path)).body(body.into()))
    }

    /// The local models by name.
    fn local(&self) -> BTreeMap<String, Value> {
        let listed = self.get("local-models").expect(200).body;
        let models = listed.as_array().expect("a list").iter();
        models.map(|model| (model["name"].as_str().expect("a name").to_owned(), model.clone())).collect()
    }

    /// Begins an upload.
    #[track_caller]
    fn begin(&self, name: &str) -> String {
        let begun = self.post("local-models/upload/begin", &json!({"name": name})).expect(200);
        begun.body["session_id"].as_str().expect("an id").to_owned()
    }

    fn write(&self, session: &str, path: &str, content: impl Into<Vec<u8>>) -> Answer {
        self.send("PUT", &format!("local-models/upload/{session}/file?path={path}"), content)
    }

    /// How much of a file has come.
    fn length(&self, session: &str, path: &str) -> Answer {
        self.get(&format!("local-models/upload/{session}/file?path={path}"))
    }

    fn finish(&self, session: &str) -> Answer {
        self.post(&format!("local-models/upload/{session}/finish"), &json!({}))
    }

    fn archive(&self, name: &str, file_name: &str, content: &[u8]) -> Answer {
        self.send("POST", &format!("local-models/archive?name={name}&filename={file_name}"), content)
    }

    /// Sends the head of a request and as much of its body, and leaves the rest to whoever gets the connection.
    fn begin_request(&self, method: &str, path: &str, headers: &str, body: &[u8]) -> TcpStream {
        let address = self.0.endpoint().trim_start_matches("http://");
        let mut stream = TcpStream::connect(address).expect("connects");
        stream.set_read_timeout(Some(SOON)).expect("a limit");
        let path = self.path(path);
        write!(stream, "{method} {path} HTTP/1.1\r\nhost: {address}\r\nauthorization: Bearer {ADMIN}\r\n{headers}\r\n")
            .expect("takes the head");
        stream.write_all(body).expect("takes the body");
        stream
    }
}

/// The status of an answer that is read from its connection.
fn status(stream: TcpStream) -> u16 {
    let mut line = String::new();
    std::io::BufRead::read_line(&mut std::io::BufReader::new(stream), &mut line).expect("an answer");
    line.split(' ').nth(1).and_then(|status| status.parse().ok()).unwrap_or_else(|| panic!("no status: {line:?}"))
}

/// Content that is the same nowhere.
fn content(length: usize, seed: u64) -> Vec<u8> {
    let mut state = seed.wrapping_mul(2).wrapping_add(1);
    let mut next = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state.to_le_bytes()
    };
    let mut content: Vec<u8> = (0..length.div_ceil(8)).flat_map(|_| next()).collect();
    content.truncate(length);
    content
}

/// Every file below a directory, by its path.
fn files(root: &Path) -> BTreeMap<String, Vec<u8>> {
    let mut found = BTreeMap::new();
    let mut left = vec![root.to_owned()];
    while let Some(directory) = left.pop() {
        for entry in fs::read_dir(&directory).expect("a directory") {
            let entry = entry.expect("an entry");
            if entry.file_type().expect("a type").is_dir() {
                left.push(entry.path());
            } else {
                let name = entry.path().strip_prefix(root).expect("below it").to_str().expect("text").to_owned();
                found.insert(name, fs::read(entry.path()).expect("a file"));
            }
        }
    }
    found
}
