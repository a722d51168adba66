//! A node of this process: its runtimes, its listeners, its life.

mod found;
mod serve;
mod socket;

pub use found::{Secrets, found_fleet};
pub use serve::{Runtimes, serve, stop_on_signal};
pub use socket::socket_path;
