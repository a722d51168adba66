//! A write that comes again with its `Idempotency-Key` is done once and gets the first answer.

use muster_tests::api::{Answer, Api, send};
use muster_tests::fleet::Fleet;
use serde_json::{Value, json};

use super::{model, names, with};

fn delete_once(api: &Api, path: &str, key: &str) -> Answer {
    send(api.request("DELETE", path).header("idempotency-key", key))
}

fn put_once(api: &Api, path: &str, body: &Value, key: &str) -> Answer {
    send(api.request("PUT", path).header("idempotency-key", key).json(body))
}

fn list(api: &Api) -> Value {
    api.get("/api/models").expect(200).body
}

#[test]
fn a_repeated_write_is_done_once_and_answered_alike() {
    let fleet = Fleet::start();
    let admin = fleet.admin();
    let first = admin.post_once("/api/models", &model("Once"), "key 1").expect(201);
    for _ in 0..3 {
        let again = admin.post_once("/api/models", &model("Once"), "key 1").expect(201);
        assert_eq!(again.body, first.body);
        assert_eq!(again.header("etag"), first.header("etag"));
    }
    assert_eq!(names(&list(&admin)), ["Once"]);
    // Without the key, and with another, it is another request.
    admin.post("/api/models", &model("Once")).is_error(409, "CONFLICT");
    admin.post_once("/api/models", &model("Once"), "key 2").is_error(409, "CONFLICT");
    // The key belongs to this body, and to nobody else.
    admin.post_once("/api/models", &model("Other"), "key 1").is_error(422, "IDEMPOTENCY_KEY_REUSED");
    let colleague = fleet.caller("admin");
    let _ = colleague.post_once("/api/models", &model("Another"), "key 1").expect(201);
    assert_eq!(names(&list(&admin)), ["Another", "Once"]);
}

#[test]
fn many_repetitions_at_once_are_one_write() {
    let fleet = Fleet::start();
    let admin = fleet.admin();
    let body = json!({"kind": "console", "label": "many", "role": "viewer"});
    let keys: Vec<_> = std::thread::scope(|scope| {
        let ask = || scope.spawn(|| admin.post_once("/api/credentials", &body, "many"));
        let asking: Vec<_> = (0..8).map(|_| ask()).collect();
        asking.into_iter().map(|asked| asked.join().expect("an answer").expect(201).body["key"].clone()).collect()
    });
    assert!(keys.iter().all(|key| *key == keys[0]), "one key for all");
    assert_eq!(credentials(&admin, "many").len(), 1);
}

#[test]
fn a_repeated_change_of_what_is_gone_gets_its_first_answer() {
    let fleet = Fleet::start();
    let admin = fleet.admin();
    let _ = admin.post("/api/models", &model("Doomed")).expect(201);
    let changes = json!({"name": "Renamed", "description": "x"});
    let changed = put_once(&admin, "/api/models/Doomed", &changes, "change").expect(200);
    assert_eq!(put_once(&admin, "/api/models/Doomed", &changes, "change").expect(200).body, changed.body);
    let removed = delete_once(&admin, "/api/models/Renamed", "remove").expect(200);
    admin.get("/api/models/Renamed").is_error(404, "NOT_FOUND");
    for _ in 0..2 {
        assert_eq!(delete_once(&admin, "/api/models/Renamed", "remove").expect(200).body, removed.body);
        assert_eq!(put_once(&admin, "/api/models/Doomed", &changes, "change").expect(200).body, changed.body);
    }
    delete_once(&admin, "/api/models/Renamed", "another").is_error(404, "NOT_FOUND");
    // A model that has taken the name since is not meant.
    let _ = admin.post("/api/models", &model("Renamed")).expect(201);
    let _ = delete_once(&admin, "/api/models/Renamed", "remove").expect(200);
    assert_eq!(names(&list(&admin)), ["Renamed"]);
}

fn credentials(api: &Api, label: &str) -> Vec<Value> {
    let list = api.get("/api/credentials").expect(200).body;
    let all = list["credentials"].as_array().expect("a list");
    all.iter().filter(|credential| credential["label"] == label).cloned().collect()
}

#[test]
fn a_repeated_request_for_a_key_gets_the_same_key_until_the_node_forgets_it() {
    let mut fleet = Fleet::start();
    let admin = fleet.admin();
    let body = json!({"kind": "console", "label": "repeated", "role": "viewer"});
    let first = admin.post_once("/api/credentials", &body, "credential").expect(201);
    let key = first.body["key"].as_str().expect("a key").to_owned();
    assert!(key.starts_with("sk-") && key.len() > 40, "a key that can not be guessed");
    let again = admin.post_once("/api/credentials", &body, "credential").expect(201);
    assert_eq!(again.body, first.body);
    admin
        .post_once("/api/credentials", &with(&body, &json!({"role": "admin"})), "credential")
        .is_error(422, "IDEMPOTENCY_KEY_REUSED");
    assert_eq!(credentials(&admin, "repeated"), [first.body["credential"].clone()]);
    let _ = fleet.anybody().with_key(&key).get("/api/models").expect(200);

    // A node that has died reads its log again and may know the key from there. One that has stopped knows it no more.
    for killed in [true, false] {
        if killed {
            fleet.kill()
        } else {
            assert!(fleet.stop().success())
        }
        fleet.restart();
        let admin = fleet.admin();
        let answer = admin.post_once("/api/credentials", &body, "credential");
        if killed && answer.status == 201 {
            assert_eq!(answer.body, first.body);
        } else {
            answer.is_error(409, "ANSWER_GONE");
            assert!(!answer.text.contains(&key));
        }
        assert_eq!(credentials(&admin, "repeated"), [first.body["credential"].clone()], "no second one");
        let _ = fleet.anybody().with_key(&key).get("/api/models").expect(200);
    }
    let admin = fleet.admin();
    // What is not secret is remembered.
    let _ = admin.post_once("/api/models", &model("Once"), "model").expect(201);
    fleet.kill();
    fleet.restart();
    let _ = fleet.admin().post_once("/api/models", &model("Once"), "model").expect(201);
}

#[test]
fn a_malformed_key_is_refused_and_nothing_is_done() {
    let fleet = Fleet::start();
    let admin = fleet.admin();
    for (key, status) in
        [(String::new(), 400), ("k".repeat(256), 400), ("\u{e9}".to_owned(), 400), ("k".repeat(255), 201)]
    {
        let request = admin.request("POST", "/api/models").header("idempotency-key", key.as_bytes());
        let answer = send(request.json(&model(&format!("Key of {}", key.len()))));
        assert_eq!(answer.status, status, "{answer}");
        assert_eq!(answer.body["code"] == "BAD_REQUEST", status == 400, "{answer}");
    }
    assert_eq!(names(&list(&admin)), ["Key of 255"]);
}
