//! A segment or datagram from a client to a virtual service.
//!
//! Here is the way of most packets: an open flow and its server. Whatever is not that clear, `handshake.rs` decides;
//! the segment is rewritten or answered here in either case.

use lb_common::{
    flow::{FLOW_WORDS, FlowKey, FlowServer, Flows as FlowKind, SERVER_WORD},
    forwarding::Forwarding,
    hash::hash3,
    reason::Reason,
    server::{Server, ServerState, Servers as _},
    table::{Found, find},
    tcp::{Direction, SYN_SEEN, TcpFlags, TcpState},
};

use crate::{
    count,
    establish::establish,
    flow,
    handshake::{Answer, FLAGS_SHIFT, REASON_SHIFT, SECOND_DATAGRAM, answered, decide, reason_of},
    maps::{self, Flows, HalfOpen, ServerTable},
    open::open,
    packet::{End, Packet, Rewrite, Segment, answer_too_big, clamp_mss, encapsulate},
    pipeline::{Outcome, World},
    renew::renew,
    select::{LOOK, asked_for, select, service_of},
};

/// What a client's segment is found by.
#[derive(Clone, Copy)]
pub(crate) struct Client {
    pub(crate) key: FlowKey,
    pub(crate) hash: u64,
}

impl Client {
    #[inline(always)]
    pub(crate) fn with_key(world: &World, key: FlowKey) -> Self {
        Self { key, hash: hash3(&world.key(), key.words()) }
    }

    /// The flow in the flow table.
    #[inline(always)]
    pub(crate) fn find_flow(&self, world: &World) -> Option<Found<'static, FLOW_WORDS>> {
        find::<FLOW_WORDS, FlowKind, _>(&Flows, self.hash, self.key.words(), world.now)
    }

    /// The flow in the half-open table.
    #[inline(always)]
    pub(crate) fn find_half_open(&self, world: &World) -> Option<Found<'static, FLOW_WORDS>> {
        find::<FLOW_WORDS, FlowKind, _>(&HalfOpen, self.hash, self.key.words(), world.now)
    }
}

/// Decides on a segment to a service.
#[inline(always)]
pub(crate) fn segment(
    world: &World,
    packet: &Packet,
    segment: &Segment,
    service: u16,
) -> Result<Outcome, Reason> {
    if packet.hops() <= 1 {
        return Err(Reason::TtlExceeded);
    }
    let key = FlowKey {
        client: segment.tuple.source,
        client_port: segment.tuple.source_port,
        service_port: segment.tuple.destination_port,
        service,
    };
    let Way { to, reason } = match open_flow(world, packet, segment, key) {
        Ok(way) => way,
        Err(words) => match settle(packet, segment, words) {
            Ok(way) => way,
            Err(reason @ (Reason::ResetServerGone | Reason::ResetNoFlow | Reason::ResetNoServer)) => {
                packet.answer_with_reset(segment);
                return Ok(Outcome::here(reason));
            }
            Err(reason) => return Err(reason),
        },
    };
    let server = ServerTable.present(to.server).ok_or(Reason::NoNeighbour)?;
    send(world, packet, segment, service, &to, &server, reason)
}

/// Where a segment goes, and why. The server is looked up again then: that costs less than keeping it on the stack.
struct Way {
    to: FlowServer,
    reason: Reason,
}

/// The words of a flow's key, with [`IN_TABLE`].
pub(crate) type KeyWords = [u64; 3];

/// In the third word of a key, for the functions that decide on segments: there is a flow of this key in the flow table, though
/// not an open one with a usable server. Without it nobody has to look again.
pub(crate) const IN_TABLE: u64 = 1 << 63;

/// In the third word of a key, for [`renew`]: there is an open flow of this key with a usable server, and a SYN on its ports.
pub(crate) const SYN_ON_OPEN: u64 = 1 << 61;

/// In the third word of a key, for [`open`]: there was no SNAT port that has rested for the quarantine, another will do.
pub(crate) const HURRIED: u64 = 1 << 62;

/// The way of a segment of an open flow with a usable server; else the words of its key.
#[inline(always)]
fn open_flow(world: &World, packet: &Packet, segment: &Segment, key: FlowKey) -> Result<Way, KeyWords> {
    let [first, second, ports] = key.words();
    let Some(found) = Client::with_key(world, key).find_flow(world) else {
        return Err([first, second, ports]);
    };
    let there = Err([first, second, ports | IN_TABLE]);
    let to = FlowServer::from_word(found.slot.words[SERVER_WORD].load());
    if TcpState::from_note(found.life.note()).is_closed() {
        return there;
    }
    let Some(server) = serving(&to) else { return there };
    if !server.state.has(ServerState::REACHABLE) || !found.still() {
        return there;
    }
    let begins = segment.flags.opens() && server.forwarding.sees_answers();
    if begins || found.life.note() & SYN_SEEN != 0 {
        return Err([first, second, ports | SYN_ON_OPEN]);
    }
    accept(world, packet, &found, segment, key.service);
    Ok(Way { to, reason: Reason::Forwarded })
}

