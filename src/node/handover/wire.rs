//! What the two processes say to each other: JSON behind its length, and the sockets as ancillary data.

use std::io::{self, IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::net::TcpListener;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;
use std::time::Duration;

use muster_agent::runtime::UnitId;
use muster_cluster::ids::{DeploymentId, PlacementEpoch, PlacementId};
use muster_cluster::node::MeshSockets;
use muster_cluster::state::FEATURE_LEVELS;
use rustix::net::{
    RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, ReturnFlags, SendAncillaryBuffer, SendAncillaryMessage,
    SendFlags, SocketType, recvmsg, sendmsg,
};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use tokio::io::{AsyncReadExt, AsyncWriteExt, Interest};
use tokio::net::UnixStream;
use tokio::time::timeout;

use crate::node::doors::PlacementDoors;
use crate::node::listeners::{Addresses, Listeners, Loopback};

/// The version of this protocol. Both sides must have the same.
pub const PROTOCOL: u32 = 1;

/// The longest message, in bytes: the table of a node with some thousand placements.
const MESSAGE_LIMIT: u32 = 256 * 1024;

/// What every version of the protocol begins with.
#[derive(Debug, Serialize, Deserialize)]
pub struct Greeting {
    /// The protocol that the successor speaks.
    pub protocol: u32,
}

/// Who wants to take the node over.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Hello {
    /// The protocol that it speaks.
    pub protocol: u32,
    /// Its version.
    pub version: String,
    /// The lowest feature level that it supports, and the highest.
    pub levels: (u32, u32),
    /// Where it is to listen; port 0 is any.
    pub addresses: Addresses,
}

impl Hello {
    /// That of this program.
    pub fn new(addresses: Addresses) -> Self {
        let levels = (*FEATURE_LEVELS.start(), *FEATURE_LEVELS.end());
        Self { protocol: PROTOCOL, version: env!("CARGO_PKG_VERSION").to_owned(), levels, addresses }
    }
}

/// What the running process answers.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum Reply {
    /// It hands the node over, and sends its sockets once the stores are closed.
    Accepted {
        /// Its version.
        version: String,
    },
    /// It does not, or can not any more.
    Refused {
        /// Why.
        why: String,
    },
    /// The stores are closed; these sockets follow, in this order.
    Sockets {
        /// What each is.
        sockets: Vec<Kind>,
    },
}

/// What the successor says last.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum Word {
    /// Its node runs.
    Serving,
    /// It can not serve, and has let go of the data.
    Failed {
        /// Why.
        why: String,
    },
}

/// What a socket is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum Kind {
    /// The API.
    Api,
    /// The proxy.
    Proxy,
    /// The mesh: calls.
    Mesh,
    /// The mesh: gossip.
    Gossip,
    /// The administrator's, in the data directory.
    Local,
    /// The successor's, in the data directory.
    Handover,
    /// The API on loopback as well.
    ApiOnLoopback,
    /// The proxy on loopback as well.
    ProxyOnLoopback,
    /// A placement's.
    Placement {
        /// Its deployment.
        deployment: u64,
        /// Which of the deployment's placements.
        ordinal: u32,
        /// In which epoch.
        epoch: u64,
    },
}

impl Kind {
    fn of(unit: UnitId) -> Self {
        let PlacementId { deployment, ordinal } = unit.placement;
        Self::Placement { deployment: deployment.0, ordinal, epoch: unit.epoch.0 }
    }

    fn unit(self) -> Option<UnitId> {
        let Self::Placement { deployment, ordinal, epoch } = self else { return None };
        let placement = PlacementId { deployment: DeploymentId(deployment), ordinal };
        Some(UnitId { placement, epoch: PlacementEpoch(epoch) })
    }
}

/// What every node has, in this order. The others follow, where there are any: those on loopback, then the placements'.
const KINDS: [Kind; 6] = [Kind::Api, Kind::Proxy, Kind::Mesh, Kind::Gossip, Kind::Local, Kind::Handover];

/// How many sockets travel together. The kernel takes no more than 253.
const TOGETHER: usize = 64;

fn invalid(error: impl Into<Box<dyn std::error::Error + Send + Sync>>) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, error)
}

