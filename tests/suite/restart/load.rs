//! Clients that write, read and call models without a pause, on connections that they keep.

use std::fmt;
use std::io::{BufRead, BufReader};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use muster_tests::fleet::PATIENCE;
use muster_tests::process::wait_for;
use reqwest::blocking::{Client, RequestBuilder, Response};
use serde_json::json;

/// How many requests of each client are progress.
const PROGRESS: usize = 5;

fn client() -> Client {
    let builder = Client::builder().timeout(Duration::from_secs(30)).no_proxy();
    builder.build().expect("a client")
}

#[derive(Clone, Copy, Debug)]
enum What {
    Write,
    Read,
    /// Of a model that is called from here.
    Chat,
    /// Of a model that another node's gateway calls.
    Relay,
}

#[derive(Debug)]
struct Done {
    what: What,
    requests: usize,
    slowest: Duration,
    failed: Vec<String>,
    written: Vec<String>,
}

/// A client for each thing to do on each node.
pub struct Load {
    stop: Arc<AtomicBool>,
    clients: Vec<(Arc<AtomicUsize>, JoinHandle<Done>)>,
}

/// How it went.
pub struct Report(Vec<Done>);

impl Load {
    pub fn start(nodes: &[String], admin: &str, key: &str, turn: usize) -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let mut clients = Vec::new();
        let count = nodes.len();
        for (index, node) in nodes.iter().enumerate() {
            for what in [What::Write, What::Read, What::Chat, What::Relay] {
                let (stop, progress) = (Arc::clone(&stop), Arc::new(AtomicUsize::new(0)));
                let (node, admin, key) = (node.clone(), admin.to_owned(), key.to_owned());
                let counted = Arc::clone(&progress);
                let run = move || {
                    let http = client();
                    let mut done =
                        Done { what, requests: 0, slowest: Duration::ZERO, failed: Vec::new(), written: Vec::new() };
                    while !stop.load(Ordering::Relaxed) {
                        let name = format!("{turn} {index} {}", done.requests);
                        let request = match what {
                            What::Write => http.post(format!("{node}/api/models")).bearer_auth(&admin).json(&json!({
                                "name": format!("model {name}"), "provider": "openai", "modelId": "x"
                            })),
                            What::Read => http.get(format!("{node}/api/models?limit=1")).bearer_auth(&admin),
                            What::Chat => chat(&http, &node, &key, "told", false),
                            What::Relay => {
                                chat(&http, &node, &key, &format!("told by {}", (index + 1) % count + 1), false)
                            }
                        };
                        let begun = Instant::now();
                        match whole(request) {
                            Ok(()) if matches!(what, What::Write) => done.written.push(name),
                            Ok(()) => {}
                            Err(why) => done.failed.push(format!("{what:?} {name} after {:?}: {why}", begun.elapsed())),
                        }
                        done.requests += 1;
                        done.slowest = done.slowest.max(begun.elapsed());
                        counted.fetch_add(1, Ordering::Relaxed);
                    }
                    done
                };
                clients.push((progress, std::thread::spawn(run)));
            }
        }
        Self { stop, clients }
    }

    /// Waits until every client has had some more answers.
    pub fn await_progress(&self) {
        for (progress, _) in &self.clients {
            let before = progress.load(Ordering::Relaxed);
            wait_for(PATIENCE, "progress of all clients", || {
                (progress.load(Ordering::Relaxed) >= before + PROGRESS).then_some(())
            });
        }
    }

    pub fn stop(self) -> Report {
        self.stop.store(true, Ordering::Relaxed);
        Report(self.clients.into_iter().map(|(_, thread)| thread.join().expect("ends")).collect())
    }
}

impl Report {
    #[track_caller]
    pub fn nothing_failed(&self) {
        let failed: Vec<_> = self.0.iter().flat_map(|done| &done.failed).collect();
        assert!(failed.is_empty(), "{failed:#?}");
    }

    pub fn written(&self) -> Vec<&str> {
        self.0.iter().flat_map(|done| &done.written).map(String::as_str).collect()
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let requests: usize = self.0.iter().map(|done| done.requests).sum();
        write!(f, "{requests} requests, the slowest:")?;
        for done in &self.0 {
            write!(f, " {:?} {} ms", done.what, done.slowest.as_millis())?;
        }
        Ok(())
    }
}

fn chat(http: &Client, node: &str, key: &str, model: &str, stream: bool) -> RequestBuilder {
    let body = json!({"model": model, "stream": stream, "messages": [{"role": "user", "content": "hello"}]});
    http.post(format!("{node}/v1/chat/completions")).bearer_auth(key).body(body.to_string())
}

fn whole(request: RequestBuilder) -> Result<(), String> {
    let response = request.send().map_err(|error| format!("{error:?}"))?;
    let status = response.status();
    let text = response.text().map_err(|error| format!("{error:?}"))?;
    if status.is_success() { Ok(()) } else { Err(format!("{status} {text}")) }
}

/// A stream that is under way.
pub struct Stream(BufReader<Response>);

impl Stream {
    /// Asks for one and waits for its first piece.
    pub fn open(node: &str, key: &str, model: &str) -> Self {
        let response = chat(&client(), node, key, model, true).send().expect("an answer");
        assert!(response.status().is_success(), "{response:?}");
        let mut stream = Self(BufReader::new(response));
        assert_eq!(stream.next().as_deref(), Some("{\"count\":0}"));
        stream
    }

    fn next(&mut self) -> Option<String> {
        loop {
            let mut line = String::new();
            if self.0.read_line(&mut line).ok()? == 0 {
                return None;
            }
            if let Some(data) = line.strip_prefix("data: ") {
                return Some(data.trim_end().to_owned());
            }
        }
    }

    /// The number of pieces until its end, and whether that was one.
    fn rest(mut self) -> (usize, bool) {
        for count in 1.. {
            match self.next() {
                Some(data) if data == "[DONE]" => return (count, self.next().is_none()),
                Some(data) => assert_eq!(data, format!("{{\"count\":{count}}}"), "nothing is missing"),
                None => return (count, false),
            }
        }
        (0, false)
    }

    /// Reads it to its end.
    #[track_caller]
    pub fn ends_whole(self) {
        let (count, whole) = self.rest();
        assert!(whole, "it ended after {count} pieces");
    }

    /// Reads as far as it goes.
    #[track_caller]
    pub fn ends_cut(self) {
        let (count, whole) = self.rest();
        assert!(!whole, "it was whole, with {count} pieces");
    }
}
