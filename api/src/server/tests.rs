//! The loop over real sockets. Every wait has a bound; where a test sleeps, the pause is what it tests.

use std::collections::VecDeque;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::sync::{Arc, Mutex};

use axum::http::StatusCode;
use axum::routing::{get, post};
use axum::{Extension, Router};
use futures_util::{FutureExt, StreamExt, stream};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpStream, UnixStream};
use tokio::sync::Semaphore;
use tokio::task::JoinHandle;
use tokio::time::{Instant, sleep};
use tokio_util::sync::CancellationToken;

use super::ending::QUIET;
use super::listen::{AcceptFailures, PAUSE};
use super::*;

mod upgraded;

/// No wait of a test is longer.
const BOUND: Duration = Duration::from_secs(20);

/// A limit that a test waits for.
const SHORT: Duration = Duration::from_millis(200);

const GET: &[u8] = b"GET /peer HTTP/1.1\r\nhost: test\r\n\r\n";
const HOLD: &[u8] = b"GET /hold HTTP/1.1\r\nhost: test\r\n\r\n";

async fn within<F: Future>(future: F) -> F::Output {
    timeout(BOUND, future).await.expect("in time")
}

fn patient() -> Limits {
    Limits { header_timeout: BOUND, body_idle_timeout: BOUND, grace: BOUND, ..Limits::default() }
}

/// The requests to /hold: each says that it runs, waits for its release, and says when it is dropped.
#[derive(Clone)]
struct Gate {
    entered: Arc<Semaphore>,
    released: Arc<Semaphore>,
    dropped: CancellationToken,
}

impl Gate {
    fn new() -> Self {
        Self { entered: Arc::new(Semaphore::new(0)), released: Arc::new(Semaphore::new(0)), dropped: <_>::default() }
    }

    async fn hold(self) -> &'static str {
        let _guard = self.dropped.clone().drop_guard();
        self.entered.add_permits(1);
        self.released.acquire().await.unwrap().forget();
        "released"
    }

    /// An answer whose head goes out long before its end.
    async fn slow(self) -> axum::body::Body {
        let begun = stream::once(async { Ok::<_, Infallible>("begun") });
        axum::body::Body::from_stream(begun.chain(stream::once(async { Ok(self.hold().await) })))
    }

    async fn entered(&self) {
        within(self.entered.acquire()).await.unwrap().forget();
    }
}

/// Reads the body by hand, as a gateway does, and tells a stall from any other failure.
async fn tell(request: axum::extract::Request) -> StatusCode {
    let Err(error) = axum::body::to_bytes(request.into_body(), usize::MAX).await else { return StatusCode::OK };
    let stalled =
        std::iter::successors(Some(&error as &dyn Error), |error| (*error).source()).any(|e| e.is::<BodyTimedOut>());
    if stalled { StatusCode::REQUEST_TIMEOUT } else { StatusCode::BAD_REQUEST }
}

fn router(gate: &Gate) -> Router {
    let (gate, slow) = (gate.clone(), gate.clone());
    Router::new()
        .route("/peer", get(|Extension(peer): Extension<Peer>| async move { format!("{peer:?}") }))
        .route("/slow", get(move || slow.slow()))
        .route("/hold", get(move || gate.hold()))
        .route("/body", post(|body: bytes::Bytes| async move { body.len().to_string() }))
        .route("/tell", post(tell))
        .route("/ignore", post(|| async { "ignored" }))
        .route(
            "/panic",
            get(async || {
                if BOUND > SHORT {
                    panic!("a handler's own")
                }
            }),
        )
}

struct Server {
    address: SocketAddr,
    gate: Gate,
    ending: Ending,
    task: JoinHandle<()>,
}

impl Server {
    async fn start(limits: Limits) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let (address, gate, ending) = (listener.local_addr().unwrap(), Gate::new(), Ending::default());
        let part = ending.part(Some(|path| path != "/hold"));
        let task = tokio::spawn(serve_tcp(listener, router(&gate), limits, part));
        Self { address, gate, ending, task }
    }

    async fn connect(&self) -> TcpStream {
        within(TcpStream::connect(self.address)).await.unwrap()
    }

    /// A new connection that has sent these bytes.
    async fn send(&self, bytes: &[u8]) -> TcpStream {
        let mut client = self.connect().await;
        client.write_all(bytes).await.unwrap();
        client
    }

    async fn assert_serves(&self) {
        let mut client = self.send(GET).await;
        assert!(answer(&mut client).await.contains("200 OK"));
    }
}

