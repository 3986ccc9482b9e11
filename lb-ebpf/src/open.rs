//! A SYN: the sticky record's server or the scheduler's pick, a SNAT port, and a half-open flow.
//!
//! Nothing else is written: what a SYN leaves behind, the next SYN may overwrite.

use lb_common::{
    address::Address,
    clock::Ticks,
    control::MAX_SOURCES,
    flow::{
        FLOW_WORDS, FlowKey, FlowServer, FlowSlot, FlowSticky, Flows as FlowKind, HOP_WORD, SEQUENCE_WORD,
        SERVER_WORD, STICKY_WORD, Sequences,
    },
    life::{Life, SlotState},
    ports::{Cells as _, Owner, PROBES, PortCell, QUARANTINE_SECONDS, claim, least_rest},
    reason::Reason,
    server::{ServerState, Servers as _},
    table::{Found, Kind as _, Slots as _, claim_any, publish_filled, release},
    tcp::TcpState,
};

use crate::{
    flow,
    from_client::{Client, HURRIED, IN_TABLE, serving},
    handshake::{Answer, REASON_SHIFT, owns_port},
    maps::{self, Flows, HalfOpen, Ports, ServerTable},
    pipeline::World,
    select::{asked_for, chosen},
};

/// Decides on a SYN with this key, sequence number and sender's MAC address. Gives an [`Answer`].
///
/// A global function with numbers for arguments: the verifier checks it once, by itself.
#[unsafe(no_mangle)]
#[inline(never)]
pub(crate) extern "C" fn open(first: u64, second: u64, ports: u64, sequence: u32, sender: u64) -> u64 {
    let world = World::now();
    let client = Client::with_key(&world, FlowKey::from_words(&[first, second, ports, 0, 0, 0, 0]));
    if let Some(half_open) = client.find_half_open(&world) {
        let answer = repeated(&world, &client, sequence, sender, &half_open);
        if answer != NOT_REPEATED {
            return answer;
        }
    }
    if ports & IN_TABLE != 0 {
        end_flow_of_dead_server(&world, &client);
    }
    if world.control.is_carrying(world.now) {
        return Answer::word(0, Reason::Carrying);
    }
    let selected = chosen(&world, first, second, asked_for(ports), u32::from(ports as u16));
    let reason = selected >> REASON_SHIFT;
    if reason != Reason::NewBySticky as u64 && reason != Reason::NewByScheduler as u64 {
        return selected;
    }
    let FlowServer { server, endpoint, .. } = FlowServer::from_word(selected & 0xffff_ffff);
    match half_open_flow(&world, &client, server, endpoint, sequence, sender, ports & HURRIED != 0) {
        Ok(to) => to.word() | reason << REASON_SHIFT,
        Err(reason) => Answer::word(0, reason),
    }
}

/// A client that begins anew has no use for a flow whose server is gone: should that come back, the flow would take the new
/// connection's segments.
#[inline(always)]
fn end_flow_of_dead_server(world: &World, client: &Client) {
    if let Some(found) = client.find_flow(world)
        && !TcpState::from_note(found.life.note()).is_closed()
        && serving(&FlowServer::from_word(found.slot.words[SERVER_WORD].load())).is_none()
        && found.still()
    {
        flow::change_state(found.index, found.life.word(), TcpState::ServerReset as u32);
    }
}

/// No [`Answer`] of [`repeated`].
const NOT_REPEATED: u64 = u64::MAX;

/// A SYN of a half-open flow: sent again, or the client's next attempt from the same port.
#[inline(always)]
fn repeated(
    world: &World,
    client: &Client,
    sequence: u32,
    sender: u64,
    half_open: &Found<'_, FLOW_WORDS>,
) -> u64 {
    let slot = half_open.slot;
    let word = slot.words[SERVER_WORD].load();
    let to = FlowServer::from_word(word);
    if matches!(TcpState::from_note(half_open.life.note()), TcpState::Promoting) {
        // Another core is establishing it, and owns the slot until it has.
        return Answer::word(word, Reason::SynRepeated);
    }
    let usable = ServerTable.present(to.server).is_some_and(|server| {
        server.endpoint == to.endpoint && server.state.has(ServerState::REACHABLE | ServerState::TAKES_KNOWN)
    });
    if !usable || !owns_port(world, half_open.index, &to) || !half_open.still() {
        let free = half_open.life.with_state(SlotState::Free);
        let _overwritten_by_another = !slot.exchange(half_open.life, free);
        return NOT_REPEATED;
    }
    let numbers = Sequences::from_word(slot.words[SEQUENCE_WORD].load());
    if numbers.client != sequence {
        let idle = world.control.idle(TcpState::SynSent, service_idle(client.key.service));
        let again = half_open.life.with_note(TcpState::SynSent as u32).with_deadline(world.now.plus(idle));
        if !slot.exchange(half_open.life, again) {
            return NOT_REPEATED;
        }
        slot.words[SEQUENCE_WORD].store(Sequences { client: sequence, server: 0 }.word());
    }
    flow::comes_by(slot, sender);
    Answer::word(word, Reason::SynRepeated)
}

