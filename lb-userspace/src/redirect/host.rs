//! The `Host` header field: raw bytes in, a host that is safe to put into a `Location` out.

use std::net::{Ipv4Addr, Ipv6Addr};

use thiserror::Error;

/// Longest name in octets, without the final dot (RFC 1035 2.3.4 in text form).
const NAME_MAX: usize = 253;
/// Longest label in octets (RFC 1035 2.3.4).
const LABEL_MAX: usize = 63;

/// A host as the client wrote it, checked: a DNS name, an IPv4 address, or an IPv6 address in brackets.
///
/// Narrower than RFC 3986 3.2.2 on purpose: no percent-encoding, no sub-delimiters, no user
/// information. What a browser could read in two ways is not repeated to it in a redirect.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct AskedHost<'a> {
    name: &'a str,
    port: Option<u16>,
}

/// Why a `Host` value is no host.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
pub enum HostError {
    /// Nothing before the port, or nothing at all.
    #[error("it is empty")]
    Empty,
    /// A byte outside letters, digits, `-`, `_`, `.` (outside brackets).
    #[error("it contains a byte (0x{0:02x}) that no host name has")]
    BadByte(u8),
    /// Name or label empty or too long.
    #[error("a label is empty or longer than 63 octets, or the name is longer than 253")]
    BadLabel,
    /// Ends in a number, so a browser reads it as an IPv4 address, which it is not.
    #[error("it ends in a number and is not an IPv4 address")]
    BadIpv4,
    /// Brackets without a plain IPv6 address between them, or with something but a port behind them.
    #[error("it is not an IPv6 address in brackets")]
    BadIpv6,
    /// Behind the colon stands something other than a number from 1 to 65535.
    #[error("its port is not a number from 1 to 65535")]
    BadPort,
}

impl<'a> AskedHost<'a> {
    /// Reads `host [":" port]` (RFC 9112 3.2). An empty port (`name:`) is the default port, as
    /// RFC 3986 3.2.3 has it.
    ///
    /// # Errors
    /// The first thing found wrong.
    pub fn parse(raw: &'a [u8]) -> Result<Self, HostError> {
        let text = match raw.iter().find(|byte| !byte.is_ascii_graphic()) {
            Some(byte) => return Err(HostError::BadByte(*byte)),
            None => str::from_utf8(raw).map_err(|_| HostError::BadByte(0xff))?,
        };
        let (name, port) = if text.starts_with('[') {
            let end = text.find(']').ok_or(HostError::BadIpv6)?;
            let (name, rest) = text.split_at(end + 1);
            check_ipv6(name)?;
            match rest.strip_prefix(':') {
                Some(port) => (name, Some(port)),
                None if rest.is_empty() => (name, None),
                None => return Err(HostError::BadIpv6),
            }
        } else {
            let (name, port) = match text.split_once(':') {
                Some((name, port)) => (name, Some(port)),
                None => (text, None),
            };
            check_name(name)?;
            (name, port)
        };
        let port = port.filter(|port| !port.is_empty()).map(parse_port).transpose()?;
        Ok(Self { name, port })
    }

    /// The host without its port, in the client's own spelling; brackets included.
    #[must_use]
    pub fn name(&self) -> &'a str {
        self.name
    }

    /// The same host and port, where case does not count and a missing port is 80 (`http`).
    #[must_use]
    pub fn same_origin(&self, other: &Self) -> bool {
        self.name.eq_ignore_ascii_case(other.name) && self.port.unwrap_or(80) == other.port.unwrap_or(80)
    }
}

fn check_ipv6(bracketed: &str) -> Result<(), HostError> {
    let inner = bracketed.strip_prefix('[').and_then(|rest| rest.strip_suffix(']'));
    match inner.map(str::parse::<Ipv6Addr>) {
        Some(Ok(_)) => Ok(()),
        _ => Err(HostError::BadIpv6),
    }
}

fn check_name(name: &str) -> Result<(), HostError> {
    if let Some(byte) = name.bytes().find(|b| !(b.is_ascii_alphanumeric() || b"-_.".contains(b))) {
        return Err(HostError::BadByte(byte));
    }
    if name.is_empty() {
        return Err(HostError::Empty);
    }
    let rooted = name.strip_suffix('.').unwrap_or(name);
    if rooted.len() > NAME_MAX || rooted.split('.').any(|label| label.is_empty() || label.len() > LABEL_MAX) {
        return Err(HostError::BadLabel);
    }
    let last = rooted.rsplit('.').next().unwrap_or(rooted);
    if is_number(last) && name.parse::<Ipv4Addr>().is_err() {
        return Err(HostError::BadIpv4);
    }
    Ok(())
}

