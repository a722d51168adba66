//! Wrapping a key for one holder.

use hpke::aead::ChaCha20Poly1305;
use hpke::kdf::HkdfSha256;
use hpke::kem::X25519HkdfSha256;
use hpke::{Deserializable, Kem, OpModeR, OpModeS, Serializable, single_shot_open, single_shot_seal};
use zeroize::Zeroizing;

use super::SealingError;
use super::keys::{DataKey, HolderKey, PublicKey};
use crate::ids::{FleetId, NodeId};
use crate::rows::{KeyKind, WrappedKey};

type EncappedKey = <X25519HkdfSha256 as Kem>::EncappedKey;

/// What a wrapped key is for, so that it can not be passed off as another.
fn info(fleet: FleetId, version: u32, holder: NodeId) -> Vec<u8> {
    let mut info = b"muster wrapped data key 1".to_vec();
    info.extend(fleet.as_bytes());
    info.extend(version.to_be_bytes());
    info.extend(holder.0.to_be_bytes());
    info
}

impl DataKey {
    /// Wraps the key for the holder of this public key.
    ///
    /// # Errors
    /// When the public key is none, or there is no randomness.
    pub fn wrap(&self, fleet: FleetId, holder: NodeId, public: &[u8]) -> Result<WrappedKey, SealingError> {
        let public = PublicKey::from_bytes(public).map_err(|_| SealingError::Malformed("public key"))?;
        let info = info(fleet, self.version, holder);
        let (encapsulated, ciphertext) = single_shot_seal::<ChaCha20Poly1305, HkdfSha256, X25519HkdfSha256>(
            &OpModeS::Base,
            &public,
            &info,
            self.bytes.as_ref(),
            &[],
        )
        .map_err(|error| SealingError::Randomness(error.to_string()))?;
        Ok(WrappedKey {
            kind: KeyKind::Data.into(),
            version: self.version,
            holder: holder.0,
            encapsulated: encapsulated.to_bytes().to_vec().into(),
            ciphertext: ciphertext.into(),
        })
    }

    /// Unwraps a key with its holder's private key.
    ///
    /// # Errors
    /// [`SealingError::DoesNotUnwrap`] when it is not for this holder.
    pub fn unwrap_with(fleet: FleetId, wrapped: &WrappedKey, private: &HolderKey) -> Result<Self, SealingError> {
        let refused = SealingError::DoesNotUnwrap(wrapped.holder);
        let encapsulated = EncappedKey::from_bytes(&wrapped.encapsulated).map_err(|_| refused.clone())?;
        let info = info(fleet, wrapped.version, NodeId(wrapped.holder));
        let opened = single_shot_open::<ChaCha20Poly1305, HkdfSha256, X25519HkdfSha256>(
            &OpModeR::Base,
            private.private(),
            &encapsulated,
            &info,
            &wrapped.ciphertext,
            &[],
        );
        let opened = Zeroizing::new(opened.map_err(|_| refused.clone())?);
        let bytes = <[u8; 32]>::try_from(opened.as_slice()).map_err(|_| refused)?;
        Ok(Self { version: wrapped.version, bytes: Zeroizing::new(bytes) })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_wrapped_key_opens_for_its_holder_only() {
        let fleet = FleetId::random();
        let (node, other) = (HolderKey::generate().expect("a key"), HolderKey::generate().expect("a key"));
        let key = DataKey::generate(3).expect("a key");
        let wrapped = key.wrap(fleet, NodeId(7), &node.public()).expect("wraps");
        let again = DataKey::unwrap_with(fleet, &wrapped, &node).expect("unwraps");
        assert_eq!((again.version, again.bytes), (3, key.bytes));
        let refused = |fleet, wrapped: &WrappedKey, holder: &HolderKey| {
            let outcome = DataKey::unwrap_with(fleet, wrapped, holder).map(|_| ());
            assert_eq!(outcome, Err(SealingError::DoesNotUnwrap(wrapped.holder)));
        };
        refused(fleet, &wrapped, &other);
        refused(FleetId::random(), &wrapped, &node);
        refused(fleet, &WrappedKey { version: 4, ..wrapped.clone() }, &node);
        refused(fleet, &WrappedKey { holder: 8, ..wrapped.clone() }, &node);
        refused(fleet, &WrappedKey { encapsulated: vec![1; 5].into(), ..wrapped }, &node);
    }
}
