//! A node with two simulated GPUs that runs the simulator, and what is asked of it.

use std::net::{TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU16, Ordering};
use std::time::Duration;

use muster_tests::api::{Api, try_send};
use muster_tests::fleet::{Home, PATIENCE};
use muster_tests::process::{Process, binary, wait_for};
use serde_json::{Value, json};

use super::engines::Engines;

/// A preset token, and obviously one of a test.
const ADMIN: &str = "token-of-the-tests-administrator";

/// How long a deployment may take to become what it shall be.
pub const SOON: Duration = Duration::from_secs(60);

/// A port that nobody has, below those that the system gives out by itself, so that nobody gets it meanwhile.
pub fn free_port() -> u16 {
    static NEXT: AtomicU16 = AtomicU16::new(0);
    let first = u16::try_from(std::process::id() % 600).expect("small") * 20;
    loop {
        let port = 20_000 + first + NEXT.fetch_add(1, Ordering::Relaxed) % 20;
        if TcpListener::bind(("127.0.0.1", port)).is_ok() {
            return port;
        }
    }
}

/// A node, which is killed with everything that it has started when the test ends.
pub struct Place {
    // Ended first: it would start its engines again.
    pub process: Process,
    _engines: Engines,
    // The directory goes last.
    pub home: Home,
    api_address: String,
    mesh: String,
    gateway_key: String,
}

impl Place {
    pub fn new() -> Self {
        let home = Home::new();
        let (api_address, mesh) = (format!("127.0.0.1:{}", free_port()), format!("127.0.0.1:{}", free_port()));
        let process = spawn(&home, &api_address, &mesh, &["--bootstrap", "-o", "json"]);
        let engines = Engines::of(&home.data());
        let mut place = Self { process, _engines: engines, home, api_address, mesh, gateway_key: String::new() };
        place.ready();
        let printed = std::fs::read_to_string(place.home.path().join("stdout")).expect("what was printed");
        let printed: Value = serde_json::from_str(&printed).expect("the secrets");
        place.gateway_key = printed["gatewayKey"].as_str().expect("a key").to_owned();
        place
    }

    pub fn ready(&mut self) {
        let api = self.admin();
        wait_for(PATIENCE, "the node to be ready", || {
            assert!(self.process.ended().is_none(), "it ended instead of serving");
            matches!(try_send(api.request("GET", "/ready")), Ok(answer) if answer.status == 200).then_some(())
        });
    }

    /// Starts it again after its process has ended.
    pub fn start_again(&mut self) {
        self.process = spawn(&self.home, &self.api_address, &self.mesh, &[]);
        self.ready();
    }

    /// Has another process take over, and returns the old one as soon as the new one serves.
    pub fn hand_over(&mut self) -> Process {
        let before = self.home.log().len();
        let successor = spawn(&self.home, &self.api_address, &self.mesh, &["--take-over"]);
        let old = std::mem::replace(&mut self.process, successor);
        self.await_log(before, "the successor serves");
        old
    }

    pub fn await_log(&mut self, before: usize, what: &str) {
        wait_for(PATIENCE, what, || {
            assert!(self.process.ended().is_none(), "it has ended");
            self.home.log().get(before..).is_some_and(|log| log.contains(what)).then_some(())
        });
    }

    pub fn admin(&self) -> Api {
        Api::new(&format!("http://{}", self.api_address)).with_key(ADMIN)
    }

    /// Starts a deployment of the simulator with these fields more, and does not wait for it.
    #[track_caller]
    pub fn begin(&self, fields: &Value) -> Door {
        let mut wanted = json!({
            "owner": "a test", "node_id": 1, "model_name": "org/model", "engine": "sim", "gpu_memory_fraction": 0.25
        });
        for (field, value) in fields.as_object().expect("an object") {
            wanted[field] = value.clone();
        }
        // What the node has to offer is known to the fleet a moment after it serves.
        let started = wait_for(PATIENCE, "the node to say what it can run", || {
            let answer = self.admin().post("/api/deployments/start", &wanted);
            let is_early = answer.status == 409 && answer.text.contains("names no program");
            (!is_early).then_some(answer)
        });
        let started = started.expect(200).body;
        let port = started["port"].as_u64().expect("a port");
        Door {
            id: started["id"].as_u64().expect("a number"),
            port: u16::try_from(port).expect("a port"),
            key: self.gateway_key.clone(),
            admin: self.admin(),
            data: self.home.data(),
        }
    }

