//! Three nodes as three processes.

use std::collections::BTreeSet;
use std::net::TcpListener;

use crate::api::{Api, try_send};
use crate::fleet::{Home, Node, PATIENCE};
use crate::process::{Signal, wait_for};

/// A preset token, and obviously one of a test.
const ADMIN: &str = "token-of-the-tests-administrator";

/// One machine: its home, its ports, its process.
#[derive(Debug)]
pub struct Machine {
    /// Its directory.
    pub home: Home,
    api: String,
    /// Host and port of the mesh.
    pub mesh: String,
    /// None while it is not running.
    pub node: Option<Node>,
}

/// A port that was free a moment ago. It must stay the same when the node is started again, so it is none of those that the
/// system gives to whoever connects.
///
/// # Panics
/// When there is none.
#[must_use]
pub fn free_address() -> String {
    let mut tries = (0..1000).map(|_| format!("127.0.0.1:{}", rand::random_range(10_000..32_000)));
    tries.find(|address| TcpListener::bind(address).is_ok()).expect("a port")
}

impl Machine {
    fn new() -> Self {
        Self { home: Home::new(), api: free_address(), mesh: free_address(), node: None }
    }

    fn start(&mut self, name: &str, arguments: &[&str]) {
        let mut command = self.home.command(["serve", "--name", name, "--api", &self.api, "--mesh", &self.mesh]);
        command.args(arguments).env("MUSTER_ADMIN_TOKEN", ADMIN);
        self.node = Some(Node::start_command(&self.home, &mut command));
    }

    /// Kills its process with signal 9.
    ///
    /// # Panics
    /// When it is not running.
    pub fn kill(&mut self) {
        self.node.take().expect("is running").process().kill();
    }

    /// Sends its process a signal.
    ///
    /// # Panics
    /// When it is not running.
    pub fn signal(&mut self, signal: Signal) {
        self.node.as_mut().expect("is running").process().signal(signal);
    }

    /// The administrator there.
    #[must_use]
    pub fn api(&self) -> Api {
        Api::new(&format!("http://{}", self.api)).with_key(ADMIN)
    }
}

/// Three machines of one fleet.
#[derive(Debug)]
pub struct Mesh {
    /// The machines.
    pub machines: Vec<Machine>,
    /// The token that lets others join.
    pub token: String,
}

fn name(index: usize) -> String {
    format!("node-{}", index + 1)
}

impl Mesh {
    /// Starts them and waits until they are ready.
    ///
    /// # Panics
    /// When they do not start.
    #[must_use]
    pub fn of_three() -> Self {
        let mut first = Machine::new();
        first.start(&name(0), &["--bootstrap"]);
        first.node.as_mut().expect("is running").ready();
        let created = first.home.muster(&["token", "create", "-o", "json"]);
        let token = created.json()["token"].as_str().expect("a token").to_owned();
        let mut mesh = Self { machines: vec![first], token };
        for index in 1..3 {
            let mut machine = Machine::new();
            let through = mesh.machines[index - 1].mesh.clone();
            machine.start(&name(index), &["--join", &through, "--join-token", &mesh.token]);
            mesh.machines.push(machine);
        }
        mesh.ready();
        mesh
    }

    /// Waits until every machine that runs is ready, which the third is when it votes.
    pub fn ready(&mut self) {
        for machine in &mut self.machines {
            if let Some(node) = &mut machine.node {
                node.ready();
            }
        }
    }

    /// The administrator at one of them.
    #[must_use]
    pub fn api(&self, index: usize) -> Api {
        self.machines[index].api()
    }

    /// Which of them leads.
    #[must_use]
    pub fn leader(&self) -> usize {
        wait_for(PATIENCE, "a leader", || {
            self.machines.iter().position(|machine| {
                let answer = machine
                    .node
                    .as_ref()
                    .map(|_| try_send(machine.api().request("GET", "/api/cluster?consistency=local")));
                matches!(answer, Some(Ok(answer)) if answer.body["role"] == "leader")
            })
        })
    }

    /// Starts one again.
    pub fn restart(&mut self, index: usize) {
        self.machines[index].start(&name(index), &[]);
    }

    /// The state hash of every node at one index.
    #[must_use]
    pub fn hashes(&self) -> BTreeSet<String> {
        wait_for(PATIENCE, "all nodes at one index", || {
            let seen: Vec<_> = self
                .machines
                .iter()
                .map(|machine| machine.api().get("/api/cluster?consistency=local").body)
                .map(|body| (body["appliedIndex"].as_u64(), body["stateHash"].as_str().map(ToOwned::to_owned)))
                .collect();
            let same = seen.iter().all(|(index, _)| index.is_some() && *index == seen[0].0);
            same.then(|| seen.into_iter().filter_map(|(_, hash)| hash).collect())
        })
    }
}
