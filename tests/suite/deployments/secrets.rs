//! Values of an engine's environment reach the engine and nobody else.

use std::path::{Path, PathBuf};

use muster_tests::api::Answer;
use serde_json::json;

use super::{Park, ask, call, is, only, running, start};

/// Every file below a directory with its content.
fn files(directory: &Path) -> Vec<(PathBuf, Vec<u8>)> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir(directory).expect("a directory") {
        let entry = entry.expect("an entry");
        let (path, kind) = (entry.path(), entry.file_type().expect("a kind"));
        if kind.is_dir() {
            found.extend(files(&path));
        } else if kind.is_file() {
            found.push((path.clone(), std::fs::read(&path).expect("a file that can be read")));
        }
    }
    found
}

fn holders(files: &[(PathBuf, Vec<u8>)], text: &str) -> Vec<PathBuf> {
    let hexadecimal: String = text.bytes().map(|byte| format!("{byte:02x}")).collect();
    let holds = |content: &[u8]| {
        let content = String::from_utf8_lossy(content);
        content.contains(text) || content.contains(&hexadecimal)
    };
    files.iter().filter(|(_, content)| holds(content)).map(|(path, _)| path.clone()).collect()
}

/// E-052
#[test]
fn the_environment_reaches_the_engine_and_is_nowhere_else() {
    let mut park = Park::with(2, &[("MUSTER_LOG", "trace")]);
    let admin = park.admin();
    let mut answers = Vec::new();
    let value =
        json!([{"key": "HF_TOKEN", "value": "CANARY-of-a-test"}, {"key": "QUOTED", "value": "\"CANARY quoted\""}]);
    let changes = json!({"env_vars": value, "model_name": "VISIBLE", "node_id": 2});
    let started = ask(&admin, &changes).expect(200);
    let id = started.body["id"].as_u64().expect("a number");
    assert_eq!(started.body["env_vars"], json!([{"key": "HF_TOKEN", "value": null}, {"key": "QUOTED", "value": null}]));
    answers.push(started);
    is(&admin, id, "running");
    let engine = only(park.engines());
    assert_eq!(engine.variable("HF_TOKEN").as_deref(), Some("CANARY-of-a-test"));
    assert_eq!(engine.variable("QUOTED").as_deref(), Some("CANARY quoted"));
    // What the node itself was given is none of the engine's business.
    assert_eq!((engine.variable("MUSTER_LOG"), engine.variable("MUSTER_DATA_DIR")), (None, None));
    assert!(!engine.arguments.iter().any(|argument| argument.contains("CANARY")), "{engine:?}");
    // One that fails tempts to say why.
    let failing = json!({
        "env_vars": [{"key": "SECRET", "value": "CANARY-that-fails"}], "model_name": "failing", "gpu_ids": [1],
        "extra_args": ["--fail-start"], "max_failed_restarts": 1
    });
    let failed = start(&admin, &failing);
    is(&admin, failed, "error");
    let refused = json!({"env_vars": [{"key": "VLLM_API_KEY", "value": "CANARY-refused"}], "model_name": "refused", "gpu_ids": [1]});
    let refused = start(&admin, &refused);
    assert!(is(&admin, refused, "error")["last_error"].as_str().expect("a reason").contains("VLLM_API_KEY"));
    for path in [
        "/api/deployments",
        "/api/deployments/1",
        "/api/deployments/1/manifest",
        "/api/deployments/2",
        "/api/audit",
        "/metrics",
        "/api/nodes",
    ] {
        answers.push(admin.get(path).expect(200));
    }
    answers.push(call(&park.user(), "VISIBLE").expect(200));
    let living = files(&park.fleet.home.data());
    // After a restart the values are there again.
    engine.signal(muster_tests::process::Signal::KILL);
    park.fleet.kill();
    park.fleet.restart();
    let admin = park.admin();
    super::gone(&engine);
    let again =
        muster_tests::process::wait_for(muster_tests::fleet::PATIENCE, "another engine", || park.engines().pop());
    assert_eq!(again.variable("HF_TOKEN").as_deref(), Some("CANARY-of-a-test"));
    is(&admin, id, "running");
    let _ = admin.delete(&format!("/api/deployments/{id}")).expect(200);
    let later = files(&park.fleet.home.data());
    let log = [(PathBuf::from("the log"), park.fleet.home.log().into_bytes())];
    assert!(!holders(&living, "VISIBLE").is_empty() && !holders(&log, "TRACE").is_empty(), "the search works");
    for files in [&living[..], &later, &log] {
        assert!(holders(files, "CANARY").is_empty(), "{:?}", holders(files, "CANARY"));
    }
    for answer in answers {
        assert!(!Answer::to_string(&answer).contains("CANARY"), "{answer}");
    }
    running(&admin, &json!({}));
}
