//! The HTTP/1 server around the redirect policy.
//!
//! It faces every client, hostile ones included, so each thing a client may hold has a bound:
//! bytes and number of header fields, time to send them, time of a whole connection, and
//! connections at once. Request bodies are never read.

use std::convert::Infallible;
use std::future::{Future, poll_fn, ready};
use std::io;
use std::num::NonZeroU16;
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use http_body_util::Full;
use hyper::body::{Body as _, Bytes, Incoming};
use hyper::header::{CONNECTION, CONTENT_TYPE, HOST, HeaderValue, LOCATION};
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper::{Method, Request, Response, StatusCode};
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{Semaphore, watch};
use tokio::task::JoinSet;
use tokio::time::{sleep, timeout};

use super::policy::{self, Decision};

/// How long accepting pauses when the system has no descriptor or memory left.
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);
/// Most bytes read and thrown away after an answer, so that closing does not cut the answer off.
const LINGER_BYTES: usize = 64 * 1024;

/// What a client may cost.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    /// Largest request head in bytes; hyper's least is 8192, smaller values mean that.
    pub head_bytes: usize,
    /// Most header fields in a request.
    pub header_fields: usize,
    /// From the connection's start, or the last answer, to the end of a request's head. This also
    /// bounds an idle kept-alive connection.
    pub head_timeout: Duration,
    /// Longest life of a connection, whatever it does.
    pub connection_lifetime: Duration,
    /// Connections at once; one more is closed at once.
    pub connections: usize,
    /// After an answer that ends the connection: how long the client's own end is waited for.
    pub linger: Duration,
    /// After shutdown was asked for: how long running requests may take.
    pub drain: Duration,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            head_bytes: 16 * 1024,
            header_fields: 64,
            head_timeout: Duration::from_secs(10),
            connection_lifetime: Duration::from_secs(60),
            connections: 1024,
            linger: Duration::from_secs(1),
            drain: Duration::from_secs(3),
        }
    }
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
    over_limit: AtomicU64,
    requests: AtomicU64,
    redirected: AtomicU64,
    refused: AtomicU64,
    timed_out: AtomicU64,
    idle_closed: AtomicU64,
}

/// The counters at one moment.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct RedirectCounts {
    /// Connections accepted, those over the limit included.
    pub connections: u64,
    /// Connections closed at once because too many were open.
    pub over_limit: u64,
    /// Requests answered or refused: `redirected + refused`.
    pub requests: u64,
    /// Requests answered with 301.
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
            over_limit: read(&self.over_limit),
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
    shutdown: impl Future<Output = ()>,
    stats: Arc<RedirectStats>,
) {
    let (stop, stopped) = watch::channel(false);
    let slots = Arc::new(Semaphore::new(options.limits.connections));
    let mut connections = JoinSet::new();
    let mut shutdown = pin!(shutdown);
    loop {
        let accepted = tokio::select! {
            () = &mut shutdown => break,
            Some(_) = connections.join_next() => continue,
            accepted = listener.accept() => accepted,
        };
        let stream = match accepted {
            Ok((stream, _)) => stream,
            Err(error) => {
                pause_after(&error).await;
                continue;
            }
        };
        add(&stats.connections);
        let Ok(slot) = Arc::clone(&slots).try_acquire_owned() else {
            add(&stats.over_limit);
            continue;
        };
        let (stopped, stats) = (stopped.clone(), Arc::clone(&stats));
        connections.spawn(async move {
            serve_connection(stream, &options, stopped, &stats).await;
            drop(slot);
        });
    }
    drop(listener);
    stop.send_replace(true);
    let finished = async { while connections.join_next().await.is_some() {} };
    // What is still open after the drain time ends with the set.
    let _ = timeout(options.limits.drain, finished).await;
}

/// A client that left before it was accepted is no reason to pause; a full descriptor table is.
async fn pause_after(error: &io::Error) {
    if !matches!(error.kind(), io::ErrorKind::ConnectionAborted | io::ErrorKind::ConnectionReset) {
        tracing::warn!(%error, "the redirect service cannot accept connections; trying again");
        sleep(ACCEPT_PAUSE).await;
    }
}

