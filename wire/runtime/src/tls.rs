//! TLS 1.3 between keys: RFC 7250 raw public keys on both sides, Ed25519, no certificates.
//!
//! A server learns who calls ([`peer_key`]); a client pins the key it expects, or takes any key and lets the protocol above prove it.

use std::sync::Arc;

use cortex_wire::{
    direct::Secret,
    key::{PublicKey, SecretKey},
};
use rustls::{
    CertificateError, DigitallySignedStruct, DistinguishedName, Error, PeerIncompatible, SignatureAlgorithm, SignatureScheme,
    client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier},
    crypto::CryptoProvider,
    pki_types::{CertificateDer, ServerName, SubjectPublicKeyInfoDer, UnixTime, alg_id},
    server::danger::{ClientCertVerified, ClientCertVerifier},
    sign::{CertifiedKey, Signer, SigningKey},
};

/// What comes before the 32 bytes of an Ed25519 key in a SubjectPublicKeyInfo (RFC 8410, section 4).
const SPKI_PREFIX: [u8; 12] = [0x30, 0x2a, 0x30, 0x05, 0x06, 0x03, 0x2b, 0x65, 0x70, 0x03, 0x21, 0x00];

/// Label of the TLS exporter that an enrolment signs.
const EXPORTER_LABEL: &[u8] = b"EXPERIMENTAL cortex-mesh/1 enrol";

/// Label of the TLS exporter from which the keys of direct probes are made.
const DIRECT_LABEL: &[u8] = b"EXPERIMENTAL cortex-mesh/1 direct";

/// A server that speaks `alpn` as `key` and asks every client for its key.
///
/// # Errors
/// When rustls refuses the configuration.
pub fn server(key: &SecretKey, alpn: &[u8]) -> Result<rustls::ServerConfig, Error> {
    let resolver = rustls::server::AlwaysResolvesServerRawPublicKeys::new(certified(key));
    let mut config = rustls::ServerConfig::builder_with_provider(provider())
        .with_protocol_versions(&[&rustls::version::TLS13])?
        .with_client_cert_verifier(Arc::new(Verifier { expected: None }))
        .with_cert_resolver(Arc::new(resolver));
    config.alpn_protocols = vec![alpn.to_vec()];
    // A resumed session would skip nothing we pay for, and tickets cost memory per connection.
    config.send_tls13_tickets = 0;
    Ok(config)
}

/// A client that speaks `alpn` as `key` to the server with the key `expected`, or to any server with `None`.
///
/// # Errors
/// When rustls refuses the configuration.
pub fn client(key: &SecretKey, expected: Option<PublicKey>, alpn: &[u8]) -> Result<rustls::ClientConfig, Error> {
    let resolver = rustls::client::AlwaysResolvesClientRawPublicKeys::new(certified(key));
    let mut config = rustls::ClientConfig::builder_with_provider(provider())
        .with_protocol_versions(&[&rustls::version::TLS13])?
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(Verifier { expected }))
        .with_client_cert_resolver(Arc::new(resolver));
    config.alpn_protocols = vec![alpn.to_vec()];
    // The name would be visible to relays and networks, and says nothing: keys are the identity.
    config.enable_sni = false;
    config.resumption = rustls::client::Resumption::disabled();
    Ok(config)
}

/// The key with which the other side of a connection proved itself.
pub fn peer_key(connection: &quinn::Connection) -> Option<PublicKey> {
    let identity = connection.peer_identity()?.downcast::<Vec<CertificateDer<'static>>>().ok()?;
    key_of(identity.first()?).ok()
}

/// Thirty-two bytes that only the two ends of this connection know, for signatures bound to it.
///
/// # Errors
/// When the connection is gone.
pub fn exporter(connection: &quinn::Connection) -> Result<[u8; 32], quinn::ConnectionError> {
    let mut out = [0; 32];
    connection.export_keying_material(&mut out, EXPORTER_LABEL, b"").map_err(|_| quinn::ConnectionError::LocallyClosed)?;
    Ok(out)
}

