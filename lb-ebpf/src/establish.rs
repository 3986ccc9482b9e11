//! The acknowledgement that completes a handshake: the sticky record and the established flow appear.

use lb_common::{
    address::Address,
    clock::Ticks,
    flow::{
        FLOW_WORDS, FlowKey, FlowServer, FlowSticky, Flows as FlowKind, SEQUENCE_WORD, SERVER_WORD,
        STICKY_WORD, Sequences,
    },
    hash::hash3,
    life::{Life, SlotState},
    ports::promote,
    reason::Reason,
    server::{ServerState, Servers as _},
    sticky::{STICKY_WORDS, Stickies, StickyKey, StickyServer, hold, reference},
    table::{Found, Insert, Slot, Slots as _, find, insert_with, release},
    tcp::TcpState,
};

use crate::{
    count, flow,
    from_client::{Client, serving},
    handshake::{Answer, completes},
    maps::{self, Flows, HalfOpen, ServerTable, StickyTable},
    pipeline::World,
};

/// Establishes the half-open flow in a slot, by a segment with these sequence and acknowledgement numbers (low and high
/// half), with what [`stick`] gave for it. Gives an [`Answer`].
///
/// A global function with numbers for arguments: the verifier checks it once, by itself.
#[unsafe(no_mangle)]
#[inline(never)]
pub(crate) extern "C" fn establish(index: u32, numbers: u64, record: u64) -> u64 {
    let Some(world) = World::now() else { return Answer::word(0, Reason::NotConfigured) };
    let Some(slot) = HalfOpen.slot(index) else { return Answer::word(0, Reason::NotConfigured) };
    let to = slot.words[SERVER_WORD].load();
    let life = slot.life();
    let recorded = Sequences::from_word(slot.words[SEQUENCE_WORD].load());
    let answered = matches!(life.state(), SlotState::Live)
        && matches!(TcpState::from_note(life.note()), TcpState::SynReceived)
        && completes(numbers as u32, (numbers >> 32) as u32, recorded);
    // Only one core goes on from here; the slot stays live, so that the others' packets find their way.
    let promoting = life.with_note(TcpState::Promoting as u32);
    if !answered || !slot.exchange(life, promoting) {
        flow::release(&world, record, slot);
        return Answer::word(to, Reason::HandshakeForwarded);
    }
    let sequences = Sequences { client: numbers as u32, server: recorded.server };
    slot.words[SEQUENCE_WORD].store(sequences.word());
    Answer::word(to, flow(&world, index, slot, promoting, record))
}

#[inline(always)]
fn flow(world: &World, index: u32, slot: &Slot<FLOW_WORDS>, promoting: Life, record: u64) -> Reason {
    let ports = slot.words[2].load();
    let key = FlowKey::from_words(&[slot.words[0].load(), slot.words[1].load(), ports, 0, 0, 0, 0]);
    let client = Client::with_key(world, key);
    let to = FlowServer::from_word(slot.words[SERVER_WORD].load());
    let Some(service) = maps::service(key.service) else {
        release(slot, promoting);
        return Reason::HandshakeForwarded;
    };
    replace_closed(world, &client);
    slot.words[STICKY_WORD].store(slot.words[STICKY_WORD].load() & 0xffff_ffff | record);
    if !enter(world, &client, index, slot, &to, service.idle) {
        flow::release(world, record, slot);
        let overflow = promoting.with_note(TcpState::Established as u32);
        slot.life.store(overflow.with_deadline(world.now.plus(service.idle)).word());
        return Reason::FlowTableFull;
    }
    release(slot, promoting);
    count::flow(key.service, to.server);
    if service.persistence.0 != 0 && record == 0 {
        Reason::EstablishedUnrecorded
    } else {
        Reason::Established
    }
}

/// Puts the flow into the table and hands it its port.
#[inline(always)]
fn enter(
    world: &World,
    client: &Client,
    index: u32,
    half_open: &Slot<FLOW_WORDS>,
    to: &FlowServer,
    idle: Ticks,
) -> bool {
    let inserted = insert_with::<FLOW_WORDS, FlowKind, _>(
        &Flows,
        client.hash,
        client.key.words(),
        |slot| slot.copy(half_open),
        TcpState::Established as u32,
        world.now.plus(idle),
        world.now,
        |index, _, life| {
            flow::retire(index, life.word());
        },
    );
    let Insert::Inserted(flow) = inserted else {
        return false;
    };
    if let Some(cell) = flow::cell_of(world, to)
        && promote(cell, index, flow, world.now)
    {
        return true;
    }
    // Another half-open flow took the port in this moment: without it there is no way back.
    if let Some(slot) = (&Flows).slot(flow) {
        let life = slot.life();
        let _changed = !slot.exchange(life, life.with_state(SlotState::Free));
    }
    false
}

