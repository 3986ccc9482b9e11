//! A segment or datagram from a real server: to one of the SNAT ports, or to a client that it knows by its own address.

use lb_common::{
    flow::{
        ARM_SHIFT, FLOW_WORDS, FlowKey, FlowServer, Flows as FlowKind, HOP_WORD, SEQUENCE_WORD, SERVER_WORD,
        Sequences,
    },
    life::SlotState,
    mss::MssClamp,
    ports::{Cells as _, Owner, PortCell},
    reason::Reason,
    server::{ServerState, Servers as _},
    service::Service,
    table::{Found, Kind as _, Slots as _},
    tcp::{Direction, TcpState},
};

use crate::{
    count, flow,
    maps::{self, Flows, HalfOpen, Ports, ServerTable},
    open,
    packet::{End, Packet, Rewrite, Segment, clamp_mss},
    pipeline::{Outcome, World},
};

/// A flow found by what its server sends.
pub(crate) struct Return {
    pub found: Found<'static, FLOW_WORDS>,
    pub half_open: bool,
    pub key: FlowKey,
    pub to: FlowServer,
    pub service: Service,
}

/// The flow that has this SNAT port (as on the wire).
#[inline(always)]
pub(crate) fn by_port(world: &World, endpoint: u16, source: u8, port: u16) -> Option<Return> {
    let snat = world.snat();
    let offset = snat.offset(port)?;
    let cell = (&Ports).cell(snat.range(endpoint, source).index(offset))?;
    let (index, half_open, slot) = match PortCell::from_word(cell.load()).owner {
        Owner::Flow(index) => (index, false, (&Flows).slot(index)?),
        Owner::HalfOpen(index) => (index, true, (&HalfOpen).slot(index)?),
        Owner::Free => return None,
    };
    let life = slot.life();
    let to = FlowServer::from_word(slot.words[SERVER_WORD].load());
    let ours = to.endpoint == endpoint && to.source == source && to.snat_port == port;
    if !ours || !matches!(life.state(), SlotState::Live) || FlowKind::expired(life, world.now) {
        return None;
    }
    let key =
        FlowKey::from_words(&[slot.words[0].load(), slot.words[1].load(), slot.words[2].load(), 0, 0, 0, 0]);
    let service = maps::service(key.service)?;
    Some(Return { found: Found { index, slot, life }, half_open, key, to, service })
}

/// The flow of a server's packet to this client and port (as on the wire), of this service and port.
#[inline(always)]
pub(crate) fn by_client(key: FlowKey) -> Option<Return> {
    let (found, half_open) = flow::latest(key)?;
    let to = FlowServer::from_word(found.slot.words[SERVER_WORD].load());
    let service = maps::service(key.service)?;
    Some(Return { found, half_open, key, to, service })
}

/// Decides on a segment from a server to a client's own address.
#[inline(always)]
pub(crate) fn nat_segment(
    world: &World,
    packet: &Packet,
    segment: &Segment,
    service: u16,
    service_port: u16,
) -> Result<Outcome, Reason> {
    let key = FlowKey {
        client: segment.tuple.destination,
        client_port: segment.tuple.destination_port,
        service_port,
        service,
    };
    let back = by_client(key).ok_or(Reason::NotOurs)?;
    answer_client(world, packet, segment, &back, back.to.endpoint)
}

/// Decides on a segment from a server to a SNAT port.
#[inline(always)]
pub(crate) fn segment(
    world: &World,
    packet: &Packet,
    segment: &Segment,
    endpoint: u16,
    source: u8,
) -> Result<Outcome, Reason> {
    let Some(back) = by_port(world, endpoint, source, segment.tuple.destination_port) else {
        let carrying = world.control.is_carrying(world.now);
        return Err(if carrying { Reason::Carrying } else { Reason::NoReturnFlow });
    };
    answer_client(world, packet, segment, &back, endpoint)
}

/// Sends a server's segment on to the flow's client, in the service's name.
#[inline(always)]
fn answer_client(
    world: &World,
    packet: &Packet,
    segment: &Segment,
    back: &Return,
    endpoint: u16,
) -> Result<Outcome, Reason> {
    let gone = match ServerTable.present(back.to.server) {
        Some(server) => {
            server.endpoint != endpoint
                || back.service.protocol() != segment.protocol()
                || server.address != segment.tuple.source
                || server.port_for(back.key.service_port) != segment.tuple.source_port
                || server.state.has(ServerState::RESETS)
        }
        None => true,
    };
    let next_hop = back.found.slot.words[HOP_WORD].load();
    if gone || !back.found.still() {
        return Err(Reason::NoReturnFlow);
    }
    if packet.hops() <= 1 {
        return Err(Reason::TtlExceeded);
    }
    if back.half_open {
        answer(world, packet, segment, back);
        if segment.flags.is_syn_ack() && !matches!(back.service.mss_clamp, MssClamp::None) {
            let arm = (next_hop >> ARM_SHIFT) as u8;
            clamp_mss(packet.context, u32::from(back.to.server) | u32::from(arm) << 16);
        }
    } else if segment.is_udp {
        // Late answers do not keep a flow that ended with its server.
        if !TcpState::from_note(back.found.life.note()).is_closed() {
            flow::keep(world, back.found.slot, back.found.life, back.key.service, TcpState::Established);
        }
    } else {
        flow::follow(
            world,
            &back.found,
            back.key.service,
            segment.flags,
            packet.sequence(segment),
            Direction::FromServer,
        );
    }
    let hop = world.hop(packet, next_hop);
    count::packet_out(back.key.service, back.to.server, packet.length());
    let source = End { address: back.service.address, port: back.key.service_port };
    let client = End { address: back.key.client, port: back.key.client_port };
    // Without a SNAT port it is for the client's own address already.
    let destination = if back.to.has_port() { Some(client) } else { None };
    packet.rewrite_segment(segment, &Rewrite { hop, source: Some(source), destination });
    Ok(Outcome { reason: Reason::Returned, arm: hop.arm })
}

/// The server's answer to a half-open flow's SYN, or first datagram: its number is what the client must acknowledge.
#[inline(always)]
fn answer(world: &World, packet: &Packet, segment: &Segment, back: &Return) {
    let slot = back.found.slot;
    let life = back.found.life;
    let numbers = Sequences::from_word(slot.words[SEQUENCE_WORD].load());
    let handshake = matches!(TcpState::from_note(life.note()), TcpState::SynSent | TcpState::SynReceived);
    let answers = segment.is_udp
        || segment.flags.is_syn_ack() && packet.acknowledgment(segment) == numbers.client.wrapping_add(1);
    if handshake && answers {
        let deadline = world.now.plus(world.control.idle(TcpState::SynReceived, back.service.idle));
        let answered = life.with_note(TcpState::SynReceived as u32).with_deadline(deadline);
        // The number after the exchange: before it, the slot may be another's. The client can't be earlier, it has not
        // seen this packet yet.
        if slot.exchange(life, answered) {
            let answer = Sequences { server: packet.sequence(segment), ..numbers };
            slot.words[SEQUENCE_WORD].store(answer.word());
        }
    } else {
        open::keep_overflow(world, &back.found, back.key.service);
    }
}
