//! One probe of one server, within one timeout.

use std::fmt;
use std::future::Future;
use std::io;
use std::net::SocketAddr;
use std::pin::Pin;
use std::time::Duration;

use jiff::Timestamp;
use nix::sys::socket::setsockopt;
use nix::sys::socket::sockopt::IpBindAddressNoPort;
use rustls::pki_types::ServerName;
use socket2::{Domain, Socket, Type};
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::time::{Instant, timeout};

use super::http;
use super::spec::{HttpCheck, ProbeKind, ProbeSpec, TlsName};
use super::state::Outcome;
use super::tls::{self, Inside, Session};
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
    /// What is to be known of a good answer: what of it could not be asked, and what is unusual about it.
    pub note: Option<String>,
}

/// Probes `target` once.
///
/// It takes the specified timeout and 0.2 s for closing, at most. Dropping it ends it at once.
pub async fn probe(spec: &ProbeSpec, target: SocketAddr) -> ProbeResult {
    let started = Instant::now();
    let mut progress =
        Progress { phase: Phase::Connecting, heard: false, certificate_expires: None, note: None };
    let attempt = timeout(spec.timeout, attempt(spec, target, &mut progress)).await;
    let took = started.elapsed();
    let outcome = match attempt {
        Ok(Ok(close)) => {
            // Succeeding or not: nothing is expected of it.
            let _ = timeout(CLOSING, close).await;
            Outcome::Ok
        }
        Ok(Err(outcome)) => outcome,
        Err(_) => {
            let why = format!("timed out after {:?} {}", spec.timeout, progress.phase);
            match progress.phase {
                Phase::Connecting => Outcome::Lost(why),
                _ => Outcome::Failed(why),
            }
        }
    };
    ProbeResult { outcome, took, certificate_expires: progress.certificate_expires, note: progress.note }
}

/// How far a probe came.
pub(super) struct Progress {
    pub(super) phase: Phase,
    /// Whether anything of an HTTP answer came.
    pub(super) heard: bool,
    certificate_expires: Option<Timestamp>,
    note: Option<String>,
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

async fn attempt(spec: &ProbeSpec, target: SocketAddr, progress: &mut Progress) -> Result<Close, Outcome> {
    match &spec.kind {
        ProbeKind::None => Ok(nothing()),
        ProbeKind::Tcp => Ok(Box::pin(close(connect(spec, target).await?))),
        ProbeKind::Tls(name) => {
            let mut session = connect_tls(spec, target, name.as_ref(), Inside::Nothing, progress).await?;
            let Some(stream) = session.stream.take() else {
                return Ok(without("no TLS session", &session, progress));
            };
            progress.note = session.note;
            Ok(Box::pin(close(stream)))
        }
        ProbeKind::Http(check) => {
            let mut stream = connect(spec, target).await?;
            http::get(&mut stream, check, target, 80, progress).await?;
            Ok(Box::pin(close(stream)))
        }
        ProbeKind::Https(check) => {
            let mut session = connect_tls(spec, target, sni(check), Inside::Http, progress).await?;
            let Some(mut stream) = session.stream.take() else {
                return Ok(without(NOT_ASKED, &session, progress));
            };
            match http::get(&mut stream, check, target, 443, progress).await {
                Ok(()) => {
                    progress.note = session.note;
                    Ok(Box::pin(close(stream)))
                }
                // In TLS 1.3 the client's handshake is complete before the server has seen that there is no certificate.
                Err(Outcome::Failed(_)) if session.asks_for_certificate && !progress.heard => {
                    Ok(without(NOT_ASKED, &session, progress))
                }
                Err(outcome) => Err(outcome),
            }
        }
    }
}

/// What a check of kind `https` leaves open where there is no session to ask in.
const NOT_ASKED: &str = "HTTP status not asked";

/// A server that is alive, and did not let itself be asked.
fn without(what: &str, session: &Session, progress: &mut Progress) -> Close {
    progress.note = Some(match &session.note {
        Some(note) => format!("{what}: {note}"),
        None => what.to_owned(),
    });
    nothing()
}

fn nothing() -> Close {
    Box::pin(async {})
}

fn sni(check: &HttpCheck) -> Option<&TlsName> {
    check.host.as_ref().map(|host| &host.name)
}

async fn connect(spec: &ProbeSpec, target: SocketAddr) -> Result<TcpStream, Outcome> {
    let stream = begin_connecting(spec, target)?;
    // Ready to be written to: connected, or failed.
    stream.writable().await.map_err(|error| words::socket(&error))?;
    match stream.take_error() {
        Ok(None) => Ok(stream),
        Ok(Some(error)) | Err(error) => Err(words::socket(&error)),
    }
}

/// What fails here was not the network's to answer, and the server's least of all. So the call that begins to connect is
/// made apart from waiting for its outcome: the same error number means another thing there.
fn begin_connecting(spec: &ProbeSpec, target: SocketAddr) -> Result<TcpStream, Outcome> {
    let socket = Socket::new(Domain::for_address(target), Type::STREAM.nonblocking(), None);
    let socket = socket.map_err(|error| words::call(&error))?;
    if let Some(source) = spec.source {
        let from = |error: &io::Error| {
            words::call(error).map_why(|why| format!("cannot connect from source address {source}: {why}"))
        };
        // The port is chosen on connecting, where it only has to be unique for this target: a
        // bind would use up one port of the address for each closed connection's TIME-WAIT.
        setsockopt(&socket, IpBindAddressNoPort, &true).map_err(|errno| from(&errno.into()))?;
        socket.bind(&SocketAddr::new(source, 0).into()).map_err(|error| from(&error))?;
    }
    match socket.connect(&target.into()) {
        Err(error) if error.raw_os_error() != Some(libc::EINPROGRESS) => return Err(words::call(&error)),
        _ => {}
    }
    TcpStream::from_std(socket.into()).map_err(|error| words::call(&error))
}

async fn connect_tls(
    spec: &ProbeSpec,
    target: SocketAddr,
    name: Option<&TlsName>,
    inside: Inside,
    progress: &mut Progress,
) -> Result<Session, Outcome> {
    let stream = connect(spec, target).await?;
    progress.phase = Phase::TlsHandshake;
    let name = name.map_or_else(|| ServerName::from(target.ip()), |name| name.0.clone());
    let session = tls::handshake(stream, name, inside, &spec.verify).await?;
    progress.certificate_expires = session.expires;
    Ok(session)
}

/// Closes our half, then reads what the server still says until it closes its own: a socket closed
/// with unread bytes is reset, and some servers log every reset.
async fn close(mut stream: impl AsyncRead + AsyncWrite + Unpin) {
    let mut buffer = [0; 1024];
    if stream.shutdown().await.is_ok() {
        while stream.read(&mut buffer).await.is_ok_and(|read| read > 0) {}
    }
}
