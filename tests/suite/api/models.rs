//! The model registry (seed 000).

use muster_tests::api::{Answer, Api, send};
use muster_tests::fleet::Fleet;
use serde_json::{Value, json};

use super::{local_model, model, names, with};

const UNKNOWN: &str = "/api/models/00000000-0000-4000-8000-000000000000";

fn path(created: &Answer) -> String {
    format!("/api/models/{}", created.body["id"].as_str().expect("an id"))
}

fn list(api: &Api) -> Value {
    api.get("/api/models").expect(200).body
}

/// A-002
#[test]
fn nobody_without_a_credential_reaches_the_registry() {
    let fleet = Fleet::start();
    let anybody = fleet.anybody();
    for (method, path) in [
        ("GET", "/api/models"),
        ("POST", "/api/models"),
        ("GET", "/api/models/x"),
        ("PUT", "/api/models/x"),
        ("PATCH", "/api/models/x"),
        ("DELETE", "/api/models/x"),
        ("POST", "/api/models/x/realms"),
        ("DELETE", "/api/models/x/realms/y"),
        ("GET", "/api/nope"),
    ] {
        let answer = send(anybody.request(method, path).json(&model("x")));
        answer.is_error(401, "UNAUTHORIZED");
        assert!(answer.header("www-authenticate").starts_with("Bearer"), "{method} {path}: {answer}");
    }
    assert_eq!(list(&fleet.admin()), json!({"models": []}), "nothing was stored");
}

/// A-009 A-010 A-014 A-015 A-017 A-020 A-021 A-023 A-025 A-041 A-042 A-043
#[test]
fn a_new_model_is_answered_in_full_and_found_by_id_and_by_name() {
    let fleet = Fleet::start();
    let admin = fleet.admin();
    let created = admin.post("/api/models", &with(&local_model("  Llama 3 (local) "), &json!({}))).expect(201);
    let model = &created.body["model"];
    let id = model["id"].as_str().expect("an id");
    assert!(uuid_v4(id), "{id}");
    for (field, expected) in [
        ("name", json!("Llama 3 (local)")),
        ("description", Value::Null),
        ("provider", json!("openai-compatible")),
        ("modelId", json!("llama3")),
        ("baseUrl", json!("http://192.0.2.1:11434/v1")),
        ("endpoint", json!("http://192.0.2.1:11434/v1")),
        ("status", json!("active")),
        ("isEnabled", json!(true)),
        ("litellmModelName", json!("openai-compatible/llama-3-local")),
        ("hasApiKey", json!(false)),
    ] {
        assert_eq!(model[field], expected, "{field}");
        assert_eq!(created.body[field], expected, "{field} at top level");
    }
    assert!(rfc3339(&model["createdAt"]), "{created}");
    assert_eq!(created.header("etag"), format!("\"{}\"", model["modIndex"]));

    for reference in [id, "Llama%203%20(local)"] {
        let found = admin.get(&format!("/api/models/{reference}")).expect(200);
        assert_eq!((&found.body["model"], &found.body["id"]), (model, &model["id"]), "{reference}");
    }
    // Names are unique without regard to case, and found exactly as they are written.
    admin.get("/api/models/llama%203%20(local)").is_error(404, "NOT_FOUND");
    assert_eq!(list(&admin), json!({"models": [model]}));
}

fn uuid_v4(text: &str) -> bool {
    let parts: Vec<_> = text.split('-').collect();
    parts.iter().map(|part| part.len()).eq([8, 4, 4, 4, 12])
        && parts[2].starts_with('4')
        && text.bytes().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f' | b'-'))
}

fn rfc3339(value: &Value) -> bool {
    let pattern = "0000-00-00T00:00:00.000Z";
    let text = value.as_str().unwrap_or_default();
    text.len() == pattern.len()
        && text.bytes().zip(pattern.bytes()).all(|(byte, like)| match like {
            b'0' => byte.is_ascii_digit(),
            other => byte == other,
        })
}

