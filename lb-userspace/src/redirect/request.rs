//! A request's head: bytes as a client sent them in, what the policy needs of them out. No socket, no clock.
//!
//! The request target is taken as it came, whatever bytes it has but controls: what no URI has is encoded in the answer
//! (RFC 9112 section 3.2 asks for a refusal or for exactly that).

use httparse::{EMPTY_HEADER, Header, Status};
use thiserror::Error;

/// What a head may be like at most.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Bounds {
    /// Its bytes.
    pub bytes: usize,
    /// Its field lines.
    pub fields: usize,
}

/// The head of a request.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Head<'a> {
    /// The method, a token.
    pub method: &'a str,
    /// The request target, raw: never empty, and without controls.
    pub target: &'a [u8],
    /// The value of every `Host` field line, raw and in order.
    pub hosts: Vec<&'a [u8]>,
    /// Whether the client may send another request on this connection.
    pub keep_alive: bool,
    /// Whether a body follows, which is not read.
    pub has_body: bool,
    /// How many bytes it has.
    pub length: usize,
}

/// Why bytes are no request.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
pub enum Malformed {
    /// Not the first line of a request.
    #[error("the first line is not a request")]
    RequestLine,
    /// Another protocol version than 1.0 and 1.1.
    #[error("only HTTP/1.0 and HTTP/1.1 are spoken here")]
    Version,
    /// A field line that is none.
    #[error("a header field is not valid")]
    Field,
    /// More of them, or more bytes, than are read.
    #[error("the header fields are too large")]
    TooLarge,
}

/// Reads the head at the start of `bytes`; `None` while it is not complete, and nothing is wrong with it yet.
///
/// # Errors
/// The first thing found wrong.
pub fn read(bytes: &[u8], bounds: Bounds) -> Result<Option<Head<'_>>, Malformed> {
    // A client may end the request before with a line end too many (RFC 9112 section 2.2).
    let empty = bytes.iter().take_while(|byte| matches!(byte, b'\r' | b'\n')).count();
    let text = &bytes[empty..];
    let Some(line_end) = text.iter().position(|byte| *byte == b'\n') else {
        return begins_well(text, bytes.len(), bounds);
    };
    let line = text[..line_end].strip_suffix(b"\r").unwrap_or(&text[..line_end]);
    let line = request_line(line)?;
    let mut fields = vec![EMPTY_HEADER; bounds.fields];
    let (rest, fields) = match httparse::parse_headers(&text[line_end + 1..], &mut fields) {
        Ok(Status::Complete(found)) => found,
        Ok(Status::Partial) if bytes.len() >= bounds.bytes => return Err(Malformed::TooLarge),
        Ok(Status::Partial) => return Ok(None),
        Err(httparse::Error::TooManyHeaders) => return Err(Malformed::TooLarge),
        Err(_) => return Err(Malformed::Field),
    };
    let length = empty + line_end + 1 + rest;
    if length > bounds.bytes {
        return Err(Malformed::TooLarge);
    }
    Ok(Some(head(&line, fields, length)))
}

/// A first line that has not ended: is it the beginning of one?
fn begins_well(text: &[u8], length: usize, bounds: Bounds) -> Result<Option<Head<'static>>, Malformed> {
    let method = text.iter().take_while(|byte| is_token(**byte)).count();
    match text.get(method) {
        None | Some(b' ' | b'\r') => {}
        Some(_) => return Err(Malformed::RequestLine),
    }
    if length >= bounds.bytes { Err(Malformed::TooLarge) } else { Ok(None) }
}

struct Line<'a> {
    method: &'a str,
    target: &'a [u8],
    minor: u8,
}

/// `method SP target SP version`: the target is all between the first space and the last.
fn request_line(line: &[u8]) -> Result<Line<'_>, Malformed> {
    let bad = Malformed::RequestLine;
    let first = line.iter().position(|byte| *byte == b' ').ok_or(bad)?;
    let last = line.iter().rposition(|byte| *byte == b' ').filter(|last| *last > first).ok_or(bad)?;
    let (method, target, version) = (&line[..first], &line[first + 1..last], &line[last + 1..]);
    let minor = match version {
        b"HTTP/1.0" => 0,
        b"HTTP/1.1" => 1,
        other if other.starts_with(b"HTTP/") => return Err(Malformed::Version),
        _ => return Err(bad),
    };
    let is_method = !method.is_empty() && method.iter().copied().all(is_token);
    if !is_method || target.is_empty() || target.iter().any(u8::is_ascii_control) {
        return Err(bad);
    }
    let method = str::from_utf8(method).map_err(|_| bad)?;
    Ok(Line { method, target, minor })
}

/// RFC 9110 section 5.6.2.
const fn is_token(byte: u8) -> bool {
    byte.is_ascii_alphanumeric()
        || matches!(
            byte,
            b'!' | b'#'
                | b'$'
                | b'%'
                | b'&'
                | b'\''
                | b'*'
                | b'+'
                | b'-'
                | b'.'
                | b'^'
                | b'_'
                | b'`'
                | b'|'
                | b'~'
        )
}

