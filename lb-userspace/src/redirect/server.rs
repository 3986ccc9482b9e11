//! The HTTP/1 server around the redirect policy.
//!
//! It faces every client, hostile ones included, so each thing a client may hold has a bound:
//! bytes and number of header fields, time to send them, time of a whole connection, and
//! connections at once, its own and all together. Request bodies are never read.

use std::future::Future;
use std::io;
use std::net::IpAddr;
use std::num::NonZeroU16;
use std::pin::pin;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use jiff::Timestamp;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, oneshot, watch};
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep, timeout, timeout_at};

use super::policy::{self, Decision};
use super::request::{self, Bounds, Head, Malformed};
use super::seats::{Client, Seats};

/// How long accepting pauses when the system has no descriptor or memory left.
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);
/// How often that is said.
const WARN_EVERY: Duration = Duration::from_secs(60);
/// Most bytes read and thrown away after an answer, so that closing does not cut the answer off.
const LINGER_BYTES: usize = 64 * 1024;

/// What a client may cost.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    /// What a request's head may be like.
    pub head: Bounds,
    /// From the connection's start, or the last answer, to the end of a request's head. This also
    /// bounds an idle kept-alive connection.
    pub head_timeout: Duration,
    /// Longest life of a connection, whatever it does.
    pub connection_lifetime: Duration,
    /// After an answer that ends the connection: how long the client's own end is waited for.
    pub linger: Duration,
    /// After shutdown was asked for: how long running requests may take.
    pub drain: Duration,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            head: Bounds { bytes: 16 * 1024, fields: 64 },
            head_timeout: Duration::from_secs(10),
            connection_lifetime: Duration::from_secs(60),
            linger: Duration::from_secs(1),
            drain: Duration::from_secs(3),
        }
    }
}

/// Who may be connected, over all redirect services together.
#[derive(Debug)]
pub struct Admission {
    seats: Mutex<Seats<oneshot::Sender<()>>>,
    /// As many as there are seats: one that gives way keeps its descriptor until its task has ended.
    open: Arc<Semaphore>,
}

impl Admission {
    /// So many connections in all, and so many of one [client](Client).
    #[must_use]
    pub fn new(all: usize, of_one_client: usize) -> Arc<Self> {
        let open = Arc::new(Semaphore::new(all.max(1)));
        Arc::new(Self { seats: Mutex::new(Seats::new(all, of_one_client)), open })
    }

    /// A place for a client that has connected, once there is one: the longest idle connection gives way for it.
    async fn admit(&self, client: IpAddr, stats: &RedirectStats) -> Option<Place> {
        let (end, ended) = oneshot::channel();
        let (seat, gives_way) = self.with(|seats| seats.admit(Client::from(client), end));
        if let Some(gives_way) = gives_way {
            add(&stats.gave_way);
            // It may be gone by itself.
            let _ = gives_way.send(());
        }
        let permit = Arc::clone(&self.open).acquire_owned().await.ok()?;
        Some(Place { seat, ended, _permit: permit })
    }

    /// Each seat is whole between changes, so a lock poisoned by a panic elsewhere is still good.
    fn with<T>(&self, change: impl FnOnce(&mut Seats<oneshot::Sender<()>>) -> T) -> T {
        change(&mut self.seats.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

/// What a connection holds while it is open.
struct Place {
    seat: u64,
    /// Completes when it has to give way.
    ended: oneshot::Receiver<()>,
    _permit: OwnedSemaphorePermit,
}

/// How the redirect answers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RedirectOptions {
    /// Where the redirect leads.
    pub https_port: NonZeroU16,
    /// What a client may cost.
    pub limits: Limits,
}

impl Default for RedirectOptions {
    fn default() -> Self {
        Self { https_port: NonZeroU16::MIN.saturating_add(442), limits: Limits::default() }
    }
}

/// Counters of one redirect service since its start; read them with [`RedirectStats::counts`].
#[derive(Debug, Default)]
pub struct RedirectStats {
    connections: AtomicU64,
    gave_way: AtomicU64,
    requests: AtomicU64,
    redirected: AtomicU64,
    refused: AtomicU64,
    timed_out: AtomicU64,
    idle_closed: AtomicU64,
}

/// The counters at one moment.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct RedirectCounts {
    /// Connections accepted.
    pub connections: u64,
    /// Connections closed because too many were open, and they had been idle for longest.
    pub gave_way: u64,
    /// Requests answered or refused: `redirected + refused`.
    pub requests: u64,
    /// Requests answered with 301 or 308.
    pub redirected: u64,
    /// Requests refused, by the policy or because they were no HTTP or too large.
    pub refused: u64,
    /// Connections closed in the middle of a request or of its answer, because it took too long.
    pub timed_out: u64,
    /// Connections closed because no request came.
    pub idle_closed: u64,
}

impl RedirectStats {
    /// The counters now; each is exact, together they may be a few requests apart.
    #[must_use]
    pub fn counts(&self) -> RedirectCounts {
        let read = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        RedirectCounts {
            connections: read(&self.connections),
            gave_way: read(&self.gave_way),
            requests: read(&self.requests),
            redirected: read(&self.redirected),
            refused: read(&self.refused),
            timed_out: read(&self.timed_out),
            idle_closed: read(&self.idle_closed),
        }
    }

