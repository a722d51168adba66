//! Several nodes in one process, over real sockets and real disks: joining, voting, forwarding, losing the leader.

use std::collections::BTreeSet;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use tempfile::TempDir;
use tokio::runtime::Handle;

use super::{FoundingOptions, Identity, JoinError, JoinToken, MeshSockets, Node, NodeOptions, StartError, found, join};
use crate::clock::SystemClock;
use crate::clocks::Rules;
use crate::consensus::{Role, Timing, Transferred, Unable};
use crate::ids::NodeId;
use crate::leader::{Membership, Retention};
use crate::membership::Profile;
use crate::rows::{
    CreateCredential, CredentialFields, JoinKey, NodeFacts, Origin, Settings, UpdateSettings, answer::Outcome,
    command::Body, credential_fields::Kind,
};
use crate::sealing::{SecretText, generate_key};
use crate::state::key_hash;
use crate::transport::{Inject, Purpose};
use crate::wire::ProposeRequest;
use crate::wire::mesh_client::MeshClient;

const PATIENCE: Duration = Duration::from_secs(60);

/// Less patient than a real fleet's.
const RULES: Membership = Membership { silence: Duration::from_secs(3), stability: Duration::from_millis(500) };

pub(super) fn options(directory: &Path, name: &str, mesh: &MeshSockets) -> NodeOptions {
    NodeOptions {
        directory: directory.to_owned(),
        facts: NodeFacts {
            name: name.to_owned(),
            mesh: mesh.calls.local_addr().expect("an address").to_string(),
            max_level: 1,
            ..NodeFacts::default()
        },
        timing: Timing::Lan,
        step: None,
        gossip: Profile::default(),
        clock: Arc::new(SystemClock),
        clocks: Rules::default(),
        duties: vec![Arc::new(Retention::default()), Arc::new(RULES)],
        services: crate::transport::Services::default(),
        runtime: Handle::current(),
    }
}

