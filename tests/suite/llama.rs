//! A real llama-server behind a mesh: registered on one node, called through the others.

use std::process::{Command, Stdio};
use std::time::Duration;

use muster_tests::api::{Answer, Api};
use muster_tests::fleet::PATIENCE;
use muster_tests::groups::{Need, llama};
use muster_tests::mesh::{Mesh, free_address};
use muster_tests::process::{Process, wait_for};
use serde_json::{Value, json};

const CHAT: &str = "/v1/chat/completions";
const KEY: &str = "key-of-the-engine";

/// A server of a tiny model that says noise, and the same noise for the same prompt.
struct Engine {
    process: Process,
    address: String,
}

impl Engine {
    fn start(more: &[&str]) -> Self {
        let address = free_address();
        let (host, port) = address.rsplit_once(':').expect("an address");
        let mut command = Command::new(llama("llama-server"));
        command.arg("-m").arg(llama("tiny.gguf")).args(["-a", "tiny", "--host", host, "--port", port]);
        command.args(["-c", "2048", "-np", "4", "-t", "1", "--offline", "--slots"]).args(["--api-key", KEY]).args(more);
        let process = Process::start(command.stdout(Stdio::null()).stderr(Stdio::null()));
        let engine = Self { process, address };
        let health = engine.direct();
        wait_for(PATIENCE, "the engine", || {
            let answer = muster_tests::api::try_send(health.request("GET", "/health")).ok()?;
            (answer.status == 200).then_some(())
        });
        engine
    }

    /// Asked without a mesh.
    fn direct(&self) -> Api {
        Api::new(&format!("http://{}", self.address)).with_key(KEY)
    }

    fn url(&self) -> String {
        format!("http://{}/v1", self.address)
    }

    /// How many requests it works on.
    fn busy(&self) -> usize {
        let slots = self.direct().get("/slots").expect(200).body;
        slots.as_array().expect("a list").iter().filter(|slot| slot["is_processing"] == true).count()
    }
}

fn prompt(model: &str, tokens: u32) -> Value {
    json!({"model": model, "messages": [{"role": "user", "content": "Say something, in three words."}],
        "max_tokens": tokens, "temperature": 0, "seed": 1})
}

fn text(answer: &Answer) -> String {
    answer.body["choices"][0]["message"]["content"].as_str().expect("a text").to_owned()
}

/// The events of a stream, without the last line.
fn events(answer: &Answer) -> Vec<Value> {
    assert!(answer.text.trim_end().ends_with("data: [DONE]"), "{answer}");
    let lines = answer.text.lines().filter_map(|line| line.strip_prefix("data: ")).filter(|data| *data != "[DONE]");
    lines.map(|data| serde_json::from_str(data).expect("an event")).collect()
}

///
#[test]
fn a_real_engine_that_is_registered_on_one_node_is_called_through_the_others() {
    if !Need::Llama.is_met("llama") {
        return;
    }
    let (mesh, engine) = (Mesh::of_three(), Engine::start(&[]));
    let admin = mesh.api(0);
    let nodes = admin.get("/api/nodes").expect(200).body;
    let first = nodes["nodes"].as_array().or(nodes.as_array()).expect("a list").iter().find(|n| n["name"] == "node-1");
    let model = json!({"name": "noise", "provider": "openai-compatible", "modelId": "tiny", "baseUrl": engine.url(),
        "apiKey": KEY, "nodeId": first.expect("the first node")["id"]});
    let _ = admin.post("/api/models", &model).expect(201);
    let made = admin.post("/api/credentials", &json!({"kind": "gateway", "label": "llama"})).expect(201);
    let key = made.body["key"].as_str().expect("a key");
    let direct = engine.direct().post(CHAT, &prompt("tiny", 24)).expect(200);

    for index in 0..3 {
        let user = Api::new(mesh.api(index).endpoint()).with_key(key);
        wait_for(PATIENCE, "the model everywhere", || (user.get("/v1/models/noise").status == 200).then_some(()));
        let whole = user.post(CHAT, &prompt("noise", 24)).expect(200);
        assert_eq!((text(&whole), &whole.body["model"]), (text(&direct), &json!("noise")));
        assert_eq!(whole.body["usage"]["completion_tokens"], 24);

        let mut streamed = prompt("noise", 24);
        streamed["stream"] = json!(true);
        streamed["stream_options"] = json!({"include_usage": true});
        let streamed = events(&user.post(CHAT, &streamed).expect(200));
        let said = streamed.iter().filter_map(|event| event["choices"][0]["delta"]["content"].as_str());
        assert_eq!(said.collect::<String>(), text(&direct));
        assert!(streamed.iter().all(|event| event["model"] == "noise"), "{streamed:?}");
        assert_eq!(streamed.last().expect("usage")["usage"]["completion_tokens"], 24);

        let completion = json!({"model": "noise", "prompt": "Once", "max_tokens": 5});
        assert_eq!(user.post("/v1/completions", &completion).expect(200).body["usage"]["completion_tokens"], 5);
        let mut long = prompt("noise", 5);
        long["messages"][0]["content"] = json!("word ".repeat(3000));
        let _ = user.post(CHAT, &long).is_openai_error(400, "context_length_exceeded");
    }
    assert!(!admin.get("/api/models").expect(200).text.contains(KEY));
}

