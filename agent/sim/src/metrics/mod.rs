//! What the engine and the server count, and how /metrics says it.

mod expose;
mod histogram;

use std::collections::BTreeMap;
use std::time::{Duration, SystemTime};

pub use expose::expose;
pub use histogram::Histogram;

/// How a request ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Finish {
    /// By itself, or at a stop string.
    Stop,
    /// At its limit.
    Length,
    /// Its client left, or the engine was put to sleep.
    Abort,
    /// The engine died.
    Error,
}

impl Finish {
    /// All of them.
    pub const ALL: [Self; 4] = [Self::Stop, Self::Length, Self::Abort, Self::Error];

    /// As answers and metrics have it.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Stop => "stop",
            Self::Length => "length",
            Self::Abort => "abort",
            Self::Error => "error",
        }
    }
}

/// What is known of a request when it has ended.
#[derive(Clone, Copy, Debug, Default)]
pub struct Finished {
    /// Tokens of its prompts.
    pub prompt_tokens: u64,
    /// Tokens of its answers.
    pub generated: u64,
    /// How many answers it wanted.
    pub n: u32,
    /// How long each could become.
    pub max_tokens: u32,
    /// From its coming to its place.
    pub queue: Duration,
    /// From its place to its first token.
    pub prefill: Duration,
    /// From its place to its end.
    pub inference: Duration,
    /// From its coming to its end.
    pub whole: Duration,
}

/// The requests of one route, method and class of status.
#[derive(Clone, Debug)]
struct Http {
    count: u64,
    seconds: Histogram,
}

/// Everything that is counted.
#[derive(Clone, Debug)]
pub struct Metrics {
    created: f64,
    /// Requests that have a place.
    pub running: u64,
    /// Requests that wait for one.
    pub waiting: u64,
    /// Tokens that the key-value cache holds for the running requests.
    pub kv_tokens: u64,
    /// Tokens of all prompts.
    pub prompt_tokens: u64,
    generation_tokens: u64,
    rejections: u64,
    finished: [u64; Finish::ALL.len()],
    /// By the name of their metric.
    histograms: BTreeMap<&'static str, Histogram>,
    http: BTreeMap<(&'static str, &'static str, &'static str), Http>,
}

const TTFT: &[f64] = &[
    0.001, 0.005, 0.01, 0.02, 0.04, 0.06, 0.08, 0.1, 0.25, 0.5, 0.75, 1.0, 2.5, 5.0, 7.5, 10.0, 20.0, 40.0, 80.0,
    160.0, 640.0, 2560.0,
];
const TOKEN: &[f64] =
    &[0.01, 0.025, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.75, 1.0, 2.5, 5.0, 7.5, 10.0, 20.0, 40.0, 80.0];
const REQUEST: &[f64] = &[
    0.3, 0.5, 0.8, 1.0, 1.5, 2.0, 2.5, 5.0, 10.0, 15.0, 20.0, 30.0, 40.0, 50.0, 60.0, 120.0, 240.0, 480.0, 960.0,
    1920.0, 7680.0,
];
const STEP: &[f64] = &[1.0, 8.0, 16.0, 32.0, 64.0, 128.0, 256.0, 512.0, 1024.0, 2048.0, 4096.0, 8192.0, 16384.0];
const FEW: &[f64] = &[1.0, 2.0, 5.0, 10.0, 20.0];
const HTTP: &[f64] = &[0.1, 0.5, 1.0];

impl Metrics {
    /// All zero.
    #[must_use]
    pub fn new(max_model_len: u32) -> Self {
        let lengths = Histogram::up_to(max_model_len);
        let requests = Histogram::new(REQUEST);
        let histograms = [
            ("vllm:time_to_first_token_seconds", Histogram::new(TTFT)),
            ("vllm:inter_token_latency_seconds", Histogram::new(TOKEN)),
            ("vllm:request_time_per_output_token_seconds", Histogram::new(TOKEN)),
            ("vllm:e2e_request_latency_seconds", requests.clone()),
            ("vllm:request_queue_time_seconds", requests.clone()),
            ("vllm:request_inference_time_seconds", requests.clone()),
            ("vllm:request_prefill_time_seconds", requests.clone()),
            ("vllm:request_decode_time_seconds", requests),
            ("vllm:request_prompt_tokens", lengths.clone()),
            ("vllm:request_generation_tokens", lengths.clone()),
            ("vllm:request_max_num_generation_tokens", lengths.clone()),
            ("vllm:request_params_n", Histogram::new(FEW)),
            ("vllm:request_params_max_tokens", lengths.clone()),
            ("vllm:request_num_preemptions", Histogram::new(FEW)),
            ("vllm:request_prefill_kv_computed_tokens", lengths),
            ("vllm:iteration_tokens_total", Histogram::new(STEP)),
        ];
        let created = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
        Self {
            created: created.as_secs_f64(),
            running: 0,
            waiting: 0,
            kv_tokens: 0,
            prompt_tokens: 0,
            generation_tokens: 0,
            rejections: 0,
            finished: [0; Finish::ALL.len()],
            histograms: histograms.into(),
            http: BTreeMap::new(),
        }
    }

