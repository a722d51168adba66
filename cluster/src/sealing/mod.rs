//! What is secret and who can read it.
//!
//! The fleet has a data key. Everything secret is sealed with it before it is proposed, so that it never stands in clear in
//! the log, the state, a snapshot or a backup. The data key itself lies in the replicated state, wrapped for each node's own
//! key, whose private half is a file outside the databases, and for the recovery key, whose private half is printed once and
//! kept by people.
//!
//! Sealing is XChaCha20-Poly1305 with a random nonce, bound to the fleet and to the name of what it belongs to. Wrapping is
//! HPKE (RFC 9180) with X25519, HKDF-SHA256 and ChaCha20-Poly1305.

mod keyring;
mod keys;
mod wrap;

pub use keyring::{Keyring, RefreshError};
pub use keys::{DataKey, HolderKey, SecretText, generate_key};

/// What can go wrong with secrets. It is always on our side, and trying again does not help.
#[derive(Clone, Debug, thiserror::Error, PartialEq, Eq)]
pub enum SealingError {
    /// The operating system gives no randomness.
    #[error("no randomness: {0}")]
    Randomness(String),
    /// This node does not hold the key.
    #[error("this node holds no data key of version {0}")]
    UnknownKey(u32),
    /// The node holds no key at all yet.
    #[error("this node holds no data key yet")]
    NoKey,
    /// It was sealed for something else, with another key, or it is damaged.
    #[error("what is sealed for {0} does not open: it was sealed for something else, or it is damaged")]
    DoesNotOpen(String),
    /// A wrapped key is not for this holder, or it is damaged.
    #[error("a key wrapped for holder {0} does not open with its private key")]
    DoesNotUnwrap(u64),
    /// Text or bytes that are no key.
    #[error("this is no {0}")]
    Malformed(&'static str),
}
