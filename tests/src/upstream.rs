//! A provider for tests: it keeps every request as it came, byte by byte, and answers as the test tells it, badly if it must.

use std::fmt;
use std::io::{self, BufRead, BufReader, ErrorKind, Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use crate::process::wait_for;

/// How long something that must come may take.
const LIMIT: Duration = Duration::from_secs(20);

/// How often a provider that waits looks whether its client is still there.
const LOOK: Duration = Duration::from_millis(2);

/// Something that a test lets happen when it is ready. Clones are the same.
#[derive(Clone, Debug, Default)]
pub struct Gate(Arc<(Mutex<bool>, Condvar)>);

impl Gate {
    /// A closed one.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Lets pass whoever waits, now and later.
    pub fn open(&self) {
        *locked(&self.0.0) = true;
        self.0.1.notify_all();
    }

    /// Whether it has been opened, at the latest after this time.
    fn opened_within(&self, limit: Duration) -> bool {
        let (opened, _) = self.0.1.wait_timeout(locked(&self.0.0), limit).unwrap_or_else(PoisonError::into_inner);
        *opened
    }
}

fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// A request as it came.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Received {
    /// The method.
    pub method: String,
    /// The path with its query.
    pub path: String,
    /// The headers, with names in lower case.
    pub headers: Vec<(String, String)>,
    /// The body.
    pub body: Vec<u8>,
    /// The number of the connection that it came on, counted from 0.
    pub connection: usize,
    /// How many requests came on this connection before it.
    pub before: usize,
}

impl Received {
    /// A header; empty if there is none.
    #[must_use]
    pub fn header(&self, name: &str) -> &str {
        self.headers.iter().find(|(found, _)| found == name).map_or("", |(_, value)| value)
    }

    /// The body as text.
    ///
    /// # Panics
    /// When it is none.
    #[must_use]
    pub fn text(&self) -> &str {
        std::str::from_utf8(&self.body).expect("text")
    }

    /// The body as JSON.
    ///
    /// # Panics
    /// When it is none.
    #[must_use]
    pub fn json(&self) -> Value {
        serde_json::from_slice(&self.body).expect("JSON")
    }
}

#[derive(Clone, Debug)]
enum Step {
    Send(Vec<u8>),
    /// Each byte on its own.
    Drip(Vec<u8>),
    Wait(Gate),
    /// The same piece again and again.
    Flood(Vec<u8>, usize),
    /// Until the client is gone.
    Silence,
    Close,
}

/// What a provider does with a request, step by step. The connection is kept afterwards unless the last step closes it.
#[derive(Clone, Debug, Default)]
pub struct Answer(Vec<Step>);

/// An answer in chunks of this type, whose head has been sent.
fn chunked(kind: &str) -> Answer {
    Answer::default()
        .send(format!("HTTP/1.1 200 OK\r\ncontent-type: {kind}\r\ntransfer-encoding: chunked\r\n\r\n").as_bytes())
}

impl Answer {
    /// These bytes, as they are.
    #[must_use]
    pub fn raw(bytes: &[u8]) -> Self {
        Self::default().send(bytes)
    }

    /// A body of known length. `headers` are whole lines.
    #[must_use]
    pub fn with_headers(status: u16, headers: &[&str], body: &[u8]) -> Self {
        let mut bytes = format!("HTTP/1.1 {status} Status\r\ncontent-length: {}\r\n", body.len()).into_bytes();
        for line in headers {
            bytes.extend_from_slice(line.as_bytes());
            bytes.extend_from_slice(b"\r\n");
        }
        bytes.extend_from_slice(b"\r\n");
        bytes.extend_from_slice(body);
        Self::raw(&bytes)
    }

    /// A body of this type.
    #[must_use]
    pub fn body(status: u16, kind: &str, body: &[u8]) -> Self {
        Self::with_headers(status, &[&format!("content-type: {kind}")], body)
    }

    /// JSON.
    #[must_use]
    pub fn json(status: u16, body: &Value) -> Self {
        Self::body(status, "application/json", body.to_string().as_bytes())
    }

