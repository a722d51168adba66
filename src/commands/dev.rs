//! `muster dev`: a fleet to try things out on, in this process, on loopback.

use std::path::Path;

use muster_cluster::storage::{make_directory, read_small, write_private};
use serde::{Deserialize, Serialize};
use tokio_util::sync::CancellationToken;

use crate::cli::{DevArguments, NodeArguments, Output};
use crate::config::{Config, Values, default_data_dir};
use crate::exit::Failure;
use crate::node::{Runtimes, found_fleet, serve, stop_on_signal};
use crate::output::print;

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
}

/// What a fleet that was founded here needs when it is started again.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Kept {
    admin_token: String,
    gateway_key: String,
    recovery_key: String,
}

const READY_FILE: &str = "dev.json";
const KEPT_FILE: &str = "dev-keys.json";

fn failed(error: impl ToString) -> Failure {
    Failure::other(error.to_string())
}

/// Runs the fleet until it is told to stop.
pub fn run(arguments: &DevArguments, node: &NodeArguments, output: Output) -> Result<(), Failure> {
    let directory = node.data_dir.clone().unwrap_or_else(|| default_data_dir("muster-dev"));
    make_directory(&directory).map_err(failed)?;
    // Whoever waits for it waits for this run.
    let ready = directory.join(READY_FILE);
    match std::fs::remove_file(&ready) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => return Err(failed(error)),
        _ => {}
    }
    let runtimes = Runtimes::start()?;
    let values = Values {
        data_dir: directory.join("node-1"),
        name: "node-1".to_owned(),
        api: ([127, 0, 0, 1], arguments.base_port).into(),
        ..Config::load(&NodeArguments::default(), None)?.values
    };
    let kept = keys(&directory, &values, &runtimes)?;
    runtimes.http().block_on(async {
        let stop = CancellationToken::new();
        let again = stop_on_signal(stop.clone())?;
        let mut serving = serve(values.clone(), &runtimes, stop.clone()).await?;
        tokio::select! {
            started = serving.started() => started?,
            () = stop.cancelled() => return serving.ended().await,
        }
        let nodes = vec![DevNode { name: values.name, api: format!("http://{}", serving.address) }];
        let dev = Dev { admin_token: kept.admin_token, gateway_key: kept.gateway_key, nodes };
        announce(&dev, &ready, output)?;
        tokio::select! {
            ended = serving.ended() => ended,
            _ = again => Err(Failure::other("stopped before everything was finished")),
        }
    })
}

/// The keys of the fleet in this directory, which is founded if there is none.
fn keys(directory: &Path, values: &Values, runtimes: &Runtimes) -> Result<Kept, Failure> {
    let file = directory.join(KEPT_FILE);
    if let Some(content) = read_small(&file, 64 * 1024).map_err(failed)? {
        return serde_json::from_slice(&content).map_err(|error| failed(format!("{}: {error}", file.display())));
    }
    let secrets = found_fleet(values, runtimes)?;
    let kept =
        Kept { admin_token: secrets.admin_token, gateway_key: secrets.gateway_key, recovery_key: secrets.recovery_key };
    let content = serde_json::to_vec_pretty(&kept).map_err(failed)?;
    write_private(&file, &content).map_err(failed)?;
    Ok(kept)
}

fn announce(dev: &Dev, ready: &Path, output: Output) -> Result<(), Failure> {
    print(output, dev, ["NODE", "API"], |dev| {
        dev.nodes.iter().map(|node| [node.name.clone(), node.api.clone()]).collect()
    })?;
    if output == Output::Table {
        let api = dev.nodes.first().map_or("", |node| node.api.as_str());
        println!("\nadmin token  {}\ngateway key  {}\n", dev.admin_token, dev.gateway_key);
        println!("Try, in another terminal:\n");
        println!("  export MUSTER_ENDPOINT={api} MUSTER_TOKEN={}", dev.admin_token);
        println!("  muster models add llama --model-id llama3.2 --base-url http://127.0.0.1:11434/v1");
        println!("  muster models list");
        println!("  curl -H \"x-api-key: $MUSTER_TOKEN\" {api}/api/cluster\n");
    }
    let content = serde_json::to_vec_pretty(dev).map_err(failed)?;
    write_private(ready, &content).map_err(failed)
}