async fn serve_connection(
    stream: TcpStream,
    options: &RedirectOptions,
    mut stopped: watch::Receiver<bool>,
    stats: &Arc<RedirectStats>,
) {
    let limits = &options.limits;
    let (https_port, counters) = (options.https_port, Arc::clone(stats));
    let service =
        service_fn(move |request| ready(Ok::<_, Infallible>(answer(&request, https_port, &counters))));
    let mut connection = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(limits.head_timeout)
        .max_headers(limits.header_fields)
        .max_buf_size(limits.head_bytes.max(8192))
        .serve_connection(TokioIo::new(stream), service);

    let mut lifetime = pin!(sleep(limits.connection_lifetime));
    let mut stopping = false;
    let result = loop {
        let finished = tokio::select! {
            result = poll_fn(|context| connection.poll_without_shutdown(context)) => Some(result),
            () = &mut lifetime => {
                add(&stats.timed_out);
                return;
            }
            _ = stopped.wait_for(|stopped| *stopped), if !stopping => None,
        };
        match finished {
            Some(result) => break result,
            None => {
                stopping = true;
                Pin::new(&mut connection).graceful_shutdown();
            }
        }
    };
    let parts = connection.into_parts();
    match result {
        Err(error) if error.is_timeout() => {
            add(if parts.read_buf.is_empty() { &stats.idle_closed } else { &stats.timed_out });
        }
        Err(error) if error.is_parse() => {
            stats.count_refused();
            linger(parts.io.into_inner(), limits.linger).await;
        }
        Err(_) => {}
        Ok(()) => linger(parts.io.into_inner(), limits.linger).await,
    }
}

/// Closes our half and reads what the client still sends: closing with unread bytes would make
/// the kernel send a reset, and that throws away an answer the client has not read yet.
async fn linger(mut stream: TcpStream, patience: Duration) {
    let drain = async {
        let mut buffer = [0; 4096];
        let mut left = LINGER_BYTES;
        stream.shutdown().await?;
        while left > 0 {
            match stream.read(&mut buffer).await? {
                0 => break,
                read => left = left.saturating_sub(read),
            }
        }
        io::Result::Ok(())
    };
    // The connection ends either way.
    let _ = timeout(patience, drain).await;
}

fn answer(
    request: &Request<Incoming>,
    https_port: NonZeroU16,
    stats: &RedirectStats,
) -> Response<Full<Bytes>> {
    let asked = policy::Request {
        method: request.method(),
        version: request.version(),
        target: request.uri(),
        hosts: request.headers().get_all(HOST).iter().map(HeaderValue::as_bytes).collect(),
    };
    let mut response = match policy::decide(&asked, https_port) {
        Decision::Redirect { location } => match HeaderValue::from_str(&location) {
            Ok(value) => {
                add(&stats.requests);
                add(&stats.redirected);
                redirect(&location, value)
            }
            Err(_) => refuse(stats, "the request target cannot be written into a header field"),
        },
        Decision::Refuse(refusal) => refuse(stats, &refusal.to_string()),
    };
    let has_body = !request.body().is_end_stream();
    if has_body || request.method() == Method::CONNECT || response.status() == StatusCode::BAD_REQUEST {
        response.headers_mut().insert(CONNECTION, HeaderValue::from_static("close"));
    }
    response
}

fn redirect(location: &str, value: HeaderValue) -> Response<Full<Bytes>> {
    let link = escape_html(location);
    let page = format!(
        "<!DOCTYPE html>\n<title>Moved</title>\n<p>This page is at <a href=\"{link}\">{link}</a>.</p>\n"
    );
    let mut response = Response::new(Full::from(page));
    *response.status_mut() = StatusCode::MOVED_PERMANENTLY;
    response.headers_mut().insert(LOCATION, value);
    response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("text/html; charset=utf-8"));
    response
}

fn refuse(stats: &RedirectStats, reason: &str) -> Response<Full<Bytes>> {
    stats.count_refused();
    let mut response = Response::new(Full::from(format!("Bad request: {reason}\n")));
    *response.status_mut() = StatusCode::BAD_REQUEST;
    response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("text/plain; charset=utf-8"));
    response
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
