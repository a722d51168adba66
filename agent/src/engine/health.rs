//! How one engine does, judged from its log, its answers to probes, and its end.
//!
//! It has no clock and asks nothing: times and answers are handed in, so that whoever watches decides how often, and a test does
//! so at once.

use std::fmt;
use std::time::{Duration, Instant};

use super::Engine;
use super::failure::{Clues, Failure, FailureClass};
use super::phase::Phase;
use crate::runtime::Exit;

/// What an engine that was asked whether it is well has answered.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Probe {
    /// It can be used.
    Ready,
    /// It does not listen, or a proxy in front of it says so by hanging up.
    NotListening,
    /// It says of itself that it is dead.
    Dead,
    /// It took too long.
    Silent,
    /// It answers something else.
    Unwell,
}

impl fmt::Display for Probe {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Ready => "it answers",
            Self::NotListening => "it does not listen",
            Self::Dead => "it says that it is dead",
            Self::Silent => "it does not answer in time",
            Self::Unwell => "it answers what it should not",
        })
    }
}

/// When a running engine counts as hung: after so many failed probes in a row, the first and the last so far apart. Both must be
/// met: a busy engine may miss probes that follow each other quickly, and a machine that was suspended may miss a long time.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Patience {
    /// How many probes; 0 is taken for 1.
    pub probes: u32,
    /// How long.
    pub lasting: Duration,
}

impl Default for Patience {
    /// Five probes over half a minute.
    fn default() -> Self {
        Self { probes: 5, lasting: Duration::from_secs(30) }
    }
}

/// How an engine does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Health {
    /// It has never been ready. What it does is known as far as its log tells.
    Loading(Option<Phase>),
    /// It can be used.
    Running,
    /// It could be used, and has not answered for longer than there is patience.
    Hung(Probe),
    /// Its unit has ended.
    Ended(Failure),
}

impl Health {
    /// The word for what it does while it loads, as the API has it.
    #[must_use]
    pub fn detail(&self) -> Option<&'static str> {
        match self {
            Self::Loading(phase) => phase.map(Phase::name),
            Self::Running | Self::Hung(_) | Self::Ended(_) => None,
        }
    }
}

/// What a probe has changed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Change {
    /// It is ready for the first time.
    Ready,
    /// It hangs.
    Hung(Probe),
    /// It hung, and answers again.
    Recovered,
}

/// Watches one life of one engine.
#[derive(Clone, Debug)]
pub struct Monitor {
    engine: &'static dyn Engine,
    patience: Patience,
    since: Instant,
    ready: Option<Instant>,
    health: Health,
    failing: Option<Failing>,
    clues: Clues,
}

/// Failed probes in a row.
#[derive(Clone, Copy, Debug)]
struct Failing {
    since: Instant,
    probes: u32,
}

impl Monitor {
    /// For an engine that has been started, or found, at this time.
    #[must_use]
    pub fn new(engine: &'static dyn Engine, patience: Patience, at: Instant) -> Self {
        let (health, clues) = (Health::Loading(None), Clues::default());
        Self { engine, patience, since: at, ready: None, health, failing: None, clues }
    }

    /// How the engine does.
    #[must_use]
    pub fn health(&self) -> Health {
        self.health
    }

    /// Takes in a line of its log. Progress is for people: only a probe makes it run.
    pub fn line(&mut self, text: &str) {
        self.clues.line(self.engine.failure(text));
        if let Health::Loading(phase) = &mut self.health
            && *phase != Some(Phase::Ready)
        {
            *phase = self.engine.phase(text).or(*phase);
        }
    }

    /// Takes in what a probe at this time has found, and says what that changes.
    pub fn probe(&mut self, at: Instant, probe: Probe) -> Option<Change> {
        match (self.health, probe) {
            (Health::Ended(_), _) => None,
            (Health::Loading(_), Probe::Ready) => {
                self.ready = Some(at);
                self.health = Health::Running;
                Some(Change::Ready)
            }
            // Until it has been ready, not to answer is what it does.
            (Health::Loading(_), _) => None,
            (Health::Running, Probe::Ready) => {
                self.failing = None;
                None
            }
            (Health::Hung(_), Probe::Ready) => {
                self.failing = None;
                self.health = Health::Running;
                Some(Change::Recovered)
            }
            (Health::Hung(_), _) => None,
            (Health::Running, _) => self.failed(at, probe),
        }
    }

    fn failed(&mut self, at: Instant, probe: Probe) -> Option<Change> {
        let failing = self.failing.get_or_insert(Failing { since: at, probes: 0 });
        failing.probes = failing.probes.saturating_add(1);
        let lasting = at.saturating_duration_since(failing.since);
        if failing.probes < self.patience.probes || lasting < self.patience.lasting {
            return None;
        }
        self.health = Health::Hung(probe);
        Some(Change::Hung(probe))
    }

    /// It is not probed for a while, because it sleeps or wakes: what it has missed so far does not count.
    pub fn forgive(&mut self) {
        self.failing = None;
    }

    /// Takes in that its unit has ended, and says why as far as is known.
    pub fn ended(&mut self, exit: Exit) -> Failure {
        if let Health::Ended(failure) = self.health {
            return failure;
        }
        let host = exit.out_of_memory.then_some(FailureClass::HostOom);
        let failure = Failure { class: host.or_else(|| self.clues.class()), exit };
        self.health = Health::Ended(failure);
        failure
    }

    /// Whether it has loaded for longer than this.
    #[must_use]
    pub fn is_overdue(&self, at: Instant, limit: Duration) -> bool {
        matches!(self.health, Health::Loading(_)) && at.saturating_duration_since(self.since) > limit
    }

