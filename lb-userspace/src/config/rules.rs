//! Rules between the parts: what is unique, and what must not be the same.

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::hash::Hash;
use std::net::{IpAddr, SocketAddr};

use super::error::{Findings, Position};
use super::model::{Service, Tables};
use super::pairings;
use super::read_node::NodeDraft;
use super::read_service::Draft;

/// Checks everything that one section alone cannot know.
pub(super) fn check(node: Option<&NodeDraft>, drafts: &[Draft], findings: &mut Findings) {
    unique_services(drafts, findings);
    for draft in drafts {
        unique_servers(draft, findings);
        useful_servers(draft, findings);
    }
    for draft in drafts {
        pairings::check(draft, findings);
    }
    pairings::nat_servers_apart(drafts, findings);
    addresses_apart(node, drafts, findings);
    endpoints_apart(drafts, findings);
    room_in_index(drafts, findings);
    if let Some(node) = node {
        room_for_servers(node, drafts, findings);
    }
}

/// Where each thing was first seen.
struct FirstSeen<K>(HashMap<K, Position>);

impl<K: Eq + Hash> FirstSeen<K> {
    fn new() -> Self {
        Self(HashMap::new())
    }

    /// The line where `key` was seen before, if it was; the same line for a YAML alias used twice.
    fn line_before(&mut self, key: K, at: Position) -> Option<u64> {
        match self.0.entry(key) {
            Entry::Occupied(first) => Some(first.get().line),
            Entry::Vacant(free) => {
                free.insert(at);
                None
            }
        }
    }
}

fn unique_services(drafts: &[Draft], findings: &mut Findings) {
    let mut labels = FirstSeen::new();
    let mut places = FirstSeen::new();
    for draft in drafts {
        if let Some(label) = &draft.label
            && let Some(line) = labels.line_before(&label.value, label.at)
        {
            let what = format!("label \"{}\" is the virtual service on line {line} already", label.value);
            findings.error(label.at, what, "give each virtual service its own label");
        }
        let Some(address) = &draft.address else { continue };
        for port in &draft.ports {
            if let Some(line) = places.line_before((draft.transport, address.value, port.value), address.at) {
                let place = SocketAddr::new(address.value, port.value);
                let what = format!("{place} belongs to the virtual service on line {line} already");
                findings.error(address.at, what, "give one of them another address or port");
            }
        }
    }
}

fn unique_servers(draft: &Draft, findings: &mut Findings) {
    let mut labels = FirstSeen::new();
    let mut places = FirstSeen::new();
    for server in &draft.servers {
        if let Some(label) = &server.label
            && let Some(line) = labels.line_before(&label.value, label.at)
        {
            let what = format!("label \"{}\" is the real server on line {line} already", label.value);
            findings.error(label.at, what, "give each real server of a service its own label");
        }
        if let (Some(address), Some(port)) = (&server.address, server.port)
            && let Some(line) = places.line_before((address.value, port), address.at)
        {
            let place = SocketAddr::new(address.value, port);
            let what = format!("{place} is the real server on line {line} already");
            findings.error(address.at, what, "remove one of them");
        }
    }
}

/// Allowed, because a service may be prepared before its servers; but nobody is served.
fn useful_servers(draft: &Draft, findings: &mut Findings) {
    let Some(Service { label, protocol, real_servers, .. }) = &draft.service else {
        return;
    };
    if !protocol.is_balanced() {
        return;
    }
    if real_servers.is_empty() {
        let what = format!("virtual service \"{label}\" has no real server: it serves nobody");
        findings.warn(draft.at, what, "add real_servers");
    } else if real_servers.iter().all(|server| server.weight == 0) {
        let what = format!("every real server of \"{label}\" has weight 0: it takes no new client");
        findings.warn(draft.at, what, "give one of them a weight");
    }
}

/// A packet to a service, to a server and back from one are told apart by these addresses.
fn addresses_apart(node: Option<&NodeDraft>, drafts: &[Draft], findings: &mut Findings) {
    let mut services: HashMap<IpAddr, Position> = HashMap::new();
    for address in drafts.iter().filter_map(|draft| draft.address) {
        services.entry(address.value).or_insert(address.at);
    }
    let snat = node.map(|node| node.snat_addresses.as_slice()).unwrap_or_default();
    for draft in drafts {
        for address in draft.servers.iter().filter_map(|server| server.address) {
            if let Some(service) = services.get(&address.value) {
                let what = format!(
                    "address {} is the address of the virtual service on line {}",
                    address.value, service.line
                );
                findings.error(address.at, what, "write the real server's own address");
            }
            if let Some(source) = snat.iter().find(|source| source.value == address.value) {
                let what =
                    format!("address {} is the SNAT address on line {}", address.value, source.at.line);
                findings.error(address.at, what, "write the real server's own address");
            }
        }
    }
}

/// What comes from a server's address and port must be of one endpoint. With several ports, the first names it.
fn endpoints_apart(drafts: &[Draft], findings: &mut Findings) {
    let mut named: HashMap<(IpAddr, u16), (u16, Position)> = HashMap::new();
    for draft in drafts {
        for server in &draft.servers {
            let (Some(address), Some(name)) = (server.address, server.port) else { continue };
            let several = draft.ports.iter().map(|port| port.value).filter(|_| server.same_port);
            for port in several.chain([name]) {
                let (before, at) = *named.entry((address.value, port)).or_insert((name, address.at));
                if before == name {
                    continue;
                }
                let place = SocketAddr::new(address.value, port);
                let what = format!(
                    "{place} answers for the ports from {name} on here, and on line {} for those from {before} on",
                    at.line
                );
                let remedy =
                    "put all these ports into one virtual service, or begin both lists with the same port";
                findings.error(address.at, what, remedy);
                break;
            }
        }
    }
}

/// The program finds services and servers by address and port in a table of a fixed size, kept half empty.
fn room_in_index(drafts: &[Draft], findings: &mut Findings) {
    const ROOM: usize = lb_common::service::INDEX_CAPACITY as usize / 2;
    let mut used = 0;
    for draft in drafts {
        let same_port = draft.servers.iter().filter(|server| server.same_port).count();
        used += 1 + draft.ports.len() * (1 + same_port) + draft.servers.len() - same_port;
        if used > ROOM {
            let what = format!(
                "up to here services and their servers have {used} ports, of {ROOM} that are possible"
            );
            findings.error(draft.at, what, "name fewer ports");
            return;
        }
    }
}

fn room_for_servers(node: &NodeDraft, drafts: &[Draft], findings: &mut Findings) {
    let room = usize::try_from(node.node.tables.endpoints).unwrap_or(usize::MAX);
    let most = usize::try_from(Tables::MAX_ENDPOINTS).unwrap_or(usize::MAX);
    let servers: usize = drafts.iter().map(|draft| draft.servers.len()).sum();
    if servers <= room {
        return;
    }
    let mut addresses = drafts.iter().flat_map(|draft| &draft.servers).filter_map(|server| server.address);
    if let Some(first_too_many) = addresses.nth(room) {
        let what = format!("{servers} real servers are more than the endpoints table has room for ({room})");
        let needed = servers.next_power_of_two();
        let remedy = if needed <= most {
            format!("set node.tables.endpoints to {needed}")
        } else {
            format!("keep {most} or fewer")
        };
        findings.error(first_too_many.at, what, remedy);
    }
}
