//! The shortest way: data of an established flow, in all modes but `tunnel`, in and out by the first interface; and what of
//! the same kind is not ours.
//!
//! It decides what the pipeline would, from the same rows, and writes nothing that the pipeline writes but sequence
//! numbers. Whatever is not as plain as that, it leaves untouched, and the pipeline decides. The tests' packets take it
//! wherever it is open to them.

use aya_ebpf::bindings::xdp_md;
use lb_common::{
    TCP,
    address::Address,
    cache::Kind,
    clock::Ticks,
    control::Control,
    flow::{
        ARM_SHIFT, FLOW_WORDS, FlowKey, FlowServer, Flows as FlowKind, HOP_WORD, SEQUENCE_WORD, SERVER_WORD,
        stays,
    },
    forwarding::Forwarding,
    hash::hash3,
    life::SlotState,
    ports::{Cells as _, Owner, PortCell},
    reason::Reason,
    server::{ServerState, Servers as _},
    service::{EntryKind, INDEX_CAPACITY, Index as _, Spread, is_named, multiplied},
    table::{Found, Slots as _, find, find_at_home},
    tcp::{Direction, TcpState},
};

use crate::{
    cache::{self, Decided, Keep, Look},
    count,
    flow::record,
    maps::{self, Flows, Ports, ServerTable, ServiceIndex},
    packet::{Family, Hop, Plain, Span, family, interface, is_group},
    pipeline::{SAME_ARM, World, now},
};

/// What became of a packet here.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Fast {
    /// It is ready to be sent, and counted.
    Transmit,
    /// It is for the host, and counted.
    Pass,
    /// Nothing.
    Undecided,
}

/// Decides on a packet, if it is of those.
#[inline(always)]
pub(crate) fn run(context: *mut xdp_md) -> Fast {
    match family(context) {
        Family::V4(span) => decide::<false>(context, span),
        Family::V6(span) => decide::<true>(context, span),
        Family::Other => Fast::Undecided,
    }
}

#[inline(always)]
fn decide<const V6: bool>(context: *mut xdp_md, span: Span) -> Fast {
    let Some(packet) = Plain::<V6>::read(span) else { return Fast::Undecided };
    if !packet.goes_on() {
        return Fast::Undecided;
    }
    let control = maps::control();
    let keep = match cache::look(context, control, &packet) {
        Some(Look::Done(fast)) => return fast,
        Some(Look::Unknown(keep)) => keep,
        None => return Fast::Undecided,
    };
    let ports = packet.ports();
    let to = look(control, packet.destination(), (ports >> 16) as u16);
    let from = if to.entry == NOTHING { look(control, packet.source(), ports as u16) } else { Seen::NOTHING };
    if to.entry == NOTHING && from.entry == NOTHING {
        // By whatever interface it came.
        keep.not_ours(&packet);
        count::reason(Reason::NotOurs);
        return Fast::Pass;
    }
    let arm = &control.arms[0];
    let by_first = arm.interface.load() as u32 == interface(context) && arm.mac.load() == packet.receiver();
    if !by_first || is_group(packet.sender()) {
        return Fast::Undecided;
    }
    if to.is(EntryKind::Service) {
        return from_client(context, control, &packet, to.id(), keep);
    }
    if from.is(EntryKind::Endpoint) {
        return from_server(context, control, &packet, from.id(), keep);
    }
    if from.is(EntryKind::NatEndpoint) {
        return from_nat_server(context, control, &packet, from, keep);
    }
    Fast::Undecided
}

/// Nothing is where what was looked for would be, so it is not in the index.
const NOTHING: u64 = 0;
/// Other things are.
const SOMETHING_ELSE: u64 = 1;

/// What was seen in the index.
#[derive(Clone, Copy)]
struct Seen {
    /// Its word about kind and id.
    entry: u64,
    /// The port of the service that a [`EntryKind::NatEndpoint`] answers for, as on the wire.
    service_port: u16,
}

impl Seen {
    const NOTHING: Self = Self { entry: NOTHING, service_port: 0 };

    #[inline(always)]
    const fn is(self, kind: EntryKind) -> bool {
        (self.entry >> 24) as u8 == kind as u8
    }

