//! The text of /metrics.

use std::fmt::Write as _;

use super::{Finish, Histogram, Metrics};
use crate::engine::Engine;

/// The format's text, with the labels that every series of the engine carries.
struct Text {
    out: String,
    labels: String,
    created: f64,
}

impl Text {
    /// Writing to a `String` does not fail.
    fn line(&mut self, name: &str, labels: &str, value: f64) {
        let _ = writeln!(self.out, "{name}{{{labels}}} {value:?}");
    }

    fn head(&mut self, name: &str, kind: &str) {
        let _ = writeln!(self.out, "# HELP {name} As in vLLM.\n# TYPE {name} {kind}");
    }

    /// The engine's labels, and more.
    fn with(&self, more: &str) -> String {
        if more.is_empty() { self.labels.clone() } else { format!("{},{more}", self.labels) }
    }

    fn gauge(&mut self, name: &str, series: &[(&str, f64)]) {
        self.head(name, "gauge");
        for (labels, value) in series {
            self.line(name, &self.with(labels), *value);
        }
    }

    /// A counter's name is given without `_total`.
    fn counter(&mut self, name: &str, series: &[(&str, f64)]) {
        let series: Vec<_> = series.iter().map(|(labels, value)| (self.with(labels), *value)).collect();
        self.bare_counter(name, &series);
    }

    fn bare_counter(&mut self, name: &str, series: &[(String, f64)]) {
        let total = format!("{name}_total");
        self.head(&total, "counter");
        for (labels, value) in series {
            self.line(&total, labels, *value);
        }
        self.created(name, series.iter().map(|(labels, _)| labels.as_str()));
    }

    fn created<'a>(&mut self, name: &str, labels: impl Iterator<Item = &'a str>) {
        let name = format!("{name}_created");
        self.head(&name, "gauge");
        for labels in labels {
            self.line(&name, labels, self.created);
        }
    }

    fn histogram(&mut self, name: &str, series: &[(String, &Histogram)]) {
        self.head(name, "histogram");
        for (labels, histogram) in series {
            for (bound, count) in histogram.buckets() {
                self.line(&format!("{name}_bucket"), &format!("{labels},le=\"{bound}\""), count as f64);
            }
            self.line(&format!("{name}_count"), labels, histogram.count() as f64);
            self.line(&format!("{name}_sum"), labels, histogram.sum());
        }
        self.created(name, series.iter().map(|(labels, _)| labels.as_str()));
    }
}

/// All metrics of an engine, in Prometheus's text format.
#[must_use]
pub fn expose(engine: &Engine) -> String {
    let metrics = engine.metrics().clone();
    let model = escaped(engine.settings().name());
    let labels = format!("engine=\"0\",model_name=\"{model}\"");
    let mut text = Text { out: String::with_capacity(32 * 1024), labels, created: metrics.created };
    scheduler(&mut text, engine, &metrics);
    tokens(&mut text, &metrics);
    let rejections = format!("model_name=\"{model}\",reason=\"max_num_queued_reqs\"");
    text.bare_counter("vllm:admission_rejections", &[(rejections, metrics.rejections as f64)]);
    for (name, histogram) in &metrics.histograms {
        let labels = text.labels.clone();
        text.histogram(name, &[(labels, histogram)]);
    }
    http(&mut text, &metrics);
    text.head("process_start_time_seconds", "gauge");
    let _ = writeln!(text.out, "process_start_time_seconds {:?}", metrics.created);
    text.gauge("muster_sim:memory_bytes", &[("", engine.memory_bytes() as f64)]);
    text.out
}

