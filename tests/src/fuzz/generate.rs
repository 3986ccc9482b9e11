//! What happens next, at random, with an eye on what the balancer remembers.

use std::net::Ipv4Addr;

use lb_common::{TCP, UDP};

use super::{
    machine::SIZES,
    onward,
    packet::{Numbers, Shape, WHOLE, mend_any},
    setup::{self, SCHEDULES, STATES, router, small},
    step::Step,
};
use crate::{
    golden::{
        bench::USABLE,
        hospital::{BALANCER, FIRST_PORT, OTHER_PORT, SERVERS, SERVICES, span},
        random::Random,
    },
    model::{Ends, Flow, Key, Model, Site, flag, server_number, twin},
};

/// Distances from a recorded number at which something changes, and some between.
const DISTANCES: [i32; 20] = [
    0, 0, 0, 1, 1, 2, 1_000, 0x7fff, 0x8000, 0x8001, 0xffff, 0x10000, 0x7_ffff, 0x8_0000, 0x8_0001, -1,
    -1_000, -0x7_ffff, -0x8_0000, -0x8_0001,
];

/// The next step after these. What has come three times is decided by the cache of the program: then something changes, and it
/// comes once more.
pub(super) fn next(random: &mut Random, model: &Model, steps: &[Step]) -> Step {
    let is_frame = |step: &&Step| matches!(step, Step::Frame(_));
    let Some(latest) = steps.iter().rfind(is_frame) else { return step(random, model) };
    let times = steps.iter().rev().take_while(|step| *step == latest).count();
    let again = match times {
        0 => random.one_in(2),
        1 => random.one_in(6),
        2 => !random.one_in(6),
        _ => false,
    };
    if again {
        return latest.clone();
    }
    if times > 2 && !random.one_in(3) {
        let of = some_flow(random, model).and_then(|flow| server_number(flow.server));
        return match of.filter(|_| !random.one_in(3)) {
            Some(number) => Step::Server(number, STATES[random.below(STATES.len())]),
            None => Step::Ticks(ticks(random)),
        };
    }
    step(random, model)
}

/// Any step.
fn step(random: &mut Random, model: &Model) -> Step {
    if !model.configured && random.one_in(3) {
        return Step::Configured(true);
    }
    if model.busy != 0 && random.one_in(12) {
        return Step::Busy(0);
    }
    match random.below(2_000) {
        0..3 => Step::Configured(false),
        3..5 => Step::Schedule(random.below(SCHEDULES)),
        5..15 => Step::Busy(busy(random)),
        15..25 => Step::Sweep,
        25..70 => Step::Server(random.below(SERVERS.len()), server_state(random)),
        70..150 => Step::Ticks(ticks(random)),
        _ => Step::Frame(frame(random, model)),
    }
}

/// All of the half-open slots, or some.
fn busy(random: &mut Random) -> u16 {
    const _: () = assert!(SIZES.half_open == u16::BITS);
    let [first, second] = [random.byte(), random.byte()];
    if random.one_in(3) { u16::from_be_bytes([first, second]) } else { u16::MAX }
}

fn server_state(random: &mut Random) -> u16 {
    if random.one_in(2) { USABLE } else { STATES[random.below(STATES.len())] }
}

/// Often exactly as long as something lasts, or a tick more.
fn ticks(random: &mut Random) -> u32 {
    let spans = [
        1,
        7,
        8,
        100,
        span::SYN,
        span::HANDSHAKE,
        span::CLOSED,
        span::HALF_CLOSED,
        span::QUARANTINE,
        span::PERSISTENCE,
        span::IDLE,
    ];
    // The long ones seldom: most of what is remembered ends with them.
    let within = if random.one_in(4) { spans.len() } else { 7 };
    let ticks = u32::try_from(spans[random.below(within)]).unwrap_or(1);
    if random.one_in(2) { ticks } else { ticks + 1 }
}

fn frame(random: &mut Random, model: &Model) -> Vec<u8> {
    if random.one_in(2) {
        let shape = if random.one_in(16) { shape(random) } else { plain(random) };
        return onward::frame(random, model, &shape);
    }
    let shape = shape(random);
    let flow = if random.one_in(3) { None } else { some_flow(random, model) };
    let mut frame = match random.below(20) {
        0 => stray(random, &model.settings.site, &shape),
        1..4 => error(random, model, &shape, flow),
        4..11 => from_server(random, model, &shape, flow),
        _ => from_client(random, &model.settings.site, &shape, flow),
    };
    if random.one_in(10) {
        spoil(random, &mut frame);
    }
    frame
}

