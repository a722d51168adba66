//! Three nodes beside three members of etcd, on the same disk in the same run, as their callers see them: replicated writes
//! of 256 bytes, linearizable reads, what they cost, and how long writing stops when the leader is killed.
//!
//! Muster is asked over HTTP for models, etcd over gRPC for keys. Every write of Muster is checked, sealed against
//! repetition, and leaves an entry in the audit trail; a key of etcd is just a key.

use std::fs;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use hdrhistogram::Histogram;
use muster_tests::fleet::PATIENCE;
use muster_tests::mesh::{Mesh, free_address};
use muster_tests::process::wait_for;
use serde_json::json;
use tokio::runtime::Runtime;
use tonic::transport::Channel;

mod etcdserverpb {
    #![expect(unused_qualifications, reason = "it is generated")]
    tonic::include_proto!("etcdserverpb");
}

use etcdserverpb::kv_client::KvClient;
use etcdserverpb::{PutRequest, RangeRequest};

const TURN: Duration = Duration::from_secs(3);
const TURNS: usize = 3;
const OBJECTS: usize = 64;
const KILLS: usize = 3;
/// How many objects there are when a node is started again.
const MANY: usize = 100_000;

/// Something that can be written to and read from through several addresses.
trait Store: Sync {
    fn name(&self) -> &'static str;
    fn pids(&self) -> Vec<u32>;
    fn write(&self, through: usize, object: usize, value: &str) -> impl Future<Output = bool> + Send;
    /// Makes one object more.
    fn make(&self, through: usize, name: &str) -> impl Future<Output = bool> + Send;
    fn read(&self, through: usize, object: usize) -> impl Future<Output = bool> + Send;
}

struct Muster {
    mesh: Mesh,
    http: reqwest::Client,
    urls: Vec<String>,
    objects: Vec<String>,
}

const ADMIN: &str = "token-of-the-tests-administrator";

impl Muster {
    fn start(runtime: &Runtime) -> Self {
        let mesh = Mesh::of_three();
        let urls: Vec<_> = (0..3).map(|index| mesh.api(index).endpoint().to_owned()).collect();
        let http = reqwest::Client::builder().no_proxy().timeout(Duration::from_secs(20)).build().expect("a client");
        let objects = runtime.block_on(async {
            let mut objects = Vec::new();
            for object in 0..OBJECTS {
                let body = json!({"name": format!("object-{object}"), "provider": "openai-compatible", "modelId": "x",
                    "baseUrl": "http://10.0.0.1:9/v1"});
                let made = http.post(format!("{}/api/models", urls[0])).bearer_auth(ADMIN).json(&body).send().await;
                let made: serde_json::Value = made.expect("is answered").json().await.expect("an object");
                objects.push(made["id"].as_str().expect("an id").to_owned());
            }
            objects
        });
        Self { mesh, http, urls, objects }
    }
}

impl Store for Muster {
    fn name(&self) -> &'static str {
        "muster"
    }

    fn pids(&self) -> Vec<u32> {
        self.mesh.machines.iter().filter_map(|machine| machine.node.as_ref().map(|node| node.id())).collect()
    }

    async fn write(&self, through: usize, object: usize, value: &str) -> bool {
        let url = format!("{}/api/models/{}", self.urls[through % 3], self.objects[object]);
        let asked = self.http.patch(url).bearer_auth(ADMIN).json(&json!({ "description": value })).send().await;
        match asked {
            Ok(answer) => answer.status() == 200 && answer.bytes().await.is_ok(),
            Err(_) => false,
        }
    }

    async fn make(&self, through: usize, name: &str) -> bool {
        let body = json!({"name": name, "provider": "openai-compatible", "modelId": "x", "baseUrl": "http://10.0.0.1:9/v1",
            "description": "x".repeat(256)});
        let url = format!("{}/api/models", self.urls[through % 3]);
        match self.http.post(url).bearer_auth(ADMIN).json(&body).send().await {
            Ok(answer) => answer.status() == 201 && answer.bytes().await.is_ok(),
            Err(_) => false,
        }
    }

    async fn read(&self, through: usize, object: usize) -> bool {
        let url = format!("{}/api/models/{}", self.urls[through % 3], self.objects[object]);
        match self.http.get(url).bearer_auth(ADMIN).send().await {
            Ok(answer) => answer.status() == 200 && answer.bytes().await.is_ok(),
            Err(_) => false,
        }
    }
}

