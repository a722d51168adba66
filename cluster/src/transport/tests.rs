//! Who is let in over real sockets: registered keys, certificates, fleets, disks.

use std::sync::Arc;
use std::time::{Duration, SystemTime};

use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;
use tonic::service::interceptor::InterceptedService;
use tonic::{Code, Request, Response, Status};

use super::server::Mesh as Listener;
use super::*;
use crate::ids::{FleetId, NodeId, StoreId};
use crate::wire::mesh_client::MeshClient;
use crate::wire::mesh_server::{Mesh, MeshServer};
use crate::wire::{
    PassOnAnswer, PassOnRequest, ProposeAnswer, ProposeRequest, ReadIndexAnswer, ReadIndexRequest,
    read_index_answer::Outcome,
};

const SERVER: NodeId = NodeId(1);
const CLIENT: NodeId = NodeId(2);
const DAY: Duration = Duration::from_secs(24 * 3600);

/// Answers whoever has come so far.
struct Seven;

#[tonic::async_trait]
impl Mesh for Seven {
    async fn propose_all(&self, _: Request<ProposeRequest>) -> Result<Response<ProposeAnswer>, Status> {
        Ok(Response::new(ProposeAnswer { outcomes: Vec::new() }))
    }

    async fn pass_on(&self, _: Request<PassOnRequest>) -> Result<Response<PassOnAnswer>, Status> {
        Err(Status::unimplemented("not asked here"))
    }

    async fn read_index(&self, _: Request<ReadIndexRequest>) -> Result<Response<ReadIndexAnswer>, Status> {
        Ok(Response::new(ReadIndexAnswer { outcome: Some(Outcome::Index(7)) }))
    }
}

/// A node's keys and certificate.
struct Party {
    node: NodeId,
    store: StoreId,
    key: zeroize::Zeroizing<Vec<u8>>,
    certificate: Vec<u8>,
    ca_certificate: Vec<u8>,
}

impl Party {
    fn of(authority: &(Authority, Vec<u8>), node: NodeId, now: SystemTime) -> Self {
        let key = TlsIdentity::generate_key().expect("a key");
        let public = TlsIdentity::public_key(&key).expect("a key");
        let certificate = authority.0.sign(node, &public, now).expect("signs");
        Self { node, store: StoreId::random(), key, certificate, ca_certificate: authority.1.clone() }
    }

    fn peer(&self, address: &str) -> Peer {
        let tls_key = TlsIdentity::public_key(&self.key).expect("a key");
        Peer { node: self.node, store: self.store, address: address.to_owned(), tls_key }
    }

    fn identity(&self) -> Arc<TlsIdentity> {
        Arc::new(TlsIdentity::new(self.key.clone(), self.certificate.clone(), self.ca_certificate.clone()))
    }

    fn registered(&self, fleet: FleetId, known: Vec<Peer>) -> Arc<Registered> {
        Arc::new(Registered::new(fleet, 1, self.node, self.store, Registry::of(known)))
    }
}

struct Place {
    fleet: FleetId,
    authority: (Authority, Vec<u8>),
    server: Party,
    address: String,
    gate: Gate,
    /// The listening socket, for somebody else.
    again: std::net::TcpListener,
    _stop: tokio_util::sync::DropGuard,
}

impl Place {
    /// A server that knows these nodes.
    async fn with(known: impl FnOnce(&(Authority, Vec<u8>)) -> Vec<Peer>) -> Self {
        let fleet = FleetId::random();
        let authority = Authority::generate(fleet, SystemTime::now()).expect("an authority");
        let server = Party::of(&authority, SERVER, SystemTime::now());
        let again = std::net::TcpListener::bind("127.0.0.1:0").expect("a port");
        again.set_nonblocking(true).expect("can be");
        let listener = TcpListener::from_std(again.try_clone().expect("a handle")).expect("a listener");
        let address = listener.local_addr().expect("an address").to_string();
        let gate = Gate::default();
        let registered = server.registered(fleet, known(&authority));
        let check = Check { registered: Arc::clone(&registered) };
        let mut routes = tonic::service::Routes::builder();
        routes.add_service(InterceptedService::new(MeshServer::new(Seven), check));
        let router = tonic::transport::Server::builder().add_routes(routes.routes());
        let stop = CancellationToken::new();
        let (peers, _) = tokio::sync::mpsc::channel(1);
        let mesh = Listener { listener, identity: server.identity(), registered, peers, gate: gate.clone() };
        tokio::spawn(serve(mesh, router, stop.clone()));
        Self { fleet, authority, server, address, gate, again, _stop: stop.drop_guard() }
    }

