//! The container runtimes on real daemons, with images made from nothing but the simulator.
//!
//! `MUSTER_TEST_DOCKER` and `MUSTER_TEST_PODMAN` name the sockets of daemons that are there for tests only
//! (`tests/engines`), `MUSTER_TEST_SIM` the statically linked `muster-sim`. A test without them says so and does nothing.

#![allow(clippy::expect_used, clippy::panic, clippy::unwrap_used)]

mod daemons;
mod images;
mod lives;
