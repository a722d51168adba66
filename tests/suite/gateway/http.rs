//! What HTTP allows and few do: clients and providers that are slow, hasty or old-fashioned.

use std::net::Shutdown;

use muster_tests::process::wait_for;
use muster_tests::upstream::Answer;
use serde_json::json;

use super::{CHAT, Place, SOON, chat, streamed};

const OURS: &str = r#"{"model":"ours"}"#;
const THEIRS: &[u8] = br#"{"model":"theirs"}"#;

#[test]
fn a_client_may_wait_until_it_is_told_to_go_on() {
    let place = Place::new();
    let head = |key: &str| {
        format!(
            "POST {CHAT} HTTP/1.1\r\nhost: x\r\nexpect: 100-continue\r\ncontent-length: {}\r\n{key}\r\n\r\n",
            OURS.len()
        )
    };
    let mut wire = place.wire();
    wire.send(head(&place.key()).as_bytes());
    assert_eq!(wire.head().status, 100);
    wire.send(OURS.as_bytes());
    assert_eq!(wire.head().status, 200);
    // Whoever has no key is not told to go on.
    let mut wire = place.wire();
    wire.send(head("x: y").as_bytes());
    assert_eq!(wire.head().status, 401);
    assert_eq!(place.upstream.requests(), 1);
}

#[test]
fn requests_may_follow_each_other_without_waiting() {
    let place = Place::new();
    place.upstream.behave(|request| Answer::json(200, &json!({"echo": request.json()["user"]})));
    let requests: String = (0..20)
        .map(|number| {
            let body = format!(r#"{{"model":"ours","user":{number}}}"#);
            let length = body.len();
            format!("POST {CHAT} HTTP/1.1\r\nhost: x\r\n{}\r\ncontent-length: {length}\r\n\r\n{body}", place.key())
        })
        .collect();
    let mut wire = place.wire();
    wire.send(requests.as_bytes());
    for number in 0..20 {
        let head = wire.head();
        let answer = wire.body(&head).expect("the whole answer");
        assert_eq!((head.status, answer), (200, format!(r#"{{"echo":{number}}}"#).into_bytes()));
    }
}

#[test]
fn a_client_of_the_first_version_gets_an_answer_that_ends_with_the_connection() {
    let place = Place::new();
    for body in [chat("ours").to_string(), streamed("ours").to_string()] {
        let mut wire = place.wire();
        wire.send(
            format!("POST {CHAT} HTTP/1.0\r\n{}\r\ncontent-length: {}\r\n\r\n{body}", place.key(), body.len())
                .as_bytes(),
        );
        let head = wire.head();
        assert_eq!((head.status, head.header("transfer-encoding")), (200, ""));
        let text = String::from_utf8(wire.rest().expect("the whole answer")).expect("text");
        assert!(text.contains(r#""model":"ours""#) && !text.contains("theirs"), "{text}");
        assert_eq!(text.ends_with("[DONE]\n\n"), body.contains("stream"), "{text}");
    }
}

#[test]
fn a_request_whose_client_leaves_in_the_middle_reaches_nobody() {
    let place = Place::new();
    for whole in [false, true] {
        let mut wire = place.wire();
        wire.send(
            format!("POST {CHAT} HTTP/1.1\r\nhost: x\r\n{}\r\ncontent-length: 100\r\n\r\n{OURS}", place.key())
                .as_bytes(),
        );
        if whole {
            // It stops sending, and would still read.
            wire.stream().shutdown(Shutdown::Write).expect("is open");
            assert!(wire.rest().is_ok_and(|rest| rest.is_empty() || rest.starts_with(b"HTTP/1.1 4")));
        }
    }
    let _ = place.ask().expect(200);
    assert_eq!(place.upstream.requests(), 1);
}

#[test]
fn a_provider_may_answer_in_every_way_that_http_knows() {
    let place = Place::new();
    let json = "content-type: application/json\r\n";
    let chunks = "transfer-encoding: chunked\r\n\r\n7\r\n{\"model\r\nB;x=\"y\"\r\n\":\"theirs\"}\r\n";
    for (answer, status) in [
        (
            format!(
                "HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 200 OK\r\n{json}content-length: 18\r\n\r\n{{\"model\":\"theirs\"}}"
            ),
            200,
        ),
        (
            format!(
                "HTTP/1.1 103 Early Hints\r\nlink: <x>\r\n\r\nHTTP/1.1 200 OK\r\n{json}content-length: 18\r\n\r\n{{\"model\":\"theirs\"}}"
            ),
            200,
        ),
        (
            "HTTP/1.1 201 Created\r\nContent-Type: Application/JSON ; charset=utf-8\r\nCONTENT-LENGTH:18\r\n\r\n{\"model\":\"theirs\"}".to_owned(),
            201,
        ),
        (format!("HTTP/1.1 200 OK\r\n{json}{chunks}0\r\n\r\n"), 200),
        (format!("HTTP/1.1 200 OK\r\n{json}trailer: x-sum\r\n{chunks}0\r\nx-sum: 1\r\n\r\n"), 200),
        (format!("HTTP/1.1 200\r\n{json}content-length: 18\r\n\r\n{{\"model\":\"theirs\"}}"), 200),
        (
            format!("HTTP/1.1 200 OK\r\n{json}content-length: 18\r\nconnection: close\r\n\r\n{{\"model\":\"theirs\"}}"),
            200,
        ),
    ] {
        place.upstream.answer(Answer::raw(answer.as_bytes()));
        let told = place.ask().expect(status);
        assert_eq!(told.text, OURS, "{answer}");
        // The connection is where the next answer is expected, if it was kept.
        let _ = place.ask().expect(status);
    }
    // A length that only the end of the connection tells.
    for version in ["1.0", "1.1"] {
        let answer = format!("HTTP/{version} 200 OK\r\n{json}\r\n{{\"model\":\"theirs\"}}");
        place.upstream.answer(Answer::raw(answer.as_bytes()).close());
        assert_eq!(place.ask().expect(200).text, OURS);
    }
    place.upstream.answer(Answer::raw(b"HTTP/1.1 204 No Content\r\n\r\n"));
    assert_eq!(place.ask().expect(204).text, "");
}

/// A refusal is worth more than the rest of what is refused.
#[test]
fn an_answer_that_comes_before_the_request_has_been_read_is_passed_on() {
    let place = Place::new();
    place.upstream.be_hasty();
    let body = format!(r#"{{"model":"ours","x":"{}"}}"#, "x".repeat(8 * 1024 * 1024));
    let refusal = Answer::json(429, &json!({"error": {"message": "too much of it"}}));
    for (answer, status) in [(refusal, 429), (Answer::body(200, "application/json", THEIRS), 200)] {
        place.upstream.answer(answer);
        let mut wire = place.wire();
        place.post(&mut wire, body.as_bytes());
        let head = wire.head();
        assert_eq!(head.status, status);
        let _ = wire.body(&head).expect("the whole answer");
    }
    wait_for(SOON, "both to have been asked", || (place.upstream.requests() == 2).then_some(()));
}
