//! `muster dev`: a fleet to try things out on, in this process, on loopback.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use muster_agent::gpu::GpuSource;
use muster_api::Member;
use muster_cluster::leader::target_voters;
use muster_cluster::node::{Identity, JoinToken, Stage};
use muster_cluster::rows::{
    CreateCredential, CredentialFields, JoinKey, Origin, command::Body, credential_fields::Kind,
};
use muster_cluster::sealing::{SecretText, generate_key};
use muster_cluster::state::key_hash;
use muster_cluster::storage::{read_small, write_private};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use tokio_util::sync::CancellationToken;

use crate::cli::{ClientArguments, DevArguments, NodeArguments, Output};
use crate::client::Client;
use crate::config::{Config, Needs, Values, default_data_dir};
use crate::exit::Failure;
use crate::node::{
    Addresses, JoinWish, Loopback, Runtimes, Seed, Serving, Start, found_fleet, own_directory, preset_token, serve,
    stop_on_signal,
};
use crate::output::{print, raw};

/// What is written once every node is ready.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct Dev {
    admin_token: String,
    gateway_key: String,
    nodes: Vec<DevNode>,
}

#[derive(Debug, Serialize)]
struct DevNode {
    name: String,
    api: String,
    proxy: String,
    mesh: String,
}

/// What a fleet that was founded here needs when it is started again. Only the token is known before it is founded.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Kept {
    admin_token: String,
    gateway_key: Option<String>,
    recovery_key: Option<String>,
    /// Where the nodes listened: where they look for each other when they are started again.
    #[serde(default)]
    addresses: Vec<Addresses>,
}

impl Kept {
    fn read(file: &Path) -> Result<Option<Self>, Failure> {
        let Some(content) = read_small(file, 64 * 1024).map_err(failed)? else { return Ok(None) };
        let kept = serde_json::from_slice(&content);
        kept.map(Some).map_err(|error| failed(format!("{}: {error}", file.display())))
    }

    fn write(&self, file: &Path) -> Result<(), Failure> {
        let content = serde_json::to_vec_pretty(self).map_err(failed)?;
        write_private(file, &content).map_err(failed)
    }
}

/// The GPUs of each node, where nothing else is configured: how many, and the memory of each in bytes.
const DEV_GPUS: u32 = 2;
const DEV_GPU_MEMORY: u64 = 80 << 30;

const READY_FILE: &str = "dev.json";
const KEPT_FILE: &str = "dev-keys.json";

/// How often it is looked whether every node is ready.
const LOOK_AGAIN: Duration = Duration::from_millis(20);

/// How long the join token of this run lives, in milliseconds.
const TOKEN_TTL_MS: u64 = 10 * 60 * 1000;

fn failed(error: impl ToString) -> Failure {
    Failure::other(error.to_string())
}

