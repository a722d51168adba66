//! The keys that call models, as seed 004 shows them.

use std::time::Duration;

use muster_tests::api::{Api, send};
use muster_tests::fleet::Fleet;
use muster_tests::process::wait_for;
use serde_json::{Value, json};

use super::with;

fn list(api: &Api) -> Vec<Value> {
    api.get("/api/api-keys").expect(200).body.as_array().expect("an array").clone()
}

fn labels(api: &Api) -> Vec<String> {
    list(api).iter().map(|key| key["label"].as_str().expect("a label").to_owned()).collect()
}

fn path(key: &Value) -> String {
    format!("/api/api-keys/{}", key["id"])
}

/// E-238 E-239 E-240 E-241 E-246
#[test]
fn a_key_is_permanent_or_temporary_and_its_value_is_shown_once() {
    let fleet = Fleet::start();
    let admin = fleet.admin();
    let permanent = admin.post("/api/api-keys/", &json!({"label": "for all"})).expect(201);
    let scoped = admin.post("/api/api-keys", &json!({"label": "for two", "deployment_ids": [9, 4, 9]})).expect(201);
    let body = json!({"label": "for now", "ttl_seconds": 86_400, "deployment_ids": []});
    let temporary = admin.post("/api/api-keys", &body).expect(201);
    let made = [temporary, scoped, permanent];
    for (answer, (scope, expires)) in made.iter().zip([(json!([]), true), (json!([9, 4]), false), (Value::Null, false)])
    {
        let key = answer.body["key"].as_str().expect("a key");
        let prefix = answer.body["prefix"].as_str().expect("a prefix");
        assert!(key.starts_with("sk-") && key.len() > 40 && prefix.len() <= 8 && key.starts_with(prefix), "{answer}");
        assert_eq!((&answer.body["allowed_deployment_ids"], answer.body["expires_at"].is_string()), (&scope, expires));
        assert_eq!(answer.header("etag"), format!("\"{}\"", answer.body["modIndex"]));
        let _ = fleet.anybody().with_key(key).get("/v1/models").expect(200);
        // It is for models, not for the console.
        fleet.anybody().with_key(key).get("/api/models").is_error(403, "FORBIDDEN");
    }
    // The list has the rest of the answer, newest first, and what the other list has: the founding key is one of them.
    let listed = list(&admin);
    for (shown, answer) in listed.iter().zip(&made) {
        assert!(shown.get("key").is_none(), "{shown}");
        // It has been used meanwhile.
        let expected = with(&answer.body, &json!({"last_used_at": shown["last_used_at"]}));
        assert_eq!(with(shown, &json!({"key": answer.body["key"]})), expected);
    }
    assert_eq!(labels(&admin), ["for now", "for two", "for all", "bootstrap gateway key"]);
    assert_eq!(admin.get("/api/api-keys/").expect(200).body.as_array().map(Vec::len), Some(4));
    let credentials = admin.get("/api/credentials").expect(200);
    let kinds: Vec<_> = credentials.body["credentials"].as_array().expect("a list").iter().collect();
    let kind = |label: &str| kinds.iter().find(|credential| credential["label"] == label).expect("it is there");
    assert_eq!((&kind("for now")["kind"], &kind("for now")["deploymentIds"]), (&json!("temporary"), &json!([])));
    assert_eq!((&kind("for two")["kind"], &kind("for two")["deploymentIds"]), (&json!("gateway"), &json!([9, 4])));
    for answer in &made {
        let key = answer.body["key"].as_str().expect("a key");
        for everything in ["/api/api-keys", "/api/credentials", "/api/audit"] {
            assert!(!admin.get(everything).expect(200).text.contains(key));
        }
    }
}

