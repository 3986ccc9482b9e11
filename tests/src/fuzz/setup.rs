//! The state that a sequence begins with: settings, and rows in all tables, at random but such as the program leaves them.

use std::{
    net::{IpAddr, Ipv4Addr},
    sync::LazyLock,
};

use lb_common::{
    forwarding::Forwarding,
    maglev::{self, Candidate, Table},
    server::ServerState,
};

use super::machine::SIZES;
use crate::{
    golden::{
        bench::{Sizes, USABLE},
        frame::Mac,
        hospital::{FIRST_PORT, OTHER_ROUTER, ROUTER, SEED, SERVERS, SERVICES, address, span},
        random::Random,
    },
    model::{
        Cell, Flow, Hold, Key, Kind, Limits, Model, Owner, Record, Settings, Site, State, flow_slots,
        record_slots, service_number, twin,
    },
};

/// How many pairs of schedulers' tables there are.
pub(super) const SCHEDULES: usize = 5;

/// States of a server: online, drained, halted or down, down but left alone, without a next hop, removed.
pub(super) const STATES: [u16; 7] = [
    USABLE,
    ServerState::PRESENT | ServerState::REACHABLE | ServerState::TAKES_KNOWN,
    ServerState::PRESENT | ServerState::REACHABLE | ServerState::RESETS,
    ServerState::PRESENT | ServerState::REACHABLE,
    USABLE & !ServerState::REACHABLE,
    ServerState::PRESENT | ServerState::RESETS,
    0,
];

/// Schedulers' tables: all servers alike, other weights, some servers only, nobody.
pub(super) fn schedules() -> &'static [[Table; 2]; SCHEDULES] {
    static TABLES: LazyLock<[[Table; 2]; SCHEDULES]> = LazyLock::new(|| {
        let weights = [[100; 5], [100, 1, 10, 1, 100], [0, 100, 100, 100, 0], [100, 0, 0, 0, 0], [0; 5]];
        weights.map(|weights| SERVICES.map(|service| table(service.id, &weights)))
    });
    &TABLES
}

fn table(service: u16, weights: &[u32; SERVERS.len()]) -> Table {
    let servers = SERVERS.iter().zip(weights).filter(|(server, _)| server.service == service);
    let candidates: Vec<_> = servers
        .map(|(server, weight)| Candidate {
            id: server.id,
            address: address(server.address),
            port: 443_u16.to_be(),
            weight: *weight,
        })
        .collect();
    maglev::build(SEED, &candidates, maglev::size_for(candidates.len()))
}

/// One of few clients.
pub(super) fn client(random: &mut Random, v6: bool) -> IpAddr {
    twin(Ipv4Addr::new(10, 85, 0, [1, 2, 3, 77, 200, 255][random.below(6)]), v6)
}

/// A connection of one of them, on one of few ports.
pub(super) fn key(random: &mut Random, site: &Site) -> Key {
    let service = SERVICES[random.below(SERVICES.len())].id;
    let kind = site.kind(service);
    Key {
        service,
        client: client(random, kind.clients_v6),
        port: 40_000 + small(random, 4),
        service_port: kind.ports[if kind.ports.len() > 1 { random.below(kind.ports.len()) } else { 0 }],
    }
}

pub(super) fn router(random: &mut Random) -> Mac {
    if random.one_in(4) { OTHER_ROUTER } else { ROUTER }
}

pub(super) fn small(random: &mut Random, below: usize) -> u16 {
    u16::try_from(random.below(below)).unwrap_or_default()
}

fn between(random: &mut Random, from: i64, to: i64) -> i64 {
    let span = usize::try_from(to - from).unwrap_or(1).max(1);
    from + i64::try_from(random.below(span)).unwrap_or_default()
}

