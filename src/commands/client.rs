//! The commands that ask a node.

use std::io::Read;
use std::path::Path;

use serde_json::{Map, Value, json};

use crate::cli::{AddModel, CredentialsCommand, KeyRole, ModelsCommand, Output, RaftCommand, TokenCommand};
use crate::client::{Client, segment};
use crate::exit::Failure;
use crate::output::{print, print_once};

/// The longest key that is read from a file, in bytes.
const KEY_LIMIT: u64 = 16 * 1024;

fn cell(value: &Value, field: &str) -> String {
    match value.pointer(field) {
        Some(Value::String(text)) => text.clone(),
        None | Some(Value::Null) => "-".to_owned(),
        Some(other) => other.to_string(),
    }
}

fn items<'a>(value: &'a Value, field: &str) -> &'a [Value] {
    value.pointer(field).and_then(Value::as_array).map_or(&[], Vec::as_slice)
}

/// Fields of an object, one in a row.
fn sheet<const N: usize>(output: Output, document: &Value, fields: [(&str, &str); N]) -> Result<(), Failure> {
    print(output, document, ["FIELD", "VALUE"], |document| rows(document, fields))
}

fn rows<const N: usize>(document: &Value, fields: [(&str, &str); N]) -> Vec<[String; 2]> {
    fields.iter().map(|(label, field)| [(*label).to_owned(), cell(document, field)]).collect()
}

/// `muster status`
pub fn status(client: &Client, output: Output) -> Result<(), Failure> {
    let mut cluster = client.get("/api/cluster")?;
    let names = |list: &Value| items(list, "").iter().map(|node| cell(node, "/name")).collect::<Vec<_>>().join(", ");
    let (voters, standbys) = (names(&cluster["voters"]), names(&cluster["standbys"]));
    if output == Output::Table {
        cluster["voters"] = voters.into();
        cluster["standbys"] = standbys.into();
    }
    let fields = [
        ("fleet", "/fleetId"),
        ("node", "/node/name"),
        ("role", "/role"),
        ("leader", "/leader/name"),
        ("term", "/term"),
        ("voters", "/voters"),
        ("standbys", "/standbys"),
        ("applied index", "/appliedIndex"),
        ("committed index", "/committedIndex"),
        ("state hash", "/stateHash"),
        ("log time", "/clocks/logTime"),
        ("clocks", "/clocks/agreement"),
        ("timing", "/timing"),
        ("timing set", "/timings/setting"),
        ("timing suggested", "/timings/suggested"),
        ("round trip p50 ms", "/timings/roundTripMs"),
        ("round trip p99 ms", "/timings/roundTripP99Ms"),
        ("version", "/versions/version"),
        ("feature level", "/versions/featureLevel"),
    ];
    sheet(output, &cluster, fields)
}

/// `muster nodes`
pub fn nodes(client: &Client, output: Output) -> Result<(), Failure> {
    let nodes = client.get("/api/nodes")?;
    print(output, &nodes, ["ID", "NAME", "ROLE", "STATUS", "ADDRESS", "VERSION"], |nodes| {
        let row = |node: &Value| {
            let address = format!("{}:{}", cell(node, "/ip_address"), cell(node, "/port"));
            let field = |name| cell(node, name);
            [field("/id"), field("/name"), field("/role"), field("/status"), address, field("/version")]
        };
        items(nodes, "").iter().map(row).collect()
    })
}

/// `muster operator raft`
pub fn raft(client: &Client, command: &RaftCommand, output: Output) -> Result<(), Failure> {
    match command {
        RaftCommand::ListPeers => {
            let nodes = client.get("/api/nodes")?;
            print(output, &nodes, ["ID", "NAME", "ROLE", "STATUS"], |nodes| {
                let row = |node: &Value| ["/id", "/name", "/role", "/status"].map(|field| cell(node, field));
                items(nodes, "").iter().map(row).collect()
            })
        }
        RaftCommand::RemovePeer { node } => {
            let id = find_node(client, node)?;
            let answer = client.post(&format!("/api/nodes/{id}/evict"), &json!({}))?;
            sheet(output, &answer, [("removed", "/evicted")])
        }
        RaftCommand::TransferLeader { node } => {
            let node = node.as_deref().map(|node| find_node(client, node)).transpose()?;
            let answer = client.post("/api/cluster/transfer-leader", &json!({ "nodeId": node }))?;
            sheet(output, &answer, [("leader", "/leader/name")])
        }
        RaftCommand::AddVoter { node } => {
            let id = find_node(client, node)?;
            let answer = client.post(&format!("/api/nodes/{id}/prefer-voter"), &json!({}))?;
            sheet(output, &answer, [("shall vote", "/preferred")])
        }
    }
}

/// The number of a node that is named by number or by name.
fn find_node(client: &Client, node: &str) -> Result<u64, Failure> {
    let nodes = client.get("/api/nodes")?;
    let is_meant = |found: &&Value| cell(found, "/id") == node || cell(found, "/name") == node;
    let found = items(&nodes, "").iter().find(is_meant).and_then(|found| found["id"].as_u64());
    found.ok_or_else(|| Failure::not_found(format!("there is no node {node}")))
}

