//! vLLM's command line.

use muster_cluster::rows::{DeploymentSpec, LoraModule};
use muster_cluster::sealing::SecretText;
use serde_json::{Map, Value, json};

use crate::engine::command::{Command, CommandError, Order, engine_args};
use crate::engine::environment;
use crate::runtime::{Endpoint, EngineKind};

/// The flags that can be given by name. What else is given is ignored, except for `served_model_name` and
/// `disable_sleep_mode`, which are for Muster.
const FLAGS: [&str; 10] = [
    "max_model_len",
    "dtype",
    "quantization",
    "max_num_seqs",
    "enforce_eager",
    "trust_remote_code",
    "kv_cache_dtype",
    "swap_space",
    "revision",
    "seed",
];

/// Brings the routes that put the engine to sleep, and many others: only this machine may reach it.
const DEV_MODE: &str = "VLLM_SERVER_DEV_MODE";

/// Where vLLM keeps what it has compiled.
const CACHE_ROOT: &str = "VLLM_CACHE_ROOT";

/// With a key of its own, nobody but its owner could call the engine, Muster included.
const RESERVED: &str = "VLLM_API_KEY";

/// Largest integer that a float holds exactly.
const EXACT: f64 = 9_007_199_254_740_992.0;

/// The command line of an order.
pub(super) fn command(kind: EngineKind, order: &Order<'_>) -> Result<Command, CommandError> {
    let args = engine_args(order.spec)?;
    let pairs = order.environment.iter().map(|(name, value)| (name.clone(), value.clone()));
    let mut environment = environment::read(pairs.collect());
    if environment.iter().any(|(name, _)| name == RESERVED) {
        return Err(CommandError::Reserved(RESERVED));
    }
    let may_sleep = order.warm && args.get("disable_sleep_mode") != Some(&Value::Bool(true));
    if may_sleep {
        set(&mut environment, DEV_MODE, "1");
    }
    let dev_mode = environment.iter().any(|(name, value)| name == DEV_MODE && value.reveal() == "1");
    let can_sleep = may_sleep && dev_mode;
    if let Some(cache) = order.cache {
        set(&mut environment, CACHE_ROOT, cache.to_str().ok_or(CommandError::Path)?);
    }
    let mut line = Line::default();
    line.pair("--model", &order.spec.model_name);
    listen(&mut line, order.listen)?;
    line.pair("--gpu-memory-utilization", &share(order.spec));
    if can_sleep {
        line.word("--enable-sleep-mode");
    }
    if let Some(ranks) = order.spec.tensor_parallel_size {
        line.pair("--tensor-parallel-size", &ranks.to_string());
    }
    line.pair("--served-model-name", order.served_name);
    if let (EngineKind::Sim, Some(bytes)) = (kind, order.memory) {
        line.pair("--gpu-memory-mib", &(bytes >> 20).to_string());
    }
    named_flags(&mut line, &args);
    adapters(&mut line, &order.spec.lora_modules);
    line.0.extend(order.spec.extra_args.iter().cloned());
    Ok(Command { arguments: line.0, environment, can_sleep })
}

/// A command line as it grows.
#[derive(Default)]
struct Line(Vec<String>);

impl Line {
    fn word(&mut self, word: &str) {
        self.0.push(word.to_owned());
    }

    /// A flag and its value. A value that begins with a dash would be read as a flag if it stood alone.
    fn pair(&mut self, flag: &str, value: &str) {
        if value.starts_with('-') {
            self.0.push(format!("{flag}={value}"));
        } else {
            self.word(flag);
            self.word(value);
        }
    }
}

/// What the owner has set stays.
fn set(environment: &mut Vec<(String, SecretText)>, name: &str, value: &str) {
    if !environment.iter().any(|(set, _)| set == name) {
        environment.push((name.to_owned(), SecretText::new(value.to_owned())));
    }
}

