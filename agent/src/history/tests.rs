use super::*;
use crate::gpu::{Figures, GpuMemory, Health, NoGpus, Origin, SimGpus};
use crate::machine::Memory;

const MINUTE: u64 = 60_000;

fn machine(cpu_percent: f32) -> MachineSample {
    MachineSample { cpu_percent: Some(cpu_percent), memory: Some(Memory { total: 1000, available: 250 }) }
}

/// Up to two GPUs, each with so many MiB in use.
fn sims(number: u32) -> Reading {
    let (count, gpus) = (number % 3, SimGpus::new(number % 3, 1 << 30));
    for gpu in 0..count {
        gpus.claim(gpu, "a", u64::from(number) << 20).unwrap();
    }
    Reading::Fresh(gpus.sample())
}

/// One sample a minute, the number of each of which is its load, from minute 0 on.
fn filled(hours: u64, samples: u32) -> History {
    let mut history = History::new(Duration::from_secs(hours * 3600), Duration::from_secs(60));
    for sample in 0..samples {
        history.push(u64::from(sample) * MINUTE, &machine(sample as f32), &sims(sample));
    }
    history
}

/// The numbers of samples, each with as many GPUs as it had.
fn numbers(samples: impl Iterator<Item = PastSample>) -> Vec<u32> {
    samples
        .map(|sample| {
            let number = sample.cpu_percent.unwrap() as u32;
            let gpus: Vec<_> = sample.gpus.iter().map(|gpu| (gpu.gpu.index, gpu.memory_used_mib)).collect();
            assert_eq!(gpus, (0..number % 3).map(|gpu| (gpu, Some(number))).collect::<Vec<_>>());
            assert_eq!(sample.recorded_at, u64::from(number) * MINUTE);
            number
        })
        .collect()
}

#[test]
fn a_range_is_every_nth_sample_of_the_last_minutes() {
    let history = filled(48, 20);
    let now = 19 * MINUTE;
    assert_eq!(numbers(history.range(now, 5, 1)), [14, 15, 16, 17, 18, 19]);
    assert_eq!(numbers(history.range(now, 5, 2)), [14, 16, 18]);
    assert_eq!(numbers(history.range(now, 2880, 7)), [0, 7, 14]);
    assert_eq!(numbers(history.range(now + 3 * MINUTE, 5, 1)), [17, 18, 19]);
    assert_eq!(numbers(history.range(now + 30 * MINUTE, 5, 1)), [0; 0]);
    // Out of range is the nearest that is in range.
    assert_eq!(numbers(history.range(now, 0, 0)), [18, 19]);
    assert_eq!(numbers(history.range(now, u32::MAX, u32::MAX)), [0]);
}

#[test]
fn a_full_ring_loses_the_oldest() {
    let history = filled(1, 100);
    assert_eq!(history.len(), 60);
    assert_eq!(numbers(history.range(99 * MINUTE, 2880, 1)), (40..100).collect::<Vec<_>>());
}

#[test]
fn a_sample_older_than_the_retention_is_not_told() {
    let history = filled(1, 50);
    assert_eq!(numbers(history.range(100 * MINUTE, 2880, 1)), (40..50).collect::<Vec<_>>());
}

#[test]
fn a_shorter_retention_lets_the_oldest_go_at_once() {
    let mut history = filled(2, 100);
    history.resize(Duration::from_secs(600), Duration::from_secs(60));
    assert_eq!(numbers(history.range(99 * MINUTE, 2880, 1)), (90..100).collect::<Vec<_>>());
    history.push(100 * MINUTE, &machine(100.0), &sims(100));
    assert_eq!(history.len(), 10);
    history.clear();
    assert!(history.is_empty());
}

#[test]
fn a_clock_that_jumps_ahead_and_back_loses_nothing_else() {
    let mut history = filled(48, 10);
    history.push(1_000_000 * MINUTE, &machine(100.0), &sims(101));
    assert_eq!(history.len(), 11);
    history.push(10 * MINUTE, &machine(10.0), &sims(10));
    assert_eq!(numbers(history.range(10 * MINUTE, 60, 1)), (0..=10).collect::<Vec<_>>());
}

