//! The TLS half of a probe.
//!
//! A server that answers the hello is alive. Which versions and suites it speaks, and what its certificate is like, is
//! between it and its clients, who judge both by their own rules: a monitor that took a server out for them would be the
//! outage. So that is [noted](Session::note) and not judged, unless the configuration asks for it ([`Verify`]).

mod certificate;
mod judge;
mod record;
mod verify;

use std::sync::{Arc, LazyLock};

use jiff::Timestamp;
use rustls::ClientConfig;
use rustls::client::Resumption;
use rustls::crypto::ring;
use rustls::pki_types::ServerName;
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;

use super::state::Outcome;
use super::words;
use judge::Judge;
use record::{First, Watched};

pub use verify::Verify;

#[cfg(test)]
pub(super) use certificate::expiry;

type Configured = LazyLock<Result<Arc<ClientConfig>, rustls::Error>>;

static PLAIN: Configured = LazyLock::new(|| client_config(&[]));
static HTTPS: Configured = LazyLock::new(|| client_config(&[b"http/1.1"]));

/// What will be spoken inside TLS.
#[derive(Debug, Clone, Copy)]
pub(super) enum Inside {
    /// Nothing: the handshake is the probe.
    Nothing,
    /// HTTP/1.1, announced by ALPN.
    Http,
}

/// What a handshake came to with a server that has answered its hello.
pub(super) struct Session {
    /// The connection, if the handshake is complete.
    pub(super) stream: Option<TlsStream<Watched<TcpStream>>>,
    /// When the server's certificate expires, if it was seen.
    pub(super) expires: Option<Timestamp>,
    /// Whether the server asks for a client's certificate, which a probe has not.
    pub(super) asks_for_certificate: bool,
    /// What is unusual, if anything is.
    pub(super) note: Option<String>,
}

/// A handshake over `stream`.
pub(super) async fn handshake(
    stream: TcpStream,
    name: ServerName<'static>,
    inside: Inside,
    verify: &Verify,
) -> Result<Session, Outcome> {
    let config = match inside {
        Inside::Nothing => &*PLAIN,
        Inside::Http => &*HTTPS,
    };
    let here =
        |error: &dyn std::fmt::Display| Outcome::NoVerdict(format!("this machine cannot speak TLS: {error}"));
    let mut config = ClientConfig::clone(config.as_ref().map_err(|error| here(error))?);
    let judge = Arc::new(Judge::new(verify.verifier().map_err(Outcome::NoVerdict)?));
    config.dangerous().set_certificate_verifier(Arc::clone(&judge) as _);
    config.client_auth_cert_resolver = Arc::clone(&judge) as _;
    let connecting = TlsConnector::from(Arc::new(config)).connect(name, Watched::new(stream));
    let (stream, trouble) = match connecting.into_fallible().await {
        Ok(stream) => (Some(stream), None),
        Err((error, stream)) => {
            let failed = words::handshake(&error);
            let answered = matches!(failed, Outcome::Failed(_)) && stream.first().is_answer();
            if !answered || judge.has_refused() || *verify != Verify::None {
                return Err(failed);
            }
            (None, Some(no_session(stream.first(), words::alert(&error), &failed)))
        }
    };
    let mut notes: Vec<String> = trouble.into_iter().collect();
    notes.extend(judge.oddities(Timestamp::now()));
    Ok(Session {
        stream,
        expires: judge.expires(),
        asks_for_certificate: judge.was_asked(),
        note: (!notes.is_empty()).then(|| notes.join("; ")),
    })
}

/// Why there is no session with a server that has answered: short, because it has to fit beside a server's health.
fn no_session(first: First, alert: Option<String>, failed: &Outcome) -> String {
    match (first, alert) {
        (First::ServerHello { version, suite }, None) => {
            format!("it chose {version}, suite {suite:#06x}: {}", failed.why().unwrap_or_default())
        }
        (First::ServerHello { version, suite }, Some(alert)) => {
            format!("alert \"{alert}\" after {version}, suite {suite:#06x}")
        }
        (_, Some(alert)) => format!("alert \"{alert}\" to TLS 1.2/1.3 with ECDHE, AEAD"),
        (_, None) => failed.why().unwrap_or_default().to_owned(),
    }
}

/// A client that takes whatever certificate is presented, as long as the server holds its key, and resumes no session; with
/// these protocols in ALPN.
///
/// # Errors
/// This machine has no TLS.
pub fn client_config(alpn: &[&[u8]]) -> Result<Arc<ClientConfig>, rustls::Error> {
    let mut config = ClientConfig::builder_with_provider(Arc::new(ring::default_provider()))
        .with_safe_default_protocol_versions()?
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(Judge::new(None)))
        .with_no_client_auth();
    config.alpn_protocols = alpn.iter().map(|name| name.to_vec()).collect();
    // Each probe is to exercise the server's key and to see its certificate as it is now.
    config.resumption = Resumption::disabled();
    Ok(Arc::new(config))
}
