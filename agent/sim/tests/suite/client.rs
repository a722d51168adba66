//! A small HTTP client over any socket: it keeps the whole answer, and reads events one at a time.

use std::io::{BufRead, BufReader, ErrorKind, Read, Write};
use std::net::TcpStream;
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::time::Duration;

use serde_json::Value;

/// How long any piece of an answer may take.
pub const LIMIT: Duration = Duration::from_secs(10);

/// Where a simulator listens.
#[derive(Clone, Debug)]
pub enum Place {
    Tcp(u16),
    Unix(PathBuf),
}

pub trait Socket: Read + Write {
    fn patience(&self, limit: Duration);
}

impl Socket for TcpStream {
    fn patience(&self, limit: Duration) {
        self.set_read_timeout(Some(limit)).unwrap();
    }
}

impl Socket for UnixStream {
    fn patience(&self, limit: Duration) {
        self.set_read_timeout(Some(limit)).unwrap();
    }
}

impl Place {
    pub fn connect(&self) -> std::io::Result<Box<dyn Socket>> {
        let socket: Box<dyn Socket> = match self {
            Self::Tcp(port) => Box::new(TcpStream::connect(("127.0.0.1", *port))?),
            Self::Unix(path) => Box::new(UnixStream::connect(path)?),
        };
        socket.patience(LIMIT);
        Ok(socket)
    }

    /// Sends a request and reads the answer's head.
    pub fn open(&self, method: &str, path: &str, headers: &[(&str, &str)], body: &str) -> Open {
        let mut socket = self.connect().expect("a connection");
        let mut text = format!("{method} {path} HTTP/1.1\r\nhost: sim\r\nconnection: close\r\n");
        let length = body.len().to_string();
        for (name, value) in headers.iter().chain(&[("content-length", length.as_str())]) {
            text += &format!("{name}: {value}\r\n");
        }
        socket.write_all(format!("{text}\r\n{body}").as_bytes()).unwrap();
        Open::read(socket)
    }

    /// Sends a request without waiting for anything.
    pub fn send(&self, path: &str, body: &Value) -> Box<dyn Socket> {
        let mut socket = self.connect().expect("a connection");
        let body = body.to_string();
        let head = format!(
            "POST {path} HTTP/1.1\r\nhost: sim\r\nconnection: close\r\ncontent-type: application/json\r\ncontent-length: {}",
            body.len()
        );
        socket.write_all(format!("{head}\r\n\r\n{body}").as_bytes()).unwrap();
        socket
    }

    pub fn get(&self, path: &str) -> Answer {
        self.open("GET", path, &[], "").whole()
    }

    pub fn post(&self, path: &str, body: &Value) -> Answer {
        self.open("POST", path, &[("content-type", "application/json")], &body.to_string()).whole()
    }

    pub fn stream(&self, path: &str, body: &Value) -> Open {
        self.open("POST", path, &[("content-type", "application/json")], &body.to_string())
    }

    /// The value of the only series whose line begins so.
    pub fn metric(&self, series: &str) -> f64 {
        let text = self.get("/metrics").text;
        let mut lines = text
            .lines()
            .filter_map(|line| line.strip_prefix(series))
            .filter(|rest| rest.starts_with([' ', '{']) || series.ends_with('}'));
        let line = lines.next().unwrap_or_else(|| panic!("no {series} in\n{text}"));
        line.rsplit(' ').next().unwrap().parse().unwrap()
    }
}

/// An answer of which the head has come.
pub struct Open {
    pub status: u16,
    pub headers: Vec<(String, String)>,
    reader: BufReader<Box<dyn Socket>>,
}

/// What an answer was.
#[derive(Debug)]
pub struct Answer {
    pub status: u16,
    pub headers: Vec<(String, String)>,
    pub text: String,
    /// The body, null if it is no JSON.
    pub body: Value,
}

/// The next thing in a stream.
#[derive(Debug, PartialEq)]
pub enum Next {
    Event(Value),
    Done,
    /// The body's orderly end.
    End,
    /// The connection's end without that of the body.
    Cut,
    /// Nothing within the client's patience.
    Silence,
}

impl Open {
    pub fn read(socket: Box<dyn Socket>) -> Self {
        let mut reader = BufReader::new(socket);
        let mut line = || {
            let mut line = String::new();
            reader.read_line(&mut line).expect("a line of the head");
            line.trim_end().to_owned()
        };
        let status = line().split(' ').nth(1).expect("a status").parse().unwrap();
        let mut headers = Vec::new();
        loop {
            let line = line();
            let Some((name, value)) = line.split_once(": ") else { break };
            headers.push((name.to_lowercase(), value.to_owned()));
        }
        Self { status, headers, reader }
    }

    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers.iter().find(|(known, _)| known == name).map(|(_, value)| value.as_str())
    }

    pub fn patience(&self, limit: Duration) {
        self.reader.get_ref().patience(limit);
    }

    pub fn whole(mut self) -> Answer {
        let mut text = String::new();
        if self.header("transfer-encoding").is_some() {
            while let Ok(chunk) = self.chunk() {
                if chunk.is_empty() {
                    break;
                }
                text += &chunk;
            }
        } else {
            self.reader.read_to_string(&mut text).unwrap();
        }
        let body = serde_json::from_str(&text).unwrap_or(Value::Null);
        Answer { status: self.status, headers: self.headers, text, body }
    }

    /// The next chunk, empty at the end.
    fn chunk(&mut self) -> Result<String, Next> {
        let kind = |error: std::io::Error| match error.kind() {
            ErrorKind::WouldBlock | ErrorKind::TimedOut => Next::Silence,
            _ => Next::Cut,
        };
        let mut line = String::new();
        self.reader.read_line(&mut line).map_err(kind)?;
        let Ok(length) = usize::from_str_radix(line.trim_end(), 16) else { return Err(Next::Cut) };
        let mut chunk = vec![0; length + 2];
        self.reader.read_exact(&mut chunk).map_err(kind)?;
        chunk.truncate(length);
        Ok(String::from_utf8(chunk).unwrap())
    }

    /// The next event. The simulator writes each in a chunk of its own.
    pub fn next(&mut self) -> Next {
        let chunk = match self.chunk() {
            Ok(chunk) if chunk.is_empty() => return Next::End,
            Ok(chunk) => chunk,
            Err(next) => return next,
        };
        let data = chunk.strip_prefix("data: ").and_then(|chunk| chunk.strip_suffix("\n\n")).expect("an event");
        if data == "[DONE]" { Next::Done } else { Next::Event(serde_json::from_str(data).expect("JSON")) }
    }

    /// The next event, which has to be one.
    pub fn event(&mut self) -> Value {
        match self.next() {
            Next::Event(event) => event,
            other => panic!("{other:?} instead of an event"),
        }
    }

    /// All events, and what came instead of a further one.
    pub fn events(&mut self) -> (Vec<Value>, Next) {
        let mut events = Vec::new();
        loop {
            match self.next() {
                Next::Event(event) => events.push(event),
                other => return (events, other),
            }
        }
    }
}

impl Answer {
    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers.iter().find(|(known, _)| known == name).map(|(_, value)| value.as_str())
    }

    /// Status, type and parameter of an error in OpenAI's shape.
    pub fn error(&self) -> (u16, &str, Option<&str>) {
        let error = &self.body["error"];
        assert_eq!(error["code"], self.status, "{}", self.text);
        (self.status, error["type"].as_str().unwrap(), error["param"].as_str())
    }

    pub fn message(&self) -> &str {
        self.body["error"]["message"].as_str().unwrap()
    }
}
