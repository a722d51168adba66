//! Starts the binary, and ends it with the test.

use std::io::{BufRead, BufReader, Read};
use std::ops::Deref;
use std::process::{Child, Command, Stdio};
use std::sync::mpsc;
use std::thread;
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};

use crate::client::{LIMIT, Place};

/// A simulator that listens.
pub struct Sim {
    child: Child,
    place: Place,
}

pub fn command(line: &str) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_muster-sim"));
    command.args(line.split_whitespace()).env_remove("VLLM_API_KEY").env_remove("VLLM_SERVER_DEV_MODE");
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::null());
    command
}

/// Runs a command line to its end: the exit code and the last words.
pub fn run(line: &str) -> (i32, String) {
    let mut child = command(line).stderr(Stdio::piped()).spawn().unwrap();
    let code = exit_code(&mut child);
    let mut words = String::new();
    child.stderr.take().unwrap().read_to_string(&mut words).unwrap();
    (code, words)
}

fn exit_code(child: &mut Child) -> i32 {
    let mut code = None;
    until("the process has ended", || {
        code = child.try_wait().unwrap();
        code.is_some()
    });
    code.and_then(|status| status.code()).expect("an exit code, not a signal")
}

/// Waits for a condition.
pub fn until(what: &str, mut condition: impl FnMut() -> bool) {
    let started = Instant::now();
    while !condition() {
        assert!(started.elapsed() < LIMIT, "{what}: not within {LIMIT:?}");
        thread::sleep(Duration::from_millis(5));
    }
}

impl Sim {
    /// Starts one on a free port.
    pub fn start(line: &str) -> Self {
        Self::with(command(&format!("--port 0 --model tiny {line}")))
    }

    /// The same with the routes for development.
    pub fn dev(line: &str) -> Self {
        let mut command = command(&format!("--port 0 --model tiny {line}"));
        command.env("VLLM_SERVER_DEV_MODE", "1");
        Self::with(command)
    }

    pub fn with(mut command: Command) -> Self {
        let mut child = command.spawn().unwrap();
        let stdout = BufReader::new(child.stdout.take().unwrap());
        let (said, heard) = mpsc::channel();
        thread::spawn(move || stdout.lines().map_while(Result::ok).try_for_each(|line| said.send(line)));
        let line = heard.recv_timeout(LIMIT).expect("a line that says where it listens");
        let place = match line.strip_prefix("listening on http://127.0.0.1:") {
            Some(port) => Place::Tcp(port.parse().unwrap()),
            None => Place::Unix(line.strip_prefix("listening on unix:").expect("a socket").into()),
        };
        Self { child, place }
    }

    pub fn signal(&self, signal: Signal) {
        kill_process(Pid::from_child(&self.child), signal).unwrap();
    }

    pub fn is_running(&mut self) -> bool {
        self.child.try_wait().unwrap().is_none()
    }

    pub fn exit_code(&mut self) -> i32 {
        exit_code(&mut self.child)
    }
}

impl Deref for Sim {
    type Target = Place;

    fn deref(&self) -> &Place {
        &self.place
    }
}

impl Drop for Sim {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
