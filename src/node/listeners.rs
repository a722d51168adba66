//! What a node listens on.

use std::net::{Ipv4Addr, SocketAddr, TcpListener};
use std::os::unix::net::UnixListener;
use std::sync::Arc;

use muster_cluster::node::MeshSockets;

use super::doors::PlacementDoors;
use super::socket::{self, Socket, SocketFile};
use crate::config::Values;
use crate::exit::Failure;

/// How many connections wait to be accepted. The standard library asks for 128, which a restart under load overflows.
const BACKLOG: i32 = 4096;

/// Where a node listens.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct Addresses {
    /// The API.
    pub api: SocketAddr,
    /// The proxy.
    pub proxy: SocketAddr,
    /// The mesh.
    pub mesh: SocketAddr,
    /// Loopback as well.
    #[serde(default)]
    pub loopback: Loopback<SocketAddr>,
}

impl Addresses {
    /// Those that the configuration says.
    pub fn wanted(values: &Values) -> Self {
        let Values { api, proxy, mesh, loopback_too, .. } = *values;
        let loopback = Loopback {
            api: loopback_too.api.then(|| on_loopback(api)),
            proxy: loopback_too.proxy.then(|| on_loopback(proxy)),
        };
        Self { api, proxy, mesh, loopback }
    }
}

fn on_loopback(address: SocketAddr) -> SocketAddr {
    (Ipv4Addr::LOCALHOST, address.port()).into()
}

/// What is on loopback besides where it is for others.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct Loopback<T> {
    /// The API.
    pub api: Option<T>,
    /// The proxy.
    pub proxy: Option<T>,
}

impl<T> Default for Loopback<T> {
    fn default() -> Self {
        Self { api: None, proxy: None }
    }
}

/// The sockets of a node. They are bound once, and outlive whoever accepts from them: a successor gets these, and never binds
/// its own.
#[derive(Debug)]
pub struct Listeners {
    /// REST, `/v1`, pages.
    pub api: TcpListener,
    /// The OpenAI-compatible surface alone.
    pub proxy: TcpListener,
    /// Both on loopback as well, for this machine's own programs.
    pub loopback: Loopback<TcpListener>,
    /// The other nodes.
    pub mesh: MeshSockets,
    /// The administrator's socket in the data directory.
    pub local: UnixListener,
    /// Where a successor asks for all of these; none if there can not be one.
    pub handover: Option<UnixListener>,
    /// Those of its placements, which come and go.
    pub doors: Arc<PlacementDoors>,
}

/// The files of a node's sockets.
#[derive(Debug)]
pub struct SocketFiles(Vec<SocketFile>);

impl SocketFiles {
    /// Removes them. To be called while the listeners are there: nobody else gets their inodes.
    pub fn remove(self) {
        self.0.into_iter().for_each(SocketFile::remove);
    }

    /// The files of sockets that this process has inherited.
    ///
    /// # Errors
    /// When one is not there.
    pub fn inherited(values: &Values) -> Result<Self, Failure> {
        let files = [Socket::Local, Socket::Handover].map(|socket| SocketFile::inherited(&values.data_dir, socket));
        files.into_iter().collect::<Result<_, _>>().map(Self)
    }
}

impl Listeners {
    /// Listens as the configuration says, and for a successor if there can be one.
    ///
    /// # Errors
    /// When another process serves the data directory, an address is taken, or is not this machine's.
    pub fn bind(values: &Values, with_successor: bool) -> Result<(Self, SocketFiles), Failure> {
        // First: if another process has all of these, this is what says so best.
        let (local, file) = socket::bind(&values.data_dir, Socket::Local)?;
        let mut files = SocketFiles(vec![file]);
        match Self::bind_others(values, local, with_successor, &mut files) {
            Ok(listeners) => Ok((listeners, files)),
            Err(failure) => {
                files.remove();
                Err(failure)
            }
        }
    }

    fn bind_others(
        values: &Values,
        local: UnixListener,
        with_successor: bool,
        files: &mut SocketFiles,
    ) -> Result<Self, Failure> {
        let handover = if with_successor {
            let (listener, file) = socket::bind(&values.data_dir, Socket::Handover)?;
            files.0.push(file);
            Some(listener)
        } else {
            None
        };
        let api = bind("API", values.api)?;
        let proxy = bind("proxy", values.proxy)?;
        let also = Addresses::wanted(values).loopback;
        let loopback = Loopback {
            api: also.api.map(|address| bind("API", address)).transpose()?,
            proxy: also.proxy.map(|address| bind("proxy", address)).transpose()?,
        };
        let failed =
            |error: std::io::Error| Failure::other(format!("the mesh can not listen on {}: {error}", values.mesh));
        let mesh = MeshSockets::bind(values.mesh).map_err(failed)?;
        rustix::net::listen(&mesh.calls, BACKLOG).map_err(|error| failed(error.into()))?;
        let doors = Arc::new(PlacementDoors::new(values.api, also.api, Vec::new()));
        Ok(Self { api, proxy, loopback, mesh, local, handover, doors })
    }

    /// The mesh's, for a node to start over.
    ///
    /// # Errors
    /// When there can be no more handles.
    pub fn mesh(&self) -> std::io::Result<MeshSockets> {
        Ok(MeshSockets { calls: self.mesh.calls.try_clone()?, gossip: self.mesh.gossip.try_clone()? })
    }

    /// Where they listen.
    ///
    /// # Errors
    /// When the system does not say.
    pub fn addresses(&self) -> Result<Addresses, Failure> {
        let address = |listener: &TcpListener| {
            listener.local_addr().map_err(|error| Failure::other(format!("a listener has no address: {error}")))
        };
        let loopback = Loopback {
            api: self.loopback.api.as_ref().map(address).transpose()?,
            proxy: self.loopback.proxy.as_ref().map(address).transpose()?,
        };
        let (api, proxy, mesh) = (address(&self.api)?, address(&self.proxy)?, address(&self.mesh.calls)?);
        Ok(Addresses { api, proxy, mesh, loopback })
    }
}

fn bind(what: &str, address: SocketAddr) -> Result<TcpListener, Failure> {
    let failed = |error: std::io::Error| Failure::other(format!("the {what} can not listen on {address}: {error}"));
    listen_on(address).map_err(failed)
}

/// Listens there, with room for many who wait.
///
/// # Errors
/// When somebody else does, or the address is not this machine's.
pub fn listen_on(address: SocketAddr) -> std::io::Result<TcpListener> {
    let listener = TcpListener::bind(address)?;
    rustix::net::listen(&listener, BACKLOG)?;
    listener.set_nonblocking(true)?;
    Ok(listener)
}