/// E-242 E-248 E-249
#[test]
fn a_change_of_the_label_alone_leaves_the_scope_and_null_lifts_it() {
    let fleet = Fleet::start();
    let admin = fleet.admin();
    let made = admin.post("/api/api-keys", &json!({"label": "first", "deployment_ids": [1, 2]})).expect(201);
    let path = path(&made.body);
    for method in ["PATCH", "PUT"] {
        let change = |body: Value| send(admin.request(method, &path).json(&body));
        for (body, label, scope) in [
            (json!({"label": "second"}), "second", json!([1, 2])),
            (json!({"deployment_ids": [3]}), "second", json!([3])),
            (json!({"label": "third", "deployment_ids": []}), "third", json!([])),
            (json!({"label": "fourth"}), "fourth", json!([])),
            (json!({"deployment_ids": null}), "fourth", Value::Null),
            (json!({"label": "fifth"}), "fifth", Value::Null),
            (json!({"deployment_ids": [1, 2]}), "fifth", json!([1, 2])),
        ] {
            let changed = change(body.clone()).expect(200);
            assert_eq!(
                (&changed.body["label"], &changed.body["allowed_deployment_ids"]),
                (&json!(label), &scope),
                "{body}"
            );
            assert!(changed.body.get("key").is_none(), "{changed}");
            assert_eq!(list(&admin)[0], changed.body);
        }
        change(json!({})).is_error(400, "BAD_REQUEST");
        change(json!({"label": null})).names(&["label"]);
        change(json!({"label": ""})).names(&["label"]);
        change(json!({"deployment_ids": "1"})).names(&["deployment_ids"]);
        change(json!({"ttl_seconds": 60})).names(&["ttl_seconds"]);
    }
    let older = admin.request("PATCH", &path).header("if-match", made.header("etag"));
    send(older.json(&json!({"deployment_ids": null}))).is_error(412, "PRECONDITION_FAILED");
    assert_eq!(list(&admin)[0]["allowed_deployment_ids"], json!([1, 2]));
}

/// B20
#[test]
fn a_temporary_key_can_not_be_changed_and_no_other_credential_is_reached() {
    let fleet = Fleet::start();
    let admin = fleet.admin();
    let body = json!({"label": "now", "ttl_seconds": 600, "deployment_ids": [1]});
    let temporary = admin.post("/api/api-keys", &body).expect(201).body;
    let (console, key) = fleet.credential("viewer");
    for method in ["PATCH", "PUT"] {
        for change in [json!({"label": "later"}), json!({"deployment_ids": null})] {
            let ask = |path: &str| send(admin.request(method, path).json(&change));
            ask(&path(&temporary)).is_error(409, "CONFLICT");
            ask("/api/api-keys/99").is_error(404, "NOT_FOUND");
            ask(&format!("/api/api-keys/{console}")).is_error(404, "NOT_FOUND");
            ask("/api/api-keys/x").names(&["id"]);
        }
    }
    admin.patch(&format!("/api/credentials/{}", temporary["id"]), &json!({"label": "x"})).is_error(409, "CONFLICT");
    admin.delete(&format!("/api/api-keys/{console}")).is_error(404, "NOT_FOUND");
    admin.delete("/api/api-keys/99").is_error(404, "NOT_FOUND");
    let _ = fleet.anybody().with_key(&key).get("/api/models").expect(200);
    assert_eq!(list(&admin)[0]["label"], "now");
    let gone = admin.delete(&path(&temporary)).expect(204);
    assert_eq!(gone.text, "");
    admin.delete(&path(&temporary)).is_error(404, "NOT_FOUND");
}

/// E-244 E-245 E-247
#[test]
fn a_key_is_refused_with_every_wrong_field_named() {
    let fleet = Fleet::start();
    let admin = fleet.admin();
    let before = list(&admin);
    let long = "x".repeat(129);
    for (body, fields) in [
        (json!({}), &["label"][..]),
        (json!({"label": ""}), &["label"]),
        (json!({"label": long, "ttl_seconds": 0, "deployment_ids": [1]}), &["label", "ttl_seconds"]),
        (json!({"label": "x", "ttl_seconds": 86_401, "deployment_ids": [1]}), &["ttl_seconds"]),
        (json!({"label": "x", "ttl_seconds": 60}), &["deployment_ids"]),
        (json!({"label": "x", "ttl_seconds": 60, "deployment_ids": null}), &["deployment_ids"]),
        (json!({"label": "x", "deployment_ids": [1, "2"]}), &["deployment_ids"]),
        (json!({"label": "x", "role": "admin"}), &["role"]),
    ] {
        admin.post("/api/api-keys", &body).names(fields);
    }
    assert_eq!(list(&admin), before);
    for seconds in [1, 86_400] {
        let body = json!({"label": "x".repeat(128), "ttl_seconds": seconds, "deployment_ids": [1]});
        let _ = admin.post("/api/api-keys", &body).expect(201);
    }
    let many: Vec<_> = (1..=1000_u64).map(|id| (1 << 53) - id).collect();
    let made = admin.post_once("/api/api-keys", &json!({"label": "x", "deployment_ids": many}), "many").expect(201);
    assert_eq!(made.body["allowed_deployment_ids"], json!(many));
}

