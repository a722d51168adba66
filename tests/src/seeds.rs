//! What `docs/seeds.md` is read with: tables of markdown, the tests that the workspace has, and the routes that the
//! description of the API names.

use std::collections::BTreeSet;
use std::io;
use std::path::{Path, PathBuf};

use serde_json::Value;

/// Who may own what is not there yet.
pub const OWNERS: [&str; 5] = ["mesh", "fleet", "gateway", "realms", "operators"];

/// One row of a table.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Row {
    /// The number of its line, counted from one.
    pub line: usize,
    /// Its cells, without escapes and the marks of code.
    pub cells: Vec<String>,
}

/// The rows of all tables whose first cells in the header are these, in order.
#[must_use]
pub fn rows(markdown: &str, header: &[&str]) -> Vec<Row> {
    let mut rows = Vec::new();
    let mut place = Place::Outside;
    for (number, line) in markdown.lines().enumerate() {
        let Some(cells) = cells(line) else {
            place = Place::Outside;
            continue;
        };
        place = match place {
            Place::Outside if cells == header => Place::Rule,
            Place::Outside | Place::Other => Place::Other,
            Place::Rule => Place::Body,
            Place::Body => {
                rows.push(Row { line: number + 1, cells });
                Place::Body
            }
        };
    }
    rows
}

enum Place {
    Outside,
    /// In a table with another header.
    Other,
    /// At the line between header and body.
    Rule,
    Body,
}

fn cells(line: &str) -> Option<Vec<String>> {
    let inner = line.trim_end().strip_prefix('|')?;
    let mut cells = vec![String::new()];
    let mut characters = inner.chars().peekable();
    while let Some(character) = characters.next() {
        match character {
            '\\' if characters.peek() == Some(&'|') => cells.last_mut()?.extend(characters.next()),
            '|' => cells.push(String::new()),
            '`' => {}
            other => cells.last_mut()?.push(other),
        }
    }
    // What stands behind the last pipe.
    cells.pop_if(|last| last.trim().is_empty());
    Some(cells.into_iter().map(|cell| cell.trim().to_owned()).collect())
}

/// What a row says of how it is shown.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Shown {
    /// By these tests.
    By(Vec<String>),
    /// Not yet; this work owns it.
    Later(String),
}

impl Shown {
    /// Reads the cell of a row.
    ///
    /// # Errors
    /// When it names neither a test nor one of the owners.
    pub fn read(cell: &str) -> Result<Self, String> {
        if let Some(owner) = cell.strip_prefix("later:").map(str::trim) {
            let known = OWNERS.contains(&owner);
            return if known { Ok(Self::Later(owner.to_owned())) } else { Err(format!("{owner:?} owns nothing")) };
        }
        let tests: Vec<_> = cell.split(',').map(|test| test.trim().to_owned()).collect();
        match tests.iter().find(|test| !test.contains("::")) {
            Some(other) => Err(format!("{other:?} is neither a test nor an owner")),
            None => Ok(Self::By(tests)),
        }
    }
}

/// The tests of the workspace that lies here, as `docs/seeds.md` names them: `group::name` for those of a group,
/// `unit: module::name` for those of a crate. Ignored ones and those of a group that is not declared are not among them.
///
/// # Errors
/// When a file can not be read.
pub fn tests(workspace: &Path) -> io::Result<BTreeSet<String>> {
    let mut found = BTreeSet::new();
    let mut crates = vec![workspace.to_owned()];
    crates.extend(entries(workspace)?.into_iter().filter(|path| path.join("Cargo.toml").is_file()));
    for sources in crates.iter().map(|path| path.join("src")).filter(|path| path.is_dir()) {
        for file in sources_below(&sources)? {
            let module = module(file.strip_prefix(&sources).unwrap_or(&file));
            for test in tests_in(&std::fs::read_to_string(&file)?) {
                let path = module.iter().cloned().chain(test.module).chain([test.name]).collect::<Vec<_>>();
                found.insert(format!("unit: {}", path.join("::")));
            }
        }
    }
    let suite = workspace.join("tests/suite");
    for group in groups(&std::fs::read_to_string(workspace.join("tests/Cargo.toml"))?) {
        let mut files = vec![suite.join(format!("{group}.rs"))];
        if suite.join(&group).is_dir() {
            files.extend(sources_below(&suite.join(&group))?);
        }
        for file in files.iter().filter(|file| file.is_file()) {
            found.extend(
                tests_in(&std::fs::read_to_string(file)?).into_iter().map(|test| format!("{group}::{}", test.name)),
            );
        }
    }
    Ok(found)
}

