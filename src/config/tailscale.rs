//! What nobody has configured and Tailscale knows.

use std::net::{IpAddr, SocketAddr};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use figment::providers::Serialized;

use super::{Config, DEFAULT, LoopbackToo, Named};
use crate::exit::Failure;
use crate::tailnet::{self, NoTailnet, Tailscale};

/// Where a node that was at an address of a tailnet keeps it. The others know it there.
const FILE: &str = "tailnet-address";

/// How long such a node waits for tailscaled: at the start of a machine it may come up later.
const WAIT: Duration = Duration::from_secs(60);

/// How often it asks meanwhile.
const PAUSE: Duration = Duration::from_secs(1);

/// The address that the node of this directory had in a tailnet when it last ran, if it had one.
fn remembered(directory: &Path) -> Option<IpAddr> {
    std::fs::read_to_string(directory.join(FILE)).ok()?.trim().parse().ok()
}

/// Keeps the address in a tailnet that the others are told of; none if it has another one on purpose.
///
/// # Errors
/// When the data directory can not be written.
pub fn remember(directory: &Path, address: Option<IpAddr>) -> std::io::Result<()> {
    let file: PathBuf = directory.join(FILE);
    match address {
        Some(address) if remembered(directory) == Some(address) => Ok(()),
        // Whole or not at all: what can not be read is taken for none.
        Some(address) => muster_cluster::storage::write_private(&file, format!("{address}\n").as_bytes())
            .map_err(std::io::Error::from),
        None => match std::fs::remove_file(file) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => Err(error),
            _ => Ok(()),
        },
    }
}

/// Asks again and again, for a while, what it is said to fail with at first.
fn ask_until<T, E: std::fmt::Display>(
    ask: impl Fn() -> Result<T, E>,
    limit: Duration,
    pause: Duration,
    say: impl FnOnce(&E),
) -> Result<T, E> {
    let first = match ask() {
        Err(why) if !limit.is_zero() => why,
        answer => return answer,
    };
    say(&first);
    let deadline = Instant::now() + limit;
    loop {
        std::thread::sleep(pause);
        match ask() {
            Err(_) if Instant::now() < deadline => {}
            answer => return answer,
        }
    }
}

impl Config {
    /// Addresses that nobody has configured are this machine's in its tailnet, if it is in one.
    ///
    /// A node that is about to serve and was in a tailnet before waits for it, and does without it for no other reason than
    /// that somebody says so: the others would be told that it is on loopback, where they never reach it.
    pub(super) fn take_addresses_of_tailscale(&mut self, serves: bool) -> Result<(), Failure> {
        let is_open = |key: &str| self.figment.find_metadata(key).is_some_and(|metadata| metadata.name == DEFAULT);
        let [api, proxy, mesh, advertise] = ["api", "proxy", "mesh", "advertise"].map(is_open);
        let setting = self.values.tailscale.clone();
        let must_answer = matches!(setting, Tailscale::Socket(_));
        if !(must_answer || api || proxy || mesh || advertise) {
            return Ok(());
        }
        let before = if serves && !must_answer { remembered(&self.values.data_dir) } else { None };
        let limit = before.filter(|_| setting != Tailscale::Off).map_or(Duration::ZERO, |_| WAIT);
        let say =
            |why: &NoTailnet| eprintln!("{why}; waiting for up to {} s, as this node was in a tailnet", WAIT.as_secs());
        let address = match ask_until(|| tailnet::address(&setting), limit, PAUSE, say) {
            Ok(address) => address,
            Err(why) if must_answer => return Err(Failure::other(format!("tailscale = {setting}: {why}"))),
            Err(why) if !limit.is_zero() => {
                let was = before.map(|address| address.to_string()).unwrap_or_default();
                return Err(Failure::other(format!(
                    "{why}, and the fleet knows this node at {was}, in a tailnet. Start it again when tailscaled runs, or say \
                     where it is now: tailscale = off, or addresses of its own"
                )));
            }
            Err(NoTailnet::Absent) => return Ok(()),
            Err(why) => {
                let advice = "start this node again when that has changed, or set tailscale = off";
                self.warning = Some(format!(
                    "{why}. What has no address of its own is on loopback, where no other machine reaches it; {advice}"
                ));
                return Ok(());
            }
        };
        let values = &mut self.values;
        let mut take = |key: &str, text: String| {
            self.figment = self.figment.clone().merge(Named("tailscale", Serialized::default(key, text)));
        };
        for (key, open, place) in
            [("api", api, &mut values.api), ("proxy", proxy, &mut values.proxy), ("mesh", mesh, &mut values.mesh)]
        {
            if open {
                place.set_ip(address);
                take(key, place.to_string());
            }
        }
        values.tailnet = Some(address);
        values.loopback_too = LoopbackToo { api, proxy };
        // Others would be sent to where nothing listens.
        let is_there = |listening: &SocketAddr| listening.ip() == address || listening.ip().is_unspecified();
        if advertise && [values.api, values.proxy, values.mesh].iter().all(is_there) {
            values.advertise = address.to_string();
            take("advertise", values.advertise.clone());
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::cell::Cell;

    use super::*;
    use crate::scratch::Scratch;

    #[test]
    fn it_is_asked_until_it_answers_or_the_time_is_over() {
        let ask = |answers_at: u32, limit: Duration| {
            let (asked, said) = (Cell::new(0), Cell::new(0));
            let outcome = ask_until(
                || {
                    asked.set(asked.get() + 1);
                    if asked.get() >= answers_at { Ok(()) } else { Err("not yet") }
                },
                limit,
                Duration::from_millis(1),
                |_| said.set(said.get() + 1),
            );
            (outcome, asked.get(), said.get())
        };
        let long = Duration::from_secs(60);
        assert_eq!(ask(1, long), (Ok(()), 1, 0));
        assert_eq!(ask(5, long), (Ok(()), 5, 1));
        assert_eq!(ask(5, Duration::ZERO), (Err("not yet"), 1, 0));
        let (outcome, asked, said) = ask(u32::MAX, Duration::from_millis(20));
        assert!(outcome.is_err() && asked > 1 && said == 1);
    }

    #[test]
    fn an_address_is_kept_until_the_node_is_elsewhere_on_purpose() {
        let scratch = Scratch::new("tailnet-address");
        let address = IpAddr::from([100, 64, 0, 1]);
        assert_eq!(remembered(scratch.path()), None);
        for _ in 0..2 {
            remember(scratch.path(), Some(address)).expect("is kept");
            assert_eq!(remembered(scratch.path()), Some(address));
        }
        for _ in 0..2 {
            remember(scratch.path(), None).expect("is forgotten");
            assert_eq!(remembered(scratch.path()), None);
        }
    }
}