struct Etcd {
    members: Vec<Option<Child>>,
    clients: Vec<KvClient<Channel>>,
    urls: Vec<String>,
    peers: Vec<String>,
    directory: tempfile::TempDir,
}

impl Etcd {
    fn start(runtime: &Runtime) -> Option<Self> {
        let directory = tempfile::tempdir().expect("a directory");
        let (clients, peers): (Vec<_>, Vec<_>) =
            (0..3).map(|_| (format!("http://{}", free_address()), format!("http://{}", free_address()))).unzip();
        let start = |index: usize| member(directory.path(), index, &clients[index], &peers);
        let members: Vec<_> = (0..3).map(|index| start(index).ok()).collect::<Option<_>>()?;
        let members = members.into_iter().map(Some).collect();
        let channels = runtime.block_on(async {
            clients
                .iter()
                .map(|url| KvClient::new(Channel::from_shared(url.clone()).expect("a URL").connect_lazy()))
                .collect()
        });
        let etcd = Self { members, clients: channels, urls: clients, peers, directory };
        let ready = || runtime.block_on(etcd.write(0, 0, "ready")).then_some(());
        wait_for(PATIENCE, "etcd to be ready", ready);
        for object in 0..OBJECTS {
            assert!(runtime.block_on(etcd.write(1, object, "ready")), "etcd does not write");
        }
        Some(etcd)
    }

    /// Kills a member and starts it again.
    fn bounce(&mut self, index: usize) {
        if let Some(member) = &mut self.members[index] {
            member.kill().expect("is killed");
            let _ = member.wait();
        }
        self.members[index] = member(self.directory.path(), index, &self.urls[index], &self.peers).ok();
    }

    fn leader(&self) -> usize {
        let leads = |url: &String| {
            let metrics = reqwest::blocking::get(format!("{url}/metrics")).ok()?.text().ok()?;
            metrics.lines().any(|line| line == "etcd_server_is_leader 1").then_some(())
        };
        self.urls.iter().position(|url| leads(url).is_some()).expect("a leader")
    }
}

fn member(directory: &Path, index: usize, client: &str, peers: &[String]) -> std::io::Result<Child> {
    let cluster: Vec<_> = peers.iter().enumerate().map(|(index, peer)| format!("m{index}={peer}")).collect();
    let (peer, cluster) = (&peers[index], cluster.join(","));
    Command::new("etcd")
        .args(["--name", &format!("m{index}"), "--listen-client-urls", client, "--advertise-client-urls", client])
        .args(["--listen-peer-urls", peer, "--initial-advertise-peer-urls", peer, "--initial-cluster", &cluster])
        .arg("--data-dir")
        .arg(directory.join(index.to_string()))
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
}

impl Drop for Etcd {
    fn drop(&mut self) {
        for member in self.members.iter_mut().flatten() {
            let _ = member.kill();
            let _ = member.wait();
        }
    }
}

impl Store for Etcd {
    fn name(&self) -> &'static str {
        "etcd"
    }

    fn pids(&self) -> Vec<u32> {
        self.members.iter().flatten().map(Child::id).collect()
    }

    async fn write(&self, through: usize, object: usize, value: &str) -> bool {
        let key = format!("object-{object}").into_bytes();
        let request = PutRequest { key, value: value.as_bytes().to_vec() };
        let asked = tokio::time::timeout(Duration::from_secs(20), self.clients[through % 3].clone().put(request)).await;
        matches!(asked, Ok(Ok(_)))
    }

    async fn make(&self, through: usize, name: &str) -> bool {
        let request = PutRequest { key: name.as_bytes().to_vec(), value: vec![b'x'; 256] };
        let asked = tokio::time::timeout(Duration::from_secs(20), self.clients[through % 3].clone().put(request)).await;
        matches!(asked, Ok(Ok(_)))
    }

    async fn read(&self, through: usize, object: usize) -> bool {
        let request = RangeRequest { key: format!("object-{object}").into_bytes() };
        let asked =
            tokio::time::timeout(Duration::from_secs(20), self.clients[through % 3].clone().range(request)).await;
        matches!(asked, Ok(Ok(answer)) if answer.get_ref().count == 1)
    }
}

/// CPU time of these processes, in milliseconds.
fn cpu(pids: &[u32]) -> u64 {
    let ticks = pids.iter().map(|pid| {
        let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
        let fields: Vec<_> = stat.rsplit_once(')').map_or("", |(_, rest)| rest).split_whitespace().collect();
        let number = |index: usize| fields.get(index).and_then(|text| text.parse::<u64>().ok()).unwrap_or(0);
        number(11) + number(12)
    });
    ticks.sum::<u64>() * 10
}

