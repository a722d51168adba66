//! A socket over a pipe, with a state that the test writes.

use std::sync::Arc;
use std::time::Duration;

use futures_util::{SinkExt, StreamExt};
use muster_cluster::ids::NodeId;
use muster_cluster::rows::Deployment;
use muster_cluster::state::{Batch, Published, Row, TableId, Tables, View};
use muster_cluster::storage::{Applied, LogId};
use serde_json::{Value, json};
use tokio::io::DuplexStream;
use tokio::sync::{oneshot, watch};
use tokio::task::JoinHandle;
use tokio::time::timeout;
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::Message;
use tokio_tungstenite::tungstenite::protocol::Role;
use tokio_tungstenite::tungstenite::protocol::frame::coding::CloseCode;

use super::socket::{Feed, Rules, serve};
use crate::auth::Listener;
use crate::server::Leave;

/// No wait of a test is longer.
const BOUND: Duration = Duration::from_secs(20);

/// A table that nobody is told of.
const SILENT: TableId = TableId(99);

/// The state of a node, which the test writes.
struct State {
    tables: Tables,
    index: u64,
    published: Arc<Published>,
}

impl State {
    fn new() -> Self {
        Self { tables: Tables::default(), index: 0, published: Arc::new(Published::new(View::default())) }
    }

    fn write(&mut self, table: TableId, key: u64, bytes: usize) {
        self.index += 1;
        self.tables.put(table, key.to_be_bytes().to_vec(), vec![0; bytes], self.index);
        let changes = self.tables.take_changes().into();
        self.published.publish(self.view(), [Batch { index: self.index, changes }]);
    }

    fn view(&self) -> View {
        let log_id = LogId { term: 1, node: NodeId(1), index: self.index };
        View::new(&self.tables, &Applied { log_id: Some(log_id), ..Applied::default() })
    }

    fn deploy(&mut self, id: u64) {
        self.write(Deployment::TABLE, id, 1);
    }

    async fn client(&self, from: Option<u64>, rules: Rules) -> Client {
        let (roster, heard) = watch::channel(Arc::default());
        let feed = Feed::new(Arc::clone(&self.published), heard, from, Listener::anybody());
        let (ours, theirs) = tokio::io::duplex(1024);
        let (leave, told) = oneshot::channel();
        let leaving = async move {
            let _roster = roster;
            match told.await {
                Ok(leave) => leave,
                Err(_) => std::future::pending().await,
            }
        };
        let served = tokio::spawn(serve(theirs, feed, Box::pin(leaving), rules));
        let socket = WebSocketStream::from_raw_socket(ours, Role::Client, None).await;
        Client { socket, leave, served }
    }
}

struct Client {
    socket: WebSocketStream<DuplexStream>,
    leave: oneshot::Sender<Leave>,
    served: JoinHandle<()>,
}

impl Client {
    async fn message(&mut self) -> Message {
        loop {
            let message = timeout(BOUND, self.socket.next()).await.expect("in time").expect("open").expect("a message");
            if !matches!(message, Message::Ping(_) | Message::Pong(_)) {
                return message;
            }
        }
    }

    async fn event(&mut self) -> Value {
        serde_json::from_str(self.message().await.to_text().expect("a text")).expect("JSON")
    }

    /// With which code it was closed.
    async fn closed(&mut self) -> CloseCode {
        match self.message().await {
            Message::Close(Some(frame)) => frame.code,
            other => panic!("not closed: {other:?}"),
        }
    }
}

fn deployments(ids: &[u64], seq: u64) -> Value {
    json!({"type": "deployments_changed", "ids": ids, "seq": seq})
}

/// Rules of which nothing happens by itself in a test.
fn calm() -> Rules {
    Rules { gather: Duration::ZERO, ..Rules::default() }
}

#[tokio::test]
async fn a_client_is_told_what_comes_after_where_it_stands() {
    let mut state = State::new();
    (1..=3).for_each(|id| state.deploy(id));
    let (mut new, mut back) = (state.client(None, calm()).await, state.client(Some(1), calm()).await);
    assert_eq!(back.event().await, deployments(&[2, 3], 3));
    state.deploy(4);
    assert_eq!(new.event().await, deployments(&[4], 4));
    assert_eq!(back.event().await, deployments(&[4], 4));
}

#[tokio::test]
async fn what_is_no_longer_kept_is_said_to_be_missing_and_it_goes_on_from_there() {
    let mut state = State::new();
    state.deploy(1);
    // More than the ring holds.
    (0..40).for_each(|number| state.write(SILENT, number, 1024 * 1024));
    let mut client = state.client(Some(0), calm()).await;
    assert_eq!(client.event().await, json!({"type": "resync", "seq": state.index}));
    state.deploy(2);
    assert_eq!(client.event().await, deployments(&[2], state.index));
}

