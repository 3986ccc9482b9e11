//! A certificate as an engineer would describe it.

use jiff::Timestamp;
use rustls::pki_types::CertificateDer;
use x509_parser::certificate::X509Certificate;
use x509_parser::parse_x509_certificate;
use x509_parser::public_key::PublicKey;
use x509_parser::x509::X509Version;

/// The certificate's `notAfter` (RFC 5280 4.1.2.5); a time beyond what can be represented, as in
/// `99991231235959Z` ("no expiry"), becomes the last one that can.
pub(in crate::health) fn expiry(certificate: &CertificateDer<'_>) -> Option<Timestamp> {
    let (_, certificate) = parse_x509_certificate(certificate).ok()?;
    let seconds = certificate.validity().not_after.timestamp();
    let nearest = if seconds > 0 { Timestamp::MAX } else { Timestamp::MIN };
    Some(Timestamp::from_second(seconds).unwrap_or(nearest))
}

/// Whether a signature made with its key can be told from a wrong one here: of other keys, nothing is said.
pub(super) fn is_verifiable(certificate: &CertificateDer<'_>) -> bool {
    let Ok((_, certificate)) = parse_x509_certificate(certificate) else { return false };
    match certificate.public_key().parsed() {
        // What ring takes: RSA from 2048 to 8192 bits.
        Ok(PublicKey::RSA(key)) => (2048..=8192).contains(&key.key_size()),
        // Points that are not compressed, of P-256 and P-384.
        Ok(PublicKey::EC(key)) => matches!((key.data().first(), key.key_size()), (Some(4), 256 | 384)),
        _ => false,
    }
}

/// What about it may keep a client from taking it, as of `now`.
pub(super) fn oddities(certificate: &CertificateDer<'_>, now: Timestamp) -> Vec<String> {
    let Ok((_, certificate)) = parse_x509_certificate(certificate) else {
        return vec!["its certificate cannot be read".to_owned()];
    };
    let mut oddities = Vec::new();
    oddities.extend(key(&certificate));
    if certificate.version() != X509Version::V3 {
        oddities.push(format!("certificate of X.509 v{}", certificate.version().0 + 1));
    }
    for extension in certificate.extensions() {
        if extension.critical && extension.parsed_extension().unsupported() {
            oddities.push(format!("unknown critical extension {}", extension.oid.to_id_string()));
        }
    }
    let validity = certificate.validity();
    if validity.not_after.timestamp() < now.as_second() {
        oddities.push("certificate expired".to_owned());
    } else if validity.not_before.timestamp() > now.as_second() {
        oddities.push("certificate not valid yet".to_owned());
    }
    oddities
}

/// Its key, if that is one which not every client takes.
fn key(certificate: &X509Certificate<'_>) -> Option<String> {
    /// RFC 4055 section 1.2: a key for RSASSA-PSS alone.
    const RSASSA_PSS: &str = "1.2.840.113549.1.1.10";
    let key = certificate.public_key();
    if key.algorithm.algorithm.to_id_string() == RSASSA_PSS {
        return Some("key for RSA-PSS only".to_owned());
    }
    match key.parsed() {
        Ok(PublicKey::RSA(rsa)) if rsa.key_size() < 2048 => Some(format!("key RSA {}", rsa.key_size())),
        // Whole bytes of a coordinate.
        Ok(PublicKey::EC(ec)) if ec.key_size() == 528 => Some("key P-521".to_owned()),
        Ok(PublicKey::EC(ec)) if !matches!(ec.key_size(), 256 | 384) => {
            Some(format!("key on a curve of {} bits", ec.key_size()))
        }
        _ => None,
    }
}
