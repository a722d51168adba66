//! Who may do what.

use std::os::unix::fs::PermissionsExt;
use std::time::Duration;

use muster_tests::api::{Api, send};
use muster_tests::fleet::{Fleet, Home};
use muster_tests::process::wait_for;
use serde_json::{Value, json};

use super::{model, names};

const READS: [&str; 6] = ["/api/models", "/api/nodes", "/api/nodes/1", "/api/settings", "/api/cluster", "/api/configs"];
const PAGES: [&str; 7] =
    ["/metrics", "/docs", "/redoc", "/openapi.json", "/api/docs", "/api/redoc", "/api/openapi.json"];

/// What only administrators do: each would succeed for one, or fail for another reason than who asks.
fn writes() -> Vec<(&'static str, &'static str, Value)> {
    vec![
        ("POST", "/api/models", model("v")),
        ("PUT", "/api/models/there", json!({"description": "v"})),
        ("PATCH", "/api/models/there", json!({"description": "v"})),
        ("DELETE", "/api/models/there", Value::Null),
        ("PUT", "/api/settings", json!({"expiry_warning_minutes": 7})),
        ("PATCH", "/api/settings", json!({"expiry_warning_minutes": 7})),
        ("POST", "/api/credentials", json!({"kind": "console", "label": "v", "role": "admin"})),
        ("PATCH", "/api/credentials/1", json!({"label": "v"})),
        ("PUT", "/api/credentials/1", json!({"label": "v"})),
        ("DELETE", "/api/credentials/1", Value::Null),
        ("POST", "/api/api-keys", json!({"label": "v"})),
        ("PATCH", "/api/api-keys/2", json!({"label": "v"})),
        ("PUT", "/api/api-keys/2", json!({"label": "v"})),
        ("DELETE", "/api/api-keys/2", Value::Null),
    ]
}

const READS_OF_ADMINISTRATORS: [&str; 4] = ["/api/credentials", "/api/credentials/1", "/api/api-keys", "/api/audit"];

/// Everything that could have been changed.
fn everything(admin: &Api) -> Vec<Value> {
    let paths = ["/api/models", "/api/settings", "/api/credentials", "/api/audit"];
    paths.iter().map(|path| admin.get(path).expect(200).body).collect()
}

/// A-005 A-007
#[test]
fn each_role_does_what_it_may_and_nothing_more() {
    let fleet = Fleet::start();
    let admin = fleet.admin();
    let _ = admin.post("/api/models", &model("there")).expect(201);
    let callers = [fleet.caller("viewer"), fleet.caller("operator"), fleet.anybody().with_key(&fleet.gateway_key)];
    let before = everything(&admin);
    for (caller, reads) in callers.iter().zip([200, 200, 403]) {
        for path in READS.into_iter().chain(PAGES) {
            let _ = caller.get(path).expect(reads);
        }
        for path in READS_OF_ADMINISTRATORS {
            caller.get(path).is_error(403, "FORBIDDEN");
        }
        for (method, path, body) in writes() {
            send(caller.request(method, path).json(&body)).is_error(403, "FORBIDDEN");
        }
    }
    assert_eq!(everything(&admin), before, "nothing was changed");
    for path in READS.into_iter().chain(PAGES).chain(READS_OF_ADMINISTRATORS) {
        let _ = admin.get(path).expect(200);
    }
}

/// Nodes are an operator's: what is not there yet is refused as such, not as forbidden.
#[test]
fn an_operator_may_write_where_nodes_are() {
    let fleet = Fleet::start();
    fleet.caller("operator").post("/api/nodes", &json!({})).is_error(405, "METHOD_NOT_ALLOWED");
    fleet.caller("viewer").post("/api/nodes", &json!({})).is_error(403, "FORBIDDEN");
    fleet.anybody().post("/api/nodes", &json!({})).is_error(401, "UNAUTHORIZED");
}

/// A-006 A-008
#[test]
fn a_key_comes_in_either_header_and_must_be_right() {
    let fleet = Fleet::start();
    let (anybody, token) = (fleet.anybody(), fleet.admin_token.clone());
    let ask = |name: &str, value: &str| send(anybody.request("GET", "/api/models").header(name, value));
    for (name, value) in [
        ("authorization", format!("Bearer {token}")),
        ("authorization", format!("bearer {token}")),
        ("x-api-key", token.clone()),
    ] {
        let _ = ask(name, &value).expect(200);
    }
    for (name, value) in [
        ("authorization", "Bearer wrong".to_owned()),
        ("authorization", format!("Bearer {token}x")),
        ("authorization", format!("Bearer {}", &token[..token.len() - 1])),
        ("authorization", "Bearer ".to_owned()),
        ("authorization", token.clone()),
        ("x-api-key", token.to_lowercase()),
        ("x-api-key", String::new()),
        ("cookie", format!("token={token}")),
    ] {
        ask(name, &value).is_error(401, "UNAUTHORIZED");
    }
    let _ = ask("accept", "*/*").expect(401);
}

