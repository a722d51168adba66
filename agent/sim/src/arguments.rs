//! The command line: vLLM's spelling where vLLM has the flag, and the simulator's own pace and faults.

use std::ffi::OsString;
use std::net::{AddrParseError, IpAddr, Ipv4Addr};
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use clap::error::{ContextKind, ContextValue, ErrorKind};
use clap::{CommandFactory, FromArgMatches, Parser};

use crate::ignored;
use crate::lora::Adapter;

/// Speaks vLLM's HTTP API without a model. A token is a word, and the words of an answer follow from the prompt alone.
#[derive(Clone, Debug, Parser)]
#[command(name = "muster-sim", version, args_override_self = true)]
pub struct Arguments {
    /// The model's name. It wins over --model, as in vLLM.
    pub model_tag: Option<String>,
    /// The model's name.
    #[arg(long, value_name = "NAME", default_value = "Qwen/Qwen3-0.6B")]
    pub model: String,
    /// The names that requests may use instead of the model's. Answers and metrics carry the first.
    #[arg(long, value_name = "NAME", num_args = 1..)]
    pub served_model_name: Vec<String>,
    /// The IP address to listen on, or `localhost`. Other names are not looked up.
    #[arg(long, value_name = "ADDRESS", default_value = "127.0.0.1", value_parser = host)]
    pub host: IpAddr,
    /// The port to listen on; 0 takes a free one.
    #[arg(long, value_name = "PORT", default_value_t = 8000)]
    pub port: u16,
    /// A Unix socket to listen on instead. Its file must not exist yet, and is left behind.
    #[arg(long, value_name = "PATH")]
    pub uds: Option<PathBuf>,
    /// The keys of which one must come with requests to /v1, /v2, /inference and /cohere.
    #[arg(long, value_name = "KEY", num_args = 1.., env = "VLLM_API_KEY", hide_env_values = true)]
    pub api_key: Vec<String>,
    /// The context's length in tokens.
    #[arg(long, value_name = "TOKENS", default_value_t = 4096)]
    #[arg(value_parser = clap::value_parser!(u32).range(1..=16_777_216))]
    pub max_model_len: u32,
    /// Requests that generate at the same time. More of them wait.
    #[arg(long, value_name = "N", default_value_t = 256, value_parser = clap::value_parser!(u32).range(1..=65_536))]
    pub max_num_seqs: u32,
    /// Requests, generating and waiting together, beyond which the next is answered 503.
    #[arg(long, value_name = "N")]
    pub max_num_queued_reqs: Option<u32>,
    /// Seconds that requests under way get to end after SIGTERM. With 0 they freeze, as those of vLLM do.
    #[arg(long, value_name = "SECONDS", default_value = "0", value_parser = seconds)]
    pub shutdown_timeout: Duration,
    /// Lets /sleep free the memory that is claimed. Without it /sleep answers the same and frees none, as in vLLM.
    #[arg(long)]
    pub enable_sleep_mode: bool,
    /// Serves the adapters of --lora-modules.
    #[arg(long)]
    pub enable_lora: bool,
    /// Adapters, each as NAME=PATH or as a JSON object with `name` and `path`.
    #[arg(long, value_name = "ADAPTER", num_args = 1..)]
    pub lora_modules: Vec<Adapter>,
    /// Makes /load count the requests under way.
    #[arg(long)]
    pub enable_server_load_tracking: bool,
    /// Repeats a request's X-Request-Id, or the one made for it, in its answer.
    #[arg(long)]
    pub enable_request_id_headers: bool,
    /// Puts usage on every chunk of every stream.
    #[arg(long)]
    pub enable_force_include_usage: bool,
    /// Accepts tools in requests, and never calls one.
    #[arg(long)]
    pub enable_auto_tool_choice: bool,

