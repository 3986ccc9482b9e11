//! The `health_check` section.

use std::net::Ipv6Addr;
use std::path::PathBuf;
use std::time::Duration;

use super::duration::display_duration;
use super::error::Findings;
use super::fields::Fields;
use super::model::{HealthCheck, HealthKind, StatusRange};
use super::tree::Tree;
use super::values::{boolean, duration, list, port, quoted, range_of, text, whole, word};
use crate::health::Verify;
use crate::health::spec::{self, TlsName};

const KEYS: &[&str] = &[
    "kind",
    "interval",
    "timeout",
    "fall",
    "rise",
    "port",
    "path",
    "host",
    "verify",
    "expect_status",
    "expect_body",
    "answer_first",
];
const SECOND: Duration = Duration::from_secs(1);
const MIN_TIMEOUT: Duration = Duration::from_millis(10);
const MIN_INTERVAL: Duration = Duration::from_millis(100);
const MAX_INTERVAL: Duration = Duration::from_secs(3600);
/// More than any server takes in a request line or looks for in a body.
const MAX_TEXT: usize = 1024;
/// RFC 1035, section 2.3.4.
const MAX_HOST: usize = 253;

/// Reads the section; `None` where it is not a mapping.
pub(super) fn health_check(tree: &Tree, findings: &mut Findings) -> Option<HealthCheck> {
    let mistakes = findings.mistakes();
    let check = entries(tree, findings)?;
    // Whatever the checker could not do and the readers below have let pass.
    if findings.mistakes() == mistakes
        && let Err(why) = spec::from_config(&check, None)
    {
        findings.error(tree.at, format!("this check cannot be made: {why}"), "correct it");
    }
    Some(check)
}

fn entries(tree: &Tree, findings: &mut Findings) -> Option<HealthCheck> {
    let fields = Fields::open(tree, "health_check", KEYS, findings)?;
    let default = HealthCheck::default();
    let kind = fields.or_default("kind", default.kind, findings, |tree, findings| {
        word(tree, "health check kind", HealthKind::WORDS, &[], findings)
    });
    refuse_what_kind_ignores(&fields, kind, findings);
    let interval = fields.or_default("interval", default.interval, findings, |tree, findings| {
        duration(tree, "interval", SECOND, MIN_INTERVAL..=MAX_INTERVAL, findings)
    });
    Some(HealthCheck {
        kind,
        interval,
        timeout: timeout(&fields, interval, findings),
        fall: fields.or_default("fall", default.fall, findings, |tree, findings| {
            whole(tree, "fall", 1..=100, findings)
        }),
        rise: fields.or_default("rise", default.rise, findings, |tree, findings| {
            whole(tree, "rise", 1..=100, findings)
        }),
        port: fields.get("port").and_then(|tree| port(tree, findings)),
        path: fields.or_default("path", default.path, findings, path),
        host: fields.get("host").and_then(|tree| host(tree, findings)),
        verify: fields.or_default("verify", default.verify, findings, verify),
        expect_status: fields.or_default("expect_status", default.expect_status, findings, statuses),
        expect_body: fields.get("expect_body").and_then(|tree| body(tree, findings)),
        answer_first: fields.or_default("answer_first", default.answer_first, findings, |tree, findings| {
            boolean(tree, "answer_first", findings)
        }),
    })
}

/// A check that looks stricter than it is would be worse than none.
fn refuse_what_kind_ignores(fields: &Fields<'_>, kind: HealthKind, findings: &mut Findings) {
    let ignored: &[(&str, &str)] = match kind {
        HealthKind::Http => &[("verify", "tls or https")],
        HealthKind::Https => &[],
        HealthKind::Tls => {
            &[("path", "http or https"), ("expect_status", "http or https"), ("expect_body", "http or https")]
        }
        HealthKind::Tcp | HealthKind::None => &[
            ("path", "http or https"),
            ("host", "tls, http or https"),
            ("verify", "tls or https"),
            ("expect_status", "http or https"),
            ("expect_body", "http or https"),
        ],
    };
    if kind == HealthKind::None
        && let Some(at) = fields.key_at("answer_first")
    {
        let what = "answer_first has no meaning for a health check of kind none";
        findings.error(at, what, "remove it, or use kind tcp, tls, http or https");
    }
    for (key, kinds) in ignored {
        if let Some(at) = fields.key_at(key) {
            let what = format!("{key} has no meaning for a health check of kind {kind}");
            findings.error(at, what, format!("remove it, or use kind {kinds}"));
        }
    }
}

