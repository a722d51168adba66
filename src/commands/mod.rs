//! One module for each command.

pub mod completion;
pub mod config;
pub mod storage;
