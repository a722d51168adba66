//! A network of its own for every node, joined by a switch, and faults in it: links cut in one direction or in both, and
//! random loss. Each node has a second network that no fault touches, on which its API is asked.
//!
//! A namespace lives as long as the process that holds it, and that one as long as the test: however a test ends, nothing
//! is left. Addresses and names need not be free anywhere else.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::File;
use std::io::{BufRead, BufReader, Write};
use std::net::UdpSocket;
use std::os::fd::AsFd;
use std::process::{Child, Command, Stdio};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};
use serde_json::Value;

use crate::process::run;

/// What must work in a network namespace of its own for all this to work.
pub(crate) const TRIAL: &str = "ip link add trial type bridge && ip link add left type veth peer name right && \
     nft 'table inet trial { counter seen {}; chain arriving { type filter hook input priority 0; \
     ip saddr 192.0.2.1 counter name seen drop; numgen random mod 100 < 20 drop; }; }'";

/// From one node to another, by their positions.
pub type Link = (usize, usize);

/// A network namespace, and the process that holds it.
#[derive(Debug)]
struct Namespace {
    holder: Child,
}

impl Namespace {
    fn new() -> Self {
        // It ends with the test at the latest: then nobody holds the other end of its input.
        let mut holder = Command::new("unshare")
            .args(["--net", "sh", "-c", "echo made && read line"])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .expect("unshare starts");
        let mut line = String::new();
        BufReader::new(holder.stdout.take().expect("a pipe")).read_line(&mut line).expect("reads");
        assert_eq!(line, "made\n", "a network namespace");
        Self { holder }
    }

    fn path(&self) -> String {
        format!("/proc/{}/ns/net", self.holder.id())
    }

    /// A command that runs in it.
    fn command(&self, program: &str) -> Command {
        let mut command = Command::new("nsenter");
        command.args([&format!("--net={}", self.path()), "--", program]);
        command
    }

    /// Runs a program in it with this input.
    fn feed(&self, program: &str, arguments: &[&str], input: &str) {
        let mut command = self.command(program);
        command.args(arguments).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = command.spawn().expect("nsenter starts");
        child.stdin.take().expect("a pipe").write_all(input.as_bytes()).expect("takes its input");
        let output = child.wait_with_output().expect("ends");
        assert!(output.status.success(), "{program}: {output:?}\n{input}");
    }
}

impl Drop for Namespace {
    fn drop(&mut self) {
        let _ = self.holder.kill();
        let _ = self.holder.wait();
    }
}

/// What is wrong with the network.
#[derive(Debug, Default)]
struct Fault {
    what: String,
    links: BTreeSet<Link>,
}

/// The networks of some nodes, and the faults between them.
#[derive(Debug)]
pub struct Network {
    nodes: Vec<Namespace>,
    fault: Mutex<Fault>,
    // The last to go: the others hang on its switch.
    _hub: Namespace,
}

fn mesh_ip(node: usize) -> String {
    format!("10.77.0.{}", node + 1)
}

fn api_ip(node: usize) -> String {
    format!("10.78.{}.2", node + 1)
}

impl Network {
    /// Networks for so many nodes. The calling thread, and the threads and processes that it starts from then on, are
    /// where the nodes' APIs can be reached, and nothing else.
    ///
    /// # Panics
    /// When they can not be made.
    #[must_use]
    pub fn new(nodes: usize) -> Self {
        let hub = Namespace::new();
        let nodes: Vec<_> = (0..nodes).map(|_| Namespace::new()).collect();
        let mut links = "link set lo up\nlink add switch type bridge\nlink set switch up\n".to_owned();
        for (node, namespace) in nodes.iter().enumerate() {
            let (number, holder) = (node + 1, namespace.holder.id());
            links += &format!(
                "link add mesh{number} type veth peer name mesh netns {holder}\n\
                 link set mesh{number} master switch up\n\
                 link add api{number} type veth peer name api netns {holder}\n\
                 addr add 10.78.{number}.1/30 dev api{number}\n\
                 link set api{number} up\n"
            );
        }
        hub.feed("ip", &["-batch", "-"], &links);
        let counters: String = (0..nodes.len()).map(|from| format!("counter from{from} {{}}\n")).collect();
        for (node, namespace) in nodes.iter().enumerate() {
            let (mesh, api) = (mesh_ip(node), api_ip(node));
            let own = format!(
                "link set lo up\naddr add {mesh}/24 dev mesh\nlink set mesh up\naddr add {api}/30 dev api\n\
                 link set api up\n"
            );
            namespace.feed("ip", &["-batch", "-"], &own);
            // Dropped where they arrive: who sends does not notice.
            let table = format!(
                "table inet faults {{\n{counters}chain arriving {{ type filter hook input priority 0; policy accept; }}\n}}\n"
            );
            namespace.feed("nft", &["-f", "-"], &table);
        }
        let file = File::open(hub.path()).expect("a namespace");
        move_into_link_name_space(file.as_fd(), Some(LinkNameSpaceType::Network)).expect("enters the namespace");
        Self { nodes, fault: Mutex::default(), _hub: hub }
    }