#[test]
fn a_client_that_leaves_frees_the_engine_and_an_engine_that_dies_is_named() {
    if !Need::Llama.is_met("llama") {
        return;
    }
    let (mesh, mut engine) = (Mesh::of_three(), Engine::start(&[]));
    let admin = mesh.api(0);
    let model = json!({"name": "noise", "provider": "openai-compatible", "modelId": "tiny", "baseUrl": engine.url(),
        "apiKey": KEY});
    let _ = admin.post("/api/models", &model).expect(201);
    let made = admin.post("/api/credentials", &json!({"kind": "gateway", "label": "llama"})).expect(201);
    let user = Api::new(admin.endpoint()).with_key(made.body["key"].as_str().expect("a key"));

    // It would go on for as long as there is room.
    let mut endless = prompt("noise", 1_000_000);
    endless["stream"] = json!(true);
    let client = reqwest::blocking::Client::builder().no_proxy().timeout(Duration::from_secs(60)).build();
    let streaming = client.expect("a client").post(format!("{}{CHAT}", admin.endpoint())).json(&endless);
    let mut answer =
        streaming.bearer_auth(made.body["key"].as_str().expect("a key")).send().expect("the stream begins");
    std::io::Read::read_exact(&mut answer, &mut [0; 64]).expect("an event");
    wait_for(PATIENCE, "the engine to work", || (engine.busy() == 1).then_some(()));
    drop(answer);
    wait_for(PATIENCE, "the engine to be free", || (engine.busy() == 0).then_some(()));

    engine.process.kill();
    let _ = user.post(CHAT, &prompt("noise", 5)).is_openai_error(502, "provider_unreachable");
}

#[test]
fn embeddings_of_a_real_engine_come_as_they_are() {
    if !Need::Llama.is_met("llama") {
        return;
    }
    let (mesh, engine) = (Mesh::of_three(), Engine::start(&["--embeddings", "--pooling", "mean"]));
    let admin = mesh.api(1);
    let model = json!({"name": "vectors", "provider": "openai-compatible", "modelId": "tiny", "baseUrl": engine.url(),
        "apiKey": KEY});
    let _ = admin.post("/api/models", &model).expect(201);
    let made = admin.post("/api/credentials", &json!({"kind": "gateway", "label": "llama"})).expect(201);
    let user = Api::new(admin.endpoint()).with_key(made.body["key"].as_str().expect("a key"));
    let asked = |model| json!({"model": model, "input": ["one", "another"]});
    let direct = engine.direct().post("/v1/embeddings", &asked("tiny")).expect(200).body;
    let through = user.post("/v1/embeddings", &asked("vectors")).expect(200).body;
    assert_eq!(through["data"], direct["data"]);
    assert_eq!(through["data"].as_array().expect("a list").len(), 2);
}
