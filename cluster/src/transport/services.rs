//! Services of other crates on the mesh port, and calls to them.

use std::fmt;
use std::sync::Arc;

use tonic::service::{Interceptor, RoutesBuilder};
use tonic::{Request, Status};

use super::channels::Channels;
use super::route::{Check, Inject};
use crate::ids::NodeId;

/// Lets only members of the fleet call a service, and only if they mean this node.
#[derive(Clone, Debug)]
pub struct Members(Check);

impl Interceptor for Members {
    fn call(&mut self, request: Request<()>) -> Result<Request<()>, Status> {
        self.0.call(request)
    }
}

/// Names this node and the one that is meant in every call.
#[derive(Clone, Debug)]
pub struct ToNode(Inject);

impl Interceptor for ToNode {
    fn call(&mut self, request: Request<()>) -> Result<Request<()>, Status> {
        self.0.call(request)
    }
}

impl Channels {
    /// What a client of a service of another node puts into its calls.
    #[must_use]
    pub fn route(&self, to: NodeId) -> ToNode {
        ToNode(Inject { registered: Arc::clone(self.registered()), to })
    }
}

type Add = dyn Fn(&mut RoutesBuilder, Members) + Send + Sync;

/// What else a node answers on the mesh port.
#[derive(Clone, Default)]
pub struct Services(Vec<Arc<Add>>);

impl Services {
    /// Adds a service. It is told who may call it.
    pub fn add(&mut self, add: impl Fn(&mut RoutesBuilder, Members) + Send + Sync + 'static) {
        self.0.push(Arc::new(add));
    }

    pub(crate) fn build(&self, routes: &mut RoutesBuilder, check: &Check) {
        for add in &self.0 {
            add(routes, Members(check.clone()));
        }
    }
}

impl fmt::Debug for Services {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} services", self.0.len())
    }
}
