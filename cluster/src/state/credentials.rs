//! Credentials of every kind: only hashes, in one table, found through one other.

use std::collections::BTreeSet;

use sha2::{Digest, Sha256};

use super::step::{Damaged, Row, Step, Stop, Stored, check, decode, refused};
use super::view::View;
use crate::ids::{CredentialId, LogTime};
use crate::rows::{
    self, Credential, CredentialFields, CredentialRef, CredentialUse, DeploymentScope, Fleet, KeyUse, RefusalKind,
    credential_fields,
};

/// What of a key is kept.
#[must_use]
pub fn key_hash(key: &str) -> [u8; 32] {
    Sha256::digest(key.as_bytes()).into()
}

pub(super) fn insert(step: &mut Step<'_>, fleet: &mut Fleet, fields: &CredentialFields) -> Result<u64, Stop> {
    if step.get::<CredentialRef>(&fields.sha256)?.is_some() {
        return Err(refused(RefusalKind::Conflict, "this key is in use already"));
    }
    let id = fleet.next_credential;
    fleet.next_credential += 1;
    let credential = Credential {
        fields: Some(fields.clone()),
        created_index: step.index,
        created_ms: step.now.0,
        expires_ms: fields.ttl_ms.map(|ttl| step.now.0.saturating_add(ttl)),
        created_by: step.origin.principal.clone(),
    };
    step.put(id.to_be_bytes().to_vec(), &credential)?;
    step.put(fields.sha256.clone(), &CredentialRef { id })?;
    Ok(id)
}

fn existing(step: &Step<'_>, id: u64) -> Result<Stored<Credential>, Stop> {
    step.get::<Credential>(&id.to_be_bytes())?
        .ok_or_else(|| refused(RefusalKind::NotFound, format!("there is no credential {id}")))
}

pub(super) fn create(step: &mut Step<'_>, command: &rows::CreateCredential) -> Result<rows::CredentialAnswer, Stop> {
    let mut fleet = step.only::<Fleet>()?;
    let id = insert(step, &mut fleet, &command.fields.clone().unwrap_or_default())?;
    step.put(Vec::new(), &fleet)?;
    let credential = existing(step, id)?.row;
    Ok(rows::CredentialAnswer { mod_index: step.index, id, credential: Some(credential) })
}

pub(super) fn update(step: &mut Step<'_>, command: &rows::UpdateCredential) -> Result<rows::CredentialAnswer, Stop> {
    let Stored { row: mut credential, mod_index } = existing(step, command.id)?;
    check(command.precondition.as_ref(), mod_index)?;
    let fields = credential.fields.get_or_insert_default();
    // It was given out for one use, and whoever made it knows it as it is.
    if let Some(credential_fields::Kind::Temporary(_)) = &fields.kind {
        return Err(refused(RefusalKind::Conflict, "a temporary key can not be changed"));
    }
    if let Some(change) = &command.scope {
        match &mut fields.kind {
            Some(credential_fields::Kind::Gateway(gateway)) => gateway.scope.clone_from(&change.to),
            _ => return Err(refused(RefusalKind::Conflict, "only a key of the gateway has a scope")),
        }
    }
    match (command.role, &mut fields.kind) {
        (Some(role), Some(credential_fields::Kind::Console(console))) => console.role = role,
        (Some(_), _) => return Err(refused(RefusalKind::Conflict, "only a credential of the console has a role")),
        (None, _) => {}
    }
    if let Some(label) = &command.label {
        fields.label.clone_from(label);
    }
    step.put(command.id.to_be_bytes().to_vec(), &credential)?;
    Ok(rows::CredentialAnswer { mod_index: step.index, id: command.id, credential: Some(credential) })
}

pub(super) fn delete(step: &mut Step<'_>, command: &rows::DeleteCredential) -> Result<rows::CredentialAnswer, Stop> {
    let Stored { row: credential, mod_index } = existing(step, command.id)?;
    check(command.precondition.as_ref(), mod_index)?;
    remove(step, command.id, &credential);
    Ok(rows::CredentialAnswer { mod_index, id: command.id, credential: Some(credential) })
}

pub(super) fn remove(step: &mut Step<'_>, id: u64, credential: &Credential) {
    if let Some(fields) = &credential.fields {
        step.remove::<CredentialRef>(fields.sha256.clone());
    }
    step.remove::<CredentialUse>(id.to_be_bytes().to_vec());
    step.remove::<Credential>(id.to_be_bytes().to_vec());
}

