//! What each command does.

pub mod client;
pub mod completion;
pub mod config;
pub mod dev;
pub mod import;
pub mod serve;
pub mod snapshot;
pub mod storage;