#[inline(always)]
fn service_idle(service: u16) -> Ticks {
    maps::service(service).map_or(Ticks(1), |service| service.idle)
}

/// The same number, as far as the compiler knows another: what it has worked out from the first it works out again, instead of
/// keeping it on the stack.
#[inline(always)]
fn anew(mut number: u64) -> u64 {
    // SAFETY: nothing is done.
    unsafe { core::arch::asm!("{number} = {number}", number = inout(reg) number, options(nomem, nostack)) };
    number
}

/// Takes a half-open slot and a SNAT port.
#[inline(always)]
fn half_open_flow(
    world: &World,
    client: &Client,
    server: u16,
    endpoint: u16,
    sequence: u32,
    sender: u64,
    hurried: bool,
) -> Result<FlowServer, Reason> {
    let hash = anew(client.hash);
    let (index, claimed) =
        claim_any::<FLOW_WORDS, FlowKind, _>(&HalfOpen, hash, world.now).ok_or(Reason::HalfOpenBusy)?;
    let slot = (&HalfOpen).slot(index).ok_or(Reason::HalfOpenBusy)?;
    let Some((source, snat_port)) = port_for(world, server, endpoint, index, hash, hurried) else {
        release(slot, claimed);
        return Err(Reason::PortsExhausted);
    };
    let to = FlowServer { server, endpoint, snat_port, source };
    let [first, second, ports] = client.key.words();
    slot.words[0].store(first);
    slot.words[1].store(second);
    slot.words[2].store(ports);
    slot.words[SERVER_WORD].store(to.word());
    slot.words[HOP_WORD].store(sender);
    slot.words[SEQUENCE_WORD].store(Sequences { client: sequence, server: 0 }.word());
    slot.words[STICKY_WORD].store(FlowSticky { made_at: world.now, record: None }.word());
    let idle = world.control.idle(TcpState::SynSent, Ticks(1));
    publish_filled(slot, claimed, TcpState::SynSent as u32, world.now.plus(idle));
    Ok(to)
}

/// The source address and SNAT port (as on the wire) of a new flow to a server; zeros in the modes that need none.
#[inline(always)]
fn port_for(
    world: &World,
    server: u16,
    endpoint: u16,
    slot: u32,
    hash: u64,
    hurried: bool,
) -> Option<(u8, u16)> {
    let server = ServerTable.present(server)?;
    if server.forwarding.takes_port() {
        any_port(world, server.address, endpoint, slot, hash, hurried)
    } else {
        Some((0, 0))
    }
}

/// A SNAT port towards an endpoint (as on the wire) and its source address, from the one that the hash says first.
#[inline(always)]
fn any_port(
    world: &World,
    server: Address,
    endpoint: u16,
    slot: u32,
    hash: u64,
    hurried: bool,
) -> Option<(u8, u16)> {
    let snat = world.snat();
    let sources = u32::from(snat.sources_like(server));
    if sources == 0 || snat.ports == 0 {
        return None;
    }
    let first = ((hash >> 16) as u32) % sources;
    let mut attempt = 0;
    while attempt < sources && attempt < MAX_SOURCES as u32 {
        let source = (first + attempt) % sources;
        let offset = port_of_source(endpoint, source, slot, snat.ports, hurried);
        if offset != NO_PORT {
            return Some((source as u8, snat.first_port.wrapping_add(offset as u16).to_be()));
        }
        attempt += 1;
    }
    None
}

/// In how many places of the range ports are looked for. Clients that come at the same time and stay have a long run of
/// ports; when the cursor comes round to it, the next free one may be thousands further.
const PLACES: u32 = 8;

