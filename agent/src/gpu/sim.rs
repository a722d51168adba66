//! Simulated GPUs: memory that can be claimed, and nothing that computes.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use super::sample::{Figures, Gpu, GpuMemory, GpuSample, Health, Origin};
use super::source::MOST_GPUS;

/// More programs than this are on no GPU.
const MOST_CLAIMS: usize = 1024;

/// The simulated GPUs of a node, and who has which share of their memory. Clones are the same GPUs.
#[derive(Clone, Debug)]
pub struct SimGpus {
    table: Arc<Mutex<Vec<SimGpu>>>,
}

#[derive(Debug)]
struct SimGpu {
    facts: Arc<Gpu>,
    memory: u64,
    claims: BTreeMap<String, u64>,
    lost: Option<String>,
}

/// Why memory of a simulated GPU could not be had.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ClaimError {
    /// There is no GPU of this number.
    #[error("there is no simulated GPU {0}")]
    NoSuchGpu(u32),
    /// It is lost.
    #[error("the simulated GPU {gpu} is lost: {why}")]
    Lost {
        /// Which.
        gpu: u32,
        /// Why.
        why: String,
    },
    /// It has too little left.
    #[error("the simulated GPU {gpu} has {free} bytes left, and {wanted} are wanted")]
    NoRoom {
        /// Which.
        gpu: u32,
        /// What it has left.
        free: u64,
        /// What was wanted.
        wanted: u64,
    },
    /// Too many have a share of it.
    #[error("the simulated GPU {0} is shared by too many")]
    TooMany(u32),
}

impl SimGpus {
    /// Makes GPUs that have so many bytes of memory each. There are at most 256.
    #[must_use]
    pub fn new(count: u32, memory: u64) -> Self {
        let gpus = (0..count.min(MOST_GPUS)).map(|index| {
            let facts = Arc::new(Gpu {
                index,
                uuid: Some(format!("GPU-sim-{index}")),
                name: "Simulated GPU".to_owned(),
                memory_total: Some(memory),
                origin: Origin::Sim,
            });
            SimGpu { facts, memory, claims: BTreeMap::new(), lost: None }
        });
        Self { table: Arc::new(Mutex::new(gpus.collect())) }
    }

    /// Gives memory to an owner. What the owner had of this GPU before is given back.
    pub fn claim(&self, gpu: u32, owner: &str, bytes: u64) -> Result<(), ClaimError> {
        let mut table = self.table();
        let found = find(&mut table, gpu)?;
        if let Some(why) = &found.lost {
            return Err(ClaimError::Lost { gpu, why: why.clone() });
        }
        let before = found.claims.get(owner).copied();
        let free = found.free() + before.unwrap_or(0);
        if bytes > free {
            return Err(ClaimError::NoRoom { gpu, free, wanted: bytes });
        }
        if before.is_none() && found.claims.len() >= MOST_CLAIMS {
            return Err(ClaimError::TooMany(gpu));
        }
        found.claims.insert(owner.to_owned(), bytes);
        Ok(())
    }

    /// Takes back what an owner has of any GPU.
    pub fn release(&self, owner: &str) {
        for gpu in self.table().iter_mut() {
            gpu.claims.remove(owner);
        }
    }

    /// Makes a GPU a lost one, with all that is in its memory.
    pub fn lose(&self, gpu: u32, why: &str) -> Result<(), ClaimError> {
        let mut table = self.table();
        let found = find(&mut table, gpu)?;
        found.lost = Some(why.to_owned());
        found.claims.clear();
        Ok(())
    }

    /// Mends a lost GPU.
    pub fn mend(&self, gpu: u32) -> Result<(), ClaimError> {
        find(&mut self.table(), gpu)?.lost = None;
        Ok(())
    }

    /// The GPUs as they are now.
    #[must_use]
    pub fn sample(&self) -> Arc<[GpuSample]> {
        self.table().iter().map(SimGpu::sample).collect()
    }

