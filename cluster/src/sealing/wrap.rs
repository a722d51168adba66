//! Wrapping a key for one holder.

use hpke::aead::ChaCha20Poly1305;
use hpke::kdf::HkdfSha256;
use hpke::kem::X25519HkdfSha256;
use hpke::{Deserializable, Kem, OpModeR, OpModeS, Serializable, single_shot_open, single_shot_seal};
use zeroize::Zeroizing;

use super::SealingError;
use super::keys::{HolderKey, PublicKey};
use crate::ids::FleetId;
use crate::rows::{KeyKind, WrappedKey};

type EncappedKey = <X25519HkdfSha256 as Kem>::EncappedKey;

/// What a wrapped key is for, so that it can not be passed off as another.
fn info(fleet: FleetId, kind: KeyKind, version: u32) -> Vec<u8> {
    let mut info = b"muster wrapped key 1".to_vec();
    info.extend(fleet.as_bytes());
    info.extend(i32::from(kind).to_be_bytes());
    info.extend(version.to_be_bytes());
    info
}

/// Wraps a key of the fleet for the holder of this public key, whose number is 0 unless it is set afterwards.
pub(super) fn wrap(
    fleet: FleetId,
    kind: KeyKind,
    version: u32,
    key: &[u8],
    public: &[u8],
) -> Result<WrappedKey, SealingError> {
    let public = PublicKey::from_bytes(public).map_err(|_| SealingError::Malformed("public key"))?;
    let (encapsulated, ciphertext) = single_shot_seal::<ChaCha20Poly1305, HkdfSha256, X25519HkdfSha256>(
        &OpModeS::Base,
        &public,
        &info(fleet, kind, version),
        key,
        &[],
    )
    .map_err(|error| SealingError::Randomness(error.to_string()))?;
    Ok(WrappedKey {
        kind: kind.into(),
        version,
        holder: 0,
        encapsulated: encapsulated.to_bytes().to_vec().into(),
        ciphertext: ciphertext.into(),
    })
}

/// Unwraps a key with its holder's private key.
pub(super) fn unwrap(
    fleet: FleetId,
    wrapped: &WrappedKey,
    private: &HolderKey,
) -> Result<Zeroizing<Vec<u8>>, SealingError> {
    let refused = || SealingError::DoesNotUnwrap(wrapped.holder);
    let encapsulated = EncappedKey::from_bytes(&wrapped.encapsulated).map_err(|_| refused())?;
    let opened = single_shot_open::<ChaCha20Poly1305, HkdfSha256, X25519HkdfSha256>(
        &OpModeR::Base,
        private.private(),
        &encapsulated,
        &info(fleet, wrapped.kind(), wrapped.version),
        &wrapped.ciphertext,
        &[],
    );
    opened.map(Zeroizing::new).map_err(|_| refused())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_wrapped_key_opens_for_its_holder_only() {
        let fleet = FleetId::random();
        let (node, other) = (HolderKey::generate().expect("a key"), HolderKey::generate().expect("a key"));
        let wrapped = wrap(fleet, KeyKind::Data, 3, b"the key", &node.public()).expect("wraps");
        assert_eq!(unwrap(fleet, &wrapped, &node).expect("unwraps").as_slice(), b"the key");
        let refused = |fleet, wrapped: &WrappedKey, holder: &HolderKey| {
            assert_eq!(unwrap(fleet, wrapped, holder).map(|_| ()), Err(SealingError::DoesNotUnwrap(0)));
        };
        refused(fleet, &wrapped, &other);
        refused(FleetId::random(), &wrapped, &node);
        refused(fleet, &WrappedKey { version: 4, ..wrapped.clone() }, &node);
        refused(fleet, &WrappedKey { kind: KeyKind::Ca.into(), ..wrapped.clone() }, &node);
        refused(fleet, &WrappedKey { encapsulated: vec![1; 5].into(), ..wrapped }, &node);
    }
}
