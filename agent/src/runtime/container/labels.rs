//! What is written on a container: whose it is, and which unit. No value of the environment, no specification.

use std::collections::HashMap;

use muster_cluster::ids::{DeploymentId, FleetId, PlacementEpoch, PlacementId};

use crate::runtime::{EngineKind, Launch, Owner, UnitId};

const FLEET: &str = "muster.fleet";
const GENERATION: &str = "muster.generation";
const NODE: &str = "muster.node";
const PLACEMENT: &str = "muster.placement";
const EPOCH: &str = "muster.epoch";
const SPEC: &str = "muster.spec";
const ENGINE: &str = "muster.engine";

/// What the labels of a unit's container say.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Marks {
    pub(super) unit: UnitId,
    pub(super) generation: u64,
    pub(super) spec_hash: String,
    pub(super) engine: EngineKind,
}

/// The labels of a unit's container.
pub(super) fn written(owner: &Owner, launch: &Launch) -> HashMap<String, String> {
    let mut labels = of_owner(owner);
    labels.extend(of_unit(launch.unit));
    labels.extend([
        (GENERATION.to_owned(), owner.generation.to_string()),
        (SPEC.to_owned(), launch.spec_hash.clone()),
        (ENGINE.to_owned(), launch.engine.name().to_owned()),
    ]);
    labels
}

/// What a container's labels say. `None`: it is not one of this fleet and node, or somebody has changed them.
pub(super) fn read(owner: &Owner, labels: &HashMap<String, String>) -> Option<Marks> {
    if !is_of(owner, labels) {
        return None;
    }
    let (deployment, ordinal) = labels.get(PLACEMENT)?.split_once('/')?;
    let placement = PlacementId { deployment: DeploymentId(deployment.parse().ok()?), ordinal: ordinal.parse().ok()? };
    let engine = labels.get(ENGINE)?;
    Some(Marks {
        unit: UnitId { placement, epoch: PlacementEpoch(labels.get(EPOCH)?.parse().ok()?) },
        generation: labels.get(GENERATION)?.parse().ok()?,
        spec_hash: labels.get(SPEC)?.clone(),
        engine: [EngineKind::Vllm, EngineKind::Sim].into_iter().find(|kind| kind.name() == engine)?,
    })
}

/// Whether a container says that it is of this fleet and node.
pub(super) fn is_of(owner: &Owner, labels: &HashMap<String, String>) -> bool {
    of_owner(owner).iter().all(|(key, value)| labels.get(key) == Some(value))
}

/// Whether a container says that it is of some fleet.
pub(super) fn is_of_anybody(labels: &HashMap<String, String>) -> bool {
    labels.contains_key(FLEET)
}

/// The label of the things that a whole fleet shares.
pub(super) fn of_fleet(fleet: FleetId) -> (String, String) {
    (FLEET.to_owned(), fleet.to_string())
}

/// Filters that let pass what carries all of these labels.
pub(super) fn filter(labels: impl IntoIterator<Item = (String, String)>) -> HashMap<String, Vec<String>> {
    let wanted = labels.into_iter().map(|(key, value)| format!("{key}={value}")).collect();
    HashMap::from([("label".to_owned(), wanted)])
}

/// Filters that let pass the units of this fleet and node.
pub(super) fn units_of(owner: &Owner) -> HashMap<String, Vec<String>> {
    filter(of_owner(owner))
}

/// Filters that let pass one unit of this fleet and node.
pub(super) fn unit_of(owner: &Owner, unit: UnitId) -> HashMap<String, Vec<String>> {
    filter(of_owner(owner).into_iter().chain(of_unit(unit)))
}

/// The name of a unit's container.
pub(super) fn container_name(owner: &Owner, unit: UnitId) -> String {
    let UnitId { placement, epoch } = unit;
    format!("muster-{}-{}-{}-{epoch}", short(owner.fleet), placement.deployment, placement.ordinal)
}

/// The first eight digits of a fleet's identity.
pub(super) fn short(fleet: FleetId) -> String {
    fleet.to_string().chars().take(8).collect()
}

fn of_owner(owner: &Owner) -> HashMap<String, String> {
    HashMap::from([of_fleet(owner.fleet), (NODE.to_owned(), owner.node.to_string())])
}

fn of_unit(unit: UnitId) -> HashMap<String, String> {
    HashMap::from([(PLACEMENT.to_owned(), unit.placement.to_string()), (EPOCH.to_owned(), unit.epoch.to_string())])
}

#[cfg(test)]
mod tests {
    use muster_cluster::ids::NodeId;

    use super::super::testing;
    use super::*;

    #[test]
    fn what_is_written_on_a_container_is_read_back() {
        let owner = testing::owner(7);
        let launch = testing::launch(testing::unit(12, 3, 99), "x");
        let marks = read(&owner, &written(&owner, &launch)).expect("marks");
        assert_eq!((marks.unit, marks.generation, marks.engine), (launch.unit, owner.generation, launch.engine));
        assert_eq!(marks.spec_hash, launch.spec_hash);
    }

    #[test]
    fn what_is_of_another_fleet_or_node_is_not_read() {
        let owner = testing::owner(7);
        let labels = written(&owner, &testing::launch(testing::unit(1, 0, 1), "x"));
        assert_eq!(read(&testing::owner(8), &labels), None);
        assert_eq!(read(&Owner { fleet: FleetId::random(), ..owner }, &labels), None);
        assert!(read(&Owner { generation: owner.generation + 1, node: NodeId(7), ..owner }, &labels).is_some());
    }

    #[test]
    fn labels_that_somebody_has_changed_are_nobodys() {
        let owner = testing::owner(7);
        let whole = written(&owner, &testing::launch(testing::unit(1, 0, 1), "x"));
        for (key, value) in [(PLACEMENT, "1"), (PLACEMENT, "x/0"), (EPOCH, "-1"), (ENGINE, "other")] {
            let mut labels = whole.clone();
            labels.insert(key.to_owned(), value.to_owned());
            assert_eq!(read(&owner, &labels), None, "{key}={value}");
        }
    }

    #[test]
    fn no_value_of_the_environment_is_written_on_a_container() {
        let launch = testing::launch(testing::unit(1, 0, 1), "x");
        let all = format!("{:?}", written(&testing::owner(7), &launch));
        assert!(!all.contains(testing::SECRET), "{all}");
    }

    #[test]
    fn the_name_says_fleet_deployment_place_and_epoch() {
        let owner = testing::owner(7);
        let expected = format!("muster-{}-12-3-99", &owner.fleet.to_string()[..8]);
        assert_eq!(container_name(&owner, testing::unit(12, 3, 99)), expected);
    }
}
