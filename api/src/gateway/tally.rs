//! What is counted of requests to models.

use std::sync::Arc;
use std::time::Instant;

use http::StatusCode;
use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::Histogram;
use prometheus_client::registry::{Registry, Unit};

/// Upper bounds of the classes of durations, in seconds: from a short embedding to a long generation.
const BOUNDS: [f64; 14] = [0.001, 0.002_5, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 10.0, 60.0, 600.0];

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Labels {
    model: String,
    status: u16,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct ModelLabel {
    model: String,
}

/// The counts of the gateway of a node. Models are named as they are registered; what names none that exists has no name here,
/// so that callers can not make the counts grow.
#[derive(Debug)]
pub(crate) struct Tally {
    requests: Family<Labels, Counter>,
    first_byte: Family<ModelLabel, Histogram>,
    seconds: Family<ModelLabel, Histogram>,
    cut: Family<ModelLabel, Counter>,
    in_flight: Family<ModelLabel, Gauge>,
}

impl Default for Tally {
    fn default() -> Self {
        let histogram = || Histogram::new(BOUNDS);
        Self {
            requests: Family::default(),
            first_byte: Family::new_with_constructor(histogram),
            seconds: Family::new_with_constructor(histogram),
            cut: Family::default(),
            in_flight: Family::default(),
        }
    }
}

impl Tally {
    /// Adds the counts to what is shown.
    pub fn register(&self, registry: &mut Registry) {
        let registry = registry.sub_registry_with_prefix("gateway");
        registry.register("requests", "Requests to models, by the status answered", self.requests.clone());
        let first = self.first_byte.clone();
        registry.register_with_unit("first_byte", "Time to the first byte of an answer", Unit::Seconds, first);
        let seconds = self.seconds.clone();
        registry.register_with_unit("request_duration", "Time to the end of an answer", Unit::Seconds, seconds);
        registry.register("cut", "Answers that ended too early", self.cut.clone());
        registry.register("in_flight", "Requests under way at a provider", self.in_flight.clone());
    }

    /// Counts a request that did not reach a model.
    pub fn refused(&self, model: &str, status: StatusCode) {
        let labels = Labels { model: model.to_owned(), status: status.as_u16() };
        self.requests.get_or_create(&labels).inc();
    }

    /// The counts of one model, to be kept by whoever counts often.
    pub(super) fn of(&self, model: &str) -> ModelTally {
        let label = ModelLabel { model: model.to_owned() };
        let ok = Labels { model: model.to_owned(), status: StatusCode::OK.as_u16() };
        ModelTally(Arc::new(Counts {
            ok: self.requests.get_or_create(&ok).clone(),
            first_byte: self.first_byte.get_or_create(&label).clone(),
            seconds: self.seconds.get_or_create(&label).clone(),
            cut: self.cut.get_or_create(&label).clone(),
            in_flight: self.in_flight.get_or_create(&label).clone(),
        }))
    }
}

#[derive(Debug)]
struct Counts {
    ok: Counter,
    first_byte: Histogram,
    seconds: Histogram,
    cut: Counter,
    in_flight: Gauge,
}

/// The counts of one model.
#[derive(Clone, Debug)]
pub(super) struct ModelTally(Arc<Counts>);

impl ModelTally {
    /// A request begins to wait for its provider.
    pub fn depart(&self) -> Flight {
        self.0.in_flight.inc();
        Flight { counts: Arc::clone(&self.0), begun: Instant::now(), answered: false, seen: false, landed: false }
    }
}

/// A request that is under way. An answer that is dropped before its end counts as cut.
#[derive(Debug)]
pub(super) struct Flight {
    counts: Arc<Counts>,
    begun: Instant,
    answered: bool,
    seen: bool,
    landed: bool,
}

impl Flight {
    /// The provider has answered, and the client gets its answer.
    pub fn answered(&mut self) {
        self.counts.ok.inc();
        self.answered = true;
    }

    /// A part of the answer goes to the client.
    pub fn first_byte(&mut self) {
        if !self.seen {
            self.seen = true;
            self.counts.first_byte.observe(self.begun.elapsed().as_secs_f64());
        }
    }

    /// The answer has come whole.
    pub fn whole(&mut self) {
        self.landed = true;
        self.counts.seconds.observe(self.begun.elapsed().as_secs_f64());
    }

    /// The answer has ended too early.
    pub fn cut(&mut self) {
        if self.answered && !self.landed {
            self.counts.cut.inc();
        }
        self.landed = true;
    }
}

impl Drop for Flight {
    fn drop(&mut self) {
        self.cut();
        self.counts.in_flight.dec();
    }
}
