//! What the black-box tests share: which groups can run here, how a process is started and ended, what a disk may hold
//! after a loss of power, and the workload whose promises are checked afterwards.

pub mod disk;
pub mod groups;
pub mod process;
pub mod workload;