/// A-011 A-012 A-036 A-040
#[test]
fn what_is_registered_comes_back_unchanged() {
    let fleet = Fleet::start();
    let admin = fleet.admin();
    let long = "\u{1f999} \"quoted\" \\ \u{e9} \n\t".repeat(120);
    let every = [
        json!({"provider": "openai"}),
        json!({"provider": "anthropic"}),
        json!({"provider": "openai-compatible", "baseUrl": "https://models.example/v1"}),
        json!({"provider": "my-own", "baseUrl": "http://[2001:db8::1]:80"}),
        json!({"description": "Local Ollama instance"}),
        json!({"description": long.trim()}),
        json!({"modelId": "org/Model:7b-q4_K_M"}),
        json!({"status": "inactive", "isEnabled": false}),
        json!({"maxTokens": 1, "contextWindow": 9_007_199_254_740_991_u64, "defaultMaxTokens": 7, "priority": -3}),
        json!({"supportsVision": true, "supportsTools": false, "supportsStreaming": false}),
        json!({"defaultTemperature": 0.25, "defaultTopP": 0.5}),
        json!({"pricePerMillionInputTokens": 0.15, "pricePerMillionOutputTokens": 0, "costPerInputToken": 0.15}),
        json!({"metadata": {"deep": {"list": [1, 2.5, null, "x"]}}}),
        json!({"apiKeyRef": "env:SOME_KEY"}),
        json!({"nodeId": 1}),
        json!({"name": "\u{6a21}\u{578b}/\u{1f999}?#%"}),
    ];
    for (number, fields) in every.iter().enumerate() {
        let sent = with(&model(&format!("model {number}")), fields);
        let created = admin.post("/api/models", &sent).expect(201);
        let found = admin.get(&path(&created)).expect(200);
        for (field, value) in sent.as_object().expect("an object") {
            assert!(same(&found.body[field], value), "{field} of {found}");
        }
    }
}

/// Equal, numbers by their value: 0 may come back as 0.0.
fn same(one: &Value, other: &Value) -> bool {
    one == other || one.as_f64().is_some_and(|number| other.as_f64() == Some(number))
}

/// A-016 A-029 A-030 A-032 A-034 A-035 A-037 A-098
#[test]
fn what_makes_no_sense_is_refused_with_every_wrong_field_named_and_nothing_is_stored() {
    let fleet = Fleet::start();
    let admin = fleet.admin();
    let long = |length: usize| "x".repeat(length);
    for (changes, fields) in [
        (json!({"name": null}), &["name"][..]),
        (json!({"name": ""}), &["name"]),
        (json!({"name": "   "}), &["name"]),
        (json!({"name": 5}), &["name"]),
        (json!({"name": long(201)}), &["name"]),
        (json!({"name": "a\u{0}b"}), &["name"]),
        (json!({"name": "00000000-0000-4000-8000-000000000000"}), &["name"]),
        (json!({"name": "Providers"}), &["name"]),
        (json!({"provider": null}), &["provider"]),
        (json!({"provider": "a/b", "baseUrl": "http://192.0.2.1"}), &["provider"]),
        (json!({"provider": long(65), "baseUrl": "http://192.0.2.1"}), &["provider"]),
        (json!({"modelId": null}), &["modelId"]),
        (json!({"modelId": {}}), &["modelId"]),
        (json!({"provider": "openai-compatible"}), &["baseUrl"]),
        (json!({"provider": "openai-compatible", "baseUrl": null}), &["baseUrl"]),
        (json!({"baseUrl": "ftp://x"}), &["baseUrl"]),
        (json!({"baseUrl": "not a url"}), &["baseUrl"]),
        (json!({"baseUrl": "http://user:password@192.0.2.1/"}), &["baseUrl"]),
        (json!({"baseUrl": "http://169.254.169.254/latest/meta-data"}), &["baseUrl"]),
        (json!({"baseUrl": "http://[fe80::1]/"}), &["baseUrl"]),
        (json!({"baseUrl": "http://0xa9fea9fe/"}), &["baseUrl"]),
        (json!({"baseUrl": format!("http://192.0.2.1/{}", long(2048))}), &["baseUrl"]),
        (json!({"status": "paused"}), &["status"]),
        (json!({"isEnabled": "true"}), &["isEnabled"]),
        (json!({"description": long(8193)}), &["description"]),
        (json!({"apiKey": 5}), &["apiKey"]),
        (json!({"maxTokens": 0}), &["maxTokens"]),
        (json!({"maxTokens": 1.5}), &["maxTokens"]),
        (json!({"contextWindow": 9_007_199_254_740_992_u64}), &["contextWindow"]),
        (json!({"priority": -1_000_001}), &["priority"]),
        (json!({"defaultTemperature": 2.01}), &["defaultTemperature"]),
        (json!({"defaultTopP": -0.1}), &["defaultTopP"]),
        (json!({"pricePerMillionInputTokens": -1}), &["pricePerMillionInputTokens"]),
        (json!({"metadata": []}), &["metadata"]),
        (json!({"nodeId": 0}), &["nodeId"]),
        (json!({"nodeId": 99}), &["nodeId"]),
        (json!({"nope": 1, "name": 5, "status": []}), &["name", "nope", "status"]),
    ] {
        let answer = admin.post("/api/models", &with(&model("wrong"), &changes));
        answer.names(fields);
    }
    admin.post("/api/models", &json!({})).names(&["modelId", "name", "provider"]);
    let raw = |body: &'static str| send(admin.request("POST", "/api/models").body(body));
    for body in ["", "{\"name\":", "nonsense", "{\"name\": \"x\",}", "{} {}"] {
        raw(body).is_error(400, "MALFORMED");
    }
    for body in ["[]", "5", "null", "\"name\""] {
        raw(body).names(&["(body)"]);
    }
    assert_eq!(names(&list(&admin)).len(), 0, "nothing was stored");

    let path = path(&admin.post("/api/models", &local_model("right")).expect(201));
    let before = admin.get(&path).expect(200).body;
    for (changes, fields) in [
        (json!({"status": "paused"}), &["status"][..]),
        (json!({"name": " ", "description": "changed"}), &["name"]),
        (json!({"baseUrl": null}), &["baseUrl"]),
        (json!({"nodeId": 2, "description": "changed"}), &["nodeId"]),
        (json!({"nope": 1, "description": "changed"}), &["nope"]),
    ] {
        admin.put(&path, &changes).names(fields);
    }
    assert_eq!(admin.get(&path).expect(200).body, before, "nothing was changed");
}

