//! Where the datagrams for a node go.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use tokio::net::lookup_host;
use tokio::sync::watch;
use tokio::time::{Instant, sleep, timeout};

use crate::ids::NodeId;
use crate::transport::Registered;

/// How often it is looked whether the nodes of the fleet have changed.
const LOOK: Duration = Duration::from_secs(1);

/// How often names are resolved again.
const RESOLVE: Duration = Duration::from_secs(60);

/// How long resolving one name may take.
const LIMIT: Duration = Duration::from_secs(5);

pub(super) type Addresses = Arc<HashMap<NodeId, SocketAddr>>;

/// Keeps the addresses of all registered nodes but this one up to date.
pub(super) async fn follow(registered: Arc<Registered>, to: watch::Sender<Addresses>) {
    let mut resolved: Option<(Arc<crate::transport::Registry>, Instant)> = None;
    loop {
        let current = registered.current();
        let fresh = |(registry, at): &(Arc<_>, Instant)| Arc::ptr_eq(registry, &current) && at.elapsed() < RESOLVE;
        if !resolved.as_ref().is_some_and(fresh) {
            let mut addresses = HashMap::new();
            for peer in current.peers().filter(|peer| peer.node != registered.node) {
                if let Some(address) = resolve(&peer.address).await {
                    addresses.insert(peer.node, address);
                }
            }
            to.send_replace(Arc::new(addresses));
            resolved = Some((current, Instant::now()));
        }
        sleep(LOOK).await;
    }
}

async fn resolve(address: &str) -> Option<SocketAddr> {
    if let Ok(address) = address.parse() {
        return Some(address);
    }
    match timeout(LIMIT, lookup_host(address)).await {
        Ok(Ok(mut found)) => found.next(),
        Ok(Err(error)) => {
            tracing::debug!(address, %error, "the name of a node leads nowhere");
            None
        }
        Err(_) => None,
    }
}
