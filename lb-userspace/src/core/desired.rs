//! What the maps should hold: configuration, overlay, health and neighbours in, every map's content out.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use lb_common::TCP;
use lb_common::address::Address;
use lb_common::clock::Ticks;
use lb_common::forwarding::Forwarding;
use lb_common::maglev::Candidate;
use lb_common::maps::{ServerInfo, ServiceInfo};
use lb_common::mss::MssClamp;
use lb_common::schedule;
use lb_common::server::{Server, ServerState, Servers as _};
use lb_common::service::{EntryKind, IndexEntry, Service};

use super::ids::{Ids, place};
use super::name::{AdminState, ServerName};
use super::overlay::Overlay;
use super::slow_start::Growth;
use super::text::padded;
use crate::config::{self, Config, HealthKind, OnDown, Persistence, Protocol, Scope};
use crate::dataplane::Maps;
use crate::health::state::Verdict;
use crate::net::Mac;
use crate::redirect::listening::Listener;

/// A server's health, as the info map shows it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ServerHealth {
    /// `None`: not known yet, and taken for up, so that a cold start serves at once.
    pub verdict: Option<Verdict>,
    /// Since when, seconds since 1970; zero: unknown.
    pub since: u64,
    /// Why.
    pub reason: String,
    /// When the server's certificate expires, seconds since 1970; zero: unknown.
    pub certificate_expires: u64,
    /// What is to be known of a server that is up.
    pub note: Option<String>,
    /// Why it cannot be checked, if so.
    pub uncheckable: Option<String>,
    /// Why its checks say nothing now, if so.
    pub no_verdict: Option<String>,
}

/// A server that is not configured any more, but still has open flows.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Leaving {
    /// Its entry, as it was.
    pub server: Server,
    /// What was said about it.
    pub info: ServerInfo,
    /// Whether its flows are reset instead of left to finish.
    pub reset: bool,
}

/// Where a server is reached.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct At {
    /// The number of the interface.
    pub arm: u8,
    /// The next hop's MAC address.
    pub mac: Mac,
}

/// Everything that decides.
#[derive(Clone, Copy, Debug)]
pub struct Inputs<'a> {
    /// The effective configuration.
    pub config: &'a Config,
    /// Administrative states.
    pub overlay: &'a Overlay,
    /// Health by server id; a server that is not there is unknown.
    pub health: &'a BTreeMap<u16, ServerHealth>,
    /// The next hop's MAC address by server id, where it is known.
    pub macs: &'a BTreeMap<u16, At>,
    /// Servers that only finish their flows, by id.
    pub leaving: &'a BTreeMap<u16, Leaving>,
    /// Numbers of everything in `config`.
    pub ids: &'a Ids,
    /// Jiffies in a second.
    pub hz: u64,
    /// The scheduler's secret.
    pub seed: u64,
    /// Which servers grow, at the time `uptime`.
    pub growth: &'a Growth,
    /// How long the daemon has run.
    pub uptime: Duration,
    /// Where the daemon listens; what is not in it is not known.
    pub listening: &'a BTreeMap<SocketAddr, Listener>,
    /// Servers of which nothing is known now, by id: they get no unknown clients while another server of their service takes some.
    pub unsure: &'a BTreeSet<u16>,
}

/// The content of the maps. What is not in it is not there.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Desired {
    /// Services by id.
    pub services: BTreeMap<u16, (Service, ServiceInfo)>,
    /// Servers by id.
    pub servers: BTreeMap<u16, (Server, ServerInfo)>,
    /// The index.
    pub index: Vec<IndexEntry>,
    /// The scheduler's tables by id of their tcp service, as the inner map's values.
    pub schedules: BTreeMap<u16, Vec<u64>>,
    /// The weights of the servers that take new clients, by id, in thousandths of the configured ones; of others zero.
    pub weights: BTreeMap<u16, u32>,
}

/// Something has no number: `ids` are another configuration's.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0} was given no number (a defect of Steadfast: please report it)")]
pub struct NoId(pub String);

