//! A segment or datagram from a real server: to one of the SNAT ports, or to a client that it knows by its own address.

use lb_common::{
    clock::Ticks,
    flow::{
        ARM_SHIFT, FLOW_WORDS, FlowKey, FlowServer, FlowSlot, Flows as FlowKind, HOP_WORD, MAY_FRAGMENT,
        SEQUENCE_WORD, SERVER_WORD, STICKY_WORD, Sequences,
    },
    handshake::{Answered, answers_syn},
    life::{Life, SlotState},
    mss::MssClamp,
    ports::{Cells as _, Owner, PortCell},
    reason::Reason,
    server::{ServerState, Servers as _},
    service::Service,
    table::{Found, Kind as _, Slots as _},
    tcp::{Direction, SYN_SEEN, TcpFlags, TcpState},
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
    let its = |slot: &FlowSlot| {
        let to = FlowServer::from_word(slot.words[SERVER_WORD].load());
        to.endpoint == endpoint && to.source == source && to.snat_port == port
    };
    let mut word = cell.load();
    if let Owner::HalfOpen(index) = PortCell::from_word(word).owner
        && let Some(slot) = (&HalfOpen).slot(index)
        && !(its(slot) && matches!(slot.life().state(), SlotState::Live))
    {
        // Another core may have established it between the two looks: the port is the flow's before the half-open row goes.
        word = cell.load();
    }
    let (index, half_open, slot) = match PortCell::from_word(word).owner {
        Owner::Flow(index) => (index, false, (&Flows).slot(index)?),
        Owner::HalfOpen(index) => (index, true, (&HalfOpen).slot(index)?),
        Owner::Free => return None,
    };
    let life = slot.life();
    let to = FlowServer::from_word(slot.words[SERVER_WORD].load());
    if !its(slot) || !matches!(life.state(), SlotState::Live) || FlowKind::expired(life, world.now) {
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
        return refuse(world, packet, segment);
    };
    answer_client(world, packet, segment, &back, endpoint)
}

/// Tells a server that nobody has the connection that it goes on with.
#[inline(always)]
fn refuse(world: &World, packet: &Packet, segment: &Segment) -> Result<Outcome, Reason> {
    if world.control.is_carrying(world.now) {
        return Err(Reason::Carrying);
    }
    if segment.is_udp {
        return Err(Reason::NoReturnFlow);
    }
    if segment.flags.has(TcpFlags::RST) {
        return Err(Reason::StrayReset);
    }
    packet.answer_with_reset(segment);
    Ok(Outcome::here(Reason::ResetNoReturnFlow))
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
        answer(packet, segment, back.found.index, back.found.life);
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
        if segment.flags.is_syn_ack() && back.found.life.note() & SYN_SEEN != 0 {
            answer_syn_on_open_flow(packet, segment, back);
        }
    }
    let hop = world.hop(packet, next_hop);
    count::packet_out(back.key.service, back.to.server, packet.length());
    let source = End { address: back.service.address, port: back.key.service_port };
    let client = End { address: back.key.client, port: back.key.client_port };
    // Without a SNAT port it is for the client's own address already.
    let destination = if back.to.has_port() { Some(client) } else { None };
    let may_fragment = next_hop & MAY_FRAGMENT != 0;
    packet.rewrite_segment(segment, &Rewrite { hop, source: Some(source), destination, may_fragment });
    Ok(Outcome { reason: Reason::Returned, arm: hop.arm })
}

/// The server has forgotten the connection, perhaps: then the half-open table has the client's SYN.
#[inline(always)]
fn answer_syn_on_open_flow(packet: &Packet, segment: &Segment, back: &Return) {
    let [first, second, ports] = back.key.words();
    let place = flow::half_open_at(first, second, ports);
    let index = place as u32;
    if place != flow::NOWHERE
        && let Some(slot) = (&HalfOpen).slot(index)
    {
        answer(packet, segment, index, slot.life());
    }
}

/// The server's answer to a half-open flow's SYN, or first datagram, or what it sends behind that.
#[inline(always)]
fn answer(packet: &Packet, segment: &Segment, index: u32, life: Life) {
    let numbers = u64::from(packet.sequence(segment)) | u64::from(packet.acknowledgment(segment)) << 32;
    let kind = if segment.is_udp { DATAGRAM } else { u32::from(segment.flags.0) };
    note_answer(index, life.word(), numbers, packet.data(segment), kind);
}

/// In the place of a segment's flags: it is a datagram.
const DATAGRAM: u32 = 1 << 8;

/// Notes a server's segment of a half-open flow, with these numbers (sequence number, and the acknowledgement number above it),
/// bytes of data and flags: the number of its SYN-ACK is what the client must acknowledge, and with it what came behind.
///
/// A global function with numbers for arguments: the verifier checks it once, by itself.
#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn note_answer(index: u32, life: u64, numbers: u64, data: u32, kind: u32) -> u32 {
    let world = World::now();
    let Some(slot) = (&HalfOpen).slot(index) else { return 0 };
    let (life, flags) = (Life::from_word(life), TcpFlags(kind as u8));
    let (sequence, acknowledgment) = (numbers as u32, (numbers >> 32) as u32);
    let (recorded, sticky) = (slot.words[SEQUENCE_WORD].load(), slot.words[STICKY_WORD].load());
    let before = Answered::from_words(recorded, sticky);
    let state = TcpState::from_note(life.note());
    let is_datagram = kind & DATAGRAM != 0;
    let is_answer = is_datagram
        || flags.is_syn_ack() && answers_syn(Sequences::from_word(recorded).client, acknowledgment);
    let answered = match state {
        TcpState::SynSent if is_answer => Answered::new(sequence, data),
        TcpState::SynReceived if is_answer => before.and(sequence, data),
        TcpState::SynReceived if !flags.has(TcpFlags::SYN) && !flags.has(TcpFlags::RST) => {
            before.and_data(sequence, data + u32::from(flags.has(TcpFlags::FIN)))
        }
        TcpState::Established => {
            let service = (slot.words[2].load() >> 32) as u16;
            open::keep_overflow(&world, &Found { index, slot, life }, service);
            return 0;
        }
        _ => return 0,
    };
    if !is_answer && answered == before {
        return 0;
    }
    let deadline = if is_answer {
        world.now.plus(world.control.idle(TcpState::SynReceived, Ticks(0)))
    } else {
        life.deadline()
    };
    // The numbers after the exchange: before it, the slot may be another's. The client can't be earlier, it has not
    // seen this packet yet.
    let noted = life.with_note(TcpState::SynReceived as u32).with_deadline(deadline);
    if !slot.exchange(life, noted) {
        return 0;
    }
    let client = Sequences::from_word(recorded).client;
    slot.words[SEQUENCE_WORD].store(Sequences { client, server: answered.last }.word());
    slot.words[STICKY_WORD].store(answered.in_sticky(sticky));
    1
}