/// `muster models`
pub fn models(client: &Client, command: &ModelsCommand, output: Output) -> Result<(), Failure> {
    let path = |model: &str| format!("/api/models/{}", segment(model));
    match command {
        ModelsCommand::List => {
            let list = client.get("/api/models")?;
            print(output, &list, ["NAME", "PROVIDER", "MODEL ID", "STATUS", "BASE URL", "ID"], |list| {
                let row = |model: &Value| {
                    ["/name", "/provider", "/modelId", "/status", "/baseUrl", "/id"].map(|field| cell(model, field))
                };
                items(list, "/models").iter().map(row).collect()
            })
        }
        ModelsCommand::Get { model } => show_model(output, &client.get(&path(model))?),
        ModelsCommand::Add(model) => {
            let answer = client.post("/api/models", &new_model(model)?)?;
            for warning in items(&answer, "/warnings") {
                eprintln!("warning: {}", warning.as_str().unwrap_or_default());
            }
            show_model(output, &answer)
        }
        ModelsCommand::Rm { model } => {
            let answer = client.delete(&path(model))?;
            eprintln!("removed {}", cell(&answer, "/name"));
            if output == Output::Json { print(output, &answer, [""; 0], |_| Vec::new()) } else { Ok(()) }
        }
    }
}

fn show_model(output: Output, model: &Value) -> Result<(), Failure> {
    let fields = [
        ("id", "/id"),
        ("name", "/name"),
        ("provider", "/provider"),
        ("model id", "/modelId"),
        ("base url", "/baseUrl"),
        ("status", "/status"),
        ("description", "/description"),
        ("litellm name", "/litellmModelName"),
        ("has api key", "/hasApiKey"),
        ("created", "/createdAt"),
    ];
    sheet(output, model, fields)
}

fn new_model(model: &AddModel) -> Result<Value, Failure> {
    let mut body = Map::new();
    let mut set = |field: &str, value: Option<String>| {
        if let Some(value) = value {
            body.insert(field.to_owned(), value.into());
        }
    };
    set("name", Some(model.name.clone()));
    set("provider", Some(model.provider.clone()));
    set("modelId", Some(model.model_id.clone()));
    set("baseUrl", model.base_url.clone());
    set("description", model.description.clone());
    set("apiKey", model.api_key_file.as_deref().map(read_key).transpose()?);
    Ok(Value::Object(body))
}

/// A key out of a file, so that it stands neither in the shell's history nor in the list of processes.
fn read_key(file: &Path) -> Result<String, Failure> {
    let mut text = String::new();
    let read = if file == Path::new("-") {
        std::io::stdin().lock().take(KEY_LIMIT).read_to_string(&mut text)
    } else {
        std::fs::File::open(file).and_then(|opened| opened.take(KEY_LIMIT).read_to_string(&mut text))
    };
    read.map_err(|error| Failure::other(format!("{} can not be read: {error}", file.display())))?;
    let key = text.trim();
    if key.is_empty() {
        return Err(Failure::usage(format!("{} holds no key", file.display())));
    }
    Ok(key.to_owned())
}

/// `muster credentials`
pub fn credentials(client: &Client, command: &CredentialsCommand, output: Output) -> Result<(), Failure> {
    match command {
        CredentialsCommand::List => {
            let list = client.get("/api/credentials")?;
            print(output, &list, ["ID", "LABEL", "KIND", "ROLE", "PREFIX", "EXPIRES"], |list| {
                let row = |item: &Value| {
                    ["/id", "/label", "/kind", "/role", "/prefix", "/expiresAt"].map(|field| cell(item, field))
                };
                items(list, "/credentials").iter().map(row).collect()
            })
        }
        CredentialsCommand::Create { label, role, ttl } => {
            let mut body = json!({ "label": label });
            match role {
                KeyRole::Gateway => body["kind"] = "gateway".into(),
                KeyRole::Admin => body["role"] = "admin".into(),
                KeyRole::Operator => body["role"] = "operator".into(),
                KeyRole::Viewer => body["role"] = "viewer".into(),
            }
            if *role != KeyRole::Gateway {
                body["kind"] = "console".into();
            }
            if let Some(ttl) = ttl {
                body["ttlSeconds"] = (*ttl).into();
            }
            let answer = client.post("/api/credentials", &body)?;
            eprintln!("The key is shown only now.");
            let fields = [("id", "/credential/id"), ("key", "/key"), ("expires", "/credential/expiresAt")];
            print_once(output, &answer, ["FIELD", "VALUE"], |answer| rows(answer, fields))
        }
        CredentialsCommand::Rm { id } => {
            client.delete(&format!("/api/credentials/{id}"))?;
            eprintln!("revoked {id}");
            Ok(())
        }
    }
}

/// `muster token`
pub fn token(client: &Client, command: &TokenCommand, output: Output) -> Result<(), Failure> {
    let TokenCommand::Create { ttl, uses } = command;
    let mut body = json!({ "kind": "join", "label": "join token" });
    if let Some(ttl) = ttl {
        body["ttlSeconds"] = (*ttl).into();
    }
    if let Some(uses) = uses {
        body["uses"] = (*uses).into();
    }
    let answer = client.post("/api/credentials", &body)?;
    let (id, expires) = (&answer["credential"]["id"], &answer["credential"]["expiresAt"]);
    let token = json!({ "token": answer["key"], "id": id, "expiresAt": expires });
    eprintln!("The token is shown only now. On the machine that is to join:");
    eprintln!("  muster serve --join THIS-MACHINE:7946 --join-token-file FILE");
    sheet(output, &token, [("token", "/token"), ("id", "/id"), ("expires", "/expiresAt")])
}
