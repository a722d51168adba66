//! How the nodes of a Muster fleet keep, agree on and share their state.
//!
//! It knows no HTTP and no containers, and it never ends the process: what is fatal here ends a value with a reason, and
//! the binary decides what that means. `OVERVIEW.md` beside this crate has the picture and the invariants.

pub mod clock;
pub mod clocks;
pub mod consensus;
pub mod ids;
pub mod leader;
pub mod membership;
pub mod node;
pub mod planner;
pub mod sealing;
pub mod state;
pub mod storage;
pub mod transport;

/// The protobuf messages of `proto/storage.proto`. Only [`storage`] and [`consensus`] look inside.
#[allow(missing_docs, clippy::pedantic)]
pub(crate) mod pb {
    include!(concat!(env!("OUT_DIR"), "/muster.storage.v1.rs"));
}

/// The protobuf messages of `proto/state.proto`: commands, answers and the rows of the replicated state.
#[allow(missing_docs, clippy::large_enum_variant, clippy::pedantic)]
pub mod rows {
    include!(concat!(env!("OUT_DIR"), "/muster.state.v1.rs"));
}

/// The protobuf messages and services of `proto/mesh.proto`.
#[allow(missing_docs, clippy::pedantic, clippy::unwrap_used, unused_qualifications)]
pub(crate) mod wire {
    include!(concat!(env!("OUT_DIR"), "/mesh/muster.mesh.v1.rs"));
}
