//! Whose key opens the gateway, and which key opens a provider.

use std::time::Instant;

use muster_tests::api::{Api, send};
use muster_tests::fleet::Fleet;
use muster_tests::process::wait_for;
use muster_tests::upstream::Upstream;
use serde_json::{Value, json};

use super::{CHAT, Place, SOON, chat, ids, register, streamed};

const PATHS: [(&str, &str); 5] = [
    ("POST", CHAT),
    ("POST", "/v1/completions"),
    ("POST", "/v1/embeddings"),
    ("GET", "/v1/models"),
    ("GET", "/v1/models/ours"),
];

/// Makes a key for calling models; returns its number too.
fn gateway_key(admin: &Api, seconds: Option<u64>) -> (u64, String) {
    let mut body = json!({"kind": "gateway", "label": "a test's"});
    if let Some(seconds) = seconds {
        body["ttlSeconds"] = json!(seconds);
    }
    let made = admin.post("/api/credentials", &body).expect(201).body;
    (made["credential"]["id"].as_u64().expect("a number"), made["key"].as_str().expect("a key").to_owned())
}

/// D-042 D-043 D-047 E-250
#[test]
fn only_a_key_of_the_gateway_opens_it() {
    let place = Place::new();
    let fleet = &place.fleet;
    let (anybody, proxy) = (fleet.anybody(), Api::new(&fleet.nodes()[0].proxy));
    let key = fleet.gateway_key.clone();
    let bearer = |key: &str| Some(("authorization", format!("Bearer {key}")));
    let wrong = [
        None,
        bearer("sk-wrong"),
        bearer(&fleet.admin_token),
        bearer(&fleet.credential("viewer").1),
        bearer(&key[..key.len() - 1]),
        bearer(&format!("{key}x")),
        bearer(&key.to_uppercase()),
        bearer(""),
        Some(("authorization", key.clone())),
        Some(("authorization", format!("Basic {key}"))),
        Some(("x-api-key", "sk-wrong".to_owned())),
        Some(("cookie", format!("key={key}"))),
    ];
    for (method, path) in PATHS {
        for header in &wrong {
            for api in [&anybody, &proxy] {
                let mut request = api.request(method, path).body(chat("ours").to_string());
                if let Some((name, value)) = header {
                    request = request.header(*name, value);
                }
                let answer = send(request);
                answer.is_openai_error(401, "invalid_api_key");
                assert_eq!(answer.header("www-authenticate"), "Bearer", "{answer}");
                assert!(answer.body["error"]["param"].is_null() && !answer.text.contains(&key[8..]), "{answer}");
            }
        }
    }
    assert_eq!(place.upstream.requests(), 0);
    for (name, value) in [
        ("authorization", format!("Bearer {key}")),
        ("authorization", format!("bearer  {key} ")),
        ("x-api-key", key.clone()),
    ] {
        for api in [&anybody, &proxy] {
            let _ = send(api.request("POST", CHAT).header(name, &value).json(&chat("ours"))).expect(200);
        }
    }
    // A wrong one is not made good by a right one beside it.
    let both = anybody.with_key("sk-wrong").request("POST", CHAT).header("x-api-key", &key);
    send(both.json(&chat("ours"))).is_openai_error(401, "invalid_api_key");
}

#[test]
fn a_key_ends_with_its_time_or_its_credential_at_once() {
    let place = Place::new();
    let (admin, anybody) = (place.fleet.admin(), place.fleet.anybody());
    let (_, short) = gateway_key(&admin, Some(1));
    let (id, long) = gateway_key(&admin, None);
    let user = anybody.with_key(&long);
    // On one connection, whose thread has seen the key; and on others.
    let mut wire = place.wire();
    let line = format!("authorization: Bearer {long}");
    let mut ask = || {
        wire.post(CHAT, &[&line], chat("ours").to_string().as_bytes());
        let head = wire.head();
        let _ = wire.body(&head).expect("the whole answer");
        head.status
    };
    for _ in 0..20 {
        assert_eq!(ask(), 200);
        let _ = user.get("/v1/models").expect(200);
    }
    let _ = admin.delete(&format!("/api/credentials/{id}")).expect(200);
    assert_eq!(ask(), 401);
    for _ in 0..20 {
        user.post(CHAT, &chat("ours")).is_openai_error(401, "invalid_api_key");
    }
    let short = anybody.with_key(&short);
    let refused =
        wait_for(SOON, "the key to expire", || Some(short.get("/v1/models")).filter(|answer| answer.status != 200));
    refused.is_openai_error(401, "invalid_api_key");
    let _ = place.fleet.user().get("/v1/models").expect(200);
}

