//! A segment from a client to a virtual service.

use lb_common::{
    flow::{
        FLOW_WORDS, FlowKey, FlowServer, Flows as FlowKind, HOP_WORD, SEQUENCE_WORD, SERVER_WORD, Sequences,
    },
    hash::hash3,
    ports::Owner,
    ports::PortCell,
    reason::Reason,
    server::{Server, ServerState, Servers as _},
    table::{Found, find},
    tcp::{Direction, TcpFlags, TcpState},
};

use crate::{
    count, establish, flow,
    maps::{Flows, HalfOpen, ServerTable},
    open,
    packet::{Packet, Rewrite, Segment, Tuple},
    pipeline::World,
};

/// What a client's segment is found by.
pub(crate) struct Client {
    pub key: FlowKey,
    pub hash: u64,
}

impl Client {
    #[inline(always)]
    fn of(world: &World, segment: &Segment, service: u16) -> Self {
        let key = FlowKey {
            client: segment.tuple.source,
            client_port: segment.tuple.source_port,
            service_port: segment.tuple.destination_port,
            service,
        };
        Self::with_key(world, key)
    }

    #[inline(always)]
    pub(crate) fn with_key(world: &World, key: FlowKey) -> Self {
        Self {
            key,
            hash: hash3(&world.key, key.words()),
        }
    }

    #[inline(always)]
    pub(crate) fn find_flow(&self, world: &World) -> Option<Found<'static, FLOW_WORDS>> {
        find::<FLOW_WORDS, FlowKind, _>(&Flows, self.hash, self.key.words(), world.now)
    }
}

/// Decides on a segment to a service.
#[inline(always)]
pub(crate) fn segment(
    world: &World,
    packet: &Packet,
    segment: &Segment,
    service: u16,
) -> Result<Reason, Reason> {
    if segment.ttl <= 1 {
        return Err(Reason::TtlExceeded);
    }
    let client = Client::of(world, segment, service);
    if let Some(found) = client.find_flow(world) {
        let to = FlowServer::from_word(found.slot.words[SERVER_WORD].load());
        let closed = TcpState::from_note(found.life.note()).is_closed();
        if !closed && let Some(server) = serving(&to) {
            return known(world, packet, segment, &client, &found, &to, &server);
        }
    }
    // Copies, so that on the way above everything can stay in registers.
    let (packet, segment) = (*packet, *segment);
    Ok(reason_of(unsettled(&packet, &segment, service)))
}

#[inline(always)]
pub(crate) fn reason_of(number: u32) -> Reason {
    Reason::from_number(number).unwrap_or(Reason::NotConfigured)
}

/// A segment that no open flow with a usable server takes. A function of its own: it has a stack of its own.
#[inline(never)]
fn unsettled(packet: &Packet, segment: &Segment, service: u16) -> u32 {
    let Some(world) = World::now() else {
        return Reason::NotConfigured as u32;
    };
    let client = Client::of(&world, segment, service);
    if segment.flags.opens() {
        return open::connection(&world, packet, segment, &client) as u32;
    }
    if let Some(half_open) = find_half_open(&world, &client) {
        return of_half_open(&world, packet, segment, &client, &half_open) as u32;
    }
    // A closed flow, or one whose server is gone; or another core has established it since the first look.
    if let Some(found) = client.find_flow(&world) {
        let to = FlowServer::from_word(found.slot.words[SERVER_WORD].load());
        return match serving(&to) {
            Some(server) => match known(&world, packet, segment, &client, &found, &to, &server) {
                Ok(reason) | Err(reason) => reason as u32,
            },
            None => server_gone(packet, segment, &client, &found, to) as u32,
        };
    }
    reset_unknown(packet, segment, &client) as u32
}

/// The server of a flow, unless it is down, halted, or removed and its id given to another.
#[inline(always)]
fn serving(to: &FlowServer) -> Option<Server> {
    match ServerTable.present(to.server) {
        Some(server) if server.endpoint == to.endpoint && !server.state.has(ServerState::RESETS) => {
            Some(server)
        }
        _ => None,
    }
}

/// A segment of a flow in the flow table.
#[inline(always)]
fn known(
    world: &World,
    packet: &Packet,
    segment: &Segment,
    client: &Client,
    found: &Found<'_, FLOW_WORDS>,
    to: &FlowServer,
    server: &Server,
) -> Result<Reason, Reason> {
    if !server.state.has(ServerState::REACHABLE) {
        return Err(Reason::NoNeighbour);
    }
    if !found.still() {
        return Err(reset_unknown(packet, segment, client));
    }
    let near = flow::follow(world, found, client.key.service, segment, Direction::FromClient);
    if near && found.slot.words[HOP_WORD].load() != segment.sender {
        found.slot.words[HOP_WORD].store(segment.sender);
    }
    send(world, packet, segment, client, to, server);
    Ok(Reason::Forwarded)
}

