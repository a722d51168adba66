//! Where a node asks to be let into a fleet.

use std::convert::Infallible;
use std::net::SocketAddr;
use std::str::FromStr;

use crate::config::Values;
use crate::tailnet::Tailscale;

/// The word for every machine in the tailnet that has the tag.
const TAILSCALE: &str = "tailscale";

/// The port of the mesh where nobody says otherwise.
const MESH_PORT: u16 = 7946;

/// Where a fleet may be.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Seed {
    /// Where the mesh of a node listens.
    Address(String),
    /// The machines in the tailnet that have the tag and are online.
    Tailscale,
}

impl FromStr for Seed {
    type Err = Infallible;

    fn from_str(text: &str) -> Result<Self, Infallible> {
        Ok(if text == TAILSCALE { Self::Tailscale } else { Self::Address(text.to_owned()) })
    }
}

/// Where the nodes are that these seeds stand for, as of now.
pub async fn addresses(seeds: &[Seed], values: &Values) -> Vec<String> {
    let mut addresses = Vec::new();
    for seed in seeds {
        match seed {
            Seed::Address(address) => addresses.push(address.clone()),
            Seed::Tailscale => addresses.extend(tagged(&values.tailscale, &values.tailscale_tag, port(values)).await),
        }
    }
    addresses
}

/// A fleet has one port for its mesh.
fn port(values: &Values) -> u16 {
    match values.mesh.port() {
        0 => MESH_PORT,
        port => port,
    }
}

async fn tagged(tailscale: &Tailscale, tag: &str, port: u16) -> Vec<String> {
    let found = match tailscale.tailnet().await {
        Ok(tailnet) => tailnet.online_with(tag),
        Err(why) => {
            tracing::warn!(%why, "nobody in the tailnet can be asked to let this node in yet");
            return Vec::new();
        }
    };
    if found.is_empty() {
        tracing::warn!(tag, "no machine in the tailnet has the tag and is online yet");
    }
    found.into_iter().map(|address| SocketAddr::new(address, port).to_string()).collect()
}
