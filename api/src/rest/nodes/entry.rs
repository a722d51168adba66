//! A node as it is answered: its record, and what its machine does by its own word.

use muster_agent::host::Sight;
use muster_agent::wire::{MachineSample, SeenGpu};
use muster_cluster::clock::{Clock, SystemClock};
use muster_cluster::ids::NodeId;
use muster_cluster::membership::Liveness;
use muster_cluster::rows::{GpuFact, Node};
use muster_cluster::state::{Maintenance, NodePolicy, Stored};
use serde::Serialize;
use utoipa::ToSchema;

use super::health::{Signs, judge, why_off};
use crate::request::time;
use crate::state::Member;

/// A GPU of a node. What is null is not known.
#[derive(Debug, Serialize, ToSchema)]
struct GpuUsage {
    index: u32,
    name: String,
    /// `nvml`, `unified` (its memory is the machine's own) or `sim`; null until the node has been asked.
    #[schema(example = "nvml")]
    source: Option<String>,
    uuid: Option<String>,
    /// `ok`, `lost` or `unknown`.
    #[schema(example = "ok")]
    health: String,
    /// Why it is not `ok`.
    #[serde(rename = "healthReason")]
    health_reason: Option<String>,
    /// The share of time in which something ran on it, 0 to 100.
    utilization: Option<u32>,
    /// In MiB.
    memory_used_mb: Option<u64>,
    /// In MiB.
    memory_free_mb: Option<u64>,
    /// In MiB.
    memory_total_mb: Option<u64>,
    /// In degrees Celsius.
    temperature: Option<u32>,
    /// In watts.
    power_watts: Option<f64>,
    /// Memory errors that were mended since its driver was loaded.
    ecc_corrected: Option<u64>,
    /// Memory errors that were not.
    ecc_uncorrected: Option<u64>,
    /// Xid errors that its driver has reported.
    xids: Option<u64>,
    last_xid: Option<u64>,
    /// Nothing new is given to it.
    maintenance: bool,
}

const MIB: u64 = 1 << 20;

impl GpuUsage {
    fn seen(gpu: &SeenGpu, policy: &NodePolicy) -> Self {
        let text = |text: &String| Some(text.clone()).filter(|text| !text.is_empty());
        let mib = |bytes: Option<u64>| bytes.map(|bytes| bytes / MIB);
        Self {
            index: gpu.index,
            name: gpu.name.clone(),
            source: text(&gpu.source),
            uuid: text(&gpu.uuid),
            health: gpu.health.clone(),
            health_reason: text(&gpu.why),
            utilization: gpu.utilization,
            memory_used_mb: mib(gpu.memory_used),
            memory_free_mb: mib(gpu.memory_free),
            memory_total_mb: mib(gpu.memory_total),
            temperature: gpu.temperature,
            power_watts: gpu.power.map(|milliwatts| f64::from(milliwatts) / 1000.0),
            ecc_corrected: gpu.ecc_corrected,
            ecc_uncorrected: gpu.ecc_uncorrected,
            xids: gpu.xids,
            last_xid: gpu.last_xid,
            maintenance: !policy.is_open(gpu.index),
        }
    }

    /// One of which no more is known than what the fleet keeps.
    fn kept(fact: &GpuFact, policy: &NodePolicy) -> Self {
        let seen = SeenGpu {
            index: fact.index,
            uuid: fact.uuid.clone(),
            name: fact.name.clone(),
            health: "unknown".to_owned(),
            why: "its node has not said".to_owned(),
            memory_total: Some(fact.memory_bytes).filter(|bytes| *bytes > 0),
            ..SeenGpu::default()
        };
        Self::seen(&seen, policy)
    }
}

/// The file system of a node's data directory, in GiB.
#[derive(Debug, Serialize, ToSchema)]
struct DiskUsage {
    total_gb: f64,
    /// What Muster may still write.
    free_gb: f64,
    /// Null: it is not counted yet.
    #[schema(value_type = Option<f64>)]
    hf_cache_gb: Option<f64>,
}

impl DiskUsage {
    fn of(machine: &MachineSample) -> Option<Self> {
        let gib = |bytes: u64| (bytes as f64 / (1 << 30) as f64 * 100.0).round() / 100.0;
        let (total, free) = (machine.disk_total?, machine.disk_free?);
        Some(Self { total_gb: gib(total), free_gb: gib(free), hf_cache_gb: None })
    }
}

