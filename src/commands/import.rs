//! `muster config import`: settings of the fleet from a file, in one change.

use std::collections::BTreeMap;
use std::path::Path;

use serde::Serialize;
use serde_json::{Map, Value};
use toml::Spanned;

use crate::cli::Output;
use crate::client::Client;
use crate::exit::Failure;
use crate::output::print;

/// The longest file, in bytes.
const LIMIT: u64 = 64 * 1024;

/// One setting that changes.
#[derive(Debug, PartialEq, Serialize)]
struct Change {
    setting: String,
    before: Value,
    after: Value,
}

/// Sets what the file names.
pub fn import(client: &Client, file: &Path, check: bool, output: Output) -> Result<(), Failure> {
    let wrong = |why: &dyn std::fmt::Display| Failure::other(format!("{}: {why}", file.display()));
    let length = std::fs::metadata(file).map_err(|error| match error.kind() {
        std::io::ErrorKind::NotFound => Failure::not_found(format!("there is no file {}", file.display())),
        _ => wrong(&error),
    })?;
    if length.len() > LIMIT {
        return Err(wrong(&format!("it is longer than {LIMIT} bytes")));
    }
    let text = std::fs::read_to_string(file).map_err(|error| wrong(&error))?;
    let before = client.get("/api/settings")?;
    let known = before.as_object().ok_or_else(|| Failure::other("the node's settings can not be read"))?;
    let given = read(&text, known).map_err(|why| wrong(&why))?;
    if given.is_empty() {
        return Err(wrong(&"it names no setting"));
    }
    let asked = Value::Object(given.clone());
    // The node checks every value, and would refuse them together.
    let after = client.put(if check { "/api/settings?dryRun=true" } else { "/api/settings" }, &asked)?;
    let changes = changes(&before, &after, &given);
    let (count, done) = (changes.len(), if check { "would change" } else { "changed" });
    print(output, &changes, ["SETTING", "BEFORE", "AFTER"], |changes| {
        changes.iter().map(|change| [change.setting.clone(), shown(&change.before), shown(&change.after)]).collect()
    })?;
    eprintln!("{count} of {} settings {done}", given.len());
    Ok(())
}

fn shown(value: &Value) -> String {
    value.as_str().map_or_else(|| value.to_string(), ToOwned::to_owned)
}

fn changes(before: &Value, after: &Value, given: &Map<String, Value>) -> Vec<Change> {
    let of = |document: &Value, setting: &str| document.get(setting).cloned().unwrap_or(Value::Null);
    let all = given.keys().map(|setting| Change {
        setting: setting.clone(),
        before: of(before, setting),
        after: of(after, setting),
    });
    all.filter(|change| change.before != change.after).collect()
}

/// The settings of a file, as a request has them.
///
/// # Errors
/// What is wrong, and in which line.
fn read(text: &str, known: &Map<String, Value>) -> Result<Map<String, Value>, String> {
    let line = |at: usize| text.get(..at).map_or(1, |before| before.matches('\n').count() + 1);
    let at = |error: &toml::de::Error| error.span().map_or(1, |span| line(span.start));
    let file: BTreeMap<Spanned<String>, Spanned<toml::Value>> =
        toml::from_str(text).map_err(|error| format!("line {}: {}", at(&error), error.message()))?;
    let mut settings = Map::new();
    for (key, value) in file {
        let line = line(key.span().start);
        let key = key.into_inner();
        if !known.contains_key(&key) {
            let names: Vec<_> = known.keys().map(String::as_str).collect();
            return Err(format!("line {line}: there is no setting {key}; the settings are {}", names.join(", ")));
        }
        let value = serde_json::to_value(value.into_inner()).map_err(|error| format!("line {line}: {error}"))?;
        settings.insert(key, value);
    }
    Ok(settings)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn known() -> Map<String, Value> {
        json!({"default_port": 8001, "timing": "mesh", "gateway_enabled": true})
            .as_object()
            .cloned()
            .expect("an object")
    }

    #[test]
    fn a_file_is_read_as_a_request_would_have_it() {
        let text = "# settings\ndefault_port = 9000\ngateway_enabled = false\n\ntiming = \"lan\"\n";
        let expected = json!({"default_port": 9000, "gateway_enabled": false, "timing": "lan"});
        assert_eq!(Value::Object(read(text, &known()).expect("is read")), expected);
    }

    #[test]
    fn what_is_wrong_is_said_with_its_line() {
        for (text, line, said) in [
            ("default_port = 9000\n\ndefault_prot = 1\n", 3, "there is no setting default_prot; the settings are"),
            ("default_port = 1\ndefault_port = 2\n", 2, "duplicate key"),
            ("default_port = \n", 1, "line 1"),
            ("default_port = 1\n[gateway]\nx = 1\n", 2, "there is no setting gateway"),
        ] {
            let why = read(text, &known()).expect_err(text);
            assert!(why.starts_with(&format!("line {line}: ")) && why.contains(said), "{why}");
        }
    }

    #[test]
    fn only_what_changes_is_told_of() {
        let after = json!({"default_port": 8001, "timing": "lan", "gateway_enabled": true});
        let given = json!({"default_port": 8001, "timing": "lan"}).as_object().cloned().expect("an object");
        let change = Change { setting: "timing".to_owned(), before: json!("mesh"), after: json!("lan") };
        assert_eq!(changes(&Value::Object(known()), &after, &given), [change]);
    }
}