/// A-039
#[test]
fn two_names_of_one_thing_may_both_be_given_and_may_not_disagree() {
    let fleet = Fleet::start();
    let admin = fleet.admin();
    let bare = json!({"provider": "openai-compatible", "modelId": "x"});
    let url = "http://192.0.2.7:8000/v1";
    for (name, fields) in [
        ("one", json!({"baseUrl": url})),
        ("other", json!({"endpoint": url})),
        ("both", json!({"baseUrl": url, "endpoint": url})),
    ] {
        let created = admin.post("/api/models", &with(&with(&bare, &fields), &json!({"name": name}))).expect(201);
        let model = &created.body["model"];
        assert_eq!((&model["baseUrl"], &model["endpoint"]), (&json!(url), &json!(url)), "{name}");
    }
    for fields in [
        json!({"baseUrl": url, "endpoint": "http://192.0.2.8/v1"}),
        json!({"baseUrl": url, "endpoint": null}),
        json!({"status": "active", "isEnabled": false}),
        json!({"pricePerMillionInputTokens": 1, "costPerInputToken": 2}),
        json!({"pricePerMillionOutputTokens": 1, "costPerOutputToken": null}),
    ] {
        admin.post("/api/models", &with(&model("disagrees"), &fields)).is_error(400, "BAD_REQUEST");
        admin.put("/api/models/one", &fields).is_error(400, "BAD_REQUEST");
    }
    assert_eq!(names(&list(&admin)), ["both", "other", "one"]);
}

/// A-017 A-018 A-019
#[test]
fn the_proxys_name_is_made_once_and_by_nobody_but_the_registry() {
    let fleet = Fleet::start();
    let admin = fleet.admin();
    let evil = with(&model("Llama 3 local"), &json!({"litellmModelName": "evil/x", "id": "evil", "createdBy": "evil"}));
    let first = admin.post("/api/models", &evil).expect(201);
    assert_eq!(first.body["litellmModelName"], "openai/llama-3-local");
    assert_ne!((&first.body["id"], &first.body["createdBy"]), (&json!("evil"), &json!("evil")));
    let second = admin.post("/api/models", &model("Llama 3 (local)")).expect(201);
    assert_eq!(second.body["litellmModelName"], "openai/llama-3-local-2");
    let renamed =
        admin.put(&path(&first), &json!({"name": "Something else", "litellmModelName": "evil/x"})).expect(200);
    assert_eq!(renamed.body["litellmModelName"], "openai/llama-3-local");
    // It is a name like any other.
    admin.post("/api/models", &model("openai/llama-3-local-2")).is_error(409, "CONFLICT");
}