    /// Seconds of loading, during which connections are refused.
    #[arg(long, value_name = "SECONDS", default_value = "0", value_parser = seconds, help_heading = "Simulation")]
    pub load_seconds: Duration,
    /// Tokens per second of each request; 0 is as fast as possible.
    #[arg(long, value_name = "RATE", default_value = "0", value_parser = rate, help_heading = "Simulation")]
    pub tokens_per_second: f64,
    /// Milliseconds to a request's first token, once it no longer waits.
    #[arg(long, value_name = "MS", default_value_t = 0, help_heading = "Simulation")]
    #[arg(value_parser = clap::value_parser!(u64).range(..=3_600_000))]
    pub ttft_ms: u64,
    /// Tokens of an answer to a request without a limit. It ends with `stop`, one that meets its limit with `length`.
    #[arg(long, value_name = "N", default_value_t = 16, help_heading = "Simulation")]
    #[arg(value_parser = clap::value_parser!(u32).range(1..))]
    pub tokens: u32,
    /// Memory that the engine says it holds while it is awake. None is allocated.
    #[arg(long, value_name = "MIB", default_value_t = 0, help_heading = "Simulation")]
    #[arg(value_parser = clap::value_parser!(u64).range(..=1 << 40))]
    pub gpu_memory_mib: u64,
    /// Serves embeddings instead of generation.
    #[arg(long, help_heading = "Simulation")]
    pub pooling: bool,

    /// Fails at the end of loading, with exit code 1.
    #[arg(long, help_heading = "Faults")]
    pub fail_start: bool,
    /// The engine dies at the N-th inference request; the process follows some seconds later with exit code 1.
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u64).range(1..), help_heading = "Faults")]
    pub fail_after: Option<u64>,
    /// Cuts the connection of a stream after N chunks.
    #[arg(long, value_name = "N", help_heading = "Faults")]
    pub cut_stream_after: Option<u64>,
    /// Answers every inference request with this status.
    #[arg(long, value_name = "CODE", value_parser = clap::value_parser!(u16).range(400..=599), help_heading = "Faults")]
    pub error_status: Option<u16>,
}

/// Why a command line is not served.
#[derive(Debug)]
pub enum Refusal {
    /// Flags that vLLM does not have either.
    Unrecognized(Vec<String>),
    /// Anything else, and the texts that were asked for, as by --help.
    Usage(clap::Error),
}

impl Refusal {
    /// Says it where it belongs, and the exit code.
    #[must_use]
    pub fn report(&self) -> ExitCode {
        match self {
            Self::Unrecognized(words) => {
                crate::say(&mut std::io::stderr(), &unrecognized(words));
                ExitCode::from(2)
            }
            Self::Usage(error) => {
                let _ = error.print();
                u8::try_from(error.exit_code()).map_or(ExitCode::FAILURE, ExitCode::from)
            }
        }
    }
}

fn unrecognized(words: &[String]) -> String {
    format!("muster-sim: error: unrecognized arguments: {}", words.join(" "))
}

/// The arguments of a command line without the program's name. A leading `serve` is skipped, so that it may follow
/// the same words as vLLM's.
///
/// # Errors
/// When they are not to be served; nothing is printed.
pub fn parse(words: impl IntoIterator<Item = OsString>) -> Result<Arguments, Refusal> {
    let means_nothing = |word: &OsString| word.to_str().is_some_and(ignored::is_negation);
    let mut left: Vec<OsString> = words.into_iter().filter(|word| !means_nothing(word)).map(long_spelling).collect();
    if left.first().is_some_and(|word| word == "serve") {
        left.remove(0);
    }
    let mut unknown = Vec::new();
    loop {
        let command = ignored::add(Arguments::command()).no_binary_name(true);
        match command.try_get_matches_from(&left).and_then(|matches| Arguments::from_arg_matches(&matches)) {
            Ok(arguments) if unknown.is_empty() => return Ok(arguments),
            Err(error) if error.kind() == ErrorKind::UnknownArgument => take_unknown(&error, &mut left, &mut unknown)?,
            Err(error) if unknown.is_empty() => return Err(Refusal::Usage(error)),
            // Like argparse: what is missing because of a word that was not understood is not the message.
            Ok(_) | Err(_) => return Err(Refusal::Unrecognized(unknown)),
        }
    }
}

