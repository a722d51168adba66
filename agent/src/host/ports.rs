//! Whether something could listen on a port of this machine.

use std::io::ErrorKind;
use std::net::{IpAddr, SocketAddr};

use tokio::net::TcpSocket;

use super::Host;
use crate::wire::PortAnswer;

impl Host {
    /// Whether something could listen on a port where the API listens. It is tried, and let go of at once.
    pub(super) fn check_port(&self, port: u16) -> PortAnswer {
        PortAnswer { why: check(self.options.address, port).err().unwrap_or_default() }
    }
}

/// Takes the port without listening there, so that nobody connects meanwhile. What has just stopped listening is no obstacle.
fn check(address: IpAddr, port: u16) -> Result<(), String> {
    let bound = || {
        let socket = if address.is_ipv4() { TcpSocket::new_v4() } else { TcpSocket::new_v6() }?;
        socket.set_reuseaddr(true)?;
        socket.bind(SocketAddr::new(address, port))
    };
    bound().map_err(|error| match error.kind() {
        ErrorKind::AddrInUse => format!("something listens on port {port} already"),
        ErrorKind::PermissionDenied => format!("this node may not listen on port {port}"),
        _ => error.to_string(),
    })
}

#[cfg(test)]
mod tests {
    use std::net::{Ipv4Addr, TcpListener};

    use super::*;

    #[tokio::test]
    async fn a_port_is_free_until_somebody_listens_and_again_afterwards() {
        let address = IpAddr::V4(Ipv4Addr::LOCALHOST);
        let listener = TcpListener::bind((address, 0)).unwrap();
        let port = listener.local_addr().unwrap().port();
        assert!(check(address, port).unwrap_err().contains("listens on port"));
        drop(listener);
        assert_eq!(check(address, port), Ok(()));
        assert_eq!(check(address, port), Ok(()), "asking takes nothing");
        assert!(check("192.0.2.1".parse().unwrap(), port).is_err(), "this machine has no such address");
    }
}