    fn count_refused(&self) {
        add(&self.requests);
        add(&self.refused);
    }
}

fn add(counter: &AtomicU64) {
    counter.fetch_add(1, Ordering::Relaxed);
}

/// Serves `listener` until `shutdown` completes, then lets running requests finish within
/// [`Limits::drain`] and returns.
///
/// It never fails: what goes wrong on one connection ends that connection, and a failing `accept`
/// is tried again.
pub async fn serve(
    listener: TcpListener,
    options: RedirectOptions,
    admission: Arc<Admission>,
    shutdown: impl Future<Output = ()>,
    stats: Arc<RedirectStats>,
) {
    let (stop, stopped) = watch::channel(false);
    let mut connections = JoinSet::new();
    let mut shutdown = pin!(shutdown);
    let mut warned = None;
    loop {
        let accepted = tokio::select! {
            () = &mut shutdown => break,
            Some(_) = connections.join_next() => continue,
            accepted = listener.accept() => accepted,
        };
        let (stream, client) = match accepted {
            Ok((stream, client)) => (stream, client.ip()),
            Err(error) => {
                pause_after(&error, &mut warned).await;
                continue;
            }
        };
        add(&stats.connections);
        let Some(place) = admission.admit(client, &stats).await else { break };
        let connection = Connection {
            stream,
            options,
            admission: Arc::clone(&admission),
            stats: Arc::clone(&stats),
            stopped: stopped.clone(),
            seat: place.seat,
        };
        connections.spawn(hold(connection, place));
    }
    drop(listener);
    stop.send_replace(true);
    let finished = async { while connections.join_next().await.is_some() {} };
    // What is still open after the drain time ends with the set.
    let _ = timeout(options.limits.drain, finished).await;
}

/// A client that left before it was accepted is no reason to pause; a full descriptor table is.
async fn pause_after(error: &io::Error, warned: &mut Option<Instant>) {
    if matches!(error.kind(), io::ErrorKind::ConnectionAborted | io::ErrorKind::ConnectionReset) {
        return;
    }
    if warned.is_none_or(|at| at.elapsed() >= WARN_EVERY) {
        *warned = Some(Instant::now());
        tracing::warn!(%error, "the redirect service cannot accept connections; trying again");
    }
    sleep(ACCEPT_PAUSE).await;
}

/// Serves a connection until it ends, has to give way, or has lived long enough.
async fn hold(mut connection: Connection, mut place: Place) {
    let (stats, lifetime) = (Arc::clone(&connection.stats), connection.options.limits.connection_lifetime);
    tokio::select! {
        () = connection.serve() => {}
        Ok(()) = &mut place.ended => {}
        () = sleep(lifetime) => add(&stats.timed_out),
    }
    connection.admission.with(|seats| seats.leave(connection.seat));
    // The descriptor before its permit.
    drop(connection);
    drop(place);
}

/// One client's connection.
struct Connection {
    stream: TcpStream,
    options: RedirectOptions,
    admission: Arc<Admission>,
    stats: Arc<RedirectStats>,
    stopped: watch::Receiver<bool>,
    seat: u64,
}

/// Why no request was read.
enum End {
    /// The client has closed, or is gone.
    Closed,
    /// It took too long.
    Late,
    /// The service stops, and no request was under way.
    Stopping,
    /// Bytes that are no request.
    Malformed(Malformed),
}

impl Connection {
    /// Answers one request after another. A client that has closed its half behind them is answered all the same.
    async fn serve(&mut self) {
        let mut buffer = Vec::new();
        loop {
            let deadline = Instant::now() + self.options.limits.head_timeout;
            let (answer, length) = match self.next_request(&mut buffer, deadline).await {
                Ok(length) => {
                    let bounds = self.options.limits.head;
                    // It was read whole.
                    let Ok(Some(head)) = request::read(&buffer, bounds) else { return };
                    let stopping = *self.stopped.borrow();
                    (answer(&head, self.options.https_port, stopping, &self.stats), length)
                }
                Err(End::Malformed(why)) => (refuse_bytes(why, &self.stats), 0),
                Err(End::Late) => {
                    add(if buffer.is_empty() { &self.stats.idle_closed } else { &self.stats.timed_out });
                    return;
                }
                Err(End::Closed | End::Stopping) => return,
            };
            buffer.drain(..length);
            if self.stream.write_all(&answer.bytes).await.is_err() {
                return;
            }
            self.seat = self.admission.with(|seats| seats.renew(self.seat));
            if answer.closes {
                return self.linger().await;
            }
        }
    }

