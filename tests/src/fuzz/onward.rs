//! What an undisturbed connection does next: the steps of a handshake, data, the end.

use super::{
    packet::{Numbers, Shape},
    setup,
};
use crate::{
    golden::{
        hospital::{SERVERS, SERVICES, SOURCES},
        random::Random,
    },
    model::{Ends, Flow, Key, Model, State, flag, server_number, service_number},
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
        let key = setup::key(random);
        return from_client(shape, key, any_number(random), 0, flag::SYN);
    }
    let flow = rows[random.below(rows.len())];
    segment(shape, flow, next(random, flow), any_number(random))
}

pub(super) fn any_number(random: &mut Random) -> u32 {
    u32::try_from(random.next() >> 32).unwrap_or_default()
}

fn next(random: &mut Random, flow: &Flow) -> Next {
    let data = |random: &mut Random| {
        if random.one_in(2) { Next::Client(flag::PSH) } else { Next::Server(flag::PSH) }
    };
    let last = |random: &mut Random| if random.one_in(6) { flag::RST } else { flag::FIN };
    match flow.state {
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

pub(super) fn segment(shape: &Shape, flow: &Flow, next: Next, number: u32) -> Vec<u8> {
    let [client, server] = flow.numbers;
    let (after_client, after_server) = (client.wrapping_add(1), server.wrapping_add(1));
    match next {
        Next::Syn => from_client(shape, flow.key, number, 0, flag::SYN),
        Next::SynAck => from_server(shape, flow, number, after_client, flag::SYN | flag::ACK),
        Next::Ack(flags) => from_client(shape, flow.key, after_client, after_server, flags | flag::ACK),
        // Now and then far enough ahead to be recorded.
        Next::Client(flags) => {
            let sequence = client.wrapping_add(number & 0xffff);
            from_client(shape, flow.key, sequence, after_server, flags | flag::ACK)
        }
        Next::Server(flags) => {
            let sequence = server.wrapping_add(number & 0xffff);
            from_server(shape, flow, sequence, after_client, flags | flag::ACK)
        }
    }
}

pub(super) fn from_client(shape: &Shape, key: Key, sequence: u32, acknowledgment: u32, flags: u8) -> Vec<u8> {
    let ends = Ends {
        source: key.client,
        source_port: key.port,
        destination: SERVICES[service_number(key.service)].address,
        destination_port: key.service_port,
    };
    shape.segment(&ends, Numbers { sequence, acknowledgment, flags })
}

fn from_server(shape: &Shape, flow: &Flow, sequence: u32, acknowledgment: u32, flags: u8) -> Vec<u8> {
    let host = &SERVERS[server_number(flow.server).unwrap_or_default()];
    let ends = Ends {
        source: host.address,
        source_port: 443,
        destination: SOURCES[usize::from(flow.source)],
        destination_port: flow.port,
    };
    shape.segment(&ends, Numbers { sequence, acknowledgment, flags })
}
