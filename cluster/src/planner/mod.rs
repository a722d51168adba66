//! What shall run where, and what gives way to it: the decisions about GPUs, nodes and replicas as pure functions.
//!
//! No I/O, no clock, no randomness: the same input gives the same answer on every node, in whatever order it comes. So `apply`,
//! the leader's scheduler, `/plan` and the owning node all use the ones here. Callers fill in the input from the replicated
//! state and from what has been measured. Every refusal carries its reasons, in words for an operator.

pub mod balance;
pub mod claim;
pub mod place;
pub mod suggest;
pub mod warm;

mod gpu;
mod words;

pub use gpu::{Gpu, Share, ShortOfMemory};
