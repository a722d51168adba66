//! What the machine did: a sample of it every so often, and what is told of them.

use std::sync::{Arc, MutexGuard, PoisonError};
use std::time::Duration;

use muster_cluster::clock::{Clock, SystemClock};
use muster_cluster::consensus::Consensus;
use muster_cluster::rows::Settings;
use muster_cluster::state::{Changes, Row};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::Host;
use crate::history::{History, PastGpu, PastSample};
use crate::machine::{CpuMeter, MachineSample};
use crate::wire;

/// How often a sample is taken, and how long it is kept, where the fleet has not set it (`nodes_sync_interval_seconds`,
/// `node_metrics_retention_hours`, seed 004).
const INTERVAL_S: u64 = 10;
const RETENTION_HOURS: u64 = 48;

/// At most so many samples are told at once, and so many figures of GPUs in them, so that the answer is at most 3 MiB.
const MOST_POINTS: usize = 20_000;
const MOST_FIGURES: usize = 160_000;

/// What has been kept, and the last load of the processors.
#[derive(Debug)]
pub(super) struct Past {
    history: History,
    cpu_percent: Option<f32>,
}

impl Default for Past {
    fn default() -> Self {
        let (interval, retention) = periods(&Settings::default());
        Self { history: History::new(retention, interval), cpu_percent: None }
    }
}

/// How often samples are taken, and for how long they are kept.
fn periods(settings: &Settings) -> (Duration, Duration) {
    let interval = settings.nodes_sync_interval_seconds.unwrap_or(INTERVAL_S).max(1);
    let hours = settings.node_metrics_retention_hours.unwrap_or(RETENTION_HOURS).max(1);
    (Duration::from_secs(interval), Duration::from_secs(hours.saturating_mul(3600)))
}

/// Takes samples until it is told to stop.
pub(super) async fn sample_on(host: Arc<Host>, consensus: Arc<Consensus>, stop: CancellationToken) {
    let mut changes = consensus.published().changes(consensus.local().index());
    let mut cpu = CpuMeter::new();
    let mut last: Option<Instant> = None;
    let mut kept = periods(&Settings::default());
    loop {
        match consensus.local().settings() {
            Ok((settings, _)) if periods(&settings) != kept => {
                kept = periods(&settings);
                host.kept().history.resize(kept.1, kept.0);
            }
            Ok(_) => {}
            Err(damaged) => tracing::error!(%damaged, "how often samples are taken can not be read"),
        }
        let due = last.map_or_else(Instant::now, |last| last + kept.0);
        tokio::select! {
            () = stop.cancelled() => return,
            () = set_anew(&mut changes) => {}
            () = tokio::time::sleep_until(due) => {
                last = Some(Instant::now());
                let reading = tokio::select! {
                    () = stop.cancelled() => return,
                    reading = host.gpus.read() => reading,
                };
                let machine = MachineSample::take(&mut cpu);
                let mut kept = host.kept();
                kept.cpu_percent = machine.cpu_percent;
                kept.history.push(SystemClock.now_ms(), &machine, &reading);
            }
        }
    }
}

/// Waits for a change of the settings.
async fn set_anew(changes: &mut Changes) {
    while let Ok(batches) = changes.next().await {
        if batches.iter().flat_map(|batch| batch.changes.iter()).any(|change| change.key.table == Settings::TABLE) {
            return;
        }
    }
}

impl Host {
    // Nothing can panic while it is held.
    fn kept(&self) -> MutexGuard<'_, Past> {
        self.past.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The load of all processors together when the last sample was taken, from 0 to 100.
    pub(super) fn cpu_percent(&self) -> Option<f32> {
        self.kept().cpu_percent
    }

    /// What it did. `None` only when the program is about to end.
    pub(super) async fn past(self: Arc<Self>, request: wire::PastRequest) -> Option<wire::PastAnswer> {
        let now = SystemClock.now_ms();
        // There may be many of them: no thread that others wait for goes through them.
        tokio::task::spawn_blocking(move || told(&self.kept().history, now, &request)).await.ok()
    }
}

/// The smallest step with which what is told stays within its bounds.
fn step(wanted: u32, (samples, gpus): (usize, usize)) -> u32 {
    let bounded = samples.div_ceil(MOST_POINTS).max(samples.saturating_mul(gpus).div_ceil(MOST_FIGURES));
    wanted.max(u32::try_from(bounded).unwrap_or(u32::MAX)).max(1)
}

