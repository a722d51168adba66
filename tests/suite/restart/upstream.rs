//! A provider that answers chats, and streams for as long as it is told to.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

/// The pause between two pieces of a stream.
const PACE: Duration = Duration::from_millis(20);

/// A provider.
pub struct Upstream {
    address: SocketAddr,
    finish: Arc<AtomicBool>,
}

impl Upstream {
    pub fn start() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
        let upstream = Self { address: listener.local_addr().expect("an address"), finish: Arc::default() };
        let finish = Arc::clone(&upstream.finish);
        // They end with the test's process.
        std::thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                let finish = Arc::clone(&finish);
                std::thread::spawn(move || serve(stream, &finish));
            }
        });
        upstream
    }

    pub fn base_url(&self) -> String {
        format!("http://{}/v1", self.address)
    }

    /// Ends all streams.
    pub fn finish(&self) {
        self.finish.store(true, Ordering::Relaxed);
    }

    /// From now on streams last again.
    pub fn again(&self) {
        self.finish.store(false, Ordering::Relaxed);
    }
}

fn serve(stream: TcpStream, finish: &AtomicBool) -> Option<()> {
    stream.set_nodelay(true).ok()?;
    let mut reader = BufReader::new(stream.try_clone().ok()?);
    let mut stream = stream;
    loop {
        let (mut length, mut line) = (0, String::new());
        loop {
            line.clear();
            if reader.read_line(&mut line).ok()? == 0 {
                return None;
            }
            let lower = line.to_lowercase();
            if let Some(value) = lower.strip_prefix("content-length:") {
                length = value.trim().parse().ok()?;
            }
            if line == "\r\n" {
                break;
            }
        }
        let mut body = vec![0; length];
        reader.read_exact(&mut body).ok()?;
        if String::from_utf8_lossy(&body).contains("\"stream\":true") {
            let head = "HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n";
            stream.write_all(head.as_bytes()).ok()?;
            let mut piece = |text: String| {
                let event = format!("data: {text}\n\n");
                stream.write_all(format!("{:x}\r\n{event}\r\n", event.len()).as_bytes())
            };
            for count in 0.. {
                piece(format!("{{\"count\":{count}}}")).ok()?;
                if finish.load(Ordering::Relaxed) {
                    break;
                }
                std::thread::sleep(PACE);
            }
            piece("[DONE]".to_owned()).ok()?;
            stream.write_all(b"0\r\n\r\n").ok()?;
        } else {
            let answer = "{\"object\":\"chat.completion\",\"choices\":[]}";
            let length = answer.len();
            let head = format!("HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: {length}\r\n\r\n");
            stream.write_all(format!("{head}{answer}").as_bytes()).ok()?;
        }
    }
}
