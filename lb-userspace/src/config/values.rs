//! Scalars and lists to values: each reader takes a node, reports what is wrong with it, and returns
//! `None` then.

use std::net::{IpAddr, Ipv4Addr};
use std::ops::RangeInclusive;
use std::time::Duration;

use super::duration::{display_duration, parse_duration};
use super::error::{Findings, Position};
use super::label::{InvalidLabel, Label};
use super::suggest::suggest;
use super::tree::{Shape, Tree};

/// A value and where it stands, for rules that compare several.
#[derive(Debug, Clone, Copy)]
pub(super) struct At<T> {
    pub(super) value: T,
    pub(super) at: Position,
}

/// The most characters of the file's own text in an error.
const MAX_QUOTED: usize = 60;

/// The file's own text for an error: in quotes, escaped, not too long.
pub(super) fn quoted(text: &str) -> String {
    let mut shown: String = text.chars().take(MAX_QUOTED).collect();
    if shown.len() < text.len() {
        shown.push('…');
    }
    format!("{shown:?}")
}

/// The text of a single value, reported as missing or misshapen otherwise.
pub(super) fn text<'t>(tree: &'t Tree, what: &str, remedy: &str, findings: &mut Findings) -> Option<&'t str> {
    match &tree.shape {
        Shape::Text(text) => Some(text),
        Shape::Null => {
            findings.error(tree.at, format!("{what} has no value"), remedy);
            None
        }
        other => {
            findings.error(tree.at, format!("{what} is {}, not a single value", other.name()), remedy);
            None
        }
    }
}

/// The items of a list.
pub(super) fn list<'t>(
    tree: &'t Tree,
    what: &str,
    remedy: &str,
    findings: &mut Findings,
) -> Option<&'t [Tree]> {
    match &tree.shape {
        Shape::List(items) => Some(items),
        Shape::Null => {
            findings.error(tree.at, format!("{what} has no value"), remedy);
            None
        }
        other => {
            findings.error(tree.at, format!("{what} is {}, not a list", other.name()), remedy);
            None
        }
    }
}

/// One word of a set. `later`: words of the contract that this version does not do yet.
pub(super) fn word<T: Copy>(
    tree: &Tree,
    what: &str,
    words: &[(&str, T)],
    later: &[&str],
    findings: &mut Findings,
) -> Option<T> {
    let names: Vec<&str> = words.iter().map(|(name, _)| *name).collect();
    let all = format!("use {}", any_of(&names));
    let given = text(tree, what, &all, findings)?;
    if let Some((_, value)) = words.iter().find(|(name, _)| *name == given) {
        return Some(*value);
    }
    if later.contains(&given) {
        findings.error(tree.at, format!("{what} {given} is not supported in this version yet"), all);
    } else {
        let near = if findings.tells(tree.at) { suggest(given, &names) } else { None };
        let remedy = near.map_or(all, |near| format!("did you mean \"{near}\"?"));
        findings.error(tree.at, format!("{} is not a known {what}", quoted(given)), remedy);
    }
    None
}

/// `a, b or c`.
fn any_of(names: &[&str]) -> String {
    match names {
        [] => String::new(),
        [only] => (*only).to_owned(),
        [most @ .., last] => format!("{} or {last}", most.join(", ")),
    }
}

/// `true` or `false`, and none of YAML's older spellings.
pub(super) fn boolean(tree: &Tree, what: &str, findings: &mut Findings) -> Option<bool> {
    let remedy = "write true or false";
    match text(tree, what, remedy, findings)? {
        "true" | "True" | "TRUE" => Some(true),
        "false" | "False" | "FALSE" => Some(false),
        other => {
            findings.error(tree.at, format!("{what} {} is neither true nor false", quoted(other)), remedy);
            None
        }
    }
}

/// A decimal whole number within `range`.
pub(super) fn whole<T>(
    tree: &Tree,
    what: &str,
    range: RangeInclusive<T>,
    findings: &mut Findings,
) -> Option<T>
where
    T: TryFrom<i128> + Into<i128> + Copy,
{
    let (low, high): (i128, i128) = ((*range.start()).into(), (*range.end()).into());
    let remedy = format!("write a whole number from {low} to {high}");
    let given = text(tree, what, &remedy, findings)?;
    match number(given) {
        None => {
            findings.error(tree.at, format!("{what} {} is not a whole number", quoted(given)), remedy);
            None
        }
        Some(value) if value < low || value > high => {
            findings.error(tree.at, format!("{what} {given} is out of range"), remedy);
            None
        }
        Some(value) => T::try_from(value).ok(),
    }
}

