//! The official client library of OpenAI against a fleet: what it expects of OpenAI it gets from the gateway.

use std::collections::HashSet;
use std::process::Command;
use std::sync::Mutex;
use std::time::Duration;

use muster_tests::fleet::Fleet;
use muster_tests::groups::{Need, sdk_python};
use muster_tests::process::{run, wait_for};
use muster_tests::upstream::{Answer, Received, Upstream};
use serde_json::json;

/// The models whose provider does something special, by the path that their address ends with.
const SPECIAL: [(&str, &str); 8] = [
    ("busy", "/busy"),
    ("broken", "/broken"),
    ("cut", "/cut"),
    ("endless", "/endless"),
    ("limited", "/limited"),
    ("long", "/long"),
    ("once limited", "/once"),
    ("meta/Llama 3", "/usual"),
];

fn provider() -> Upstream {
    let limited = Mutex::new(HashSet::new());
    Upstream::with(move |request| {
        let event = b"data: {\"id\":\"1\",\"object\":\"chat.completion.chunk\",\"created\":1,\"model\":\"x\",\"choices\":[]}\n\n";
        match request.path.split('/').nth(1).unwrap_or_default() {
            "busy" => {
                Answer::json(503, &json!({"error": {"message": "busy", "type": "Service Unavailable", "code": 503}}))
            }
            "broken" => Answer::body(500, "text/plain", b"no"),
            "cut" => Answer::events().chunk(event).close(),
            "endless" => Answer::events().chunk(event).silence(),
            "limited" => limit("7"),
            "long" => {
                let error = json!({"message": "too long", "type": "exceed_context_size_error", "code": 400});
                Answer::json(400, &json!({"error": error}))
            }
            "once" => first_refused(request, &limited),
            _ => Answer::usual(request),
        }
    })
}

fn limit(seconds: &str) -> Answer {
    let body = br#"{"error":{"message":"slow down"}}"#;
    Answer::with_headers(429, &["content-type: application/json", &format!("retry-after: {seconds}")], body)
}

/// Every second request is refused: the first of each try.
fn first_refused(request: &Received, refused: &Mutex<HashSet<Vec<u8>>>) -> Answer {
    let mut refused = refused.lock().expect("not poisoned");
    if refused.remove(&request.body) {
        return Answer::usual(request);
    }
    refused.insert(request.body.clone());
    limit("0")
}

/// D-047 E-257 E-258
#[test]
fn the_library_of_openai_gets_what_it_expects() {
    if !Need::OpenAiSdk.is_met("sdk") {
        return;
    }
    let (fleet, upstream) = (Fleet::start(), provider());
    let admin = fleet.admin();
    let register = |name: &str, provider: &str, url: &str| {
        let model = json!({"name": name, "provider": provider, "modelId": "theirs", "baseUrl": url});
        let _ = admin.post("/api/models", &model).expect(201);
    };
    register("ours", "openai-compatible", &upstream.url("/v1"));
    register("dead", "openai-compatible", &format!("http://{}/v1", Upstream::nobody()));
    register("foreign", "anthropic", &upstream.url("/v1"));
    for (name, path) in SPECIAL {
        register(name, "openai-compatible", &upstream.url(path));
    }
    let node = &fleet.nodes()[0];
    let script = concat!(env!("CARGO_MANIFEST_DIR"), "/sdk/check.py");
    for (round, url) in
        [format!("{}/v1", node.api), format!("{}/v1", node.proxy), node.proxy.clone()].iter().enumerate()
    {
        let mut command = Command::new(sdk_python());
        command.arg(script).env_clear().env("BASE_URL", url).env("KEY", &fleet.gateway_key);
        let output = run(&mut command);
        let (said, wrong) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
        assert!(output.status.success() && said.contains("all as expected"), "{url}: {said}{wrong}");
        wait_for(Duration::from_secs(5), "the endless answer to be given up", || {
            (upstream.given_up() > round).then_some(())
        });
    }
}
