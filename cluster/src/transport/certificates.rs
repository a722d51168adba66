//! The fleet's certificate authority and the certificates that it gives to nodes.

use std::sync::Arc;
use std::time::{Duration, SystemTime};

use arc_swap::ArcSwap;
use rcgen::{
    BasicConstraints, CertificateParams, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair, KeyUsagePurpose,
    PKCS_ED25519, PublicKeyData, SignatureAlgorithm,
};
use rustls::pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer};
use sha2::{Digest, Sha256};
use time::OffsetDateTime;
use zeroize::Zeroizing;

use crate::ids::{FleetId, NodeId};

const DAY: Duration = Duration::from_secs(24 * 3600);

/// How long a node's certificate is valid.
const NODE_VALIDITY: Duration = Duration::from_secs(30 * 24 * 3600);

/// How long the authority's own certificate is valid. The keys that nodes know each other by do not expire.
const CA_VALIDITY: Duration = Duration::from_secs(20 * 365 * 24 * 3600);

/// A certificate could not be made or read.
#[derive(Clone, Debug, thiserror::Error)]
#[error("certificate: {0}")]
pub struct CertificateError(String);

impl From<rcgen::Error> for CertificateError {
    fn from(error: rcgen::Error) -> Self {
        Self(error.to_string())
    }
}

/// How every public key of this kind begins (SubjectPublicKeyInfo of Ed25519, DER).
const ED25519_PREFIX: [u8; 12] = [0x30, 0x2a, 0x30, 0x05, 0x06, 0x03, 0x2b, 0x65, 0x70, 0x03, 0x21, 0x00];

/// The public key of a node.
struct PublicKey([u8; 32]);

impl PublicKey {
    fn parse(der: &[u8]) -> Result<Self, CertificateError> {
        let bytes = der.strip_prefix(&ED25519_PREFIX).and_then(|rest| <[u8; 32]>::try_from(rest).ok());
        bytes.map(Self).ok_or_else(|| CertificateError("it is no Ed25519 key".to_owned()))
    }
}

impl PublicKeyData for PublicKey {
    fn der_bytes(&self) -> &[u8] {
        &self.0
    }

    fn algorithm(&self) -> &'static SignatureAlgorithm {
        &PKCS_ED25519
    }
}

/// The fleet's certificate authority.
pub struct Authority {
    key: KeyPair,
    fleet: FleetId,
}

/// What a join token names the authority by.
#[must_use]
pub fn ca_hash(certificate: &[u8]) -> [u8; 32] {
    Sha256::digest(certificate).into()
}

/// The name of a node in its certificate.
pub(super) fn node_name(fleet: FleetId, node: NodeId) -> String {
    format!("node-{node}.{}.muster", fleet.0.simple())
}

/// The number of the node that a name in a certificate names.
pub(super) fn node_of(fleet: FleetId, name: &str) -> Option<NodeId> {
    let id = name.strip_suffix(&format!(".{}.muster", fleet.0.simple()))?.strip_prefix("node-")?;
    id.parse().ok().map(NodeId)
}

fn valid_for(params: &mut CertificateParams, now: SystemTime, validity: Duration) {
    // A clock that is a little behind must not refuse a certificate that was just made.
    params.not_before = OffsetDateTime::from(now - DAY);
    params.not_after = OffsetDateTime::from(now + validity);
}

impl Authority {
    fn params(fleet: FleetId) -> CertificateParams {
        let mut params = CertificateParams::default();
        params.distinguished_name.push(DnType::CommonName, format!("muster {}", fleet.0.simple()));
        params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign];
        params
    }

    /// A new authority for a fleet, with its own certificate.
    ///
    /// # Errors
    /// When no key can be made.
    pub fn generate(fleet: FleetId, now: SystemTime) -> Result<(Self, Vec<u8>), CertificateError> {
        let key = KeyPair::generate_for(&PKCS_ED25519)?;
        let mut params = Self::params(fleet);
        valid_for(&mut params, now, CA_VALIDITY);
        let certificate = params.self_signed(&key)?.der().to_vec();
        Ok((Self { key, fleet }, certificate))
    }

    /// The authority with this private key (PKCS#8).
    ///
    /// # Errors
    /// When it is no key.
    pub fn from_key(fleet: FleetId, key: &[u8]) -> Result<Self, CertificateError> {
        let key = KeyPair::try_from(key)?;
        Ok(Self { key, fleet })
    }

    /// The private key (PKCS#8).
    #[must_use]
    pub fn key(&self) -> Zeroizing<Vec<u8>> {
        Zeroizing::new(self.key.serialize_der())
    }

    /// A certificate for a node with this public key (SubjectPublicKeyInfo, DER).
    ///
    /// # Errors
    /// When it is no public key.
    pub fn sign(&self, node: NodeId, public: &[u8], now: SystemTime) -> Result<Vec<u8>, CertificateError> {
        let public = PublicKey::parse(public)?;
        let mut params = CertificateParams::new(vec![node_name(self.fleet, node)])?;
        params.distinguished_name.push(DnType::CommonName, format!("node {node}"));
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth, ExtendedKeyUsagePurpose::ServerAuth];
        valid_for(&mut params, now, NODE_VALIDITY);
        let issuer = Issuer::new(Self::params(self.fleet), &self.key);
        Ok(params.signed_by(&public, &issuer)?.der().to_vec())
    }
}

/// What a node shows in TLS: its key, its certificate, which is renewed from time to time, and the authority's.
pub struct TlsIdentity {
    key: Zeroizing<Vec<u8>>,
    certificate: ArcSwap<Vec<u8>>,
    ca_certificate: Vec<u8>,
}

impl TlsIdentity {
    /// A new private key (PKCS#8).
    ///
    /// # Errors
    /// When no key can be made.
    pub fn generate_key() -> Result<Zeroizing<Vec<u8>>, CertificateError> {
        Ok(Zeroizing::new(KeyPair::generate_for(&PKCS_ED25519)?.serialize_der()))
    }

    /// The public half of a private key (SubjectPublicKeyInfo, DER).
    ///
    /// # Errors
    /// When it is no key.
    pub fn public_key(key: &[u8]) -> Result<Vec<u8>, CertificateError> {
        Ok(KeyPair::try_from(key)?.subject_public_key_info())
    }

    /// The identity with this key and these certificates.
    #[must_use]
    pub fn new(key: Zeroizing<Vec<u8>>, certificate: Vec<u8>, ca_certificate: Vec<u8>) -> Self {
        Self { key, certificate: ArcSwap::from_pointee(certificate), ca_certificate }
    }

    /// The public key that this node shows (SubjectPublicKeyInfo, DER).
    ///
    /// # Errors
    /// When its private key is none.
    pub fn public(&self) -> Result<Vec<u8>, CertificateError> {
        Self::public_key(&self.key)
    }

    /// Shows another certificate for the same key from now on.
    pub fn renew(&self, certificate: Vec<u8>) {
        self.certificate.store(Arc::new(certificate));
    }

    pub(super) fn chain(&self) -> Vec<CertificateDer<'static>> {
        vec![CertificateDer::from(self.certificate.load().to_vec()), CertificateDer::from(self.ca_certificate.clone())]
    }

    pub(super) fn private(&self) -> PrivateKeyDer<'static> {
        PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(self.key.to_vec()))
    }

    pub(super) fn ca(&self) -> CertificateDer<'static> {
        CertificateDer::from(self.ca_certificate.clone())
    }
}
