//! `docs/seeds.md` is complete and true: every requirement of the seeds is in it once, what it calls shown has a test, and
//! what it calls served is served.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::PathBuf;

use muster_tests::seeds::{Row, Shown, described, route, rows, tests};

/// How many requirements each seed has. They are numbered from one, without a gap.
const REQUIREMENTS: [(char, usize); 5] = [('A', 98), ('B', 43), ('C', 127), ('D', 48), ('E', 280)];

/// How many routes the seeds name.
const ROUTES: usize = 92;

fn read(path: &str) -> String {
    let path = workspace().join(path);
    fs::read_to_string(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

fn workspace() -> PathBuf {
    PathBuf::from(concat!(env!("CARGO_MANIFEST_DIR"), "/.."))
}

fn requirements() -> Vec<Row> {
    rows(&read("docs/seeds.md"), &["id", "requirement", "shown by"])
}

/// Fails with all of what is wrong, one in a line.
fn none(wrong: &[String]) {
    assert!(wrong.is_empty(), "docs/seeds.md:\n{}", wrong.join("\n"));
}

fn at(row: &Row, what: &str) -> String {
    format!("line {}, {}: {what}", row.line, row.cells.join(" | "))
}

/// Why a row is not shown by the tests it names, if it is not.
fn not_shown(cell: &str, known: &BTreeSet<String>) -> Option<String> {
    match Shown::read(cell) {
        Err(why) => Some(why),
        Ok(Shown::Later(_)) => None,
        Ok(Shown::By(tests)) => {
            let missing: Vec<_> = tests.into_iter().filter(|test| !known.contains(test)).collect();
            (!missing.is_empty()).then(|| format!("there is no test {}", missing.join(", ")))
        }
    }
}

#[test]
fn every_requirement_is_there_once() {
    let mut missing: BTreeSet<_> = REQUIREMENTS
        .iter()
        .flat_map(|(seed, count)| (1..=*count).map(move |number| format!("{seed}-{number:03}")))
        .collect();
    let expected = missing.clone();
    let mut wrong = Vec::new();
    for row in requirements() {
        match row.cells.as_slice() {
            [id, requirement, _] if !requirement.is_empty() => {
                if !expected.contains(id) {
                    wrong.push(at(&row, "no such requirement"));
                } else if !missing.remove(id) {
                    wrong.push(at(&row, "double"));
                }
            }
            _ => wrong.push(at(&row, "not an id, a requirement and what shows it")),
        }
    }
    wrong.extend(missing.into_iter().map(|id| format!("{id}: missing")));
    none(&wrong);
}

#[test]
fn every_requirement_has_tests_that_exist_or_an_owner() {
    let known = tests(&workspace()).expect("the sources are readable");
    let wrong: Vec<_> = requirements()
        .iter()
        .filter_map(|row| {
            let shown = row.cells.get(2).map_or("", String::as_str);
            not_shown(shown, &known).map(|why| at(row, &why))
        })
        .collect();
    none(&wrong);
}

#[test]
fn every_route_is_there_or_has_an_owner() {
    let known = tests(&workspace()).expect("the sources are readable");
    let openapi = serde_json::from_str(&read("api/openapi.json")).expect("a description");
    let described = described(&openapi);
    let mut seen = BTreeMap::new();
    let mut wrong = Vec::new();
    let routes = rows(&read("docs/seeds.md"), &["method", "path", "port", "seed", "state"]);
    for row in &routes {
        let [method, path, port, seeds, state] = row.cells.as_slice() else {
            wrong.push(at(row, "not a method, a path, a port, seeds and a state"));
            continue;
        };
        let route = route(method, path);
        let is_described = port == "8000" && described.contains(&route);
        if !matches!(port.as_str(), "8000" | "4000") {
            wrong.push(at(row, "no such port"));
        }
        if !seeds.split(", ").all(|seed| REQUIREMENTS.iter().any(|(known, _)| seed.chars().eq([*known]))) {
            wrong.push(at(row, "no such seed"));
        }
        if let Some(line) = seen.insert((port.clone(), route), row.line) {
            wrong.push(at(row, &format!("the same as line {line}")));
        }
        if state == "served" {
            if !is_described {
                wrong.push(at(row, "api/openapi.json does not have it"));
            }
        } else if let Some(why) = not_shown(state, &known) {
            wrong.push(at(row, &why));
        } else if state.starts_with("later:") && is_described {
            wrong.push(at(row, "api/openapi.json has it"));
        }
    }
    if routes.len() != ROUTES {
        wrong.push(format!("{} routes instead of {ROUTES}", routes.len()));
    }
    none(&wrong);
}