/// Takes deployments out of the scopes of keys. A scope that becomes empty allows nothing.
pub(super) fn forget_deployments(step: &mut Step<'_>, ids: &BTreeSet<u64>) -> Result<(), Stop> {
    let all = step.tables.range(<Credential as Row>::TABLE, &[]);
    let all = all.map(|(key, record)| Ok((key.to_vec(), decode::<Credential>(record)?.row)));
    for (key, mut credential) in all.collect::<Result<Vec<_>, Damaged>>()? {
        let scope = match credential.fields.as_mut().and_then(|fields| fields.kind.as_mut()) {
            Some(credential_fields::Kind::Gateway(key)) => key.scope.as_mut(),
            Some(credential_fields::Kind::Temporary(key)) => key.scope.as_mut(),
            Some(credential_fields::Kind::Console(_) | credential_fields::Kind::Join(_)) | None => None,
        };
        if let Some(scope) = scope
            && scope.deployments.iter().any(|deployment| ids.contains(deployment))
        {
            scope.deployments.retain(|deployment| !ids.contains(deployment));
            step.put(key, &credential)?;
        }
    }
    Ok(())
}

/// How many keys one command can name.
pub const USES_AT_ONCE: usize = 256;

pub(super) fn record_use(step: &mut Step<'_>, command: &rows::RecordUse) -> Result<(), Stop> {
    for KeyUse { credential, used_ms } in command.uses.iter().take(USES_AT_ONCE) {
        let key = credential.to_be_bytes();
        // It may have been revoked meanwhile.
        if step.get::<Credential>(&key)?.is_none() {
            continue;
        }
        let before = step.get::<CredentialUse>(&key)?.map_or(0, |stored| stored.row.last_ms);
        let last_ms = (*used_ms).min(step.now.0);
        // Nodes tell in any order.
        if last_ms > before {
            step.put(key.to_vec(), &CredentialUse { last_ms })?;
        }
    }
    Ok(())
}

/// Whether a credential is worth nothing any more at this time.
#[must_use]
pub fn has_expired(credential: &Credential, now: LogTime) -> bool {
    credential.expires_ms.is_some_and(|expires| expires <= now.0)
}

/// What a key that calls models may use: nothing but these deployments, or everything if there is no scope. `None` for a key
/// of another kind, which may call no model at all.
#[must_use]
pub fn scope(credential: &Credential) -> Option<Option<&DeploymentScope>> {
    match credential.fields.as_ref()?.kind.as_ref()? {
        credential_fields::Kind::Gateway(key) => Some(key.scope.as_ref()),
        // One without a scope is never made. It may use nothing, rather than everything.
        credential_fields::Kind::Temporary(key) => Some(Some(key.scope.as_ref().unwrap_or(&NOTHING))),
        credential_fields::Kind::Console(_) | credential_fields::Kind::Join(_) => None,
    }
}

static NOTHING: DeploymentScope = DeploymentScope { deployments: Vec::new() };

impl View {
    /// The credential that a key belongs to, expired or not.
    ///
    /// # Errors
    /// When a row is damaged.
    pub fn credential_by_hash(&self, hash: &[u8; 32]) -> Result<Option<(CredentialId, Credential)>, Damaged> {
        let Some(reference) = self.get::<CredentialRef>(hash)? else { return Ok(None) };
        let id = CredentialId(reference.row.id);
        Ok(self.credential(id)?.map(|stored| (id, stored.row)))
    }

    /// A credential.
    ///
    /// # Errors
    /// When the row is damaged.
    pub fn credential(&self, id: CredentialId) -> Result<Option<Stored<Credential>>, Damaged> {
        self.get(&id.0.to_be_bytes())
    }

    /// When a key was last used, as far as the nodes have told, in milliseconds of the log's time.
    ///
    /// # Errors
    /// When the row is damaged.
    pub fn last_use(&self, id: CredentialId) -> Result<Option<u64>, Damaged> {
        Ok(self.get::<CredentialUse>(&id.0.to_be_bytes())?.map(|stored| stored.row.last_ms))
    }

    /// The credentials after this one, by number.
    pub fn credentials(
        &self,
        after: CredentialId,
    ) -> impl Iterator<Item = Result<(CredentialId, Stored<Credential>), Damaged>> {
        self.rows::<Credential>(&after.0.saturating_add(1).to_be_bytes()).map(|row| {
            let (key, stored) = row?;
            let number = <[u8; 8]>::try_from(key).map(u64::from_be_bytes);
            let why = "a credential's key is not a number";
            Ok((CredentialId(number.map_err(|_| Damaged { table: 7, why: why.to_owned() })?), stored))
        })
    }
}
