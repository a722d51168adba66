//! What operators say of nodes, and what becomes of deployments there.

use super::placements::{described, ended, fleet, restart, running, seat, start, stop};
use super::*;
use crate::rows::start_deployment::What;
use crate::rows::{
    CordonNode, CreateDeployment, DeploymentStatus as Status, ForgetNode, GpuFact, SetNodeRuntime, SetNodeWarmCache,
    StartDeployment, Wish,
};
use crate::state::{Maintenance, NodePolicy};

fn cordon(id: u64, gpus: &[u32], enabled: bool, drain: bool) -> Body {
    Body::CordonNode(CordonNode { id, gpu_ids: gpus.to_vec(), enabled, drain, precondition: None })
}

fn forget(id: u64) -> Body {
    Body::ForgetNode(ForgetNode { id, precondition: None })
}

impl Replica {
    fn policy(&self, id: u64) -> NodePolicy {
        NodePolicy::of(&self.view().node(NodeId(id)).expect("readable").expect("there").row)
    }

    /// Runs what is said of a node, and returns how many deployments it concerned.
    fn said(&mut self, body: Body) -> u64 {
        let answer = self.run(body);
        let Some(Outcome::NodeAdmin(said)) = answer.outcome else { panic!("refused: {answer:?}") };
        said.deployments
    }

    fn reported(&mut self, id: u64, gpus: u32) {
        let gpus = (0..gpus).map(|index| GpuFact { index, ..GpuFact::default() }).collect();
        self.run(Body::ReportNode(ReportNode { id, facts: Some(NodeFacts { gpus, ..NodeFacts::default() }) }));
    }

    fn statuses<const N: usize>(&self) -> [Status; N] {
        std::array::from_fn(|index| self.row(index as u64 + 1).status())
    }
}

/// B11 of the specification.
#[test]
fn gpus_are_cordoned_one_by_one_and_all_of_them_is_the_node() {
    let mut replica = fleet();
    let now = |replica: &Replica| (replica.policy(1).maintenance(), replica.policy(1).cordoned().to_vec());
    assert_eq!(now(&replica), (Maintenance::None, vec![]));
    replica.said(cordon(1, &[0], true, false));
    assert_eq!(now(&replica), (Maintenance::Partial, vec![0]));
    replica.said(cordon(1, &[1, 1], true, false));
    assert_eq!(now(&replica), (Maintenance::Full, vec![0, 1]));
    replica.said(cordon(1, &[0], false, false));
    assert_eq!(now(&replica), (Maintenance::Partial, vec![1]));
    replica.said(cordon(1, &[], true, false));
    assert_eq!(now(&replica), (Maintenance::Full, vec![0, 1]));
    replica.said(cordon(1, &[], false, false));
    assert_eq!(now(&replica), (Maintenance::None, vec![]));
    assert_eq!(replica.refused(cordon(1, &[0, 7], true, false)), RefusalKind::Invalid);
    assert_eq!(replica.refused(cordon(9, &[], true, false)), RefusalKind::NotFound);
    assert_eq!(replica.policy(2).maintenance(), Maintenance::None, "the other node is another");
}

#[test]
fn a_node_without_gpus_is_cordoned_whole() {
    let mut replica = fleet();
    replica.reported(1, 0);
    replica.said(cordon(1, &[3], true, false));
    assert_eq!(replica.policy(1).maintenance(), Maintenance::Full, "nobody knows whether it has others");
    replica.said(cordon(1, &[3], false, false));
    assert_eq!(replica.policy(1).maintenance(), Maintenance::None);
    replica.said(cordon(1, &[], true, false));
    assert_eq!((replica.policy(1).maintenance(), replica.policy(1).cordoned().len()), (Maintenance::Full, 0));
    assert_eq!(replica.refused(start(described(&["x"], 1), seat(1, &[], 8001))), RefusalKind::Conflict);
    // Its driver comes up later: all of it stays closed until somebody says otherwise.
    replica.reported(1, 2);
    assert_eq!(replica.policy(1).maintenance(), Maintenance::Full);
    assert!(!replica.policy(1).is_open(1));
    replica.said(cordon(1, &[0], false, false));
    assert_eq!((replica.policy(1).maintenance(), replica.policy(1).cordoned()), (Maintenance::Partial, &[1][..]));
}

