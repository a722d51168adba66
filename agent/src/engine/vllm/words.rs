//! What vLLM's log tells of phases and failures. The words are those of vLLM 0.32 and of versions before it; where they change,
//! progress and reasons are lost, and nothing else.

use crate::engine::failure::FailureClass;
use crate::engine::phase::Phase;

/// How much of a line is looked at, in bytes.
const LOOKED_AT: usize = 4096;

/// The phases and what lines contain in them, the last phase first.
const PHASES: [(Phase, &[&str]); 4] = [
    (Phase::Ready, &["Application startup complete", "Uvicorn running on"]),
    (
        Phase::Compiling,
        &[
            "Capturing CUDA graph",
            "torch.compile",
            "Graph capturing finished",
            "Warming up model for the compilation",
            "Warming up done",
            "saved AOT compiled function",
            "KV cache size: ",
            "init engine (profile",
        ],
    ),
    (Phase::LoadingWeights, &["Loading weights", "checkpoint shards", "Loading safetensors", "Starting to load model"]),
    (Phase::Downloading, &["Downloading"]),
];

/// Lines that repeat the whole configuration, whatever words are in it.
const CONFIGURATION: [&str; 2] = ["non-default args", "Initializing a V1 LLM engine"];

/// The classes and what lines contain, in lower case. A line shows a class if all parts of one of its patterns are in it.
const FAILURES: [(FailureClass, &[&[&str]]); 11] = [
    (
        FailureClass::GpuOom,
        &[
            &["cuda out of memory"],
            &["hip out of memory"],
            &["outofmemoryerror"],
            &["cuda error: out of memory"],
            &["cuda_error_out_of_memory"],
            &["cublas_status_alloc_failed"],
            &["on startup is less than desired gpu memory utilization"],
        ],
    ),
    (
        FailureClass::KvCacheTooSmall,
        &[
            &["no available memory for the cache blocks"],
            &["larger than the maximum number of tokens that can be stored in kv cache"],
            &["larger than the available kv cache memory"],
        ],
    ),
    (
        FailureClass::NoGpu,
        &[
            &["failed to infer device type"],
            &["device type not inferred"],
            &["no cuda runtime is found"],
            // vLLM's own `0 active driver(s) found` is no failure.
            &["0 active drivers"],
            &["could not select device driver"],
            &["no cuda gpus are available"],
            &["no cuda-capable device is detected"],
            &["found no nvidia driver"],
        ],
    ),
    (FailureClass::ShmTooSmall, &[&["insufficient space in /dev/shm"], &["no space left on device", "/dev/shm"]]),
    (
        FailureClass::HfAuth,
        &[
            &["401 client error"],
            &["403 client error"],
            &["gatedrepoerror"],
            &["cannot access gated repo"],
            // The hub's word for a repository that does not exist is `a private or gated repo`.
            &["trying to access a gated repo"],
            &["access to model", "is restricted"],
        ],
    ),
    (
        FailureClass::HubUnreachable,
        &[
            &["localentrynotfounderror"],
            &["offlinemodeisenabled"],
            &["cannot find an appropriate cached snapshot folder"],
            &["couldn't connect to 'https://huggingface.co'"],
            &["failed to resolve 'huggingface.co'"],
        ],
    ),
    (
        FailureClass::ModelNotFound,
        &[
            &["repositorynotfounderror"],
            &["repository not found"],
            &["revisionnotfounderror"],
            &["entrynotfounderror"],
            &["404 client error"],
            // vLLM takes a directory that is not there for a name at the hub.
            &["repo id must be in the form"],
            &["hfvalidationerror"],
            &["invalid repository id or local directory"],
            &["is not a valid model identifier"],
            &["does not appear to have a file named"],
            &["cannot find any model weights"],
            &["no such file or directory", "config.json"],
        ],
    ),
    (FailureClass::PortConflict, &[&["address already in use"]]),
    (FailureClass::DiskFull, &[&["no space left on device"]]),
    (FailureClass::SleepUnsupported, &[&["sleep mode is not supported"]]),
    (
        FailureClass::BadArgs,
        &[
            &["unrecognized arguments"],
            &["error: argument "],
            &["error: invalid value"],
            &["expected one argument"],
            &["invalid choice"],
            &["arguments are required"],
            &["validation error", " for "],
            // With the parenthesis of a warning behind it, it is only a part that is not used.
            &["modulenotfounderror: "],
        ],
    ),
];

