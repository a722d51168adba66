//! `muster snapshot` and `muster operator recover`: the fleet's state as a file, and a fleet that begins again.

use std::path::Path;

use data_encoding::HEXLOWER;
use muster_cluster::node::{Reborn, recover, restore};
use muster_cluster::state::View;
use muster_cluster::storage::{SnapshotFile, read_small};
use serde::Serialize;

use crate::cli::{Output, RecoveryKeyArguments, SnapshotCommand};
use crate::client::Client;
use crate::config::Config;
use crate::exit::Failure;
use crate::node::{Addresses, Runtimes, node_options, own_directory};
use crate::output::print;

/// The longest file with a recovery key, in bytes.
const KEY_LIMIT: u64 = 4096;

fn failed(error: impl ToString) -> Failure {
    Failure::other(error.to_string())
}

/// What a snapshot holds.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct Inspected {
    fleet_id: String,
    generation: u64,
    feature_level: u32,
    /// The last entry of the log that is in it.
    index: u64,
    term: u64,
    nodes: usize,
    models: usize,
    records: usize,
    state_hash: String,
    bytes: u64,
    sha256: String,
}

/// Runs one of the commands that need no running node, or asks one.
pub fn run(
    command: &SnapshotCommand,
    config: &Config,
    client: impl FnOnce() -> Result<Client, Failure>,
    output: Output,
) -> Result<(), Failure> {
    match command {
        SnapshotCommand::Save { file } => {
            client()?.download("/api/cluster/snapshot", file)?;
            inspect(file, output)
        }
        SnapshotCommand::Inspect { file } => inspect(file, output),
        SnapshotCommand::Restore { file, key, .. } => {
            let key = recovery_key(key)?;
            own_directory(&config.values.data_dir)?;
            let runtimes = Runtimes::start()?;
            let options = options(config, &runtimes);
            let reborn = runtimes.raft().block_on(restore(options, file, key.trim()));
            runtimes.end();
            show(&reborn.map_err(failed)?, output)
        }
    }
}

/// Begins the fleet again from this machine's data.
pub fn recovered(config: &Config, output: Output) -> Result<(), Failure> {
    let runtimes = Runtimes::start()?;
    let reborn = runtimes.raft().block_on(recover(options(config, &runtimes)));
    runtimes.end();
    show(&reborn.map_err(failed)?, output)
}

fn options(config: &Config, runtimes: &Runtimes) -> muster_cluster::node::NodeOptions {
    let values = &config.values;
    let addresses = Addresses::wanted(values);
    node_options(values, addresses, runtimes)
}

fn recovery_key(arguments: &RecoveryKeyArguments) -> Result<String, Failure> {
    if let Some(key) = &arguments.recovery_key {
        return Ok(key.clone());
    }
    let Some(file) = &arguments.recovery_key_file else {
        return Err(Failure::usage("the recovery key is needed: --recovery-key-file"));
    };
    let doing = |why: String| Failure::other(format!("{}: {why}", file.display()));
    let content = read_small(file, KEY_LIMIT).map_err(|error| doing(error.to_string()))?;
    let content = content.ok_or_else(|| Failure::not_found(format!("there is no file {}", file.display())))?;
    String::from_utf8(content).map_err(|_| doing("it is no text".to_owned()))
}

fn inspect(file: &Path, output: Output) -> Result<(), Failure> {
    if !file.exists() {
        return Err(Failure::not_found(format!("there is no file {}", file.display())));
    }
    let snapshot = SnapshotFile::inspect(file).map_err(failed)?;
    let view = View::new(&snapshot.load().map_err(failed)?, &snapshot.applied);
    let fleet = view.fleet().map_err(failed)?.ok_or_else(|| failed("there is no fleet in this snapshot"))?;
    let inspected = Inspected {
        fleet_id: view.fleet_id().map_err(failed)?.map(|id| id.to_string()).unwrap_or_default(),
        generation: fleet.generation,
        feature_level: fleet.feature_level,
        index: snapshot.applied.index(),
        term: snapshot.log_id().map_or(0, |id| id.term),
        nodes: view.nodes().map_err(failed)?.len(),
        models: view.models().map_err(failed)?.len(),
        records: view.len(),
        state_hash: HEXLOWER.encode(&view.fingerprint().history),
        bytes: snapshot.bytes,
        sha256: HEXLOWER.encode(&snapshot.sha256),
    };
    print(output, &inspected, ["WHAT", "VALUE"], |found| {
        let row = |what: &str, value: String| [what.to_owned(), value];
        vec![
            row("fleet", found.fleet_id.clone()),
            row("generation", found.generation.to_string()),
            row("feature level", found.feature_level.to_string()),
            row("index", found.index.to_string()),
            row("term", found.term.to_string()),
            row("nodes", found.nodes.to_string()),
            row("models", found.models.to_string()),
            row("records", found.records.to_string()),
            row("state hash", found.state_hash.clone()),
            row("bytes", found.bytes.to_string()),
            row("sha256", found.sha256.clone()),
        ]
    })
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Begun {
    fleet_id: String,
    generation: u64,
    node: u64,
    index: u64,
    aside: Option<String>,
}

fn show(reborn: &Reborn, output: Output) -> Result<(), Failure> {
    let Reborn { fleet, generation, node, index, aside } = reborn;
    let aside = aside.as_ref().map(|path| path.display().to_string());
    let begun = Begun { fleet_id: fleet.to_string(), generation: *generation, node: node.0, index: *index, aside };
    print(output, &begun, ["WHAT", "VALUE"], |begun| {
        let row = |what: &str, value: String| [what.to_owned(), value];
        vec![
            row("fleet", begun.fleet_id.clone()),
            row("generation", begun.generation.to_string()),
            row("this node", begun.node.to_string()),
            row("last entry", begun.index.to_string()),
            row("old data", begun.aside.clone().unwrap_or_else(|| "-".to_owned())),
        ]
    })?;
    eprintln!(
        "\nThis node is the whole fleet now. Start it with `muster serve`; the other machines join again with empty data \
         directories and a token from `muster token create`."
    );
    Ok(())
}