/// B20
#[test]
fn a_key_that_names_deployments_uses_no_model_of_the_registry() {
    let place = Place::new();
    let fleet = &place.fleet;
    let (admin, anybody, proxy) = (fleet.admin(), fleet.anybody(), Api::new(&fleet.nodes()[0].proxy));
    let make = |body: Value| admin.post("/api/api-keys", &body).expect(201).body;
    let scoped = make(json!({"label": "scoped", "deployment_ids": [1]}));
    let temporary = make(json!({"label": "temporary", "ttl_seconds": 600, "deployment_ids": [1, 2]}));
    let nothing = make(json!({"label": "nothing", "deployment_ids": []}));
    let refused = |key: &Value| {
        for api in [&anybody, &proxy] {
            let user = api.with_key(key["key"].as_str().expect("a key"));
            for body in [chat("ours"), streamed("ours")] {
                let answer = user.post(CHAT, &body);
                answer.is_openai_error(403, "model_access_denied");
                assert_eq!(answer.body["error"]["type"], "permission_error", "{answer}");
            }
            user.get("/v1/models/ours").is_openai_error(403, "model_access_denied");
            assert_eq!(user.get("/v1/models").expect(200).body, json!({"object": "list", "data": []}));
            // What is not there is not there for anybody.
            user.post(CHAT, &chat("theirs")).is_openai_error(404, "model_not_found");
        }
    };
    for key in [&scoped, &temporary, &nothing] {
        refused(key);
    }
    assert_eq!(place.upstream.requests(), 0);
    // A key for everything sees the list that was made for nobody else.
    for api in [fleet.user(), fleet.user_of_proxy()] {
        assert_eq!(ids(&api.get("/v1/models").expect(200).body), ["ours"]);
    }
    refused(&scoped);
    let path = format!("/api/api-keys/{}", scoped["id"]);
    let user = anybody.with_key(scoped["key"].as_str().expect("a key"));
    for _ in 0..3 {
        let _ = admin.patch(&path, &json!({"deployment_ids": null})).expect(200);
        let _ = user.post(CHAT, &chat("ours")).expect(200);
        assert_eq!(ids(&user.get("/v1/models").expect(200).body), ["ours"]);
        let _ = admin.patch(&path, &json!({"deployment_ids": [1]})).expect(200);
        refused(&scoped);
    }
    assert_eq!(place.upstream.requests(), 3);
}

/// E-243
#[test]
fn a_key_is_made_narrowed_and_revoked_through_any_node_for_all() {
    let (fleet, upstream) = (Fleet::start_nodes(3, &[]), Upstream::new());
    let admins: Vec<_> = fleet.nodes().iter().map(|node| Api::new(&node.api).with_key(&fleet.admin_token)).collect();
    let _ = register(&admins[0], "ours", &json!({"baseUrl": upstream.url("/v1")}));
    for through in 0..3 {
        let (maker, other) = (&admins[through], &admins[(through + 1) % 3]);
        let made = maker.post("/api/api-keys", &json!({"label": format!("of {through}")})).expect(201).body;
        let (path, key) = (format!("/api/api-keys/{}", made["id"]), made["key"].as_str().expect("a key"));
        let users: Vec<_> = fleet
            .nodes()
            .iter()
            .flat_map(|node| [&node.api, &node.proxy])
            .map(|api| Api::new(api).with_key(key))
            .collect();
        let everywhere = |status: u16, code: &str| {
            let begun = Instant::now();
            for user in &users {
                let said = |user: &Api| user.post(CHAT, &chat("ours"));
                wait_for(SOON, "the key's change to count", || (said(user).status == status).then_some(()));
            }
            println!("{code} on every node after {} ms", begun.elapsed().as_millis());
            // And it stays so.
            for user in &users {
                let answer = user.post(CHAT, &chat("ours")).expect(status);
                assert!(code.is_empty() || answer.body["error"]["code"] == code, "{answer}");
            }
        };
        everywhere(200, "");
        let _ = other.patch(&path, &json!({"deployment_ids": [1]})).expect(200);
        everywhere(403, "model_access_denied");
        let _ = maker.put(&path, &json!({"deployment_ids": null})).expect(200);
        everywhere(200, "");
        let _ = other.delete(&path).expect(204);
        // Where it was revoked it is worth nothing once that is answered.
        let there = Api::new(other.endpoint()).with_key(key);
        there.post(CHAT, &chat("ours")).is_openai_error(401, "invalid_api_key");
        everywhere(401, "invalid_api_key");
        for admin in &admins {
            let listed = admin.get("/api/api-keys").expect(200);
            assert!(!listed.text.contains(&format!("\"of {through}\"")), "{listed}");
        }
    }
}

