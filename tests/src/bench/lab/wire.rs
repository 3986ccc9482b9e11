//! One client's connection, plain or TLS, and HTTP on it.

use std::{
    io::{Read, Write},
    net::{IpAddr, SocketAddr, TcpStream},
    sync::Arc,
    time::Duration,
};

use anyhow::{Context as _, Result, bail, ensure};
use rustls::{ClientConfig, ClientConnection, StreamOwned, pki_types::ServerName};

use crate::lab::client;

/// A SYN that is lost comes again after one second and three; more is a failure.
const PATIENCE: Duration = Duration::from_secs(10);

/// An open connection.
pub(super) enum Wire {
    Plain(TcpStream),
    Tls(Box<StreamOwned<ClientConnection, TcpStream>>),
}

impl Wire {
    /// Connects; with a configuration, it speaks TLS. The handshake is done with the first exchange.
    ///
    /// # Errors
    /// Nobody accepts.
    pub(super) fn open(source: IpAddr, to: SocketAddr, tls: Option<&Arc<ClientConfig>>) -> Result<Self> {
        let stream = client::connect(source, to, PATIENCE)?;
        let Some(config) = tls else { return Ok(Self::Plain(stream)) };
        let name = ServerName::IpAddress(to.ip().into());
        let session = ClientConnection::new(Arc::clone(config), name)?;
        Ok(Self::Tls(Box::new(StreamOwned::new(session, stream))))
    }

    /// Asks for a path and reads all of the answer into the buffer, again and again; gives the bytes of its body.
    ///
    /// # Errors
    /// The connection broke, or the answer is no good.
    pub(super) fn get(&mut self, path: &str, buffer: &mut [u8]) -> Result<u64> {
        let request = format!("GET {path} HTTP/1.1\r\nHost: bench\r\n\r\n");
        match self {
            Self::Plain(stream) => exchange(stream, request.as_bytes(), buffer),
            Self::Tls(stream) => exchange(stream, request.as_bytes(), buffer),
        }
    }
}

fn exchange(stream: &mut (impl Read + Write), request: &[u8], buffer: &mut [u8]) -> Result<u64> {
    stream.write_all(request).context("cannot ask")?;
    let mut filled = 0;
    let (head, length) = loop {
        ensure!(filled < buffer.len(), "an answer with a head of more than {filled} bytes");
        filled += more(stream, &mut buffer[filled..])?;
        if let Some(found) = head(&buffer[..filled])? {
            break found;
        }
    };
    let mut body = (filled - head) as u64;
    while body < length {
        body += more(stream, buffer)? as u64;
    }
    ensure!(body == length, "{body} bytes came where {length} were announced");
    Ok(length)
}

fn more(stream: &mut impl Read, buffer: &mut [u8]) -> Result<usize> {
    match stream.read(buffer).context("no answer")? {
        0 => bail!("the connection was closed before the answer's end"),
        count => Ok(count),
    }
}

/// The length of an answer's head and of its body, once the head is whole.
fn head(answer: &[u8]) -> Result<Option<(usize, u64)>> {
    let Some(end) = answer.windows(4).position(|window| window == b"\r\n\r\n") else { return Ok(None) };
    let text = std::str::from_utf8(&answer[..end]).context("an answer whose head is no text")?;
    let mut lines = text.lines();
    let status = lines.next().unwrap_or_default();
    ensure!(status.starts_with("HTTP/1.1 200 "), "the answer was {status}");
    let length = lines.find_map(|line| {
        let (name, value) = line.split_once(':')?;
        name.eq_ignore_ascii_case("content-length").then(|| value.trim().parse().ok())?
    });
    Ok(Some((end + 4, length.context("an answer without a length")?)))
}

#[cfg(test)]
mod tests {
    use std::io::{self, Cursor};

    use super::*;

    /// Gives what it was made with, byte by byte.
    struct Slow(Cursor<Vec<u8>>);

    impl Read for Slow {
        fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
            self.0.read(&mut buffer[..1])
        }
    }

    impl Write for Slow {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            Ok(bytes.len())
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    fn answered(answer: &str) -> Result<u64> {
        exchange(&mut Slow(Cursor::new(answer.into())), b"GET", &mut [0; 64])
    }

    #[test]
    fn an_answer_ends_where_its_length_says() {
        let long = "x".repeat(1000);
        let whole = format!("HTTP/1.1 200 OK\r\nServer: a\r\ncontent-length: 1000\r\n\r\n{long}");
        assert_eq!(answered(&whole).expect("it is whole"), 1000);
        assert!(answered(&whole[..whole.len() - 1]).is_err(), "a byte is missing");
        assert!(answered("HTTP/1.1 502 Bad Gateway\r\nContent-Length: 0\r\n\r\n").is_err());
        assert!(answered("HTTP/1.1 200 OK\r\n\r\n").is_err(), "no length");
    }
}
