//! A stand-in for tailscaled: a thread with a Unix socket that answers as its LocalAPI does. Its machines have addresses of
//! 127.0.0.0/8, where anybody can listen.

use std::io::{Read, Write};
use std::net::Ipv4Addr;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::Duration;

use serde_json::{Value, json};

/// How long it waits for a request.
const LIMIT: Duration = Duration::from_secs(10);

/// The longest request.
const LONGEST: usize = 16 * 1024;

/// How it answers.
#[derive(Clone, Debug)]
pub enum Behaviour {
    /// With this status.
    Status(Value),
    /// With these bytes.
    Bytes(Vec<u8>),
    /// Never, and without hanging up.
    Silent,
}

/// Another machine in the tailnet.
#[derive(Clone, Copy, Debug)]
pub struct Peer {
    /// Its address.
    pub address: Ipv4Addr,
    /// Its tags.
    pub tags: &'static [&'static str],
    /// Whether it is online.
    pub online: bool,
}

/// An address of this machine that no other test has, with room for others beside it: the last number is 1.
#[must_use]
pub fn own_address() -> Ipv4Addr {
    Ipv4Addr::new(127, 77, rand::random_range(1..=254), 1)
}

/// The status of a machine with this address among these peers, as a connected tailscaled gives it.
#[must_use]
pub fn running(own: Ipv4Addr, peers: &[Peer]) -> Behaviour {
    let machine = |address: Ipv4Addr, tags: &[&str], online: bool| {
        let name = format!("gpu{}", address.octets()[3]);
        let mut machine = json!({
            "ID": "n1CNTRL", "HostName": name, "DNSName": format!("{name}.tail1234.ts.net."), "OS": "linux", "UserID": 1,
            "TailscaleIPs": [address, "fd7a:115c:a1e0::1"], "Addrs": null, "Relay": "fra", "RxBytes": 0, "Online": online
        });
        // Go leaves an empty list out here.
        if !tags.is_empty() {
            machine["Tags"] = json!(tags);
        }
        machine
    };
    let peers = peers.iter().enumerate();
    let peers =
        peers.map(|(index, peer)| (format!("nodekey:{index:02}"), machine(peer.address, peer.tags, peer.online)));
    Behaviour::Status(json!({
        "Version": "1.86.2-t1234", "TUN": true, "BackendState": "Running", "AuthURL": "", "TailscaleIPs": [own],
        "Self": machine(own, &["tag:muster"], true), "Health": [], "MagicDNSSuffix": "tail1234.ts.net",
        "Peer": peers.collect::<serde_json::Map<_, _>>(), "User": {}, "ClientVersion": null
    }))
}

/// The status of one that nobody has logged in.
#[must_use]
pub fn needs_login() -> Behaviour {
    Behaviour::Status(json!({
        "Version": "1.86.2-t1234", "BackendState": "NeedsLogin", "AuthURL": "", "TailscaleIPs": null,
        "Self": {"HostName": "gpu1", "DNSName": "", "TailscaleIPs": null, "Online": false}, "Peer": null, "User": null
    }))
}

/// The stand-in. It ends with this value.
#[derive(Debug)]
pub struct Tailscaled {
    socket: PathBuf,
    behaviour: Arc<Mutex<Behaviour>>,
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Tailscaled {
    /// One in this directory that does not run.
    #[must_use]
    pub fn absent(directory: &Path) -> Self {
        let behaviour = Arc::new(Mutex::new(Behaviour::Silent));
        Self { socket: directory.join("tailscaled.sock"), behaviour, stop: Arc::default(), thread: None }
    }

    /// One that runs.
    #[must_use]
    pub fn start(directory: &Path, behaviour: Behaviour) -> Self {
        let mut tailscaled = Self::absent(directory);
        tailscaled.restart(behaviour);
        tailscaled
    }

    /// Has it run, if it did not, and answer like this from now on.
    ///
    /// # Panics
    /// When there can be no socket.
    pub fn restart(&mut self, behaviour: Behaviour) {
        *self.behaviour.lock().unwrap_or_else(PoisonError::into_inner) = behaviour;
        if self.thread.is_some() {
            return;
        }
        let listener = UnixListener::bind(&self.socket).expect("a socket");
        self.stop.store(false, Ordering::Release);
        let (behaviour, stop) = (Arc::clone(&self.behaviour), Arc::clone(&self.stop));
        self.thread = Some(std::thread::spawn(move || answer_all(&listener, &behaviour, &stop)));
    }

    /// Ends it. Its socket goes too.
    ///
    /// # Panics
    /// When it has failed.
    pub fn end(&mut self) {
        let Some(thread) = self.thread.take() else { return };
        self.stop.store(true, Ordering::Release);
        // It looks when somebody comes.
        let _ = UnixStream::connect(&self.socket);
        thread.join().expect("it has not failed");
        std::fs::remove_file(&self.socket).expect("its socket is there");
    }

    /// Where it listens.
    #[must_use]
    pub fn socket(&self) -> &Path {
        &self.socket
    }
}

impl Drop for Tailscaled {
    fn drop(&mut self) {
        if !std::thread::panicking() {
            self.end();
        }
    }
}

fn answer_all(listener: &UnixListener, behaviour: &Mutex<Behaviour>, stop: &AtomicBool) {
    let mut held = Vec::new();
    while let Ok((mut stream, _)) = listener.accept() {
        if stop.load(Ordering::Acquire) {
            return;
        }
        let behaviour = behaviour.lock().unwrap_or_else(PoisonError::into_inner).clone();
        match behaviour {
            Behaviour::Silent => held.push(stream),
            behaviour => {
                // Whoever asks may have gone.
                let _ = answer(&mut stream, &behaviour);
            }
        }
    }
}

fn answer(stream: &mut UnixStream, behaviour: &Behaviour) -> std::io::Result<()> {
    stream.set_read_timeout(Some(LIMIT))?;
    let (mut head, mut byte) = (Vec::new(), [0]);
    while !head.ends_with(b"\r\n\r\n") && head.len() < LONGEST {
        stream.read_exact(&mut byte)?;
        head.push(byte[0]);
    }
    let head = String::from_utf8_lossy(&head).to_lowercase();
    let (status, body) = match behaviour {
        Behaviour::Bytes(bytes) => return stream.write_all(bytes),
        _ if !head.contains("\r\nhost: local-tailscaled.sock\r\n") => ("403 Forbidden", "invalid host".to_owned()),
        Behaviour::Status(status) if head.starts_with("get /localapi/v0/status ") => ("200 OK", status.to_string()),
        _ => ("404 Not Found", "not found".to_owned()),
    };
    let length = body.len();
    write!(stream, "HTTP/1.1 {status}\r\ncontent-type: application/json\r\ncontent-length: {length}\r\n")?;
    write!(stream, "connection: close\r\n\r\n{body}")
}