/// A node of the fleet. What its machine does is what it said last; `sampleAgeMs` says how long ago.
#[derive(Debug, Serialize, ToSchema)]
pub struct NodeRead {
    /// Its number; never given to another.
    id: u64,
    /// Its name.
    hostname: String,
    /// The same as `hostname`.
    name: String,
    /// Where others reach it.
    ip_address: String,
    /// The port of its API.
    port: u16,
    /// `online`, `degraded` (it has not answered of late, or its clock is off), `critical` (it does not answer, or has missed as
    /// many samples in a row as `node_failure_threshold` says), `maintenance` (all of it), or `unknown` for a node that this one
    /// has never heard.
    #[schema(example = "online")]
    status: &'static str,
    /// Why it is not `online`; null if it is.
    #[serde(rename = "statusReason")]
    status_reason: Option<String>,
    /// What it does in the fleet: `leader`, `voter` or `standby`.
    #[schema(example = "voter")]
    role: &'static str,
    /// The running version.
    version: String,
    /// Its GPUs.
    gpu_usage: Vec<GpuUsage>,
    /// Null until the node has said.
    disk_usage: Option<DiskUsage>,
    /// Of all processors together when the node sampled itself last, 0 to 100.
    cpu_percent: Option<f32>,
    /// In MiB.
    memory_used_mb: Option<u64>,
    /// In MiB.
    memory_total_mb: Option<u64>,
    /// How old that is, in milliseconds. Null: the node has not been heard since the one that answers started.
    #[serde(rename = "sampleAgeMs")]
    sample_age_ms: Option<u64>,
    /// How old the figures of the GPUs were then, if their driver did not answer.
    #[serde(rename = "gpuAgeMs")]
    gpu_age_ms: Option<u64>,
    /// All of it gets nothing new.
    maintenance: bool,
    /// Some of its GPUs get nothing new, but not all.
    partial_maintenance: bool,
    /// Those that get nothing new.
    maintenance_gpus: Vec<u32>,
    /// Whether models make room for others by going to sleep.
    warm_offload_enabled: bool,
    /// How much memory sleeping models may take, in MiB; null: without limit.
    ram_cache_limit_mb: Option<u64>,
    /// What they take. Null: it is not counted yet.
    ram_cache_used_mb: Option<f64>,
    /// What can run engines there: `docker`, `podman`, `process`.
    available_runtimes: Vec<String>,
    /// The container runtime that was chosen for it: `docker` or `podman`; null: whichever the fleet prefers.
    container_runtime: Option<String>,
    /// Containers that this fleet has started there and no record knows. Null: nobody has counted them.
    rogue_container_count: Option<u64>,
    /// Processes that this fleet has started there and no record knows. Null: nobody has counted them.
    rogue_process_count: Option<u64>,
    /// What sleeping models have left behind. Null: it is not counted yet.
    rogue_artifact_count: Option<u64>,
    /// When it last said what its machine does. Null: not since the one that answers started.
    last_heartbeat_at: Option<String>,
    /// When it joined.
    created_at: String,
    #[serde(rename = "createdIndex")]
    created_index: u64,
    /// The version of this record: what `ETag` says.
    #[serde(rename = "modIndex")]
    pub(super) mod_index: u64,
}

/// Host and port of an address as a node reports it.
fn split_address(address: &str) -> (String, u16) {
    let (host, port) = address.rsplit_once(':').unwrap_or((address, ""));
    (host.trim_matches(['[', ']']).to_owned(), port.parse().unwrap_or(0))
}

impl NodeRead {
    /// Asks a node what its machine does, unless nobody hears it, and says what is known of it.
    pub(super) async fn ask(member: &Member, threshold: u64, stored: Stored<Node>) -> Self {
        let id = NodeId(stored.row.id);
        let heard = member.replica.gossip.roster().node(id).map(|heard| heard.liveness);
        if heard != Some(Liveness::Down) {
            // That it does not answer is noted there.
            let _ = member.hosts.look(id).await;
        }
        let sight = member.hosts.sight(id);
        let policy = NodePolicy::of(&stored.row);
        let signs = Signs {
            own: id == member.replica.identity.node,
            heard,
            answered: sight.last.is_some(),
            missed: sight.missed,
            threshold,
            clock: member.clocks.node(id).and_then(|clock| why_off(&clock)),
            maintenance: policy.maintenance(),
        };
        let status = member.consensus.status();
        let votes = status.voters.iter().any(|voters| voters.contains(&id));
        let role = match () {
            () if status.leader == Some(id) => "leader",
            () if votes => "voter",
            () => "standby",
        };
        Self::of(stored, &policy, judge(signs), role, &sight)
    }

