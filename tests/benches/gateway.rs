//! What a request costs the gateway, beside nginx as a plain reverse proxy: CPU milliseconds per 1,000 requests, for a short
//! request (1.2 kB, answer 1.3 kB), a long one (64 KiB) and a stream. The same callers, the same provider, the same machine;
//! the two take turns. nginx checks no key and looks at no body.

use std::fs;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use hdrhistogram::Histogram;
use muster_tests::api::Api;
use muster_tests::fleet::{Home, PATIENCE};
use muster_tests::process::wait_for;
use serde_json::{Value, json};

/// Connections that each wait for one answer after the other.
const CALLERS: usize = 32;
const TURN: Duration = Duration::from_secs(3);
const TURNS: usize = 3;
const EVENTS: usize = 50;

fn answer() -> Vec<u8> {
    let content = "word ".repeat(220);
    let body = json!({"id": "chatcmpl-1", "object": "chat.completion", "created": 1, "model": "bench",
        "choices": [{"index": 0, "message": {"role": "assistant", "content": content}, "finish_reason": "stop"}]});
    let body = body.to_string();
    format!("HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: {}\r\n\r\n{body}", body.len()).into()
}

/// A provider that answers at once: one thread for each connection, no parsing beyond the length of the body.
fn provider() -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
    let address = listener.local_addr().expect("an address");
    thread::spawn(move || {
        for stream in listener.incoming() {
            let Ok(stream) = stream else { continue };
            thread::spawn(move || serve(stream));
        }
    });
    address
}

