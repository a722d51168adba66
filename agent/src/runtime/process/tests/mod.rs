mod after_a_crash;

use std::collections::HashMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use muster_cluster::ids::{DeploymentId, FleetId, NodeId, PlacementEpoch, PlacementId};
use muster_cluster::sealing::SecretText;
use rustix::process::Signal;

use super::kernel::{self, Identity};
use super::record::{Record, Stage};
use super::*;
use crate::logs::{Follower, LogBounds, LogStore};
use crate::runtime::{EngineKind, GpuRef, UnitState};

const LIMIT: Duration = Duration::from_secs(20);
const SHORT: Duration = Duration::from_millis(200);

/// A data directory, and whose units live in it.
struct Machine {
    data: tempfile::TempDir,
    owner: Owner,
}

impl Machine {
    fn new() -> Self {
        let owner = Owner { fleet: FleetId::random(), generation: 3, node: NodeId(7) };
        Self { data: tempfile::tempdir().unwrap(), owner }
    }

    fn options(&self) -> ProcessOptions {
        // The engine's arguments are a script and what it is given.
        let shell = Program { path: PathBuf::from("/bin/sh"), arguments: vec!["-c".to_owned()] };
        ProcessOptions {
            directory: self.data.path().to_owned(),
            programs: HashMap::from([(EngineKind::Sim, shell)]),
            user: None,
        }
    }

    /// A runtime as it is after a start of Muster.
    fn runtime(&self) -> ProcessRuntime {
        ProcessRuntime::new(self.owner, self.options())
    }

    fn directory(&self, unit: UnitId) -> PathBuf {
        self.runtime().life.units.of(unit)
    }

    fn record(&self, unit: UnitId) -> Record {
        Record::read(&self.directory(unit)).unwrap().unwrap()
    }

    fn process(&self, unit: UnitId) -> Identity {
        match self.record(unit).stage {
            Stage::Launched(_, started) => started.process,
            other => panic!("it has not been launched: {other:?}"),
        }
    }

    fn rewrite(&self, unit: UnitId, change: impl FnOnce(&mut Record)) {
        let mut record = self.record(unit);
        change(&mut record);
        record.write(&self.directory(unit)).unwrap();
    }

    /// A path for scripts to write to.
    fn path(&self, name: &str) -> PathBuf {
        self.data.path().join(name)
    }
}

fn unit(deployment: u64, epoch: u64) -> UnitId {
    let placement = PlacementId { deployment: DeploymentId(deployment), ordinal: 0 };
    UnitId { placement, epoch: PlacementEpoch(epoch) }
}

fn order(unit: UnitId, script: &str) -> Launch {
    Launch {
        unit,
        engine: EngineKind::Sim,
        image: None,
        pull: true,
        packages: Vec::new(),
        arguments: vec![script.to_owned()],
        environment: Vec::new(),
        gpus: Vec::new(),
        ranks: 1,
        mounts: Vec::new(),
        spec_hash: "hash".to_owned(),
    }
}

async fn start(runtime: &ProcessRuntime, launch: Launch) -> Launched {
    runtime.place(launch.unit).await.unwrap();
    runtime.launch(launch, watch::Sender::new(Progress::default())).await.unwrap()
}

async fn until(what: &str, condition: impl Fn() -> bool) {
    let deadline = Instant::now() + LIMIT;
    while !condition() {
        assert!(Instant::now() < deadline, "waited too long for: {what}");
        sleep(Duration::from_millis(10)).await;
    }
}

/// The process whose id a script has written into a file.
async fn written(path: &Path) -> Identity {
    let read = || fs::read_to_string(path).ok()?.strip_suffix('\n')?.parse().ok();
    until("a process id", || read().is_some()).await;
    kernel::look(read().unwrap()).expect("it runs").identity
}

async fn state(runtime: &ProcessRuntime, unit: UnitId) -> Option<UnitState> {
    let units = runtime.units().await.unwrap();
    units.into_iter().find(|found| found.unit == unit).map(|found| found.state)
}

