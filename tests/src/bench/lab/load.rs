//! The load: a fixed number of connections, requests or bytes, and what they took.

use std::{
    net::{IpAddr, SocketAddr},
    sync::{
        Arc, Barrier,
        atomic::{AtomicUsize, Ordering},
    },
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, anyhow};
use rustls::ClientConfig;

use super::{cpu, wire::Wire};
use crate::{bench::figures::Rounds, lab::PLAIN_PORT};

/// Client addresses of one run. No other run of the same lab has them: nobody meets a port in TIME-WAIT.
pub(super) const ADDRESSES: usize = 64;
/// Clients at the same time.
const CLIENTS: usize = 16;
const DOWNLOADS: usize = 4;
/// Bytes of the file that is downloaded.
pub(super) const FILE: u64 = 16 << 20;

/// A kind of load.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Load {
    /// Requests on connections that stay open.
    Requests { tls: bool },
    /// Connections with one request each.
    Connections { tls: bool },
    /// One request after the other, by one client.
    OneAtATime,
    /// Downloads of a large file.
    Bulk,
}

impl Load {
    pub(super) const ALL: [Self; 6] = [
        Self::Requests { tls: false },
        Self::Requests { tls: true },
        Self::Connections { tls: false },
        Self::Connections { tls: true },
        Self::OneAtATime,
        Self::Bulk,
    ];

    pub(super) const fn name(self) -> &'static str {
        match self {
            Self::Requests { tls: false } => "keep-alive requests, plain",
            Self::Requests { tls: true } => "keep-alive requests, TLS",
            Self::Connections { tls: false } => "new connections with a request, TCP",
            Self::Connections { tls: true } => "new connections with a request, TLS",
            Self::OneAtATime => "one request at a time, plain",
            Self::Bulk => "downloads",
        }
    }

    /// How often it is done in a run: enough for half a second or so.
    const fn count(self) -> usize {
        match self {
            Self::Requests { tls: false } => 20_000,
            Self::Requests { tls: true } => 15_000,
            Self::Connections { tls: false } => 5_000,
            Self::Connections { tls: true } => 800,
            Self::OneAtATime => 4_000,
            Self::Bulk => 16,
        }
    }

    /// Of what its cost is told, in how many times it is done.
    pub(super) const fn unit(self) -> (&'static str, f64) {
        match self {
            Self::Requests { .. } | Self::OneAtATime => ("10,000 requests", 10_000.0),
            Self::Connections { .. } => ("10,000 connections", 10_000.0),
            Self::Bulk => ("GB", 1e9 / FILE as f64),
        }
    }

    /// In what its speed is told, and how much of it doing it once is.
    pub(super) const fn speed(self) -> (&'static str, f64) {
        match self {
            Self::Requests { .. } | Self::OneAtATime => ("requests/s", 1.0),
            Self::Connections { .. } => ("connections/s", 1.0),
            Self::Bulk => ("MB/s", FILE as f64 / 1e6),
        }
    }

    /// Whether it is worth while to see it in every mode of NAPI.
    pub(super) const fn depends_on_napi(self) -> bool {
        matches!(self, Self::Requests { tls: false } | Self::Connections { tls: false })
    }

    /// Whether clients, balancer and servers are never at work at the same time.
    pub(super) const fn takes_turns(self) -> bool {
        matches!(self, Self::OneAtATime)
    }

    const fn tls(self) -> bool {
        matches!(self, Self::Requests { tls: true } | Self::Connections { tls: true })
    }

    const fn path(self) -> &'static str {
        if matches!(self, Self::Bulk) { "/big" } else { "/" }
    }

    const fn clients(self) -> usize {
        match self {
            Self::OneAtATime => 1,
            Self::Bulk => DOWNLOADS,
            _ => CLIENTS,
        }
    }
}

/// Where one run's clients come from, and where they go.
pub(super) struct Way<'a> {
    /// Up to [`ADDRESSES`].
    pub(super) sources: &'a [IpAddr],
    /// The service, or the servers themselves.
    pub(super) to: &'a [IpAddr],
    pub(super) tls: &'a Arc<ClientConfig>,
}

impl Way<'_> {
    fn open(&self, load: Load, number: usize) -> Result<Wire> {
        let (port, tls) = if load.tls() { (443, Some(self.tls)) } else { (PLAIN_PORT, None) };
        // A client always goes to the same server, as it does through a balancer.
        let client = number % self.sources.len();
        let to = self.to[client % self.to.len()];
        Wire::open(self.sources[client], SocketAddr::new(to, port), tls)
    }
}

