//! Somebody who listens.

use std::io::{self, Read, Write};
use std::net::TcpStream;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::{Duration, Instant};

use muster_tests::fleet::PATIENCE;
use serde_json::Value;
use tungstenite::client::IntoClientRequest;
use tungstenite::{Error, HandshakeError, Message, WebSocket};

/// A connection of either kind.
enum Stream {
    Tcp(TcpStream),
    Unix(UnixStream),
}

impl Stream {
    fn set_limit(&self, limit: Duration) {
        let limit = Some(limit.max(Duration::from_millis(1)));
        match self {
            Self::Tcp(stream) => stream.set_read_timeout(limit),
            Self::Unix(stream) => stream.set_read_timeout(limit),
        }
        .expect("takes it");
    }
}

impl Read for Stream {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        match self {
            Self::Tcp(stream) => stream.read(buffer),
            Self::Unix(stream) => stream.read(buffer),
        }
    }
}

impl Write for Stream {
    fn write(&mut self, buffer: &[u8]) -> io::Result<usize> {
        match self {
            Self::Tcp(stream) => stream.write(buffer),
            Self::Unix(stream) => stream.write(buffer),
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// An open socket.
pub struct Listener {
    socket: WebSocket<Stream>,
    begins_after: u64,
}

impl Listener {
    /// Asks for a socket with these headers, and returns it, or the status of the refusal.
    pub fn ask(endpoint: &str, path: &str, headers: &[(&'static str, String)]) -> Result<Self, u16> {
        let host = endpoint.trim_start_matches("http://");
        let stream = Stream::Tcp(TcpStream::connect(host).map_err(|_| 0_u16)?);
        Self::ask_on(stream, &format!("ws://{host}{path}"), headers)
    }

    fn ask_on(stream: Stream, url: &str, headers: &[(&'static str, String)]) -> Result<Self, u16> {
        stream.set_limit(PATIENCE);
        let mut request = url.into_client_request().expect("a request");
        for (name, value) in headers {
            request.headers_mut().insert(*name, value.parse().expect("a value"));
        }
        match tungstenite::client(request, stream) {
            Ok((socket, response)) => {
                let begins_after = response.headers()["x-muster-applied-index"].to_str().expect("text");
                Ok(Self { begins_after: begins_after.parse().expect("a number"), socket })
            }
            Err(HandshakeError::Failure(Error::Http(response))) => Err(response.status().as_u16()),
            // The process has just gone.
            Err(_) => Err(0),
        }
    }

    /// Listens with this key, from now on or after this.
    pub fn open(endpoint: &str, key: &str, from: Option<u64>) -> Self {
        let path = from.map_or_else(|| "/ws".to_owned(), |from| format!("/ws?from={from}"));
        let opened = Self::ask(endpoint, &path, &[("authorization", format!("Bearer {key}"))]);
        opened.unwrap_or_else(|status| panic!("refused with {status}"))
    }

    /// Listens on a node's own socket.
    pub fn on_socket(path: &Path) -> Self {
        let stream = Stream::Unix(UnixStream::connect(path).expect("connects"));
        Self::ask_on(stream, "ws://localhost/ws", &[]).unwrap_or_else(|status| panic!("refused with {status}"))
    }

    /// The entry after which it begins.
    pub fn begins_after(&self) -> u64 {
        self.begins_after
    }

    /// Says something. It may be that nobody listens any more.
    pub fn say(&mut self, text: &str) {
        let _ = self.socket.send(Message::text(text));
    }

    /// Waits for an event of which this holds. Others are passed over.
    #[track_caller]
    pub fn until(&mut self, limit: Duration, is: impl Fn(&Value) -> bool) -> Value {
        let end = Instant::now() + limit;
        let mut others = Vec::new();
        loop {
            let left = end.saturating_duration_since(Instant::now());
            assert!(!left.is_zero(), "not within {limit:?}, only {others:?}");
            self.socket.get_ref().set_limit(left);
            match self.socket.read() {
                Ok(Message::Text(text)) => {
                    let event: Value = serde_json::from_str(&text).expect("JSON");
                    assert!(event["type"].is_string(), "{event}");
                    if is(&event) {
                        return event;
                    }
                    others.push(event);
                }
                Ok(Message::Ping(_) | Message::Pong(_)) => {}
                Ok(other) => panic!("{other:?} after {others:?}"),
                Err(Error::Io(error)) if error.kind() == io::ErrorKind::WouldBlock => {}
                Err(error) => panic!("{error} after {others:?}"),
            }
        }
    }

    /// With which code the node closes it. What it tells before is passed over.
    pub fn closed(&mut self) -> Option<u16> {
        self.socket.get_ref().set_limit(PATIENCE);
        let code = loop {
            match self.socket.read().expect("the socket is open") {
                Message::Close(frame) => break frame.map(|frame| frame.code.into()),
                _ => continue,
            }
        };
        // Says the same, until the node has gone.
        while self.socket.read().is_ok() {}
        code
    }
}

/// In Base64, as a browser sends a password.
pub fn base64(text: &str) -> String {
    const DIGITS: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let mut coded = String::new();
    for piece in text.as_bytes().chunks(3) {
        let bits = piece.iter().chain(&[0, 0]).take(3).fold(0_u32, |bits, byte| bits << 8 | u32::from(*byte));
        for digit in 0..4 {
            let value = bits >> (18 - 6 * digit) & 63;
            coded.push(if digit <= piece.len() { char::from(DIGITS[value as usize]) } else { '=' });
        }
    }
    coded
}
