//! Engines that fail, and ends that take their time.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use muster_tests::engines::Engine;
use muster_tests::fleet::PATIENCE;
use muster_tests::process::{Signal, wait_for};
use muster_tests::upstream::Wire;
use serde_json::{Value, json};

use super::{CHAT, Park, answers, ask, call, chat, is, look, only, running, start, with};

/// Waits until another engine than this one runs, and returns it.
fn another(park: &Park, before: &Engine) -> Engine {
    wait_for(PATIENCE, "another engine", || park.engines().into_iter().find(|engine| engine.id != before.id))
}

#[test]
fn an_engine_that_is_killed_is_started_again_and_callers_are_told_to_wait() {
    let park = Park::new(2);
    let admin = park.admin();
    let id = running(&admin, &json!({"extra_args": ["--load-seconds", "1"]}));
    let users = [0, 1].map(|node| park.user().at(&park.fleet.nodes()[node].api));
    users.iter().for_each(|user| answers(user, "org/m"));
    let epoch = is(&admin, id, "running")["placements"][0]["epoch"].clone();
    let engine = only(park.engines());
    let stop = AtomicBool::new(false);
    let told: Vec<BTreeMap<(u16, String), usize>> = std::thread::scope(|scope| {
        let callers: Vec<_> = users
            .iter()
            .map(|user| {
                scope.spawn(|| {
                    let mut told = BTreeMap::new();
                    while !stop.load(Ordering::Relaxed) {
                        let answer = call(user, "org/m");
                        let code = answer.body["error"]["code"].as_str().unwrap_or_default().to_owned();
                        *told.entry((answer.status, code)).or_default() += 1;
                    }
                    told
                })
            })
            .collect();
        engine.signal(Signal::KILL);
        let second = another(&park, &engine);
        // Why it was started again is told until it runs.
        wait_for(PATIENCE, "the reason", || {
            let seen = look(&admin, id)?;
            assert!(seen["status"] != "error", "{seen}");
            seen["last_error"].as_str().map(|why| assert!(why.contains("signal 9"), "{seen}"))
        });
        let runs = is(&admin, id, "running");
        assert_eq!((&runs["placements"][0]["epoch"], &runs["last_error"]), (&epoch, &Value::Null));
        users.iter().for_each(|user| answers(user, "org/m"));
        assert_eq!(only(park.engines()), second);
        stop.store(true, Ordering::Relaxed);
        callers.into_iter().map(|caller| caller.join().expect("ends")).collect()
    });
    for told in told {
        let mut others = told.clone();
        others.retain(|(status, code), _| *status != 200 && (*status, code.as_str()) != (503, "model_loading"));
        // The request that the engine was at when it was killed is lost, and nobody knows how far it was.
        let lost = others.remove(&(502, "deployment_unreachable".to_owned())).unwrap_or_default();
        assert!(others.is_empty() && lost <= 1, "{told:?}");
        assert!(told.keys().any(|(status, _)| *status == 503), "somebody was told to wait: {told:?}");
    }
}

/// E-034 E-056 E-057 E-070 E-076 E-206
#[test]
fn an_engine_that_never_comes_up_is_given_up_with_its_reason_and_frees_its_place() {
    let park = Park::new(1);
    let admin = park.admin();
    let _ = admin.put("/api/settings", &json!({"default_max_failed_restarts": 1})).expect(200);
    let failing = json!({"port": 8700, "gpu_memory_fraction": 1, "extra_args": ["--fail-start"]});
    let id = start(&admin, &failing);
    let failed = is(&admin, id, "error");
    let why = failed["last_error"].as_str().expect("a reason");
    assert!(why.ends_with("(stopped after 1 failed starts)") && why.contains("exit code 1"), "{why}");
    assert!(failed["error_code"].is_string() && failed["expires_at"].is_null(), "{failed}");
    assert!(park.engines().is_empty());
    call(&park.user(), "org/m").is_openai_error(404, "model_not_found");
    // Its port, its GPU and its name are free; its own limit is counted.
    let second = start(&admin, &with(&failing, &json!({"max_failed_restarts": 2})));
    wait_for(PATIENCE, "the first failure", || {
        let seen = look(&admin, second)?;
        assert!(seen["status"] != "error" || seen["last_error"].to_string().contains("after 2"), "{seen}");
        (seen["status"] == "starting" && seen["last_error"].is_string()).then_some(())
    });
    call(&park.user(), "org/m").is_openai_error(503, "model_loading");
    let failed = is(&admin, second, "error");
    assert!(failed["last_error"].as_str().expect("a reason").ends_with("(stopped after 2 failed starts)"), "{failed}");
    assert_eq!(failed["placements"][0]["last_error"], failed["last_error"]);
    // What does not know its own flags says so.
    let third = start(&admin, &with(&failing, &json!({"extra_args": ["--no-such-flag"]})));
    let failed = is(&admin, third, "error");
    assert_eq!(failed["error_code"], json!("bad_args"), "{failed}");
    let again = admin.post(&format!("/api/deployments/{third}/restart"), &json!({"owner": "a test"})).expect(200).body;
    assert_eq!((&again["status"], &again["last_error"]), (&json!("starting"), &Value::Null));
    is(&admin, third, "error");
}

