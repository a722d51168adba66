//! Whom TLS believes.

use std::sync::Arc;

use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::{CryptoProvider, WebPkiSupportedAlgorithms, ring, verify_tls13_signature};
use rustls::pki_types::{CertificateDer, ServerName, TrustAnchor, UnixTime};
use rustls::server::danger::{ClientCertVerified, ClientCertVerifier};
use rustls::server::{ClientHello, ResolvesServerCert};
use rustls::sign::CertifiedKey;
use rustls::{
    CertificateError, ClientConfig, DigitallySignedStruct, DistinguishedName, Error, ServerConfig, SignatureScheme,
};
use webpki::{EndEntityCert, KeyUsage, anchor_from_trusted_cert};

use super::certificates::{TlsIdentity, ca_hash, node_name, node_of};
use super::registry::Registered;
use crate::ids::NodeId;

/// The protocol of members.
pub(super) const MESH: &[u8] = b"muster-mesh/1";

/// The protocol of those who want to become members.
pub(super) const JOIN: &[u8] = b"muster-join/1";

/// The protocol of what one node's gateway asks another's, in HTTP/1.1.
pub(super) const PEER: &[u8] = b"muster-peer/1";

fn provider() -> Arc<CryptoProvider> {
    Arc::new(ring::default_provider())
}

fn algorithms() -> WebPkiSupportedAlgorithms {
    ring::default_provider().signature_verification_algorithms
}

fn bad(error: webpki::Error) -> Error {
    Error::InvalidCertificate(CertificateError::Other(rustls::OtherError(Arc::new(error))))
}

fn refused() -> Error {
    Error::InvalidCertificate(CertificateError::ApplicationVerificationFailure)
}

/// The public key that a certificate shows.
pub(super) fn public_key(certificate: &CertificateDer<'_>) -> Result<Vec<u8>, Error> {
    let certificate = EndEntityCert::try_from(certificate).map_err(bad)?;
    Ok(certificate.subject_public_key_info().to_vec())
}

/// The node that a certificate names.
pub(super) fn named_node(certificate: &CertificateDer<'_>, fleet: crate::ids::FleetId) -> Option<NodeId> {
    let certificate = EndEntityCert::try_from(certificate).ok()?;
    certificate.valid_dns_names().find_map(|name| node_of(fleet, name))
}

/// Whether the fleet's authority has signed the certificate, and it is valid now.
fn vouched_for(
    certificate: &CertificateDer<'_>,
    ca: &CertificateDer<'_>,
    now: UnixTime,
    usage: KeyUsage,
) -> Result<(), Error> {
    let anchor: TrustAnchor<'_> = anchor_from_trusted_cert(ca).map_err(bad)?;
    let end = EndEntityCert::try_from(certificate).map_err(bad)?;
    let anchors = [anchor];
    end.verify_for_usage(algorithms().all, &anchors, &[], now, usage, None, None).map_err(bad)?;
    Ok(())
}

macro_rules! only_tls13 {
    () => {
        fn verify_tls12_signature(
            &self,
            _: &[u8],
            _: &CertificateDer<'_>,
            _: &DigitallySignedStruct,
        ) -> Result<HandshakeSignatureValid, Error> {
            Err(refused())
        }

        fn verify_tls13_signature(
            &self,
            message: &[u8],
            certificate: &CertificateDer<'_>,
            signature: &DigitallySignedStruct,
        ) -> Result<HandshakeSignatureValid, Error> {
            verify_tls13_signature(message, certificate, signature, &algorithms())
        }

        fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
            algorithms().supported_schemes()
        }
    };
}

/// Believes a client whose key is registered, whatever its certificate says; and one that is not known, if the authority
/// vouches for it. No certificate is fine: such a client may only join.
#[derive(Debug)]
struct Clients {
    registered: Arc<Registered>,
    ca: CertificateDer<'static>,
}

impl ClientCertVerifier for Clients {
    fn root_hint_subjects(&self) -> &[DistinguishedName] {
        &[]
    }

    fn client_auth_mandatory(&self) -> bool {
        false
    }

