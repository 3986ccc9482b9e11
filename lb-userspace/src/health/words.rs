//! Failures in the words of the engineer who reads them at night.

use std::error::Error as _;
use std::io::{self, ErrorKind};

/// Nobody answered ARP or neighbour discovery for the server, or a router said so.
pub(super) const UNREACHABLE: &str = "no route to host";

/// What a connecting or connected socket reported, or the TLS over it.
pub(super) fn socket(error: &io::Error) -> String {
    if let Some(error) = inner_tls(error) {
        return tls(error);
    }
    let words = match error.kind() {
        ErrorKind::ConnectionRefused => "connection refused",
        ErrorKind::ConnectionReset | ErrorKind::BrokenPipe => "the server reset the connection",
        ErrorKind::UnexpectedEof => "the server closed the connection",
        ErrorKind::TimedOut => "no answer to the connection attempt",
        ErrorKind::HostUnreachable => UNREACHABLE,
        ErrorKind::NetworkUnreachable => "network unreachable",
        ErrorKind::PermissionDenied => "a rule on this machine forbids the connection",
        ErrorKind::AddrNotAvailable => "no local address or port left to connect from",
        _ => return error.to_string(),
    };
    words.to_owned()
}

/// What ended a TLS handshake.
pub(super) fn handshake(error: &io::Error) -> String {
    match inner_tls(error) {
        Some(error) => tls(error),
        None => format!("{} during TLS handshake", socket(error)),
    }
}

fn inner_tls(error: &io::Error) -> Option<&rustls::Error> {
    error.get_ref().and_then(|inner| inner.downcast_ref())
}

/// What rustls reported.
fn tls(error: &rustls::Error) -> String {
    match error {
        rustls::Error::AlertReceived(alert) => {
            format!("the server refused TLS with the alert \"{}\"", spaced(&format!("{alert:?}")))
        }
        rustls::Error::InvalidMessage(_) => "the answer is not TLS".to_owned(),
        rustls::Error::PeerIncompatible(why) => {
            format!("no TLS version or cipher in common ({})", spaced(&format!("{why:?}")))
        }
        rustls::Error::InvalidCertificate(why) => {
            format!("the server's certificate does not fit its handshake ({})", spaced(&format!("{why:?}")))
        }
        other => format!("TLS failed: {other}"),
    }
}

/// What hyper reported before an answer was complete.
pub(super) fn http(error: &hyper::Error) -> String {
    if error.is_parse_too_large() {
        return "the answer's header fields are too large".to_owned();
    }
    if error.is_parse() {
        return "the answer is not HTTP".to_owned();
    }
    let socket_error = error.source().and_then(|source| source.downcast_ref::<io::Error>());
    let cut = error.is_incomplete_message() || error.is_closed() || error.is_canceled();
    if cut || socket_error.is_some_and(|error| error.kind() == ErrorKind::UnexpectedEof) {
        return "the server closed the connection before the answer was complete".to_owned();
    }
    socket_error.map_or_else(|| error.to_string(), socket)
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
            "the server refused TLS with the alert \"protocol version\""
        );
    }
}