    /// What a provider answers to a request of chat, completions or embeddings: it calls the model what the request called it.
    #[must_use]
    pub fn usual(request: &Received) -> Self {
        let body: Value = serde_json::from_slice(&request.body).unwrap_or_default();
        let model = &body["model"];
        let usage = json!({"prompt_tokens": 1, "completion_tokens": 1, "total_tokens": 2});
        let message = json!({"role": "assistant", "content": "yes"});
        if body["stream"] == true {
            let event = |delta: Value, finish: Value| {
                let choices = json!([{"index": 0, "delta": delta, "text": "yes", "finish_reason": finish}]);
                json!({"id": "c-1", "object": "chat.completion.chunk", "created": 1_700_000_000, "model": model, "choices": choices})
            };
            let parts = [
                event(json!({"role": "assistant", "content": ""}), Value::Null),
                event(json!({"content": "yes"}), json!("stop")),
            ];
            let events =
                parts.iter().fold(Self::events(), |answer, part| answer.chunk(format!("data: {part}\n\n").as_bytes()));
            return events.chunk(b"data: [DONE]\n\n").end();
        }
        let answer = match request.path.rsplit('/').next().unwrap_or_default() {
            "embeddings" => {
                let data = json!([{"object": "embedding", "index": 0, "embedding": [0.5, -0.25]}]);
                json!({"object": "list", "model": model, "data": data, "usage": usage})
            }
            "completions" if !request.path.ends_with("chat/completions") => {
                let choices = json!([{"index": 0, "text": "yes", "logprobs": null, "finish_reason": "stop"}]);
                json!({"id": "t-1", "object": "text_completion", "created": 1_700_000_000, "model": model, "choices": choices, "usage": usage})
            }
            _ => {
                let choices = json!([{"index": 0, "message": message, "finish_reason": "stop"}]);
                json!({"id": "c-1", "object": "chat.completion", "created": 1_700_000_000, "model": model, "choices": choices, "usage": usage})
            }
        };
        Self::json(200, &answer)
    }

    /// The head of a stream of events. [`Self::chunk`] and [`Self::end`] follow.
    #[must_use]
    pub fn events() -> Self {
        chunked("text/event-stream; charset=utf-8")
    }

    /// The head of a JSON answer in chunks.
    #[must_use]
    pub fn json_in_chunks() -> Self {
        chunked("application/json")
    }

    /// One chunk.
    #[must_use]
    pub fn chunk(self, data: &[u8]) -> Self {
        self.send(&in_chunk(data))
    }

    /// The end of the chunks.
    #[must_use]
    pub fn end(self) -> Self {
        self.send(b"0\r\n\r\n")
    }

    /// The same chunk this many times.
    #[must_use]
    pub fn flood(mut self, data: &[u8], times: usize) -> Self {
        self.0.push(Step::Flood(in_chunk(data), times));
        self
    }

    /// Waits until the gate is open.
    #[must_use]
    pub fn wait(mut self, gate: &Gate) -> Self {
        self.0.push(Step::Wait(gate.clone()));
        self
    }

    /// Says nothing more until the client is gone.
    #[must_use]
    pub fn silence(mut self) -> Self {
        self.0.push(Step::Silence);
        self
    }

    /// Closes the connection.
    #[must_use]
    pub fn close(mut self) -> Self {
        self.0.push(Step::Close);
        self
    }

    /// Bytes, at once.
    #[must_use]
    pub fn send(mut self, bytes: &[u8]) -> Self {
        self.0.push(Step::Send(bytes.to_vec()));
        self
    }

    /// The same in packets of one byte.
    #[must_use]
    pub fn dripping(mut self) -> Self {
        for step in &mut self.0 {
            if let Step::Send(bytes) = step {
                *step = Step::Drip(std::mem::take(bytes));
            }
        }
        self
    }
}

fn in_chunk(data: &[u8]) -> Vec<u8> {
    let mut chunk = format!("{:x}\r\n", data.len()).into_bytes();
    chunk.extend_from_slice(data);
    chunk.extend_from_slice(b"\r\n");
    chunk
}

type Behaviour = dyn Fn(&Received) -> Answer + Send + Sync;

struct Shared {
    behaviour: Mutex<Arc<Behaviour>>,
    received: Mutex<Vec<Received>>,
    opened: AtomicUsize,
    /// Answers that the client did not wait for.
    given_up: AtomicUsize,
    sent: AtomicU64,
    hasty: AtomicBool,
    ending: AtomicBool,
}

/// A provider that listens on a port of its own. It ends when it is dropped.
pub struct Upstream {
    address: SocketAddr,
    shared: Arc<Shared>,
}

impl fmt::Debug for Upstream {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Upstream").field("address", &self.address).finish_non_exhaustive()
    }
}

impl Default for Upstream {
    fn default() -> Self {
        Self::new()
    }
}

impl Upstream {
    /// One that answers as usual.
    #[must_use]
    pub fn new() -> Self {
        Self::with(Answer::usual)
    }