fn serve(mut stream: TcpStream) -> Option<()> {
    stream.set_nodelay(true).ok()?;
    let whole = answer();
    let mut reader = BufReader::with_capacity(128 * 1024, stream.try_clone().ok()?);
    let (mut line, mut body) = (String::new(), Vec::new());
    loop {
        let (mut length, mut streamed) = (0, false);
        loop {
            line.clear();
            if reader.read_line(&mut line).ok()? == 0 {
                return None;
            }
            let lower = line.to_ascii_lowercase();
            if let Some(text) = lower.strip_prefix("content-length:") {
                length = text.trim().parse().ok()?;
            }
            streamed |= lower.starts_with("traceparent: stream");
            if line == "\r\n" {
                break;
            }
        }
        body.resize(length, 0);
        reader.read_exact(&mut body).ok()?;
        // The body of a streamed request begins with the word.
        streamed |= body.starts_with(b"{\"stream\"");
        if !streamed {
            stream.write_all(&whole).ok()?;
            continue;
        }
        stream
            .write_all(b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n")
            .ok()?;
        let event = "data: {\"id\":\"chatcmpl-1\",\"object\":\"chat.completion.chunk\",\"created\":1,\"model\":\"bench\",\
                     \"choices\":[{\"index\":0,\"delta\":{\"content\":\"word \"}}]}\n\n";
        for _ in 0..EVENTS {
            thread::sleep(Duration::from_millis(20));
            write!(stream, "{:x}\r\n{event}\r\n", event.len()).ok()?;
        }
        stream.write_all(b"e\r\ndata: [DONE]\n\n\r\n0\r\n\r\n").ok()?;
    }
}

/// CPU time of a process and its children that live, in milliseconds.
fn cpu(pids: &[u32]) -> u64 {
    let ticks = pids.iter().map(|pid| {
        let stat = fs::read_to_string(format!("/proc/{pid}/stat")).expect("the process is there");
        let fields: Vec<_> = stat.rsplit_once(')').expect("a name").1.split_whitespace().collect();
        fields[11].parse::<u64>().expect("user") + fields[12].parse::<u64>().expect("system")
    });
    // Linux counts in hundredths of a second.
    ticks.sum::<u64>() * 10
}

fn memory(pids: &[u32]) -> u64 {
    let resident = |pid: &u32| {
        let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
        let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:").map(ToOwned::to_owned));
        line.and_then(|line| line.split_whitespace().next()?.parse::<u64>().ok()).unwrap_or(0)
    };
    pids.iter().map(resident).sum::<u64>() / 1024
}

struct Gateway {
    name: &'static str,
    address: SocketAddr,
    key: String,
    pids: Vec<u32>,
}

#[derive(Clone, Copy)]
enum Load {
    Short,
    Long,
    Stream,
}

fn request(gateway: &Gateway, load: Load) -> Vec<u8> {
    let content = match load {
        Load::Short => "x".repeat(1000),
        Load::Long => "x".repeat(64 * 1024),
        Load::Stream => "x".repeat(200),
    };
    let first = if matches!(load, Load::Stream) { "{\"stream\":true," } else { "{" };
    let body = format!(
        "{first}\"model\":\"bench\",\"messages\":[{{\"role\":\"user\",\"content\":\"{content}\"}}],\"max_tokens\":64}}"
    );
    format!(
        "POST /v1/chat/completions HTTP/1.1\r\nhost: {}\r\nauthorization: Bearer {}\r\ncontent-type: application/json\r\n\
         content-length: {}\r\n\r\n{body}",
        gateway.address,
        gateway.key,
        body.len()
    )
    .into()
}

/// Reads one answer and returns how many bytes its body has.
fn read_answer(reader: &mut BufReader<TcpStream>, line: &mut String) -> usize {
    let (mut length, mut first) = (None, true);
    loop {
        line.clear();
        assert!(reader.read_line(line).expect("an answer") > 0, "the connection was closed");
        if first {
            assert!(line.starts_with("HTTP/1.1 200"), "{line}");
            first = false;
        }
        let lower = line.to_ascii_lowercase();
        if let Some(text) = lower.strip_prefix("content-length:") {
            length = Some(text.trim().parse::<usize>().expect("a length"));
        }
        if line == "\r\n" {
            break;
        }
    }
    let mut skip = |mut left: usize| {
        while left > 0 {
            let taken = reader.fill_buf().expect("the body").len().min(left);
            assert!(taken > 0, "the body was cut");
            reader.consume(taken);
            left -= taken;
        }
    };
    if let Some(length) = length {
        skip(length);
        return length;
    }
    let mut total = 0;
    loop {
        line.clear();
        reader.read_line(line).expect("a chunk");
        let length = usize::from_str_radix(line.trim(), 16).expect("a length");
        let mut left = length + 2;
        while left > 0 {
            let taken = reader.fill_buf().expect("a chunk").len().min(left);
            assert!(taken > 0, "the body was cut");
            reader.consume(taken);
            left -= taken;
        }
        total += length;
        if length == 0 {
            return total;
        }
    }
}

struct Turn {
    requests: u64,
    cpu: u64,
    wall: Duration,
    times: Histogram<u64>,
}

fn turn(gateway: &Gateway, load: Load) -> Turn {
    let request: Arc<[u8]> = request(gateway, load).into();
    let (stop, counted) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicU64::new(0)));
    let (address, before, begun) = (gateway.address, cpu(&gateway.pids), Instant::now());
    let callers: Vec<_> = (0..CALLERS)
        .map(|_| {
            let (request, stop, counted) = (Arc::clone(&request), Arc::clone(&stop), Arc::clone(&counted));
            thread::spawn(move || {
                let mut stream = TcpStream::connect(address).expect("connects");
                stream.set_nodelay(true).expect("no delay");
                let mut reader = BufReader::with_capacity(64 * 1024, stream.try_clone().expect("a handle"));
                let (mut line, mut times) = (String::new(), Histogram::<u64>::new(3).expect("a histogram"));
                while !stop.load(Ordering::Relaxed) {
                    let sent = Instant::now();
                    stream.write_all(&request).expect("sends");
                    read_answer(&mut reader, &mut line);
                    times.record(u64::try_from(sent.elapsed().as_micros()).unwrap_or(u64::MAX)).expect("in range");
                    counted.fetch_add(1, Ordering::Relaxed);
                }
                times
            })
        })
        .collect();
    thread::sleep(TURN);
    stop.store(true, Ordering::Relaxed);
    let mut times = Histogram::<u64>::new(3).expect("a histogram");
    for caller in callers {
        times.add(caller.join().expect("no answer was missing")).expect("the same range");
    }
    Turn { requests: counted.load(Ordering::Relaxed), cpu: cpu(&gateway.pids) - before, wall: begun.elapsed(), times }
}

fn children(pid: u32) -> Vec<u32> {
    let text = fs::read_to_string(format!("/proc/{pid}/task/{pid}/children")).unwrap_or_default();
    text.split_whitespace().filter_map(|pid| pid.parse().ok()).collect()
}

