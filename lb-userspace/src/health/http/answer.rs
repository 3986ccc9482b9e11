//! An HTTP/1 answer, read as it comes: bytes in, status and body out. No socket, no clock.
//!
//! It is read by somebody who wants to know whether a server lives, not by somebody who forwards it. So only what makes it
//! impossible to find the status or the body is wrong: field lines that are none, folded ones, names with spaces before
//! the colon, more fields than anybody needs, lengths that are no numbers are read past.

use thiserror::Error;

/// Why bytes are no answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
pub(super) enum Wrong {
    /// They do not begin as an HTTP/1 answer does.
    #[error("the answer is not HTTP")]
    NotHttp,
    /// More head than is read.
    #[error("the answer's header fields are too large")]
    TooLarge,
    /// They end too early.
    #[error("the server closed the connection before the answer was complete")]
    CutOff,
    /// A chunk without a length: where the body goes on is not known.
    #[error("the answer's body is not in chunks, as it says")]
    BadChunk,
}

/// What was read of an answer.
#[derive(Debug)]
pub(super) struct Answer {
    part: Part,
    /// The line that has not ended yet.
    line: Vec<u8>,
    /// Bytes of heads so far, of interim answers too.
    head_bytes: usize,
    most: usize,
    /// The final answer's status, once its head is complete.
    status: Option<u16>,
    body: Vec<u8>,
}

/// Where reading is.
#[derive(Debug, Clone, Copy)]
enum Part {
    StatusLine,
    Fields(Head),
    Body(Framing),
    Ended,
}

/// What was read of a head.
#[derive(Debug, Clone, Copy)]
struct Head {
    status: u16,
    framing: Framing,
}

/// How a body ends (RFC 9112 section 6.3), and how far it has come.
#[derive(Debug, Clone, Copy)]
enum Framing {
    /// With the connection.
    Close,
    /// After so many more bytes.
    Length(u64),
    /// A line with a chunk's length is next.
    ChunkLine,
    /// So many more bytes of a chunk.
    Chunk(u64),
    /// The line end behind a chunk is next.
    ChunkEnd,
}

impl Answer {
    /// Nothing yet. So much of heads, and of the body, is read at most.
    pub(super) fn new(most: usize) -> Self {
        Self { part: Part::StatusLine, line: Vec::new(), head_bytes: 0, most, status: None, body: Vec::new() }
    }

    /// The status, once the head is complete.
    pub(super) fn status(&self) -> Option<u16> {
        self.status
    }

    /// The body so far, without its framing.
    pub(super) fn body(&self) -> &[u8] {
        &self.body
    }

    /// Whether `text` is in the body so far.
    pub(super) fn contains(&self, text: &[u8]) -> bool {
        text.is_empty() || self.body.windows(text.len()).any(|window| window == text)
    }

    /// Whether no more of the body comes.
    pub(super) fn has_ended(&self) -> bool {
        matches!(self.part, Part::Ended)
    }

    /// Reads on.
    pub(super) fn feed(&mut self, mut bytes: &[u8]) -> Result<(), Wrong> {
        while !bytes.is_empty() {
            let used = match self.part {
                Part::Ended => return Ok(()),
                Part::Body(Framing::Close) => self.take(bytes, u64::MAX),
                Part::Body(Framing::Length(left)) => {
                    let used = self.take(bytes, left);
                    let left = left.saturating_sub(used as u64);
                    self.part = if left == 0 { Part::Ended } else { Part::Body(Framing::Length(left)) };
                    used
                }
                Part::Body(Framing::Chunk(left)) => {
                    let used = self.take(bytes, left);
                    let left = left.saturating_sub(used as u64);
                    self.part = Part::Body(if left == 0 { Framing::ChunkEnd } else { Framing::Chunk(left) });
                    used
                }
                _ => self.read_line(bytes)?,
            };
            bytes = &bytes[used..];
        }
        Ok(())
    }

    /// The connection has ended.
    pub(super) fn end(&mut self) -> Result<(), Wrong> {
        match self.part {
            Part::Body(Framing::Close) | Part::Ended => {
                self.part = Part::Ended;
                Ok(())
            }
            _ => Err(Wrong::CutOff),
        }
    }

    /// Takes at most `left` of these bytes as body, and keeps what there is room for.
    fn take(&mut self, bytes: &[u8], left: u64) -> usize {
        let used = bytes.len().min(usize::try_from(left).unwrap_or(usize::MAX));
        let kept = used.min(self.most - self.body.len());
        self.body.extend_from_slice(&bytes[..kept]);
        used
    }

    /// Reads up to the end of a line.
    fn read_line(&mut self, bytes: &[u8]) -> Result<usize, Wrong> {
        let end = bytes.iter().position(|byte| *byte == b'\n');
        let used = end.map_or(bytes.len(), |end| end + 1);
        self.line.extend_from_slice(&bytes[..used]);
        if self.status.is_none() {
            self.head_bytes += used;
            // First: what is not HTTP is said so, however long it is.
            if matches!(self.part, Part::StatusLine) && !begins_as_status_line(&self.line) {
                return Err(Wrong::NotHttp);
            }
        }
        if self.head_bytes > self.most || self.line.len() > self.most {
            return Err(Wrong::TooLarge);
        }
        if end.is_some() {
            let line = std::mem::take(&mut self.line);
            self.line_read(line.trim_ascii_end())?;
        }
        Ok(used)
    }