    /// No call leaves the table half changed, so that a panic elsewhere is none here.
    fn table(&self) -> MutexGuard<'_, Vec<SimGpu>> {
        self.table.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn find(table: &mut [SimGpu], gpu: u32) -> Result<&mut SimGpu, ClaimError> {
    table.iter_mut().find(|one| one.facts.index == gpu).ok_or(ClaimError::NoSuchGpu(gpu))
}

impl SimGpu {
    /// A claim is granted only if it fits, so this never goes below zero.
    fn free(&self) -> u64 {
        self.memory.saturating_sub(self.claims.values().sum())
    }

    fn sample(&self) -> GpuSample {
        let free = self.free();
        let memory = Some(GpuMemory { total: self.memory, used: self.memory.saturating_sub(free), free });
        let health = match &self.lost {
            Some(why) => Health::Lost(why.clone()),
            None => Health::Ok(Figures { memory, ..Figures::default() }),
        };
        GpuSample { gpu: self.facts.clone(), health, xids: None }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn used(gpus: &SimGpus) -> Vec<Option<u64>> {
        gpus.sample()
            .iter()
            .map(|gpu| gpu.figures().and_then(|figures| figures.memory).map(|memory| memory.used))
            .collect()
    }

    #[test]
    fn memory_in_use_is_what_is_claimed() {
        let gpus = SimGpus::new(2, 100);
        gpus.claim(0, "a", 60).unwrap();
        gpus.clone().claim(1, "a", 10).unwrap();
        gpus.claim(0, "b", 40).unwrap();
        assert_eq!(used(&gpus), [Some(100), Some(10)]);
        gpus.release("a");
        gpus.release("nobody");
        assert_eq!(used(&gpus), [Some(40), Some(0)]);
    }

    #[test]
    fn no_more_can_be_claimed_than_there_is() {
        let gpus = SimGpus::new(1, 100);
        gpus.claim(0, "a", 60).unwrap();
        assert_eq!(gpus.claim(0, "b", 41), Err(ClaimError::NoRoom { gpu: 0, free: 40, wanted: 41 }));
        assert_eq!(gpus.claim(0, "b", u64::MAX), Err(ClaimError::NoRoom { gpu: 0, free: 40, wanted: u64::MAX }));
        assert_eq!(gpus.claim(1, "b", 1), Err(ClaimError::NoSuchGpu(1)));
        assert_eq!(used(&gpus), [Some(60)]);
        // The same owner again is a change, not a second share.
        gpus.claim(0, "a", 100).unwrap();
        assert_eq!(used(&gpus), [Some(100)]);
    }

    #[test]
    fn a_table_does_not_grow_without_end() {
        let gpus = SimGpus::new(1, u64::MAX);
        for owner in 0..MOST_CLAIMS {
            gpus.claim(0, &owner.to_string(), 1).unwrap();
        }
        assert_eq!(gpus.claim(0, "one more", 1), Err(ClaimError::TooMany(0)));
        gpus.claim(0, "7", 2).unwrap();
        assert_eq!(SimGpus::new(u32::MAX, 1).sample().len(), 256);
    }

    #[test]
    fn a_lost_gpu_is_lost_alone() {
        let gpus = SimGpus::new(2, 100);
        gpus.claim(0, "a", 10).unwrap();
        gpus.claim(1, "a", 10).unwrap();
        gpus.lose(1, "fell off the bus").unwrap();
        assert_eq!(used(&gpus), [Some(10), None]);
        assert_eq!(gpus.sample()[1].health, Health::Lost("fell off the bus".to_owned()));
        assert_eq!(gpus.claim(1, "a", 10), Err(ClaimError::Lost { gpu: 1, why: "fell off the bus".to_owned() }));
        gpus.mend(1).unwrap();
        assert_eq!(used(&gpus), [Some(10), Some(0)]);
    }
}