/// One answer that has a length; the connection stays open.
async fn answer(client: &mut (impl AsyncRead + Unpin)) -> String {
    let mut seen = Vec::new();
    loop {
        let byte = within(client.read_u8()).await.expect("an answer");
        seen.push(byte);
        if seen.ends_with(b"\r\n\r\n") {
            break;
        }
    }
    let head = String::from_utf8(seen).unwrap();
    let length = head.lines().find_map(|line| line.strip_prefix("content-length: ")).expect("a length");
    let mut body = vec![0; length.parse().unwrap()];
    within(client.read_exact(&mut body)).await.unwrap();
    head + std::str::from_utf8(&body).unwrap()
}

/// Everything until the server closes the connection, in whichever way.
async fn rest(client: &mut (impl AsyncRead + Unpin)) -> String {
    let mut seen = Vec::new();
    let _ = within(client.read_to_end(&mut seen)).await;
    String::from_utf8(seen).unwrap()
}

#[tokio::test]
async fn a_request_over_tcp_sees_its_peer() {
    let server = Server::start(patient()).await;
    let mut client = server.connect().await;
    for _ in 0..3 {
        client.write_all(GET).await.unwrap();
        let answer = answer(&mut client).await;
        assert!(answer.starts_with("HTTP/1.1 200 OK"), "{answer}");
        assert!(answer.ends_with(&format!("{:?}", Peer::Tcp(client.local_addr().unwrap()))), "{answer}");
    }
}

#[tokio::test]
async fn a_request_over_a_unix_socket_sees_its_user() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("socket");
    let uid = folder.path().metadata().unwrap().uid();
    let ending = Ending::default();
    let listener = UnixListener::bind(&path).unwrap();
    let task = tokio::spawn(serve_unix(listener, router(&Gate::new()), patient(), ending.part(None)));

    let mut client = within(UnixStream::connect(&path)).await.unwrap();
    client.write_all(GET).await.unwrap();
    let answer = answer(&mut client).await;
    assert!(answer.ends_with(&format!("{:?}", Peer::Local { uid: Some(uid) })), "{answer}");

    ending.stop();
    within(task).await.unwrap();
    assert_eq!(rest(&mut client).await, "");
    assert!(within(UnixStream::connect(&path)).await.is_err());
}

#[tokio::test]
async fn half_a_head_is_cut_off() {
    let server = Server::start(Limits { header_timeout: SHORT, ..patient() }).await;
    let mut silent = server.connect().await;
    let mut half = server.send(&GET[..20]).await;
    let begun = Instant::now();
    assert_eq!(rest(&mut half).await, "");
    assert!(begun.elapsed() >= SHORT / 2, "after {:?}", begun.elapsed());
    assert_eq!(rest(&mut silent).await, "");
    server.assert_serves().await;
}

#[tokio::test]
async fn an_idle_connection_is_closed_after_the_header_timeout() {
    let server = Server::start(Limits { header_timeout: SHORT, ..patient() }).await;
    let mut client = server.send(GET).await;
    answer(&mut client).await;
    assert_eq!(rest(&mut client).await, "");
}

#[tokio::test]
async fn the_header_timeout_does_not_count_the_answer() {
    let server = Server::start(Limits { header_timeout: SHORT, ..patient() }).await;
    let mut client = server.send(HOLD).await;
    server.gate.entered().await;
    sleep(SHORT * 3).await;
    server.gate.released.add_permits(1);
    assert!(answer(&mut client).await.ends_with("released"));
}

#[tokio::test]
async fn a_stalled_body_is_answered_and_its_connection_closed() {
    let server = Server::start(Limits { body_idle_timeout: SHORT, ..patient() }).await;
    for (path, framing, piece, status) in [
        ("/body", "content-length: 10", "abc", "400 Bad Request"),
        ("/body", "content-length: 10", "", "400 Bad Request"),
        ("/body", "transfer-encoding: chunked", "3\r\nabc\r\n", "400 Bad Request"),
        ("/body", "content-length: 10\r\nexpect: 100-continue", "", "400 Bad Request"),
        ("/tell", "content-length: 10", "abc", "408 Request Timeout"),
        ("/ignore", "content-length: 10", "abc", "200 OK"),
    ] {
        let request = format!("POST {path} HTTP/1.1\r\nhost: test\r\n{framing}\r\n\r\n{piece}");
        let mut client = server.send(request.as_bytes()).await;
        let answer = rest(&mut client).await;
        assert!(answer.contains(status), "{request}: {answer}");
        if path == "/body" {
            assert!(answer.ends_with(&BodyTimedOut(SHORT).to_string()), "{request}: {answer}");
        }
    }
    server.assert_serves().await;
}

