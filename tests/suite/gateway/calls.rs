//! Where models are called and listed.

use std::time::{SystemTime, UNIX_EPOCH};

use muster_tests::api::{Api, send};
use muster_tests::fleet::{Fleet, Home, outcome};
use muster_tests::process::wait_for;
use muster_tests::upstream::Upstream;
use serde_json::{Value, json};

use super::{CHAT, Place, SOON, chat, ids, register, streamed};

/// A-013 D-011 D-012 D-014 D-017 D-026 E-257
#[test]
fn a_model_registered_through_one_node_is_called_through_every_other() {
    let (fleet, upstream) = (Fleet::start_nodes(3, &[]), Upstream::new());
    let changes = json!({"modelId": "theirs", "baseUrl": upstream.url("/v1")});
    let made = register(&fleet.admin(), "ours", &changes);
    assert_eq!(made["modelId"], "theirs");
    for node in fleet.nodes() {
        for base in [format!("{}/v1", node.api), format!("{}/v1", node.proxy), node.proxy.clone()] {
            let user = Api::new(&base).with_key(&fleet.gateway_key);
            wait_for(SOON, "the model to be known", || (user.get("/models/ours").status == 200).then_some(()));
            assert_eq!(ids(&user.get("/models").expect(200).body), ["ours"]);
            for path in ["/chat/completions", "/chat/completions/", "/chat/completions?api-version=1"] {
                let messages = json!([{"role": "system", "content": "be short"}, {"role": "user", "content": "hi"}]);
                let answer = user.post(path, &json!({"model": "ours", "messages": messages})).expect(200);
                assert_eq!(answer.body["object"], "chat.completion", "{answer}");
                assert_eq!(answer.body["model"], "ours", "{answer}");
                assert!(answer.body["id"].is_string() && answer.body["created"].is_u64(), "{answer}");
                assert_eq!(answer.header("content-type"), "application/json");
                let seen = upstream.last();
                assert_eq!((seen.method.as_str(), seen.path.as_str()), ("POST", "/v1/chat/completions"));
                assert_eq!(seen.json(), json!({"model": "theirs", "messages": messages}));
            }
            let answer = user.post("/chat/completions", &streamed("ours")).expect(200);
            assert!(answer.header("content-type").starts_with("text/event-stream"), "{answer}");
            let events: Vec<_> = answer.text.split_terminator("\n\n").collect();
            assert_eq!((events.len(), events[2]), (3, "data: [DONE]"), "{answer}");
            for event in &events[..2] {
                let data: Value = serde_json::from_str(event.strip_prefix("data: ").expect("an event")).expect("JSON");
                assert_eq!(data["model"], "ours", "{answer}");
            }
            for (path, object) in [("/completions", "text_completion"), ("/embeddings/", "list")] {
                let answer = user.post(path, &json!({"model": "ours", "prompt": "a", "input": "a"})).expect(200);
                assert_eq!(
                    (&answer.body["object"], &answer.body["model"]),
                    (&json!(object), &json!("ours")),
                    "{answer}"
                );
                assert_eq!(upstream.last().path, format!("/v1{}", path.trim_end_matches('/')));
            }
        }
    }
}

