//! The network of a fleet's containers: a bridge of its own, over which they reach models but not one another.

use std::collections::HashMap;

use bollard::models::{Network, NetworkCreateRequest};
use bollard::query_parameters::ListNetworksOptions;
use muster_cluster::ids::FleetId;
use tracing::warn;

use super::call::CallError;
use super::daemon::Client;
use super::flavour::Flavour;
use super::labels;

/// Docker's name for traffic between the containers of a network.
const BETWEEN_CONTAINERS: &str = "com.docker.network.bridge.enable_icc";

/// Docker's name for the name of a network's bridge, which has up to 15 bytes.
const BRIDGE: &str = "com.docker.network.bridge.name";

/// The name or identity of the fleet's network, which is made where it is missing.
///
/// Podman knows no network without traffic between its containers; it says so, and that is logged.
pub(super) async fn ensure(client: &Client, fleet: FleetId) -> Result<String, CallError> {
    if let Some(network) = find(client, fleet).await?.first() {
        return Ok(handle(client, network));
    }
    let name = format!("muster-{}", labels::short(fleet));
    let mut options = HashMap::from([(BETWEEN_CONTAINERS.to_owned(), "false".to_owned())]);
    if client.facts.flavour == Flavour::Docker {
        // Docker lets two networks have one name, and then starts no container in either. It lets no two have one bridge.
        options.insert(BRIDGE.to_owned(), name.clone());
    }
    let request = NetworkCreateRequest {
        name: name.clone(),
        driver: Some("bridge".to_owned()),
        options: Some(options),
        labels: Some(HashMap::from([labels::of_fleet(fleet)])),
        ..Default::default()
    };
    let made = client.short(client.docker.create_network(request)).await;
    if let Ok(made) = &made
        && !made.warning.is_empty()
    {
        warn!(network = name, warning = made.warning, "containers of this network can reach one another");
    }
    // If it was refused, another node of the fleet on this machine may have been faster.
    match (find(client, fleet).await?.first(), made) {
        (Some(network), _) => Ok(handle(client, network)),
        (None, Err(error)) => Err(error),
        (None, Ok(_)) => Err(CallError::Odd(format!("the network {name} was made, and is not there"))),
    }
}

/// The networks that carry the fleet's label: one, unless somebody has made more by hand. All nodes take the same.
async fn find(client: &Client, fleet: FleetId) -> Result<Vec<Network>, CallError> {
    let options = ListNetworksOptions { filters: Some(labels::filter([labels::of_fleet(fleet)])) };
    let mut networks = client.short(client.docker.list_networks(Some(options))).await?;
    networks.sort_by(|a, b| a.id.cmp(&b.id));
    Ok(networks)
}

/// Docker's names are ambiguous, Podman's are not.
fn handle(client: &Client, network: &Network) -> String {
    let chosen = match client.facts.flavour {
        Flavour::Docker => &network.id,
        Flavour::Podman => &network.name,
    };
    chosen.clone().unwrap_or_default()
}
