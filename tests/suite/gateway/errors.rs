//! What is wrong with a request, and what a fleet can not do for it.

use muster_tests::api::{Api, send};
use muster_tests::fleet::Fleet;
use muster_tests::process::wait_for;
use muster_tests::upstream::Wire;
use serde_json::{Value, json};

use super::{CHAT, Place, SOON, chat, register, streamed};

/// D-047 E-258 E-259 E-263 E-264
#[test]
fn what_is_wrong_with_a_request_is_said_in_the_form_of_openai() {
    let place = Place::new();
    let user = place.fleet.user();
    let bodies: [(&[u8], u16, &str); 32] = [
        (b"", 400, "invalid_json"),
        (b"  \n", 400, "invalid_json"),
        (b"{", 400, "invalid_json"),
        (b"}", 400, "invalid_json"),
        (b"[]", 400, "invalid_json"),
        (b"\"model\"", 400, "invalid_json"),
        (b"null", 400, "invalid_json"),
        (b"model=ours", 400, "invalid_json"),
        (b"\xff\xfe{}", 400, "invalid_json"),
        (b"\xef\xbb\xbf{\"model\":\"ours\"}", 400, "invalid_json"),
        (b"{\"model\":\"ours\"", 400, "invalid_json"),
        (b"{\"model\":\"ours", 400, "invalid_json"),
        (b"{\"model\":\"ours\"}}", 400, "invalid_json"),
        (b"{\"model\":\"ours\"} {}", 400, "invalid_json"),
        (b"{\"model\":\"ours\",}", 400, "invalid_json"),
        (b"{\"model\" \"ours\"}", 400, "invalid_json"),
        (b"{\"model\":}", 400, "invalid_json"),
        (b"{\"model\":\"ours\" \"x\":1}", 400, "invalid_json"),
        (b"{model:\"ours\"}", 400, "invalid_json"),
        (b"{'model':'ours'}", 400, "invalid_json"),
        (b"{\"model\":\"\\x\"}", 400, "invalid_json"),
        (b"{\"model\":\"\xff\"}", 400, "invalid_json"),
        (b"{\"model\":\"ou\nrs\"}", 400, "invalid_json"),
        (b"{\"model\":\"\\ud800\"}", 400, "invalid_json"),
        (b"{}", 400, "missing_model"),
        (b"{\"messages\":[{\"model\":\"ours\"}]}", 400, "missing_model"),
        (b"{\"model\":null}", 400, "missing_model"),
        (b"{\"model\":5}", 400, "missing_model"),
        (b"{\"model\":[\"ours\"]}", 400, "missing_model"),
        (b"{\"Model\":\"ours\"}", 400, "missing_model"),
        (b"{\"model\":\"\"}", 404, "model_not_found"),
        (b"{\"model\":\"Ours\"}", 404, "model_not_found"),
    ];
    for path in [CHAT, "/v1/completions", "/v1/embeddings"] {
        for (body, status, code) in bodies {
            let answer = send(user.request("POST", path).body(body));
            answer.is_openai_error(status, code);
            assert_eq!(answer.body["error"]["type"], "invalid_request_error", "{answer}");
            assert!(answer.body["error"]["param"].is_null(), "{answer}");
        }
    }
    let long = user.post(CHAT, &chat(&"long".repeat(10_000)));
    long.is_openai_error(404, "model_not_found");
    assert!(long.text.len() < 1000, "{long}");
    let other = user.post(CHAT, &streamed("nope"));
    assert!(other.is_openai_error(404, "model_not_found").message().contains("`nope`"), "{other}");
    assert!(!other.text.contains("ours"), "other models are not named: {other}");
    // An id that the caller chose comes back with an error too.
    let named = send(user.request("POST", CHAT).header("x-request-id", "test/7").body("{"));
    assert_eq!(named.is_openai_error(400, "invalid_json").header("x-request-id"), "test/7");
    assert_eq!(place.upstream.requests(), 0);
}

/// D-047 E-258
#[test]
fn unknown_paths_and_wrong_methods_are_errors_of_the_same_form() {
    let fleet = Fleet::start();
    let (user, proxy) = (fleet.user(), fleet.user_of_proxy());
    for path in
        ["/v1", "/v1/", "/v1/nope", "/v1/chat", "/v1/chat/completions/x", "/v1/models/%FF", "/v1//models", "/v1/health"]
    {
        for method in ["GET", "POST", "DELETE"] {
            send(user.request(method, path)).is_openai_error(404, "not_found");
        }
        if path != "/v1/health" {
            send(proxy.request("GET", path)).is_openai_error(404, "not_found");
        }
    }
    for path in ["/", "/api/models", "/metrics", "/docs", "/ready", "/v2/models", "/v1x/models"] {
        send(proxy.request("GET", path)).is_openai_error(404, "not_found");
        send(fleet.anybody().request("GET", &format!("/v1{path}"))).is_openai_error(404, "not_found");
    }
    for (path, allowed) in [
        (CHAT, "POST"),
        ("/v1/completions", "POST"),
        ("/v1/embeddings/", "POST"),
        ("/v1/models", "GET, HEAD"),
        ("/v1/models/x", "GET, HEAD"),
    ] {
        for method in ["GET", "POST", "PUT", "PATCH", "DELETE", "OPTIONS", "BREW"] {
            if allowed.contains(method) {
                continue;
            }
            for (api, path) in [(&user, path), (&proxy, path), (&proxy, &path["/v1".len()..])] {
                let answer = send(api.request(method, path));
                answer.is_openai_error(405, "method_not_allowed");
                assert_eq!(answer.header("allow"), allowed, "{method} {path}");
            }
        }
    }
}