    /// What the server says to this node, which takes the server for what it believes it to be.
    async fn ask(&self, client: &Party, fleet: FleetId, server: Peer) -> Result<(), Code> {
        let registered = client.registered(fleet, vec![server]);
        let channels = Channels::new(client.identity(), Arc::clone(&registered));
        let inject = Inject { registered, to: SERVER };
        let mut mesh = MeshClient::with_interceptor(channels.to(SERVER, Purpose::Calls), inject);
        let asking = mesh.read_index(ReadIndexRequest {});
        let answer = tokio::time::timeout(Duration::from_secs(20), asking).await.expect("an answer in time");
        answer.map(|answer| assert_eq!(answer.into_inner().outcome, Some(Outcome::Index(7)))).map_err(|s| s.code())
    }

    fn server(&self) -> Peer {
        self.server.peer(&self.address)
    }
}

#[tokio::test]
async fn a_registered_key_is_enough_even_when_its_certificate_has_expired() {
    let mut client = None;
    let place = Place::with(|authority| {
        let old = Party::of(authority, CLIENT, SystemTime::now() - 60 * DAY);
        let peer = old.peer("");
        client = Some(old);
        vec![peer]
    });
    let place = place.await;
    let client = client.expect("was made");
    assert_eq!(place.ask(&client, place.fleet, place.server()).await, Ok(()));
}

#[tokio::test]
async fn a_node_that_is_not_known_yet_needs_a_valid_certificate_in_its_own_name() {
    let place = Place::with(|_| Vec::new()).await;
    let valid = Party::of(&place.authority, CLIENT, SystemTime::now());
    assert_eq!(place.ask(&valid, place.fleet, place.server()).await, Ok(()));
    let expired = Party::of(&place.authority, CLIENT, SystemTime::now() - 60 * DAY);
    assert!(place.ask(&expired, place.fleet, place.server()).await.is_err());
    let foreign = Authority::generate(place.fleet, SystemTime::now()).expect("an authority");
    let foreign = Party::of(&foreign, CLIENT, SystemTime::now());
    assert!(place.ask(&foreign, place.fleet, place.server()).await.is_err(), "the name of the fleet is not its key");
    let named = Party { node: NodeId(3), ..Party::of(&place.authority, CLIENT, SystemTime::now()) };
    assert_eq!(place.ask(&named, place.fleet, place.server()).await, Err(Code::PermissionDenied));
}

#[tokio::test]
async fn a_call_for_another_fleet_or_another_disk_is_refused() {
    let place = Place::with(|_| Vec::new()).await;
    let client = Party::of(&place.authority, CLIENT, SystemTime::now());
    let elsewhere = FleetId::random();
    assert_eq!(place.ask(&client, elsewhere, place.server()).await, Err(Code::PermissionDenied));
    let wiped = Peer { store: StoreId::random(), ..place.server() };
    assert_eq!(place.ask(&client, place.fleet, wiped).await, Err(Code::PermissionDenied));
}

#[tokio::test]
async fn a_server_with_another_key_is_not_believed() {
    let place = Place::with(|_| Vec::new()).await;
    let client = Party::of(&place.authority, CLIENT, SystemTime::now());
    let other = Party::of(&place.authority, SERVER, SystemTime::now());
    let expected = Peer { tls_key: other.peer("").tls_key, ..place.server() };
    assert!(place.ask(&client, place.fleet, expected).await.is_err());
}

#[tokio::test]
async fn when_nothing_more_is_accepted_open_connections_go_on_and_new_ones_wait_for_the_next_listener() {
    let place = Place::with(|_| Vec::new()).await;
    let client = Party::of(&place.authority, CLIENT, SystemTime::now());
    let registered = client.registered(place.fleet, vec![place.server()]);
    let channels = Channels::new(client.identity(), Arc::clone(&registered));
    let inject = Inject { registered, to: SERVER };
    let mut mesh = MeshClient::with_interceptor(channels.to(SERVER, Purpose::Calls), inject);
    mesh.read_index(ReadIndexRequest {}).await.expect("an answer");
    tokio::time::timeout(Duration::from_secs(20), place.gate.close()).await.expect("in time");
    mesh.read_index(ReadIndexRequest {}).await.expect("an answer on the open connection");
    let waiting = tokio::net::TcpStream::connect(&place.address).await.expect("the queue takes it");
    let next = TcpListener::from_std(place.again.try_clone().expect("a handle")).expect("a listener");
    let (_, peer) =
        tokio::time::timeout(Duration::from_secs(20), next.accept()).await.expect("in time").expect("it waits");
    assert_eq!(peer, waiting.local_addr().expect("an address"));
}