fn timeout(fields: &Fields<'_>, interval: Duration, findings: &mut Findings) -> Duration {
    let default = HealthCheck::TIMEOUT.min(interval);
    fields.or_default("timeout", default, findings, |tree, findings| {
        let timeout = duration(tree, "timeout", SECOND, MIN_TIMEOUT..=MAX_INTERVAL, findings)?;
        if timeout > interval {
            let (timeout, interval) = (display_duration(timeout), display_duration(interval));
            let what = format!("timeout {timeout} is longer than the interval {interval}");
            findings.error(tree.at, what, format!("write {interval} or less, or check less often"));
            return None;
        }
        Some(timeout)
    })
}

fn path(tree: &Tree, findings: &mut Findings) -> Option<String> {
    let remedy = "write a path as in /health, percent-encoded where needed";
    let given = text(tree, "path", remedy, findings)?;
    if spec::parse_path(given).is_err() || given.len() > MAX_TEXT {
        findings.error(tree.at, format!("path {} cannot be requested", quoted(given)), remedy);
        return None;
    }
    Some(given.to_owned())
}

/// A host name or an address; an IPv6 address comes out in brackets, as `Host` has it (RFC 3986 section 3.2.2).
fn host(tree: &Tree, findings: &mut Findings) -> Option<String> {
    let remedy = "write a host name, without scheme and port";
    let given = text(tree, "host", remedy, findings)?;
    let bare = given.strip_prefix('[').and_then(|rest| rest.strip_suffix(']')).unwrap_or(given);
    if let Ok(address) = bare.parse::<Ipv6Addr>() {
        return Some(format!("[{address}]"));
    }
    let allowed = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'.' | b'-' | b'_');
    if given.is_empty() || given.len() > MAX_HOST || !given.bytes().all(allowed) {
        findings.error(tree.at, format!("host {} is not a host name", quoted(given)), remedy);
        return None;
    }
    if TlsName::new(given).is_err() {
        let what = format!("host {} is not a host name", quoted(given));
        let remedy = "write labels of letters, digits, - and _ with dots between them, none empty, longer than 63, or with \
                      - at an end";
        findings.error(tree.at, what, remedy);
        return None;
    }
    Some(given.to_owned())
}

fn verify(tree: &Tree, findings: &mut Findings) -> Option<Verify> {
    let remedy = "write none, system, or the whole path of a PEM file with the certificate authorities";
    match text(tree, "verify", remedy, findings)? {
        "none" => Some(Verify::None),
        "system" => Some(Verify::System),
        path if path.starts_with('/') && path.len() <= MAX_TEXT && !path.contains('\0') => {
            Some(Verify::File(PathBuf::from(path)))
        }
        other => {
            findings.error(
                tree.at,
                format!("verify {} is neither of its words nor a whole path", quoted(other)),
                remedy,
            );
            None
        }
    }
}

fn statuses(tree: &Tree, findings: &mut Findings) -> Option<Vec<StatusRange>> {
    let remedy = "write a list of status codes and ranges, as in [200-399]";
    let items = list(tree, "expect_status", remedy, findings)?;
    if items.is_empty() {
        findings.error(tree.at, "expect_status is empty, so that no answer would pass", remedy);
        return None;
    }
    let mut ranges = Vec::with_capacity(items.len());
    for item in items {
        ranges.push(status(item, remedy, findings)?);
    }
    Some(ranges)
}

fn status(tree: &Tree, remedy: &str, findings: &mut Findings) -> Option<StatusRange> {
    let given = text(tree, "a status", remedy, findings)?;
    let single = || given.parse().ok().map(|code: u16| (code, code));
    match range_of(given).or_else(single) {
        Some((first, last)) if first >= 100 && last <= 599 => Some(StatusRange { first, last }),
        _ => {
            let what = format!("{} is not a status code or range within 100-599", quoted(given));
            findings.error(tree.at, what, remedy);
            None
        }
    }
}

fn body(tree: &Tree, findings: &mut Findings) -> Option<String> {
    let remedy = format!("write 1 to {MAX_TEXT} bytes of text that a good answer contains");
    let given = text(tree, "expect_body", &remedy, findings)?;
    if given.is_empty() || given.len() > MAX_TEXT {
        findings.error(tree.at, format!("expect_body is {} bytes long", given.len()), remedy);
        return None;
    }
    Some(given.to_owned())
}
