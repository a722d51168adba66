//! What is known of a GPU: what stays, and what was read last.

use std::fmt;
use std::sync::Arc;

/// Where a GPU's figures come from.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Origin {
    /// NVIDIA's management library.
    Nvml,
    /// Nowhere: it is simulated.
    Sim,
    /// The management library; but its memory is the machine's own, and so are the figures of it.
    Unified,
}

impl Origin {
    /// As the API spells it.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Nvml => "nvml",
            Self::Sim => "sim",
            Self::Unified => "unified",
        }
    }
}

impl fmt::Display for Origin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// What stays the same of a GPU while the driver runs.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Gpu {
    /// The driver's number. Another GPU may have it after a reboot.
    pub index: u32,
    /// The name that stays its own. `None` while the driver could never reach it.
    pub uuid: Option<String>,
    /// What it is called: its model.
    pub name: String,
    /// All of its memory, in bytes. `None` while the driver could never reach it.
    pub memory_total: Option<u64>,
    /// Where its figures come from.
    pub origin: Origin,
}

/// A GPU, and what was read of it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct GpuSample {
    /// Which.
    pub gpu: Arc<Gpu>,
    /// Whether it can be used, with its figures if so.
    pub health: Health,
    /// Xid errors, which the driver reports when something goes wrong in a GPU or in a program on it, since this program
    /// opened the driver. `None`: it does not report them.
    pub xids: Option<Xids>,
}

impl GpuSample {
    /// The figures, if it could be read.
    #[must_use]
    pub fn figures(&self) -> Option<&Figures> {
        match &self.health {
            Health::Ok(figures) => Some(figures),
            Health::Lost(_) | Health::Unknown(_) => None,
        }
    }
}

/// Whether a GPU can be used.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Health {
    /// It answers.
    Ok(Figures),
    /// It is gone until somebody acts, for this reason.
    Lost(String),
    /// The driver could not say, for this reason.
    Unknown(String),
}

impl Health {
    /// In one word.
    #[must_use]
    pub fn name(&self) -> &'static str {
        match self {
            Self::Ok(_) => "ok",
            Self::Lost(_) => "lost",
            Self::Unknown(_) => "unknown",
        }
    }
}

/// What a GPU does. `None`: it does not say.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Figures {
    /// The share of time in which something ran on it, from 0 to 100.
    pub utilization: Option<u8>,
    /// Its memory.
    pub memory: Option<GpuMemory>,
    /// Of its die, in degrees Celsius.
    pub temperature: Option<u32>,
    /// What it draws, in milliwatts.
    pub power: Option<u32>,
    /// What computes on it.
    pub processes: Option<Vec<GpuProcess>>,
    /// Memory errors that were mended, since the driver was loaded.
    pub ecc_corrected: Option<u64>,
    /// Memory errors that were not, since the driver was loaded.
    pub ecc_uncorrected: Option<u64>,
}

/// A GPU's memory, in bytes. The driver keeps some for itself, so that used and free can be less than the total in sum.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct GpuMemory {
    /// All of it.
    pub total: u64,
    /// What programs have.
    pub used: u64,
    /// What they can still get.
    pub free: u64,
}

/// A process that computes on a GPU.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct GpuProcess {
    /// Its number, as the driver sees it: outside of containers.
    pub pid: u32,
    /// What it has of the GPU's memory, in bytes.
    pub memory: Option<u64>,
    /// Its program.
    pub name: Option<String>,
}

/// Xid errors of one GPU.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Xids {
    /// How many.
    pub count: u64,
    /// The number of the last one; 999 is one that the driver cannot name.
    pub last: Option<u64>,
}