/// Runs the fleet until it is told to stop.
pub fn run(arguments: &DevArguments, node: &NodeArguments, output: Output) -> Result<(), Failure> {
    let directory = node.data_dir.clone().unwrap_or_else(|| default_data_dir("muster-dev"));
    own_directory(&directory)?;
    // Whoever waits for it waits for this run.
    let ready = directory.join(READY_FILE);
    match std::fs::remove_file(&ready) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => return Err(failed(error)),
        _ => {}
    }
    let runtimes = Runtimes::start()?;
    let arguments_of_all = NodeArguments { data_dir: Some(directory.clone()), ..NodeArguments::default() };
    let base = to_try_out(Config::load(&arguments_of_all, None, Needs::Nothing)?.values);
    // Until here a signal ends the process at once; whatever it was about can be taken up again.
    let mut kept = keys(&directory, &values(&base, &directory, 0, 0, None), &runtimes)?;
    let nodes: Vec<_> = (0..usize::from(arguments.nodes))
        .map(|index| {
            let before = kept.addresses.get(index);
            let ports = base.ports.part(index, usize::from(arguments.nodes));
            Values { ports, ..values(&base, &directory, arguments.base_port, index, before) }
        })
        .collect();
    let outcome = runtimes.http().block_on(async {
        let stop = CancellationToken::new();
        stop_on_signal(stop.clone())?;
        let mut started = Vec::new();
        let starting = tokio::select! {
            outcome = start(nodes, &runtimes, &stop, &mut started) => outcome,
            () = stop.cancelled() => Ok(()),
        };
        let announced = async {
            starting?;
            if stop.is_cancelled() {
                return Ok(());
            }
            kept.addresses = started.iter().map(|(_, serving)| serving.addresses).collect();
            kept.write(&directory.join(KEPT_FILE))?;
            let gateway_key = match (kept.gateway_key.clone(), started.first()) {
                (Some(key), _) => key,
                (None, Some((_, first))) => {
                    replace_gateway_key(kept.clone(), first.addresses.api, directory.join(KEPT_FILE)).await?
                }
                (None, None) => return Err(failed("no node has started")),
            };
            announce(&kept.admin_token, &gateway_key, &started, &ready, output)
        };
        let mut outcome = announced.await;
        if outcome.is_err() {
            stop.cancel();
        }
        for (_, serving) in started {
            let ended = serving.ended().await;
            // A fleet with a node less is no fleet to try things out on.
            stop.cancel();
            outcome = outcome.and(ended);
        }
        outcome
    });
    runtimes.end();
    outcome
}

/// What is not configured is simulated: GPUs, and the engine if the simulator lies beside this program. Models may come from this
/// machine: whoever tries it out has nothing to hide from itself.
fn to_try_out(mut base: Values) -> Values {
    base.pull_loopback = true;
    if base.gpus == GpuSource::Auto {
        base.gpus = GpuSource::Sim { count: DEV_GPUS, memory: DEV_GPU_MEMORY };
    }
    let beside = std::env::current_exe().ok().map(|program| program.with_file_name("muster-sim"));
    if let Some(simulator) = beside.filter(|simulator| base.engine_sim == PathBuf::new() && simulator.is_file()) {
        base.engine_sim = simulator;
    }
    base
}

fn values(base: &Values, directory: &Path, base_port: u16, index: usize, before: Option<&Addresses>) -> Values {
    let name = format!("node-{}", index + 1);
    let step = u16::try_from(index * 10).unwrap_or(0);
    let port = |port: u16| SocketAddr::from(([127, 0, 0, 1], port));
    let below = |distance: u16| port(base_port.saturating_sub(distance).saturating_add(step));
    let Addresses { api, proxy, mesh, .. } = match (base_port, before) {
        // Where they were before: that is where they look for each other.
        (0, Some(before)) => *before,
        (0, None) => Addresses { api: port(0), proxy: port(0), mesh: port(0), loopback: Loopback::default() },
        (..) => Addresses { api: below(0), proxy: below(4000), mesh: below(54), loopback: Loopback::default() },
    };
    Values { data_dir: directory.join(&name), name, api, proxy, mesh, ..base.clone() }
}

/// Starts the nodes, lets the new ones join the first, and waits until all are ready.
async fn start(
    nodes: Vec<Values>,
    runtimes: &Runtimes,
    stop: &CancellationToken,
    started: &mut Vec<(String, Serving)>,
) -> Result<(), Failure> {
    let mut wish: Option<JoinWish> = None;
    // Those that belong to the fleet already are started first: together they may be what it needs to have a leader.
    let (members, new): (Vec<_>, Vec<_>) =
        nodes.into_iter().partition(|values| values.data_dir.join("node.json").exists());
    for values in members {
        started.push((values.name.clone(), serve(values, Start::default(), runtimes, stop.clone()).await?));
    }
    for (_, serving) in started.iter_mut() {
        serving.started().await?;
    }
    for values in new {
        if wish.is_none()
            && let Some((_, first)) = started.first()
        {
            wish = Some(invite(first).await?);
        }
        let name = values.name.clone();
        let start = Start { join: wish.clone(), ..Start::default() };
        let mut serving = serve(values, start, runtimes, stop.clone()).await?;
        // One after the other, so that the numbers that they get are those in their names.
        let outcome = serving.started().await;
        started.push((name, serving));
        outcome?;
    }
    while !started.iter().all(|(_, serving)| serving.member().is_some_and(|member| is_ready(&member))) {
        tokio::time::sleep(LOOK_AGAIN).await;
    }
    Ok(())
}

