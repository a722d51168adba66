//! The hub's cache, and what runs from files.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::Path;

use muster_tests::process::wait_for;
use serde_json::{Value, json};

use super::{Caller, SOON, Site, content, status};

/// A model in a cache as the hub's own tools lay it out.
fn cached(hub: &Path, directory: &str, bytes: usize) {
    let model = hub.join(directory);
    for part in ["blobs", "refs", "snapshots/0123abcd"] {
        fs::create_dir_all(model.join(part)).expect("a directory");
    }
    fs::write(model.join("blobs/e3b0c442"), content(bytes, 3)).expect("a blob");
    fs::write(model.join("refs/main"), "0123abcd").expect("a reference");
    symlink("../../blobs/e3b0c442", model.join("snapshots/0123abcd/model.safetensors")).expect("a link");
    symlink("../../blobs/e3b0c442", model.join("snapshots/0123abcd/twice.safetensors")).expect("a link");
    let locks = hub.join(".locks").join(directory);
    fs::create_dir_all(&locks).expect("a directory");
    fs::write(locks.join("e3b0c442.lock"), "").expect("a lock");
}

fn names(caller: &Caller) -> Vec<String> {
    let listed = caller.get("models/cache").expect(200).body;
    let models = listed.as_array().expect("a list").iter();
    models.map(|model| model["name"].as_str().expect("a name").to_owned()).collect()
}

/// E-133, E-134
#[test]
fn the_cache_is_listed_and_cleared_through_any_node() {
    let site = Site::new();
    for (_, caller) in site.callers() {
        assert_eq!(caller.get("models/cache").expect(200).body, json!([]));
    }
    for directory in ["models--meta-llama--Llama-3", "models--org--raw", "models--org--encoded", "models--gpt2"] {
        cached(&site.hub(), directory, 3 << 19);
    }
    fs::create_dir(site.hub().join("datasets--org--d")).expect("a directory");
    let elsewhere = site.hub().join("../../precious");
    fs::create_dir(&elsewhere).expect("a directory");
    for (through, caller) in site.callers() {
        let listed = caller.get("models/cache").expect(200).body;
        let shown: Vec<_> = listed.as_array().expect("a list").iter().map(|model| model["name"].clone()).collect();
        assert_eq!(shown, ["gpt2", "meta-llama/Llama-3", "org/encoded", "org/raw"], "through {through}");
        for model in listed.as_array().expect("a list") {
            let reference = 8;
            assert_eq!(model["size_bytes"], json!((3 << 19) + reference), "each blob once");
            assert_eq!((&model["size_mb"], &model["in_use"]), (&json!(1.5), &json!(false)));
            assert!(model["last_used_at"].as_f64().is_some_and(|at| at > 1.7e9), "{model}");
        }
        for (bad, expected) in [("..%2F..%2Fprecious", 400), ("org%2F..%2F..", 400), ("a%3Ab", 400), ("org/none", 404)]
        {
            assert_eq!(caller.delete(&format!("models/cache/{bad}")).status, expected, "{bad}");
        }
        // A client's library would not send these.
        for bad in ["../x", "org/../../x", "..", "%2e%2e/%2e%2e/precious"] {
            let asking = caller.begin_request("DELETE", &format!("models/cache/{bad}"), "content-length: 0\r\n", b"");
            assert_eq!(status(asking), 400, "{bad}");
        }
    }
    let (itself, another) = (site.caller(), site.other());
    let deleted = another.delete("models/cache/org/raw").expect(200).body;
    assert_eq!(deleted, json!({"status": "deleted", "name": "org/raw"}));
    let deleted = itself.delete("models/cache/org%2Fencoded").expect(200).body;
    assert_eq!(deleted, json!({"status": "deleted", "name": "org/encoded"}));
    let _ = another.delete("models/cache/meta-llama%2FLlama-3").expect(200);
    assert_eq!(names(&itself), ["gpt2"]);
    let _ = itself.delete("models/cache/gpt2").expect(200);
    another.delete("models/cache/gpt2").is_error(404, "NOT_FOUND");
    let left: Vec<_> =
        fs::read_dir(site.hub()).expect("a directory").map(|entry| entry.expect("one").file_name()).collect();
    assert_eq!(left.len(), 2, "the locks are gone with the models: {left:?}");
    assert_eq!(fs::read_dir(site.hub().join(".locks")).expect("a directory").count(), 0);
    assert!(elsewhere.exists());
}

