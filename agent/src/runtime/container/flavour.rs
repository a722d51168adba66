//! Which daemon is at a socket: its flavour, its version, and what it can do.

use std::fmt;

use bollard::models::{SystemInfo, SystemVersion};

use crate::runtime::RuntimeKind;

/// The two daemons that speak Docker's API.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Flavour {
    /// Docker Engine.
    Docker,
    /// Podman's service.
    Podman,
}

impl Flavour {
    /// The kind of runtime that it is configured as.
    #[must_use]
    pub fn kind(self) -> RuntimeKind {
        match self {
            Self::Docker => RuntimeKind::Docker,
            Self::Podman => RuntimeKind::Podman,
        }
    }
}

impl fmt::Display for Flavour {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.kind().name())
    }
}

/// The first two numbers of a version.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Version {
    /// The first.
    pub major: u32,
    /// The second.
    pub minor: u32,
}

impl Version {
    /// The two numbers at the start of `text`, or `None` if it starts otherwise.
    #[must_use]
    pub fn parse(text: &str) -> Option<Self> {
        let mut parts = text.trim_start_matches('v').split(['.', '-', '+', '~']);
        let major = parts.next()?.parse().ok()?;
        let minor = parts.next()?.parse().ok()?;
        Some(Self { major, minor })
    }
}

impl fmt::Display for Version {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}", self.major, self.minor)
    }
}

/// What is known of a daemon.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Facts {
    /// What it really is: Podman may be behind a socket that is called Docker's.
    pub flavour: Flavour,
    /// Its own version.
    pub version: Version,
    /// The version of the API that is spoken with it.
    pub api: Version,
    /// The names of the GPUs that it hands out by CDI, as far as it tells.
    pub cdi_devices: Vec<String>,
    /// Whether NVIDIA's runtime is set up in it.
    pub nvidia_runtime: bool,
}

/// The newest version of the API that is understood here, and the oldest that has all that is needed.
const NEWEST_API: Version = Version { major: 1, minor: 53 };
const OLDEST_API: Version = Version { major: 1, minor: 40 };

impl Facts {
    /// Reads them from what the daemon says of itself.
    ///
    /// # Errors
    /// In words, when there is no version that both sides speak.
    pub fn read(version: &SystemVersion, info: Option<&SystemInfo>) -> Result<Self, String> {
        let own_version = version.version.as_deref().and_then(Version::parse).unwrap_or(Version { major: 0, minor: 0 });
        let Some(offered) = version.api_version.as_deref().and_then(Version::parse) else {
            return Err("it does not say which version of the API it speaks".to_owned());
        };
        let least = version.min_api_version.as_deref().and_then(Version::parse).unwrap_or(OLDEST_API);
        if offered < OLDEST_API {
            return Err(format!(
                "it speaks version {offered} of the API; {OLDEST_API} is needed (Docker 19.03 or newer)"
            ));
        }
        if least > NEWEST_API {
            return Err(format!(
                "it speaks versions of the API from {least} on; only up to {NEWEST_API} is understood"
            ));
        }
        let cdi_devices = info.and_then(|info| info.discovered_devices.as_ref());
        let cdi_devices = cdi_devices.into_iter().flatten().filter(|device| device.source.as_deref() == Some("cdi"));
        Ok(Self {
            flavour: flavour(version),
            version: own_version,
            api: offered.min(NEWEST_API),
            cdi_devices: cdi_devices.filter_map(|device| device.id.clone()).collect(),
            nvidia_runtime: info
                .and_then(|info| info.runtimes.as_ref())
                .is_some_and(|runtimes| runtimes.contains_key("nvidia")),
        })
    }
}

fn flavour(version: &SystemVersion) -> Flavour {
    let components = version.components.as_deref().unwrap_or_default();
    let names_podman = components.iter().any(|component| component.name.to_lowercase().contains("podman"));
    if names_podman { Flavour::Podman } else { Flavour::Docker }
}

#[cfg(test)]
mod tests {
    use bollard::models::{DeviceInfo, SystemVersionComponents};

    use super::*;

    fn says(component: &str, version: &str, api: &str, least: &str) -> SystemVersion {
        SystemVersion {
            components: Some(vec![SystemVersionComponents { name: component.to_owned(), ..Default::default() }]),
            version: Some(version.to_owned()),
            api_version: Some(api.to_owned()),
            min_api_version: Some(least.to_owned()),
            ..Default::default()
        }
    }

    #[test]
    fn versions_of_distributions_are_read() {
        assert_eq!(Version::parse("20.10.24+dfsg1"), Some(Version { major: 20, minor: 10 }));
        assert_eq!(Version::parse("5.4-dev"), Some(Version { major: 5, minor: 4 }));
        assert_eq!(Version::parse("1.41"), Some(Version { major: 1, minor: 41 }));
        assert_eq!(Version::parse("master"), None);
    }

    #[test]
    fn an_old_daemon_is_spoken_to_in_its_own_version_and_a_newer_one_in_ours() {
        let old = Facts::read(&says("Engine", "20.10.24+dfsg1", "1.41", "1.12"), None).expect("facts");
        assert_eq!((old.flavour, old.api.to_string().as_str()), (Flavour::Docker, "1.41"));
        let new = Facts::read(&says("Engine", "31.0.1", "1.60", "1.44"), None).expect("facts");
        assert_eq!(new.api, NEWEST_API);
    }

    #[test]
    fn a_daemon_that_shares_no_version_is_refused_with_a_reason() {
        let older = Facts::read(&says("Engine", "18.06", "1.38", "1.12"), None).expect_err("too old");
        assert!(older.contains("1.38"), "{older}");
        let newer = Facts::read(&says("Engine", "40.0", "1.99", "1.90"), None).expect_err("too new");
        assert!(newer.contains("1.90"), "{newer}");
    }

    #[test]
    fn podman_is_known_by_its_components_whatever_its_socket_is_called() {
        let facts = Facts::read(&says("Podman Engine", "4.3.1", "1.41", "1.24"), None).expect("facts");
        assert_eq!((facts.flavour, facts.version), (Flavour::Podman, Version { major: 4, minor: 3 }));
    }

    #[test]
    fn devices_that_the_daemon_hands_out_by_cdi_are_known() {
        let device = |source: &str, id: &str| DeviceInfo { source: Some(source.to_owned()), id: Some(id.to_owned()) };
        let info = SystemInfo {
            discovered_devices: Some(vec![device("cdi", "nvidia.com/gpu=GPU-1"), device("other", "x")]),
            ..Default::default()
        };
        let facts = Facts::read(&says("Engine", "29.1", "1.52", "1.44"), Some(&info)).expect("facts");
        assert_eq!(facts.cdi_devices, ["nvidia.com/gpu=GPU-1"]);
    }
}
