//! What a node listens on.

use std::net::{SocketAddr, TcpListener};
use std::os::unix::net::UnixListener;

use muster_cluster::node::MeshSockets;

use super::socket::{self, SocketFile};
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
}

/// The sockets of a node. They are bound once, and outlive whoever accepts from them.
#[derive(Debug)]
pub struct Listeners {
    /// REST, `/v1`, pages.
    pub api: TcpListener,
    /// The OpenAI-compatible surface alone.
    pub proxy: TcpListener,
    /// The other nodes.
    pub mesh: MeshSockets,
    /// The administrator's socket in the data directory.
    pub local: UnixListener,
    /// Its file.
    pub file: SocketFile,
}

impl Listeners {
    /// Listens as the configuration says.
    ///
    /// # Errors
    /// When an address is taken, or is not this machine's.
    pub fn bind(values: &Values) -> Result<Self, Failure> {
        let api = bind("API", values.api)?;
        let proxy = bind("proxy", values.proxy)?;
        let failed =
            |error: std::io::Error| Failure::other(format!("the mesh can not listen on {}: {error}", values.mesh));
        let mesh = MeshSockets::bind(values.mesh).map_err(failed)?;
        rustix::net::listen(&mesh.calls, BACKLOG).map_err(|error| failed(error.into()))?;
        let (local, file) = socket::bind(&values.data_dir)?;
        Ok(Self { api, proxy, mesh, local, file })
    }

    /// Where they listen.
    ///
    /// # Errors
    /// When the system does not say.
    pub fn addresses(&self) -> Result<Addresses, Failure> {
        let address = |listener: &TcpListener| {
            listener.local_addr().map_err(|error| Failure::other(format!("a listener has no address: {error}")))
        };
        Ok(Addresses { api: address(&self.api)?, proxy: address(&self.proxy)?, mesh: address(&self.mesh.calls)? })
    }
}

fn bind(what: &str, address: SocketAddr) -> Result<TcpListener, Failure> {
    let failed = |error: std::io::Error| Failure::other(format!("the {what} can not listen on {address}: {error}"));
    let listener = TcpListener::bind(address).map_err(failed)?;
    rustix::net::listen(&listener, BACKLOG).map_err(|error| failed(error.into()))?;
    listener.set_nonblocking(true).map_err(failed)?;
    Ok(listener)
}
