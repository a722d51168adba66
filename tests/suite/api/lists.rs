//! Lists in pages.

use std::sync::atomic::{AtomicBool, Ordering};

use muster_tests::api::Api;
use muster_tests::fleet::Fleet;
use serde_json::{Value, json};

use super::{model, names};

/// Follows `Link` from page to page until there is no more.
fn pages(api: &Api, first: &str) -> Vec<Value> {
    let mut next = Some(first.to_owned());
    let mut pages = Vec::new();
    while let Some(path) = next {
        assert!(path.starts_with("/api/"), "{path} is no path of this API");
        let answer = api.get(&path).expect(200);
        let link = answer.header("link");
        let target = link.strip_prefix('<').and_then(|link| link.strip_suffix(">; rel=\"next\""));
        assert_eq!(target.is_none(), link.is_empty(), "{link}");
        next = target.map(ToOwned::to_owned);
        pages.push(answer.body);
        assert!(pages.len() < 1000, "it never ends");
    }
    pages
}

#[test]
fn a_list_in_pages_is_the_whole_list() {
    let fleet = Fleet::start();
    let admin = fleet.admin();
    let all: Vec<_> = (0..7).rev().map(|number| format!("model {number}")).collect();
    for name in all.iter().rev() {
        let _ = admin.post("/api/models", &model(name)).expect(201);
    }
    for (limit, count) in [(1, 7), (3, 3), (6, 2), (7, 1), (1000, 1)] {
        let pages = pages(&admin, &format!("/api/models?limit={limit}"));
        assert_eq!(pages.len(), count, "{limit}");
        let found: Vec<_> = pages.iter().flat_map(names).collect();
        assert_eq!(found, all, "newest first, each once");
    }
    assert_eq!(names(&admin.get("/api/models").expect(200).body), all);
    for wrong in ["limit=0", "limit=1001", "limit=-1", "limit=x", "limit="] {
        admin.get(&format!("/api/models?{wrong}")).names(&["limit"]);
    }
    admin.get("/api/models?after=x").names(&["after"]);
    assert_eq!(admin.get("/api/models?after=0").expect(200).body, json!({"models": []}));
    // The other lists are in pages as well.
    let entries = |pages: Vec<Value>, field: &str| {
        let entries = pages.iter().flat_map(|page| page[field].as_array().expect("a list"));
        entries.cloned().collect::<Vec<_>>()
    };
    for (path, field) in [("/api/audit", "entries"), ("/api/credentials", "credentials")] {
        let whole = entries(vec![admin.get(path).expect(200).body], field);
        assert!(whole.len() >= 2, "{path}");
        assert_eq!(entries(pages(&admin, &format!("{path}?limit=1")), field), whole, "{path}");
    }
    // Those of seed 004 are bare. One of them goes by name.
    for name in ["b", "\u{e9} & \u{1f600}", "A"] {
        let _ = admin.post("/api/configs", &json!({"name": name, "payload": {}})).expect(201);
        let _ = admin.post("/api/api-keys", &json!({"label": name})).expect(201);
    }
    for (path, field, expected) in [
        ("/api/configs", "name", json!(["A", "b", "\u{e9} & \u{1f600}"])),
        ("/api/api-keys", "label", json!(["A", "\u{e9} & \u{1f600}", "b", "bootstrap gateway key"])),
    ] {
        for limit in 1..=4 {
            let pages = pages(&admin, &format!("{path}?limit={limit}"));
            let found = pages.iter().flat_map(|page| page.as_array().expect("an array"));
            let found: Vec<_> = found.map(|item| item[field].clone()).collect();
            assert_eq!(json!(found), expected, "{path} by {limit}");
        }
        admin.get(&format!("{path}?limit=0")).names(&["limit"]);
    }
}

/// Says that it is over, also when something fails.
struct Ended<'a>(&'a AtomicBool);

impl Drop for Ended<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

#[test]
fn a_list_that_grows_meanwhile_has_no_gap_and_nothing_twice() {
    let fleet = Fleet::start();
    let admin = fleet.admin();
    let old: Vec<_> = (0..20).map(|number| format!("old {number}")).collect();
    for name in &old {
        let _ = admin.post("/api/models", &model(name)).expect(201);
    }
    let done = AtomicBool::new(false);
    let added = std::thread::scope(|scope| {
        let adding = scope.spawn(|| {
            let mut number = 0;
            while !done.load(Ordering::Relaxed) {
                let _ = admin.post("/api/models", &model(&format!("new {number}"))).expect(201);
                number += 1;
            }
            number
        });
        let ended = Ended(&done);
        for _ in 0..3 {
            let pages = pages(&admin, "/api/models?limit=3");
            let found: Vec<_> = pages.iter().flat_map(names).collect();
            let of_old: Vec<_> = found.iter().filter(|name| name.starts_with("old")).collect();
            assert!(of_old.iter().rev().copied().eq(old.iter()), "{found:?}");
            let mut distinct = found.clone();
            distinct.sort_unstable();
            distinct.dedup();
            assert_eq!(distinct.len(), found.len(), "{found:?}");
        }
        drop(ended);
        adding.join().expect("every addition succeeds")
    });
    assert!(added > 0, "nothing was added meanwhile");
}