pub(super) async fn eventually<T>(what: &str, mut look: impl FnMut() -> Option<T>) -> T {
    let waiting = async {
        loop {
            if let Some(found) = look() {
                return found;
            }
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    tokio::time::timeout(PATIENCE, waiting).await.unwrap_or_else(|_| panic!("waited in vain for {what}"))
}

pub(super) struct Fleet {
    pub directory: TempDir,
    pub nodes: Vec<Option<Node>>,
    pub addresses: Vec<String>,
}

impl Fleet {
    pub async fn founded() -> Self {
        let directory = tempfile::tempdir().expect("a directory");
        let mut fleet = Self { directory, nodes: Vec::new(), addresses: Vec::new() };
        let mesh = MeshSockets::bind(([127, 0, 0, 1], 0).into()).expect("a port");
        found(options(&fleet.path(0), "node 0", &mesh), FoundingOptions::default()).await.expect("is founded");
        fleet.addresses.push(mesh.calls.local_addr().expect("an address").to_string());
        fleet.start(0, mesh).await;
        fleet
    }

    pub fn path(&self, index: usize) -> std::path::PathBuf {
        self.directory.path().join(index.to_string())
    }

    pub async fn start(&mut self, index: usize, mesh: MeshSockets) {
        let name = format!("node {index}");
        let node = Node::start(options(&self.path(index), &name, &mesh), mesh).await.expect("starts");
        self.nodes.resize_with(self.nodes.len().max(index + 1), || None);
        self.nodes[index] = Some(node);
    }

    pub async fn restart(&mut self, index: usize) {
        let mesh = MeshSockets::bind(self.addresses[index].parse().expect("an address")).expect("its port again");
        self.start(index, mesh).await;
    }

    pub fn node(&self, index: usize) -> &Node {
        self.nodes[index].as_ref().expect("is running")
    }

    pub async fn stop(&mut self, index: usize) {
        self.nodes[index].take().expect("is running").shutdown().await.expect("stops");
    }

    pub async fn token(&self, uses: Option<u32>, ttl_ms: Option<u64>) -> JoinToken {
        let secret = generate_key().expect("a key");
        let fields = CredentialFields {
            sha256: key_hash(secret.reveal()).to_vec().into(),
            ttl_ms,
            kind: Some(Kind::Join(JoinKey { uses_left: uses })),
            ..CredentialFields::default()
        };
        let body = Body::CreateCredential(CreateCredential { fields: Some(fields) });
        let node = self.node(0);
        node.consensus().propose(Origin::default(), body).await.expect("is answered");
        JoinToken::new(&node.identity().ca_certificate, secret)
    }

    pub async fn join(&mut self, through: usize, token: &JoinToken) -> Result<(), JoinError> {
        let address = self.addresses[through].clone();
        self.join_through(&[address], token).await
    }

    pub async fn join_through(&mut self, addresses: &[String], token: &JoinToken) -> Result<(), JoinError> {
        let index = self.nodes.len();
        let mesh = MeshSockets::bind(([127, 0, 0, 1], 0).into()).expect("a port");
        let options = options(&self.path(index), &format!("node {index}"), &mesh);
        join(&options, || async { addresses.to_vec() }, token).await?;
        self.addresses.push(mesh.calls.local_addr().expect("an address").to_string());
        self.start(index, mesh).await;
        Ok(())
    }

    pub async fn of_three() -> Self {
        let mut fleet = Self::founded().await;
        let token = fleet.token(None, None).await;
        fleet.join(0, &token).await.expect("joins");
        // Through a node that may not have caught up itself.
        fleet.join(1, &token).await.expect("joins");
        let three: BTreeSet<_> = [1, 2, 3].map(NodeId).into();
        for index in 0..3 {
            let consensus = Arc::clone(fleet.node(index).consensus());
            eventually("three voters", || (consensus.status().voters == [three.clone()]).then_some(())).await;
        }
        fleet
    }

    pub fn leader(&self) -> Option<usize> {
        let leads = |node: &Node| matches!(node.consensus().status().role, Role::Leader { .. });
        self.nodes.iter().position(|node| node.as_ref().is_some_and(leads))
    }
}

pub(super) async fn set_port(node: &Node, port: u64) {
    let changes = Some(Settings { default_port: Some(port), ..Settings::default() });
    let body = Body::UpdateSettings(UpdateSettings { changes, ..UpdateSettings::default() });
    let answer = node.consensus().propose(Origin::default(), body).await.expect("is answered");
    assert!(matches!(answer.outcome, Some(Outcome::Settings(_))), "{answer:?}");
}

pub(super) async fn port(node: &Node) -> Option<u64> {
    let view = node.consensus().linearizable().await.expect("a quorum confirms");
    view.settings().expect("readable").0.default_port
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn three_nodes_vote_and_each_writes_and_reads_for_all() {
    let mut fleet = Fleet::of_three().await;
    for (value, writer) in (2000..).zip([0, 1, 2, 1]) {
        set_port(fleet.node(writer), value).await;
        for reader in 0..3 {
            assert_eq!(port(fleet.node(reader)).await, Some(value), "written through {writer}, read through {reader}");
        }
    }
    let sealed = fleet.node(1).keyring().seal("a secret", &SecretText::new("text".to_owned())).expect("holds the key");
    assert_eq!(fleet.node(2).keyring().open("a secret", &sealed).expect("opens").reveal(), "text");
    for index in 0..3 {
        fleet.stop(index).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_another_node_sends_is_looked_at_before_it_is_in_the_log() {
    let fleet = Fleet::of_three().await;
    let leader = eventually("a leader", || fleet.leader()).await;
    let sender = fleet.node((leader + 1) % 3);
    let to = fleet.node(leader).identity().node;
    let inject = Inject { registered: Arc::clone(sender.channels.registered()), to };
    let mut client = MeshClient::with_interceptor(sender.channels.to(to, Purpose::Calls), inject);
    let before = fleet.node(leader).consensus().status().last_log;
    // Without a body, as an older node sees what it does not know; no command at all; too many.
    for commands in [vec![Bytes::new()], vec![Bytes::from_static(b"\xff")], vec![Bytes::new(); 65]] {
        let refused = client.propose_all(ProposeRequest { commands }).await.expect_err("is refused");
        assert_eq!(refused.code(), tonic::Code::InvalidArgument, "{refused}");
    }
    assert_eq!(fleet.node(leader).consensus().status().last_log, before);
    set_port(sender, 2000).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_loss_of_the_leader_loses_no_acknowledged_write() {
    let mut fleet = Fleet::of_three().await;
    set_port(fleet.node(0), 2001).await;
    let leader = eventually("a leader", || fleet.leader()).await;
    fleet.stop(leader).await;
    let survivor = (leader + 1) % 3;
    set_port(fleet.node(survivor), 2002).await;
    assert_eq!(port(fleet.node((leader + 2) % 3)).await, Some(2002));
    fleet.restart(leader).await;
    assert_eq!(port(fleet.node(leader)).await, Some(2002));
    set_port(fleet.node(leader), 2003).await;
    let consensus = |index: usize| Arc::clone(fleet.node(index).consensus());
    let views = [consensus(0), consensus(1), consensus(2)];
    let same = || {
        let seen = views.each_ref().map(|consensus| consensus.local());
        let equal = seen.iter().all(|view| view.index() == seen[0].index());
        equal.then(|| seen.map(|view| view.fingerprint().history))
    };
    let hashes = eventually("equal indexes", same).await;
    assert!(hashes.iter().all(|hash| *hash == hashes[0]), "equal states at an equal index");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_lead_passes_to_another_voter_on_request_and_writes_wait_for_it() {
    let alone = Fleet::founded().await;
    let limit = Duration::from_secs(20);
    assert_eq!(alone.node(0).consensus().transfer(None, limit).await, Ok(Transferred::Nobody(Unable::NoVoter)));
    set_port(alone.node(0), 5000).await;
    let fleet = Fleet::of_three().await;
    let leads = |index: &usize| matches!(fleet.node(*index).consensus().status().role, Role::Leader { .. });
    for turn in 0..3_u16 {
        let before = eventually("a leader", || (0..3).find(leads)).await;
        let follower = (before + 1) % 3;
        assert_eq!(fleet.node(follower).consensus().transfer(None, limit).await, Ok(Transferred::NotLeader));
        let node = fleet.node(before);
        let (moved, ()) = tokio::join!(node.consensus().transfer(None, limit), set_port(node, 6000 + u64::from(turn)));
        let Ok(Transferred::To(leader)) = moved else { panic!("{moved:?}") };
        assert_ne!(leader, node.identity().node);
        assert_eq!(port(fleet.node(follower)).await, Some(6000 + u64::from(turn)));
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_lead_that_is_not_taken_goes_to_the_next_voter() {
    let mut fleet = Fleet::of_three().await;
    let before = eventually("a leader", || fleet.leader()).await;
    let (gone, next) = ((before + 1) % 3, (before + 2) % 3);
    let [lost, other] = [gone, next].map(|index| fleet.node(index).identity().node);
    fleet.stop(gone).await;
    // Nobody is elected unless he is asked to be.
    fleet.node(next).consensus().never_stands();
    let leads = fleet.node(before).consensus();
    let limit = Duration::from_secs(20);
    // One that does not answer is not asked, and nothing has changed.
    assert_eq!(leads.transfer(Some(lost), limit).await, Ok(Transferred::Nobody(Unable::Silent)));
    let status = leads.status();
    assert!(matches!(status.role, Role::Leader { .. }), "{status:?}");
    set_port(fleet.node(before), 7000).await;
    // As if it had died after it was found ready.
    let given = leads.give(lost, &leads.status(), tokio::time::Instant::now() + limit).await;
    assert_eq!(given, Ok(Transferred::To(other)));
    set_port(fleet.node(before), 7001).await;
    assert_eq!(port(fleet.node(next)).await, Some(7001));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_token_that_is_wrong_expired_or_used_up_lets_nobody_in() {
    let mut fleet = Fleet::founded().await;
    let refused = |outcome: Result<(), JoinError>| match outcome {
        Err(JoinError::Refused(why)) => why,
        other => panic!("{other:?}"),
    };
    let once = fleet.token(Some(1), None).await;
    let elsewhere = JoinToken::new(b"another authority", SecretText::new("canary".to_owned()));
    let unknown = JoinToken::new(&fleet.node(0).identity().ca_certificate, SecretText::new("guess".to_owned()));
    assert!(refused(fleet.join(0, &unknown).await).contains("unknown"));
    let expired = fleet.token(None, Some(1)).await;
    let published = Arc::clone(fleet.node(0).consensus().published());
    let before = published.time().expect("readable");
    eventually("the time to pass", || (published.time().expect("readable").0 > before.0 + 5).then_some(())).await;
    assert!(refused(fleet.join(0, &expired).await).contains("expired"));
    fleet.join(0, &once).await.expect("the first use");
    assert!(refused(fleet.join(0, &once).await).contains("used up"));
    // A server of another fleet is never sent the secret: the joiner waits for one that it can believe.
    let waiting = tokio::time::timeout(Duration::from_secs(2), fleet.join(0, &elsewhere));
    assert!(waiting.await.is_err(), "it goes on asking");
}

/// One that takes a connection and never says anything, as behind a firewall, costs its own time and nobody else's.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_name_leads_to_the_fleet_past_others_that_lead_nowhere() {
    let mut fleet = Fleet::founded().await;
    let silent = std::net::TcpListener::bind("127.0.0.1:0").expect("a port");
    let port = fleet.addresses[0].rsplit_once(':').expect("a port").1;
    let names = ["nobody.invalid:1", "no port", &silent.local_addr().expect("an address").to_string(), "[::1]:1"];
    let names: Vec<_> = names.into_iter().map(ToOwned::to_owned).chain([format!("localhost:{port}")]).collect();
    let token = fleet.token(None, None).await;
    let joining = tokio::time::timeout(PATIENCE, fleet.join_through(&names, &token));
    joining.await.expect("in time").expect("joins");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_node_gives_itself_a_new_certificate_when_it_starts() {
    let directory = tempfile::tempdir().expect("a directory");
    let mesh = MeshSockets::bind(([127, 0, 0, 1], 0).into()).expect("a port");
    found(options(directory.path(), "node", &mesh), FoundingOptions::default()).await.expect("is founded");
    let identity = || Identity::load(directory.path()).expect("readable").expect("a member");
    // As good as one that has expired.
    Identity { certificate: Vec::new(), ..identity() }.save(directory.path()).expect("is kept");
    let node = Node::start(options(directory.path(), "node", &mesh), mesh).await.expect("starts");
    eventually("a new certificate", || (!identity().certificate.is_empty()).then_some(())).await;
    node.shutdown().await.expect("stops");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_node_that_was_away_for_longer_than_the_log_reaches_back_gets_a_snapshot() {
    let mut fleet = Fleet::of_three().await;
    let away = eventually("a follower", || fleet.leader().map(|leader| (leader + 1) % 3)).await;
    let before = fleet.node(away).consensus().status().last_log;
    fleet.stop(away).await;
    let leader = fleet.leader().expect("still leads");
    let consensus = Arc::clone(fleet.node(leader).consensus());
    let mut writers = tokio::task::JoinSet::new();
    for writer in 0..64 {
        let consensus = Arc::clone(&consensus);
        writers.spawn(async move {
            let mut port = 2000 + writer;
            // Until the log no longer reaches back to where the other was.
            while consensus.status().purged <= before {
                let changes = Some(Settings { default_port: Some(port), ..Settings::default() });
                let body = Body::UpdateSettings(UpdateSettings { changes, ..UpdateSettings::default() });
                consensus.propose(Origin::default(), body).await.expect("is answered");
                port += 64;
            }
        });
    }
    while let Some(ended) = writers.join_next().await {
        ended.expect("writes");
    }
    assert!(consensus.status().purged > before);
    fleet.restart(away).await;
    let returned = Arc::clone(fleet.node(away).consensus());
    let same = || {
        let (one, other) = (consensus.local(), returned.local());
        (one.index() == other.index()).then(|| (one.fingerprint(), other.fingerprint()))
    };
    let (one, other) = eventually("the other to catch up", same).await;
    assert_eq!(one, other);
    assert!(returned.status().snapshot > before, "by a snapshot");
    set_port(fleet.node(away), 1999).await;
    assert_eq!(port(fleet.node(leader)).await, Some(1999));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_fourth_node_does_not_vote_and_reads_and_writes_like_the_others() {
    let mut fleet = Fleet::of_three().await;
    let token = fleet.token(Some(1), None).await;
    fleet.join(2, &token).await.expect("joins");
    let consensus = Arc::clone(fleet.node(3).consensus());
    eventually("it to hold the log", || (consensus.status().role == Role::Standby).then_some(())).await;
    set_port(fleet.node(3), 2004).await;
    for reader in 0..4 {
        assert_eq!(port(fleet.node(reader)).await, Some(2004), "read through {reader}");
    }
    set_port(fleet.node(0), 2005).await;
    assert_eq!(port(fleet.node(3)).await, Some(2005), "as fresh as anywhere");
    let status = fleet.node(0).consensus().status();
    assert_eq!(status.voters, [BTreeSet::from([1, 2, 3].map(NodeId))]);
    assert_eq!(status.standbys, BTreeSet::from([NodeId(4)]));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_node_that_has_lost_its_log_does_not_come_back_as_itself() {
    let mut fleet = Fleet::founded().await;
    let token = fleet.token(None, None).await;
    fleet.join(0, &token).await.expect("joins");
    fleet.stop(1).await;
    for part in ["raft", "state", "snap"] {
        std::fs::remove_dir_all(fleet.path(1).join(part)).expect("goes");
    }
    std::fs::remove_file(fleet.path(1).join("floor")).expect("goes");
    let mesh = MeshSockets::bind(fleet.addresses[1].parse().expect("an address")).expect("its port again");
    match Node::start(options(&fleet.path(1), "node 1", &mesh), mesh).await {
        Err(StartError::OtherStore { .. }) => {}
        Err(other) => panic!("{other}"),
        Ok(_) => panic!("it has forgotten what it promised, and votes again"),
    }
}