#[test]
fn memory_is_bounded_whatever_the_settings() {
    let year = Duration::from_secs(8760 * 3600);
    assert_eq!(History::new(year, Duration::from_secs(1)).capacity, 172_800);
    assert_eq!(History::new(year, Duration::ZERO).capacity, 172_800);
    assert_eq!(History::new(Duration::ZERO, year).capacity, 1);
    assert_eq!(History::new(Duration::MAX, Duration::ZERO).capacity, 172_800);
    assert!(size_of::<Packed>() <= 32 && size_of::<PackedGpu>() <= 8);
}

#[test]
fn samples_share_what_does_not_change() {
    let mut history = History::new(Duration::from_secs(3600), Duration::from_secs(60));
    let gpus = SimGpus::new(2, 1 << 30);
    for minute in 0..3 {
        gpus.claim(0, "a", minute << 20).unwrap();
        history.push(minute * MINUTE, &machine(0.0), &Reading::Fresh(gpus.sample()));
    }
    assert!(history.samples.iter().all(|sample| Arc::ptr_eq(&sample.facts, &history.samples[0].facts)));
    let used: Vec<_> = history.range(2 * MINUTE, 60, 1).map(|sample| sample.gpus[0].memory_used_mib).collect();
    assert_eq!(used, [Some(0), Some(1), Some(2)]);
}

#[test]
fn figures_come_back_as_they_went_in_and_missing_ones_are_missing() {
    let gpu = Gpu { index: 3, uuid: None, name: "x".to_owned(), memory_total: None, origin: Origin::Nvml };
    let gpu = Arc::new(gpu);
    let sample = |figures: Figures| GpuSample { gpu: gpu.clone(), health: Health::Ok(figures), xids: None };
    let full = sample(Figures {
        utilization: Some(100),
        memory: Some(GpuMemory { total: 4 << 30, used: 3 << 30, free: 1 << 30 }),
        temperature: Some(254),
        power: Some(700_999),
        ..Figures::default()
    });
    let huge = sample(Figures {
        memory: Some(GpuMemory { total: u64::MAX, used: u64::MAX, free: 0 }),
        temperature: Some(u32::MAX),
        power: Some(u32::MAX),
        ..Figures::default()
    });
    let lost = GpuSample { gpu: gpu.clone(), health: Health::Lost("gone".to_owned()), xids: None };
    let mut history = History::new(Duration::from_secs(3600), Duration::from_secs(60));
    let all: Arc<[GpuSample]> = [full, huge, sample(Figures::default()), lost].into();
    history.push(0, &machine(12.344), &Reading::Fresh(all.clone()));
    history.push(
        1,
        &MachineSample { cpu_percent: None, memory: None },
        &Reading::Stale { gpus: all, age: Duration::ZERO },
    );
    history.push(2, &machine(f32::NAN), &Reading::Nothing(NoGpus::Off));
    let past = |utilization, memory_used_mib, temperature, power_watts| PastGpu {
        gpu: gpu.clone(),
        utilization,
        memory_used_mib,
        temperature,
        power_watts,
    };
    let none = past(None, None, None, None);
    let [first, stale, empty] = history.range(2, 1, 1).collect::<Vec<_>>().try_into().unwrap();
    assert_eq!(
        first.gpus,
        [
            past(Some(100), Some(3072), Some(254), Some(700)),
            past(None, Some(u32::MAX - 1), Some(254), Some(u16::MAX - 1)),
            none.clone(),
            none.clone()
        ]
    );
    assert_eq!((first.cpu_percent, first.memory_percent), (Some(12.34), Some(75.0)));
    assert_eq!(stale.gpus, vec![none; 4]);
    assert_eq!((stale.cpu_percent, stale.memory_percent), (None, None));
    assert_eq!((empty.gpus.len(), empty.cpu_percent), (0, Some(0.0)));
}