/// The names of what a provider got.
fn names(headers: &[(String, String)]) -> Vec<&str> {
    let mut names: Vec<_> = headers.iter().map(|(name, _)| name.as_str()).collect();
    names.sort_unstable();
    names
}

/// C-058
#[test]
fn a_provider_gets_its_own_key_and_nothing_of_the_callers() {
    let fleet = Fleet::start_with(&[("MUSTER_TEST_PROVIDER_KEY", "sk-of-the-environment")]);
    let (admin, upstream) = (fleet.admin(), Upstream::new());
    let url = upstream.url("/v1");
    let _ = register(&admin, "open", &json!({"baseUrl": url}));
    let _ = register(&admin, "keyed", &json!({"baseUrl": url, "apiKey": "sk-of-the-model"}));
    let _ = register(&admin, "named", &json!({"baseUrl": url, "apiKeyRef": "env:MUSTER_TEST_PROVIDER_KEY"}));
    let _ = register(&admin, "missing", &json!({"baseUrl": url, "apiKeyRef": "env:MUSTER_TEST_NO_SUCH_KEY"}));
    let trace = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01";
    let ask = |model: &str| {
        let request = fleet.user().request("POST", CHAT).json(&streamed(model));
        let request =
            request.header("cookie", "session=1").header("x-api-key", "sk-other").header("user-agent", "client/1");
        let request =
            request.header("accept-encoding", "gzip").header("openai-organization", "org").header("te", "trailers");
        let request = request.header("x-forwarded-for", "10.1.2.3").header("connection", "keep-alive, x-mine");
        send(request.header("x-mine", "1").header("x-request-id", "test/42").header("traceparent", trace))
    };
    for (model, key) in [("open", ""), ("keyed", "Bearer sk-of-the-model"), ("named", "Bearer sk-of-the-environment")] {
        let answer = ask(model).expect(200);
        assert_eq!(answer.header("x-request-id"), "test/42");
        let seen = upstream.last();
        let mut expected =
            vec!["content-length", "content-type", "host", "muster-hop", "traceparent", "user-agent", "x-request-id"];
        if !key.is_empty() {
            expected.insert(0, "authorization");
        }
        assert_eq!(names(&seen.headers), expected, "{model}");
        assert_eq!(seen.header("authorization"), key);
        assert_eq!(seen.header("host"), upstream.address().to_string());
        assert_eq!((seen.header("x-request-id"), seen.header("traceparent")), ("test/42", trace));
        assert!(seen.header("user-agent").starts_with("muster/"), "{seen:?}");
        let whole = format!("{seen:?}");
        assert!(!whole.contains(&fleet.gateway_key) && !whole.contains("sk-other"), "{whole}");
    }
    let missing = ask("missing");
    missing.is_openai_error(501, "provider_not_supported");
    assert!(!missing.text.contains("NO_SUCH_KEY"), "{missing}");

    let _ = admin.put("/api/models/keyed", &json!({"apiKey": "sk-new"})).expect(200);
    let _ = ask("keyed").expect(200);
    assert_eq!(upstream.last().header("authorization"), "Bearer sk-new");
    let _ = admin.put("/api/models/keyed", &json!({"apiKey": Value::Null})).expect(200);
    let _ = ask("keyed").expect(200);
    assert_eq!(upstream.last().header("authorization"), "");
}

///
#[test]
fn the_base_url_is_used_as_it_is_given() {
    let (fleet, upstream) = (Fleet::start(), Upstream::new());
    let _ = register(&fleet.admin(), "ours", &json!({"baseUrl": upstream.url("")}));
    for (path, expected) in [
        ("/v1", "/v1/chat/completions"),
        ("/v1/", "/v1/chat/completions"),
        ("", "/chat/completions"),
        ("/", "/chat/completions"),
        ("/openai/deployments/a%20b", "/openai/deployments/a%20b/chat/completions"),
        ("/v1?api-version=2024-02-01&x=%2F", "/v1/chat/completions?api-version=2024-02-01&x=%2F"),
        ("/x/v1/?a=b", "/x/v1/chat/completions?a=b"),
    ] {
        let _ = fleet.admin().put("/api/models/ours", &json!({"baseUrl": upstream.url(path)})).expect(200);
        let _ = fleet.user().post(&format!("{CHAT}?of=the-client"), &chat("ours")).expect(200);
        assert_eq!(upstream.last().path, expected, "{path}");
    }
    let port = upstream.address().port();
    let _ =
        fleet.admin().put("/api/models/ours", &json!({"baseUrl": format!("http://localhost:{port}/v1")})).expect(200);
    let _ = fleet.user().post(CHAT, &chat("ours")).expect(200);
    assert_eq!(upstream.last().header("host"), format!("localhost:{port}"));
}
