//! Units from their launch to their end.

use std::process::{Command, Stdio};
use std::time::{Duration, Instant, SystemTime};

use muster_agent::runtime::container::{Family, Flavour, Listen};
use muster_agent::runtime::{Endpoint, EngineKind, Exit, Owner, Runtime, RuntimeError, UnitState};
use muster_cluster::ids::NodeId;
use tokio::sync::mpsc;

use crate::daemons::{Bench, LIMIT, SECRET, answers, bench, benches, started, stream, unit};

async fn inspect(bench: &Bench) -> serde_json::Value {
    let filters =
        std::collections::HashMap::from([("label".to_owned(), vec![format!("muster.fleet={}", bench.owner.fleet)])]);
    let options =
        bollard::query_parameters::ListContainersOptions { all: true, filters: Some(filters), ..Default::default() };
    let containers = bench.docker.list_containers(Some(options)).await.expect("containers");
    assert_eq!(containers.len(), 1);
    let id = containers[0].id.as_deref().expect("an identity");
    serde_json::to_value(bench.docker.inspect_container(id, None).await.expect("a container")).expect("JSON")
}

#[tokio::test]
async fn a_unit_is_launched_answers_is_found_and_ends_without_a_trace() {
    for bench in benches().await {
        bench.runtime.available().await.expect("available");
        let launched =
            started(&bench.runtime, bench.launch(unit(1, 7), &["--model", "org/m"])).await.expect("launched");
        answers(&launched.endpoint).await;
        let found = bench.runtime.units().await.expect("units");
        assert_eq!(found.len(), 1, "{}", bench.flavour);
        assert_eq!(found[0].state, UnitState::Running(launched.endpoint.clone()));
        assert_eq!((found[0].unit, found[0].engine, found[0].generation), (unit(1, 7), EngineKind::Sim, 1));
        assert_eq!((found[0].spec_hash.as_str(), &found[0].image_digest), ("one", &launched.image_digest));
        assert!(found[0].image_digest.as_deref().is_some_and(|digest| digest.contains("sha256:")));

        bench.runtime.stop(unit(1, 7), Duration::from_secs(10)).await.expect("stopped");
        bench.runtime.stop(unit(1, 7), Duration::from_secs(10)).await.expect("it has been stopped");
        assert_eq!(bench.runtime.units().await.expect("units"), []);
        let Endpoint::Unix(socket) = launched.endpoint else { panic!("a socket") };
        assert!(!socket.parent().expect("a directory").exists());
        bench.clean().await;
    }
}

#[tokio::test]
async fn a_container_is_made_as_it_should_be_and_shows_no_secret_in_its_labels() {
    for bench in benches().await {
        started(&bench.runtime, bench.launch(unit(1, 7), &[])).await.expect("launched");
        let mut details = inspect(&bench).await;
        let host = details["HostConfig"].take();
        assert_eq!(host["ShmSize"], 3_u64 << 30, "{}", bench.flavour);
        assert_eq!(host["RestartPolicy"]["Name"].as_str().unwrap_or("no"), "no");
        assert_eq!(host["LogConfig"]["Type"], "json-file");
        assert_ne!(host["IpcMode"], "host");
        assert_ne!(host["NetworkMode"], "host");
        assert_eq!(host["Init"], true);
        let fleet = bench.owner.fleet.to_string();
        assert_eq!(
            details["Name"].as_str().map(|name| name.trim_start_matches('/')),
            Some(&*format!("muster-{}-1-0-7", &fleet[..8]))
        );
        assert!(!details["Config"]["Labels"].to_string().contains(SECRET));
        assert!(details["Config"]["Env"].to_string().contains(SECRET));
        if bench.flavour == Flavour::Docker {
            let network = host["NetworkMode"].as_str().expect("a network");
            let network = bench.docker.inspect_network(network, None).await.expect("a network");
            let options = network.options.expect("options");
            assert_eq!(options["com.docker.network.bridge.enable_icc"], "false");
        }
        bench.clean().await;
    }
}

