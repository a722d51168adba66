//! What reaches the engine, and as what.

use muster_tests::api::send;
use muster_tests::upstream::Wire;
use serde_json::{Value, json};

use super::place::{Door, Place};
use super::{CHAT, chat, streamed};

/// Every route of vLLM that nobody outside may call, those of development among them.
const PRIVATE: [&str; 52] = [
    "/",
    "/version",
    "/load",
    "/metrics",
    "/kv_event_sources",
    "/ping",
    "/v1/systemone",
    "/scale_elastic_ep",
    "/is_scaling_elastic_ep",
    "/v1/chat/completions/render",
    "/v1/chat/completions/derender",
    "/v1/completions/render",
    "/v1/completions/derender",
    "/v1/responses/render",
    "/v1/messages/render",
    "/inference/v1/generate",
    "/inference/v1/abort_requests",
    "/docs",
    "/docs/oauth2-redirect",
    "/redoc",
    "/openapi.json",
    "/v1/models/ours",
    "/v1/realtime",
    "/tokenizer_info",
    "/start_profile",
    "/stop_profile",
    "/fault_tolerance/apply",
    "/v1/load_lora_adapter",
    "/v1/unload_lora_adapter",
    "/reset_prefix_cache",
    "/reset_mm_cache",
    "/reset_encoder_cache",
    "/collective_rpc",
    "/server_info",
    "/sleep",
    "/wake_up",
    "/is_sleeping",
    "/release_kv_cache_memory",
    "/pause",
    "/resume",
    "/is_paused",
    "/abort_requests",
    "/init_weight_transfer_engine",
    "/shutdown_weight_transfer_engine",
    "/start_weight_update",
    "/start_draft_weight_update",
    "/update_weights",
    "/finish_weight_update",
    "/update_weight_version",
    "/weight_checker",
    "/weight_info",
    "/get_world_size",
];

/// Every route that is passed on, with its method.
const PUBLIC: [(&str, &str); 23] = [
    ("POST", "/tokenize"),
    ("POST", "/detokenize"),
    ("POST", "/invocations"),
    ("POST", "/v1/chat/completions"),
    ("POST", "/v1/chat/completions/batch"),
    ("POST", "/v1/completions"),
    ("POST", "/v1/responses"),
    ("GET", "/v1/responses/resp_0f3e-1"),
    ("POST", "/v1/responses/resp_0f3e-1/cancel"),
    ("POST", "/v1/messages"),
    ("POST", "/v1/messages/count_tokens"),
    ("POST", "/generative_scoring"),
    ("POST", "/v1/embeddings"),
    ("POST", "/v2/embed"),
    ("POST", "/pooling"),
    ("POST", "/score"),
    ("POST", "/v1/score"),
    ("POST", "/rerank"),
    ("POST", "/v1/rerank"),
    ("POST", "/v2/rerank"),
    ("POST", "/classify"),
    ("POST", "/v1/audio/transcriptions"),
    ("POST", "/v1/audio/translations"),
];

/// Ways to write a path of which an engine, or something before it, might think that they mean the same.
fn spellings(path: &str) -> Vec<String> {
    let bare = path.trim_start_matches('/');
    vec![
        path.to_owned(),
        format!("/{path}"),
        format!("{path}/"),
        format!("{path}?level=1"),
        format!("{path};x"),
        format!("{path}%00"),
        format!("{path}%20"),
        path.to_uppercase(),
        format!("/%2f{bare}"),
        format!("/./{bare}"),
        format!("/v1/../{bare}"),
        format!("/v1/%2e%2e/{bare}"),
        format!("/v1/chat/completions/../../..{path}"),
        format!("/v1/chat/completions/..%2f..%2f..%2f{bare}"),
        format!("/v1/responses/resp_x/../../..{path}"),
        format!("/v1/responses/..%2f..%2f{bare}"),
        format!("http://engine{path}"),
    ]
}

