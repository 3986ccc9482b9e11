//! The first bytes of a server's answer: whether they are TLS, whatever the rest is like.

use std::fmt;
use std::io;
use std::pin::Pin;
use std::task::{Context, Poll};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

/// Enough for a server's hello up to its suite (RFC 8446 section 4.1.3): a record's header, a message's, version, random,
/// session id.
const KEPT: usize = 5 + 4 + 2 + 32 + 1 + 32 + 2;

/// What a server's answer begins with.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum First {
    /// An alert: it has read the hello, and does not want it.
    Alert,
    /// A server's hello.
    ServerHello {
        /// The version it chose.
        version: Version,
        /// The suite it chose, by its number (RFC 8446 appendix B.4).
        suite: u16,
    },
    /// Something else, or nothing.
    Other,
}

/// A protocol version by its number.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Version(u16);

impl fmt::Display for Version {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0 {
            0x0300 => f.write_str("SSL 3.0"),
            0x0301 => f.write_str("TLS 1.0"),
            0x0302 => f.write_str("TLS 1.1"),
            0x0303 => f.write_str("TLS 1.2"),
            0x0304 => f.write_str("TLS 1.3"),
            other => write!(f, "version {other:#06x}"),
        }
    }
}

impl First {
    /// Reads the first bytes of an answer.
    pub(super) fn read(bytes: &[u8]) -> Self {
        match bytes {
            // Alert, version 3.x, two bytes.
            [0x15, 3, _, 0, 2, ..] => Self::Alert,
            // Handshake, version 3.x, a server's hello.
            [0x16, 3, _, _, _, 2, ..] => Self::server_hello(bytes).unwrap_or(Self::Other),
            _ => Self::Other,
        }
    }

    fn server_hello(bytes: &[u8]) -> Option<Self> {
        let number = |at: usize| Some(u16::from_be_bytes([*bytes.get(at)?, *bytes.get(at + 1)?]));
        let session_id = usize::from(*bytes.get(43)?);
        let suite = number(44 + session_id)?;
        // In TLS 1.3 the version field says 1.2; its suites are no other version's.
        let version = if suite >> 8 == 0x13 { 0x0304 } else { number(9)? };
        Some(Self::ServerHello { version: Version(version), suite })
    }

    /// Whether whoever sent it speaks TLS.
    pub(super) fn is_answer(self) -> bool {
        self != Self::Other
    }
}

/// A connection that keeps the first bytes read from it.
pub(in crate::health) struct Watched<S> {
    inner: S,
    kept: Vec<u8>,
}

impl<S> Watched<S> {
    pub(super) fn new(inner: S) -> Self {
        Self { inner, kept: Vec::with_capacity(KEPT) }
    }

    /// What the answer begins with.
    pub(super) fn first(&self) -> First {
        First::read(&self.kept)
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for Watched<S> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let before = buffer.filled().len();
        let polled = Pin::new(&mut self.inner).poll_read(context, buffer);
        let fresh = &buffer.filled()[before..];
        let room = KEPT - self.kept.len();
        self.kept.extend_from_slice(&fresh[..fresh.len().min(room)]);
        polled
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Watched<S> {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.inner).poll_write(context, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.inner).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.inner).poll_shutdown(context)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn hello(version: u16, session_id: &[u8], suite: u16) -> Vec<u8> {
        let [suite_high, suite_low] = suite.to_be_bytes();
        let length = u8::try_from(session_id.len()).unwrap();
        let head = [0x16, 3, 1, 0, 90, 2, 0, 0, 86];
        [&head[..], &version.to_be_bytes(), &[7; 32], &[length], session_id, &[suite_high, suite_low, 0]]
            .concat()
    }

    #[test]
    fn an_alert_or_a_servers_hello_is_an_answer_and_nothing_else_is() {
        assert_eq!(First::read(&[0x15, 3, 1, 0, 2, 2, 40]), First::Alert);
        for (bytes, shown) in [
            (hello(0x0301, &[], 0x002f), "TLS 1.0"),
            (hello(0x0303, &[9; 32], 0xc027), "TLS 1.2"),
            (hello(0x0303, &[9; 32], 0x1301), "TLS 1.3"),
        ] {
            let First::ServerHello { version, .. } = First::read(&bytes) else { panic!("{bytes:?}") };
            assert_eq!(version.to_string(), shown);
            assert!((0..bytes.len() - 1).all(|cut| !First::read(&bytes[..cut]).is_answer()), "cut off");
        }
        for other in
            [&b""[..], b"HTTP/1.1 400 Bad Request", b"\x16\x03\x01\x00\x05\x01hell", b"\x15\x02\x01\x00\x02"]
        {
            assert_eq!(First::read(other), First::Other, "{other:?}");
        }
    }
}