#[test]
fn a_body_over_the_limit_is_refused_and_one_at_the_limit_is_not() {
    const LIMIT: usize = 64 * 1024;
    let place = Place::with(&[("MUSTER_GATEWAY_BODY_LIMIT", "65536")]);
    let body = |length: usize| {
        let (before, after) = (r#"{"model":"ours","x":""#, r#""}"#);
        format!("{before}{}{after}", "x".repeat(length - before.len() - after.len()))
    };
    let in_chunks = |length: usize| {
        let chunks: String = body(length)
            .as_bytes()
            .chunks(1000)
            .map(|chunk| format!("{:x}\r\n{}\r\n", chunk.len(), std::str::from_utf8(chunk).expect("text")))
            .collect();
        format!(
            "POST {CHAT} HTTP/1.1\r\nhost: x\r\n{}\r\ntransfer-encoding: chunked\r\n\r\n{chunks}0\r\n\r\n",
            place.key()
        )
    };
    for length in [LIMIT - 1, LIMIT] {
        let mut wire = place.wire();
        place.post(&mut wire, body(length).as_bytes());
        assert_eq!(wire.head().status, 200);
        let mut wire = place.wire();
        wire.send(in_chunks(length).as_bytes());
        assert_eq!(wire.head().status, 200);
    }
    let seen = place.upstream.requests();
    let refused = |wire: &mut Wire| {
        let head = wire.head();
        assert_eq!((head.status, head.header("content-type")), (413, "application/json"));
        let body: Value = serde_json::from_slice(&wire.body(&head).expect("the whole answer")).expect("JSON");
        assert_eq!(body["error"]["code"], "request_too_large");
    };
    let mut wire = place.wire();
    place.post(&mut wire, body(LIMIT + 1).as_bytes());
    refused(&mut wire);
    let mut wire = place.wire();
    wire.send(in_chunks(LIMIT + 1).as_bytes());
    refused(&mut wire);
    // Who announces too much need not send it, nor who never ends.
    let mut wire = place.wire();
    wire.send(
        format!("POST {CHAT} HTTP/1.1\r\nhost: x\r\n{}\r\ncontent-length: 10000000000\r\n\r\n{{", place.key())
            .as_bytes(),
    );
    refused(&mut wire);
    let mut wire = place.wire();
    let endless = in_chunks(2 * LIMIT);
    wire.send(&endless.as_bytes()[..LIMIT + LIMIT / 2]);
    refused(&mut wire);
    // Strangers are sent away before they send anything.
    let mut wire = place.wire();
    wire.send(format!("POST {CHAT} HTTP/1.1\r\nhost: x\r\ncontent-length: 60000\r\n\r\n{{").as_bytes());
    assert_eq!(wire.head().status, 401);
    assert_eq!(place.upstream.requests(), seen, "none of them reached the provider");
    let _ = place.ask().expect(200);
}

#[test]
fn a_gateway_that_is_switched_off_says_so_and_comes_back() {
    let place = Place::new();
    let (admin, user) = (place.fleet.admin(), place.fleet.user());
    let _ = place.ask().expect(200);
    let _ = admin.put("/api/settings", &json!({"gateway_enabled": false})).expect(200);
    for api in [user.clone(), place.fleet.user_of_proxy(), place.fleet.anybody()] {
        api.post(CHAT, &chat("ours")).is_openai_error(503, "gateway_disabled");
        api.get("/v1/models").is_openai_error(503, "gateway_disabled");
    }
    assert_eq!(place.upstream.requests(), 1);
    // Whether the proxy's process is there is another question.
    let _ = Api::new(&place.fleet.nodes()[0].proxy).get("/health").expect(200);
    let _ = admin.put("/api/settings", &json!({"gateway_enabled": true})).expect(200);
    let _ = place.ask().expect(200);
    let _ = user.get("/v1/models").expect(200);
}

#[test]
fn the_counts_name_models_and_nothing_that_callers_invent() {
    let place = Place::new();
    let (admin, user) = (place.fleet.admin(), place.fleet.user());
    for _ in 0..3 {
        let _ = user.post(CHAT, &chat("ours")).expect(200);
    }
    let _ = user.post(CHAT, &chat("invented-name")).expect(404);
    let _ = user.get("/v1/models/invented-too").expect(404);
    let _ = user.get("/v1/invented-path").expect(404);
    let _ = place.fleet.anybody().with_key("sk-invented").post(CHAT, &chat("ours")).expect(401);
    let _ = register(
        &admin,
        "dead",
        &json!({"baseUrl": format!("http://{}/v1", muster_tests::upstream::Upstream::nobody())}),
    );
    let _ = user.post(CHAT, &chat("dead")).expect(502);
    let lines = wait_for(SOON, "the end of the last answer", || {
        let text = admin.get("/metrics").expect(200).text;
        text.contains("muster_gateway_request_duration_seconds_count{model=\"ours\"} 3").then_some(text)
    });
    for line in [
        "muster_gateway_requests_total{model=\"ours\",status=\"200\"} 3",
        "muster_gateway_requests_total{model=\"dead\",status=\"502\"} 1",
        "muster_gateway_requests_total{model=\"\",status=\"401\"} 1",
        "muster_gateway_requests_total{model=\"\",status=\"404\"} 3",
        "muster_gateway_first_byte_seconds_count{model=\"ours\"} 3",
        "muster_gateway_in_flight{model=\"ours\"} 0",
        "muster_gateway_in_flight{model=\"dead\"} 0",
        "muster_gateway_cut_total{model=\"ours\"} 0",
    ] {
        assert!(lines.lines().any(|found| found == line), "{line} in {lines}");
    }
    assert!(!lines.contains("invented"), "{lines}");
}