fn head<'a>(line: &Line<'a>, fields: &[Header<'a>], length: usize) -> Head<'a> {
    let values = |name: &'static str| {
        fields.iter().filter(move |field| field.name.eq_ignore_ascii_case(name)).map(|field| field.value)
    };
    let closes = values("connection")
        .flat_map(|value| value.split(|byte| *byte == b','))
        .any(|option| option.trim_ascii().eq_ignore_ascii_case(b"close"));
    Head {
        method: line.method,
        target: line.target,
        hosts: values("host").collect(),
        // Of HTTP/1.0, nobody needs a second request here.
        keep_alive: line.minor == 1 && !closes,
        has_body: values("transfer-encoding").next().is_some()
            || values("content-length").any(|value| value != b"0"),
        length,
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const BOUNDS: Bounds = Bounds { bytes: 16 * 1024, fields: 64 };

    fn whole(text: &[u8]) -> Head<'_> {
        read(text, BOUNDS).unwrap().expect("a whole head")
    }

    #[test]
    fn what_the_policy_needs_is_read() {
        let text = b"POST /a?b HTTP/1.1\r\nHOST: h\r\nhost:  g \r\nContent-Length: 3\r\n\r\nabcGET /";
        let head = whole(text);
        assert_eq!((head.method, head.target), ("POST", &b"/a?b"[..]));
        assert_eq!(head.hosts, [&b"h"[..], b"g"]);
        assert_eq!((head.keep_alive, head.has_body), (true, true));
        assert_eq!(&text[head.length..], b"abcGET /");
        let without = whole(b"GET / HTTP/1.1\nHost: h\nContent-Length: 0\nConnection: x, Close\n\n");
        assert_eq!((without.keep_alive, without.has_body), (false, false));
        assert!(whole(b"GET / HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n").has_body);
        assert!(!whole(b"GET / HTTP/1.0\r\n\r\n").keep_alive);
        assert_eq!(whole(b"\r\n\r\nGET / HTTP/1.1\r\n\r\n").length, 22);
    }

    #[test]
    fn a_target_is_taken_with_whatever_bytes_browsers_send() {
        for target in [&b"/a?q=\"x\"<y>"[..], b"/`{|}^\\", b"/b\xfccher", b"/a b", b"*"] {
            let text = [b"GET ", target, b" HTTP/1.1\r\n\r\n"].concat();
            assert_eq!(whole(&text).target, target);
        }
    }

    #[test]
    fn what_is_no_request_is_refused_as_soon_as_that_is_seen() {
        for (text, why) in [
            (&b"\x16\x03\x01\x02\x00\x01"[..], Malformed::RequestLine),
            (b"GET(", Malformed::RequestLine),
            (b"GET /\r\n", Malformed::RequestLine),
            (b"GET  HTTP/1.1\r\n", Malformed::RequestLine),
            (b" / HTTP/1.1\r\n", Malformed::RequestLine),
            (b"GET /\x01 HTTP/1.1\r\n", Malformed::RequestLine),
            (b"GET /\rHost: h HTTP/1.1\r\n", Malformed::RequestLine),
            (b"GET / HTTP/1.1 \r\n", Malformed::RequestLine),
            (b"GET / http/1.1\r\n", Malformed::RequestLine),
            (b"PRI * HTTP/2.0\r\n", Malformed::Version),
            (b"GET / HTTP/1.1\r\nHost : h\r\n\r\n", Malformed::Field),
            (b"GET / HTTP/1.1\r\nHost: a\r\n b\r\n\r\n", Malformed::Field),
            (b"GET / HTTP/1.1\r\nHost: a\x00\r\n\r\n", Malformed::Field),
            (b"GET / HTTP/1.1\r\nHost\r\n\r\n", Malformed::Field),
        ] {
            assert_eq!(read(text, BOUNDS), Err(why), "{:?}", String::from_utf8_lossy(text));
        }
    }

    #[test]
    fn what_is_too_large_is_refused_whether_it_ends_or_not() {
        let bounds = Bounds { bytes: 100, fields: 2 };
        for text in [
            "G".repeat(100),
            format!("GET /{}", "a".repeat(100)),
            format!("GET / HTTP/1.1\r\nX: {}", "a".repeat(100)),
            format!("GET / HTTP/1.1\r\nX: {}\r\n\r\n", "a".repeat(100)),
            "GET / HTTP/1.1\r\nA: a\r\nB: b\r\nC: c\r\n\r\n".to_owned(),
        ] {
            assert_eq!(read(text.as_bytes(), bounds), Err(Malformed::TooLarge), "{text}");
        }
    }

    proptest! {
        #[test]
        fn a_head_in_pieces_is_incomplete_until_its_last_byte(
            target in "/[!-~]{0,20}", host in "[a-z.]{1,9}", cut in any::<prop::sample::Index>(),
        ) {
            let text = format!("GET {target} HTTP/1.1\r\nHost: {host}\r\n\r\n");
            let part = &text.as_bytes()[..cut.index(text.len())];
            prop_assert_eq!(read(part, BOUNDS), Ok(None));
            prop_assert_eq!(whole(text.as_bytes()).target, target.as_bytes());
        }

        #[test]
        fn arbitrary_bytes_are_answered_not_panicked_at(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
            if let Ok(Some(head)) = read(&bytes, BOUNDS) {
                prop_assert!(head.length <= bytes.len());
            }
        }
    }
}
