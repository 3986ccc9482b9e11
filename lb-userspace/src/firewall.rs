//! The host's safety net: an nftables table of our own that drops what the program takes, should it ever reach the host.
//!
//! While the program is on its interface nothing of it gets here. In a gap (the program taken off, replaced by hand, an
//! interface made anew) the host's own TCP stack would answer a connection that it does not know with RST, and end a
//! session. A packet that is dropped is sent again a moment later. The table holds what the program's index holds:
//! services, which clients speak to, and servers, which answer to SNAT ports. A service that the daemon answers itself
//! (protocol http) is not in it.

use std::collections::BTreeSet;
use std::net::{IpAddr, SocketAddr};

use lb_common::control::Snat;
use lb_common::hash::mix;
use lb_common::service::{EntryKind, IndexEntry};
use serde::Serialize;

use crate::core::apply::live_index;
use crate::dataplane::Maps;
use crate::view::flow;

mod listing;
mod nft;

pub use listing::{InForce, read};
pub use nft::{Follower, Missing, look, put, remove};

/// The table, as `nft` names it. Everything in it is ours, and nothing outside of it.
pub const TABLE: &str = "inet steadfast";

/// What must not reach the host's TCP stack.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Guarded {
    /// Addresses and ports that clients connect to.
    pub services: BTreeSet<SocketAddr>,
    /// Addresses and ports that real servers answer from.
    pub servers: BTreeSet<SocketAddr>,
    /// The addresses that servers answer to.
    pub sources: BTreeSet<IpAddr>,
    /// First and last SNAT port.
    pub ports: (u16, u16),
}

impl Guarded {
    /// What the running program takes.
    #[must_use]
    pub fn of(maps: &Maps) -> Self {
        let index = live_index(maps);
        let of_kind = |kind: EntryKind| -> BTreeSet<SocketAddr> {
            index.iter().filter(|entry| entry.kind == kind).map(place).collect()
        };
        let control = maps.control();
        let snat = Snat::from_word(control.snat.load());
        let last = u32::from(snat.first_port) + snat.ports.saturating_sub(1);
        Self {
            services: of_kind(EntryKind::Service),
            servers: of_kind(EntryKind::Endpoint),
            sources: flow::sources(control).collect(),
            ports: (snat.first_port, u16::try_from(last).unwrap_or(u16::MAX)),
        }
    }

    /// The rules and elements that the table must have, to tell it from one that somebody has changed.
    #[must_use]
    pub fn expected(&self) -> InForce {
        InForce {
            mark: self.mark(),
            rules: RULES,
            elements: self.services.len() + self.servers.len() + self.sources.len(),
            ..InForce::default()
        }
    }

    /// The table, in one transaction: the old one goes and the new one comes between two packets.
    #[must_use]
    pub fn script(&self) -> String {
        let (first, last) = self.ports;
        let mark = self.mark();
        let rule = |family: &str, version: &str| {
            format!(
                "    {family} daddr . tcp dport @services{version} counter drop comment \"{SERVICES} {mark}\"\n    \
                 {family} daddr @sources{version} tcp dport {first}-{last} {family} saddr . tcp sport \
                 @servers{version} counter drop comment \"{SERVERS} {mark}\"\n"
            )
        };
        format!(
            "add table {TABLE}\ndelete table {TABLE}\ntable {TABLE} {{\n{}{}  chain input {{\n    type filter hook input \
             priority filter - 10; policy accept;\n    iifname \"lo\" accept comment \"the host itself {mark}\"\n{}{}  \
             }}\n}}\n",
            self.sets("4", "ipv4_addr", IpAddr::is_ipv4),
            self.sets("6", "ipv6_addr", IpAddr::is_ipv6),
            rule("ip", "4"),
            rule("ip6", "6"),
        )
    }

    fn sets(&self, version: &str, kind: &str, of_family: impl Fn(&IpAddr) -> bool) -> String {
        let places = |places: &BTreeSet<SocketAddr>| -> Vec<String> {
            let of_family = places.iter().filter(|place| of_family(&place.ip()));
            of_family.map(|place| format!("{} . {}", place.ip(), place.port())).collect()
        };
        let sources =
            self.sources.iter().filter(|source| of_family(source)).map(ToString::to_string).collect();
        [
            ("services", format!("{kind} . inet_service"), places(&self.services)),
            ("servers", format!("{kind} . inet_service"), places(&self.servers)),
            ("sources", kind.to_owned(), sources),
        ]
        .into_iter()
        .map(|(name, kind, elements)| set(&format!("{name}{version}"), &kind, &elements))
        .collect()
    }

    /// A short digest of the content: it stands in the comments of the rules.
    fn mark(&self) -> String {
        let text = format!("{self:?}");
        let digest = text.bytes().fold(0, |digest, byte| mix(digest ^ u64::from(byte)));
        format!("{digest:016x}")
    }
}

/// Rules in the table.
const RULES: usize = 5;
/// How the comments of rules begin that drop what clients send, and what servers answer.
const SERVICES: &str = "services";
const SERVERS: &str = "servers";

fn set(name: &str, kind: &str, elements: &[String]) -> String {
    let elements = match elements {
        [] => String::new(),
        elements => format!(" elements = {{ {} }};", elements.join(", ")),
    };
    format!("  set {name} {{ type {kind};{elements} }}\n")
}

fn place(entry: &IndexEntry) -> SocketAddr {
    SocketAddr::new(entry.address.into(), u16::from_be(entry.port))
}

/// What there is to say about the table, for `doctor` and the daemon's status.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Report {
    /// Whether it holds what it must.
    pub in_force: bool,
    /// Packets from clients that it has dropped: each would have been an RST.
    pub from_clients: u64,
    /// Packets from servers that it has dropped.
    pub from_servers: u64,
}

impl Report {
    /// Compares what is there with what must be.
    #[must_use]
    pub fn of(there: Option<&InForce>, wanted: &Guarded) -> Self {
        let counted = there.cloned().unwrap_or_default();
        Self {
            in_force: there.is_some_and(|there| there.is(&wanted.expected())),
            from_clients: counted.from_clients,
            from_servers: counted.from_servers,
        }
    }
}

#[cfg(test)]
mod tests;
