//! The HTTP half of a probe. What is judged is the status and the body; whatever else an answer says is read past.

mod answer;

use std::io::ErrorKind;
use std::net::SocketAddr;

use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};

use super::probe::{Phase, Progress};
use super::spec::{HttpCheck, StatusRanges};
use super::state::Outcome;
use super::words;
use answer::{Answer, Wrong};

/// How much of a body is looked at, and how large an answer's head may be.
const LOOKED_AT: usize = 64 * 1024;

/// One GET over `stream`, judged by `check`.
pub(super) async fn get(
    stream: &mut (impl AsyncRead + AsyncWrite + Unpin),
    check: &HttpCheck,
    target: SocketAddr,
    default_port: u16,
    progress: &mut Progress,
) -> Result<(), Outcome> {
    progress.phase = Phase::WaitingForAnswer;
    let request = request(check, target, default_port);
    // A server may answer and close without reading: what it said counts.
    let written = async {
        stream.write_all(request.as_bytes()).await?;
        stream.flush().await
    };
    let written = written.await;
    let mut answer = Answer::new(LOOKED_AT);
    let mut buffer = vec![0; 8 * 1024];
    loop {
        let read = match stream.read(&mut buffer).await {
            Ok(read) => read,
            // Over TLS, without its closing alert: as many servers end a connection.
            Err(error) if error.kind() == ErrorKind::UnexpectedEof => 0,
            Err(error) => return Err(words::socket(written.as_ref().err().unwrap_or(&error))),
        };
        progress.heard |= read > 0;
        let fed = if read == 0 { answer.end() } else { answer.feed(&buffer[..read]) };
        fed.map_err(failed)?;
        if let Some(verdict) = judge(&answer, &check.expect_status, check.expect_body.as_deref(), progress) {
            return verdict;
        }
    }
}

/// What an answer comes to, as soon as that is certain.
fn judge(
    answer: &Answer,
    statuses: &StatusRanges,
    text: Option<&str>,
    progress: &mut Progress,
) -> Option<Result<(), Outcome>> {
    let failed = |why: String| Some(Err(Outcome::Failed(why)));
    let status = answer.status()?;
    if !statuses.contains(status) {
        return failed(format!("status {status}, expected {statuses}"));
    }
    let Some(text) = text else { return Some(Ok(())) };
    progress.phase = Phase::ReadingBody;
    if answer.contains(text.as_bytes()) {
        Some(Ok(()))
    } else if answer.body().len() >= LOOKED_AT {
        failed(format!("the first 64 KiB of the body do not contain {text:?}"))
    } else if answer.has_ended() {
        failed(format!("the body does not contain {text:?}"))
    } else {
        None
    }
}

fn failed(why: Wrong) -> Outcome {
    Outcome::Failed(why.to_string())
}

fn request(check: &HttpCheck, target: SocketAddr, default_port: u16) -> String {
    let host = match &check.host {
        Some(host) if target.port() == default_port || host.has_port => host.text.clone(),
        Some(host) => format!("{}:{}", host.text, target.port()),
        None => own_host(target, default_port),
    };
    format!(
        "GET {} HTTP/1.1\r\nhost: {host}\r\nuser-agent: steadfast-health/{}\r\naccept: */*\r\nconnection: close\r\n\r\n",
        check.path,
        env!("CARGO_PKG_VERSION")
    )
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

    #[test]
    fn host_carries_a_port_that_is_not_the_schemes_own() {
        let host_of = |host: &str, target: &str, port| {
            let check = HttpCheck::new("/", Some(host), vec![], None).unwrap();
            let request = request(&check, target.parse().unwrap(), port);
            request.lines().find_map(|line| line.strip_prefix("host: ")).unwrap().to_owned()
        };
        assert_eq!(host_of("mychart.example", "10.0.0.1:80", 80), "mychart.example");
        assert_eq!(host_of("mychart.example", "10.0.0.1:8080", 80), "mychart.example:8080");
        assert_eq!(host_of("mychart.example", "10.0.0.1:8443", 443), "mychart.example:8443");
        assert_eq!(host_of("[2001:db8::1]", "10.0.0.1:8443", 443), "[2001:db8::1]:8443");
        assert_eq!(host_of("mychart.example:99", "10.0.0.1:8443", 443), "mychart.example:99");
    }
}
