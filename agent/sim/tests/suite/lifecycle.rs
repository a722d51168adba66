//! The start, the command line, and the end by a signal.

use std::net::{TcpListener, TcpStream};
use std::time::Duration;

use rustix::process::Signal;
use serde_json::{Value, json};

use crate::client::{Next, Place};
use crate::sim::{Sim, command, run, until};

fn stream(tokens: u32) -> Value {
    json!({"prompt": "a", "stream": true, "max_tokens": tokens})
}

fn is_refused(sim: &Sim) -> bool {
    sim.connect().is_err()
}

/// Reads until the stream has stood still.
fn stands_still(stream: &mut crate::client::Open) -> bool {
    stream.patience(Duration::from_millis(300));
    stream.events().1 == Next::Silence
}

#[test]
fn while_it_loads_connections_are_refused() {
    let port = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
    let mut child = command(&format!("--port {port} --load-seconds 0.5")).spawn().unwrap();
    let mut refusals = 0;
    until("it listens", || {
        let connected = TcpStream::connect(("127.0.0.1", port)).is_ok();
        refusals += u32::from(!connected);
        connected
    });
    assert_eq!(Place::Tcp(port).get("/health").status, 200);
    child.kill().unwrap();
    child.wait().unwrap();
    assert!(refusals > 10, "{refusals} refusals in half a second");
}

#[test]
fn a_signal_ends_the_loading() {
    let mut child = command("--port 0 --load-seconds 60").stderr(std::process::Stdio::piped()).spawn().unwrap();
    // The signals are caught by the time of the first line.
    let mut line = String::new();
    std::io::BufRead::read_line(&mut std::io::BufReader::new(child.stderr.take().unwrap()), &mut line).unwrap();
    rustix::process::kill_process(rustix::process::Pid::from_child(&child), Signal::TERM).unwrap();
    assert_eq!(child.wait().unwrap().code(), Some(130));
}

#[test]
fn unknown_flags_are_refused_in_the_words_of_argparse() {
    let (code, words) = run("--model tiny --no-such-flag 1");
    assert_eq!((code, words.trim()), (2, "muster-sim: error: unrecognized arguments: --no-such-flag 1"));
    assert_eq!(run("--max-model-len x").0, 2);
}

#[test]
fn a_taken_port_or_socket_is_a_failing_start() {
    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    assert_eq!(run(&format!("--port {}", taken.local_addr().unwrap().port())).0, 1);
    let file = tempfile::NamedTempFile::new().unwrap();
    assert_eq!(run(&format!("--uds {}", file.path().display())).0, 1);
}

#[test]
fn an_idle_process_leaves_at_once() {
    let mut sim = Sim::start("");
    assert_eq!(sim.get("/health").status, 200);
    sim.signal(Signal::TERM);
    assert_eq!(sim.exit_code(), 0);
}

#[test]
fn without_a_timeout_a_stream_freezes_until_its_client_closes() {
    let mut sim = Sim::start("--tokens-per-second 50");
    let mut open = sim.stream("/v1/completions", &stream(4000));
    open.event();
    sim.signal(Signal::TERM);
    until("the port is closed", || is_refused(&sim));
    assert!(stands_still(&mut open));
    assert!(sim.is_running());
    drop(open);
    assert_eq!(sim.exit_code(), 0);
}

#[test]
fn within_the_timeout_a_stream_ends_as_always_and_new_requests_fail() {
    let mut sim = Sim::start("--tokens-per-second 20 --shutdown-timeout 30");
    let mut open = sim.stream("/v1/completions", &stream(20));
    open.event();
    sim.signal(Signal::TERM);
    let ask = || sim.post("/v1/completions", &json!({"prompt": "a", "max_tokens": 1}));
    until("the drain has begun", || ask().status == 500);
    let refused = ask();
    assert_eq!(refused.error(), (500, "InternalServerError", None));
    assert_eq!(refused.message(), "cannot schedule new futures after shutdown");
    assert_eq!(sim.get("/health").status, 200);
    let (events, end) = open.events();
    assert_eq!((events.len(), end), (19, Next::Done));
    assert_eq!(sim.exit_code(), 0);
    assert!(is_refused(&sim));
}

#[test]
fn a_stream_that_outlasts_the_timeout_freezes() {
    let mut sim = Sim::start("--tokens-per-second 50 --shutdown-timeout 0.2");
    let mut open = sim.stream("/v1/completions", &stream(4000));
    open.event();
    sim.signal(Signal::TERM);
    until("the port is closed", || is_refused(&sim));
    assert!(stands_still(&mut open));
    assert!(sim.is_running());
    sim.signal(Signal::INT);
    assert_eq!(sim.exit_code(), 0);
}
