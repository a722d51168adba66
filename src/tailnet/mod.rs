//! Tailscale: what the tailscaled of this machine says of it and of the others in its tailnet. It is asked when it is needed
//! and nothing is kept; whoever asks says what it means that there is no answer.

mod local_api;
mod status;

use std::fmt;
use std::net::IpAddr;
use std::path::PathBuf;
use std::str::FromStr;

use serde::{Deserialize, Serialize};
use status::Status;
use tokio::runtime::Builder;

/// Where tailscaled listens, unless somebody says otherwise.
const SOCKETS: [&str; 2] = ["/var/run/tailscale/tailscaled.sock", "/run/tailscale/tailscaled.sock"];

/// Whether Tailscale is used, and which.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub enum Tailscale {
    /// Where there is one that runs.
    Auto,
    /// Not at all.
    Off,
    /// The one behind this socket, without which the node does not start.
    Socket(PathBuf),
}

impl FromStr for Tailscale {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        match text {
            "auto" => Ok(Self::Auto),
            "off" => Ok(Self::Off),
            path if path.starts_with('/') => Ok(Self::Socket(path.into())),
            other => Err(format!("{other:?} is neither auto nor off nor the absolute path of a socket")),
        }
    }
}

impl TryFrom<String> for Tailscale {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        text.parse()
    }
}

impl From<Tailscale> for String {
    fn from(tailscale: Tailscale) -> Self {
        tailscale.to_string()
    }
}

impl fmt::Display for Tailscale {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Auto => f.write_str("auto"),
            Self::Off => f.write_str("off"),
            Self::Socket(path) => path.display().fmt(f),
        }
    }
}

/// A tailnet that this machine is in.
#[derive(Debug)]
pub struct Tailnet {
    /// The address of this machine: IPv4, or IPv6 where there is no other.
    pub address: IpAddr,
    status: Status,
}

/// Why there is none.
#[derive(Debug, PartialEq, Eq)]
pub enum NoTailnet {
    /// Tailscale is off, or not installed here.
    Absent,
    /// Nobody listens, or what is said can not be understood.
    NoAnswer {
        /// The socket.
        socket: PathBuf,
        /// What is wrong.
        why: String,
    },
    /// It is not logged in, not started, or not ready yet.
    NotRunning {
        /// The socket.
        socket: PathBuf,
        /// The state that it says.
        state: String,
    },
    /// It runs and has no address.
    NoAddress(PathBuf),
    /// It can not be asked.
    NoRuntime(String),
}

impl fmt::Display for NoTailnet {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Absent => f.write_str("there is no tailscaled on this machine"),
            Self::NoAnswer { socket, why } => write!(f, "tailscaled ({}) does not answer: {why}", socket.display()),
            Self::NotRunning { socket, state } => {
                let socket = socket.display();
                write!(f, "tailscaled ({socket}) is not connected, its state is {state}; see `tailscale status`")
            }
            Self::NoRuntime(why) => write!(f, "tailscaled can not be asked: {why}"),
            Self::NoAddress(socket) => {
                write!(f, "tailscaled ({}) has no address yet; see `tailscale status`", socket.display())
            }
        }
    }
}

impl Tailscale {
    /// The tailnet of this machine, as it is now.
    ///
    /// # Errors
    /// See [`NoTailnet`].
    pub async fn tailnet(&self) -> Result<Tailnet, NoTailnet> {
        let socket = match self {
            Self::Auto => first_there(&SOCKETS.map(PathBuf::from)),
            Self::Off => None,
            Self::Socket(path) => Some(path.clone()),
        };
        ask(socket.ok_or(NoTailnet::Absent)?).await
    }
}

/// The address of this machine in its tailnet. For where nothing else runs yet.
///
/// # Errors
/// See [`NoTailnet`].
pub fn address(tailscale: &Tailscale) -> Result<IpAddr, NoTailnet> {
    let runtime = Builder::new_current_thread().enable_all().build();
    let runtime = runtime.map_err(|error| NoTailnet::NoRuntime(error.to_string()))?;
    runtime.block_on(tailscale.tailnet()).map(|tailnet| tailnet.address)
}

fn first_there(sockets: &[PathBuf]) -> Option<PathBuf> {
    sockets.iter().find(|socket| socket.exists()).cloned()
}

async fn ask(socket: PathBuf) -> Result<Tailnet, NoTailnet> {
    let answer = local_api::status(&socket).await;
    let status = match answer.and_then(|json| Status::read(&json)) {
        Ok(status) => status,
        Err(why) => return Err(NoTailnet::NoAnswer { socket, why }),
    };
    if let Err(state) = status.running() {
        return Err(NoTailnet::NotRunning { state: state.escape_debug().to_string(), socket });
    }
    match status.address() {
        Some(address) => Ok(Tailnet { address, status }),
        None => Err(NoTailnet::NoAddress(socket)),
    }
}

impl Tailnet {
    /// Where the other machines are that have this tag and are online.
    pub fn online_with(&self, tag: &str) -> Vec<IpAddr> {
        self.status.online_with(tag)
    }
}

/// Checks a tag as Tailscale does.
///
/// # Errors
/// What is wrong with it.
pub fn check_tag(tag: &str) -> Result<(), String> {
    let plain = |name: &str| {
        name.starts_with(|c: char| c.is_ascii_alphabetic())
            && name.chars().all(|c| c.is_ascii_alphanumeric() || c == '-')
    };
    if tag.strip_prefix("tag:").is_some_and(plain) {
        return Ok(());
    }
    Err(format!("tailscale_tag = {tag:?} is no tag; tags are like tag:muster, of letters, digits and dashes"))
}

