//! A client's segment that is not of an open flow with a usable server: a SYN, the rest of a handshake, a late packet.
//!
//! Everything here works on numbers, none on the packet: the functions below are global ones, which the verifier
//! checks once each, by themselves, whoever calls them.

use lb_common::{
    flow::{FLOW_WORDS, FlowKey, FlowServer, SEQUENCE_WORD, SERVER_WORD, STICKY_WORD, Sequences},
    forwarding::Forwarding,
    handshake::{Answered, FIRST_WINDOW},
    life::Life,
    ports::{Owner, PortCell},
    reason::Reason,
    server::ServerState,
    table::{Found, Slot},
    tcp::{Direction, TcpFlags, TcpState},
};

use crate::{
    count, flow,
    from_client::{Client, serving},
    maps,
    open::keep_overflow,
    pipeline::World,
};

/// What was decided, in one word: where the flow goes, and the reason's number in the highest byte.
pub(crate) struct Answer {
    pub(crate) to: FlowServer,
    pub(crate) reason: Reason,
}

/// Where the reason stands in an [`Answer`]'s word.
pub(crate) const REASON_SHIFT: u32 = 56;

impl Answer {
    #[inline(always)]
    pub(crate) const fn word(to: u64, reason: Reason) -> u64 {
        to & 0x00ff_ffff_ffff_ffff | (reason as u64) << 56
    }

    #[inline(always)]
    pub(crate) fn from_word(word: u64) -> Self {
        Self { to: FlowServer::from_word(word), reason: reason_of((word >> 56) as u32) }
    }
}

impl Answer {
    /// As an answer about a segment of no known flow: where its client's next connection would go.
    #[inline(always)]
    pub(crate) fn unknown(self) -> Self {
        let reason = match self.reason {
            Reason::NewBySticky | Reason::NewByScheduler => Reason::ForwardedUnknown,
            reason => reason,
        };
        Self { reason, ..self }
    }
}

/// The reason with this number, from a function that returns numbers.
#[inline(always)]
pub(crate) fn reason_of(number: u32) -> Reason {
    Reason::from_number(number).unwrap_or(Reason::NotConfigured)
}

/// Where a segment's flags stand in a word with the hop that it came from.
pub(crate) const FLAGS_SHIFT: u32 = 56;

/// A UDP flow has no numbers: what its second datagram stands for acknowledges what its first stood for, both from zero.
pub(crate) const SECOND_DATAGRAM: u64 = 1 | 1 << 32;

/// Whether a datagram with this key completes a half-open flow: its server has answered, as far as answers are seen. Gives
/// an [`Answer`] as [`decide`] does where it establishes one; else zero.
#[unsafe(no_mangle)]
#[inline(never)]
pub(crate) extern "C" fn answered(first: u64, second: u64, ports: u64) -> u64 {
    let world = World::now();
    let client = Client::with_key(&world, FlowKey::from_words(&[first, second, ports, 0, 0, 0, 0]));
    let Some(half_open) = client.find_half_open(&world) else { return 0 };
    let to = FlowServer::from_word(half_open.slot.words[SERVER_WORD].load());
    let Some(server) = serving(&to) else { return 0 };
    let usable = server.state.has(ServerState::REACHABLE) && owns_port(&world, half_open.index, &to);
    if !usable || !is_answered(server.forwarding, half_open.life) || !half_open.still() {
        return 0;
    }
    Answer::word(u64::from(half_open.index) | u64::from(to.server) << 32, Reason::Established)
}

/// What of a segment matters here.
#[derive(Clone, Copy)]
pub(crate) struct Heard {
    pub(crate) flags: TcpFlags,
    pub(crate) sequence: u32,
    pub(crate) acknowledgment: u32,
    pub(crate) sender: u64,
}

impl Heard {
    /// From its sequence number with the acknowledgement number above it, and its sender's MAC address with the flags above it.
    #[inline(always)]
    pub(crate) fn from_words(numbers: u64, sender: u64) -> Self {
        Self {
            flags: TcpFlags((sender >> FLAGS_SHIFT) as u8),
            sequence: numbers as u32,
            acknowledgment: (numbers >> 32) as u32,
            sender: sender & ((1 << FLAGS_SHIFT) - 1),
        }
    }

    /// Whether it may acknowledge a SYN-ACK.
    #[inline(always)]
    pub(crate) fn acknowledges(&self) -> bool {
        self.flags.has(TcpFlags::ACK) && !self.flags.has(TcpFlags::RST)
    }
}

