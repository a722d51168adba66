//! The runtime against recorded answers. Those of Docker 20.10 and Podman 4.3 were taken from these versions; those of newer
//! ones follow the documentation of their API, as no such daemon was at hand.

mod images;

use std::sync::Arc;

use serde_json::{Value, json};
use tokio::sync::watch;

use super::recorded::Recorded;
use super::testing::{self, SECRET};
use super::*;
use crate::runtime::{Endpoint, GpuRef, UnitState};

const DOCKER_20: &str = r#"{"Platform":{"Name":""},"Components":[{"Name":"Engine","Version":"20.10.24+dfsg1","Details":{"ApiVersion":"1.41","MinAPIVersion":"1.12","Os":"linux"}},{"Name":"containerd","Version":"1.6.20~ds1","Details":{"GitCommit":"1.6.20~ds1-1+deb12u3"}}],"Version":"20.10.24+dfsg1","ApiVersion":"1.41","MinAPIVersion":"1.12","GitCommit":"5d6db84","GoVersion":"go1.19.8","Os":"linux","Arch":"amd64","KernelVersion":"6.1","BuildTime":"2026-05-07T21:09:36.000000000+00:00"}"#;
const DOCKER_29: &str = r#"{"Components":[{"Name":"Engine","Version":"29.1.0"}],"Version":"29.1.0","ApiVersion":"1.52","MinAPIVersion":"1.44","Os":"linux","Arch":"amd64"}"#;
const PODMAN_4: &str = r#"{"Platform":{"Name":"linux/amd64/debian-12"},"Components":[{"Name":"Podman Engine","Version":"4.3.1","Details":{"APIVersion":"4.3.1","MinAPIVersion":"4.0.0","Os":"linux"}},{"Name":"Conmon","Version":"conmon version 2.1.6, commit: unknown","Details":{"Package":"conmon_2.1.6+ds1-1_amd64"}}],"Version":"4.3.1","ApiVersion":"1.41","MinAPIVersion":"1.24","GitCommit":"","GoVersion":"go1.19.8","Os":"linux","Arch":"amd64","KernelVersion":"6.1","BuildTime":"1970-01-01T00:00:00Z"}"#;
const PODMAN_5: &str = r#"{"Components":[{"Name":"Podman Engine","Version":"5.4.2"}],"Version":"5.4.2","ApiVersion":"1.41","MinAPIVersion":"1.24","Os":"linux","Arch":"amd64"}"#;

