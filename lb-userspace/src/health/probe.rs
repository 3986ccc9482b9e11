//! One probe of one server, within one timeout.

use std::fmt;
use std::future::Future;
use std::net::SocketAddr;
use std::pin::Pin;
use std::time::Duration;

use jiff::Timestamp;
use nix::sys::socket::setsockopt;
use nix::sys::socket::sockopt::IpBindAddressNoPort;
use rustls::pki_types::ServerName;
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};
use tokio::net::{TcpSocket, TcpStream};
use tokio::time::{Instant, timeout};

use super::http;
use super::spec::{HttpCheck, ProbeKind, ProbeSpec, TlsName};
use super::state::Outcome;
use super::tls::{self, Inside};
use super::words;

/// How long a good probe's connection is given to close in peace. Not part of the probe's timeout:
/// the outcome stands already.
const CLOSING: Duration = Duration::from_millis(200);

/// What a probe found out.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ProbeResult {
    /// Whether the server answered as it should.
    pub outcome: Outcome,
    /// From the probe's start to its outcome.
    pub took: Duration,
    /// When the server's certificate expires (`tls` and `https`, if the handshake got that far).
    pub certificate_expires: Option<Timestamp>,
}

/// Probes `target` once.
///
/// It takes the specified timeout and 0.2 s for closing, at most. Dropping it ends it at once.
pub async fn probe(spec: &ProbeSpec, target: SocketAddr) -> ProbeResult {
    let started = Instant::now();
    let mut progress = Progress { phase: Phase::Connecting, certificate_expires: None };
    let attempt = timeout(spec.timeout, attempt(spec, target, &mut progress)).await;
    let took = started.elapsed();
    let outcome = match attempt {
        Ok(Ok(close)) => {
            // Succeeding or not: nothing is expected of it.
            let _ = timeout(CLOSING, close).await;
            Outcome::Ok
        }
        Ok(Err(reason)) if reason == words::UNREACHABLE => Outcome::Lost(reason),
        Ok(Err(reason)) => Outcome::Failed(reason),
        Err(_) => {
            let why = format!("timed out after {:?} {}", spec.timeout, progress.phase);
            match progress.phase {
                Phase::Connecting => Outcome::Lost(why),
                _ => Outcome::Failed(why),
            }
        }
    };
    ProbeResult { outcome, took, certificate_expires: progress.certificate_expires }
}

/// How far a probe came.
pub(super) struct Progress {
    pub(super) phase: Phase,
    certificate_expires: Option<Timestamp>,
}

/// What a probe was doing when its time ran out.
pub(super) enum Phase {
    Connecting,
    TlsHandshake,
    WaitingForAnswer,
    ReadingBody,
}

impl fmt::Display for Phase {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Connecting => "while connecting",
            Self::TlsHandshake => "during TLS handshake",
            Self::WaitingForAnswer => "waiting for the HTTP answer",
            Self::ReadingBody => "reading the body",
        })
    }
}

/// What is left to do once the outcome is good.
type Close = Pin<Box<dyn Future<Output = ()> + Send>>;

async fn attempt(spec: &ProbeSpec, target: SocketAddr, progress: &mut Progress) -> Result<Close, String> {
    match &spec.kind {
        ProbeKind::None => Ok(Box::pin(async {})),
        ProbeKind::Tcp => Ok(Box::pin(close(connect(spec, target).await?))),
        ProbeKind::Tls(name) => {
            let stream = connect_tls(spec, target, name.as_ref(), Inside::Nothing, progress).await?;
            Ok(Box::pin(close(stream)))
        }
        ProbeKind::Http(check) => {
            let stream = connect(spec, target).await?;
            finish(http::get(stream, check, target, 80, progress).await)
        }
        ProbeKind::Https(check) => {
            let stream = connect_tls(spec, target, sni(check), Inside::Http, progress).await?;
            finish(http::get(stream, check, target, 443, progress).await)
        }
    }
}

fn finish(answer: Result<http::Rest, String>) -> Result<Close, String> {
    answer.map(|rest| Box::pin(rest.drain()) as Close)
}

fn sni(check: &HttpCheck) -> Option<&TlsName> {
    check.host.as_ref().map(|(_, name)| name)
}

async fn connect(spec: &ProbeSpec, target: SocketAddr) -> Result<TcpStream, String> {
    let socket = if target.is_ipv4() { TcpSocket::new_v4() } else { TcpSocket::new_v6() };
    let socket = socket.map_err(|error| format!("no socket on this machine: {error}"))?;
    if let Some(source) = spec.source {
        // The port is chosen on connecting, where it only has to be unique for this target: a
        // bind would use up one port of the address for each closed connection's TIME-WAIT.
        setsockopt(&socket, IpBindAddressNoPort, &true)
            .map_err(|error| format!("cannot connect from source address {source}: {error}"))?;
        let bound = socket.bind(SocketAddr::new(source, 0));
        bound.map_err(|error| format!("cannot connect from source address {source}: {error}"))?;
    }
    socket.connect(target).await.map_err(|error| words::socket(&error))
}

async fn connect_tls(
    spec: &ProbeSpec,
    target: SocketAddr,
    name: Option<&TlsName>,
    inside: Inside,
    progress: &mut Progress,
) -> Result<tokio_rustls::client::TlsStream<TcpStream>, String> {
    let stream = connect(spec, target).await?;
    progress.phase = Phase::TlsHandshake;
    let name = name.map_or_else(|| ServerName::from(target.ip()), |name| name.0.clone());
    let (stream, expires) = tls::handshake(stream, name, inside).await?;
    progress.certificate_expires = expires;
    Ok(stream)
}

/// Closes our half, then reads what the server still says until it closes its own: a socket closed
/// with unread bytes is reset, and some servers log every reset.
async fn close(mut stream: impl AsyncRead + AsyncWrite + Unpin) {
    let mut buffer = [0; 1024];
    if stream.shutdown().await.is_ok() {
        while stream.read(&mut buffer).await.is_ok_and(|read| read > 0) {}
    }
}