/// As [`claim_port`], in [`PLACES`] spread over the range, one after the other. Whoever is `hurried` begins where the cursor
/// has come round to by then: there ports have rested longest.
#[inline(always)]
fn port_of_source(endpoint: u16, source: u32, slot: u32, ports: u32, hurried: bool) -> u32 {
    let stride = if ports / PLACES > PROBES { ports / PLACES } else { PROBES };
    let mut place = 0;
    while place < PLACES {
        // A claim has moved the cursor by one itself.
        let ahead = if place == 0 && !hurried { 0 } else { stride - 1 };
        let mut offset = claim_port(endpoint, source, slot, ahead, hurried);
        if offset == NO_PORT && reclaim_ports(endpoint, source, hurried) > 0 {
            offset = claim_port(endpoint, source, slot, 0, hurried);
        }
        if offset != NO_PORT {
            return offset;
        }
        place += 1;
    }
    NO_PORT
}

/// No offset that [`claim_port`] gives.
const NO_PORT: u32 = u32::MAX;

/// Claims a port from a source address towards an endpoint for the half-open flow in a slot: its offset, or [`NO_PORT`].
/// It begins so many ports `ahead` of the next one.
///
/// A global function with numbers for arguments: the verifier checks it once, by itself.
#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn claim_port(endpoint: u16, source: u32, slot: u32, ahead: u32, hurried: bool) -> u32 {
    let world = World::now();
    let range = world.snat().range(endpoint, source as u8);
    if ahead > 0
        && let Some(cursor) = (&Ports).cursor(range.pair)
    {
        cursor.fetch_add(u64::from(ahead));
    }
    claim(&Ports, range, slot, world.now, rest(&world, hurried)).unwrap_or(NO_PORT)
}

/// How long a port must have rested.
#[inline(always)]
fn rest(world: &World, hurried: bool) -> Ticks {
    let quarantine = Ticks(world.control.quarantine.load() as u32);
    if hurried { least_rest(quarantine) } else { quarantine }
}

/// Retires flows that are over and still have the next ports to be tried, so that ports come back also when nobody sweeps the
/// flow table: expired ones, and for whoever is `hurried` closed ones, and open ones that have been silent for very long, whose
/// ports will do in two seconds. Gives how many.
#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn reclaim_ports(endpoint: u16, source: u32, hurried: bool) -> u32 {
    let mut retired = 0;
    let mut probe = 0;
    while probe < PROBES {
        // Read again each time, instead of being kept on the stack.
        let world = World::now();
        let snat = world.snat();
        let range = snat.range(endpoint, source as u8);
        let Some(cursor) = (&Ports).cursor(range.pair) else { return retired };
        if snat.ports == 0 {
            return retired;
        }
        let offset = (cursor.load().wrapping_add(u64::from(probe)) % u64::from(snat.ports)) as u32;
        let Some(cell) = (&Ports).cell(range.index(offset)) else { return retired };
        if let Owner::Flow(flow) = PortCell::from_word(cell.load()).owner {
            retired += retire_over(&world, flow, hurried);
        }
        probe += 1;
    }
    retired
}

/// Retires a flow if it has expired, or for whoever is `hurried` if both sides closed it as long ago as a port must rest. One
/// that an RST closed has to expire: its sender may take the RST back.
#[inline(always)]
fn retire_over(world: &World, index: u32, hurried: bool) -> u32 {
    let Some(slot) = (&Flows).slot(index) else { return 0 };
    let life = slot.life();
    let over = FlowKind::expired(life, world.now)
        || hurried && (has_rested(world, life) || is_dispensable(world, slot, life));
    if !matches!(life.state(), SlotState::Live) || !over {
        return 0;
    }
    u32::from(flow::take_out(&Found { index, slot, life }))
}

#[inline(always)]
fn is_dispensable(world: &World, slot: &FlowSlot, life: Life) -> bool {
    let service = (slot.words[2].load() >> 32) as u16;
    world.control.dispensable(life, service_idle(service), world.now) > 0
}

#[inline(always)]
fn has_rested(world: &World, life: Life) -> bool {
    let closed = matches!(TcpState::from_note(life.note()), TcpState::TimeWait);
    let over = world.control.over_since(life, world.now);
    closed && world.now.since(over).0 >= rest(world, true).0
}

/// A flow that found no room in the flow table lives on in the half-open table: its packets keep it.
#[inline(always)]
pub(crate) fn keep_overflow(world: &World, half_open: &Found<'_, FLOW_WORDS>, service: u16) {
    if matches!(TcpState::from_note(half_open.life.note()), TcpState::Established) {
        let deadline = world.now.plus(service_idle(service));
        let _changed_by_another =
            !half_open.slot.exchange(half_open.life, half_open.life.with_deadline(deadline));
    }
}

const _: () = assert!(QUARANTINE_SECONDS > 60, "longer than TIME-WAIT on Linux");
