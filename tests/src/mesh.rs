//! Three nodes or more, each a process, on this machine's loopback or with a network between them that can fail.

use std::collections::BTreeSet;
use std::net::TcpListener;
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitStatus};
use std::time::{Duration, Instant};

use serde_json::Value;

use crate::api::{Api, try_send};
use crate::clock::WallClock;
use crate::fleet::{Home, Node, PATIENCE};
use crate::net::Network;
use crate::process::{Process, Signal, disk_library, wait_for};

/// A preset token, and obviously one of a test.
const ADMIN: &str = "token-of-the-tests-administrator";

/// One machine: its home, its addresses, its process.
#[derive(Debug)]
pub struct Machine {
    /// What it calls itself.
    pub name: String,
    // Ended before the directory goes.
    /// None while it is not running.
    pub node: Option<Node>,
    /// Its directory.
    pub home: Home,
    /// Where its mesh listens.
    pub mesh: String,
    /// What else its process gets in its environment, from its next start on.
    pub variables: Vec<(&'static str, PathBuf)>,
    listens: String,
    api: Api,
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
    fn new(listens: String, mesh: String) -> Self {
        let api = Api::new(&format!("http://{listens}")).with_key(ADMIN);
        Self { name: String::new(), node: None, home: Home::new(), mesh, variables: Vec::new(), listens, api }
    }

    /// One that has not begun yet, at addresses of its own on loopback.
    #[must_use]
    pub fn on_loopback() -> Self {
        Self::new(free_address(), free_address())
    }

    /// The same, with its data on another disk.
    #[must_use]
    pub fn with_data(data: PathBuf) -> Self {
        Self { home: Home::with_data(data), ..Self::on_loopback() }
    }

    /// Has what it writes into its home recorded from its next start on, and returns where. Nothing that it writes is safe
    /// any more once there is a file of that name.
    #[must_use]
    pub fn recorded(&mut self, hold: &Path) -> PathBuf {
        let (root, trace) = (self.home.path().to_owned(), self.home.path().join("trace"));
        let library = disk_library().to_owned();
        self.variables.extend([("DISK_ROOT", root), ("DISK_TRACE", trace.clone()), ("LD_PRELOAD", library)]);
        self.variables.push(("DISK_HOLD", hold.to_owned()));
        trace
    }

    /// Has its process kill itself, from its next start on, before the step of this number that changes the disk; counted
    /// from when a file gets a name that fits this pattern.
    pub fn kills_itself(&mut self, at: u64, from: &str) {
        let (root, library) = (self.home.path().to_owned(), disk_library().to_owned());
        self.variables = vec![("DISK_ROOT", root), ("LD_PRELOAD", library), ("DISK_KILL_AT", at.to_string().into())];
        self.variables.push(("DISK_KILL_FROM", from.into()));
    }

    /// Waits for its process to end by signal 9, and says after how long.
    ///
    /// # Panics
    /// When it does not, or ends otherwise.
    pub fn killed(&mut self) -> Duration {
        let begun = Instant::now();
        let status = self.node.take().expect("is running").process().wait(PATIENCE);
        assert_eq!(status.signal(), Some(9), "{status}");
        begun.elapsed()
    }

    /// Lets its process go by a clock of its own from its next start on.
    #[must_use]
    pub fn with_clock(&mut self) -> WallClock {
        let clock = WallClock::new(self.home.path().join("clock"));
        self.variables.extend(clock.variables());
        clock
    }

    /// Kills its process with signal 9.
    ///
    /// # Panics
    /// When it does not run.
    pub fn kill(&mut self) {
        self.node.take().expect("is running").process().kill();
    }

    /// Tells it to stop, and waits until it has.
    ///
    /// # Panics
    /// When it does not run, or does not end well.
    pub fn stop(&mut self) {
        let mut node = self.node.take().expect("is running");
        node.process().terminate();
        let status = node.process().wait(PATIENCE);
        assert!(status.success(), "{status}");
    }

    /// Sends its process a signal.
    ///
    /// # Panics
    /// When it does not run.
    pub fn signal(&mut self, signal: Signal) {
        self.process().signal(signal);
    }

    /// Its process.
    ///
    /// # Panics
    /// When it does not run.
    pub fn process(&mut self) -> &mut Process {
        self.node.as_mut().expect("is running").process()
    }
}

/// The nodes of a fleet.
#[derive(Debug)]
pub struct Mesh {
    /// Each node.
    pub machines: Vec<Machine>,
    /// What lets more nodes join.
    pub token: String,
    network: Option<Network>,
}

fn name(index: usize) -> String {
    format!("node-{}", index + 1)
}

impl Mesh {
    /// Three nodes on loopback, all of them voters.
    #[must_use]
    pub fn of_three() -> Self {
        Self::of((0..3).map(|_| Machine::on_loopback()).collect())
    }

