//! One connection of one client, kept open, with plain HTTP on it.

use std::{
    io::{self, ErrorKind, Read as _, Write as _},
    net::{IpAddr, SocketAddr, TcpStream},
    time::Duration,
};

use anyhow::{Context as _, Result, bail};

use crate::lab::client;

/// A connection that stays open between requests.
#[derive(Debug)]
pub struct Connection {
    /// Whose.
    pub client: IpAddr,
    to: SocketAddr,
    stream: TcpStream,
    unread: Vec<u8>,
}

/// How a silent connection ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum End {
    /// By a RST.
    Reset,
    /// By a FIN.
    Closed,
    /// It did not end in time.
    Open,
}

impl Connection {
    /// Connects; answers have to come `within`. It runs in the namespace of its thread.
    ///
    /// # Errors
    /// The connection was not made in time.
    pub fn open(client: IpAddr, to: SocketAddr, within: Duration) -> Result<Self> {
        let stream = client::connect(client, to, within)?;
        Ok(Self { client, to, stream, unread: Vec::new() })
    }

    /// How long an answer may take from now on.
    ///
    /// # Errors
    /// The socket is broken.
    pub fn set_patience(&self, within: Duration) -> Result<()> {
        self.stream.set_read_timeout(Some(within))?;
        Ok(self.stream.set_write_timeout(Some(within))?)
    }

    /// The local port.
    ///
    /// # Errors
    /// The socket is broken.
    pub fn local_port(&self) -> Result<u16> {
        Ok(self.stream.local_addr()?.port())
    }

    /// The body that the path has, on this connection.
    ///
    /// # Errors
    /// The connection broke, or the status is not 200.
    pub fn get(&mut self, path: &str) -> Result<Vec<u8>> {
        let (client, to) = (self.client, self.to);
        self.exchange(path).with_context(|| format!("{client} on its open connection to {to}"))
    }

    /// The label of the server that answers.
    ///
    /// # Errors
    /// Those of [`Connection::get`].
    pub fn who(&mut self) -> Result<String> {
        Ok(String::from_utf8_lossy(&self.get("/")?).trim_end().to_owned())
    }

    fn exchange(&mut self, path: &str) -> Result<Vec<u8>> {
        let request = format!("GET {path} HTTP/1.1\r\nHost: {}\r\n\r\n", self.to);
        self.stream.write_all(request.as_bytes())?;
        let head = loop {
            if let Some(end) = self.unread.windows(4).position(|window| window == b"\r\n\r\n") {
                break end + 4;
            }
            self.read_more()?;
        };
        let text = String::from_utf8_lossy(&self.unread[..head]).into_owned();
        let length: usize = text
            .lines()
            .find_map(|line| line.strip_prefix("Content-Length: "))
            .context("the answer has no length")?
            .trim()
            .parse()?;
        if !text.starts_with("HTTP/1.1 200 ") {
            bail!("the answer is {}", text.lines().next().unwrap_or_default());
        }
        while self.unread.len() < head + length {
            self.read_more()?;
        }
        let rest = self.unread.split_off(head + length);
        let answer = std::mem::replace(&mut self.unread, rest);
        Ok(answer[head..].to_vec())
    }

    fn read_more(&mut self) -> Result<()> {
        let mut buffer = [0; 16_384];
        match self.stream.read(&mut buffer)? {
            0 => bail!("it was closed by the server"),
            length => {
                self.unread.extend(&buffer[..length]);
                Ok(())
            }
        }
    }

    /// Sends nothing and waits for the end.
    ///
    /// # Errors
    /// Another failure of the socket than a reset.
    pub fn wait_for_end(&mut self, within: Duration) -> Result<End> {
        self.stream.set_read_timeout(Some(within.max(Duration::from_millis(1))))?;
        let mut buffer = [0; 512];
        match self.stream.read(&mut buffer) {
            Ok(0) => Ok(End::Closed),
            Ok(length) => bail!("{length} bytes came on a connection that was silent"),
            Err(error) => match error.kind() {
                ErrorKind::ConnectionReset => Ok(End::Reset),
                ErrorKind::WouldBlock | ErrorKind::TimedOut => Ok(End::Open),
                _ => Err(error.into()),
            },
        }
    }
}

/// What comes back for raw bytes on a fresh connection, until the server closes it.
///
/// # Errors
/// The connection was not made, or did not end in time.
pub fn raw(client: IpAddr, to: SocketAddr, request: &[u8], within: Duration) -> Result<String> {
    let mut stream = client::connect(client, to, within)?;
    stream.write_all(request)?;
    let mut answer = Vec::new();
    match stream.read_to_end(&mut answer) {
        // A server that refuses a request need not read all of it: then its close is a reset, after its answer.
        Err(error) if error.kind() == ErrorKind::ConnectionReset && !answer.is_empty() => {}
        Err(error) if is_late(&error) && complete(&answer) => {}
        read => {
            read.with_context(|| format!("{to} did not end its answer to {client}"))?;
        }
    }
    Ok(String::from_utf8_lossy(&answer).into_owned())
}

fn is_late(error: &io::Error) -> bool {
    matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut)
}

/// Whether it holds a head at least: a server may keep the connection open after its answer.
fn complete(answer: &[u8]) -> bool {
    answer.windows(4).any(|window| window == b"\r\n\r\n")
}