    /// One that answers like this.
    ///
    /// # Panics
    /// When there is no port for it.
    #[must_use]
    pub fn with(behaviour: impl Fn(&Received) -> Answer + Send + Sync + 'static) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
        let address = listener.local_addr().expect("an address");
        let shared = Arc::new(Shared {
            behaviour: Mutex::new(Arc::new(behaviour)),
            received: Mutex::default(),
            opened: AtomicUsize::new(0),
            given_up: AtomicUsize::new(0),
            sent: AtomicU64::new(0),
            hasty: AtomicBool::new(false),
            ending: AtomicBool::new(false),
        });
        let accepting = Arc::clone(&shared);
        std::thread::spawn(move || {
            for stream in listener.incoming() {
                if accepting.ending.load(Ordering::Relaxed) {
                    return;
                }
                let Ok(stream) = stream else { continue };
                let (number, shared) = (accepting.opened.fetch_add(1, Ordering::Relaxed), Arc::clone(&accepting));
                std::thread::spawn(move || {
                    // How a connection ends is its client's business.
                    let _ = serve(&stream, number, &shared);
                });
            }
        });
        Self { address, shared }
    }

    /// Answers like this from now on.
    pub fn behave(&self, behaviour: impl Fn(&Received) -> Answer + Send + Sync + 'static) {
        *locked(&self.shared.behaviour) = Arc::new(behaviour);
    }

    /// Answers from now on before it reads a request's body, which its behaviour does not see then.
    pub fn be_hasty(&self) {
        self.shared.hasty.store(true, Ordering::Relaxed);
    }

    /// Gives this answer from now on.
    pub fn answer(&self, answer: Answer) {
        self.behave(move |_| answer.clone());
    }

    /// Host and port.
    #[must_use]
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Its URL with this path behind it.
    #[must_use]
    pub fn url(&self, path: &str) -> String {
        format!("http://{}{path}", self.address)
    }

    /// What has come so far.
    #[must_use]
    pub fn received(&self) -> Vec<Received> {
        locked(&self.shared.received).clone()
    }

    /// How many requests have come.
    #[must_use]
    pub fn requests(&self) -> usize {
        locked(&self.shared.received).len()
    }

    /// The newest of the requests.
    ///
    /// # Panics
    /// When there was none.
    #[must_use]
    #[track_caller]
    pub fn last(&self) -> Received {
        locked(&self.shared.received).last().expect("a request").clone()
    }

    /// Waits until so many requests have come since the start.
    ///
    /// # Panics
    /// When they do not come in time.
    pub fn wait_for_requests(&self, count: usize) {
        wait_for(LIMIT, "a request", || (self.requests() >= count).then_some(()));
    }

    /// How many connections have been opened.
    #[must_use]
    pub fn opened(&self) -> usize {
        self.shared.opened.load(Ordering::Relaxed)
    }

    /// How many answers the other side has closed the connection in the middle of.
    #[must_use]
    pub fn given_up(&self) -> usize {
        self.shared.given_up.load(Ordering::Relaxed)
    }

    /// How many bytes of answers the system has taken.
    #[must_use]
    pub fn sent(&self) -> u64 {
        self.shared.sent.load(Ordering::Relaxed)
    }

    /// An address where nobody listens.
    ///
    /// # Panics
    /// When there is no port.
    #[must_use]
    pub fn nobody() -> SocketAddr {
        TcpListener::bind("127.0.0.1:0").and_then(|listener| listener.local_addr()).expect("a port")
    }
}

impl Drop for Upstream {
    fn drop(&mut self) {
        self.shared.ending.store(true, Ordering::Relaxed);
        // So that the thread that accepts looks.
        let _ = TcpStream::connect(self.address);
    }
}

/// Whether the client has closed the connection.
fn is_gone(stream: &TcpStream) -> bool {
    let _ = stream.set_read_timeout(Some(LOOK));
    match stream.peek(&mut [0]) {
        Ok(0) => true,
        Ok(_) => false,
        Err(error) => !matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut | ErrorKind::Interrupted),
    }
}

