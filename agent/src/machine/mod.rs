//! The machine's own figures: processors, memory, disks. Linux only; what cannot be read is missing, not zero.

mod cpu;
mod disk;
mod memory;

pub use cpu::CpuMeter;
pub use disk::{Disk, DiskUsage};
pub use memory::Memory;

/// How busy a machine is.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct MachineSample {
    /// Of all processors together, since the sample before, from 0 to 100.
    pub cpu_percent: Option<f32>,
    /// The machine's memory.
    pub memory: Option<Memory>,
}

impl MachineSample {
    /// Reads both now. It does not block for longer than the kernel takes to write two small files.
    #[must_use]
    pub fn take(cpu: &mut CpuMeter) -> Self {
        Self { cpu_percent: cpu.percent(), memory: Memory::read() }
    }

    /// The share of the memory that is in use, from 0 to 100.
    #[must_use]
    pub fn memory_percent(&self) -> Option<f32> {
        self.memory.map(|memory| memory.percent())
    }
}
