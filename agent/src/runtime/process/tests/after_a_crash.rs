//! What is found by those who come after.

use super::*;

#[tokio::test]
async fn an_engine_outlives_its_runtime_and_is_found_by_the_next() {
    let machine = Machine::new();
    let first = machine.runtime();
    let unit = unit(4, 9);
    let go = machine.path("go");
    let script = format!("while [ ! -e {} ]; do sleep 0.02; done; exit 7", go.display());
    let launched = start(&first, order(unit, &script)).await;
    let process = machine.process(unit);
    drop(first);

    let second = machine.runtime();
    let found = second.units().await.unwrap();
    assert_eq!(found.len(), 1);
    assert_eq!((found[0].unit, found[0].generation, found[0].spec_hash.as_str()), (unit, 3, "hash"));
    assert_eq!(found[0].state, UnitState::Running(launched.endpoint));
    assert_eq!(machine.process(unit), process);
    let ended = second.ended(unit);
    fs::write(go, "").unwrap();
    let exit = Exit { code: Some(7), signal: None, out_of_memory: false };
    assert_eq!(timeout(LIMIT, ended).await.unwrap().unwrap(), exit);
    // It is there until it is removed, for whoever comes next too.
    assert_eq!(state(&machine.runtime(), unit).await, Some(UnitState::Ended(exit)));
    second.stop(unit, SHORT).await.unwrap();
    second.stop(unit, SHORT).await.unwrap();
    assert_eq!(state(&second, unit).await, None);
    assert!(!machine.directory(unit).exists());
}

#[tokio::test]
async fn the_end_of_an_engine_that_is_not_a_child_is_seen_without_its_code() {
    let machine = Machine::new();
    let runtime = machine.runtime();
    let unit = unit(1, 1);
    start(&runtime, order(unit, "exit 0")).await;
    timeout(LIMIT, runtime.ended(unit)).await.unwrap().unwrap();
    drop(runtime);
    // Its parent ends at once, so that the first process of the machine is its parent.
    let path = machine.path("pid");
    let script = format!("sleep 60 & echo $! > {}", path.display());
    assert!(Command::new("/bin/sh").args(["-c", &script]).stdout(Stdio::null()).status().unwrap().success());
    let other = written(&path).await;
    machine.rewrite(unit, |record| {
        let Stage::Launched(_, started) = &mut record.stage else { panic!("it has been launched") };
        started.process = other;
    });
    fs::remove_file(machine.directory(unit).join("exit.json")).unwrap();

    let runtime = machine.runtime();
    assert!(matches!(state(&runtime, unit).await, Some(UnitState::Running(_))));
    let (exit, sent) = futures_util::future::join(timeout(LIMIT, runtime.ended(unit)), async {
        kernel::signal(other, Signal::KILL).unwrap()
    })
    .await;
    assert!(sent);
    assert_eq!(exit.unwrap().unwrap(), UNSEEN);
    runtime.stop(unit, SHORT).await.unwrap();
}

#[tokio::test]
async fn an_engine_whose_starter_died_before_it_wrote_it_down_is_found_by_its_mark() {
    let machine = Machine::new();
    let first = machine.runtime();
    let (unit, starts) = (unit(1, 1), machine.path("starts"));
    let launch = order(unit, &format!("echo x >> {}; sleep 60 & wait", starts.display()));
    start(&first, launch.clone()).await;
    until("the start", || starts.exists()).await;
    let process = machine.process(unit);
    drop(first);
    machine.rewrite(unit, |record| {
        let Stage::Launched(order, _) = record.stage.clone() else { panic!("it has been launched") };
        record.stage = Stage::Launching(order);
    });

    let second = machine.runtime();
    start(&second, launch).await;
    assert_eq!(machine.process(unit), process);
    assert!(matches!(state(&machine.runtime(), unit).await, Some(UnitState::Running(_))));
    assert_eq!(fs::read_to_string(starts).unwrap(), "x\n");
    second.stop(unit, SHORT).await.unwrap();
    assert!(!kernel::runs(process));
}