/// D-026 D-027 D-028
#[test]
fn the_list_has_each_model_that_can_be_called_as_openai_shows_it() {
    let fleet = Fleet::start();
    let (admin, user, proxy) = (fleet.admin(), fleet.user(), fleet.user_of_proxy());
    let empty = json!({"object": "list", "data": []});
    assert_eq!(user.get("/v1/models").expect(200).body, empty);
    let now = SystemTime::now().duration_since(UNIX_EPOCH).expect("after 1970").as_secs();
    let names = ["meta/Llama 3 (8B)", "plain", "ümlaut/日本"];
    let url = json!({"baseUrl": "http://192.0.2.1/v1"});
    for name in names.into_iter().rev() {
        let _ = register(&admin, name, &url);
    }
    let _ = register(&admin, "switched off", &json!({"baseUrl": "http://192.0.2.1/v1", "status": "inactive"}));
    let _ = register(&admin, "of another language", &json!({"provider": "anthropic"}));
    let listed = user.get("/v1/models").expect(200);
    assert_eq!(listed.body["object"], "list");
    assert_eq!(listed.header("content-type"), "application/json");
    assert_eq!(ids(&listed.body), names);
    for entry in listed.body["data"].as_array().expect("a list") {
        let fields: Vec<_> = entry.as_object().expect("an object").keys().collect();
        assert_eq!(fields, ["created", "id", "object", "owned_by"]);
        assert_eq!((&entry["object"], &entry["owned_by"]), (&json!("model"), &json!("openai-compatible")));
        let created = entry["created"].as_u64().expect("seconds");
        assert!(created.abs_diff(now) < 600, "{created} is about {now}");
    }
    for path in ["/v1/models/", "/models", "/models/", "/v1/models"] {
        assert_eq!(proxy.get(path).expect(200).body, listed.body, "{path}");
    }
    for (index, path) in ["meta/Llama%203%20(8B)", "plain", "%C3%BCmlaut%2F%E6%97%A5%E6%9C%AC"].into_iter().enumerate()
    {
        for (api, path) in [(&user, format!("/v1/models/{path}")), (&proxy, format!("/models/{path}/"))] {
            assert_eq!(api.get(&path).expect(200).body, listed.body["data"][index], "{path}");
        }
    }
    let encoded = user.get("/v1/models/meta%2FLlama%203%20%288B%29").expect(200);
    assert_eq!(encoded.body, listed.body["data"][0]);
    for missing in ["nope", "switched%20off", "of%20another%20language", "PLAIN", "plain/x", "meta"] {
        user.get(&format!("/v1/models/{missing}")).is_openai_error(404, "model_not_found");
        proxy.get(&format!("/models/{missing}")).is_openai_error(404, "model_not_found");
    }
    let head = send(user.request("HEAD", "/v1/models")).expect(200);
    assert!(head.text.is_empty());
}

/// D-032
#[test]
fn the_proxy_says_that_it_is_healthy_to_anybody() {
    let fleet = Fleet::start();
    let proxy = Api::new(&fleet.nodes()[0].proxy);
    for path in ["/health", "/health/"] {
        let answer = proxy.get(path).expect(200);
        assert_eq!(answer.body, json!({"status": "healthy"}));
        assert_eq!(answer.header("content-type"), "application/json");
    }
    // The API's own says what seed 004 says.
    assert_eq!(fleet.anybody().get("/health").expect(200).body, json!({"status": "ok"}));
    proxy.post("/health", &json!({})).is_openai_error(405, "method_not_allowed");
}

/// D-001
#[test]
fn the_proxy_is_on_port_4000_unless_told_otherwise() {
    let home = Home::new();
    let mut command = home.command(["config", "show", "-o", "json"]);
    let shown = outcome(command.env_remove("MUSTER_PROXY")).json();
    let proxy = shown.as_array().expect("a list").iter().find(|value| value["key"] == "proxy").expect("the proxy");
    assert_eq!(proxy["value"], "127.0.0.1:4000");
}

#[test]
fn a_model_answers_to_its_name_at_the_proxy_and_under_that_name() {
    let place = Place::new();
    let made = place.fleet.admin().get("/api/models/ours").expect(200).body;
    let name = made["litellmModelName"].as_str().expect("a name");
    assert_eq!(name, "openai-compatible/ours");
    let answer = place.fleet.user_of_proxy().post("/chat/completions", &chat(name)).expect(200);
    assert_eq!(answer.body["model"], name, "{answer}");
    assert_eq!(place.upstream.last().json()["model"], "theirs");
    let listed = place.fleet.user().get("/v1/models/openai-compatible/ours").expect(200);
    assert_eq!(listed.body["id"], "ours");
    // What the provider calls it is no name of ours.
    place.fleet.user().post(CHAT, &chat("theirs")).is_openai_error(404, "model_not_found");
}

/// D-013 D-015 D-016
#[test]
fn what_the_gateway_does_not_know_reaches_the_provider() {
    let place = Place::new();
    let body = json!({
        "model": "ours", "messages": [], "temperature": 0.25, "max_tokens": 17, "top_p": 1.0, "n": 1, "stop": ["a"],
        "user": "somebody", "tools": [{"type": "function", "function": {"name": "f", "parameters": {}}}],
        "response_format": {"type": "json_object"}, "of_tomorrow": {"deep": [1, 2.50, -3e2, null, true]}, "": "", "ü": "ü"
    });
    let _ = place.fleet.user().post(CHAT, &body).expect(200);
    let mut expected = body;
    expected["model"] = json!("theirs");
    assert_eq!(place.upstream.last().json(), expected);
    assert_eq!(place.upstream.last().json()["max_tokens"], 17);
}
