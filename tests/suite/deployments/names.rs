//! Which deployment a name means: its own, its model's, an adapter's (fleet.md, 3.2 and B3).

use muster_tests::api::{Answer, Api};
use muster_tests::fleet::PATIENCE;
use muster_tests::process::wait_for;
use serde_json::{Value, json};

use super::{Park, call, is, running, start, with};

/// How many words an answer has: engines are told apart by it.
fn words(answer: &Answer) -> u64 {
    answer.body["usage"]["completion_tokens"].as_u64().unwrap_or_else(|| panic!("no answer of an engine: {answer}"))
}

/// A small deployment whose answers have so many words.
fn of_words(words: u64, changes: &Value) -> Value {
    let small = json!({"gpu_memory_fraction": 0.1, "extra_args": ["--tokens", words.to_string()]});
    with(&small, changes)
}

fn served(name: &str) -> Value {
    json!({"engine_args": {"served_model_name": name}})
}

fn key(admin: &Api, ids: &Value) -> Api {
    let made = admin.post("/api/api-keys", &json!({"label": "scoped", "deployment_ids": ids})).expect(201);
    admin.with_key(made.body["key"].as_str().expect("a key"))
}

fn ids(user: &Api) -> Vec<String> {
    let list = user.get("/v1/models").expect(200).body;
    let ids = list["data"].as_array().expect("a list").iter().map(|one| one["id"].as_str().expect("an id").to_owned());
    ids.collect()
}

/// E-255 E-256 E-260 E-261
#[test]
fn a_name_means_the_best_that_fits_and_several_equals_are_not_guessed_between() {
    let park = Park::new(1);
    let (admin, user) = (park.admin(), park.user());
    let x = running(&admin, &of_words(3, &served("x")));
    let y = running(&admin, &of_words(5, &served("y")));
    assert_eq!((words(&call(&user, "x").expect(200)), words(&call(&user, "y").expect(200))), (3, 5));
    let ambiguous = call(&user, "org/m");
    assert!(ambiguous.is_openai_error(400, "model_ambiguous").message().contains("x, y"), "{ambiguous}");
    let missing = call(&user, "z");
    assert!(missing.is_openai_error(404, "model_not_found").message().contains("org/m, x, y"), "{missing}");

    // A key sees its own only.
    let (only_y, both) = (key(&admin, &json!([y])), key(&admin, &json!([x, y])));
    let answer = call(&only_y, "org/m").expect(200);
    assert_eq!((words(&answer), &answer.body["model"]), (5, &json!("org/m")));
    assert_eq!(words(&call(&only_y, "y").expect(200)), 5);
    let denied = call(&only_y, "x");
    denied.is_openai_error(403, "model_access_denied");
    assert!(!denied.message().contains("`y`"), "of no other model: {denied}");
    let missing = call(&only_y, "z");
    let told = missing.is_openai_error(404, "model_not_found").message();
    assert!(told.ends_with("may use: org/m, y"), "{missing}");
    call(&both, "org/m").is_openai_error(400, "model_ambiguous");
    assert_eq!(
        (ids(&only_y), ids(&both), ids(&user)),
        (vec!["y".to_owned()], vec!["x".to_owned(), "y".to_owned()], ids(&both))
    );
    only_y.get("/v1/models/x").is_openai_error(403, "model_access_denied");

    // What loads is told apart from what is not there.
    let slow = with(
        &of_words(7, &served("z")),
        &json!({"extra_args": ["--tokens", "7", "--load-seconds", "2"], "model_name": "slow"}),
    );
    let z = start(&admin, &slow);
    for name in ["z", "slow"] {
        let loading = call(&user, name);
        assert!(
            loading.is_openai_error(503, "model_loading").message().contains(&format!("deployment {z}")),
            "{loading}"
        );
        call(&only_y, name).is_openai_error(403, "model_access_denied");
    }
    assert_eq!(ids(&user), ["x", "y"], "it can not be called yet");
    user.get("/v1/models/z").is_openai_error(404, "model_not_found");
    is(&admin, z, "running");
    assert_eq!(words(&call(&user, "slow").expect(200)), 7);

    // What a name is served as comes before what a model is called, which comes before an adapter.
    running(&admin, &of_words(11, &json!({"model_name": "other", "engine_args": {"served_model_name": "org/m"}})));
    assert_eq!(words(&call(&user, "org/m").expect(200)), 11);
    running(&admin, &of_words(13, &json!({"model_name": "base", "lora_modules": [{"name": "slow", "path": "org/l"}]})));
    assert_eq!(words(&call(&user, "slow").expect(200)), 7, "a model's name before an adapter's");
    let _ = admin.post(&format!("/api/deployments/stop/{z}"), &json!({})).expect(200);
    is(&admin, z, "stopped");
    let answer = call(&user, "slow").expect(200);
    assert_eq!((words(&answer), &answer.body["model"]), (13, &json!("slow")));

    // Names are the state's: as soon as it is stopped, it is gone.
    let _ = admin.post(&format!("/api/deployments/stop/{x}"), &json!({})).expect(200);
    wait_for(PATIENCE, "the name to be gone", || (call(&user, "x").status == 404).then_some(()));
}

/// E-055 E-254 E-256
#[test]
fn the_list_of_models_has_deployments_and_their_adapters_as_openai_shows_them() {
    let park = Park::new(1);
    let (admin, user) = (park.admin(), park.user());
    let adapters = json!([{"name": "sql", "path": "org/sql"}, {"name": "law", "path": "org/law"}]);
    let changes = json!({"lora_modules": adapters, "engine_args": {"served_model_name": "ours"}, "owner": "team a"});
    let id = running(&admin, &changes);
    let _ = admin.post("/api/models", &json!({"name": "registered", "provider": "openai", "modelId": "x"})).expect(201);
    let list = user.get("/v1/models").expect(200).body;
    let listed = list["data"].as_array().expect("a list");
    let created = listed.iter().find(|one| one["id"] == "ours").expect("the deployment")["created"].clone();
    assert!(created.is_u64());
    for (id, root, parent) in
        [("ours", "org/m", Value::Null), ("sql", "sql", json!("ours")), ("law", "law", json!("ours"))]
    {
        let expected = json!({
            "id": id, "object": "model", "created": created, "owned_by": "team a", "root": root, "parent": parent
        });
        assert!(listed.contains(&expected), "{expected} in {list}");
        assert_eq!(user.get(&format!("/v1/models/{id}")).expect(200).body, expected);
    }
    assert!(listed.iter().any(|one| one["id"] == "registered") && listed.len() == 4, "{list}");
    // An adapter is asked for by its own name, and the engine answers with it.
    for name in ["sql", "law", "ours", "org/m"] {
        assert_eq!(call(&user, name).expect(200).body["model"], json!(name));
    }
    let _ = admin.delete(&format!("/api/deployments/{id}")).expect(200);
    assert_eq!(ids(&user), ["registered"]);
}