    #[inline(always)]
    const fn id(self) -> u16 {
        (self.entry >> 32) as u16
    }
}

/// Places of the index that are looked at here: of a few services and servers one is enough but for a freak of the secret.
const PROBES: u32 = 3;

/// What the index says of an address and port, where a few looks tell.
#[inline(always)]
fn look(control: &Control, address: Address, port: u16) -> Seen {
    let something_else = Seen { entry: SOMETHING_ELSE, service_port: 0 };
    let in_force = control.index();
    if in_force.spread != Spread::Multiplied {
        return something_else;
    }
    let place = multiplied(control.hash_key[3].load(), address, port);
    let mut probe = 0;
    while probe < PROBES {
        let at = place.wrapping_add(probe) & (INDEX_CAPACITY - 1);
        let Some(slot) = ServiceIndex.entry(in_force.base() + at) else { return something_else };
        let entry = slot[2].load();
        if entry == NOTHING || is_named(slot, entry, address, port, TCP) {
            return Seen { entry, service_port: slot[3].load() as u16 };
        }
        probe += 1;
    }
    something_else
}

/// Whether a flow is established, and its deadline so new that it stays.
#[inline(always)]
fn is_fresh(found: &Found<'_, FLOW_WORDS>, now: Ticks, idle: Ticks) -> bool {
    found.life.note() == TcpState::Established as u32 && stays(found.life.deadline(), now, idle)
}

/// The flow of this key.
#[inline(always)]
fn by_key(control: &Control, key: FlowKey, now: Ticks) -> Option<Found<'static, FLOW_WORDS>> {
    let words = key.words();
    let hash = hash3(&control.key(), words);
    match find_at_home::<FLOW_WORDS, FlowKind, _>(&Flows, hash, words, now) {
        Some(found) => Some(found),
        None => find::<FLOW_WORDS, FlowKind, _>(&Flows, hash, words, now),
    }
}

#[inline(always)]
fn from_client<const V6: bool>(
    context: *mut xdp_md,
    control: &'static Control,
    packet: &Plain<V6>,
    service: u16,
    keep: Keep,
) -> Fast {
    let now = now();
    let client = packet.source();
    let ports = packet.ports();
    let key = FlowKey { client, client_port: ports as u16, service_port: (ports >> 16) as u16, service };
    let Some(found) = by_key(control, key, now) else { return Fast::Undecided };
    let to = FlowServer::from_word(found.slot.words[SERVER_WORD].load());
    // With arm 0 above the address, as the first interface's is.
    let same_hop = found.slot.words[HOP_WORD].load() == packet.sender();
    let Some(entry) = maps::service(service) else { return Fast::Undecided };
    if !same_hop || !is_fresh(&found, now, entry.idle) || !found.still() {
        return Fast::Undecided;
    }
    let Some(server) = ServerTable.present(to.server) else { return Fast::Undecided };
    let usable = server.state.has(ServerState::REACHABLE) && !server.state.has(ServerState::RESETS);
    if !usable || server.endpoint != to.endpoint || server.arm != 0 {
        return Fast::Undecided;
    }
    let (kind, source, source_port) = match server.forwarding {
        Forwarding::Snat => (Kind::ToServer, control.source(to.source, server.address), to.snat_port),
        Forwarding::Nat => (Kind::ToServer, client, key.client_port),
        Forwarding::Dr => (Kind::SentOn, client, key.client_port),
        Forwarding::Tunnel => return Fast::Undecided,
    };
    record(&found.slot.words[SEQUENCE_WORD], packet.sequence(), Direction::FromClient);
    let hop = Hop { to: server.hop_word(), from: packet.receiver(), arm: SAME_ARM };
    let port = server.port_for(key.service_port);
    let ports = u32::from(source_port) | u32::from(port) << 16;
    let decided =
        Decided { kind, service, server: to.server, found: &found, idle: entry.idle, hop: packet.sender() };
    let new = packet.outgoing(&hop, source, server.address, ports);
    keep.flow(context, packet, &decided, &new);
    if matches!(kind, Kind::SentOn) {
        packet.send_on(&new);
    } else {
        packet.write(&new);
    }
    count::packet_in(service, to.server, packet.length);
    count::reason(Reason::Forwarded);
    Fast::Transmit
}

