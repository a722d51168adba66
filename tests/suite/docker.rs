//! Deployments that really run in containers: nodes are processes that start engines in a Docker Engine of the tests' own, from
//! an image of the simulator that is named as vLLM's. The ids in front of a test are the rows of the requirements that it shows.

#[path = "docker/daemon.rs"]
mod daemon;
#[path = "docker/failures.rs"]
mod failures;
#[path = "docker/hygiene.rs"]
mod hygiene;
#[path = "docker/lifecycle.rs"]
mod lifecycle;
#[path = "docker/survival.rs"]
mod survival;

use muster_tests::api::Api;
use muster_tests::containers::{Container, DOCKER, Daemon};
use muster_tests::fleet::{Fleet, PATIENCE};
use muster_tests::groups::Need;
use muster_tests::process::wait_for;
use serde_json::{Value, json};

/// The repository of images that all tests use.
const SHARED: &str = "vllm/vllm-openai";

/// The version whose image is built where it is needed, so that no registry is asked.
const VERSION: &str = "0.11.0";

/// A fleet in one process whose nodes run engines in Docker. What it has made there goes with it.
struct Yard {
    fleet: Fleet,
    daemon: Daemon,
    id: String,
    /// The image that is this test's alone.
    image: Option<String>,
}

impl Yard {
    /// One node on the Docker that all tests share; nothing if there is none.
    fn new() -> Option<Self> {
        Need::Docker.is_met("docker").then(|| Self::on(Daemon::named_by(DOCKER), 1, &[]))
    }

    /// So many nodes on this daemon.
    fn on(daemon: Daemon, nodes: usize, more: &[(&'static str, &str)]) -> Self {
        let repository = repository(more);
        let image = format!("{repository}:v{VERSION}");
        daemon.make_image(&image, repository);
        let socket = daemon.socket().to_owned();
        // What is given more than once is taken as it was given last.
        let variables: Vec<_> = [("MUSTER_DOCKER", socket.as_str())].into_iter().chain(more.iter().copied()).collect();
        let fleet = Fleet::start_nodes(nodes, &variables);
        let id = fleet.admin().get("/api/cluster").expect(200).body["fleetId"].as_str().expect("an id").to_owned();
        let image = Some(image).filter(|_| repository != SHARED);
        Self { fleet, daemon, id, image }
    }

    fn admin(&self) -> Api {
        self.fleet.admin()
    }

    /// The administrator, asking this node.
    fn at(&self, node: usize) -> Api {
        self.admin().at(&self.fleet.nodes()[node].api)
    }

    fn containers(&self) -> Vec<Container> {
        self.daemon.containers(&self.id)
    }

    /// The only container of the fleet.
    #[track_caller]
    fn container(&self) -> Container {
        let mut containers = self.containers();
        assert_eq!(containers.len(), 1, "{containers:?}");
        containers.remove(0)
    }
}

impl Drop for Yard {
    fn drop(&mut self) {
        self.fleet.kill();
        self.daemon.clean(&self.id);
        if let Some(image) = &self.image {
            self.daemon.forget_image(image);
        }
    }
}

/// The repository of vLLM's images that these variables name.
fn repository<'a>(variables: &[(&'static str, &'a str)]) -> &'a str {
    let named = variables.iter().rev().find(|(name, _)| *name == "MUSTER_VLLM_IMAGE");
    named.map_or(SHARED, |(_, repository)| repository)
}

/// What a deployment of vLLM on this node is started with.
fn order(node: u64, changes: &Value) -> Value {
    let mut order = json!({
        "node_id": node, "model_name": "org/m", "gpu_memory_fraction": 0.5, "owner": "a test",
        "engine": "vllm", "vllm_version": VERSION,
    });
    for (field, value) in changes.as_object().expect("an object") {
        order[field] = value.clone();
    }
    order
}

/// Starts a deployment and returns its number.
#[track_caller]
fn start(api: &Api, changes: &Value) -> u64 {
    let started = api.post("/api/deployments/start", &order(1, changes)).expect(200).body;
    assert_eq!(started["container_runtime"], "docker", "{started}");
    started["id"].as_u64().expect("a number")
}

/// Waits until a deployment has this status, and returns it.
#[track_caller]
fn is(api: &Api, id: u64, status: &str) -> Value {
    wait_for(PATIENCE, status, || {
        let answer = api.get(&format!("/api/deployments/{id}"));
        (answer.status == 200 && answer.body["status"] == status).then_some(answer.body)
    })
}

/// Starts a deployment, waits until it runs, and returns its number.
#[track_caller]
fn running(api: &Api, changes: &Value) -> u64 {
    let id = start(api, changes);
    is(api, id, "running");
    id
}

/// Waits until the model answers.
#[track_caller]
fn answers(user: &Api, model: &str) {
    let chat = json!({"model": model, "messages": [{"role": "user", "content": "hello"}]});
    let answer = wait_for(PATIENCE, "an answer of the model", || {
        let answer = user.post("/v1/chat/completions", &chat);
        (answer.status == 200).then_some(answer)
    });
    assert_eq!(answer.body["choices"][0]["message"]["role"], "assistant", "{answer}");
}