async fn says(runtime: &ProcessRuntime, unit: UnitId) -> Vec<String> {
    let (sender, mut lines) = mpsc::channel::<Line>(16);
    let read = async {
        let mut said = Vec::new();
        while let Some(line) = lines.recv().await {
            said.push(line.text);
        }
        said
    };
    let (followed, said) =
        timeout(LIMIT, futures_util::future::join(runtime.follow(unit, None, sender), read)).await.unwrap();
    followed.unwrap();
    said
}

#[tokio::test]
async fn an_engine_sees_its_own_environment_and_harmless_parts_of_ours() {
    let machine = Machine::new();
    let runtime = machine.runtime();
    let unit = unit(1, 2);
    let mut launch = order(unit, "env; echo session $(cut -d' ' -f6 /proc/$$/stat) $$");
    launch.environment = vec![("HF_TOKEN".to_owned(), SecretText::new("hf_canary".to_owned()))];
    launch.gpus = vec![GpuRef { index: 0, uuid: "GPU-a".to_owned() }, GpuRef { index: 3, uuid: "GPU-b".to_owned() }];
    start(&runtime, launch).await;
    let said = says(&runtime, unit).await;
    let has = |line: &str| said.iter().any(|said| said == line);
    assert!(has("HF_TOKEN=hf_canary"), "{said:?}");
    assert!(has("CUDA_VISIBLE_DEVICES=GPU-a,GPU-b"));
    assert!(has(&format!("MUSTER_UNIT={}/7/1/0@2", machine.owner.fleet)));
    assert!(has(&format!("PATH={}", std::env::var("PATH").unwrap())));
    assert!(std::env::var("CARGO_MANIFEST_DIR").is_ok() && !said.iter().any(|line| line.starts_with("CARGO")));
    let pid = machine.process(unit).pid;
    assert!(has(&format!("session {pid} {pid}")));
    let record = fs::read_to_string(machine.directory(unit).join("unit.json")).unwrap();
    assert!(!record.contains("canary"));
    runtime.stop(unit, SHORT).await.unwrap();
}

#[tokio::test]
async fn without_gpus_an_engine_sees_none() {
    let machine = Machine::new();
    let runtime = machine.runtime();
    start(&runtime, order(unit(1, 1), "env")).await;
    assert!(says(&runtime, unit(1, 1)).await.contains(&"CUDA_VISIBLE_DEVICES=".to_owned()));
    runtime.stop(unit(1, 1), SHORT).await.unwrap();
}

#[tokio::test]
async fn an_engine_without_a_program_names_the_key_to_set() {
    let machine = Machine::new();
    let runtime = machine.runtime();
    runtime.available().await.unwrap();
    let mut launch = order(unit(1, 1), "true");
    launch.engine = EngineKind::Vllm;
    runtime.place(launch.unit).await.unwrap();
    let refused = runtime.launch(launch, watch::Sender::new(Progress::default())).await.unwrap_err();
    assert!(matches!(&refused, RuntimeError::Unsuitable(why) if why.contains("engine_vllm")), "{refused}");
    let none = ProcessOptions { programs: HashMap::new(), ..machine.options() };
    let none = ProcessRuntime::new(machine.owner, none).available().await.unwrap_err();
    assert!(matches!(none, RuntimeError::Unavailable { .. }), "{none}");
}

#[tokio::test]
async fn a_signal_from_elsewhere_is_reported_and_is_not_called_a_lack_of_memory() {
    let machine = Machine::new();
    let runtime = machine.runtime();
    start(&runtime, order(unit(1, 1), "kill -9 $$")).await;
    let exit = timeout(LIMIT, runtime.ended(unit(1, 1))).await.unwrap().unwrap();
    assert_eq!(exit, Exit { code: None, signal: Some(9), out_of_memory: false });
    runtime.stop(unit(1, 1), SHORT).await.unwrap();
}

#[tokio::test]
async fn a_unit_that_has_been_launched_is_never_started_again() {
    let machine = Machine::new();
    let runtime = machine.runtime();
    let starts = machine.path("starts");
    let launch = order(unit(1, 1), &format!("echo x >> {}; exec sleep 60", starts.display()));
    let launched = start(&runtime, launch.clone()).await;
    until("the start", || starts.exists()).await;
    assert_eq!(start(&runtime, launch.clone()).await, launched);
    assert_eq!(start(&machine.runtime(), launch).await, launched);
    runtime.stop(unit(1, 1), SHORT).await.unwrap();
    assert_eq!(fs::read_to_string(starts).unwrap(), "x\n");
}