/// A segment of a flow whose server is down, halted or removed: the client is told, and may connect elsewhere.
#[inline(always)]
fn server_gone(
    packet: &Packet,
    segment: &Segment,
    client: &Client,
    found: &Found<'_, FLOW_WORDS>,
    to: FlowServer,
) -> Reason {
    let state = TcpState::from_note(found.life.note());
    if !state.is_closed()
        && flow::change_state(found.index, found.life.word(), TcpState::ServerReset as u32) == 1
    {
        count::server_gone(client.key.service, to.server);
    }
    if segment.flags.has(TcpFlags::RST) {
        return Reason::StrayReset;
    }
    packet.answer_with_reset(segment);
    Reason::ResetServerGone
}

/// A segment of a half-open flow, other than its SYN.
#[inline(always)]
fn of_half_open(
    world: &World,
    packet: &Packet,
    segment: &Segment,
    client: &Client,
    half_open: &Found<'_, FLOW_WORDS>,
) -> Reason {
    let to = FlowServer::from_word(half_open.slot.words[SERVER_WORD].load());
    if !owns_port(world, half_open.index, &to) || !half_open.still() {
        return reset_unknown(packet, segment, client);
    }
    let Some(server) = serving(&to) else {
        packet.answer_with_reset(segment);
        return Reason::ResetServerGone;
    };
    if !server.state.has(ServerState::REACHABLE) {
        return Reason::NoNeighbour;
    }
    let reason = if completes(segment, half_open) {
        reason_of(establish::establish(
            half_open.index,
            half_open.life.word(),
            segment.sequence,
        ))
    } else {
        open::keep_overflow(world, half_open, client.key.service);
        Reason::HandshakeForwarded
    };
    send(world, packet, segment, client, &to, &server);
    reason
}

/// Whether the segment acknowledges the server's SYN-ACK: exactly its number, and in sequence behind the client's SYN.
#[inline(always)]
fn completes(segment: &Segment, half_open: &Found<'_, FLOW_WORDS>) -> bool {
    let numbers = Sequences::from_word(half_open.slot.words[SEQUENCE_WORD].load());
    matches!(TcpState::from_note(half_open.life.note()), TcpState::SynReceived)
        && segment.flags.has(TcpFlags::ACK)
        && !segment.flags.has(TcpFlags::RST)
        && segment.acknowledgment == numbers.server.wrapping_add(1)
        && segment.sequence.wrapping_sub(numbers.client).wrapping_sub(1) <= u32::from(u16::MAX)
}

/// The half-open flow of a client.
#[inline(always)]
pub(crate) fn find_half_open(world: &World, client: &Client) -> Option<Found<'static, FLOW_WORDS>> {
    find::<FLOW_WORDS, FlowKind, _>(&HalfOpen, client.hash, client.key.words(), world.now)
}

/// Whether a half-open flow still has its SNAT port: another may have taken it.
#[inline(always)]
pub(crate) fn owns_port(world: &World, slot: u32, to: &FlowServer) -> bool {
    flow::cell_of(world, to)
        .is_some_and(|cell| PortCell::from_word(cell.load()).owner == Owner::HalfOpen(slot))
}

/// Answers a segment of no flow with RST, unless it is one.
#[inline(always)]
fn reset_unknown(packet: &Packet, segment: &Segment, client: &Client) -> Reason {
    if segment.flags.has(TcpFlags::RST) {
        return Reason::StrayReset;
    }
    count::service_reset(client.key.service);
    packet.answer_with_reset(segment);
    Reason::ResetNoFlow
}

/// Rewrites a segment for its server and counts it.
#[inline(always)]
pub(crate) fn send(
    world: &World,
    packet: &Packet,
    segment: &Segment,
    client: &Client,
    to: &FlowServer,
    server: &Server,
) {
    count::packet_in(client.key.service, to.server, packet.length());
    packet.rewrite_segment(
        segment,
        &Rewrite {
            next_hop: lb_common::flow::mac_word(server.mac),
            tuple: Tuple {
                source: world.control.source(to.source),
                destination: server.address,
                source_port: to.snat_port,
                destination_port: server.port,
            },
        },
    );
}
