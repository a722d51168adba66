//! What tailscaled answers, as far as it matters here. Every field may be missing or null: Go writes an empty list as null, and
//! versions differ.

use std::collections::BTreeMap;
use std::net::IpAddr;

use serde::Deserialize;

/// The state of a tailscaled that is logged in and connected.
const RUNNING: &str = "Running";

/// The status of a machine and of the others in its tailnet.
#[derive(Debug, Default, Deserialize)]
pub struct Status {
    #[serde(rename = "BackendState")]
    state: Option<String>,
    #[serde(rename = "Self")]
    own: Option<Machine>,
    /// By key.
    #[serde(rename = "Peer")]
    peers: Option<BTreeMap<String, Option<Machine>>>,
}

/// A machine in the tailnet.
#[derive(Debug, Default, Deserialize)]
pub struct Machine {
    #[serde(rename = "HostName")]
    name: Option<String>,
    #[serde(rename = "TailscaleIPs")]
    addresses: Option<Vec<String>>,
    #[serde(rename = "Tags")]
    tags: Option<Vec<String>>,
    #[serde(rename = "Online")]
    online: Option<bool>,
}

impl Status {
    /// Reads it.
    ///
    /// # Errors
    /// Why it is none.
    pub fn read(json: &[u8]) -> Result<Self, String> {
        serde_json::from_slice(json).map_err(|error| format!("its answer is no status: {error}"))
    }

    /// Whether it is connected; if not, its state.
    ///
    /// # Errors
    /// The state that it is in instead.
    pub fn running(&self) -> Result<(), &str> {
        match self.state.as_deref() {
            Some(RUNNING) => Ok(()),
            other => Err(other.unwrap_or("NoState")),
        }
    }

    /// The address of this machine.
    pub fn address(&self) -> Option<IpAddr> {
        self.own.as_ref()?.address()
    }

    /// Those that have the tag, are online and have an address.
    pub fn online_with(&self, tag: &str) -> Vec<IpAddr> {
        let peers = self.peers.iter().flat_map(BTreeMap::values).flatten();
        peers.filter(|peer| peer.is_online_with(tag)).filter_map(Machine::address).collect()
    }
}

impl Machine {
    /// Its IPv4 address in the tailnet, or the IPv6 one where there is no other.
    fn address(&self) -> Option<IpAddr> {
        let all: Vec<IpAddr> = self.addresses.iter().flatten().filter_map(|text| text.parse().ok()).collect();
        let found = all.iter().find(|address| address.is_ipv4()).or(all.first()).copied();
        if found.is_none() {
            tracing::debug!(machine = self.name.as_deref().unwrap_or_default(), "it has no address in the tailnet");
        }
        found
    }