/// E-001 E-003
#[test]
fn the_pages_need_a_viewer_whom_a_browser_may_ask_for_the_key() {
    let fleet = Fleet::start();
    let (anybody, key) = (fleet.anybody(), fleet.credential("viewer").1);
    let ask = |path: &str, password: &str| send(anybody.request("GET", path).basic_auth("anybody", Some(password)));
    for path in PAGES {
        let refused = anybody.get(path);
        refused.is_error(401, "UNAUTHORIZED");
        let challenges: Vec<_> = refused.headers.get_all("www-authenticate").iter().collect();
        assert!(challenges.iter().any(|value| value.as_bytes().starts_with(b"Basic ")), "{path}: {refused}");
        let _ = ask(path, "wrong").expect(401);
        let _ = ask(path, &key).expect(200);
    }
    assert!(ask("/docs", &key).header("content-type").starts_with("text/html"));
    assert!(ask("/openapi.json", &key).body["openapi"].as_str().is_some_and(|version| version.starts_with("3.")));
    // Not where something can be changed: browsers send a remembered password along with what others make them ask.
    for path in READS {
        let refused = ask(path, &fleet.admin_token);
        refused.is_error(401, "UNAUTHORIZED");
        assert!(!refused.to_string().contains("Basic"), "{refused}");
    }
}

#[test]
fn a_key_ends_with_its_time_its_credential_or_its_role_at_once() {
    let fleet = Fleet::start();
    let admin = fleet.admin();
    let body = json!({"kind": "console", "label": "short", "role": "viewer", "ttlSeconds": 1});
    let short = admin.post("/api/credentials", &body).expect(201);
    assert!(short.body["credential"]["expiresAt"].is_string());
    let caller = fleet.anybody().with_key(short.body["key"].as_str().expect("a key"));
    let listed = || admin.get("/api/credentials").expect(200).text.contains("\"short\"");

    let (id, key) = fleet.credential("viewer");
    let (path, person) = (format!("/api/credentials/{id}"), fleet.anybody().with_key(&key));
    person.post("/api/models", &model("a")).is_error(403, "FORBIDDEN");
    let _ = admin.patch(&path, &json!({"role": "admin"})).expect(200);
    let _ = person.post("/api/models", &model("a")).expect(201);
    let _ = admin.put(&path, &json!({"role": "viewer"})).expect(200);
    person.post("/api/models", &model("b")).is_error(403, "FORBIDDEN");
    let _ = admin.delete(&path).expect(200);
    person.get("/api/models").is_error(401, "UNAUTHORIZED");
    admin.delete(&path).is_error(404, "NOT_FOUND");

    let refused = wait_for(Duration::from_secs(10), "the key to expire", || {
        Some(caller.get("/api/models")).filter(|answer| answer.status != 200)
    });
    refused.is_error(401, "UNAUTHORIZED");
    assert!(!listed());
    caller.get("/api/models").is_error(401, "UNAUTHORIZED");
    assert_eq!(names(&admin.get("/api/models").expect(200).body), ["a"]);
}

#[test]
fn a_credential_is_refused_with_every_wrong_field_named() {
    let fleet = Fleet::start();
    let admin = fleet.admin();
    let before = admin.get("/api/credentials").expect(200).body;
    for (body, fields) in [
        (json!({}), &["kind", "label"][..]),
        (json!({"kind": "console", "label": "x"}), &["role"]),
        (json!({"kind": "gateway", "label": "x", "role": "admin"}), &["role"]),
        (json!({"kind": "other", "label": "x", "role": "admin"}), &["kind"]),
        (json!({"kind": "console", "label": " ", "role": "root"}), &["label", "role"]),
        (json!({"kind": "console", "label": "x", "role": "admin", "ttlSeconds": 0}), &["ttlSeconds"]),
        (json!({"kind": "console", "label": "x", "role": "admin", "key": "sk-mine"}), &["key"]),
    ] {
        admin.post("/api/credentials", &body).names(fields);
    }
    admin.patch("/api/credentials/1", &json!({})).is_error(400, "BAD_REQUEST");
    admin.patch("/api/credentials/1", &json!({"role": null})).names(&["role"]);
    admin.patch("/api/credentials/x", &json!({"label": "x"})).names(&["id"]);
    admin.patch("/api/credentials/99", &json!({"label": "x"})).is_error(404, "NOT_FOUND");
    admin.patch("/api/credentials/2", &json!({"role": "admin"})).is_error(409, "CONFLICT");
    assert_eq!(admin.get("/api/credentials").expect(200).body, before);
    for credential in before["credentials"].as_array().expect("a list") {
        let fields: Vec<_> = credential.as_object().expect("an object").keys().collect();
        assert!(!fields.iter().any(|field| ["key", "sha256", "hash"].contains(&field.as_str())), "{fields:?}");
        assert!(credential["prefix"].as_str().expect("a prefix").len() <= 8);
    }
}

