//! Containers that hold a node's GPUs or carry its name, and that it does not know of.

use std::collections::{BTreeSet, HashMap, HashSet};

use super::ask::{self, Listed};
use super::call::CallError;
use super::daemon::Client;
use super::images::{self, Family};
use super::labels;
use crate::runtime::{Owner, UnitId};

/// A container that nobody here keeps.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Stray {
    /// Its identity.
    pub id: String,
    /// Its name.
    pub name: String,
    /// The image it is made from, as it was asked for.
    pub image: String,
    /// Its state, as the daemon has it: `running`, `exited` ...
    pub state: String,
    /// Which unit it says it is, if it carries this fleet and node.
    pub unit: Option<UnitId>,
}

/// The containers that carry this fleet and node and are none of `known`, and those that run an image of the family and
/// carry no fleet. What carries another fleet or node is that one's business.
pub(super) async fn find(
    client: &Client,
    owner: &Owner,
    known: &BTreeSet<UnitId>,
    family: &Family,
) -> Result<Vec<Stray>, CallError> {
    let images = images::held(client, family).await?.into_iter().map(|image| image.id).collect();
    let containers = ask::list(client, &HashMap::new()).await?;
    Ok(containers.into_iter().filter_map(|container| stray(owner, known, family, &images, container)).collect())
}

fn stray(
    owner: &Owner,
    known: &BTreeSet<UnitId>,
    family: &Family,
    images: &HashSet<String>,
    container: Listed,
) -> Option<Stray> {
    let labels = container.labels.unwrap_or_default();
    let image = container.image.unwrap_or_default();
    let unit = labels::read(owner, &labels).map(|marks| marks.unit);
    let is_stray = if labels::is_of(owner, &labels) {
        unit.is_none_or(|unit| !known.contains(&unit))
    } else if labels::is_of_anybody(&labels) {
        false
    } else {
        let id = container.image_id.as_deref().map(images::identity);
        family.has(&image) || id.is_some_and(|id| images.contains(&id))
    };
    is_stray.then(|| Stray {
        id: container.id,
        name: container.names.unwrap_or_default().first().map_or("", |name| name.trim_start_matches('/')).to_owned(),
        image,
        state: container.state.unwrap_or_default(),
        unit,
    })
}

#[cfg(test)]
mod tests {
    use super::super::testing;
    use super::*;

    fn container(image: &str, labels: HashMap<String, String>) -> Listed {
        Listed {
            id: "c".to_owned(),
            names: Some(vec!["/n".to_owned()]),
            image: Some(image.to_owned()),
            image_id: Some("aa".to_owned()),
            labels: Some(labels),
            ..Default::default()
        }
    }

    fn is_stray(image: &str, image_id: &str, labels: HashMap<String, String>, known: &[UnitId]) -> bool {
        let images = HashSet::from([image_id.to_owned()]);
        let known = known.iter().copied().collect();
        let family = Family::new(["vllm/vllm-openai"]);
        stray(&testing::owner(7), &known, &family, &images, container(image, labels)).is_some()
    }

    #[test]
    fn a_unit_of_this_node_is_a_stray_only_when_nobody_knows_it() {
        let unit = testing::unit(1, 0, 5);
        let labels = labels::written(&testing::owner(7), &testing::launch(unit, "x"));
        assert!(is_stray("x", "", labels.clone(), &[]));
        assert!(!is_stray("x", "", labels, &[unit]));
    }

    #[test]
    fn what_carries_another_node_is_none_of_this_nodes_business() {
        let labels = labels::written(&testing::owner(8), &testing::launch(testing::unit(1, 0, 5), "x"));
        assert!(!is_stray("vllm/vllm-openai:v1", "sha256:aa", labels, &[]));
    }

    #[test]
    fn an_engine_that_somebody_started_by_hand_is_a_stray_under_whatever_name() {
        assert!(is_stray("docker.io/vllm/vllm-openai:v1", "", HashMap::new(), &[]));
        assert!(is_stray("mine:1", "sha256:aa", HashMap::new(), &[]));
        assert!(!is_stray("postgres:17", "", HashMap::new(), &[]));
    }
}