#[tokio::test]
async fn a_launch_that_is_repeated_does_nothing_and_one_of_another_specification_starts_anew() {
    for bench in benches().await {
        started(&bench.runtime, bench.launch(unit(1, 7), &[])).await.expect("launched");
        let first = inspect(&bench).await["Id"].take();
        started(&bench.runtime, bench.launch(unit(1, 7), &[])).await.expect("launched");
        assert_eq!(inspect(&bench).await["Id"], first, "{}", bench.flavour);
        let mut changed = bench.launch(unit(1, 7), &[]);
        changed.spec_hash = "two".to_owned();
        let launched = started(&bench.runtime, changed).await.expect("launched");
        answers(&launched.endpoint).await;
        assert_ne!(inspect(&bench).await["Id"], first);
        bench.clean().await;
    }
}

#[tokio::test]
async fn another_node_and_another_fleet_on_the_same_daemon_neither_see_nor_stop_it() {
    for bench in benches().await {
        let launched = started(&bench.runtime, bench.launch(unit(1, 7), &[])).await.expect("launched");
        answers(&launched.endpoint).await;
        let other_node = Owner { node: NodeId(2), ..bench.owner };
        let other_fleet = Owner { fleet: muster_cluster::ids::FleetId::random(), ..bench.owner };
        let family = Family::new(["vllm/vllm-openai"]);
        for owner in [other_node, other_fleet] {
            let runtime = bench.runtime_of(owner, Listen::Socket, None);
            assert_eq!(runtime.units().await.expect("units"), []);
            let strays = runtime.strays(&Default::default(), &family).await.expect("strays");
            assert!(strays.iter().all(|stray| !stray.name.contains(&bench.owner.fleet.to_string()[..8])));
            assert!(matches!(runtime.ended(unit(1, 7)).await, Err(RuntimeError::NotFound(_))));
        }
        bench
            .runtime_of(other_node, Listen::Socket, None)
            .stop(unit(1, 7), Duration::ZERO)
            .await
            .expect("nothing to stop");
        answers(&launched.endpoint).await;
        bench.clean().await;
    }
}

#[tokio::test]
async fn nodes_of_a_fleet_that_start_at_once_share_one_network() {
    for bench in benches().await {
        let nodes = [1, 2, 3].map(|node| {
            let owner = Owner { node: NodeId(node), ..bench.owner };
            bench.runtime_of(owner, Listen::Socket, None)
        });
        let launches =
            nodes.iter().zip(1..).map(|(runtime, number)| started(runtime, bench.launch(unit(number, 7), &[])));
        for launched in futures_util::future::join_all(launches).await {
            answers(&launched.expect("launched").endpoint).await;
        }
        let filters = std::collections::HashMap::from([(
            "label".to_owned(),
            vec![format!("muster.fleet={}", bench.owner.fleet)],
        )]);
        let options = bollard::query_parameters::ListNetworksOptions { filters: Some(filters) };
        let networks = bench.docker.list_networks(Some(options)).await.expect("networks");
        assert_eq!(networks.len(), 1, "{}", bench.flavour);
        for (runtime, number) in nodes.iter().zip(1..) {
            runtime.stop(unit(number, 7), Duration::from_secs(5)).await.expect("stopped");
        }
        bench.clean().await;
    }
}

/// Whether something can be reached at an address from within a container's network, or from the machine.
fn reaches(process: Option<i64>, address: &str) -> bool {
    let dial = format!("exec 3<>/dev/tcp/{address}/8000");
    let mut command = Command::new("timeout");
    command.arg("2");
    if let Some(process) = process {
        command.args(["nsenter", &format!("--net=/proc/{process}/ns/net")]);
    }
    command.args(["bash", "-c", &dial]).stderr(Stdio::null()).status().expect("a shell").success()
}