    /// The same, once it runs. It is served as `ours`.
    #[track_caller]
    pub fn serve(&self, fields: &Value) -> Door {
        let mut wanted = json!({"port": free_port(), "engine_args": {"served_model_name": "ours"}});
        for (field, value) in fields.as_object().expect("an object") {
            wanted[field] = value.clone();
        }
        let door = self.begin(&wanted);
        door.await_status("running");
        door
    }

    /// A gateway key with this scope.
    #[track_caller]
    pub fn key(&self, deployments: &Value) -> String {
        let body = json!({"label": "of a test", "deployment_ids": deployments});
        let made = self.admin().post("/api/api-keys", &body).expect(201).body;
        made["key"].as_str().expect("a key").to_owned()
    }
}

fn spawn(home: &Home, api: &str, mesh: &str, arguments: &[&str]) -> Process {
    let mut command = home.command(["serve", "--name", "node-1", "--api", api, "--mesh", mesh]);
    command.args(arguments).env("MUSTER_ADMIN_TOKEN", ADMIN);
    command.env("MUSTER_ENGINE_SIM", binary("muster-sim")).env("MUSTER_GPUS", "sim:2x80GiB");
    home.start(&mut command)
}

/// The listener of a deployment's only placement.
pub struct Door {
    pub id: u64,
    pub port: u16,
    key: String,
    admin: Api,
    data: PathBuf,
}

impl Door {
    pub fn address(&self) -> String {
        format!("127.0.0.1:{}", self.port)
    }

    /// Somebody without a key.
    pub fn anybody(&self) -> Api {
        Api::new(&format!("http://{}", self.address()))
    }

    /// Somebody who may call everything.
    pub fn user(&self) -> Api {
        self.anybody().with_key(&self.key)
    }

    /// The line that lets the user in.
    pub fn key(&self) -> String {
        format!("authorization: Bearer {}", self.key)
    }

    pub fn record(&self) -> Value {
        self.admin.get(&format!("/api/deployments/{}", self.id)).expect(200).body
    }

    #[track_caller]
    pub fn await_status(&self, status: &str) -> Value {
        wait_for(SOON, &format!("deployment {} to be {status}", self.id), || {
            Some(self.record()).filter(|record| record["status"] == status)
        })
    }

    pub fn stop(&self) {
        let _ = self.admin.post(&format!("/api/deployments/stop/{}", self.id), &json!({})).expect(200);
    }

    pub fn is_open(&self) -> bool {
        TcpStream::connect(self.address()).is_ok()
    }

    pub fn await_open(&self) {
        wait_for(SOON, "the port to be open", || self.is_open().then_some(()));
    }

    /// The engine itself, past everything that stands before it.
    pub fn engine(&self) -> Api {
        let unit = std::fs::read_dir(self.data.join("units")).expect("units").flatten().map(|entry| entry.path());
        let prefix = format!("{}-0-", self.id);
        let is_its = |path: &Path| path.file_name().is_some_and(|name| name.to_string_lossy().starts_with(&prefix));
        let unit = unit.filter(|path| is_its(path)).max().expect("its unit");
        Api::on_socket(&unit.join("run/engine.sock"))
    }

    /// What the engine has counted of requests, by route: whatever it was asked but for its own probes.
    pub fn asked(&self) -> Vec<String> {
        let metrics = self.engine().get("/metrics").text;
        metrics.lines().filter(|line| line.starts_with("http_requests_total{")).map(ToOwned::to_owned).collect()
    }
}