#[tokio::test]
async fn stopping_ends_workers_that_do_not_listen_and_have_left_their_session_and_environment() {
    let machine = Machine::new();
    let runtime = machine.runtime();
    let deaf = |name: &str, output: &str| {
        let path = machine.path(name);
        let work = format!("trap \"\" TERM; echo $$ > {}; while :; do sleep 0.1; done", path.display());
        format!("setsid env -i PATH=\"$PATH\" /bin/sh -c '{work}' {output} & ")
    };
    let unit = unit(1, 1);
    let script = format!("{}{}wait", deaf("by-log", ""), deaf("by-parent", "> /dev/null 2>&1"));
    start(&runtime, order(unit, &script)).await;
    let workers = [written(&machine.path("by-log")).await, written(&machine.path("by-parent")).await];
    let main = machine.process(unit);
    assert!(kernel::runs(main));
    runtime.stop(unit, LIMIT).await.unwrap();
    for process in workers.iter().chain([&main]) {
        assert!(!kernel::runs(*process));
    }
    assert!(!machine.directory(unit).exists());
}

#[tokio::test]
async fn workers_of_an_engine_that_died_before_are_ended_with_it() {
    let machine = Machine::new();
    let first = machine.runtime();
    let (unit, path) = (unit(1, 1), machine.path("worker"));
    let work = format!("echo $$ > {}; exec sleep 60", path.display());
    // One that has neither the mark nor the session, as engines that change their title and make sessions of their own.
    let script = format!(
        "setsid env -i PATH=\"$PATH\" /bin/sh -c '{work}' & while [ ! -s {} ]; do sleep 0.02; done",
        path.display()
    );
    start(&first, order(unit, &script)).await;
    timeout(LIMIT, first.ended(unit)).await.unwrap().unwrap();
    drop(first);
    let worker = written(&path).await;
    let second = machine.runtime();
    assert!(matches!(state(&second, unit).await, Some(UnitState::Ended(_))));
    second.stop(unit, SHORT).await.unwrap();
    assert!(!kernel::runs(worker));
}

#[tokio::test]
async fn an_engine_that_does_not_listen_is_killed_when_the_grace_is_over_and_one_that_does_is_not() {
    let machine = Machine::new();
    let runtime = machine.runtime();
    let ready = machine.path("ready");
    let said = machine.path("said");
    let deaf = format!("trap '' TERM; touch {}; while :; do sleep 0.05; done", ready.display());
    start(&runtime, order(unit(1, 1), &deaf)).await;
    let polite = format!("trap 'echo bye > {}; exit 0' TERM; while :; do sleep 0.05; done", said.display());
    start(&runtime, order(unit(2, 1), &polite)).await;
    until("the trap", || ready.exists()).await;
    let process = machine.process(unit(1, 1));
    let (ended, stopped) = futures_util::future::join(runtime.ended(unit(1, 1)), runtime.stop(unit(1, 1), SHORT)).await;
    stopped.unwrap();
    assert_eq!(ended.unwrap(), Exit { code: None, signal: Some(9), out_of_memory: false });
    assert!(!kernel::runs(process));
    runtime.stop(unit(2, 1), LIMIT).await.unwrap();
    assert_eq!(fs::read_to_string(said).unwrap(), "bye\n");
}

