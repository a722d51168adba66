//! The real binary, as what starts it and what calls it see it.

// Clippy takes only what is marked as a test for one; here everything is.
#![allow(clippy::expect_used, clippy::panic, clippy::unwrap_used)]

mod client;
mod faults;
mod lifecycle;
mod requests;
mod routes;
mod sim;
mod sleep;
mod streams;