    fn line_read(&mut self, line: &[u8]) -> Result<(), Wrong> {
        self.part = match self.part {
            Part::StatusLine if line.is_empty() => Part::StatusLine,
            Part::StatusLine => {
                let status = status_of(line).ok_or(Wrong::NotHttp)?;
                Part::Fields(Head { status, framing: Framing::Close })
            }
            Part::Fields(head) if line.is_empty() => self.head_read(head),
            Part::Fields(head) => Part::Fields(Head { framing: framing(head.framing, line), ..head }),
            Part::Body(Framing::ChunkEnd) => Part::Body(Framing::ChunkLine),
            Part::Body(_) => match chunk_length(line).ok_or(Wrong::BadChunk)? {
                0 => Part::Ended,
                length => Part::Body(Framing::Chunk(length)),
            },
            Part::Ended => Part::Ended,
        };
        Ok(())
    }

    /// A head is complete: an interim answer's (RFC 9110 section 15.2), or the final one's.
    fn head_read(&mut self, head: Head) -> Part {
        if matches!(head.status, 100 | 102..=199) {
            return Part::StatusLine;
        }
        self.status = Some(head.status);
        match (head.status, head.framing) {
            (101 | 204 | 304, _) | (_, Framing::Length(0)) => Part::Ended,
            (_, framing) => Part::Body(framing),
        }
    }
}

/// Whether this can become a status line of HTTP/1; a line end too many before it does no harm.
fn begins_as_status_line(line: &[u8]) -> bool {
    const START: &[u8] = b"HTTP/1.";
    let seen = line.len().min(START.len());
    line[..seen] == START[..seen] || line.trim_ascii().is_empty()
}

/// `HTTP/1.x SP status [SP reason]`.
fn status_of(line: &[u8]) -> Option<u16> {
    let rest = line.strip_prefix(b"HTTP/1.")?;
    let (minor, rest) = rest.split_first()?;
    let rest = rest.strip_prefix(b" ")?.trim_ascii_start();
    let digits = rest.iter().take_while(|byte| byte.is_ascii_digit()).count();
    let is_status = minor.is_ascii_digit() && digits == 3 && matches!(rest.get(3), None | Some(b' ' | b'\t'));
    if !is_status {
        return None;
    }
    str::from_utf8(&rest[..3]).ok()?.parse().ok().filter(|status| *status >= 100)
}

/// What a field line says about the body's end, if anything. Chunks go before a length (RFC 9112 section 6.3).
fn framing(before: Framing, line: &[u8]) -> Framing {
    let Some(colon) = line.iter().position(|byte| *byte == b':') else { return before };
    let (name, value) = (line[..colon].trim_ascii_end(), line[colon + 1..].trim_ascii());
    if name.eq_ignore_ascii_case(b"transfer-encoding") {
        let last = value.rsplit(|byte| *byte == b',').next().unwrap_or_default();
        return if last.trim_ascii().eq_ignore_ascii_case(b"chunked") { Framing::ChunkLine } else { before };
    }
    let length = || str::from_utf8(value).ok()?.parse().ok();
    match before {
        Framing::Close if name.eq_ignore_ascii_case(b"content-length") => {
            length().map_or(before, Framing::Length)
        }
        _ => before,
    }
}