#[tokio::test]
async fn containers_of_a_fleet_do_not_reach_one_another() {
    let Some(bench) = bench(Flavour::Docker).await else { return };
    let runtime = bench.runtime_of(bench.owner, Listen::Loopback, None);
    let mut processes = Vec::new();
    let mut addresses = Vec::new();
    for number in [1, 2] {
        let launched = started(&runtime, bench.launch(unit(number, 7), &[])).await.expect("launched");
        answers(&launched.endpoint).await;
        let name = format!("muster-{}-{number}-0-7", &bench.owner.fleet.to_string()[..8]);
        let details = bench.docker.inspect_container(&name, None).await.expect("a container");
        processes.push(details.state.and_then(|state| state.pid).expect("a number"));
        let networks = details.network_settings.and_then(|settings| settings.networks).expect("networks");
        addresses.extend(networks.into_values().filter_map(|network| network.ip_address));
    }
    assert!(reaches(None, &addresses[1]), "nobody listens at {addresses:?}");
    let reached = reaches(Some(processes[0]), &addresses[1]);
    bench.clean().await;
    assert!(!reached);
}

#[tokio::test]
async fn an_engine_that_fails_is_told_with_its_code_and_stays_until_it_is_removed() {
    for bench in benches().await {
        let launch = bench.launch(unit(1, 7), &["--load-seconds", "1", "--fail-start"]);
        started(&bench.runtime, launch).await.expect("launched");
        let exit =
            tokio::time::timeout(LIMIT, bench.runtime.ended(unit(1, 7))).await.expect("in time").expect("an end");
        assert_eq!(exit, Exit { code: Some(1), signal: None, out_of_memory: false }, "{}", bench.flavour);
        assert_eq!(bench.runtime.ended(unit(1, 7)).await.expect("an end"), exit);
        let found = bench.runtime.units().await.expect("units");
        assert_eq!(found[0].state, UnitState::Ended(exit));
        bench.clean().await;
        assert!(matches!(bench.runtime.ended(unit(1, 7)).await, Err(RuntimeError::NotFound(_))));
    }
}

#[tokio::test]
async fn an_engine_that_freezes_on_a_stream_is_killed_when_its_grace_is_over() {
    for bench in benches().await {
        let launched =
            started(&bench.runtime, bench.launch(unit(1, 7), &["--tokens-per-second", "5"])).await.expect("launched");
        answers(&launched.endpoint).await;
        let _held = stream(&launched.endpoint);
        let begun = Instant::now();
        let (stopped, ended) = tokio::join!(
            bench.runtime.stop(unit(1, 7), Duration::from_millis(1500)),
            tokio::time::timeout(LIMIT, bench.runtime.ended(unit(1, 7))),
        );
        stopped.expect("stopped");
        assert!(begun.elapsed() >= Duration::from_millis(1500), "{}: the grace was not given", bench.flavour);
        let exit = ended.expect("in time").expect("an end");
        assert_eq!((exit.code, exit.signal), (Some(137), Some(9)), "{}", bench.flavour);
        assert_eq!(bench.runtime.units().await.expect("units"), []);
        bench.clean().await;
    }
}

#[tokio::test]
async fn an_engine_on_a_published_port_is_reached_on_loopback() {
    for bench in benches().await {
        let runtime = bench.runtime_of(bench.owner, Listen::Loopback, None);
        let launched = started(&runtime, bench.launch(unit(1, 7), &[])).await.expect("launched");
        assert!(matches!(launched.endpoint, Endpoint::Tcp(address) if address.ip().is_loopback()));
        answers(&launched.endpoint).await;
        let found = runtime.units().await.expect("units");
        assert_eq!(found[0].state, UnitState::Running(launched.endpoint));
        bench.clean().await;
    }
}

