//! What an undisturbed connection does next: the steps of a handshake, data, the end.

use super::{
    packet::{Numbers, Shape},
    setup,
};
use crate::{
    golden::{hospital::SERVERS, random::Random},
    model::{Ends, Flow, Key, Model, Site, State, flag, server_number},
};

/// Segments of a connection, and who sends them.
#[derive(Clone, Copy)]
pub(super) enum Next {
    Syn,
    SynAck,
    /// Completes the handshake, with these flags beside ACK.
    Ack(u8),
    Client(u8),
    Server(u8),
}

/// A frame that takes one of the connections that are remembered a step further, or opens one.
pub(super) fn frame(random: &mut Random, model: &Model, shape: &Shape) -> Vec<u8> {
    let open = |row: &&Flow| row.until >= model.now;
    let half_open: Vec<_> = model.half_open.iter().flatten().filter(open).collect();
    let flows: Vec<_> = model.flows.iter().flatten().filter(open).collect();
    let rows = match random.below(8) {
        0 => &[],
        1..6 => half_open.as_slice(),
        _ => flows.as_slice(),
    };
    if rows.is_empty() {
        let key = setup::key(random, &model.settings.site);
        return from_client(shape, &model.settings.site, key, any_number(random), 0, flag::SYN);
    }
    let flow = rows[random.below(rows.len())];
    let site = &model.settings.site;
    segment(shape, site, flow, next(random, site, flow), any_number(random))
}

pub(super) fn any_number(random: &mut Random) -> u32 {
    u32::try_from(random.next() >> 32).unwrap_or_default()
}

fn next(random: &mut Random, site: &Site, flow: &Flow) -> Next {
    let data = |random: &mut Random| {
        if random.one_in(2) { Next::Client(flag::PSH) } else { Next::Server(flag::PSH) }
    };
    let last = |random: &mut Random| if random.one_in(6) { flag::RST } else { flag::FIN };
    match flow.state {
        // Unseen, an answer has no part in it.
        State::SynSent if !site.kind(flow.key.service).sees_answers() => Next::Ack(0),
        State::SynSent => Next::SynAck,
        State::SynReceived => Next::Ack([0, 0, 0, 0, flag::PSH, flag::FIN][random.below(6)]),
        State::Established => match random.below(5) {
            0 => Next::Client(last(random)),
            1 => Next::Server(last(random)),
            _ => data(random),
        },
        State::ClientFin if random.one_in(2) => Next::Server(last(random)),
        State::ServerFin if random.one_in(2) => Next::Client(last(random)),
        State::TimeWait | State::ClientReset | State::ServerReset if random.one_in(2) => Next::Syn,
        _ => data(random),
    }
}

pub(super) fn segment(shape: &Shape, site: &Site, flow: &Flow, next: Next, number: u32) -> Vec<u8> {
    let [client, server] = flow.numbers;
    let (after_client, after_server) = (client.wrapping_add(1), server.wrapping_add(1));
    let from_client =
        |sequence, acknowledgment, flags| from_client(shape, site, flow.key, sequence, acknowledgment, flags);
    let from_server = |sequence, flags| {
        let numbers = Numbers { sequence, acknowledgment: after_client, flags };
        shape.segment(site.kind(flow.key.service).protocol(), &from_server(site, flow), numbers)
    };
    match next {
        Next::Syn => from_client(number, 0, flag::SYN),
        Next::SynAck => from_server(number, flag::SYN | flag::ACK),
        Next::Ack(flags) => from_client(after_client, after_server, flags | flag::ACK),
        // Now and then far enough ahead to be recorded.
        Next::Client(flags) => {
            from_client(client.wrapping_add(number & 0xffff), after_server, flags | flag::ACK)
        }
        Next::Server(flags) => from_server(server.wrapping_add(number & 0xffff), flags | flag::ACK),
    }
}

pub(super) fn from_client(
    shape: &Shape,
    site: &Site,
    key: Key,
    sequence: u32,
    acknowledgment: u32,
    flags: u8,
) -> Vec<u8> {
    let ends = Ends {
        source: key.client,
        source_port: key.port,
        destination: site.vip(key.service),
        destination_port: key.service_port,
    };
    shape.segment(site.kind(key.service).protocol(), &ends, Numbers { sequence, acknowledgment, flags })
}

/// The ends of what a flow's server sends: to the SNAT port, or where there is none, to the client.
pub(super) fn from_server(site: &Site, flow: &Flow) -> Ends {
    let Key { service, client, port, service_port } = flow.key;
    let number = server_number(flow.server).unwrap_or_default();
    let (destination, destination_port) =
        if flow.port == 0 { (client, port) } else { (site.source(service, flow.source), flow.port) };
    Ends {
        source: site.server(number),
        source_port: site.kind(SERVERS[number].service).port_for(service_port),
        destination,
        destination_port,
    }
}