    fn is_online_with(&self, tag: &str) -> bool {
        self.online == Some(true) && self.tags.iter().flatten().any(|own| own == tag)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const RECORDED: &str = r#"{
        "Version": "1.86.2-t1234", "TUN": true, "BackendState": "Running", "HaveNodeKey": true, "AuthURL": "",
        "TailscaleIPs": ["100.64.0.1", "fd7a:115c:a1e0::1"],
        "Self": {
            "ID": "n1CNTRL", "PublicKey": "nodekey:01", "HostName": "gpu1", "DNSName": "gpu1.tail1234.ts.net.", "OS": "linux",
            "UserID": 1, "TailscaleIPs": ["fd7a:115c:a1e0::1", "100.64.0.1"], "AllowedIPs": ["100.64.0.1/32"],
            "Tags": ["tag:muster"], "Addrs": ["192.0.2.1:41641"], "CurAddr": "", "Relay": "fra", "RxBytes": 0, "Online": true,
            "Capabilities": null, "CapMap": {"funnel": null}, "InNetworkMap": true
        },
        "Health": [], "MagicDNSSuffix": "tail1234.ts.net", "CurrentTailnet": {"Name": "example.com"}, "CertDomains": null,
        "Peer": {
            "nodekey:02": {"HostName": "gpu2", "DNSName": "gpu2.tail1234.ts.net.", "Tags": ["tag:gpu", "tag:muster"],
                "TailscaleIPs": ["100.64.0.2", "fd7a:115c:a1e0::2"], "Online": true, "LastSeen": "0001-01-01T00:00:00Z"},
            "nodekey:03": {"HostName": "gpu3", "Tags": ["tag:muster"], "TailscaleIPs": ["100.64.0.3"], "Online": false},
            "nodekey:04": {"HostName": "laptop", "TailscaleIPs": ["100.64.0.4"], "Online": true},
            "nodekey:05": {"HostName": "other", "Tags": ["tag:muster-test"], "TailscaleIPs": ["100.64.0.5"], "Online": true},
            "nodekey:06": {"HostName": "six", "Tags": ["tag:muster"], "TailscaleIPs": ["fd7a:115c:a1e0::6"], "Online": true},
            "nodekey:07": {"HostName": "new", "Tags": ["tag:muster"], "TailscaleIPs": null, "Online": true},
            "nodekey:08": {"HostName": "odd", "Tags": ["tag:muster"], "TailscaleIPs": [""], "Online": true},
            "nodekey:09": {"HostName": "old", "Tags": ["tag:muster"], "TailscaleIPs": ["100.64.0.9"]},
            "nodekey:10": null
        },
        "User": {"1": {"ID": 1, "LoginName": "somebody@example.com", "DisplayName": "Somebody"}}, "ClientVersion": null
    }"#;

    fn address(text: &str) -> IpAddr {
        text.parse().expect("an address")
    }

    fn status(json: &str) -> Status {
        Status::read(json.as_bytes()).expect("a status")
    }

    #[test]
    fn a_running_machine_has_its_ipv4_address_and_the_online_peers_of_a_tag() {
        let status = status(RECORDED);
        assert_eq!(status.running(), Ok(()));
        assert_eq!(status.address(), Some(address("100.64.0.1")));
        assert_eq!(status.online_with("tag:muster"), [address("100.64.0.2"), address("fd7a:115c:a1e0::6")]);
        assert_eq!(status.online_with("tag:gpu"), [address("100.64.0.2")]);
        assert_eq!(status.online_with("tag:nobody"), [] as [IpAddr; 0]);
    }

    #[test]
    fn a_machine_without_ipv4_has_its_ipv6_address() {
        let only =
            status(r#"{"BackendState": "Running", "Self": {"TailscaleIPs": ["fd7a:115c:a1e0::1"]}, "Peer": null}"#);
        assert_eq!(only.address(), Some(address("fd7a:115c:a1e0::1")));
        assert!(only.online_with("tag:muster").is_empty());
    }

    #[test]
    fn one_that_is_not_connected_says_its_state() {
        let needs_login = r#"{"Version": "1.86.2", "BackendState": "NeedsLogin", "AuthURL": "https://login.tailscale.com/a/1",
            "TailscaleIPs": null, "Self": {"HostName": "gpu1", "DNSName": "", "TailscaleIPs": null, "Online": false},
            "Peer": null, "User": null}"#;
        assert_eq!(status(needs_login).running(), Err("NeedsLogin"));
        assert_eq!(status(needs_login).address(), None);
        for (json, state) in [
            (r#"{"BackendState": "Stopped", "Self": null}"#, "Stopped"),
            (r#"{"BackendState": "running"}"#, "running"),
            ("{}", "NoState"),
        ] {
            assert_eq!(status(json).running(), Err(state), "{json}");
        }
    }

    #[test]
    fn what_is_no_status_is_told_apart() {
        for wrong in ["", "<html>", "[]", "null", r#"{"BackendState": 7}"#, r#"{"Peer": []}"#, "{"] {
            let why = Status::read(wrong.as_bytes()).err();
            assert!(why.is_some_and(|why| why.contains("no status")), "{wrong}");
        }
    }
}
