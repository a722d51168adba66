//! Founding a fleet from the command line.

use std::path::{Path, PathBuf};

use muster_cluster::node::{Founding, FoundingError, FoundingOptions, MIN_KEY, NodeOptions, found};
use muster_cluster::sealing::SecretText;
use muster_cluster::storage::write_private;
use serde::Serialize;

use super::listeners::Addresses;
use super::own_directory;
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

/// The administrator's token that the environment presets.
pub fn preset_token() -> Result<Option<SecretText>, Failure> {
    let Some(token) = std::env::var_os(ADMIN_TOKEN) else { return Ok(None) };
    let token = token.into_string().map_err(|_| Failure::usage(format!("{ADMIN_TOKEN} is no text")))?;
    let length = token.chars().count();
    if length < MIN_KEY {
        return Err(failure(FoundingError::WeakToken(length)));
    }
    Ok(Some(SecretText::new(token)))
}

/// Makes the data directory the first node of a new fleet. Without an administrator's token one is made.
///
/// Once there is a fleet this does not fail: the secrets are nowhere else.
pub fn found_fleet(values: &Values, runtimes: &Runtimes, admin_token: Option<SecretText>) -> Result<Secrets, Failure> {
    own_directory(&values.data_dir)?;
    let addresses = Addresses::wanted(values);
    let options: NodeOptions = node_options(values, addresses, runtimes);
    let founding = runtimes.raft().block_on(found(options, FoundingOptions { admin_token })).map_err(failure)?;
    let Founding { fleet, admin_token, admin_token_generated, gateway_key, recovery_key } = founding;
    // What was left of an interrupted founding is set aside with the whole directory, and a new one is made.
    if let Err(failure) = own_directory(&values.data_dir) {
        eprintln!("muster: {failure}");
    }
    let admin_token_file =
        if admin_token_generated { keep(&values.data_dir.join("admin-token"), &admin_token) } else { None };
    Ok(Secrets {
        fleet_id: fleet.to_string(),
        admin_token: admin_token.reveal().to_owned(),
        admin_token_file,
        gateway_key: gateway_key.reveal().to_owned(),
        recovery_key: recovery_key.reveal().to_owned(),
    })
}

/// Keeps the token in that file, if the disk takes it.
fn keep(file: &Path, token: &SecretText) -> Option<PathBuf> {
    match write_private(file, format!("{}\n", token.reveal()).as_bytes()) {
        Ok(()) => Some(file.to_owned()),
        Err(error) => {
            eprintln!("muster: the admin token is not kept in {}: {error}", file.display());
            None
        }
    }
}

fn failure(error: FoundingError) -> Failure {
    match error {
        FoundingError::WeakToken(_) => Failure::usage(format!("{ADMIN_TOKEN}: {error}")),
        other => Failure::other(other.to_string()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::scratch::Scratch;

    #[test]
    fn a_token_that_can_not_be_kept_is_no_failure() {
        let scratch = Scratch::new("token");
        let token = SecretText::new("x".repeat(MIN_KEY));
        assert_eq!(keep(&scratch.path().join("nothing/admin-token"), &token), None);
        let file = scratch.path().join("admin-token");
        assert_eq!(keep(&file, &token), Some(file));
    }
}
