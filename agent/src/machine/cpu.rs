//! How busy the processors are.

use std::fs;

/// Says how busy the processors were between two questions.
#[derive(Clone, Debug)]
pub struct CpuMeter {
    before: Option<Ticks>,
}

/// Time that all processors together have spent since the machine started, in the kernel's ticks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Ticks {
    busy: u64,
    total: u64,
}

impl CpuMeter {
    /// Begins to measure.
    #[must_use]
    pub fn new() -> Self {
        Self { before: read() }
    }

    /// The share of their time that the processors were busy since this was last asked, from 0 to 100. `None` if no time has
    /// passed, or nobody knows.
    pub fn percent(&mut self) -> Option<f32> {
        let now = read();
        let share = share(self.before?, now?);
        // Without a tick in between, the next question measures from where this one did.
        if share.is_some() {
            self.before = now;
        }
        share
    }
}

impl Default for CpuMeter {
    fn default() -> Self {
        Self::new()
    }
}

fn read() -> Option<Ticks> {
    parse(&fs::read_to_string("/proc/stat").ok()?)
}

/// The first line is `cpu user nice system idle iowait irq softirq steal guest guest_nice`; guests are counted in `user` and
/// `nice` too. Waiting for a disk is not being busy.
fn parse(stat: &str) -> Option<Ticks> {
    let fields = stat.lines().next()?.strip_prefix("cpu ")?;
    let ticks: Vec<u64> = fields.split_ascii_whitespace().take(8).map(str::parse).collect::<Result<_, _>>().ok()?;
    let idle = ticks.get(3)?.saturating_add(ticks.get(4).copied().unwrap_or(0));
    let total = ticks.iter().fold(0_u64, |sum, ticks| sum.saturating_add(*ticks));
    Some(Ticks { busy: total.saturating_sub(idle), total })
}

/// The kernel's count of idle time can go back a little, which counts as none.
fn share(before: Ticks, now: Ticks) -> Option<f32> {
    let passed = now.total.checked_sub(before.total).filter(|passed| *passed > 0)?;
    let busy = now.busy.saturating_sub(before.busy).min(passed);
    Some((busy as f64 * 100.0 / passed as f64) as f32)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn waiting_is_idle_and_guests_are_not_counted_twice() {
        let before = parse("cpu  100 0 50 800 50 0 0 0 60 0\ncpu0 1 2 3 4\n").unwrap();
        assert_eq!(before, Ticks { busy: 150, total: 1000 });
        let now = parse("cpu  150 10 70 900 60 5 5 0 90 0\n").unwrap();
        assert_eq!(share(before, now), Some(45.0));
    }

    #[test]
    fn nothing_is_said_without_time_passing() {
        let ticks = Ticks { busy: 10, total: 100 };
        assert_eq!(share(ticks, ticks), None);
        assert_eq!(share(ticks, Ticks { busy: 10, total: 90 }), None);
        assert_eq!(share(ticks, Ticks { busy: 9, total: 110 }), Some(0.0));
    }

    #[test]
    fn other_files_are_no_figures() {
        for text in ["", "cpu", "cpu  1 2", "cpu  1 2 x 4 5", "intr 1 2 3 4 5", "cpu  -1 2 3 4 5"] {
            assert_eq!(parse(text), None, "{text:?}");
        }
    }

    #[test]
    fn this_machine_has_been_busy_to_some_degree() {
        let mut meter = CpuMeter { before: Some(Ticks { busy: 0, total: 0 }) };
        let percent = meter.percent().unwrap();
        assert!((0.0..=100.0).contains(&percent), "{percent}");
    }
}