/// The numbers of the states that are not made at random, for sequences that are kept: nothing in the tables, no slot
/// free in the tables of flows and sticky records, three SNAT ports to each server; other modes, families and protocols.
pub(super) const KNOWN: [u64; 5] = [0, 1, 2, 3, 4];
/// The last of them with a hospital's first services.
pub(super) const LAST_PLAIN: u64 = 2;

/// A service as is not a hospital's first: behind a router that answers, over IPv6 and on two ports; and UDP.
const ROUTED: [Kind; 2] = [
    Kind {
        forwarding: Forwarding::Nat,
        clients_v6: true,
        servers_v6: true,
        ports: &[443, 8443],
        server_port: None,
        by_port: true,
        ..Kind::PLAIN
    },
    Kind { is_udp: true, ..Kind::PLAIN },
];
/// Services whose answers are not seen: by MAC address, and in a tunnel of the other family.
const UNSEEN: [Kind; 2] = [
    Kind { forwarding: Forwarding::Dr, ..Kind::PLAIN },
    Kind { forwarding: Forwarding::Tunnel, servers_v6: true, ..Kind::PLAIN },
];
/// So small that some packets are too large for a tunnel.
const SMALL_MTU: u16 = 150;

/// The state of this number, and which of the schedulers' tables are in force.
pub(super) fn state(number: u64) -> (Model, usize) {
    match number {
        0 => (plain(SIZES, 64), 0),
        1 => (crowded(), 0),
        2 => (plain(SIZES, 3), 0),
        3 => (of(Site { kinds: ROUTED, mtu: 1500 }), 0),
        4 => (of(Site { kinds: UNSEEN, mtu: SMALL_MTU }), 0),
        _ => any(&mut Random(number)),
    }
}

/// Nothing in the tables of a site.
fn of(site: Site) -> Model {
    let mut model = plain(SIZES, 64);
    model.settings.site = site;
    model
}

/// A service of any kind, or mostly of the plain one.
fn kind(random: &mut Random) -> Kind {
    if random.one_in(4) {
        return Kind::PLAIN;
    }
    let forwarding = Forwarding::ALL[random.below(Forwarding::ALL.len())];
    let clients_v6 = random.one_in(2);
    let in_other = forwarding == Forwarding::Tunnel && random.one_in(2);
    let several = random.one_in(3);
    Kind {
        forwarding,
        is_udp: random.one_in(3),
        clients_v6,
        servers_v6: clients_v6 != in_other,
        ports: if several { &[443, 8443] } else { &[443] },
        server_port: if several { None } else { [Some(443), Some(9000)][random.below(2)] },
        by_prefix: random.one_in(4),
        by_port: several && random.one_in(2),
    }
}

/// Nothing in the tables, and so many SNAT ports to each server.
pub(super) fn plain(sizes: Sizes, ports: u16) -> Model {
    let settings = Settings {
        site: Site::PLAIN,
        sources: 1,
        ports,
        persistence: [span::PERSISTENCE; 2],
        idle: [span::IDLE, 2_000],
        schedules: schedules()[0].clone(),
        limits: Limits::default(),
    };
    Model::new(settings, sizes.half_open, sizes.flows, sizes.sticky)
}

/// Strangers in every slot of the tables of flows and sticky records.
fn crowded() -> Model {
    let mut model = plain(SIZES, 64);
    let random = &mut Random(1);
    for number in 0..=u16::MAX {
        let [high, low] = number.to_be_bytes();
        let client = IpAddr::V4(Ipv4Addr::new(172, 16, high, low));
        let key = Key { client, ..key(random, &Site::PLAIN) };
        if model.flows.contains(&None) {
            let flow = Flow { until: span::IDLE, ..flow(random, &Site::PLAIN, key, State::Established) };
            put(&mut model, random, flow);
        } else if model.sticky.contains(&None) {
            let flow = flow(random, &Site::PLAIN, key, State::TimeWait);
            hold(&mut model, span::PERSISTENCE, &flow);
        }
    }
    model
}