#[tokio::test]
async fn a_place_at_which_nothing_was_started_does_not_outlive_its_maker() {
    let machine = Machine::new();
    let first = machine.runtime();
    first.place(unit(1, 1)).await.unwrap();
    assert_eq!(first.units().await.unwrap(), []);
    assert!(machine.directory(unit(1, 1)).exists());
    assert_eq!(machine.runtime().units().await.unwrap(), []);
    assert!(!machine.directory(unit(1, 1)).exists());
}

#[tokio::test]
async fn a_process_with_another_start_or_of_another_boot_is_not_signalled() {
    let machine = Machine::new();
    let first = machine.runtime();
    let mut bystander = Command::new("/bin/sleep").arg("60").spawn().unwrap();
    let bystander_now = kernel::look(i32::try_from(bystander.id()).unwrap()).unwrap().identity;
    for case in [1, 2] {
        let unit = unit(case, 1);
        start(&first, order(unit, "exit 0")).await;
        timeout(LIMIT, first.ended(unit)).await.unwrap().unwrap();
        machine.rewrite(unit, |record| {
            let Stage::Launched(_, started) = &mut record.stage else { panic!("it has been launched") };
            started.process = bystander_now;
            match case {
                1 => started.process.started -= 1,
                _ => started.boot_id = "another".to_owned(),
            }
        });
        fs::remove_file(machine.directory(unit).join("exit.json")).unwrap();
        let runtime = machine.runtime();
        assert_eq!(state(&runtime, unit).await, Some(UnitState::Ended(UNSEEN)));
        runtime.stop(unit, SHORT).await.unwrap();
        assert!(!machine.directory(unit).exists());
        assert!(kernel::runs(bystander_now), "case {case}");
    }
    bystander.kill().unwrap();
    bystander.wait().unwrap();
}

#[tokio::test]
async fn a_record_that_can_not_be_read_is_left_alone_and_hides_no_other_unit() {
    let machine = Machine::new();
    let runtime = machine.runtime();
    for deployment in [1, 2, 3] {
        start(&runtime, order(unit(deployment, 1), "exec sleep 60")).await;
    }
    let kept: Vec<_> = [1, 2].map(|deployment| machine.directory(unit(deployment, 1)).join("unit.json")).to_vec();
    let before: Vec<_> = kept.iter().map(|path| fs::read(path).unwrap()).collect();
    fs::write(&kept[0], "{").unwrap();
    let newer = String::from_utf8(before[1].clone()).unwrap().replace("\"version\": 1", "\"version\": 2");
    fs::write(&kept[1], newer).unwrap();
    let next = machine.runtime();
    let found = next.units().await.unwrap();
    assert_eq!(found.iter().map(|found| found.unit).collect::<Vec<_>>(), [unit(3, 1)]);
    assert!(next.place(unit(1, 1)).await.is_err());
    for (path, before) in kept.iter().zip(before) {
        fs::write(path, before).unwrap();
    }
    for deployment in [1, 2, 3] {
        next.stop(unit(deployment, 1), SHORT).await.unwrap();
    }
}

/// The part of the test below that is killed: it starts engines one after the other.
async fn start_until_killed(data: &str, fleet: &str) {
    let fleet = FleetId(fleet.parse().unwrap());
    let machine =
        Machine { data: tempfile::tempdir().unwrap(), owner: Owner { fleet, generation: 3, node: NodeId(7) } };
    let options = ProcessOptions { directory: PathBuf::from(data), ..machine.options() };
    let runtime = ProcessRuntime::new(machine.owner, options);
    for number in 1..=40 {
        start(&runtime, order(unit(number, 1), &counting(Path::new(data), number))).await;
    }
}

fn counting(data: &Path, number: u64) -> String {
    format!("echo x >> {}/starts-{number}; exec sleep 60", data.display())
}

