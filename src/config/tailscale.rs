//! What nobody has configured and Tailscale knows.

use std::net::SocketAddr;

use figment::providers::Serialized;

use super::{Config, DEFAULT, LoopbackToo, Named};
use crate::exit::Failure;
use crate::tailnet::{self, NoTailnet, Tailscale};

impl Config {
    /// Addresses that nobody has configured are this machine's in its tailnet, if it is in one.
    pub(super) fn take_addresses_of_tailscale(&mut self) -> Result<(), Failure> {
        let is_open = |key: &str| self.figment.find_metadata(key).is_some_and(|metadata| metadata.name == DEFAULT);
        let [api, proxy, mesh, advertise] = ["api", "proxy", "mesh", "advertise"].map(is_open);
        let setting = self.values.tailscale.clone();
        let must_answer = matches!(setting, Tailscale::Socket(_));
        if !(must_answer || api || proxy || mesh || advertise) {
            return Ok(());
        }
        let address = match tailnet::address(&setting) {
            Ok(address) => address,
            Err(why) if must_answer => return Err(Failure::other(format!("tailscale = {setting}: {why}"))),
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
