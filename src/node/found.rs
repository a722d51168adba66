//! Founding a fleet from the command line.

use std::path::PathBuf;

use muster_cluster::node::{Founding, FoundingError, FoundingOptions, NodeOptions, found};
use muster_cluster::sealing::SecretText;
use muster_cluster::storage::write_private;
use serde::Serialize;

use super::serve::{Runtimes, node_options};
use crate::config::Values;
use crate::exit::Failure;

/// The variable that presets the administrator's token.
const ADMIN_TOKEN: &str = "MUSTER_ADMIN_TOKEN";

/// What the founder gets to see once.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Secrets {
    /// The fleet.
    pub fleet_id: String,
    /// The administrator's token.
    pub admin_token: String,
    /// The file that holds the token, if it was made here.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub admin_token_file: Option<PathBuf>,
    /// A key for calling models.
    pub gateway_key: String,
    /// What opens a backup when every node is lost.
    pub recovery_key: String,
}

/// Makes the data directory the first node of a new fleet.
pub fn found_fleet(values: &Values, runtimes: &Runtimes) -> Result<Secrets, Failure> {
    let admin_token = std::env::var(ADMIN_TOKEN).ok().map(SecretText::new);
    let options: NodeOptions = node_options(values, values.api, runtimes);
    let founding = runtimes.raft().block_on(found(options, FoundingOptions { admin_token })).map_err(failure)?;
    let Founding { fleet, admin_token, admin_token_generated, gateway_key, recovery_key } = founding;
    let admin_token_file = admin_token_generated.then(|| values.data_dir.join("admin-token"));
    if let Some(file) = &admin_token_file {
        let content = format!("{}\n", admin_token.reveal());
        write_private(file, content.as_bytes()).map_err(|error| Failure::other(error.to_string()))?;
    }
    Ok(Secrets {
        fleet_id: fleet.to_string(),
        admin_token: admin_token.reveal().to_owned(),
        admin_token_file,
        gateway_key: gateway_key.reveal().to_owned(),
        recovery_key: recovery_key.reveal().to_owned(),
    })
}

fn failure(error: FoundingError) -> Failure {
    match error {
        FoundingError::WeakToken(_) => Failure::usage(format!("{ADMIN_TOKEN}: {error}")),
        other => Failure::other(other.to_string()),
    }
}
