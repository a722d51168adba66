//! A node as an operator has it: a data directory, the command line, a running process and what it says.

use std::ffi::OsStr;
use std::fs::{File, OpenOptions};
use std::io::{Read, Write};
use std::path::{Path, PathBuf};
use std::process::{Command, ExitStatus, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use serde_json::Value;

use crate::api::{Api, try_send};
use crate::process::{Process, binary, run, wait_for};

/// How long a node may take to start or to end; far more than it needs.
pub const PATIENCE: Duration = Duration::from_secs(60);

/// A directory of a node and of what its processes say. What was said is printed when the test fails.
#[derive(Debug)]
pub struct Home {
    directory: tempfile::TempDir,
    data: PathBuf,
    ports: String,
}

/// What a command led to.
#[derive(Debug)]
pub struct Outcome {
    /// The exit code; none if a signal ended it.
    pub code: Option<i32>,
    /// Its standard output.
    pub stdout: String,
    /// Its standard error.
    pub stderr: String,
}

impl Outcome {
    /// Its standard output as JSON.
    ///
    /// # Panics
    /// When it did not succeed, or said something else.
    #[must_use]
    #[track_caller]
    pub fn json(&self) -> Value {
        assert_eq!(self.code, Some(0), "{self:?}");
        serde_json::from_str(&self.stdout).unwrap_or_else(|error| panic!("no JSON: {error}: {self:?}"))
    }

    /// Checks how it ended. What failed says why on standard error, in one line of its own, and nothing on standard output.
    ///
    /// # Panics
    /// When it ended otherwise.
    #[track_caller]
    pub fn ended_with(&self, code: i32) -> &Self {
        assert_eq!(self.code, Some(code), "{self:?}");
        if code != 0 {
            assert!(self.stdout.is_empty() && !self.stderr.is_empty(), "{self:?}");
        }
        self
    }
}

/// Ports for what is deployed in a home: others than those of other homes of this test, and of tests that run beside it.
fn ports() -> String {
    static HOMES: AtomicU32 = AtomicU32::new(0);
    let (test, home) = (std::process::id() % 200, HOMES.fetch_add(1, Ordering::Relaxed) % 5);
    let first = 10_000 + test * 100 + home * 20;
    format!("{first}-{}", first + 19)
}

impl Default for Home {
    fn default() -> Self {
        Self::new()
    }
}

impl Home {
    /// An empty one.
    ///
    /// # Panics
    /// When there is no room for it.
    #[must_use]
    pub fn new() -> Self {
        let directory = tempfile::Builder::new().prefix("muster-").tempdir().expect("a directory");
        let data = directory.path().join("data");
        Self { directory, data, ports: ports() }
    }

    /// An empty one, whose data lie on another disk.
    #[must_use]
    pub fn with_data(data: PathBuf) -> Self {
        let mut home = Self::new();
        home.data = data;
        home
    }

    /// The directory, in which `data` is the node's if it has no other place.
    #[must_use]
    pub fn path(&self) -> &Path {
        self.directory.path()
    }

    /// The data directory.
    #[must_use]
    pub fn data(&self) -> PathBuf {
        self.data.clone()
    }

    /// A command of `muster` on this data directory. Nothing reaches it from outside: neither the environment nor a home
    /// directory of whoever runs the tests.
    #[must_use]
    pub fn command<A: AsRef<OsStr>>(&self, arguments: impl IntoIterator<Item = A>) -> Command {
        let mut command = Command::new(binary("muster"));
        command.args(arguments).env_clear().env("HOME", self.path()).env("MUSTER_DATA_DIR", self.data());
        // Tests run beside each other, and would all want the same port.
        command.env("MUSTER_MESH", "127.0.0.1:0").env("MUSTER_PROXY", "127.0.0.1:0");
        command.env("MUSTER_PORTS", &self.ports);
        // The machine may be in a tailnet.
        command.env("MUSTER_TAILSCALE", "off");
        // Nor are the containers of the machine any test's business.
        command.env("MUSTER_DOCKER", "off").env("MUSTER_PODMAN", "off");
        command.stdin(Stdio::null());
        command
    }

    /// Runs a command to its end.
    #[must_use]
    pub fn muster(&self, arguments: &[&str]) -> Outcome {
        outcome(&mut self.command(arguments))
    }

    /// Starts a command whose standard error is kept.
    ///
    /// # Panics
    /// When it does not start.
    #[must_use]
    pub fn start(&self, command: &mut Command) -> Process {
        let file = |name| OpenOptions::new().create(true).append(true).open(self.path().join(name)).expect("a file");
        Process::start(command.stdout(file("stdout")).stderr(file("stderr")))
    }

    /// What the processes started here have said on standard error so far.
    #[must_use]
    pub fn log(&self) -> String {
        let mut bytes = Vec::new();
        if let Ok(mut file) = File::open(self.path().join("stderr")) {
            let _ = file.read_to_end(&mut bytes);
        }
        String::from_utf8_lossy(&bytes).into_owned()
    }
}

impl Drop for Home {
    fn drop(&mut self) {
        if std::thread::panicking() {
            let log = self.log();
            let lines: Vec<_> = log.lines().collect();
            eprintln!("the end of what was said on standard error:");
            for line in &lines[lines.len().saturating_sub(100)..] {
                eprintln!("  {line}");
            }
        }
    }
}

/// Runs a command to its end.
#[must_use]
pub fn outcome(command: &mut Command) -> Outcome {
    let output = run(command);
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    Outcome { code: output.status.code(), stdout: text(&output.stdout), stderr: text(&output.stderr) }
}

/// Runs a command with something on its standard input.
///
/// # Panics
/// When it does not start.
#[must_use]
pub fn outcome_with_input(command: &mut Command, input: &str) -> Outcome {
    let mut child =
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().expect("starts");
    child.stdin.take().expect("a pipe").write_all(input.as_bytes()).expect("takes its input");
    let output = child.wait_with_output().expect("ends");
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    Outcome { code: output.status.code(), stdout: text(&output.stdout), stderr: text(&output.stderr) }
}

/// A fleet as `muster dev` runs it, most often of one node, and its keys.
#[derive(Debug)]
pub struct Fleet {
    // Ended before the directory goes.
    process: Process,
    /// Where it lives.
    pub home: Home,
    count: usize,
    variables: Vec<(&'static str, String)>,
    /// The administrator's token.
    pub admin_token: String,
    /// The key for the gateway.
    pub gateway_key: String,
    nodes: Vec<Endpoints>,
}

/// The URLs of a node.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Endpoints {
    /// Of the API.
    pub api: String,
    /// Of the proxy.
    pub proxy: String,
}

impl Endpoints {
    fn read(dev: &Value) -> Vec<Self> {
        let nodes = dev["nodes"].as_array().expect("nodes in dev.json").iter();
        let text = |node: &Value, field: &str| node[field].as_str().expect("an address in dev.json").to_owned();
        nodes.map(|node| Self { api: text(node, "api"), proxy: text(node, "proxy") }).collect()
    }
}

impl Fleet {
    /// Starts one and waits until it serves.
    #[must_use]
    pub fn start() -> Self {
        Self::start_with(&[])
    }

    /// Starts one with these variables in its environment.
    #[must_use]
    pub fn start_with(variables: &[(&'static str, &str)]) -> Self {
        Self::start_nodes(1, variables)
    }

    /// Starts one of so many nodes, all in one process, with these variables in its environment.
    ///
    /// # Panics
    /// When it does not start.
    #[must_use]
    pub fn start_nodes(count: usize, variables: &[(&'static str, &str)]) -> Self {
        let home = Home::new();
        let variables: Vec<_> = variables.iter().map(|(name, value)| (*name, (*value).to_owned())).collect();
        let (process, dev) = start_dev(&home, count, &variables);
        let text = |field: &str| dev[field].as_str().expect("a text in dev.json").to_owned();
        let (admin_token, gateway_key) = (text("adminToken"), text("gatewayKey"));
        Self { process, home, count, variables, admin_token, gateway_key, nodes: Endpoints::read(&dev) }
    }

    /// Starts it again over the same data; its ports may be others then.
    pub fn restart(&mut self) {
        let (process, dev) = start_dev(&self.home, self.count, &self.variables);
        self.process = process;
        self.nodes = Endpoints::read(&dev);
    }

    /// Kills it with signal 9.
    pub fn kill(&mut self) {
        self.process.kill();
    }

    /// Asks it to end, and waits until it has.
    pub fn stop(&mut self) -> ExitStatus {
        self.process.terminate();
        self.process.wait(PATIENCE)
    }

    /// The process.
    pub fn process(&mut self) -> &mut Process {
        &mut self.process
    }

    /// The data directory of the node.
    #[must_use]
    pub fn node_data(&self) -> PathBuf {
        self.home.data().join("node-1")
    }

    /// The node's socket.
    #[must_use]
    pub fn socket(&self) -> PathBuf {
        self.node_data().join("muster.sock")
    }

    /// Its nodes.
    #[must_use]
    pub fn nodes(&self) -> &[Endpoints] {
        &self.nodes
    }

    /// Host and port of the API of the first node.
    #[must_use]
    pub fn address(&self) -> &str {
        self.nodes[0].api.trim_start_matches("http://")
    }

    /// Somebody without a key.
    #[must_use]
    pub fn anybody(&self) -> Api {
        Api::new(&self.nodes[0].api)
    }

    /// Somebody who may call models, and nothing else.
    #[must_use]
    pub fn user(&self) -> Api {
        self.anybody().with_key(&self.gateway_key)
    }

    /// The same at the proxy.
    #[must_use]
    pub fn user_of_proxy(&self) -> Api {
        Api::new(&self.nodes[0].proxy).with_key(&self.gateway_key)
    }

    /// The administrator.
    #[must_use]
    pub fn admin(&self) -> Api {
        self.anybody().with_key(&self.admin_token)
    }

    /// Makes a credential of the console and returns its number and its key.
    ///
    /// # Panics
    /// When it is not made.
    #[must_use]
    #[track_caller]
    pub fn credential(&self, role: &str) -> (u64, String) {
        let body = serde_json::json!({"kind": "console", "label": format!("a test's {role}"), "role": role});
        let answer = self.admin().post("/api/credentials", &body).expect(201);
        let id = answer.body["credential"]["id"].as_u64().expect("a number");
        (id, answer.body["key"].as_str().expect("a key").to_owned())
    }

    /// A caller of this role.
    #[must_use]
    #[track_caller]
    pub fn caller(&self, role: &str) -> Api {
        self.anybody().with_key(&self.credential(role).1)
    }
}

fn start_dev(home: &Home, count: usize, variables: &[(&'static str, String)]) -> (Process, Value) {
    let ready = home.data().join("dev.json");
    // What an earlier process left behind says nothing of the next.
    let _ = std::fs::remove_file(&ready);
    let mut command = home.command(["dev", "--nodes", &count.to_string(), "--base-port", "0", "--data-dir"]);
    command.arg(home.data()).envs(variables.iter().map(|(name, value)| (name, value)));
    let mut process = home.start(&mut command);
    let dev = wait_for(PATIENCE, "the fleet to be ready", || {
        assert!(process.ended().is_none(), "it ended instead of serving");
        serde_json::from_slice(&std::fs::read(&ready).ok()?).ok()
    });
    (process, dev)
}

/// Where the API listens, according to what a node has said.
fn listens_at(log: &str) -> Option<String> {
    let line = log.lines().find(|line| line.contains("the API listens"))?;
    let address = line.split("address=").nth(1)?.split_whitespace().next()?;
    Some(format!("http://{address}"))
}

/// A node as `muster serve` runs it.
#[derive(Debug)]
pub struct Node {
    process: Process,
    endpoint: String,
}

impl Node {
    /// Starts `muster serve` in this home, with these arguments more, and waits until its API listens.
    ///
    /// # Panics
    /// When it does not.
    #[must_use]
    pub fn start(home: &Home, arguments: &[&str]) -> Self {
        let mut command = home.command(["serve", "--api", "127.0.0.1:0", "--name", "node-1"]);
        Self::start_command(home, command.args(arguments))
    }

    /// The same for a command that was made elsewhere.
    ///
    /// # Panics
    /// When its API does not listen in time.
    #[must_use]
    pub fn start_command(home: &Home, command: &mut Command) -> Self {
        let before = home.log().len();
        let mut process = home.start(command);
        let endpoint = wait_for(PATIENCE, "the API to listen", || {
            let endpoint = listens_at(&home.log()[before..]);
            assert!(endpoint.is_some() || process.ended().is_none(), "it ended instead of serving");
            endpoint
        });
        Self { process, endpoint }
    }

    /// Starts a node, and waits for nothing.
    #[must_use]
    pub fn spawn(home: &Home, command: &mut Command) -> Self {
        Self { process: home.start(command), endpoint: String::new() }
    }

    /// What this process is that serves at the same address.
    #[must_use]
    pub fn successor(&self, process: Process) -> Self {
        Self { process, endpoint: self.endpoint.clone() }
    }

    /// Starts a node that may end by itself: waits until it is ready, or returns how it ended and what it said.
    ///
    /// # Errors
    /// When it ends.
    ///
    /// # Panics
    /// When neither happens in time.
    pub fn try_start_command(home: &Home, command: &mut Command) -> Result<Self, (ExitStatus, String)> {
        let before = home.log().len();
        let mut process = home.start(command);
        let endpoint = wait_for(PATIENCE, "the node to be ready, or to end", || {
            if let Some(status) = process.ended() {
                return Some(Err((status, home.log()[before..].to_owned())));
            }
            let endpoint = listens_at(&home.log()[before..])?;
            let ready = try_send(Api::new(&endpoint).request("GET", "/ready"));
            ready.is_ok_and(|answer| answer.status == 200).then_some(Ok(endpoint))
        })?;
        Ok(Self { process, endpoint })
    }

    /// Waits until it serves.
    ///
    /// # Panics
    /// When it does not in time.
    pub fn ready(&mut self) {
        let api = Api::new(&self.endpoint);
        wait_for(PATIENCE, "the node to be ready", || {
            assert!(self.process.ended().is_none(), "it ended instead of serving");
            (api.get("/ready").status == 200).then_some(())
        });
    }

    /// Somebody with this key.
    #[must_use]
    pub fn caller(&self, key: &str) -> Api {
        self.anybody().with_key(key)
    }

    /// Somebody without a key.
    #[must_use]
    pub fn anybody(&self) -> Api {
        Api::new(&self.endpoint)
    }

    /// The number of the process.
    #[must_use]
    pub fn id(&self) -> u32 {
        self.process.id()
    }

    /// The process.
    pub fn process(&mut self) -> &mut Process {
        &mut self.process
    }
}
