//! The models API through a leader, a follower and a standby: nobody can tell from an answer which of them gave it.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;

use muster_tests::api::{Answer, Api, send};
use muster_tests::fleet::PATIENCE;
use muster_tests::mesh::{Machine, Mesh};
use muster_tests::process::wait_for;
use serde_json::{Map, Value, json};

use super::model;

/// What an answer has of the moment and not of what was asked for. `x-muster-*` say how new this node's state is.
const OF_THE_MOMENT: [&str; 5] = ["date", "x-request-id", "x-muster-applied-index", "x-muster-state-age-ms", "link"];

/// Who asks one node.
struct Callers {
    admin: Api,
    viewer: Api,
    anybody: Api,
}

impl Callers {
    fn of(mesh: &Mesh, node: usize, viewer: &str) -> Self {
        let admin = mesh.api(node);
        Self { viewer: admin.with_key(viewer), anybody: Api::new(admin.endpoint()), admin }
    }
}

/// The headers that must be the same, and the names of the others.
fn headers(answer: &Answer) -> BTreeMap<String, String> {
    let of_the_moment = |name: &str| OF_THE_MOMENT.contains(&name);
    let named = answer.headers.keys().map(|name| {
        let value = if of_the_moment(name.as_str()) { "" } else { answer.header(name.as_str()) };
        (name.as_str().to_owned(), value.to_owned())
    });
    named.collect()
}

/// An error names the request that it answers, as its header does.
fn without_request(answer: &Answer) -> Value {
    let mut body = answer.body.clone();
    assert!(!answer.header("x-request-id").is_empty(), "{answer}");
    if let Some(fields) = body.as_object_mut()
        && let Some(request) = fields.remove("requestId")
    {
        assert_eq!(request, answer.header("x-request-id"), "{answer}");
    }
    body
}

/// Gives everything that is new with each model the number of its first appearance: ids, versions and times.
#[derive(Default)]
struct Names(Vec<Value>);

impl Names {
    fn of(&mut self, value: &Value) -> Value {
        let at = self.0.iter().position(|known| known == value).unwrap_or_else(|| {
            self.0.push(value.clone());
            self.0.len() - 1
        });
        json!(format!("#{at}"))
    }

    fn replace(&mut self, value: &Value) -> Value {
        match value {
            Value::Array(items) => items.iter().map(|item| self.replace(item)).collect(),
            Value::Object(fields) => {
                let replaced = fields.iter().map(|(name, value)| {
                    let new = matches!(name.as_str(), "id" | "modIndex" | "createdIndex") && !value.is_null();
                    let time = matches!(name.as_str(), "createdAt" | "updatedAt");
                    let value = match value {
                        value if new => self.of(value),
                        Value::String(text) if time && text.ends_with('Z') => json!("a time"),
                        // It quotes the version that is there.
                        Value::String(text) if name == "detail" => json!(self.quoted(text)),
                        value => self.replace(value),
                    };
                    (name.clone(), value)
                });
                Value::Object(replaced.collect::<Map<_, _>>())
            }
            other => other.clone(),
        }
    }

    fn quoted(&mut self, text: &str) -> String {
        let parts = text.split('"').map(|part| match part.parse::<u64>() {
            Ok(version) => self.of(&json!(version)).as_str().unwrap_or_default().to_owned(),
            Err(_) => part.to_owned(),
        });
        parts.collect::<Vec<_>>().join("\"")
    }

    /// All that a caller sees of an answer, in a form that is the same for the same request elsewhere.
    fn transcript(&mut self, answer: &Answer) -> String {
        let body = without_request(answer);
        let mut text = format!("{} {}", answer.status, self.replace(&body));
        for (name, value) in headers(answer) {
            let value = match (name.as_str(), value.trim_matches('"').parse::<u64>()) {
                // The version in the body, or none.
                ("etag", Ok(version)) => self.of(&json!(version)).to_string(),
                // Versions may have more digits elsewhere.
                ("content-length", _) => String::new(),
                _ => value,
            };
            let _ = write!(text, "\n    {name}: {value}");
        }
        text
    }
}