/// What the maps should hold.
///
/// # Errors
/// [`NoId`] when `ids` were not assigned for `config`.
pub fn desired(inputs: &Inputs<'_>) -> Result<Desired, NoId> {
    let mut out = Desired::default();
    let mut index = BTreeMap::new();
    for service in &inputs.config.services {
        one_service(inputs, service, &mut out, &mut index)?;
    }
    for (id, leaving) in inputs.leaving {
        out.servers.entry(*id).or_insert_with(|| leave(leaving, inputs.macs.get(id)));
    }
    let ports = ports_by_service(inputs);
    for (server, _) in out.servers.values() {
        let named = place(server);
        let protocol = out.services.get(&server.service).map_or(TCP, |(service, _)| service.protocol());
        let asked = ports.get(&server.service).copied().unwrap_or_default();
        let mut answers_from = |port: u16, asked: u16| {
            if let Some(entry) = endpoint(server, protocol, port.to_be(), asked.to_be()) {
                index.entry((protocol, SocketAddr::new(named.ip(), port))).or_insert(entry);
            }
        };
        if server.state.has(ServerState::SAME_PORT) {
            asked.iter().for_each(|port| answers_from(*port, *port));
        }
        answers_from(named.port(), asked.first().copied().unwrap_or_default());
    }
    out.index = index.into_values().collect();
    Ok(out)
}

/// The ports of each service, by id.
fn ports_by_service<'a>(inputs: &Inputs<'a>) -> BTreeMap<u16, &'a [u16]> {
    let services = inputs.config.services.iter();
    services
        .filter_map(|service| {
            Some((inputs.ids.service(service.label.as_str())?.id, service.ports.as_slice()))
        })
        .collect()
}

/// What may be sent to a server.
#[must_use]
pub const fn server_state(
    admin: AdminState,
    health: Option<Verdict>,
    weight: u16,
    on_down: OnDown,
    reachable: bool,
) -> ServerState {
    let down = matches!(health, Some(Verdict::Down));
    let mut bits = ServerState::PRESENT;
    if reachable {
        bits |= ServerState::REACHABLE;
    }
    if matches!(admin, AdminState::Online) && !down && weight > 0 {
        bits |= ServerState::TAKES_NEW;
    }
    if !matches!(admin, AdminState::Halt) && !down {
        bits |= ServerState::TAKES_KNOWN;
    }
    if matches!(admin, AdminState::Halt) || (down && matches!(on_down, OnDown::Reset)) {
        bits |= ServerState::RESETS;
    }
    ServerState(bits)
}

/// Servers that the live maps have and `config` has not, and that `has_flows`: they finish them. `reset` are those
/// whose flows are not to be waited for. Of a service that is gone, nothing is left to finish.
#[must_use]
pub fn leaving(
    maps: &Maps,
    config: &Config,
    ids: &Ids,
    has_flows: impl Fn(u16) -> bool,
    reset: impl Fn(u16) -> bool,
) -> BTreeMap<u16, Leaving> {
    let balanced = |service: &&config::Service| service.protocol.is_balanced();
    let services: Vec<u16> = config
        .services
        .iter()
        .filter(balanced)
        .filter_map(|service| Some(ids.service(service.label.as_str())?.id))
        .collect();
    let configured: Vec<u16> = config
        .services
        .iter()
        .filter(balanced)
        .flat_map(|service| {
            let name = |server: &config::Server| {
                ids.server(&ServerName::new(service.label.as_str(), server.label.as_str()))
            };
            service.real_servers.iter().filter_map(name)
        })
        .collect();
    let mut out = BTreeMap::new();
    for id in 0..u16::try_from(maps.servers.len()).unwrap_or(u16::MAX) {
        let Some(server) = maps.servers.present(id) else {
            continue;
        };
        if configured.contains(&id) || !services.contains(&server.service) || !has_flows(id) {
            continue;
        }
        if let Some(info) = maps.server_info.read(usize::from(id)) {
            let reset = reset(id) || server.state.has(ServerState::RESETS);
            out.insert(id, Leaving { server, info, reset });
        }
    }
    out
}