fn any(random: &mut Random) -> (Model, usize) {
    let schedule = if random.one_in(8) { random.below(SCHEDULES) } else { 0 };
    let persistence = [span::PERSISTENCE, if random.one_in(3) { 0 } else { span::PERSISTENCE }];
    let site = Site { kinds: [kind(random), kind(random)], mtu: [1500, SMALL_MTU][random.below(2)] };
    let settings = Settings {
        site,
        sources: 1 + small(random, 2),
        ports: [3, 8, 17, 64][random.below(4)],
        persistence,
        idle: [span::IDLE, 2_000],
        schedules: schedules()[schedule].clone(),
        limits: Limits::default(),
    };
    let mut model = Model::new(settings, SIZES.half_open, SIZES.flows, SIZES.sticky);
    for server in &mut model.servers {
        if random.one_in(6) {
            server.0 = STATES[random.below(STATES.len())];
        }
    }
    let rows = [0, 4, 20, 60, 300][random.below(5)];
    let all_open = random.one_in(4);
    for _ in 0..rows {
        put_flow(&mut model, random, all_open);
    }
    for _ in 0..rows.min(60) / 4 {
        put_half_open(&mut model, random);
    }
    for _ in 0..[0, 0, 20, 60][random.below(4)] {
        put_record(&mut model, random);
    }
    rest_ports(&mut model, random);
    (model, schedule)
}

/// A flow to any of its service's servers, without a port or record yet.
fn flow(random: &mut Random, site: &Site, key: Key, state: State) -> Flow {
    let servers = SERVERS.iter().filter(|server| server.service == key.service);
    let host = servers.cycle().nth(random.below(6)).unwrap_or(&SERVERS[0]);
    let number = |random: &mut Random| u32::try_from(random.next() >> 32).unwrap_or_default();
    let is_udp = site.kind(key.service).is_udp;
    let is_over = !matches!(state, State::SynSent | State::SynReceived);
    let hop = router(random);
    let numbers = if is_udp { [u32::from(is_over), 0] } else { [number(random), number(random)] };
    Flow {
        key,
        server: host.id,
        endpoint: host.endpoint,
        source: 0,
        port: 0,
        hop,
        may_fragment: numbers[0] % 8 == 7,
        numbers,
        first: 0,
        syn_seen: false,
        hold: None,
        state,
        until: 0,
    }
}

fn put_flow(model: &mut Model, random: &mut Random, is_open: bool) {
    let stranger = random.one_in(4);
    let site = model.settings.site;
    let mut key = key(random, &site);
    if stranger {
        let address = Ipv4Addr::new(172, 16, random.byte(), random.byte());
        key.client = twin(address, site.kind(key.service).clients_v6);
    }
    let states = [
        State::Established,
        State::Established,
        State::ClientFin,
        State::ServerFin,
        State::TimeWait,
        State::ClientReset,
        State::ServerReset,
    ];
    let state = states[random.below(states.len())];
    let state = match state {
        _ if is_open => State::Established,
        State::Established | State::ServerReset => state,
        // A datagram ends nothing.
        _ if site.kind(key.service).is_udp => State::Established,
        _ => state,
    };
    let mut flow = flow(random, &site, key, state);
    flow.until = between(random, if is_open { 900 } else { -200 }, 4_000);
    put(model, random, flow);
}

/// Puts a flow where there is room for it, with a port and perhaps its client's record.
fn put(model: &mut Model, random: &mut Random, mut flow: Flow) {
    let key = flow.key;
    let slots = flow_slots(key, model.flows.len());
    let there = model.flows.iter().flatten().any(|flow| flow.key == key);
    let Some(slot) = slots.into_iter().find(|slot| model.flows[*slot].is_none() && !there) else { return };
    if !take_port(model, random, &mut flow, Owner::Flow(slot)) {
        return;
    }
    let persistence = model.settings.persistence[service_number(key.service)];
    if persistence != 0 && !random.one_in(8) {
        let until = between(random, -200, span::PERSISTENCE);
        flow.hold = hold(model, until, &flow);
    }
    model.flows[slot] = Some(flow);
}