/// Uses every endpoint as it is meant to be used and as it is not, and leaves nothing behind. Returns what was seen.
fn used(callers: &Callers, turn: usize) -> Vec<String> {
    let (Callers { admin, viewer, anybody }, mut names, mut seen) = (callers, Names::default(), Vec::new());
    let mut see = |what: &str, answer: &Answer| seen.push(format!("{what}: {}", names.transcript(answer)));
    let raw = |method: &str, path: &str, body: &'static str| {
        send(admin.request(method, path).header("content-type", "application/json").body(body))
    };
    let tagged = |method: &str, path: &str, tag: &str, body: &Value| {
        send(admin.request(method, path).header("if-match", tag).json(body))
    };
    let (list, wish) = ("/api/models", model("In every role"));

    let created = admin.post(list, &wish);
    see("create", &created);
    let id = format!("{list}/{}", created.body["id"].as_str().expect("an id"));
    let name = format!("{list}/In%20every%20role");
    let first = created.header("etag").to_owned();
    see("create what is there", &admin.post(list, &wish));
    see("create by another spelling, with a slash", &admin.post("/api/models/", &model("IN EVERY ROLE")));
    see("create without a body", &raw("POST", list, ""));
    see("create with half a body", &raw("POST", list, "{\"name\": "));
    see("create with a list", &raw("POST", list, "[]"));
    see("create without fields", &admin.post(list, &json!({})));
    see("create with wrong types", &admin.post(list, &json!({"name": 7, "provider": [], "modelId": {}})));
    let mut unknown = model("Unknown node");
    unknown["nodeId"] = json!(99);
    see("create on no node", &admin.post(list, &unknown));
    let long_key = "k".repeat(300);
    see("create with a wrong key", &admin.post_once(list, &model("Other"), &long_key));
    see("create as a viewer", &viewer.post(list, &model("Other")));
    see("create as nobody", &anybody.post(list, &model("Other")));

    let mut local = model("At home");
    local["baseUrl"] = json!("http://127.0.0.1:9/v1");
    let key = format!("turn {turn}");
    see("create with a warning", &admin.post_once(list, &local, &key));
    see("the same again", &admin.post_once(list, &local, &key));
    see("another with its key", &admin.post_once(list, &model("Other"), &key));
    see("list", &admin.get(list));
    see("list with a slash", &admin.get("/api/models/"));
    see("list as a viewer", &viewer.get(list));
    see("a page", &admin.get("/api/models?limit=1"));
    let home = format!("{list}/At%20home/");
    see("delete by name, with a slash", &admin.delete(&home));
    see("what is gone", &admin.get(&home));

    for path in [&id, &name, &format!("{id}/"), &format!("{name}/")] {
        see("get", &admin.get(path));
    }
    for method in ["PUT", "PATCH"] {
        let change = |path: &str, body: &Value| send(admin.request(method, path).json(body));
        see("change by id", &change(&id, &json!({"description": method})));
        see("change by name, with a slash", &change(&format!("{name}/"), &json!({"priority": 3})));
        let now = admin.get(&id);
        see("changed", &now);
        see("change an older version", &tagged(method, &id, &first, &json!({"description": "no"})));
        see("change no version", &tagged(method, &id, "\"other\"", &json!({"description": "no"})));
        see("change this version", &tagged(method, &id, now.header("etag"), &json!({"apiKey": "key-of-a-test"})));
        see("change to nonsense", &change(&id, &json!({"baseUrl": "nowhere", "status": 1})));
        see("change the node", &change(&id, &json!({"nodeId": 99})));
        see("change with half a body", &raw(method, &id, "{"));
        see("change what is not there", &change("/api/models/nope", &json!({"description": "no"})));
        see("change as a viewer", &send(viewer.request(method, &id).json(&json!({"description": "no"}))));
        see("change as nobody", &send(anybody.request(method, &id).json(&json!({"description": "no"}))));
    }
    see("grant", &admin.post(&format!("{id}/realms"), &json!({"realmId": "r"})));
    see("revoke", &admin.delete(&format!("{id}/realms/r")));
    see("a method that is not there", &admin.put(list, &json!({})));
    see("delete an older version", &tagged("DELETE", &id, &first, &Value::Null));
    see("delete as a viewer", &viewer.delete(&id));
    see("delete as nobody", &anybody.delete(&id));
    see("delete", &admin.delete(&id));
    see("delete again", &admin.delete(&id));
    see("list in the end", &admin.get(list));
    seen
}

