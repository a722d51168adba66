//! What the machine's figures were: samples of the last hours, kept in memory and in few bytes.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;

use crate::gpu::{Gpu, GpuSample, Reading};
use crate::machine::MachineSample;

/// The longest that can be asked for, in minutes.
pub const MOST_MINUTES: u32 = 2880;

/// As many as [`MOST_MINUTES`] have at one sample a second. With 8 GPUs they take at most 32 MiB.
const MOST_SAMPLES: u64 = 172_800;

/// Samples of a node, oldest first. A new one takes the place of the oldest once the ring is full.
#[derive(Debug)]
pub struct History {
    capacity: usize,
    retention: Duration,
    samples: VecDeque<Packed>,
    /// The GPUs of all samples, one after the other.
    gpus: VecDeque<PackedGpu>,
}

/// A sample as it was.
#[derive(Clone, Debug, PartialEq)]
pub struct PastSample {
    /// When it was taken, in milliseconds since 1970.
    pub recorded_at: u64,
    /// The GPUs.
    pub gpus: Vec<PastGpu>,
    /// Of all processors together, from 0 to 100, to a hundredth.
    pub cpu_percent: Option<f32>,
    /// Of the machine's memory, from 0 to 100, to a hundredth.
    pub memory_percent: Option<f32>,
}

/// A GPU as it was. Its figures are missing if it could not be read then.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PastGpu {
    /// Which.
    pub gpu: Arc<Gpu>,
    /// The share of time in which something ran on it, from 0 to 100.
    pub utilization: Option<u8>,
    /// Memory in use, in MiB.
    pub memory_used_mib: Option<u32>,
    /// Of its die, in degrees Celsius.
    pub temperature: Option<u8>,
    /// What it drew, in watts.
    pub power_watts: Option<u16>,
}

#[derive(Debug)]
struct Packed {
    recorded_at: u64,
    /// The same for all samples between two changes of the inventory.
    facts: Arc<[Arc<Gpu>]>,
    cpu: Hundredths,
    memory: Hundredths,
}

/// A share of 100 in hundredths; `u16::MAX` is none.
#[derive(Clone, Copy, Debug)]
struct Hundredths(u16);

/// The largest value of each field is none.
#[derive(Clone, Copy, Debug)]
struct PackedGpu {
    memory_used_mib: u32,
    power_watts: u16,
    utilization: u8,
    temperature: u8,
}

impl History {
    /// A ring for samples that come at an interval and are kept for a time; it has room for at most 172,800 samples.
    #[must_use]
    pub fn new(retention: Duration, interval: Duration) -> Self {
        let mut history = Self { capacity: 1, retention, samples: VecDeque::new(), gpus: VecDeque::new() };
        history.resize(retention, interval);
        history
    }

    /// Changes how long samples are kept, and how often they come. The oldest go if there are now too many.
    pub fn resize(&mut self, retention: Duration, interval: Duration) {
        let samples = retention.as_millis() / interval.as_millis().max(1);
        let samples = u64::try_from(samples).unwrap_or(u64::MAX).clamp(1, MOST_SAMPLES);
        self.capacity = usize::try_from(samples).unwrap_or(1);
        self.retention = retention;
        while self.samples.len() > self.capacity {
            self.drop_oldest();
        }
        self.samples.shrink_to_fit();
        self.gpus.shrink_to_fit();
    }

    /// Adds a sample. GPUs that did not answer then are kept without figures. Samples that are said to be from later than this
    /// one were taken under a clock that has been put back since, and go.
    pub fn push(&mut self, recorded_at: u64, machine: &MachineSample, reading: &Reading) {
        while self.samples.back().is_some_and(|last| last.recorded_at > recorded_at) {
            self.drop_newest();
        }
        while self.samples.len() >= self.capacity {
            self.drop_oldest();
        }
        let fresh = matches!(reading, Reading::Fresh(_));
        self.gpus.extend(reading.gpus().iter().map(|gpu| PackedGpu::new(gpu, fresh)));
        self.samples.push_back(Packed {
            recorded_at,
            facts: self.facts(reading),
            cpu: Hundredths::new(machine.cpu_percent),
            memory: Hundredths::new(machine.memory_percent()),
        });
    }