/// What the engine is doing.
fn scheduler(text: &mut Text, engine: &Engine, metrics: &Metrics) {
    let arguments = &engine.settings().arguments;
    text.gauge("vllm:num_requests_running", &[("", metrics.running as f64)]);
    text.gauge("vllm:num_requests_waiting", &[("", metrics.waiting as f64)]);
    let reasons = [("reason=\"capacity\"", metrics.waiting as f64), ("reason=\"deferred\"", 0.0)];
    text.gauge("vllm:num_requests_waiting_by_reason", &reasons);
    let room = f64::from(arguments.max_model_len) * f64::from(arguments.max_num_seqs);
    text.gauge("vllm:kv_cache_usage_perc", &[("", (metrics.kv_tokens as f64 / room).min(1.0))]);
    let level = engine.sleep().map_or(0, |sleep| sleep.level);
    let is = |state: bool| f64::from(u8::from(state));
    let states = [
        ("sleep_state=\"awake\"", is(level == 0)),
        ("sleep_state=\"weights_offloaded\"", is(level == 1)),
        ("sleep_state=\"discard_all\"", is(level == 2)),
    ];
    text.gauge("vllm:engine_sleep_state", &states);
    let blocks = format!("block_size=\"16\",num_gpu_blocks=\"{}\"", (room / 16.0).ceil());
    text.gauge("vllm:cache_config_info", &[(&blocks, 1.0)]);
    if arguments.enable_lora {
        text.head("vllm:lora_requests_info", "gauge");
        let labels = "max_lora=\"1\",running_lora_adapters=\"\",waiting_lora_adapters=\"\"";
        text.line("vllm:lora_requests_info", labels, metrics.created);
    }
}

/// What it has done. The simulator caches no prefixes, so all prompts are computed.
fn tokens(text: &mut Text, metrics: &Metrics) {
    let prompt = metrics.prompt_tokens as f64;
    text.counter("vllm:prompt_tokens", &[("", prompt)]);
    text.counter("vllm:generation_tokens", &[("", metrics.generation_tokens as f64)]);
    let sources = [
        ("source=\"local_compute\"", prompt),
        ("source=\"local_cache_hit\"", 0.0),
        ("source=\"external_kv_transfer\"", 0.0),
    ];
    text.counter("vllm:prompt_tokens_by_source", &sources);
    let cached = ["device", "host", "p2p", "disk", "external_unspecified"].map(|source| format!("source=\"{source}\""));
    text.counter("vllm:prompt_tokens_cached_by_source", &cached.each_ref().map(|source| (source.as_str(), 0.0)));
    text.counter("vllm:prefix_cache_queries", &[("", prompt)]);
    let unused = [
        "vllm:prompt_tokens_cached",
        "vllm:prefix_cache_hits",
        "vllm:external_prefix_cache_queries",
        "vllm:external_prefix_cache_hits",
        "vllm:mm_cache_queries",
        "vllm:mm_cache_hits",
        "vllm:num_preemptions",
        "vllm:estimated_flops_per_gpu",
        "vllm:estimated_read_bytes_per_gpu",
        "vllm:estimated_write_bytes_per_gpu",
    ];
    for name in unused {
        text.counter(name, &[("", 0.0)]);
    }
    let finished = Finish::ALL.map(|finish| (finish.name(), metrics.finished[finish as usize]));
    let reasons = finished.into_iter().chain([("repetition", 0)]);
    let series: Vec<_> = reasons.map(|(name, count)| (format!("finished_reason=\"{name}\""), count as f64)).collect();
    let series: Vec<_> = series.iter().map(|(labels, value)| (labels.as_str(), *value)).collect();
    text.counter("vllm:request_success", &series);
}

/// What the server has answered.
fn http(text: &mut Text, metrics: &Metrics) {
    let series = metrics.http.iter().map(|((handler, method, status), http)| {
        let labels = format!("handler=\"{handler}\",method=\"{method}\"");
        (labels, status, http)
    });
    let series: Vec<_> = series.collect();
    let counts: Vec<_> = series
        .iter()
        .map(|(labels, status, http)| (format!("{labels},status=\"{status}\""), http.count as f64))
        .collect();
    text.bare_counter("http_requests", &counts);
    // The durations have no status: those of a route's classes are added up.
    let mut seconds: Vec<(String, Histogram)> = Vec::new();
    for (labels, _, http) in series {
        match seconds.last_mut() {
            Some((last, histogram)) if *last == labels => histogram.add(&http.seconds),
            _ => seconds.push((labels, http.seconds.clone())),
        }
    }
    let seconds: Vec<_> = seconds.iter().map(|(labels, histogram)| (labels.clone(), histogram)).collect();
    text.histogram("http_request_duration_seconds", &seconds);
}

/// A label's value.
fn escaped(value: &str) -> String {
    value.replace('\\', "\\\\").replace('"', "\\\"").replace('\n', "\\n")
}

#[cfg(test)]
mod tests {
    use super::escaped;

    #[test]
    fn a_name_can_not_leave_its_label() {
        assert_eq!(escaped("a\"b\\c\nd"), "a\\\"b\\\\c\\nd");
    }
}