/// A-031 A-052
#[test]
fn a_name_belongs_to_one_model_however_many_ask_for_it_at_once() {
    let fleet = Fleet::start();
    let admin = fleet.admin();
    for round in 0..3 {
        let body = model(&format!("Wanted {round}"));
        let statuses: Vec<_> = std::thread::scope(|scope| {
            let ask = || scope.spawn(|| admin.post("/api/models", &body));
            let asking: Vec<_> = (0..8).map(|_| ask()).collect();
            asking.into_iter().map(|asked| asked.join().expect("an answer").status).collect()
        });
        assert_eq!(statuses.iter().filter(|status| **status == 201).count(), 1, "{statuses:?}");
        assert_eq!(statuses.iter().filter(|status| **status == 409).count(), 7, "{statuses:?}");
    }
    assert_eq!(names(&list(&admin)), ["Wanted 2", "Wanted 1", "Wanted 0"]);
    for same in ["wanted 0", " WANTED 0 "] {
        admin.post("/api/models", &model(same)).is_error(409, "CONFLICT");
    }
    let before = admin.get("/api/models/Wanted%201").expect(200).body;
    admin.put("/api/models/Wanted%201", &json!({"name": "Wanted 0", "description": "x"})).is_error(409, "CONFLICT");
    assert_eq!(admin.get("/api/models/Wanted%201").expect(200).body, before, "nothing was changed");
    // Its own name in another case is no conflict, and a name that was given up is free.
    assert_eq!(admin.put("/api/models/Wanted%201", &json!({"name": "WANTED 1"})).expect(200).body["name"], "WANTED 1");
    let _ = admin.put("/api/models/WANTED%201", &json!({"name": "Given up"})).expect(200);
    let _ = admin.post("/api/models", &model("Wanted 1")).expect(201);
}

/// A-044
#[test]
fn a_model_that_is_not_there_is_not_found() {
    let fleet = Fleet::start();
    let admin = fleet.admin();
    for path in [UNKNOWN, "/api/models/nobody", "/api/models/%2F", "/api/models/%00"] {
        admin.get(path).is_error(404, "NOT_FOUND");
        admin.put(path, &json!({"name": "x"})).is_error(404, "NOT_FOUND");
        admin.delete(path).is_error(404, "NOT_FOUND");
    }
    assert_eq!(names(&list(&admin)).len(), 0);
}

/// A-022 A-045 A-046 A-047 A-048 A-049 A-051
#[test]
fn a_change_changes_what_it_names_and_nothing_else() {
    let fleet = Fleet::start();
    let admin = fleet.admin();
    let rich = with(&local_model("First"), &json!({"description": "old", "priority": 5, "metadata": {"a": 1}}));
    let path = path(&admin.post("/api/models", &rich).expect(201));
    type Change = fn(&Api, &str, &Value) -> Answer;
    let methods: [(&str, Change); 2] = [("PUT", Api::put), ("PATCH", Api::patch)];
    for (method, change) in methods {
        for changes in [
            json!({}),
            json!({"name": format!("By {method}")}),
            json!({"description": "Upgraded to 3.1"}),
            json!({"status": "inactive", "isEnabled": false}),
            json!({"status": "active", "isEnabled": true}),
            json!({"modelId": "y", "baseUrl": "http://192.0.2.2/v1", "endpoint": "http://192.0.2.2/v1"}),
            json!({"provider": "other"}),
            json!({"description": null}),
            json!({"metadata": {"b": [2]}, "priority": 0}),
        ] {
            let before = admin.get(&path).expect(200).body["model"].clone();
            let answer = change(&admin, &path, &changes).expect(200);
            assert_eq!(answer.body["ok"], true);
            let after = admin.get(&path).expect(200).body["model"].clone();
            assert_eq!(answer.body["model"], after, "{method} {changes}");
            let ours = json!({"updatedAt": after["updatedAt"], "modIndex": after["modIndex"]});
            assert_eq!(after, with(&with(&before, &changes), &ours), "{method} {changes}");
            // The list holds it whatever it is.
            assert_eq!(list(&admin)["models"], json!([after]));
        }
        admin.get("/api/models/First").is_error(404, "NOT_FOUND");
        assert_eq!(admin.get(&format!("/api/models/By%20{method}")).expect(200).body["name"], format!("By {method}"));
    }
}

