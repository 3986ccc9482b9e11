//! The HTTP half of a probe.

use std::net::SocketAddr;

use http_body_util::{BodyExt as _, Empty};
use hyper::Request;
use hyper::body::{Bytes, Incoming};
use hyper::client::conn::http1;
use hyper::header::{ACCEPT, CONNECTION, HOST, HeaderValue, USER_AGENT};
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::task::JoinSet;

use super::probe::{Phase, Progress};
use super::spec::HttpCheck;
use super::state::Outcome;
use super::words;

/// How much of a body is looked at, and (give or take one read) how large an answer's head may be.
const LOOKED_AT: usize = 64 * 1024;

/// What is left of a good answer: reading it to its end lets the connection close in peace.
pub(super) struct Rest {
    body: Incoming,
    _driver: JoinSet<hyper::Result<()>>,
}

impl Rest {
    /// Reads on until the body ends, a bounded amount.
    pub(super) async fn drain(mut self) {
        let mut seen = 0;
        while let Some(Ok(frame)) = self.body.frame().await {
            seen += frame.data_ref().map_or(0, Bytes::len);
            if seen > LOOKED_AT {
                return;
            }
        }
    }
}

/// One GET over `stream`, judged by `check`.
pub(super) async fn get(
    stream: impl AsyncRead + AsyncWrite + Unpin + Send + 'static,
    check: &HttpCheck,
    target: SocketAddr,
    default_port: u16,
    progress: &mut Progress,
) -> Result<Rest, Outcome> {
    progress.phase = Phase::WaitingForAnswer;
    let (mut sender, connection) = http1::Builder::new()
        .max_buf_size(LOOKED_AT)
        .handshake(TokioIo::new(stream))
        .await
        .map_err(|error| words::http(&error))?;
    // Ends with this probe.
    let mut driver = JoinSet::new();
    driver.spawn(connection);

    let request = request(check, target, default_port)?;
    let response = sender.send_request(request).await.map_err(|error| words::http(&error))?;
    let status = response.status().as_u16();
    if !check.expect_status.contains(status) {
        return Err(Outcome::Failed(format!("status {status}, expected {}", check.expect_status)));
    }
    let mut body = response.into_body();
    if let Some(expected) = &check.expect_body {
        progress.phase = Phase::ReadingBody;
        find(&mut body, expected).await?;
    }
    Ok(Rest { body, _driver: driver })
}

fn request(
    check: &HttpCheck,
    target: SocketAddr,
    default_port: u16,
) -> Result<Request<Empty<Bytes>>, Outcome> {
    let host = match &check.host {
        Some((value, _)) => Ok(value.clone()),
        None => HeaderValue::from_str(&own_host(target, default_port)),
    };
    host.map_err(hyper::http::Error::from)
        .and_then(|host| {
            Request::get(check.path.as_str())
                .header(HOST, host)
                .header(USER_AGENT, concat!("steadfast-health/", env!("CARGO_PKG_VERSION")))
                .header(ACCEPT, "*/*")
                .header(CONNECTION, "close")
                .body(Empty::new())
        })
        .map_err(|error| Outcome::NoVerdict(format!("the request cannot be made: {error}")))
}

/// The target as a `Host` value: IPv6 in brackets, the scheme's own port left out.
fn own_host(target: SocketAddr, default_port: u16) -> String {
    match target {
        SocketAddr::V6(v6) if v6.port() == default_port => format!("[{}]", v6.ip()),
        SocketAddr::V6(v6) => format!("[{}]:{}", v6.ip(), v6.port()),
        SocketAddr::V4(v4) if v4.port() == default_port => v4.ip().to_string(),
        SocketAddr::V4(v4) => v4.to_string(),
    }
}

/// Reads until `expected` was seen, and no further than [`LOOKED_AT`].
async fn find(body: &mut Incoming, expected: &str) -> Result<(), Outcome> {
    let needle = expected.as_bytes();
    let mut seen: Vec<u8> = Vec::new();
    while seen.len() < LOOKED_AT {
        let Some(frame) = body.frame().await else {
            return Err(Outcome::Failed(format!("the body does not contain {expected:?}")));
        };
        let frame = frame.map_err(|error| words::http(&error))?;
        let Some(data) = frame.data_ref() else { continue };
        // The text may have begun in the frame before.
        let from = seen.len().saturating_sub(needle.len() - 1);
        let room = LOOKED_AT - seen.len();
        seen.extend_from_slice(&data[..data.len().min(room)]);
        if seen[from..].windows(needle.len()).any(|window| window == needle) {
            return Ok(());
        }
    }
    Err(Outcome::Failed(format!("the first 64 KiB of the body do not contain {expected:?}")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_targets_own_address_is_a_valid_host() {
        let own = |target: &str, port| own_host(target.parse().unwrap(), port);
        assert_eq!(own("10.0.0.1:80", 80), "10.0.0.1");
        assert_eq!(own("10.0.0.1:8080", 80), "10.0.0.1:8080");
        assert_eq!(own("[2001:db8::1]:443", 443), "[2001:db8::1]");
        assert_eq!(own("[fe80::1%3]:8443", 443), "[fe80::1]:8443");
    }
}