    /// A fleet of these machines. The first three vote.
    #[must_use]
    pub fn of(machines: Vec<Machine>) -> Self {
        Self::joined(machines, None)
    }

    /// Three nodes in networks of their own, all of them voters.
    #[must_use]
    pub fn in_networks() -> Self {
        Self::in_networks_with(&[])
    }

    /// The same with these variables in the environment of each.
    #[must_use]
    pub fn in_networks_with(variables: &[(&'static str, PathBuf)]) -> Self {
        let network = Network::new(3);
        // Made afterwards: what asks a node must be where the node can be reached.
        let machine = |node| {
            let mut machine = Machine::new(Network::api_address(node), Network::mesh_address(node));
            machine.variables = variables.to_vec();
            machine
        };
        Self::joined((0..3).map(machine).collect(), Some(network))
    }

    fn joined(machines: Vec<Machine>, network: Option<Network>) -> Self {
        let mut mesh = Self { machines, token: String::new(), network };
        for (index, machine) in mesh.machines.iter_mut().enumerate() {
            machine.name = name(index);
        }
        mesh.start(0, &["--bootstrap"]);
        mesh.machines[0].node.as_mut().expect("is running").ready();
        mesh.new_token();
        for index in 1..mesh.machines.len() {
            mesh.join(index, index - 1);
        }
        mesh.ready();
        mesh
    }

    /// Makes what lets more nodes join anew, at the first node.
    ///
    /// # Panics
    /// When it is not made.
    pub fn new_token(&mut self) {
        let created = self.machines[0].home.muster(&["token", "create", "-o", "json"]);
        created.json()["token"].as_str().expect("a token").clone_into(&mut self.token);
    }

    /// Adds a machine, which joins through another one.
    pub fn add(&mut self, machine: Machine, through: usize) -> usize {
        let index = self.place(machine);
        self.join(index, through);
        index
    }

    /// Adds a machine, which does nothing yet.
    pub fn place(&mut self, mut machine: Machine) -> usize {
        let index = self.machines.len();
        machine.name = name(index);
        self.machines.push(machine);
        index
    }

    /// Starts a node that joins through another one, and may end at any moment.
    pub fn start_joining(&mut self, index: usize, through: usize) {
        let (through, token) = (self.machines[through].mesh.clone(), self.token.clone());
        let mut command = self.command(index, &["--join", &through, "--join-token", &token]);
        let machine = &mut self.machines[index];
        machine.node = Some(Node::spawn(&machine.home, &mut command));
    }

    /// Starts a node that joins through another one, or that may have done so.
    pub fn join(&mut self, index: usize, through: usize) {
        let (through, token) = (self.machines[through].mesh.clone(), self.token.clone());
        self.start(index, &["--join", &through, "--join-token", &token]);
    }

    /// What starts a node, with these arguments more.
    #[must_use]
    pub fn command(&self, index: usize, arguments: &[&str]) -> Command {
        let machine = &self.machines[index];
        let listening = ["--api", machine.listens.as_str(), "--mesh", machine.mesh.as_str()];
        let mut command = machine.home.command(["serve", "--name", &machine.name]);
        command.args(listening).args(arguments).env("MUSTER_ADMIN_TOKEN", ADMIN);
        command.envs(machine.variables.iter().map(|(name, value)| (name, value)));
        match &self.network {
            // Nobody else can reach this network.
            Some(network) => network.enter(index, command.arg("--insecure-http")),
            None => command,
        }
    }

    fn start(&mut self, index: usize, arguments: &[&str]) {
        let mut command = self.command(index, arguments);
        let machine = &mut self.machines[index];
        machine.node = Some(Node::start_command(&machine.home, &mut command));
    }

    /// Starts a node that may end by itself, and waits until it is ready or has ended; then this says how it did, and what it
    /// said.
    ///
    /// # Errors
    /// When it ends.
    pub fn try_restart(&mut self, index: usize) -> Result<(), (ExitStatus, String)> {
        self.try_start(index, &[])
    }

    /// The same for one that joins through another one.
    ///
    /// # Errors
    /// When it ends.
    pub fn try_join(&mut self, index: usize, through: usize) -> Result<(), (ExitStatus, String)> {
        let (through, token) = (self.machines[through].mesh.clone(), self.token.clone());
        self.try_start(index, &["--join", &through, "--join-token", &token])
    }

    fn try_start(&mut self, index: usize, arguments: &[&str]) -> Result<(), (ExitStatus, String)> {
        let mut command = self.command(index, arguments);
        let machine = &mut self.machines[index];
        machine.node = Some(Node::try_start_command(&machine.home, &mut command)?);
        Ok(())
    }

    /// Starts a node that is to end by itself, and returns how it did, and what it said.
    ///
    /// # Panics
    /// When it does not end in time.
    #[must_use]
    pub fn start_in_vain(&mut self, index: usize) -> (ExitStatus, String) {
        let home = &self.machines[index].home;
        let before = home.log().len();
        let status = home.start(&mut self.command(index, &[])).wait(PATIENCE);
        (status, home.log()[before..].to_owned())
    }

    /// Has another process take the place of a node's, and returns the old one as soon as the new one serves.
    ///
    /// # Panics
    /// When it does not in time.
    pub fn take_over(&mut self, index: usize) -> Node {
        let mut command = self.command(index, &["--take-over"]);
        let machine = &mut self.machines[index];
        let before = machine.home.log().len();
        let old = machine.node.take().expect("is running");
        let mut successor = old.successor(machine.home.start(&mut command));
        wait_for(PATIENCE, "the successor to serve", || {
            assert!(successor.process().ended().is_none(), "the successor has ended");
            machine.home.log()[before..].contains("the successor serves").then_some(())
        });
        machine.node = Some(successor);
        old
    }

    /// Starts a node that does not run any more.
    pub fn restart(&mut self, index: usize) {
        self.start(index, &[]);
    }

    /// Kills all of them at the same moment.
    pub fn kill_all(&mut self) {
        for machine in &mut self.machines {
            machine.signal(Signal::KILL);
        }
        for machine in &mut self.machines {
            machine.kill();
        }
    }

    /// The network between the nodes.
    ///
    /// # Panics
    /// When they are on loopback.
    #[must_use]
    pub fn network(&self) -> &Network {
        self.network.as_ref().expect("nodes in networks of their own")
    }

    /// Waits until every machine that runs is ready, which the third is when it votes.
    ///
    /// # Panics
    /// When that takes too long.
    pub fn ready(&mut self) {
        for machine in &mut self.machines {
            if let Some(node) = &mut machine.node {
                node.ready();
            }
        }
    }

    /// The administrator, asking this node.
    #[must_use]
    pub fn api(&self, index: usize) -> Api {
        self.machines[index].api.clone()
    }

    /// The administrator, asking each node.
    #[must_use]
    pub fn apis(&self) -> Vec<Api> {
        (0..self.machines.len()).map(|index| self.api(index)).collect()
    }

    /// What this node says of the fleet from its own state; nothing if it does not answer.
    #[must_use]
    pub fn cluster(&self, index: usize) -> Option<Value> {
        let machine = &self.machines[index];
        let answer =
            try_send(machine.node.as_ref().map(|_| machine.api.request("GET", "/api/cluster?consistency=local"))?);
        answer.ok().filter(|answer| answer.status == 200).map(|answer| answer.body)
    }

    /// Who leads: of those who think so, the one with the highest term.
    ///
    /// # Panics
    /// When nobody does for too long.
    #[must_use]
    pub fn leader(&self) -> usize {
        self.leader_among(&(0..self.machines.len()).collect::<Vec<_>>())
    }

    /// Who of these leads.
    ///
    /// # Panics
    /// When none of them does for too long.
    #[must_use]
    pub fn leader_among(&self, nodes: &[usize]) -> usize {
        wait_for(PATIENCE, "a leader", || {
            let leading = nodes.iter().filter_map(|index| {
                let cluster = self.cluster(*index).filter(|cluster| cluster["role"] == "leader")?;
                Some((cluster["term"].as_u64(), *index))
            });
            leading.max().map(|(_, index)| index)
        })
    }

    /// The state hash of every node at one index.
    ///
    /// # Panics
    /// When they do not come to one index.
    #[must_use]
    pub fn hashes(&self) -> BTreeSet<String> {
        wait_for(PATIENCE, "all nodes at one index", || {
            let seen: Vec<_> = (0..self.machines.len())
                .map(|index| self.cluster(index).unwrap_or_default())
                .map(|body| (body["appliedIndex"].as_u64(), body["stateHash"].as_str().map(ToOwned::to_owned)))
                .collect();
            let same = seen.iter().all(|(index, _)| index.is_some() && *index == seen[0].0);
            same.then(|| seen.into_iter().filter_map(|(_, hash)| hash).collect())
        })
    }
}