const IMAGE: &str = "vllm/vllm-openai:v1";
const HAS_IMAGE: (&str, u16, &str) = (
    "GET /images/vllm/vllm-openai:v1/json",
    200,
    r#"{"Id":"sha256:11","RepoTags":["vllm/vllm-openai:v1"],"RepoDigests":["vllm/vllm-openai@sha256:22"],"RootFS":{"Type":"layers","Layers":["sha256:33"]}}"#,
);
const NO_CONTAINERS: (&str, u16, &str) = ("GET /containers/json", 200, "[]");
const HAS_NETWORK: (&str, u16, &str) = ("GET /networks", 200, r#"[{"Name":"muster-73697874","Id":"n1"}]"#);
const CREATED: (&str, u16, &str) = ("POST /containers/create", 201, r#"{"Id":"c1","Warnings":[]}"#);
const STARTED: (&str, u16, &str) = ("POST /containers/c1/start", 204, "");

fn runtime(flavour: Flavour, recorded: &Recorded) -> ContainerRuntime {
    let daemon = Arc::new(Daemon::new(flavour, vec![recorded.directory().join("none.sock"), recorded.socket()]));
    let options = ContainerOptions {
        owner: testing::owner(7),
        listen: Listen::Socket,
        places: recorded.directory().join("units"),
        short_places: recorded.directory().join("s"),
        cdi_directories: vec![recorded.directory().join("cdi")],
    };
    ContainerRuntime::new(daemon, None, options)
}

fn with_gpu(image: &str) -> Launch {
    let gpu = GpuRef { index: 1, uuid: "GPU-1".to_owned() };
    Launch { gpus: vec![gpu], ..testing::launch(testing::unit(1, 0, 5), image) }
}

async fn launched(runtime: &ContainerRuntime, launch: Launch) -> Result<Launched, RuntimeError> {
    runtime.place(launch.unit).await.expect("a place");
    runtime.launch(launch, watch::Sender::new(Progress::default())).await
}

fn created(recorded: &Recorded) -> Value {
    let asked = recorded.asked("POST /containers/create");
    serde_json::from_slice(&asked.last().expect("a container was created").body).expect("JSON")
}

#[tokio::test]
async fn an_old_docker_is_spoken_to_in_its_own_version_of_the_api() {
    let recorded = Recorded::new(&[("GET /version", 200, DOCKER_20), NO_CONTAINERS]);
    let runtime = runtime(Flavour::Docker, &recorded);
    assert_eq!(runtime.units().await.expect("units"), []);
    assert!(recorded.asked("GET /version")[0].line.starts_with("GET /version"));
    assert!(recorded.asked("GET /containers/json")[0].line.starts_with("GET /v1.41/containers/json"));
}

#[tokio::test]
async fn only_what_carries_this_fleet_and_node_is_asked_for() {
    let recorded = Recorded::new(&[("GET /version", 200, DOCKER_20), NO_CONTAINERS]);
    runtime(Flavour::Docker, &recorded).units().await.expect("units");
    let line = &recorded.asked("GET /containers/json")[0].line;
    let line = percent_encoding::percent_decode_str(line).decode_utf8().expect("text").into_owned();
    let fleet = testing::owner(7).fleet;
    assert!(line.contains(&format!("muster.fleet={fleet}")) && line.contains("muster.node=7"), "{line}");
    assert!(line.contains("all=true"), "{line}");
}

#[tokio::test]
async fn a_daemon_that_is_not_there_is_unavailable_and_the_reason_says_what_to_do() {
    let recorded = Recorded::new(&[]);
    let daemon = Arc::new(Daemon::new(Flavour::Podman, vec![recorded.directory().join("none.sock")]));
    let error = daemon.facts().await.expect_err("nothing is there");
    let RuntimeError::Unavailable { runtime: RuntimeKind::Podman, why } = error else { panic!("{error}") };
    assert!(why.contains("none.sock") && why.contains("podman.socket"), "{why}");
}

#[tokio::test]
async fn a_daemon_that_goes_is_noticed_and_found_again_when_it_is_back() {
    let answers = [("GET /version", 200, DOCKER_20), ("GET /_ping", 200, "OK"), NO_CONTAINERS];
    let recorded = Recorded::new(&answers);
    let runtime = runtime(Flavour::Docker, &recorded);
    runtime.available().await.expect("it is there");
    let socket = recorded.socket();
    let directory = recorded.stop();
    for error in [runtime.units().await.expect_err("gone"), runtime.available().await.expect_err("gone")] {
        assert!(matches!(error, RuntimeError::Unavailable { runtime: RuntimeKind::Docker, .. }), "{error}");
    }
    let back = Recorded::new(&answers);
    std::fs::rename(back.socket(), socket).expect("moved");
    let deadline = tokio::time::Instant::now() + Duration::from_secs(10);
    while let Err(error) = runtime.available().await {
        assert!(tokio::time::Instant::now() < deadline, "{error}");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    assert_eq!(runtime.units().await.expect("units"), []);
    drop(directory);
}

#[tokio::test]
async fn podman_behind_a_socket_that_is_called_dockers_is_found_out() {
    let recorded = Recorded::new(&[("GET /version", 200, PODMAN_4)]);
    let runtime = runtime(Flavour::Docker, &recorded);
    assert_eq!(runtime.daemon().facts().await.expect("facts").flavour, Flavour::Podman);
    assert_eq!(runtime.kind(), RuntimeKind::Docker);
    let error = launched(&runtime, with_gpu(IMAGE)).await.expect_err("no GPUs");
    let RuntimeError::Unsuitable(why) = error else { panic!("{error}") };
    assert!(why.contains("5.4"), "{why}");
    assert!(recorded.asked("POST").is_empty());
}

#[tokio::test]
async fn docker_is_asked_for_gpus_by_their_uuids() {
    let answers = [("GET /version", 200, DOCKER_20), HAS_IMAGE, NO_CONTAINERS, HAS_NETWORK, CREATED, STARTED];
    let recorded = Recorded::new(&answers);
    let done = launched(&runtime(Flavour::Docker, &recorded), with_gpu(IMAGE)).await.expect("launched");
    assert_eq!(done.image_digest.as_deref(), Some("vllm/vllm-openai@sha256:22"));
    let requests = &created(&recorded)["HostConfig"]["DeviceRequests"];
    assert_eq!(requests[0]["DeviceIDs"], json!(["GPU-1"]));
    assert_eq!(requests[0]["Capabilities"], json!([["gpu"]]));
}

#[tokio::test]
async fn docker_that_knows_cdi_is_asked_by_cdi() {
    let info = r#"{"ID":"x","DiscoveredDevices":[{"Source":"cdi","ID":"nvidia.com/gpu=GPU-1"}]}"#;
    let recorded = Recorded::new(&[
        ("GET /version", 200, DOCKER_29),
        ("GET /info", 200, info),
        HAS_IMAGE,
        NO_CONTAINERS,
        HAS_NETWORK,
        CREATED,
        STARTED,
    ]);
    launched(&runtime(Flavour::Docker, &recorded), with_gpu(IMAGE)).await.expect("launched");
    let requests = &created(&recorded)["HostConfig"]["DeviceRequests"];
    assert_eq!(requests[0]["Driver"], json!("cdi"));
    assert_eq!(requests[0]["DeviceIDs"], json!(["nvidia.com/gpu=GPU-1"]));
    assert!(recorded.asked("POST /containers/create")[0].line.starts_with("POST /v1.52/"));
}

#[tokio::test]
async fn a_new_podman_is_asked_by_cdi_with_the_names_of_the_specification() {
    let recorded =
        Recorded::new(&[("GET /version", 200, PODMAN_5), HAS_IMAGE, NO_CONTAINERS, HAS_NETWORK, CREATED, STARTED]);
    std::fs::create_dir(recorded.directory().join("cdi")).expect("a directory");
    std::fs::write(recorded.directory().join("cdi/n.json"), r#"{"kind":"nvidia.com/gpu"}"#).expect("a file");
    launched(&runtime(Flavour::Podman, &recorded), with_gpu(IMAGE)).await.expect("launched");
    let made = created(&recorded);
    assert_eq!(made["HostConfig"]["DeviceRequests"][0]["DeviceIDs"], json!(["nvidia.com/gpu=1"]));
    assert_eq!(made["HostConfig"]["NetworkMode"], json!("muster-73697874"));
}

#[tokio::test]
async fn a_docker_without_gpus_is_said_to_be_so_and_nothing_is_left() {
    let refusal = r#"{"message":"could not select device driver \"\" with capabilities: [[gpu]]"}"#;
    let recorded = Recorded::new(&[
        ("GET /version", 200, DOCKER_20),
        HAS_IMAGE,
        NO_CONTAINERS,
        HAS_NETWORK,
        CREATED,
        ("POST /containers/c1/start", 500, refusal),
        ("DELETE /containers/c1", 204, ""),
    ]);
    let error = launched(&runtime(Flavour::Docker, &recorded), with_gpu(IMAGE)).await.expect_err("no GPUs");
    let RuntimeError::Unsuitable(why) = error else { panic!("{error}") };
    assert!(why.contains("nvidia-ctk"), "{why}");
    assert_eq!(recorded.asked("DELETE /containers/c1").len(), 1);
}

#[tokio::test]
async fn a_refusal_is_passed_on_without_values_of_the_environment() {
    let refusal = format!(r#"{{"message":"bad variable HF_TOKEN={SECRET}"}}"#);
    let recorded = Recorded::new(&[
        ("GET /version", 200, DOCKER_20),
        HAS_IMAGE,
        NO_CONTAINERS,
        HAS_NETWORK,
        ("POST /containers/create", 400, &refusal),
    ]);
    let launch = testing::launch(testing::unit(1, 0, 5), IMAGE);
    let error = launched(&runtime(Flavour::Docker, &recorded), launch).await.expect_err("refused");
    assert!(!format!("{error} {error:?}").contains(SECRET), "{error}");
}

#[tokio::test]
async fn a_name_that_somebody_else_has_is_left_to_them() {
    let recorded = Recorded::new(&[
        ("GET /version", 200, DOCKER_20),
        HAS_IMAGE,
        NO_CONTAINERS,
        HAS_NETWORK,
        ("POST /containers/create", 409, r#"{"message":"Conflict. The container name is already in use"}"#),
    ]);
    let launch = testing::launch(testing::unit(1, 0, 5), IMAGE);
    let error = launched(&runtime(Flavour::Docker, &recorded), launch).await.expect_err("refused");
    assert!(matches!(error, RuntimeError::Start(_)), "{error}");
    assert!(recorded.asked("DELETE").is_empty());
}

#[tokio::test]
async fn a_network_without_traffic_between_containers_is_made_where_there_is_none() {
    let recorded = Recorded::new(&[
        ("GET /version", 200, DOCKER_20),
        HAS_IMAGE,
        NO_CONTAINERS,
        ("GET /networks", 200, "[]"),
        HAS_NETWORK,
        ("POST /networks/create", 201, r#"{"Id":"n1","Warning":""}"#),
        CREATED,
        STARTED,
    ]);
    let runtime = runtime(Flavour::Docker, &recorded);
    for _ in 0..2 {
        launched(&runtime, testing::launch(testing::unit(1, 0, 5), IMAGE)).await.expect("launched");
    }
    let asked = recorded.asked("POST /networks/create");
    assert_eq!(asked.len(), 1);
    let wanted: Value = serde_json::from_slice(&asked[0].body).expect("JSON");
    assert_eq!(wanted["Options"]["com.docker.network.bridge.enable_icc"], json!("false"));
    assert_eq!(wanted["Options"]["com.docker.network.bridge.name"], json!("muster-73697874"));
    assert_eq!(created(&recorded)["HostConfig"]["NetworkMode"], json!("n1"));
}

#[tokio::test]
async fn a_network_that_another_node_made_in_the_same_moment_is_used() {
    let taken = r#"{"cause":"network already exists","message":"network name muster-73697874 already used: network already exists","response":500}"#;
    let recorded = Recorded::new(&[
        ("GET /version", 200, PODMAN_4),
        HAS_IMAGE,
        NO_CONTAINERS,
        ("GET /networks", 200, "[]"),
        HAS_NETWORK,
        ("POST /networks/create", 500, taken),
        CREATED,
        STARTED,
    ]);
    let launch = testing::launch(testing::unit(1, 0, 5), IMAGE);
    launched(&runtime(Flavour::Podman, &recorded), launch).await.expect("launched");
    assert_eq!(created(&recorded)["HostConfig"]["NetworkMode"], json!("muster-73697874"));
}

#[tokio::test]
async fn a_container_whose_labels_were_changed_is_not_a_unit() {
    let owner = testing::owner(7);
    let mut labels = labels::written(&owner, &testing::launch(testing::unit(1, 0, 5), "x"));
    let whole = json!({"Id": "good", "Image": "x", "ImageID": "sha256:11", "State": "stopped", "Labels": labels});
    labels.insert("muster.epoch".to_owned(), "none".to_owned());
    let changed = json!({"Id": "bad", "Image": "x", "ImageID": "sha256:11", "State": "running", "Labels": labels});
    // A state that Docker has not: the list is read all the same.
    let details = json!({
        "Id": "good", "Image": "sha256:11", "Config": {"Image": "x"},
        "State": {"Status": "stopped", "Running": false, "ExitCode": 137, "OOMKilled": true, "StartedAt": "2026-01-01T00:00:00Z"}
    });
    let recorded = Recorded::new(&[
        ("GET /version", 200, DOCKER_20),
        ("GET /containers/json", 200, &json!([changed, whole]).to_string()),
        ("GET /containers/good/json", 200, &details.to_string()),
        ("GET /images/sha256:11/json", 200, HAS_IMAGE.2),
    ]);
    let units = runtime(Flavour::Docker, &recorded).units().await.expect("units");
    assert_eq!(units.len(), 1);
    let exit = Exit { code: Some(137), signal: Some(9), out_of_memory: true };
    assert_eq!((units[0].unit, &units[0].state), (testing::unit(1, 0, 5), &UnitState::Ended(exit)));
}

#[tokio::test]
async fn a_published_port_is_where_the_engine_is_reached() {
    let details = r#"{"Id":"c1","NetworkSettings":{"Ports":{"8000/tcp":[{"HostIp":"127.0.0.1","HostPort":"49153"}]}}}"#;
    let recorded = Recorded::new(&[
        ("GET /version", 200, DOCKER_20),
        HAS_IMAGE,
        NO_CONTAINERS,
        HAS_NETWORK,
        CREATED,
        STARTED,
        ("GET /containers/c1/json", 200, details),
    ]);
    let mut runtime = runtime(Flavour::Docker, &recorded);
    runtime.places.listen = Listen::Loopback;
    let unit = testing::unit(1, 0, 5);
    assert_eq!(runtime.place(unit).await.expect("a place").outside, None);
    let launched = launched(&runtime, testing::launch(unit, IMAGE)).await.expect("launched");
    assert_eq!(launched.endpoint, Endpoint::Tcp(([127, 0, 0, 1], 49153).into()));
}

#[tokio::test]
async fn a_launch_without_an_image_or_with_a_wrong_name_is_refused_before_anything_happens() {
    let recorded = Recorded::new(&[("GET /version", 200, DOCKER_20)]);
    let runtime = runtime(Flavour::Docker, &recorded);
    for image in [None, Some("x?force=1".to_owned())] {
        let launch = Launch { image, ..testing::launch(testing::unit(1, 0, 5), "x") };
        let error = launched(&runtime, launch).await.expect_err("refused");
        assert!(matches!(error, RuntimeError::Unsuitable(_)), "{error}");
    }
    assert!(recorded.asked("POST").is_empty() && recorded.asked("GET /containers").is_empty());
}