fn one_service(
    inputs: &Inputs<'_>,
    service: &config::Service,
    out: &mut Desired,
    index: &mut BTreeMap<(u8, SocketAddr), IndexEntry>,
) -> Result<(), NoId> {
    let label = service.label.as_str();
    let number = inputs.ids.service(label).ok_or_else(|| NoId(label.to_owned()))?;
    let port = service.ports.first().copied().unwrap_or_default();
    let places = service.ports.iter().map(|port| SocketAddr::new(service.address, *port));
    let listener = places.filter_map(|place| inputs.listening.get(&place).copied()).reduce(Listener::worse);
    let listener = listener.filter(|_| service.protocol == Protocol::Http);
    let (entry, info) = service_entry(service, port, number.since, inputs.hz);
    let listening = listener.map_or(0, Listener::number);
    out.services.insert(number.id, (entry, ServiceInfo { listening, ..info }));
    let is_balanced = service.protocol.is_balanced();
    let kind = if is_balanced { EntryKind::Service } else { EntryKind::Local };
    let protocol = service.protocol.number();
    let entry = |port: u16, kind, id| IndexEntry {
        address: Address::from(service.address),
        port: port.to_be(),
        protocol,
        kind,
        id,
        service_port: 0,
    };
    for port in &service.ports {
        index.insert((protocol, SocketAddr::new(service.address, *port)), entry(*port, kind, number.id));
    }
    if !is_balanced {
        return Ok(());
    }
    // Of the services that share an address, the last one's number is as good as any.
    index.insert((protocol, SocketAddr::new(service.address, 0)), entry(0, EntryKind::Address, number.id));
    let mut entries = Vec::new();
    for server in &service.real_servers {
        let name = ServerName::new(label, server.label.as_str());
        let id = inputs.ids.server(&name).ok_or_else(|| NoId(name.to_string()))?;
        let (entry, info) = server_entry(inputs, service, server, number.id, id, &name)?;
        entries.push((id, server, entry, info));
    }
    let is_sure =
        |id: u16, entry: &Server| entry.state.has(ServerState::TAKES_NEW) && !inputs.unsure.contains(&id);
    let some_are = entries.iter().any(|(id, _, entry, _)| is_sure(*id, entry));
    let mut candidates = Vec::new();
    for (id, server, mut entry, info) in entries {
        // Who is given to a server that may not be there waits for nothing; the others answer.
        if some_are && !is_sure(id, &entry) {
            entry.state.0 &= !ServerState::TAKES_NEW;
        }
        if entry.state.has(ServerState::TAKES_NEW) {
            let share = inputs.growth.share(id, service.slow_start, inputs.uptime);
            let weight = u32::from(server.weight) * share;
            candidates.push(Candidate { id, address: entry.address, port: entry.port, weight });
            out.weights.insert(id, weight);
        }
        out.servers.insert(id, (entry, info));
    }
    let scheduler = service.scheduler.kind();
    let table = schedule::build(scheduler, inputs.seed, &candidates, service.real_servers.len());
    out.schedules.insert(number.id, table.to_values());
    Ok(())
}

fn service_entry(service: &config::Service, port: u16, since: u64, hz: u64) -> (Service, ServiceInfo) {
    let address = Address::from(service.address);
    let persistence_ms = match service.persistence {
        Persistence::SourceIp { timeout, .. } if service.protocol.is_balanced() => millis(timeout),
        _ => 0,
    };
    let idle_ms = millis(service.idle_timeout);
    let entry = Service {
        address,
        persistence: match persistence_ms {
            0 => Ticks(0),
            timeout => Ticks::span_of_millis(timeout, hz),
        },
        idle: Ticks::span_of_millis(idle_ms, hz),
        forwarding: service.forwarding.mode(),
        by_prefix: by_prefix(service),
        by_port: matches!(service.persistence, Persistence::SourceIp { scope: Scope::Port, .. }),
        is_udp: service.protocol == Protocol::Udp,
        scheduler: service.scheduler.kind(),
        mss_clamp: if service.protocol == Protocol::Tcp { service.mss_clamp } else { MssClamp::None },
    };
    let info = ServiceInfo {
        label: padded(service.label.as_str()),
        address: address.0,
        persistence_ms,
        idle_ms,
        since,
        port,
        protocol: match service.protocol {
            Protocol::Tcp => 1,
            Protocol::Http => 2,
            Protocol::Udp => 3,
        },
        forwarding: 1 + service.forwarding.mode() as u8,
        listening: 0,
    };
    (entry, info)
}