/// Any of the flows that are in the tables, expired ones too.
fn some_flow<'a>(random: &mut Random, model: &'a Model) -> Option<&'a Flow> {
    let table = if random.one_in(2) { &model.half_open } else { &model.flows };
    let first = random.below(table.len());
    table[first..].iter().chain(&table[..first]).flatten().next()
}

/// Nothing out of the ordinary.
pub(super) fn plain(random: &mut Random) -> Shape {
    let length = if random.one_in(3) { random.below(90) } else { 0 };
    Shape {
        to: BALANCER,
        from: router(random),
        tags: Vec::new(),
        ttl: 63,
        ip_options: 0,
        fragment: WHOLE,
        tcp_options: [0, 0, 12, 20, 40][random.below(5)],
        payload: (0..length).map(|_| random.byte()).collect(),
        udp_sum: !random.one_in(4),
        trailer: Vec::new(),
    }
}

fn shape(random: &mut Random) -> Shape {
    let seldom = |random: &mut Random| random.one_in(24);
    let mut shape = plain(random);
    if random.one_in(8) {
        shape.tags = (0..random.below(4)).map(|_| [0x8100, 0x88a8][random.below(2)]).collect();
    }
    if random.one_in(12) {
        shape.ttl = [0, 1, 2, 255][random.below(4)];
    }
    if random.one_in(12) {
        shape.trailer = vec![0x99; 1 + random.below(12)];
    }
    if seldom(random) {
        shape.ip_options = 4 * (1 + random.below(10));
    }
    if seldom(random) {
        shape.fragment = [0x2000, 0x2001, 0x0001, 0x1fff, 0x8000, 0x0000][random.below(6)];
    }
    if seldom(random) {
        shape.from[0] |= 1;
    }
    if seldom(random) {
        shape.to[random.below(6)] ^= 1 << random.below(8);
    }
    shape
}

/// A number at some distance from another.
fn near(random: &mut Random, number: u32) -> u32 {
    if random.one_in(16) {
        return u32::try_from(random.next() >> 32).unwrap_or_default();
    }
    number.wrapping_add_signed(DISTANCES[random.below(DISTANCES.len())])
}

/// Mostly the number, seldom another.
fn mostly(random: &mut Random, number: u32) -> u32 {
    if random.one_in(6) { near(random, number) } else { number }
}

fn from_client(random: &mut Random, site: &Site, shape: &Shape, flow: Option<&Flow>) -> Vec<u8> {
    let key = flow.map_or_else(|| setup::key(random, site), |flow| flow.key);
    let [client, server] = flow.map_or([7_000, 9_000], |flow| flow.numbers);
    let any = random.byte();
    let next = client.wrapping_add(1);
    let (flags, sequence) = match random.below(16) {
        0..4 => (flag::SYN, mostly(random, client)),
        4..8 => (flag::ACK, mostly(random, next)),
        8 => (flag::ACK | flag::FIN, mostly(random, next)),
        9..11 => (flag::ACK | flag::FIN, near(random, client)),
        11 => (flag::RST | any & flag::ACK, near(random, client)),
        12 => (any, near(random, client)),
        _ => (flag::ACK | flag::PSH, near(random, client)),
    };
    let next = server.wrapping_add(1);
    let acknowledgment = mostly(random, next);
    let (protocol, ends) = (protocol(random, site, key.service), to_service(random, site, key));
    shape.segment(protocol, &ends, Numbers { sequence, acknowledgment, flags })
}

/// A service's protocol, or seldom the other.
fn protocol(random: &mut Random, site: &Site, service: u16) -> u8 {
    if random.one_in(30) { [TCP, UDP][random.below(2)] } else { site.kind(service).protocol() }
}

fn to_service(random: &mut Random, site: &Site, key: Key) -> Ends {
    Ends {
        source: key.client,
        source_port: key.port,
        destination: site.vip(key.service),
        destination_port: if random.one_in(20) {
            [80, 80, 444, 8443, 0][random.below(5)]
        } else {
            key.service_port
        },
    }
}

fn from_server(random: &mut Random, model: &Model, shape: &Shape, flow: Option<&Flow>) -> Vec<u8> {
    let [client, server] = flow.map_or([7_000, 9_000], |flow| flow.numbers);
    let any = random.byte();
    let next = client.wrapping_add(1);
    let (flags, sequence, acknowledgment) = match random.below(12) {
        0..5 => (flag::SYN | flag::ACK, mostly(random, server), mostly(random, next)),
        5 => (flag::ACK | flag::FIN, near(random, server), next),
        6 => (flag::RST | any & flag::ACK, near(random, server), next),
        7 => (any, near(random, server), next),
        _ => (flag::ACK | flag::PSH, near(random, server), next),
    };
    let (ends, service) = of_server(random, model, flow);
    let protocol = protocol(random, &model.settings.site, service);
    shape.segment(protocol, &ends, Numbers { sequence, acknowledgment, flags })
}

