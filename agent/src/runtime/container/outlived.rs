//! Processes that are still there when their container is gone, holding its GPUs: found and ended.
//!
//! A process is known by its number together with its start: a number is used again, the two together are not.

use std::collections::{BTreeSet, HashMap};
use std::path::Path;
use std::time::Duration;

use rustix::process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal};
use tracing::warn;

/// How long a process may take to go once it was killed.
const GONE_WITHIN: Duration = Duration::from_secs(10);

/// How often it is looked whether it has.
const LOOK: Duration = Duration::from_millis(50);

/// More processes than a container has.
const MOST: usize = 4096;

/// A process, and no later one with its number.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Process {
    pub(super) pid: i32,
    /// In the kernel's ticks since it booted.
    pub(super) started: u64,
}

/// A process and all that it and its children have started.
pub(super) async fn tree(root: i32) -> BTreeSet<Process> {
    blocking(move || tree_of(root, &everything())).await
}

/// The processes of a control group whose name holds this container's identity.
pub(super) async fn of_container(id: &str) -> BTreeSet<Process> {
    let id = id.to_owned();
    blocking(move || {
        let in_it = |pid: &i32| {
            let groups = std::fs::read_to_string(Path::new("/proc").join(pid.to_string()).join("cgroup"));
            !id.is_empty() && groups.is_ok_and(|groups| groups.contains(&id))
        };
        everything().into_iter().filter(|(pid, _)| in_it(pid)).map(|(pid, seen)| seen.process(pid)).take(MOST).collect()
    })
    .await
}

/// Kills those that are still there, and waits until they are gone. Those that are not are returned.
pub(super) async fn end(processes: BTreeSet<Process>) -> BTreeSet<Process> {
    let mut left: BTreeSet<Process> = processes.into_iter().filter(|process| kill(*process)).collect();
    let deadline = tokio::time::Instant::now() + GONE_WITHIN;
    while !left.is_empty() && tokio::time::Instant::now() < deadline {
        tokio::time::sleep(LOOK).await;
        left.retain(|process| lives(*process));
    }
    left
}

/// Kills a process, if it is this one. Says whether it was there.
fn kill(process: Process) -> bool {
    let Some(pid) = Pid::from_raw(process.pid) else { return false };
    // The descriptor stays with the process that has the number now; whether it is the one that is meant is looked up after.
    let Ok(descriptor) = pidfd_open(pid, PidfdFlags::empty()) else { return false };
    if !lives(process) {
        return false;
    }
    match pidfd_send_signal(&descriptor, Signal::KILL) {
        Ok(()) => warn!(pid = process.pid, "killed a process that outlived its container"),
        Err(error) => warn!(pid = process.pid, %error, "a process outlived its container and could not be killed"),
    }
    true
}

fn lives(process: Process) -> bool {
    look(process.pid).is_some_and(|seen| seen.started == process.started && !seen.dead)
}

/// What `/proc` says of a process.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Seen {
    parent: i32,
    started: u64,
    /// It has ended, and its parent has not asked yet.
    dead: bool,
}

impl Seen {
    fn process(self, pid: i32) -> Process {
        Process { pid, started: self.started }
    }
}

fn tree_of(root: i32, all: &HashMap<i32, Seen>) -> BTreeSet<Process> {
    let mut children: HashMap<i32, Vec<i32>> = HashMap::new();
    for (pid, seen) in all {
        children.entry(seen.parent).or_default().push(*pid);
    }
    let mut found = BTreeSet::new();
    let mut next = vec![root];
    while let Some(pid) = next.pop() {
        let Some(seen) = all.get(&pid) else { continue };
        if found.len() < MOST && found.insert(seen.process(pid)) {
            next.extend(children.get(&pid).into_iter().flatten());
        }
    }
    found
}

fn everything() -> HashMap<i32, Seen> {
    let Ok(entries) = std::fs::read_dir("/proc") else { return HashMap::new() };
    let pids = entries.flatten().filter_map(|entry| entry.file_name().to_str()?.parse().ok());
    pids.filter_map(|pid: i32| Some((pid, look(pid)?))).collect()
}

fn look(pid: i32) -> Option<Seen> {
    parse(&std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?)
}

/// Reads a line of `/proc/PID/stat`. The second field is the program's name in brackets, and may hold anything.
fn parse(line: &str) -> Option<Seen> {
    let mut fields = line.rsplit_once(')')?.1.split_ascii_whitespace();
    let state = fields.next()?;
    let parent = fields.next()?.parse().ok()?;
    let started = fields.nth(17)?.parse().ok()?;
    Some(Seen { parent, started, dead: matches!(state, "Z" | "X") })
}

async fn blocking(work: impl FnOnce() -> BTreeSet<Process> + Send + 'static) -> BTreeSet<Process> {
    tokio::task::spawn_blocking(work).await.unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use std::process::{Child, Command, Stdio};

    use super::*;

    fn sleeper() -> Child {
        Command::new("sleep").arg("600").stdout(Stdio::null()).spawn().expect("a process")
    }

    fn known(child: &Child) -> Process {
        let pid = i32::try_from(child.id()).expect("a number");
        look(pid).expect("it runs").process(pid)
    }

    #[tokio::test]
    async fn what_outlived_its_container_is_killed() {
        let mut child = sleeper();
        let left = end(BTreeSet::from([known(&child)])).await;
        assert!(left.is_empty());
        assert!(!child.wait().expect("it ended").success());
    }

    #[tokio::test]
    async fn a_later_process_with_the_same_number_is_left_alone() {
        let mut child = sleeper();
        let earlier = Process { started: known(&child).started - 1, ..known(&child) };
        assert!(end(BTreeSet::from([earlier])).await.is_empty());
        assert_eq!(child.try_wait().expect("asked"), None);
        child.kill().expect("killed");
        child.wait().expect("ended");
    }

    #[tokio::test]
    async fn a_tree_holds_a_process_and_what_it_started() {
        let own = i32::try_from(std::process::id()).expect("a number");
        let mut child = sleeper();
        let found = tree(own).await;
        assert!(found.contains(&known(&child)));
        assert!(found.iter().any(|process| process.pid == own));
        assert!(!found.iter().any(|process| process.pid == 1) || own == 1);
        child.kill().expect("killed");
        child.wait().expect("ended");
    }

    #[test]
    fn a_program_may_have_any_name() {
        let line = "42 (a ) S 1 (b) S 7 42 42 0 -1 4194304 1 0 0 0 0 0 0 0 20 0 1 0 12345 1 1 1";
        assert_eq!(parse(line), Some(Seen { parent: 7, started: 12345, dead: false }));
        assert_eq!(parse("42 (x) Z 7"), None);
        assert_eq!(parse(""), None);
    }

    #[tokio::test]
    async fn no_container_has_no_processes() {
        assert!(of_container("").await.is_empty());
        assert!(of_container(&"f".repeat(64)).await.is_empty());
    }
}