#[tokio::test]
async fn killed_at_any_moment_no_engine_is_lost_and_none_is_started_twice() {
    const DATA: &str = "MUSTER_TEST_DATA";
    const FLEET: &str = "MUSTER_TEST_FLEET";
    if let (Ok(data), Ok(fleet)) = (std::env::var(DATA), std::env::var(FLEET)) {
        return start_until_killed(&data, &fleet).await;
    }
    for round in 0..8 {
        let machine = Machine::new();
        let mut starter = Command::new(std::env::current_exe().unwrap())
            .args([
                "--exact",
                "runtime::process::tests::after_a_crash::killed_at_any_moment_no_engine_is_lost_and_none_is_started_twice",
            ])
            .env(DATA, machine.data.path())
            .env(FLEET, machine.owner.fleet.to_string())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        let first = machine.directory(unit(1, 1));
        until("the first unit", || first.exists()).await;
        // Not to wait for something, but to hit another moment each time.
        sleep(Duration::from_millis(7 * round)).await;
        starter.kill().unwrap();
        starter.wait().unwrap();

        let runtime = machine.runtime();
        let found = runtime.units().await.unwrap();
        let count = found.len() as u64;
        for number in 1..=count + 1 {
            start(&runtime, order(unit(number, 1), &counting(machine.data.path(), number))).await;
        }
        for number in 1..=count + 1 {
            let starts = machine.path(&format!("starts-{number}"));
            until("a start", || fs::read_to_string(&starts).is_ok_and(|text| !text.is_empty())).await;
            assert_eq!(fs::read_to_string(&starts).unwrap(), "x\n", "unit {number} of round {round}");
        }
        for number in 1..=count + 1 {
            let process = machine.process(unit(number, 1));
            runtime.stop(unit(number, 1), LIMIT).await.unwrap();
            assert!(!kernel::runs(process));
            let mark = spawn::mark(&machine.owner, unit(number, 1));
            let uid = rustix::process::geteuid().as_raw();
            assert_eq!(members::main_of(&mark, uid).unwrap(), None);
        }
        let left: Vec<_> =
            fs::read_dir(machine.path("units")).unwrap().map(|entry| entry.unwrap().file_name()).collect();
        assert_eq!(left, [".lock"]);
    }
}

#[tokio::test]
async fn a_log_has_each_line_once_however_often_muster_is_restarted() {
    let machine = Machine::new();
    let unit = unit(1, 1);
    let script = "i=0; while [ $i -lt 3000 ]; do i=$((i+1)); echo line $i; [ $((i % 50)) = 0 ] && sleep 0.01; done";
    start(&machine.runtime(), order(unit, script)).await;
    let open = || Arc::new(LogStore::open(machine.path("logs"), LogBounds::default()).unwrap());
    let lines = || open().tail(unit.placement, 2000).unwrap();
    let mut before = 0;
    for _ in 0..5 {
        let (runtime, store) = (machine.runtime(), open());
        let follower = Follower::start(Arc::new(runtime.clone()), Arc::clone(&store), unit, None);
        until("more lines", || lines().len() > before).await;
        drop(follower);
        // What was under way in the threads ends with a process, and here by itself.
        until("its end", || Arc::strong_count(&runtime.life) == 1 && Arc::strong_count(&store) == 1).await;
        before = lines().len().min(1500);
    }
    timeout(LIMIT, Follower::start(Arc::new(machine.runtime()), open(), unit, None).finished()).await.unwrap();
    let mut text = String::new();
    io::Read::read_to_string(&mut open().download(unit.placement).unwrap().unwrap(), &mut text).unwrap();
    let said: Vec<&str> = text.lines().map(|line| &line[22..]).collect();
    assert_eq!(said, (1..=3000).map(|number| format!("line {number}")).collect::<Vec<_>>());
    machine.runtime().stop(unit, SHORT).await.unwrap();
}
