//! The fleet's keys, wrapped for whoever may read them, and what is sealed with them.

use bytes::Bytes;

use super::step::{Damaged, Step, Stop};
use super::view::View;
use crate::ids::NodeId;
use crate::rows::{self, KeyKind};

/// Whose copy of a key it is: a node, or 0 for the recovery key.
pub const RECOVERY: NodeId = NodeId(0);

pub(super) fn wrapped_key(kind: KeyKind, version: u32, holder: u64) -> Vec<u8> {
    let mut key = vec![u8::try_from(i32::from(kind)).unwrap_or(0)];
    key.extend(version.to_be_bytes());
    key.extend(holder.to_be_bytes());
    key
}

/// Keeps, replaces or removes what is sealed under this name.
pub(super) fn put_secret(step: &mut Step<'_>, name: &str, sealed: Option<&rows::Sealed>) -> Result<(), Stop> {
    let key = Bytes::copy_from_slice(name.as_bytes());
    match sealed {
        Some(sealed) => step.put(key, &rows::Secret { sealed: Some(sealed.clone()) }),
        None => {
            step.remove::<rows::Secret>(key);
            Ok(())
        }
    }
}

impl View {
    /// Every version of the fleet's keys that is wrapped for this holder.
    ///
    /// # Errors
    /// When a row is damaged.
    pub fn wrapped_keys(&self, holder: NodeId) -> Result<Vec<rows::WrappedKey>, Damaged> {
        let all = self.rows::<rows::WrappedKey>(&[]);
        let own = all.filter(|row| !matches!(row, Ok((_, key)) if key.row.holder != holder.0));
        own.map(|row| row.map(|(_, key)| key.row)).collect()
    }

    /// What is sealed under this name.
    ///
    /// # Errors
    /// When the row is damaged.
    pub fn secret(&self, name: &str) -> Result<Option<rows::Sealed>, Damaged> {
        Ok(self.get::<rows::Secret>(name.as_bytes())?.and_then(|secret| secret.row.sealed))
    }
}
