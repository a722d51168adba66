//! A control group for a unit, where this process may make one: nothing that the engine starts can leave it, and it counts
//! processes that the kernel ended because memory ran out. Everything works without, with less certainty.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

/// Where the second version of control groups can be mounted.
const MOUNTS: [&str; 2] = ["/sys/fs/cgroup", "/sys/fs/cgroup/unified"];

/// The group of one unit.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Cgroup(PathBuf);

impl Cgroup {
    /// The group at a path that has been written down.
    pub(super) fn at(path: PathBuf) -> Self {
        Self(path)
    }

    pub(super) fn path(&self) -> &Path {
        &self.0
    }

    /// Makes a group of this name below the one that this process is in.
    pub(super) fn make(name: &str) -> io::Result<Self> {
        let membership = fs::read_to_string("/proc/self/cgroup")?;
        let own = membership.lines().find_map(|line| line.strip_prefix("0::"));
        let mount = MOUNTS.iter().find(|mount| Path::new(mount).join("cgroup.controllers").is_file());
        let (Some(own), Some(mount)) = (own, mount) else {
            return Err(io::Error::new(io::ErrorKind::Unsupported, "there are no control groups of version 2"));
        };
        let path = Path::new(mount).join(own.trim_start_matches('/')).join("muster").join(name);
        fs::create_dir_all(&path)?;
        Ok(Self(path))
    }

    /// Puts a process in; what it starts from now on is in too.
    pub(super) fn add(&self, pid: i32) -> io::Result<()> {
        fs::write(self.0.join("cgroup.procs"), pid.to_string())
    }

    /// The processes in it. None, if it is not there.
    pub(super) fn members(&self) -> Vec<i32> {
        let text = fs::read_to_string(self.0.join("cgroup.procs")).unwrap_or_default();
        text.lines().filter_map(|line| line.trim().parse().ok()).collect()
    }

    /// Whether the kernel has ended one of its processes because memory ran out.
    pub(super) fn ran_out_of_memory(&self) -> bool {
        let text = fs::read_to_string(self.0.join("memory.events")).unwrap_or_default();
        let count = text.lines().find_map(|line| line.strip_prefix("oom_kill "));
        count.and_then(|count| count.trim().parse::<u64>().ok()).is_some_and(|count| count > 0)
    }

    /// Removes it, if it is empty.
    pub(super) fn remove(&self) {
        let _ = fs::remove_dir(&self.0);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn members_and_memory_events_are_read_as_the_kernel_writes_them() {
        let directory = tempfile::tempdir().unwrap();
        let group = Cgroup::at(directory.path().to_owned());
        assert_eq!(group.members(), Vec::<i32>::new());
        assert!(!group.ran_out_of_memory());
        fs::write(directory.path().join("cgroup.procs"), "12\n345\n").unwrap();
        fs::write(directory.path().join("memory.events"), "low 0\noom 1\noom_kill 0\noom_group_kill 3\n").unwrap();
        assert_eq!(group.members(), [12, 345]);
        assert!(!group.ran_out_of_memory());
        fs::write(directory.path().join("memory.events"), "low 0\noom 1\noom_kill 2\n").unwrap();
        assert!(group.ran_out_of_memory());
    }
}
