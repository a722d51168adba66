//! How much an engine is used, and how fast it is.

use std::time::Instant;

use super::{Sample, Spread};

/// The usage that people see. Rates are rounded to a tenth; what can not be said is absent.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Usage {
    /// Prompt tokens per second that requests spent in their prompts.
    pub prompt_tps: Option<f64>,
    /// Generated tokens per second that requests spent in their answers.
    pub generation_tps: Option<f64>,
    /// Prompt tokens per second of the clock, since the last sample.
    pub prompt_throughput: Option<f64>,
    /// Generated tokens per second of the clock, since the last sample.
    pub generation_throughput: Option<f64>,
    /// Requests under way.
    pub requests_running: Option<u64>,
    /// Requests that wait.
    pub requests_waiting: Option<u64>,
}

/// Reads usage from the samples of one engine.
#[derive(Clone, Copy, Debug, Default)]
pub struct UsageMeter {
    /// What speed is measured from: the first sample with an ended request, so that warming up does not count.
    baseline: Option<Sample>,
    last: Option<(Instant, Sample)>,
}

impl UsageMeter {
    /// The usage at a sample that was taken at this time, or `None` if it says nothing.
    pub fn observe(&mut self, at: Instant, sample: &Sample) -> Option<Usage> {
        if sample.is_silent() {
            return None;
        }
        if self.last.is_some_and(|(_, last)| sample.is_after_restart(&last)) {
            *self = Self::default();
        }
        if self.baseline.is_none() && sample.requests.is_some_and(|requests| requests > 0) {
            self.baseline = Some(*sample);
        }
        let last = self.last.replace((at, *sample));
        let baseline = self.baseline.as_ref();
        let throughput = |of: fn(&Sample) -> Option<u64>| {
            let (then, last) = last.as_ref()?;
            rate(delta(of, sample, last)?, at.saturating_duration_since(*then).as_secs_f64())
        };
        Some(Usage {
            prompt_tps: baseline.and_then(|baseline| prompt_tps(sample, baseline)),
            generation_tps: baseline.and_then(|baseline| generation_tps(sample, baseline)),
            prompt_throughput: throughput(|sample| sample.prompt_tokens),
            generation_throughput: throughput(|sample| sample.generation_tokens),
            requests_running: sample.running,
            requests_waiting: sample.waiting,
        })
    }
}

fn prompt_tps(sample: &Sample, baseline: &Sample) -> Option<f64> {
    let tokens = delta(|sample| sample.prompt_tokens, sample, baseline)?;
    let spent = grown(sample.prefill, baseline.prefill).or_else(|| grown(sample.first_token, baseline.first_token))?;
    rate(tokens, spent.sum)
}

fn generation_tps(sample: &Sample, baseline: &Sample) -> Option<f64> {
    if let Some(spent) = grown(sample.decode, baseline.decode) {
        return rate(delta(|sample| sample.generation_tokens, sample, baseline)?, spent.sum);
    }
    let spent = grown(sample.next_token, baseline.next_token)?;
    rate(spent.count, spent.sum)
}

fn delta(of: fn(&Sample) -> Option<u64>, now: &Sample, then: &Sample) -> Option<f64> {
    Some(of(now)?.checked_sub(of(then)?)? as f64)
}

/// What has come to a distribution, if anything has.
fn grown(now: Option<Spread>, then: Option<Spread>) -> Option<Spread> {
    let (now, then) = (now?, then?);
    Some(Spread { sum: now.sum - then.sum, count: now.count - then.count }).filter(|grown| grown.sum > 0.0)
}

