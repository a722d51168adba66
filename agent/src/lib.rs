//! What one node does with its own machine: containers, GPUs, engines, files. It knows no REST, and it is told what shall
//! run only by the node's own replica of the fleet's state.

pub mod asked;
pub mod doors;
pub mod engine;
pub mod files;
pub mod gpu;
pub mod history;
pub mod host;
pub mod leases;
pub mod logs;
pub mod machine;
pub mod runtime;
pub mod scheduler;
pub mod serving;
pub mod supervisor;

/// The protobuf messages and services of `proto/host.proto`.
#[allow(missing_docs, clippy::pedantic, clippy::unwrap_used, unused_qualifications)]
pub mod wire {
    include!(concat!(env!("OUT_DIR"), "/muster.host.v1.rs"));
}
