//! The settings of the fleet (seed 004).

use muster_tests::api::{Api, send};
use muster_tests::fleet::Fleet;
use serde_json::{Value, json};

use super::with;

const PATH: &str = "/api/settings";

fn defaults() -> Value {
    json!({
        "gateway_enabled": true,
        "gateway_timeout_seconds": 600,
        "start_timeout_seconds": 1800,
        "preferred_container_runtime": "docker",
        "default_port": 8001,
        "default_gpu_fraction": 0.5,
        "default_duration_choice": "43200",
        "default_vllm_version": "",
        "default_max_failed_restarts": null,
        "webhook_url": "",
        "expiry_warning_minutes": 30,
        "node_metrics_retention_hours": 48,
        "temp_api_key_ttl_seconds": 300,
        "default_warm_offload_enabled": true,
        "busy_guard_seconds": 0,
        "nodes_sync_interval_seconds": 10,
        "deployments_sync_interval_seconds": 5,
        "expiry_check_interval_seconds": 30,
        "node_failure_threshold": 3,
        "timing": "mesh",
        "deployment_failure_threshold": 3
    })
}

fn read(api: &Api) -> Value {
    api.get(PATH).expect(200).body
}

/// E-179 E-184 E-186 E-189 E-192 E-194 E-197 E-200 E-202 E-204 E-207 E-209 E-212 E-215 E-218 E-220 E-223 E-226 E-229
/// E-232 E-235
#[test]
fn a_new_fleet_has_the_defaults_of_all() {
    let fleet = Fleet::start();
    assert_eq!(read(&fleet.admin()), defaults());
    assert_eq!(fleet.admin().get("/api/settings/").expect(200).body, defaults());
}

/// E-180 E-181
#[test]
fn a_change_leaves_the_others_as_they_are() {
    let mut fleet = Fleet::start();
    let admin = fleet.admin();
    let mut expected = defaults();
    for (number, change) in [
        json!({"gateway_enabled": false}),
        json!({"gateway_timeout_seconds": 10}),
        json!({"start_timeout_seconds": 86_400}),
        json!({"preferred_container_runtime": "podman"}),
        json!({"default_port": 65_535}),
        json!({"default_gpu_fraction": 0.05}),
        json!({"default_duration_choice": "inf"}),
        json!({"default_vllm_version": "0.9.1"}),
        json!({"default_max_failed_restarts": 20}),
        json!({"webhook_url": "https://hooks.example/x"}),
        json!({"expiry_warning_minutes": 15}),
        json!({"node_metrics_retention_hours": 1}),
        json!({"temp_api_key_ttl_seconds": 0}),
        json!({"default_warm_offload_enabled": false}),
        json!({"busy_guard_seconds": 300}),
        json!({"nodes_sync_interval_seconds": 1}),
        json!({"deployments_sync_interval_seconds": 2}),
        json!({"expiry_check_interval_seconds": 600}),
        json!({"node_failure_threshold": 20}),
        json!({"deployment_failure_threshold": 1}),
        json!({"default_max_failed_restarts": null, "webhook_url": ""}),
    ]
    .into_iter()
    .enumerate()
    {
        expected = with(&expected, &change);
        let answer = if number % 2 == 0 { admin.put(PATH, &change) } else { admin.patch(PATH, &change) };
        assert_eq!(answer.expect(200).body, expected, "{change}");
        assert_eq!(read(&admin), expected, "{change}");
    }
    // Sent back as they were read, they stay as they are.
    assert_eq!(admin.put(PATH, &expected).expect(200).body, expected);
    fleet.kill();
    fleet.restart();
    assert_eq!(read(&fleet.admin()), expected, "also after a kill");
}

/// E-182
#[test]
fn a_change_with_anything_wrong_in_it_is_refused_as_a_whole() {
    let fleet = Fleet::start();
    let admin = fleet.admin();
    let tag = admin.get(PATH).expect(200).header("etag").to_owned();
    for (change, fields) in [
        (json!({"nope": 1}), &["nope"][..]),
        (json!({"default_port": "x", "expiry_warning_minutes": 20}), &["default_port"]),
        (json!({"expiry_warning_minutes": 20, "nope": 1}), &["nope"]),
        (json!({"default_port": 1023}), &["default_port"]),
        (json!({"default_port": null}), &["default_port"]),
        (
            json!({"gateway_timeout_seconds": 9, "busy_guard_seconds": 301}),
            &["busy_guard_seconds", "gateway_timeout_seconds"],
        ),
        (json!({"default_gpu_fraction": 1.01}), &["default_gpu_fraction"]),
        (json!({"default_max_failed_restarts": 21}), &["default_max_failed_restarts"]),
        (json!({"default_duration_choice": 43_200}), &["default_duration_choice"]),
        (json!({"webhook_url": "ftp://x"}), &["webhook_url"]),
        (json!([]), &["(body)"]),
    ] {
        admin.put(PATH, &change).names(fields);
    }
    admin.put(PATH, &json!({})).is_error(400, "BAD_REQUEST");
    admin.patch(PATH, &json!({})).is_error(400, "BAD_REQUEST");
    send(admin.request("PUT", PATH).body("{")).is_error(400, "MALFORMED");
    let now = admin.get(PATH).expect(200);
    assert_eq!((now.header("etag"), &now.body), (tag.as_str(), &defaults()), "nothing was changed");
}

#[test]
fn a_change_of_older_settings_is_refused() {
    let fleet = Fleet::start();
    let admin = fleet.admin();
    let change = |tag: &str, minutes: u64| {
        let body = json!({"expiry_warning_minutes": minutes});
        send(admin.request("PUT", PATH).header("if-match", tag).json(&body))
    };
    let first = admin.get(PATH).expect(200).header("etag").to_owned();
    let second = change(&first, 10).expect(200).header("etag").to_owned();
    assert!(first != second && !second.is_empty());
    assert_eq!(admin.get(PATH).expect(200).header("etag"), second);
    change(&first, 11).is_error(412, "PRECONDITION_FAILED");
    assert_eq!(read(&admin)["expiry_warning_minutes"], 10);
    let _ = change(&second, 12).expect(200);
    let _ = change("*", 13).expect(200);
    assert_eq!(read(&admin)["expiry_warning_minutes"], 13);
}

/// The address may carry a secret.
#[test]
fn only_administrators_see_where_the_webhook_goes() {
    let fleet = Fleet::start();
    let (admin, viewer) = (fleet.admin(), fleet.caller("viewer"));
    assert_eq!(read(&viewer)["webhook_url"], "");
    let url = "https://hooks.example/CANARY";
    let _ = admin.put(PATH, &json!({"webhook_url": url})).expect(200);
    assert_eq!(read(&admin)["webhook_url"], url);
    for caller in [viewer, fleet.caller("operator")] {
        let answer = caller.get(PATH).expect(200);
        assert_eq!(answer.body["webhook_url"], "***");
        assert!(!answer.to_string().contains("CANARY"));
    }
}