#[tokio::test]
async fn a_client_that_is_ahead_waits_for_the_node() {
    let mut state = State::new();
    state.deploy(1);
    let mut client = state.client(Some(3), calm()).await;
    (2..=4).for_each(|id| state.deploy(id));
    assert_eq!(client.event().await, deployments(&[4], 4), "it knows the others");
    // One that is of another history does not wait for ever.
    let mut lost = state.client(Some(1000), Rules { catch_up: Duration::from_millis(50), ..calm() }).await;
    assert_eq!(lost.event().await, json!({"type": "resync", "seq": 4}));
    state.deploy(5);
    assert_eq!(lost.event().await, deployments(&[5], 5));
}

#[tokio::test]
async fn a_client_that_reads_nothing_misses_something_and_is_told_so() {
    let mut state = State::new();
    let mut client = state.client(None, calm()).await;
    // The pipe holds a kilobyte, and what is ready to be written is bounded.
    for _ in 0..200 {
        (0..20).for_each(|id| state.deploy(id));
        tokio::task::yield_now().await;
    }
    (0..40).for_each(|number| state.write(SILENT, number, 1024 * 1024));
    let mut seen = client.event().await;
    while seen["type"] != "resync" {
        seen = client.event().await;
    }
    assert_eq!(seen["seq"], state.index);
    state.deploy(7);
    assert_eq!(client.event().await, deployments(&[7], state.index));
}

#[tokio::test]
async fn a_client_that_reads_nothing_for_too_long_is_let_go() {
    let mut state = State::new();
    let client = state.client(None, Rules { send: Duration::from_millis(100), ..calm() }).await;
    for id in 0..1000 {
        state.deploy(id);
        tokio::task::yield_now().await;
    }
    timeout(BOUND, client.served).await.expect("in time").expect("ends");
}

#[tokio::test]
async fn a_client_that_answers_no_ping_is_let_go_and_one_that_does_stays() {
    let state = State::new();
    let short = Duration::from_millis(50);
    let rules = Rules { ping: short, silence: 4 * short, ..calm() };
    let mut awake = state.client(None, rules).await;
    let silent = state.client(None, rules).await;
    let answering = tokio::spawn(async move {
        while let Some(Ok(message)) = awake.socket.next().await {
            assert!(matches!(message, Message::Ping(_)), "{message:?}");
        }
    });
    timeout(BOUND, silent.served).await.expect("in time").expect("ends");
    assert!(!answering.is_finished());
    answering.abort();
}

#[tokio::test]
async fn what_a_client_says_is_ignored_and_too_much_of_it_ends_the_socket() {
    let mut state = State::new();
    let mut client = state.client(None, calm()).await;
    for text in ["", "{\"type\":\"resync\"}", &"x".repeat(4096)] {
        client.socket.send(Message::text(text)).await.expect("is taken");
    }
    state.deploy(1);
    assert_eq!(client.event().await, deployments(&[1], 1));
    let (mut tell, mut hear) = client.socket.split();
    let told = tokio::spawn(async move { tell.send(Message::text("x".repeat(64 * 1024))).await });
    let code = loop {
        match timeout(BOUND, hear.next()).await.expect("in time").expect("open").expect("a message") {
            Message::Close(Some(frame)) => break frame.code,
            other => assert!(other.is_ping(), "{other:?}"),
        }
    };
    assert_eq!(code, CloseCode::Size);
    timeout(BOUND, client.served).await.expect("in time").expect("ends");
    drop((told, hear));
}

#[tokio::test]
async fn the_end_of_the_server_is_said_to_the_client() {
    for (leave, code) in [(Leave::Drain, CloseCode::Restart), (Leave::Stop, CloseCode::Away)] {
        let mut client = State::new().client(None, calm()).await;
        let (leaving, served) = (client.leave, client.served);
        leaving.send(leave).expect("is heard");
        (client.leave, client.served) = (oneshot::channel().0, tokio::spawn(async {}));
        assert_eq!(client.closed().await, code);
        drop(client);
        timeout(BOUND, served).await.expect("in time").expect("ends");
    }
}

#[tokio::test]
async fn a_client_that_does_not_read_holds_nobody_up_at_the_end() {
    let mut state = State::new();
    let client = state.client(None, Rules { goodbye: Duration::from_millis(50), ..calm() }).await;
    for id in 0..1000 {
        state.deploy(id);
        tokio::task::yield_now().await;
    }
    client.leave.send(Leave::Stop).expect("is heard");
    timeout(BOUND, client.served).await.expect("in time").expect("ends");
}
