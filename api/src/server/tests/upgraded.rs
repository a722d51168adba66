//! Connections that leave HTTP.

use hyper_util::rt::TokioIo;
use tokio::sync::mpsc;

use super::*;

const LEAVE: &[u8] = b"GET /leave HTTP/1.1\r\nhost: test\r\nconnection: upgrade\r\nupgrade: echo\r\n\r\n";

/// A server whose connections to /leave send back what they get, until they are told to end.
struct Echoing {
    address: SocketAddr,
    ending: Ending,
    task: JoinHandle<()>,
    left: mpsc::UnboundedReceiver<Leave>,
    dropped: CancellationToken,
}

impl Echoing {
    async fn start(limits: Limits, stubborn: bool) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let (address, ending, dropped) = (listener.local_addr().unwrap(), Ending::default(), CancellationToken::new());
        let (tell, left) = mpsc::unbounded_channel();
        let guard = dropped.clone();
        let leave = move |mut request: axum::extract::Request| {
            let (guard, tell) = (guard.clone(), tell.clone());
            let upgrade = hyper::upgrade::on(&mut request);
            let afterwards = Afterwards::new(move |leaving| async move {
                let _guard = guard.drop_guard();
                let (mut from, mut to) = tokio::io::split(TokioIo::new(upgrade.await.unwrap()));
                tokio::select! {
                    _ = tokio::io::copy(&mut from, &mut to) => {}
                    leave = leaving => drop(tell.send(leave)),
                }
                if stubborn {
                    std::future::pending::<()>().await;
                }
            });
            let headers = [("connection", "upgrade"), ("upgrade", "echo")];
            ready((StatusCode::SWITCHING_PROTOCOLS, headers, Extension(afterwards)))
        };
        let router = Router::new().route("/leave", get(leave));
        let task = tokio::spawn(serve_tcp(listener, router, limits, ending.part(Some(|_| true))));
        Self { address, ending, task, left, dropped }
    }

    /// A connection that has left HTTP.
    async fn leave(&self) -> TcpStream {
        let mut client = within(TcpStream::connect(self.address)).await.unwrap();
        client.write_all(LEAVE).await.unwrap();
        let mut head = Vec::new();
        while !head.ends_with(b"\r\n\r\n") {
            head.push(within(client.read_u8()).await.expect("an answer"));
        }
        let head = String::from_utf8(head).unwrap();
        assert!(head.starts_with("HTTP/1.1 101") && head.contains("connection: upgrade"), "{head}");
        client
    }
}

async fn echoes(client: &mut TcpStream) {
    client.write_all(b"x").await.unwrap();
    assert_eq!(within(client.read_u8()).await.unwrap(), b'x');
}

#[tokio::test]
async fn a_connection_goes_on_after_http_for_longer_than_an_idle_one_and_holds_no_state() {
    let server = Echoing::start(Limits { header_timeout: SHORT, ..patient() }, false).await;
    let mut client = server.leave().await;
    sleep(2 * SHORT).await;
    echoes(&mut client).await;
    within(server.ending.released()).await;
    drop(client);
    within(server.dropped.cancelled()).await;
}

#[tokio::test]
async fn a_connection_after_http_is_told_of_the_end_and_the_server_waits_for_it() {
    for leave in [Leave::Drain, Leave::Stop] {
        let mut server = Echoing::start(patient(), false).await;
        let mut client = server.leave().await;
        match leave {
            Leave::Drain => {
                server.ending.drain();
                within(server.ending.close()).await;
            }
            Leave::Stop => server.ending.stop(),
        }
        assert_eq!(within(server.left.recv()).await, Some(leave));
        within(server.task).await.unwrap();
        assert_eq!(rest(&mut client).await, "");
    }
}

#[tokio::test]
async fn one_that_begins_while_the_server_drains_is_told_at_once() {
    let mut server = Echoing::start(patient(), false).await;
    server.ending.drain();
    let _client = server.leave().await;
    assert_eq!(within(server.left.recv()).await, Some(Leave::Drain));
}

#[tokio::test]
async fn a_connection_after_http_ends_with_the_grace_and_with_the_server() {
    let server = Echoing::start(Limits { grace: SHORT, ..patient() }, true).await;
    let _client = server.leave().await;
    server.ending.stop();
    within(server.task).await.unwrap();
    assert!(server.dropped.is_cancelled());
    let server = Echoing::start(patient(), true).await;
    let _client = server.leave().await;
    server.task.abort();
    within(server.dropped.cancelled()).await;
}
