use std::sync::atomic::Ordering;
use std::time::Duration;

use tempfile::TempDir;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpListener;
use tokio_util::task::AbortOnDropHandle;

use super::server::{Said, Server, certified, ok, said};
use super::*;
use crate::files::archive::ArchiveLimits;
use crate::files::archive::samples::{gzip, tar, zip};
use crate::files::error::ErrorKind;
use crate::files::room::Room;
use crate::files::shelf::Limits;
use crate::files::staging::STAGING;
use crate::files::transfers::{Transfer, TransferState, Transfers};

struct Scene {
    home: TempDir,
    pulls: Pulls,
}

impl Scene {
    fn new() -> Self {
        Self::with(Limits::default())
    }

    fn with(limits: Limits) -> Self {
        let home = tempfile::tempdir().unwrap();
        let limits = Limits { keep_free: 0, pull_pause: Duration::from_micros(100), ..limits };
        let transfers = Transfers::new(limits.transfers_kept);
        let room = Room::new(home.path(), 0);
        let shelf = Shelf { models: home.path().to_owned(), room, limits, transfers };
        let pulls = Pulls::new(shelf, PullPolicy { loopback: true, private: false });
        Self { home, pulls }
    }

    fn transfer(&self) -> Transfer {
        self.pulls.shelf.transfers.list().pop().unwrap()
    }

    async fn until(&self, what: &str, condition: impl Fn(&Transfer) -> bool) -> Transfer {
        let waited = tokio::time::timeout(Duration::from_secs(10), async {
            while !condition(&self.transfer()) {
                tokio::time::sleep(Duration::from_millis(2)).await;
            }
        });
        waited.await.unwrap_or_else(|_| panic!("never: {what}: {:?}", self.transfer()));
        self.transfer()
    }

    /// Waits until the pull has ended, and says why it failed if it did.
    async fn ended(&self) -> Result<Transfer, String> {
        let ended = |t: &Transfer| matches!(t.state, TransferState::Done(_) | TransferState::Error(_));
        let transfer = self.until("it has ended", ended).await;
        assert_eq!(fs::read_dir(self.home.path().join(STAGING)).unwrap().count(), 0, "something was left");
        match transfer.state.clone() {
            TransferState::Error(why) => Err(why),
            _ => Ok(transfer),
        }
    }

    async fn pull(&self, url: &str, name: Option<&str>) -> Result<Transfer, String> {
        self.pulls.start(url, name).await.unwrap();
        self.ended().await
    }

    fn read(&self, path: &str) -> Vec<u8> {
        fs::read(self.home.path().join(path)).unwrap()
    }

    fn models(&self) -> usize {
        fs::read_dir(self.home.path()).unwrap().count() - 1
    }
}

fn bytes(length: usize) -> Vec<u8> {
    (0..length).map(|n| (n % 251) as u8).collect()
}

#[tokio::test]
async fn a_single_file_is_stored_as_it_is() {
    let server = Server::start(|asked| {
        assert!(asked.header("range").is_none());
        assert_eq!(asked.path(), "/org/my%20model.gguf?download=true");
        ok(b"gguf")
    })
    .await;
    let scene = Scene::new();
    let transfer = scene.pull(&server.url("/org/my%20model.gguf?download=true"), Some("m")).await.unwrap();
    assert_eq!(scene.read("m/my model.gguf"), b"gguf");
    assert_eq!(transfer.state, TransferState::Done(scene.home.path().join("m/my model.gguf")));
    assert_eq!((transfer.received_bytes, transfer.total_bytes), (4, Some(4)));
}

#[tokio::test]
async fn archives_are_unpacked_wherever_their_names_stand() {
    let plain = tar(&[("m/config.json", b"{}")]);
    let server = Server::start(move |asked| match asked.path() {
        "/m.tar.gz" => ok(&gzip(&plain[..])),
        "/named" => {
            let zipped = zip(&[("m/config.json", 0o644, b"{}")]);
            let headers =
                format!("Content-Disposition: attachment; filename=\"x.zip\"\r\nContent-Length: {}\r\n", zipped.len());
            said("200 OK", &headers, &zipped)
        }
        "/moved" => said("302 Found", "Location: /deep/x.tar\r\nContent-Length: 0\r\n", b""),
        _ => ok(&plain),
    })
    .await;
    let scene = Scene::new();
    for (path, name) in [("/m.tar.gz", None), ("/named", Some("n")), ("/moved", Some("o"))] {
        scene.pull(&server.url(path), name).await.unwrap();
    }
    for name in ["m", "n", "o"] {
        assert_eq!(scene.read(&format!("{name}/config.json")), b"{}");
    }
}