/// What a run gave.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Run {
    /// Times a second.
    pub(super) rate: f64,
    /// Seconds of all processors each time.
    pub(super) cpu: f64,
    /// Seconds from request to answer, in the middle.
    pub(super) latency: f64,
}

/// Runs it, `percent` hundredths of its usual count; on a thread in the clients' namespace.
///
/// # Errors
/// One client was not served.
pub(super) fn run(load: Load, percent: usize, way: &Way<'_>) -> Result<Run> {
    let count = (load.count() * percent / 100).max(load.clients());
    let next = AtomicUsize::new(0);
    let (ready, go) = (Barrier::new(load.clients() + 1), Barrier::new(load.clients() + 1));
    thread::scope(|scope| {
        let clients: Vec<_> = (0..load.clients())
            .map(|client| {
                let (next, start) = (&next, [&ready, &go]);
                scope.spawn(move || be_a_client(load, client, way, start, || take(next, count)))
            })
            .collect();
        ready.wait();
        // Noted while they wait: who releases them may be the last to run.
        let (start, before) = (Instant::now(), cpu::busy());
        go.wait();
        let before = before?;
        let mut times = Vec::with_capacity(count);
        for client in clients {
            times.extend(client.join().map_err(|_| anyhow!("a client panicked"))??);
        }
        let (took, work) = (start.elapsed().as_secs_f64(), cpu::busy()? - before);
        let latency = Rounds(times.iter().map(Duration::as_secs_f64).collect()).median();
        Ok(Run { rate: count as f64 / took, cpu: work / count as f64, latency })
    })
}

/// The number of the next thing to do, as long as there is one.
fn take(next: &AtomicUsize, count: usize) -> Option<usize> {
    let number = next.fetch_add(1, Ordering::Relaxed);
    (number < count).then_some(number)
}

/// Does what there is to do, and says how long each took.
fn be_a_client(
    load: Load,
    client: usize,
    way: &Way<'_>,
    start: [&Barrier; 2],
    take: impl Fn() -> Option<usize>,
) -> Result<Vec<Duration>> {
    let mut buffer = vec![0; 256 * 1024];
    let stays_open = !matches!(load, Load::Connections { .. });
    // Where connections stay open, one answer has come on each before the clock starts.
    let mut kept = stays_open.then(|| {
        let mut wire = way.open(load, client)?;
        wire.get("/", &mut buffer)?;
        anyhow::Ok(wire)
    });
    // Also with a failure: the others wait.
    for barrier in start {
        barrier.wait();
    }
    let mut times = Vec::new();
    while let Some(number) = take() {
        let start = Instant::now();
        match &mut kept {
            Some(Ok(wire)) => wire.get(load.path(), &mut buffer)?,
            Some(Err(_)) => break,
            None => way.open(load, number)?.get(load.path(), &mut buffer)?,
        };
        times.push(start.elapsed());
    }
    match kept {
        Some(Err(error)) => Err(error).context("a client's first request"),
        _ => Ok(times),
    }
}

#[cfg(test)]
mod tests {
    use std::{
        io::{BufRead as _, BufReader, Write as _},
        net::{Ipv4Addr, TcpListener},
    };

    use super::*;

    /// Answers so many requests on each of its connections.
    fn serve(listener: &TcpListener, requests: usize) {
        for stream in listener.incoming().map_while(Result::ok) {
            thread::spawn(move || {
                let mut lines = BufReader::new(&stream).lines();
                let mut served = 0;
                while served < requests
                    && let Some(Ok(line)) = lines.next()
                {
                    if line.is_empty() {
                        served += 1;
                        (&stream).write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok").expect("sent");
                    }
                }
            });
        }
    }

    #[test]
    fn a_run_ends_with_every_answer_or_with_an_error() {
        let home = IpAddr::V4(Ipv4Addr::new(127, 0, 85, 1));
        let listener = TcpListener::bind((home, PLAIN_PORT)).expect("nobody else is at that address");
        thread::spawn(move || serve(&listener, 30));
        let tls = lb_userspace::health::client_config(&[]).expect("there is TLS");
        let way = Way { sources: &[IpAddr::V4(Ipv4Addr::LOCALHOST)], to: &[home], tls: &tls };
        let run = |percent| run(Load::Connections { tls: false }, percent, &way);
        let done = run(1).expect("each connection has one request");
        assert!(done.rate > 0.0 && done.latency > 0.0);
        let cut = super::run(Load::Requests { tls: false }, 100, &way);
        assert!(cut.is_err(), "16 connections end after 30 requests each, of 20,000");
    }
}