    fn observe(&mut self, name: &'static str, value: f64) {
        if let Some(histogram) = self.histograms.get_mut(name) {
            histogram.observe(value);
        }
    }

    /// A request was refused because there are too many.
    pub fn rejected(&mut self) {
        self.rejections += 1;
    }

    /// A request got its first token.
    pub fn first_token(&mut self, after: Duration) {
        self.observe("vllm:time_to_first_token_seconds", after.as_secs_f64());
    }

    /// A request got a further one.
    pub fn next_token(&mut self, after: Duration) {
        self.observe("vllm:inter_token_latency_seconds", after.as_secs_f64());
    }

    /// So many tokens were made in one step.
    pub fn step(&mut self, tokens: u64) {
        self.generation_tokens += tokens;
        self.kv_tokens += tokens;
        self.observe("vllm:iteration_tokens_total", tokens as f64);
    }

    /// A request ended. Its choices count as one request.
    pub fn finished(&mut self, finish: Finish, request: &Finished) {
        self.finished[finish as usize] += 1;
        if matches!(finish, Finish::Error) {
            return;
        }
        let decode = request.inference.saturating_sub(request.prefill);
        let observed = [
            ("vllm:e2e_request_latency_seconds", request.whole.as_secs_f64()),
            ("vllm:request_queue_time_seconds", request.queue.as_secs_f64()),
            ("vllm:request_inference_time_seconds", request.inference.as_secs_f64()),
            ("vllm:request_prefill_time_seconds", request.prefill.as_secs_f64()),
            ("vllm:request_decode_time_seconds", decode.as_secs_f64()),
            ("vllm:request_time_per_output_token_seconds", decode.as_secs_f64() / request.generated.max(1) as f64),
            ("vllm:request_prompt_tokens", request.prompt_tokens as f64),
            ("vllm:request_generation_tokens", request.generated as f64),
            ("vllm:request_max_num_generation_tokens", f64::from(request.max_tokens)),
            ("vllm:request_params_n", f64::from(request.n)),
            ("vllm:request_params_max_tokens", f64::from(request.max_tokens)),
            ("vllm:request_num_preemptions", 0.0),
            ("vllm:request_prefill_kv_computed_tokens", request.prompt_tokens as f64),
        ];
        for (name, value) in observed {
            self.observe(name, value);
        }
    }

    /// A request was answered.
    pub fn answered(&mut self, handler: &'static str, method: &'static str, status: u16, after: Duration) {
        let class = match status {
            100..=199 => "1xx",
            200..=299 => "2xx",
            300..=399 => "3xx",
            400..=499 => "4xx",
            _ => "5xx",
        };
        let new = || Http { count: 0, seconds: Histogram::new(HTTP) };
        let http = self.http.entry((handler, method, class)).or_insert_with(new);
        http.count += 1;
        http.seconds.observe(after.as_secs_f64());
    }
}
