//! Where a pull may go. Callers name the addresses, so a node's own secrets and its neighbours must not be among them.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use url::{Host, Url};

use crate::files::error::FilesError;

/// The longest URL, in bytes.
const LONGEST: usize = 2048;

/// Where clouds keep the secrets of their machines, besides the link-local addresses: Alibaba, Azure and Oracle.
const METADATA: [Ipv4Addr; 3] =
    [Ipv4Addr::new(100, 100, 100, 200), Ipv4Addr::new(168, 63, 129, 16), Ipv4Addr::new(192, 0, 0, 192)];

/// The same at Amazon, over IPv6.
const METADATA_V6: Ipv6Addr = Ipv6Addr::new(0xfd00, 0xec2, 0, 0, 0, 0, 0, 0x254);

/// Which addresses pulls may go to, besides public ones. Link-local and metadata addresses are refused whatever this says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PullPolicy {
    /// Whether to this machine itself.
    pub loopback: bool,
    /// Whether to private networks: a mirror in the same site, or a peer of the tailnet.
    pub private: bool,
}

impl Default for PullPolicy {
    fn default() -> Self {
        Self { loopback: false, private: true }
    }
}

impl PullPolicy {
    /// Reads a URL that a caller or a redirect has named.
    ///
    /// # Errors
    /// `Invalid` when it is none of http or https, carries a password, or names an address that is refused.
    pub(super) fn check(self, text: &str) -> Result<Url, FilesError> {
        let refuse = |why: &str| Err(FilesError::Invalid(format!("the URL {why}")));
        // The parser would drop line ends and tabs without a word.
        if text.len() > LONGEST || text.chars().any(char::is_control) {
            return refuse("must have at most 2048 characters and no control characters");
        }
        let Ok(url) = Url::parse(text) else { return refuse("must be an http or https URL") };
        if !matches!(url.scheme(), "http" | "https") {
            return refuse("must be an http or https URL");
        }
        if !url.username().is_empty() || url.password().is_some() {
            return refuse("must not carry a user or a password");
        }
        let address: Option<IpAddr> = match url.host() {
            Some(Host::Ipv4(address)) => Some(address.into()),
            Some(Host::Ipv6(address)) => Some(address.into()),
            Some(Host::Domain(_)) => None,
            None => return refuse("must be an http or https URL"),
        };
        match address.and_then(|address| self.refuses(address)) {
            Some(why) => refuse(&format!("must not lead to {why}")),
            None => Ok(url),
        }
    }

    /// What kind of address it is, if a node must not connect there, whatever name led to it.
    pub(super) fn refuses(self, address: IpAddr) -> Option<&'static str> {
        let plain = match address {
            // The loopback address is also a compatible form of 0.0.0.1.
            IpAddr::V6(v6) if v6.is_loopback() || v6.is_unspecified() => address,
            IpAddr::V6(v6) => inside(v6).map_or(address, IpAddr::V4),
            IpAddr::V4(_) => address,
        };
        let (link_local, metadata, private) = match plain {
            IpAddr::V4(v4) => (v4.is_link_local(), METADATA.contains(&v4), v4.is_private() || is_shared(v4)),
            IpAddr::V6(v6) => (v6.is_unicast_link_local(), v6 == METADATA_V6, v6.is_unique_local()),
        };
        let broadcast = matches!(plain, IpAddr::V4(v4) if v4.is_broadcast());
        // Nothing is at 0.0.0.0, but the system takes it for this machine; so it does the whole of 0.0.0.0/8 on some.
        let this_machine =
            plain.is_loopback() || plain.is_unspecified() || matches!(plain, IpAddr::V4(v4) if v4.octets()[0] == 0);
        if link_local || metadata {
            Some("a link-local or metadata address")
        } else if plain.is_multicast() || broadcast {
            Some("a multicast or broadcast address")
        } else if this_machine && !self.loopback {
            Some("this machine itself")
        } else if private && !self.private {
            Some("a private network")
        } else {
            None
        }
    }
}

/// Addresses between a provider and its customers; tailnets use them too.
fn is_shared(address: Ipv4Addr) -> bool {
    let [first, second, ..] = address.octets();
    first == 100 && second & 0xc0 == 64
}

/// The IPv4 address that an IPv6 address stands for: mapped, compatible, through NAT64 or 6to4.
fn inside(address: Ipv6Addr) -> Option<Ipv4Addr> {
    match address.octets() {
        [0, 0x64, 0xff, 0x9b, 0, 0, 0, 0, 0, 0, 0, 0, a, b, c, d] => Some(Ipv4Addr::new(a, b, c, d)),
        [0x20, 0x02, a, b, c, d, ..] => Some(Ipv4Addr::new(a, b, c, d)),
        _ => address.to_ipv4(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const STRICT: PullPolicy = PullPolicy { loopback: false, private: false };
    const OPEN: PullPolicy = PullPolicy { loopback: true, private: true };

    #[test]
    fn addresses_that_lead_to_secrets_are_always_refused() {
        for bad in [
            "ftp://x/m",
            "file:///etc/passwd",
            "not a url",
            "http://",
            "/m",
            "http://a/\tb",
            "http://169.254.169.254/latest",
            "http://2852039166/",
            "http://100.100.100.200/",
            "http://168.63.129.16/",
            "http://192.0.0.192/",
            "http://[fe80::1]/",
            "http://[fd00:ec2::254]/",
            "http://[::ffff:169.254.169.254]/",
            "http://[64:ff9b::169.254.169.254]/",
            "http://[2002:a9fe:a9fe::1]/",
            "http://[::169.254.1.1]/",
            "http://224.0.0.1/",
            "http://255.255.255.255/",
            "http://[ff02::1]/",
            "http://user:password@host/",
            "http://user@host/",
        ] {
            assert!(OPEN.check(bad).is_err(), "{bad}");
        }
        assert!(OPEN.check(&format!("http://host/{}", "x".repeat(2048))).is_err());
        for good in ["https://huggingface.co/a/b", "http://8.8.8.8/m", "http://[2606:4700::1]/m"] {
            assert!(STRICT.check(good).is_ok(), "{good}");
        }
    }

    #[test]
    fn this_machine_and_private_networks_are_a_matter_of_policy() {
        for own in
            ["127.0.0.1", "127.9.9.9", "0.0.0.0", "0.1.2.3", "[::1]", "[::]", "[::ffff:127.0.0.1]", "[::127.0.0.1]"]
        {
            let url = format!("http://{own}:8000/m");
            assert!(PullPolicy::default().check(&url).is_err(), "{own}");
            assert!(OPEN.check(&url).is_ok(), "{own}");
        }
        for near in ["10.0.0.1", "192.168.1.1", "172.16.0.1", "100.64.0.1", "[fd00::1]", "[::ffff:10.0.0.1]"] {
            let url = format!("http://{near}/m");
            assert!(STRICT.check(&url).is_err(), "{near}");
            assert!(PullPolicy::default().check(&url).is_ok(), "{near}");
        }
    }
}