async fn within<T>(limit: Duration, doing: impl Future<Output = io::Result<T>>) -> io::Result<T> {
    let late = |_| io::Error::new(io::ErrorKind::TimedOut, format!("nothing within {} s", limit.as_secs()));
    timeout(limit, doing).await.map_err(late)?
}

/// Says something.
pub async fn say<T: Serialize>(stream: &mut UnixStream, message: &T, limit: Duration) -> io::Result<()> {
    let content = serde_json::to_vec(message)?;
    let length = u32::try_from(content.len()).map_err(invalid)?;
    within(limit, async {
        stream.write_all(&length.to_be_bytes()).await?;
        stream.write_all(&content).await
    })
    .await
}

/// Hears something, as it was said.
pub async fn hear_bytes(stream: &mut UnixStream, limit: Duration) -> io::Result<Vec<u8>> {
    within(limit, async {
        let length = stream.read_u32().await?;
        if length > MESSAGE_LIMIT {
            return Err(invalid(format!("a message of {length} bytes; the limit is {MESSAGE_LIMIT}")));
        }
        let mut content = vec![0; usize::try_from(length).map_err(invalid)?];
        stream.read_exact(&mut content).await?;
        Ok(content)
    })
    .await
}

/// Hears something.
pub async fn hear<T: DeserializeOwned>(stream: &mut UnixStream, limit: Duration) -> io::Result<T> {
    serde_json::from_slice(&hear_bytes(stream, limit).await?).map_err(invalid)
}

/// Sends the sockets, after a table of what each is.
pub async fn send_sockets(stream: &mut UnixStream, listeners: &Listeners, limit: Duration) -> io::Result<()> {
    let handover = listeners.handover.as_ref().ok_or_else(|| invalid("there is no socket for a successor"))?;
    let mut sockets: Vec<BorrowedFd<'_>> = vec![
        listeners.api.as_fd(),
        listeners.proxy.as_fd(),
        listeners.mesh.calls.as_fd(),
        listeners.mesh.gossip.as_fd(),
        listeners.local.as_fd(),
        handover.as_fd(),
    ];
    let mut table = KINDS.to_vec();
    let Loopback { api, proxy } = &listeners.loopback;
    for (kind, socket) in [(Kind::ApiOnLoopback, api), (Kind::ProxyOnLoopback, proxy)] {
        if let Some(socket) = socket {
            table.push(kind);
            sockets.push(socket.as_fd());
        }
    }
    let placements = listeners.doors.follow().borrow().clone();
    for (unit, doorway) in &placements {
        for socket in doorway.sockets() {
            table.push(Kind::of(*unit));
            sockets.push(socket.as_fd());
        }
    }
    say(stream, &Reply::Sockets { sockets: table }, limit).await?;
    for sockets in sockets.chunks(TOGETHER) {
        within(limit, stream.async_io(Interest::WRITABLE, || send_some(stream, sockets))).await?;
    }
    Ok(())
}

fn send_some(stream: &UnixStream, sockets: &[BorrowedFd<'_>]) -> io::Result<()> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(TOGETHER))];
    let mut control = SendAncillaryBuffer::new(&mut space);
    if !control.push(SendAncillaryMessage::ScmRights(sockets)) {
        return Err(invalid("the sockets do not fit into a message"));
    }
    // Ancillary data needs a byte to travel with.
    sendmsg(stream, &[IoSlice::new(&[0])], &mut control, SendFlags::NOSIGNAL | SendFlags::DONTWAIT)?;
    Ok(())
}

fn receive_some(stream: &UnixStream) -> io::Result<Vec<OwnedFd>> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(TOGETHER))];
    let mut control = RecvAncillaryBuffer::new(&mut space);
    let (mut byte, flags) = ([0], RecvFlags::CMSG_CLOEXEC | RecvFlags::DONTWAIT);
    let received = recvmsg(stream, &mut [IoSliceMut::new(&mut byte)], &mut control, flags)?;
    if received.bytes == 0 {
        return Err(io::ErrorKind::UnexpectedEof.into());
    }
    let mut sockets: Vec<OwnedFd> = Vec::new();
    for message in control.drain() {
        if let RecvAncillaryMessage::ScmRights(descriptors) = message {
            sockets.extend(descriptors);
        }
    }
    if received.flags.contains(ReturnFlags::CTRUNC) {
        return Err(invalid("not all sockets have arrived"));
    }
    Ok(sockets)
}

