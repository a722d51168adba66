//! The keys that this node holds, and sealing with them.

use std::collections::BTreeMap;
use std::sync::Arc;

use arc_swap::ArcSwap;
use chacha20poly1305::aead::{Aead, KeyInit, Payload};
use chacha20poly1305::{Key, XChaCha20Poly1305, XNonce};
use zeroize::Zeroizing;

use super::SealingError;
use super::keys::{DataKey, HolderKey, SecretText, random};
use super::wrap::{unwrap, wrap};
use crate::ids::{FleetId, NodeId};
use crate::rows::{KeyKind, Sealed, WrappedKey};
use crate::state::{Damaged, View};

/// The fleet's keys in the hands of this node. Clones share it.
#[derive(Clone, Debug)]
pub struct Keyring {
    fleet: FleetId,
    keys: Arc<ArcSwap<Keys>>,
}

#[derive(Clone, Default)]
struct Keys {
    data: BTreeMap<u32, DataKey>,
    /// The private key of the certificate authority, newest version last.
    ca: BTreeMap<u32, Zeroizing<Vec<u8>>>,
    /// What gossip is sealed with.
    gossip: BTreeMap<u32, DataKey>,
}

impl std::fmt::Debug for Keys {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let (data, ca, gossip) = (self.data.len(), self.ca.len(), self.gossip.len());
        write!(f, "{data} data keys, {ca} keys of the authority, {gossip} of gossip")
    }
}

fn cipher(key: &DataKey) -> XChaCha20Poly1305 {
    XChaCha20Poly1305::new(<&Key>::from(&*key.bytes))
}

impl Keyring {
    /// A keyring with these keys.
    #[must_use]
    pub fn new(fleet: FleetId, data: impl IntoIterator<Item = DataKey>) -> Self {
        let data = data.into_iter().map(|key| (key.version, key)).collect();
        Self { fleet, keys: Arc::new(ArcSwap::from_pointee(Keys { data, ..Keys::default() })) }
    }

    /// The same keyring with a key of the certificate authority (PKCS#8).
    #[must_use]
    pub fn with_authority(self, version: u32, key: Zeroizing<Vec<u8>>) -> Self {
        let mut keys = Keys::clone(&self.keys.load());
        keys.ca.insert(version, key);
        self.keys.store(Arc::new(keys));
        self
    }

    /// The same keyring with a key for gossip.
    #[must_use]
    pub fn with_gossip(self, key: DataKey) -> Self {
        let mut keys = Keys::clone(&self.keys.load());
        keys.gossip.insert(key.version, key);
        self.keys.store(Arc::new(keys));
        self
    }

    /// The newest key for gossip, if this node holds one, and a key by its version.
    pub(crate) fn gossip_key(&self, version: Option<u32>) -> Option<DataKey> {
        let keys = self.keys.load();
        match version {
            None => keys.gossip.last_key_value().map(|(_, key)| key.clone()),
            Some(version) => keys.gossip.get(&version).cloned(),
        }
    }

    /// The newest private key of the certificate authority, if this node holds one.
    #[must_use]
    pub fn authority_key(&self) -> Option<Zeroizing<Vec<u8>>> {
        self.keys.load().ca.last_key_value().map(|(_, key)| key.clone())
    }

    /// Every key, wrapped for the holder of this public key.
    ///
    /// # Errors
    /// When the public key is none.
    pub fn wrap_all(&self, public: &[u8]) -> Result<Vec<WrappedKey>, SealingError> {
        let keys = self.keys.load();
        let data =
            keys.data.values().map(|key| wrap(self.fleet, KeyKind::Data, key.version, key.bytes.as_ref(), public));
        let ca = keys.ca.iter().map(|(version, key)| wrap(self.fleet, KeyKind::Ca, *version, key, public));
        let gossip =
            keys.gossip.values().map(|key| wrap(self.fleet, KeyKind::Gossip, key.version, key.bytes.as_ref(), public));
        data.chain(ca).chain(gossip).collect()
    }

