//! The command line against a node.

use std::path::Path;

use muster_tests::fleet::{Fleet, Home, Outcome, outcome, outcome_with_input};
use serde_json::{Value, json};

use super::model;

/// Runs a command on the socket of the node.
fn local(fleet: &Fleet, arguments: &[&str]) -> Outcome {
    outcome(fleet.home.command(arguments).arg("--data-dir").arg(fleet.node_data()))
}

fn json_of(fleet: &Fleet, arguments: &[&str]) -> Value {
    local(fleet, &[arguments, &["-o", "json"]].concat()).json()
}

/// The rows of a table, each as its cells, headings first.
#[track_caller]
fn table(outcome: &Outcome) -> Vec<Vec<&str>> {
    outcome.ended_with(0);
    let cells = |line| str::split(line, "  ").map(str::trim).filter(|cell| !cell.is_empty()).collect();
    outcome.stdout.lines().map(cells).collect()
}

#[test]
fn the_commands_show_what_the_api_says() {
    let fleet = Fleet::start();
    let admin = fleet.admin();
    let (shown, said) = (json_of(&fleet, &["nodes"]), admin.get("/api/nodes").expect(200).body);
    for field in ["id", "hostname", "status", "modIndex"] {
        assert_eq!(shown[0][field], said[0][field], "{field}");
    }
    let cluster = admin.get("/api/cluster").expect(200).body;
    assert_eq!(json_of(&fleet, &["status"])["fleetId"], cluster["fleetId"]);

    let nodes = local(&fleet, &["nodes"]);
    let rows = table(&nodes);
    assert_eq!(rows[0], ["ID", "NAME", "ROLE", "STATUS", "ADDRESS", "VERSION"]);
    assert_eq!(rows[1], ["1", "node-1", "leader", "online", fleet.address(), env!("CARGO_PKG_VERSION")]);
    let status = local(&fleet, &["status"]);
    let rows = table(&status);
    for row in [["fleet", cluster["fleetId"].as_str().expect("a fleet")], ["role", "leader"], ["voters", "node-1"]] {
        assert!(rows.contains(&row.to_vec()), "{row:?} in {status:?}");
    }
}

#[test]
fn models_are_added_shown_and_removed() {
    let fleet = Fleet::start();
    let admin = fleet.admin();
    let url = "http://127.0.0.1:11434/v1";
    let add = ["models", "add", "Llama 3 (local)/x", "--model-id", "llama3", "--base-url", url, "--description", "d"];
    let added = local(&fleet, &add);
    assert!(table(&added).contains(&vec!["name", "Llama 3 (local)/x"]), "{added:?}");
    assert!(added.stderr.contains("loopback"), "the warning is told: {added:?}");
    local(&fleet, &add).ended_with(1);
    let second = json_of(&fleet, &["models", "add", "gpt", "--provider", "openai", "--model-id", "gpt-4o"]);
    assert_eq!(second["provider"], "openai");

    assert_eq!(json_of(&fleet, &["models", "list"]), admin.get("/api/models").expect(200).body);
    let listed = local(&fleet, &["models", "list"]);
    let rows = table(&listed);
    assert_eq!(rows[0], ["NAME", "PROVIDER", "MODEL ID", "STATUS", "BASE URL", "ID"]);
    assert_eq!(rows[1][..5], ["gpt", "openai", "gpt-4o", "active", "-"]);
    assert_eq!(rows[2][..5], ["Llama 3 (local)/x", "openai-compatible", "llama3", "active", url]);
    for reference in ["Llama 3 (local)/x", rows[2][5]] {
        let shown = json_of(&fleet, &["models", "get", reference]);
        assert_eq!((&shown["description"], &shown["baseUrl"]), (&json!("d"), &json!(url)));
        assert!(table(&local(&fleet, &["models", "get", reference])).contains(&vec!["model id", "llama3"]));
    }
    let removed = local(&fleet, &["models", "rm", "Llama 3 (local)/x"]);
    removed.ended_with(0);
    assert!(removed.stdout.is_empty() && removed.stderr.contains("Llama 3 (local)/x"), "{removed:?}");
    assert_eq!(json_of(&fleet, &["models", "rm", "gpt"])["deleted"], true);
    assert_eq!(json_of(&fleet, &["models", "list"]), json!({"models": []}));
}