fn entries(directory: &Path) -> io::Result<Vec<PathBuf>> {
    std::fs::read_dir(directory)?.map(|entry| entry.map(|entry| entry.path())).collect()
}

fn sources_below(directory: &Path) -> io::Result<Vec<PathBuf>> {
    let mut files = Vec::new();
    for path in entries(directory)? {
        if path.is_dir() {
            files.extend(sources_below(&path)?);
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            files.push(path);
        }
    }
    Ok(files)
}

/// The module that a file of a crate is.
fn module(file: &Path) -> Vec<String> {
    let without = file.with_extension("");
    let mut parts: Vec<_> = without.iter().map(|part| part.to_string_lossy().into_owned()).collect();
    parts.pop_if(|last| matches!(last.as_str(), "mod" | "lib" | "main"));
    parts
}

/// The names of the test binaries in a manifest.
fn groups(manifest: &str) -> Vec<String> {
    let mut groups = Vec::new();
    let mut inside = false;
    for line in manifest.lines() {
        if line.starts_with('[') {
            inside = line == "[[test]]";
        } else if inside && let Some(name) = line.strip_prefix("name = \"").and_then(|rest| rest.strip_suffix('"')) {
            groups.push(name.to_owned());
        }
    }
    groups
}

struct Found {
    /// The module inside the file.
    module: Option<String>,
    name: String,
}

/// The functions behind an attribute that makes them tests. The text is one that rustfmt has formatted.
fn tests_in(source: &str) -> Vec<Found> {
    let mut found = Vec::new();
    let mut module = None;
    let mut attributes = Vec::new();
    for line in source.lines() {
        if let Some(name) = line.strip_prefix("mod ").and_then(|rest| rest.strip_suffix(" {")) {
            module = Some(name.to_owned());
        } else if line == "}" {
            module = None;
        }
        let line = line.trim();
        if line.starts_with("#[") {
            attributes.push(line);
        } else if let Some(name) = function(line) {
            let any =
                |starts: &[&str]| attributes.iter().any(|line| starts.iter().any(|start| line.starts_with(start)));
            if any(&["#[test]", "#[tokio::test"]) && !any(&["#[ignore"]) && !name.is_empty() {
                found.push(Found { module: module.clone(), name });
            }
            attributes.clear();
        } else if line == "}" {
            attributes.clear();
        }
    }
    found
}

fn function(line: &str) -> Option<String> {
    let line = line.strip_prefix("pub ").unwrap_or(line);
    let line = line.strip_prefix("async ").unwrap_or(line);
    let rest = line.strip_prefix("fn ")?;
    Some(rest.chars().take_while(|character| character.is_alphanumeric() || *character == '_').collect())
}

/// A route in the form in which routes are compared: the method, and the path with every parameter as `{}` and without a
/// slash at the end. A WebSocket begins as a GET.
#[must_use]
pub fn route(method: &str, path: &str) -> String {
    let is_parameter = |part: &str| part.starts_with(':') || (part.starts_with('{') && part.ends_with('}'));
    let parts = path.trim_end_matches('/').split('/');
    let path: Vec<_> = parts.map(|part| if is_parameter(part) { "{}" } else { part }).collect();
    let method = method.to_uppercase();
    format!("{} {}", if method == "WS" { "GET" } else { &method }, path.join("/"))
}

/// The routes of a description that have an answer that is a success: one that only says that it is not available yet is
/// not there.
#[must_use]
pub fn described(openapi: &Value) -> BTreeSet<String> {
    let mut routes = BTreeSet::new();
    for (path, operations) in openapi["paths"].as_object().into_iter().flatten() {
        for (method, operation) in operations.as_object().into_iter().flatten() {
            let mut answers = operation["responses"].as_object().into_iter().flatten().map(|(status, _)| status);
            if answers.any(|status| status.starts_with(['1', '2', '3'])) {
                routes.insert(route(method, path));
            }
        }
    }
    routes
}