    /// Every `step`-th sample of the last minutes, from the oldest on. Minutes are from 1 to 2880, and a step is at least 1.
    pub fn range(&self, now: u64, minutes: u32, step: u32) -> impl Iterator<Item = PastSample> + '_ {
        self.since(self.reach(now, minutes), step)
    }

    /// The moment from which on samples belong to the last minutes.
    #[must_use]
    pub fn reach(&self, now: u64, minutes: u32) -> u64 {
        let reach = Duration::from_secs(u64::from(minutes.clamp(1, MOST_MINUTES)) * 60).min(self.retention);
        now.saturating_sub(u64::try_from(reach.as_millis()).unwrap_or(u64::MAX))
    }

    /// How many samples there are from a moment on, and of how many GPUs the newest has figures.
    #[must_use]
    pub fn extent(&self, from: u64) -> (usize, usize) {
        let before = self.samples.partition_point(|sample| sample.recorded_at < from);
        (self.samples.len() - before, self.samples.back().map_or(0, |newest| newest.facts.len()))
    }

    /// Every `step`-th sample from a moment on. A step is at least 1.
    pub fn since(&self, from: u64, step: u32) -> impl Iterator<Item = PastSample> + '_ {
        let mut first_gpu = 0;
        let placed = self.samples.iter().map(move |sample| {
            let place = first_gpu;
            first_gpu += sample.facts.len();
            (sample, place)
        });
        placed
            .skip_while(move |(sample, _)| sample.recorded_at < from)
            .step_by(usize::try_from(step).unwrap_or(usize::MAX).max(1))
            .map(|(sample, place)| self.unpack(sample, place))
    }

    /// How many samples there are.
    #[must_use]
    pub fn len(&self) -> usize {
        self.samples.len()
    }

    /// Whether there is none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.samples.is_empty()
    }

    /// Forgets all.
    pub fn clear(&mut self) {
        self.samples = VecDeque::new();
        self.gpus = VecDeque::new();
    }

    /// The facts of the last sample, if they still hold.
    fn facts(&self, reading: &Reading) -> Arc<[Arc<Gpu>]> {
        let now = || reading.gpus().iter().map(|sample| &sample.gpu);
        match self.samples.back() {
            Some(last) if last.facts.iter().eq(now()) => last.facts.clone(),
            _ => now().cloned().collect(),
        }
    }

    fn drop_oldest(&mut self) {
        if let Some(oldest) = self.samples.pop_front() {
            self.gpus.drain(..oldest.facts.len().min(self.gpus.len()));
        }
    }

    fn drop_newest(&mut self) {
        if let Some(newest) = self.samples.pop_back() {
            self.gpus.truncate(self.gpus.len().saturating_sub(newest.facts.len()));
        }
    }

    fn unpack(&self, sample: &Packed, first_gpu: usize) -> PastSample {
        let gpus =
            sample.facts.iter().zip(self.gpus.range(first_gpu..)).map(|(gpu, packed)| packed.unpack(gpu.clone()));
        PastSample {
            recorded_at: sample.recorded_at,
            gpus: gpus.collect(),
            cpu_percent: sample.cpu.get(),
            memory_percent: sample.memory.get(),
        }
    }
}

impl Hundredths {
    fn new(percent: Option<f32>) -> Self {
        // The cast saturates, and takes what is no number for zero.
        Self(percent.map_or(u16::MAX, |percent| (percent.clamp(0.0, 100.0) * 100.0).round() as u16))
    }

    fn get(self) -> Option<f32> {
        (self.0 != u16::MAX).then(|| f32::from(self.0) / 100.0)
    }
}

impl PackedGpu {
    fn new(sample: &GpuSample, fresh: bool) -> Self {
        let figures = sample.figures().filter(|_| fresh);
        let memory = figures.and_then(|figures| figures.memory).map(|memory| memory.used >> 20);
        let power = figures.and_then(|figures| figures.power).map(|milliwatts| milliwatts / 1000);
        let temperature = figures.and_then(|figures| figures.temperature);
        Self {
            memory_used_mib: memory.map_or(u32::MAX, |mib| u32::try_from(mib).unwrap_or(u32::MAX - 1)),
            power_watts: power.map_or(u16::MAX, |watts| u16::try_from(watts).unwrap_or(u16::MAX - 1)),
            utilization: figures.and_then(|figures| figures.utilization).unwrap_or(u8::MAX),
            temperature: temperature.map_or(u8::MAX, |degrees| u8::try_from(degrees).unwrap_or(u8::MAX - 1)),
        }
    }

    fn unpack(self, gpu: Arc<Gpu>) -> PastGpu {
        PastGpu {
            gpu,
            utilization: Some(self.utilization).filter(|value| *value != u8::MAX),
            memory_used_mib: Some(self.memory_used_mib).filter(|value| *value != u32::MAX),
            temperature: Some(self.temperature).filter(|value| *value != u8::MAX),
            power_watts: Some(self.power_watts).filter(|value| *value != u16::MAX),
        }
    }
}

#[cfg(test)]
mod tests;
