//! The host's safety net: an nftables table of our own that drops what the program takes, should it ever reach the host.
//!
//! While the program is on its interface nothing of it gets here. In a gap (the program taken off, replaced by hand, an
//! interface made anew) the host's own TCP stack would answer a connection that it does not know with RST, and end a
//! session. A packet that is dropped is sent again a moment later. The table holds what the program's index holds:
//! services, which clients speak to, and servers, which answer to SNAT ports. A service that the daemon answers itself
//! (protocol http) is not in it.
//!
//! Servers that know clients by their own addresses (mode `nat`) answer by way of a host that may well be a router. It would
//! pass their answers on as they are, and the client, which knows the service's address only, would answer with RST. So they
//! go on to those alone who have sent something to that server by way of this host.

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
    /// Addresses and ports that real servers answer from, to the sources' SNAT ports.
    pub servers: BTreeSet<SocketAddr>,
    /// Addresses and ports that real servers answer from, to clients.
    pub nat_servers: BTreeSet<SocketAddr>,
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
            nat_servers: of_kind(EntryKind::NatEndpoint),
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
            elements: self.services.len() + self.servers.len() + self.nat_servers.len() + self.sources.len(),
            ..InForce::default()
        }
    }

    /// The table, in one transaction: what it held makes way for what it holds now between two packets. Who speaks with
    /// servers directly stays known.
    #[must_use]
    pub fn script(&self) -> String {
        let (first, last) = self.ports;
        let mark = self.mark();
        let input = |family: &str, version: &str| {
            format!(
                "    {family} daddr . tcp dport @services{version} counter drop comment \"{SERVICES} {mark}\"\n    \
                 {family} daddr @sources{version} tcp dport {first}-{last} {family} saddr . tcp sport \
                 @servers{version} counter drop comment \"{SERVERS} {mark}\"\n"
            )
        };
        let forward = |family: &str, version: &str| {
            format!(
                "    {family} daddr . tcp dport @nat_servers{version} update @{DIRECT}{version} {{ {family} saddr . {family} \
                 daddr }} comment \"{DIRECT} {mark}\"\n    \
                 {family} saddr . tcp sport @nat_servers{version} {family} daddr . {family} saddr != @{DIRECT}{version} \
                 counter drop comment \"{SERVERS} {mark}\"\n"
            )
        };
        let sets: Vec<Set> = [
            Set::of(self, "4", "ipv4_addr", IpAddr::is_ipv4),
            Set::of(self, "6", "ipv6_addr", IpAddr::is_ipv6),
        ]
        .into_iter()
        .flatten()
        .collect();
        let empty: String = sets.iter().map(|set| set.text(false)).collect();
        let flushed: String = sets.iter().map(|set| format!("flush set {TABLE} {}\n", set.name)).collect();
        let full: String = sets.iter().map(|set| set.text(true)).collect();
        format!(
            "table {TABLE} {{\n{empty}{}{}  chain input {{ type filter hook input priority filter - 10; policy accept; }}\n  \
             chain forward {{ type filter hook forward priority filter - 10; policy accept; }}\n}}\n\
             flush chain {TABLE} input\nflush chain {TABLE} forward\n{flushed}\
             table {TABLE} {{\n{full}  chain input {{\n    iifname \"lo\" accept comment \"the host itself {mark}\"\n{}{}  \
             }}\n  chain forward {{\n{}{}  }}\n}}\n",
            direct("4", "ipv4_addr"),
            direct("6", "ipv6_addr"),
            input("ip", "4"),
            input("ip6", "6"),
            forward("ip", "4"),
            forward("ip6", "6"),
        )
    }

    /// A short digest of the content: it stands in the comments of the rules.
    fn mark(&self) -> String {
        let text = format!("{self:?}");
        let digest = text.bytes().fold(0, |digest, byte| mix(digest ^ u64::from(byte)));
        format!("{digest:016x}")
    }
}

/// Rules in the table.
const RULES: usize = 9;
/// How the comments of rules begin that drop what clients send, and what servers answer.
const SERVICES: &str = "services";
const SERVERS: &str = "servers";
/// How the names of the sets begin that the kernel fills: clients and the servers that they speak with directly.
const DIRECT: &str = "direct";

/// A set that we fill.
struct Set {
    name: String,
    kind: String,
    elements: Vec<String>,
}

impl Set {
    /// Those of one family.
    fn of(guarded: &Guarded, version: &str, address: &str, of_family: impl Fn(&IpAddr) -> bool) -> [Self; 4] {
        let set =
            |name: &str, kind: String, elements| Self { name: format!("{name}{version}"), kind, elements };
        let places = |places: &BTreeSet<SocketAddr>| {
            let of_family = places.iter().filter(|place| of_family(&place.ip()));
            of_family.map(|place| format!("{} . {}", place.ip(), place.port())).collect()
        };
        let place = || format!("{address} . inet_service");
        let sources = guarded.sources.iter().filter(|source| of_family(source)).map(ToString::to_string);
        [
            set("services", place(), places(&guarded.services)),
            set("servers", place(), places(&guarded.servers)),
            set("nat_servers", place(), places(&guarded.nat_servers)),
            set("sources", address.to_owned(), sources.collect()),
        ]
    }

    fn text(&self, filled: bool) -> String {
        let Self { name, kind, elements } = self;
        let elements = match elements.as_slice() {
            [_, ..] if filled => format!(" elements = {{ {} }};", elements.join(", ")),
            _ => String::new(),
        };
        format!("  set {name} {{ type {kind};{elements} }}\n")
    }
}

/// The set of those who speak with servers directly: forgotten an hour after their last packet.
fn direct(version: &str, address: &str) -> String {
    format!(
        "  set {DIRECT}{version} {{ type {address} . {address}; size 65536; flags dynamic,timeout; timeout 1h; }}\n"
    )
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