#[tokio::test]
async fn what_an_engine_says_is_followed_to_its_end_and_not_told_twice() {
    for bench in benches().await {
        let launch = bench.launch(unit(1, 7), &["--model", "org/m", "--load-seconds", "1", "--fail-start"]);
        started(&bench.runtime, launch).await.expect("launched");
        let (sender, mut receiver) = mpsc::channel(16);
        let following = bench.runtime.follow(unit(1, 7), None, sender);
        let reading = async {
            let mut lines = Vec::new();
            while let Some(line) = receiver.recv().await {
                lines.push(line);
            }
            lines
        };
        let (followed, lines) =
            tokio::time::timeout(LIMIT, async { tokio::join!(following, reading) }).await.expect("in time");
        followed.expect("followed");
        let texts: Vec<_> = lines.iter().map(|line| line.text.as_str()).collect();
        assert!(texts[0].contains("Starting to load model org/m"), "{texts:?}");
        assert!(texts.last().is_some_and(|last| last.contains("See root cause above")), "{texts:?}");
        assert!(lines.iter().all(|line| line.at.elapsed().is_ok_and(|age| age < LIMIT)));

        // From the first line on: the second that it is in is asked for again, and it is left out.
        let (sender, mut receiver) = mpsc::channel(64);
        bench.runtime.follow(unit(1, 7), Some(lines[0].at), sender).await.expect("followed");
        let mut rest = Vec::new();
        while let Ok(line) = receiver.try_recv() {
            rest.push(line);
        }
        let later: Vec<_> = lines.iter().filter(|line| line.at > lines[0].at).cloned().collect();
        assert_eq!(rest, later, "{}", bench.flavour);
        let (sender, mut receiver) = mpsc::channel(64);
        bench.runtime.follow(unit(1, 7), Some(SystemTime::now()), sender).await.expect("followed");
        assert!(receiver.try_recv().is_err());
        bench.clean().await;
    }
}

#[tokio::test]
async fn following_ends_when_nobody_listens() {
    for bench in benches().await {
        let launched = started(&bench.runtime, bench.launch(unit(1, 7), &[])).await.expect("launched");
        answers(&launched.endpoint).await;
        let (sender, receiver) = mpsc::channel(1);
        let following = bench.runtime.follow(unit(1, 7), Some(SystemTime::now()), sender);
        let leaving = async move { drop(receiver) };
        let (followed, ()) =
            tokio::time::timeout(LIMIT, async { tokio::join!(following, leaving) }).await.expect("in time");
        followed.expect("followed");
        bench.clean().await;
    }
}

/// A process of the machine is put into the container's control group: like a worker that hangs in the driver, it is of the
/// container and does not go with it.
#[tokio::test]
async fn a_process_that_outlives_its_container_is_killed() {
    let Some(bench) = bench(Flavour::Docker).await else { return };
    let launched = started(&bench.runtime, bench.launch(unit(1, 7), &[])).await.expect("launched");
    answers(&launched.endpoint).await;
    let root = inspect(&bench).await["State"]["Pid"].as_i64().expect("a number");
    let groups = std::fs::read_to_string(format!("/proc/{root}/cgroup")).expect("groups");
    // The freezer is what runc ends processes by; any other controller only counts them.
    let line = groups.lines().find(|line| line.contains(":blkio:") || line.starts_with("0::/docker"));
    let Some((controller, path)) = line.and_then(|line| line.split_once(':')?.1.split_once(':')) else {
        println!("skipped: no control group to put a process into");
        bench.clean().await;
        return;
    };
    let mut child = Command::new("sleep").arg("600").stdout(Stdio::null()).spawn().expect("a process");
    let group = format!("/sys/fs/cgroup/{controller}{path}/cgroup.procs");
    std::fs::write(&group, child.id().to_string()).expect("moved");
    bench.runtime.stop(unit(1, 7), Duration::from_secs(5)).await.expect("stopped");
    let ended = child.try_wait().expect("asked");
    child.kill().expect("killed");
    child.wait().expect("ended");
    bench.clean().await;
    assert!(ended.is_some(), "it outlived its container");
}
