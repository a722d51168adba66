//! Which processes belong to a unit. Workers outlive the process that started them and pin the memory of GPUs, so a unit has
//! ended only when none of them is left.

use std::collections::HashSet;

use super::cgroup::Cgroup;
use super::kernel::{self, Entry, Identity};

/// What is known of a unit when its processes are looked for.
#[derive(Clone, Debug, Default)]
pub(super) struct Traces {
    /// The entry in the environment that all of them were started with, unless they took it out.
    pub(super) mark: String,
    /// The user that runs engines. Environments and files of others are not looked at.
    pub(super) uid: u32,
    /// The process that was started for the unit.
    pub(super) main: Option<Identity>,
    /// The file that the engine's output goes to: device and number. Programs that change their title destroy their
    /// environment, this stays.
    pub(super) log: Option<(u64, u64)>,
    /// The unit's control group.
    pub(super) cgroup: Option<Cgroup>,
    /// What was seen to belong to it before.
    pub(super) known: Vec<Identity>,
}

/// The unit's processes that run now.
pub(super) fn find(traces: &Traces) -> std::io::Result<Vec<Identity>> {
    let table = table()?;
    let grouped: HashSet<i32> = traces.cgroup.iter().flat_map(Cgroup::members).collect();
    let main = traces.main.filter(|main| kernel::runs(*main));
    let belongs = |entry: &Entry| {
        let pid = entry.identity.pid;
        traces.main == Some(entry.identity)
            || traces.known.contains(&entry.identity)
            || grouped.contains(&pid)
            // A session and a group have the id of who made them. While that one runs, the id can be nobody else's.
            || main.is_some_and(|main| entry.session == main.pid || entry.group == main.pid)
            || kernel::is_of(pid, traces.uid)
                && (kernel::carries(pid, &traces.mark) || traces.log.is_some_and(|log| kernel::writes_to(pid, log)))
    };
    let roots = table.iter().filter(|entry| belongs(entry)).map(|entry| entry.identity.pid).collect();
    Ok(with_descendants(&table, roots))
}

/// The process that was started with this mark: the one whose parent does not have it. Among several, the leader of a session
/// goes first, and then the oldest.
pub(super) fn main_of(mark: &str, uid: u32) -> std::io::Result<Option<Identity>> {
    let marked: Vec<Entry> = table()?
        .into_iter()
        .filter(|entry| kernel::is_of(entry.identity.pid, uid) && kernel::carries(entry.identity.pid, mark))
        .collect();
    let pids: HashSet<i32> = marked.iter().map(|entry| entry.identity.pid).collect();
    let first = marked.iter().filter(|entry| !pids.contains(&entry.parent)).min_by_key(|entry| {
        let leads = entry.session == entry.identity.pid;
        (!leads, entry.identity.started, entry.identity.pid)
    });
    Ok(first.map(|entry| entry.identity))
}

/// All processes that could be an engine's: running, and neither this one nor the first of the machine.
fn table() -> std::io::Result<Vec<Entry>> {
    let own = std::process::id();
    let mut table = kernel::all()?;
    table.retain(|entry| {
        entry.alive && entry.identity.pid > 1 && u32::try_from(entry.identity.pid).is_ok_and(|pid| pid != own)
    });
    Ok(table)
}

fn with_descendants(table: &[Entry], roots: HashSet<i32>) -> Vec<Identity> {
    let mut members = roots;
    loop {
        let before = members.len();
        for entry in table {
            if members.contains(&entry.parent) {
                members.insert(entry.identity.pid);
            }
        }
        if members.len() == before {
            return table.iter().map(|entry| entry.identity).filter(|process| members.contains(&process.pid)).collect();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn row(pid: i32, parent: i32) -> Entry {
        Entry { identity: Identity { pid, started: 1 }, parent, group: pid, session: pid, alive: true }
    }

    #[test]
    fn descendants_of_descendants_belong_whatever_the_order_of_the_table() {
        let table = [row(9, 8), row(8, 7), row(7, 5), row(6, 2)];
        let mut found: Vec<i32> = with_descendants(&table, HashSet::from([7])).iter().map(|found| found.pid).collect();
        found.sort_unstable();
        assert_eq!(found, [7, 8, 9]);
    }
}
