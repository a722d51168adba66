//! The listeners of placements, as the supervisor sees them. What listens and answers there is none of its business.

use std::fmt;

use futures_util::future::BoxFuture;

use crate::runtime::UnitId;

/// A port that a unit can not have.
#[derive(Debug, thiserror::Error)]
#[error("port {port} of this node can not be listened on: {why}")]
pub struct PortTaken {
    /// The port.
    pub port: u32,
    /// What the system says.
    pub why: String,
}

/// The listeners of a node's placements.
pub trait Doors: fmt::Debug + Send + Sync + 'static {
    /// Listens for a unit from now on, whether its engine runs or not. One that is open already stays as it is. A port that is
    /// just being given up is waited for, for a while.
    fn open(&self, unit: UnitId, port: u32) -> BoxFuture<'_, Result<(), PortTaken>>;

    /// Closes the listeners of all units but these. Answers under way go on.
    fn keep(&self, units: &[UnitId]);
}