fn put_half_open(model: &mut Model, random: &mut Random) {
    let site = model.settings.site;
    let key = key(random, &site);
    let there = model.half_open.iter().flatten().any(|flow| flow.key == key);
    let slots = flow_slots(key, model.half_open.len());
    let Some(slot) = slots.into_iter().find(|slot| model.half_open[*slot].is_none() && !there) else {
        return;
    };
    let state = match [State::SynSent, State::SynReceived, State::Established][random.below(3)] {
        State::SynReceived if !site.kind(key.service).sees_answers() => State::SynSent,
        state => state,
    };
    let mut flow = flow(random, &site, key, state);
    flow.until = between(random, -100, span::HANDSHAKE);
    // Sometimes another has taken its port.
    flow.port = if site.kind(key.service).takes_port() { FIRST_PORT } else { 0 };
    if random.one_in(6) || take_port(model, random, &mut flow, Owner::HalfOpen(slot)) {
        model.half_open[slot] = Some(flow);
    }
}

/// One of the first ports towards the flow's server that nobody has had, if it needs one.
fn take_port(model: &mut Model, random: &mut Random, flow: &mut Flow, owner: Owner) -> bool {
    if !model.settings.site.kind(flow.key.service).takes_port() {
        return true;
    }
    flow.source = u8::try_from(small(random, model.settings.sources.into())).unwrap_or_default();
    let first = small(random, model.settings.ports.into());
    for ahead in 0..model.settings.ports {
        flow.port = FIRST_PORT + (first + ahead) % model.settings.ports;
        let place = model.port_place(flow.endpoint, flow.source, flow.port);
        if model.ports[place].is_none() {
            model.ports[place] = Some(Cell { owner, since: between(random, -500, 0) });
            return true;
        }
    }
    false
}

/// The record of the flow's client, made if there is room, with one more open flow if this one is open.
fn hold(model: &mut Model, until: i64, flow: &Flow) -> Option<Hold> {
    let site = &model.settings.site;
    let service = flow.key.service;
    let client = site.client(flow.key.client, service);
    let verified = site.kind(service).sees_answers();
    let port = site.record_port(flow.key);
    let of_client = |record: &Record| (record.client, record.service, record.port) == (client, service, port);
    let there = model.sticky.iter().position(|row| row.as_ref().is_some_and(of_client));
    let slots = record_slots(site, flow.key, model.sticky.len());
    let slot = there.or_else(|| slots.into_iter().find(|slot| model.sticky[*slot].is_none()))?;
    let fresh = Record { service, port, client, server: flow.server, verified, flows: 0, until, version: 1 };
    let record = model.sticky[slot].get_or_insert(fresh);
    record.flows += u32::from(!flow.state.is_closed());
    Some(Hold { slot, version: 1 })
}

/// A record that no flow holds.
fn put_record(model: &mut Model, random: &mut Random) {
    let site = model.settings.site;
    let key = key(random, &site);
    let mut flow = flow(random, &site, key, State::TimeWait);
    if random.one_in(2) {
        let address = Ipv4Addr::new(172, 17, random.byte(), random.byte());
        flow.key.client = twin(address, site.kind(key.service).clients_v6);
    }
    if model.settings.persistence[service_number(key.service)] != 0 {
        let until = between(random, -200, span::PERSISTENCE);
        hold(model, until, &flow);
    }
}

/// Some of the ports that nobody has rest.
fn rest_ports(model: &mut Model, random: &mut Random) {
    let share = random.below(3);
    for cell in model.ports.iter_mut().filter(|cell| cell.is_none()) {
        if share > 0 && random.below(4) < share {
            let since = between(random, -span::QUARANTINE - 200, 0);
            *cell = Some(Cell { owner: Owner::Nobody, since });
        }
    }
}
