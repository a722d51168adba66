//! The listeners of this node's placements, each on the address of the API with the placement's own port.
//!
//! They are bound once, and outlive whoever accepts from them: the threads that serve clients follow the table, and a successor
//! gets the sockets. What opens and closes them is the supervisor.

use std::collections::BTreeMap;
use std::io;
use std::net::{IpAddr, SocketAddr, TcpListener};
use std::sync::Arc;
use std::time::Duration;

use futures_util::FutureExt;
use futures_util::future::BoxFuture;
use muster_agent::doors::{Doors, PortTaken};
use muster_agent::runtime::UnitId;
use tokio::sync::watch;
use tokio::time::{Instant, sleep};

use super::listeners::listen_on;

/// How long a port may take to be free that was given up just now: whoever accepted from it has to let go of it first.
const FREE_LIMIT: Duration = Duration::from_secs(2);

/// How long to wait before trying again to listen.
const PAUSE: Duration = Duration::from_millis(20);

/// The sockets of a placement. They are closed with the last handle.
#[derive(Debug)]
pub struct Doorway {
    /// At least one, each on another address.
    sockets: Vec<TcpListener>,
}

impl Doorway {
    /// A handle of each of its sockets.
    ///
    /// # Errors
    /// When there can be no more handles.
    pub fn handles(&self) -> io::Result<Vec<TcpListener>> {
        self.sockets.iter().map(TcpListener::try_clone).collect()
    }

    /// Its sockets.
    pub fn sockets(&self) -> &[TcpListener] {
        &self.sockets
    }
}

/// What is open, by placement and epoch.
pub type Table = BTreeMap<UnitId, Arc<Doorway>>;

/// The listeners of the placements of a node.
#[derive(Debug)]
pub struct PlacementDoors {
    hosts: Vec<IpAddr>,
    open: watch::Sender<Table>,
}

impl PlacementDoors {
    /// Those of a node whose API listens there, on loopback as well if it does, of which these are open already.
    pub fn new(api: SocketAddr, also: Option<SocketAddr>, inherited: Vec<(UnitId, Vec<TcpListener>)>) -> Self {
        let mut hosts: Vec<_> = [Some(api), also].into_iter().flatten().map(|address| address.ip()).collect();
        hosts.dedup();
        let open = inherited.into_iter().map(|(unit, sockets)| (unit, Arc::new(Doorway { sockets }))).collect();
        Self { hosts, open: watch::Sender::new(open) }
    }

    /// What is open, now and later.
    pub fn follow(&self) -> watch::Receiver<Table> {
        self.open.subscribe()
    }

    /// Lets go of all of them: they are a successor's.
    pub fn let_go(&self) {
        self.keep(&[]);
    }

    fn bind(&self, port: u16) -> io::Result<Vec<TcpListener>> {
        self.hosts.iter().map(|host| listen_on(SocketAddr::new(*host, port))).collect()
    }

    async fn open(&self, unit: UnitId, port: u16) -> io::Result<()> {
        let deadline = Instant::now() + FREE_LIMIT;
        while !self.open.borrow().contains_key(&unit) {
            match self.bind(port) {
                Ok(sockets) => {
                    tracing::info!(%unit, port, "a placement listens");
                    self.open.send_modify(|open| drop(open.insert(unit, Arc::new(Doorway { sockets }))));
                }
                Err(error) if error.kind() != io::ErrorKind::AddrInUse || Instant::now() >= deadline => {
                    return Err(error);
                }
                Err(_) => sleep(PAUSE).await,
            }
        }
        Ok(())
    }
}

impl Doors for PlacementDoors {
    fn open(&self, unit: UnitId, port: u32) -> BoxFuture<'_, Result<(), PortTaken>> {
        async move {
            let number = u16::try_from(port).ok().filter(|port| *port > 0);
            let number = number.ok_or_else(|| PortTaken { port, why: "there is no such port".to_owned() })?;
            let taken = |error: io::Error| match error.kind() {
                io::ErrorKind::AddrInUse => PortTaken { port, why: "another program has it".to_owned() },
                _ => PortTaken { port, why: error.to_string() },
            };
            self.open(unit, number).await.map_err(taken)
        }
        .boxed()
    }

    fn keep(&self, units: &[UnitId]) {
        self.open.send_if_modified(|open| {
            let before = open.len();
            open.retain(|unit, _| {
                let stays = units.contains(unit);
                if !stays {
                    tracing::debug!(%unit, "a placement's listener is closed");
                }
                stays
            });
            open.len() != before
        });
    }
}

#[cfg(test)]
mod tests {
    use std::net::TcpStream;

    use muster_cluster::ids::{DeploymentId, PlacementEpoch, PlacementId};

    use super::*;

    fn unit(deployment: u64, epoch: u64) -> UnitId {
        let placement = PlacementId { deployment: DeploymentId(deployment), ordinal: 0 };
        UnitId { placement, epoch: PlacementEpoch(epoch) }
    }

    fn address(host: [u8; 4]) -> SocketAddr {
        SocketAddr::from((host, 8000))
    }

    fn doors() -> PlacementDoors {
        PlacementDoors::new(address([127, 0, 0, 2]), Some(address([127, 0, 0, 1])), Vec::new())
    }

    /// A port that nobody has on either address, as far as one can know.
    fn free_port() -> u16 {
        let found = TcpListener::bind("127.0.0.2:0").expect("a port");
        found.local_addr().expect("an address").port()
    }

    fn connects(host: &str, port: u16) -> bool {
        TcpStream::connect((host, port)).is_ok()
    }

    #[tokio::test]
    async fn a_placement_listens_where_the_api_does_until_it_is_not_kept() {
        let (doors, port) = (doors(), free_port());
        Doors::open(&doors, unit(1, 5), port.into()).await.expect("opens");
        Doors::open(&doors, unit(1, 5), port.into()).await.expect("is open");
        assert!(connects("127.0.0.1", port) && connects("127.0.0.2", port));
        doors.keep(&[unit(1, 5)]);
        assert!(connects("127.0.0.1", port));
        doors.keep(&[unit(1, 6)]);
        assert!(!connects("127.0.0.1", port) && !connects("127.0.0.2", port));
    }

    #[tokio::test]
    async fn a_port_of_somebody_else_is_refused_on_whichever_address_he_has_it() {
        let doors = doors();
        for host in ["127.0.0.1", "127.0.0.2"] {
            let other = TcpListener::bind((host, 0)).expect("a port");
            let port = other.local_addr().expect("an address").port();
            let taken = Doors::open(&doors, unit(1, 5), port.into()).await.expect_err("it is taken");
            assert!(taken.to_string().contains(&format!("port {port} ")), "{taken}");
            assert!(doors.follow().borrow().is_empty());
        }
        for port in [0, 65_536, u32::MAX] {
            assert!(Doors::open(&doors, unit(1, 5), port).await.is_err());
        }
    }

    #[tokio::test]
    async fn a_port_that_is_being_given_up_is_waited_for() {
        let (doors, port) = (doors(), free_port());
        Doors::open(&doors, unit(1, 5), port.into()).await.expect("opens");
        // A thread that serves it has a handle of its own.
        let held = doors.follow().borrow()[&unit(1, 5)].handles().expect("handles");
        doors.keep(&[]);
        let mut opening = Doors::open(&doors, unit(1, 6), port.into());
        assert!(opening.as_mut().now_or_never().is_none(), "it is still held");
        drop(held);
        opening.await.expect("opens");
        assert!(connects("127.0.0.1", port));
    }
}
