//! What one node does with its own machine: containers, GPUs, engines, files. It knows no REST, and it is told what shall
//! run only by the node's own replica of the fleet's state.

pub mod asked;
pub mod engine;
pub mod files;
pub mod gpu;
pub mod history;
pub mod logs;
pub mod machine;
pub mod runtime;
pub mod serving;
pub mod supervisor;
