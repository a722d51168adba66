//! The one namespace of everything that a caller can name as a model.

use unicode_normalization::UnicodeNormalization;

use super::step::{Step, Stop, refused};
use crate::rows::{NameClaim, RefusalKind};

/// What a name is compared by: its composed form, without regard to case.
///
/// The proposer computes it, never `apply`: the tables of Unicode differ between versions.
#[must_use]
pub fn name_key(name: &str) -> String {
    let folded: String = name.nfc().flat_map(char::to_lowercase).collect();
    folded.nfc().collect()
}

/// Claims a name for its holder.
pub(super) fn claim(step: &mut Step<'_>, key: &str, shown: &str, claim: &NameClaim) -> Result<(), Stop> {
    match step.get::<NameClaim>(key.as_bytes())? {
        Some(held) if held.row != *claim => {
            Err(refused(RefusalKind::Conflict, format!("the name {shown:?} is taken; names are compared without case")))
        }
        Some(_) => Ok(()),
        None => {
            step.put(key.as_bytes().to_vec(), claim)?;
            Ok(())
        }
    }
}

pub(super) fn release(step: &mut Step<'_>, key: &str) {
    step.remove::<NameClaim>(key.as_bytes().to_vec());
}

/// Claims `base`, or the first of `base-2`, `base-3`, ... that is free, and returns it.
pub(super) fn claim_unique(step: &mut Step<'_>, base: &str, holder: &NameClaim) -> Result<String, Stop> {
    const ATTEMPTS: u32 = 1000;
    for attempt in 1..=ATTEMPTS {
        let name = if attempt == 1 { base.to_owned() } else { format!("{base}-{attempt}") };
        if step.get::<NameClaim>(name.as_bytes())?.is_none() {
            step.put(name.as_bytes().to_vec(), holder)?;
            return Ok(name);
        }
    }
    Err(refused(RefusalKind::Conflict, format!("{ATTEMPTS} names like {base:?} are taken")))
}

#[cfg(test)]
mod tests {
    use super::name_key;

    #[test]
    fn names_are_compared_composed_and_without_case() {
        assert_eq!(name_key("Llama 3"), name_key("LLAMA 3"));
        assert_eq!(name_key("Caf\u{e9}"), name_key("CAFE\u{301}"));
        assert_ne!(name_key("a"), name_key("b"));
    }
}
