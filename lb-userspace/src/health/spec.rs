//! What to probe and how: checked once, here, so that a probe has nothing left to doubt.

use std::fmt;
use std::net::{IpAddr, Ipv6Addr, SocketAddr};
use std::num::NonZeroU32;
use std::ops::RangeInclusive;
use std::time::Duration;

use hyper::http::uri::{Authority, PathAndQuery};
use rustls::pki_types::ServerName;
use thiserror::Error;

use super::state::Thresholds;
use super::tls::Verify;
use crate::config::{self, HealthKind};

/// Shortest interval and timeout; less would be load, not a check.
pub const SHORTEST: Duration = Duration::from_millis(10);

/// How a configured check is carried out: what a probe does, and how often. What the reader of the configuration and the
/// daemon both ask, so that what the one takes the other can do.
///
/// # Errors
/// The first thing that a probe could not do.
pub fn from_config(
    check: &config::HealthCheck,
    source: Option<IpAddr>,
) -> Result<(ProbeSpec, Rhythm), SpecError> {
    let http = || {
        HttpCheck::new(
            &check.path,
            check.host.as_deref(),
            check.expect_status.iter().map(|range| range.first..=range.last).collect(),
            check.expect_body.clone(),
        )
    };
    let kind = match check.kind {
        HealthKind::None => ProbeKind::None,
        HealthKind::Tcp => ProbeKind::Tcp,
        HealthKind::Tls => ProbeKind::Tls(check.host.as_deref().map(TlsName::new).transpose()?),
        HealthKind::Http => ProbeKind::Http(http()?),
        HealthKind::Https => ProbeKind::Https(http()?),
    };
    let probe = ProbeSpec::new(kind, check.timeout, source)?.verifying(check.verify.clone());
    Ok((probe, Rhythm::new(check.interval, check.fall, check.rise)?))
}

/// One real server to watch.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TargetSpec {
    /// The caller's own number for it.
    pub id: u32,
    /// Where it is probed.
    pub address: SocketAddr,
    /// What a probe does.
    pub probe: ProbeSpec,
    /// How often, and how many probes decide.
    pub rhythm: Rhythm,
}

/// How often a target is probed, and how many probes decide.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Rhythm {
    pub(super) interval: Duration,
    pub(super) thresholds: Thresholds,
}

impl Rhythm {
    /// `interval` is the longest time from one probe's start to the next (unless a probe itself takes
    /// longer); `fall` failures in a row make a server down, `rise` successes in a row up again.
    ///
    /// # Errors
    /// An interval under [`SHORTEST`], or a count of zero.
    pub fn new(interval: Duration, fall: u32, rise: u32) -> Result<Self, SpecError> {
        if interval < SHORTEST {
            return Err(SpecError::TooShort("interval", interval));
        }
        let fall = NonZeroU32::new(fall).ok_or(SpecError::Zero("fall"))?;
        let rise = NonZeroU32::new(rise).ok_or(SpecError::Zero("rise"))?;
        Ok(Self { interval, thresholds: Thresholds { fall, rise } })
    }
}

/// What one probe does.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ProbeSpec {
    pub(super) kind: ProbeKind,
    pub(super) timeout: Duration,
    pub(super) source: Option<IpAddr>,
    pub(super) verify: Verify,
}

impl ProbeSpec {
    /// `timeout` covers the whole probe, from connecting to the last byte looked at. `source` is the
    /// local address to connect from; the system chooses when it is `None`.
    ///
    /// # Errors
    /// A timeout under [`SHORTEST`].
    pub fn new(kind: ProbeKind, timeout: Duration, source: Option<IpAddr>) -> Result<Self, SpecError> {
        if timeout < SHORTEST {
            return Err(SpecError::TooShort("timeout", timeout));
        }
        Ok(Self { kind, timeout, source, verify: Verify::None })
    }

    /// The same, with the server's certificate judged (`tls`, `https`).
    #[must_use]
    pub fn verifying(self, verify: Verify) -> Self {
        Self { verify, ..self }
    }
}

