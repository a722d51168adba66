//! Answers on their way: piece by piece, given up, cut, and read slowly; and the connections that they come on.

use std::time::{Duration, Instant};

use muster_tests::process::wait_for;
use muster_tests::upstream::{Answer, Gate, Wire};
use serde_json::json;

use super::{CHAT, Place, SOON, chat, register, streamed};

/// The memory that a process has used at most, in bytes.
fn peak(process: u32) -> u64 {
    let status = std::fs::read_to_string(format!("/proc/{process}/status")).expect("the status of a process");
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).expect("its memory");
    line.trim().trim_end_matches(" kB").parse::<u64>().expect("a number") * 1024
}

/// E-257
#[test]
fn each_piece_of_a_stream_arrives_before_the_next_is_sent() {
    let place = Place::new();
    let _ = register(&place.fleet.admin(), "same", &json!({"baseUrl": place.upstream.url("/v1")}));
    for (model, theirs) in [("ours", "theirs"), ("same", "same")] {
        for proxy in [false, true] {
            let gates: Vec<_> = (0..5).map(|_| Gate::new()).collect();
            let event = |model: &str, number: usize| format!("data: {{\"model\":\"{model}\",\"n\":{number}}}\n\n");
            let answer = gates.iter().enumerate().fold(Answer::events(), |answer, (number, gate)| {
                answer.wait(gate).chunk(event(theirs, number).as_bytes())
            });
            place.upstream.answer(answer.end());
            let address = if proxy { &place.fleet.nodes()[0].proxy } else { &place.fleet.nodes()[0].api };
            let mut wire = Wire::connect(address.trim_start_matches("http://"));
            place.post(&mut wire, streamed(model).to_string().as_bytes());
            // The head comes before any event.
            let head = wire.head();
            assert_eq!((head.status, head.header("content-type")), (200, "text/event-stream; charset=utf-8"));
            for (number, gate) in gates.iter().enumerate() {
                gate.open();
                let expected = event(model, number);
                assert_eq!(wire.at_least(expected.len()), expected.as_bytes());
            }
            assert_eq!(wire.chunk().expect("a whole answer"), None);
        }
    }
}