    /// Takes over the keys that the replicated state has for this node. A key that is there already is not unwrapped again.
    ///
    /// # Errors
    /// The first key that can not be read; the others are taken over.
    pub fn refresh(&self, view: &View, node: NodeId, private: &HolderKey) -> Result<(), RefreshError> {
        let known = self.keys.load();
        let mut keys = Keys::default();
        let mut outcome = Ok(());
        for wrapped in view.wrapped_keys(node)? {
            let version = wrapped.version;
            match wrapped.kind() {
                kind @ (KeyKind::Data | KeyKind::Gossip) => {
                    let (known, keys) = match kind {
                        KeyKind::Gossip => (&known.gossip, &mut keys.gossip),
                        _ => (&known.data, &mut keys.data),
                    };
                    let made =
                        || unwrap(self.fleet, &wrapped, private).and_then(|bytes| DataKey::from_bytes(version, &bytes));
                    match known.get(&version).cloned().map_or_else(made, Ok) {
                        Ok(key) => drop(keys.insert(version, key)),
                        Err(error) => outcome = Err(error.into()),
                    }
                }
                KeyKind::Ca => {
                    let known = known.ca.get(&version).cloned();
                    match known.map_or_else(|| unwrap(self.fleet, &wrapped, private), Ok) {
                        Ok(key) => drop(keys.ca.insert(version, key)),
                        Err(error) => outcome = Err(error.into()),
                    }
                }
                KeyKind::Unspecified => outcome = Err(SealingError::Malformed("key of a known kind").into()),
            }
        }
        self.keys.store(Arc::new(keys));
        outcome
    }

    fn associated(&self, name: &str, version: u32) -> Vec<u8> {
        let mut associated = b"muster sealed 1".to_vec();
        associated.extend(self.fleet.as_bytes());
        associated.extend(version.to_be_bytes());
        associated.extend(name.as_bytes());
        associated
    }

    /// Seals a secret with the newest key, for what has this name.
    ///
    /// # Errors
    /// When this node holds no key, or there is no randomness.
    pub fn seal(&self, name: &str, secret: &SecretText) -> Result<Sealed, SealingError> {
        let keys = self.keys.load();
        let (version, key) = keys.data.last_key_value().ok_or(SealingError::NoKey)?;
        let nonce = random::<24>()?;
        let associated = self.associated(name, *version);
        let payload = Payload { msg: secret.reveal().as_bytes(), aad: &associated };
        let ciphertext =
            cipher(key).encrypt(&XNonce::from(*nonce), payload).map_err(|_| SealingError::Malformed("secret"))?;
        Ok(Sealed { key_version: *version, nonce: nonce.to_vec().into(), ciphertext: ciphertext.into() })
    }

    /// Opens what was sealed for this name.
    ///
    /// # Errors
    /// When this node does not hold the key, or it was sealed for something else.
    pub fn open(&self, name: &str, sealed: &Sealed) -> Result<SecretText, SealingError> {
        let keys = self.keys.load();
        let key = keys.data.get(&sealed.key_version).ok_or(SealingError::UnknownKey(sealed.key_version))?;
        let refused = || SealingError::DoesNotOpen(name.to_owned());
        let nonce = <[u8; 24]>::try_from(sealed.nonce.as_ref()).map_err(|_| refused())?;
        let associated = self.associated(name, sealed.key_version);
        let payload = Payload { msg: &sealed.ciphertext, aad: &associated };
        let opened = cipher(key).decrypt(&XNonce::from(nonce), payload).map_err(|_| refused())?;
        let opened = Zeroizing::new(opened);
        let text = std::str::from_utf8(&opened).map_err(|_| refused())?;
        Ok(SecretText::new(text.to_owned()))
    }
}

/// Why the keys in the state could not all be taken over.
#[derive(Clone, Debug, thiserror::Error)]
pub enum RefreshError {
    /// The state is damaged.
    #[error(transparent)]
    State(#[from] Damaged),
    /// A key does not open.
    #[error(transparent)]
    Key(#[from] SealingError),
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_secret_opens_only_as_what_it_was_sealed_for() {
        let keyring = Keyring::new(FleetId::random(), [1, 2].map(|version| DataKey::generate(version).expect("a key")));
        let secret = SecretText::new("a provider's key".to_owned());
        let sealed = keyring.seal("model/a/apiKey", &secret).expect("seals");
        assert_eq!(sealed.key_version, 2, "the newest key is used");
        assert_eq!(keyring.open("model/a/apiKey", &sealed), Ok(secret.clone()));
        let refused = Err(SealingError::DoesNotOpen("model/b/apiKey".to_owned()));
        assert_eq!(keyring.open("model/b/apiKey", &sealed), refused);
        let elsewhere = Keyring { fleet: FleetId::random(), ..keyring.clone() };
        assert!(elsewhere.open("model/a/apiKey", &sealed).is_err());
        let older = Sealed { key_version: 1, ..sealed.clone() };
        assert!(keyring.open("model/a/apiKey", &older).is_err());
        let unknown = Sealed { key_version: 9, ..sealed.clone() };
        assert_eq!(keyring.open("model/a/apiKey", &unknown), Err(SealingError::UnknownKey(9)));
        let short = Sealed { nonce: vec![0; 3].into(), ..sealed.clone() };
        assert!(keyring.open("model/a/apiKey", &short).is_err());
        assert_ne!(keyring.seal("model/a/apiKey", &secret).expect("seals"), sealed, "a nonce is never used twice");
    }
}