fn start(site: &Site, name: &str, changes: &Value) -> String {
    let mut body =
        json!({"node_id": 1, "model_name": name, "gpu_memory_fraction": 0.1, "owner": "a test", "engine": "sim"});
    for (field, value) in changes.as_object().expect("an object") {
        body[field] = value.clone();
    }
    let started = site.mesh.api(1).post("/api/deployments/start", &body).expect(200);
    started.body["id"].to_string()
}

fn until(site: &Site, id: &str, wanted: &str) -> Value {
    wait_for(SOON, &format!("deployment {id} to be {wanted}"), || {
        let found = site.mesh.api(0).get(&format!("/api/deployments/{id}")).expect(200).body;
        (found["status"] == wanted).then_some(found)
    })
}

/// E-134, E-136
#[test]
fn what_a_deployment_runs_from_is_not_deleted() {
    let site = Site::new();
    cached(&site.hub(), "models--org--served", 1000);
    cached(&site.hub(), "models--org--adapter", 1000);
    cached(&site.hub(), "models--org--free", 1000);
    let session = site.caller().begin("local");
    let _ = site.caller().write(&session, "config.json", "{}").expect(200);
    let path = site.caller().finish(&session).expect(200).body["path"].as_str().expect("a path").to_owned();
    let of_hub = start(&site, "org/served", &json!({"lora_modules": [{"name": "a", "path": "org/adapter"}]}));
    let of_disk = start(&site, &path, &json!({}));
    until(&site, &of_hub, "running");
    until(&site, &of_disk, "running");
    for (through, caller) in site.callers() {
        let listed = caller.get("models/cache").expect(200).body;
        let used: Vec<_> = listed.as_array().expect("a list").iter().map(|model| model["in_use"].clone()).collect();
        assert_eq!(used, [true, false, true], "adapter, free, served through {through}: {listed}");
        for name in ["org/served", "org%2Fadapter"] {
            caller.delete(&format!("models/cache/{name}")).is_error(409, "CONFLICT");
        }
        assert_eq!(caller.local()["local"]["in_use"], true);
        caller.delete("local-models/local").is_error(409, "CONFLICT");
    }
    let _ = site.other().delete("models/cache/org/free").expect(200);
    for id in [&of_hub, &of_disk] {
        let _ = site.mesh.api(0).post(&format!("/api/deployments/stop/{id}"), &json!({})).expect(200);
        until(&site, id, "stopped");
    }
    let _ = site.other().delete("models/cache/org/served").expect(200);
    let _ = site.other().delete("local-models/local").expect(200);
}

#[test]
fn a_deployment_is_not_launched_from_outside_the_model_directories() {
    let site = Site::new();
    fs::create_dir(site.others.path().join("theirs")).expect("a directory");
    symlink("/etc", site.others.path().join("leads-out")).expect("a link");
    let text = |path: &str| site.others.path().join(path).to_str().expect("text").to_owned();
    let good = start(&site, &text("theirs"), &json!({}));
    until(&site, &good, "running");
    for (name, changes) in [
        ("/etc".to_owned(), json!({})),
        (text("leads-out"), json!({})),
        (text("missing"), json!({})),
        ("org/m".to_owned(), json!({"lora_modules": [{"name": "b", "path": "/etc"}]})),
    ] {
        let id = start(&site, &name, &changes);
        let failed = until(&site, &id, "error");
        let error = failed["last_error"].to_string();
        assert!(error.contains("/etc") || error.contains("outside") || error.contains("no model at"), "{failed}");
    }
}