#[test]
fn nothing_new_is_given_to_what_is_cordoned() {
    let mut replica = fleet();
    replica.deployment(start(described(&["x"], 500_000), seat(1, &[0], 8001)));
    replica.report(1, running());
    replica.said(cordon(1, &[0], true, false));
    assert_eq!(replica.row(1).status(), Status::Running, "what runs there goes on");
    assert_eq!(replica.refused(start(described(&["y"], 1), seat(1, &[0], 8002))), RefusalKind::Conflict);
    assert_eq!(replica.refused(start(described(&["y"], 1), seat(1, &[1, 0], 8002))), RefusalKind::Conflict);
    replica.deployment(start(described(&["y"], 1), seat(1, &[1], 8002)));
    replica.run(stop(1));
    replica.report(1, ended(None));
    assert_eq!(replica.refused(restart(1, seat(1, &[0], 8001))), RefusalKind::Conflict);
    replica.said(cordon(1, &[], true, false));
    assert_eq!(replica.refused(start(described(&["z"], 1), seat(1, &[], 8003))), RefusalKind::Conflict);
    replica.said(cordon(1, &[], false, false));
    replica.deployment(restart(1, seat(1, &[0], 8001)));
}

/// B11 of the specification.
#[test]
fn draining_stops_what_is_on_the_cordoned_gpus_and_nothing_else() {
    let mut replica = fleet();
    for (name, node, gpus, port) in
        [("a", 1, &[0][..], 1), ("b", 1, &[1], 2), ("c", 1, &[0, 1], 3), ("d", 1, &[], 4), ("e", 2, &[0], 1)]
    {
        replica.deployment(start(described(&[name], 100_000), seat(node, gpus, port)));
    }
    replica.report(1, running());
    assert_eq!(replica.said(cordon(1, &[0], true, false)), 0, "it is not said to drain");
    assert_eq!(replica.said(cordon(1, &[1], false, true)), 0, "nothing is stopped by letting work in");
    assert_eq!(replica.said(cordon(1, &[0], true, true)), 3);
    use Status::{Running, Starting, Stopping};
    assert_eq!(replica.statuses(), [Stopping, Starting, Stopping, Stopping, Starting]);
    assert_eq!(replica.row(1).desired(), Status::Stopped);
    assert_eq!(replica.said(cordon(1, &[], true, true)), 1, "what is being stopped is not stopped again");
    assert_eq!(replica.statuses(), [Stopping, Stopping, Stopping, Stopping, Starting]);
    replica.report(1, ended(None));
    assert_eq!(replica.row(1).status(), Status::Stopped);
    replica.report(5, running());
    assert_eq!(replica.row(5).status(), Running);
}

#[test]
fn draining_leaves_the_replicas_on_other_nodes() {
    let mut replica = fleet();
    let what = Some(What::Create(described(&["x"], 100_000)));
    let seats = vec![seat(1, &[0], 1), seat(2, &[0], 1)];
    replica.deployment(Body::StartDeployment(StartDeployment { what, seats }));
    assert_eq!(replica.said(cordon(1, &[], true, true)), 1);
    assert_eq!((replica.placement(1).status(), replica.row(1).desired()), (Status::Stopping, Status::Running));
    replica.report(1, ended(None));
    assert_eq!((replica.placement(1).status(), replica.row(1).status()), (Status::Stopped, Status::Starting));
    assert_eq!(replica.view().held_on(NodeId(2)).expect("readable").len(), 1);
}

#[test]
fn the_warm_cache_and_the_runtime_are_what_an_operator_says() {
    let mut replica = fleet();
    let warm = |enabled, limit| {
        Body::SetNodeWarmCache(SetNodeWarmCache { id: 1, enabled, ram_limit_mb: limit, precondition: None })
    };
    let seen = |replica: &Replica| (replica.policy(1).warm_offload(), replica.policy(1).ram_cache_limit_mb());
    assert_eq!(seen(&replica), (true, None));
    replica.said(warm(false, Some(4096)));
    assert_eq!(seen(&replica), (false, Some(4096)));
    replica.said(warm(true, None));
    assert_eq!(seen(&replica), (true, None));
    let runtime = |runtime: &str, mod_index| {
        let precondition = Some(Precondition { mod_index: vec![mod_index] });
        Body::SetNodeRuntime(SetNodeRuntime { id: 1, runtime: runtime.to_owned(), precondition })
    };
    let index = replica.index;
    assert_eq!(replica.refused(runtime("podman", index - 1)), RefusalKind::PreconditionFailed);
    replica.said(runtime("podman", index));
    assert_eq!(replica.policy(1).container_runtime(), Some("podman"));
    replica.reported(1, 2);
    assert_eq!(replica.policy(1).container_runtime(), Some("podman"), "what a node reports changes nothing of it");
    let index = replica.index;
    replica.said(runtime("", index));
    assert_eq!(replica.policy(1).container_runtime(), None);
}

