//! What can not run in a container, and what is said of it.

use muster_tests::containers::{DOCKER, Daemon};
use muster_tests::groups::Need;
use muster_tests::mesh::{Machine, Mesh};
use serde_json::json;

use super::{Yard, is, start};

#[test]
fn an_image_that_can_not_be_got_is_an_error_about_the_image() {
    if !Need::Docker.is_met("docker") {
        return;
    }
    // Nobody listens there.
    let yard = Yard::on(Daemon::named_by(DOCKER), 1, &[("MUSTER_VLLM_IMAGE", "127.0.0.1:9/no/such-image")]);
    let id = start(&yard.admin(), &json!({"vllm_version": "0.0.1", "max_failed_restarts": 1}));
    let failed = is(&yard.admin(), id, "error");
    assert_eq!(failed["error_code"], "image", "{failed}");
    let why = failed["last_error"].as_str().expect("an error");
    assert!(why.contains("127.0.0.1:9/no/such-image:v0.0.1"), "{why}");
    assert_eq!(yard.containers(), []);
}

#[test]
fn the_simulators_image_is_looked_for_on_the_node_and_nowhere_else() {
    if !Need::Docker.is_met("docker") {
        return;
    }
    let daemon = Daemon::named_by(DOCKER);
    let name = format!("127.0.0.1:9/sim-{}", std::process::id());
    // `muster dev` would find the program.
    let mut machine = Machine::on_loopback();
    machine.variables = vec![
        ("MUSTER_DOCKER", daemon.socket().into()),
        ("MUSTER_SIM_IMAGE", name.as_str().into()),
        ("MUSTER_GPUS", "none".into()),
    ];
    let mesh = Mesh::of(vec![machine]);
    let admin = mesh.api(0);
    let order =
        json!({"node_id": 1, "model_name": "org/m", "gpu_memory_fraction": 0.5, "owner": "a test", "engine": "sim"});
    let id = admin.post("/api/deployments/start", &order).expect(200).body["id"].as_u64().expect("a number");
    let failed = is(&admin, id, "error");
    assert_eq!(failed["error_code"], "image", "{failed}");
    let why = failed["last_error"].as_str().expect("an error");
    assert!(why.contains(&name) && why.contains("built on this node"), "{why}");

    daemon.make_image(&format!("{name}:latest"), &name);
    let _ = admin.post(&format!("/api/deployments/{id}/restart"), &json!({"owner": "a test"})).expect(200);
    is(&admin, id, "running");
    let _ = admin.post(&format!("/api/deployments/stop/{id}"), &json!({})).expect(200);
    is(&admin, id, "stopped");
    let fleet = admin.get("/api/cluster").expect(200).body["fleetId"].as_str().expect("an id").to_owned();
    daemon.clean(&fleet);
    daemon.forget_image(&format!("{name}:latest"));
}

#[test]
fn a_package_that_was_not_uploaded_is_not_taken_from_the_machine() {
    let Some(yard) = Yard::new() else { return };
    let id = start(&yard.admin(), &json!({"extra_packages": ["/etc/passwd"]}));
    let failed = is(&yard.admin(), id, "error");
    assert_eq!(failed["error_code"], "bad_args", "{failed}");
    assert_eq!(yard.containers(), []);
}
