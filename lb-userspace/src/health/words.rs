//! Failures in the words of the engineer who reads them at night.

use std::io::{self, ErrorKind};

use rustls::CertificateError;

use super::errno::{Meaning, Step, meaning};
use super::state::Outcome;

/// What a call that makes a probe's socket ready reported at once.
pub(super) fn call(error: &io::Error) -> Outcome {
    outcome(Step::Call, error)
}

/// What a connecting or connected socket reported, or the TLS over it.
pub(super) fn socket(error: &io::Error) -> Outcome {
    inner_tls(error).map_or_else(|| outcome(Step::Network, error), tls)
}

fn outcome(step: Step, error: &io::Error) -> Outcome {
    let Some(errno) = error.raw_os_error() else {
        return match error.kind() {
            ErrorKind::UnexpectedEof => Outcome::Failed("the server closed the connection".to_owned()),
            // Not the kernel's: what a protocol's code says of bytes that the server has sent.
            ErrorKind::InvalidData => Outcome::Failed(error.to_string()),
            _ => Outcome::NoVerdict(error.to_string()),
        };
    };
    match meaning(step, errno) {
        (Meaning::Refusal, words) => Outcome::Failed(words),
        (Meaning::Silence, words) => Outcome::Lost(words),
        (Meaning::Nothing, words) => Outcome::NoVerdict(words),
    }
}

/// What ended a TLS handshake.
pub(super) fn handshake(error: &io::Error) -> Outcome {
    match inner_tls(error) {
        Some(error) => tls(error),
        None => socket(error).map_why(|why| format!("{why} during TLS handshake")),
    }
}

fn inner_tls(error: &io::Error) -> Option<&rustls::Error> {
    error.get_ref().and_then(|inner| inner.downcast_ref())
}

/// What rustls reported.
fn tls(error: &rustls::Error) -> Outcome {
    Outcome::Failed(match error {
        // Of this machine, not of the server's bytes.
        rustls::Error::FailedToGetCurrentTime | rustls::Error::FailedToGetRandomBytes => {
            return Outcome::NoVerdict(format!("this machine cannot speak TLS: {error}"));
        }
        rustls::Error::AlertReceived(alert) => {
            format!("the server refused TLS with the alert \"{}\"", spaced(&format!("{alert:?}")))
        }
        rustls::Error::InvalidMessage(_) => "the answer is not TLS".to_owned(),
        rustls::Error::PeerIncompatible(why) => {
            format!("no TLS version or cipher in common ({})", spaced(&format!("{why:?}")))
        }
        rustls::Error::InvalidCertificate(why) if *why != CertificateError::BadSignature => {
            format!("the server's certificate is not accepted: {why}")
        }
        rustls::Error::InvalidCertificate(why) => {
            format!("the server's certificate does not fit its handshake ({})", spaced(&format!("{why:?}")))
        }
        other => format!("TLS failed: {other}"),
    })
}

/// The alert that a server sent, if it is what ended a handshake.
pub(super) fn alert(error: &io::Error) -> Option<String> {
    match inner_tls(error)? {
        rustls::Error::AlertReceived(alert) => Some(spaced(&format!("{alert:?}"))),
        _ => None,
    }
}

/// `HandshakeFailure` as `handshake failure`.
fn spaced(camel: &str) -> String {
    let mut words = String::with_capacity(camel.len() + 8);
    let mut previous = ' ';
    for character in camel.chars() {
        if character.is_ascii_uppercase() && previous.is_ascii_lowercase() {
            words.push(' ');
        }
        words.push(character.to_ascii_lowercase());
        previous = character;
    }
    words
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rusts_names_become_words() {
        assert_eq!(spaced("HandshakeFailure"), "handshake failure");
        assert_eq!(spaced("BadEncoding"), "bad encoding");
        assert_eq!(spaced("UnknownCA"), "unknown ca");
        let alert = rustls::Error::AlertReceived(rustls::AlertDescription::ProtocolVersion);
        assert_eq!(
            socket(&io::Error::other(alert)),
            Outcome::Failed("the server refused TLS with the alert \"protocol version\"".to_owned())
        );
    }
}