/// What both ends of an end-to-end connection prove to each other on a direct way that they are.
///
/// # Errors
/// When the connection is gone.
pub fn direct_secret(connection: &quinn::Connection) -> Result<Secret, quinn::ConnectionError> {
    let mut out = [0; 32];
    connection.export_keying_material(&mut out, DIRECT_LABEL, b"").map_err(|_| quinn::ConnectionError::LocallyClosed)?;
    Ok(Secret::new(&out))
}

fn provider() -> Arc<CryptoProvider> {
    Arc::new(rustls::crypto::ring::default_provider())
}

fn certified(key: &SecretKey) -> Arc<CertifiedKey> {
    let spki = rustls::sign::public_key_to_spki(&alg_id::ED25519, key.public().as_bytes());
    Arc::new(CertifiedKey::new(vec![CertificateDer::from(spki.to_vec())], Arc::new(TlsKey(key.clone()))))
}

fn key_of(spki: &[u8]) -> Result<PublicKey, Error> {
    spki.strip_prefix(&SPKI_PREFIX)
        .and_then(|raw| PublicKey::from_slice(raw).ok())
        .ok_or(Error::InvalidCertificate(CertificateError::BadEncoding))
}

/// Our key as rustls wants it.
#[derive(Debug, Clone)]
struct TlsKey(SecretKey);

impl SigningKey for TlsKey {
    fn choose_scheme(&self, offered: &[SignatureScheme]) -> Option<Box<dyn Signer>> {
        offered.contains(&SignatureScheme::ED25519).then(|| Box::new(self.clone()) as _)
    }

    fn public_key(&self) -> Option<SubjectPublicKeyInfoDer<'_>> {
        Some(rustls::sign::public_key_to_spki(&alg_id::ED25519, self.0.public().as_bytes()))
    }

    fn algorithm(&self) -> SignatureAlgorithm {
        SignatureAlgorithm::ED25519
    }
}

impl Signer for TlsKey {
    fn sign(&self, message: &[u8]) -> Result<Vec<u8>, Error> {
        Ok(self.0.sign_raw(message).to_vec())
    }

    fn scheme(&self) -> SignatureScheme {
        SignatureScheme::ED25519
    }
}

#[derive(Debug)]
struct Verifier {
    expected: Option<PublicKey>,
}

impl Verifier {
    fn check_key(&self, spki: &[u8], intermediates: &[CertificateDer<'_>]) -> Result<(), Error> {
        let key = key_of(spki)?;
        if intermediates.is_empty() && self.expected.is_none_or(|expected| expected == key) {
            Ok(())
        } else {
            Err(Error::InvalidCertificate(CertificateError::UnknownIssuer))
        }
    }

    fn check_signature(message: &[u8], spki: &[u8], signed: &DigitallySignedStruct) -> Result<HandshakeSignatureValid, Error> {
        if signed.scheme != SignatureScheme::ED25519 {
            return Err(PeerIncompatible::NoSignatureSchemesInCommon.into());
        }
        key_of(spki)?
            .verify_raw(message, signed.signature())
            .map(|()| HandshakeSignatureValid::assertion())
            .map_err(|_| Error::InvalidCertificate(CertificateError::BadSignature))
    }
}

impl ServerCertVerifier for Verifier {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        _: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        self.check_key(end_entity, intermediates).map(|()| ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        Err(PeerIncompatible::Tls12NotOffered.into())
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        Self::check_signature(message, cert, signed)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        vec![SignatureScheme::ED25519]
    }

    fn requires_raw_public_keys(&self) -> bool {
        true
    }
}

impl ClientCertVerifier for Verifier {
    fn root_hint_subjects(&self) -> &[DistinguishedName] {
        &[]
    }

    fn verify_client_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        _: UnixTime,
    ) -> Result<ClientCertVerified, Error> {
        self.check_key(end_entity, intermediates).map(|()| ClientCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        Err(PeerIncompatible::Tls12NotOffered.into())
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        Self::check_signature(message, cert, signed)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        vec![SignatureScheme::ED25519]
    }

    fn requires_raw_public_keys(&self) -> bool {
        true
    }
}