fn told(history: &History, now: u64, request: &wire::PastRequest) -> wire::PastAnswer {
    let from = history.reach(now, request.minutes).max(request.since_ms);
    let step = step(request.step, history.extent(from));
    let mut answer = wire::PastAnswer { step, ..wire::PastAnswer::default() };
    for sample in history.since(from, step) {
        let inventory = wire::PastInventory { gpus: sample.gpus.iter().map(gpu).collect() };
        // Most often it is the last one.
        let known = answer.inventories.iter().rposition(|known| *known == inventory);
        let place = known.unwrap_or_else(|| {
            answer.inventories.push(inventory);
            answer.inventories.len() - 1
        });
        answer.points.push(point(&sample, u32::try_from(place).unwrap_or(u32::MAX)));
    }
    answer
}

fn gpu(past: &PastGpu) -> wire::PastGpu {
    wire::PastGpu {
        index: past.gpu.index,
        name: past.gpu.name.clone(),
        source: past.gpu.origin.name().to_owned(),
        memory_total: past.gpu.memory_total,
    }
}

fn point(sample: &PastSample, inventory: u32) -> wire::PastPoint {
    let figures = |figure: fn(&PastGpu) -> Option<u32>| {
        sample.gpus.iter().map(|gpu| figure(gpu).map_or(0, |figure| figure.saturating_add(1))).collect()
    };
    wire::PastPoint {
        recorded_ms: sample.recorded_at,
        inventory,
        cpu_percent: sample.cpu_percent,
        memory_percent: sample.memory_percent,
        utilization: figures(|gpu| gpu.utilization.map(u32::from)),
        memory_used_mib: figures(|gpu| gpu.memory_used_mib),
        temperature: figures(|gpu| gpu.temperature.map(u32::from)),
        power_watts: figures(|gpu| gpu.power_watts.map(u32::from)),
    }
}

#[cfg(test)]
mod tests {
    use prost::Message;

    use super::*;
    use crate::gpu::{Reading, SimGpus};

    const SECOND: Duration = Duration::from_secs(1);

    fn filled(samples: u64, gpus: u32) -> History {
        let mut history = History::new(Duration::from_secs(48 * 3600), SECOND);
        let (gpus, machine) = (SimGpus::new(gpus, 80 << 30), MachineSample { cpu_percent: Some(12.5), memory: None });
        for sample in 0..samples {
            history.push(sample * 1000, &machine, &Reading::Fresh(gpus.sample()));
        }
        history
    }

    #[test]
    fn what_is_told_stays_within_its_bounds() {
        let history = filled(172_800, 8);
        let request = wire::PastRequest { minutes: 2880, step: 1, since_ms: 0 };
        let answer = told(&history, 172_799_000, &request);
        assert_eq!((answer.step, answer.inventories.len()), (9, 1));
        assert_eq!(answer.points.len(), 172_800 / 9);
        assert!(answer.encoded_len() < 3 << 20, "{}", answer.encoded_len());
        let answer = told(&history, 172_799_000, &wire::PastRequest { step: 1000, ..request });
        assert_eq!((answer.step, answer.points.len()), (1000, 173));
        assert_eq!(step(0, (0, 0)), 1);
        assert_eq!(step(1, (MOST_POINTS + 1, 0)), 2);
    }

    #[test]
    fn nothing_is_told_from_before_a_moment() {
        let history = filled(100, 1);
        let recorded = |since_ms| {
            let answer = told(&history, 99_000, &wire::PastRequest { minutes: 1, step: 20, since_ms });
            answer.points.iter().map(|point| point.recorded_ms / 1000).collect::<Vec<_>>()
        };
        assert_eq!(recorded(0), [39, 59, 79, 99]);
        assert_eq!(recorded(75_000), [75, 95]);
        assert_eq!(recorded(100_000), [0; 0]);
    }

    #[test]
    fn a_figure_that_is_not_known_is_no_zero() {
        let mut history = filled(1, 2);
        let gpus = SimGpus::new(2, 80 << 30);
        gpus.lose(1, "gone").unwrap();
        history.push(1000, &MachineSample { cpu_percent: None, memory: None }, &Reading::Fresh(gpus.sample()));
        let answer = told(&history, 1000, &wire::PastRequest { minutes: 1, step: 1, since_ms: 0 });
        assert_eq!(answer.points[0].memory_used_mib, [1, 1]);
        assert_eq!((&answer.points[1].memory_used_mib[..], answer.points[1].cpu_percent), (&[1, 0][..], None));
    }

    #[test]
    fn the_settings_say_how_often_and_how_long() {
        assert_eq!(periods(&Settings::default()), (10 * SECOND, 48 * 3600 * SECOND));
        let set = Settings {
            nodes_sync_interval_seconds: Some(2),
            node_metrics_retention_hours: Some(1),
            ..Settings::default()
        };
        assert_eq!(periods(&set), (2 * SECOND, 3600 * SECOND));
    }
}
