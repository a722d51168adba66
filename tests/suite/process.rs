//! Real processes: the storage under signal 9 and failing disks, and the command line as a script sees it.

use std::os::unix::process::ExitStatusExt;
use std::path::Path;
use std::process::{Command, Stdio};

use muster_tests::groups::Need;
use muster_tests::process::{Process, binary, disk_library, number, run, wait_for};
use muster_tests::workload::{History, PATIENCE, worker};
use rand::rngs::SmallRng;
use rand::{RngExt, SeedableRng};

const GROUP: &str = "process";

/// What the worker ends with when its disk fails.
const DISK_FAILED: i32 = 70;

struct Place {
    directory: tempfile::TempDir,
}

impl Place {
    fn new() -> Self {
        Self { directory: tempfile::tempdir().expect("a directory") }
    }

    fn worker(&self, seed: u64, operations: u64) -> Command {
        let path = self.directory.path();
        let mut command = worker(&path.join("data"), &path.join("lines.acks"), seed, operations);
        command.env("DISK_ROOT", path).stderr(Stdio::null());
        command
    }

    fn lines(&self) -> usize {
        let lines = std::fs::read(self.directory.path().join("lines.acks")).unwrap_or_default();
        lines.iter().filter(|byte| **byte == b'\n').count()
    }

    /// Every promise so far, those that the worker itself found broken or kept at its starts included.
    fn check(&self) -> Result<History, String> {
        let history = History::read(&self.directory.path().join("lines.acks"))?;
        history.check(&self.directory.path().join("data"))?;
        Ok(history)
    }
}

#[test]
fn acknowledged_writes_survive_signal_9_again_and_again() {
    let place = Place::new();
    let (seed, kills) = (number("SEED_KILL", 3), number("RUNS_KILL", 12));
    for turn in seed..seed + kills {
        let mut random = SmallRng::seed_from_u64(turn);
        let mut process = Process::start(&mut place.worker(turn, 1_000_000));
        let enough = place.lines() + random.random_range(20..800);
        wait_for(PATIENCE, "the worker to have done something", || {
            assert!(process.ended().is_none(), "turn {turn}: the worker ended by itself");
            (place.lines() >= enough).then_some(())
        });
        process.kill();
    }
    let history = place.check().expect("every promise holds");
    println!("{kills} kills, {} operations acknowledged", history.acknowledgements());
    assert!(history.acknowledgements() as u64 > kills, "too little to mean anything");
}

#[test]
fn a_store_opens_after_signal_9_at_every_step_of_its_making_and_of_its_opening() {
    if !Need::Compiler.is_met(GROUP) {
        return;
    }
    // In one place the store is made again and again until it gets through; then it is opened again and again.
    let (mut steps_of_making, mut steps_of_opening) = (0, 0);
    for (operations, steps) in [(0, &mut steps_of_making), (30, &mut steps_of_opening)] {
        for at in (1..).step_by(if operations == 0 { 1 } else { 5 }) {
            let place = Place::new();
            if operations > 0 {
                // Something to find, left behind by a kill.
                let mut before = place.worker(at, 1_000_000);
                let mut process = Process::start(&mut before);
                wait_for(PATIENCE, "some lines", || (place.lines() > 60).then_some(()));
                process.kill();
            }
            let mut killed = place.worker(at, operations);
            killed.env("DISK_KILL_AT", at.to_string()).env("LD_PRELOAD", disk_library());
            let status = Process::start(&mut killed).wait(PATIENCE);
            place.check().unwrap_or_else(|why| panic!("killed before step {at}: {why}"));
            if status.signal() != Some(9) {
                assert!(status.success(), "killed at nothing, but it ended with {status}");
                break;
            }
            *steps = at;
            if at > 250 {
                break;
            }
        }
    }
    println!(
        "killed before each of {steps_of_making} steps of making a store and up to step {steps_of_opening} of using one"
    );
    assert!(steps_of_making > 20 && steps_of_opening > 20);
}