#[tokio::test]
async fn units_of_other_fleets_nodes_and_epochs_are_left_alone() {
    let machine = Machine::new();
    let runtime = machine.runtime();
    start(&runtime, order(unit(1, 5), "exec sleep 60")).await;
    let process = machine.process(unit(1, 5));
    let others = [Owner { fleet: FleetId::random(), ..machine.owner }, Owner { node: NodeId(8), ..machine.owner }];
    for owner in others {
        let other = ProcessRuntime::new(owner, machine.options());
        assert_eq!(other.units().await.unwrap(), []);
        other.stop(unit(1, 5), SHORT).await.unwrap();
        assert!(other.place(unit(1, 5)).await.is_err());
        assert!(matches!(other.ended(unit(1, 5)).await, Err(RuntimeError::NotFound(_))));
    }
    for epoch in [4, 6] {
        runtime.stop(unit(1, epoch), SHORT).await.unwrap();
    }
    assert!(kernel::runs(process));
    // Another generation of the same fleet is still this fleet.
    let later = ProcessRuntime::new(Owner { generation: 4, ..machine.owner }, machine.options());
    assert_eq!(later.units().await.unwrap()[0].generation, 3);
    runtime.stop(unit(1, 5), SHORT).await.unwrap();
    assert!(!kernel::runs(process));
}

#[tokio::test]
async fn a_socket_whose_path_would_be_too_long_lies_elsewhere_and_is_found_again() {
    let mut machine = Machine::new();
    let outer = machine.data;
    machine.data = tempfile::Builder::new().prefix(&"x".repeat(100)).tempdir_in(outer.path()).unwrap();
    let runtime = machine.runtime();
    let launched = start(&runtime, order(unit(1, 1), "exec sleep 60")).await;
    let Endpoint::Unix(socket) = &launched.endpoint else { panic!("a process has a Unix socket") };
    assert!(socket.as_os_str().len() <= 107 && !socket.starts_with(machine.data.path()), "{}", socket.display());
    let directory = socket.parent().unwrap();
    assert!(directory.is_dir());
    assert_eq!(state(&machine.runtime(), unit(1, 1)).await, Some(UnitState::Running(launched.endpoint.clone())));
    runtime.stop(unit(1, 1), SHORT).await.unwrap();
    assert!(!directory.exists());
}

#[tokio::test]
async fn an_engine_is_run_by_the_user_that_the_configuration_names() {
    if !rustix::process::geteuid().is_root() {
        return;
    }
    let machine = Machine::new();
    let options = ProcessOptions { user: Some(UserName::Name("daemon".to_owned())), ..machine.options() };
    let runtime = ProcessRuntime::new(machine.owner, options);
    start(
        &runtime,
        order(unit(1, 1), "id -u; touch engine.sock && echo made; echo loud >> /dev/stderr; exec sleep 60"),
    )
    .await;
    let log = machine.directory(unit(1, 1)).join("engine.log");
    until("its words", || fs::read_to_string(&log).is_ok_and(|text| text.lines().count() == 3)).await;
    assert_eq!(fs::read_to_string(&log).unwrap(), "1\nmade\nloud\n");
    let process = machine.process(unit(1, 1));
    let directory = machine.record(unit(1, 1)).socket_directory;
    assert!(directory.join("engine.sock").exists());
    runtime.stop(unit(1, 1), SHORT).await.unwrap();
    assert!(!kernel::runs(process) && !directory.exists());
    let nobody = ProcessOptions { user: Some(UserName::Uid(4_000_000)), ..machine.options() };
    assert!(matches!(
        ProcessRuntime::new(machine.owner, nobody).available().await,
        Err(RuntimeError::Unavailable { .. })
    ));
}

#[tokio::test]
async fn what_an_engine_says_is_followed_to_its_last_words_even_if_it_is_removed_meanwhile() {
    let machine = Machine::new();
    let runtime = machine.runtime();
    let unit = unit(1, 1);
    start(&runtime, order(unit, "echo first; trap 'printf last; exit 0' TERM; while :; do sleep 0.05; done")).await;
    let (sender, mut lines) = mpsc::channel(1);
    let follow = runtime.follow(unit, None, sender);
    let read = async {
        assert_eq!(lines.recv().await.unwrap().text, "first");
        runtime.stop(unit, LIMIT).await.unwrap();
        let mut rest = Vec::new();
        while let Some(line) = lines.recv().await {
            rest.push(line.text);
        }
        rest
    };
    let (followed, rest) = timeout(LIMIT, futures_util::future::join(follow, read)).await.unwrap();
    followed.unwrap();
    assert_eq!(rest, ["last"]);
}
