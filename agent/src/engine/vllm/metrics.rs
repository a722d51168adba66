//! What vLLM and its simulator say at `/metrics`.

use crate::engine::metrics::{Sample, Series, Spread, series};

/// The names that are read.
const NAMES: [&str; 17] = [
    "vllm:prompt_tokens_total",
    "vllm:generation_tokens_total",
    "vllm:request_success_total",
    "vllm:num_requests_running",
    "vllm:num_requests_waiting",
    "vllm:request_prefill_time_seconds_sum",
    "vllm:request_prefill_time_seconds_count",
    "vllm:request_decode_time_seconds_sum",
    "vllm:request_decode_time_seconds_count",
    "vllm:time_to_first_token_seconds_sum",
    "vllm:time_to_first_token_seconds_count",
    // The older name and the one of 0.32.
    "vllm:time_per_output_token_seconds_sum",
    "vllm:time_per_output_token_seconds_count",
    "vllm:inter_token_latency_seconds_sum",
    "vllm:inter_token_latency_seconds_count",
    "muster_sim:memory_bytes",
    "process_start_time_seconds",
];

pub(super) fn read(text: &str) -> Sample {
    let series = series(text, &NAMES);
    let number = |name| whole(&series, name);
    let spread = |sum, count| Some(Spread { sum: *series.get(sum)?, count: *series.get(count)? });
    Sample {
        prompt_tokens: number("vllm:prompt_tokens_total"),
        generation_tokens: number("vllm:generation_tokens_total"),
        requests: number("vllm:request_success_total"),
        prefill: spread("vllm:request_prefill_time_seconds_sum", "vllm:request_prefill_time_seconds_count"),
        decode: spread("vllm:request_decode_time_seconds_sum", "vllm:request_decode_time_seconds_count"),
        first_token: spread("vllm:time_to_first_token_seconds_sum", "vllm:time_to_first_token_seconds_count"),
        next_token: spread("vllm:time_per_output_token_seconds_sum", "vllm:time_per_output_token_seconds_count")
            .or_else(|| spread("vllm:inter_token_latency_seconds_sum", "vllm:inter_token_latency_seconds_count")),
        running: number("vllm:num_requests_running"),
        waiting: number("vllm:num_requests_waiting"),
        memory: number("muster_sim:memory_bytes"),
        began: series.get("process_start_time_seconds").copied(),
    }
}

/// Counters are written as floats.
fn whole(series: &Series, name: &str) -> Option<u64> {
    let value = series.get(name).filter(|value| **value >= 0.0)?;
    Some(value.round() as u64)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_sample_has_what_was_said_and_nothing_else() {
        let text = "\
# TYPE vllm:num_requests_running gauge
vllm:num_requests_running{engine=\"0\",model_name=\"tiny\"} 1.0
vllm:num_requests_running{engine=\"1\",model_name=\"tiny\"} 2.0
vllm:num_requests_waiting{engine=\"0\",model_name=\"tiny\"} 3.0
vllm:num_requests_waiting_by_reason{reason=\"capacity\"} 9.0
vllm:prompt_tokens_total{engine=\"0\",model_name=\"tiny\"} 1.2e+06
vllm:prompt_tokens_created{engine=\"0\",model_name=\"tiny\"} 1.7e+09
vllm:request_success_total{finished_reason=\"stop\"} 4.0
vllm:request_success_total{finished_reason=\"abort\"} 1.0
vllm:request_prefill_time_seconds_bucket{le=\"+Inf\"} 5.0
vllm:request_prefill_time_seconds_count{engine=\"0\"} 5.0
vllm:request_prefill_time_seconds_sum{engine=\"0\"} 0.5
vllm:inter_token_latency_seconds_count 10.0
vllm:inter_token_latency_seconds_sum 2.0
process_start_time_seconds 1.7e+09
muster_sim:memory_bytes{engine=\"0\"} 1073741824.0
";
        let expected = Sample {
            prompt_tokens: Some(1_200_000),
            requests: Some(5),
            prefill: Some(Spread { sum: 0.5, count: 5.0 }),
            next_token: Some(Spread { sum: 2.0, count: 10.0 }),
            running: Some(3),
            waiting: Some(3),
            memory: Some(1 << 30),
            began: Some(1.7e9),
            ..Sample::default()
        };
        assert_eq!(read(text), expected);
        assert_eq!(read("# nothing\nvllm:prompt_tokens_total NaN\nvllm:num_requests_running -1\n"), Sample::default());
    }
}
