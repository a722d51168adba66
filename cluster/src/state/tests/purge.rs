//! Records that are deleted by category.

use super::*;
use crate::rows::{Config, CreateDeployment, Deployment, Environment, PreferVoter, Purge, PurgeAnswer, Secret};
use crate::state::{PURGE_LIMIT, scope as scope_of};

fn deploy(number: u128) -> Body {
    let environment = Environment {
        id: Uuid::from_u128(number).as_bytes().to_vec().into(),
        keys: vec!["K".to_owned()],
        values: Some(Sealed { key_version: 1, ..Sealed::default() }),
    };
    Body::CreateDeployment(CreateDeployment { environment: Some(environment), ..CreateDeployment::default() })
}

impl Replica {
    fn purge(&mut self, purge: Purge) -> PurgeAnswer {
        let answer = self.run(Body::Purge(purge));
        match answer.outcome {
            Some(Outcome::Purge(purged)) => purged,
            other => panic!("not purged: {other:?}"),
        }
    }
}

#[test]
fn purged_deployments_take_their_secrets_and_scopes_with_them_and_leave_keys_and_settings() {
    let mut replica = Replica::founded();
    (1..=3).for_each(|number| drop(replica.run(deploy(number))));
    let (scoped, _) = replica.credential(new_key(1, Kind::Gateway(GatewayKey { scope: only(&[1, 3]) }), None));
    replica.run(save("a", "{}"));
    replica.run(Body::UpdateSettings(UpdateSettings {
        changes: Some(Settings { default_port: Some(7), ..Settings::default() }),
        ..UpdateSettings::default()
    }));
    // One that is made after the purge has begun stays.
    let purged = replica.purge(Purge { deployments_before: Some(3), ..Purge::default() });
    assert_eq!(purged, PurgeAnswer { deployments: 2, ..PurgeAnswer::default() });
    assert_eq!((replica.count::<Deployment>(), replica.count::<Secret>(), replica.count::<Config>()), (1, 1, 1));
    let scope = |replica: &Replica| {
        let credential = replica.view().credential(CredentialId(scoped)).expect("readable").expect("there").row;
        scope_of(&credential).expect("calls models").cloned()
    };
    assert_eq!(scope(&replica), only(&[3]));
    let purged = replica.purge(Purge { deployments_before: Some(u64::MAX), ..Purge::default() });
    assert_eq!((purged.deployments, scope(&replica)), (1, only(&[])), "it allows nothing");
    assert_eq!(replica.view().settings().expect("readable").0.default_port, Some(7));
    assert_eq!(replica.purge(Purge { deployments_before: Some(u64::MAX), ..Purge::default() }), PurgeAnswer::default());
    let answer = replica.run(deploy(9));
    let Some(Outcome::Deployment(made)) = answer.outcome else { panic!("{answer:?}") };
    assert_eq!(made.deployment.expect("a deployment").id, 4, "a number is never given twice");
}

#[test]
fn one_command_deletes_a_bounded_number_and_counts_what_those_before_have_deleted() {
    let mut replica = Replica::founded();
    for number in 0..PURGE_LIMIT + 5 {
        replica.run(deploy(number as u128));
        replica.run(save(&format!("config {number}"), "{}"));
    }
    let purge = Purge { deployments_before: Some(u64::MAX), configs_before: Some(u64::MAX), ..Purge::default() };
    let limit = PURGE_LIMIT as u64;
    let first = replica.purge(purge);
    assert_eq!(first, PurgeAnswer { deployments: limit, configs: limit, nodes: 0 });
    assert_eq!((replica.count::<Deployment>(), replica.count::<Config>()), (5, 5));
    let all = replica.purge(Purge { deleted: Some(first), ..purge });
    assert_eq!(all, PurgeAnswer { deployments: limit + 5, configs: limit + 5, nodes: 0 });
    assert_eq!((replica.count::<Deployment>(), replica.count::<Config>(), replica.count::<Secret>()), (0, 0, 0));
    // Their names are free.
    replica.run(save("config 0", "{}"));
    assert_eq!(replica.count::<Config>(), 1);
}

#[test]
fn of_nodes_only_goes_what_operators_have_set() {
    let mut replica = Replica::founded();
    let facts = Some(NodeFacts { name: "one".to_owned(), ..NodeFacts::default() });
    let node = rows::Node { id: 2, preferred_voter: false, facts, ..rows::Node::default() };
    replica.tables.put(rows::Node::TABLE, 2_u64.to_be_bytes().to_vec(), node.encode_to_vec(), replica.index);
    replica.run(Body::PreferVoter(PreferVoter { id: 2 }));
    let purge = Purge { nodes: true, ..Purge::default() };
    assert_eq!(replica.purge(purge).nodes, 1);
    assert_eq!(replica.view().node(NodeId(2)).expect("readable").expect("stays").row, node);
    assert_eq!(replica.purge(purge).nodes, 0);
    let trail: Vec<_> = replica.view().audit(0).map(|entry| entry.expect("readable").1).collect();
    let purges: Vec<_> = trail.iter().filter(|entry| entry.action == "fleet.purge").collect();
    assert_eq!(purges[0].object, "0 deployments, 0 configurations, 1 nodes");
}