#[tokio::test]
async fn a_broken_pull_goes_on_where_it_broke() {
    let content = bytes(1_000_000);
    let served = content.clone();
    let server = Server::start(move |asked| {
        let total = served.len();
        match (asked.number, asked.from()) {
            (0, None) => {
                let headers = format!("Content-Length: {total}\r\nETag: \"v1\"\r\n");
                said("200 OK", &headers, &served[..400_000])
            }
            (n, Some(from)) if asked.header("if-range") == Some("\"v1\"") => {
                let until = if n == 1 { 700_000 } else { total };
                let range = format!(
                    "Content-Range: bytes {from}-{}/{total}\r\nContent-Length: {}\r\n",
                    total - 1,
                    total - from
                );
                said("206 Partial Content", &range, &served[from..until])
            }
            _ => said("400 Bad Request", "", b""),
        }
    })
    .await;
    let scene = Scene::new();
    let transfer = scene.pull(&server.url("/w.bin"), None).await.unwrap();
    assert_eq!(scene.read("w/w.bin"), content);
    assert_eq!((transfer.received_bytes, transfer.total_bytes), (1_000_000, Some(1_000_000)));
    assert_eq!(server.requests.load(Ordering::Relaxed), 3);
}

#[tokio::test]
async fn a_file_that_has_changed_is_pulled_from_its_start() {
    let new = bytes(5000);
    let served = new.clone();
    let server = Server::start(move |asked| match asked.number {
        0 => said("200 OK", "Content-Length: 100000\r\nETag: \"old\"\r\n", &[7; 60_000]),
        _ => said("200 OK", "Content-Length: 5000\r\nETag: \"new\"\r\n", &served),
    })
    .await;
    let scene = Scene::new();
    let transfer = scene.pull(&server.url("/w.bin"), None).await.unwrap();
    assert_eq!(scene.read("w/w.bin"), new);
    assert_eq!(transfer.total_bytes, Some(5000));
}

#[tokio::test]
async fn a_file_of_which_nothing_tells_that_it_is_the_same_is_not_pieced_together() {
    let content = bytes(5000);
    let served = content.clone();
    let server = Server::start(move |asked| {
        assert!(asked.header("range").is_none());
        let headers = "Content-Length: 5000\r\nETag: W/\"weak\"\r\n";
        said("200 OK", headers, if asked.number == 0 { &[7; 3000] } else { &served })
    })
    .await;
    let scene = Scene::new();
    scene.pull(&server.url("/w.bin"), None).await.unwrap();
    assert_eq!(scene.read("w/w.bin"), content);
}

#[tokio::test]
async fn a_server_that_sends_another_part_is_asked_anew() {
    let server = Server::start(|asked| match asked.number {
        0 => said("200 OK", "Content-Length: 10\r\nETag: \"v\"\r\n", b"01234"),
        1 => said("206 Partial Content", "Content-Range: bytes 0-4/10\r\nContent-Length: 5\r\n", b"01234"),
        2 => said("200 OK", "Content-Length: 10\r\nETag: \"v\"\r\n", b"01234"),
        3 => said("416 Range Not Satisfiable", "Content-Length: 0\r\n", b""),
        _ => ok(b"0123456789"),
    })
    .await;
    let scene = Scene::new();
    scene.pull(&server.url("/w.bin"), None).await.unwrap();
    assert_eq!(scene.read("w/w.bin"), b"0123456789");
}