/// Answers the requests of one connection.
fn serve(stream: &TcpStream, connection: usize, shared: &Shared) -> io::Result<()> {
    stream.set_nodelay(true)?;
    let mut reader = BufReader::new(stream);
    for before in 0.. {
        stream.set_read_timeout(None)?;
        let Some(mut request) = read(&mut reader)? else { return Ok(()) };
        (request.connection, request.before) = (connection, before);
        let hasty = shared.hasty.load(Ordering::Relaxed);
        if !hasty {
            request.body = body(&mut reader, &request)?;
        }
        let behaviour = Arc::clone(&locked(&shared.behaviour));
        let Answer(steps) = behaviour(&request);
        let unread = hasty.then(|| request.clone());
        locked(&shared.received).push(request);
        for step in &steps {
            match take(step, stream, shared) {
                Ok(true) => {}
                Ok(false) => return Ok(()),
                Err(error) => {
                    shared.given_up.fetch_add(1, Ordering::Relaxed);
                    return Err(error);
                }
            }
        }
        if let Some(request) = unread {
            body(&mut reader, &request)?;
        }
    }
    Ok(())
}

/// Takes a step. False if it was the last one.
fn take(step: &Step, mut stream: &TcpStream, shared: &Shared) -> io::Result<bool> {
    let write = |mut stream: &TcpStream, bytes: &[u8]| {
        stream.write_all(bytes)?;
        shared.sent.fetch_add(bytes.len() as u64, Ordering::Relaxed);
        Ok::<_, io::Error>(())
    };
    let ending = || shared.ending.load(Ordering::Relaxed);
    match step {
        Step::Send(bytes) => write(stream, bytes)?,
        Step::Drip(bytes) => {
            for byte in bytes {
                write(stream, &[*byte])?;
            }
        }
        Step::Flood(chunk, times) => {
            for _ in 0..*times {
                write(stream, chunk)?;
            }
        }
        Step::Wait(gate) => {
            while !gate.opened_within(LOOK) {
                if ending() {
                    return Ok(false);
                }
                if is_gone(stream) {
                    return Err(ErrorKind::ConnectionAborted.into());
                }
            }
        }
        Step::Silence => {
            while !is_gone(stream) {
                if ending() {
                    return Ok(false);
                }
            }
            return Err(ErrorKind::ConnectionAborted.into());
        }
        Step::Close => {
            stream.flush()?;
            stream.shutdown(Shutdown::Both)?;
            return Ok(false);
        }
    }
    Ok(true)
}

/// Reads the head of a request; none if the connection has ended before it.
fn read(reader: &mut impl BufRead) -> io::Result<Option<Received>> {
    let Some(first) = line(reader)? else { return Ok(None) };
    let mut words = first.split(' ').map(ToOwned::to_owned);
    let (method, path) = (words.next().unwrap_or_default(), words.next().unwrap_or_default());
    let mut headers = Vec::new();
    loop {
        let line = line(reader)?.ok_or(ErrorKind::UnexpectedEof)?;
        if line.is_empty() {
            break;
        }
        let (name, value) = line.split_once(':').ok_or(ErrorKind::InvalidData)?;
        headers.push((name.to_ascii_lowercase(), value.trim().to_owned()));
    }
    Ok(Some(Received { method, path, headers, body: Vec::new(), connection: 0, before: 0 }))
}

/// Reads the body of a request.
fn body(reader: &mut impl BufRead, request: &Received) -> io::Result<Vec<u8>> {
    let length: Option<usize> = request.header("content-length").parse().ok();
    match length {
        Some(length) => {
            let mut body = vec![0; length];
            reader.read_exact(&mut body)?;
            Ok(body)
        }
        None if request.header("transfer-encoding") == "chunked" => chunks(reader),
        None => Ok(Vec::new()),
    }
}

fn line(reader: &mut impl BufRead) -> io::Result<Option<String>> {
    let mut line = Vec::new();
    reader.read_until(b'\n', &mut line)?;
    if line.is_empty() {
        return Ok(None);
    }
    Ok(Some(String::from_utf8_lossy(&line).trim_end_matches(['\r', '\n']).to_owned()))
}

fn chunks(reader: &mut impl BufRead) -> io::Result<Vec<u8>> {
    let mut body = Vec::new();
    loop {
        let size = line(reader)?.ok_or(ErrorKind::UnexpectedEof)?;
        let size = usize::from_str_radix(&size, 16).map_err(|_| ErrorKind::InvalidData)?;
        let start = body.len();
        body.resize(start + size, 0);
        reader.read_exact(&mut body[start..])?;
        line(reader)?;
        if size == 0 {
            return Ok(body);
        }
    }
}

/// A client that sends bytes as they are and sees the pieces of an answer as they come.
#[derive(Debug)]
pub struct Wire {
    reader: BufReader<TcpStream>,
}

/// The head of an answer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Head {
    /// The status.
    pub status: u16,
    /// The headers, with names in lower case.
    pub headers: Vec<(String, String)>,
}

