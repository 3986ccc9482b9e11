//! Rate-limited downloads that run all at once, each compared byte by byte with the file.

use std::{
    fs,
    io::{Read as _, Write as _},
    net::{IpAddr, SocketAddr, TcpStream},
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    thread::{self, JoinHandle},
    time::Duration,
};

use anyhow::{Context as _, Result, bail};

use crate::lab::{Lab, Ns, client};

/// Longer than TCP waits between two of its own attempts after a link was full for half a minute (RFC 6298 section 5.5).
const PATIENCE: Duration = Duration::from_secs(100);

/// Downloads on their way.
#[derive(Debug)]
pub struct Downloads {
    threads: Vec<JoinHandle<Result<()>>>,
    bytes: Arc<AtomicU64>,
    whole: u64,
}

impl Downloads {
    /// Each of the clients, by number, asks for `/slow`.
    ///
    /// # Errors
    /// One of them could not connect.
    pub fn start(lab: &Lab, clients: impl IntoIterator<Item = usize>, to: SocketAddr) -> Result<Self> {
        let file = Arc::new(fs::read(lab.places().dir.join("big"))?);
        let clients: Vec<IpAddr> = clients.into_iter().map(|n| lab.client_address(n)).collect();
        let connect = |client: &IpAddr| {
            let mut stream = client::connect(*client, to, PATIENCE)?;
            let request = format!("GET /slow HTTP/1.1\r\nHost: {to}\r\nConnection: close\r\n\r\n");
            stream.write_all(request.as_bytes())?;
            Ok((*client, stream))
        };
        let streams: Result<Vec<_>> = lab.in_ns(Ns::Client, || clients.iter().map(connect).collect())?;
        let bytes = Arc::new(AtomicU64::new(0));
        let whole = u64::try_from(file.len() * clients.len())?;
        let read = |(client, stream): (IpAddr, TcpStream)| {
            let (file, bytes) = (Arc::clone(&file), Arc::clone(&bytes));
            let download =
                move || compare(stream, &file, &bytes).with_context(|| format!("the download of {client}"));
            thread::Builder::new().stack_size(256 * 1024).spawn(download)
        };
        let threads: Result<Vec<_>, _> = streams?.into_iter().map(read).collect();
        Ok(Self { threads: threads?, bytes, whole })
    }

    /// How much has come, of how much.
    pub fn progress(&self) -> (u64, u64) {
        (self.bytes.load(Ordering::Relaxed), self.whole)
    }

    /// How many still run.
    pub fn running(&self) -> usize {
        self.threads.iter().filter(|thread| !thread.is_finished()).count()
    }

    /// Waits for all, and says what went wrong with which.
    pub fn finish(self) -> Vec<String> {
        self.threads
            .into_iter()
            .filter_map(|thread| match thread.join() {
                Ok(Ok(())) => None,
                Ok(Err(error)) => Some(format!("{error:#}")),
                Err(_) => Some("a download's thread panicked".to_owned()),
            })
            .collect()
    }
}

/// Reads an answer to its end: its body must be the file.
fn compare(mut stream: TcpStream, file: &[u8], bytes: &AtomicU64) -> Result<()> {
    let mut buffer = vec![0; 32 * 1024];
    let mut unread = Vec::new();
    let mut body = None;
    loop {
        let length = stream.read(&mut buffer)?;
        if length == 0 {
            break;
        }
        unread.extend(&buffer[..length]);
        if body.is_none()
            && let Some(head) = unread.windows(4).position(|window| window == b"\r\n\r\n")
        {
            unread.drain(..head + 4);
            body = Some(0);
        }
        if let Some(at) = body {
            if file.get(at..at + unread.len()) != Some(&unread[..]) {
                bail!("differs from the file between {at} and {}", at + unread.len());
            }
            bytes.fetch_add(u64::try_from(unread.len())?, Ordering::Relaxed);
            body = Some(at + unread.len());
            unread.clear();
        }
    }
    if body != Some(file.len()) {
        bail!("ended after {body:?} of {} bytes", file.len());
    }
    Ok(())
}
