//! Machines that fail under a fleet: disks, power, clocks. Nodes are real processes, and callers use them all meanwhile.

#[path = "faults/behind.rs"]
mod behind;
#[path = "faults/clocks.rs"]
mod clocks;
#[path = "faults/damage.rs"]
mod damage;
#[path = "faults/load.rs"]
mod load;
#[path = "faults/members.rs"]
mod members;
#[path = "faults/power.rs"]
mod power;
#[path = "faults/room.rs"]
mod room;

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use muster_tests::history::What;
use muster_tests::mesh::{Machine, Mesh};
use muster_tests::registers::{FAILOVER, Figures, Registers, model};
use serde_json::Value;

const GROUP: &str = "faults";

/// How long a caller may wait: a write ten seconds, and time to say what became of it.
const ANSWERED: Duration = Duration::from_secs(15);

fn writes(what: What) -> bool {
    what.writes().is_some()
}

fn reads(what: What) -> bool {
    what == What::Read
}

fn others(node: usize) -> [usize; 2] {
    [(node + 1) % 3, (node + 2) % 3]
}

/// A model that takes about as much room as one can.
fn large_model(name: &str) -> Value {
    let mut large = model(name);
    large["description"] = "x".repeat(8000).into();
    large
}

/// How often something in a node's directory was set aside.
fn set_aside(machine: &Machine) -> usize {
    let entries = std::fs::read_dir(machine.home.data()).expect("lists").map(|entry| entry.expect("an entry"));
    entries.filter(|entry| entry.file_name().to_string_lossy().starts_with("quarantine")).count()
}

/// Ends what goes on beside a test, also when the test fails.
struct Stop<'a>(&'a AtomicBool);

impl Drop for Stop<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

/// Callers write and read through each of these nodes.
fn go_on(registers: &Registers, nodes: &[usize]) {
    registers.wait_for_each(2 * FAILOVER, Instant::now(), nodes, writes);
    registers.wait_for_each(FAILOVER, Instant::now(), nodes, reads);
}

/// Everything that callers saw has an explanation, nobody was left waiting, and all nodes have the same state.
fn is_whole(mesh: &mut Mesh, registers: &Registers) -> Figures {
    mesh.ready();
    let figures = registers.check();
    assert!(registers.longest() < ANSWERED, "{:?}", registers.longest());
    assert_eq!(mesh.hashes().len(), 1, "equal states at an equal index");
    figures
}