#[tokio::test]
async fn a_server_that_refuses_or_never_delivers_is_given_up() {
    let server = Server::start(|asked| match asked.path() {
        "/none" => said("404 Not Found", "Content-Length: 0\r\n", b""),
        "/ill" => said("503 Service Unavailable", "Content-Length: 0\r\n", b""),
        _ => said("200 OK", "Content-Length: 10\r\n", b""),
    })
    .await;
    let scene = Scene::new();
    assert!(scene.pull(&server.url("/none"), Some("m")).await.unwrap_err().contains("404"));
    assert_eq!(server.requests.load(Ordering::Relaxed), 1);
    assert!(scene.pull(&server.url("/ill"), Some("m")).await.unwrap_err().contains("503"));
    assert_eq!(server.requests.load(Ordering::Relaxed), 6);
    scene.pull(&server.url("/empty"), Some("m")).await.unwrap_err();
    assert_eq!(scene.models(), 0);
    assert_eq!(server.requests.load(Ordering::Relaxed), 11);
}

#[tokio::test]
async fn redirects_are_followed_so_far_and_judged_each() {
    let server = Server::start(|asked| {
        let to = match asked.path() {
            "/metadata" => "http://169.254.169.254/latest".to_owned(),
            "/private" => "http://10.0.0.1/m".to_owned(),
            "/file" => "file:///etc/passwd".to_owned(),
            "/password" => "http://user:secret@127.0.0.1/m".to_owned(),
            path => match path[1..].parse::<u32>() {
                Ok(0) => return ok(b"there"),
                Ok(left) => format!("/{}", left - 1),
                Err(_) => return said("302 Found", "Content-Length: 0\r\n", b""),
            },
        };
        said("302 Found", &format!("Location: {to}\r\nContent-Length: 0\r\n"), b"")
    })
    .await;
    let scene = Scene::new();
    scene.pull(&server.url("/5"), Some("m")).await.unwrap();
    assert_eq!(scene.read("m/5"), b"there", "called as it was asked for");
    for path in ["/6", "/metadata", "/private", "/file", "/password", "/nowhere"] {
        let why = scene.pull(&server.url(path), Some("n")).await.unwrap_err();
        assert!(why.contains("redirects") && !why.contains("secret"), "{path}: {why}");
    }
    assert_eq!(scene.models(), 1);
}

#[tokio::test]
async fn a_name_that_leads_to_this_machine_is_refused_after_it_is_resolved() {
    let server = Server::start(|_| ok(b"secret")).await;
    let scene = Scene::new();
    let strict = Pulls::new(scene.pulls.shelf.clone(), PullPolicy::default());
    let url = format!("http://localhost:{}/m", server.port);
    strict.start(&url, None).await.unwrap();
    assert!(scene.ended().await.unwrap_err().contains("this machine itself"));
    assert_eq!(strict.start(&server.url("/m"), None).await.unwrap_err().kind(), ErrorKind::Invalid);
    assert_eq!(server.requests.load(Ordering::Relaxed), 0);
}

#[tokio::test]
async fn bad_urls_and_names_are_refused_at_once() {
    let scene = Scene::new();
    fs::create_dir(scene.home.path().join("taken")).unwrap();
    for (url, name, kind) in [
        ("file:///etc/passwd", Some("m"), ErrorKind::Invalid),
        ("ftp://host/m", Some("m"), ErrorKind::Invalid),
        ("http://127.0.0.1/m", Some("-m"), ErrorKind::Invalid),
        ("http://127.0.0.1/", None, ErrorKind::Invalid),
        ("http://127.0.0.1/..%2Fm", None, ErrorKind::Invalid),
        ("http://127.0.0.1/m", Some("taken"), ErrorKind::Conflict),
        ("http://127.0.0.1/taken.tar.gz", None, ErrorKind::Conflict),
    ] {
        assert_eq!(scene.pulls.start(url, name).await.unwrap_err().kind(), kind, "{url}");
    }
    assert!(scene.pulls.shelf.transfers.list().is_empty());
    let busy = Scene::with(Limits { pulls: 0, ..Limits::default() });
    assert_eq!(busy.pulls.start("http://127.0.0.1/m", None).await.unwrap_err().kind(), ErrorKind::Busy);
}

