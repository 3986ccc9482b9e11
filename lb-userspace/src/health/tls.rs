//! The TLS half of a probe.

use std::sync::{Arc, LazyLock};

use jiff::Timestamp;
use rustls::client::Resumption;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::{WebPkiSupportedAlgorithms, ring, verify_tls12_signature, verify_tls13_signature};
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::{ClientConfig, DigitallySignedStruct, SignatureScheme};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;
use x509_parser::parse_x509_certificate;

use super::state::Outcome;
use super::words;

static PLAIN: LazyLock<Result<Arc<ClientConfig>, rustls::Error>> = LazyLock::new(|| client_config(&[]));
static HTTPS: LazyLock<Result<Arc<ClientConfig>, rustls::Error>> =
    LazyLock::new(|| client_config(&[b"http/1.1"]));

/// What will be spoken inside TLS.
#[derive(Debug, Clone, Copy)]
pub(super) enum Inside {
    /// Nothing: the handshake is the probe.
    Nothing,
    /// HTTP/1.1, announced by ALPN.
    Http,
}

/// A handshake over `stream`, and when the server's certificate expires.
pub(super) async fn handshake(
    stream: TcpStream,
    name: ServerName<'static>,
    inside: Inside,
) -> Result<(TlsStream<TcpStream>, Option<Timestamp>), Outcome> {
    let config = match inside {
        Inside::Nothing => &*PLAIN,
        Inside::Http => &*HTTPS,
    };
    let config = config
        .as_ref()
        .map_err(|error| Outcome::NoVerdict(format!("this machine cannot speak TLS: {error}")))?;
    let connected = TlsConnector::from(Arc::clone(config)).connect(name, stream).await;
    let stream = connected.map_err(|error| words::handshake(&error))?;
    let leaf = stream.get_ref().1.peer_certificates().and_then(<[_]>::first);
    let expires = leaf.and_then(expiry);
    Ok((stream, expires))
}

/// The certificate's `notAfter` (RFC 5280 4.1.2.5); a time beyond what can be represented, as in
/// `99991231235959Z` ("no expiry"), becomes the last one that can.
pub(super) fn expiry(certificate: &CertificateDer<'_>) -> Option<Timestamp> {
    let (_, certificate) = parse_x509_certificate(certificate).ok()?;
    let seconds = certificate.validity().not_after.timestamp();
    let nearest = if seconds > 0 { Timestamp::MAX } else { Timestamp::MIN };
    Some(Timestamp::from_second(seconds).unwrap_or(nearest))
}

/// A client that takes whatever certificate is presented, as long as the server holds its key, and resumes no session; with
/// these protocols in ALPN.
///
/// # Errors
/// This machine has no TLS.
pub fn client_config(alpn: &[&[u8]]) -> Result<Arc<ClientConfig>, rustls::Error> {
    let provider = Arc::new(ring::default_provider());
    let verifier = AnyCertificate { algorithms: provider.signature_verification_algorithms };
    let mut config = ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()?
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(verifier))
        .with_no_client_auth();
    config.alpn_protocols = alpn.iter().map(|name| name.to_vec()).collect();
    // Each probe is to exercise the server's key and to see its certificate as it is now.
    config.resumption = Resumption::disabled();
    Ok(Arc::new(config))
}

/// Accepts whatever certificate is presented, as long as the server holds its key.
///
/// A liveness probe asks "would a client get a TLS session here?", not "is this server who it says it
/// is?". It sends no secret and believes nothing it reads, so an impostor gains nothing; and servers
/// behind a balancer commonly carry internal, self-signed or another name's certificates, which their
/// real clients judge by their own trust stores. Taking such a server out of service would be an
/// outage made by its monitor. So an expired certificate is reported, not judged.
///
/// The handshake's signature is still verified: it shows that the server has the private key of the
/// certificate it presents. A server with the wrong key file would fail every client, and so is down.
#[derive(Debug)]
struct AnyCertificate {
    algorithms: WebPkiSupportedAlgorithms,
}

impl ServerCertVerifier for AnyCertificate {
    fn verify_server_cert(
        &self,
        _end_entity: &CertificateDer<'_>,
        _intermediates: &[CertificateDer<'_>],
        _server_name: &ServerName<'_>,
        _ocsp_response: &[u8],
        _now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        verify_tls12_signature(message, certificate, signature, &self.algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        verify_tls13_signature(message, certificate, signature, &self.algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.algorithms.supported_schemes()
    }
}