/// The kinds of probe.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ProbeKind {
    /// No traffic: the server counts as up.
    None,
    /// A TCP connection can be made.
    Tcp,
    /// A TLS hello is answered.
    Tls(Option<TlsName>),
    /// An HTTP/1.1 GET is answered as expected.
    Http(HttpCheck),
    /// The same over TLS; where the server answers the hello and there is no session, the status is not asked.
    Https(HttpCheck),
}

/// A name to ask for in a TLS handshake (SNI).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TlsName(pub(super) ServerName<'static>);

impl TlsName {
    /// A DNS name, or an IP address, IPv6 also in brackets (which is asked for by not sending SNI, RFC 6066 3).
    ///
    /// # Errors
    /// Neither of them.
    pub fn new(name: &str) -> Result<Self, SpecError> {
        let bare = name.strip_prefix('[').and_then(|rest| rest.strip_suffix(']'));
        let found = match bare.map(str::parse::<Ipv6Addr>) {
            Some(address) => address.map(ServerName::from).ok(),
            None => ServerName::try_from(name.to_owned()).ok(),
        };
        found.map(Self).ok_or_else(|| SpecError::Name(name.to_owned()))
    }
}

/// What an HTTP probe says of itself whom it asks.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Host {
    /// As given: a name or address, and a port if it has one.
    pub(super) text: String,
    /// Whether it has a port; without one, that of the target is added where it is not the scheme's own.
    pub(super) has_port: bool,
    /// What is asked for in a TLS handshake.
    pub(super) name: TlsName,
}

/// What an HTTP probe asks for and expects.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HttpCheck {
    pub(super) path: PathAndQuery,
    pub(super) host: Option<Host>,
    pub(super) expect_status: StatusRanges,
    pub(super) expect_body: Option<String>,
}

impl HttpCheck {
    /// Asks for `path`, sending `host` (`name` or `name:port`) as `Host` and its name as SNI, or the
    /// target's own address when there is none. The status has to lie in one of `expect_status`
    /// (200-399 when that is empty), and `expect_body`, if given, within the first 64 KiB of the body.
    ///
    /// # Errors
    /// A path that does not begin with a slash, a host that is none, or a range of no status.
    pub fn new(
        path: &str,
        host: Option<&str>,
        expect_status: Vec<RangeInclusive<u16>>,
        expect_body: Option<String>,
    ) -> Result<Self, SpecError> {
        Ok(Self {
            path: parse_path(path)?,
            host: host.map(parse_host).transpose()?,
            expect_status: StatusRanges::new(expect_status)?,
            expect_body: expect_body.filter(|text| !text.is_empty()),
        })
    }
}

/// The path, and the query if there is one, of a request.
///
/// # Errors
/// It does not begin with a slash, or has bytes that no URI has: those are to be percent-encoded (RFC 3986 section 2.1).
pub fn parse_path(path: &str) -> Result<PathAndQuery, SpecError> {
    let bad = || SpecError::Path(path.to_owned());
    let is_plain = path.bytes().all(|byte| byte.is_ascii_graphic() && !b"#\"<>`".contains(&byte));
    if !path.starts_with('/') || !is_plain {
        return Err(bad());
    }
    path.parse().map_err(|_| bad())
}

fn parse_host(host: &str) -> Result<Host, SpecError> {
    let bad = || SpecError::Name(host.to_owned());
    let authority: Authority = host.parse().map_err(|_| bad())?;
    if host.contains('@') {
        return Err(bad());
    }
    let name = TlsName::new(authority.host())?;
    Ok(Host { text: host.to_owned(), has_port: authority.port().is_some(), name })
}

/// The statuses that count as an answer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct StatusRanges(Vec<RangeInclusive<u16>>);

impl StatusRanges {
    fn new(mut ranges: Vec<RangeInclusive<u16>>) -> Result<Self, SpecError> {
        if ranges.is_empty() {
            ranges.push(200..=399);
        }
        match ranges.iter().find(|r| r.is_empty() || *r.start() < 100 || *r.end() > 599) {
            Some(bad) => Err(SpecError::Status(bad.clone())),
            None => Ok(Self(ranges)),
        }
    }

