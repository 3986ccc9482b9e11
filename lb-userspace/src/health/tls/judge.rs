//! What a probe makes of a server's certificate and signature: it looks, and judges only what it was asked to.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, OnceLock};

use jiff::Timestamp;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::client::{ResolvesClientCert, WebPkiServerVerifier};
use rustls::crypto::{WebPkiSupportedAlgorithms, ring, verify_tls12_signature, verify_tls13_signature};
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::sign::CertifiedKey;
use rustls::{CertificateError, DigitallySignedStruct, Error, SignatureScheme};

use super::certificate;

/// RFC 8446 section 4.2.3: `rsa_pss_pss_sha256`, `_sha384`, `_sha512`.
const RSA_PSS_PSS: [SignatureScheme; 3] =
    [SignatureScheme::Unknown(0x0809), SignatureScheme::Unknown(0x080a), SignatureScheme::Unknown(0x080b)];
/// Signatures that servers may give, and that cannot be verified here.
const ONLY_TAKEN: [SignatureScheme; 3] =
    [SignatureScheme::ECDSA_NISTP521_SHA512, SignatureScheme::ED448, SignatureScheme::RSA_PKCS1_SHA1];

/// Accepts whatever certificate is presented, unless it was given a verifier.
///
/// A liveness probe asks "would a client get a TLS session here?", not "is this server who it says it
/// is?". It sends no secret and believes nothing it reads, so an impostor gains nothing; and servers
/// behind a balancer commonly carry internal, self-signed or another name's certificates, which their
/// real clients judge by their own trust stores.
///
/// The handshake's signature is verified where its key is one that can be: it shows that the server has the private key of
/// the certificate it presents. A server with the wrong key file fails every client, whatever their rules.
#[derive(Debug)]
pub(super) struct Judge {
    algorithms: WebPkiSupportedAlgorithms,
    verifier: Option<Arc<WebPkiServerVerifier>>,
    seen: OnceLock<CertificateDer<'static>>,
    asked: AtomicBool,
    refused: AtomicBool,
}

impl Judge {
    /// One that judges by `verifier`, or not at all.
    pub(super) fn new(verifier: Option<Arc<WebPkiServerVerifier>>) -> Self {
        Self {
            algorithms: ring::default_provider().signature_verification_algorithms,
            verifier,
            seen: OnceLock::new(),
            asked: AtomicBool::new(false),
            refused: AtomicBool::new(false),
        }
    }

    /// When the certificate expires that was seen.
    pub(super) fn expires(&self) -> Option<Timestamp> {
        self.seen.get().and_then(certificate::expiry)
    }

    /// Whether the server has asked for a client's certificate.
    pub(super) fn was_asked(&self) -> bool {
        self.asked.load(Ordering::Relaxed)
    }

    /// Whether the server was found not to hold its certificate's key, or not to be who it should be.
    pub(super) fn has_refused(&self) -> bool {
        self.refused.load(Ordering::Relaxed)
    }

    /// What was unusual.
    pub(super) fn oddities(&self, now: Timestamp) -> Vec<String> {
        let mut oddities = self.seen.get().map(|seen| certificate::oddities(seen, now)).unwrap_or_default();
        if self.was_asked() {
            oddities.push("asks for a client certificate".to_owned());
        }
        oddities
    }

    /// A signature that is not the key's is refused; one that cannot be verified is not.
    fn signature(
        &self,
        certificate: &CertificateDer<'_>,
        verified: Result<HandshakeSignatureValid, Error>,
    ) -> Result<HandshakeSignatureValid, Error> {
        match verified {
            Err(error @ Error::InvalidCertificate(CertificateError::BadSignature))
                if certificate::is_verifiable(certificate) =>
            {
                self.refused.store(true, Ordering::Relaxed);
                Err(error)
            }
            _ => Ok(HandshakeSignatureValid::assertion()),
        }
    }
}

impl ServerCertVerifier for Judge {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        server_name: &ServerName<'_>,
        ocsp_response: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        // Of one handshake, there is one.
        let _ = self.seen.set(end_entity.clone().into_owned());
        let Some(verifier) = &self.verifier else { return Ok(ServerCertVerified::assertion()) };
        let verified =
            verifier.verify_server_cert(end_entity, intermediates, server_name, ocsp_response, now);
        self.refused.fetch_or(verified.is_err(), Ordering::Relaxed);
        verified
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        let verified = verify_tls12_signature(message, certificate, signature, &self.algorithms);
        self.signature(certificate, verified)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        let verified = verify_tls13_signature(message, certificate, signature, &self.algorithms);
        self.signature(certificate, verified)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        let verified = self.algorithms.supported_schemes();
        verified.into_iter().chain(ONLY_TAKEN).chain(RSA_PSS_PSS).collect()
    }
}

impl ResolvesClientCert for Judge {
    fn resolve(&self, _issuers: &[&[u8]], _schemes: &[SignatureScheme]) -> Option<Arc<CertifiedKey>> {
        self.asked.store(true, Ordering::Relaxed);
        None
    }

    fn has_certs(&self) -> bool {
        // Else it is not asked, and it would not be known that the server asks.
        true
    }
}
