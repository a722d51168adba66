//! Providers that fail, refuse, hang, or can not be called at all.

use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use muster_tests::api::Api;
use muster_tests::fleet::{Fleet, Home, Node};
use muster_tests::groups::Need;
use muster_tests::process::{binary, wait_for};
use muster_tests::upstream::{Answer, Upstream};
use serde_json::{Value, json};

use super::{CHAT, Place, SOON, chat, ids, register, streamed};

/// What a provider says, and what the client is told: status, code, a part of the message, what may not be in it.
struct Case {
    answer: Answer,
    status: u16,
    code: &'static str,
    says: &'static str,
    hides: &'static str,
}

fn case(answer: Answer, status: u16, code: &'static str, says: &'static str, hides: &'static str) -> Case {
    Case { answer, status, code, says, hides }
}

fn refusals() -> Vec<Case> {
    let error = |status: u16, error: Value| Answer::json(status, &json!({"error": error}));
    let vllm_long = json!({"message": "This model's maximum context length is 512 tokens.", "type": "BadRequestError", "param": "input_tokens", "code": 400});
    let llama_long = json!({"code": 400, "message": "the request exceeds the available context size", "type": "exceed_context_size_error", "n_ctx": 512});
    let openai_long = json!({"message": "too long", "type": "invalid_request_error", "param": "messages", "code": "context_length_exceeded"});
    let leak = json!({"message": "The model `x` does not exist. Valid aliases: secret-model.", "type": "NotFoundError", "param": "model", "code": 404});
    let busy = json!({"message": "The engine is currently busy", "type": "Service Unavailable", "code": 503});
    vec![
        case(error(400, vllm_long), 400, "context_length_exceeded", "maximum context length", "nothing"),
        case(error(400, llama_long), 400, "context_length_exceeded", "available context size", "nothing"),
        case(error(400, openai_long), 400, "context_length_exceeded", "too long", "nothing"),
        case(
            error(400, json!({"message": "bad temperature", "code": 400})),
            400,
            "invalid_request",
            "bad temperature",
            "nothing",
        ),
        case(error(422, json!({"message": "no such field"})), 422, "invalid_request", "no such field", "nothing"),
        case(
            Answer::json(400, &json!({"detail": "of another kind"})),
            400,
            "invalid_request",
            "of another kind",
            "nothing",
        ),
        case(
            Answer::json(401, &json!({"error": "Unauthorized: sk-secret"})),
            502,
            "provider_rejected_key",
            "`ours`",
            "sk-secret",
        ),
        case(error(403, json!({"message": "sk-secret may not"})), 502, "provider_rejected_key", "`ours`", "sk-secret"),
        case(error(404, leak), 404, "model_not_found", "`ours`", "secret-model"),
        case(error(429, json!({"message": "slow down"})), 429, "rate_limit_exceeded", "slow down", "nothing"),
        case(Answer::body(429, "text/plain", b"x"), 429, "rate_limit_exceeded", "`ours`", "nothing"),
        case(error(503, busy), 503, "overloaded", "busy", "nothing"),
        case(error(500, json!({"message": "engine dead"})), 500, "upstream_error", "engine dead", "nothing"),
        case(
            Answer::body(500, "text/plain", b"Traceback: secret-path"),
            500,
            "upstream_error",
            "`ours`",
            "secret-path",
        ),
        case(Answer::body(502, "text/html", b"<h1>secret-proxy</h1>"), 502, "upstream_error", "`ours`", "secret-proxy"),
        case(Answer::body(500, "application/json", b""), 500, "upstream_error", "`ours`", "nothing"),
        case(
            Answer::body(500, "application/json", &vec![b' '; 3_000_000]).close(),
            500,
            "upstream_error",
            "`ours`",
            "nothing",
        ),
        case(
            Answer::with_headers(302, &["location: http://secret-host/"], b""),
            502,
            "upstream_error",
            "`ours`",
            "secret-host",
        ),
        case(
            Answer::with_headers(307, &["location: /v1/chat/completions"], b""),
            502,
            "upstream_error",
            "`ours`",
            "nothing",
        ),
        case(
            Answer::raw(b"HTTP/1.1 500 x\r\ncontent-length: 99\r\n\r\n{").close(),
            500,
            "upstream_error",
            "`ours`",
            "nothing",
        ),
    ]
}

/// E-258
#[test]
fn what_a_provider_refuses_is_told_in_our_form_and_without_its_secrets() {
    let place = Place::new();
    for Case { answer, status, code, says, hides } in refusals() {
        place.upstream.answer(answer);
        for body in [chat("ours"), streamed("ours")] {
            let before = place.upstream.requests();
            let told = place.fleet.user().post(CHAT, &body);
            told.is_openai_error(status, code);
            assert!(
                told.message().contains(says) && !told.to_string().contains(hides),
                "{says:?}, not {hides:?}: {told}"
            );
            assert!(!told.to_string().contains(&place.upstream.address().to_string()), "{told}");
            assert_eq!(place.upstream.requests(), before + 1, "a refusal is not asked for again: {told}");
        }
    }
    // The provider knows when to try again better than we do.
    let wait = Answer::with_headers(429, &["content-type: application/json", "retry-after: 17"], b"{}");
    place.upstream.answer(wait);
    assert_eq!(place.ask().is_openai_error(429, "rate_limit_exceeded").header("retry-after"), "17");
    // None of it is remembered.
    place.upstream.behave(Answer::usual);
    let _ = place.ask().expect(200);
}

