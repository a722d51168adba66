//! A change of a model, a key or a setting counts at once where it was made and soon everywhere, and nothing of it needs a
//! quorum to go on counting.

use std::time::Duration;

use muster_tests::api::{Api, try_send};
use muster_tests::fleet::Fleet;
use muster_tests::mesh::Mesh;
use muster_tests::process::wait_for;
use muster_tests::upstream::Upstream;
use serde_json::{Value, json};

use super::{CHAT, SOON, chat, ids, register};

/// A-046 A-048 A-049
#[test]
fn a_change_of_a_model_counts_through_every_node() {
    let (fleet, first, second) = (Fleet::start_nodes(3, &[]), Upstream::new(), Upstream::new());
    let users: Vec<_> = fleet.nodes().iter().map(|node| Api::new(&node.api).with_key(&fleet.gateway_key)).collect();
    let admins: Vec<_> = fleet.nodes().iter().map(|node| Api::new(&node.api).with_key(&fleet.admin_token)).collect();
    let made = register(&admins[0], "ours", &json!({"modelId": "theirs", "baseUrl": first.url("/v1")}));
    let path = format!("/api/models/{}", made["id"].as_str().expect("an id"));
    // Each change is made through another node.
    let change = |through: usize, change: Value, check: &dyn Fn(&Api) -> bool| {
        let before: Vec<_> = users.iter().map(check).collect();
        assert!(!before.contains(&true), "{change} changes nothing: {before:?}");
        let _ = admins[through].put(&path, &change).expect(200);
        for user in &users {
            wait_for(SOON, "a change to count on another node", || check(user).then_some(()));
        }
    };
    let status = |user: &Api, name: &str| user.post(CHAT, &chat(name)).status;
    for user in &users {
        wait_for(SOON, "the model to be known", || (status(user, "ours") == 200).then_some(()));
    }
    change(1, json!({"name": "renamed"}), &|user| status(user, "ours") == 404 && status(user, "renamed") == 200);
    assert_eq!(ids(&users[1].get("/v1/models").expect(200).body), ["renamed"]);
    change(2, json!({"modelId": "other"}), &|user| {
        status(user, "renamed") == 200 && first.last().json()["model"] == "other"
    });
    change(0, json!({"baseUrl": second.url("/v2")}), &|user| {
        let before = second.requests();
        status(user, "renamed") == 200 && second.requests() == before + 1 && second.last().path.starts_with("/v2/")
    });
    change(1, json!({"apiKey": "sk-of-the-model"}), &|user| {
        status(user, "renamed") == 200 && second.last().header("authorization") == "Bearer sk-of-the-model"
    });
    let listed = |user: &Api| ids(&user.get("/v1/models").expect(200).body).contains(&"renamed");
    change(2, json!({"status": "inactive"}), &|user| status(user, "renamed") == 404 && !listed(user));
    change(0, json!({"status": "active"}), &|user| status(user, "renamed") == 200 && listed(user));
    change(1, json!({"provider": "anthropic"}), &|user| status(user, "renamed") == 501);
    change(2, json!({"provider": "vllm"}), &|user| {
        status(user, "renamed") == 200 && user.get("/v1/models/renamed").body["owned_by"] == "vllm"
    });
    // The name of the old one is free for another.
    let _ = register(&admins[0], "ours", &json!({"modelId": "new", "baseUrl": first.url("/v1")}));
    let _ = users[0].post(CHAT, &chat("ours")).expect(200);
    assert_eq!(first.last().json()["model"], "new");
    for user in &users {
        wait_for(SOON, "the new model to be known", || (status(user, "ours") == 200).then_some(()));
    }
    let _ = admins[1].delete(&path).expect(200);
    for user in &users {
        wait_for(SOON, "the model to be gone", || (status(user, "renamed") == 404).then_some(()));
        assert_eq!(ids(&user.get("/v1/models").expect(200).body), ["ours"]);
    }
}