fn server_entry(
    inputs: &Inputs<'_>,
    service: &config::Service,
    server: &config::Server,
    service_id: u16,
    id: u16,
    name: &ServerName,
) -> Result<(Server, ServerInfo), NoId> {
    let socket = SocketAddr::new(server.address, server.port);
    let endpoint = inputs.ids.endpoint(socket).ok_or_else(|| NoId(socket.to_string()))?;
    let unknown = ServerHealth::default();
    let health = inputs.health.get(&id).unwrap_or(&unknown);
    let at = inputs.macs.get(&id).copied();
    let admin = inputs.overlay.state(name);
    let mut state = server_state(admin, health.verdict, server.weight, service.on_down, at.is_some());
    if server.same_port {
        state.0 |= ServerState::SAME_PORT;
    }
    let address = Address::from(server.address);
    let entry = Server {
        address,
        port: server.port.to_be(),
        endpoint,
        service: service_id,
        forwarding: service.forwarding.mode(),
        arm: at.unwrap_or_default().arm,
        mac: at.unwrap_or_default().mac,
        state,
    };
    let (health_known, reason) = shown(service, health);
    let info = ServerInfo {
        label: padded(server.label.as_str()),
        address: address.0,
        health_since: health.since,
        certificate_expires: health.certificate_expires,
        service: service_id,
        port: server.port,
        weight: server.weight,
        state: admin.number(),
        health: health_known | if health.no_verdict.is_some() { ServerInfo::NO_VERDICT } else { 0 },
        health_reason: padded(health.no_verdict.as_deref().unwrap_or(reason)),
    };
    Ok((entry, info))
}

/// The entry of a server that only finishes its flows.
fn leave(leaving: &Leaving, at: Option<&At>) -> (Server, ServerInfo) {
    let mut bits = ServerState::PRESENT | leaving.server.state.0 & ServerState::SAME_PORT;
    if at.is_some() {
        bits |= ServerState::REACHABLE;
    }
    if leaving.reset {
        bits |= ServerState::RESETS;
    }
    let reached = at.copied().unwrap_or_default();
    let server = Server { arm: reached.arm, mac: reached.mac, state: ServerState(bits), ..leaving.server };
    let info = ServerInfo {
        weight: 0,
        state: if leaving.reset { AdminState::Halt.number() } else { AdminState::Drain.number() },
        health_reason: padded("removed: finishing its open connections"),
        ..leaving.info
    };
    (server, info)
}

/// Whether IPv6 clients of one /64 are one client.
const fn by_prefix(service: &config::Service) -> bool {
    matches!(service.persistence, Persistence::SourceIp { ipv6_prefix: ..128, .. })
}

/// What a server's answers from this port (as on the wire) are found by; `asked` is the service's port.
fn endpoint(server: &Server, protocol: u8, port: u16, asked: u16) -> Option<IndexEntry> {
    let entry = |kind, id, service_port| IndexEntry {
        address: server.address,
        port,
        protocol,
        kind,
        id,
        service_port,
    };
    match server.forwarding {
        Forwarding::Snat => Some(entry(EntryKind::Endpoint, server.endpoint, 0)),
        Forwarding::Nat => Some(entry(EntryKind::NatEndpoint, server.service, asked)),
        Forwarding::Dr | Forwarding::Tunnel => None,
    }
}

/// A server's health and why, as [`ServerInfo`] has them.
fn shown<'a>(service: &config::Service, health: &'a ServerHealth) -> (u8, &'a str) {
    if service.health_check.kind == HealthKind::None {
        return (NOT_CHECKED, "no health check is configured");
    }
    match (&health.uncheckable, health.verdict, &health.note) {
        (Some(why), ..) => (NOT_CHECKED, why),
        (None, Some(Verdict::Up), Some(note)) => (UP_WITH_NOTE, note),
        (None, verdict, _) => (health_number(verdict), &health.reason),
    }
}

/// In [`ServerInfo::health`]: not checked, and taken for up.
pub const NOT_CHECKED: u8 = 3;
/// In [`ServerInfo::health`]: up, and the reason is something to know.
pub const UP_WITH_NOTE: u8 = 4;

/// A verdict's number in [`ServerInfo::health`].
#[must_use]
pub const fn health_number(verdict: Option<Verdict>) -> u8 {
    match verdict {
        None => 0,
        Some(Verdict::Up) => 1,
        Some(Verdict::Down) => 2,
    }
}

/// The verdict that a number in [`ServerInfo::health`] stands for.
#[must_use]
pub const fn health_verdict(number: u8) -> Option<Verdict> {
    match number {
        1 | NOT_CHECKED | UP_WITH_NOTE => Some(Verdict::Up),
        2 => Some(Verdict::Down),
        _ => None,
    }
}

fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}