/// D-045 E-258
#[test]
fn a_provider_that_can_not_be_reached_is_told_without_its_address() {
    let place = Place::new();
    let admin = place.fleet.admin();
    let silent = Upstream::nobody();
    for (name, url) in [
        ("dead", format!("http://{silent}/v1")),
        ("lost", "http://there-is-no-such-host.invalid/v1".to_owned()),
        ("not-tls", place.upstream.url("/v1").replace("http:", "https:")),
    ] {
        let _ = register(&admin, name, &json!({"baseUrl": url}));
        for body in [chat(name), streamed(name)] {
            let told = place.fleet.user().post(CHAT, &body);
            told.is_openai_error(502, "provider_unreachable");
            assert!(told.message().contains(&format!("`{name}`")), "{told}");
            for hidden in ["127.0.0.1", "invalid/", "there-is-no-such-host", &silent.port().to_string()] {
                assert!(!told.message().contains(hidden), "{hidden} in {told}");
            }
        }
    }
    let broken = [
        Answer::default().close(),
        Answer::raw(b"HTTP/1.1 200 OK\r\ncontent-ty").close(),
        Answer::raw(b"SSH-2.0-OpenSSH_9.6\r\n").close(),
        Answer::raw(b"HTTP/9.9 200 OK\r\n\r\n").close(),
        Answer::raw(b"HTTP/1.1 200 OK\r\ncontent-length: x\r\n\r\n").close(),
        Answer::raw(&[b"HTTP/1.1 200 OK\r\nx: ".as_slice(), &vec![b'x'; 2_000_000]].concat()).close(),
        // A short answer that is renamed is whole or none.
        Answer::raw(b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: 50\r\n\r\n{\"model\":")
            .close(),
    ];
    for answer in broken {
        place.upstream.answer(answer);
        let before = place.upstream.requests();
        place.ask().is_openai_error(502, "provider_unreachable");
        assert_eq!(place.upstream.requests(), before + 1, "on a new connection nothing is asked twice");
    }
    place.upstream.behave(Answer::usual);
    let _ = place.ask().expect(200);
}

#[test]
fn a_provider_has_the_time_that_the_settings_give_it() {
    let place = Place::new();
    let _ = place.fleet.admin().put("/api/settings", &json!({"gateway_timeout_seconds": 10})).expect(200);
    let head = "HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: 50\r\n\r\n";
    let answers = [
        ("mute", Answer::default().silence()),
        ("stalls", Answer::raw(head.as_bytes()).silence()),
        ("pauses", Answer::events().chunk(b"data: 1\n\n").silence()),
    ];
    for (name, _) in &answers {
        let url = place.upstream.url(&format!("/{name}"));
        let _ = register(&place.fleet.admin(), name, &json!({"modelId": "theirs", "baseUrl": url}));
    }
    place.upstream.behave(move |request| {
        let found = answers.iter().find(|(name, _)| request.path.starts_with(&format!("/{name}/")));
        found.expect("one of them").1.clone()
    });
    let begun = Instant::now();
    let in_time = || {
        let took = begun.elapsed();
        assert!((Duration::from_secs(9)..Duration::from_secs(20)).contains(&took), "{took:?}");
    };
    std::thread::scope(|scope| {
        scope.spawn(|| {
            place.fleet.user().post(CHAT, &chat("mute")).is_openai_error(504, "provider_timeout");
            in_time();
        });
        scope.spawn(|| {
            let told = place.fleet.user().post(CHAT, &chat("stalls"));
            assert!(matches!(told.status, 502 | 504), "{told}");
            in_time();
        });
        scope.spawn(|| {
            let mut wire = place.wire();
            place.post(&mut wire, streamed("pauses").to_string().as_bytes());
            let head = wire.head();
            assert_eq!((head.status, wire.at_least(1)), (200, b"data: 1\n\n".to_vec()));
            assert!(wire.body(&head).is_err(), "the stream is cut, not ended");
            in_time();
        });
    });
    wait_for(Duration::from_secs(5), "the provider to be let go", || (place.upstream.given_up() == 3).then_some(()));
}

#[test]
fn a_model_that_can_not_be_called_says_why() {
    let place = Place::new();
    let admin = place.fleet.admin();
    let _ = register(&admin, "other language", &json!({"provider": "anthropic"}));
    let _ = register(
        &admin,
        "other language at a url",
        &json!({"provider": "google", "baseUrl": place.upstream.url("/v1")}),
    );
    for name in ["other language", "other language at a url"] {
        let told = place.fleet.user().post(CHAT, &chat(name));
        told.is_openai_error(501, "provider_not_supported");
        assert!(told.message().contains("OpenAI's language") && told.message().contains(name), "{told}");
        assert!(!told.text.contains(&place.upstream.address().to_string()), "{told}");
    }
    assert_eq!(place.upstream.requests(), 0);
}

/// The gateways count what they serve, so the counts of a node say whether it was the one that asked the provider.
#[test]
fn a_loopback_address_of_one_node_is_called_by_that_node_whoever_is_asked() {
    let (fleet, upstream) = (Fleet::start_nodes(3, &[]), Upstream::new());
    let _ = register(
        &fleet.admin(),
        "there",
        &json!({"baseUrl": upstream.url("/v1"), "nodeId": 2, "modelId": "theirs", "apiKey": "the-providers-own"}),
    );
    let (users, admins): (Vec<_>, Vec<_>) = fleet
        .nodes()
        .iter()
        .map(|node| Api::new(&node.api))
        .map(|api| (api.clone().with_key(&fleet.gateway_key), api.with_key(&fleet.admin_token)))
        .unzip();
    for (index, user) in users.iter().enumerate() {
        wait_for(SOON, "the model to be known", || {
            (ids(&user.get("/v1/models").expect(200).body) == ["there"]).then_some(())
        });
        let told = user.post(CHAT, &chat("there")).expect(200);
        assert_eq!(told.body["model"], "there", "through node {}: {told}", index + 1);
    }
    assert_eq!(upstream.requests(), 3);
    for request in upstream.received() {
        assert_eq!(request.header("authorization"), "Bearer the-providers-own");
        assert_eq!(request.header("muster-model"), "", "what the gateways tell each other stays between them");
        assert_eq!(request.json()["model"], "theirs");
    }
    let served = |admin: &Api| {
        let text = admin.get("/metrics").expect(200).text;
        let line = "muster_gateway_requests_total{model=\"there\",status=\"200\"} ";
        text.lines().find_map(|found| found.strip_prefix(line)?.parse::<u64>().ok()).unwrap_or(0)
    };
    assert_eq!(admins.iter().map(served).collect::<Vec<_>>(), [1, 3, 1]);

    // What the provider says when it fails is told as if it had been asked from here.
    upstream.answer(Answer::json(429, &json!({"error": {"message": "slow down", "type": "x", "code": 429}})));
    let told = users[0].post(CHAT, &chat("there"));
    assert!(told.is_openai_error(429, "rate_limit_exceeded").message().contains("slow down"), "{told}");
}

#[test]
fn a_model_whose_address_is_the_gateway_itself_does_not_go_round() {
    let fleet = Fleet::start();
    let node = &fleet.nodes()[0];
    for (name, url) in [("api", format!("{}/v1", node.api)), ("proxy", node.proxy.clone())] {
        let changes = json!({"baseUrl": url, "apiKey": fleet.gateway_key});
        let _ = register(&fleet.admin(), name, &changes);
        let told = fleet.user().post(CHAT, &chat(name));
        assert!(told.is_openai_error(508, "loop_detected").message().contains("leads back"), "{told}");
    }
    let counts = fleet.admin().get("/metrics").expect(200).text;
    assert!(counts.contains("model=\"\",status=\"508\"} 2"), "each went round once: {counts}");
}

/// The name is harmless where the model is registered; where it leads shows only when it is called.
#[test]
fn a_name_that_leads_to_where_clouds_keep_secrets_is_not_followed() {
    if !Need::Mounts.is_met("gateway") {
        return;
    }
    let home = Home::new();
    let hosts = home.path().join("hosts");
    std::fs::write(&hosts, "127.0.0.1 localhost\n169.254.169.254 harmless.test\n100.100.100.200 harmless-too.test\n")
        .expect("a file");
    let token = "token-of-the-tests-administrator";
    // The file is another one for this process alone.
    let mut command = Command::new("unshare");
    command.args(["--mount", "--propagation", "private", "sh", "-c", "mount --bind \"$0\" /etc/hosts && exec \"$@\""]);
    command.arg(Path::new(&hosts)).arg(binary("muster")).args([
        "serve",
        "--bootstrap",
        "--api",
        "127.0.0.1:0",
        "--name",
        "a",
    ]);
    command.env_clear().env("PATH", std::env::var_os("PATH").unwrap_or_default()).env("HOME", home.path());
    command.env("MUSTER_DATA_DIR", home.data()).env("MUSTER_MESH", "127.0.0.1:0").env("MUSTER_PROXY", "127.0.0.1:0");
    let mut node = Node::start_command(&home, command.env("MUSTER_ADMIN_TOKEN", token).stdin(Stdio::null()));
    node.ready();
    let admin = node.caller(token);
    let made = admin.post("/api/credentials", &json!({"kind": "gateway", "label": "a test's"})).expect(201);
    let user = node.caller(made.body["key"].as_str().expect("a key"));
    for name in ["harmless", "harmless-too"] {
        let _ = register(&admin, name, &json!({"baseUrl": format!("http://{name}.test/v1")}));
        let told = user.post(CHAT, &chat(name));
        told.is_openai_error(502, "provider_unreachable");
        assert!(told.message().contains("link-local or metadata"), "{told}");
    }
}
