//! What the tests of this folder share.

use muster_cluster::ids::{DeploymentId, FleetId, NodeId, PlacementEpoch, PlacementId};
use muster_cluster::sealing::SecretText;

use crate::runtime::{EngineKind, Launch, Owner, UnitId};

/// The value of the environment that must not be seen anywhere.
pub(super) const SECRET: &str = "hf_not_to_be_seen";

pub(super) fn owner(node: u64) -> Owner {
    let fleet = FleetId::from_slice(b"sixteen bytes...").expect("sixteen bytes");
    Owner { fleet, generation: 2, node: NodeId(node) }
}

pub(super) fn unit(deployment: u64, ordinal: u32, epoch: u64) -> UnitId {
    let placement = PlacementId { deployment: DeploymentId(deployment), ordinal };
    UnitId { placement, epoch: PlacementEpoch(epoch) }
}

pub(super) fn launch(unit: UnitId, image: &str) -> Launch {
    Launch {
        unit,
        engine: EngineKind::Sim,
        image: Some(image.to_owned()),
        pull: true,
        packages: Vec::new(),
        arguments: vec!["--model".to_owned(), "org/m".to_owned()],
        environment: vec![("HF_TOKEN".to_owned(), SecretText::new(SECRET.to_owned()))],
        gpus: Vec::new(),
        ranks: 1,
        mounts: Vec::new(),
        spec_hash: "a1b2".to_owned(),
    }
}
