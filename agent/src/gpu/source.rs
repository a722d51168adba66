//! `gpu.provider`: where a node is to have its GPUs from.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

/// No machine has more, simulated or not.
pub(super) const MOST_GPUS: u32 = 256;

const MOST_MEMORY: u64 = 16 << 40;

/// What `gpu.provider` can be: `auto`, `none`, or `sim:<count>x<size>` such as `sim:2x80GiB`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub enum GpuSource {
    /// What the machine has.
    #[default]
    Auto,
    /// None, whatever the machine has.
    None,
    /// Simulated ones.
    Sim {
        /// How many, from 1 to 256.
        count: u32,
        /// The memory of each, in bytes, from 1 to 16 TiB.
        memory: u64,
    },
}

/// Why a text is no `gpu.provider`.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SourceError {
    /// It is none of the known kinds.
    #[error("gpu.provider is \"auto\", \"none\", or simulated GPUs such as \"sim:2x80GiB\"")]
    Unknown,
    /// The number of simulated GPUs is none, or out of range.
    #[error("the number of simulated GPUs is from 1 to {MOST_GPUS}")]
    Count,
    /// The size of simulated GPUs is none, or out of range.
    #[error("the memory of a simulated GPU is a whole number of GiB, MiB, GB or B, and at most 16 TiB")]
    Memory,
}

/// The first one that fits is written.
const UNITS: [(&str, u64); 4] = [("GiB", 1 << 30), ("MiB", 1 << 20), ("GB", 1_000_000_000), ("B", 1)];

impl FromStr for GpuSource {
    type Err = SourceError;

    fn from_str(text: &str) -> Result<Self, SourceError> {
        match text {
            "auto" => return Ok(Self::Auto),
            "none" => return Ok(Self::None),
            _ => {}
        }
        let (count, size) =
            text.strip_prefix("sim:").and_then(|rest| rest.split_once('x')).ok_or(SourceError::Unknown)?;
        let count = number(count).and_then(|count| u32::try_from(count).ok());
        let count = count.filter(|count| (1..=MOST_GPUS).contains(count)).ok_or(SourceError::Count)?;
        let memory = UNITS.iter().find_map(|(unit, bytes)| number(size.strip_suffix(unit)?)?.checked_mul(*bytes));
        let memory = memory.filter(|memory| (1..=MOST_MEMORY).contains(memory)).ok_or(SourceError::Memory)?;
        Ok(Self::Sim { count, memory })
    }
}

/// Digits alone: no sign, no space.
fn number(text: &str) -> Option<u64> {
    text.bytes().all(|byte| byte.is_ascii_digit()).then(|| text.parse().ok()).flatten()
}

impl fmt::Display for GpuSource {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match *self {
            Self::Auto => f.write_str("auto"),
            Self::None => f.write_str("none"),
            Self::Sim { count, memory } => {
                let fits = UNITS.into_iter().find(|(_, bytes)| memory % bytes == 0);
                let (unit, bytes) = fits.unwrap_or(("B", 1));
                write!(f, "sim:{count}x{}{unit}", memory / bytes)
            }
        }
    }
}

impl TryFrom<String> for GpuSource {
    type Error = SourceError;

    fn try_from(text: String) -> Result<Self, SourceError> {
        text.parse()
    }
}

impl From<GpuSource> for String {
    fn from(source: GpuSource) -> Self {
        source.to_string()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_source_is_read_and_written_alike() {
        for (text, source) in [
            ("auto", GpuSource::Auto),
            ("none", GpuSource::None),
            ("sim:2x80GiB", GpuSource::Sim { count: 2, memory: 80 << 30 }),
            ("sim:256x512MiB", GpuSource::Sim { count: 256, memory: 512 << 20 }),
            ("sim:1x24GB", GpuSource::Sim { count: 1, memory: 24_000_000_000 }),
            ("sim:1x1000B", GpuSource::Sim { count: 1, memory: 1000 }),
        ] {
            assert_eq!(text.parse(), Ok(source));
            assert_eq!(source.to_string(), text);
            assert_eq!(serde_json::to_value(source).unwrap(), text);
        }
    }

    #[test]
    fn what_is_no_source_is_refused_with_the_reason() {
        for text in ["", "AUTO", "nvml", "sim", "sim:", "sim:2", "2x80GiB", " auto"] {
            assert_eq!(text.parse::<GpuSource>(), Err(SourceError::Unknown), "{text}");
        }
        for text in ["sim:x80GiB", "sim:0x80GiB", "sim:257x1GiB", "sim:-1x1GiB", "sim:+1x1GiB", "sim:99999999999x1GiB"]
        {
            assert_eq!(text.parse::<GpuSource>(), Err(SourceError::Count), "{text}");
        }
        let sizes = [
            "",
            "80",
            "80G",
            "0GiB",
            "-1GiB",
            "1.5GiB",
            "80 GiB",
            "20000GiB",
            "99999999999999999999GiB",
            "18446744073709551615GiB",
        ];
        for size in sizes {
            assert_eq!(format!("sim:1x{size}").parse::<GpuSource>(), Err(SourceError::Memory), "{size}");
        }
        let refused = serde_json::from_value::<GpuSource>("cuda".into()).unwrap_err();
        assert!(refused.to_string().contains("gpu.provider is"), "{refused}");
    }
}