fn listen(line: &mut Line, endpoint: &Endpoint) -> Result<(), CommandError> {
    match endpoint {
        Endpoint::Unix(path) => line.pair("--uds", path.to_str().ok_or(CommandError::Path)?),
        Endpoint::Tcp(address) => {
            line.pair("--host", &address.ip().to_string());
            line.pair("--port", &address.port().to_string());
        }
    }
    Ok(())
}

fn share(spec: &DeploymentSpec) -> String {
    (f64::from(spec.gpu_share_ppm.min(1_000_000)) / 1e6).to_string()
}

fn named_flags(line: &mut Line, args: &Map<String, Value>) {
    for name in FLAGS {
        let flag = format!("--{}", name.replace('_', "-"));
        match args.get(name) {
            Some(Value::Bool(true)) => line.word(&flag),
            Some(Value::String(text)) if !text.is_empty() => line.pair(&flag, text),
            Some(Value::Number(number)) => {
                // A flag that takes an integer does not take `4096.0`.
                let whole =
                    number.as_f64().filter(|value| number.is_f64() && value.fract() == 0.0 && value.abs() < EXACT);
                let text = whole.map_or_else(|| number.to_string(), |value| format!("{value:.0}"));
                line.pair(&flag, &text);
            }
            None | Some(_) => {}
        }
    }
}

fn adapters(line: &mut Line, modules: &[LoraModule]) {
    if modules.is_empty() {
        return;
    }
    line.word("--enable-lora");
    line.word("--lora-modules");
    for LoraModule { name, path } in modules {
        let plain = !name.starts_with('-') && !name.contains(['=', ',']) && !path.contains(['=', ',']);
        // vLLM splits the short form at its signs, whatever else they stand for.
        line.0.push(if plain { format!("{name}={path}") } else { json!({ "name": name, "path": path }).to_string() });
    }
}

#[cfg(test)]
mod tests {
    use std::net::SocketAddr;
    use std::path::{Path, PathBuf};

    use super::*;

    fn spec(engine_args: &str) -> DeploymentSpec {
        DeploymentSpec {
            model_name: "org/m".to_owned(),
            gpu_share_ppm: 500_000,
            engine_args: engine_args.to_owned(),
            ..DeploymentSpec::default()
        }
    }

    fn socket() -> Endpoint {
        Endpoint::Unix(PathBuf::from("/run/engine/socket"))
    }

    fn order<'a>(spec: &'a DeploymentSpec, listen: &'a Endpoint) -> Order<'a> {
        Order { spec, served_name: "alias", listen, warm: false, environment: Vec::new(), cache: None, memory: None }
    }

    fn line(spec: &DeploymentSpec) -> String {
        command(EngineKind::Vllm, &order(spec, &socket())).unwrap().arguments.join(" ")
    }

    fn variable(name: &str, value: &str) -> (String, SecretText) {
        (name.to_owned(), SecretText::new(value.to_owned()))
    }

    fn variables(command: &Command) -> Vec<(&str, &str)> {
        command.environment.iter().map(|(name, value)| (name.as_str(), value.reveal())).collect()
    }

    const BARE: &str = "--model org/m --uds /run/engine/socket --gpu-memory-utilization 0.5 --served-model-name alias";

    #[test]
    fn an_engine_is_told_its_model_its_address_its_share_and_its_name() {
        assert_eq!(line(&spec("")), BARE);
        let (spec, address) = (spec(""), Endpoint::Tcp(SocketAddr::from(([127, 0, 0, 1], 41_000))));
        let command = command(EngineKind::Vllm, &order(&spec, &address)).unwrap();
        assert_eq!(
            command.arguments.join(" "),
            "--model org/m --host 127.0.0.1 --port 41000 --gpu-memory-utilization 0.5 --served-model-name alias"
        );
        assert!(!command.can_sleep && command.environment.is_empty());
    }

