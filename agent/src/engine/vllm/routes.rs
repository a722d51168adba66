//! The routes of vLLM that somebody outside may call.
//!
//! It is a list of what is allowed: a route that is not here is not forwarded, whichever version brings it. Paths are compared
//! byte for byte, so that no other spelling of a route gets past.

use http::Method;

use crate::engine::Traffic;

/// The routes that use the model.
const INFERENCE: [&str; 18] = [
    "/v1/chat/completions",
    "/v1/chat/completions/batch",
    "/v1/completions",
    "/v1/responses",
    "/v1/messages",
    "/v1/embeddings",
    "/v1/score",
    "/v1/rerank",
    "/v1/audio/transcriptions",
    "/v1/audio/translations",
    "/v2/embed",
    "/v2/rerank",
    "/pooling",
    "/classify",
    "/score",
    "/rerank",
    "/generative_scoring",
    "/invocations",
];

/// The routes that only count or cut text.
const TEXT: [&str; 3] = ["/v1/messages/count_tokens", "/tokenize", "/detokenize"];

/// The longest identity of a response, in bytes.
const ID_LIMIT: usize = 128;

pub(super) fn traffic(method: &Method, path: &str) -> Option<Traffic> {
    if *method == Method::GET {
        let lookup = path == "/v1/models" || path.strip_prefix("/v1/responses/").is_some_and(is_id);
        return lookup.then_some(Traffic::Lookup);
    }
    if *method != Method::POST {
        return None;
    }
    if INFERENCE.contains(&path) {
        return Some(Traffic::Inference);
    }
    let id = path.strip_prefix("/v1/responses/").and_then(|rest| rest.strip_suffix("/cancel"));
    (TEXT.contains(&path) || id.is_some_and(is_id)).then_some(Traffic::Lookup)
}

/// `resp_0f3e...`, as vLLM wants it, with nothing that means anything in a path.
fn is_id(text: &str) -> bool {
    let sign = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'_' | b'-');
    text.len() <= ID_LIMIT && text.strip_prefix("resp_").is_some_and(|rest| !rest.is_empty() && rest.bytes().all(sign))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The routes of vLLM 0.32 that are forwarded.
    const PUBLIC: &[(&str, &str)] = &[
        ("GET", "/v1/models"),
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

    /// Those that are not, those of development among them.
    const PRIVATE: &[&str] = &[
        "/",
        "/health",
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
        "/v1/models/x",
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

    const METHODS: [&str; 8] = ["GET", "POST", "HEAD", "PUT", "DELETE", "PATCH", "OPTIONS", "post"];

    fn is_public(method: &str, path: &str) -> bool {
        traffic(&Method::from_bytes(method.as_bytes()).unwrap(), path).is_some()
    }

    #[test]
    fn every_route_of_the_engine_is_on_one_side() {
        for (method, path) in PUBLIC {
            for other in METHODS {
                assert_eq!(is_public(other, path), other == *method, "{other} {path}");
            }
        }
        for path in PRIVATE {
            for method in METHODS {
                assert!(!is_public(method, path), "{method} {path}");
            }
        }
        let listed: Vec<_> = PUBLIC.iter().map(|(_, path)| *path).collect();
        for path in INFERENCE.iter().chain(&TEXT) {
            assert!(listed.contains(path), "{path} is forwarded and not among the routes that were looked at");
        }
    }

    #[test]
    fn no_spelling_gets_a_private_route_through() {
        for path in PRIVATE {
            let bare = path.trim_start_matches('/');
            for spelling in [
                format!("/{path}"),
                format!("{path}/"),
                format!("{path}//"),
                format!("{path}?level=1"),
                format!("{path}#x"),
                format!("{path};x"),
                format!("{path}%00"),
                format!("{path}%20"),
                path.to_uppercase(),
                format!("/%2f{bare}"),
                format!("/./{bare}"),
                format!("/v1/../{bare}"),
                format!("/v1/..{path}"),
                format!("/v1/%2e%2e/{bare}"),
                format!("/v1/chat/completions/../../..{path}"),
                format!("/v1/chat/completions/..%2f..%2f..%2f{bare}"),
                format!("/v1/responses/..{path}"),
                format!("/v1/responses/../..{path}"),
                format!("/v1/responses/..%2f..%2f{bare}"),
                format!("/v1/responses/%2e%2e/{bare}/cancel"),
                format!("/v1/responses/x/../../..{path}"),
                format!("/v1/responses/{path}/cancel"),
                format!("/v1/responses\\..\\..\\{bare}"),
                format!("http://x{path}"),
                bare.to_owned(),
                format!("{path}\t"),
                format!(" {path}"),
            ] {
                for method in METHODS {
                    assert!(!is_public(method, &spelling), "{method} {spelling:?}");
                }
            }
        }
    }

    #[test]
    fn a_public_route_has_one_spelling() {
        for path in [
            "/v1/models/",
            "//v1/models",
            "/v1//models",
            "/V1/models",
            "/v1/models?x",
            "/v1%2fmodels",
            "/v1/./models",
            "v1/models",
            "",
            "*",
            "/v1/responses/",
            "/v1/responses/..",
            "/v1/responses/.",
            "/v1/responses/a/b",
            "/v1/responses/a%2fb",
        ] {
            assert!(!is_public("GET", path), "{path}");
        }
        for path in
            ["/v1/responses//cancel", "/v1/responses/../cancel", "/v1/responses/resp_a/cancel/", "/v1/responses/cancel"]
        {
            assert!(!is_public("POST", path), "{path}");
        }
        for (method, path) in PUBLIC {
            for spelling in [format!("{path}/"), format!("/{path}"), path.to_uppercase(), format!("{path}%00")] {
                assert!(!is_public(method, &spelling), "{method} {spelling}");
            }
        }
        assert!(!is_public("GET", &format!("/v1/responses/resp_{}", "a".repeat(ID_LIMIT))));
    }

    #[test]
    fn only_what_uses_the_model_needs_it_awake() {
        assert_eq!(traffic(&Method::POST, "/v1/embeddings"), Some(Traffic::Inference));
        assert_eq!(traffic(&Method::POST, "/tokenize"), Some(Traffic::Lookup));
        assert_eq!(traffic(&Method::GET, "/v1/models"), Some(Traffic::Lookup));
    }
}