/// Receives the sockets that this table announces. They are closed in programs that this one starts.
pub async fn receive_sockets(stream: &mut UnixStream, table: &[Kind], limit: Duration) -> io::Result<Listeners> {
    let odd = || invalid(format!("the sockets are {table:?} instead of {KINDS:?} and those that may follow"));
    let mut rest = table.strip_prefix(&KINDS).ok_or_else(odd)?;
    let mut has = |kind: Kind| {
        let after = rest.strip_prefix(&[kind]);
        rest = after.unwrap_or(rest);
        after.map(|_| ())
    };
    let has = Loopback { api: has(Kind::ApiOnLoopback), proxy: has(Kind::ProxyOnLoopback) };
    let units: Vec<_> = rest.iter().map(|kind| kind.unit()).collect::<Option<_>>().ok_or_else(odd)?;
    let mut sockets: Vec<OwnedFd> = Vec::new();
    while sockets.len() < table.len() {
        let some = within(limit, stream.async_io(Interest::READABLE, || receive_some(stream))).await?;
        if some.is_empty() {
            break;
        }
        sockets.extend(some);
    }
    let count = sockets.len();
    let few = || invalid(format!("{count} sockets have arrived instead of {}", table.len()));
    if count != table.len() {
        return Err(few());
    }
    for (kind, socket) in table.iter().zip(&sockets) {
        if *kind != Kind::Gossip && !rustix::net::sockopt::socket_acceptconn(socket)? {
            return Err(invalid("one of the sockets does not listen"));
        }
    }
    let mut sockets = sockets.into_iter();
    let mut next = || sockets.next().ok_or_else(few);
    let (api, proxy, mesh, gossip, local, handover) = (next()?, next()?, next()?, next()?, next()?, next()?);
    let mut also = |has: Option<()>| has.map(|()| next().map(TcpListener::from)).transpose();
    let loopback = Loopback { api: also(has.api)?, proxy: also(has.proxy)? };
    if rustix::net::sockopt::socket_type(&gossip)? != SocketType::DGRAM {
        return Err(invalid("the socket for gossip takes no datagrams"));
    }
    let mut placements: Vec<(UnitId, Vec<TcpListener>)> = Vec::new();
    for (unit, socket) in units.into_iter().zip(sockets) {
        match placements.last_mut().filter(|(last, _)| *last == unit) {
            Some((_, others)) => others.push(socket.into()),
            None => placements.push((unit, vec![socket.into()])),
        }
    }
    let api = TcpListener::from(api);
    let also = loopback.api.as_ref().map(TcpListener::local_addr).transpose()?;
    let doors = Arc::new(PlacementDoors::new(api.local_addr()?, also, placements));
    Ok(Listeners {
        api,
        proxy: proxy.into(),
        loopback,
        mesh: MeshSockets { calls: mesh.into(), gossip: gossip.into() },
        local: local.into(),
        handover: Some(handover.into()),
        doors,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::{Values, defaults};
    use crate::scratch::Scratch;

    const LIMIT: Duration = Duration::from_secs(5);

    fn listeners(scratch: &Scratch) -> Listeners {
        let any = std::net::SocketAddr::from(([127, 0, 0, 1], 0));
        let values = Values { data_dir: scratch.path().to_owned(), api: any, proxy: any, mesh: any, ..defaults() };
        Listeners::bind(&values, true).expect("it listens").0
    }

    #[tokio::test]
    async fn sockets_arrive_as_what_they_were_sent() {
        let scratch = Scratch::new("sockets");
        let sent = listeners(&scratch);
        let (mut old, mut new) = UnixStream::pair().expect("a pair");
        send_sockets(&mut old, &sent, LIMIT).await.expect("is sent");
        let Reply::Sockets { sockets } = hear(&mut new, LIMIT).await.expect("a table") else { panic!("no table") };
        let received = receive_sockets(&mut new, &sockets, LIMIT).await.expect("is received");
        assert_eq!(received.addresses().expect("addresses"), sent.addresses().expect("addresses"));
        let path = |listener: &std::os::unix::net::UnixListener| {
            listener.local_addr().expect("an address").as_pathname().map(ToOwned::to_owned)
        };
        assert_eq!(path(&received.local), path(&sent.local));
        assert_eq!(received.handover.as_ref().map(path), sent.handover.as_ref().map(path));
        let flags = rustix::io::fcntl_getfd(&received.api).expect("flags");
        assert!(flags.contains(rustix::io::FdFlags::CLOEXEC));
    }

    #[tokio::test]
    async fn those_on_loopback_arrive_as_well_whichever_there_are() {
        for (api, proxy) in [(true, true), (true, false), (false, true)] {
            let scratch = Scratch::new("loopback");
            let bind = |is_there: bool| is_there.then(|| TcpListener::bind("127.0.0.1:0").expect("a port"));
            let sent = Listeners { loopback: Loopback { api: bind(api), proxy: bind(proxy) }, ..listeners(&scratch) };
            let (mut old, mut new) = UnixStream::pair().expect("a pair");
            send_sockets(&mut old, &sent, LIMIT).await.expect("is sent");
            let Reply::Sockets { sockets } = hear(&mut new, LIMIT).await.expect("a table") else { panic!("no table") };
            let received = receive_sockets(&mut new, &sockets, LIMIT).await.expect("is received");
            assert_eq!(received.addresses().expect("addresses"), sent.addresses().expect("addresses"));
        }
    }

    #[tokio::test]
    async fn those_of_placements_arrive_as_what_they_were_sent_however_many_there_are() {
        let scratch = Scratch::new("placements");
        let units = (0..100).map(|number| {
            let placement = PlacementId { deployment: DeploymentId(number / 2), ordinal: (number % 2) as u32 };
            UnitId { placement, epoch: PlacementEpoch(number + 7) }
        });
        let bind = || TcpListener::bind("127.0.0.1:0").expect("a port");
        let placements: Vec<_> = units.map(|unit| (unit, vec![bind(), bind()])).collect();
        let listeners = listeners(&scratch);
        let address = listeners.api.local_addr().expect("an address");
        let sent = Listeners { doors: Arc::new(PlacementDoors::new(address, None, placements)), ..listeners };
        let (mut old, mut new) = UnixStream::pair().expect("a pair");
        send_sockets(&mut old, &sent, LIMIT).await.expect("is sent");
        let Reply::Sockets { sockets } = hear(&mut new, LIMIT).await.expect("a table") else { panic!("no table") };
        let received = receive_sockets(&mut new, &sockets, LIMIT).await.expect("is received");
        let ports = |listeners: &Listeners| -> Vec<_> {
            let open = listeners.doors.follow().borrow().clone();
            let port = |socket: &TcpListener| socket.local_addr().expect("an address").port();
            open.iter().map(|(unit, doorway)| (*unit, doorway.sockets().iter().map(port).collect::<Vec<_>>())).collect()
        };
        assert_eq!(ports(&received).len(), 100);
        assert_eq!(ports(&received), ports(&sent));
    }

    #[tokio::test]
    async fn what_is_not_in_the_table_is_refused() {
        let (_old, mut new) = UnixStream::pair().expect("a pair");
        let with = |more: &[Kind]| [&KINDS, more].concat();
        for table in [
            Vec::new(),
            KINDS[..5].to_vec(),
            vec![Kind::Proxy, Kind::Api, Kind::Mesh, Kind::Gossip, Kind::Local, Kind::Handover],
            with(&[Kind::ProxyOnLoopback, Kind::ApiOnLoopback]),
            with(&[Kind::ApiOnLoopback, Kind::ApiOnLoopback]),
            with(&[Kind::Api]),
            with(&[Kind::Placement { deployment: 1, ordinal: 0, epoch: 1 }, Kind::ApiOnLoopback]),
        ] {
            assert!(receive_sockets(&mut new, &table, LIMIT).await.is_err(), "{table:?}");
        }
    }

    #[tokio::test]
    async fn a_message_is_neither_too_long_nor_anything_else() {
        for bytes in [&b"GET / HTTP/1.1\r\n\r\n"[..], &[0, 0, 0, 2, b'{', b'x'], &[255; 8], &[0, 0, 0, 9, b'{']] {
            let (mut old, mut new) = UnixStream::pair().expect("a pair");
            old.write_all(bytes).await.expect("is written");
            drop(old);
            assert!(hear::<Word>(&mut new, LIMIT).await.is_err(), "{bytes:?}");
        }
    }
}