/// Sends a request with exactly this target, and returns status and body.
fn ask(wire: &mut Wire, door: &Door, method: &str, target: &str) -> (u16, Value) {
    let key = door.key();
    let request = format!("{method} {target} HTTP/1.1\r\nhost: test\r\n{key}\r\ncontent-length: 2\r\n\r\n{{}}");
    wire.send(request.as_bytes());
    let head = wire.head();
    let body = if method == "HEAD" { Vec::new() } else { wire.body(&head).expect("a body") };
    (head.status, serde_json::from_slice(&body).unwrap_or_default())
}

#[test]
fn nothing_but_the_routes_of_inference_reaches_the_engine_however_it_is_spelled() {
    let place = Place::new();
    let door = place.serve(&json!({"env_vars": [{"key": "VLLM_SERVER_DEV_MODE", "value": "1"}]}));
    let _ = door.engine().get("/is_sleeping").expect(200);
    let before = door.asked();
    let mut wire = Wire::connect(&door.address());
    for path in PRIVATE {
        for target in spellings(path) {
            for method in ["GET", "POST", "PUT"] {
                // `/health` of the listener itself, and the only lookup that it answers.
                let (status, body) = ask(&mut wire, &door, method, &target);
                assert_eq!((status, &body["error"]["code"]), (404, &json!("not_found")), "{method} {target}: {body}");
            }
        }
    }
    for (method, path) in PUBLIC {
        let wrong = if method == "POST" { "GET" } else { "POST" };
        for (method, target) in [(wrong, path.to_owned()), (method, format!("{path}/")), (method, format!("/{path}"))] {
            let (status, body) = ask(&mut wire, &door, method, &target);
            assert_eq!((status, &body["error"]["code"]), (404, &json!("not_found")), "{method} {target}: {body}");
        }
    }
    assert_eq!(door.asked(), before, "the engine was asked something");
    assert_eq!(door.engine().get("/is_sleeping").body["is_sleeping"], json!(false));
    // What is allowed is asked, whatever the engine then says of it.
    for (method, path) in PUBLIC {
        let asked = door.asked();
        let (status, _) = ask(&mut wire, &door, method, &format!("{path}?a=b"));
        assert_ne!(status, 502, "{method} {path}");
        assert_ne!(door.asked(), asked, "{method} {path} did not reach the engine");
    }
}

#[test]
fn any_name_of_the_deployment_reaches_its_engine_and_comes_back() {
    let place = Place::new();
    let door = place.serve(&json!({
        "lora_modules": [{"name": "adapter", "path": "org/x"}], "extra_args": ["--enable-lora"]
    }));
    for name in ["ours", "org/model", "adapter"] {
        let answer = door.user().post(CHAT, &chat(name)).expect(200).body;
        assert_eq!(answer["model"], json!(name));
        let text = door.user().post(CHAT, &streamed(name, 3)).expect(200).text;
        let events: Vec<Value> =
            text.lines().filter_map(|line| serde_json::from_str(line.strip_prefix("data: ")?).ok()).collect();
        assert!(events.len() >= 3 && text.trim_end().ends_with("data: [DONE]"), "{text}");
        assert!(events.iter().all(|event| event["model"] == json!(name)), "{text}");
        let answer = door.user().post("/tokenize", &json!({"model": name, "prompt": "a b c"})).expect(200).body;
        assert_eq!(answer["count"], json!(3), "{answer}");
    }
    // The engine serves one model: it is meant where none is named.
    let unnamed = json!({"messages": [{"role": "user", "content": "hi"}]});
    let _ = door.user().post(CHAT, &unnamed).expect(200);
    let unknown = door.user().post(CHAT, &chat("somebody-elses"));
    unknown.is_openai_error(404, "model_not_found");
    assert!(unknown.message().contains("ours, adapter"), "{unknown}");
    send(door.user().request("POST", CHAT).body("{\"model\": ")).is_openai_error(400, "invalid_json");
    let listed = door.user().get("/v1/models").expect(200).body;
    let ids: Vec<_> = listed["data"].as_array().expect("a list").iter().map(|model| &model["id"]).collect();
    assert_eq!(ids, [&json!("ours"), &json!("adapter")]);
}