/// Resident memory of these processes together, in MiB.
fn memory(pids: &[u32]) -> u64 {
    let resident = |pid: &u32| {
        let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
        let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:").map(ToOwned::to_owned));
        line.and_then(|line| line.split_whitespace().next()?.parse::<u64>().ok()).unwrap_or(0)
    };
    pids.iter().map(resident).sum::<u64>() / 1024
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Kind {
    Write,
    Read,
}

struct Turn {
    rate: f64,
    cost: f64,
    p50: u64,
    p99: u64,
}

fn turn(runtime: &Runtime, store: &impl Store, kind: Kind, callers: usize) -> Turn {
    let (pids, done) = (store.pids(), Arc::new(AtomicU64::new(0)));
    let (before, begun) = (cpu(&pids), Instant::now());
    let value = "x".repeat(256);
    let times = runtime.block_on(async {
        let call = |caller: usize| {
            let (done, value) = (Arc::clone(&done), value.clone());
            async move {
                let mut times = Histogram::<u64>::new(3).expect("a histogram");
                let mut object = caller;
                while begun.elapsed() < TURN {
                    let sent = Instant::now();
                    object = (object + 7) % OBJECTS;
                    let worked = match kind {
                        Kind::Write => store.write(caller, object, &value).await,
                        Kind::Read => store.read(caller, object).await,
                    };
                    assert!(worked, "{} failed", store.name());
                    times.record(u64::try_from(sent.elapsed().as_micros()).unwrap_or(u64::MAX)).expect("in range");
                    done.fetch_add(1, Ordering::Relaxed);
                }
                times
            }
        };
        futures_util::future::join_all((0..callers).map(call)).await
    });
    let mut all = Histogram::<u64>::new(3).expect("a histogram");
    times.iter().for_each(|times| all.add(times).expect("the same range"));
    let count = done.load(Ordering::Relaxed).max(1) as f64;
    Turn {
        rate: count / begun.elapsed().as_secs_f64(),
        cost: (cpu(&pids) - before) as f64 * 1000.0 / count,
        p50: all.value_at_quantile(0.5),
        p99: all.value_at_quantile(0.99),
    }
}

fn report(runtime: &Runtime, muster: &Muster, etcd: Option<&Etcd>, kind: Kind, callers: usize) {
    let median = |mut turns: Vec<Turn>| {
        turns.sort_by(|a, b| a.rate.total_cmp(&b.rate));
        turns.swap_remove(TURNS / 2)
    };
    let (mut ours, mut theirs) = (Vec::new(), Vec::new());
    // They take turns, so that whatever else the machine does hits both.
    for _ in 0..TURNS {
        if let Some(etcd) = etcd {
            theirs.push(turn(runtime, etcd, kind, callers));
        }
        ours.push(turn(runtime, muster, kind, callers));
    }
    let what = if kind == Kind::Write { "writes" } else { "reads" };
    let show = |name: &str, turn: &Turn| {
        let Turn { rate, cost, p50, p99 } = turn;
        println!("{what:<7} {callers:>7} {name:<7} {rate:>9.0} {p50:>9} {p99:>9} {cost:>18.0}");
    };
    let ours = median(ours);
    if !theirs.is_empty() {
        let theirs = median(theirs);
        show("etcd", &theirs);
        show("muster", &ours);
        println!(
            "{what:<7} {callers:>7} muster does {:.2} times as many, at {:.2} times the CPU",
            ours.rate / theirs.rate,
            ours.cost / theirs.cost
        );
    } else {
        show("muster", &ours);
    }
}

/// Makes so many objects that a start has something to read.
fn fill(runtime: &Runtime, store: &impl Store) {
    let (begun, next) = (Instant::now(), AtomicU64::new(0));
    runtime.block_on(async {
        let caller = |through: usize| {
            let next = &next;
            async move {
                loop {
                    let number = next.fetch_add(1, Ordering::Relaxed);
                    if number >= MANY as u64 {
                        return;
                    }
                    assert!(store.make(through, &format!("one of many {number}")).await, "{} failed", store.name());
                }
            }
        };
        futures_util::future::join_all((0..64).map(caller)).await
    });
    let (rate, size) = (MANY as f64 / begun.elapsed().as_secs_f64(), memory(&store.pids()) / 3);
    println!("{MANY} objects made by 64 callers: {:<7} {rate:.0} per s; {size} MiB for each of three", store.name());
}

/// How long it takes from the start of a node to its first linearizable answer.
fn first_answer(runtime: &Runtime, store: &impl Store, node: usize) {
    let begun = Instant::now();
    runtime.block_on(async {
        while !store.read(node, 0).await {
            assert!(begun.elapsed() < PATIENCE, "it does not answer");
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    });
    println!("{MANY} objects, started again after signal 9, first read: {:<7} {:?}", store.name(), begun.elapsed());
}

fn restarts(runtime: &Runtime, muster: &mut Muster, etcd: Option<&mut Etcd>) {
    if let Some(etcd) = etcd {
        fill(runtime, etcd);
        for _ in 0..TURNS {
            let follower = (etcd.leader() + 1) % 3;
            etcd.bounce(follower);
            first_answer(runtime, etcd, follower);
        }
    }
    fill(runtime, muster);
    for _ in 0..TURNS {
        let follower = (muster.mesh.leader() + 1) % 3;
        muster.mesh.machines[follower].kill();
        muster.mesh.restart(follower);
        first_answer(runtime, muster, follower);
    }
}

/// How long it takes to the next acknowledged write when the leader has just been killed.
fn failover(runtime: &Runtime, store: &impl Store, survivor: usize) -> Duration {
    let begun = Instant::now();
    runtime.block_on(async {
        while !store.write(survivor, 0, "after").await {
            assert!(begun.elapsed() < PATIENCE, "no write goes through");
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    });
    begun.elapsed()
}

/// Which parts to run, if not all: `cargo bench --bench cluster -- writes-64 alone`.
struct Wanted(Vec<String>);

impl Wanted {
    fn from_arguments() -> Self {
        Self(std::env::args().skip(1).filter(|argument| !argument.starts_with('-')).collect())
    }

    /// Whether Muster is measured without etcd.
    fn alone(&self) -> bool {
        self.0.iter().any(|name| name == "alone")
    }

    fn is(&self, name: &str) -> bool {
        let parts = || self.0.iter().filter(|name| *name != "alone");
        parts().next().is_none() || parts().any(|part| part == name)
    }
}

fn main() {
    let wanted = Wanted::from_arguments();
    let runtime = Runtime::new().expect("a runtime");
    let etcd = if wanted.alone() { None } else { Etcd::start(&runtime) };
    if etcd.is_none() && !wanted.alone() {
        println!("etcd is not there (apt-get install etcd-server): muster alone");
    }
    let mut muster = Muster::start(&runtime);
    std::thread::sleep(Duration::from_secs(3));
    for (name, pids) in [("etcd", etcd.as_ref().map(Store::pids)), ("muster", Some(muster.pids()))] {
        if let Some(pids) = pids {
            println!("idle    {name:<7} {} MiB for each of three", memory(&pids) / 3);
        }
    }
    println!(
        "{:<7} {:>7} {:<7} {:>9} {:>9} {:>9} {:>18}",
        "what", "callers", "", "per s", "p50 us", "p99 us", "CPU-ms/1000"
    );
    for callers in [1, 16, 64].into_iter().filter(|callers| wanted.is(&format!("writes-{callers}"))) {
        report(&runtime, &muster, etcd.as_ref(), Kind::Write, callers);
    }
    for callers in [1, 64].into_iter().filter(|callers| wanted.is(&format!("reads-{callers}"))) {
        report(&runtime, &muster, etcd.as_ref(), Kind::Read, callers);
    }
    for (name, pids) in [("etcd", etcd.as_ref().map(Store::pids)), ("muster", Some(muster.pids()))] {
        if let Some(pids) = pids {
            println!("loaded  {name:<7} {} MiB for each of three", memory(&pids) / 3);
        }
    }
    let mut etcd = etcd;
    if wanted.is("restart") {
        restarts(&runtime, &mut muster, etcd.as_mut());
    }
    if !wanted.is("failover") {
        return;
    }
    for _ in 0..KILLS {
        let leader = muster.mesh.leader();
        muster.mesh.machines[leader].kill();
        println!("leader killed to the next write: muster {:?}", failover(&runtime, &muster, leader + 1));
        muster.mesh.restart(leader);
        muster.mesh.ready();
    }
    if let Some(mut etcd) = etcd {
        // Once: a member that returns needs another command line.
        let leader = etcd.leader();
        if let Some(mut member) = etcd.members[leader].take() {
            member.kill().expect("is killed");
            let _ = member.wait();
        }
        println!("leader killed to the next write: etcd   {:?}", failover(&runtime, &etcd, leader + 1));
    }
}