/// Decimal digits with an optional minus. No leading zero: other YAML readers take it for octal.
fn number(text: &str) -> Option<i128> {
    let digits = text.strip_prefix('-').unwrap_or(text);
    let plain = !digits.is_empty() && digits.bytes().all(|byte| byte.is_ascii_digit());
    let padded = digits.len() > 1 && digits.starts_with('0');
    (plain && !padded && digits.len() <= 20).then(|| text.parse().ok())?
}

/// A port.
pub(super) fn port(tree: &Tree, findings: &mut Findings) -> Option<u16> {
    whole(tree, "port", 1..=u16::MAX, findings)
}

/// A duration within `range`; a bare number counts in `bare_unit`.
pub(super) fn duration(
    tree: &Tree,
    what: &str,
    bare_unit: Duration,
    range: RangeInclusive<Duration>,
    findings: &mut Findings,
) -> Option<Duration> {
    let remedy = "write numbers with units, as in 500ms, 2s, 60m, 1h30m or 2d";
    let given = text(tree, what, remedy, findings)?;
    let Some(value) = parse_duration(given, bare_unit) else {
        findings.error(tree.at, format!("{what} {} is not a duration", quoted(given)), remedy);
        return None;
    };
    if range.contains(&value) {
        return Some(value);
    }
    let (low, high) = (display_duration(*range.start()), display_duration(*range.end()));
    let remedy = format!("write a duration from {low} to {high}");
    findings.error(tree.at, format!("{what} {} is out of range", display_duration(value)), remedy);
    None
}

/// A label.
pub(super) fn label(tree: &Tree, findings: &mut Findings) -> Option<Label> {
    let given = text(tree, "label", InvalidLabel::REMEDY, findings)?;
    match given.parse() {
        Ok(label) => Some(label),
        Err(why) => {
            findings.error(tree.at, format!("label {} {why}", quoted(given)), InvalidLabel::REMEDY);
            None
        }
    }
}

/// An address of one machine that other networks reach: not unspecified, loopback, link-local IPv6, multicast or
/// broadcast.
pub(super) fn address(tree: &Tree, what: &str, findings: &mut Findings) -> Option<IpAddr> {
    let remedy = "write one IP address, as in 192.168.85.150 or 2001:db8::150";
    let given = text(tree, what, remedy, findings)?;
    // fe80::1%eth0 (RFC 4007 section 11) is no address here, but it is clear what was meant.
    let Ok(address) = given.split_once('%').map_or(given, |(address, _zone)| address).parse::<IpAddr>()
    else {
        findings.error(tree.at, format!("{what} {} is not an IP address", quoted(given)), remedy);
        return None;
    };
    if let IpAddr::V6(v6) = address
        && let Some(v4) = v6.to_ipv4_mapped()
    {
        findings.error(tree.at, format!("{what} {address} is an IPv4 address"), format!("write {v4}"));
        return None;
    }
    match refused_kind(address) {
        None if given.contains('%') => {
            findings.error(tree.at, format!("{what} {} names an interface", quoted(given)), remedy);
            None
        }
        None => Some(address),
        Some(kind) => {
            findings.error(tree.at, format!("{what} {address} is {kind}"), remedy);
            None
        }
    }
}

fn refused_kind(address: IpAddr) -> Option<&'static str> {
    if address == IpAddr::V4(Ipv4Addr::BROADCAST) {
        Some("the broadcast address")
    } else if address.is_unspecified() {
        Some("the unspecified address")
    } else if address.is_loopback() {
        Some("a loopback address")
    } else if address.is_multicast() {
        Some("a multicast address")
    } else if matches!(address, IpAddr::V6(v6) if v6.is_unicast_link_local()) {
        Some("a link-local address, which nobody reaches from beyond the link")
    } else {
        None
    }
}

/// An inclusive range `A-B` of small numbers; `None` also where B is less than A.
pub(super) fn range_of(text: &str) -> Option<(u16, u16)> {
    let (first, last) = text.split_once('-')?;
    let (first, last) = (number(first.trim())?, number(last.trim())?);
    let (first, last) = (u16::try_from(first).ok()?, u16::try_from(last).ok()?);
    (first <= last).then_some((first, last))
}
