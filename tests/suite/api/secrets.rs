//! What is secret is nowhere in clear: not on the disk, not in the log, not in an answer.

use std::path::{Path, PathBuf};

use muster_tests::api::{Answer, Api};
use muster_tests::fleet::Fleet;
use serde_json::{Value, json};

use super::{model, with};

/// Every file below a directory with its content.
fn files(directory: &Path) -> Vec<(PathBuf, Vec<u8>)> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir(directory).expect("a directory") {
        let entry = entry.expect("an entry");
        let (path, kind) = (entry.path(), entry.file_type().expect("a kind"));
        if kind.is_dir() {
            found.extend(files(&path));
        } else if kind.is_file() {
            let content = std::fs::read(&path).expect("a file that can be read");
            found.push((path, content));
        }
    }
    found
}

/// The names of the files that hold the text, as it is or in hexadecimal.
fn holders(files: &[(PathBuf, Vec<u8>)], text: &str) -> Vec<String> {
    let hexadecimal: String = text.bytes().map(|byte| format!("{byte:02x}")).collect();
    let holds = |content: &[u8]| {
        let content = String::from_utf8_lossy(content);
        content.contains(text) || content.contains(&hexadecimal)
    };
    let found = files.iter().filter(|(_, content)| holds(content));
    let mut names: Vec<_> =
        found.map(|(path, _)| path.file_name().unwrap_or_default().to_string_lossy().into_owned()).collect();
    names.sort_unstable();
    names
}

/// Asks for everything that can be read.
fn read_everything(api: &Api, answers: &mut Vec<Answer>) {
    for path in [
        "/api/models",
        "/api/models/Keyed",
        "/api/models/Keyed%20later",
        "/api/nodes",
        "/api/settings",
        "/api/cluster",
        "/api/credentials",
        "/api/credentials/1",
        "/api/api-keys",
        "/api/configs",
        "/api/audit",
        "/api/deployments",
        "/api/deployments/1/manifest",
        "/metrics",
        "/openapi.json",
    ] {
        answers.push(api.get(path).expect(200));
    }
}

///
#[test]
fn no_secret_stands_in_clear_on_the_disk_in_the_log_or_in_an_answer() {
    let mut fleet = Fleet::start_with(&[("MUSTER_LOG", "trace")]);
    let admin = fleet.admin();
    let mut answers = Vec::new();
    let keyed = with(&model("Keyed"), &json!({"apiKey": "sk-CANARY-first", "description": "VISIBLE"}));
    answers.push(admin.post_once("/api/models", &keyed, "a key").expect(201));
    answers.push(admin.post_once("/api/models", &keyed, "a key").expect(201));
    answers.push(admin.post("/api/models", &model("Keyed later")).expect(201));
    answers.push(admin.put("/api/models/Keyed%20later", &json!({"apiKey": "sk-CANARY-second"})).expect(200));
    // Requests that fail are told apart in the answer and in the log, and tempt to show what was in them.
    for wrong in [
        json!({"apiKey": "sk-CANARY-third"}),
        json!({"apiKey": ["sk-CANARY-fourth"]}),
        with(&keyed, &json!({"name": "keyed"})),
        with(&keyed, &json!({"status": "sk-CANARY-fifth"})),
        with(&keyed, &json!({"apiKey": "sk-CANARY-sixth".repeat(200)})),
        with(&keyed, &json!({"baseUrl": "http://user:sk-CANARY-seventh@192.0.2.1/"})),
    ] {
        let answer = admin.post("/api/models", &wrong);
        assert!(answer.status >= 400, "{answer}");
        answers.push(answer);
    }
    answers.push(admin.post_once("/api/models", &with(&keyed, &json!({"apiKey": "sk-CANARY-eighth"})), "a key"));
    let made = json!({"kind": "console", "label": "kept", "role": "viewer"});
    let created = admin.post_once("/api/credentials", &made, "a credential").expect(201);
    let new_key = created.body["key"].as_str().expect("a key").to_owned();
    let deployment = json!({"model_name": "org/m", "gpu_memory_fraction": 0.5});
    let environment = |value: Value| with(&deployment, &json!({"env_vars": [{"key": "INNOCENT", "value": value}]}));
    answers.push(admin.post("/api/deployments", &environment(json!("sk-CANARY-tenth"))).expect(201));
    answers.push(admin.post("/api/deployments", &environment(json!(["sk-CANARY-eleventh"]))).expect(422));
    answers.push(admin.post("/api/deployments", &environment(json!("sk-CANARY-twelfth".repeat(900)))).expect(422));
    let made = json!({"label": "kept too", "ttl_seconds": 86_400, "deployment_ids": [7]});
    let created = admin.post_once("/api/api-keys", &made, "an API key").expect(201);
    let other_key = created.body["key"].as_str().expect("a key").to_owned();
    let path = format!("/api/api-keys/{}", created.body["id"]);
    answers.push(admin.patch(&path, &json!({"label": "other"})).expect(409));
    answers.push(fleet.anybody().with_key(&other_key).get("/v1/models").expect(200));
    // A wrong key may be a right one with a slip of the hand.
    answers.push(fleet.anybody().with_key("sk-CANARY-ninth").get("/api/models").expect(401));
    read_everything(&admin, &mut answers);
    fleet.kill();
    fleet.restart();
    read_everything(&fleet.admin(), &mut answers);
    let living = files(&fleet.home.data());
    assert!(fleet.stop().success());

    let stopped = files(&fleet.home.data());
    let log = [(PathBuf::from("the log"), fleet.home.log().into_bytes())];
    assert!(!holders(&stopped, "VISIBLE").is_empty(), "what is no secret is found, so the search works");
    assert!(!holders(&log, "DEBUG").is_empty(), "the log says everything");
    for files in [&living[..], &stopped, &log] {
        assert_eq!(holders(files, "CANARY"), [""; 0]);
        assert_eq!(holders(files, &new_key), [""; 0]);
        assert_eq!(holders(files, &other_key), [""; 0]);
    }
    for answer in answers {
        let text = answer.to_string();
        let told = ["CANARY", &new_key, &other_key].into_iter().find(|secret| text.contains(*secret));
        assert!(told.is_none(), "{text}");
    }

    let kept = std::fs::read(fleet.home.data().join("dev-keys.json")).expect("the keys of a development fleet");
    let kept: Value = serde_json::from_slice(&kept).expect("JSON");
    for (secret, places) in [
        ("adminToken", &["dev-keys.json", "dev.json"][..]),
        ("gatewayKey", &["dev-keys.json", "dev.json"]),
        ("recoveryKey", &["dev-keys.json"]),
    ] {
        let text = kept[secret].as_str().expect("a secret");
        assert_eq!(holders(&stopped, text), places, "{secret}");
        assert_eq!(holders(&log, text), [""; 0], "{secret}");
    }
}
