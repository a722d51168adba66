//! Every call between members says who sends it and who is meant, with their disks.

use std::sync::Arc;

use prost::Message;
use tonic::metadata::MetadataValue;
use tonic::service::Interceptor;
use tonic::{Request, Status};

use super::registry::Registered;
use super::server::PeerIdentity;
use crate::ids::{NodeId, StoreId};
use crate::wire::Route;

const HEADER: &str = "muster-route-bin";

/// The generation of a node that refuses a call of another one.
const GENERATION: &str = "muster-generation";

/// The generation of the node that has refused this call because of it, if that was the reason. The connection proves which
/// node it was, and nothing proves that it says the truth (see `node::superseded`).
pub(crate) fn refused_by_generation(status: &Status) -> Option<u64> {
    status.metadata().get(GENERATION)?.to_str().ok()?.parse().ok()
}

/// Why a call was refused.
struct Refused {
    why: String,
    /// Of this node, when the call was of another.
    generation: Option<u64>,
}

impl<T: Into<String>> From<T> for Refused {
    fn from(why: T) -> Self {
        Self { why: why.into(), generation: None }
    }
}

/// Names sender and target in every call to one node.
#[derive(Clone, Debug)]
pub(crate) struct Inject {
    pub registered: Arc<Registered>,
    pub to: NodeId,
}

impl Interceptor for Inject {
    fn call(&mut self, mut request: Request<()>) -> Result<Request<()>, Status> {
        let registry = self.registered.current();
        let peer = registry.node(self.to);
        let peer = peer.ok_or_else(|| Status::unavailable(format!("node {} is not known here yet", self.to)))?;
        let route = Route {
            fleet: self.registered.fleet.as_bytes().to_vec().into(),
            generation: self.registered.generation,
            from_node: self.registered.node.0,
            from_store: self.registered.store.as_bytes().to_vec().into(),
            to_node: self.to.0,
            to_store: peer.store.as_bytes().to_vec().into(),
        };
        let value = MetadataValue::from_bytes(&route.encode_to_vec());
        request.metadata_mut().insert_bin(HEADER, value);
        Ok(request)
    }
}

/// Lets only those calls in that come from who they say and mean this node.
#[derive(Clone, Debug)]
pub(crate) struct Check {
    pub registered: Arc<Registered>,
}

impl Check {
    fn check(&self, request: &Request<()>) -> Result<(), Refused> {
        let Some(PeerIdentity::Member { key, named }) = request.extensions().get::<PeerIdentity>() else {
            return Err("a call of members needs a certificate".into());
        };
        let header = request.metadata().get_bin(HEADER).and_then(|value| value.to_bytes().ok());
        let route = header.and_then(|bytes| Route::decode(bytes).ok()).ok_or("the call names no route")?;
        let own = &self.registered;
        if route.fleet != own.fleet.as_bytes().as_slice() {
            return Err("the call is for another fleet".into());
        }
        if route.generation != own.generation {
            let why = format!("the call is of generation {}, and this node of {}", route.generation, own.generation);
            return Err(Refused { why, generation: Some(own.generation) });
        }
        if route.to_node != own.node.0 || StoreId::from_slice(&route.to_store) != Some(own.store) {
            let why = format!("the call is for node {} with another disk, and this is {}", route.to_node, own.node);
            return Err(why.into());
        }
        let from = NodeId(route.from_node);
        let registry = own.current();
        if registry.is_removed(key) {
            return Err(format!("node {from} was removed from the fleet").into());
        }
        let sound = match registry.by_key(key) {
            Some(peer) => peer.node == from && StoreId::from_slice(&route.from_store) == Some(peer.store),
            // Not known here yet: TLS has seen to it that the authority vouches for the name.
            None => *named == Some(from) && registry.node(from).is_none(),
        };
        if sound {
            Ok(())
        } else {
            Err(format!("the call says it is from node {from}, and its certificate does not").into())
        }
    }
}

impl Interceptor for Check {
    fn call(&mut self, request: Request<()>) -> Result<Request<()>, Status> {
        match self.check(&request) {
            Ok(()) => Ok(request),
            Err(Refused { why, generation }) => {
                tracing::debug!(why, "a call was refused");
                let mut status = Status::permission_denied(why);
                if let Some(generation) = generation {
                    status.metadata_mut().insert(GENERATION, generation.into());
                }
                Err(status)
            }
        }
    }
}