#[test]
fn an_engine_that_is_stopped_while_it_waits_to_be_started_again_is_stopped() {
    let park = Park::new(1);
    let admin = park.admin();
    let id = start(&admin, &json!({"extra_args": ["--fail-start"], "max_failed_restarts": 20}));
    wait_for(PATIENCE, "a failure", || look(&admin, id)?["last_error"].is_string().then_some(()));
    let _ = admin.post(&format!("/api/deployments/stop/{id}"), &json!({})).expect(200);
    let stopped = is(&admin, id, "stopped");
    assert_eq!(stopped["last_error"], Value::Null);
    assert!(park.engines().is_empty());
    running(&admin, &json!({"gpu_memory_fraction": 1}));
}

/// It is patient: five probes, and half a minute.
#[test]
fn an_engine_that_hangs_is_noticed_and_started_again() {
    let park = Park::new(1);
    let admin = park.admin();
    let id = running(&admin, &json!({}));
    answers(&park.user(), "org/m");
    let engine = only(park.engines());
    let begun = Instant::now();
    engine.signal(Signal::STOP);
    let why = wait_for(2 * PATIENCE, "the hang to be noticed", || {
        look(&admin, id)?["last_error"].as_str().map(ToOwned::to_owned)
    });
    assert!(why.contains("hangs"), "{why}");
    assert!((Duration::from_secs(30)..Duration::from_secs(55)).contains(&begun.elapsed()), "{:?}", begun.elapsed());
    call(&park.user(), "org/m").is_openai_error(503, "model_loading");
    // It would get half a minute more to end by itself, which it can not.
    engine.signal(Signal::KILL);
    another(&park, &engine);
    is(&admin, id, "running");
    answers(&park.user(), "org/m");
}

/// E-032
#[test]
fn what_has_begun_is_finished_when_a_deployment_is_stopped() {
    let park = Park::new(2);
    let admin = park.admin();
    let slow = json!({"extra_args": ["--tokens", "40", "--tokens-per-second", "20"]});
    let id = running(&admin, &slow);
    let mut wires: Vec<_> = park
        .fleet
        .nodes()
        .iter()
        .map(|node| {
            answers(&park.user().at(&node.api), "org/m");
            let mut wire = Wire::connect(node.api.trim_start_matches("http://"));
            let key = format!("authorization: Bearer {}", park.fleet.gateway_key);
            wire.post(CHAT, &[&key], with(&chat("org/m"), &json!({"stream": true})).to_string().as_bytes());
            assert_eq!(wire.head().status, 200);
            wire.chunk().expect("a piece");
            wire
        })
        .collect();
    let engine = only(park.engines());
    let _ = admin.post(&format!("/api/deployments/stop/{id}"), &json!({})).expect(200);
    wait_for(PATIENCE, "new requests to be refused", || (call(&park.user(), "org/m").status == 404).then_some(()));
    ask(&admin, &json!({})).is_error(409, "CONFLICT");
    for wire in &mut wires {
        let mut text = String::new();
        while let Some(piece) = wire.chunk().expect("a whole stream") {
            text.push_str(&String::from_utf8_lossy(&piece));
        }
        assert!(text.contains("[DONE]"), "{text}");
    }
    is(&admin, id, "stopped");
    assert!(!engine.runs());
}