/// What was read: the answer as it came, but for what is of the moment.
fn read(api: &Api, path: &str) -> (u16, BTreeMap<String, String>, Value, String) {
    let answer = api.get(path);
    let text = if answer.status == 200 { answer.text.clone() } else { String::new() };
    (answer.status, headers(&answer), without_request(&answer), answer.header("link").to_owned() + &text)
}

/// A-096
#[test]
fn every_models_endpoint_answers_the_same_through_a_leader_a_follower_and_a_standby() {
    let mesh = Mesh::of((0..4).map(|_| Machine::on_loopback()).collect());
    let roles: Vec<_> = wait_for(PATIENCE, "a leader, two others that vote and a standby", || {
        let role = |node| Some(mesh.cluster(node)?["role"].as_str()?.to_owned());
        let roles: Vec<_> = (0..4).map(role).collect::<Option<_>>()?;
        let count = |wanted: &str| roles.iter().filter(|role| *role == wanted).count();
        (count("leader") == 1 && count("standby") == 1).then_some(roles)
    });
    assert_eq!(roles.iter().collect::<BTreeSet<_>>().len(), 3, "{roles:?}");
    let body = json!({"kind": "console", "label": "reader", "role": "viewer"});
    let viewer = mesh.api(0).post("/api/credentials", &body).expect(201).body["key"].as_str().map(ToOwned::to_owned);
    let viewer = viewer.expect("a key");
    // Every node knows the key.
    assert_eq!(mesh.hashes().len(), 1);
    let callers: Vec<_> = (0..4).map(|node| Callers::of(&mesh, node, &viewer)).collect();

    let seen: Vec<_> = callers.iter().enumerate().map(|(node, callers)| used(callers, node)).collect();
    let statuses: BTreeSet<_> =
        seen[0].iter().filter_map(|text| text.split(": ").nth(1)?.split(' ').next()?.parse::<u16>().ok()).collect();
    println!("{} answers through each of {roles:?}: {statuses:?}", seen[0].len());
    for status in [200, 201, 400, 401, 403, 404, 405, 409, 412, 422, 501] {
        assert!(statuses.contains(&status), "no answer has status {status}: {statuses:?}");
    }
    for (node, other) in seen.iter().enumerate() {
        for (here, there) in seen[0].iter().zip(other) {
            assert_eq!(here, there, "through the {} and the {}", roles[0], roles[node]);
        }
    }

    // What is there is read in the same words everywhere, whoever has written it.
    let made: Vec<_> = callers
        .iter()
        .enumerate()
        .map(|(node, callers)| callers.admin.post("/api/models", &model(&format!("Model {node}"))).expect(201))
        .collect();
    let mut paths: Vec<_> = ["", "/", "?limit=2", "?limit=0", "?after=x", "?consistency=other", "/nope"]
        .iter()
        .map(|rest| format!("/api/models{rest}"))
        .collect();
    paths.extend(made.iter().map(|made| format!("/api/models/{}", made.body["id"].as_str().expect("an id"))));
    paths.extend((0..4).map(|node| format!("/api/models/Model%20{node}/")));
    for path in &paths {
        let here = read(&callers[0].admin, path);
        for (callers, role) in callers.iter().zip(&roles) {
            assert_eq!(here, read(&callers.admin, path), "{path} through the {} and the {role}", roles[0]);
            assert_eq!(here, read(&callers.viewer, path), "{path} through the {role}, as a viewer");
        }
    }
    // Each from its own state, once all have the same.
    assert_eq!(mesh.hashes().len(), 1);
    for path in paths.iter().filter(|path| !path.contains("consistency")) {
        let local = format!("{path}{}consistency=local", if path.contains('?') { '&' } else { '?' });
        let here = read(&callers[0].admin, &local);
        for (callers, role) in callers.iter().zip(&roles) {
            assert_eq!(here, read(&callers.admin, &local), "{local} through the {} and the {role}", roles[0]);
        }
    }
    // A repetition is recognised wherever it is sent.
    let body = model("Once");
    let first = callers[0].admin.post_once("/api/models", &body, "everywhere").expect(201);
    for (callers, role) in callers.iter().zip(&roles) {
        let again = callers.admin.post_once("/api/models", &body, "everywhere").expect(201);
        assert_eq!((first.body == again.body, headers(&first) == headers(&again)), (true, true), "{role}: {again}");
    }
}
