//! The end of a deployment's time, and moving it.

use muster_tests::fleet::PATIENCE;
use muster_tests::process::wait_for;
use serde_json::{Value, json};

use super::{Park, answers, call, gone, is, only, running, start};

/// Seconds since the beginning of 1970.
fn seconds(time: &Value) -> i64 {
    let time = time.as_str().unwrap_or_else(|| panic!("no time: {time}"));
    let number = |from: usize, to: usize| time[from..to].parse::<i64>().expect("a number");
    // Days from the civil calendar, years beginning in March.
    let (year, month, day) = (number(0, 4), number(5, 7), number(8, 10));
    let (year, month) = if month > 2 { (year, month - 3) } else { (year - 1, month + 9) };
    let days = 365 * year + year / 4 - year / 100 + year / 400 + (153 * month + 2) / 5 + day - 719_469;
    ((days * 24 + number(11, 13)) * 60 + number(14, 16)) * 60 + number(17, 19)
}

/// E-034 E-059 E-071 E-073 E-089 E-231
#[test]
fn the_time_of_a_deployment_begins_when_it_runs_and_at_its_end_it_is_expired() {
    // What expires by the time of the log needs a second voter after an election.
    let park = Park::new(3);
    let admin = park.admin();
    let _ = admin.put("/api/settings", &json!({"expiry_check_interval_seconds": 5})).expect(200);
    let changes = json!({"duration_seconds": 2, "extra_args": ["--load-seconds", "3"], "node_id": 2});
    let id = start(&admin, &changes);
    assert_eq!(is(&admin, id, "loading")["expires_at"], Value::Null);
    let runs = is(&admin, id, "running");
    assert_eq!(seconds(&runs["expires_at"]), seconds(&runs["status_changed_at"]) + 2);
    let engine = only(park.engines());
    let expired = is(&admin, id, "expired");
    assert_eq!((&expired["expires_at"], &expired["last_error"]), (&Value::Null, &Value::Null));
    gone(&engine);
    call(&park.user(), "org/m").is_openai_error(404, "model_not_found");
    admin.post(&format!("/api/deployments/{id}/extend"), &json!({"hours": 1})).is_error(409, "CONFLICT");
    // Expired is final, and its place can be another's.
    wait_for(PATIENCE, "nothing to be left of it", || {
        (is(&admin, id, "expired")["placements"][0]["status"] == "expired").then_some(())
    });
    let other = running(&admin, &json!({"node_id": 2, "gpu_memory_fraction": 1}));
    answers(&park.user(), "org/m");
    let _ = admin.post(&format!("/api/deployments/stop/{other}"), &json!({})).expect(200);
    is(&admin, other, "stopped");
    let again = json!({"owner": "a test", "duration_seconds": 7200});
    let _ = admin.post(&format!("/api/deployments/{id}/restart"), &again).expect(200);
    let runs = is(&admin, id, "running");
    assert_eq!(seconds(&runs["expires_at"]), seconds(&runs["status_changed_at"]) + 7200);
}

/// E-035 E-090 E-091 E-092 E-093 E-094: fleet.md, B8.
#[test]
fn an_end_is_moved_without_a_restart() {
    let mut park = Park::new(1);
    let admin = park.admin();
    let id = running(&admin, &json!({"duration_seconds": 3600}));
    let engine = only(park.engines());
    let path = format!("/api/deployments/{id}/extend");
    let before = seconds(&is(&admin, id, "running")["expires_at"]);
    let extended = admin.post(&path, &json!({"hours": 4})).expect(200).body;
    assert_eq!(seconds(&extended["expires_at"]), before + 14_400);
    assert_eq!(extended["duration_seconds"], json!(3600 + 14_400));
    let extended = admin.post(&path, &json!({"hours": 0.5})).expect(200).body;
    assert_eq!(seconds(&extended["expires_at"]), before + 16_200);
    for (body, field) in [
        (json!({}), "hours"),
        (json!({"hours": 1, "infinite": true}), "hours"),
        (json!({"infinite": false}), "hours"),
        (json!({"hours": 337}), "hours"),
        (json!({"hours": 0}), "hours"),
        (json!({"hours": -1}), "hours"),
        (json!({"hours": "1"}), "hours"),
    ] {
        let refused = admin.post(&path, &body);
        refused.is_error(422, "UNPROCESSABLE_ENTITY");
        assert!(refused.body["detail"].to_string().contains(field), "{refused}");
    }
    let _ = admin.post(&path, &json!({"hours": 336})).expect(200);
    park.fleet.kill();
    park.fleet.restart();
    let admin = park.admin();
    let after = is(&admin, id, "running");
    assert_eq!(seconds(&after["expires_at"]), before + 16_200 + 336 * 3600);
    let endless = admin.post(&path, &json!({"infinite": true})).expect(200).body;
    assert_eq!((&endless["expires_at"], &endless["duration_seconds"]), (&Value::Null, &Value::Null));
    admin.post(&path, &json!({"hours": 1})).is_error(409, "CONFLICT");
    assert_eq!(only(park.engines()), engine);
    admin.post("/api/deployments/9/extend", &json!({"hours": 1})).is_error(404, "NOT_FOUND");

    // While it loads its time has not begun.
    let changes =
        json!({"model_name": "slow", "gpu_ids": [1], "duration_seconds": 3600, "extra_args": ["--load-seconds=3"]});
    let slow = start(&admin, &changes);
    is(&admin, slow, "loading");
    let extended = admin.post(&format!("/api/deployments/{slow}/extend"), &json!({"hours": 1})).expect(200).body;
    assert_eq!((&extended["expires_at"], &extended["duration_seconds"]), (&Value::Null, &json!(7200)));
    let runs = is(&admin, slow, "running");
    assert_eq!(seconds(&runs["expires_at"]), seconds(&runs["status_changed_at"]) + 7200);
    let _ = admin.post(&format!("/api/deployments/stop/{slow}"), &json!({})).expect(200);
    assert_eq!(is(&admin, slow, "stopped")["expires_at"], Value::Null);
    admin.post(&format!("/api/deployments/{slow}/extend"), &json!({"hours": 1})).is_error(409, "CONFLICT");
}
