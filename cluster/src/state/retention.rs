//! What is removed after its time, so that the state does not grow for ever.

use super::credentials::{has_expired, remove};
use super::fleet::in_office;
use super::once::is_over;
use super::step::{Step, Stop};
use crate::rows::{AuditEntry, Credential, Marker, Sweep};

/// How many rows one sweep removes of each kind at most.
pub const SWEEP_LIMIT: usize = 256;

pub(super) fn sweep(step: &mut Step<'_>, command: &Sweep) -> Result<(), Stop> {
    in_office(step, command.office)?;
    for key in command.markers.iter().take(SWEEP_LIMIT) {
        if let Some(marker) = step.get::<Marker>(key)?
            && is_over(step.tables, key, &marker.row, step.now, command.surplus)?
        {
            step.remove::<Marker>(key.clone());
        }
    }
    for id in command.credentials.iter().take(SWEEP_LIMIT) {
        if let Some(credential) = step.get::<Credential>(&id.to_be_bytes())?
            && has_expired(&credential.row, step.now)
        {
            remove(step, *id, &credential.row);
        }
    }
    let old: Vec<_> = step
        .tables
        .range(<AuditEntry as super::Row>::TABLE, &[])
        .take(SWEEP_LIMIT)
        .map(|(key, _)| key.to_vec())
        .take_while(|key| key.as_slice() < command.audit_before.to_be_bytes().as_slice())
        .collect();
    for key in old {
        step.remove::<AuditEntry>(key);
    }
    Ok(())
}