/// The way of any other segment, as it is decided; or why it has none.
#[inline(always)]
fn settle(packet: &Packet, segment: &Segment, words: KeyWords) -> Result<Way, Reason> {
    let Answer { to, reason } = unsettled(packet, segment, words);
    match reason {
        Reason::ResetNoServer if segment.is_udp => Err(Reason::NoServer),
        Reason::ResetNoServer if segment.flags.has(TcpFlags::RST) => Err(Reason::StrayReset),
        Reason::ResetServerGone
        | Reason::ResetNoFlow
        | Reason::ResetNoServer
        | Reason::StrayReset
        | Reason::NoNeighbour
        | Reason::PortsExhausted
        | Reason::HalfOpenBusy
        | Reason::NoServer
        | Reason::Carrying
        | Reason::NotConfigured => Err(reason),
        reason => {
            if segment.flags.opens() && maps::clamps_mss(service_of(asked_for(words[2]))) {
                clamp_mss(packet.context, u32::from(to.server) | u32::from(packet.arm) << 16);
            }
            Ok(Way { to, reason })
        }
    }
}

/// Has a segment decided that is not of an open flow with a usable server. The functions that do it are called from here,
/// one after the other, because their stacks add up when they call each other.
#[inline(always)]
fn unsettled(packet: &Packet, segment: &Segment, words: KeyWords) -> Answer {
    let [first, second, ports] = words;
    if ports & SYN_ON_OPEN != 0 {
        let numbers = u64::from(packet.sequence(segment)) | u64::from(packet.acknowledgment(segment)) << 32;
        let sender = packet.return_hop() | u64::from(segment.flags.0) << FLAGS_SHIFT;
        return Answer::from_word(renew(first, second, ports, numbers, sender));
    }
    let answered = if segment.is_udp { answered(first, second, ports) } else { 0 };
    if segment.flags.opens() || (segment.is_udp && answered == 0) {
        let mut answer = open(first, second, ports, packet.sequence(segment), packet.return_hop());
        if answer >> REASON_SHIFT == Reason::PortsExhausted as u64 {
            let ports = ports | HURRIED;
            answer = open(first, second, ports, packet.sequence(segment), packet.return_hop());
        }
        return Answer::from_word(answer);
    }
    let (numbers, answer) = if segment.is_udp {
        (SECOND_DATAGRAM, answered)
    } else {
        let numbers = u64::from(packet.sequence(segment)) | u64::from(packet.acknowledgment(segment)) << 32;
        let sender = packet.return_hop() | u64::from(segment.flags.0) << FLAGS_SHIFT;
        (numbers, decide(first, second, ports, numbers, sender))
    };
    if answer >> 56 == Reason::ForwardedUnknown as u64 {
        return Answer::from_word(select(first, second, asked_for(ports), LOOK)).unknown();
    }
    if answer >> 56 != Reason::Established as u64 {
        return Answer::from_word(answer);
    }
    let is_last = segment.flags.has(TcpFlags::FIN);
    Answer::from_word(establish(words, (answer >> 32) as u16, answer as u32, numbers, is_last))
}

/// The server of a flow, unless it is down, halted, or removed and its id given to another.
#[inline(always)]
pub(crate) fn serving(to: &FlowServer) -> Option<Server> {
    ServerTable
        .present(to.server)
        .filter(|server| server.endpoint == to.endpoint && !server.state.has(ServerState::RESETS))
}

/// Notes what a segment of a flow tells: state, sequence number, time, and where the client's packets come from.
#[inline(always)]
fn accept(world: &World, packet: &Packet, found: &Found<'_, FLOW_WORDS>, segment: &Segment, service: u16) {
    let near = if segment.is_udp {
        flow::keep(world, found.slot, found.life, service, TcpState::Established);
        true
    } else {
        flow::follow(world, found, service, segment.flags, packet.sequence(segment), Direction::FromClient)
    };
    if near {
        flow::comes_by(found.slot, packet.return_hop());
    }
}

/// Makes a segment ready for its server, and counts it.
#[inline(always)]
fn send(
    world: &World,
    packet: &Packet,
    segment: &Segment,
    service: u16,
    to: &FlowServer,
    server: &Server,
    reason: Reason,
) -> Result<Outcome, Reason> {
    let hop = world.hop(packet, server.hop_word());
    let destination = End { address: server.address, port: server.port_for(segment.tuple.destination_port) };
    let source = match server.forwarding {
        Forwarding::Snat => {
            Some(End { address: world.control.source(to.source, server.address), port: to.snat_port })
        }
        Forwarding::Nat => None,
        Forwarding::Dr => {
            packet.send_on(&hop);
            count::packet_in(service, to.server, packet.length());
            return Ok(Outcome { reason, arm: hop.arm });
        }
        Forwarding::Tunnel => {
            return enter_tunnel(packet, packet.entropy(segment), to.server).map(|outcome| {
                if matches!(outcome.reason, Reason::TooBig) {
                    return outcome;
                }
                count::packet_in(service, to.server, packet.length());
                Outcome { reason, ..outcome }
            });
        }
    };
    count::packet_in(service, to.server, packet.length());
    let rewrite = Rewrite { hop, source, destination: Some(destination), may_fragment: false };
    packet.rewrite_segment(segment, &rewrite);
    Ok(Outcome { reason, arm: hop.arm })
}

/// Puts a packet into another, to a server: the arm by which it leaves, with any reason but [`Reason::TooBig`]; with that, it
/// is the answer to one that is too large.
#[inline(always)]
pub(crate) fn enter_tunnel(packet: &Packet, entropy: u32, server: u16) -> Result<Outcome, Reason> {
    let sealed = encapsulate(packet.context, u32::from(server), entropy);
    let (reason, value) = (reason_of(sealed & 0xff), sealed >> 8);
    match reason {
        Reason::Forwarded => Ok(Outcome { reason, arm: value as u8 }),
        Reason::TooBig => {
            if answer_too_big(packet.context, value) == 0 {
                return Err(Reason::BadHeader);
            }
            Ok(Outcome::here(reason))
        }
        reason => Err(reason),
    }
}
