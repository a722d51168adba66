//! A Docker Engine that comes and goes, and one that two fleets share.

use std::time::Duration;

use muster_tests::containers::{DOCKER, Daemon, OwnDocker};
use muster_tests::fleet::PATIENCE;
use muster_tests::groups::Need;
use muster_tests::process::wait_for;
use serde_json::{Value, json};

use super::{VERSION, Yard, answers, is, order, running};

#[test]
fn engines_come_back_when_docker_has_been_restarted() {
    if !Need::Docker.is_met("docker") {
        return;
    }
    let docker = OwnDocker::start();
    let yard = Yard::on(docker.daemon(), 1, &[]);
    let admin = yard.admin();
    let id = running(&admin, &json!({}));
    let first = yard.container();
    docker.stop();
    // Without it nobody can say what runs; nothing is given up for that.
    wait_for(PATIENCE, "the engine to be gone", || {
        let chat = json!({"model": "org/m", "messages": [{"role": "user", "content": "hello"}]});
        (yard.fleet.user().post("/v1/chat/completions", &chat).status != 200).then_some(())
    });
    docker.again();
    // Its engines ended with it.
    let second = wait_for(PATIENCE, "another container", || {
        yard.containers().into_iter().find(|one| one.id != first.id && one.details["State"]["Running"] == true)
    });
    let back = is(&admin, id, "running");
    assert_eq!(back["container_runtime"], "docker");
    assert_eq!(yard.container().id, second.id);
    answers(&yard.fleet.user(), "org/m");
}

#[test]
fn a_node_without_docker_says_so_and_uses_it_once_it_is_there() {
    if !Need::Docker.is_met("docker") {
        return;
    }
    let docker = OwnDocker::not_yet();
    let socket = docker.socket();
    let fleet = muster_tests::fleet::Fleet::start_with(&[("MUSTER_DOCKER", socket.to_str().expect("text"))]);
    let admin = fleet.admin();
    let refused = admin.post("/api/deployments/start", &order(1, &json!({})));
    refused.is_error(409, "CONFLICT");
    assert!(refused.body["detail"].to_string().contains("no container runtime"), "{refused}");
    for path in ["containers", "images"] {
        let refused = admin.get(&format!("/api/nodes/1/{path}"));
        refused.is_error(503, "NO_RUNTIME");
        assert!(refused.body["detail"].to_string().contains("docker.sock"), "{refused}");
    }
    docker.again();
    docker.daemon().make_image(&format!("vllm/vllm-openai:v{VERSION}"), "vllm/vllm-openai");
    let id = wait_for(Duration::from_secs(60), "the node to use Docker", || {
        let started = admin.post("/api/deployments/start", &order(1, &json!({})));
        (started.status == 200).then(|| started.body["id"].as_u64().expect("a number"))
    });
    is(&admin, id, "running");
    let _ = admin.post(&format!("/api/deployments/stop/{id}"), &json!({})).expect(200);
    is(&admin, id, "stopped");
}

#[test]
fn two_fleets_on_one_docker_leave_each_others_containers_alone() {
    let Some(mut ours) = Yard::new() else { return };
    let theirs = Yard::on(Daemon::named_by(DOCKER), 1, &[]);
    // The same numbers in both: the same node, the same deployment, the same model.
    let (id, other) = (running(&ours.admin(), &json!({})), running(&theirs.admin(), &json!({})));
    assert_eq!(id, other);
    let (mine, foreign) = (ours.container(), theirs.container());
    let listed = ours.admin().get("/api/nodes/1/containers").expect(200).body;
    let names: Vec<_> = listed.as_array().expect("a list").iter().map(|one| &one["id"]).collect();
    assert!(names.contains(&&json!(mine.id[..12])) && !names.contains(&&json!(foreign.id[..12])), "{listed}");
    let path = format!("/api/nodes/1/containers/{}/stop", foreign.id);
    ours.admin().post(&path, &Value::Null).is_error(404, "NOT_FOUND");
    // A node that looks through what it finds, as each does when it starts, has no part in another fleet's.
    ours.fleet.kill();
    ours.fleet.restart();
    answers(&ours.fleet.user(), "org/m");
    let _ = ours.admin().post(&format!("/api/deployments/stop/{id}"), &json!({})).expect(200);
    is(&ours.admin(), id, "stopped");
    assert_eq!(ours.containers(), []);
    assert_eq!(theirs.container().details["State"]["Pid"], foreign.details["State"]["Pid"]);
    answers(&theirs.fleet.user(), "org/m");
}