/// `length [;extension]`, in hexadecimal.
fn chunk_length(line: &[u8]) -> Option<u64> {
    let digits = line.split(|byte| *byte == b';').next()?.trim_ascii();
    u64::from_str_radix(str::from_utf8(digits).ok()?, 16).ok()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const MOST: usize = 64 * 1024;

    /// Status and body of an answer that ends with its connection.
    fn read(text: &[u8]) -> Result<(u16, String), Wrong> {
        let mut answer = Answer::new(MOST);
        answer.feed(text)?;
        answer.end()?;
        Ok((answer.status().expect("a status"), String::from_utf8_lossy(answer.body()).into_owned()))
    }

    #[test]
    fn status_and_body_are_found_whatever_the_fields_are_like() {
        let many = format!("HTTP/1.1 200 OK\r\n{}\r\nok", "X-Field: y\r\n".repeat(500));
        for (text, status, body) in [
            ("HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok", 200, "ok"),
            ("HTTP/1.1 200 OK\r\nServer : X\r\n\r\nok", 200, "ok"),
            ("HTTP/1.1 200 OK\r\nContent-Length : 2\r\n\r\nok", 200, "ok"),
            ("HTTP/1.1 200 OK\r\nX-Folded: a\r\n b\r\n\tc\r\n\r\nok", 200, "ok"),
            ("HTTP/1.1 200 OK\r\nno colon at all\r\n\r\nok", 200, "ok"),
            ("HTTP/1.1 200 OK\r\n: no name\r\nX\x01: \x02\r\n\r\nok", 200, "ok"),
            ("HTTP/1.1 200 OK\r\nContent-Length: two\r\n\r\nok", 200, "ok"),
            ("HTTP/1.1 200 OK\r\nContent-Length: 2\r\nContent-Length: 3\r\n\r\nok", 200, "ok"),
            ("HTTP/1.0 200 OK\r\n\r\nok", 200, "ok"),
            ("HTTP/1.1 200\r\n\r\nok", 200, "ok"),
            ("HTTP/1.1 200 \r\n\r\nok", 200, "ok"),
            ("HTTP/1.1 503 Gr\u{fc}n\r\n\r\n", 503, ""),
            ("HTTP/1.1 200 OK\nContent-Length: 2\n\nok", 200, "ok"),
            ("\r\nHTTP/1.1 200 OK\r\n\r\nok", 200, "ok"),
            ("HTTP/1.1 204 No Content\r\nContent-Length: 9\r\n\r\n", 204, ""),
            ("HTTP/1.1 304 Not Modified\r\nTransfer-Encoding: chunked\r\n\r\n", 304, ""),
            (
                "HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 103 Early Hints\r\nLink: x\r\n\r\nHTTP/1.1 200 OK\r\n\r\nok",
                200,
                "ok",
            ),
            ("HTTP/1.1 101 Switching Protocols\r\n\r\n", 101, ""),
            (
                "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n1\r\no\r\n1;a=b\r\nk\r\n0\r\n\r\n",
                200,
                "ok",
            ),
            (
                "HTTP/1.1 200 OK\r\nContent-Length: 9\r\nTransfer-Encoding: gzip, Chunked\r\n\r\n2 \r\nok\r\n0\r\n\r\n",
                200,
                "ok",
            ),
            (&many, 200, "ok"),
        ] {
            assert_eq!(read(text.as_bytes()), Ok((status, body.to_owned())), "{text:?}");
        }
        assert_eq!(read(b"HTTP/1.1 200 \xff\xfe\r\nX: \xff\r\n\r\n"), Ok((200, String::new())));
    }

    #[test]
    fn what_has_no_status_or_no_end_is_wrong() {
        let fields = format!("HTTP/1.1 200 OK\r\nX: {}\r\n\r\n", "x".repeat(MOST));
        let interim = "HTTP/1.1 103 Early Hints\r\n\r\n".repeat(MOST / 20);
        for (text, why) in [
            ("", Wrong::CutOff),
            ("HTTP/1.1 200", Wrong::CutOff),
            ("HTTP/1.1 200 OK\r\n", Wrong::CutOff),
            ("HTTP/1.1 200 OK\r\nX: y\r\n", Wrong::CutOff),
            ("HTTP/1.1 100 Continue\r\n\r\n", Wrong::CutOff),
            ("HTTP/1.1 200 OK\r\nContent-Length: 3\r\n\r\nok", Wrong::CutOff),
            ("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nok\r\n", Wrong::CutOff),
            ("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nok\r\n", Wrong::BadChunk),
            ("SSH-2.0-OpenSSH_9.2\r\n", Wrong::NotHttp),
            ("HTTP/2 200\r\n", Wrong::NotHttp),
            ("HTTP/1.1 2000\r\n", Wrong::NotHttp),
            ("HTTP/1.1 099\r\n", Wrong::NotHttp),
            ("HTTP/1.1 OK\r\n", Wrong::NotHttp),
            ("\x15\x03\x01\x00\x02\x02\x46", Wrong::NotHttp),
            (&fields, Wrong::TooLarge),
            (&interim, Wrong::TooLarge),
        ] {
            assert_eq!(read(text.as_bytes()), Err(why), "{:?}", &text[..text.len().min(80)]);
        }
    }

    proptest! {
        #[test]
        fn in_pieces_it_reads_the_same(cuts in prop::collection::vec(1usize..9, 0..60), which in 0usize..3) {
            let text = [
                "HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n4\r\nserv\r\n3\r\nice\r\n0\r\n\r\n",
                "HTTP/1.0 200\r\nX : y\r\n z\r\n\r\nservice",
                "HTTP/1.1 200 OK\nContent-Length: 7\n\nservice and more",
            ][which].as_bytes();
            let mut answer = Answer::new(MOST);
            let mut at = 0;
            for cut in cuts {
                let end = (at + cut).min(text.len());
                answer.feed(&text[at..end]).unwrap();
                at = end;
            }
            answer.feed(&text[at..]).unwrap();
            answer.end().unwrap();
            prop_assert_eq!((answer.status(), answer.body()), (Some(200), &b"service"[..]));
        }

        #[test]
        fn arbitrary_bytes_are_read_without_a_panic(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
            let _ = read(&bytes);
            let _ = read(&[&b"HTTP/1.1 200 OK\r\n"[..], &bytes].concat());
            let _ = read(&[&b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"[..], &bytes].concat());
        }
    }
}
