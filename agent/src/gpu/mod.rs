//! The GPUs of the machine, as data: none and lost ones among them.
//!
//! Whoever asks is never held up by a driver that hangs: it gets what was known before, and how old that is. One GPU that
//! fails is a state of that GPU and hides no other one.

mod nvml;
mod sample;
mod sim;
mod source;

use std::sync::Arc;
use std::time::Duration;

pub use nvml::{NvmlGpus, NvmlOptions};
pub use sample::{Figures, Gpu, GpuMemory, GpuProcess, GpuSample, Health, Origin, Xids};
pub use sim::{ClaimError, SimGpus};
pub use source::{GpuSource, SourceError};

/// Where this node has its GPUs from.
#[derive(Clone, Debug)]
pub enum GpuProvider {
    /// Nowhere: it is to have none.
    None,
    /// They are simulated.
    Sim(SimGpus),
    /// From NVIDIA's driver, if there is one.
    Nvml(NvmlGpus),
}

/// The GPUs, and how far that can be trusted.
#[derive(Clone, Debug, PartialEq)]
pub enum Reading {
    /// As they are now.
    Fresh(Arc<[GpuSample]>),
    /// As they were when the driver last answered.
    Stale {
        /// What it said.
        gpus: Arc<[GpuSample]>,
        /// How long ago.
        age: Duration,
    },
    /// There is nothing to be said of any GPU.
    Nothing(NoGpus),
}

/// Why nothing is known of any GPU.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum NoGpus {
    /// The node is to have none.
    #[error("this node is configured to use no GPU")]
    Off,
    /// There is no working driver.
    #[error("{0}")]
    NoDriver(String),
    /// The driver has not answered since this program started, so there may be GPUs.
    #[error("the driver has not answered for {} s", .0.as_secs())]
    Silent(Duration),
}

impl GpuProvider {
    /// Opens a source. It does not wait for the driver.
    #[must_use]
    pub fn open(source: &GpuSource, options: NvmlOptions) -> Self {
        match *source {
            GpuSource::None => Self::None,
            GpuSource::Sim { count, memory } => Self::Sim(SimGpus::new(count, memory)),
            GpuSource::Auto => Self::Nvml(NvmlGpus::open(options)),
        }
    }

    /// The GPUs as they are now, or as they were if the driver does not answer in time.
    pub async fn read(&self) -> Reading {
        match self {
            Self::None => Reading::Nothing(NoGpus::Off),
            Self::Sim(gpus) => Reading::Fresh(gpus.sample()),
            Self::Nvml(gpus) => gpus.read().await,
        }
    }

    /// The same for whoever can not wait as long as the driver may take.
    pub async fn read_within(&self, limit: Duration) -> Reading {
        match tokio::time::timeout(limit, self.read()).await {
            Ok(reading) => reading,
            Err(_) => match self {
                Self::Nvml(gpus) => gpus.last().unwrap_or(Reading::Nothing(NoGpus::Silent(limit))),
                Self::None | Self::Sim(_) => Reading::Nothing(NoGpus::Silent(limit)),
            },
        }
    }

    /// Which GPUs there are, by what is known already if anything is: what does not change is not read again.
    pub async fn inventory(&self) -> Result<Vec<Arc<Gpu>>, NoGpus> {
        let reading = match self {
            Self::Nvml(gpus) => gpus.last(),
            Self::None | Self::Sim(_) => None,
        };
        let reading = match reading {
            Some(reading) => reading,
            None => self.read().await,
        };
        match reading {
            Reading::Fresh(gpus) | Reading::Stale { gpus, .. } => Ok(gpus.iter().map(|one| one.gpu.clone()).collect()),
            Reading::Nothing(why) => Err(why),
        }
    }
}

impl Reading {
    /// The GPUs, fresh or stale, by their numbers.
    #[must_use]
    pub fn gpus(&self) -> &[GpuSample] {
        match self {
            Self::Fresh(gpus) | Self::Stale { gpus, .. } => gpus,
            Self::Nothing(_) => &[],
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_node_that_shall_have_none_says_so() {
        let gpus = GpuProvider::open(&GpuSource::None, NvmlOptions::default());
        assert_eq!(gpus.read().await, Reading::Nothing(NoGpus::Off));
        assert_eq!(gpus.inventory().await, Err(NoGpus::Off));
    }

    #[tokio::test]
    async fn simulated_gpus_are_there_at_once() {
        let gpus = GpuProvider::open(&"sim:2x80GiB".parse().unwrap(), NvmlOptions::default());
        let inventory = gpus.inventory().await.unwrap();
        assert_eq!(
            inventory.iter().map(|gpu| (gpu.index, gpu.origin)).collect::<Vec<_>>(),
            [(0, Origin::Sim), (1, Origin::Sim)]
        );
        assert_eq!(inventory[1].memory_total, Some(80 << 30));
        // From a task too, which any thread of the runtime may carry on.
        assert_eq!(tokio::spawn(async move { gpus.read().await.gpus().len() }).await.unwrap(), 2);
    }
}