fn rate(count: f64, seconds: f64) -> Option<f64> {
    let rate = (count / seconds * 10.0).round() / 10.0;
    (count > 0.0 && seconds > 0.0 && rate.is_finite()).then_some(rate)
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    fn spread(sum: f64, count: f64) -> Option<Spread> {
        Some(Spread { sum, count })
    }

    /// Prompts are read at 1000 tokens per second, answers written at 50.
    fn after(requests: u64) -> Sample {
        let count = requests as f64;
        Sample {
            prompt_tokens: Some(requests * 100),
            generation_tokens: Some(requests * 50),
            requests: Some(requests),
            prefill: spread(count * 0.1, count),
            decode: spread(count, count),
            running: Some(1),
            waiting: Some(0),
            ..Sample::default()
        }
    }

    struct Watch(UsageMeter, Instant);

    impl Watch {
        fn new() -> Self {
            Self(UsageMeter::default(), Instant::now())
        }

        fn see(&mut self, seconds: u64, sample: Sample) -> Usage {
            self.0.observe(self.1 + Duration::from_secs(seconds), &sample).unwrap()
        }
    }

    #[test]
    fn speed_is_measured_from_the_first_ended_request() {
        let mut watch = Watch::new();
        let slow_first = Sample { prefill: spread(60.0, 1.0), decode: spread(60.0, 1.0), ..after(1) };
        let gauges = Usage { requests_running: Some(1), requests_waiting: Some(0), ..Usage::default() };
        assert_eq!(watch.see(0, after(0)), gauges);
        let warm = watch.see(10, slow_first);
        assert_eq!((warm.prompt_tps, warm.generation_tps), (None, None));
        assert_eq!((warm.prompt_throughput, warm.generation_throughput), (Some(10.0), Some(5.0)));
        let later = Sample { prefill: spread(60.2, 3.0), decode: spread(62.0, 3.0), ..after(3) };
        let usage = watch.see(20, later);
        assert_eq!((usage.prompt_tps, usage.generation_tps), (Some(1000.0), Some(50.0)));
        assert_eq!((usage.prompt_throughput, usage.generation_throughput), (Some(20.0), Some(10.0)));
        let idle = watch.see(30, later);
        assert_eq!((idle.prompt_throughput, idle.generation_throughput), (None, None));
        assert_eq!(idle.prompt_tps, Some(1000.0));
    }

    #[test]
    fn other_distributions_stand_in_for_those_that_are_missing() {
        let mut watch = Watch::new();
        let sample = |requests, first, sum, count| Sample {
            prefill: None,
            decode: None,
            first_token: spread(first, 1.0),
            next_token: spread(sum, count),
            ..after(requests)
        };
        watch.see(0, sample(1, 1.0, 1.0, 10.0));
        let usage = watch.see(15, sample(3, 1.5, 2.0, 45.0));
        assert_eq!((usage.prompt_tps, usage.generation_tps), (Some(400.0), Some(35.0)));
    }

    #[test]
    fn a_restarted_engine_is_measured_anew() {
        let mut watch = Watch::new();
        watch.see(0, after(10));
        watch.see(15, after(12));
        let reset = watch.see(30, after(4));
        assert_eq!((reset.prompt_tps, reset.prompt_throughput), (None, None));
        assert_eq!(watch.see(45, after(5)).prompt_tps, Some(1000.0));
        let other_process = Sample { began: Some(2e9), ..after(50) };
        watch.see(60, Sample { began: Some(1e9), ..after(6) });
        assert_eq!(watch.see(75, other_process).prompt_throughput, None);
        assert_eq!(watch.see(90, Sample { began: Some(2e9), ..after(0) }).prompt_tps, None);
    }

    #[test]
    fn an_engine_that_says_nothing_has_no_usage() {
        let mut meter = UsageMeter::default();
        let silent = Sample { memory: Some(1), began: Some(1.0), ..Sample::default() };
        assert_eq!(meter.observe(Instant::now(), &silent), None);
        let one = Sample { running: Some(0), ..Sample::default() };
        assert_eq!(
            meter.observe(Instant::now(), &one).unwrap(),
            Usage { requests_running: Some(0), ..Usage::default() }
        );
    }

    #[test]
    fn times_that_do_not_move_give_no_rates() {
        let mut watch = Watch::new();
        watch.see(0, after(1));
        let usage = watch.see(0, Sample { prefill: after(1).prefill, decode: after(1).decode, ..after(2) });
        assert_eq!((usage.prompt_tps, usage.generation_tps), (None, None));
        assert_eq!((usage.prompt_throughput, usage.generation_throughput), (None, None));
    }
}
