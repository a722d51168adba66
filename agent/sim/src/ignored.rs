//! vLLM's flags that mean nothing to a simulator. They are accepted, with any value, and do nothing.

use clap::{Arg, ArgAction, Command};

/// What follows a flag.
enum Takes {
    /// Nothing.
    Nothing,
    /// One value.
    One,
    /// One value or more.
    Many,
}

use Takes::{Many, Nothing, One};

/// The flags with one dash and several letters, and what they are short for.
pub const SHORT: &[(&str, &str)] = &[
    ("-tp", "--tensor-parallel-size"),
    ("-pp", "--pipeline-parallel-size"),
    ("-dp", "--data-parallel-size"),
    ("-q", "--quantization"),
    ("-asc", "--api-server-count"),
];

/// The flags without a value that are not ignored.
const SERVED: &[&str] = &[
    "enable-sleep-mode",
    "enable-lora",
    "enable-server-load-tracking",
    "enable-request-id-headers",
    "enable-force-include-usage",
    "enable-auto-tool-choice",
];

const FLAGS: &[(&str, Takes)] = &[
    // Model
    ("runner", One),
    ("convert", One),
    ("task", One),
    ("tokenizer", One),
    ("tokenizer-mode", One),
    ("trust-remote-code", Nothing),
    ("dtype", One),
    ("seed", One),
    ("hf-config-path", One),
    ("hf-overrides", One),
    ("hf-token", One),
    ("revision", One),
    ("code-revision", One),
    ("tokenizer-revision", One),
    ("rope-scaling", One),
    ("rope-theta", One),
    ("quantization", One),
    ("enforce-eager", Nothing),
    ("max-logprobs", One),
    ("disable-sliding-window", Nothing),
    ("skip-tokenizer-init", Nothing),
    ("generation-config", One),
    ("override-generation-config", One),
    ("config-format", One),
    ("model-impl", One),
    ("pooler-config", One),
    ("load-format", One),
    ("download-dir", One),
    ("safetensors-load-strategy", One),
    ("model-loader-extra-config", One),
    ("ignore-patterns", Many),
    ("use-tqdm-on-load", Nothing),
    // Parallelism
    ("distributed-executor-backend", One),
    ("tensor-parallel-size", One),
    ("pipeline-parallel-size", One),
    ("decode-context-parallel-size", One),
    ("data-parallel-size", One),
    ("data-parallel-rank", One),
    ("data-parallel-size-local", One),
    ("data-parallel-address", One),
    ("data-parallel-rpc-port", One),
    ("data-parallel-backend", One),
    ("enable-expert-parallel", Nothing),
    ("enable-eplb", Nothing),
    ("api-server-count", One),
    ("nnodes", One),
    ("node-rank", One),
    ("master-addr", One),
    ("master-port", One),
    ("headless", Nothing),
    ("max-parallel-loading-workers", One),
    ("disable-custom-all-reduce", Nothing),
    ("worker-cls", One),
    ("worker-extension-cls", One),
    // Memory and cache
    ("gpu-memory-utilization", One),
    ("device-memory-utilization", One),
    ("kv-cache-memory-bytes", One),
    ("num-gpu-blocks-override", One),
    ("block-size", One),
    ("swap-space", One),
    ("kv-cache-dtype", One),
    ("enable-prefix-caching", Nothing),
    ("prefix-caching-hash-algo", One),
    ("cpu-offload-gb", One),
    ("calculate-kv-scales", Nothing),
    ("kv-transfer-config", One),
    ("kv-events-config", One),
    // Scheduling
    ("max-num-batched-tokens", One),
    ("max-num-queued-tokens", One),
    ("max-num-partial-prefills", One),
    ("max-long-partial-prefills", One),
    ("long-prefill-token-threshold", One),
    ("scheduling-policy", One),
    ("enable-chunked-prefill", Nothing),
    ("async-scheduling", Nothing),
    ("stream-interval", One),
    ("speculative-config", One),
    ("compilation-config", One),
    ("additional-config", One),
    ("cuda-graph-sizes", Many),
    // Sleep and LoRA
    ("sleep-mode-backend", One),
    ("sleep-mode-offload-cudagraph", Nothing),
    ("sleep-preserve-parameter-names", Many),
    ("max-loras", One),
    ("max-lora-rank", One),
    ("max-cpu-loras", One),
    ("lora-dtype", One),
    ("fully-sharded-loras", Nothing),
    // Multimodal
    ("limit-mm-per-prompt", One),
    ("mm-processor-kwargs", One),
    ("mm-processor-cache-gb", One),
    ("allowed-local-media-path", One),
    ("allowed-media-domains", Many),
    // Server
    ("root-path", One),
    ("chat-template", One),
    ("chat-template-content-format", One),
    ("response-role", One),
    ("tool-call-parser", One),
    ("tool-parser-plugin", One),
    ("tool-server", One),
    ("reasoning-parser", One),
    ("structured-outputs-config", One),
    ("allow-credentials", Nothing),
    ("allowed-origins", One),
    ("allowed-methods", One),
    ("allowed-headers", One),
    ("middleware", One),
    ("return-tokens-as-token-ids", Nothing),
    ("disable-frontend-multiprocessing", Nothing),
    ("disable-fastapi-docs", Nothing),
    ("enable-prompt-tokens-details", Nothing),
    ("enable-per-request-metrics", Nothing),
    ("enable-tokenizer-info-endpoint", Nothing),
    ("enable-scale-out", Nothing),
    ("enable-fault-tolerance", Nothing),
    ("sse-keep-alive-interval", One),
    ("fingerprint-mode", One),
    ("h11-max-incomplete-event-size", One),
    ("h11-max-header-count", One),
    ("ssl-ca-certs", One),
    ("ssl-certfile", One),
    ("ssl-keyfile", One),
    ("ssl-cert-reqs", One),
    ("enable-ssl-refresh", Nothing),
    // Logs and traces
    ("uvicorn-log-level", One),
    ("disable-uvicorn-access-log", Nothing),
    ("disable-access-log-for-endpoints", One),
    ("log-config-file", One),
    ("enable-log-requests", Nothing),
    ("enable-log-outputs", Nothing),
    ("disable-log-requests", Nothing),
    ("disable-log-stats", Nothing),
    ("max-log-len", One),
    ("otlp-traces-endpoint", One),
    ("collect-detailed-traces", Many),
    ("show-hidden-metrics-for-version", One),
    ("kv-cache-metrics", Nothing),
];

/// The command with these flags added, hidden from its help.
#[must_use]
pub fn add(command: Command) -> Command {
    FLAGS.iter().fold(command, |command, (name, takes)| {
        let flag = Arg::new(*name).long(*name).hide(true);
        match takes {
            One => command.arg(flag.action(ArgAction::Set).allow_hyphen_values(true)),
            Many => command.arg(flag.action(ArgAction::Append).num_args(1..)),
            Nothing => command.arg(flag.action(ArgAction::SetTrue)),
        }
    })
}

/// Whether a word is the `--no-` form of a flag without a value, which says what is so anyway.
#[must_use]
pub fn is_negation(word: &str) -> bool {
    let Some(name) = word.strip_prefix("--no-") else { return false };
    SERVED.contains(&name) || FLAGS.iter().any(|(known, takes)| *known == name && matches!(takes, Nothing))
}
