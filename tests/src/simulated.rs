//! Nodes that run simulated engines. They outlive their node, as they shall, but not their test.

use std::path::{Path, PathBuf};

use rustix::process::{Pid, Signal, kill_process};
use serde_json::{Value, json};

use crate::api::{Answer, Api};
use crate::fleet::{Fleet, PATIENCE};
use crate::process::{binary, wait_for};

/// The engines of the nodes in a home. They are ended when the test lets go of it, which has to be after the nodes: a node
/// starts again what ends.
#[derive(Debug)]
pub struct Engines(PathBuf);

impl Engines {
    /// Those of this home.
    #[must_use]
    pub fn of(home: &Path) -> Self {
        Self(home.to_owned())
    }

    /// The numbers of their processes.
    #[must_use]
    pub fn running(&self) -> Vec<i32> {
        let home = format!("HOME={}", self.0.display());
        let entries = std::fs::read_dir("/proc").into_iter().flatten().flatten();
        let numbers = entries.filter_map(|entry| entry.file_name().to_str()?.parse::<i32>().ok());
        let ours = |number: &i32| {
            let environment = std::fs::read(format!("/proc/{number}/environ")).unwrap_or_default();
            let has = |what: &dyn Fn(&[u8]) -> bool| environment.split(|byte| *byte == 0).any(what);
            has(&|entry| entry == home.as_bytes()) && has(&|entry| entry.starts_with(b"MUSTER_UNIT="))
        };
        numbers.filter(ours).collect()
    }
}

impl Drop for Engines {
    fn drop(&mut self) {
        for number in self.running() {
            // Gone if it has ended by itself.
            let _ = Pid::from_raw(number).map(|number| kill_process(number, Signal::KILL));
        }
    }
}

/// A fleet of one node that has two simulated GPUs and runs the simulator.
#[derive(Debug)]
pub struct Simulated {
    /// It.
    pub fleet: Fleet,
    // Ended after the node.
    /// What it runs.
    pub engines: Engines,
}

impl Simulated {
    /// Starts it.
    #[must_use]
    pub fn start() -> Self {
        let simulator = binary("muster-sim").to_string_lossy().into_owned();
        let fleet = Fleet::start_with(&[("MUSTER_GPUS", "sim:2x80GiB"), ("MUSTER_ENGINE_SIM", &simulator)]);
        let engines = Engines::of(fleet.home.path());
        Self { fleet, engines }
    }
}

/// What starts a deployment of the simulator on these GPUs.
#[must_use]
pub fn simulator(node: u64, name: &str, gpus: &[u32]) -> Value {
    json!({
        "node_id": node,
        "model_name": "org/simulated",
        "engine": "sim",
        "gpu_memory_fraction": 0.2,
        "gpu_ids": gpus,
        "owner": "a test",
        "engine_args": {"served_model_name": name},
    })
}

/// Waits until a deployment has this status.
///
/// # Panics
/// When it does not come to that, or comes to an error instead.
pub fn until(api: &Api, deployment: u64, status: &str) {
    wait_for(PATIENCE, &format!("deployment {deployment} to be {status}"), || {
        let answer: Answer = api.get(&format!("/api/deployments/{deployment}")).expect(200);
        assert!(status == "error" || answer.body["status"] != "error", "{answer}");
        (answer.body["status"] == status).then_some(())
    });
}
