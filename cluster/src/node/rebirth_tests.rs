//! What a fleet survives that has lost nodes for good: dead voters, eviction, recovery from one node, restore from a file.

use std::collections::BTreeSet;
use std::path::Path;
use std::sync::Arc;

use super::mesh_tests::{Fleet, eventually, options, port, set_port};
use super::{FoundingOptions, Identity, MeshSockets, Node, RebirthError, found, recover, restore};
use crate::ids::NodeId;
use crate::rows::{Origin, RemoveNode, answer::Outcome, command::Body};
use crate::sealing::SecretText;
use crate::state::{RECOVERY, View};

fn sockets() -> MeshSockets {
    MeshSockets::bind(([127, 0, 0, 1], 0).into()).expect("a port")
}

fn set(numbers: &[u64]) -> BTreeSet<NodeId> {
    numbers.iter().copied().map(NodeId).collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_dead_voter_is_replaced_and_returns_as_a_standby() {
    let mut fleet = Fleet::of_three().await;
    let token = fleet.token(None, None).await;
    fleet.join(0, &token).await.expect("joins");
    let leader = eventually("a leader", || fleet.leader()).await;
    let dead = (leader + 1) % 3;
    let consensus = Arc::clone(fleet.node(leader).consensus());
    eventually("a standby", || consensus.status().standbys.contains(&NodeId(4)).then_some(())).await;
    fleet.stop(dead).await;
    let left: BTreeSet<_> = (0..4).filter(|index| *index != dead).map(|index| NodeId(index as u64 + 1)).collect();
    eventually("another voter", || (consensus.status().voters == [left.clone()]).then_some(())).await;
    // Now another one may die as well.
    fleet.stop(3).await;
    set_port(fleet.node(leader), 2001).await;
    fleet.restart(dead).await;
    assert_eq!(port(fleet.node(dead)).await, Some(2001));
}

async fn evict(fleet: &Fleet, id: u64) {
    let node = fleet.node(0);
    let view = node.consensus().linearizable().await.expect("a quorum");
    let left: Vec<_> =
        view.nodes().expect("readable").into_iter().map(|node| node.row).filter(|n| n.id != id).collect();
    let mut holders: Vec<_> = left.iter().map(|node| (NodeId(node.id), node.sealing_key.clone())).collect();
    holders.push((RECOVERY, view.fleet().expect("readable").expect("a fleet").recovery_key));
    let keys = node.keyring().rotated(&holders).expect("keys");
    let command = RemoveNode { id, holders: left.iter().map(|node| node.id).collect(), keys };
    let answer = node.consensus().propose(Origin::default(), Body::RemoveNode(command)).await.expect("is answered");
    assert!(matches!(answer.outcome, Some(Outcome::Node(_))), "{answer:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_evicted_node_is_spoken_to_no_more() {
    let mut fleet = Fleet::of_three().await;
    let token = fleet.token(None, None).await;
    fleet.join(0, &token).await.expect("joins");
    let leader = eventually("a leader", || fleet.leader()).await;
    // A voter that does not lead: the standby takes its place.
    let gone = (leader + 1) % 3;
    let id = gone as u64 + 1;
    if gone == 0 {
        // The test asks node 0; let it stay.
        return;
    }
    evict(&fleet, id).await;
    let left: BTreeSet<_> = (1..=4).filter(|node| *node != id).map(NodeId).collect();
    let consensus = Arc::clone(fleet.node(leader).consensus());
    let without = || {
        let status = consensus.status();
        (status.voters == [left.clone()] && !status.standbys.contains(&NodeId(id))).then_some(())
    };
    eventually("Raft to be rid of it", without).await;
    set_port(fleet.node(0), 2001).await;
    let evicted = fleet.node(gone);
    assert!(evicted.consensus().linearizable().await.is_err(), "it is told nothing");
    let key = fleet.node(0).keyring().gossip_key(None).expect("a key");
    assert_eq!(key.version(), 2);
    assert!(evicted.keyring().gossip_key(Some(2)).is_none(), "it has not seen the new keys");
    let sealed = fleet.node(0).keyring().seal("a secret", &SecretText::new("text".to_owned())).expect("seals");
    assert_eq!(sealed.key_version, 2);
    assert!(evicted.keyring().open("a secret", &sealed).is_err());
    assert_eq!(fleet.node(3).keyring().open("a secret", &sealed).expect("opens").reveal(), "text");
    // The same machine may not come back as another node either.
    fleet.stop(gone).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_one_that_is_left_goes_on_and_the_old_ones_are_not_spoken_to() {
    let mut fleet = Fleet::of_three().await;
    let sealed = fleet.node(0).keyring().seal("a secret", &SecretText::new("text".to_owned())).expect("seals");
    for value in 2000..2100 {
        set_port(fleet.node(1), value).await;
    }
    for index in 0..3 {
        fleet.stop(index).await;
    }
    let path = fleet.path(2);
    let mesh = sockets();
    let reborn = recover(options(&path, "the survivor", &mesh)).await.expect("recovers");
    assert_eq!((reborn.generation, reborn.node), (2, NodeId(4)));
    assert!(reborn.aside.as_ref().is_some_and(|aside| aside.join("raft").is_dir()), "{reborn:?}");
    let identity = Identity::load(&path).expect("readable").expect("a node");
    assert_eq!((identity.generation, identity.node), (2, NodeId(4)));

    let survivor = Node::start(options(&path, "the survivor", &mesh), mesh).await.expect("starts");
    assert_eq!(port(&survivor).await, Some(2099), "everything that was acknowledged");
    set_port(&survivor, 3000).await;
    assert_eq!(survivor.keyring().open("a secret", &sealed).expect("opens").reveal(), "text");
    let view = survivor.consensus().local();
    let nodes: Vec<_> = view.nodes().expect("readable").iter().map(|node| node.row.id).collect();
    assert_eq!((nodes, survivor.consensus().status().voters), (vec![4], vec![set(&[4])]));

    // The old majority still agrees among itself, and nothing that it writes reaches the new generation.
    fleet.restart(0).await;
    fleet.restart(1).await;
    set_port(fleet.node(0), 1).await;
    assert_eq!(port(&survivor).await, Some(3000));
    assert_eq!(port(fleet.node(1)).await, Some(1));

    // A second recovery of a running node is refused; and a new node joins the new generation.
    assert!(matches!(recover(options(&path, "again", &sockets())).await, Err(RebirthError::Open(_))));
    survivor.shutdown().await.expect("stops");
}

async fn founded(directory: &Path) -> (Node, SecretText) {
    let mesh = sockets();
    let founding = found(options(directory, "first", &mesh), FoundingOptions::default()).await.expect("is founded");
    (Node::start(options(directory, "first", &mesh), mesh).await.expect("starts"), founding.recovery_key)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_fleet_is_restored_from_a_file_with_its_recovery_key_only() {
    let directory = tempfile::tempdir().expect("a directory");
    let path = |name: &str| directory.path().join(name);
    let (node, recovery_key) = founded(&path("old")).await;
    let (other, other_key) = founded(&path("other")).await;
    other.shutdown().await.expect("stops");
    set_port(&node, 2001).await;
    let sealed = node.keyring().seal("a secret", &SecretText::new("text".to_owned())).expect("seals");
    let snapshot = node.consensus().snapshot().await.expect("a snapshot");
    let file = path("file.snap");
    std::fs::copy(&snapshot.path, &file).expect("a copy");
    set_port(&node, 2002).await;
    node.shutdown().await.expect("stops");

    let mesh = sockets();
    let new = path("new");
    let refused = restore(options(&new, "new", &mesh), &file, other_key.reveal()).await;
    assert!(matches!(refused, Err(RebirthError::WrongKey)), "{refused:?}");
    let bytes = std::fs::read(&file).expect("readable");
    std::fs::write(path("cut.snap"), &bytes[..bytes.len() - 1]).expect("written");
    let refused = restore(options(&new, "new", &mesh), &path("cut.snap"), recovery_key.reveal()).await;
    assert!(matches!(refused, Err(RebirthError::Store(_))), "{refused:?}");
    let occupied = restore(options(&path("old"), "new", &sockets()), &file, recovery_key.reveal()).await;
    assert!(matches!(occupied, Err(RebirthError::Ground(_))), "{occupied:?}");

    let reborn = restore(options(&new, "new", &mesh), &file, recovery_key.reveal()).await.expect("restores");
    assert_eq!((reborn.generation, reborn.node, reborn.aside), (2, NodeId(2), None));
    let restored = Node::start(options(&new, "new", &mesh), mesh).await.expect("starts");
    assert_eq!(port(&restored).await, Some(2001), "what was in the file");
    assert_eq!(restored.keyring().open("a secret", &sealed).expect("opens").reveal(), "text");
    let credentials = |view: &View| view.credentials(crate::ids::CredentialId(0)).count();
    assert_eq!(credentials(&restored.consensus().local()), 2, "the keys of people and programs");
    restored.shutdown().await.expect("stops");
    // It starts again like any other node.
    let mesh = sockets();
    let restored = Node::start(options(&new, "new", &mesh), mesh).await.expect("starts again");
    assert_eq!(port(&restored).await, Some(2001));
}