/// The ends of what a server sends, of a flow or of none, and the service that it is of.
fn of_server(random: &mut Random, model: &Model, flow: Option<&Flow>) -> (Ends, u16) {
    let site = &model.settings.site;
    let known = flow.filter(|flow| server_number(flow.server).is_some());
    let (mut ends, service) = match known {
        Some(flow) => (onward::from_server(site, flow), flow.key.service),
        None => {
            let number = random.below(SERVERS.len());
            let service = SERVERS[number].service;
            let (kind, key) = (site.kind(service), setup::key(random, site));
            let port = FIRST_PORT - 1 + small(random, usize::from(model.settings.ports) + 2);
            let (destination, destination_port) = if kind.takes_port() {
                (site.source(service, u8::from(random.one_in(2))), port)
            } else {
                (setup::client(random, kind.servers_v6), key.port)
            };
            let source_port = kind.port_for(kind.ports[random.below(kind.ports.len())]);
            (Ends { source: site.server(number), source_port, destination, destination_port }, service)
        }
    };
    if random.one_in(30) {
        ends.source_port = [OTHER_PORT, 444, 8443][random.below(3)];
    }
    (ends, service)
}

/// An ICMP error about a packet to a client, or to a server.
fn error(random: &mut Random, model: &Model, shape: &Shape, flow: Option<&Flow>) -> Vec<u8> {
    let site = &model.settings.site;
    let (came, service) = if random.one_in(2) {
        let key = flow.map_or_else(|| setup::key(random, site), |flow| flow.key);
        (to_service(random, site, key), key.service)
    } else {
        of_server(random, model, flow)
    };
    // What went the other way.
    let mut about = Ends {
        source: came.destination,
        source_port: came.destination_port,
        destination: came.source,
        destination_port: came.source_port,
    };
    let v6 = about.source.is_ipv6();
    if random.one_in(30) {
        about.source = twin(Ipv4Addr::new(192, 168, 85, 11), v6);
    }
    let kinds = if v6 { [1, 2, 3] } else { [3, 11, 12] };
    let kind = if random.one_in(12) { random.byte() } else { kinds[random.below(3)] };
    let repeats = if random.one_in(2) { 8 } else { random.below(60) };
    let protocol = protocol(random, site, service);
    let router = twin(Ipv4Addr::new(10, 1, 1, 1), v6);
    let mtu = [1400, 1280, 1279, 552, 0][random.below(5)];
    let mut frame = shape.error((kind, mtu), router, protocol, &about, repeats);
    if random.one_in(40) {
        // Told to another than it is about.
        let end = frame.len();
        frame[end.min(33)] ^= 1;
    }
    frame
}

/// What is none of the balancer's business, or hardly a packet.
fn stray(random: &mut Random, site: &Site, shape: &Shape) -> Vec<u8> {
    let content: Vec<u8> = (0..random.below(64)).map(|_| random.byte()).collect();
    match random.below(4) {
        0 => {
            let mut frame: Vec<u8> = (0..14 + random.below(100)).map(|_| random.byte()).collect();
            frame[..6].copy_from_slice(&BALANCER);
            frame
        }
        1 => shape.frame_of([0x86dd, 0x0806][random.below(2)], &content),
        2 => {
            let protocol = [1, 6, 17, 47, 58][random.below(5)];
            let service = SERVICES[random.below(2)].id;
            let client = setup::client(random, site.kind(service).clients_v6);
            shape.frame(&shape.ip(protocol, client, site.vip(service), &content))
        }
        _ => shape.frame_of(0x0800, &content),
    }
}

/// Changes bytes behind the Ethernet header, or cuts the frame, and often makes its checksums right again.
fn spoil(random: &mut Random, frame: &mut Vec<u8>) {
    let network = frame.len().min(14 + 4 * random.below(2));
    for _ in 0..=random.below(3) {
        if frame.len() > network {
            let at = network + random.below((frame.len() - network).min(48));
            frame[at] = if random.one_in(2) { random.byte() } else { frame[at] ^ 1 << random.below(8) };
        }
    }
    if random.one_in(3) {
        frame.truncate(14.max(random.below(frame.len() + 1)));
    }
    if frame.len() > network && random.one_in(2) {
        mend_any(&mut frame[network..]);
    }
}