#[test]
fn a_new_node_has_a_warm_cache_if_the_fleet_says_so() {
    let mut replica = fleet();
    let changes = Some(Settings { default_warm_offload_enabled: Some(false), ..Settings::default() });
    replica.run(Body::UpdateSettings(UpdateSettings { changes, ..UpdateSettings::default() }));
    assert!(replica.policy(1).warm_offload(), "it is no new one");
    let fields = CredentialFields {
        sha256: vec![9; 32].into(),
        kind: Some(Kind::Join(rows::JoinKey { uses_left: None })),
        ..CredentialFields::default()
    };
    replica.run(Body::CreateCredential(CreateCredential { fields: Some(fields) }));
    let register = |store: u8| {
        let node = rows::Node { store_id: vec![store; 16].into(), ..rows::Node::default() };
        let facts = Some(NodeFacts { name: format!("node {store}"), ..NodeFacts::default() });
        let node = Some(rows::Node { facts, ..node });
        Body::RegisterNode(rows::RegisterNode { token_sha256: vec![9; 32].into(), node, keys: Vec::new() })
    };
    let joined = |answer: Answer| match answer.outcome {
        Some(Outcome::Node(node)) => node.id,
        other => panic!("{other:?}"),
    };
    let id = joined(replica.run(register(5)));
    assert!(!replica.policy(id).warm_offload());
    let changes = Some(Settings { default_warm_offload_enabled: Some(true), ..Settings::default() });
    replica.run(Body::UpdateSettings(UpdateSettings { changes, ..UpdateSettings::default() }));
    assert!(!replica.policy(id).warm_offload(), "it has been there before");
    let id = joined(replica.run(register(6)));
    assert!(replica.policy(id).warm_offload());
}

#[test]
fn a_forgotten_node_takes_its_deployments_along_and_comes_back_as_a_new_one() {
    let mut replica = fleet();
    let create = |name: &str, node| {
        let wish = Some(Wish { node_id: node, ..Wish::default() });
        Body::CreateDeployment(CreateDeployment { wish, ..described(&[name], 1) })
    };
    replica.deployment(start(described(&["x"], 100_000), seat(2, &[0], 8001)));
    replica.deployment(start(described(&["y"], 100_000), seat(1, &[0], 8001)));
    replica.deployment(create("z", Some(2)));
    replica.deployment(create("u", None));
    let both = |port| vec![seat(2, &[1], port), seat(1, &[1], port)];
    let what = Some(What::Create(described(&["v"], 100_000)));
    replica.deployment(Body::StartDeployment(StartDeployment { what, seats: both(8002) }));
    replica.said(cordon(2, &[0], true, false));
    replica.now += 1;
    assert_eq!(replica.said(forget(2)), 2);
    let left: Vec<_> = replica.view().deployments().expect("readable").iter().map(|stored| stored.row.id).collect();
    assert_eq!(left, [2, 4, 5]);
    assert_eq!(replica.view().held_on(NodeId(2)).expect("readable"), []);
    assert_eq!(replica.placement(5).failure.map(|failure| failure.message).as_deref(), Some("node 2 was deleted"));
    assert_eq!(replica.row(5).status(), Status::Starting, "it is elsewhere too");
    let policy = replica.policy(2);
    assert!(policy.is_forgotten() && policy.cordoned().is_empty() && policy.forgotten_ms() == replica.now);
    for body in [cordon(2, &[], true, false), forget(2), start(described(&["w"], 1), seat(2, &[0], 8003))] {
        assert_eq!(replica.refused(body), RefusalKind::NotFound);
    }
    replica.reported(2, 2);
    assert!(!replica.policy(2).is_forgotten());
    assert_eq!(replica.policy(2).forgotten_ms(), replica.now, "what it saw before is not shown");
    replica.deployment(start(described(&["w"], 1), seat(2, &[0], 8003)));
}
