//! The processes that a node's runtime has started: they outlive the node, and must not outlive the test.

use std::path::{Path, PathBuf};

use muster_tests::process::binary;

/// The engines of a data directory. They are killed when this is dropped.
pub struct Engines {
    data: PathBuf,
}

impl Engines {
    pub fn of(data: &Path) -> Self {
        Self { data: data.to_owned() }
    }

    /// Their processes.
    fn processes(&self) -> Vec<i32> {
        let (program, data) = (binary("muster-sim"), self.data.display().to_string());
        let is_one = |id: i32| {
            let line = std::fs::read(format!("/proc/{id}/cmdline")).unwrap_or_default();
            let line = String::from_utf8_lossy(&line).into_owned();
            line.starts_with(&program.display().to_string()) && line.contains(&data)
        };
        let ids = std::fs::read_dir("/proc").expect("processes").flatten();
        let ids = ids.filter_map(|entry| entry.file_name().to_str()?.parse().ok());
        ids.filter(|id| is_one(*id)).collect()
    }
}

impl Drop for Engines {
    fn drop(&mut self) {
        for id in self.processes() {
            if let Some(process) = rustix::process::Pid::from_raw(id) {
                let _ = rustix::process::kill_process(process, rustix::process::Signal::KILL);
            }
        }
    }
}