#[tokio::test]
async fn a_slow_body_that_goes_on_arrives() {
    let idle = Duration::from_secs(1);
    let server = Server::start(Limits { body_idle_timeout: idle, ..patient() }).await;
    let mut client = server.send(b"POST /body HTTP/1.1\r\nhost: test\r\ncontent-length: 5\r\n\r\n").await;
    let begun = Instant::now();
    for _ in 0..5 {
        sleep(idle * 3 / 10).await;
        client.write_all(b"x").await.unwrap();
    }
    assert!(begun.elapsed() > idle);
    assert!(answer(&mut client).await.ends_with("\r\n5"));

    // The next body on the connection is timed from its own start.
    client.write_all(b"POST /body HTTP/1.1\r\nhost: test\r\ncontent-length: 2\r\n\r\nx").await.unwrap();
    sleep(idle / 2).await;
    client.write_all(b"x").await.unwrap();
    assert!(answer(&mut client).await.ends_with("\r\n2"));
}

#[tokio::test]
async fn a_connection_over_the_limit_waits_for_another_to_close() {
    let server = Server::start(Limits { connections: 2, ..patient() }).await;
    let (mut first, mut second) = (server.send(GET).await, server.send(GET).await);
    answer(&mut first).await;
    answer(&mut second).await;

    let mut third = server.send(GET).await;
    assert!(timeout(SHORT, third.readable()).await.is_err(), "served over the limit");
    drop(first);
    assert!(answer(&mut third).await.contains("200 OK"));
    second.write_all(GET).await.unwrap();
    assert!(answer(&mut second).await.contains("200 OK"));
}

#[tokio::test]
async fn connections_that_end_make_room() {
    let server = Server::start(Limits { connections: 1, ..patient() }).await;
    for _ in 0..50 {
        server.assert_serves().await;
    }
}

#[tokio::test]
async fn the_stop_lets_a_request_finish_and_takes_no_more() {
    let server = Server::start(patient()).await;
    let mut idle = server.send(GET).await;
    answer(&mut idle).await;
    let mut busy = server.send(HOLD).await;
    server.gate.entered().await;

    server.ending.stop();
    assert_eq!(rest(&mut idle).await, "");
    assert!(within(TcpStream::connect(server.address)).await.is_err(), "the listener is still open");
    assert!(!server.task.is_finished());

    server.gate.released.add_permits(1);
    let answer = rest(&mut busy).await;
    assert!(answer.contains("connection: close") && answer.ends_with("released"), "{answer}");
    within(server.task).await.unwrap();
}

#[tokio::test]
async fn the_stop_is_heard_at_the_connection_limit() {
    let server = Server::start(Limits { connections: 1, ..patient() }).await;
    let mut client = server.send(GET).await;
    answer(&mut client).await;
    let mut waiting = server.send(GET).await;
    server.ending.stop();
    within(server.task).await.unwrap();
    assert_eq!(rest(&mut waiting).await, "");
}

#[tokio::test]
async fn the_stop_drops_what_outlasts_the_grace() {
    let server = Server::start(Limits { grace: SHORT, ..patient() }).await;
    let mut client = server.send(HOLD).await;
    server.gate.entered().await;
    let begun = Instant::now();
    server.ending.stop();
    within(server.task).await.unwrap();
    assert!(begun.elapsed() >= SHORT, "after {:?}", begun.elapsed());
    assert!(server.gate.dropped.is_cancelled());
    assert_eq!(rest(&mut client).await, "");
}

#[tokio::test]
async fn dropping_the_future_ends_its_connections() {
    let server = Server::start(patient()).await;
    let mut client = server.send(HOLD).await;
    server.gate.entered().await;
    server.task.abort();
    within(server.gate.dropped.cancelled()).await;
    assert_eq!(rest(&mut client).await, "");
}

#[tokio::test]
async fn a_client_that_leaves_ends_its_request() {
    let server = Server::start(patient()).await;
    let client = server.send(HOLD).await;
    server.gate.entered().await;
    drop(client);
    within(server.gate.dropped.cancelled()).await;
}