    /// Where this node's API listens.
    #[must_use]
    pub fn api_address(node: usize) -> String {
        format!("{}:8000", api_ip(node))
    }

    /// Where this node's mesh listens.
    #[must_use]
    pub fn mesh_address(node: usize) -> String {
        format!("{}:7946", mesh_ip(node))
    }

    /// The same command, but run as this node. It must have nothing but its own environment, and no input.
    #[must_use]
    pub fn enter(&self, node: usize, command: &Command) -> Command {
        let mut entered = self.nodes[node].command(command.get_program().to_str().expect("a path in UTF-8"));
        entered.args(command.get_args()).env_clear().stdin(Stdio::null());
        entered.envs(command.get_envs().filter_map(|(name, value)| Some((name, value?))));
        entered
    }

    /// Cuts links: what the first of a pair sends does not arrive at the second. Whatever was wrong before is healed.
    pub fn cut(&self, links: &[Link]) {
        self.fault(format!("cut {links:?}"), links, "");
    }

    /// Cuts a node off from all others, in both directions.
    pub fn isolate(&self, node: usize) {
        let others = (0..self.nodes.len()).filter(|other| *other != node);
        self.cut(&others.flat_map(|other| [(node, other), (other, node)]).collect::<Vec<_>>());
    }

    /// Cuts all links.
    pub fn split(&self) {
        self.cut(&self.links());
    }

    /// Loses so many of a hundred packets on every link.
    pub fn lose(&self, percent: u32) {
        self.fault(format!("lose {percent} %"), &self.links(), &format!("numgen random mod 100 < {percent} "));
    }

    /// Heals what was wrong, and returns how many packets were dropped.
    ///
    /// # Panics
    /// When nothing was wrong, or a link that was to drop packets has dropped none.
    pub fn heal(&self) -> u64 {
        for namespace in &self.nodes {
            namespace.feed("nft", &["-f", "-"], "flush chain inet faults arriving\n");
        }
        let fault = std::mem::take(&mut *self.fault.lock().unwrap_or_else(PoisonError::into_inner));
        assert!(!fault.links.is_empty(), "there is a fault to heal");
        let dropped: BTreeMap<_, _> = fault.links.iter().map(|link| (*link, self.dropped(*link))).collect();
        println!("{}: dropped {dropped:?}", fault.what);
        assert!(dropped.values().all(|packets| *packets > 0), "{}: dropped {dropped:?}", fault.what);
        dropped.values().sum()
    }

    /// How many packets the fault has dropped on this link so far.
    ///
    /// # Panics
    /// When the counter can not be read.
    #[must_use]
    pub fn dropped(&self, (from, to): Link) -> u64 {
        let output = run(self.nodes[to].command("nft").args(["-j", "list", "counters", "table", "inet", "faults"]));
        assert!(output.status.success(), "{output:?}");
        let listed: Value = serde_json::from_slice(&output.stdout).expect("JSON of nft");
        let name = format!("from{from}");
        let counters = listed["nftables"].as_array().expect("a list").iter().map(|item| &item["counter"]);
        let mut packets = counters.filter(|counter| counter["name"] == *name);
        packets.find_map(|counter| counter["packets"].as_u64()).expect("the counter of a link")
    }

    /// Whether a datagram of the one arrives at the other.
    ///
    /// # Panics
    /// When it can not be sent.
    #[must_use]
    pub fn arrives(&self, (from, to): Link) -> bool {
        let (sender, receiver) = (self.socket(from), self.socket(to));
        receiver.set_read_timeout(Some(Duration::from_millis(100))).expect("takes a limit");
        let _ = sender.send_to(b"x", receiver.local_addr().expect("an address")).expect("who sends does not notice");
        receiver.recv(&mut [0; 8]).is_ok()
    }

    fn socket(&self, node: usize) -> UdpSocket {
        let namespace = File::open(self.nodes[node].path()).expect("a namespace");
        let inside = std::thread::spawn(move || {
            move_into_link_name_space(namespace.as_fd(), Some(LinkNameSpaceType::Network)).expect("enters it");
            UdpSocket::bind(format!("{}:0", mesh_ip(node))).expect("a socket")
        });
        inside.join().expect("a socket")
    }

    /// All links, in both directions.
    #[must_use]
    pub fn links(&self) -> Vec<Link> {
        let all = 0..self.nodes.len();
        all.clone().flat_map(|from| all.clone().map(move |to| (from, to))).filter(|(from, to)| from != to).collect()
    }

    fn fault(&self, what: String, links: &[Link], which: &str) {
        for (to, namespace) in self.nodes.iter().enumerate() {
            let mut rules = "flush chain inet faults arriving\nreset counters table inet faults\n".to_owned();
            for (from, _) in links.iter().filter(|link| link.1 == to) {
                let source = mesh_ip(*from);
                rules += &format!(
                    "add rule inet faults arriving iifname mesh ip saddr {source} {which}counter name from{from} drop\n"
                );
            }
            namespace.feed("nft", &["-f", "-"], &rules);
        }
        *self.fault.lock().unwrap_or_else(PoisonError::into_inner) =
            Fault { what, links: links.iter().copied().collect() };
    }
}