/// Not only streams: an answer that comes in pieces is passed on in pieces.
#[test]
fn an_answer_in_pieces_is_not_held_back() {
    let place = Place::new();
    let gate = Gate::new();
    let (first, second) = (br#"{"text":"a","model":"theirs","#, br#""more":1}"#);
    place.upstream.answer(Answer::json_in_chunks().chunk(first).wait(&gate).chunk(second).end());
    let mut wire = place.wire();
    place.post(&mut wire, br#"{"model":"ours"}"#);
    assert_eq!(wire.head().status, 200);
    assert_eq!(wire.at_least(20), br#"{"text":"a","model":"ours","#);
    gate.open();
    assert_eq!(wire.at_least(1), second);
}

#[test]
fn a_client_that_gives_up_ends_the_work_of_the_provider() {
    let place = Place::new();
    let event = b"data: {\"model\":\"theirs\"}\n\n";
    let head = b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: 999999\r\n\r\n{";
    let answers = [
        ("before the head", Answer::default().silence(), false),
        ("after the head", Answer::events().silence(), true),
        ("within the stream", Answer::events().chunk(event).silence(), true),
        ("within a short answer", Answer::raw(head).silence(), false),
        ("within an error", Answer::raw(&head.map(|byte| if byte == b'2' { b'5' } else { byte })).silence(), false),
        (
            "while it is busy sending",
            Answer::events().flood(&[event.as_slice(), &[b':'; 60_000], b"\n"].concat(), 100_000),
            true,
        ),
    ];
    for (count, (when, answer, has_head)) in answers.into_iter().enumerate() {
        place.upstream.answer(answer);
        let before = place.upstream.requests();
        let mut wire = place.wire();
        place.post(&mut wire, streamed("ours").to_string().as_bytes());
        place.upstream.wait_for_requests(before + 1);
        if has_head {
            assert_eq!(wire.head().status, 200);
        }
        drop(wire);
        wait_for(Duration::from_secs(5), when, || (place.upstream.given_up() > count).then_some(()));
    }
    let counts = wait_for(SOON, "the end of all of them", || {
        let text = place.fleet.admin().get("/metrics").expect(200).text;
        text.contains("muster_gateway_in_flight{model=\"ours\"} 0").then_some(text)
    });
    // Three had been answered for certain; of the short one the client can not see how far it came.
    let cut = |count: u32| counts.contains(&format!("muster_gateway_cut_total{{model=\"ours\"}} {count}\n"));
    assert!(cut(3) || cut(4), "{counts}");
    place.upstream.behave(Answer::usual);
    let _ = place.ask().expect(200);
}

#[test]
fn a_stream_that_the_provider_cuts_ends_as_a_cut() {
    let place = Place::new();
    let event = "data: {\"model\":\"theirs\"}\n\n";
    for answer in [
        Answer::events().chunk(event.as_bytes()).close(),
        Answer::events().chunk(event.as_bytes()).send(b"50\r\ndata: ").close(),
        Answer::events().chunk(event.as_bytes()).send(b"no chunk\r\n"),
    ] {
        place.upstream.answer(answer.clone());
        let before = place.upstream.requests();
        let mut wire = place.wire();
        place.post(&mut wire, streamed("ours").to_string().as_bytes());
        assert_eq!(wire.head().status, 200);
        let mut text = Vec::new();
        let end = loop {
            match wire.chunk() {
                Ok(Some(chunk)) => text.extend_from_slice(&chunk),
                end => break end,
            }
        };
        let text = String::from_utf8(text).expect("text");
        assert!(end.is_err(), "{answer:?} ended well: {text}");
        assert!(text.starts_with(&event.replace("theirs", "ours")) && !text.contains("DONE"), "{text}");
        assert_eq!(place.upstream.requests(), before + 1, "what has begun is not begun again");
    }
}

/// The provider can send no more than what fits between it and the client.
#[test]
fn a_client_that_reads_slowly_holds_up_the_provider_and_costs_no_memory() {
    const PIECE: usize = 64 * 1024;
    const COUNT: usize = 3200;
    const LENGTH: usize = COUNT * PIECE;
    // What else the process does meanwhile has to fit too.
    const ROOM: u64 = 64 * 1024 * 1024;
    let mut place = Place::new();
    let _ = register(&place.fleet.admin(), "same", &json!({"baseUrl": place.upstream.url("/v1")}));
    let event = [b"data: {\"text\":\"".as_slice(), &[b'x'; PIECE - 34], b"\",\"model\":\"same\"}\n\n"].concat();
    let _ = place.ask().expect(200);
    let process = place.fleet.process().id();
    for model in ["same", "ours"] {
        let before = peak(process);
        let sent_before = place.upstream.sent();
        place.upstream.answer(Answer::events().flood(&event, COUNT).end());
        let mut wire = place.wire();
        place.post(&mut wire, streamed(model).to_string().as_bytes());
        assert_eq!(wire.head().status, 200);
        // Until it has not sent anything for half a second.
        let mut last = (place.upstream.sent(), Instant::now());
        wait_for(Duration::from_secs(20), "the provider to be held up", || {
            let sent = place.upstream.sent();
            if sent != last.0 {
                last = (sent, Instant::now());
            }
            (last.1.elapsed() > Duration::from_millis(500)).then_some(())
        });
        let held = place.upstream.sent() - sent_before;
        // Two connections have room in the system, and more where it is set up for long distances.
        assert!(held < LENGTH as u64 / 2, "{held} bytes are on their way to a client that reads nothing");
        // The kernel counts each thread's pages by itself: its peak may read lower by a few the second time.
        let used = peak(process).saturating_sub(before);
        assert!(used < ROOM, "{used} bytes for a client that reads nothing");
        let mut length = 0;
        while let Some(chunk) = wire.chunk().expect("the whole answer") {
            length += chunk.len();
        }
        assert_eq!(length, LENGTH, "every byte of it arrived");
        let used = peak(process).saturating_sub(before);
        assert!(used < ROOM, "{used} bytes for a client that reads slowly");
    }
}

#[test]
fn connections_to_a_provider_are_used_again() {
    let place = Place::new();
    let (admin, user) = (place.fleet.admin(), place.fleet.user());
    let _ = register(&admin, "same", &json!({"baseUrl": place.upstream.url("/v1")}));
    let long = json!({"model": "x", "text": "x".repeat(2_000_000)});
    let empty = Answer::body(200, "application/json", b"");
    // Each thread that serves clients has connections of its own.
    let threads = std::thread::available_parallelism().map_or(1, usize::from).min(16);
    for (answer, status) in [
        (None, 200),
        (Some(Answer::json(200, &json!({"model": "x"}))), 200),
        (Some(Answer::json(200, &long)), 200),
        (Some(Answer::json_in_chunks().chunk(b"{}").end()), 200),
        (Some(empty), 200),
        // What a provider refuses costs no connection either.
        (Some(Answer::json(429, &json!({"error": {"message": "slow down"}}))), 429),
    ] {
        for model in ["ours", "same"] {
            let given = answer.clone();
            place.upstream.behave(move |request| given.clone().unwrap_or_else(|| Answer::usual(request)));
            let before = (place.upstream.opened(), place.upstream.requests());
            for count in 0..20 {
                let body = if count % 2 == 0 { streamed(model) } else { chat(model) };
                let _ = user.post(CHAT, &body).expect(status);
            }
            assert_eq!(place.upstream.requests() - before.1, 20);
            let opened = place.upstream.opened() - before.0;
            assert!(opened <= threads, "{opened} connections for 20 calls of {model}, {answer:.200?}");
        }
    }
    let counts = admin.get("/metrics").expect(200).text;
    for model in ["ours", "same"] {
        for line in [
            format!("muster_gateway_cut_total{{model=\"{model}\"}} 0"),
            format!("muster_gateway_request_duration_seconds_count{{model=\"{model}\"}} 120"),
        ] {
            assert!(counts.lines().any(|found| found == line), "{line} in {counts}");
        }
    }
}

#[test]
fn a_kept_connection_that_the_provider_has_closed_is_no_error_for_the_client() {
    let place = Place::new();
    // Closed after each answer, without a word.
    place.upstream.behave(|request| Answer::usual(request).close());
    for _ in 0..20 {
        let _ = place.ask().expect(200);
    }
    assert_eq!((place.upstream.requests(), place.upstream.opened()), (20, 20));
    // Closed at the very moment when the next request arrives, which is then asked again.
    place
        .upstream
        .behave(|request| if request.before == 0 { Answer::usual(request) } else { Answer::default().close() });
    let mut wire = place.wire();
    for _ in 0..20 {
        place.post(&mut wire, chat("ours").to_string().as_bytes());
        let head = wire.head();
        assert_eq!(head.status, 200);
        let _ = wire.body(&head).expect("the whole answer");
    }
    let second = place.upstream.received().iter().filter(|request| request.before > 0).count();
    assert!(second >= 5, "connections were used again {second} times");
}

#[test]
fn what_has_begun_to_be_answered_is_not_asked_again() {
    let place = Place::new();
    // On a connection that has been used: there a request is repeated, but not once its answer has begun.
    place.upstream.behave(|request| {
        if request.before == 0 {
            return Answer::usual(request);
        }
        Answer::events().chunk(b"data: {}\n\n").close()
    });
    let mut wire = place.wire();
    place.post(&mut wire, chat("ours").to_string().as_bytes());
    let head = wire.head();
    let _ = wire.body(&head).expect("the whole answer");
    place.post(&mut wire, streamed("ours").to_string().as_bytes());
    let head = wire.head();
    assert_eq!(head.status, 200);
    assert!(wire.body(&head).is_err(), "it was cut");
    assert_eq!(place.upstream.requests(), 2);
    assert!(wire.is_closed_within(SOON));
}