    /// How long ago it became ready; `None` if it never has.
    #[must_use]
    pub fn ready_for(&self, at: Instant) -> Option<Duration> {
        self.ready.map(|ready| at.saturating_duration_since(ready))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::engine;
    use crate::runtime::EngineKind;

    const PATIENCE: Patience = Patience { probes: 3, lasting: Duration::from_secs(10) };
    const CRASHED: Exit = Exit { code: Some(1), signal: None, out_of_memory: false };

    struct Watched {
        monitor: Monitor,
        start: Instant,
    }

    impl Watched {
        fn new() -> Self {
            let start = Instant::now();
            Self { monitor: Monitor::new(engine::of(EngineKind::Vllm), PATIENCE, start), start }
        }

        fn running() -> Self {
            let mut watched = Self::new();
            assert_eq!(watched.probe(0, Probe::Ready), Some(Change::Ready));
            watched
        }

        fn at(&self, seconds: u64) -> Instant {
            self.start + Duration::from_secs(seconds)
        }

        fn probe(&mut self, seconds: u64, probe: Probe) -> Option<Change> {
            let at = self.at(seconds);
            self.monitor.probe(at, probe)
        }
    }

    #[test]
    fn a_loading_engine_runs_when_it_answers_and_not_when_it_says_so() {
        let mut watched = Watched::new();
        for (line, detail) in [
            ("INFO hello", None),
            ("Loading safetensors checkpoint shards: 0%", Some("loading_weights")),
            ("Downloading shards", Some("downloading")),
            ("nothing", Some("downloading")),
            ("Capturing CUDA graphs", Some("compiling")),
            ("INFO:     Application startup complete.", Some("ready")),
            ("Loading weights took 1 s", Some("ready")),
        ] {
            watched.monitor.line(line);
            assert_eq!(watched.monitor.health().detail(), detail, "{line}");
        }
        for failing in [Probe::NotListening, Probe::Silent, Probe::Unwell, Probe::Dead] {
            assert_eq!(watched.probe(1000, failing), None);
            assert_eq!(watched.monitor.health(), Health::Loading(Some(Phase::Ready)));
        }
        assert_eq!(watched.monitor.ready_for(watched.at(1001)), None);
        assert_eq!(watched.probe(1001, Probe::Ready), Some(Change::Ready));
        assert_eq!(watched.monitor.health(), Health::Running);
        assert_eq!(watched.probe(1002, Probe::Ready), None);
        assert_eq!(watched.monitor.ready_for(watched.at(1011)), Some(Duration::from_secs(10)));
    }

    #[test]
    fn a_running_engine_hangs_after_enough_probes_over_enough_time() {
        let mut watched = Watched::running();
        for second in 1..=10 {
            assert_eq!(watched.probe(second, Probe::Silent), None, "{second}");
        }
        assert_eq!(watched.probe(11, Probe::Silent), Some(Change::Hung(Probe::Silent)));
        assert_eq!(watched.monitor.health(), Health::Hung(Probe::Silent));
        assert_eq!(watched.probe(12, Probe::NotListening), None);
        assert_eq!(watched.probe(13, Probe::Ready), Some(Change::Recovered));
        assert_eq!(watched.monitor.health(), Health::Running);
        assert_eq!(watched.probe(14, Probe::Silent), None);
    }

    #[test]
    fn a_long_time_alone_is_no_reason() {
        let mut watched = Watched::running();
        assert_eq!(watched.probe(1, Probe::NotListening), None);
        assert_eq!(watched.probe(1000, Probe::NotListening), None);
        assert_eq!(watched.probe(1001, Probe::Dead), Some(Change::Hung(Probe::Dead)));
    }

    #[test]
    fn an_answer_in_between_and_a_sleep_begin_the_count_anew() {
        let mut watched = Watched::running();
        watched.probe(1, Probe::Silent);
        watched.probe(2, Probe::Silent);
        assert_eq!(watched.probe(3, Probe::Ready), None);
        watched.probe(12, Probe::Silent);
        assert_eq!(watched.probe(13, Probe::Silent), None);
        watched.monitor.forgive();
        assert_eq!(watched.probe(500, Probe::Silent), None);
        assert_eq!(watched.monitor.health(), Health::Running);
    }

    #[test]
    fn an_engine_that_has_ended_says_why_once_and_for_all() {
        let mut watched = Watched::running();
        watched.monitor.line("torch.OutOfMemoryError: CUDA out of memory.");
        watched.monitor.line("RuntimeError: Engine core initialization failed. See root cause above.");
        let failure = watched.monitor.ended(CRASHED);
        assert_eq!(failure, Failure { class: Some(FailureClass::GpuOom), exit: CRASHED });
        assert_eq!(watched.monitor.health(), Health::Ended(failure));
        assert_eq!(watched.probe(1, Probe::Ready), None);
        assert_eq!(watched.monitor.ended(Exit { code: Some(0), ..CRASHED }), failure);
    }

    #[test]
    fn the_kernels_word_comes_before_the_logs() {
        let mut watched = Watched::new();
        watched.monitor.line("ModuleNotFoundError: No module named 'x'");
        let killed = Exit { code: Some(137), signal: None, out_of_memory: true };
        assert_eq!(watched.monitor.ended(killed).class, Some(FailureClass::HostOom));
        assert_eq!(Watched::new().monitor.ended(CRASHED).class, None);
    }

    #[test]
    fn only_a_loading_engine_is_overdue() {
        let limit = Duration::from_secs(60);
        let mut watched = Watched::new();
        assert!(!watched.monitor.is_overdue(watched.at(60), limit));
        assert!(watched.monitor.is_overdue(watched.at(61), limit));
        watched.probe(61, Probe::Ready);
        assert!(!watched.monitor.is_overdue(watched.at(1000), limit));
    }
}