fn is_ready(member: &Member) -> bool {
    let status = member.consensus.status();
    let nodes = member.consensus.local().nodes().map_or(0, |nodes| nodes.len());
    let voters = status.voters.iter().flatten().count();
    let settled = status.voters.len() == 1 && voters >= target_voters(nodes) && nodes > 0;
    settled && status.leader.is_some() && status.stopped.is_none()
}

/// A token of the first node, with which the others join.
async fn invite(first: &Serving) -> Result<JoinWish, Failure> {
    let member = first.member().ok_or_else(|| failed("the first node does not run"))?;
    let secret = generate_key().map_err(failed)?;
    let fields = CredentialFields {
        label: "muster dev".to_owned(),
        sha256: key_hash(secret.reveal()).to_vec().into(),
        ttl_ms: Some(TOKEN_TTL_MS),
        kind: Some(Kind::Join(JoinKey { uses_left: None })),
        ..CredentialFields::default()
    };
    let origin = Origin { principal: "local".to_owned(), source: "muster dev".to_owned(), ..Origin::default() };
    let command = Body::CreateCredential(CreateCredential { fields: Some(fields) });
    member.consensus.propose(origin, command).await.map_err(failed)?;
    let token = JoinToken::new(&member.replica.identity.ca_certificate, secret);
    Ok(JoinWish { seeds: vec![Seed::Address(first.addresses.mesh.to_string())], token })
}

/// The keys of the fleet in this directory, which is founded if there is none. What a crash has interrupted is taken up again.
fn keys(directory: &Path, values: &Values, runtimes: &Runtimes) -> Result<Kept, Failure> {
    let file = directory.join(KEPT_FILE);
    let founded = is_member(&values.data_dir)?;
    let kept = begin(&file, founded)?;
    if founded {
        return Ok(kept);
    }
    let token = SecretText::new(kept.admin_token.clone());
    let secrets = found_fleet(values, runtimes, Some(token))?;
    let (gateway_key, recovery_key) = (Some(secrets.gateway_key), Some(secrets.recovery_key));
    let kept = Kept { gateway_key, recovery_key, ..kept };
    kept.write(&file)?;
    Ok(kept)
}

fn is_member(node: &Path) -> Result<bool, Failure> {
    let identity = Identity::load(node).map_err(failed)?;
    Ok(identity.is_some_and(|identity| identity.stage == Stage::Member))
}

/// The administrator's token is on the disk before it is used: with it everything else can be had again.
fn begin(file: &Path, founded: bool) -> Result<Kept, Failure> {
    if let Some(kept) = Kept::read(file)? {
        return Ok(kept);
    }
    if founded {
        let directory = file.parent().unwrap_or(file).display();
        return Err(failed(format!(
            "{} is gone, and with it the keys; delete {directory} to begin anew",
            file.display()
        )));
    }
    let token = preset_token()?.map_or_else(generate_key, Ok).map_err(failed)?;
    let kept =
        Kept { admin_token: token.reveal().to_owned(), gateway_key: None, recovery_key: None, addresses: Vec::new() };
    kept.write(file)?;
    Ok(kept)
}