impl Head {
    /// A header; empty if there is none.
    #[must_use]
    pub fn header(&self, name: &str) -> &str {
        self.headers.iter().find(|(found, _)| found == name).map_or("", |(_, value)| value)
    }
}

impl Wire {
    /// Connects to host and port.
    ///
    /// # Panics
    /// When nobody listens there.
    #[must_use]
    pub fn connect(address: &str) -> Self {
        let stream = TcpStream::connect(address).expect("a connection");
        stream.set_nodelay(true).expect("no delay");
        stream.set_read_timeout(Some(LIMIT)).expect("a bound");
        stream.set_write_timeout(Some(LIMIT)).expect("a bound");
        Self { reader: BufReader::new(stream) }
    }

    /// The connection itself.
    #[must_use]
    pub fn stream(&self) -> &TcpStream {
        self.reader.get_ref()
    }

    /// Sends bytes as they are.
    ///
    /// # Panics
    /// When the other side has closed the connection.
    pub fn send(&mut self, bytes: &[u8]) {
        self.reader.get_mut().write_all(bytes).expect("the connection takes it");
    }

    /// Sends a POST with a body of known length. `headers` are whole lines.
    pub fn post(&mut self, path: &str, headers: &[&str], body: &[u8]) {
        let lines: String = headers.iter().map(|line| format!("{line}\r\n")).collect();
        self.send(
            format!("POST {path} HTTP/1.1\r\nhost: test\r\ncontent-length: {}\r\n{lines}\r\n", body.len()).as_bytes(),
        );
        self.send(body);
    }

    /// The head of the next answer.
    ///
    /// # Panics
    /// When none comes.
    #[must_use]
    #[track_caller]
    pub fn head(&mut self) -> Head {
        let first = line(&mut self.reader).expect("an answer").expect("an answer");
        let status = first.split(' ').nth(1).and_then(|status| status.parse().ok()).expect("a status");
        let mut headers = Vec::new();
        loop {
            let line = line(&mut self.reader).expect("a header").expect("a header");
            if line.is_empty() {
                return Head { status, headers };
            }
            let (name, value) = line.split_once(':').expect("a header");
            headers.push((name.to_ascii_lowercase(), value.trim().to_owned()));
        }
    }

    /// The next chunk of an answer in chunks; none at its end.
    ///
    /// # Errors
    /// When the connection ends before the answer does.
    pub fn chunk(&mut self) -> io::Result<Option<Vec<u8>>> {
        let size = line(&mut self.reader)?.ok_or(ErrorKind::UnexpectedEof)?;
        let size = usize::from_str_radix(&size, 16).map_err(|_| ErrorKind::InvalidData)?;
        let mut chunk = vec![0; size];
        self.reader.read_exact(&mut chunk)?;
        line(&mut self.reader)?.ok_or(ErrorKind::UnexpectedEof)?;
        Ok(Some(chunk).filter(|chunk| !chunk.is_empty()))
    }

    /// Reads chunks until they hold this many bytes.
    ///
    /// # Panics
    /// When the answer ends before.
    #[must_use]
    #[track_caller]
    pub fn at_least(&mut self, count: usize) -> Vec<u8> {
        let mut text = Vec::new();
        while text.len() < count {
            text.extend_from_slice(&self.chunk().expect("the answer goes on").expect("the answer goes on"));
        }
        text
    }

    /// The rest of an answer.
    ///
    /// # Errors
    /// When the connection ends before the answer does.
    pub fn body(&mut self, head: &Head) -> io::Result<Vec<u8>> {
        let mut body = Vec::new();
        if let Ok(length) = head.header("content-length").parse() {
            body.resize(length, 0);
            self.reader.read_exact(&mut body)?;
        } else {
            while let Some(chunk) = self.chunk()? {
                body.extend_from_slice(&chunk);
            }
        }
        Ok(body)
    }

    /// Everything until the other side closes the connection.
    ///
    /// # Errors
    /// When it breaks instead.
    pub fn rest(&mut self) -> io::Result<Vec<u8>> {
        let mut rest = Vec::new();
        self.reader.read_to_end(&mut rest)?;
        Ok(rest)
    }

    /// Whether the other side closes the connection within this time without saying anything more.
    #[must_use]
    pub fn is_closed_within(&mut self, limit: Duration) -> bool {
        let until = Instant::now() + limit;
        loop {
            match self.reader.fill_buf() {
                Ok(rest) => return rest.is_empty(),
                Err(error) if error.kind() == ErrorKind::WouldBlock && Instant::now() < until => {}
                Err(error) => return error.kind() == ErrorKind::ConnectionReset,
            }
        }
    }
}