/// As much of a line as is looked at.
fn head(line: &str) -> &str {
    &line[..line.floor_char_boundary(LOOKED_AT)]
}

/// How far vLLM has come, if this line says so.
pub(super) fn phase(line: &str) -> Option<Phase> {
    let line = head(line);
    if CONFIGURATION.iter().any(|words| line.contains(words)) {
        return None;
    }
    PHASES.iter().find(|(_, words)| words.iter().any(|words| line.contains(words))).map(|(phase, _)| *phase)
}

/// What has gone wrong, if this line says so.
pub(super) fn failure(line: &str) -> Option<FailureClass> {
    let line = head(line).to_ascii_lowercase();
    let shows = |patterns: &[&[&str]]| patterns.iter().any(|parts| parts.iter().all(|part| line.contains(part)));
    FAILURES.iter().find(|(_, patterns)| shows(patterns)).map(|(class, _)| *class)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_of_a_start_tell_its_phases() {
        for (line, expected) in [
            ("Downloading shards:  50%|#####     | 1/2", Some(Phase::Downloading)),
            ("(Worker pid=9) INFO Starting to load model /models/tiny...", Some(Phase::LoadingWeights)),
            ("Loading safetensors checkpoint shards:  50% Completed | 1/2", Some(Phase::LoadingWeights)),
            ("Loading pt checkpoint shards: 100% Completed | 1/1", Some(Phase::LoadingWeights)),
            ("(Worker pid=9) INFO Loading weights took 0.01 seconds", Some(Phase::LoadingWeights)),
            ("(EngineCore pid=7) INFO CPU KV cache size: 4,194,304 tokens", Some(Phase::Compiling)),
            ("(EngineCore pid=7) INFO GPU KV cache size: 4,304 tokens", Some(Phase::Compiling)),
            ("Warming up model for the compilation...", Some(Phase::Compiling)),
            ("torch.compile takes 6.12 s in total", Some(Phase::Compiling)),
            ("Capturing CUDA graphs (decode, FULL): 10%", Some(Phase::Compiling)),
            ("Graph capturing finished in 5 secs", Some(Phase::Compiling)),
            ("init engine (profile, create kv cache, warmup model) took 2.71 s", Some(Phase::Compiling)),
            ("INFO:     Application startup complete.", Some(Phase::Ready)),
            ("INFO:     Uvicorn running on http://0.0.0.0:8000", Some(Phase::Ready)),
            ("(APIServer pid=1) INFO non-default args: {'model': 'torch.compile'}", None),
            ("Initializing a V1 LLM engine (v0.32.0) with config: torch.compile", None),
            ("Starting vLLM server on http://127.0.0.1:18501", None),
            ("", None),
        ] {
            assert_eq!(phase(line), expected, "{line}");
        }
    }

    #[test]
    fn the_last_words_of_a_failed_start_tell_why() {
        use FailureClass::*;
        for (line, expected) in [
            ("torch.OutOfMemoryError: CUDA out of memory. Tried to allocate 2.00 GiB.", GpuOom),
            ("RuntimeError: CUDA error: out of memory", GpuOom),
            (
                "ValueError: Free memory on device cuda:0 (12.18/23.56 GiB) on startup is less than desired GPU memory \
                 utilization (0.92, 21.67 GiB).",
                GpuOom,
            ),
            (
                "ValueError: No available memory for the cache blocks. Try increasing `gpu_memory_utilization`",
                KvCacheTooSmall,
            ),
            (
                "ValueError: The model's max seq len (131072) is larger than the maximum number of tokens that can be stored \
                 in KV cache (8192).",
                KvCacheTooSmall,
            ),
            (
                "ValueError: To serve at least one request with the model's max seq len (40960), (4.38 GiB KV cache is needed, \
                 which is larger than the available KV cache memory (1.0 GiB).",
                KvCacheTooSmall,
            ),
            ("RuntimeError: Failed to infer device type, please set the environment variable", NoGpu),
            ("RuntimeError: 0 active drivers ([]). There should only be one.", NoGpu),
            ("UserWarning: No CUDA runtime is found, using CUDA_HOME='/usr/local/cuda'", NoGpu),
            ("could not select device driver \"\" with capabilities: [[gpu]]", NoGpu),
            (
                "RuntimeError: Insufficient space in /dev/shm for shared-memory allocation: 160 MiB required, 64 MiB free.",
                ShmTooSmall,
            ),
            ("OSError: [Errno 28] No space left on device: '/dev/shm/psm_1'", ShmTooSmall),
            ("OSError: [Errno 28] No space left on device: '/root/.cache/x'", DiskFull),
            ("huggingface_hub.errors.GatedRepoError: 401 Client Error. Cannot access gated repo for url", HfAuth),
            ("requests.exceptions.HTTPError: 403 Client Error: Forbidden for url", HfAuth),
            ("OSError: You are trying to access a gated repo.", HfAuth),
            ("Access to model meta-llama/Llama-3 is restricted and you are not in the authorized list.", HfAuth),
            ("LocalEntryNotFoundError: Cannot find an appropriate cached snapshot folder", HubUnreachable),
            ("OSError: We couldn't connect to 'https://huggingface.co' to load the files", HubUnreachable),
            (
                "HFValidationError: Repo id must be in the form 'repo_name' or 'namespace/repo_name': '/models/nope'",
                ModelNotFound,
            ),
            ("huggingface_hub.errors.RepositoryNotFoundError: 404 Client Error.", ModelNotFound),
            ("If you are trying to access a private or gated repo, Repository Not Found", ModelNotFound),
            ("OSError: org/m does not appear to have a file named config.json.", ModelNotFound),
            ("RuntimeError: Cannot find any model weights with `org/m`", ModelNotFound),
            ("OSError: [Errno 98] error while attempting to bind: address already in use", PortConflict),
            ("Value error, Sleep mode is not supported on current platform. [type=value_error]", SleepUnsupported),
            ("vllm: error: unrecognized arguments: --no-such-flag 1", BadArgs),
            ("muster-sim: error: unrecognized arguments: --no-such-flag 1", BadArgs),
            ("vllm: error: argument --dtype: invalid choice: 'x'", BadArgs),
            ("pydantic_core._pydantic_core.ValidationError: 1 validation error for ModelConfig", BadArgs),
            ("ModuleNotFoundError: No module named 'flash_attn'", BadArgs),
        ] {
            assert_eq!(failure(line), Some(expected), "{line}");
            assert_eq!(failure(&line.to_uppercase()), Some(expected), "{line}");
        }
    }

    #[test]
    fn lines_of_a_sound_start_tell_no_failure() {
        for line in [
            "INFO Triton is installed but 0 active driver(s) found (expected 1). Disabling Triton.",
            "WARNING Failed to import from vllm._C with ModuleNotFoundError(\"No module named 'vllm._C'\")",
            "INFO:     127.0.0.1:1 - \"POST /v1/chat/completions HTTP/1.1\" 401 Unauthorized",
            "(APIServer pid=1) RuntimeError: Engine core initialization failed. See root cause above.",
            "EngineDeadError: EngineCore encountered an issue.",
            "",
        ] {
            assert_eq!(failure(line), None, "{line}");
        }
    }

    #[test]
    fn only_the_head_of_an_endless_line_is_looked_at() {
        let line = format!("{}Application startup complete CUDA out of memory", "ü".repeat(LOOKED_AT));
        assert_eq!((phase(&line), failure(&line)), (None, None));
    }
}