/// Decides on a segment, not a SYN, with this key, sequence and acknowledgement number, sender's MAC address and flags.
/// Gives an [`Answer`]; if that is [`Reason::Established`], the half-open slot's index (low half) and the
/// server's id (above it) for `stick` and `establish` to go on with.
#[unsafe(no_mangle)]
#[inline(never)]
pub(crate) extern "C" fn decide(first: u64, second: u64, ports: u64, numbers: u64, sender: u64) -> u64 {
    let world = World::now();
    let heard = Heard::from_words(numbers, sender);
    let client = Client::with_key(&world, FlowKey::from_words(&[first, second, ports, 0, 0, 0, 0]));
    if let Some(half_open) = client.find_half_open(&world) {
        let word = half_open.slot.words[SERVER_WORD].load();
        // Without its port it is on its way into the flow table, or lost.
        if owns_port(&world, half_open.index, &FlowServer::from_word(word)) && half_open.still() {
            return of_half_open(&world, &client, &heard, &half_open, word);
        }
    }
    // A closed flow, or one whose server is gone; or another core has established it since the first look.
    if let Some(found) = client.find_flow(&world) {
        return of_flow(&world, &client, &heard, &found);
    }
    unknown(&world, &client, &heard)
}

/// A segment of a half-open flow, other than its SYN.
#[inline(always)]
fn of_half_open(
    world: &World,
    client: &Client,
    heard: &Heard,
    half_open: &Found<'_, FLOW_WORDS>,
    word: u64,
) -> u64 {
    let to = FlowServer::from_word(word);
    let Some(server) = serving(&to) else {
        return gone(heard);
    };
    if !server.state.has(ServerState::REACHABLE) {
        return Answer::word(0, Reason::NoNeighbour);
    }
    if heard.acknowledges()
        && is_answered(server.forwarding, half_open.life)
        && completes(server.forwarding, heard.sequence, heard.acknowledgment, half_open.slot)
    {
        return Answer::word(u64::from(half_open.index) | u64::from(to.server) << 32, Reason::Established);
    }
    keep_overflow(world, half_open, client.key.service);
    Answer::word(word, Reason::HandshakeForwarded)
}

/// Whether a half-open flow may be completed: the server has answered it, as far as answers are seen.
#[inline(always)]
pub(crate) fn is_answered(forwarding: Forwarding, life: Life) -> bool {
    match TcpState::from_note(life.note()) {
        TcpState::SynReceived => true,
        TcpState::SynSent => !forwarding.sees_answers(),
        _ => false,
    }
}

/// Whether the segment is in sequence behind the client's SYN and acknowledges what the server has answered, where that is known.
#[inline(always)]
pub(crate) fn completes(
    forwarding: Forwarding,
    sequence: u32,
    acknowledgment: u32,
    half_open: &Slot<FLOW_WORDS>,
) -> bool {
    let numbers = half_open.words[SEQUENCE_WORD].load();
    let answered = Answered::from_words(numbers, half_open.words[STICKY_WORD].load());
    let behind = sequence.wrapping_sub(Sequences::from_word(numbers).client).wrapping_sub(1);
    behind <= FIRST_WINDOW && (answered.is_acknowledged_by(acknowledgment) || !forwarding.sees_answers())
}

/// A segment of a flow that is closed, or whose server is down, halted or removed.
#[inline(always)]
fn of_flow(world: &World, client: &Client, heard: &Heard, found: &Found<'_, FLOW_WORDS>) -> u64 {
    let service = client.key.service;
    let word = found.slot.words[SERVER_WORD].load();
    let to = FlowServer::from_word(word);
    if !found.still() {
        return unknown(world, client, heard);
    }
    let Some(server) = serving(&to) else {
        let closed = TcpState::from_note(found.life.note()).is_closed();
        if !closed && flow::change_state(found.index, found.life.word(), TcpState::ServerReset as u32) == 1 {
            count::server_gone(service, to.server);
        }
        return gone(heard);
    };
    if !server.state.has(ServerState::REACHABLE) {
        return Answer::word(0, Reason::NoNeighbour);
    }
    let near = flow::follow(world, found, service, heard.flags, heard.sequence, Direction::FromClient);
    if near {
        flow::comes_by(found.slot, heard.sender);
    }
    Answer::word(word, Reason::Forwarded)
}

/// A segment towards a server that is gone: the client is told, and may connect elsewhere.
#[inline(always)]
fn gone(heard: &Heard) -> u64 {
    let stray = heard.flags.has(TcpFlags::RST);
    Answer::word(0, if stray { Reason::StrayReset } else { Reason::ResetServerGone })
}

/// A segment of no flow.
#[inline(always)]
pub(crate) fn unknown(world: &World, client: &Client, heard: &Heard) -> u64 {
    if world.control.is_carrying(world.now) {
        return Answer::word(0, Reason::Carrying);
    }
    if maps::service(client.key.service).is_some_and(|service| !service.forwarding.sees_answers()) {
        return Answer::word(0, Reason::ForwardedUnknown);
    }
    if heard.flags.has(TcpFlags::RST) {
        return Answer::word(0, Reason::StrayReset);
    }
    count::service_reset(client.key.service);
    Answer::word(0, Reason::ResetNoFlow)
}

/// Whether a half-open flow still has its SNAT port, if it needs one: another may have taken it.
#[inline(always)]
pub(crate) fn owns_port(world: &World, slot: u32, to: &FlowServer) -> bool {
    !to.has_port()
        || flow::cell_of(world, to)
            .is_some_and(|cell| PortCell::from_word(cell.load()).owner == Owner::HalfOpen(slot))
}
