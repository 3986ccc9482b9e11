//! Downloads that run all at once, at their clients' pace until they are to come to an end, each compared byte by byte
//! with the file.

use std::{
    fs,
    io::{Read as _, Write as _},
    net::{IpAddr, SocketAddr, TcpStream},
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    thread::{self, JoinHandle},
    time::Duration,
};

use anyhow::{Context as _, Result, bail};
use socket2::SockRef;

use crate::lab::{Lab, Ns, client};

/// Only a connection that is broken is silent for so long: TCP waits no more than two minutes between two of its own
/// attempts, however many were lost (`TCP_RTO_MAX` of Linux; RFC 6298 section 5.5 wants a minute at least).
const PATIENCE: Duration = Duration::from_secs(300);
/// A client reads so much at most, and then not for so long: 64 KiB a second at most.
const STEP: usize = 16 * 1024;
const PAUSE: Duration = Duration::from_millis(250);
/// A client takes no more than this part of what is left in one step, so that no download ends by itself: of 2 MiB the
/// server has something to send for seven minutes.
const PART: usize = 512;
/// The client's buffer for what it has not read, of which Linux makes twice as much.
const WAITING: usize = 32 * 1024;

/// Downloads on their way.
#[derive(Debug)]
pub struct Downloads {
    threads: Vec<JoinHandle<Result<()>>>,
    shared: Arc<Shared>,
    whole: u64,
}

#[derive(Debug, Default)]
struct Shared {
    /// Whether the downloads are to come to an end.
    hurry: AtomicBool,
    bytes: AtomicU64,
}

impl Downloads {
    /// Each of the clients, by number, asks for `/big`.
    ///
    /// # Errors
    /// One of them could not connect.
    pub fn start(lab: &Lab, clients: impl IntoIterator<Item = usize>, to: SocketAddr) -> Result<Self> {
        let file = Arc::new(fs::read(lab.places().dir.join("big"))?);
        let clients: Vec<IpAddr> = clients.into_iter().map(|n| lab.client_address(n)).collect();
        let connect = |client: &IpAddr| {
            let mut stream = client::connect(*client, to, PATIENCE)?;
            SockRef::from(&stream).set_recv_buffer_size(WAITING)?;
            let request = format!("GET /big HTTP/1.1\r\nHost: {to}\r\nConnection: close\r\n\r\n");
            stream.write_all(request.as_bytes())?;
            Ok((*client, stream))
        };
        let streams: Result<Vec<_>> = lab.in_ns(Ns::Client, || clients.iter().map(connect).collect())?;
        let shared = Arc::new(Shared::default());
        let whole = u64::try_from(file.len() * clients.len())?;
        let read = |(client, stream): (IpAddr, TcpStream)| {
            let (file, shared) = (Arc::clone(&file), Arc::clone(&shared));
            let download =
                move || compare(stream, &file, &shared).with_context(|| format!("the download of {client}"));
            thread::Builder::new().stack_size(256 * 1024).spawn(download)
        };
        let threads: Result<Vec<_>, _> = streams?.into_iter().map(read).collect();
        Ok(Self { threads: threads?, shared, whole })
    }

    /// How much has come, of how much.
    pub fn progress(&self) -> (u64, u64) {
        (self.shared.bytes.load(Ordering::Relaxed), self.whole)
    }

    /// How many still run: all that are not broken, until [`Downloads::finish`].
    pub fn running(&self) -> usize {
        self.threads.iter().filter(|thread| !thread.is_finished()).count()
    }

    /// Whether servers still have something to send: more is to come than clients' buffers hold.
    pub fn are_on_their_way(&self) -> bool {
        let (come, whole) = self.progress();
        let buffers = self.threads.len() * 2 * WAITING;
        u64::try_from(buffers).is_ok_and(|buffers| whole.saturating_sub(come) > buffers)
    }

    /// Has all come to their end as fast as they can, waits for it, and says what went wrong with which.
    pub fn finish(mut self) -> Vec<String> {
        self.shared.hurry.store(true, Ordering::Relaxed);
        self.threads
            .drain(..)
            .filter_map(|thread| match thread.join() {
                Ok(Ok(())) => None,
                Ok(Err(error)) => Some(format!("{error:#}")),
                Err(_) => Some("a download's thread panicked".to_owned()),
            })
            .collect()
    }
}

impl Drop for Downloads {
    fn drop(&mut self) {
        self.shared.hurry.store(true, Ordering::Relaxed);
    }
}

/// Reads an answer to its end: its body must be the file.
fn compare(mut stream: TcpStream, file: &[u8], shared: &Shared) -> Result<()> {
    let mut buffer = vec![0; STEP];
    let mut unread = Vec::new();
    let mut body = None;
    loop {
        let hurry = shared.hurry.load(Ordering::Relaxed);
        let left = file.len() - body.unwrap_or(0);
        let step = if hurry { STEP } else { STEP.min(left / PART) };
        if !hurry {
            thread::sleep(PAUSE);
        }
        if step == 0 {
            continue;
        }
        let length = stream.read(&mut buffer[..step])?;
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
            shared.bytes.fetch_add(u64::try_from(unread.len())?, Ordering::Relaxed);
            body = Some(at + unread.len());
            unread.clear();
        }
    }
    if body != Some(file.len()) {
        bail!("ended after {body:?} of {} bytes", file.len());
    }
    Ok(())
}
