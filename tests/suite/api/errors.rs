//! Every refusal has a status, one form, and no effect; what is no request does no harm.

use std::io::{Read, Write};
use std::net::TcpStream;
use std::time::{Duration, Instant};

use muster_tests::api::{Answer, send};
use muster_tests::fleet::Fleet;
use muster_tests::process::wait_for;
use serde_json::json;

use super::{model, names, with};

///
#[test]
fn every_refusal_has_the_same_form_and_the_callers_request_id() {
    let fleet = Fleet::start();
    let (admin, anybody) = (fleet.admin(), fleet.anybody());
    let _ = admin.post("/api/models", &model("there")).expect(201);
    let models = |body: &'static str| admin.request("POST", "/api/models").body(body);
    for (request, status, code) in [
        (models("{\"name\": "), 400, "MALFORMED"),
        (models("{\"status\": \"active\", \"isEnabled\": false}"), 400, "BAD_REQUEST"),
        (models("{\"name\": 5}"), 422, "UNPROCESSABLE_ENTITY"),
        (anybody.request("GET", "/api/models"), 401, "UNAUTHORIZED"),
        (anybody.request("GET", "/metrics"), 401, "UNAUTHORIZED"),
        (anybody.with_key(&fleet.gateway_key).request("GET", "/api/models"), 403, "FORBIDDEN"),
        (admin.request("GET", "/api/models/nobody"), 404, "NOT_FOUND"),
        (admin.request("GET", "/api/nope"), 404, "NOT_FOUND"),
        (admin.request("GET", "/api"), 404, "NOT_FOUND"),
        (anybody.request("GET", "/nope"), 404, "NOT_FOUND"),
        (admin.request("POST", "/api/models").json(&model("there")), 409, "CONFLICT"),
        (admin.request("DELETE", "/api/models/there").header("if-match", "\"1\""), 412, "PRECONDITION_FAILED"),
        (admin.request("GET", "/api/models?limit=x"), 422, "UNPROCESSABLE_ENTITY"),
        (admin.request("GET", "/api/models?limit=1&limit=2"), 400, "BAD_REQUEST"),
        (admin.request("POST", "/api/models/there/realms"), 501, "NOT_IMPLEMENTED"),
    ] {
        let request = request.header("x-request-id", "test/42");
        let answer = send(request);
        answer.is_error(status, code);
        assert_eq!(answer.header("x-request-id"), "test/42", "{answer}");
    }
    assert_eq!(names(&admin.get("/api/models").expect(200).body), ["there"], "nothing was done");
}

#[test]
fn a_wrong_method_is_told_which_are_right() {
    let fleet = Fleet::start();
    let admin = fleet.admin();
    for (method, path, allowed) in [
        ("DELETE", "/api/models", &["GET", "HEAD", "POST"][..]),
        ("POST", "/api/models/x", &["DELETE", "GET", "HEAD", "PATCH", "PUT"]),
        ("GET", "/api/models/x/realms", &["POST"]),
        ("PUT", "/api/nodes/1", &["DELETE", "GET", "HEAD"]),
        ("POST", "/api/settings", &["GET", "HEAD", "PATCH", "PUT"]),
        ("POST", "/api/cluster", &["GET", "HEAD"]),
        ("POST", "/health", &["GET", "HEAD"]),
        ("POST", "/api/health", &["GET", "HEAD"]),
        ("POST", "/metrics", &["GET", "HEAD"]),
        ("DELETE", "/docs", &["GET", "HEAD"]),
        ("FROB", "/api/models", &["GET", "HEAD", "POST"]),
    ] {
        let answer = send(admin.request(method, path));
        answer.is_error(405, "METHOD_NOT_ALLOWED");
        let mut found: Vec<_> = answer.header("allow").split(',').map(str::trim).collect();
        found.sort_unstable();
        assert_eq!(found, allowed, "{method} {path}");
    }
}