    /// Reads until the buffer begins with a whole request, and says how long its head is.
    async fn next_request(&mut self, buffer: &mut Vec<u8>, deadline: Instant) -> Result<usize, End> {
        let bounds = self.options.limits.head;
        let mut looked_at = 0;
        loop {
            // Byte by byte, a head is not read anew each time: only when a line has ended.
            let fresh = &buffer[looked_at..];
            if looked_at == 0 || fresh.contains(&b'\n') || buffer.len() >= bounds.bytes {
                match request::read(buffer, bounds) {
                    Ok(Some(head)) => return Ok(head.length),
                    Ok(None) => {}
                    Err(why) => return Err(End::Malformed(why)),
                }
            }
            looked_at = buffer.len();
            let room = bounds.bytes.saturating_sub(buffer.len()).clamp(1, 4096);
            let mut chunk = [0; 4096];
            let is_idle = buffer.is_empty();
            let read = tokio::select! {
                read = timeout_at(deadline, self.stream.read(&mut chunk[..room])) => read,
                _ = self.stopped.wait_for(|stopped| *stopped), if is_idle => return Err(End::Stopping),
            };
            match read {
                Err(_) => return Err(End::Late),
                Ok(Ok(0) | Err(_)) => return Err(End::Closed),
                Ok(Ok(read)) => buffer.extend_from_slice(&chunk[..read]),
            }
        }
    }

    /// Closes our half and reads what the client still sends: closing with unread bytes would make
    /// the kernel send a reset, and that throws away an answer the client has not read yet.
    async fn linger(&mut self) {
        let drain = async {
            let mut buffer = [0; 4096];
            let mut left = LINGER_BYTES;
            self.stream.shutdown().await?;
            while left > 0 {
                match self.stream.read(&mut buffer).await? {
                    0 => break,
                    read => left = left.saturating_sub(read),
                }
            }
            io::Result::Ok(())
        };
        // The connection ends either way.
        let _ = timeout(self.options.limits.linger, drain).await;
    }
}

/// An answer as it goes out.
struct Answer {
    bytes: Vec<u8>,
    /// Whether the connection ends with it.
    closes: bool,
}

fn answer(head: &Head<'_>, https_port: NonZeroU16, stopping: bool, stats: &RedirectStats) -> Answer {
    let asked = policy::Request { method: head.method, target: head.target, hosts: head.hosts.clone() };
    let with_body = head.method != "HEAD";
    match policy::decide(&asked, https_port) {
        Decision::Redirect { location, keeps_method } => {
            add(&stats.requests);
            add(&stats.redirected);
            let status = if keeps_method { "308 Permanent Redirect" } else { "301 Moved Permanently" };
            let link = escape_html(&location);
            let page = format!(
                "<!DOCTYPE html>\n<title>Moved</title>\n<p>This page is at <a href=\"{link}\">{link}</a>.</p>\n"
            );
            let fields = format!("location: {location}\r\ncontent-type: text/html; charset=utf-8\r\n");
            let closes = stopping || head.has_body || !head.keep_alive;
            written(status, &fields, &page, with_body, closes)
        }
        Decision::Refuse(refusal) => {
            stats.count_refused();
            bad_request(&refusal.to_string(), with_body)
        }
    }
}

fn refuse_bytes(why: Malformed, stats: &RedirectStats) -> Answer {
    stats.count_refused();
    match why {
        Malformed::TooLarge => {
            let fields = "content-type: text/plain; charset=utf-8\r\n";
            written("431 Request Header Fields Too Large", fields, &format!("{why}\n"), true, true)
        }
        _ => bad_request(&why.to_string(), true),
    }
}

fn bad_request(why: &str, with_body: bool) -> Answer {
    let fields = "content-type: text/plain; charset=utf-8\r\n";
    written("400 Bad Request", fields, &format!("Bad request: {why}\n"), with_body, true)
}

fn written(status: &str, fields: &str, page: &str, with_body: bool, closes: bool) -> Answer {
    let date = Timestamp::now().strftime("%a, %d %b %Y %H:%M:%S GMT");
    let close = if closes { "connection: close\r\n" } else { "" };
    let length = page.len();
    let page = if with_body { page } else { "" };
    let text =
        format!("HTTP/1.1 {status}\r\n{fields}content-length: {length}\r\n{close}date: {date}\r\n\r\n{page}");
    Answer { bytes: text.into_bytes(), closes }
}

fn escape_html(text: &str) -> String {
    let mut escaped = String::with_capacity(text.len());
    for character in text.chars() {
        match character {
            '&' => escaped.push_str("&amp;"),
            '<' => escaped.push_str("&lt;"),
            '>' => escaped.push_str("&gt;"),
            '"' => escaped.push_str("&quot;"),
            '\'' => escaped.push_str("&#39;"),
            other => escaped.push(other),
        }
    }
    escaped
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_page_cannot_be_left_by_what_the_client_asked_for() {
        assert_eq!(escape_html("/a?\"><script>'&"), "/a?&quot;&gt;&lt;script&gt;&#39;&amp;");
    }

    #[test]
    fn the_default_port_is_443() {
        assert_eq!(RedirectOptions::default().https_port.get(), 443);
    }
}
