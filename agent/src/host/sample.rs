//! What the machine does now, as other nodes are told.

use std::time::Duration;

use super::Host;
use crate::asked::Answer;
use crate::gpu::{GpuSample, Health, Reading};
use crate::machine::{DiskUsage, Memory};
use crate::runtime::RuntimeKind;
use crate::wire::{MachineSample, SeenGpu};

/// How long whoever looks waits for the driver.
const GPU_LIMIT: Duration = Duration::from_millis(500);

impl Host {
    /// What it does now.
    pub(super) async fn machine(&self) -> MachineSample {
        let (reading, disk) = tokio::join!(self.gpus.read_within(GPU_LIMIT), self.disk.usage());
        let is_container = |runtime| matches!(runtime, RuntimeKind::Docker | RuntimeKind::Podman);
        let containers = self.observed.strays(is_container);
        let processes = self.observed.strays(|runtime| !is_container(runtime));
        let disk = match disk {
            Answer::Fresh(Ok(usage)) | Answer::Stale { value: Ok(usage), .. } => Some(usage),
            Answer::Fresh(Err(_)) | Answer::Stale { value: Err(_), .. } | Answer::Missing { .. } => None,
        };
        MachineSample {
            cpu_percent: self.cpu_percent(),
            stray_containers: containers,
            stray_processes: processes,
            ..told(&reading, Memory::read(), disk)
        }
    }
}

fn told(reading: &Reading, memory: Option<Memory>, disk: Option<DiskUsage>) -> MachineSample {
    let age = match reading {
        Reading::Stale { age, .. } => Some(u64::try_from(age.as_millis()).unwrap_or(u64::MAX)),
        Reading::Fresh(_) | Reading::Nothing(_) => None,
    };
    MachineSample {
        gpus: reading.gpus().iter().map(gpu).collect(),
        gpus_age_ms: age,
        memory_total: memory.map(|memory| memory.total),
        memory_available: memory.map(|memory| memory.available),
        disk_total: disk.map(|disk| disk.total),
        disk_free: disk.map(|disk| disk.free),
        ..MachineSample::default()
    }
}

fn gpu(sample: &GpuSample) -> SeenGpu {
    let figures = sample.figures().cloned().unwrap_or_default();
    let why = match &sample.health {
        Health::Ok(_) => String::new(),
        Health::Lost(why) | Health::Unknown(why) => why.clone(),
    };
    SeenGpu {
        index: sample.gpu.index,
        uuid: sample.gpu.uuid.clone().unwrap_or_default(),
        name: sample.gpu.name.clone(),
        source: sample.gpu.origin.name().to_owned(),
        health: sample.health.name().to_owned(),
        why,
        memory_total: figures.memory.map(|memory| memory.total).or(sample.gpu.memory_total),
        memory_used: figures.memory.map(|memory| memory.used),
        memory_free: figures.memory.map(|memory| memory.free),
        utilization: figures.utilization.map(u32::from),
        temperature: figures.temperature,
        power: figures.power,
        ecc_corrected: figures.ecc_corrected,
        ecc_uncorrected: figures.ecc_uncorrected,
        xids: sample.xids.map(|xids| xids.count),
        last_xid: sample.xids.and_then(|xids| xids.last),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::gpu::SimGpus;

    #[test]
    fn a_lost_gpu_is_told_with_its_reason_and_without_figures() {
        let gpus = SimGpus::new(2, 80 << 30);
        gpus.claim(0, "somebody", 20 << 30).unwrap();
        gpus.lose(1, "it fell off the bus").unwrap();
        let age = Duration::from_millis(1500);
        let sample = told(&Reading::Stale { gpus: gpus.sample(), age }, None, Some(DiskUsage { total: 9, free: 4 }));
        let [well, lost] = sample.gpus.as_slice() else { panic!("{sample:?}") };
        assert_eq!((well.health.as_str(), well.memory_used, well.memory_total), ("ok", Some(20 << 30), Some(80 << 30)));
        assert_eq!((lost.health.as_str(), lost.memory_used, lost.memory_total), ("lost", None, Some(80 << 30)));
        assert_eq!((lost.why.as_str(), lost.source.as_str()), ("it fell off the bus", "sim"));
        assert_eq!((sample.gpus_age_ms, sample.disk_total, sample.disk_free), (Some(1500), Some(9), Some(4)));
        assert_eq!((sample.memory_total, sample.stray_processes), (None, None), "what is not known is not zero");
    }
}