#[test]
fn a_request_id_that_could_do_harm_is_replaced() {
    let fleet = Fleet::start();
    let admin = fleet.admin();
    let ask = |id: &[u8]| send(admin.request("GET", "/api/nope").header("x-request-id", id));
    let taken = |answer: &Answer| answer.is_error(404, "NOT_FOUND").header("x-request-id").to_owned();
    let long = "x".repeat(128);
    for plain in ["7", "0af7651916cd43dd8448eb211c80319c", "a/b:c{d}\"e\"", &long] {
        assert_eq!(taken(&ask(plain.as_bytes())), plain);
    }
    let hostile: [&[u8]; 5] = [b"", b"a b", b"tab\there", &[b'x'; 1024], "caf\u{e9}".as_bytes()];
    for hostile in hostile {
        let made = taken(&ask(hostile));
        assert!(made.len() == 36 && made.bytes().all(|byte| byte.is_ascii_hexdigit() || byte == b'-'), "{made}");
    }
    let one = admin.get("/api/nope");
    assert_ne!(taken(&one), taken(&admin.get("/api/nope")), "each has its own");
}

#[test]
fn a_body_over_the_limit_is_refused_and_one_at_the_limit_is_not() {
    const LIMIT: usize = 16 * 1024;
    let fleet = Fleet::start_with(&[("MUSTER_BODY_LIMIT", "16384")]);
    let admin = fleet.admin();
    let body = |length: usize| {
        let text = model("padded").to_string();
        format!("{}{text}", " ".repeat(length - text.len()))
    };
    let post = |length| send(admin.request("POST", "/api/models").body(body(length)));
    post(LIMIT + 1).is_error(413, "CONTENT_TOO_LARGE");
    post(1024 * 1024).is_error(413, "CONTENT_TOO_LARGE");
    let chunked =
        admin.request("POST", "/api/models").body(reqwest::blocking::Body::new(std::io::Cursor::new(body(LIMIT + 1))));
    send(chunked).is_error(413, "CONTENT_TOO_LARGE");
    assert_eq!(names(&admin.get("/api/models").expect(200).body).len(), 0, "nothing was stored");
    let _ = post(LIMIT).expect(201);
}

/// What fits into a request may still be too much for a record.
#[test]
fn a_model_that_is_too_large_to_keep_is_refused() {
    let fleet = Fleet::start();
    let admin = fleet.admin();
    let body = with(&model("large"), &json!({"metadata": {"text": "x".repeat(20_000)}}));
    admin.post("/api/models", &body).is_error(413, "CONTENT_TOO_LARGE");
    let _ = admin.post("/api/models", &model("large")).expect(201);
    admin.put("/api/models/large", &json!({"metadata": body["metadata"]})).is_error(413, "CONTENT_TOO_LARGE");
    assert_eq!(admin.get("/api/models/large").expect(200).body["metadata"], json!({}));
}

///
#[test]
fn json_that_is_nested_too_deeply_is_refused() {
    let fleet = Fleet::start();
    let admin = fleet.admin();
    for depth in [200, 100_000] {
        let deep = format!("{{\"metadata\": {}{}}}", "[".repeat(depth), "]".repeat(depth));
        for (method, path) in [("POST", "/api/models"), ("PUT", "/api/settings"), ("POST", "/api/credentials")] {
            send(admin.request(method, path).body(deep.clone())).is_error(400, "MALFORMED");
        }
    }
    let _ = admin.get("/ready").expect(200);
}

/// Sends bytes and returns what comes back until the other end closes.
fn exchange(fleet: &Fleet, bytes: &[u8]) -> String {
    let mut stream = TcpStream::connect(fleet.address()).expect("a connection");
    stream.set_read_timeout(Some(Duration::from_secs(30))).expect("a limit");
    // It may have been closed before everything was taken.
    let _ = stream.write_all(bytes);
    let _ = stream.shutdown(std::net::Shutdown::Write);
    let mut answer = Vec::new();
    let _ = stream.read_to_end(&mut answer);
    String::from_utf8_lossy(&answer).into_owned()
}