/// Makes a new key for the gateway of a fleet whose first one nobody has seen, and keeps it.
async fn replace_gateway_key(kept: Kept, api: SocketAddr, file: PathBuf) -> Result<String, Failure> {
    let making = tokio::task::spawn_blocking(move || {
        let (endpoint, token) = (Some(format!("http://{api}")), Some(kept.admin_token.clone()));
        let client = Client::new(&ClientArguments { endpoint, token }, Path::new(""))?;
        let body = json!({ "kind": "gateway", "label": "gateway key of muster dev" });
        let answer = client.post("/api/credentials", &body)?;
        let key = answer.get("key").and_then(Value::as_str).ok_or_else(|| failed("the node has made no key"))?;
        Kept { gateway_key: Some(key.to_owned()), ..kept }.write(&file)?;
        Ok(key.to_owned())
    });
    making.await.map_err(failed)?
}

fn announce(
    admin_token: &str,
    gateway_key: &str,
    started: &[(String, Serving)],
    ready: &Path,
    output: Output,
) -> Result<(), Failure> {
    let node = |(name, serving): &(String, Serving)| DevNode {
        name: name.clone(),
        api: format!("http://{}", serving.addresses.api),
        proxy: format!("http://{}", serving.addresses.proxy),
        mesh: format!("https://{}", serving.addresses.mesh),
    };
    let dev = Dev {
        admin_token: admin_token.to_owned(),
        gateway_key: gateway_key.to_owned(),
        nodes: started.iter().map(node).collect(),
    };
    print(output, &dev, ["NODE", "API", "PROXY", "MESH"], |dev| {
        let row = |node: &DevNode| [node.name.clone(), node.api.clone(), node.proxy.clone(), node.mesh.clone()];
        dev.nodes.iter().map(row).collect()
    })?;
    if output == Output::Table {
        raw(hints(&dev).as_bytes())?;
    }
    let content = serde_json::to_vec_pretty(&dev).map_err(failed)?;
    write_private(ready, &content).map_err(failed)
}

fn hints(dev: &Dev) -> String {
    let api = |index: usize| dev.nodes.get(index).or(dev.nodes.first()).map_or("", |node| node.api.as_str());
    let (first, second, third) = (api(0), api(1), api(2));
    // As it was called: it need not stand on the path.
    let muster = std::env::args().next().unwrap_or_else(|| "muster".to_owned());
    let Dev { admin_token, gateway_key, .. } = dev;
    format!(
        "\nadmin token  {admin_token}\ngateway key  {gateway_key}\n\nTry, in another terminal:\n\n  \
         export MUSTER_ENDPOINT={first} MUSTER_TOKEN={admin_token}\n  \
         {muster} models add llama --model-id llama3.2 --base-url http://127.0.0.1:11434/v1\n  \
         {muster} --endpoint {second} status\n  \
         curl {third}/v1/chat/completions -H 'Authorization: Bearer {gateway_key}' \\\n    \
         -d '{{\"model\": \"llama\", \"messages\": [{{\"role\": \"user\", \"content\": \"Hello\"}}]}}'\n\n"
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::scratch::Scratch;

    #[test]
    fn a_founding_that_was_interrupted_goes_on_with_the_same_token() {
        let scratch = Scratch::new("resumed");
        let file = scratch.path().join(KEPT_FILE);
        let first = begin(&file, false).expect("a token");
        for founded in [false, true] {
            let again = begin(&file, founded).expect("the token is kept");
            assert_eq!((again.admin_token, again.gateway_key), (first.admin_token.clone(), None));
        }
    }

    #[test]
    fn a_fleet_without_its_keys_is_named() {
        let scratch = Scratch::new("lost");
        let error = begin(&scratch.path().join(KEPT_FILE), true).expect_err("nobody has the keys").to_string();
        assert!(error.contains(&format!("delete {} ", scratch.path().display())), "{error}");
        assert!(!scratch.path().join(KEPT_FILE).exists(), "nothing that would pass for a token");
    }
}