#[test]
fn credentials_are_made_listed_and_revoked() {
    let fleet = Fleet::start();
    let mut made = Vec::new();
    for role in ["admin", "operator", "viewer", "gateway"] {
        let answer = json_of(&fleet, &["credentials", "create", role, "--role", role, "--ttl", "3600"]);
        let key = answer["key"].as_str().expect("a key").to_owned();
        let kind = if role == "gateway" { ("gateway", Value::Null) } else { ("console", json!(role)) };
        assert_eq!((answer["credential"]["kind"].as_str(), &answer["credential"]["role"]), (Some(kind.0), &kind.1));
        made.push((answer["credential"]["id"].to_string(), key));
    }
    let (id, key) = &made[2];
    let person = fleet.anybody().with_key(key);
    let _ = person.get("/api/models").expect(200);
    let listed = local(&fleet, &["credentials", "list"]);
    let rows = table(&listed);
    assert_eq!(rows[0], ["ID", "LABEL", "KIND", "ROLE", "PREFIX", "EXPIRES"]);
    assert!(rows.iter().any(|row| row[..4] == [id, "viewer", "console", "viewer"]), "{listed:?}");
    let json = local(&fleet, &["credentials", "list", "-o", "json"]);
    for (_, key) in &made {
        assert!(!listed.stdout.contains(key) && !json.stdout.contains(key), "a key is shown once");
    }
    local(&fleet, &["credentials", "rm", id]).ended_with(0);
    person.get("/api/models").is_error(401, "UNAUTHORIZED");
    local(&fleet, &["credentials", "rm", id]).ended_with(3);
    let shown = local(&fleet, &["credentials", "create", "for a person", "--role", "viewer"]);
    assert!(table(&shown).iter().any(|row| row[0] == "key" && row[1].starts_with("sk-")), "{shown:?}");
    assert!(shown.stderr.contains("only now"), "{shown:?}");
}

#[test]
fn the_exit_code_tells_what_went_wrong() {
    let fleet = Fleet::start();
    let (endpoint, viewer) = (fleet.anybody().endpoint().to_owned(), fleet.credential("viewer").1);
    let at = |token: &str, arguments: &[&str]| {
        let connection = ["--endpoint", endpoint.as_str(), "--token", token];
        fleet.home.muster(&[arguments, &connection].concat())
    };
    let add = ["models", "add", "x", "--provider", "openai", "--model-id", "x"];
    for (outcome, code, says) in [
        (at(&fleet.admin_token, &["models", "list"]), 0, ""),
        (at(&viewer, &["models", "list"]), 0, ""),
        (at(&viewer, &["models", "add"]), 2, "Usage"),
        (at(&viewer, &["credentials", "create", "x", "--role", "root"]), 2, "root"),
        (at(&viewer, &["models", "get", "nobody"]), 3, "not found"),
        (at(&fleet.admin_token, &["models", "rm", "nobody"]), 3, "not found"),
        (at(&viewer, &add), 4, "admin"),
        (at("sk-wrong", &["status"]), 4, "credential"),
        (at(&fleet.admin_token, &["models", "add", " ", "--model-id", "x"]), 1, "name"),
        (fleet.home.muster(&["status", "--endpoint", &endpoint]), 4, "credential"),
        // Nobody listens on port 1, and no node has this directory.
        (fleet.home.muster(&["status", "--endpoint", "http://127.0.0.1:1"]), 1, "127.0.0.1:1 can not be reached"),
        (fleet.home.muster(&["status"]), 1, "can not be reached"),
    ] {
        outcome.ended_with(code);
        assert!(outcome.stderr.contains(says), "{says} in {outcome:?}");
    }
    assert_eq!(json_of(&fleet, &["models", "list"]), json!({"models": []}));
}

#[test]
fn the_environment_names_node_and_key_and_a_flag_wins() {
    let fleet = Fleet::start();
    let endpoint = fleet.anybody().endpoint().to_owned();
    let run = |endpoint: &str, token: &str, arguments: &[&str]| {
        let mut command = fleet.home.command([&["models", "list"], arguments].concat());
        outcome(command.env("MUSTER_ENDPOINT", endpoint).env("MUSTER_TOKEN", token))
    };
    let token = fleet.admin_token.as_str();
    run(&endpoint, token, &[]).ended_with(0);
    run(&format!("{endpoint}/"), token, &[]).ended_with(0);
    run(&endpoint, "sk-wrong", &[]).ended_with(4);
    run(&endpoint, "sk-wrong", &["--token", token]).ended_with(0);
    run("http://127.0.0.1:1", token, &["--endpoint", &endpoint]).ended_with(0);
    run("http://127.0.0.1:1", token, &[]).ended_with(1);
    let help = run(&endpoint, token, &["--help"]);
    assert!(help.stdout.contains("MUSTER_TOKEN") && !help.stdout.contains(token), "the help shows no key");
}