#[tokio::test]
async fn what_is_no_request_is_refused_and_the_server_goes_on() {
    let server = Server::start(patient()).await;
    let mut garbage = server.send(b"\x16\x03\x01\x02\x00\x01\x00\r\n\r\n").await;
    let answer = rest(&mut garbage).await;
    assert!(answer.is_empty() || answer.starts_with("HTTP/1.1 400"), "{answer}");

    let mut large = b"GET /peer HTTP/1.1\r\nlarge: ".to_vec();
    large.resize(BUFFER, b'x');
    let answer = rest(&mut server.send(&large).await).await;
    assert!(answer.starts_with("HTTP/1.1 431"), "{answer}");

    for (headers, status) in [(100, "200"), (101, "431")] {
        let many = format!("GET /peer HTTP/1.1\r\nconnection: close\r\n{}\r\n", "many: x\r\n".repeat(headers - 1));
        let answer = rest(&mut server.send(many.as_bytes()).await).await;
        assert!(answer.starts_with(&format!("HTTP/1.1 {status}")), "{headers}: {answer}");
    }
    server.assert_serves().await;
}

#[tokio::test]
async fn a_panic_costs_its_own_connection() {
    let server = Server::start(patient()).await;
    let mut client = server.send(b"GET /panic HTTP/1.1\r\nhost: test\r\n\r\n").await;
    assert_eq!(rest(&mut client).await, "");
    server.assert_serves().await;
    server.ending.stop();
    within(server.task).await.unwrap();
}

/// A listener whose first accepts fail.
struct Failing {
    listener: TcpListener,
    errors: Mutex<VecDeque<io::Error>>,
}

impl Listen for Failing {
    type Io = TcpStream;

    async fn accept(&self) -> io::Result<(TcpStream, Peer)> {
        let error = self.errors.lock().unwrap().pop_front();
        match error {
            Some(error) => Err(error),
            None => Listen::accept(&self.listener).await,
        }
    }
}

/// How long it takes to the first answer when these accepts fail first.
async fn time_to_answer(errors: VecDeque<io::Error>) -> Duration {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let listener = Failing { listener, errors: Mutex::new(errors) };
    let begun = Instant::now();
    let task = tokio::spawn(serve(listener, router(&Gate::new()), patient(), Ending::default().part(None)));
    let mut client = within(TcpStream::connect(address)).await.unwrap();
    client.write_all(GET).await.unwrap();
    assert!(answer(&mut client).await.contains("200 OK"));
    task.abort();
    begun.elapsed()
}

#[tokio::test]
async fn accepting_goes_on_after_failures() {
    let aborted = (0..1000).map(|_| io::ErrorKind::ConnectionAborted.into()).collect();
    let took = time_to_answer(aborted).await;
    assert!(took < BOUND / 2, "{took:?}");

    // EMFILE and ENFILE.
    let full = [24, 23, 24].map(io::Error::from_raw_os_error);
    let took = time_to_answer(full.into()).await;
    assert!(took >= PAUSE * 3, "{took:?}");
}

#[tokio::test]
async fn failures_to_accept_are_logged_once_in_a_while() {
    let mut failures = AcceptFailures::default();
    for _ in 0..5 {
        failures.log(&io::Error::from_raw_os_error(24));
    }
    assert!(failures.logged.is_some());
    assert_eq!(failures.unlogged, 4);
}

/// Asks, and says whether the answer ends the connection.
async fn is_last(client: &mut TcpStream) -> bool {
    client.write_all(GET).await.unwrap();
    let answer = answer(client).await;
    assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");
    answer.contains("connection: close")
}

#[tokio::test]
async fn draining_ends_busy_connections_with_their_next_answer_and_idle_ones_after_a_while() {
    let server = Server::start(patient()).await;
    let (mut busy, mut idle) = (server.connect().await, server.connect().await);
    assert!(!is_last(&mut busy).await && !is_last(&mut idle).await);
    server.ending.drain();
    let begun = Instant::now();
    assert!(is_last(&mut busy).await);
    assert_eq!(rest(&mut busy).await, "");
    let mut late = server.connect().await;
    assert!(is_last(&mut late).await, "new connections are still accepted");
    assert_eq!(rest(&mut idle).await, "");
    assert!(begun.elapsed() >= SHORT, "an idle client had {:?} to ask", begun.elapsed());
    assert!(!server.task.is_finished());
    within(server.ending.close()).await;
    within(server.task).await.unwrap();
}

