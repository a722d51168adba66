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

/// The name or identity of the fleet's network, which is made where it is missing.
///
/// Podman knows no network without traffic between its containers; it says so, and that is logged.
pub(super) async fn ensure(client: &Client, fleet: FleetId) -> Result<String, CallError> {
    if let Some(network) = find(client, fleet).await?.first() {
        return Ok(handle(client, network));
    }
    let name = format!("muster-{}", labels::short(fleet));
    let request = NetworkCreateRequest {
        name: name.clone(),
        driver: Some("bridge".to_owned()),
        options: Some(HashMap::from([(BETWEEN_CONTAINERS.to_owned(), "false".to_owned())])),
        labels: Some(HashMap::from([labels::of_fleet(fleet)])),
        ..Default::default()
    };
    let made = match client.short(client.docker.create_network(request)).await {
        Ok(made) => {
            if !made.warning.is_empty() {
                warn!(network = name, warning = made.warning, "containers of this network can reach one another");
            }
            Some(made.id)
        }
        // Another node of the fleet on this machine was faster.
        Err(error) if error.is_conflict() => None,
        Err(error) => return Err(error),
    };
    // Docker lets two networks have one name. The nodes that made them at once agree on the first, and the others go.
    let networks = find(client, fleet).await?;
    let Some(first) = networks.first() else {
        return Err(CallError::Odd(format!("there is a network {name}, and it is not this fleet's")));
    };
    if let Some(made) = made.filter(|made| first.id.as_deref() != Some(made))
        && let Err(error) = client.short(client.docker.remove_network(&made)).await
    {
        warn!(network = made, %error, "a second network of this fleet could not be removed");
    }
    Ok(handle(client, first))
}

/// The networks that carry the fleet's label, the one that all take first.
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
