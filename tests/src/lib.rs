//! What the black-box tests share: which groups can run here, how a process is started and ended, what a disk may hold
//! after a loss of power, the workload whose promises are checked afterwards, a fleet with a
//! client of its API, a provider of models, and a stand-in for tailscaled.

pub mod api;
pub mod clock;
pub mod disk;
pub mod engines;
pub mod fleet;
pub mod groups;
pub mod history;
pub mod mesh;
pub mod net;
pub mod process;
pub mod registers;
pub mod seeds;
pub mod small_disk;
pub mod tailscaled;
pub mod upstream;
pub mod workload;