/// The address of a service's or server's info.
#[must_use]
pub fn ip(words: [u64; 2]) -> IpAddr {
    IpAddr::from(Address(words))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::core::testing::{Case, config};
    use lb_common::maglev;

    #[test]
    fn what_may_be_sent_to_a_server_follows_from_state_health_weight_and_neighbour() {
        use AdminState::{Drain, Halt, Online};
        const N: u16 = ServerState::TAKES_NEW;
        const K: u16 = ServerState::TAKES_KNOWN;
        const R: u16 = ServerState::RESETS;
        let (up, down) = (Some(Verdict::Up), Some(Verdict::Down));
        let table = [
            (Online, None, 100, OnDown::Reset, N | K),
            (Online, up, 100, OnDown::Reset, N | K),
            (Online, up, 100, OnDown::Keep, N | K),
            (Online, up, 0, OnDown::Reset, K),
            (Online, None, 0, OnDown::Reset, K),
            (Online, down, 100, OnDown::Reset, R),
            (Online, down, 100, OnDown::Keep, 0),
            (Online, down, 0, OnDown::Keep, 0),
            (Drain, None, 100, OnDown::Reset, K),
            (Drain, up, 100, OnDown::Reset, K),
            (Drain, up, 0, OnDown::Reset, K),
            (Drain, down, 100, OnDown::Reset, R),
            (Drain, down, 100, OnDown::Keep, 0),
            (Halt, None, 100, OnDown::Reset, R),
            (Halt, up, 100, OnDown::Keep, R),
            (Halt, up, 0, OnDown::Keep, R),
            (Halt, down, 100, OnDown::Keep, R),
            (Halt, down, 100, OnDown::Reset, R),
        ];
        for (admin, health, weight, on_down, expected) in table {
            for (reachable, more) in [(false, 0), (true, ServerState::REACHABLE)] {
                assert_eq!(
                    server_state(admin, health, weight, on_down, reachable).0,
                    ServerState::PRESENT | expected | more,
                    "{admin} {health:?} {weight} {on_down} {reachable}"
                );
            }
        }
    }

    #[test]
    fn the_table_follows_those_that_take_new_clients_and_keeps_its_size() {
        let mut case = Case::new(config(&[("V", 150, &[("a", 1), ("b", 2), ("c", 3)])]));
        let places = |case: &Case| {
            let desired = case.desired();
            maglev::Table::from_values(&desired.schedules[&0]).unwrap()
        };
        let before = places(&case);
        let b = case.id("V", "b");
        assert!(before.places().contains(&b));
        case.overlay.set_state(ServerName::new("V", "b"), AdminState::Drain);
        let after = places(&case);
        assert!(!after.places().contains(&b));
        assert_eq!(before.size(), after.size());
        // Few of the others' places change hands.
        let moved = before.places().iter().zip(after.places()).filter(|(old, new)| **old != b && old != new);
        assert!(moved.count() < before.places().len() / 10);
        case.overlay.set_state(ServerName::new("V", "a"), AdminState::Halt);
        case.overlay.set_state(ServerName::new("V", "c"), AdminState::Halt);
        assert!(places(&case).places().iter().all(|id| *id == maglev::NOBODY));
    }

    #[test]
    fn a_service_has_its_address_a_local_one_only_its_port_and_servers_their_endpoints() {
        let yaml = "version: 1\nnode: { interfaces: [eth0] }\nvirtual_services:\n\
            \x20 - { label: A, address: 192.0.2.150, ports: [443], real_servers: [{ label: s, address: 192.0.2.1 }] }\n\
            \x20 - { label: B, address: 192.0.2.151, ports: [443], real_servers: [{ label: s, address: 192.0.2.1 }] }\n\
            \x20 - { label: R, address: 192.0.2.150, ports: [80], protocol: http, force_https: true }\n";
        let case = Case::new(config::parse("test", yaml).unwrap());
        let desired = case.desired();
        let kinds = |kind| desired.index.iter().filter(|entry| entry.kind == kind).count();
        assert_eq!(kinds(EntryKind::Service), 2);
        assert_eq!(kinds(EntryKind::Local), 1);
        assert_eq!(kinds(EntryKind::Address), 2);
        // Two services' servers at one address and port answer from one endpoint.
        assert_eq!(kinds(EntryKind::Endpoint), 1);
        assert_eq!(desired.servers.len(), 2);
        assert_eq!(desired.services.len(), 3);
        assert_eq!(desired.schedules.len(), 2);
    }
}