/// Takes a flow of the same ports out of the table that is closed, or whose server is gone: the client uses its port again.
#[inline(always)]
fn replace_closed(world: &World, client: &Client) {
    let Some(closed) = client.find_flow(world) else {
        return;
    };
    let to = FlowServer::from_word(closed.slot.words[SERVER_WORD].load());
    let is_closed = TcpState::from_note(closed.life.note()).is_closed() || serving(&to).is_none();
    let claimed = closed.life.claimed();
    if is_closed && closed.slot.exchange(closed.life, claimed) {
        flow::retire(closed.index, closed.life.word());
        release(closed.slot, claimed);
    }
}

/// Finds or makes the sticky record of a client (its address' two words) for a service and server (low and high half of
/// `to`), and counts one more flow in it.
///
/// A global function with numbers for arguments: the verifier checks it once, by itself. Gives the record's reference as
/// it stands in a flow's [`FlowSticky`]; zero if the service has no persistence, or the table no room.
#[unsafe(no_mangle)]
#[inline(never)]
pub(crate) extern "C" fn stick(first: u64, second: u64, to: u32) -> u64 {
    let Some(world) = World::now() else { return 0 };
    let (service, server) = (to as u16, (to >> 16) as u16);
    let key = StickyKey { client: Address([first, second]), service };
    let Some(service) = maps::service(service) else {
        return 0;
    };
    let hash = hash3(&world.key(), key.words());
    let deadline = world.now.plus(service.persistence);
    let fresh = StickyServer { service: key.service, server, made_at: world.now, verified: true };
    let found = match find::<STICKY_WORDS, Stickies, _>(&StickyTable, hash, key.words(), world.now) {
        Some(found) => found.index,
        None => match insert_with::<STICKY_WORDS, Stickies, _>(
            &StickyTable,
            hash,
            key.words(),
            |slot| {
                slot.words[0].store(first);
                slot.words[1].store(second);
                slot.words[2].store(fresh.word());
            },
            1,
            deadline,
            world.now,
            |_, _, _| {},
        ) {
            Insert::Inserted(index) => {
                return StickyTable.slot(index).map_or(0, |slot| reference_word(index, slot.life()));
            }
            Insert::Present(index) => index,
            Insert::Full | Insert::Contended => return 0,
        },
    };
    hold_for(found, key, server, deadline, fresh)
}

/// Counts one more flow in the record of `key` at `index`, if it is still there.
#[inline(always)]
fn hold_for(index: u32, key: StickyKey, server: u16, deadline: Ticks, fresh: StickyServer) -> u64 {
    let Some(slot) = StickyTable.slot(index) else {
        return 0;
    };
    let found = Found { index, slot, life: slot.life() };
    let same = slot.words[0].load() == key.client.0[0]
        && slot.words[1].load() == key.client.0[1]
        && slot.words[2].load() as u16 == key.service;
    if !same || !matches!(found.life.state(), SlotState::Live) || !hold(&found, deadline) {
        return 0;
    }
    follow_server(&found, server, fresh);
    reference_word(index, found.life)
}

/// The reference to a record, where it stands in a flow's word.
#[inline(always)]
fn reference_word(index: u32, life: Life) -> u64 {
    FlowSticky { made_at: Ticks(0), record: Some(reference(index, life)) }.word()
}

/// A record whose server can't be used any more follows the client to where it is now.
#[inline(always)]
fn follow_server(found: &Found<'_, STICKY_WORDS>, server: u16, fresh: StickyServer) {
    let word = found.slot.words[2].load();
    let recorded = StickyServer::from_word(word);
    if recorded.server == server {
        return;
    }
    let usable = ServerTable
        .present(recorded.server)
        .is_some_and(|server| server.service == fresh.service && server.state.has(ServerState::TAKES_KNOWN));
    if !usable {
        let moved = StickyServer { server, ..recorded };
        let _moved_by_another = found.slot.words[2].compare_exchange(word, moved.word());
    }
}