/// nginx with two workers, as its own documentation has it for keep-alive upstreams.
fn nginx(directory: &Path, provider: SocketAddr) -> Option<(Child, Gateway)> {
    let port = TcpListener::bind("127.0.0.1:0").and_then(|listener| listener.local_addr()).expect("a port").port();
    let config = format!(
        "worker_processes 2; daemon off; pid {0}/nginx.pid; error_log {0}/error.log;\n\
         events {{ worker_connections 1024; }}\n\
         http {{ access_log off; client_body_temp_path {0}/body; proxy_temp_path {0}/proxy; fastcgi_temp_path {0}/f;\n\
         uwsgi_temp_path {0}/u; scgi_temp_path {0}/s; keepalive_requests 100000000; client_body_buffer_size 1m;\n\
         upstream provider {{ server {provider}; keepalive 128; keepalive_requests 100000000; }}\n\
         server {{ listen 127.0.0.1:{port}; location / {{ proxy_pass http://provider; proxy_http_version 1.1;\n\
         proxy_set_header Connection \"\"; proxy_buffering off; }} }} }}\n",
        directory.display()
    );
    let file = directory.join("nginx.conf");
    fs::write(&file, config).expect("writes");
    let child = Command::new("nginx").arg("-c").arg(&file).stdout(Stdio::null()).stderr(Stdio::null()).spawn().ok()?;
    let address = SocketAddr::from(([127, 0, 0, 1], port));
    wait_for(PATIENCE, "nginx to listen", || TcpStream::connect(address).ok());
    let pids = children(child.id()).into_iter().chain([child.id()]).collect();
    Some((child, Gateway { name: "nginx", address, key: String::new(), pids }))
}

fn main() {
    let provider = provider();
    let home = Home::new();
    let mut command = home.command(["dev", "--nodes", "1", "--base-port", "0", "--data-dir"]);
    let mut process = home.start(command.arg(home.data()));
    let ready = home.data().join("dev.json");
    let dev: Value = wait_for(PATIENCE, "the fleet to be ready", || {
        assert!(process.ended().is_none(), "it ended instead of serving");
        serde_json::from_slice(&fs::read(&ready).ok()?).ok()
    });
    let text = |pointer| dev.pointer(pointer).and_then(Value::as_str).expect("a text").to_owned();
    let model = json!({"name": "bench", "provider": "openai-compatible", "modelId": "bench",
        "baseUrl": format!("http://{provider}/v1")});
    let renamed = json!({"name": "renamed", "provider": "openai-compatible", "modelId": "bench",
        "baseUrl": format!("http://{provider}/v1")});
    let admin = Api::new(&text("/nodes/0/api")).with_key(&text("/adminToken"));
    for model in [model, renamed] {
        let _ = admin.post("/api/models", &model).expect(201);
    }
    let address = text("/nodes/0/api").trim_start_matches("http://").parse().expect("an address");
    let muster = Gateway { name: "muster", address, key: text("/gatewayKey"), pids: vec![process.id()] };
    let scratch = tempfile::tempdir().expect("a directory");
    let beside = nginx(scratch.path(), provider);
    if beside.is_none() {
        println!("nginx is not there (apt-get install nginx-light): muster alone");
    }
    let gateways: Vec<&Gateway> = beside.iter().map(|(_, nginx)| nginx).chain([&muster]).collect();
    println!("{CALLERS} callers, {TURNS} turns of {TURN:?} each; medians");
    println!(
        "{:<8} {:<8} {:>12} {:>22} {:>10} {:>10} {:>9}",
        "load", "gateway", "requests/s", "CPU-ms/1000 requests", "p50 us", "p99 us", "peak MiB"
    );
    for (name, load) in [("1.2 kB", Load::Short), ("64 KiB", Load::Long), ("stream", Load::Stream)] {
        let mut figures = Vec::new();
        for gateway in &gateways {
            let _ = turn(gateway, load);
            let mut turns: Vec<_> = (0..TURNS).map(|_| turn(gateway, load)).collect();
            let cost = |turn: &Turn| turn.cpu as f64 * 1000.0 / turn.requests as f64;
            turns.sort_by(|a, b| cost(a).total_cmp(&cost(b)));
            let median = &turns[TURNS / 2];
            println!(
                "{name:<8} {:<8} {:>12.0} {:>22.1} {:>10} {:>10} {:>9}",
                gateway.name,
                median.requests as f64 / median.wall.as_secs_f64(),
                cost(median),
                median.times.value_at_quantile(0.5),
                median.times.value_at_quantile(0.99),
                memory(&gateway.pids),
            );
            figures.push(cost(median));
        }
        if let [nginx, muster] = figures[..] {
            println!("{name:<8} muster costs {:.2} times what nginx does", muster / nginx);
        }
    }
    if let Some((mut child, _)) = beside {
        let _ = Command::new("kill").arg(child.id().to_string()).status();
        let _ = child.wait();
    }
    process.terminate();
    let _ = process.wait(PATIENCE);
}
