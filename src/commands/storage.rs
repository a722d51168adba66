//! `muster operator check-storage`.

use std::path::PathBuf;
use std::time::SystemTime;

use muster_cluster::ids::StoreId;
use muster_cluster::storage::{NodeStorage, OpenOptions, TailLimits};
use serde::Serialize;

use crate::cli::Output;
use crate::config::Config;
use crate::exit::Failure;
use crate::output;

/// What was found in a data directory that can be trusted.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct Report {
    data_dir: PathBuf,
    store_id: String,
    /// The last entry that was purged from the log.
    purged_index: Option<u64>,
    last_index: Option<u64>,
    last_term: Option<u64>,
    committed_index: Option<u64>,
    vote: Option<String>,
    applied_index: u64,
    state_hash: String,
    records: usize,
    snapshots: Vec<Snapshot>,
    /// How long the disk took for one sync, in milliseconds.
    sync_ms: f64,
    /// Where a damaged copy of the state was moved.
    state_set_aside: Option<PathBuf>,
}

#[derive(Debug, Serialize)]
struct Snapshot {
    index: u64,
    bytes: u64,
    sha256: String,
}

/// Opens the data directory and reports.
pub fn check(config: &Config, format: Output) -> Result<(), Failure> {
    let directory = &config.values.data_dir;
    // Opening would make a new one, which is not what was asked.
    let there = |part: &str| {
        let path = directory.join(part);
        path.try_exists().map_err(|error| Failure::other(format!("{} can not be looked at: {error}", path.display())))
    };
    if !there("raft")? && !there("floor")? {
        return Err(Failure::not_found(format!("{} holds no data of a node", directory.display())));
    }
    let options = OpenOptions {
        fresh_store_id: StoreId::random(),
        now: SystemTime::now(),
        tail: TailLimits::default(),
        journal_bytes: OpenOptions::JOURNAL_BYTES,
    };
    let storage = NodeStorage::open(directory, &options).map_err(|error| Failure::other(error.to_string()))?;
    let position = storage.log.position();
    let report = Report {
        data_dir: directory.clone(),
        store_id: storage.log.store_id().to_string(),
        purged_index: position.purged.map(|id| id.index),
        last_index: position.last.map(|id| id.index),
        last_term: position.last.map(|id| id.term),
        committed_index: storage.log.committed().map(|id| id.index),
        vote: storage.log.vote().map(|vote| vote.to_string()),
        applied_index: storage.applied.index(),
        state_hash: hex(&storage.applied.fingerprint.history),
        records: storage.tables.len(),
        snapshots: storage
            .snapshots
            .list()
            .iter()
            .map(|file| Snapshot { index: file.applied.index(), bytes: file.bytes, sha256: hex(&file.sha256) })
            .collect(),
        sync_ms: storage.report.first_sync.as_secs_f64() * 1e3,
        state_set_aside: storage.report.state_set_aside.clone(),
    };
    output::print(format, &report, ["WHAT", "FOUND"], rows)
}

fn rows(report: &Report) -> Vec<[String; 2]> {
    let number = |number: Option<u64>| number.map_or_else(|| "none".to_owned(), |number| number.to_string());
    let last = match (report.last_index, report.last_term) {
        (Some(index), Some(term)) => format!("{index} (term {term})"),
        _ => "none".to_owned(),
    };
    let mut rows = vec![
        ("data directory", report.data_dir.display().to_string()),
        ("store", report.store_id.clone()),
        ("log purged up to", number(report.purged_index)),
        ("last log entry", last),
        ("committed up to", number(report.committed_index)),
        ("vote", report.vote.clone().unwrap_or_else(|| "none".to_owned())),
        ("state applied up to", report.applied_index.to_string()),
        ("state hash", report.state_hash.clone()),
        ("records in the state", report.records.to_string()),
        ("one sync of the disk", format!("{:.2} ms", report.sync_ms)),
    ];
    for snapshot in &report.snapshots {
        rows.push(("snapshot", format!("at {}, {} bytes", snapshot.index, snapshot.bytes)));
    }
    if let Some(aside) = &report.state_set_aside {
        rows.push(("damaged state moved to", aside.display().to_string()));
    }
    rows.into_iter().map(|(what, found)| [what.to_owned(), found]).collect()
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}
