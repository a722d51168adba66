//! The machine's memory.

use std::fs;

/// The machine's memory, in bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Memory {
    /// All of it.
    pub total: u64,
    /// What a program that starts now could get without swapping, by the kernel's estimate.
    pub available: u64,
}

impl Memory {
    /// What the kernel says now.
    #[must_use]
    pub fn read() -> Option<Self> {
        parse(&fs::read_to_string("/proc/meminfo").ok()?)
    }

    /// What is in use, in bytes.
    #[must_use]
    pub fn used(&self) -> u64 {
        self.total.saturating_sub(self.available)
    }

    /// The share that is in use, from 0 to 100.
    #[must_use]
    pub fn percent(&self) -> f32 {
        if self.total == 0 { 0.0 } else { (self.used() as f64 * 100.0 / self.total as f64) as f32 }
    }
}

fn parse(meminfo: &str) -> Option<Memory> {
    let bytes = |name: &str| {
        let (_, rest) = meminfo.lines().filter_map(|line| line.split_once(':')).find(|(field, _)| *field == name)?;
        rest.trim().strip_suffix("kB")?.trim().parse::<u64>().ok()?.checked_mul(1024)
    };
    Some(Memory { total: bytes("MemTotal")?, available: bytes("MemAvailable")? })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_could_be_had_is_not_in_use() {
        let memory =
            parse("MemTotal:       1000 kB\nMemFree:  100 kB\nMemAvailable:    250 kB\nBuffers: 1 kB\n").unwrap();
        assert_eq!(memory, Memory { total: 1_024_000, available: 256_000 });
        assert_eq!((memory.used(), memory.percent()), (768_000, 75.0));
    }

    #[test]
    fn other_files_are_no_figures() {
        let huge = format!("MemTotal: {} kB\nMemAvailable: 1 kB\n", u64::MAX);
        for text in
            ["", "MemTotal: 5 kB\n", "MemTotal: 5\nMemAvailable: 1\n", "MemTotal: x kB\nMemAvailable: 1 kB", &huge]
        {
            assert_eq!(parse(text), None, "{text:?}");
        }
    }

    #[test]
    fn this_machine_has_memory() {
        let memory = Memory::read().unwrap();
        assert!(memory.available > 0 && memory.available <= memory.total, "{memory:?}");
    }
}
