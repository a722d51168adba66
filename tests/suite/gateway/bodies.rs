//! Between a client and a provider only the value of `model` changes.

use muster_tests::upstream::{Answer, Wire};
use serde_json::json;

use super::{CHAT, Place, register};

/// A name at a provider that must be escaped in JSON.
const THEIRS: &str = "theirs/ö \"x\"";
const WRITTEN: &str = r#""theirs/ö \"x\"""#;

/// A body in chunks of this size.
fn in_chunks(body: &[u8], size: usize) -> Vec<u8> {
    let mut out = Vec::new();
    for chunk in body.chunks(size) {
        out.extend_from_slice(format!("{:x}\r\n", chunk.len()).as_bytes());
        out.extend_from_slice(chunk);
        out.extend_from_slice(b"\r\n");
    }
    out.extend_from_slice(b"0\r\n\r\n");
    out
}

/// The text of an answer that is a success.
#[track_caller]
fn answered(wire: &mut Wire) -> String {
    let head = wire.head();
    assert_eq!(head.status, 200);
    String::from_utf8(wire.body(&head).expect("the whole answer")).expect("text")
}

/// A-013
#[test]
fn only_the_name_changes_on_the_way_to_the_provider() {
    let place = Place::new();
    let _ = place.fleet.admin().put("/api/models/ours", &json!({"modelId": THEIRS})).expect(200);
    let filled = |length: usize| format!(r#"{{"text":"{}","model":"#, r#"ä\"{\\ "#.repeat(length / 8));
    let (long, huge) = (filled(64 * 1024), filled(5 * 1024 * 1024));
    let cases = [
        (r#"{"model":"#, r#""ours""#, "}"),
        (" \r\n\t{ \"messages\" :\t[ ] ,\n \"model\"\t:\r\n ", r#""ours""#, " , \"x\" : 1.00e+5 } \n"),
        (
            r#"{"a":"\"model\":\"ours\"","b":{"model":"ours"},"c":[{"model":"ours"}],"model":"#,
            r#""ours""#,
            r#","d":"\\"}"#,
        ),
        (
            r#"{"ö":"日本😀\u00e9\ud83d\ude00\/","models":"ours","Model":"ours","":"ours","model":"#,
            r#""ours""#,
            r#","z":null}"#,
        ),
        (r#"{"mod\u0065l":"#, r#""ours""#, r#","stream":false}"#),
        (r#"{"x":1,"model":"#, r#""o\u0075rs""#, r#","n":[[],{},"]}"]}"#),
        (&long, r#""ours""#, "}"),
        (&huge, r#""ours""#, "}"),
    ];
    let head = format!("POST {CHAT} HTTP/1.1\r\nhost: x\r\ntransfer-encoding: chunked\r\n{}\r\n\r\n", place.key());
    let mut wire = place.wire();
    for (before, name, after) in cases {
        let (body, expected) = (format!("{before}{name}{after}"), format!("{before}{WRITTEN}{after}"));
        for size in [None, Some(1), Some(7), Some(10_000)] {
            match size {
                None => place.post(&mut wire, body.as_bytes()),
                // Each byte of such a one alone would only take long.
                Some(size) if body.len() / size > 100_000 => continue,
                Some(size) => wire.send(&[head.as_bytes(), &in_chunks(body.as_bytes(), size)].concat()),
            }
            let _ = answered(&mut wire);
            let seen = place.upstream.last();
            assert!(seen.text() == expected, "{size:?}: {body:.300} became {:.300}", seen.text());
            assert_eq!(seen.header("content-length"), expected.len().to_string(), "{body:.300}");
            assert_eq!(seen.header("transfer-encoding"), "", "{body:.300}");
        }
    }
}

#[test]
fn a_body_that_names_two_models_is_refused_and_reaches_nobody() {
    let place = Place::new();
    for body in [
        r#"{"model":"ours","model":"ours"}"#,
        r#"{"model":"ours","messages":[],"mod\u0065l":"other"}"#,
        r#"{"model":"ours","x":{},"model":null}"#,
    ] {
        let request = place.fleet.user().request("POST", CHAT).body(body);
        muster_tests::api::send(request).is_openai_error(400, "invalid_json");
    }
    assert_eq!(place.upstream.requests(), 0);
}

/// D-018
#[test]
fn the_answer_names_the_model_as_the_client_did() {
    let place = Place::new();
    let _ = place.fleet.admin().put("/api/models/ours", &json!({"modelId": THEIRS})).expect(200);
    let text = |model: &str| {
        format!(
            r#"{{ "id" : "1", "nested":{{"model":"x"}}, "text":"\"model\":\"x\"ö", "model" : {model} , "usage":{{"a":1.50}} }}"#
        )
    };
    let long = |model: &str| format!(r#"{{"text":"{}","model":{model}}}"#, "many tokens ".repeat(300_000));
    let mut wire = place.wire();
    // A provider may answer with a name of its own for what was asked.
    for theirs in [WRITTEN, r#""theirs-2024-05-13""#, r#""""#] {
        for ours in [r#""ours""#, r#""o\u0075rs""#] {
            let request = format!(r#"{{"model":{ours}}}"#);
            let (sent, expected) = (text(theirs), text(ours));
            let whole = Answer::body(200, "application/json", sent.as_bytes());
            let mut pieces = vec![
                whole.clone().dripping(),
                whole,
                Answer::body(200, "application/json; charset=utf-8", sent.as_bytes()),
            ];
            for size in [1, 5, 1000] {
                let answer = sent.as_bytes().chunks(size).fold(Answer::json_in_chunks(), Answer::chunk);
                pieces.push(answer.end());
            }
            for answer in pieces {
                place.upstream.answer(answer.clone());
                place.post(&mut wire, request.as_bytes());
                assert_eq!(answered(&mut wire), expected, "{answer:?}");
            }
        }
        for answer in [
            Answer::body(200, "application/json", long(theirs).as_bytes()),
            long(theirs).as_bytes().chunks(100_000).fold(Answer::json_in_chunks(), Answer::chunk).end(),
        ] {
            place.upstream.answer(answer);
            place.post(&mut wire, br#"{"model":"ours"}"#);
            assert!(
                answered(&mut wire) == long(r#""ours""#),
                "a long answer was changed elsewhere, or not where it must"
            );
        }
    }
}

/// A stream of events with everything that a provider may send, naming the model so.
fn events(model: &str) -> String {
    format!(
        "\u{feff}: a comment with \"model\":\"x\"\n\ndata: {{\"id\":1,\"model\":{model},\"choices\":[{{\"model\":\"x\"}}]}}\n\n\
         event: delta\nid: 7\nretry: 10\ndata:{{\"model\" : {model}}}\n\n\
         data: {{\"text\":\"\\\"model\\\":\\\"x\\\" ö日😀\",\"model\":{model}}}\r\n\r\n\
         data: {{\"no\":\"name\"}}\n\ndata: {{\"model\":null}}\n\ndata: [1,{{\"model\":\"x\"}}]\n\ndata: {{broken\n\n:\n\
         other: {{\"model\":\"x\"}}\ndata: [DONE]\n\n"
    )
}

/// D-018
#[test]
fn every_event_of_a_stream_names_the_model_as_the_client_did() {
    let place = Place::new();
    let (sent, expected) = (events(r#""theirs""#), events(r#""o\u0075rs""#));
    let mut wire = place.wire();
    for size in [1, 2, 3, 5, 7, 11, 64, 100_000] {
        place.upstream.answer(sent.as_bytes().chunks(size).fold(Answer::events(), Answer::chunk).end());
        place.post(&mut wire, br#"{"model":"o\u0075rs","stream":true}"#);
        assert_eq!(answered(&mut wire), expected, "chunks of {size}");
    }
    // A last event whose end is missing is not lost.
    place.upstream.answer(Answer::events().chunk(br#"data: {"model":"theirs"}"#).end());
    place.post(&mut wire, br#"{"model":"ours","stream":true}"#);
    assert_eq!(answered(&mut wire), r#"data: {"model":"ours"}"#);
}

#[test]
fn an_answer_is_left_as_it_came_when_the_names_are_the_same() {
    let place = Place::new();
    let _ = register(&place.fleet.admin(), "same", &json!({"baseUrl": place.upstream.url("/v1")}));
    let mut wire = place.wire();
    let json = r#"{"model" : "same-2024", "x":[ ] }  "#;
    let stream = events(r#""same-2024""#);
    for (kind, sent) in [("application/json", json), ("text/event-stream", &stream)] {
        for answer in [Answer::body(200, kind, sent.as_bytes()), Answer::body(200, kind, sent.as_bytes()).dripping()] {
            place.upstream.answer(answer);
            place.post(&mut wire, br#"{ "model":"same" }"#);
            assert_eq!(answered(&mut wire), sent);
            assert_eq!(place.upstream.last().text(), r#"{ "model":"same" }"#);
        }
    }
}

/// What is no JSON object, or is packed, is not ours to change.
#[test]
fn an_answer_of_another_kind_is_left_as_it_came() {
    let place = Place::new();
    let mut wire = place.wire();
    let object = r#"{"model":"theirs"}"#;
    for (headers, body) in [
        (&["content-type: text/plain"][..], object),
        (&["content-type: application/json", "content-encoding: gzip"], object),
        (&["content-type: text/event-stream", "content-encoding: br"], "data: {\"model\":\"theirs\"}\n\n"),
        (&[], object),
        (&["content-type: application/json"], r#"[{"model":"theirs"}]"#),
        (&["content-type: application/json"], r#"{"a" "model":"theirs"}"#),
        (&["content-type: application/json"], r#"{"model":{"name":"theirs"}}"#),
        (&["content-type: application/json"], ""),
        (&["content-type: application/json"], r#""theirs""#),
    ] {
        place.upstream.answer(Answer::with_headers(200, headers, body.as_bytes()));
        place.post(&mut wire, br#"{"model":"ours"}"#);
        assert_eq!(answered(&mut wire), body, "{headers:?}");
    }
}

/// Only what clients of such interfaces need of a provider's head reaches them.
#[test]
fn the_head_of_an_answer_tells_nothing_of_the_provider() {
    let place = Place::new();
    let headers = [
        "content-type: application/json",
        "cache-control: no-cache",
        "set-cookie: session=1",
        "server: engine/1.0",
        "x-api-key: x",
        "x-request-id: theirs",
        "location: http://inside/",
        "connection: keep-alive, x-secret",
        "x-secret: 1",
    ];
    place.upstream.answer(Answer::with_headers(200, &headers, br#"{"model":"theirs"}"#));
    let mut wire = place.wire();
    place.post(&mut wire, br#"{"model":"ours"}"#);
    let head = wire.head();
    let mut names: Vec<_> = head.headers.iter().map(|(name, _)| name.as_str()).collect();
    names.sort_unstable();
    assert_eq!(names, ["cache-control", "content-length", "content-type", "date", "x-request-id"]);
    assert_ne!(head.header("x-request-id"), "theirs");
}
