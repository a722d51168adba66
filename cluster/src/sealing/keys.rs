//! Keys and secret texts. None of them shows itself when it is printed.

use std::fmt;

use data_encoding::{BASE32_NOPAD, BASE64URL_NOPAD};
use hpke::kem::X25519HkdfSha256;
use hpke::{Deserializable, Kem, Serializable};
use sha2::{Digest, Sha256};
use zeroize::Zeroizing;

use super::SealingError;

type PrivateKey = <X25519HkdfSha256 as Kem>::PrivateKey;
pub(super) type PublicKey = <X25519HkdfSha256 as Kem>::PublicKey;

/// Fills an array from the operating system's randomness.
pub(super) fn random<const N: usize>() -> Result<Zeroizing<[u8; N]>, SealingError> {
    let mut bytes = Zeroizing::new([0; N]);
    getrandom::fill(bytes.as_mut()).map_err(|error| SealingError::Randomness(error.to_string()))?;
    Ok(bytes)
}

/// A text that must not be seen: an API key, a token. It is erased when it is dropped.
#[derive(Clone, PartialEq, Eq)]
pub struct SecretText(Zeroizing<String>);

impl SecretText {
    /// Takes the text in.
    #[must_use]
    pub fn new(text: String) -> Self {
        Self(Zeroizing::new(text))
    }

    /// The text itself, for where it has to go.
    #[must_use]
    pub fn reveal(&self) -> &str {
        &self.0
    }
}

impl fmt::Debug for SecretText {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("(secret)")
    }
}

/// A new key for people and programs: `sk-` and 32 bytes of randomness.
///
/// # Errors
/// When there is no randomness.
pub fn generate_key() -> Result<SecretText, SealingError> {
    let bytes = random::<32>()?;
    Ok(SecretText::new(format!("sk-{}", BASE64URL_NOPAD.encode(bytes.as_ref()))))
}

/// A key that seals, of one version.
#[derive(Clone)]
pub struct DataKey {
    pub(super) version: u32,
    pub(super) bytes: Zeroizing<[u8; 32]>,
}

impl DataKey {
    /// A new one.
    ///
    /// # Errors
    /// When there is no randomness.
    pub fn generate(version: u32) -> Result<Self, SealingError> {
        Ok(Self { version, bytes: random()? })
    }

    /// Which version of the fleet's key it is.
    pub(crate) fn version(&self) -> u32 {
        self.version
    }

    /// The key itself.
    pub(crate) fn bytes(&self) -> &[u8; 32] {
        &self.bytes
    }

    pub(super) fn from_bytes(version: u32, bytes: &[u8]) -> Result<Self, SealingError> {
        let bytes = <[u8; 32]>::try_from(bytes).map_err(|_| SealingError::Malformed("data key"))?;
        Ok(Self { version, bytes: Zeroizing::new(bytes) })
    }
}

impl fmt::Debug for DataKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "data key, version {}", self.version)
    }
}

/// The private key of a holder: a node's own, or the recovery key.
#[derive(Clone)]
pub struct HolderKey {
    private: PrivateKey,
    public: PublicKey,
}

impl fmt::Debug for HolderKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("(private key)")
    }
}

const RECOVERY_PREFIX: &str = "muster-recovery-";

impl HolderKey {
    /// A new one.
    ///
    /// # Errors
    /// When there is no randomness.
    pub fn generate() -> Result<Self, SealingError> {
        let seed = random::<32>()?;
        let (private, public) = X25519HkdfSha256::derive_keypair(seed.as_ref());
        Ok(Self { private, public })
    }

    /// The key that [`Self::to_bytes`] wrote.
    ///
    /// # Errors
    /// [`SealingError::Malformed`] when these are not 32 bytes.
    pub fn from_bytes(bytes: &[u8]) -> Result<Self, SealingError> {
        let private = PrivateKey::from_bytes(bytes).map_err(|_| SealingError::Malformed("private key"))?;
        let public = X25519HkdfSha256::sk_to_pk(&private);
        Ok(Self { private, public })
    }

    /// The 32 bytes to be kept in a file.
    #[must_use]
    pub fn to_bytes(&self) -> Zeroizing<Vec<u8>> {
        Zeroizing::new(self.private.to_bytes().to_vec())
    }

    /// The public half, which everybody may know.
    #[must_use]
    pub fn public(&self) -> Vec<u8> {
        self.public.to_bytes().to_vec()
    }

    pub(super) fn private(&self) -> &PrivateKey {
        &self.private
    }

    /// The form in which people keep a recovery key: letters and digits in groups, with a checksum.
    #[must_use]
    pub fn to_recovery_text(&self) -> SecretText {
        let mut bytes = self.to_bytes();
        let checksum = Sha256::digest(bytes.as_slice());
        bytes.extend_from_slice(&checksum[..3]);
        let letters = Zeroizing::new(BASE32_NOPAD.encode(&bytes));
        let groups: Vec<&str> =
            (0..letters.len()).step_by(7).map(|at| &letters[at..letters.len().min(at + 7)]).collect();
        SecretText::new(format!("{RECOVERY_PREFIX}{}", groups.join("-")))
    }

    /// Reads what [`Self::to_recovery_text`] printed. Case and the dashes between groups do not matter.
    ///
    /// # Errors
    /// [`SealingError::Malformed`] when it was mistyped.
    pub fn from_recovery_text(text: &str) -> Result<Self, SealingError> {
        let malformed = SealingError::Malformed("recovery key");
        let text = Zeroizing::new(text.trim().to_lowercase());
        let letters = text.strip_prefix(RECOVERY_PREFIX).ok_or(malformed.clone())?;
        let letters = Zeroizing::new(letters.replace('-', "").to_uppercase());
        let bytes = Zeroizing::new(BASE32_NOPAD.decode(letters.as_bytes()).map_err(|_| malformed.clone())?);
        let Some((key, checksum)) = bytes.split_at_checked(32) else { return Err(malformed) };
        if Sha256::digest(key)[..3] != *checksum {
            return Err(malformed);
        }
        Self::from_bytes(key)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_recovery_key_survives_being_written_down() {
        let key = HolderKey::generate().expect("a key");
        let text = key.to_recovery_text();
        let again = HolderKey::from_recovery_text(&text.reveal().to_uppercase().replace('-', "").replacen(
            "MUSTERRECOVERY",
            RECOVERY_PREFIX,
            1,
        ));
        assert_eq!(again.expect("reads").public(), key.public());
        let mut mistyped = text.reveal().to_owned();
        let last = mistyped.pop().expect("not empty");
        mistyped.push(if last == 'A' { 'B' } else { 'A' });
        assert_eq!(
            HolderKey::from_recovery_text(&mistyped).map(|_| ()),
            Err(SealingError::Malformed("recovery key")),
            "{} letters",
            text.reveal().len()
        );
    }

    #[test]
    fn keys_do_not_show_themselves() {
        let key = generate_key().expect("a key");
        assert!(key.reveal().starts_with("sk-") && key.reveal().len() >= 40);
        let shown = format!("{key:?} {:?} {:?}", DataKey::generate(1), HolderKey::generate());
        assert_eq!(shown, "(secret) Ok(data key, version 1) Ok((private key))");
    }
}