#[test]
fn a_providers_key_comes_from_a_file_or_from_standard_input_and_never_from_the_command_line() {
    let fleet = Fleet::start();
    let file = fleet.home.path().join("key");
    std::fs::write(&file, "  sk-CANARY-file\n").expect("a file");
    let add = |name: &str, key: &Path| {
        let mut command = fleet.home.command(["models", "add", name, "--provider", "openai", "--model-id", "x"]);
        command.arg("--api-key-file").arg(key).arg("--data-dir").arg(fleet.node_data());
        command
    };
    for added in [
        outcome(&mut add("from a file", &file)),
        outcome_with_input(&mut add("from standard input", Path::new("-")), "sk-CANARY-stdin\n"),
    ] {
        assert!(table(&added).contains(&vec!["has api key", "true"]), "{added:?}");
        assert!(!format!("{added:?}").contains("CANARY"), "{added:?}");
    }
    outcome_with_input(&mut add("empty", Path::new("-")), " \n").ended_with(2);
    outcome(&mut add("missing", Path::new("/nonexistent/key"))).ended_with(1);
    let on_the_line = ["models", "add", "x", "--model-id", "x", "--api-key", "sk-CANARY-line"];
    local(&fleet, &on_the_line).ended_with(2);
    let list = json_of(&fleet, &["models", "list"]);
    assert_eq!(super::names(&list), ["from standard input", "from a file"]);
}

/// Without a reader, or with one that has seen enough, nothing is wrong.
#[test]
fn a_reader_that_stops_early_is_no_failure() {
    let fleet = Fleet::start();
    for number in 0..30 {
        let _ = fleet.admin().post("/api/models", &model(&format!("model {number}"))).expect(201);
    }
    let mut command = fleet.home.command(["models", "list", "--data-dir"]);
    let mut child = command.arg(fleet.node_data()).stdout(std::process::Stdio::piped()).spawn().expect("starts");
    drop(child.stdout.take());
    assert_eq!(child.wait().expect("ends").code(), Some(0));
}

#[test]
fn a_command_without_a_node_says_what_to_do() {
    let home = Home::new();
    let alone = home.muster(&["models", "list"]);
    alone.ended_with(1);
    assert!(alone.stderr.contains("is it running?") && alone.stderr.lines().count() == 1, "{alone:?}");
}

#[test]
fn settings_are_imported_from_a_file_all_or_none() {
    let fleet = Fleet::start();
    let admin = fleet.admin();
    let settings = || admin.get("/api/settings").expect(200).body;
    let before = settings();
    let file = fleet.home.path().join("fleet.toml");
    let path = file.to_str().expect("a plain path");
    let import = |content: &str, more: &[&str]| {
        std::fs::write(&file, content).expect("a file");
        local(&fleet, &[&["config", "import", path], more].concat())
    };
    let content = "default_port = 9000\ngateway_timeout_seconds = 600\ntiming = \"far\"\n";
    let change = |setting: &str, after: Value| json!({"setting": setting, "before": before[setting], "after": after});
    let changed = json!([change("default_port", json!(9000)), change("timing", json!("far"))]);

    let checked = import(content, &["--check", "-o", "json"]);
    assert_eq!(checked.json(), changed);
    assert!(checked.stderr.contains("2 of 3 settings would change"), "{checked:?}");
    assert_eq!(settings(), before, "nothing has changed");

    for (content, said) in [
        ("default_port = 9000\n\ndefault_prot = 1\n", "line 3: there is no setting default_prot"),
        ("default_port = 9000\ntiming = \n", "line 2"),
        ("default_port = 9000\nexpiry_warning_minutes = 0\n", "expiry_warning_minutes"),
        ("# nothing\n", "names no setting"),
    ] {
        for more in [&[][..], &["--check"]] {
            let refused = import(content, more);
            assert!(refused.ended_with(1).stderr.contains(said), "{refused:?}");
        }
    }
    assert_eq!(settings(), before, "all or none");
    local(&fleet, &["config", "import", "/nowhere/fleet.toml"]).ended_with(3);

    let imported = import(content, &[]);
    let rows = table(&imported);
    assert_eq!(rows[0], ["SETTING", "BEFORE", "AFTER"]);
    assert_eq!(rows[1..], [vec!["default_port", "8001", "9000"], vec!["timing", "mesh", "far"]]);
    let after = settings();
    assert_eq!((&after["default_port"], &after["timing"]), (&json!(9000), &json!("far")));
    assert_eq!(import(content, &["-o", "json"]).json(), json!([]), "nothing more to change");
    // Whoever may not change settings is told so.
    let viewer = fleet.credential("viewer").1;
    let mut command = fleet.home.command(["config", "import", path, "--endpoint"]);
    let refused = outcome(command.arg(format!("http://{}", fleet.address())).args(["--token", &viewer]));
    refused.ended_with(4);
}

#[test]
fn a_fleet_that_starts_again_has_the_timing_that_was_set() {
    let mut fleet = Fleet::start();
    let _ = fleet.admin().put("/api/settings", &json!({"timing": "lan"})).expect(200);
    let cluster = |fleet: &Fleet| fleet.admin().get("/api/cluster").expect(200).body;
    assert_eq!(cluster(&fleet)["timings"]["setting"], "lan");
    assert_eq!(fleet.stop().code(), Some(0));
    fleet.restart();
    assert_eq!(cluster(&fleet)["timing"], "lan");
    assert_eq!(cluster(&fleet)["timings"]["suggested"], Value::Null, "there is nobody to measure");
}