    fn verify_client_cert(
        &self,
        certificate: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        now: UnixTime,
    ) -> Result<ClientCertVerified, Error> {
        let (registry, key) = (self.registered.current(), public_key(certificate)?);
        if registry.is_removed(&key) {
            return Err(refused());
        }
        if registry.by_key(&key).is_none() {
            vouched_for(certificate, &self.ca, now, KeyUsage::client_auth())?;
        }
        Ok(ClientCertVerified::assertion())
    }

    only_tls13!();
}

/// Believes one node: by its registered key, or, if it is not known yet, by a certificate in its name.
#[derive(Debug)]
struct OneNode {
    registered: Arc<Registered>,
    node: NodeId,
    ca: CertificateDer<'static>,
}

impl ServerCertVerifier for OneNode {
    fn verify_server_cert(
        &self,
        certificate: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        let registry = self.registered.current();
        match registry.node(self.node) {
            Some(peer) if peer.tls_key == public_key(certificate)? => {}
            Some(_) => return Err(refused()),
            None => {
                vouched_for(certificate, &self.ca, now, KeyUsage::server_auth())?;
                let end = EndEntityCert::try_from(certificate).map_err(bad)?;
                let name = node_name(self.registered.fleet, self.node);
                let name = ServerName::try_from(name).map_err(|_| refused())?;
                end.verify_is_valid_for_subject_name(&name).map_err(bad)?;
            }
        }
        Ok(ServerCertVerified::assertion())
    }

    only_tls13!();
}

/// Believes any node of the fleet whose authority has this hash. The joiner's secret is sent only then.
#[derive(Debug)]
struct AnyOfFleet {
    ca_hash: [u8; 32],
}

impl ServerCertVerifier for AnyOfFleet {
    fn verify_server_cert(
        &self,
        certificate: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        let ca = intermediates.iter().find(|shown| ca_hash(shown) == self.ca_hash).ok_or_else(refused)?;
        vouched_for(certificate, ca, now, KeyUsage::server_auth())?;
        Ok(ServerCertVerified::assertion())
    }

    only_tls13!();
}

/// Shows the certificate that the node has at the moment.
struct Current(Arc<TlsIdentity>);

impl std::fmt::Debug for Current {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("the node's certificate")
    }
}

impl ResolvesServerCert for Current {
    fn resolve(&self, _: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        let shown = CertifiedKey::from_der(self.0.chain(), self.0.private(), &ring::default_provider());
        shown.map(Arc::new).inspect_err(|error| tracing::error!(%error, "the node's certificate can not be shown")).ok()
    }
}

/// What the mesh listener speaks.
pub(super) fn server_config(identity: &Arc<TlsIdentity>, registered: Arc<Registered>) -> Result<ServerConfig, Error> {
    let clients = Arc::new(Clients { registered, ca: identity.ca() });
    let mut config = ServerConfig::builder_with_provider(provider())
        .with_protocol_versions(&[&rustls::version::TLS13])?
        .with_client_cert_verifier(clients)
        .with_cert_resolver(Arc::new(Current(Arc::clone(identity))));
    config.alpn_protocols = vec![MESH.to_vec(), JOIN.to_vec(), PEER.to_vec()];
    Ok(config)
}

/// How this node speaks to another one, in this protocol.
pub(super) fn member_config(
    identity: &TlsIdentity,
    registered: Arc<Registered>,
    node: NodeId,
    protocol: &[u8],
) -> Result<ClientConfig, Error> {
    let verifier = Arc::new(OneNode { registered, node, ca: identity.ca() });
    let mut config = ClientConfig::builder_with_provider(provider())
        .with_protocol_versions(&[&rustls::version::TLS13])?
        .dangerous()
        .with_custom_certificate_verifier(verifier)
        .with_client_auth_cert(identity.chain(), identity.private())?;
    config.alpn_protocols = vec![protocol.to_vec()];
    Ok(config)
}

/// How a node speaks that wants to join the fleet whose authority has this hash.
pub(crate) fn join_config(ca_hash: [u8; 32]) -> Result<ClientConfig, Error> {
    let mut config = ClientConfig::builder_with_provider(provider())
        .with_protocol_versions(&[&rustls::version::TLS13])?
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(AnyOfFleet { ca_hash }))
        .with_no_client_auth();
    config.alpn_protocols = vec![JOIN.to_vec()];
    Ok(config)
}