#[test]
fn garbage_on_the_port_does_no_harm() {
    let mut fleet = Fleet::start();
    let admin = fleet.admin();
    let token = fleet.admin_token.clone();
    let head = format!("POST /api/models HTTP/1.1\r\nhost: x\r\nauthorization: Bearer {token}\r\n");
    let body = model("smuggled").to_string();
    let noise: Vec<u8> = (0..200_000_u32).map(|number| (number.wrapping_mul(2_654_435_761) >> 13) as u8).collect();
    for bytes in [
        Vec::new(),
        noise,
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03".to_vec(),
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n".to_vec(),
        b"GET\r\n\r\n".to_vec(),
        b"GET /api/models HTTP/9.9\r\n\r\n".to_vec(),
        b"GET /\xff\xfe HTTP/1.1\r\nhost: x\r\n\r\n".to_vec(),
        format!("GET /{} HTTP/1.1\r\nhost: x\r\n\r\n", "x".repeat(100_000)).into_bytes(),
        format!("GET / HTTP/1.1\r\nhost: x\r\n{}\r\n", "a: b\r\n".repeat(1000)).into_bytes(),
        // Bodies that end too early, and lengths that contradict themselves.
        format!("{head}content-length: 4000\r\n\r\n{body}").into_bytes(),
        format!("{head}content-length: {}\r\ncontent-length: 2\r\n\r\n{body}", body.len()).into_bytes(),
        format!("{head}content-length: -1\r\n\r\n{body}").into_bytes(),
        format!("{head}transfer-encoding: chunked\r\n\r\nffffffffffffffffff\r\n{body}").into_bytes(),
        format!("{head}transfer-encoding: chunked\r\n\r\n5\r\n{body}").into_bytes(),
    ] {
        let answer = exchange(&fleet, &bytes);
        let refused = answer.is_empty() || answer.starts_with("HTTP/1.1 4") || answer.starts_with("HTTP/1.0 4");
        assert!(refused, "{answer}");
    }
    assert_eq!(names(&admin.get("/api/models").expect(200).body).len(), 0, "nothing came through");
    assert!(fleet.process().ended().is_none());
    assert!(!fleet.home.log().contains("panicked"));
}

#[test]
fn a_caller_that_stalls_in_the_middle_of_a_body_is_sent_away_and_holds_up_nobody() {
    let fleet = Fleet::start();
    let admin = fleet.admin();
    let mut stream = TcpStream::connect(fleet.address()).expect("a connection");
    stream.set_read_timeout(Some(Duration::from_secs(35))).expect("a limit");
    let head = format!("POST /api/models HTTP/1.1\r\nhost: x\r\nauthorization: Bearer {}\r\n", fleet.admin_token);
    stream.write_all(format!("{head}content-length: 100\r\n\r\n{{\"name\":").as_bytes()).expect("sent");
    let begun = Instant::now();
    let _ = admin.post("/api/models", &model("meanwhile")).expect(201);
    let mut answer = String::new();
    stream.read_to_string(&mut answer).expect("it is closed in time");
    assert!(begun.elapsed() < Duration::from_secs(35));
    assert!(answer.is_empty() || answer.starts_with("HTTP/1.1 408"), "{answer}");
    assert_eq!(names(&admin.get("/api/models").expect(200).body), ["meanwhile"]);
}

#[test]
fn a_caller_that_goes_away_leaves_nothing_behind() {
    let mut fleet = Fleet::start();
    let admin = fleet.admin();
    let files = format!("/proc/{}/fd", fleet.process().id());
    let open = || std::fs::read_dir(&files).expect("the files of the process").count();
    let before = open();
    let streams: Vec<_> = (0..50)
        .map(|_| {
            let mut stream = TcpStream::connect(fleet.address()).expect("a connection");
            stream.write_all(b"POST /api/models HTTP/1.1\r\nhost: x\r\ncontent-le").expect("sent");
            stream
        })
        .collect();
    let _ = admin.get("/api/models").expect(200);
    drop(streams);
    wait_for(Duration::from_secs(20), "the connections to be closed", || (open() <= before + 2).then_some(()));
}