    #[test]
    fn flags_by_name_are_given_as_their_values_say() {
        let given = r#"{"max_model_len":4096,"enforce_eager":true,"trust_remote_code":false,"seed":"","foo":1}"#;
        assert_eq!(line(&spec(given)), format!("{BARE} --max-model-len 4096 --enforce-eager"));
        let given = r#"{"dtype":null,"swap_space":4.5,"max_num_seqs":16.0,"served_model_name":"x","disable_sleep_mode":true,
                        "quantization":"awq","seed":-1,"revision":"--host=0.0.0.0","kv_cache_dtype":["fp8"]}"#;
        assert_eq!(
            line(&spec(given)),
            format!("{BARE} --quantization awq --max-num-seqs 16 --swap-space 4.5 --revision=--host=0.0.0.0 --seed=-1")
        );
    }

    #[test]
    fn what_was_added_comes_last_behind_adapters_and_ranks() {
        let module = |name: &str, path: &str| LoraModule { name: name.to_owned(), path: path.to_owned() };
        let spec = DeploymentSpec {
            tensor_parallel_size: Some(2),
            lora_modules: vec![module("a1", "org/a1"), module("--host", "0.0.0.0"), module("a2", "/x,y=z")],
            extra_args: vec!["--max-loras".to_owned(), "4".to_owned()],
            ..spec(r#"{"seed":7}"#)
        };
        let ends = "--tensor-parallel-size 2 --served-model-name alias --seed 7 --enable-lora --lora-modules a1=org/a1 \
                    {\"name\":\"--host\",\"path\":\"0.0.0.0\"} {\"name\":\"a2\",\"path\":\"/x,y=z\"} --max-loras 4";
        assert!(line(&spec).ends_with(ends), "{}", line(&spec));
    }

    #[test]
    fn a_warm_engine_can_sleep_unless_its_owner_has_switched_that_off() {
        let warm = |args: &str, environment| {
            let (spec, socket) = (spec(args), socket());
            let cache = Some(Path::new("/cache"));
            command(EngineKind::Vllm, &Order { warm: true, environment, cache, ..order(&spec, &socket) }).unwrap()
        };
        let able = |command: &Command| {
            assert_eq!(command.can_sleep, command.arguments.iter().any(|word| word == "--enable-sleep-mode"));
            command.can_sleep
        };
        let usual = warm("", Vec::new());
        assert!(able(&usual));
        assert_eq!(variables(&usual), [(DEV_MODE, "1"), (CACHE_ROOT, "/cache")]);
        let own_cache = warm(r#"{"disable_sleep_mode":false}"#, vec![variable(CACHE_ROOT, "'/mine'")]);
        assert!(able(&own_cache));
        assert_eq!(variables(&own_cache), [(CACHE_ROOT, "/mine"), (DEV_MODE, "1")]);
        let off = warm(r#"{"disable_sleep_mode":true}"#, Vec::new());
        assert!(!able(&off));
        assert_eq!(variables(&off), [(CACHE_ROOT, "/cache")]);
        assert!(!able(&warm("", vec![variable(DEV_MODE, "0")])));
    }

    #[test]
    fn only_the_simulator_is_told_its_memory() {
        let (spec, socket) = (spec(""), socket());
        let order = Order { memory: Some(3 << 30), ..order(&spec, &socket) };
        let line = |kind| command(kind, &order).unwrap().arguments.join(" ");
        assert_eq!(line(EngineKind::Vllm), BARE);
        assert_eq!(line(EngineKind::Sim), format!("{BARE} --gpu-memory-mib 3072"));
    }

    #[test]
    fn orders_that_make_no_command_are_refused_without_their_values() {
        let (spec, socket) = (spec(""), socket());
        let keyed = Order { environment: vec![variable("VLLM_API_KEY", "canary")], ..order(&spec, &socket) };
        let refused = command(EngineKind::Vllm, &keyed).unwrap_err();
        assert_eq!(refused, CommandError::Reserved("VLLM_API_KEY"));
        assert!(!format!("{keyed:?} {refused} {refused:?}").contains("canary"));
        let broken = DeploymentSpec { engine_args: "[]".to_owned(), ..spec.clone() };
        let refused = command(EngineKind::Vllm, &order(&broken, &socket)).unwrap_err();
        assert_eq!(refused, CommandError::EngineArgs);
    }
}
