//! Many at once.

use std::net::TcpStream;

use muster_tests::upstream::{Answer, Gate, Wire};
use serde_json::{Value, json};

use super::{Place, chat};

fn exchange(place: &Place, wire: &mut Wire, body: &Value) -> (u16, Vec<u8>) {
    place.post(wire, body.to_string().as_bytes());
    let head = wire.head();
    let answer = wire.body(&head).expect("the whole answer");
    (head.status, answer)
}

#[test]
fn two_thousand_calls_on_32_connections_each_get_their_own_answer() {
    const CONNECTIONS: usize = 32;
    const CALLS: usize = 63;
    let place = Place::new();
    place.upstream.behave(|request| {
        let sent = request.json();
        let (text, streamed) = (json!({"model": "theirs", "echo": sent["user"]}), sent["stream"] == true);
        if !streamed {
            return Answer::json(200, &text);
        }
        Answer::events().chunk(format!("data: {text}\n\n").as_bytes()).chunk(b"data: [DONE]\n\n").end()
    });
    std::thread::scope(|scope| {
        for connection in 0..CONNECTIONS {
            let place = &place;
            scope.spawn(move || {
                let mut wire = place.wire();
                for call in 0..CALLS {
                    let (user, stream) = (format!("{connection} {call}"), call % 4 == 0);
                    let mut body = chat("ours");
                    (body["user"], body["stream"]) = (json!(user), json!(stream));
                    let (status, answer) = exchange(place, &mut wire, &body);
                    let answer = String::from_utf8(answer).expect("text");
                    let data = if stream {
                        answer.strip_prefix("data: ").and_then(|text| text.strip_suffix("\n\ndata: [DONE]\n\n"))
                    } else {
                        Some(answer.as_str())
                    };
                    let data: Value = serde_json::from_str(data.expect("an event and the end")).expect("JSON");
                    assert_eq!((status, data), (200, json!({"model": "ours", "echo": user})));
                }
            });
        }
    });
    assert_eq!(place.upstream.requests(), CONNECTIONS * CALLS, "nothing was asked twice");
    // A connection carries one request at a time, and is used again.
    assert!(place.upstream.opened() <= 3 * CONNECTIONS, "{} connections", place.upstream.opened());
    let counts = place.fleet.admin().get("/metrics").expect(200).text;
    let line = format!("muster_gateway_requests_total{{model=\"ours\",status=\"200\"}} {}", CONNECTIONS * CALLS);
    assert!(counts.lines().any(|found| found == line), "{line} in {counts}");
}

#[test]
fn connections_that_say_nothing_and_streams_that_stand_still_disturb_nobody() {
    let place = Place::new();
    let gate = Gate::new();
    let waiting = gate.clone();
    place.upstream.behave(move |request| {
        if request.json()["stream"] == true {
            return Answer::events().chunk(b"data: {}\n\n").wait(&waiting).chunk(b"data: [DONE]\n\n").end();
        }
        Answer::usual(request)
    });
    let address = place.fleet.address();
    let silent: Vec<_> = (0..300).map(|_| TcpStream::connect(address).expect("a connection")).collect();
    let mut streams: Vec<_> = (0..100)
        .map(|_| {
            let mut wire = place.wire();
            place.post(&mut wire, super::streamed("ours").to_string().as_bytes());
            wire
        })
        .collect();
    for wire in &mut streams {
        assert_eq!(wire.head().status, 200);
        assert_eq!(wire.at_least(1), b"data: {}\n\n");
    }
    for _ in 0..20 {
        let _ = place.ask().expect(200);
    }
    gate.open();
    for wire in &mut streams {
        assert_eq!(wire.at_least(1), b"data: [DONE]\n\n");
        assert_eq!(wire.chunk().expect("the end"), None);
    }
    drop(silent);
}