/// Lets the n-th write or barrier fail, and every later one or not, for several n.
fn fails_cleanly(variable: &str, times: &str, delay: &str, at: impl IntoIterator<Item = u64>) {
    const EIO: &str = "5";
    let (mut ended, mut survived) = (0, 0);
    for nth in at {
        let place = Place::new();
        let mut command = place.worker(nth, 400);
        command.env(variable, nth.to_string()).env("DISK_ERRNO", EIO).env("DISK_FAIL_TIMES", times);
        command.env("DISK_FAIL_DELAY", delay);
        let status = Process::start(command.env("LD_PRELOAD", disk_library())).wait(PATIENCE);
        match status.code() {
            Some(DISK_FAILED) => ended += 1,
            // A single failure may hit what sled does beyond what it was asked for, as a last sync while closing.
            Some(0) if times == ONCE => survived += 1,
            _ => panic!("{variable}={nth}: the worker ended with {status}"),
        }
        place.check().unwrap_or_else(|why| panic!("{variable}={nth}: {why}"));
    }
    println!("{ended} failures ended the store, {survived} were of no consequence");
    assert!(ended > 10 && survived < ended / 3);
}

const ONCE: &str = "1";
const AT_ONCE: &str = "0";

/// While the write fails slowly, the next one succeeds: the order in which sled forgets to wake whoever waits.
#[test]
fn a_write_that_fails_slowly_leaves_nobody_waiting() {
    if !Need::Compiler.is_met(GROUP) {
        return;
    }
    fails_cleanly("DISK_FAIL_WRITE", ONCE, "100", 30..45);
    // As a disk that tries for seconds before it gives up.
    fails_cleanly("DISK_FAIL_WRITE", ONCE, "3000", 32..44);
}

const FOR_EVER: &str = "1000000000";

#[test]
fn a_disk_that_takes_no_more_writes_ends_the_store_and_loses_nothing() {
    if !Need::Compiler.is_met(GROUP) {
        return;
    }
    fails_cleanly("DISK_FAIL_WRITE", FOR_EVER, AT_ONCE, (1..30).chain((30..200).step_by(17)));
}

#[test]
fn one_failed_write_ends_the_store_and_loses_nothing() {
    if !Need::Compiler.is_met(GROUP) {
        return;
    }
    fails_cleanly("DISK_FAIL_WRITE", ONCE, AT_ONCE, (1..30).chain((30..200).step_by(17)));
}

#[test]
fn a_disk_that_never_syncs_again_ends_the_store_and_loses_nothing() {
    if !Need::Compiler.is_met(GROUP) {
        return;
    }
    fails_cleanly("DISK_FAIL_SYNC", FOR_EVER, AT_ONCE, (1..30).chain((30..150).step_by(17)));
}

#[test]
fn one_failed_sync_ends_the_store_and_loses_nothing() {
    if !Need::Compiler.is_met(GROUP) {
        return;
    }
    fails_cleanly("DISK_FAIL_SYNC", ONCE, AT_ONCE, (1..30).chain((30..150).step_by(17)));
}

fn muster(arguments: &[&str]) -> (Option<i32>, String, String) {
    let mut command = Command::new(binary("muster"));
    // Nothing from outside: neither the environment nor a home directory of whoever runs the tests.
    command.args(arguments).env_clear().env("HOME", "/nonexistent").env("MUSTER_TAILSCALE", "off").stdin(Stdio::null());
    let output = run(&mut command);
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    (output.status.code(), text(&output.stdout), text(&output.stderr))
}

#[test]
fn a_wrong_command_line_is_told_apart_from_a_failure() {
    for wrong in [
        &["frobnicate"][..],
        &["config"],
        &["--output", "yaml", "config", "show"],
        &["config", "show", "--log", "a=b=c"],
    ] {
        let (code, stdout, stderr) = muster(wrong);
        assert_eq!(code, Some(2), "{wrong:?}: {stderr}");
        assert!(stdout.is_empty() && !stderr.is_empty(), "{wrong:?}");
    }
    assert_eq!(muster(&["--version"]).0, Some(0));
    assert_eq!(muster(&["operator", "check-storage", "--data-dir", "/nonexistent/data"]).0, Some(3));
}