/// Moves the word that clap did not know, and the values behind it, from one list to the other.
fn take_unknown(error: &clap::Error, left: &mut Vec<OsString>, unknown: &mut Vec<String>) -> Result<(), Refusal> {
    let Some(ContextValue::String(name)) = error.get(ContextKind::InvalidArg) else {
        return Err(Refusal::Unrecognized(unknown.clone()));
    };
    let is_it = |word: &OsString| {
        let word = word.to_string_lossy();
        word == *name || word.strip_prefix(name.as_str()).is_some_and(|rest| rest.starts_with('='))
    };
    let Some(at) = left.iter().position(is_it) else {
        unknown.push(name.clone());
        return Err(Refusal::Unrecognized(unknown.clone()));
    };
    let is_value = |word: &OsString| !word.to_string_lossy().starts_with('-');
    let values = left[at + 1..].iter().take_while(|word| name.starts_with('-') && is_value(word)).count();
    unknown.extend(left.drain(at..=at + values).map(|word| word.to_string_lossy().into_owned()));
    Ok(())
}

/// vLLM's short flags have several letters behind one dash, which clap would take apart.
fn long_spelling(word: OsString) -> OsString {
    let Some(text) = word.to_str() else { return word };
    let (name, value) = text.split_once('=').map_or((text, None), |(name, value)| (name, Some(value)));
    let Some((_, long)) = ignored::SHORT.iter().find(|(short, _)| *short == name) else { return word };
    value.map_or_else(|| (*long).into(), |value| format!("{long}={value}").into())
}

/// A static binary had better not look up names: glibc would load its libraries for that.
fn host(text: &str) -> Result<IpAddr, AddrParseError> {
    if text == "localhost" { Ok(Ipv4Addr::LOCALHOST.into()) } else { text.parse() }
}

fn seconds(text: &str) -> Result<Duration, String> {
    let seconds: f64 = text.parse().map_err(|_| "not a number of seconds".to_owned())?;
    match Duration::try_from_secs_f64(seconds) {
        Ok(duration) if duration <= Duration::from_secs(86_400) => Ok(duration),
        _ => Err("not between 0 and 86400 seconds".to_owned()),
    }
}

fn rate(text: &str) -> Result<f64, String> {
    match text.parse() {
        Ok(rate) if rate == 0.0 || (1e-3..=1e9).contains(&rate) => Ok(rate),
        _ => Err("neither 0 nor between 0.001 and 1e9".to_owned()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parsed(line: &str) -> Result<Arguments, Refusal> {
        parse(line.split(' ').filter(|word| !word.is_empty()).map(OsString::from))
    }

    fn unrecognized_in(line: &str) -> String {
        match parsed(line) {
            Err(Refusal::Unrecognized(words)) => unrecognized(&words),
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn the_command_is_sound() {
        ignored::add(Arguments::command()).debug_assert();
    }

    #[test]
    fn what_a_supervisor_starts_vllm_with_is_accepted() {
        let line = "serve llama --port 0 --gpu-memory-utilization 0.9 -tp 2 --dtype=bfloat16 --enforce-eager \
                    --served-model-name a b c --api-key k1 k2 --no-enable-prefix-caching --shutdown-timeout 2.5";
        let arguments = parsed(line).unwrap();
        assert_eq!(arguments.model_tag.as_deref(), Some("llama"));
        assert_eq!(arguments.served_model_name, ["a", "b", "c"]);
        assert_eq!(arguments.api_key, ["k1", "k2"]);
        assert_eq!(arguments.shutdown_timeout, Duration::from_millis(2500));
    }

    #[test]
    fn unknown_flags_are_named_with_their_values() {
        assert_eq!(
            unrecognized_in("--model x --no-such-flag 1 --port 0 --other=2"),
            "muster-sim: error: unrecognized arguments: --no-such-flag 1 --other=2"
        );
        assert_eq!(unrecognized_in("a b"), "muster-sim: error: unrecognized arguments: b");
    }

    #[test]
    fn values_out_of_range_are_usage_errors() {
        for line in
            ["--port x", "--max-model-len 0", "--tokens-per-second=-1", "--tokens-per-second=inf", "--fail-after 0"]
        {
            assert!(matches!(parsed(line), Err(Refusal::Usage(_))), "{line}");
        }
        for line in ["--shutdown-timeout=-1", "--load-seconds=nan", "--error-status 200", "--lora-modules nothing"] {
            assert!(matches!(parsed(line), Err(Refusal::Usage(_))), "{line}");
        }
    }

    #[test]
    fn the_last_of_a_repeated_flag_wins() {
        assert_eq!(parsed("--port 1 --port 2 --dtype a --dtype b").unwrap().port, 2);
    }
}
