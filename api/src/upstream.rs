//! Addresses outside the fleet that callers name and nodes dial: models and the webhook.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use url::{Host, Url};

/// The longest address, in bytes.
const LIMIT: usize = 2048;

/// Where clouds keep the secrets of their machines, besides the link-local addresses: Alibaba, Azure and Oracle.
const METADATA: [Ipv4Addr; 3] =
    [Ipv4Addr::new(100, 100, 100, 200), Ipv4Addr::new(168, 63, 129, 16), Ipv4Addr::new(192, 0, 0, 192)];

/// The same at Amazon, over IPv6.
const METADATA_V6: Ipv6Addr = Ipv6Addr::new(0xfd00, 0xec2, 0, 0, 0, 0, 0, 0x254);

/// Whether a node may dial it. Addresses that lead to a machine's own secrets are refused.
pub fn check_url(text: &str) -> Result<(), &'static str> {
    if text.len() > LIMIT {
        return Err("must have at most 2048 characters");
    }
    // The parser would drop line ends and tabs without a word.
    if text.chars().any(char::is_control) {
        return Err("must not contain control characters");
    }
    let url = Url::parse(text).map_err(|_| "must be an http or https URL")?;
    if !matches!(url.scheme(), "http" | "https") {
        return Err("must be an http or https URL");
    }
    if !url.username().is_empty() || url.password().is_some() {
        return Err("must not carry a user or a password");
    }
    let refused = match url.host() {
        Some(Host::Ipv4(address)) => is_secret(address),
        Some(Host::Ipv6(address)) => is_secret_v6(address),
        Some(Host::Domain(domain)) => domain.trim_end_matches('.') == "metadata.google.internal",
        None => return Err("must be an http or https URL"),
    };
    if refused { Err("must not be a link-local or metadata address") } else { Ok(()) }
}

/// Whether a node must not connect there, whatever name led to it.
pub fn is_forbidden(address: IpAddr) -> bool {
    match address {
        IpAddr::V4(address) => is_secret(address),
        IpAddr::V6(address) => is_secret_v6(address),
    }
}

fn is_secret(address: Ipv4Addr) -> bool {
    address.is_link_local() || METADATA.contains(&address)
}

fn is_secret_v6(address: Ipv6Addr) -> bool {
    address.is_unicast_link_local() || address == METADATA_V6 || inside(address).is_some_and(is_secret)
}

/// The IPv4 address that an IPv6 address stands for: mapped, compatible, or through NAT64.
fn inside(address: Ipv6Addr) -> Option<Ipv4Addr> {
    match address.octets() {
        [0, 0x64, 0xff, 0x9b, 0, 0, 0, 0, 0, 0, 0, 0, a, b, c, d] => Some(Ipv4Addr::new(a, b, c, d)),
        _ => address.to_ipv4(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_that_lead_to_secrets_are_refused() {
        for good in [
            "http://ollama:11434/v1",
            "https://api.example.com",
            "http://127.0.0.1:9/v1",
            "http://[::1]:8/",
            "http://100.100.100.201/",
            "http://[64:ff9b::8.8.8.8]/",
            "http://[fd00:ec2::255]/",
        ] {
            assert_eq!(check_url(good), Ok(()), "{good}");
        }
        for bad in [
            "ftp://x",
            "not a url",
            "http://",
            "/v1",
            "http://a/\tb",
            "http://169.254.169.254/latest",
            "http://2852039166/",
            "http://100.100.100.200/",
            "http://168.63.129.16/",
            "http://192.0.0.192/",
            "http://[fe80::1]/",
            "http://[fd00:ec2::254]/",
            "http://[::ffff:169.254.169.254]/",
            "http://[::ffff:168.63.129.16]/",
            "http://[::169.254.1.1]/",
            "http://[64:ff9b::169.254.169.254]/",
            "http://[64:ff9b::100.100.100.200]/",
            "http://metadata.google.internal./",
            "http://user:password@host/",
        ] {
            assert!(check_url(bad).is_err(), "{bad}");
        }
    }
}
