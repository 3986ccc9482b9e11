//! A segment from a client to a virtual service.
//!
//! Here is the way of most packets: an open flow and its server. Whatever is not that clear, `handshake.rs` decides;
//! the segment is rewritten or answered here in either case.

use lb_common::{
    flow::{FLOW_WORDS, FlowKey, FlowServer, Flows as FlowKind, HOP_WORD, SERVER_WORD, mac_word},
    hash::hash3,
    reason::Reason,
    server::{Server, ServerState, Servers as _},
    table::{Found, find},
    tcp::{Direction, TcpFlags, TcpState},
};

use crate::{
    count,
    establish::establish,
    flow,
    handshake::{Answer, decide},
    maps::{Flows, HalfOpen, ServerTable},
    open::open,
    packet::{Packet, Rewrite, Segment, Tuple},
    pipeline::World,
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
) -> Result<Reason, Reason> {
    if packet.ttl() <= 1 {
        return Err(Reason::TtlExceeded);
    }
    let key = FlowKey {
        client: segment.tuple.source,
        client_port: segment.tuple.source_port,
        service_port: segment.tuple.destination_port,
        service,
    };
    let client = Client::with_key(world, key);
    if let Some(found) = client.find_flow(world) {
        let to = FlowServer::from_word(found.slot.words[SERVER_WORD].load());
        let closed = TcpState::from_note(found.life.note()).is_closed();
        if !closed
            && let Some(server) = serving(&to)
            && server.state.has(ServerState::REACHABLE)
            && found.still()
        {
            accept(world, packet, &found, segment, service);
            return Ok(send(world, packet, segment, service, &to, &server, Reason::Forwarded));
        }
    }
    let answer = unsettled(packet, segment, key);
    carry_out(world, packet, segment, service, answer)
}

/// Has a segment decided that is not of an open flow with a usable server. The functions that do it are called from here,
/// one after the other, because their stacks add up when they call each other.
#[inline(always)]
fn unsettled(packet: &Packet, segment: &Segment, key: FlowKey) -> Answer {
    let [first, second, ports] = key.words();
    if segment.flags.opens() {
        return Answer::from_word(open(first, second, ports, packet.sequence(segment), packet.sender()));
    }
    let numbers = u64::from(packet.sequence(segment)) | u64::from(packet.acknowledgment(segment)) << 32;
    let sender = packet.sender() | u64::from(segment.flags.0) << 48;
    let answer = decide(first, second, ports, numbers, sender);
    if answer >> 56 != Reason::Established as u64 {
        return Answer::from_word(answer);
    }
    let is_last = segment.flags.has(TcpFlags::FIN);
    Answer::from_word(establish(key, (answer >> 32) as u16, answer as u32, numbers, is_last))
}

/// Sends or answers a segment as it was decided.
#[inline(always)]
fn carry_out(
    world: &World,
    packet: &Packet,
    segment: &Segment,
    service: u16,
    answer: Answer,
) -> Result<Reason, Reason> {
    match answer.reason {
        Reason::ResetServerGone | Reason::ResetNoFlow | Reason::ResetNoServer => {
            packet.answer_with_reset(segment);
            Ok(answer.reason)
        }
        Reason::StrayReset
        | Reason::NoNeighbour
        | Reason::PortsExhausted
        | Reason::HalfOpenBusy
        | Reason::Carrying
        | Reason::NotConfigured => Err(answer.reason),
        reason => {
            let server = ServerTable.present(answer.to.server).ok_or(Reason::NoNeighbour)?;
            Ok(send(world, packet, segment, service, &answer.to, &server, reason))
        }
    }
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
    let sequence = packet.sequence(segment);
    let near = flow::follow(world, found, service, segment.flags, sequence, Direction::FromClient);
    let sender = packet.sender();
    if near && found.slot.words[HOP_WORD].load() != sender {
        found.slot.words[HOP_WORD].store(sender);
    }
}

/// Rewrites a segment for its server and counts it.
#[inline(always)]
fn send(
    world: &World,
    packet: &Packet,
    segment: &Segment,
    service: u16,
    to: &FlowServer,
    server: &Server,
    reason: Reason,
) -> Reason {
    count::packet_in(service, to.server, packet.length());
    let tuple = Tuple {
        source: world.control.source(to.source),
        destination: server.address,
        source_port: to.snat_port,
        destination_port: server.port_for(segment.tuple.destination_port),
    };
    packet.rewrite_segment(segment, &Rewrite { next_hop: mac_word(server.mac), tuple });
    reason
}