/// A caller may send back what it got.
#[test]
fn a_model_that_is_sent_back_as_it_was_read_stays_as_it_is() {
    let fleet = Fleet::start();
    let admin = fleet.admin();
    let keyed = with(&local_model("Kept"), &json!({"apiKey": "sk-CANARY-kept", "pricePerMillionInputTokens": 0.5}));
    let path = path(&admin.post("/api/models", &keyed).expect(201));
    let read = admin.get(&path).expect(200).body;
    let answer = admin.put(&path, &read).expect(200);
    let ours = json!({"updatedAt": answer.body["updatedAt"], "modIndex": answer.body["modIndex"]});
    assert_eq!(answer.body["model"], with(&read["model"], &ours));
    assert_eq!(answer.body["hasApiKey"], true, "the key was not touched");
    let copy = admin.post("/api/models", &with(&read, &json!({"name": "Copy"}))).expect(201);
    assert_ne!(copy.body["id"], read["id"]);
    assert_eq!(copy.body["hasApiKey"], false, "a key does not come along");
}

/// A-024
#[test]
fn a_key_is_kept_and_never_shown() {
    let fleet = Fleet::start();
    let admin = fleet.admin();
    let path = path(&admin.post("/api/models", &with(&model("Keyed"), &json!({"apiKey": "sk-CANARY-1"}))).expect(201));
    let mut answers = vec![admin.get(&path), admin.get("/api/models"), admin.put(&path, &json!({"description": "d"}))];
    for (change, expected) in [
        (json!({"apiKey": "sk-CANARY-2"}), true),
        (json!({"apiKey": null}), false),
        (json!({"apiKey": "sk-CANARY-3"}), true),
        (json!({"apiKey": ""}), false),
        (json!({"apiKey": "sk-CANARY-4"}), true),
    ] {
        let answer = admin.put(&path, &change).expect(200);
        assert_eq!(answer.body["hasApiKey"], expected, "{change}");
        answers.push(answer);
    }
    answers.push(admin.delete(&path).expect(200));
    for answer in answers {
        assert!(!answer.to_string().contains("CANARY"), "{answer}");
    }
}

#[test]
fn a_change_of_an_older_version_is_refused() {
    let fleet = Fleet::start();
    let admin = fleet.admin();
    let created = admin.post("/api/models", &model("Versioned")).expect(201);
    let path = path(&created);
    let change = |method: &str, tag: &str| {
        let request = admin.request(method, &path).header("if-match", tag);
        send(if method == "DELETE" { request } else { request.json(&json!({"description": tag})) })
    };
    let first = created.header("etag").to_owned();
    assert_eq!(admin.get(&path).expect(200).header("etag"), first);
    let second = change("PUT", &first).expect(200).header("etag").to_owned();
    assert!(!second.is_empty() && second != first, "{second}");
    for method in ["PUT", "PATCH", "DELETE"] {
        for stale in [first.as_str(), "\"0\"", "\"other\"", "W/\"abc\""] {
            change(method, stale).is_error(412, "PRECONDITION_FAILED");
        }
    }
    assert_eq!(admin.get(&path).expect(200).header("etag"), second, "nothing was changed");
    let third = change("PATCH", &format!("{first}, {second}")).expect(200).header("etag").to_owned();
    assert_ne!(third, second);
    let fourth = change("PUT", "*").expect(200).header("etag").to_owned();
    let _ = change("DELETE", &fourth).expect(200);
    admin.get(&path).is_error(404, "NOT_FOUND");
}