#[cfg(test)]
mod tests {
    use std::time::{Duration, Instant};

    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::net::UnixListener;

    use super::*;
    use crate::scratch::Scratch;

    /// Answers one request with these bytes, and then says nothing more.
    fn answering(socket: &PathBuf, answer: Vec<u8>) -> tokio::task::JoinHandle<String> {
        let listener = UnixListener::bind(socket).expect("a socket");
        tokio::spawn(async move {
            let (mut stream, _) = listener.accept().await.expect("somebody asks");
            let mut request = vec![0; 4096];
            let length = stream.read(&mut request).await.expect("a request");
            let _ = stream.write_all(&answer).await;
            let _ = stream.read(&mut [0]).await;
            String::from_utf8_lossy(&request[..length]).into_owned()
        })
    }

    fn http(status: &str, body: &str) -> Vec<u8> {
        format!("HTTP/1.1 {status}\r\ncontent-length: {}\r\n\r\n{body}", body.len()).into_bytes()
    }

    #[tokio::test]
    async fn it_is_asked_under_its_own_name() {
        let scratch = Scratch::new("tailscaled");
        let socket = scratch.path().join("tailscaled.sock");
        let body = r#"{"BackendState": "Running", "Self": {"TailscaleIPs": ["100.64.0.1"]}}"#;
        let asked = answering(&socket, http("200 OK", body));
        let tailnet = Tailscale::Socket(socket).tailnet().await.expect("a tailnet");
        assert_eq!(tailnet.address, IpAddr::from([100, 64, 0, 1]));
        drop(tailnet);
        let request = asked.await.expect("was asked").to_lowercase();
        assert!(request.starts_with("get /localapi/v0/status http/1.1\r\n"), "{request}");
        assert!(request.contains("host: local-tailscaled.sock\r\n"), "{request}");
    }

    #[tokio::test]
    async fn what_is_no_answer_is_an_error_in_time() {
        let endless = "HTTP/1.1 200 OK\r\ncontent-length: 9000000\r\n\r\n".to_owned() + &" ".repeat(9_000_000);
        for (name, answer, said) in [
            ("silent", Vec::new(), "no answer within"),
            ("half", b"HTTP/1.1 200 OK\r\ncontent-length: 100\r\n\r\n{".to_vec(), "no answer within"),
            ("endless", endless.into_bytes(), "longer than"),
            ("garbage", b"\0\x01nonsense\r\n\r\n".to_vec(), "does not answer"),
            ("refused", http("403 Forbidden", "status access denied\n"), "403 Forbidden: status access denied"),
            ("elsewhere", http("302 Found", ""), "302"),
            ("page", http("200 OK", "<html>"), "no status"),
            ("login", http("200 OK", r#"{"BackendState": "NeedsLogin"}"#), "NeedsLogin"),
            ("new", http("200 OK", r#"{"BackendState": "Running"}"#), "no address"),
        ] {
            let scratch = Scratch::new(&format!("tailscaled-{name}"));
            let socket = scratch.path().join("tailscaled.sock");
            let asked = answering(&socket, answer);
            let begun = Instant::now();
            let why = Tailscale::Socket(socket.clone()).tailnet().await.expect_err(name).to_string();
            assert!(begun.elapsed() < Duration::from_secs(10), "{name}");
            assert!(why.contains(said) && why.contains(&socket.display().to_string()), "{name}: {why}");
            asked.abort();
        }
    }

    #[tokio::test]
    async fn nobody_is_asked_where_there_is_nobody() {
        let scratch = Scratch::new("tailscaled-nobody");
        let (none, dead) = (scratch.path().join("none"), scratch.path().join("dead"));
        drop(UnixListener::bind(&dead).expect("a socket"));
        assert_eq!(first_there(std::slice::from_ref(&none)), None);
        assert_eq!(first_there(&[none.clone(), dead.clone()]), Some(dead.clone()));
        assert_eq!(Tailscale::Off.tailnet().await.expect_err("off"), NoTailnet::Absent);
        for socket in [none, dead] {
            let why = Tailscale::Socket(socket).tailnet().await.expect_err("nobody listens");
            assert!(matches!(why, NoTailnet::NoAnswer { .. }), "{why}");
        }
    }

    #[test]
    fn a_setting_is_a_word_or_a_path() {
        for (text, setting) in [
            ("auto", Tailscale::Auto),
            ("off", Tailscale::Off),
            ("/run/x.sock", Tailscale::Socket("/run/x.sock".into())),
        ] {
            assert_eq!((text.parse(), setting.to_string().as_str()), (Ok(setting.clone()), text));
        }
        for wrong in ["", "on", "Auto", "x.sock", "./x.sock"] {
            assert!(wrong.parse::<Tailscale>().is_err(), "{wrong}");
        }
    }

    #[test]
    fn a_tag_is_one_that_tailscale_takes() {
        for (tag, right) in [
            ("tag:muster", true),
            ("tag:gpu-2", true),
            ("muster", false),
            ("tag:", false),
            ("tag:2", false),
            ("tag:a b", false),
        ] {
            assert_eq!(check_tag(tag).is_ok(), right, "{tag}");
        }
    }
}
