//! Deployments that really run: nodes are processes that start simulated engines as processes, watch them, and call them for
//! whoever asks for a model. The ids in front of a test are the rows of the requirements that it shows.

#[path = "deployments/at_once.rs"]
mod at_once;
#[path = "deployments/calls.rs"]
mod calls;
#[path = "deployments/ends.rs"]
mod ends;
#[path = "deployments/failures.rs"]
mod failures;
#[path = "deployments/lifecycle.rs"]
mod lifecycle;
#[path = "deployments/manifest.rs"]
mod manifest;
#[path = "deployments/names.rs"]
mod names;
#[path = "deployments/old.rs"]
mod old;
#[path = "deployments/refusals.rs"]
mod refusals;
#[path = "deployments/scheduler.rs"]
mod scheduler;
#[path = "deployments/secrets.rs"]
mod secrets;
#[path = "deployments/survival.rs"]
mod survival;
#[path = "deployments/take_over.rs"]
mod take_over;

use std::path::Path;

use muster_tests::api::{Answer, Api, try_send};
use muster_tests::engines::{self, Engine};
use muster_tests::fleet::{Fleet, PATIENCE};
use muster_tests::mesh::{Machine, Mesh};
use muster_tests::process::wait_for;
use serde_json::{Value, json};

const CHAT: &str = "/v1/chat/completions";

/// A fleet in one process whose nodes can run engines. They end with it.
struct Park {
    fleet: Fleet,
}

impl Park {
    fn new(nodes: usize) -> Self {
        Self::with(nodes, &[])
    }

    fn with(nodes: usize, more: &[(&'static str, &str)]) -> Self {
        let variables = engines::variables();
        let texts = variables.iter().map(|(name, value)| (*name, value.to_str().expect("a path that is text")));
        let variables: Vec<_> = texts.chain(more.iter().copied()).collect();
        Self { fleet: Fleet::start_nodes(nodes, &variables) }
    }

    fn admin(&self) -> Api {
        self.fleet.admin()
    }

    /// The administrator, asking this node.
    fn at(&self, node: usize) -> Api {
        self.admin().at(&self.fleet.nodes()[node].api)
    }

    fn user(&self) -> Api {
        self.fleet.user()
    }

    fn engines(&self) -> Vec<Engine> {
        engines::below(self.fleet.home.path())
    }
}

impl Drop for Park {
    fn drop(&mut self) {
        self.fleet.kill();
        engines::end_below(self.fleet.home.path());
    }
}

/// Nodes that are processes of their own and can run engines. They end with them.
struct Yard {
    mesh: Mesh,
    /// What lets a caller use all models.
    key: String,
}

impl Yard {
    /// Three nodes, all of them voters.
    fn new() -> Self {
        let machine = || {
            let mut machine = Machine::on_loopback();
            machine.variables = engines::variables();
            machine
        };
        let mesh = Mesh::of((0..3).map(|_| machine()).collect());
        let key = mesh.api(0).post("/api/credentials", &json!({"kind": "gateway", "label": "a test"})).expect(201);
        let key = key.body["key"].as_str().expect("a key").to_owned();
        let yard = Self { mesh, key };
        for node in 0..3 {
            let user = yard.user(node);
            wait_for(PATIENCE, "the key to be known", || (user.get("/v1/models").status == 200).then_some(()));
        }
        yard
    }

    fn api(&self, node: usize) -> Api {
        self.mesh.api(node)
    }

    /// Somebody who may use all models, asking this node.
    fn user(&self, node: usize) -> Api {
        self.api(node).with_key(&self.key)
    }

    fn home(&self, node: usize) -> &Path {
        self.mesh.machines[node].home.path()
    }

    /// The engines of a node.
    fn engines(&self, node: usize) -> Vec<Engine> {
        engines::below(self.home(node))
    }

    /// Starts a deployment on the node with this index, and waits until it runs.
    #[track_caller]
    fn running(&self, node: usize, changes: &Value) -> u64 {
        let changes = with(changes, &json!({"node_id": node + 1}));
        let id = start(&self.api(node), &changes);
        is(&self.api(node), id, "running");
        id
    }

    /// Waits until a model answers through every node that runs.
    #[track_caller]
    fn answers_everywhere(&self, model: &str) {
        for node in 0..self.mesh.machines.len() {
            if self.mesh.machines[node].node.is_some() {
                answers(&self.user(node), model);
            }
        }
    }
}

impl Drop for Yard {
    fn drop(&mut self) {
        for machine in &mut self.mesh.machines {
            machine.node = None;
        }
        for machine in &self.mesh.machines {
            engines::end_below(machine.home.path());
        }
    }
}

/// The object with these fields changed.
fn with(object: &Value, changes: &Value) -> Value {
    let (mut object, changes) = (object.clone(), changes.as_object().expect("an object"));
    for (field, value) in changes {
        object[field] = value.clone();
    }
    object
}

/// What is started where nothing else is said: the model `org/m` on the first GPU of the first node.
fn wanted(changes: &Value) -> Value {
    let plain = json!({
        "node_id": 1, "model_name": "org/m", "engine": "sim", "gpu_memory_fraction": 0.3, "gpu_ids": [0], "owner": "a test"
    });
    with(&plain, changes)
}

/// Asks for a deployment to be started.
fn ask(api: &Api, changes: &Value) -> Answer {
    api.post("/api/deployments/start", &wanted(changes))
}

/// Starts a deployment, and says which it is.
#[track_caller]
fn start(api: &Api, changes: &Value) -> u64 {
    ask(api, changes).expect(200).body["id"].as_u64().expect("a number")
}

/// Starts a deployment, and waits until it runs.
#[track_caller]
fn running(api: &Api, changes: &Value) -> u64 {
    let id = start(api, changes);
    is(api, id, "running");
    id
}

fn look(api: &Api, id: u64) -> Option<Value> {
    let answer = try_send(api.request("GET", &format!("/api/deployments/{id}"))).ok()?;
    (answer.status == 200).then_some(answer.body)
}

/// Waits until a deployment has this status, and returns it.
#[track_caller]
fn is(api: &Api, id: u64, status: &str) -> Value {
    let mut last = Value::Null;
    let caller = std::panic::Location::caller();
    wait_for(PATIENCE, &format!("deployment {id} to be {status}, for {caller}"), || {
        last = look(api, id)?;
        assert!(
            last["status"] == status || status == "error" || last["status"] != "error",
            "it has failed instead of being {status}, for {caller}: {last}"
        );
        (last["status"] == status).then_some(())
    });
    last
}

fn chat(model: &str) -> Value {
    json!({"model": model, "messages": [{"role": "user", "content": "hi"}]})
}

fn call(user: &Api, model: &str) -> Answer {
    user.post(CHAT, &chat(model))
}

/// Waits until a model answers.
#[track_caller]
fn answers(user: &Api, model: &str) {
    let caller = std::panic::Location::caller();
    wait_for(PATIENCE, &format!("{model} to answer, for {caller}"), || {
        let answer = try_send(user.request("POST", CHAT).json(&chat(model))).ok()?;
        (answer.status == 200).then_some(())
    });
}

/// Waits until an engine is gone.
#[track_caller]
fn gone(engine: &Engine) {
    wait_for(PATIENCE, "an engine to be gone", || (!engine.runs()).then_some(()));
}

/// The only engine of these.
#[track_caller]
fn only(engines: Vec<Engine>) -> Engine {
    assert_eq!(engines.len(), 1, "{engines:?}");
    engines.into_iter().next().expect("one")
}
