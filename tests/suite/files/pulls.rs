//! Models that a node pulls from a URL.

use std::io::{BufRead, BufReader, Write};
use std::net::TcpListener;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use muster_tests::process::wait_for;
use serde_json::{Value, json};

use super::{Caller, SOON, Site, content, files};

/// A server of one file that breaks off in the middle when it is asked the first time, and sends the second half only when it
/// is let.
struct Server {
    port: u16,
    /// Requests that asked for the rest.
    resumed: Arc<AtomicUsize>,
    go_on: Arc<AtomicBool>,
}

impl Server {
    fn start(file: Vec<u8>) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
        let port = listener.local_addr().expect("an address").port();
        let (resumed, go_on) = (Arc::new(AtomicUsize::new(0)), Arc::new(AtomicBool::new(false)));
        let (counted, waits) = (Arc::clone(&resumed), Arc::clone(&go_on));
        std::thread::spawn(move || {
            for stream in listener.incoming() {
                let mut stream = stream.expect("a connection");
                let mut lines = BufReader::new(stream.try_clone().expect("a clone")).lines();
                let mut from = None;
                while let Some(Ok(line)) = lines.next() {
                    if line.is_empty() {
                        break;
                    }
                    let line = line.to_ascii_lowercase();
                    let range = line.strip_prefix("range: bytes=").and_then(|range| range.strip_suffix('-'));
                    from = range.and_then(|start| start.parse::<usize>().ok()).or(from);
                }
                let all = file.len();
                let common = "etag: \"one\"\r\naccept-ranges: bytes\r\nconnection: close\r\n";
                let sent = match from {
                    None => {
                        let _ = write!(stream, "HTTP/1.1 200 OK\r\ncontent-length: {all}\r\n{common}\r\n");
                        // Half of what was promised.
                        stream.write_all(&file[..all / 2])
                    }
                    Some(from) => {
                        counted.fetch_add(1, Ordering::SeqCst);
                        let (length, last) = (all - from, all - 1);
                        let range = format!("content-length: {length}\r\ncontent-range: bytes {from}-{last}/{all}\r\n");
                        let _ = write!(stream, "HTTP/1.1 206 Partial Content\r\n{range}{common}\r\n");
                        let _ = stream.flush();
                        while !waits.load(Ordering::SeqCst) {
                            std::thread::sleep(std::time::Duration::from_millis(5));
                        }
                        stream.write_all(&file[from..])
                    }
                };
                let _ = sent;
            }
        });
        Self { port, resumed, go_on }
    }

    fn url(&self, path: &str) -> String {
        format!("http://127.0.0.1:{}/{path}", self.port)
    }
}

fn archive(weights: &[u8]) -> Vec<u8> {
    let mut builder = tar::Builder::new(Vec::new());
    for (name, content) in [("m/config.json", &b"{}"[..]), ("m/model.safetensors", weights)] {
        let mut header = tar::Header::new_gnu();
        header.set_mode(0o644);
        header.set_size(content.len() as u64);
        builder.append_data(&mut header, name, content).expect("appends");
    }
    let packed = builder.into_inner().expect("a tar");
    let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    encoder.write_all(&packed).expect("packs");
    encoder.finish().expect("packed")
}

fn transfer(caller: &Caller, id: &str) -> Value {
    let transfers = caller.get("local-models/transfers").expect(200).body;
    let own = transfers.as_array().expect("a list").iter().find(|transfer| transfer["id"] == id);
    own.expect("it is told of").clone()
}

