//! Gossip on the wire: every datagram is sealed with the fleet's gossip key, and bound to the fleet and its generation.

use bytes::{BufMut, BytesMut};
use chacha20poly1305::aead::{AeadInOut, KeyInit};
use chacha20poly1305::{Key, Tag, XChaCha20Poly1305, XNonce};

use crate::ids::FleetId;
use crate::sealing::Keyring;

/// The first byte of every datagram.
const VERSION: u8 = 1;

const NONCE: usize = 24;
const TAG: usize = 16;
const HEAD: usize = 1 + 4 + NONCE;

/// The longest datagram: what an interface of a tailnet carries in one piece, and some room.
pub(super) const DATAGRAM: usize = 1100;

/// The longest content of one.
pub(super) const CONTENT: usize = DATAGRAM - HEAD - TAG;

/// Seals and opens the datagrams of one fleet.
#[derive(Clone, Debug)]
pub(super) struct Envelope {
    keyring: Keyring,
    bound_to: Vec<u8>,
}

impl Envelope {
    pub fn new(keyring: Keyring, fleet: FleetId, generation: u64) -> Self {
        let mut bound_to = b"muster gossip 1".to_vec();
        bound_to.extend(fleet.as_bytes());
        bound_to.extend(generation.to_be_bytes());
        Self { keyring, bound_to }
    }

    /// The datagram for this content. None while this node holds no key, or without randomness.
    pub fn seal(&self, content: &[u8]) -> Option<BytesMut> {
        let key = self.keyring.gossip_key(None)?;
        let mut nonce = [0; NONCE];
        getrandom::fill(&mut nonce).ok()?;
        let mut datagram = BytesMut::with_capacity(HEAD + content.len() + TAG);
        datagram.put_u8(VERSION);
        datagram.put_u32(key.version());
        datagram.put_slice(&nonce);
        datagram.put_slice(content);
        let cipher = XChaCha20Poly1305::new(<&Key>::from(key.bytes()));
        let sealed =
            cipher.encrypt_inout_detached(&XNonce::from(nonce), &self.bound_to, (&mut datagram[HEAD..]).into());
        datagram.put_slice(&sealed.ok()?);
        Some(datagram)
    }

    /// The content of a datagram of this fleet. None for anything else.
    pub fn open<'a>(&self, datagram: &'a mut [u8]) -> Option<&'a [u8]> {
        if datagram.len() < HEAD + TAG || datagram.len() > DATAGRAM || datagram[0] != VERSION {
            return None;
        }
        let (head, rest) = datagram.split_at_mut(HEAD);
        let version = u32::from_be_bytes(head[1..5].try_into().ok()?);
        let nonce = <[u8; NONCE]>::try_from(&head[5..]).ok()?;
        let (content, tag) = rest.split_at_mut(rest.len() - TAG);
        let tag = Tag::from(<[u8; TAG]>::try_from(&*tag).ok()?);
        let key = self.keyring.gossip_key(Some(version))?;
        let cipher = XChaCha20Poly1305::new(<&Key>::from(key.bytes()));
        let opened = cipher.decrypt_inout_detached(&XNonce::from(nonce), &self.bound_to, (&mut *content).into(), &tag);
        opened.ok()?;
        Some(content)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sealing::DataKey;

    fn keyring(fleet: FleetId) -> (Keyring, DataKey) {
        let key = DataKey::generate(3).expect("a key");
        (Keyring::new(fleet, []).with_gossip(key.clone()), key)
    }

    #[test]
    fn only_datagrams_of_the_same_fleet_and_generation_open() {
        let (fleet, other) = (FleetId::random(), FleetId::random());
        let (keyring, key) = keyring(fleet);
        let envelope = Envelope::new(keyring.clone(), fleet, 1);
        let content = vec![7; CONTENT];
        let datagram = envelope.seal(&content).expect("it holds a key");
        assert_eq!(datagram.len(), DATAGRAM);
        assert_eq!(envelope.open(&mut datagram.clone()), Some(content.as_slice()));
        assert_ne!(envelope.seal(&content), Some(datagram.clone()), "a nonce is used once");

        let elsewhere = Envelope::new(Keyring::new(other, []).with_gossip(key), other, 1);
        assert_eq!(elsewhere.open(&mut datagram.clone()), None);
        assert_eq!(Envelope::new(keyring, fleet, 2).open(&mut datagram.clone()), None);
        let (unrelated, _) = self::keyring(fleet);
        assert_eq!(Envelope::new(unrelated, fleet, 1).open(&mut datagram.clone()), None);
        assert_eq!(Envelope::new(Keyring::new(fleet, []), fleet, 1).seal(&content), None);

        for index in 0..datagram.len() {
            let mut changed = datagram.clone();
            changed[index] ^= 1;
            assert_eq!(envelope.open(&mut changed), None, "byte {index}");
        }
        for length in [0, 1, HEAD, HEAD + TAG - 1] {
            assert_eq!(envelope.open(&mut datagram.clone()[..length]), None);
        }
        assert_eq!(envelope.open(&mut [VERSION; 4096]), None);
    }

    #[test]
    fn datagrams_of_the_key_before_still_open() {
        let fleet = FleetId::random();
        let (before, key) = keyring(fleet);
        let datagram = Envelope::new(before, fleet, 1).seal(b"x").expect("it holds a key");
        let newer = DataKey::generate(4).expect("a key");
        let both = Envelope::new(Keyring::new(fleet, []).with_gossip(key).with_gossip(newer), fleet, 1);
        assert_eq!(both.open(&mut datagram.clone()), Some(b"x".as_slice()));
        let own = both.seal(b"y").expect("it holds a key");
        assert_eq!(own[1..5], 4_u32.to_be_bytes(), "the newest is used");
    }
}