#[tokio::test]
async fn a_file_for_which_there_is_no_room_is_not_begun() {
    let server = Server::start(|_| said("200 OK", "Content-Length: 4611686018427387904\r\n", b"x")).await;
    let scene = Scene::new();
    assert!(scene.pull(&server.url("/w.bin"), None).await.unwrap_err().contains("not enough room"));
    assert_eq!(server.requests.load(Ordering::Relaxed), 1);
    assert_eq!(scene.models(), 0);
}

#[tokio::test]
async fn a_wicked_archive_leaves_nothing() {
    let archives = ArchiveLimits { ratio: 2, always: 1 << 20, entries: 100 };
    let server = Server::start(|asked| match asked.path() {
        "/bomb.tgz" => ok(&gzip(&tar(&[("zeros", &[0; 3 << 20])])[..])),
        _ => ok(&tar(&[("good", b"x"), ("../evil", b"x")])),
    })
    .await;
    let scene = Scene::with(Limits { archives, ..Limits::default() });
    assert!(scene.pull(&server.url("/bomb.tgz"), None).await.unwrap_err().contains("out of proportion"));
    assert!(scene.pull(&server.url("/evil.tar"), None).await.unwrap_err().contains("../evil"));
    assert_eq!(scene.models(), 0);
}

#[tokio::test]
async fn a_pull_that_is_cancelled_or_whose_owner_goes_leaves_nothing() {
    let server = Server::start(|_| Said { stays: true, ..said("200 OK", "Content-Length: 10\r\n", b"01234") }).await;
    let scene = Scene::new();
    for dropped in [false, true] {
        let owner = Pulls::new(scene.pulls.shelf.clone(), PullPolicy { loopback: true, private: true });
        let pull = owner.start(&server.url("/w.bin"), None).await.unwrap();
        scene.until("half has come", |transfer| transfer.received_bytes == 5).await;
        if dropped {
            drop(owner);
        } else {
            owner.cancel(pull.id).unwrap();
        }
        assert!(scene.ended().await.unwrap_err().contains("cancelled"));
    }
    assert_eq!(scene.models(), 0);
    assert_eq!(scene.pulls.cancel(Uuid::new_v4()).unwrap_err().kind(), ErrorKind::NotFound);
}

#[tokio::test]
async fn a_server_that_falls_silent_is_asked_again() {
    let server = Server::start(|asked| match asked.number {
        0 => Said { stays: true, ..said("200 OK", "Content-Length: 10\r\nETag: \"v\"\r\n", b"01234") },
        _ => said("206 Partial Content", "Content-Range: bytes 5-9/10\r\nContent-Length: 5\r\n", b"56789"),
    })
    .await;
    let scene = Scene::with(Limits { silence: Duration::from_millis(50), ..Limits::default() });
    scene.pull(&server.url("/w.bin"), None).await.unwrap();
    assert_eq!(scene.read("w/w.bin"), b"0123456789");
}

#[tokio::test]
async fn a_server_is_trusted_by_its_certificate_and_never_left_for_one_without() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    let (acceptor, trust) = certified();
    let _server = AbortOnDropHandle::new(tokio::spawn(async move {
        loop {
            let (stream, _) = listener.accept().await.unwrap();
            let Ok(mut stream) = acceptor.accept(stream).await else { continue };
            let mut head = Vec::new();
            while !head.ends_with(b"\r\n\r\n") {
                head.push(stream.read_u8().await.unwrap());
            }
            let said = match head.starts_with(b"GET /down ") {
                true => said("302 Found", "Location: http://127.0.0.1:1/w.bin\r\nContent-Length: 0\r\n", b""),
                false => ok(b"sealed"),
            };
            stream.write_all(&said.bytes).await.unwrap();
            stream.shutdown().await.unwrap();
        }
    }));
    let mut scene = Scene::new();
    let url = |path: &str| format!("https://127.0.0.1:{port}{path}");
    let why = scene.pull(&url("/w.bin"), None).await.unwrap_err();
    assert!(why.contains("certificate"), "{why}");
    scene.pulls.client = Client::trusting(scene.pulls.client.policy(), trust);
    scene.pull(&url("/w.bin"), None).await.unwrap();
    assert_eq!(scene.read("w/w.bin"), b"sealed");
    assert!(scene.pull(&url("/down"), None).await.unwrap_err().contains("from https"));
}
