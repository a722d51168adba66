//! A node of this process: its runtimes, its listeners, its life.

mod clients;
mod directory;
mod doors;
mod found;
mod handover;
mod life;
mod listeners;
mod seeds;
mod serve;
mod signals;
mod socket;
mod workers;

pub use directory::own_directory;
pub use found::{Secrets, found_fleet, preset_token};
pub use listeners::{Addresses, Loopback};
pub use seeds::Seed;
pub use serve::{JoinWish, Runtimes, Serving, Start, Succession, node_options, serve};
pub use signals::stop_on_signal;
pub use socket::{Socket, safe_socket_path};