/// E-009
#[test]
fn without_authentication_everybody_is_let_in_and_the_log_says_so_loudly() {
    let fleet = Fleet::start_with(&[("MUSTER_AUTH_MODE", "none")]);
    let anybody = fleet.anybody();
    for path in READS.into_iter().chain(PAGES).chain(READS_OF_ADMINISTRATORS) {
        let _ = anybody.get(path).expect(200);
    }
    let _ = anybody.post("/api/models", &model("open")).expect(201);
    let log = fleet.home.log();
    assert!(log.lines().any(|line| line.contains("WARN") && line.contains("auth_mode = none")), "{log}");
    // A key that is shown must be right all the same.
    anybody.with_key("wrong").get("/api/models").is_error(401, "UNAUTHORIZED");
}

#[test]
fn with_authentication_the_log_does_not_warn_of_openness() {
    let fleet = Fleet::start();
    let log = fleet.home.log();
    assert!(log.contains("the API listens") && !log.contains("auth_mode") && !log.contains("insecure_http"), "{log}");
}

#[test]
fn the_socket_lets_its_own_user_in_without_a_key() {
    let fleet = Fleet::start();
    let mode = |path: &std::path::Path| std::fs::metadata(path).expect("it is there").permissions().mode() & 0o777;
    assert_eq!(mode(&fleet.socket()), 0o600);
    let local = Api::on_socket(&fleet.socket());
    let _ = local.post("/api/models", &model("local")).expect(201);
    for path in READS.into_iter().chain(PAGES).chain(READS_OF_ADMINISTRATORS) {
        let _ = local.get(path).expect(200);
    }
    let audit = local.get("/api/audit").expect(200).body;
    let entry = &audit["entries"][0];
    assert_eq!((&entry["principal"], &entry["source"]), (&json!("local"), &json!("local socket")));
    for private in ["node.key", "node-tls.key", "node.json"] {
        assert_eq!(mode(&fleet.node_data().join(private)), 0o600, "{private}");
    }
    for private in ["dev.json", "dev-keys.json"] {
        assert_eq!(mode(&fleet.home.data().join(private)), 0o600, "{private}");
    }
}

#[test]
fn an_address_that_strangers_reach_is_not_served_without_tls() {
    let home = Home::new();
    for address in ["0.0.0.0:0", "[::]:0"] {
        let refused = home.muster(&["serve", "--api", address]);
        refused.ended_with(1);
        assert!(refused.stderr.contains("--insecure-http"), "{refused:?}");
    }
    assert!(!home.data().exists(), "nothing was begun");
}

/// Every change says who made it, from where, and in which request.
#[test]
fn the_audit_trail_names_who_changed_what() {
    let fleet = Fleet::start();
    let admin = fleet.admin();
    let (id, key) = fleet.credential("admin");
    let person = fleet.anybody().with_key(&key);
    let create = person.request("POST", "/api/models").header("x-request-id", "mine-1").json(&model("audited"));
    let index = send(create).expect(201).body["createdIndex"].clone();
    let _ = person.put("/api/settings", &json!({"expiry_warning_minutes": 7})).expect(200);
    let _ = person.delete("/api/models/audited").expect(200);
    let entries = admin.get("/api/audit?limit=3").expect(200).body["entries"].clone();
    let actions: Vec<_> = entries.as_array().expect("a list").iter().map(|entry| entry["action"].clone()).collect();
    assert_eq!(actions, ["model.delete", "settings.update", "model.create"]);
    let made = &entries[2];
    assert_eq!(made["principal"], format!("credential:{id}"));
    assert_eq!((&made["source"], &made["requestId"], &made["index"]), (&json!("127.0.0.1"), &json!("mine-1"), &index));
}