/// E-137, E-138
#[test]
fn a_model_is_pulled_through_any_node_and_a_break_costs_nothing() {
    let site = Site::with(&[("MUSTER_PULL_LOOPBACK", "true")]);
    let weights = content(1 << 20, 11);
    for (number, (through, caller)) in site.callers().into_iter().enumerate() {
        let file = archive(&weights);
        let server = Server::start(file.clone());
        let name = format!("pulled-{number}");
        let asked = json!({"url": server.url("m.tar.gz"), "name": name});
        let begun = caller.post("local-models/pull", &asked).expect(200).body;
        assert_eq!(begun["name"], name.as_str());
        let id = begun["transfer_id"].as_str().expect("an id");
        let half = file.len() / 2;
        let seen = wait_for(SOON, "half of it to come", || {
            let seen = transfer(&caller, id);
            (server.resumed.load(Ordering::SeqCst) == 1 && seen["received_bytes"] == json!(half)).then_some(seen)
        });
        assert_eq!(
            seen,
            json!({"id": id, "kind": "pull", "name": name, "status": "downloading", "total_bytes": file.len(),
                "received_bytes": half, "error": null, "path": null})
        );
        assert!(caller.local().is_empty() || number == 1, "half of it is seen through {through}");
        server.go_on.store(true, Ordering::SeqCst);
        let done = wait_for(SOON, "the model to come", || {
            let seen = transfer(&caller, id);
            assert_ne!(seen["status"], "error", "{seen}");
            (seen["status"] == "done").then_some(seen)
        });
        assert_eq!((&done["path"], &done["received_bytes"]), (&json!(site.models().join(&name)), &json!(file.len())));
        assert_eq!(server.resumed.load(Ordering::SeqCst), 1, "the rest, and only the rest, was asked for again");
        let kept = files(&site.models().join(&name));
        assert!(kept["model.safetensors"] == weights && kept.len() == 2, "other content through {through}");
        caller.post("local-models/pull", &asked).is_error(409, "CONFLICT");
    }
    site.is_clean();
}

/// E-137
#[test]
fn a_pull_goes_only_where_it_may() {
    let site = Site::new();
    for (_, caller) in site.callers() {
        let pull = |url: &str| caller.post("local-models/pull", &json!({"url": url, "name": "m"}));
        for refused in [
            "file:///etc/passwd",
            "ftp://127.0.0.1/m",
            "m.tar.gz",
            "http://127.0.0.1:1/m.tar.gz",
            "http://[::1]/m",
            "http://169.254.169.254/latest/meta-data",
            "http://user:secret@192.0.2.1/m",
        ] {
            pull(refused).is_error(400, "BAD_REQUEST");
        }
        let bad_name = json!({"url": "http://192.0.2.1/m", "name": "../m"});
        caller.post("local-models/pull", &bad_name).is_error(400, "BAD_REQUEST");
        caller.post("local-models/pull", &json!({})).names(&["url"]);
        caller.post("local-models/pull", &json!({"url": 1, "to": "x"})).names(&["url", "to"]);
        assert_eq!(caller.get("local-models/transfers").expect(200).body, json!([]));
    }
    site.is_clean();
}

#[test]
fn a_pull_that_is_cancelled_leaves_nothing() {
    let site = Site::with(&[("MUSTER_PULL_LOOPBACK", "true")]);
    for (_, caller) in site.callers() {
        let server = Server::start(archive(&content(1 << 20, 3)));
        let asked = json!({"url": server.url("m.tar.gz")});
        let begun = caller.post("local-models/pull", &asked).expect(200).body;
        assert_eq!(begun["name"], "m", "the URL says how it is called");
        let id = begun["transfer_id"].as_str().expect("an id");
        wait_for(SOON, "half of it to come", || (server.resumed.load(Ordering::SeqCst) == 1).then_some(()));
        let path = format!("local-models/transfers/{id}");
        assert_eq!(caller.delete(&path).expect(200).body, json!({"status": "cancelled", "id": id}));
        wait_for(SOON, "the pull to end", || (transfer(&caller, id)["status"] == "error").then_some(()));
        site.is_clean();
        caller.delete(&path).is_error(404, "NOT_FOUND");
        caller.delete("local-models/transfers/x").is_error(404, "NOT_FOUND");
        assert!(caller.local().is_empty());
        server.go_on.store(true, Ordering::SeqCst);
    }
}
