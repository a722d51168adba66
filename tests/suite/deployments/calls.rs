//! Calls of models through every node: bodies, streams, and owners that do not answer.

use muster_tests::fleet::PATIENCE;
use muster_tests::process::wait_for;
use muster_tests::upstream::Wire;
use serde_json::{Value, json};

use super::{CHAT, Park, Yard, call, chat, running, with};

/// What a stream has said, event by event, and whether it was whole.
fn events(text: &str) -> (Vec<Value>, bool) {
    let data: Vec<_> = text.lines().filter_map(|line| line.strip_prefix("data: ")).collect();
    let whole = data.last() == Some(&"[DONE]");
    let events = data.iter().filter(|data| **data != "[DONE]");
    (events.map(|data| serde_json::from_str(data).expect("JSON")).collect(), whole)
}

/// E-251 E-252 E-253
#[test]
fn every_node_calls_a_model_whichever_has_its_engine() {
    let park = Park::new(3);
    let admin = park.admin();
    running(&admin, &json!({"node_id": 2, "engine_args": {"served_model_name": "ours"}}));
    let pooling = json!({"node_id": 3, "model_name": "org/embed", "extra_args": ["--pooling"]});
    running(&admin, &pooling);
    let slow = json!({"node_id": 1, "model_name": "slow", "extra_args": ["--tokens=12", "--tokens-per-second=20"], "gpu_ids": [1]});
    running(&admin, &slow);
    for node in 0..3 {
        let endpoints = &park.fleet.nodes()[node];
        let user = park.user().at(&endpoints.api);
        for model in ["ours", "org/embed", "slow"] {
            wait_for(PATIENCE, "the node to know the model", || {
                (user.get(&format!("/v1/models/{}", model.replace('/', "%2F"))).status == 200).then_some(())
            });
        }
        // The engine knows it by one name, and each client by the one that it has used.
        for model in ["ours", "org/m"] {
            for caller in [&user, &user.at(&endpoints.proxy)] {
                let answer = call(caller, model).expect(200);
                assert_eq!(answer.body["model"], json!(model), "{answer}");
                assert_eq!(answer.body["object"], json!("chat.completion"));
                assert!(!answer.header("x-request-id").is_empty());
                let prompt = json!({"model": model, "prompt": "once upon a time", "max_tokens": 4});
                let answer = caller.post("/v1/completions", &prompt).expect(200);
                assert_eq!(
                    (&answer.body["model"], &answer.body["usage"]["completion_tokens"]),
                    (&json!(model), &json!(4))
                );
                let streamed = with(&chat(model), &json!({"stream": true, "stream_options": {"include_usage": true}}));
                let answer = caller.post(CHAT, &streamed).expect(200);
                let (events, whole) = events(&answer.text);
                assert!(whole && events.len() > 2, "{answer}");
                assert!(events.iter().all(|event| event["model"] == json!(model)), "{answer}");
            }
        }
        let answer = user.post("/v1/embeddings", &json!({"model": "org/embed", "input": ["a", "b"]})).expect(200);
        assert_eq!(answer.body["data"].as_array().map(Vec::len), Some(2), "{answer}");
        // What the engine refuses is told in our form.
        let refused = user.post("/v1/embeddings", &json!({"model": "ours", "input": "a"}));
        assert!((400..500).contains(&refused.status), "{refused}");
        let long = with(&chat("ours"), &json!({"max_tokens": 1_000_000}));
        assert_eq!(user.post(CHAT, &long).status, 400);

        // A stream comes piece by piece.
        let mut wire = Wire::connect(endpoints.api.trim_start_matches("http://"));
        let key = format!("authorization: Bearer {}", park.fleet.gateway_key);
        wire.post(CHAT, &[&key], with(&chat("slow"), &json!({"stream": true})).to_string().as_bytes());
        assert_eq!(wire.head().status, 200);
        let mut chunks = 0;
        while wire.chunk().expect("a whole stream").is_some() {
            chunks += 1;
        }
        assert!(chunks >= 8, "{chunks} chunks at 50 ms each");
    }
}

/// E-262
#[test]
fn a_model_whose_node_is_gone_is_unreachable_and_says_so_at_once() {
    let mut yard = Yard::new();
    let id = yard.running(2, &json!({"model_name": "far"}));
    yard.answers_everywhere("far");
    yard.mesh.machines[2].kill();
    for node in [0, 1] {
        let begun = std::time::Instant::now();
        let answer = call(&yard.user(node), "far");
        let message = answer.is_openai_error(502, "deployment_unreachable").message();
        assert!(message.contains(&format!("deployment {id}")) && message.contains("far"), "{answer}");
        assert!(begun.elapsed().as_secs() < 10, "{:?}", begun.elapsed());
    }
    // What is committed of it stays as it is: nobody knows that the engine has ended, and it has not.
    assert_eq!(super::is(&yard.api(0), id, "running")["status"], json!("running"));
    let engine = super::only(yard.engines(2));
    yard.mesh.restart(2);
    yard.answers_everywhere("far");
    assert_eq!(super::only(yard.engines(2)), engine);
}