    fn of(
        Stored { row, mod_index }: Stored<Node>,
        policy: &NodePolicy,
        (status, status_reason): (&'static str, Option<String>),
        role: &'static str,
        sight: &Sight,
    ) -> Self {
        let facts = row.facts.unwrap_or_default();
        let (ip_address, port) = split_address(&facts.api);
        let age_ms = sight.last.as_ref().map(|(_, age)| u64::try_from(age.as_millis()).unwrap_or(u64::MAX));
        let machine = sight.last.as_ref().and_then(|(seen, _)| seen.machine.clone());
        let known = machine.is_some();
        let machine = machine.unwrap_or_default();
        let gpu_usage = if known {
            machine.gpus.iter().map(|gpu| GpuUsage::seen(gpu, policy)).collect()
        } else {
            facts.gpus.iter().map(|fact| GpuUsage::kept(fact, policy)).collect()
        };
        let available = machine.memory_available;
        let used = machine.memory_total.zip(available).map(|(total, available)| total.saturating_sub(available));
        Self {
            id: row.id,
            hostname: facts.name.clone(),
            name: facts.name,
            ip_address,
            port,
            status,
            status_reason,
            role,
            version: facts.version,
            gpu_usage,
            disk_usage: DiskUsage::of(&machine),
            cpu_percent: machine.cpu_percent,
            memory_used_mb: used.map(|bytes| bytes / MIB),
            memory_total_mb: machine.memory_total.map(|bytes| bytes / MIB),
            sample_age_ms: age_ms,
            gpu_age_ms: machine.gpus_age_ms,
            maintenance: policy.maintenance() == Maintenance::Full,
            partial_maintenance: policy.maintenance() == Maintenance::Partial,
            maintenance_gpus: policy.cordoned().to_vec(),
            warm_offload_enabled: policy.warm_offload(),
            ram_cache_limit_mb: policy.ram_cache_limit_mb(),
            ram_cache_used_mb: None,
            available_runtimes: facts.runtimes,
            container_runtime: policy.container_runtime().map(ToOwned::to_owned),
            rogue_container_count: machine.stray_containers,
            rogue_process_count: machine.stray_processes,
            rogue_artifact_count: None,
            last_heartbeat_at: age_ms.map(|age| time(SystemClock.now_ms().saturating_sub(age))),
            created_at: time(row.created_ms),
            created_index: row.created_index,
            mod_index,
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::time::Duration;

    use muster_agent::wire::Seen;
    use muster_cluster::rows::{NodeAdmin, NodeFacts};
    use serde_json::{Value, json};

    use super::*;

    fn node() -> Node {
        let gpus = (0..2)
            .map(|index| GpuFact { index, name: "H100".to_owned(), memory_bytes: 80 << 30, ..GpuFact::default() })
            .collect();
        Node {
            id: 7,
            facts: Some(NodeFacts { gpus, ..NodeFacts::default() }),
            admin: Some(NodeAdmin { cordoned_gpus: vec![1], ..NodeAdmin::default() }),
            ..Node::default()
        }
    }

    fn read(sight: &Sight) -> Value {
        let policy = NodePolicy::of(&node());
        let read = NodeRead::of(Stored { row: node(), mod_index: 3 }, &policy, ("online", None), "voter", sight);
        serde_json::to_value(read).expect("an object")
    }

    #[test]
    fn what_a_node_said_last_is_shown_with_its_age() {
        let gpu = SeenGpu {
            index: 1,
            health: "ok".to_owned(),
            memory_used: Some(3 << 20),
            power: Some(70_500),
            ..SeenGpu::default()
        };
        let machine = MachineSample {
            gpus: vec![gpu],
            memory_total: Some(5 << 20),
            memory_available: Some(2 << 20),
            disk_total: Some(10 << 30),
            disk_free: Some((1 << 30) + (1 << 29)),
            stray_processes: Some(0),
            ..MachineSample::default()
        };
        let seen = Arc::new(Seen { machine: Some(machine), ..Seen::default() });
        let read = read(&Sight { last: Some((seen, Duration::from_secs(90))), missed: 2 });
        assert_eq!((&read["sampleAgeMs"], &read["memory_used_mb"]), (&json!(90_000), &json!(3)));
        assert_eq!(read["disk_usage"], json!({"total_gb": 10.0, "free_gb": 1.5, "hf_cache_gb": null}));
        let [gpu] = read["gpu_usage"].as_array().expect("a list").as_slice() else { panic!("{read}") };
        assert_eq!((&gpu["memory_used_mb"], &gpu["power_watts"]), (&json!(3), &json!(70.5)));
        assert_eq!((&gpu["utilization"], &gpu["maintenance"]), (&Value::Null, &json!(true)));
        assert_eq!((&read["rogue_process_count"], &read["rogue_container_count"]), (&json!(0), &Value::Null));
        assert!(read["last_heartbeat_at"].is_string());
    }

    #[test]
    fn of_a_node_that_has_never_answered_the_fleet_knows_the_gpus() {
        let read = read(&Sight::default());
        let gpus = read["gpu_usage"].as_array().expect("a list");
        assert_eq!(gpus.len(), 2);
        assert_eq!((&gpus[0]["name"], &gpus[0]["memory_total_mb"]), (&json!("H100"), &json!(81_920)));
        assert_eq!((&gpus[0]["health"], &gpus[0]["memory_used_mb"]), (&json!("unknown"), &Value::Null));
        for field in ["disk_usage", "last_heartbeat_at", "sampleAgeMs", "rogue_process_count", "memory_used_mb"] {
            assert_eq!(read[field], Value::Null, "{field}");
        }
        assert_eq!((&read["maintenance"], &read["partial_maintenance"]), (&json!(false), &json!(true)));
    }

    #[test]
    fn addresses_are_taken_apart() {
        assert_eq!(split_address("127.0.0.1:8000"), ("127.0.0.1".to_owned(), 8000));
        assert_eq!(split_address("[::1]:80"), ("::1".to_owned(), 80));
        assert_eq!(split_address("host"), ("host".to_owned(), 0));
    }
}
