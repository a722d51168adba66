use std::io::ErrorKind;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use tempfile::TempDir;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::{TcpListener, UnixListener};
use tokio::task::JoinSet;

use super::*;
use crate::engine::client::Bounds;

/// What the engine of a test does with a request.
#[derive(Clone, Copy)]
enum Act {
    /// Answers with this status and body.
    Answer(u16, &'static str),
    /// Answers with these bytes.
    Say(&'static str),
    /// Closes the connection.
    HangUp,
    /// Keeps it open and says nothing more.
    Stay,
    /// Sends a body without end.
    Flood,
}

/// Says what to do about a request line, as `GET /health`.
type Script = fn(&str) -> Act;

/// An engine at both kinds of addresses. It ends with its owner.
struct Fake {
    addresses: Vec<Endpoint>,
    seen: Arc<Mutex<Vec<String>>>,
    flooded: Arc<AtomicUsize>,
    tasks: JoinSet<()>,
    directory: TempDir,
}

impl Fake {
    async fn new(script: Script) -> Self {
        let directory = TempDir::new().unwrap();
        let path = directory.path().join("engine");
        let (unix, tcp) = (UnixListener::bind(&path).unwrap(), TcpListener::bind("127.0.0.1:0").await.unwrap());
        let addresses = vec![Endpoint::Unix(path), Endpoint::Tcp(tcp.local_addr().unwrap())];
        let mut fake =
            Self { addresses, seen: Arc::default(), flooded: Arc::default(), tasks: JoinSet::new(), directory };
        let (seen, flooded) = (Arc::clone(&fake.seen), Arc::clone(&fake.flooded));
        fake.tasks.spawn(async move {
            let mut connections = JoinSet::new();
            loop {
                let (seen, flooded) = (Arc::clone(&seen), Arc::clone(&flooded));
                tokio::select! {
                    Ok((stream, _)) = unix.accept() => connections.spawn(serve(stream, script, seen, flooded)),
                    Ok((stream, _)) = tcp.accept() => connections.spawn(serve(stream, script, seen, flooded)),
                };
            }
        });
        fake
    }

    fn requests(&self) -> Vec<String> {
        std::mem::take(&mut self.seen.lock().unwrap())
    }

    /// Nobody listens any more, and the addresses stay.
    async fn end(&mut self) {
        self.tasks.shutdown().await;
        assert!(self.directory.path().join("engine").exists());
    }
}

async fn serve<S: AsyncRead + AsyncWrite + Unpin>(
    mut stream: S,
    script: Script,
    seen: Arc<Mutex<Vec<String>>>,
    flooded: Arc<AtomicUsize>,
) {
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        match stream.read_u8().await {
            Ok(byte) => head.push(byte),
            Err(_) => return,
        }
    }
    let head = String::from_utf8(head).unwrap();
    let (line, fields) = head.split_once(" HTTP/1.1\r\n").unwrap();
    assert!(fields.to_ascii_lowercase().contains("host: localhost\r\n"), "{head}");
    seen.lock().unwrap().push(line.to_owned());
    match script(line) {
        Act::Answer(status, body) => {
            let text = format!("HTTP/1.1 {status} X\r\ncontent-length: {}\r\n\r\n{body}", body.len());
            let _ = stream.write_all(text.as_bytes()).await;
        }
        Act::Say(text) => {
            let _ = stream.write_all(text.as_bytes()).await;
        }
        Act::HangUp => {}
        Act::Stay => std::future::pending().await,
        Act::Flood => {
            let _ = stream.write_all(b"HTTP/1.1 200 X\r\n\r\n").await;
            while stream.write_all(&[b'a'; 4096]).await.is_ok() {
                flooded.fetch_add(4096, Ordering::Relaxed);
            }
        }
    }
}

/// How long anything may take in a test.
const PATIENCE: Duration = Duration::from_secs(20);

/// With limits that a test can wait for.
const HASTY: Vllm = Vllm {
    kind: EngineKind::Vllm,
    limits: Limits {
        probe: Bounds { time: Duration::from_millis(300), size: 1024 },
        metrics: Bounds { time: Duration::from_millis(300), size: 1024 },
        sleep: Bounds { time: Duration::from_millis(300), size: 1024 },
    },
};

/// With limits that are never met.
const CALM: Vllm = Vllm {
    kind: EngineKind::Vllm,
    limits: Limits {
        probe: Bounds { time: Duration::from_secs(30), size: 1024 },
        metrics: Bounds { time: Duration::from_secs(30), size: 1024 },
        sleep: Bounds { time: Duration::from_secs(30), size: 1024 },
    },
};

async fn probes(engine: &Vllm, script: Script, expected: Probe, requests: &[&str]) {
    let fake = Fake::new(script).await;
    for at in &fake.addresses {
        assert_eq!(engine.probe(at).await, expected, "{at:?}");
        assert_eq!(fake.requests(), requests, "{at:?}");
    }
}

#[tokio::test]
async fn an_engine_is_ready_when_it_says_so() {
    probes(&CALM, |_| Act::Answer(200, ""), Probe::Ready, &["GET /health"]).await;
    let without_health = |line: &str| if line == "GET /health" { Act::Answer(404, "") } else { Act::Answer(200, "{}") };
    probes(&CALM, without_health, Probe::Ready, &["GET /health", "GET /v1/models"]).await;
}

#[tokio::test]
async fn an_engine_that_says_it_is_dead_is_believed() {
    probes(&CALM, |_| Act::Answer(503, ""), Probe::Dead, &["GET /health"]).await;
}

#[tokio::test]
async fn an_empty_reply_is_an_engine_that_does_not_listen_yet() {
    probes(&CALM, |_| Act::HangUp, Probe::NotListening, &["GET /health"]).await;
    probes(&CALM, |_| Act::Say("HTTP/1.1 200 OK\r\n"), Probe::NotListening, &["GET /health"]).await;
}

#[tokio::test]
async fn an_engine_that_stays_silent_is_not_waited_for() {
    let silent = probes(&HASTY, |_| Act::Stay, Probe::Silent, &["GET /health"]);
    tokio::time::timeout(PATIENCE, silent).await.unwrap();
}

#[tokio::test]
async fn what_makes_no_sense_is_neither_ready_nor_silent() {
    let both = ["GET /health", "GET /v1/models"];
    probes(&CALM, |_| Act::Answer(404, ""), Probe::Unwell, &both).await;
    probes(&CALM, |_| Act::Answer(204, ""), Probe::Unwell, &both).await;
    probes(&CALM, |_| Act::Say("SSH-2.0-x\r\n\r\n"), Probe::Unwell, &["GET /health"]).await;
    probes(&CALM, |_| Act::Flood, Probe::Unwell, &["GET /health"]).await;
}

#[tokio::test]
async fn an_address_without_an_engine_refuses() {
    let mut fake = Fake::new(|_| Act::Answer(200, "")).await;
    fake.end().await;
    let nowhere = Endpoint::Unix(fake.directory.path().join("nowhere"));
    for at in fake.addresses.iter().chain([&nowhere]) {
        assert_eq!(CALM.probe(at).await, Probe::NotListening, "{at:?}");
        assert!(matches!(CALM.sleep(at).await, Err(CallError::Refused)), "{at:?}");
    }
    let too_long = Endpoint::Unix("/".repeat(300).into());
    assert_eq!(CALM.probe(&too_long).await, Probe::Unwell);
    let wrong = CALM.sample(&too_long).await.unwrap_err();
    assert!(matches!(&wrong, CallError::Io(error) if error.kind() == ErrorKind::InvalidInput), "{wrong}");
}

#[tokio::test]
async fn sleeping_and_waking_are_done_when_the_engine_says_so() {
    let fake = Fake::new(|line| match line {
        "GET /is_sleeping" => Act::Answer(200, r#"{"is_sleeping":true}"#),
        _ => Act::Answer(200, ""),
    })
    .await;
    for at in &fake.addresses {
        CALM.sleep(at).await.unwrap();
        CALM.wake_up(at).await.unwrap();
        CALM.reset_prefix_cache(at).await.unwrap();
        assert!(CALM.is_sleeping(at).await.unwrap());
        let expected = ["POST /sleep?level=1", "POST /wake_up", "POST /reset_prefix_cache", "GET /is_sleeping"];
        assert_eq!(fake.requests(), expected);
    }
}

#[tokio::test]
async fn a_refused_sleep_is_an_error() {
    for script in [(|_| Act::Answer(500, "")) as Script, |_| Act::Answer(404, ""), |_| Act::Answer(307, "")] {
        let fake = Fake::new(script).await;
        let at = &fake.addresses[0];
        for result in [CALM.sleep(at).await, CALM.wake_up(at).await, CALM.reset_prefix_cache(at).await] {
            assert!(matches!(result, Err(CallError::Status { .. })), "{result:?}");
        }
        assert!(matches!(CALM.is_sleeping(at).await, Err(CallError::Status { .. })));
    }
    let fake = Fake::new(|_| Act::Stay).await;
    let slow = tokio::time::timeout(PATIENCE, HASTY.sleep(&fake.addresses[0])).await.unwrap();
    assert!(matches!(slow, Err(CallError::Timeout(_))), "{slow:?}");
}

#[tokio::test]
async fn an_answer_that_is_no_json_says_nothing_about_sleep() {
    let fake = Fake::new(|_| Act::Answer(200, "yes")).await;
    assert!(matches!(CALM.is_sleeping(&fake.addresses[0]).await, Err(CallError::Malformed("/is_sleeping"))));
}

#[tokio::test]
async fn metrics_are_read_within_bounds() {
    let fake = Fake::new(|_| Act::Answer(200, "vllm:num_requests_running 2.0\n")).await;
    for at in &fake.addresses {
        assert_eq!(CALM.sample(at).await.unwrap(), Sample { running: Some(2), ..Sample::default() });
    }
    assert_eq!(fake.requests(), ["GET /metrics", "GET /metrics"]);
    let flood = Fake::new(|_| Act::Flood).await;
    for at in &flood.addresses {
        assert!(matches!(CALM.sample(at).await, Err(CallError::TooLong(1024))));
    }
    // What was not read lies in the sockets' buffers.
    assert!(flood.flooded.load(Ordering::Relaxed) < 32 << 20);
    let cut = Fake::new(|_| Act::Say("HTTP/1.1 200 X\r\ncontent-length: 100\r\n\r\nvllm:")).await;
    assert!(matches!(CALM.sample(&cut.addresses[0]).await, Err(CallError::Unanswered)));
    let busy = Fake::new(|_| Act::Answer(500, "")).await;
    assert!(matches!(CALM.sample(&busy.addresses[1]).await, Err(CallError::Status { .. })));
}

#[tokio::test]
async fn a_call_that_is_dropped_leaves_no_connection() {
    let listener = TcpListener::bind(SocketAddr::from(([127, 0, 0, 1], 0))).await.unwrap();
    let at = Endpoint::Tcp(listener.local_addr().unwrap());
    let (mut stream, read) = {
        let call = CALM.sleep(&at);
        tokio::pin!(call);
        let accepted = async {
            let (mut stream, _) = listener.accept().await.unwrap();
            let read = stream.read(&mut [0; 1024]).await.unwrap();
            (stream, read)
        };
        tokio::select! {
            result = &mut call => panic!("{result:?}"),
            accepted = accepted => accepted,
        }
    };
    assert!(read > 0);
    let end = tokio::time::timeout(Duration::from_secs(10), stream.read(&mut [0; 1024])).await;
    assert_eq!(end.unwrap().unwrap_or(0), 0);
}

#[test]
fn the_simulators_image_is_the_machines_own() {
    let sim = SIM.image(None, Some("0.11.0"), None);
    assert_eq!((sim.reference().as_str(), sim.moves), ("muster-sim:latest", false));
    let vllm = VLLM.image(None, Some("0.11.0"), None);
    assert_eq!((vllm.reference().as_str(), vllm.moves), ("vllm/vllm-openai:v0.11.0", false));
    assert_eq!(VLLM.image(Some("0.8.5"), None, Some("mirror/vllm")).reference(), "mirror/vllm:v0.8.5");
}
