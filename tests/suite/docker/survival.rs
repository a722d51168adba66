//! What engines in containers live through, and what they are started again after.

use muster_tests::fleet::PATIENCE;
use muster_tests::process::wait_for;
use serde_json::json;

use super::{Yard, answers, is, running};

#[test]
fn an_engine_lives_on_when_its_node_is_killed_and_is_found_again() {
    let Some(mut yard) = Yard::new() else { return };
    let id = running(&yard.admin(), &json!({}));
    let before = yard.container();
    yard.fleet.kill();
    assert_eq!(yard.container().details["State"]["Running"], true);
    yard.fleet.restart();
    answers(&yard.fleet.user(), "org/m");
    let after = is(&yard.admin(), id, "running");
    assert_eq!(after["last_error"], json!(null), "{after}");
    let found = yard.container();
    assert_eq!((&found.id, &found.details["State"]["Pid"]), (&before.id, &before.details["State"]["Pid"]));
    // It is no stranger's: it is stopped as if nothing had happened.
    let _ = yard.admin().post(&format!("/api/deployments/stop/{id}"), &json!({})).expect(200);
    is(&yard.admin(), id, "stopped");
    assert_eq!(yard.containers(), []);
}

#[test]
fn an_engine_that_is_killed_is_started_again_and_it_is_said_why() {
    let Some(yard) = Yard::new() else { return };
    let admin = yard.admin();
    let id = running(&admin, &json!({}));
    let first = yard.container();
    // As the kernel does it when memory runs out on the machine.
    yard.daemon.kill(&first.id);
    let why = wait_for(PATIENCE, "the end to be noticed", || {
        let seen = admin.get(&format!("/api/deployments/{id}")).expect(200).body;
        (seen["status"] != "running").then(|| seen["last_error"].as_str().unwrap_or_default().to_owned())
    });
    assert!(why.contains("signal 9"), "{why}");
    is(&admin, id, "running");
    let second = yard.container();
    assert_ne!(second.id, first.id);
    answers(&yard.fleet.user(), "org/m");
}

/// A container that somebody removes is not there any more, and nobody says how it ended.
#[test]
fn an_engine_whose_container_is_removed_is_started_again() {
    let Some(yard) = Yard::new() else { return };
    let id = running(&yard.admin(), &json!({}));
    let first = yard.container();
    let _ = yard.daemon.remove(&first.id).expect(204);
    let second =
        wait_for(PATIENCE, "another container", || yard.containers().into_iter().find(|one| one.id != first.id));
    is(&yard.admin(), id, "running");
    assert_eq!(yard.container().id, second.id);
    answers(&yard.fleet.user(), "org/m");
}