#[test]
fn every_value_of_the_configuration_says_where_it_came_from() {
    let directory = tempfile::tempdir().expect("a directory");
    let file = directory.path().join("muster.toml");
    std::fs::write(&file, "log = \"warn\"\ndata_dir = \"/from/file\"\n").expect("writes");
    let file = file.to_str().expect("a plain path");
    let show = |command: &mut Command| -> serde_json::Value {
        let output = run(command.args(["config", "show", "-o", "json"]));
        serde_json::from_slice(&output.stdout).unwrap_or_else(|_| panic!("{output:?}"))
    };
    let base = || {
        let mut command = Command::new(binary("muster"));
        command.env_clear().env("HOME", "/nonexistent").env("MUSTER_TAILSCALE", "off");
        command
    };
    let key = |document: &serde_json::Value, key: &str| {
        let rows = document.as_array().expect("a list").clone();
        let row = rows.into_iter().find(|row| row["key"] == key).expect("the key");
        (row["value"].as_str().expect("text").to_owned(), row["origin"].as_str().expect("text").to_owned())
    };
    let pair = |value: &str, origin: &str| (value.to_owned(), origin.to_owned());

    let default = show(&mut base());
    assert_eq!(key(&default, "log"), pair("info,openraft=error", "default"));
    let from_file = show(base().args(["--config", file]));
    assert_eq!(key(&from_file, "data_dir"), pair("/from/file", &format!("file {file}")));
    let from_environment = show(base().env("MUSTER_CONFIG", file).env("MUSTER_DATA_DIR", "/from/env"));
    assert_eq!(key(&from_environment, "data_dir"), pair("/from/env", "environment MUSTER_DATA_DIR"));
    assert_eq!(key(&from_environment, "log").0, "warn");
    let from_flag =
        show(base().env("MUSTER_DATA_DIR", "/from/env").args(["--config", file, "--data-dir", "/from/flag"]));
    assert_eq!(key(&from_flag, "data_dir"), pair("/from/flag", "flag --data-dir"));
}

#[test]
fn a_configuration_file_is_checked_to_the_letter() {
    let directory = tempfile::tempdir().expect("a directory");
    let check = |content: &[u8]| {
        let file = directory.path().join("muster.toml");
        std::fs::write(&file, content).expect("writes");
        let (code, stdout, stderr) = muster(&["config", "check", file.to_str().expect("a plain path")]);
        assert!(stdout.is_empty());
        (code, stderr)
    };
    assert_eq!(check(b"").0, Some(0));
    assert_eq!(check(b"log = \"debug\"\n").0, Some(0));
    for (content, named) in [
        (&b"dta_dir = \"/x\"\n"[..], "dta_dir"),
        (b"log = 3\n", "log"),
        (b"log = \"a=b=c\"\n", "filter"),
        (b"log = \n", "TOML"),
        (b"\xff\xfe", "UTF-8"),
    ] {
        let (code, stderr) = check(content);
        assert_eq!(code, Some(1), "{stderr}");
        assert!(stderr.to_lowercase().contains(&named.to_lowercase()), "{stderr:?} does not name {named}");
    }
    assert_eq!(muster(&["config", "check", "/nonexistent.toml"]).0, Some(3));
}

#[test]
fn completion_scripts_know_the_commands() {
    for shell in ["bash", "zsh", "fish"] {
        let (code, script, _) = muster(&["completion", shell]);
        assert_eq!(code, Some(0));
        assert!(script.contains("check-storage"), "{shell}");
    }
}

#[test]
fn an_operator_sees_whether_a_stopped_nodes_storage_can_be_trusted() {
    let place = Place::new();
    assert!(Process::start(&mut place.worker(5, 300)).wait(PATIENCE).success());
    let data = place.directory.path().join("data");
    let path = data.to_str().expect("a plain path");
    let check = || muster(&["operator", "check-storage", "--data-dir", path, "-o", "json"]);

    let (code, stdout, stderr) = check();
    assert_eq!(code, Some(0), "{stderr}");
    let report: serde_json::Value = serde_json::from_str(&stdout).expect("JSON");
    assert!(report["lastIndex"].as_u64().expect("a number") > 0);
    assert!(report["appliedIndex"].as_u64().expect("a number") > 0);
    assert_eq!(report["stateHash"].as_str().expect("text").len(), 64);

    let mut running = Process::start(&mut place.worker(6, 1_000_000));
    let before = place.lines();
    wait_for(PATIENCE, "the worker to hold the directory", || (place.lines() > before).then_some(()));
    let (code, _, stderr) = check();
    assert_eq!(code, Some(1));
    assert!(stderr.contains("in use"), "{stderr}");
    running.kill();

    std::fs::remove_dir_all(data.join("raft")).expect("the log goes");
    let (code, _, stderr) = check();
    assert_eq!(code, Some(1));
    assert!(stderr.contains("the Raft log is missing"), "{stderr}");
    assert!(Path::new(&data.join("floor")).exists(), "nothing is moved before anybody has decided");
}
