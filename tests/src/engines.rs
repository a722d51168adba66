//! Engines that nodes start, as the machine shows them. They outlive their node, and must not outlive their test.

use std::fs;
use std::path::{Path, PathBuf};

use rustix::process::{Pid, Signal, kill_process};

use crate::process::binary;

/// The variables with which a node can run simulated engines, on two simulated GPUs.
///
/// # Panics
/// When the simulator is not built.
#[must_use]
pub fn variables() -> Vec<(&'static str, PathBuf)> {
    vec![("MUSTER_ENGINE_SIM", binary("muster-sim")), ("MUSTER_GPUS", PathBuf::from("sim:2x80GiB"))]
}

/// The process of an engine.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Engine {
    /// Its number.
    pub id: u32,
    /// Its command line, without the program.
    pub arguments: Vec<String>,
}

impl Engine {
    /// Whether it still runs.
    #[must_use]
    pub fn runs(&self) -> bool {
        // What has ended and nobody has asked about has no command line any more.
        arguments(self.id).is_some_and(|arguments| arguments == self.arguments)
    }

    /// What follows a flag on its command line.
    #[must_use]
    pub fn after(&self, flag: &str) -> Option<&str> {
        let at = self.arguments.iter().position(|argument| argument == flag)?;
        self.arguments.get(at + 1).map(String::as_str)
    }

    /// A variable of its environment.
    ///
    /// # Panics
    /// When the environment can not be read.
    #[must_use]
    pub fn variable(&self, name: &str) -> Option<String> {
        let environment = fs::read(format!("/proc/{}/environ", self.id)).expect("the environment of an engine");
        let entries = environment.split(|byte| *byte == 0).map(String::from_utf8_lossy);
        entries.into_iter().find_map(|entry| Some(entry.split_once('=').filter(|(key, _)| *key == name)?.1.to_owned()))
    }

    /// Sends it a signal.
    ///
    /// # Panics
    /// When it does not run.
    pub fn signal(&self, signal: Signal) {
        let process = i32::try_from(self.id).ok().and_then(Pid::from_raw).expect("a number of a process");
        kill_process(process, signal).expect("sending an engine a signal");
    }
}

fn arguments(id: u32) -> Option<Vec<String>> {
    let mut line = fs::read(format!("/proc/{id}/cmdline")).ok()?;
    line.pop_if(|last| *last == 0);
    let mut words = line.split(|byte| *byte == 0).map(|word| String::from_utf8_lossy(word).into_owned());
    // One that is just being started is still what makes its session.
    let program = words.by_ref().take(2).find(|program| program.ends_with("muster-sim"));
    program.map(|_| words.collect())
}

/// The engines whose sockets are below a directory, oldest first.
///
/// # Panics
/// When the process table can not be read.
#[must_use]
pub fn below(directory: &Path) -> Vec<Engine> {
    let prefix = format!("{}/", directory.display());
    let processes = fs::read_dir("/proc").expect("the process table").filter_map(Result::ok);
    let ids = processes.filter_map(|entry| entry.file_name().to_str()?.parse().ok());
    let engines = ids.filter_map(|id| Some(Engine { id, arguments: arguments(id)? }));
    let mut engines: Vec<_> =
        engines.filter(|engine| engine.after("--uds").is_some_and(|uds| uds.starts_with(&prefix))).collect();
    engines.sort_by_key(|engine| engine.id);
    engines
}

/// Ends every engine below a directory whose nodes have ended.
pub fn end_below(directory: &Path) {
    for engine in below(directory) {
        if let Some(process) = i32::try_from(engine.id).ok().and_then(Pid::from_raw) {
            // It may have ended meanwhile.
            let _ = kill_process(process, Signal::KILL);
        }
    }
}