/// A-053
#[test]
fn a_model_that_is_removed_is_gone_and_so_is_its_name() {
    let fleet = Fleet::start();
    let admin = fleet.admin();
    let first = admin.post("/api/models", &model("Short lived")).expect(201);
    let removed = admin.delete(&path(&first)).expect(200);
    assert_eq!((&removed.body["ok"], &removed.body["deleted"]), (&json!(true), &json!(true)));
    for gone in [path(&first), "/api/models/Short%20lived".to_owned()] {
        admin.get(&gone).is_error(404, "NOT_FOUND");
        admin.delete(&gone).is_error(404, "NOT_FOUND");
    }
    assert_eq!(names(&list(&admin)).len(), 0);
    let second = admin.post("/api/models", &model("short LIVED")).expect(201);
    assert_ne!(second.body["id"], first.body["id"]);
    assert_eq!(second.body["litellmModelName"], first.body["litellmModelName"]);
    let _ = admin.delete("/api/models/short%20LIVED").expect(200);
}

/// A loopback address means another machine on each node; the warning goes once the node is named.
#[test]
fn a_loopback_address_is_warned_of() {
    let fleet = Fleet::start();
    let admin = fleet.admin();
    for (name, url, fields, warned) in [
        ("a", "http://127.0.0.1:9/v1", json!({}), true),
        ("b", "http://[::1]:9", json!({}), true),
        ("c", "http://localhost:11434", json!({}), true),
        ("d", "http://127.0.0.1:9/v1", json!({"nodeId": 1}), false),
        ("e", "http://192.0.2.1/v1", json!({}), false),
    ] {
        let body = with(&with(&local_model(name), &fields), &json!({"baseUrl": url}));
        let created = admin.post("/api/models", &body).expect(201);
        assert_eq!(created.body["warnings"].as_array().is_some_and(|list| list.len() == 1), warned, "{created}");
    }
    let named = admin.put("/api/models/a", &json!({"nodeId": 1})).expect(200);
    assert_eq!(named.body["warnings"], Value::Null, "{named}");
}

#[test]
fn realms_say_that_they_are_not_there_yet() {
    let fleet = Fleet::start();
    let admin = fleet.admin();
    let path = path(&admin.post("/api/models", &model("Granted")).expect(201));
    admin.post(&format!("{path}/realms"), &json!({"realmId": "r"})).is_error(501, "NOT_IMPLEMENTED");
    admin.delete(&format!("{path}/realms/r")).is_error(501, "NOT_IMPLEMENTED");
    fleet.anybody().post(&format!("{path}/realms"), &json!({})).is_error(401, "UNAUTHORIZED");
    fleet.anybody().delete(&format!("{path}/realms/r")).is_error(401, "UNAUTHORIZED");
}

#[test]
fn a_slash_at_the_end_makes_no_difference() {
    let fleet = Fleet::start();
    let admin = fleet.admin();
    let created = admin.post("/api/models/", &model("Slashed")).expect(201);
    let path = format!("{}/", path(&created));
    assert_eq!(admin.get("/api/models/").expect(200).body, list(&admin));
    assert_eq!(admin.get(&path).expect(200).body["model"], created.body["model"]);
    let _ = admin.put(&path, &json!({"description": "x"})).expect(200);
    let _ = admin.delete(&path).expect(200);
    for path in ["/health/", "/ready/", "/docs/", "/api/nodes/", "/api/nodes/1/", "/api/settings/", "/api/cluster/"] {
        let answer = send(admin.request("GET", path));
        assert_eq!(answer.status, 200, "{path}: no redirect: {answer}");
    }
}

/// A-097
#[test]
fn every_model_is_there_after_a_kill_and_a_restart() {
    let mut fleet = Fleet::start();
    let admin = fleet.admin();
    for number in 0..10 {
        let body = with(&local_model(&format!("Model {number}")), &json!({"priority": number, "apiKey": "sk-CANARY"}));
        let _ = admin.post("/api/models", &body).expect(201);
    }
    let _ = admin.put("/api/models/Model%203", &json!({"status": "inactive"})).expect(200);
    let _ = admin.delete("/api/models/Model%205").expect(200);
    let before = list(&admin);
    fleet.kill();
    fleet.restart();
    assert_eq!(list(&fleet.admin()), before);
}
