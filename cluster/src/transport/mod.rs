//! How nodes reach each other: one port, gRPC over mutual TLS.
//!
//! Nodes know each other by the public keys in the replicated state; a certificate of the fleet's own authority only vouches
//! for a node that this one does not know yet. So an expired certificate locks nobody out. Joining is the only call without
//! a certificate; it has a protocol name of its own, and the joiner checks the authority's hash before it sends its secret.

mod certificates;
mod channels;
mod registry;
mod route;
mod server;
mod services;
mod tls;

#[cfg(test)]
mod tests;

pub use certificates::{Authority, CertificateError, TlsIdentity, ca_hash};
pub(crate) use channels::connect;
pub use channels::{Channels, Purpose};
pub use registry::{Peer, Registered, Registry};
pub(crate) use route::{Check, Inject, refused_by_generation};
pub use server::PeerConnection;
pub(crate) use server::{Gate, Mesh, serve};
pub use services::{Members, Services, ToNode};
pub(crate) use tls::join_config;