/// A-048 A-049
#[test]
fn a_change_counts_where_it_was_made_before_it_is_answered() {
    strictly(&Fleet::start(), 0);
}

/// The same through each node of three, of which one leads.
#[test]
fn a_change_counts_where_it_was_made_whoever_leads() {
    let fleet = Fleet::start_nodes(3, &[]);
    for node in 0..3 {
        strictly(&fleet, node);
    }
}

/// Changes things through a node again and again, and looks there at once.
fn strictly(fleet: &Fleet, node: usize) {
    let upstream = Upstream::new();
    let api = Api::new(&fleet.nodes()[node].api);
    let (admin, user, name) =
        (api.with_key(&fleet.admin_token), api.with_key(&fleet.gateway_key), format!("of {node}"));
    let _ = register(&admin, &name, &json!({"modelId": "0", "baseUrl": upstream.url("/v1")}));
    let path = format!("/api/models/of%20{node}");
    for count in 1..=10 {
        let _ = user.post(CHAT, &chat(&name)).expect(200);
        let _ = admin.put(&path, &json!({"modelId": count.to_string()})).expect(200);
        let _ = user.post(CHAT, &chat(&name)).expect(200);
        assert_eq!(upstream.last().json()["model"], count.to_string());
        let made = admin.post("/api/credentials", &json!({"kind": "gateway", "label": "a test's"})).expect(201).body;
        let other = api.with_key(made["key"].as_str().expect("a key"));
        let _ = other.post(CHAT, &chat(&name)).expect(200);
        let _ = admin.delete(&format!("/api/credentials/{}", made["credential"]["id"])).expect(200);
        other.post(CHAT, &chat(&name)).is_openai_error(401, "invalid_api_key");
        let _ = admin.put(&path, &json!({"status": "inactive"})).expect(200);
        user.post(CHAT, &chat(&name)).is_openai_error(404, "model_not_found");
        let _ = admin.put(&path, &json!({"status": "active"})).expect(200);
    }
}

#[test]
fn two_nodes_killed_the_third_goes_on_answering_those_with_a_key() {
    let (mut mesh, upstream) = (Mesh::of_three(), Upstream::new());
    let changes = json!({"modelId": "theirs", "baseUrl": upstream.url("/v1"), "apiKey": "sk-of-the-model"});
    let _ = register(&mesh.api(0), "ours", &changes);
    let made = mesh.api(1).post("/api/credentials", &json!({"kind": "gateway", "label": "a test's"})).expect(201);
    let key = made.body["key"].as_str().expect("a key");
    let survivor = 2;
    let user = mesh.api(survivor).with_key(key);
    wait_for(SOON, "the model and the key to be known", || {
        (user.post(CHAT, &chat("ours")).status == 200).then_some(())
    });
    for index in 0..survivor {
        mesh.machines[index].kill();
    }
    wait_for(Duration::from_secs(30), "the loss of the quorum to be known", || {
        (mesh.api(survivor).get("/api/models").status == 503).then_some(())
    });
    for _ in 0..20 {
        let answer = user.post(CHAT, &chat("ours")).expect(200);
        assert_eq!(answer.body["model"], "ours");
    }
    assert_eq!(upstream.last().header("authorization"), "Bearer sk-of-the-model");
    assert_eq!(ids(&user.get("/v1/models").expect(200).body), ["ours"]);
    user.with_key("sk-wrong").post(CHAT, &chat("ours")).is_openai_error(401, "invalid_api_key");
    user.post(CHAT, &chat("nope")).is_openai_error(404, "model_not_found");
    // Started again alone it is as good as before, before anybody else comes back.
    mesh.machines[survivor].kill();
    mesh.restart(survivor);
    let user = mesh.api(survivor).with_key(key);
    wait_for(SOON, "answers of a node that is alone from its start", || {
        (try_send(user.request("POST", CHAT).json(&chat("ours"))).ok()?.status == 200).then_some(())
    });
    user.with_key("sk-wrong").post(CHAT, &chat("ours")).is_openai_error(401, "invalid_api_key");
}