/// E-241
#[test]
fn a_temporary_key_ends_with_its_time() {
    let fleet = Fleet::start();
    let admin = fleet.admin();
    let body = json!({"label": "short", "ttl_seconds": 1, "deployment_ids": [1]});
    let made = admin.post("/api/api-keys", &body).expect(201).body;
    let user = fleet.anybody().with_key(made["key"].as_str().expect("a key"));
    let refused = wait_for(Duration::from_secs(10), "the key to expire", || {
        Some(user.get("/v1/models")).filter(|answer| answer.status != 200)
    });
    refused.is_openai_error(401, "invalid_api_key");
    assert_eq!(labels(&admin), ["bootstrap gateway key"]);
    admin.patch(&path(&made), &json!({"label": "x"})).is_error(404, "NOT_FOUND");
    admin.delete(&path(&made)).is_error(404, "NOT_FOUND");
    // The others, and what they open, are as before.
    let _ = fleet.user().get("/v1/models").expect(200);
}

#[test]
fn the_last_use_of_a_key_is_shown_wherever_it_was_used() {
    let fleet = Fleet::start_nodes(3, &[]);
    let admin = fleet.admin();
    let [used, unused] = ["used", "unused"].map(|label| {
        let made = admin.post("/api/api-keys", &json!({"label": label, "deployment_ids": [1]})).expect(201).body;
        assert!(made["last_used_at"].is_null(), "{made}");
        made
    });
    let key = used["key"].as_str().expect("a key");
    let third = Api::new(&fleet.nodes()[2].proxy).with_key(key);
    wait_for(Duration::from_secs(10), "the key to be known", || (third.get("/v1/models").status == 200).then_some(()));
    let shown = wait_for(Duration::from_secs(20), "its use to be told", || {
        Some(list(&admin)[1].clone()).filter(|shown| shown["last_used_at"].is_string())
    });
    let (made_at, used_at) = (used["created_at"].as_str(), shown["last_used_at"].as_str());
    assert!(made_at <= used_at, "{shown}");
    assert_eq!(shown["modIndex"], used["modIndex"], "a use is no change");
    let listed = list(&admin);
    assert!(listed[0]["label"] == "unused" && listed[0]["last_used_at"].is_null(), "{listed:?}");
    // A key that is let in nowhere is not used.
    let _ =
        fleet.anybody().with_key(&format!("{}x", unused["key"].as_str().expect("a key"))).get("/v1/models").expect(401);
    let renamed = admin.patch(&path(&shown), &json!({"label": "renamed"})).expect(200).body;
    assert_eq!(renamed["last_used_at"], shown["last_used_at"]);
}

#[test]
fn a_repeated_request_for_a_key_gets_the_same_key() {
    let fleet = Fleet::start();
    let admin = fleet.admin();
    let body = json!({"label": "once", "deployment_ids": [1]});
    let first = admin.post_once("/api/api-keys", &body, "make").expect(201);
    assert_eq!(admin.post_once("/api/api-keys", &body, "make").expect(201).body, first.body);
    admin.post_once("/api/api-keys", &json!({"label": "once"}), "make").is_error(422, "IDEMPOTENCY_KEY_REUSED");
    assert_eq!(labels(&admin), ["once", "bootstrap gateway key"]);
    let once = |method: &str| admin.request(method, &path(&first.body)).header("idempotency-key", method);
    let change = || send(once("PATCH").json(&json!({"label": "renamed"}))).expect(200).body;
    let changed = change();
    for _ in 0..2 {
        let _ = send(once("DELETE")).expect(204);
        assert_eq!(change(), changed, "it is gone by now");
    }
    assert_eq!(labels(&admin), ["bootstrap gateway key"]);
}