    pub(super) fn contains(&self, status: u16) -> bool {
        self.0.iter().any(|range| range.contains(&status))
    }
}

impl fmt::Display for StatusRanges {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, range) in self.0.iter().enumerate() {
            let separator = if index == 0 { "" } else { ", " };
            match (range.start(), range.end()) {
                (start, end) if start == end => write!(f, "{separator}{start}")?,
                (start, end) => write!(f, "{separator}{start}-{end}")?,
            }
        }
        Ok(())
    }
}

/// Why a specification is none.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum SpecError {
    /// A duration under [`SHORTEST`].
    #[error("{0} {1:?} is too short: use at least 10ms")]
    TooShort(&'static str, Duration),
    /// A count of zero.
    #[error("{0} is 0: use 1 or more")]
    Zero(&'static str),
    /// Not a path of an HTTP request.
    #[error(
        "path {0:?} is not valid: it begins with /, and has no space, quote, #, <, >, backtick or byte beyond ASCII"
    )]
    Path(String),
    /// Not a host name or address.
    #[error("{0:?} is not a host name or an address")]
    Name(String),
    /// A range with no HTTP status in it, or beyond them.
    #[error("status range {}-{} is not valid: statuses are 100 to 599, the lower one first", .0.start(), .0.end())]
    Status(RangeInclusive<u16>),
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_probe_could_not_do_is_refused_before() {
        let second = Duration::from_secs(1);
        let http = |path, host, status| HttpCheck::new(path, host, status, None).map(|_| ());
        assert_eq!(
            Rhythm::new(Duration::ZERO, 3, 2).unwrap_err(),
            SpecError::TooShort("interval", Duration::ZERO)
        );
        assert_eq!(Rhythm::new(second, 0, 2).unwrap_err(), SpecError::Zero("fall"));
        assert_eq!(Rhythm::new(second, 3, 0).unwrap_err(), SpecError::Zero("rise"));
        assert!(ProbeSpec::new(ProbeKind::Tcp, Duration::ZERO, None).is_err());
        for name in ["not a name", "[mychart.example]", "[10.0.0.1]", "[2001:db8::1", "[2001:db8::1]:443"] {
            assert!(TlsName::new(name).is_err(), "{name}");
        }
        assert_eq!(http("health", None, vec![]), Err(SpecError::Path("health".to_owned())));
        for path in ["", "/a b", "/\r\nX: y", "/\u{e9}", "/a`b", "/<", "/a?b=\"c\"", "/a#b"] {
            assert!(http(path, None, vec![]).is_err(), "{path:?}");
        }
        for host in ["", "a b", "user@h", "h/..", "h\r\n", "[::1"] {
            assert!(http("/", Some(host), vec![]).is_err(), "{host:?}");
        }
        #[expect(clippy::reversed_empty_ranges, reason = "the mistake that is to be refused")]
        let ranges = [300..=200, 0..=99, 200..=600];
        for range in ranges {
            assert_eq!(http("/", None, vec![range.clone()]), Err(SpecError::Status(range)));
        }
    }

    #[test]
    fn ordinary_specifications_are_taken() {
        for host in ["mychart.example", "mychart.example:8443", "10.0.0.1", "[2001:db8::1]:443", "epic_prd"] {
            assert!(HttpCheck::new("/a?b=c", Some(host), vec![200..=204], None).is_ok(), "{host}");
        }
        for name in ["mychart.example", "10.0.0.1", "2001:db8::1", "[2001:db8::1]"] {
            assert!(TlsName::new(name).is_ok(), "{name}");
        }
        let default = HttpCheck::new("/", None, vec![], Some(String::new())).unwrap();
        assert_eq!((default.expect_status.to_string().as_str(), &default.expect_body), ("200-399", &None));
        assert_eq!(StatusRanges::new(vec![200..=200, 300..=399]).unwrap().to_string(), "200, 300-399");
    }
}
