//! Saved configurations (seed 004).

use muster_tests::api::{Api, send};
use muster_tests::fleet::Fleet;
use serde_json::{Value, json};

fn list(api: &Api) -> Value {
    api.get("/api/configs").expect(200).body
}

/// E-174 E-175 E-176 E-177 E-178
#[test]
fn a_configuration_is_saved_listed_by_name_and_deleted() {
    let fleet = Fleet::start();
    let (operator, viewer) = (fleet.caller("operator"), fleet.caller("viewer"));
    assert_eq!(list(&viewer), json!([]));
    let payload = json!({
        "model_name": "meta-llama/Llama-3.1-8B", "port": 8001, "gpu_memory_fraction": 0.5, "gpu_ids": [0, 1],
        "engine_args": {"enforce_eager": true, "a": null}, "Sch\u{f6}n": "\u{1f600}\n",
    });
    let saved = operator.post("/api/configs/", &json!({"name": "  small ", "payload": payload})).expect(201);
    assert_eq!((&saved.body["name"], &saved.body["payload"]), (&json!("small"), &payload));
    assert!(saved.body["id"].is_u64() && saved.body["created_at"].is_string(), "{saved}");
    assert_eq!(saved.header("etag"), format!("\"{}\"", saved.body["modIndex"]));
    let large = operator.post("/api/configs", &json!({"name": "Large", "payload": {}})).expect(201).body;
    assert_eq!(list(&viewer), json!([large, saved.body]), "by name, as they were answered");
    assert_eq!(viewer.get("/api/configs/").expect(200).body, list(&viewer));

    // A name is one name however it is written.
    for name in ["small", "SMALL", " Small"] {
        operator.post("/api/configs", &json!({"name": name, "payload": {}})).is_error(409, "CONFLICT");
    }
    let composed = operator.post("/api/configs", &json!({"name": "Caf\u{e9}", "payload": {}})).expect(201).body;
    operator.post("/api/configs", &json!({"name": "CAFE\u{301}", "payload": {}})).is_error(409, "CONFLICT");
    viewer.post("/api/configs", &json!({"name": "mine", "payload": {}})).is_error(403, "FORBIDDEN");

    let path = |config: &Value| format!("/api/configs/{}", config["id"]);
    viewer.delete(&path(&large)).is_error(403, "FORBIDDEN");
    assert_eq!(operator.delete(&format!("{}/", path(&large))).expect(200).body, json!({"status": "deleted"}));
    operator.delete(&path(&large)).is_error(404, "NOT_FOUND");
    let older = operator.request("DELETE", &path(&saved.body)).header("if-match", "\"1\"");
    send(older).is_error(412, "PRECONDITION_FAILED");
    assert_eq!(list(&viewer), json!([composed, saved.body]));
    let this = operator.request("DELETE", &path(&saved.body)).header("if-match", saved.header("etag"));
    let _ = send(this).expect(200);
    // The name is free again, the number is not.
    let again = operator.post("/api/configs", &json!({"name": "small", "payload": {}})).expect(201).body;
    assert!(again["id"].as_u64() > composed["id"].as_u64(), "{again}");
    let trail = fleet.admin().get("/api/audit?limit=3").expect(200).body["entries"].clone();
    let actions: Vec<_> = trail.as_array().expect("a list").iter().map(|entry| entry["action"].clone()).collect();
    assert_eq!(actions, ["config.create", "config.delete", "config.delete"]);
    assert_eq!(trail[0]["object"], again["id"].to_string());
}

/// E-178
#[test]
fn what_is_no_configuration_is_refused_and_not_kept() {
    let fleet = Fleet::start();
    let admin = fleet.admin();
    for (body, fields) in [
        (json!({}), &["name", "payload"][..]),
        (json!({"name": " ", "payload": {}}), &["name"]),
        (json!({"name": "x".repeat(256), "payload": {}}), &["name"]),
        (json!({"name": "a\u{0}b", "payload": {}}), &["name"]),
        (json!({"name": 7, "payload": [1]}), &["name", "payload"]),
        (json!({"name": "a", "payload": null}), &["payload"]),
        (json!({"name": "a", "payload": {}, "id": 4}), &["id"]),
    ] {
        admin.post("/api/configs", &body).names(fields);
    }
    let too_large = json!({"name": "a", "payload": {"text": "x".repeat(17_000)}});
    admin.post("/api/configs", &too_large).is_error(413, "CONTENT_TOO_LARGE");
    admin.delete("/api/configs/x").names(&["config_id"]);
    admin.delete("/api/configs/1").is_error(404, "NOT_FOUND");
    assert_eq!(list(&admin), json!([]));
    let longest = json!({"name": "\u{1f600}".repeat(255), "payload": {"text": "x".repeat(12_000)}});
    let saved = admin.post("/api/configs", &longest).expect(201).body;
    assert_eq!((list(&admin), &saved["payload"]), (json!([saved]), &longest["payload"]));
}

#[test]
fn a_repeated_save_is_done_once_and_outlives_the_process() {
    let mut fleet = Fleet::start();
    let body = json!({"name": "once", "payload": {"port": 8001}});
    let first = fleet.admin().post_once("/api/configs", &body, "save").expect(201);
    fleet.kill();
    fleet.restart();
    let admin = fleet.admin();
    assert_eq!(admin.post_once("/api/configs", &body, "save").expect(201).body, first.body);
    admin
        .post_once("/api/configs", &json!({"name": "once", "payload": {}}), "save")
        .is_error(422, "IDEMPOTENCY_KEY_REUSED");
    assert_eq!(list(&admin), json!([first.body]));
    let remove = || {
        let path = format!("/api/configs/{}", first.body["id"]);
        send(admin.request("DELETE", &path).header("idempotency-key", "remove")).expect(200).body
    };
    assert_eq!([remove(), remove()], [json!({"status": "deleted"}), json!({"status": "deleted"})]);
    assert_eq!(list(&admin), json!([]));
}
