//! What both directions do with a flow: keep it alive, follow its state, and retire it.

use lb_common::{
    clock::Ticks,
    flow::{
        FLOW_WORDS, FlowKey, FlowServer, FlowSticky, HOP_WORD, MAY_FRAGMENT, SEQUENCE_WORD, SERVER_WORD,
        STICKY_WORD, Sequences, stays,
    },
    life::{Life, SlotState},
    ports::{self, Cells as _},
    sticky::{self, reference},
    table::{self, Found, Slot, Slots as _},
    tcp::{Direction, TcpFlags, TcpState, in_window, worth_recording},
    word::Word,
};

use crate::{
    count::{self, ONE_LESS},
    from_client::Client,
    maps::{self, Flows, HalfOpen, Ports, StickyTable},
    pipeline::World,
    select::{self, asked_for},
};

/// The flow of a key's latest connection, and whether it is half-open.
#[inline(always)]
pub(crate) fn latest(key: FlowKey) -> Option<(Found<'static, FLOW_WORDS>, bool)> {
    let [first, second, ports] = key.words();
    let place = latest_place(first, second, ports);
    let (index, half_open) = (place as u32, place & IN_HALF_OPEN != 0);
    let slot = if half_open { (&HalfOpen).slot(index) } else { (&Flows).slot(index) }?;
    let life = slot.life();
    let same =
        slot.words[0].load() == first && slot.words[1].load() == second && slot.words[2].load() == ports;
    if same && matches!(life.state(), SlotState::Live) {
        Some((Found { index, slot, life }, half_open))
    } else {
        None
    }
}

/// No index of a slot.
pub(crate) const NOWHERE: u64 = u32::MAX as u64;
/// Beside an index: it is one of the half-open table.
const IN_HALF_OPEN: u64 = 1 << 32;
/// Beside an index: the flow is closed.
const CLOSED: u64 = 1 << 33;

/// Where the flow of this key's latest connection lies: one that is closed makes way for what has begun on its ports since.
#[inline(always)]
fn latest_place(first: u64, second: u64, ports: u64) -> u64 {
    let flow = flow_at(first, second, ports);
    if flow & CLOSED == 0 && flow != NOWHERE {
        return flow;
    }
    let half_open = half_open_at(first, second, ports);
    if half_open != NOWHERE {
        return half_open;
    }
    // Another core may have established it between the two looks.
    if flow == NOWHERE { flow_at(first, second, ports) } else { flow }
}

/// Where the flow of this key lies in the flow table, or [`NOWHERE`].
///
/// A global function with numbers for arguments: the verifier checks it once, by itself.
#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn flow_at(first: u64, second: u64, ports: u64) -> u64 {
    let world = World::now();
    let client = Client::with_key(&world, FlowKey::from_words(&[first, second, ports, 0, 0, 0, 0]));
    let Some(found) = client.find_flow(&world) else { return NOWHERE };
    let closed = TcpState::from_note(found.life.note()).is_closed();
    u64::from(found.index) | if closed { CLOSED } else { 0 }
}

/// As [`flow_at`], in the half-open table.
#[unsafe(no_mangle)]
#[inline(never)]
pub(crate) extern "C" fn half_open_at(first: u64, second: u64, ports: u64) -> u64 {
    let world = World::now();
    let client = Client::with_key(&world, FlowKey::from_words(&[first, second, ports, 0, 0, 0, 0]));
    client.find_half_open(&world).map_or(NOWHERE, |found| u64::from(found.index) | IN_HALF_OPEN)
}

/// Follows a packet of an established flow: sequence numbers, TCP state, deadline.
#[inline(always)]
pub(crate) fn follow(
    world: &World,
    found: &Found<'_, FLOW_WORDS>,
    service: u16,
    flags: TcpFlags,
    sequence: u32,
    direction: Direction,
) -> bool {
    let (slot, life) = (found.slot, found.life);
    let last = record(&slot.words[SEQUENCE_WORD], sequence, direction);
    let near = in_window(last, sequence);
    let state = TcpState::from_note(life.note());
    let next = state.next(direction, flags, near);
    if next as u32 == state as u32 {
        keep(world, slot, life, service, state);
    } else {
        change_state(found.index, life.word(), next as u32);
    }
    near
}

/// Notes over which hop a client's packets come. What was learnt of another hop's path is not known of this one's.
#[inline(always)]
pub(crate) fn comes_by(slot: &Slot<FLOW_WORDS>, sender: u64) {
    let word = &slot.words[HOP_WORD];
    if word.load() & !MAY_FRAGMENT != sender {
        word.store(sender);
    }
}

/// Records a packet's sequence number if it is worth it. Gives the one before.
#[inline(always)]
pub(crate) fn record(word: &Word, sequence: u32, direction: Direction) -> u32 {
    let recorded = Sequences::from_word(word.load());
    let (last, updated) = match direction {
        Direction::FromClient => (recorded.client, Sequences { client: sequence, ..recorded }),
        Direction::FromServer => (recorded.server, Sequences { server: sequence, ..recorded }),
    };
    if worth_recording(last, sequence) {
        word.store(updated.word());
    }
    last
}