#[inline(always)]
fn from_server<const V6: bool>(
    context: *mut xdp_md,
    control: &'static Control,
    packet: &Plain<V6>,
    endpoint: u16,
    keep: Keep,
) -> Fast {
    let world = World { control, now: now() };
    let (ours, port) = (packet.destination(), (packet.ports() >> 16) as u16);
    let snat = world.snat();
    let Some(offset) = snat.offset(port) else { return Fast::Undecided };
    let Some(source) = world.source_number(snat.sources_like(ours), ours) else { return Fast::Undecided };
    let Some(cell) = (&Ports).cell(snat.range(endpoint, source).index(offset)) else {
        return Fast::Undecided;
    };
    let Owner::Flow(index) = PortCell::from_word(cell.load()).owner else { return Fast::Undecided };
    let Some(slot) = (&Flows).slot(index) else { return Fast::Undecided };
    let life = slot.life();
    let word = slot.words[SERVER_WORD].load();
    let to = FlowServer::from_word(word);
    if word != (FlowServer { server: to.server, endpoint, snat_port: port, source }).word()
        || !matches!(life.state(), SlotState::Live)
    {
        return Fast::Undecided;
    }
    answer(context, &world, packet, endpoint, &Found { index, slot, life }, keep)
}

/// From a server that answers clients by their own addresses.
#[inline(always)]
fn from_nat_server<const V6: bool>(
    context: *mut xdp_md,
    control: &'static Control,
    packet: &Plain<V6>,
    server: Seen,
    keep: Keep,
) -> Fast {
    let world = World { control, now: now() };
    let (client, client_port) = (packet.destination(), (packet.ports() >> 16) as u16);
    let key = FlowKey { client, client_port, service_port: server.service_port, service: server.id() };
    let Some(found) = by_key(control, key, world.now) else { return Fast::Undecided };
    let endpoint = FlowServer::from_word(found.slot.words[SERVER_WORD].load()).endpoint;
    answer(context, &world, packet, endpoint, &found, keep)
}

/// Sends a server's packet on to the flow's client.
#[inline(always)]
fn answer<const V6: bool>(
    context: *mut xdp_md,
    world: &World,
    packet: &Plain<V6>,
    endpoint: u16,
    found: &Found<'_, FLOW_WORDS>,
    keep: Keep,
) -> Fast {
    let slot = found.slot;
    let to = FlowServer::from_word(slot.words[SERVER_WORD].load());
    let client = Address([slot.words[0].load(), slot.words[1].load()]);
    let names = slot.words[2].load();
    let service_port = (names >> 16) as u16;
    let next_hop = slot.words[HOP_WORD].load();
    let service = (names >> 32) as u16;
    let Some(entry) = maps::service(service) else { return Fast::Undecided };
    if next_hop >> ARM_SHIFT != 0 || entry.is_udp || !is_fresh(found, world.now, entry.idle) || !found.still()
    {
        return Fast::Undecided;
    }
    let Some(server) = ServerTable.present(to.server) else { return Fast::Undecided };
    let gone = server.endpoint != endpoint
        || server.address != packet.source()
        || server.port_for(service_port) != packet.ports() as u16
        || server.state.has(ServerState::RESETS);
    if gone {
        return Fast::Undecided;
    }
    record(&slot.words[SEQUENCE_WORD], packet.sequence(), Direction::FromServer);
    let hop = Hop { to: next_hop, from: packet.receiver(), arm: SAME_ARM };
    let ports = u32::from(service_port) | (names as u32 & 0xffff) << 16;
    let decided =
        Decided { kind: Kind::ToClient, service, server: to.server, found, idle: entry.idle, hop: next_hop };
    let new = packet.outgoing(&hop, entry.address, client, ports);
    keep.flow(context, packet, &decided, &new);
    packet.write(&new);
    count::packet_out(service, to.server, packet.length);
    count::reason(Reason::Returned);
    Fast::Transmit
}