/// A last label that makes a browser parse the whole name as an IPv4 address (WHATWG URL, "ends in a number").
fn is_number(label: &str) -> bool {
    let hex = label.strip_prefix("0x").or_else(|| label.strip_prefix("0X"));
    label.bytes().all(|b| b.is_ascii_digit()) || hex.is_some_and(|h| h.bytes().all(|b| b.is_ascii_hexdigit()))
}

fn parse_port(digits: &str) -> Result<u16, HostError> {
    if !digits.bytes().all(|b| b.is_ascii_digit()) {
        return Err(HostError::BadPort);
    }
    match digits.parse() {
        Ok(0) | Err(_) => Err(HostError::BadPort),
        Ok(port) => Ok(port),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_and_addresses_are_taken_as_written() {
        for (raw, name, port) in [
            ("mychart.example.org", "mychart.example.org", None),
            ("MyChart.Example.ORG:8080", "MyChart.Example.ORG", Some(8080)),
            ("example.org.", "example.org.", None),
            ("EPIC_PRD-01", "EPIC_PRD-01", None),
            ("name:", "name", None),
            ("192.168.85.150:80", "192.168.85.150", Some(80)),
            ("[2001:db8::1]", "[2001:db8::1]", None),
            ("[::1]:65535", "[::1]", Some(65535)),
            ("xn--mnchen-3ya.example", "xn--mnchen-3ya.example", None),
            ("1.2.3.example", "1.2.3.example", None),
        ] {
            assert_eq!(AskedHost::parse(raw.as_bytes()), Ok(AskedHost { name, port }), "{raw}");
        }
    }

    #[test]
    fn everything_else_is_refused_with_its_own_reason() {
        let long_label = "a".repeat(64);
        let long_name = "abcdefg.".repeat(32);
        for (raw, error) in [
            (&b""[..], HostError::Empty),
            (b":80", HostError::Empty),
            (b"user@example.org", HostError::BadByte(b'@')),
            (b"user:pw@example.org", HostError::BadPort),
            (b"exa mple.org", HostError::BadByte(b' ')),
            (b"example.org\r\nX: y", HostError::BadByte(b'\r')),
            (b"example.org\0", HostError::BadByte(0)),
            (b"example.org\x7f", HostError::BadByte(0x7f)),
            ("b\u{fc}cher.example".as_bytes(), HostError::BadByte(0xc3)),
            (b"\xff\xfe", HostError::BadByte(0xff)),
            (b"evil.com/..", HostError::BadByte(b'/')),
            (b"evil.com\\@example.org", HostError::BadByte(b'\\')),
            (b"example%2eorg", HostError::BadByte(b'%')),
            (b"a,b", HostError::BadByte(b',')),
            (b"a?b", HostError::BadByte(b'?')),
            (b"a#b", HostError::BadByte(b'#')),
            (b"example.org:http", HostError::BadPort),
            (b"example.org:0", HostError::BadPort),
            (b"example.org:65536", HostError::BadPort),
            (b"example.org:+80", HostError::BadPort),
            (b"example.org:80:80", HostError::BadPort),
            (b"::1", HostError::Empty),
            (b"2001:db8::1", HostError::BadIpv4),
            (b"[::1", HostError::BadIpv6),
            (b"::1]", HostError::Empty),
            (b"[::1]]", HostError::BadIpv6),
            (b"[::1]80", HostError::BadIpv6),
            (b"[::1]:x", HostError::BadPort),
            (b"[fe80::1%25eth0]", HostError::BadIpv6),
            (b"[v1.x]", HostError::BadIpv6),
            (b"[]", HostError::BadIpv6),
            (b"[127.0.0.1]", HostError::BadIpv6),
            (b"..", HostError::BadLabel),
            (b".", HostError::BadLabel),
            (b".example.org", HostError::BadLabel),
            (b"example..org", HostError::BadLabel),
            (b"example.org..", HostError::BadLabel),
            (long_label.as_bytes(), HostError::BadLabel),
            (long_name.as_bytes(), HostError::BadLabel),
            (b"999.1.1.1", HostError::BadIpv4),
            (b"1.2.3", HostError::BadIpv4),
            (b"2130706433", HostError::BadIpv4),
            (b"0x7f000001", HostError::BadIpv4),
        ] {
            assert_eq!(AskedHost::parse(raw), Err(error), "{:?}", String::from_utf8_lossy(raw));
        }
    }

    #[test]
    fn a_missing_port_is_80_and_case_does_not_count() {
        let parse = |raw: &'static str| AskedHost::parse(raw.as_bytes()).unwrap();
        assert!(parse("Example.org").same_origin(&parse("example.ORG:80")));
        assert!(!parse("example.org").same_origin(&parse("example.org:8080")));
        assert!(!parse("example.org").same_origin(&parse("example.com")));
    }
}