#[tokio::test]
async fn garbage_and_silence_do_not_keep_others_out() {
    use tokio::io::AsyncWriteExt;
    let place = Place::with(|_| Vec::new()).await;
    let mut silent = Vec::new();
    for turn in 0..50 {
        let mut stream = tokio::net::TcpStream::connect(&place.address).await.expect("connects");
        if turn % 2 == 0 {
            let _ = stream.write_all(&[0x16; 4096]).await;
        }
        silent.push(stream);
    }
    let client = Party::of(&place.authority, CLIENT, SystemTime::now());
    assert_eq!(place.ask(&client, place.fleet, place.server()).await, Ok(()));
}

#[tokio::test]
async fn a_renewed_certificate_is_shown_from_the_next_connection_on() {
    let place = Place::with(|_| Vec::new()).await;
    let mut client = Party::of(&place.authority, CLIENT, SystemTime::now() - 60 * DAY);
    let identity = client.identity();
    let registered = client.registered(place.fleet, vec![place.server()]);
    let ask = || async {
        let channels = Channels::new(Arc::clone(&identity), Arc::clone(&registered));
        let inject = Inject { registered: Arc::clone(&registered), to: SERVER };
        MeshClient::with_interceptor(channels.to(SERVER, Purpose::Calls), inject).read_index(ReadIndexRequest {}).await
    };
    assert!(ask().await.is_err(), "it has expired, and nobody knows the key");
    let public = identity.public().expect("a key");
    client.certificate = place.authority.0.sign(CLIENT, &public, SystemTime::now()).expect("signs");
    identity.renew(client.certificate.clone());
    assert!(ask().await.is_ok());
}

#[tokio::test]
async fn without_a_certificate_there_is_no_call_of_members() {
    let place = Place::with(|_| Vec::new()).await;
    for (protocol, reached) in [(tls::MESH, false), (tls::JOIN, true)] {
        let mut config = join_config(ca_hash(&place.authority.1)).expect("a configuration");
        config.alpn_protocols = vec![protocol.to_vec()];
        let (config, address) = (Arc::new(config), place.address.clone());
        let connector = tower::service_fn(move |_: tonic::transport::Uri| {
            let (config, address) = (Arc::clone(&config), address.clone());
            async move { connect(&address, config).await.map(hyper_util::rt::TokioIo::new) }
        });
        let endpoint = tonic::transport::Endpoint::from_static("http://node.muster");
        let answer = match endpoint.connect_with_connector(connector).await {
            Ok(channel) => MeshClient::new(channel).read_index(ReadIndexRequest {}).await,
            Err(error) => Err(Status::unavailable(error.to_string())),
        };
        let refused = answer.expect_err("it is no member");
        // Whoever wants to join reaches the listener, and there only what is meant for joining.
        assert_eq!(refused.code() == Code::PermissionDenied, reached, "{refused}");
    }
}

#[tokio::test]
async fn strangers_do_not_take_the_places_of_members() {
    use tokio::io::AsyncReadExt;
    let place = Place::with(|_| Vec::new()).await;
    let config = Arc::new(join_config(ca_hash(&place.authority.1)).expect("a configuration"));
    let mut connections = Vec::new();
    for _ in 0..24 {
        connections.push(connect(&place.address, Arc::clone(&config)).await.expect("shakes hands"));
    }
    let mut refused = 0;
    for connection in &mut connections {
        // One that is served gets the server's first frame, one that is refused gets nothing.
        let mut byte = [0];
        let read = tokio::time::timeout(Duration::from_secs(10), connection.read(&mut byte));
        refused += usize::from(!matches!(read.await.expect("an end or a frame"), Ok(1)));
    }
    assert_eq!(refused, 8, "sixteen are served at once");
    let client = Party::of(&place.authority, CLIENT, SystemTime::now());
    assert_eq!(place.ask(&client, place.fleet, place.server()).await, Ok(()));
}