/// Moves the deadline of a flow whose state stays.
#[inline(always)]
pub(crate) fn keep(world: &World, slot: &Slot<FLOW_WORDS>, life: Life, service: u16, state: TcpState) {
    // Closed flows live as long as is left to them: late packets do not keep them.
    if state.is_closed() {
        return;
    }
    let Some(service) = maps::service(service) else {
        return;
    };
    let idle = world.control.idle(state, service.idle);
    if !stays(life.deadline(), world.now, idle) {
        let deadline = world.now.plus(idle);
        let _changed_by_another_core = !slot.exchange(life, life.with_deadline(deadline));
    }
}

/// Writes a flow's new state; the one who does counts it as closed, or open again, in its sticky record.
///
/// A global function with numbers for arguments: the verifier checks it once, by itself.
#[unsafe(no_mangle)]
#[inline(never)]
pub(crate) extern "C" fn change_state(index: u32, life: u64, to: u32) -> u32 {
    let world = World::now();
    let Some(slot) = Flows.slot(index) else { return 0 };
    let (life, to) = (Life::from_word(life), TcpState::from_note(to));
    let Some(service) = maps::service(service_of(slot)) else {
        return 0;
    };
    let deadline = world.now.plus(world.control.idle(to, service.idle));
    if !slot.exchange(life, life.with_note(to as u32).with_deadline(deadline)) {
        return 0;
    }
    let was_closed = TcpState::from_note(life.note()).is_closed();
    let server = FlowServer::from_word(slot.words[SERVER_WORD].load()).server;
    if !was_closed && to.is_closed() {
        count::open(server, ONE_LESS);
        release_record(&world, slot);
    }
    if was_closed && !to.is_closed() {
        count::open(server, 1);
        hold_record_again(&world, slot, service.persistence);
    }
    1
}

/// The service of a flow.
#[inline(always)]
fn service_of(slot: &Slot<FLOW_WORDS>) -> u16 {
    (slot.words[2].load() >> 32) as u16
}

/// Starts the timeout of the sticky record that a flow holds.
#[inline(always)]
fn release_record(world: &World, slot: &Slot<FLOW_WORDS>) {
    release(world, slot.words[STICKY_WORD].load(), slot);
}

/// Starts the timeout of the sticky record that a flow's word refers to, if it does; the client and service are the slot's.
#[inline(always)]
pub(crate) fn release(world: &World, word: u64, slot: &Slot<FLOW_WORDS>) {
    release_of(world, word, slot.words[0].load(), slot.words[1].load(), slot.words[2].load());
}

/// As [`release`], of the flow with these words of a key.
#[inline(always)]
pub(crate) fn release_of(world: &World, word: u64, first: u64, second: u64, ports: u64) {
    let Some(record) = FlowSticky::from_word(word).record else { return };
    let at = asked_for(ports);
    // A service that is gone has a record of neither kind any more.
    let Some(service) = maps::service(select::service_of(at)) else { return };
    let key = select::key_of(&service, first, second, at);
    sticky::let_go(&StickyTable, record, key, world.now.plus(service.persistence));
}

/// Counts a flow again that an RST had closed and its sender took back.
#[inline(always)]
fn hold_record_again(world: &World, flow: &Slot<FLOW_WORDS>, persistence: Ticks) {
    let Some(record) = FlowSticky::from_word(flow.words[STICKY_WORD].load()).record else {
        return;
    };
    let Some(slot) = StickyTable.slot(record.slot) else {
        return;
    };
    let life = slot.life();
    if matches!(life.state(), SlotState::Live) && reference(record.slot, life) == record {
        let found = Found { index: record.slot, slot, life };
        let _forgotten = !sticky::hold(&found, world.now.plus(persistence));
    }
}

/// Takes a flow out of the table, unless its life is another by now. Says whether it did.
#[inline(always)]
pub(crate) fn take_out(found: &Found<'_, FLOW_WORDS>) -> bool {
    let claimed = found.life.claimed();
    if !found.slot.exchange(found.life, claimed) {
        return false;
    }
    retire(found.index, found.life.word());
    table::release(found.slot, claimed);
    true
}

/// Gives back what the flow in a claimed slot held: its server's count and its sticky record, unless it was closed before, and its SNAT port.
/// `life` is the flow's own, from before the claim.
///
/// A global function with numbers for arguments: the verifier checks it once, by itself.
#[unsafe(no_mangle)]
#[inline(never)]
pub(crate) extern "C" fn retire(index: u32, life: u64) -> u32 {
    let world = World::now();
    let Some(slot) = Flows.slot(index) else { return 0 };
    let to = FlowServer::from_word(slot.words[SERVER_WORD].load());
    if !TcpState::from_note(Life::from_word(life).note()).is_closed() {
        count::open(to.server, ONE_LESS);
        release_record(&world, slot);
    }
    if let Some(cell) = cell_of(&world, &to) {
        ports::give_back(cell, index, world.control.over_since(Life::from_word(life), world.now));
    }
    1
}

/// The cell of a flow's SNAT port.
#[inline(always)]
pub(crate) fn cell_of(world: &World, to: &FlowServer) -> Option<&'static Word> {
    let snat = world.snat();
    let offset = snat.offset(to.snat_port)?;
    (&Ports).cell(snat.range(to.endpoint, to.source).index(offset))
}