#[tokio::test]
async fn a_closed_server_leaves_connections_in_the_queue_for_whoever_comes_next() {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    listener.set_nonblocking(true).unwrap();
    let address = listener.local_addr().unwrap();
    let again = || TcpListener::from_std(listener.try_clone().unwrap()).unwrap();
    let serve = |ending: &Ending| tokio::spawn(serve_tcp(again(), router(&Gate::new()), patient(), ending.part(None)));
    let first = Ending::default();
    let task = serve(&first);
    first.drain();
    within(first.close()).await;
    within(task).await.unwrap();
    let mut waiting = within(TcpStream::connect(address)).await.unwrap();
    waiting.write_all(GET).await.unwrap();
    let second = Ending::default();
    let task = serve(&second);
    assert!(answer(&mut waiting).await.contains("200 OK"));
    second.stop();
    within(task).await.unwrap();
}

#[tokio::test]
async fn closing_lasts_until_what_was_accepted_in_the_last_moment_is_known() {
    let server = Server::start(patient()).await;
    server.assert_serves().await;
    let closing = server.ending.close();
    // The server has not run since, and may have something in its hands.
    let mut closing = pin!(closing);
    assert!(closing.as_mut().now_or_never().is_none());
    within(closing).await;
    assert!(within(TcpStream::connect(server.address)).await.is_err(), "the listener is still open");
    within(server.task).await.unwrap();
}

#[tokio::test]
async fn the_state_is_held_by_what_may_need_it_and_by_nothing_else() {
    // In these tests, only requests to /hold need none.
    let server = Server::start(patient()).await;
    let released = async |limit| timeout(limit, server.ending.released()).await.is_ok();
    assert!(released(BOUND).await);
    let mut idle = server.connect().await;
    assert!(!is_last(&mut idle).await);
    assert!(!released(SHORT).await, "another request may come");
    drop(idle);
    assert!(released(BOUND).await);
    let mut free = server.send(HOLD).await;
    server.gate.entered().await;
    assert!(released(BOUND).await, "it does not need the state");
    let stalled = server.send(b"POST /body HTTP/1.1\r\nhost: test\r\ncontent-length: 9\r\n\r\n").await;
    within(async {
        while !server.ending.is_held() {
            sleep(PAUSE).await
        }
    })
    .await;
    server.ending.drain();
    within(server.ending.close()).await;
    assert!(!released(SHORT).await, "it does");
    server.ending.abandon();
    assert!(released(BOUND).await);
    server.gate.released.add_permits(1);
    assert!(rest(&mut free).await.ends_with("released"), "only what held the state was dropped");
    drop(stalled);
    within(server.task).await.unwrap();
}

#[tokio::test]
async fn a_client_whose_long_answer_did_not_say_so_may_ask_once_more() {
    let server = Server::start(patient()).await;
    let mut client = server.send(b"GET /slow HTTP/1.1\r\nhost: test\r\n\r\n").await;
    server.gate.entered().await;
    server.ending.drain();
    within(server.ending.close()).await;
    // Longer than an idle connection is kept.
    sleep(QUIET + SHORT).await;
    server.gate.released.add_permits(1);
    let mut seen = Vec::new();
    while !seen.ends_with(b"0\r\n\r\n") {
        seen.push(within(client.read_u8()).await.unwrap());
    }
    let seen = String::from_utf8(seen).unwrap();
    assert!(seen.contains("begun") && seen.contains("released") && !seen.contains("connection: close"), "{seen}");
    assert!(is_last(&mut client).await);
    within(server.task).await.unwrap();
}

#[tokio::test]
async fn some_servers_end_before_the_others_and_all_of_them_with_all() {
    let all = Ending::default();
    let serve = |ending: &Ending| {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        listener.set_nonblocking(true).unwrap();
        let (address, part) = (listener.local_addr().unwrap(), ending.part(None));
        let listener = TcpListener::from_std(listener).unwrap();
        (address, tokio::spawn(serve_tcp(listener, router(&Gate::new()), patient(), part)))
    };
    let (some, others) = (all.below(), all.below());
    let ((gone, ended), (here, lasts)) = (serve(&some), serve(&others));
    some.part_with_all();
    within(ended).await.unwrap();
    assert!(TcpStream::connect(gone).await.is_err());
    let mut client = TcpStream::connect(here).await.unwrap();
    client.write_all(GET).await.unwrap();
    assert!(client.read_u8().await.is_ok(), "the others go on");
    all.drain();
    within(all.close()).await;
    within(others.closing()).await;
    assert!(TcpStream::connect(here).await.is_err(), "nobody listens once all are closed");
    within(lasts).await.unwrap();
    // One that comes late does not even begin.
    let (_, late) = serve(&all.below());
    within(late).await.unwrap();
}
